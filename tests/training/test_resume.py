"""A run that was stopped anywhere and resumed equals one that never stopped, bit for bit."""

import csv
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from segdeconv.training.callbacks import FiniteLoss
from segdeconv.training.recording import SaveRun

CLOCK = {"images_per_second", "seconds"}


def state(folder):
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    optimizer = checkpoint["optimizer_states"][0]["state"]
    return {
        **checkpoint["state_dict"],
        **{f"momentum {i}": values["momentum_buffer"] for i, values in optimizer.items()},
        **{f"average {name}": v for name, v in checkpoint.get("averaged_weights", {}).items()},
    }


def table(folder):
    rows = csv.DictReader((folder / "metrics.csv").open())
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def assert_same(one, other):
    left, right = state(one), state(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.fixture
def interrupt_at(monkeypatch):
    """Send this process a real SIGINT at the end of a training step."""

    def at(step, number=signal.SIGINT):
        original = FiniteLoss.on_train_batch_end
        left = [number]

        def hook(self, trainer, *rest):
            if trainer.global_step == step and left:
                os.kill(os.getpid(), left.pop())
            original(self, trainer, *rest)

        monkeypatch.setattr(FiniteLoss, "on_train_batch_end", hook)

    return at


@pytest.mark.parametrize("step", [3, 12], ids=["first epoch", "third epoch"])
def test_stopping_in_mid_epoch_and_resuming_changes_nothing(run, interrupt_at, step, capsys):
    _, straight = run("--name", "straight", "--ema_decay", 0.9)
    interrupt_at(step)
    code, stopped = run("--name", "stopped", "--ema_decay", 0.9)
    assert code == 130
    assert f"step {step} is saved" in capsys.readouterr().err
    code, _ = run(resume=stopped)
    assert code == 0
    assert_same(straight, stopped)
    assert table(straight) == table(stopped)


def test_workers_and_dropout_do_not_change_that(run, interrupt_at):
    options = ("--trainer.max_epochs", 2, "--model.arch", "pspnet", "--model.arch_options")
    options += ("{encoder_depth: 2, psp_out_channels: 16}",)  # and a dropout of 0.2
    _, straight = run("--name", "straight", *options)
    interrupt_at(7)
    _, stopped = run("--name", "stopped", *options, "--data.num_workers", 1)
    run(resume=stopped)
    assert_same(straight, stopped)


def test_a_crash_loses_what_came_after_the_last_validation_and_nothing_else(
    run, straight, monkeypatch, tmp_path
):

    def crash(self, trainer, *_):
        if trainer.global_step == 7:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(FiniteLoss, "on_train_batch_end", crash)
        run("--name", "crashed")
    crashed = tmp_path / "crashed"
    assert [row["step"] for row in table(crashed)] == ["5"]
    run(resume=crashed)
    assert_same(straight, crashed)
    assert table(straight) == table(crashed)


@pytest.mark.parametrize("step", [4, 7], ids=["at a validation", "between two"])
def test_a_schedule_by_steps_resumes_as_exactly_as_one_by_epochs(run, interrupt_at, step):
    options = ("--trainer.max_epochs", "null", "--trainer.max_steps", 11)
    options += ("--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", 4)
    _, straight = run("--name", "straight", *options)
    assert [row["step"] for row in table(straight)] == ["4", "8", "11"]
    interrupt_at(step)
    _, stopped = run("--name", "stopped", *options)
    run(resume=stopped)
    assert_same(straight, stopped)
    assert table(straight) == table(stopped)


def test_accumulated_gradients_are_not_lost_by_stopping(run, interrupt_at):
    options = ("--trainer.accumulate_grad_batches", 2, "--data.batch_size", 1)
    _, straight = run("--name", "straight", *options)
    interrupt_at(3)
    _, stopped = run("--name", "stopped", *options)
    run(resume=stopped)
    assert_same(straight, stopped)


def test_a_validation_that_was_broken_off_is_not_shown_and_is_made_up_for(
    run, straight, monkeypatch, capsys
):
    original = SaveRun.on_validation_batch_start

    def hook(self, trainer, task, batch, index, *rest):
        if trainer.global_step == 5 and index == 2:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, trainer, task, batch, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(SaveRun, "on_validation_batch_start", hook)
        code, stopped = run("--name", "stopped")
    assert code == 130
    shown = capsys.readouterr()
    assert "mIoU" not in shown.out and "Warning" not in shown.err
    assert run(resume=stopped)[0] == 0
    assert_same(straight, stopped)
    assert table(straight) == table(stopped)


def test_a_wish_to_stop_in_the_last_batch_of_a_validation_costs_nothing(run, straight, monkeypatch):
    original = SaveRun.on_validation_batch_start

    def hook(self, trainer, task, batch, index, *rest):
        original(self, trainer, task, batch, index, *rest)
        if trainer.global_step == 5 and index == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(SaveRun, "on_validation_batch_start", hook)
        code, stopped = run("--name", "stopped")
    assert code == 130
    assert [row["step"] for row in table(stopped)] == ["5"]
    run(resume=stopped)
    assert_same(straight, stopped)
    assert table(straight) == table(stopped)


def test_a_validation_broken_off_at_the_very_end_is_made_up_for(run, straight, interrupt_at):
    interrupt_at(15)
    _, stopped = run("--name", "stopped")
    assert [row["step"] for row in table(stopped)] == ["5", "10"]
    assert run(resume=stopped)[0] == 0
    assert_same(straight, stopped)
    assert table(straight) == table(stopped)
    weights = "weights.safetensors"
    assert (straight / weights).read_bytes() == (stopped / weights).read_bytes()


def test_sigterm_of_a_scheduler_stops_as_ctrl_c_does(run, interrupt_at):
    interrupt_at(4, signal.SIGTERM)
    code, folder = run()
    assert code == 130
    assert (folder / "checkpoints" / "last.ckpt").exists()


def test_a_run_that_ends_between_two_validations_is_validated_at_its_end(run):
    _, folder = run("--trainer.max_steps", 7, "--trainer.max_epochs", "null")
    assert [(row["epoch"], row["step"]) for row in table(folder)] == [("1", "5"), ("1.4", "7")]
    assert (folder / "weights.safetensors").exists()


def test_a_run_without_validations_keeps_what_it_ended_with(run):
    code, folder = run("--trainer.max_epochs", 1, "--trainer.limit_val_batches", 0)
    assert code == 0
    weights = load_file(folder / "weights.safetensors")
    last = state(folder)
    assert all(torch.equal(weights[name], last[f"network.{name}"]) for name in weights)


def test_two_runs_of_one_seed_agree_and_of_two_seeds_do_not(run):
    _, one = run("--trainer.max_epochs", 1, "--name", "one")
    _, two = run("--trainer.max_epochs", 1, "--name", "two")
    _, other = run("--trainer.max_epochs", 1, "--name", "other", "--seed", 1)
    assert_same(one, two)
    assert table(one) != table(other)


def test_a_run_that_caught_up_at_its_end_is_finished_and_can_be_made_longer(
    run, interrupt_at, capsys
):
    options = ("--schedule.name", "constant", "--trainer.max_epochs")
    _, straight = run("--name", "straight", *options, 2)
    interrupt_at(5)
    _, stopped = run("--name", "stopped", *options, 1)
    assert not (stopped / "metrics.csv").exists()
    assert run(resume=stopped)[0] == 0
    capsys.readouterr()
    assert run(resume=stopped)[0] == 0
    assert f"nothing to do: {stopped} finished at epoch 1, step 5" in capsys.readouterr().out
    assert run("--trainer.max_epochs", 2, resume=stopped)[0] == 0
    assert_same(straight, stopped)
    assert table(straight) == table(stopped)
