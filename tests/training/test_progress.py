"""What is seen while a network trains."""

import re

import pytest

from segdeconv.training.progress import Progress


@pytest.fixture
def show(run, monkeypatch, capsys):
    def go(terminal):
        def made():
            progress = Progress(seconds_per_line=0.0)
            progress.terminal = terminal
            return progress

        monkeypatch.setattr("segdeconv.training.run.Progress", made)
        assert run("--trainer.max_epochs", 2)[0] == 0
        return capsys.readouterr()

    return go


FIGURES = r"epoch 2  loss \d+\.\d+  lr [\d.e-]+  [\d.]+ images/s  ETA \d+:\d\d:\d\d"


def test_a_log_file_gets_lines_with_step_loss_rate_speed_and_time_left(show):
    lines = show(terminal=False).out.splitlines()
    assert re.match(r"step 7/10  " + FIGURES, lines[8])
    assert lines[-1] == next(line for line in lines if line.startswith("epoch 2  step 10  mIoU"))


def test_a_terminal_gets_one_bar_over_the_whole_run(show):
    shown = show(terminal=True)
    assert re.search(r"70%\|.*7/10  " + FIGURES, shown.err)
    assert "100%" in shown.err
    assert "step 7/10" not in shown.out


def test_each_validation_is_a_line_with_the_best_so_far(show):
    validations = [line for line in show(False).out.splitlines() if "mIoU" in line]
    found = [re.search(r"mIoU ([\d.]+) \(best ([\d.]+)\)", line).groups() for line in validations]
    scores = [float(score) for score, _ in found]
    assert [float(best) for _, best in found] == [max(scores[: i + 1]) for i in range(len(scores))]


def test_a_short_run_says_something_in_a_log_file_too(run, capsys):
    assert run("--trainer.max_epochs", 1, "--trainer.limit_val_batches", 0)[0] == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"step 1/5  epoch 1  loss ", lines[1])


def test_lines_become_rarer_until_the_longest_time_is_reached(run, monkeypatch, capsys):
    seconds = iter(range(10_000))  # every look at the clock is a second later
    monkeypatch.setattr("segdeconv.training.progress.time.monotonic", lambda: next(seconds))
    made = Progress(seconds_per_line=4.0)
    monkeypatch.setattr("segdeconv.training.run.Progress", lambda: made)
    assert run("--trainer.max_epochs", 3, "--trainer.limit_val_batches", 0)[0] == 0
    steps = [int(n) for n in re.findall(r"^step (\d+)/15", capsys.readouterr().out, re.MULTILINE)]
    assert steps == [1, 3, 7, 11, 15]
