"""Files are whole or not there, runs share no folder, weights are read without running code."""

import json
import os

import pytest
import torch
from torch import nn

from segdeconv.models import create_model
from segdeconv.training import run_folder
from segdeconv.training.mistakes import WriteError
from segdeconv.training.run_folder import (
    check_fit,
    check_writable,
    create_run_folder,
    find_run,
    read_checkpoint,
    read_weights,
    save_weights,
    write_environment,
    write_whole,
)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_in_the_middle_leaves_the_old_content(tmp_path, monkeypatch, error):
    path = tmp_path / "file"
    write_whole(path, "old")

    def fail(descriptor):
        raise error

    monkeypatch.setattr(run_folder.os, "fsync", fail)
    with pytest.raises(type(error)):
        write_whole(path, "new and longer")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_message_of_a_full_disk_names_the_file_and_comforts_only_with_reason(
    tmp_path, monkeypatch
):
    def fail(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(run_folder.os, "fsync", fail)
    with pytest.raises(OSError, match=r"could not write .*file: No space left on device$"):
        write_whole(tmp_path / "file", "new")


def test_a_write_into_a_folder_that_vanished_is_said(tmp_path):
    with pytest.raises(OSError, match="could not write"):
        write_whole(tmp_path / "gone" / "file", "new")


def test_what_could_be_written_is_seen_without_writing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, folder in {"new": False, "file": False, "a/b/c": False, "folder": True}.items():
        check_writable(tmp_path / path, folder)
    for path, words in {
        "file/a": "in the way",
        "file/a/b": "in the way",
        "folder": "directory",
    }.items():
        with pytest.raises(WriteError, match=f"could not write .*{path}: .*{words}"):
            check_writable(tmp_path / path)
    with pytest.raises(WriteError, match="file: a file is in the way"):
        check_writable(tmp_path / "file", folder=True)
    monkeypatch.setattr(run_folder.os, "access", lambda *_: False)
    with pytest.raises(WriteError, match="new: Permission denied"):
        check_writable(tmp_path / "new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_a_taken_name_gets_a_number_behind_it(tmp_path):
    names = [create_run_folder(tmp_path / "runs", "unet").name for _ in range(3)]
    assert names == ["unet", "unet-2", "unet-3"]


def test_last_is_the_run_whose_config_was_written_last(tmp_path):
    for age, name in enumerate(["new", "old", "oldest"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
        (tmp_path / name / "checkpoints").mkdir()
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
        os.utime(tmp_path / name / "config.yaml", (1000 - age, 1000 - age))
    (tmp_path / "no_run").mkdir()
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "config.yaml").write_text("")
    assert find_run(tmp_path, "last").name == "new"
    assert find_run(tmp_path, str(tmp_path / "old")).name == "old"
    with pytest.raises(ValueError, match="is not the folder of a run"):
        find_run(tmp_path, str(tmp_path / "no_run"))
    with pytest.raises(ValueError, match="no run in"):
        find_run(tmp_path / "no_run", "last")


def test_weights_come_back_as_they_were_whatever_their_layout(tmp_path):
    network = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    state = {**network.state_dict(), "half": torch.ones(2).half(), "number": torch.tensor(3)}
    state["shared"] = state["bias"][:4]  # safetensors refuses tensors that share memory
    save_weights(tmp_path / "weights.safetensors", state)
    back = read_weights(tmp_path / "weights.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert all(back[name].dtype == state[name].dtype for name in state)


def test_weights_in_a_checkpoint_are_the_average_if_there_is_one(tmp_path):
    state = {"network.a": torch.ones(1), "train_loss.weight": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "plain.ckpt")
    assert read_weights(tmp_path / "plain.ckpt") == {"a": torch.ones(1)}
    torch.save(
        {"state_dict": state, "averaged_weights": {"a": torch.zeros(1)}}, tmp_path / "a.ckpt"
    )
    assert read_weights(tmp_path / "a.ckpt") == {"a": torch.zeros(1)}


def test_a_damaged_checkpoint_is_said(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1000)}}, tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:2000])
    for path in (tmp_path / "a.ckpt",):
        with pytest.raises(ValueError, match=r"a.ckpt cannot be read as a checkpoint"):
            read_checkpoint(path)
    with pytest.raises(ValueError, match=r"no checkpoint .*b.ckpt"):
        read_checkpoint(tmp_path / "b.ckpt")


def test_weights_of_another_network_are_counted(tmp_path):
    own = nn.Linear(2, 3)
    check_fit(own, own.state_dict(), tmp_path)
    strange = {"weight": torch.ones(4, 4), "other": torch.ones(1)}
    words = r"1 names missing, 1 unexpected, 1 of another shape \(first: bias\)"
    with pytest.raises(ValueError, match=words):
        check_fit(own, strange, tmp_path)


def test_a_resumed_run_keeps_what_its_earlier_parts_said(tmp_path):
    for _ in range(3):
        write_environment(tmp_path, seed=7)
    content = json.loads((tmp_path / "environment.json").read_text())
    assert content["seed"] == 7
    assert len(content["earlier"]) == 2
    assert not any("earlier" in part for part in content["earlier"])


def small_network(operator="deconv", encoder="resnet18"):
    return create_model("linknet", encoder, num_classes=3, operator=operator)


def test_what_does_not_fit_is_named_with_what_the_config_wants(tmp_path):
    plain, whitening = small_network("batchnorm"), small_network()
    encoder = {f"fc.{n}": torch.ones(2) for n in ("weight", "bias")} | plain.encoder.state_dict()
    cases = [
        (whitening, plain.state_dict(), "operator deconv.* holds .* batch norms: .*tools/graft.py"),
        (whitening, encoder, "a network with batch norms: .*tools/graft.py"),
        (plain, whitening.state_dict(), "operator batchnorm.* that whitens; .*operator deconv"),
        (plain, encoder, "linknet with encoder resnet18 .* an encoder alone; train from it with"),
        (plain, plain.network.state_dict(), "the library's own network; train from it with"),
        (plain, small_network("batchnorm", "resnet34").state_dict(), "it holds another network"),
        (whitening, small_network("none").state_dict(), "give the operator that it has"),
    ]
    for network, weights, words in cases:
        with pytest.raises(ValueError, match=f"file does not fit the network of .*{words}"):
            check_fit(network, weights, tmp_path / "file")
