"""Predictions before an upload: what is sound is let through, and each mistake is found."""

import numpy as np
import pytest
from PIL import Image

from segdeconv.data import submission
from segdeconv.data.cityscapes import Cityscapes
from segdeconv.data.labels import CITYSCAPES
from segdeconv.data.submission import check_submission

NAMES = ["munster_000000_000019", "munster_000001_000019"]


@pytest.fixture(autouse=True)
def small_images_count_as_cityscapes(monkeypatch):
    monkeypatch.setattr(submission, "SIZE", (12, 8))


@pytest.fixture
def samples(cityscapes):
    return Cityscapes(cityscapes, "val")


@pytest.fixture
def predicted(tmp_path, write):
    """A sound folder: one file beside, one in a folder, under both usual names."""
    ids = np.resize(CITYSCAPES.train_to_id, (8, 12))
    write(tmp_path / "sent" / f"{NAMES[0]}.png", ids)
    write(tmp_path / "sent" / "munster" / f"{NAMES[1]}_leftImg8bit.png", ids)
    return tmp_path / "sent"


def first(folder):
    return folder / f"{NAMES[0]}.png"


def ids_of(path):
    return np.array(Image.open(path))


def test_a_sound_folder_is_counted_and_has_no_problems(samples, predicted):
    found = check_submission(predicted, samples)
    assert found.problems == [] and found.remarks == []
    assert (found.images, found.predictions, dict(found.sizes)) == (2, 2, {(12, 8): 2})
    assert found.counts.sum() == 2 * 8 * 12
    assert set(np.flatnonzero(found.counts)) == set(CITYSCAPES.train_to_id)
    assert "7 (road), 8 (sidewalk), 11 (building)" in str(found)


def problem(samples, folder):
    """The only problem that is found."""
    (sentence,) = check_submission(folder, samples).problems
    return sentence


def test_train_ids_are_recognised(samples, predicted, write):
    for path in predicted.rglob("*.png"):
        write(path, CITYSCAPES.id_to_train[ids_of(path)])
    assert "hold train ids (0 to 18), not label ids: road is 7" in problem(samples, predicted)
    write(first(predicted), np.full((8, 12), 255, np.uint8))  # what was ignored, written as 255
    assert "hold train ids" in problem(samples, predicted)


def test_label_ids_below_19_alone_are_not_taken_for_train_ids(samples, predicted, write):
    for path in predicted.rglob("*.png"):
        write(path, np.resize(np.array([7, 8, 11, 17], np.uint8), (8, 12)))
    assert check_submission(predicted, samples).problems == []


def test_values_without_a_meaning_and_without_a_score_are_told_apart(samples, predicted, write):
    ids = ids_of(first(predicted))
    ids[0, 0], ids[0, 1] = 0, 9
    write(first(predicted), ids)
    found = check_submission(predicted, samples)
    assert found.problems == []
    assert found.remarks == [
        "1 % of the pixels hold ids that are not evaluated (0, 9); each of them counts as a miss"
    ]
    ids[0, 0], ids[0, 1] = 34, 255
    write(first(predicted), ids)
    sentence = problem(samples, predicted)
    words = f"1 predictions hold values that are no label ids, 0 to 33 (first: {first(predicted)}"
    assert words in sentence and "values: 34, 255" in sentence


def test_missing_double_and_foreign_files_are_found(samples, predicted, write):
    ids = ids_of(first(predicted))
    write(predicted / "again" / f"{NAMES[1]}.png", ids)
    write(predicted / "bonn_000000_000019.png", ids)
    write(predicted / f"._{NAMES[0]}.png", ids)  # what other systems leave
    first(predicted).unlink()
    missing, double, foreign = check_submission(predicted, samples).problems
    assert missing.startswith(f"1 of 2 images have no prediction (first: no {NAMES[0]}*.png in ")
    assert double.startswith("1 images have more than one prediction (first: ")
    assert "again" in double and "_leftImg8bit.png" in double
    assert foreign.startswith("1 PNGs belong to no image of this split") and "bonn_" in foreign


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("RGB", "1 predictions cannot be used (first: {path} holds colours (mode RGB)"),
        ("P", "1 predictions are no PNGs of 8 bit grey, mode L (first: {path} is PNG of mode P)"),
        ("I;16", "mode L (first: {path} is PNG of mode I;16)"),
    ],
)
def test_other_modes_are_found(samples, predicted, mode, words):
    path = first(predicted)
    image = Image.open(path)
    (image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)).save(path)
    assert words.format(path=path) in problem(samples, predicted)


def test_another_size_than_the_image_is_found(samples, predicted, write):
    write(first(predicted), np.full((4, 6), 7, np.uint8))
    assert "has 6 x 4 pixels, its image 12 x 8" in problem(samples, predicted)


def test_images_that_were_made_smaller_are_found(samples, predicted, monkeypatch):
    monkeypatch.setattr(submission, "SIZE", (2048, 1024))
    words = "2 predictions are not of 2048 x 1024 pixels, as Cityscapes' own images are (first: "
    assert words in problem(samples, predicted)


def test_a_file_that_was_cut_short_is_found_and_the_others_are_counted(samples, predicted):
    first(predicted).write_bytes(first(predicted).read_bytes()[:60])
    assert f"cannot read {first(predicted)}" in problem(samples, predicted)
    assert check_submission(predicted, samples).predictions == 1


def test_a_folder_that_is_none_is_said(samples, predicted):
    with pytest.raises(ValueError, match="is no folder; name the one that holds the predictions"):
        check_submission(first(predicted), samples)
