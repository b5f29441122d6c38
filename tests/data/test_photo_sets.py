"""ImageNet's two forms: class folders as torchvision reads them, tar shards, each sample once."""

import random
import sys
import tarfile
from itertools import chain, pairwise
from shutil import copytree

import numpy as np
import pytest
import torch
from small_sets import write_shard
from torchvision.datasets import ImageFolder as Theirs
from torchvision.transforms import v2

from segdeconv.data.image_folder import ImageFolder
from segdeconv.data.photos import PhotoTransform, eval_photos, train_photos
from segdeconv.data.shards import SKIPPED, Plan, Shards, together

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_folder_is_torchvisions(split, small_sets):
    ours = ImageFolder(small_sets / "imagenet", split)
    theirs = Theirs(small_sets / "imagenet" / split)
    assert ours.files == theirs.samples
    assert list(ours.label_set.class_names) == theirs.classes
    sample, (image, label) = ours[5], theirs[5]
    assert np.array_equal(sample["image"], np.array(image)) and sample["label"] == label


def test_images_held_out_of_a_folder_are_the_rest(small_sets):
    parts = [ImageFolder(small_sets / "imagenet", s, holdout=3).files for s in ("fit", "holdout")]
    assert [len(part) for part in parts] == [5, 3]
    assert sorted([*parts[0], *parts[1]]) == ImageFolder(small_sets / "imagenet", "train").files


def test_a_folder_without_class_folders_is_said(small_sets, tmp_path):
    root = copytree(small_sets / "imagenet", tmp_path / "imagenet")
    (root / "flat").mkdir()
    for split, words in (
        ("flat", "must lie in one folder per class"),
        ("none", "is no folder; expected one in it for each class"),
    ):
        with pytest.raises(ValueError, match=words):
            ImageFolder(root, split)
    (root / "val" / "other").mkdir()
    with pytest.raises(ValueError, match=r"val/other is a class that .*train does not have"):
        ImageFolder(root, "val")


def test_validation_sees_what_torchvisions_transforms_make(small_sets):
    dataset = ImageFolder(small_sets / "imagenet", "val", eval_photos(24, 28, MEAN, STD))
    image = torch.from_numpy(ImageFolder(small_sets / "imagenet", "val")[1]["image"]).permute(
        2, 0, 1
    )
    small = v2.functional.center_crop(v2.functional.resize(image, [28], antialias=True), [24, 24])
    expected = (small / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(dataset[1]["image"], expected, rtol=1e-4, atol=1e-5)


def test_augmentation_is_a_function_of_its_seed_and_leaves_torchs_generator_alone(small_sets):
    image = ImageFolder(small_sets / "imagenet")[0]["image"]
    transform = train_photos(16, (0.1, 1.0), 0.5, "trivial", MEAN, STD)
    before, outputs = torch.get_rng_state(), []
    for seed in (1, 2, 1):
        transform.set_random_seed(seed)
        outputs.append(transform(image))
    assert torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[0], outputs[1])
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------ shards


@pytest.fixture
def shards(tmp_path):
    """``shards(split, …)``: 23 training samples in four shards of different sizes."""
    starts = [0, 3, 10, 15, 23]
    for number, (start, end) in enumerate(pairwise(starts)):
        write_shard(tmp_path / f"train-{number}.tar", range(start, end))

    def make(**options):
        given = {"shards": {"train": "train-{0..3}.tar"}, "length": {"train": 23}}
        given |= {"num_classes": 2, "root": str(tmp_path)}
        return Shards(**given | options)

    return make


class Number(PhotoTransform):
    """Keeps the image's sum, by which a sample is known, and the seed that it was given."""

    def __init__(self):
        self._seed = 0

    def __call__(self, image):
        return torch.tensor([float(image.sum()), float(self._seed)])


def epoch(samples, seed=0, epoch=0, workers=0, processes=1, size=3, skip=0):
    """The batches of an epoch in each process."""
    given = []
    for rank in range(processes):
        samples.plan = Plan(size, seed, epoch, rank, processes, skip)
        loader = torch.utils.data.DataLoader(samples, batch_size=None, num_workers=workers)
        given.append(list(together(loader, size, skip)))
    return given


@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (0, 2), (0, 4), (2, 1), (2, 2)])
def test_each_sample_comes_once_in_an_epoch(shards, workers, processes):
    samples = shards(transform=Number())
    raw = [float(samples.decode(sample)["image"][0]) for sample in samples.samples(samples.urls)]
    batches = chain(*epoch(samples, workers=workers, processes=processes))
    found = [float(image[0]) for batch in batches for image in batch["image"]]
    assert sorted(found) == sorted(raw) and len(raw) == 23


def test_labels_stay_with_their_images(shards):
    (batches,) = epoch(shards())
    for batch in batches:
        brightness = batch["image"].float().mean((1, 2, 3))
        assert torch.equal(brightness > 75, batch["label"].bool())


def flat(batches):
    return torch.cat([batch["image"] for batch in batches])


def test_order_and_augmentation_are_those_of_seed_and_epoch(shards):
    samples = shards(transform=Number(), buffer=5)
    first = flat(*epoch(samples))
    assert torch.equal(first, flat(*epoch(samples)))
    others = [flat(*epoch(samples, seed=1)), flat(*epoch(samples, epoch=1))]
    for other in others:
        assert not torch.equal(first[:, 0], other[:, 0])
        assert first[:, 1].sort().values.tolist() != other[:, 1].sort().values.tolist()
    in_order = flat(*epoch(samples, seed=None))[:, 0]
    raw = [float(samples.decode(sample)["image"][0]) for sample in samples.samples(samples.urls)]
    assert in_order.tolist() == raw


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("skip", [1, 2, 5, 7])
def test_an_epoch_that_goes_on_gives_the_batches_that_were_left(shards, workers, skip):
    samples = shards(transform=Number(), buffer=4)
    (whole,) = epoch(samples, workers=workers)
    (rest,) = epoch(samples, workers=workers, skip=skip)
    assert torch.equal(flat(rest), flat(whole[skip:]))
    assert not any(batch is SKIPPED for batch in rest)


def test_a_command_can_give_a_shard(shards, tmp_path):
    samples = shards(shards={"train": f"pipe:cat {tmp_path}/train-1.tar"}, length={"train": 7})
    (batches,) = epoch(samples)
    assert len(flat(batches)) == 7


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_cut_short_is_one_sentence_and_no_hang(shards, tmp_path, workers):
    content = (tmp_path / "train-2.tar").read_bytes()
    for length in (900, 3000, len(content) // 2, len(content.rstrip(b"\0")) + 300):
        (tmp_path / "train-2.tar").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cannot read the shard .*train-2.tar .*cut short"):
            epoch(shards(), workers=workers)
    (tmp_path / "train-2.tar").write_bytes(random.Random(0).randbytes(3000))
    with pytest.raises(ValueError, match=r"cannot read the shard .*train-2.tar"):
        epoch(shards(), workers=workers)
    failing = shards(shards={"train": "pipe:false"}, length={"train": 7})
    with pytest.raises(ValueError, match=r"cannot read the shard pipe:false"):
        epoch(failing, workers=workers)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shards": {"train": "train-{0..5}.tar"}}, "2 of 6 shards are not there .*train-4.tar"),
        ({"split": "val"}, "data.options.shards says nothing of the split 'val'; it has train"),
        ({"length": {}}, "data.options.length says nothing of the split 'train'"),
    ],
)
def test_a_mistake_in_the_options_is_named(shards, options, words):
    with pytest.raises(ValueError, match=words):
        shards(**options)


def test_a_sample_without_label_or_with_one_out_of_range_is_named(shards, tmp_path):
    with pytest.raises(ValueError, match=r"sample 000000 of .*has jpg, cls; expected .*label \(id"):
        epoch(shards(label="id"), seed=None)
    with pytest.raises(
        ValueError, match=r"sample 000001 of .* holds the label 1, but .* 1 classes"
    ):
        epoch(shards(num_classes=1), seed=None)
    (tmp_path / "x.cls").write_text("cat")
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        tar.add(tmp_path / "x.cls", "x.cls")
        tar.add(tmp_path / "x.cls", "x.jpg")
    with pytest.raises(ValueError, match=r"sample x .*its label is b'cat'; expected a number"):
        epoch(shards(), seed=None)


def test_class_names_come_from_a_file(shards, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    names = str(tmp_path / "names.txt")
    assert shards(class_names=names).label_set.class_names == ("cat", "dog")
    with pytest.raises(ValueError, match=r"names 2 classes, and num_classes is 3"):
        shards(class_names=names, num_classes=3)


def test_without_the_library_the_extra_is_named(shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ValueError, match=r"pip install 'segdeconv\[webdataset\]'"):
        shards()
