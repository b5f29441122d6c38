"""Every command and every line of Python in README and the docs, run as a reader would."""

import configparser
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from pages import (
    COMMAND,
    MORE,
    NOT_RUN,
    PAGES,
    ROOT,
    Block,
    blocks,
    commands,
    replaced,
    smaller,
)
from PIL import Image

import segdeconv as sd
from segdeconv.data import submission
from segdeconv.data.labels import load_label_set
from segdeconv.operators import OPERATORS
from segdeconv.training.cli import ConfigParser
from segdeconv.training.mistakes import run_tool

EXTRAS = configparser.ConfigParser()
EXTRAS.read(ROOT / "setup.cfg")
LANGUAGES = {"bash", "python", "yaml", "text", "diff"}


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def written(block):
    """Whether it is there to be run."""
    return block.kind in ("bash", "python", "yaml")


RUN = [page for page in PAGES if any(written(block) for block in blocks(page))]


def write_streets(root):
    """Images, masks and classes.yaml as docs/own-data.md shows them."""
    root.mkdir()
    (classes,) = [block for block in blocks(ROOT / "docs/own-data.md") if block.title]
    (root / "classes.yaml").write_text(classes.text)
    for split, first in (("train", 1), ("val", 101)):
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for number in range(first, first + 4):
            generator = np.random.default_rng(number)
            mask = np.zeros((72, 80), np.uint8)
            mask[:24], mask[24:30, :40], mask[30:36, 40:], mask[70:] = 1, 7, 9, 255
            image = generator.integers(0, 40, (72, 80, 3), np.uint8) + 20 * mask[..., None] // 3
            Image.fromarray(image.astype(np.uint8)).save(root / split / f"images/{number:04}.jpg")
            Image.fromarray(mask).save(root / split / f"masks/{number:04}.png")


@pytest.fixture(scope="module")
def workshop(tiny_config, tiny_camvid, small_sets, load_tool, tmp_path_factory):
    """A folder with all that the pages speak of: data, configs, two runs, images, a video."""
    folder = tmp_path_factory.mktemp("workshop")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(small_sets, folder / "data")
    shutil.copytree(tiny_camvid, folder / "data" / "camvid")
    shutil.copytree(tiny_camvid / "val" / "images", folder / "photos")
    shutil.copy(folder / "photos" / "00.png", folder / "image.png")
    write_streets(folder / "my_streets")
    make = load_tool("make_synthetic").main
    small = "--train 4 --val 2 --test 2 --size 64 128 --workers 0"
    assert make(["--out", str(folder / "data/cityscapes"), *small.split()]) == 0
    for operator in ("deconv", "batchnorm"):
        config = {**tiny_config, "name": f"unet_resnet18_{operator}"}
        config["model"] = {**config["model"], "operator": operator}
        if operator == "batchnorm":
            config["model"]["operator_options"] = None
        config["output_dir"] = str(folder / "runs")
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        arguments = ["--config", str(folder / "config.yaml"), "--trainer.max_steps", "2"]
        assert run_tool(load_tool("train").main, arguments) == 0
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pth")
    return folder


class Reader:
    """Someone who types a page into the folder at hand, block by block."""

    def __init__(self, tool, monkeypatch, capsys):
        self.tool, self.monkeypatch, self.capsys = tool, monkeypatch, capsys
        self.names, self.said, self.missing = {}, {}, set()

    def read(self, page):
        for block in blocks(page):
            if block.title:
                path = Path(block.title)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
            if written(block):
                getattr(self, block.kind)(block, f"{name_of(page)}, line {block.line}")

    def python(self, block, where):
        if "onnx" not in block.text or self.has("onnxruntime", "onnxscript"):
            self.capsys.readouterr()
            exec(compile(replaced(block.text), where, "exec"), self.names)
            self.said[block.text] = self.capsys.readouterr().out

    def yaml(self, block, where):
        Path("written.yaml").write_text(block.text)
        if "classes" in yaml.safe_load(block.text):
            load_label_set(Path("written.yaml"))
        else:
            task = "classification" if "webdataset" in block.text else "segmentation"
            ConfigParser().read(["--config", "written.yaml", "--task", task])

    def bash(self, block, where):
        for command in commands(block.text):
            if not any(command.startswith(beginning) for beginning in NOT_RUN):
                self.type(command, f"{where}: {command}")

    def type(self, command, where):
        words = shlex.split(replaced(command), comments=True)
        if words[0] == "torchrun":  # in two processes: the slow test
            words = ["python", *words[words.index("2") + 1 :]]
        if words[0] == "export":
            self.monkeypatch.setenv(*words[1].split("=", 1))
        elif words[:2] == ["python", "-c"]:
            exec(words[2], {})
        elif words[:2] == ["pip", "install"]:
            check_extras(command, where)
        elif words[0] == "python" and words[1].startswith("tools/"):
            self.run(Path(words[1]).stem, words[2:], command, where)
        elif words[0] == "python" and words[1].startswith("benchmarks/"):
            self.check_benchmark(words[1], words[2:], where)
        else:
            pytest.fail(f"{where}: the tests know no way to run it; see tests/pages.py")

    def run(self, tool, arguments, command, where):
        of_onnx = "onnx" in command or (tool == "export" and "--what" not in arguments)
        of_onnx |= arguments[0] == "deploy"
        if of_onnx and not self.has("onnxruntime", "onnxscript"):
            return
        if tool == "train" and not {"--help", "--help-all"} & set(arguments):
            # Lightning would start further processes: the slow test
            more = ["--print_config"] if "--trainer.devices" in arguments else []
            more = [*smaller(arguments), *more]
        else:
            more = MORE.get(tool, []) if "--help" not in arguments else []
        try:
            code, out, err = self.tool(tool, *arguments, *more)
        except SystemExit as end:  # of --help and --print_config
            code, out, err = end.code or 0, self.capsys.readouterr().out, ""
        assert code == 0, f"{where}\n{err}"
        self.said[command] = out

    def check_benchmark(self, script, arguments, where):
        """It takes these options; it is not run, as it measures."""
        self.monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        self.monkeypatch.setattr("sys.argv", [script, "--help"])
        self.capsys.readouterr()
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        usage = self.capsys.readouterr().out
        given = [word for word in arguments if word.startswith("--")]
        assert [word for word in given if word not in usage] == [], where

    def has(self, *packages):
        self.missing |= {name for name in packages if find_spec(name) is None}
        return not self.missing & set(packages)


def check_extras(command, where):
    named = re.findall(r"\[(.+?)\]", command)
    extras = {extra for group in named for extra in group.split(",")}
    assert extras <= set(EXTRAS["options.extras_require"]), where


@pytest.fixture
def reader(workshop, tool, tmp_path, monkeypatch, capsys):
    shutil.copytree(workshop, tmp_path, dirs_exist_ok=True)
    yield Reader(tool, monkeypatch, capsys)
    OPERATORS._entries.pop("standardized", None)  # of docs/add-an-operator.md


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_a_page_can_be_typed_as_it_is_written(page, reader):
    if page.name in GIVEN:
        GIVEN[page.name](reader)
    reader.read(page)
    if page.name in EXPECTED and not reader.missing:
        EXPECTED[page.name](reader)
    if reader.missing:
        pytest.skip(f"the rest runs; what needs {', '.join(sorted(reader.missing))} does not")


NOT_TO_BE = {
    "make everything": "the tests know no way to run it",
    "python tools/train.py --config my.yaml": "exactly one row of SMALL",
    "python tools/compare.py runs/a runs/b": "runs/a is not the folder of a run",
    "python benchmarks/layers.py --fast": "--fast",
    "pip install '.[gpu]'": "gpu",
}


@pytest.mark.parametrize("command", NOT_TO_BE)
def test_a_command_that_is_wrong_or_that_nobody_knows_fails(command, tool, monkeypatch, capsys):
    reader = Reader(tool, monkeypatch, capsys)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=NOT_TO_BE[command]):
        reader.bash(Block("bash", 1, f"{command}\n"), "new.md")


# ------------------------------------------------------------- what pages take for given, and claim


def networks_of_the_reader(reader):
    """README: a network of the reader's own, a trained one, and batches of images."""
    names = reader.names
    names["my_network"] = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    names["trained_network"] = torchvision.models.resnet18()
    names["batches"] = [torch.randn(2, 3, 32, 32)]


def said(reader, *words):
    """What the command with all these words printed."""
    (found,) = [out for text, out in reader.said.items() if all(word in text for word in words)]
    return found


def from_classifier_to_predictions(reader):
    start = Path("runs/segmenter/start_weights.txt").read_text()
    assert "tensors into the encoder; not in the file: network.decoder" in start
    assert "Sky" in said(reader, "tools/eval.py runs/segmenter")
    photos = list(Path("data/camvid/val/images").iterdir())
    seen = [np.array(Image.open(path)) for path in Path("seen/ids").glob("*.png")]
    assert len(seen) == len(photos) and all(ids.max() < 11 for ids in seen)


def network_in_python(reader):
    assert reader.names["classes"].shape == (1, 40, 48)
    assert "tensors into the model" in said(reader, "load_weights(model")


def deployed(reader):
    assert reader.names["classes"].shape == (1, 40, 48)
    assert "model.pt2: differs by" in said(reader, "export_network(")
    assert Path("deploy/model.onnx").stat().st_size > 10_000
    assert len(list(Path("predictions/overlay").iterdir())) == 5
    assert sd.from_pretrained("my_model_again").about.dataset == "CamVid"
    assert sd.from_pretrained("my_grafted_model").config["operator"] == "deconv"


def backbones(reader):
    assert reader.names["other"].weights_report.part == "encoder"
    assert "not used: fc (2)" in Path("runs/unet_resnet18_deconv-2/start_weights.txt").read_text()
    assert Path("grafted/report.txt").is_file() and Path("grafted_encoder/report.txt").is_file()


def own_data(reader):
    assert "pavement" in said(reader, "tools/eval.py")
    assert Path("runs/mine/report.html").is_file()
    ids = {int(n) for path in Path("seen/ids").glob("*") for n in np.unique(Image.open(path))}
    assert ids <= {0, 1, 7}  # of the classes' first ids


def first_run(reader):
    (folder,) = [path.parent for path in Path("runs").glob("*resnet10t_deconv/config.yaml")]
    page = (ROOT / "docs/quick-start.md").read_text()
    table = page.split("| file | what is in it |")[1].split("```")[0]
    names = re.findall(r"`([\w./]+)`", "".join(re.findall(r"^\| (.+?) \|", table, re.MULTILINE)))
    assert len(names) == 10 and [name for name in names if not (folder / name).exists()] == []
    assert "nothing to do" in said(reader, "--resume last")


def network_to_look_into(reader):
    """docs/inspect.md: a network and images of the reader's own."""
    reader.names["model"] = torch.nn.Sequential()
    reader.names["model"].add_module("encoder", torch.nn.Conv2d(3, 4, 3))
    reader.names["images"] = torch.rand(2, 3, 9, 9)


def small_submissions(reader):
    """The server wants 2048 x 1024; the images of the test are smaller."""
    reader.monkeypatch.setattr(submission, "SIZE", (128, 64))


def cityscapes(reader):
    assert "largest difference of IoU and official" in said(reader, "--official")
    assert "no scores and no report" in said(reader, "--split test")
    assert "nothing wrong was found" in said(reader, "check_submission.py")


def inspected(reader):
    details = json.loads(Path("pages/decoder.json").read_text())["details"]
    assert details and all("decoder" in name for name in details)
    assert reader.names["field"].shape == (9, 9) and "condition" in said(reader, "observing(")


GIVEN = {
    "README.md": networks_of_the_reader,
    "cityscapes.md": small_submissions,
    "inspect.md": network_to_look_into,
}
EXPECTED = {
    "add-an-operator.md": lambda reader: said(reader, "list_operators").index("standardized"),
    "backbones.md": backbones,
    "cityscapes.md": cityscapes,
    "export-and-deploy.md": deployed,
    "inspect.md": inspected,
    "own-data.md": own_data,
    "pretrain-and-deploy.md": from_classifier_to_predictions,
    "quick-start.md": first_run,
    "using-a-run.md": network_in_python,
}


@pytest.mark.slow
def test_what_a_page_does_in_two_processes_works_in_two(workshop, tmp_path):
    shutil.copytree(workshop, tmp_path, dirs_exist_ok=True)
    page = ROOT / "docs" / "multi-gpu.md"
    typed = [
        line for block in blocks(page) if block.kind == "bash" for line in commands(block.text)
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for command in typed:
        words = shlex.split(command)
        more = smaller(words) if "tools/train.py" in words else ["--data.num_workers", "0"]
        words = [str(ROOT / word) if word.startswith("tools/") else word for word in words]
        if words[0] == "torchrun":
            words = ["python", "-m", "torch.distributed.run", *words[1:]]
        done = subprocess.run(
            [sys.executable, *words[1:], *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if "--trainer.devices" in words:
            assert "those of the first process are kept" in done.stdout
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == [
        "unet_resnet18_batchnorm",
        *(f"unet_resnet18_deconv{number}" for number in ("", "-2", "-3")),
    ]
    scores = json.loads((tmp_path / "runs/unet_resnet18_deconv/eval_val_best.json").read_text())
    assert sum(map(sum, scores["confusion"])) == 5 * (40 - 2) * 48  # two rows are void


# ------------------------------------------------------------------------------------ what is there


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_fence_has_a_language_and_no_command_hides_in_plain_text(page):
    for block in blocks(page):
        assert block.kind in LANGUAGES, f"line {block.line}"
        hidden = [line for line in block.text.splitlines() if COMMAND.match(line)]
        assert block.kind == "bash" or not hidden, f"line {block.line}"


def typed_commands(page):
    shell = [block.text for block in blocks(page) if block.kind == "bash"]
    return [command for text in shell for command in commands(text)]


def test_what_is_not_run_is_still_written_somewhere():
    typed = [command for page in PAGES for command in typed_commands(page)]
    unused = [begin for begin in NOT_RUN if not any(line.startswith(begin) for line in typed)]
    assert unused == []
