"""tools/eval.py: the numbers are the official ones, however they are asked for."""

import json
import math
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from PIL import Image
from torch.multiprocessing import start_processes

from segdeconv.training.mistakes import WriteError, run_tool


@pytest.fixture(scope="module")
def streets(tmp_path_factory, load_tool):
    """Drawn street scenes as files in the Cityscapes layout."""
    root = tmp_path_factory.mktemp("streets") / "cityscapes"
    sizes = ["--train", "4", "--val", "3", "--test", "2", "--size", "64", "128", "--workers", "0"]
    assert load_tool("make_synthetic").main(["--out", str(root), *sizes]) == 0
    return root


@pytest.fixture
def trained(tool, train_once, streets):
    """A run on the drawn scenes, trained just enough to be wrong in many ways."""
    data = ("--data.dataset", "cityscapes", "--data.root", streets, "--trainer.max_epochs", 8)
    return copytree(train_once(*data), Path("runs/run"))


def official_scores(streets, predictions, monkeypatch):
    """The verdict of cityscapesScripts on files of predictions."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # NumPy 2.4 has it no longer
    monkeypatch.setattr(official.args, "JSONOutput", False)
    monkeypatch.setattr(official.args, "quiet", True)
    truths = sorted((streets / "gtFine" / "val").rglob("*_labelIds.png"))
    files = [predictions / path.name.replace("_gtFine_labelIds", "") for path in truths]
    return official.evaluateImgLists(list(map(str, files)), list(map(str, truths)), official.args)


def same(mine, theirs):
    return theirs is not None and (
        math.isnan(theirs) if mine is None else mine == pytest.approx(theirs, abs=1e-12)
    )


def test_the_numbers_are_those_of_cityscapes_scripts_on_the_written_files(
    trained, tool, streets, monkeypatch
):
    code, out, err = tool("eval", trained, "--save-predictions", "predictions", "--json", "s.json")
    assert code == 0, err
    mine = json.loads(Path("s.json").read_text())
    theirs = official_scores(streets, Path("predictions"), monkeypatch)
    assert mine["miou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-12)
    assert mine["mean_category_iou"] == pytest.approx(theirs["averageScoreCategories"], abs=1e-12)
    wrong = [n for n, iou in mine["class_iou"].items() if not same(iou, theirs["classScores"][n])]
    assert wrong == []
    scores = theirs["categoryScores"]
    assert all(same(iou, scores[name]) for name, iou in mine["category_iou"].items())
    assert len([iou for iou in mine["class_iou"].values() if iou]) >= 3  # there is something to see
    assert f"{100 * mine['miou']:.2f}" in out and f"{100 * mine['pixel_accuracy']:.2f}" in out


def temporary_folders():
    return sorted(Path(tempfile.gettempdir()).glob("predictions-*"))


def test_the_official_figures_stand_beside_ours(trained, tool, streets, monkeypatch):
    before = temporary_folders()
    given = ("--official", "--slide", "--crop", 40, 50, "--flip")
    code, out, err = tool("eval", trained, *given, "--json", "s.json")
    assert code == 0, err
    assert temporary_folders() == before and not list(trained.rglob("*.png"))
    mine = json.loads(Path("s.json").read_text())
    theirs = mine["official"]
    assert theirs["script"].startswith("cityscapesScripts 2.")
    assert theirs["largest_difference"] < 1e-9 and mine["predictions"] is None
    for name in ("miou", "mean_category_iou"):
        assert mine[name] == pytest.approx(theirs[name], abs=1e-9)
    for name in ("class_iou", "category_iou"):
        assert mine[name] == pytest.approx(theirs[name], abs=1e-9)
    assert "largest difference of IoU and official: " in out
    page = BeautifulSoup(Path("s.html").read_text(), "html.parser")
    tiles = {tile.dt.get_text(): tile.dd.get_text() for tile in page.select(".tiles > div")}
    assert tiles["official mIoU"] == tiles["mIoU"] == f"{100 * theirs['miou']:.1f} %"
    assert tiles["official iIoU"] == f"{100 * theirs['mean_iiou']:.1f} %"
    # the same settings again, for files that the script is given by hand
    tool("eval", trained, *given[1:], "--save-predictions", "kept", "--json", "again.json")
    direct = official_scores(streets, Path("kept"), monkeypatch)
    assert theirs["mean_iiou"] == pytest.approx(direct["averageScoreInstClasses"], abs=1e-12)
    assert 0 < theirs["mean_iiou"] < 1
    for ours, key in (("class_iiou", "classInstScores"), ("category_iiou", "categoryInstScores")):
        assert theirs[ours] and all(same(v, direct[key][n]) for n, v in theirs[ours].items())
    row = next(line.split() for line in out.splitlines() if line.startswith("mean of classes"))
    assert row[3:] == [
        f"{100 * value:.2f}" for value in (mine["miou"], theirs["miou"], theirs["mean_iiou"])
    ]


def test_of_a_part_the_script_sees_that_part_and_images_are_not_needed_in_full_size(trained, tool):
    given = ("--official", "--limit", 2, "--save-predictions", "kept", "--data.val_resize")
    assert tool("eval", trained, *given, "[32, 64]", "--json", "s.json")[0] == 0
    assert len(list(Path("kept").iterdir())) == 2
    record = json.loads(Path("s.json").read_text())
    assert record["official"]["largest_difference"] < 1e-9 and record["predictions"] == "kept"


def test_without_instance_files_the_rest_is_shown(trained, tool, streets):
    root = Path(copytree(streets, "bare"))
    for path in root.rglob("*_instanceIds.png"):
        path.unlink()
    code, out, err = tool("eval", trained, "--official", "--data.root", root, "--json", "s.json")
    assert code == 0, err
    assert "iIoU is left out: 3 of 3 images have no instance file (first: bare/gtFine/" in out
    assert json.loads(Path("s.json").read_text())["official"]["class_iiou"] == {}


def test_a_script_that_fails_takes_no_score_with_it(trained, tool, streets, expect):
    root = Path(copytree(streets, "odd"))
    for path in root.rglob("*_instanceIds.png"):
        Image.new("I;16", (5, 5), 26001).save(path)
    result = tool("eval", trained, "--official", "--data.root", root, "--json", "s.json")
    expect(result, 1, "there are no official figures: IndexError")
    record = json.loads(Path("s.json").read_text())
    assert "IndexError" in record["official"]["failed"] and record["miou"] > 0
    assert "cityscapesScripts failed: IndexError" in result[1] and "all pixels" in result[1]


def test_a_split_without_labels_gets_predictions_and_no_scores(trained, tool, streets, expect):
    words = "split test has no labels, so there is nothing to score; for its predictions alone give"
    expect(tool("eval", trained, "--split", "test"), 1, words)
    result = tool("eval", trained, "--split", "test", "--save-predictions", "sent", "--official")
    expect(result, 1, words, "leave --official out")
    shutil.rmtree(Path(copytree(streets, "bare")) / "gtFine")
    for root in (streets, "bare"):  # label files of nothing but void, and none at all
        sent = Path(f"sent_{Path(root).name}")
        given = ("--split", "test", "--data.root", root, "--save-predictions", sent)
        code, out, err = tool("eval", trained, *given)
        assert code == 0, err
        assert "no scores and no report: split test has no labels" in out
        assert f"python tools/check_submission.py {sent} --data.root {root} --split test" in out
        assert {Image.open(path).size for path in sent.iterdir()} == {(128, 64)}
        assert len(list(sent.iterdir())) == 2
    record = json.loads((trained / "eval_test_best.json").read_text())
    assert record["images"] == 2 and "miou" not in record
    assert not (trained / "eval_test_best.html").exists()


def test_the_files_hold_label_ids_and_the_accuracies_are_those_of_the_files(trained, tool, streets):
    tool("eval", trained, "--save-predictions", "predictions", "--json", "s.json")
    from segdeconv.data.labels import CITYSCAPES

    right = counted = 0
    for path in sorted(Path("predictions").iterdir()):
        image = Image.open(path)
        assert image.mode == "L" and image.size == (128, 64)
        found = np.array(image)
        assert set(np.unique(found)) <= set(CITYSCAPES.train_to_id.tolist())
        city, name = path.stem.split("_")[0], f"{path.stem}_gtFine_labelIds.png"
        truth = np.array(Image.open(streets / "gtFine" / "val" / city / name))
        valid = CITYSCAPES.id_to_train[truth] != 255
        right += int(((found == truth) & valid).sum())
        counted += int(valid.sum())
    assert json.loads(Path("s.json").read_text())["pixel_accuracy"] == pytest.approx(
        right / counted
    )


def test_evaluation_agrees_with_the_validation_of_the_training(trained, tool):
    for checkpoint in ("best", "last"):
        assert tool("eval", trained, "--checkpoint", checkpoint)[0] == 0
        mine = json.loads((trained / f"eval_val_{checkpoint}.json").read_text())
        then = json.loads((trained / "metrics.json").read_text())[checkpoint]
        assert mine["miou"] == pytest.approx(then["miou"], abs=1e-4)
        assert mine["images"] == 3


def test_labels_keep_their_size_when_images_are_resized(trained, tool):
    assert (
        tool("eval", trained, "--data.val_resize", "[32, 64]", "--save-predictions", "small")[0]
        == 0
    )
    assert {Image.open(path).size for path in Path("small").iterdir()} == {(128, 64)}
    pixels = json.loads((trained / "eval_val_best_32x64.json").read_text())["confusion"]
    assert 0.9 * 3 * 64 * 128 < sum(map(sum, pixels)) <= 3 * 64 * 128


def test_batches_and_limits_do_what_they_say(trained, tool):
    tool("eval", trained, "--json", "one.json")
    assert tool("eval", trained, "--json", "results/of/one.json")[0] == 0
    assert Path("results/of/one.json").read_bytes() == Path("one.json").read_bytes()
    tool("eval", trained, "--json", "two.json", "--data.val_batch_size", 2)
    one, two = (json.loads(Path(f"{name}.json").read_text()) for name in ("one", "two"))
    assert np.abs(np.array(one["confusion"]) - two["confusion"]).sum() <= 20  # ties in an argmax
    tool("eval", trained, "--json", "limited.json", "--limit", 2)
    assert json.loads(Path("limited.json").read_text())["images"] == 2


def test_another_split_and_the_newest_run_can_be_asked_for(trained, tool):
    assert tool("eval", "last", "--split", "train")[0] == 0
    assert json.loads((trained / "eval_train_best.json").read_text())["images"] == 4


def test_the_averaged_weights_are_what_is_evaluated(tool, config_file):
    assert tool("train", "--config", config_file, "--ema_decay", 0.9)[0] == 0
    for checkpoint in ("best", "last", "runs/run/checkpoints/best.ckpt"):
        assert tool("eval", "runs/run", "--checkpoint", checkpoint, "--json", "s.json")[0] == 0
        then = json.loads(Path("runs/run/metrics.json").read_text())["best"]
        assert json.loads(Path("s.json").read_text())["miou"] == pytest.approx(
            then["miou"], abs=1e-4
        )


def evaluate_in(rank, load_tool, port, arguments):
    torch.set_num_threads(1)  # as OpenMP's threads do not survive a fork
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    sys.argv = ["tools/eval.py", *arguments]
    assert run_tool(load_tool("eval").main, arguments) == 0


def test_two_processes_count_each_of_three_images_once(trained, tool, load_tool):
    options = ("--slide", "--crop", "40", "50", "--flip")
    assert tool("eval", trained, *options, "--json", "one.json")[0] == 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [str(trained), *options, "--json", "two.json", "--official"]
    folders = temporary_folders()
    start_processes(evaluate_in, (load_tool, port, both), 2, start_method="fork")
    one, two = (json.loads(Path(f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["confusion"] == two["confusion"] and one["images"] == two["images"] == 3
    assert two["official"]["largest_difference"] < 1e-9 and temporary_folders() == folders
    pages = [
        BeautifulSoup(Path(f"{name}.html").read_text(), "html.parser") for name in ("one", "two")
    ]
    shown = [[page.select_one(part).get_text() for part in ("#ece", "#examples")] for page in pages]
    assert shown[0] == shown[1]  # what the other process saw counts, too


def test_windows_scales_and_mirror_images_have_result_files_of_their_own(trained, tool):
    names = {
        ("--tta", "--limit", 1): (
            "eval_val_best_first1_tta.json",
            "scales 0.5 0.75 1 1.25 1.5 1.75",
        ),
        ("--slide", "--limit", 1): ("eval_val_best_first1_slide24x32.json", "windows of 24 x 32"),
    }
    for options, (name, words) in names.items():
        code, out, _ = tool("eval", trained, *options)
        assert code == 0 and words in out
        assert words in json.loads((trained / name).read_text())["mode"]


# ---------------------------------------------------------------------------------- mistakes


@pytest.fixture
def small_run(tool, train_once):
    return copytree(train_once(), Path("runs/run"))


def test_no_run_and_what_is_no_run_are_said(tool, tmp_path, expect):
    expect(tool("eval", "--device", "cpu"), 2, "name the folder of a run first")
    expect(tool("eval", tmp_path), 1, "is not the folder of a run")
    expect(tool("eval", "last"), 1, "no run in runs yet")


def test_help_is_short(tool, capsys):
    for arguments in ([], ["--help"]):
        with pytest.raises(SystemExit):
            tool("eval", *arguments)
        assert "usage: python tools/eval.py RUN_DIR" in capsys.readouterr().out


def test_scores_of_a_part_have_a_file_of_their_own(small_run, tool, expect):
    assert tool("eval", small_run)[0] == 0
    whole = (small_run / "eval_val_best.json").read_bytes()
    assert tool("eval", small_run, "--limit", 1)[0] == 0
    assert json.loads((small_run / "eval_val_best_first1.json").read_text())["images"] == 1
    for limit in (0, -1):
        expect(tool("eval", small_run, "--limit", limit), 1, f"limit={limit}: expected 1 or more")
    assert (small_run / "eval_val_best.json").read_bytes() == whole


@pytest.mark.parametrize("option", ["--json", "--save-predictions"])
def test_a_place_that_takes_no_file_is_found_before_the_evaluation(
    small_run, tool, expect, monkeypatch, option
):
    monkeypatch.setattr("segdeconv.training.evaluation.evaluate", None)
    place = small_run / "config.yaml" / "deeper" / "scores.json"
    result = tool("eval", small_run, option, place)
    expect(result, 1, f"could not write {place}: a file is in the way", "write elsewhere")


def test_scores_that_cannot_be_written_are_shown(small_run, tool, expect, monkeypatch):
    def full(path, content):
        raise WriteError(28, f"could not write {path}: No space left on device")

    monkeypatch.setattr("segdeconv.training.run_folder.write_whole", full)
    result = tool("eval", small_run, "--limit", 1)
    assert "all pixels" in result[1]
    expect(result, 1, "eval_val_best_first1.json: No space left", "free some space")


def test_predictions_replace_no_file(small_run, tool, tmp_path, expect):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "00.png").write_bytes(b"mine")
    result = tool("eval", small_run, "--save-predictions", tmp_path / "masks")
    expect(result, 1, "masks", "is not empty", "give a new one")
    assert (tmp_path / "masks" / "00.png").read_bytes() == b"mine"


def test_mistakes_are_one_sentence(small_run, tool, expect):
    expect(tool("eval", small_run, "--spilt", "val"), 2, "unknown key spilt; did you mean split?")
    expect(tool("eval", small_run, "--split", "vall"), 1, "vall", "train, val, test")
    expect(tool("eval", small_run, "--official"), 1, "Cityscapes layout, and this is CamVid")
    expect(tool("eval", small_run, "--device", "tpu9"), 1, "no device 'tpu9'", "--device cpu")
    expect(tool("eval", small_run, "--device", "meta"), 1, "no device 'meta'", "--device cpu")
    expect(tool("eval", small_run, "--checkpoint", "nowhere.ckpt"), 1, "no checkpoint nowhere.ckpt")
    (small_run / "weights.safetensors").unlink()
    expect(tool("eval", small_run), 1, "no weights", "weights.safetensors")


def test_windows_that_cannot_be_are_refused(small_run, tool, expect):
    words = "--crop is for sliding windows; give --slide too"
    expect(tool("eval", small_run, "--crop", 24, 32), 1, words)
    expect(tool("eval", small_run, "--blend", "smooth"), 1, "--blend smooth is for sliding windows")
    result = tool("eval", small_run, "--slide", "--crop", 24, 32, "--stride", 25, 32)
    expect(result, 1, "pixels would lie between windows")


def test_weights_of_another_network_are_refused(small_run, tool, expect):
    result = tool(
        "eval", small_run, "--model.operator", "batchnorm", "--model.operator_options", "{}"
    )
    expect(result, 1, "does not fit the network of the config", "unexpected")


def test_a_checkpoint_runs_no_code(small_run, tool, tmp_path, expect):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"state_dict": {}, "trap": Trap()}, small_run / "checkpoints" / "last.ckpt")
    (small_run / "weights.safetensors").write_bytes(b"garbage")
    expect(tool("eval", small_run, "--checkpoint", "last"), 1, "cannot be read as a checkpoint")
    expect(tool("eval", small_run), 1, "weights.safetensors", "damaged")
    assert not (tmp_path / "sprung").exists()
