"""The commands of docs/using-a-run.md on official figures, run as they are written."""

import re
import shlex
from pathlib import Path

import pytest

from segdeconv.data import submission

PAGE = Path(__file__).parents[2] / "docs" / "using-a-run.md"


def commands():
    (section,) = re.findall(r"^## Official figures.*?(?=^## )", PAGE.read_text(), re.M | re.S)
    return re.findall(r"^    python tools/(\w+)\.py (.*)$", section, re.M)


@pytest.fixture
def run_of_the_page(tool, load_tool, config_file, monkeypatch):
    """The run and the data that the page speaks of, small."""
    monkeypatch.setattr(submission, "SIZE", (64, 32))
    counts = ["--train", "2", "--val", "2", "--test", "2", "--size", "32", "64", "--workers", "0"]
    assert load_tool("make_synthetic").main(["--out", "data/cityscapes", *counts]) == 0
    data = ("--data.dataset", "cityscapes", "--data.root", "data/cityscapes")
    given = (*data, "--trainer.max_steps", 1, "--name", "unet_resnet50_deconv")
    assert tool("train", "--config", config_file, *given)[0] == 0


def test_the_commands_of_the_page_do_what_it_says(tool, run_of_the_page):
    shown = []
    for name, arguments in commands():
        code, out, err = tool(name, *shlex.split(arguments))
        assert code == 0, err
        shown.append(out)
    scored, sent, checked = shown
    assert "largest difference of IoU and official" in scored and "iIoU is left" not in scored
    assert "no scores and no report" in sent
    assert "nothing wrong was found; predictions can be uploaded" in checked
