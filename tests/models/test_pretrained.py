"""Models saved as folders in the Hugging Face layout, and what comes back from there."""

import json
import pickle
import re
import socket
from shutil import copytree

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import segdeconv as sd
from segdeconv.export import export_encoder, export_network, export_pretrained
from segdeconv.models import About, ClassificationModel, SegmentationModel, pretrained

TINY = dict(encoder="tu-mobilenetv3_small_050", encoder_depth=2, decoder_channels=[12, 8])
ABOUT = About(
    name="streets",
    dataset="camvid",
    mean=[0.4, 0.5, 0.6],
    std=[0.2, 0.25, 0.3],
    crop_size=[24, 32],
    classes=[{"name": f"class {n}", "colour": [n, 0, 0], "id": n} for n in range(5)],
    recipe={"optimizer": {"name": "sgd", "lr": 0.3}},
    scores={"split": "val", "epoch": 3, "miou": 0.4321, "class_iou": {"a|b": 0.25, "c": None}},
    environment={"torch": "2.15.0"},
)


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def segmenter(operator="deconv", **options):
    torch.manual_seed(0)
    given = {"block": 8} if operator == "deconv" else None
    model = sd.create_model(
        "unet", num_classes=5, operator=operator, operator_options=given, **TINY, **options
    )
    with torch.no_grad():
        model(images(4, 3, 64, 128) * 2 + 1)
    model.about = ABOUT
    return model


@pytest.fixture(scope="module")
def model():
    return segmenter()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("once") / "saved"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A saved model that a test may damage."""
    return copytree(saved, tmp_path / "saved")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def rewrite(folder, change):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("operator", ["deconv", "batchnorm"])
@pytest.mark.parametrize("aux_head", [False, True])
def test_a_segmentation_model_comes_back_as_it_was(operator, aux_head, tmp_path):
    options = {"encoder": "resnet18", "aux_head": True} if aux_head else TINY
    torch.manual_seed(0)
    model = sd.create_model("unet", num_classes=5, operator=operator, **options)
    model(images(2, 3, 64, 64))
    model.about = ABOUT
    model.save_pretrained(tmp_path / "saved")
    again = sd.from_pretrained(str(tmp_path / "saved"))
    assert type(again) is type(model) and not again.training
    assert again.config == model.config and again.about == ABOUT
    assert again.weights_report.loaded == len(model.state_dict())
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    model.eval()
    with torch.no_grad():
        assert torch.equal(again(images(2, 3, 50, 70)), model(images(2, 3, 50, 70)))


def test_a_classifier_comes_back_and_gives_its_encoder_to_a_segmentation_model(tmp_path):
    torch.manual_seed(0)
    model = sd.create_classifier("resnet18", num_classes=7, small_input=False)
    model(images(4, 3, 64, 64))
    check = export_pretrained(model, tmp_path / "saved")
    assert check.difference == 0 and "tensors, for segdeconv.from_pretrained" in str(check)
    again = ClassificationModel.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(images(1, 3, 64, 64)), model.eval()(images(1, 3, 64, 64)))
    unet = sd.create_model("unet", "resnet18", 3, weights=tmp_path / "saved")
    assert unet.weights_report.part == "encoder"
    assert torch.equal(unet.encoder.conv1.weight, model.network.conv1.weight)


def test_training_goes_on_after_loading(folder):
    model = sd.from_pretrained(folder).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(images(2, 3, 64, 64)).square().mean().backward()
    assert any(not torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert model.network.segmentation_head[0].weight.grad.abs().max() > 0


def test_the_card_says_what_is_known_and_reads_back_with_the_hubs_own_reader(folder, model):
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "segdeconv" and card.data.pipeline_tag == "image-segmentation"
    assert card.data.license is None and card.data.datasets == ["camvid"]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("mean_iou", 0.4321)
    for words in (
        "| mean IoU | 43.21 |", "| a\\|b | 25.00 |", "| c | \N{EN DASH} |", "name sgd; lr 0.3",
        "deconv on SmpModel", "Not stated", "segdeconv.fold", "torch: 2.15.0",
    ):  # fmt: skip
        assert words in card.text, words
    assert model.generate_model_card(license="mit").data.license == "mit"


def test_the_code_of_the_card_runs(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(code.replace("path/to/this/folder", "saved"), names)
    assert names["classes"].shape == (1, 24, 32)
    with torch.no_grad():
        close = torch.isclose(
            names["plain"](names["images"]), names["model"](names["images"]), atol=1e-3
        )
    assert close.all()


def test_a_card_without_any_knowledge_of_the_training_is_whole_too(tmp_path):
    model = sd.create_classifier("resnet18")
    model.save_pretrained(tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert card.data.eval_results is None and card.data.datasets is None
    assert "## Recipe" not in card.text and "## Results" not in card.text
    assert "None" not in card.text and "torch.rand(1, 3, 32, 32)" in card.text


def test_saving_again_renews_config_and_weights_and_leaves_a_card_of_yours(folder, model):
    (folder / "README.md").write_text("mine")
    (folder / "model.safetensors").write_bytes(b"")
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    sd.from_pretrained(folder)


def test_what_nothing_could_load_again_is_not_saved(model, tmp_path):
    plain = sd.fold(model)
    with pytest.raises(ValueError, match=r"no longer what its config builds.*before it is folded"):
        plain.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="config= is not taken"):
        model.save_pretrained(tmp_path / "saved", config={})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        model.save_pretrained(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_grafted_network_is_saved_with_the_config_that_builds_it(tmp_path):
    model = segmenter("batchnorm").eval()
    report = sd.graft(model, [images(4, 3, 64, 64)], block=8)
    with pytest.raises(ValueError, match=r"of one that was grafted.*set operator"):
        model.save_pretrained(tmp_path / "saved")
    model.config["operator"] = "deconv"
    model.config["operator_options"] = {"block": 8, "skip": list(report.skip)}
    model.save_pretrained(tmp_path / "saved")
    again = sd.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(images(1, 3, 64, 64)), model(images(1, 3, 64, 64)))


def test_copies_and_pickles_of_models_keep_what_is_known(model):
    again = pickle.loads(pickle.dumps(model))
    assert again.about == ABOUT and again.config == model.config
    assert sd.fold(model).about == ABOUT


# ---------------------------------------------------------------------------------------- mistakes


def test_a_name_that_is_no_folder_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "snapshot_download", None)
    for name in (tmp_path / "no" / "model", "./runs/unet", "unet", "a/b/c"):
        with pytest.raises(
            ValueError, match=r"no folder .*; tools/export.py RUN --what pretrained"
        ):
            sd.from_pretrained(name)
    with pytest.raises(ValueError, match=r"no folder runs/unet; .* write 'hf-hub:runs/unet'"):
        sd.from_pretrained("runs/unet")


def test_the_hub_is_asked_for_three_files_when_the_name_says_so(folder, monkeypatch):
    asked = []

    def download(repo, **options):
        asked.append((repo, options["allow_patterns"], options["revision"]))
        return str(folder)

    monkeypatch.setattr(pretrained, "snapshot_download", download)
    model = SegmentationModel.from_pretrained("hf-hub:owner/streets", revision="v2")
    files = ["config.json", "model.safetensors", "README.md"]
    assert asked == [("owner/streets", files, "v2")]
    assert model.weights_report.path == "hf-hub:owner/streets"


def test_a_download_that_fails_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"hf-hub:owner/streets cannot be downloaded"):
        sd.from_pretrained("hf-hub:owner/streets", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"hf-hub:a/b/c: expected hf-hub:owner/model"):
        sd.from_pretrained("hf-hub:a/b/c")


def test_another_kind_of_model_is_named(folder):
    with pytest.raises(ValueError, match="holds a model for segmentation, no ClassificationModel"):
        ClassificationModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(more=1), r"unknown key 'more'.*written by segdeconv 9.9.*this is 0"),
        (lambda c: c["about"].update(planet=1), "unknown key 'planet'.*written by segdeconv 9.9"),
        (lambda c: c.pop("model"), "has no 'model'"),
        (lambda c: c.update(task="poetry"), "names the task 'poetry'"),
        (lambda c: c.update(model=[1]), r"holds \[1\] under 'model'"),
        (lambda c: c["model"].pop("arch"), "config.json: no 'arch' among the arguments"),
        (lambda c: c["model"].update(weights="x.pt"), "the key 'weights' among the arguments"),
        (lambda c: c["model"].update(encoder="resnet19"), "unknown encoder 'resnet19'"),
        (lambda c: c["model"].update(encoder=3), "encoder=3"),
        (lambda c: c["model"].update(checkpoint_path="x.pt"), "takes no option 'checkpoint_path'"),
        (lambda c: c["model"].update(num_classes=6), "does not fit .*config.json: .*two models"),
        (lambda c: c.update(format="other"), "not of this library"),
    ],
)
def test_a_config_that_is_wrong_is_one_sentence(folder, change, words):
    rewrite(folder, lambda content: content.update(segdeconv="9.9"))
    rewrite(folder, change)
    with pytest.raises(ValueError, match=words) as caught:
        sd.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files_are_named(folder, model):
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        sd.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=r"no weights file .*model.safetensors"):
        sd.from_pretrained(folder)
    weights.write_bytes(whole)
    state = load_file(weights)
    key = next(iter(state))
    save_file({name: value for name, value in state.items() if name != key}, weights)
    with pytest.raises(
        ValueError, match=re.escape("1 tensors are missing") + f".*{re.escape(key)}"
    ):
        sd.from_pretrained(folder)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config.json cannot be read"):
        sd.from_pretrained(folder)
    config.unlink()
    with pytest.raises(ValueError, match=r"holds no model: it has no config.json"):
        sd.from_pretrained(folder)


def test_other_exports_are_sent_to_where_they_belong(model, tmp_path):
    export_encoder(model, tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"an encoder's; .* weights= .* --model.weights"):
        sd.from_pretrained(tmp_path / "encoder")
    export_network(model, tmp_path / "network", formats=["safetensors"])
    with pytest.raises(ValueError, match=r"a folded network's; load it with .*load_network"):
        sd.from_pretrained(tmp_path / "network")
    export_pretrained(model, tmp_path / "network", overwrite=True)  # one export replaces another
    sd.from_pretrained(tmp_path / "network")
