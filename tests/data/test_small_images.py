"""CIFAR and MNIST: read as torchvision reads them, augmented as a plain loop would."""

import pickle
from shutil import copytree

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from torchvision.transforms import v2

from segdeconv.data import CLASSIFICATION_DATASETS
from segdeconv.data.arrays import ArrayTransform
from segdeconv.data.classes import ClassNames

THEIRS = {
    "cifar10": tv.CIFAR10,
    "cifar100": tv.CIFAR100,
    "mnist": tv.MNIST,
    "fashion_mnist": tv.FashionMNIST,
}


@pytest.fixture
def copy(small_sets, tmp_path):
    """A copy of the small sets that a test may damage."""
    return copytree(small_sets, tmp_path / "copy")


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_are_those_that_torchvision_reads(name, split, small_sets, monkeypatch):
    monkeypatch.setattr(tv.CIFAR10, "_check_integrity", lambda self: True)  # of other files
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    theirs = THEIRS[name](small_sets, train=split == "train", download=False)
    ours = CLASSIFICATION_DATASETS[name](small_sets, split)
    pixels = torch.as_tensor(theirs.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    assert torch.equal(ours.images, pixels)
    assert ours.labels.tolist() == list(theirs.targets)
    assert ours.label_set.class_names == tuple(theirs.classes)


@pytest.mark.parametrize("name", THEIRS)
def test_what_is_held_out_is_the_rest_of_the_training_images(name, small_sets):
    options = {} if "cifar" in name else {"holdout": 7}
    kind = CLASSIFICATION_DATASETS[name]
    whole, fit, held = (kind(small_sets, split, **options) for split in ("train", "fit", "holdout"))
    assert len(held) == (7 if options else len(whole) // 5)
    rows = {tuple(image.flatten().tolist()) for part in (fit, held) for image in part.images}
    assert rows == {tuple(image.flatten().tolist()) for image in whole.images}
    assert len(fit) + len(held) == len(whole)


def test_of_cifar10_the_fifth_batch_is_held_out(small_sets):
    batch = pickle.loads((small_sets / "cifar-10-batches-py" / "data_batch_5").read_bytes())
    held = CLASSIFICATION_DATASETS["cifar10"](small_sets, "holdout")
    assert np.array_equal(held.images.flatten(1).numpy(), batch["data"])


def test_files_that_a_split_does_not_use_may_be_missing(copy):
    (copy / "cifar-10-batches-py" / "test_batch").unlink()
    (copy / "MNIST" / "raw" / "t10k-images-idx3-ubyte").unlink()
    assert len(CLASSIFICATION_DATASETS["cifar10"](copy, "train")) == 100
    assert len(CLASSIFICATION_DATASETS["mnist"](copy, "train")) == 20


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("mnist", "MNIST/raw/train-labels-idx1-ubyte"),
    ],
)
def test_a_missing_or_damaged_file_is_named(name, file, copy):
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"unpack (the archive|them) again"):
        CLASSIFICATION_DATASETS[name](copy)
    (copy / file).unlink()
    with pytest.raises(
        ValueError, match=rf"needs {file.split('/')[-1]} in .*nothing is downloaded"
    ):
        CLASSIFICATION_DATASETS[name](copy)


def test_a_packed_file_is_asked_to_be_unpacked(copy):
    path = copy / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.rename(f"{path}.gz")
    with pytest.raises(ValueError, match=r"unpacked from t10k-images-idx3-ubyte.gz"):
        CLASSIFICATION_DATASETS["mnist"](copy, "test")


class Evil:
    def __reduce__(self):
        return (print, ("pwned",))


def test_a_pickle_that_wants_to_run_something_is_refused(copy, capsys):
    (copy / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(ValueError, match=r"it wants to call builtins.print"):
        CLASSIFICATION_DATASETS["cifar10"](copy)
    assert "pwned" not in capsys.readouterr().out


def test_a_label_outside_of_the_classes_is_named(copy):
    path = copy / "cifar-10-batches-py" / "data_batch_2"
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({**content, "labels": [*content["labels"][1:], 10]}))
    with pytest.raises(ValueError, match=r"holds the label 10, but CIFAR-10 has 10 classes"):
        CLASSIFICATION_DATASETS["cifar10"](copy)


def test_an_unknown_split_is_said_with_the_nearest(small_sets):
    with pytest.raises(ValueError, match=r"CIFAR-10 has no split 'tests'; did you mean 'test'"):
        CLASSIFICATION_DATASETS["cifar10"](small_sets, "tests")
    with pytest.raises(ValueError, match=r"holdout=20: expected 1 to 19, of 20 images"):
        CLASSIFICATION_DATASETS["mnist"](small_sets, "fit", holdout=20)


# ------------------------------------------------------------------------------------ augmentation

PLACES = torch.arange(1, 12 * 12 + 1, dtype=torch.uint8).view(1, 1, 12, 12)


def test_crops_and_flips_are_those_of_torchvision_at_the_same_places():
    transform = ArrayTransform((0.0,), (1 / 255,), padding=2, flip=0.5)
    outputs = transform(PLACES.repeat(400, 1, 1, 1), seed=3)
    found = set()
    for image in outputs:
        for top in range(5):
            for left in range(5):
                for flipped in (False, True):
                    expected = v2.functional.crop(
                        v2.functional.pad(PLACES[0], [2]), top, left, 12, 12
                    )
                    expected = v2.functional.horizontal_flip(expected) if flipped else expected
                    if torch.equal(image, expected.float()):
                        found.add((top, left, flipped))
    assert len(found) == 50


def test_every_image_of_a_batch_is_some_crop_and_half_of_them_are_mirrored():
    transform = ArrayTransform((0.0,), (1 / 255,), padding=0, flip=0.5)
    outputs = transform(PLACES.repeat(1000, 1, 1, 1), seed=0)
    mirrored = sum(torch.equal(image, PLACES[0].flip(2).float()) for image in outputs)
    plain = sum(torch.equal(image, PLACES[0].float()) for image in outputs)
    assert mirrored + plain == 1000 and 430 < mirrored < 570


def test_without_a_seed_images_are_normalised_as_by_torchvision():
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    ours = ArrayTransform(mean, std, padding=4, flip=1.0)(images, None)
    torch.testing.assert_close(ours, theirs(images), rtol=1e-5, atol=1e-6)


def test_the_same_seed_gives_the_same_batch_and_another_one_another():
    transform = ArrayTransform((0.5,), (0.5,), padding=2, flip=0.5)
    images = PLACES.repeat(20, 1, 1, 1)
    assert torch.equal(transform(images, 1), transform(images, 1))
    assert not torch.equal(transform(images, 1), transform(images, 2))


def test_class_names_check_labels():
    ClassNames("two", ("a", "b")).check([0, 1], "here")
    with pytest.raises(ValueError, match="here holds the label -1, but two has 2 classes"):
        ClassNames("two", ("a", "b")).check([0, -1], "here")
