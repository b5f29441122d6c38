"""Exported networks give what the trained ones give, in the hands of others."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

import segdeconv as sd
from segdeconv.export import (
    comparison,
    encoder,
    export_encoder,
    export_network,
    files,
    load_network,
)
from segdeconv.export import network as whole_network
from segdeconv.inference import OnnxModel

TINY = dict(encoder="tu-mobilenetv3_small_050", encoder_depth=2, decoder_channels=[12, 8])
MEAN_STD = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SIZES = [(1, 97, 131), (3, 64, 96), (2, 17, 9), (4, 33, 64)]


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def trained(operator="deconv", arch="unet", **arguments):
    """A network that has statistics of its own."""
    torch.manual_seed(0)
    options = {"block": 8} if operator == "deconv" else None
    arguments = arguments or TINY
    model = sd.create_model(
        arch, num_classes=5, operator=operator, operator_options=options, **arguments
    )
    with torch.no_grad():
        for _ in range(3):
            model(images(4, 3, 64, 128) * 2 + 1)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def resnet():
    return trained(encoder="resnet18")


def assert_close(found, expected):
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale)


# ----------------------------------------------------------------------------------------- encoder


def test_a_folded_encoder_is_torchvisions_own_network(resnet, tmp_path):
    check = export_encoder(resnet, tmp_path / "encoder", normalization=MEAN_STD)
    assert 0 < check.difference < 1e-5 * check.largest and "120 tensors" in str(check)
    host = torchvision.models.resnet18(weights=None).eval()
    host.fc = nn.Identity()
    host.load_state_dict(load_file(tmp_path / "encoder" / "model.safetensors"))
    with torch.no_grad():
        found, expected = host(images(2, 3, 64, 96)), resnet.encoder(images(2, 3, 64, 96))[-1]
    assert_close(found, expected.mean((2, 3)))
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert config["encoder"] == "resnet18" and config["folded"] is True
    assert (config["mean"], config["std"]) == tuple(map(list, MEAN_STD))


def test_its_batch_norms_hold_nearly_the_statistics_that_they_will_find(resnet, tmp_path):
    """So that training it does not begin with a jump: norms of mean 0 and variance 1 would."""
    export_encoder(resnet, tmp_path / "encoder")
    again = sd.create_model("unet", "resnet18", 5, "batchnorm", weights=tmp_path / "encoder")
    seen = {}
    for name, norm in again.encoder.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            held = norm.running_mean.clone(), norm.running_var.clone()
            norm.register_forward_pre_hook(
                lambda _, given, name=name, held=held: seen.update({name: (given[0], *held)})
            )
    with torch.no_grad():
        again.train()(images(4, 3, 64, 128) * 2 + 1)
    assert len(seen) == 20
    for name, (given, mean, variance) in seen.items():
        found = given.var((0, 2, 3))
        assert 0.5 < (found / variance).median() < 2, name
        off = (given.mean((0, 2, 3)) - mean).abs() / found.sqrt()
        assert off.median() < 0.2, name


@pytest.mark.parametrize("operator", ["deconv", "batchnorm", "none"])
def test_a_folded_encoder_of_timm_has_the_names_of_its_classifier(operator, tmp_path):
    model = trained(operator, encoder="tu-convnext_atto", encoder_depth=2, decoder_channels=[8, 8])
    folder = tmp_path / "encoder"
    export_encoder(model, folder)
    report = timm.create_model("convnext_atto").load_state_dict(
        load_file(folder / "model.safetensors"), strict=False
    )
    assert report.unexpected_keys == []
    assert all(key.startswith(("stages", "head")) for key in report.missing_keys)


def test_a_torchvision_backbone_has_the_names_of_its_classifier(tmp_path):
    export_encoder(trained(arch="lraspp", encoder="mobilenet_v3_large"), tmp_path / "encoder")
    host = torchvision.models.mobilenet_v3_large(weights=None)
    host.classifier = nn.Identity()
    host.load_state_dict(load_file(tmp_path / "encoder" / "model.safetensors"))


def test_an_unfolded_encoder_goes_on_as_it_was(model, tmp_path):
    check = export_encoder(model, tmp_path / "encoder", folded=False)
    assert check.difference == 0
    again = sd.create_model(
        "unet", num_classes=3, operator="deconv", operator_options={"block": 8},
        weights=tmp_path / "encoder", **TINY,
    )  # fmt: skip
    assert again.weights_report.part == "encoder" and not again.weights_report.before_surgery
    state = model.encoder.state_dict()
    assert all(torch.equal(value, state[k]) for k, value in again.encoder.state_dict().items())


def test_an_encoder_that_has_no_such_form_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"groupnorm.*no batch norm; export it --unfolded"):
        export_encoder(trained("groupnorm"), tmp_path / "encoder")
    densenet = sd.create_model("unet", "densenet121", 2)
    with pytest.raises(ValueError, match=r"'densenet121'.*no batch norm right behind"):
        export_encoder(densenet, tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- classifiers


def classifier(name, **arguments):
    """A classifier that has statistics of its own."""
    torch.manual_seed(0)
    net = sd.create_classifier(name, 7, operator_options={"block": 8}, **arguments)
    side = 32 if net.config["small_input"] else 64
    with torch.no_grad():
        for _ in range(3):
            net(images(4, 3, side, side) * 2 + 1)
    return net.eval()


def test_a_classifiers_encoder_is_torchvisions_network_without_its_last_layer(tmp_path):
    trained_net = classifier("resnet18", small_input=False)
    check = export_encoder(trained_net, tmp_path / "encoder")
    assert "120 tensors with the names of torchvision's resnet18" in str(check)
    host = torchvision.models.resnet18(weights=None, num_classes=7).eval()
    state = load_file(tmp_path / "encoder" / "model.safetensors")
    assert host.load_state_dict(state, strict=False).missing_keys == ["fc.weight", "fc.bias"]
    fold = sd.fold(trained_net)
    host.fc = fold.network.fc
    batch = images(2, 3, 64, 96)
    with torch.no_grad():
        assert_close(host(batch), trained_net(batch))


@pytest.mark.parametrize(
    ("name", "small", "encoder_name"),
    [("resnet18", False, "resnet18"), ("vgg11", True, "vgg11_bn")],
)
@pytest.mark.parametrize("folded", [True, False])
def test_a_classifiers_encoder_starts_a_segmentation(name, small, encoder_name, folded, tmp_path):
    trained_net = classifier(name, small_input=small)
    export_encoder(trained_net, tmp_path / "encoder", folded=folded)
    operator = {"operator": "batchnorm"} if folded else {"operator_options": {"block": 8}}
    model = sd.create_model("unet", encoder_name, 5, weights=tmp_path / "encoder", **operator)
    assert model.weights_report.part == "encoder"
    features = trained_net.network.features if name == "vgg11" else None
    batch = images(1, 3, 64, 64)
    with torch.no_grad():
        found = model.eval().encoder(batch)[-1]
        if features is not None:
            assert_close(found, features(batch))
        else:
            trained_net.network.fc = nn.Identity()
            assert_close(found.mean((2, 3)), trained_net(batch))


def test_an_encoder_of_small_images_is_refused_where_the_stem_is_another(tmp_path):
    check = export_encoder(classifier("resnet18"), tmp_path / "encoder", folded=False)
    assert check.difference == 0
    with pytest.raises(ValueError, match=r"small images have another stem.*small_input=False"):
        sd.create_model("unet", "resnet18", 5, operator_options={"block": 8},
                        weights=tmp_path / "encoder")  # fmt: skip


def test_a_network_of_the_paper_alone_keeps_its_own_names(tmp_path):
    check = export_encoder(classifier("pnasnet_a"), tmp_path / "encoder")
    assert "with the names of segdeconv's pnasnet_a" in str(check)
    state = load_file(tmp_path / "encoder" / "model.safetensors")
    assert not [key for key in state if key.startswith("classifier")]


@pytest.mark.parametrize("argmax", [False, True])
def test_a_classifier_runs_anywhere(argmax, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net, folder = classifier("tu-test_resnet"), tmp_path / "net"
    checks = export_network(net, folder, argmax=argmax, normalize=True, normalization=MEAN_STD)
    gives = "classes (N,)" if argmax else "logits (N, 7)"
    assert all(f"pixels 0 to 255 (N, 3, H, W) -> {gives}" in str(c) for c in checks[1:])
    program = torch.export.load(folder / "model.pt2").module()
    session = runtime.InferenceSession(folder / "model.onnx")
    plain = load_network(folder)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD)
    for number, height, width in [(1, 32, 32), (3, 37, 50), (2, 64, 48)]:
        pixels = images(number, 3, height, width).sigmoid() * 255
        with torch.no_grad():
            expected = net((pixels / 255 - mean) / std)
            assert_close(plain((pixels / 255 - mean) / std), expected)
        (onnx,) = session.run(None, {"images": pixels.numpy()})
        for found in (torch.from_numpy(onnx), program(pixels)):
            if argmax:
                assert torch.equal(found, expected.argmax(1))
            else:
                assert_close(found, expected)


# ----------------------------------------------------------------------------------- whole network


def test_a_network_runs_at_any_size_and_number(model, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    checks = export_network(model, tmp_path / "net")
    assert [check.file for check in checks] == ["model.safetensors", "model.pt2", "model.onnx"]
    assert all("(N, 3, H, W) -> logits (N, 5, H, W)" in str(check) for check in checks[1:])
    program = torch.export.load(tmp_path / "net" / "model.pt2").module()
    plain, onnx = load_network(tmp_path / "net"), OnnxModel(tmp_path / "net")
    assert {type(m).__module__.split(".")[0] for m in plain.network.modules()}.isdisjoint(
        {"segdeconv"}
    )
    for number, height, width in SIZES:
        batch = images(number, 3, height, width)
        with torch.no_grad():
            expected = model(batch)
            for run in (program, plain, onnx):
                assert_close(run(batch), expected)


def test_classes_and_normalisation_can_be_in_the_graph(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model, folder = trained("batchnorm"), tmp_path / "net"
    export_network(
        model, folder, formats=["onnx", "program"], argmax=True, normalize=True,
        normalization=MEAN_STD,
    )  # fmt: skip
    program = torch.export.load(folder / "model.pt2").module()
    onnx = OnnxModel(folder)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD)
    for number, height, width in SIZES:
        pixels = images(number, 3, height, width).sigmoid() * 255
        normalised = (pixels / 255 - mean) / std
        with torch.no_grad():
            expected = model(normalised).argmax(1)
        (classes,) = onnx.session.run(None, {"images": pixels.numpy()})
        assert (torch.from_numpy(classes) == expected).float().mean() > 0.999
        assert (program(pixels) == expected).float().mean() > 0.999
        votes = onnx(normalised)
        assert votes.shape == (number, 5, height, width)
        assert (votes.argmax(1) == expected).float().mean() > 0.999


def test_a_size_can_be_fixed(model, tmp_path):
    (check,) = export_network(model, tmp_path / "net", formats=["program"], size=(40, 48))
    assert "(N, 3, 40, 48)" in check.note
    program = torch.export.load(tmp_path / "net" / "model.pt2").module()
    batch = images(5, 3, 40, 48)
    with torch.no_grad():
        assert_close(program(batch), model(batch))


# ------------------------------------------------------------------------------------------- files


def test_what_differs_is_an_error_and_leaves_nothing(model, tmp_path, monkeypatch):
    def wrong(module):
        plain = sd.fold(module)
        with torch.no_grad():
            next(p for p in plain.parameters() if p.dim() == 4).mul_(1.01)
        return plain

    for module in (encoder, whole_network):
        monkeypatch.setattr(module, "fold", wrong)
    for write in (export_encoder, lambda *given: export_network(*given, formats=["safetensors"])):
        with pytest.raises(ValueError, match="more than rounding; nothing was written"):
            write(model, tmp_path / "new")
        assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unless_told_and_only_an_export_is(model, tmp_path, monkeypatch):
    folder = tmp_path / "encoder"
    export_encoder(model, folder)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="there already; --overwrite"):
        export_encoder(model, folder, folded=False)
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "TOLERANCE", -1)
        patch.setattr(comparison, "ROUNDING", -1)
        with pytest.raises(ValueError, match="more than rounding"):
            export_encoder(model, folder, folded=False, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == before
    export_encoder(model, folder, folded=False, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no export, and is not replaced"):
        export_encoder(model, tmp_path / "mine", overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        export_encoder(model, tmp_path / "mine" / "thesis.txt", overwrite=True)
    assert Path(tmp_path / "mine" / "thesis.txt").read_text() == "mine"


def test_a_folded_network_with_a_damaged_config_is_one_sentence(model, tmp_path):
    export_network(model, tmp_path / "net", formats=["safetensors"])
    config = tmp_path / "net" / "config.json"
    content = json.loads(config.read_text())
    content["model"]["planet"] = 1
    config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config.json: .* no option 'planet'; take it out"):
        load_network(tmp_path / "net")


def test_missing_packages_and_wrong_formats_are_named_first(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="format 'onx': expected some of safetensors, onnx"):
        export_network(model, tmp_path / "net", formats=["onx"])
    monkeypatch.setattr(
        whole_network, "find_spec", lambda name: None if name == "onnxscript" else name
    )
    with pytest.raises(ValueError, match=r"need onnxscript.*extra `export`.*--formats safetensors"):
        export_network(model, tmp_path / "net")
    with pytest.raises(ValueError, match="is not an exported network"):
        load_network(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence_whichever_library_met_it(model, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("Error while serializing: I/O error")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(RuntimeError, match="serializing"):  # not for want of space
        export_network(model, tmp_path / "out", formats=["safetensors"])
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"could not write .*out: No space left on device"):
        export_network(model, tmp_path / "out", formats=["safetensors"])
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_back_where_the_new_one_got_no_name(tmp_path, monkeypatch):
    folder, rename = tmp_path / "out", Path.replace

    def stopped(self, target):
        if self.suffix == ".part":
            raise KeyboardInterrupt
        return rename(self, target)

    with files.new_folder(folder) as part:
        files.write_config(part, files.ENCODER, {"number": 1})
    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt), files.new_folder(folder, overwrite=True) as part:
        files.write_config(part, files.ENCODER, {"number": 2})
    assert json.loads((folder / "config.json").read_text())["number"] == 1
    assert list(tmp_path.iterdir()) == [folder]
