"""tools/check_data.py: what is wrong with a data set is found, named, and told to scripts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

TOOL = Path(__file__).parents[2] / "tools" / "check_data.py"


def files_below(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def camvid(root):
    return ("check_data", "--data.dataset", "camvid", "--data.root", root, "--workers", 0)


def test_a_sound_data_set_exits_with_0_and_shows_classes_and_weights(tool, tiny_camvid):
    code, out, err = tool(*camvid(tiny_camvid))
    assert code == 0, err
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["samples"][1:] == ["10", "5"] and rows["sizes"][1:] == ["48x40", "48x40"]
    # the strip of void is 2 of 40 rows; the road 16 of the 38 others
    assert "5 %" in " ".join(rows["ignored"])
    assert rows["Road"][1:4] == ["42.1", "%", "10"]
    assert float(rows["Road"][-2]) == pytest.approx(1 / np.log(1.02 + 16 / 38), abs=1e-3)
    assert "arXiv:1606.02147" in out and "arXiv:1411.4734" in out
    assert "8 classes without a pixel" in out and "no errors; warnings: 2" in out


def test_everything_that_is_broken_is_found_in_one_go(tool, tiny_copy):
    train, val = tiny_copy / "train", tiny_copy / "val"
    mask = np.array(Image.open(train / "masks/04.png"))
    (train / "masks/00.png").unlink()
    (train / "images/01.png").write_bytes((train / "images/01.png").read_bytes()[:-200])
    (train / "masks/02.png").write_text("no picture")
    Image.fromarray(mask[:20]).save(train / "masks/03.png")
    mask[5, 5] = 77
    Image.fromarray(mask).save(train / "masks/04.png")
    Image.open(train / "images/05.png").convert("RGB").save(train / "masks/05.png")
    black = np.zeros((40, 48), np.uint8)
    black[:7] = 255
    Image.fromarray(black).save(train / "masks/06.png")
    Image.open(train / "images/07.png").save(val / "images/01.png")
    Image.open(val / "images/02.png").save(val / "images/03.png")
    Image.fromarray(np.full((40, 48), 3, np.uint8)).save(val / "masks/04.png")
    before = files_below(tiny_copy)
    code, out, err = tool(*camvid(tiny_copy), "--json", "new/report.json", "--show", 1)
    assert code == 1
    assert err == "error: errors in the data: 7, warnings: 5; all of them are above\n"
    report = json.loads(Path("new/report.json").read_text())
    names = {
        (each["kind"], each["split"]): [Path(item).name for item in each["items"]]
        for each in report["findings"]
        if each["kind"] != "absent-class"
    }
    assert names == {
        ("image-without-mask", "train"): ["00.png"],
        ("unreadable-image", "train"): ["01.png"],
        ("unreadable-mask", "train"): ["02.png"],
        ("size", "train"): ["03.png"],
        ("unknown-id", "train"): ["04.png", "06.png"],  # CamVid knows no 255
        ("mask-format", "train"): ["05.png"],
        ("duplicate-between-splits", "train and val"): ["01.png"],
        ("black-and-white-mask", "train"): ["06.png"],
        ("duplicate-in-split", "val"): ["03.png"],
        ("one-value-mask", "val"): ["04.png"],
    }
    assert (report["errors"], report["warnings"]) == (7, 5)
    assert out.count("error, ") == 7 and out.count("warning, ") == 5
    assert "error, train: 2 label maps with values that mean nothing" in out
    assert "04.png\n    … and 1 more" in out
    assert report["splits"]["train"]["looked_at"] == 10
    # not in 00, 02, 05, 06, nor in the upper half that is left of 03
    assert report["splits"]["train"]["classes"][3]["images"] == 5
    assert files_below(tiny_copy) == before


def test_it_takes_the_config_of_a_run_and_several_processes(tool, config_file, tmp_path):
    options = ("--workers", 2, "--json", "report.json", "--splits", "val", "train")
    code, _, err = tool("check_data", "--config", config_file, *options)
    assert code == 0, err
    report = json.loads(Path("report.json").read_text())
    assert list(report["splits"]) == ["val", "train"]
    weights = report["class_weights"]["median_frequency"]
    assert weights["split"] == "val" and len(weights["weights"]) == 11
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "report.json"]


def test_the_suggested_weights_are_a_value_that_training_takes(tool, config_file):
    assert tool("check_data", "--config", config_file, "--json", "report.json")[0] == 0
    for each in json.loads(Path("report.json").read_text())["class_weights"].values():
        given = ("--loss.class_weights", json.dumps(each["weights"]))
        with pytest.raises(SystemExit) as stop:
            tool("train", "--config", config_file, *given, "--print_config")
        assert stop.value.code == 0


def test_folders_cityscapes_and_drawn_scenes(tool, tiny_copy, load_tool):
    (tiny_copy / "classes.yaml").write_text(
        yaml.safe_dump({"classes": [f"class{n}" for n in range(11)], "ignore_ids": [11]})
    )
    small = ("--train", "2", "--val", "1", "--size", "64", "128", "--workers", "0")
    assert load_tool("make_synthetic").main(["--out", "streets", *small]) == 0
    given = {
        "folder": ("--data.root", tiny_copy),
        "cityscapes": ("--data.root", "streets"),
        "synthetic": ("--data.options", "{length: {train: 2, val: 1}, size: [64, 128]}"),
    }
    tables = {}
    for dataset, options in given.items():
        command = ("check_data", "--data.dataset", dataset, *options, "--workers", 0)
        code, out, err = tool(*command)
        assert code == 0, err
        tables[dataset] = out
    assert "class10" in tables["folder"]
    # the same scenes, from files and drawn
    assert tables["cityscapes"] == tables["synthetic"]


def test_mistakes_are_one_sentence(tool, tiny_camvid, expect):
    result = tool("check_data", "--data.dataset", "camvid")
    expect(result, 1, "data set 'camvid' needs its folder; give --data.root FOLDER")
    result = tool("check_data", "--data.dataset", "camvid", "--data.root", "nowhere")
    expect(result, 1, "no CamVid images in nowhere")
    result = tool(*camvid(tiny_camvid), "--data.options", "{modus: fine}")
    expect(result, 1, "data.options.modus", "it takes root")
    expect(tool(*camvid(tiny_camvid), "--limit", 0), 1, "limit=0: expected 1 or more")
    expect(tool(*camvid(tiny_camvid), "--split", "val"), 2, "unknown key split", "splits")


def test_a_place_that_takes_no_file_is_refused_before_anything_is_read(tool, tiny_camvid, expect):
    Path("taken").write_text("")
    result = tool(*camvid(tiny_camvid), "--json", "taken/report.json")
    expect(result, 1, "taken")
    assert "Road" not in result[1]


def test_help_shows_examples(tool, capsys):
    with pytest.raises(SystemExit) as stop:
        tool("check_data", "--help")
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "--json FILE" in out and "Examples" in out


def test_ctrl_c_stops_all_processes_without_a_traceback(tmp_path):
    command = [sys.executable, str(TOOL), "--data.dataset", "synthetic", "--workers", "2"]
    run = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(TOOL.parents[1])},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
    )
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    if not children.exists():
        run.kill()
        pytest.skip("this system does not tell a process's children")
    deadline = time.monotonic() + 100
    while len(children.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all processes
    _, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (130, "stopped at once\n")
    assert list(tmp_path.iterdir()) == []
