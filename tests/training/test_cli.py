"""Configs compose, and a mistake in one is a sentence that helps."""

import re
from pathlib import Path

import pytest
import yaml

from segdeconv.training.cli import ConfigParser
from segdeconv.training.mistakes import UsageError


@pytest.fixture(scope="module")
def parser():
    return ConfigParser()


@pytest.fixture
def write(tmp_path):
    def to(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return to


def test_later_files_win_over_earlier_ones_and_the_command_line_over_all(parser, write):
    first = write("a.yaml", {"optimizer": {"lr": 1.0, "momentum": 0.5}, "seed": 1})
    second = write("b.yaml", {"optimizer": {"lr": 2.0}, "seed": 2})
    config = parser.read(["--config", first, "--config", second, "--seed", "3"])
    assert (config.optimizer.lr, config.optimizer.momentum, config.seed) == (2.0, 0.5, 3)


def test_bases_are_read_before_the_config_that_names_them(parser, write):
    write("recipes/deep.yaml", {"optimizer": {"lr": 1.0, "momentum": 0.1}, "seed": 4})
    write("recipes/base.yaml", {"base": "deep.yaml", "optimizer": {"lr": 2.0}})
    path = write("top.yaml", {"base": ["recipes/base.yaml"], "optimizer": {"momentum": 0.2}})
    for given in (["--config", path], [f"--config={path}"]):
        config = parser.read(given)
        assert (config.optimizer.lr, config.optimizer.momentum, config.seed) == (2.0, 0.2, 4)


def test_a_number_with_an_exponent_is_a_number(parser, write):
    path = write("a.yaml", "optimizer: {lr: 1e-3}")
    assert parser.read(["--config", path]).optimizer.lr == 0.001


@pytest.mark.parametrize("key", ["limit_train_batches", "limit_val_batches"])
@pytest.mark.parametrize("given", ["1", "1.0", "2", "0.5", "null"])
def test_a_limit_is_batches_or_a_share_as_it_is_written(parser, write, key, given):
    path = write("limit.yaml", f"trainer:\n  {key}: {given}\n")
    for arguments in (["--config", path], [f"--trainer.{key}", given]):
        config = parser.read(arguments)
        assert repr(config.trainer[key]) == given.replace("null", "None")
        again = parser.read(["--config", write("again.yaml", parser.write(config))])
        assert repr(again.trainer[key]) == given.replace("null", "None")


def test_what_is_written_is_read_back_as_it_was(parser, write):
    path = write("a.yaml", {"data": {"crop_size": [3, 4]}, "model": {"operator_options": {"a": 1}}})
    config = parser.read(["--config", path, "--loss.terms", "{dice: 2}"])
    again = parser.read(["--config", write("b.yaml", parser.write(config))])
    del config["config"], again["config"]
    assert again == config


def test_a_list_of_albumentations_transforms_is_built_and_checked(parser, write):
    transforms = [
        {"class_path": "albumentations.HorizontalFlip", "init_args": {"p": 0.5}},
        {"class_path": "albumentations.Normalize"},
    ]
    path = write("a.yaml", {"data": {"train_transforms": transforms}})
    built = parser.instantiate(parser.read(["--config", path]))
    assert "HorizontalFlip" in repr(built.data.train_transform())
    transforms[0]["init_args"] = {"prob": 0.5}
    path = write("b.yaml", {"data": {"train_transforms": transforms}})
    words = "data.train_transforms: albumentations.HorizontalFlip: Option 'prob' is not accepted"
    with pytest.raises(UsageError, match=words):
        parser.read(["--config", path])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--optimizer.lrr", "1"],
            "command line: unknown key optimizer.lrr; did you mean opt.*lr?",
        ),
        (["--model.encodr=x"], "did you mean model.encoder?"),
        (["--lr", "1"], "did you mean optimizer.lr?"),
        (["--data.batch_size", "many"], "data.batch_size: expected int, got many"),
        (["--data.crop_size", "[1, 2, 3]"], r"data.crop_size: .*2 elements, got \[1, 2, 3\]"),
        (["--optimizer.name", "adam"], "expected one of 'sgd', 'adamw', got adam"),
        (["--trainer.max_epochs"], "trainer.max_epochs: expected one argument"),
        (["--config"], "--config needs a file"),
        (["something"], "unrecognized arguments: something"),
        (["--model", "unet"], "model is a group of keys; give one of them, such as --model.KEY"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(parser, arguments, words):
    with pytest.raises(UsageError, match=words) as caught:
        parser.read(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("optimizer: {lrr: 1}", "a.yaml: unknown key optimizer.lrr; did you mean optimizer.lr?"),
        ("optimiser: {lr: 1}", "did you mean optimizer.lr?"),
        ("data: {batch_size: x}", "data.batch_size: expected int, got x"),
        ("data: [1", "a.yaml, line 1: "),
        ("just words", "a.yaml holds no keys"),
        ("base: a.yaml", "a.yaml is its own base"),
        ("base: b.yaml", "no config .*b.yaml"),
        ("base: [1]", "a.yaml: base names 1; expected a file"),
        ("data:", "a.yaml: data is a group of keys and holds nothing; .* or take it out"),
        ("model: unet", "a.yaml: model is a group of keys and holds 'unet'"),
        ("seed: 1\nseed: 2", "a.yaml, line 2: the key seed stands twice"),
        ("data: {flip: 0, flip: 1}", "the key flip stands twice"),
    ],
)
def test_a_mistake_in_a_config_is_named_with_its_file(parser, write, content, words):
    with pytest.raises(UsageError, match=words) as caught:
        parser.read(["--config", write("a.yaml", content)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("seed", -1, "0 to 4294967295"),
        ("seed", 99999999999999999999, "0 to 4294967295"),
        ("threads", 0, "1 or more"),
        ("save_every_n_steps", -1, "0 or more"),
        ("data.batch_size", 0, "1 or more"),
        ("data.val_batch_size", 0, "1 or more"),
        ("data.num_workers", -1, "0 or more"),
        ("data.resize", [0, 3], "1 or more each"),
        ("data.crop_size", [0, 3], "1 or more each"),
        ("data.flip", 2.0, "0 to 1"),
        ("data.std", [0.0, 1.0, 1.0], "above 0 each"),
        ("data.max_class_ratio", -1.0, "above 0, at most 1"),
        ("optimizer.lr", -1.0, "0 or more"),
        ("optimizer.lr", ".nan", "0 or more"),
        ("optimizer.weight_decay", -1.0, "0 or more"),
        ("optimizer.encoder_lr_factor", -1.0, "0 or more"),
        ("schedule.power", -2.0, "0 or more"),
        ("schedule.warmup_steps", -3, "0 or more"),
        ("schedule.warmup_factor", -1.0, "0 to 1"),
        ("loss.terms", {"dice": -1.0}, "0 or more each"),
        ("loss.terms", {"dice": 0.0}, "a weight above 0 among them"),
        ("loss.class_weights", [1.0, -2.0], "0 or more each"),
        ("loss.class_weights", [0.0, 0.0], "a weight above 0 among them"),
        ("trainer.max_steps", 0, "1 or more, or -1 for no limit"),
        ("trainer.max_epochs", 0, "1 or more, or -1 for no limit"),
        ("trainer.limit_train_batches", 0, "above 0"),
        ("trainer.check_val_every_n_epoch", 0, "1 or more"),
        ("trainer.accumulate_grad_batches", 0, "1 or more"),
        ("trainer.log_every_n_steps", 0, "1 or more"),
        ("trainer.gradient_clip_val", -1.0, "0 or more"),
    ],
)
def test_a_number_that_cannot_be_is_named_with_its_key_and_range(parser, key, value, wanted):
    with pytest.raises(ValueError, match=re.escape(f"{key}=")) as caught:
        parser.instantiate(parser.read([f"--{key}", str(value)]))
    assert str(caught.value).endswith(f": expected {wanted}")


def test_a_config_that_is_not_there_is_said_with_the_nearest_one(parser, write, monkeypatch):
    monkeypatch.chdir(Path(write("configs/quickstart.yaml", "seed: 1")).parents[1])
    with pytest.raises(UsageError, match=r"did you mean configs/quickstart.yaml?"):
        parser.read(["--config", "configs/quikstart.yaml"])


def test_the_long_help_has_every_key(parser, capsys):
    with pytest.raises(SystemExit):
        parser.read(["--help-all"])
    printed = capsys.readouterr().out
    assert all(
        f"--{key}" in printed
        for key in parser.of("segmentation").get_defaults().keys()
        if key != "config"
    )
