"""Weight files: into which part they go, what is left out, and which are refused."""

import json

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from segdeconv.models import create_model, load_weights
from segdeconv.models.weights import read_weights


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def small(arch="unet", encoder="resnet18", num_classes=3, **arguments):
    torch.manual_seed(0)
    return create_model(arch, encoder, num_classes, **arguments)


def other(build):
    """A network with other weights than those of seed 0."""
    torch.manual_seed(1)
    return build()


def saved(tmp_path, state, name="weights.pt"):
    if name.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
    else:
        torch.save(state, tmp_path / name)
    return tmp_path / name


def same(ours, theirs):
    """All tensors of ``theirs`` are in ``ours`` with the same values."""
    return all(torch.equal(ours[key], value) for key, value in theirs.items())


# ------------------------------------------------------------------------------- into the encoder


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_torchvision_classifier_goes_into_the_encoder_without_its_fc(tmp_path, name):
    classifier = other(torchvision.models.resnet18).state_dict()
    path = saved(tmp_path, classifier, name)
    model = small(weights=path, operator="batchnorm")
    report = model.weights_report
    assert report.part == "encoder" and report.dropped == {"fc": 2}
    assert report.fresh == ("network.decoder", "network.segmentation_head")
    del classifier["fc.weight"], classifier["fc.bias"]
    assert same(model.encoder.state_dict(), classifier)


def test_a_plain_classifier_is_loaded_before_the_surgery(tmp_path):
    classifier = other(torchvision.models.resnet18).state_dict()
    model = small(weights=saved(tmp_path, classifier))
    assert torch.equal(model.encoder.conv1.weight, classifier["conv1.weight"])
    assert model.weights_report.part == "encoder" and model.surgery_report.counts["removed"] == 30


@pytest.mark.parametrize(
    ("encoder", "name", "dropped"),
    [
        ("tu-resnet18", "resnet18", {"fc": 2}),
        ("tu-convnext_atto", "convnext_atto", {"head": 4}),  # stages.0 is called stages_0 in smp
        ("tu-mobilenetv3_small_050", "mobilenetv3_small_050", {"conv_head": 2, "classifier": 2}),
    ],
)
def test_a_timm_classifier_goes_into_its_encoder(tmp_path, encoder, name, dropped):
    classifier = other(lambda: timm.create_model(name, num_classes=7)).state_dict()
    model = small(encoder=encoder, weights=saved(tmp_path, classifier), operator="batchnorm")
    assert model.weights_report.dropped == dropped
    stem = next(value for value in classifier.values() if value.dim() == 4)
    assert any(torch.equal(stem, value) for value in model.encoder.state_dict().values())


def test_an_encoder_of_smp_and_one_with_prefixes_of_trainers_are_recognised(tmp_path):
    encoder = other(lambda: smp.encoders.get_encoder("resnet18", weights=None)).state_dict()
    for prefix in ("", "encoder.", "module.encoder.", "model.network.encoder."):
        state = {prefix + key: value for key, value in encoder.items()}
        model = small(weights=saved(tmp_path, {"state_dict": state, "epoch": 3}))
        assert model.weights_report.part == "encoder"
        assert torch.equal(model.encoder.conv1.weight, encoder["conv1.weight"])


def test_old_torchvision_names_of_densenets_are_understood(tmp_path):
    state = other(torchvision.models.densenet121).state_dict()
    old = {key.replace("norm1", "norm.1").replace("conv2", "conv.2"): v for key, v in state.items()}
    model = small(encoder="densenet121", weights=saved(tmp_path, old), operator="batchnorm")
    assert model.weights_report.dropped == {"classifier": 2}


def test_another_decoders_file_gives_its_encoder(tmp_path):
    state = other(lambda: smp.FPN("resnet18", encoder_weights=None, classes=3)).state_dict()
    report = small(weights=saved(tmp_path, state)).weights_report
    assert report.part == "encoder" and set(report.dropped) == {"decoder", "segmentation_head"}


# ---------------------------------------------------------------------------- whole networks


def test_a_network_of_smp_is_loaded_whole(tmp_path):
    network = other(lambda: smp.Unet("resnet18", encoder_weights=None, classes=3))
    model = small(weights=saved(tmp_path, network.state_dict()), operator="batchnorm")
    assert model.weights_report.part == "network" and model.weights_report.fresh == ()
    assert same(model.network.state_dict(), network.state_dict())


def test_a_network_of_torchvision_is_loaded_whole(tmp_path):
    build = torchvision.models.segmentation.lraspp_mobilenet_v3_large
    network = other(lambda: build(weights=None, weights_backbone=None, num_classes=3))
    path = saved(tmp_path, network.state_dict())
    model = small("lraspp", "mobilenet_v3_large", weights=path, operator="batchnorm").eval()
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network.eval()(x)["out"])


@pytest.mark.parametrize("operator", ["deconv", "batchnorm", "groupnorm", "none", "syncbatchnorm"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_model_of_ours_comes_back_whole_with_its_statistics(tmp_path, operator, name):
    model = small(operator=operator, aux_head=True)
    model(images(2, 3, 32, 32))
    path = saved(tmp_path, model.state_dict(), name)
    again = other(
        lambda: create_model("unet", "resnet18", 3, operator, aux_head=True, weights=path)
    )
    assert again.weights_report.part == "model" and again.weights_report.fresh == ()
    assert same(again.state_dict(), model.state_dict())


def test_a_model_trained_with_an_auxiliary_head_serves_without_it(tmp_path):
    model = small(aux_head=True)
    report = small(weights=saved(tmp_path, model.state_dict())).weights_report
    assert report.dropped == {"aux_head": 10} and report.fresh == ()


def test_a_converted_encoder_is_loaded_after_the_surgery(tmp_path):
    model = small("fpn")
    model(images(2, 3, 32, 32))
    path = saved(tmp_path, model.encoder.state_dict())
    again = other(lambda: create_model("unet", "resnet18", 3, weights=path))
    assert again.weights_report.part == "encoder"
    assert same(again.encoder.state_dict(), model.encoder.state_dict())


def test_weights_can_be_loaded_into_a_model_that_is_already_built(tmp_path):
    model = small()
    model(images(2, 3, 32, 32))
    again = other(lambda: create_model("unet", "resnet18", 3))
    report = load_weights(again, saved(tmp_path, model.state_dict()))
    assert same(again.state_dict(), model.state_dict())
    assert str(report).endswith("tensors into the model")
    assert json.loads(json.dumps(report.to_dict()))["part"] == "model"


def test_the_report_says_what_was_dropped_and_what_is_fresh(tmp_path):
    path = saved(tmp_path, torchvision.models.resnet18().state_dict())
    text = str(small(weights=path).weights_report)
    assert text == (
        f"the operator took the batch norms of {path}, and with them the function that it was "
        "trained to; to keep its function, graft it: with tools/graft.py, or load it with operator "
        "'batchnorm' and use segdeconv.graft\n"
        f"{path}: 120 tensors into the encoder; not used: fc (2); "
        f"not in the file: network.decoder, network.segmentation_head; of a plain network, which "
        "the operator then changed: see the surgery report"
    )


# ----------------------------------------------------------------------------------- refusals


def refused(words, **arguments):
    with pytest.raises(ValueError, match=words) as caught:
        small(**arguments)
    assert "\n" not in str(caught.value)


def test_the_file_of_another_encoder_is_refused_and_recognised(tmp_path):
    path = saved(tmp_path, torchvision.models.resnet18().state_dict())
    words = r"does not fit resnet50: \d+ keys missing, .*; it looks like a resnet18"
    refused(words, encoder="resnet50", weights=path)
    path = saved(tmp_path, torchvision.models.resnet34().state_dict())
    refused(r"unexpected \(first: layer1.2.conv1.weight\); it looks like a resnet34", weights=path)


def test_another_number_of_classes_is_named(tmp_path):
    for operator in ("batchnorm", "deconv"):
        path = saved(tmp_path, small(num_classes=11, operator=operator).state_dict())
        words = r"made for 11 classes, the model has num_classes=3"
        refused(words, weights=path, operator=operator)


def test_another_number_of_channels_is_named(tmp_path):
    path = saved(tmp_path, torchvision.models.resnet18().state_dict())
    words = "made for 3 channels, the model has in_channels=1"
    refused(words, weights=path, in_channels=1, operator="batchnorm")


def test_statistics_of_other_blocks_are_refused_with_the_reason(tmp_path):
    path = saved(tmp_path, small(operator_options={"block": 8}).state_dict())
    refused(r"running_.*operator_options such as block", weights=path)


def test_a_converted_file_is_refused_by_a_network_without_statistics(tmp_path):
    path = saved(tmp_path, small().state_dict())
    words = "holds whitening statistics, but .* operator is 'batchnorm'; use 'deconv'"
    refused(words, weights=path, operator="batchnorm")


def test_a_plain_file_comes_too_late_for_a_converted_model(tmp_path):
    path = saved(tmp_path, small(operator="batchnorm").state_dict())
    with pytest.raises(ValueError, match=r"create_model as weights=.*use segdeconv\.graft"):
        load_weights(small(), path)


def test_a_file_that_shares_nothing_is_refused(tmp_path):
    path = saved(tmp_path, nn.Linear(2, 2).state_dict())
    refused(r"does not fit unet with encoder resnet18: .*keys missing", weights=path)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"12")
    (tmp_path / "broken.pt").write_bytes(b"12")
    refused("no weights file", weights=tmp_path / "absent.pt")
    refused("cannot be read", weights=tmp_path / "broken.safetensors")
    refused("cannot be read", weights=tmp_path / "broken.pt")
    refused("holds no tensors", weights=saved(tmp_path, {"epoch": 3}))
    refused("nothing is downloaded", weights="https://example.org/weights.pt")


def test_a_file_that_would_execute_something_is_refused(tmp_path):
    refused("cannot be read .*nothing but tensors", weights=saved(tmp_path, nn.Linear(2, 2)))


def test_the_folder_of_a_run_stands_for_its_weights(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    assert torch.equal(read_weights(tmp_path)["a"], torch.ones(2))
