"""tools/check_submission.py: what eval and predict write is let through, and mistakes are told."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeconv.data import submission
from segdeconv.data.labels import CITYSCAPES


@pytest.fixture
def streets(tmp_path, load_tool, monkeypatch):
    """Drawn street scenes in the Cityscapes layout, which count as large enough."""
    monkeypatch.setattr(submission, "SIZE", (64, 32))
    root = tmp_path / "streets"
    counts = ["--train", "2", "--val", "1", "--test", "2", "--size", "32", "64", "--workers", "0"]
    assert load_tool("make_synthetic").main(["--out", str(root), *counts]) == 0
    return root


@pytest.fixture
def trained(tool, config_file, streets):
    """A run on them."""
    data = ("--data.dataset", "cityscapes", "--data.root", streets, "--trainer.max_steps", 1)
    assert tool("train", "--config", config_file, *data)[0] == 0


def test_what_eval_and_predict_write_of_the_test_split_is_a_submission(tool, trained, streets):
    given = ("--split", "test", "--save-predictions", "sent")
    code, _, err = tool("eval", "last", *given)
    assert code == 0, err
    images = streets / "leftImg8bit" / "test"
    code, _, err = tool("predict", "last", images, "--write", "ids", "--out", "seen")
    assert code == 0, err
    for folder in ("sent", "seen"):
        code, out, err = tool("check_submission", folder, "--data.root", streets)
        assert code == 0, err
        assert "2 predictions for 2 images" in out and "2 of 64 x 32" in out
        assert f"nothing wrong was found; {folder} can be uploaded" in out
    for path in Path("sent").iterdir():
        twin = next(Path("seen").rglob(f"{path.stem}*.png"))
        assert np.array_equal(np.array(Image.open(path)), np.array(Image.open(twin)))


def test_what_is_no_submission_is_told_with_its_files(tool, streets, monkeypatch, expect):
    images = sorted((streets / "leftImg8bit" / "test").rglob("*.png"))
    for path in images:
        train_ids = np.resize(np.arange(19, dtype=np.uint8), (32, 64))
        (streets.parent / "sent").mkdir(exist_ok=True)
        Image.fromarray(train_ids).save(streets.parent / "sent" / path.name)
    monkeypatch.setenv("CITYSCAPES_DATASET", str(streets))
    result = tool("check_submission", "sent")
    expect(result, 1, "sent is no submission for split test; what is wrong is above")
    assert "wrong: the files hold train ids (0 to 18), not label ids" in result[1]
    ids = CITYSCAPES.train_to_id[np.zeros((32, 64), int)].copy()
    ids[0] = 0
    for path in images:
        Image.fromarray(ids).save(streets.parent / "sent" / path.name)
    ids[1] = 30
    Image.fromarray(ids).save(streets.parent / "sent" / images[0].name)
    code, out, _ = tool("check_submission", "sent", "--split", "test")
    assert code == 0
    assert "remark: 4.7 % of the pixels hold ids that are not evaluated (0, 30)" in out


def test_mistakes_are_one_sentence(tool, streets, expect, capsys):
    expect(tool("check_submission", "--split", "val"), 2, "name the folder of predictions first")
    given = ("check_submission", "nowhere", "--data.root", streets)
    expect(tool(*given), 1, "nowhere is no folder")
    expect(tool(*given, "--split", "tset"), 1, "split='tset'", "train, val, test")
    expect(tool(*given, "--data.dataset", "camvid"), 2, "for data.dataset cityscapes, not camvid")
    for arguments in ([], ["--help"]):
        with pytest.raises(SystemExit):
            tool("check_submission", *arguments)
        assert "usage: python tools/check_submission.py FOLDER" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tool("check_submission", "--help-all")
    assert "--data.root" in capsys.readouterr().out
