"""tools/make_synthetic.py: files that Cityscapes readers take, and what a mistake says."""

import errno
import os
import signal
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeconv.data.cityscapes import Cityscapes
from segdeconv.data.synthetic import SyntheticStreets

TOOL = Path(__file__).parents[2] / "tools" / "make_synthetic.py"
SMALL = ("--size", 64, 128)


@pytest.fixture
def make(capsys):
    """Run the tool in this process: exit code, standard output, standard error."""
    spec = spec_from_file_location("make_synthetic", TOOL)
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(*arguments):
        try:
            code = tool.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    return run


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


@pytest.fixture
def written(make, tmp_path):
    counts = ("--train", 3, "--val", 2, "--test", 2, "--seed", 5, "--workers", 0)
    code, out, err = make("--out", tmp_path / "set", *counts, *SMALL)
    assert code == 0, err
    assert "7 scenes written" in out
    return tmp_path / "set"


@pytest.mark.parametrize(("split", "count"), [("train", 3), ("val", 2)])
def test_the_cityscapes_reader_gives_what_the_drawn_set_gives(written, split, count):
    read = Cityscapes(written, split)
    drawn = SyntheticStreets(split, count, seed=5, size=(64, 128))
    assert read.names == drawn.names
    for a, b in zip(read, drawn, strict=True):
        assert np.array_equal(a["image"], b["image"])
        assert np.array_equal(a["mask"], b["mask"])


def test_torchvisions_reader_takes_the_files(written):
    datasets = pytest.importorskip("torchvision.datasets")
    read = datasets.Cityscapes(str(written), "train", "fine", "semantic")
    drawn = SyntheticStreets("train", 3, seed=5, size=(64, 128))
    by_name = {Path(path).name: index for index, path in enumerate(read.images)}
    for index, name in enumerate(drawn.names):
        image, ids = read[by_name[f"{name}_leftImg8bit.png"]]
        expected, mask = drawn.load(index)
        assert np.array_equal(np.asarray(image), expected)
        assert np.array_equal(drawn.label_set.id_to_train[np.asarray(ids)], mask)


def test_instances_lie_within_their_labels_and_are_single_objects(written):
    for path in (written / "gtFine" / "val").rglob("*_labelIds.png"):
        labels = np.asarray(Image.open(path)).astype(int)
        instances = np.asarray(Image.open(str(path).replace("labelIds", "instanceIds")))
        assert instances.dtype == np.uint16
        single = np.isin(labels, range(24, 34))
        assert np.array_equal(instances[~single], labels[~single])
        assert np.array_equal(instances[single] // 1000, labels[single])
        assert len(np.unique(instances[single])) > len(np.unique(labels[single]))


def test_labels_of_the_test_split_are_kept_back(written):
    read = Cityscapes(written, "test")
    assert len(read) == 2
    for sample, path in zip(read, read.label_paths, strict=True):
        assert (sample["mask"] == 255).all()
        assert set(np.unique(np.asarray(Image.open(path)))) <= {0, 1, 2, 3}
    assert list((written / "gtFine" / "test").rglob("*_instanceIds.png")) == []


def test_the_number_of_processes_changes_nothing(make, written, tmp_path):
    counts = ("--train", 3, "--val", 2, "--test", 2, "--seed", 5, "--workers", 2)
    assert make("--out", tmp_path / "again", *counts, *SMALL)[0] == 0
    assert files(tmp_path / "again") == files(written)


def test_a_folder_in_use_is_left_alone(make, written):
    before = files(written)
    code, _, err = make("--out", written, "--train", 1, *SMALL)
    assert code == 2
    assert "is not empty" in err and "--overwrite" in err
    assert files(written) == before


def test_overwrite_replaces_earlier_scenes_and_nothing_else(make, written):
    mine = written / "leftImg8bit" / "train" / "aachen" / "aachen_000000_000019_leftImg8bit.png"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    counts = ("--train", 1, "--val", 0, "--seed", 6, "--workers", 0)
    assert make("--out", written, *counts, *SMALL, "--overwrite")[0] == 0
    stem = "streets/streets_000006_000000"
    assert set(files(written)) == {
        "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
        f"leftImg8bit/train/{stem}_leftImg8bit.png",
        f"gtFine/train/{stem}_gtFine_labelIds.png",
        f"gtFine/train/{stem}_gtFine_instanceIds.png",
    }
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "0", "--val", "0"], "nothing to write: --train, --val and --test are all 0"),
        (["--train", "-1"], "argument --train: '-1' is no whole number of 0 or more"),
        (["--size", "16", "64"], "size=16x64: expected height and width, each 32 pixels or more"),
        (["--size", "64"], "argument --size: expected 2 arguments"),
        (["--trian", "4"], "unrecognized arguments: --trian 4"),
    ],
)
def test_a_mistake_gets_one_sentence_and_makes_no_folder(make, tmp_path, arguments, message):
    code, _, err = make("--out", tmp_path / "new", *arguments)
    assert code == 2
    assert err.startswith(f"error: {message}") and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_place_of_the_folder_is_named(make, tmp_path):
    (tmp_path / "taken").write_text("")
    code, _, err = make("--out", tmp_path / "taken", "--train", 1)
    assert (code, err) == (2, f"error: {tmp_path / 'taken'} is a file; name a folder\n")


def test_help_shows_commands_and_defaults(make):
    code, out, _ = make("--help")
    assert code == 0
    assert "python tools/make_synthetic.py --out" in out
    assert all(f"--{name}" in out for name in ("train", "val", "test", "size", "seed", "workers"))


def test_a_full_disk_leaves_no_half_file(make, tmp_path, monkeypatch):
    def write_half(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    code, _, err = make("--out", tmp_path / "set", "--train", 2, "--workers", 0, *SMALL)
    assert code == 2
    assert f"error: cannot write to {tmp_path / 'set'}: No space left on device\n" in err
    assert [path for path in (tmp_path / "set").rglob("*") if path.is_file()] == []


def test_ctrl_c_leaves_whole_files_only(tmp_path):
    out = tmp_path / "set"
    command = [sys.executable, TOOL, "--out", out, "--train", 5000, "--workers", 2, *SMALL]
    environment = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    run = subprocess.Popen(
        [str(part) for part in command],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 100
    while len(list(out.rglob("*_leftImg8bit.png"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all processes
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "Traceback" not in err
    assert "of 5200 scenes; what is in" in err
    images, labels = list(out.rglob("*_leftImg8bit.png")), list(out.rglob("*_labelIds.png"))
    assert 8 <= len(images) <= len(labels) < 5000
    for path in images + labels:
        Image.open(path).load()
    assert list(out.rglob("*.part")) == []
    assert len(Cityscapes(out, "train")) == len(images)
