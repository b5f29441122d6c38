"""tools/train.py as a user meets it: what a run leaves behind, and what a mistake says."""

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from segdeconv.training import run_folder
from segdeconv.training.cli import ConfigParser

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------- what a run leaves


def test_a_run_folder_holds_all_that_the_run_was(trained):
    found = {path.name for path in trained.iterdir()}
    assert found >= {
        *("config.yaml", "surgery.txt", "surgery.json", "environment.json", "metrics.csv"),
        *("metrics.json", "weights.safetensors", "checkpoints", "tensorboard"),
    }
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list((trained / "tensorboard").glob("events.*"))


def test_the_resolved_config_has_what_was_given_and_what_was_not(trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["operator_options"] == {"block": 8}
    assert config["optimizer"] == config["optimizer"] | {"lr": 0.05, "momentum": 0.9, "name": "sgd"}
    assert "resume" not in config


def test_environment_says_with_what_the_run_was_made(trained):
    about = json.loads((trained / "environment.json").read_text())
    assert torch.__version__.startswith(about["versions"]["torch"])
    assert about["seed"] == 0 and about["cores"] == os.cpu_count()
    assert about["commit"] is None or len(about["commit"]) == 40
    assert isinstance(about["uncommitted_changes"], bool)


def test_metrics_have_a_row_per_validation_and_scores_per_class(trained):
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "5")]
    scores = json.loads((trained / "metrics.json").read_text())
    assert scores["best"] == scores["last"]
    assert float(rows[0]["miou"]) == scores["last"]["miou"]
    assert float(rows[0]["iou/Road"]) == scores["last"]["class_iou"]["Road"]
    assert scores["last"]["class_iou"]["Fence"] in (None, 0.0)  # in no mask


def test_the_surgery_report_is_kept_as_text_and_as_numbers(trained):
    assert "swapped" in (trained / "surgery.txt").read_text()
    assert json.loads((trained / "surgery.json").read_text())


def test_a_second_run_of_one_name_gets_its_own_folder(trained, tool, config_file):
    before = (trained / "metrics.csv").read_bytes()
    assert tool("train", "--config", config_file)[0] == 0
    assert (Path("runs/run-2") / "weights.safetensors").exists()
    assert (trained / "metrics.csv").read_bytes() == before


def test_nothing_but_progress_is_said(tool, config_file):
    _, out, err = tool("train", "--config", config_file)
    assert err == ""
    first, *steps, validation, last = out.splitlines()
    assert first.startswith("run: ") and last.startswith("done; ")
    assert validation.startswith("epoch 1  step 5  mIoU ")
    assert [line for line in steps if not re.match(r"step \d/5  epoch 1  loss", line)] == []
    assert "mIoU" in out and "python tools/eval.py runs/run" in out
    about = json.loads(Path("runs/run/environment.json").read_text())
    assert about["command"] == ["train.py", "--config", str(config_file)]


def test_the_kept_weights_are_the_averaged_ones_where_an_average_is_kept(tool, config_file):
    tool("train", "--config", config_file, "--ema_decay", 0.5)
    weights = load_file("runs/run/weights.safetensors")
    checkpoint = torch.load("runs/run/checkpoints/best.ckpt", weights_only=True)
    average, live = checkpoint["averaged_weights"], checkpoint["state_dict"]
    assert weights.keys() == average.keys()
    assert all(torch.equal(weights[name], average[name]) for name in weights)
    assert any(not torch.equal(weights[name], live[f"network.{name}"]) for name in weights)


def test_resume_takes_the_newest_run_when_told_last_and_trains_on(trained, tool):
    code, _, err = tool("train", "--resume", "last", "--trainer.max_epochs", 2)
    assert code == 0, err
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["5", "10"]
    about = json.loads((trained / "environment.json").read_text())
    assert len(about["earlier"]) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", 1.0],
        ["--optimizer.name", "adamw", "--optimizer.lr", 1e-3, "--schedule.name", "cosine"],
        ["--loss.terms", "{ohem: 1, dice: 0.5, lovasz: 0.5}", "--schedule.warmup_steps", 3],
        ["--model.channels_last", "true", "--optimizer.decay_norms_and_biases", "false"],
        ["--save_every_n_steps", 2, "--trainer.accumulate_grad_batches", 2],
        pytest.param(["--model.compile", "true"], marks=pytest.mark.slow),
    ],
    ids=lambda options: options[0],
)
def test_a_recipe_of_another_kind_trains(tool, config_file, options):
    code, _, err = tool("train", "--config", config_file, *options)
    assert code == 0, err
    row = next(csv.DictReader(Path("runs/run/metrics.csv").open()))
    assert np.isfinite([float(row["train_loss"]), float(row["val_loss"])]).all()


# ------------------------------------------------------------------------------ help and mistakes


def test_help_is_shorter_than_a_screen_and_its_keys_exist(tool, capsys):
    with pytest.raises(SystemExit):
        tool("train", "--help")
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) <= 45
    named = set(re.findall(r"--([\w.-]+)", printed))
    tasks = ("segmentation", "classification")
    known = {key for task in tasks for key in ConfigParser().of(task).get_defaults().keys()}
    assert named - known == {"resume", "help-all", "print_config", "debug", "key"}


def test_the_whole_configuration_can_be_printed_and_nothing_is_trained(tool, config_file, capsys):
    with pytest.raises(SystemExit):
        tool("train", "--config", config_file, "--optimizer.lr", 0.5, "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["optimizer"]["lr"] == 0.5
    assert printed["model"]["encoder"] == "tu-mobilenetv3_small_050"
    assert not Path("runs").exists()


def contents(folder):
    """Every file below a folder, with what is in it; but an event file may be begun, and empty."""
    paths = [p for p in folder.rglob("*") if p.is_file() and "tfevents" not in p.name]
    return {path: path.read_bytes() for path in paths}


def test_no_config_is_a_usage_mistake(tool, expect):
    expect(tool("train"), 2, "give a config", "configs/quickstart.yaml")


def test_a_typo_in_a_key_names_the_nearest_right_one(tool, config_file, expect):
    config_file.write_text(config_file.read_text().replace("encoder:", "encodr:"))
    expect(tool("train", "--config", config_file), 2, "model.encodr", "did you mean model.encoder?")


BIG_CROP = (
    "[{class_path: albumentations.RandomCrop, init_args: {height: 640, width: 64}}, "
    "{class_path: albumentations.Normalize}]"
)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.operator", "decnov"], ["'decnov'", "did you mean 'deconv'?", "groupnorm"]),
        (["--model.arch", "unett"], ["'unett'", "did you mean 'unet'?"]),
        (["--model.encoder", "resnet51"], ["'resnet51'", "did you mean 'resnet50'?"]),
        (
            ["--model.arch", "pspnet", "--model.encoder", "vgg16_bn", "--model.arch_options", "{}"],
            ["'pspnet' cannot take the encoder 'vgg16_bn'", "use one of resnet50"],
        ),
        (["--model.num_classes", 19], ["model.num_classes=19", "11 classes"]),
        (["--model.operator_options.blok", 4], ["blok"]),
        (["--model.arch_options.decoder_chanels", "[3]"], ["decoder_chanels"]),
        (["--model.weights", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--model.weights", "config.yaml"], ["config.yaml cannot be read", ".safetensors"]),
        (["--model.in_channels", 4], ["model.in_channels=4", "3 channels"]),
        (["--model.operator_options", "{block: a}"], ["block='a'", "whole number"]),
        (
            ["--model.operator", "groupnorm", "--model.operator_options", "{num_groups: a}"],
            ["'num_groups': 'a'"],
        ),
        (["--data.shorter_side", "[10, 5]"], ["shorter_side=[10, 5]", "smaller one first"]),
        (
            ["--data.shorter_side", "[40, 50]", "--data.crop_size", "null"],
            ["data.shorter_side", "data.crop_size"],
        ),
        (["--data.crop_size", "null"], ["must have one size", "data.crop_size"]),
        (["--data.crop_size", "null", "--data.num_workers", 1], ["must have one size"]),
        (
            ["--data.train_transforms", BIG_CROP],
            ["CropSizeError", "(640, 64)", "--debug shows where"],
        ),
        (["--name", "."], ["name=.", "plain name of a folder"]),
        (["--name", "../../x"], ["name=../../x", "plain name of a folder"]),
        (
            ["--output_dir", "config.yaml"],
            ["could not write config.yaml/run: a file is in the way"],
        ),
        (["--trainer.limit_train_batches", 0], ["trainer.limit_train_batches=0"]),
        (["--data.dataset", "camvit"], ["'camvit'", "did you mean 'camvid'?"]),
        (["--data.options.mod", "fine"], ["data.options.mod"]),
        (["--data.batch_size", 11], ["10 training images", "data.batch_size"]),
        (["--loss.terms", "{dise: 1}"], ["'dise'", "did you mean 'dice'?"]),
        (["--loss.class_weights", "[1, 2]"], ["2 class weights", "11 classes"]),
        (["--schedule.min_lr", 1], ["schedule.min_lr=1"]),
        (["--trainer.max_epochs", "null"], ["trainer.max_epochs or max_steps"]),
        (["--trainer.accelerator", "gpu"], ["gpu"]),
        (["--ema_decay", 1.5], ["ema_decay=1.5"]),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) and "--" in str(value[0]) else "",
)
def test_a_wish_that_cannot_be_is_one_sentence_and_leaves_no_weights(
    tool, config_file, options, words, expect
):
    if "gpu" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    expect(tool("train", "--config", config_file, *options), 1, *words)
    assert not Path("runs/run").exists()


def test_a_warm_up_that_does_not_end_is_said(tool, config_file):
    code, out, _ = tool("train", "--config", config_file, "--schedule.warmup_steps", 1000)
    assert code == 0
    assert "note: the warm-up of 1000 steps does not end in this run of 5" in out


def test_a_damaged_record_of_the_environment_is_named(trained, tool, expect):
    (trained / "environment.json").write_text("")
    result = tool("train", "--resume", trained, "--trainer.max_epochs", 2)
    expect(result, 1, "environment.json is damaged", "move it away")


def test_resume_of_what_is_no_run_is_said(tool, tmp_path, expect):
    expect(tool("train", "--resume", "last"), 1, "no run in runs yet")
    expect(tool("train", "--resume", tmp_path), 1, "is not the folder of a run")


def test_resume_before_anything_was_saved_is_said(trained, tool, expect):
    (trained / "checkpoints" / "last.ckpt").unlink()
    expect(tool("train", "--resume", trained), 1, "no checkpoint", "last.ckpt")


def test_resume_of_what_an_earlier_version_saved_is_said_and_spoils_nothing(trained, tool, expect):
    last = trained / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    for record in (checkpoint["callbacks"]["SaveRun"], checkpoint["callbacks"], checkpoint):
        for key in ("recorded_step", "SaveRun", "callbacks"):
            record.pop(key, None)
        torch.save(checkpoint, last)
        before = contents(trained)
        result = tool("train", "--resume", trained, "--trainer.max_epochs", 2)
        words = ["an earlier version", "new run, with --model.weights runs/run/weights.safetensors"]
        expect(result, 1, *words)
        assert contents(trained) == before


def test_resume_with_another_network_is_said_and_spoils_nothing(trained, tool, expect):
    config = (trained / "config.yaml").read_text()
    (trained / "config.yaml").write_text(config.replace("tu-mobilenetv3_small_050", "resnet18"))
    before = contents(trained)
    result = tool("train", "--resume", trained, "--trainer.max_epochs", 2)
    expect(result, 1, "last.ckpt does not fit the network of the config", "names missing")
    assert contents(trained) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optimizer.lr", 0.001], ["optimizer.lr cannot change", "has 0.05, not 0.001"]),
        (["--optimizer.name", "adamw"], ["optimizer.name cannot change", "sgd", "adamw"]),
        (["--data.batch_size", 5], ["data.batch_size cannot change"]),
        (["--model.freeze_encoder", "true"], ["model.freeze_encoder cannot change"]),
        (["--model.operator", "batchnorm"], ["model.operator cannot change"]),
        (["--name", "other"], ["name cannot change", "--model.weights runs/run/weights"]),
        (["--trainer.max_epochs", 0], ["trainer.max_epochs=0"]),
        (["--trainer.max_steps", 3], ["trainer.max_steps=3", "can only be made longer"]),
    ],
    ids=lambda value: value[0],
)
def test_what_cannot_change_on_resume_is_refused_and_the_run_stays_as_it_was(
    trained, tool, options, words, expect
):
    before = contents(trained)
    longer = [] if "max_" in options[0] else ["--trainer.max_epochs", 2]
    result = tool("train", "--resume", trained, *options, *longer)
    expect(result, 1 if "=0" not in words[0] else result[0], *words)
    assert contents(trained) == before


def test_resume_with_fewer_images_is_refused_and_the_run_stays_as_it_was(
    trained, tool, tiny_copy, expect
):
    for kind in ("images", "masks"):
        for name in ("03.png", "04.png"):
            (tiny_copy / "train" / kind / name).unlink()
    before = contents(trained)
    options = ["--trainer.max_epochs", 2, "--data.root", tiny_copy]
    expect(tool("train", "--resume", trained, *options), 1, "has 5 steps, and would now have 4")
    assert contents(trained) == before


def test_a_finished_run_has_nothing_to_do_and_is_not_touched(trained, tool):
    before = contents(trained)
    for _ in range(2):
        code, out, err = tool("train", "--resume", "last")
        assert (code, err) == (0, "")
        assert "nothing to do: runs/run finished at epoch 1, step 5" in out
    assert contents(trained) == before


def test_last_passes_over_a_run_that_saved_nothing(trained, tool, config_file):
    copytree(trained, "runs/newer")
    (Path("runs/newer/checkpoints/last.ckpt")).unlink()
    (Path("runs/newer/config.yaml")).touch()
    code, out, err = tool("train", "--resume", "last")
    assert code == 0 and "runs/run finished" in out, err


def test_the_report_of_loaded_weights_is_said_and_kept(trained, tool, config_file):
    weights = trained / "weights.safetensors"
    code, out, _ = tool("train", "--config", config_file, "--model.weights", weights)
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("weights: "))
    assert str(weights) in line and "tensors into the model" in line
    assert Path("runs/run-2/start_weights.txt").read_text().strip() in line


# ------------------------------------------------------------------------------------- broken data


def test_a_data_folder_that_is_missing_or_empty_is_said(tool, config_file, tmp_path, expect):
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        result = tool("train", "--config", config_file, "--data.root", tmp_path / folder)
        expect(result, 1, folder, "CamVid")


def test_images_without_masks_are_counted(tool, config_file, tiny_copy, expect):
    (tiny_copy / "train" / "masks" / "03.png").unlink()
    result = tool("train", "--config", config_file, "--data.root", tiny_copy)
    expect(result, 1, "1 of 10 images", "03.png")


def test_a_label_outside_the_classes_is_named_with_its_file(tool, config_file, tiny_copy, expect):
    path = tiny_copy / "train" / "masks" / "03.png"
    mask = np.array(Image.open(path))
    mask[5, 5] = 77
    Image.fromarray(mask).save(path)
    result = tool("train", "--config", config_file, "--data.root", tiny_copy)
    expect(result, 1, "03.png", "77")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named_also_out_of_a_worker(
    tool, config_file, tiny_copy, workers, expect
):
    truncate(tiny_copy / "train" / "images" / "03.png")
    options = ["--data.root", tiny_copy, "--data.num_workers", workers, "--check_data", "false"]
    result = tool("train", "--config", config_file, *options)
    expect(result, 1, "03.png", "cannot read")


def test_the_check_before_training_finds_a_truncated_image(tool, config_file, tiny_copy, expect):
    truncate(tiny_copy / "val" / "images" / "02.png")
    result = tool("train", "--config", config_file, "--data.root", tiny_copy)
    expect(result, 1, "validation data", "02.png")
    assert not Path("runs").exists()


def test_batches_without_a_labelled_pixel_do_no_harm(tool, config_file, tiny_copy):
    for path in sorted((tiny_copy / "train" / "masks").iterdir())[:-1]:
        Image.fromarray(np.full((40, 48), 11, np.uint8)).save(path)
    options = ["--data.root", tiny_copy, "--data.batch_size", 1, "--check_data", "false"]
    code, _, err = tool("train", "--config", config_file, *options)
    assert code == 0, err
    row = next(csv.DictReader(Path("runs/run/metrics.csv").open()))
    assert np.isfinite(float(row["train_loss"]))


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.log_every_n_steps", 1],
        [],  # found in the validation
        ["--trainer.limit_val_batches", 0],  # found at the end
        ["--save_every_n_steps", 4],  # found when it would be saved
    ],
    ids=str,
)
def test_a_loss_that_is_no_number_ends_the_run_with_advice_and_nothing_is_saved(
    tool, config_file, options, expect
):
    result = tool("train", "--config", config_file, "--optimizer.lr", 1e30, *options)
    expect(result, 1, "the loss is nan at step", "lower optimizer.lr")
    assert "mIoU" not in result[1]
    kept = [path.name for path in Path("runs").rglob("*") if path.suffix in {".ckpt", ".csv"}]
    assert kept == [] and not Path("runs/run/weights.safetensors").exists()


def test_a_later_loss_that_is_no_number_leaves_the_good_states_alone(trained, tool, expect):
    before = contents(trained / "checkpoints")
    state = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    state["optimizer_states"][0]["state"][0]["momentum_buffer"][:] = float("nan")
    torch.save(state, trained / "checkpoints" / "last.ckpt")
    broken = contents(trained / "checkpoints")
    expect(tool("train", "--resume", trained, "--trainer.max_epochs", 2), 1, "the loss is nan")
    assert contents(trained / "checkpoints") == broken != before
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["5"]


# ------------------------------------------------------------------------------- a disk that fills


def test_a_full_disk_while_saving_leaves_the_previous_checkpoint_whole(
    trained, tool, monkeypatch, expect
):
    last = trained / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    def full(descriptor):
        if "last.ckpt" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, "fsync", full)
        result = tool("train", "--resume", trained, "--trainer.max_epochs", 2)
    expect(result, 1, "last.ckpt: No space left on device", "the earlier one is whole")
    assert last.read_bytes() == before
    assert not list(trained.rglob("*.part"))
    assert tool("train", "--resume", trained, "--trainer.max_epochs", 2)[0] == 0


def test_a_kill_in_the_middle_of_saving_leaves_the_previous_checkpoint_whole(
    trained, tool, monkeypatch
):
    last = trained / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    def impatient(descriptor):
        if "last.ckpt" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, "fsync", impatient)
        code, _, err = tool("train", "--resume", trained, "--trainer.max_epochs", 2)
    assert code == 130 and "stopped at once" in err
    assert last.read_bytes() == before
    assert not list(trained.rglob("*.part"))


# ---------------------------------------------------------------------------------- as a program


def test_ctrl_c_in_a_terminal_saves_and_says_how_to_go_on(config_file, tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(config_file)]
    command += ["--trainer.max_epochs", "1000", "--data.num_workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("epoch 1"):
            break
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers too
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "go on with: python tools/train.py --resume runs/run" in err
    assert torch.load(tmp_path / "runs/run/checkpoints/last.ckpt", weights_only=True)
