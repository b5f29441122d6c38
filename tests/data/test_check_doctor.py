"""What the doctor counts is what NumPy counts, and each finding is found where it was put."""

import math
import shutil
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeconv.data.camvid import CamVid
from segdeconv.data.check import count_ids, examine, quick_check
from segdeconv.data.cityscapes import Cityscapes
from segdeconv.data.doctor import check_splits, enet_weights, look_at, median_weights
from segdeconv.data.doctor_text import report_text
from segdeconv.data.folder import FolderDataset
from segdeconv.data.synthetic import SyntheticStreets

CLASSES = "classes: [road, house, tree]\n"


@pytest.fixture
def folder(tmp_path, write, random_image, random_ids):
    """Ids 0 to 2, and 255 in the first row; four training and two validation images."""
    (tmp_path / "classes.yaml").write_text(CLASSES)
    for split, count in {"train": 4, "val": 2}.items():
        for number in range(count):
            seed = number + 100 * len(split)
            ids = random_ids(3, seed=seed)
            ids[0] = 255
            write(tmp_path / split / "images" / f"{number}.png", random_image(seed=seed))
            write(tmp_path / split / "masks" / f"{number}.png", ids)
    return tmp_path


def check(folder, splits=("train", "val"), workers=0, **options):
    return check_splits(
        lambda split, unpaired: FolderDataset(folder, split, unpaired=unpaired),
        splits,
        workers,
        **options,
    )


def found(report):
    """Each kind of finding with its split and the number of its items."""
    return {finding.kind: (finding.split, len(finding.items)) for finding in report.findings}


def finding(report, kind):
    (one,) = [each for each in report.findings if each.kind == kind]
    return one


def test_a_sound_folder_has_no_findings(folder):
    report = check(folder)
    assert found(report) == {} and report.errors == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_shares_and_moments_are_those_of_numpy(folder, workers):
    summary = check(folder, workers=workers).splits["train"]
    images = [np.array(Image.open(p)) for p in sorted((folder / "train/images").iterdir())]
    masks = [np.array(Image.open(p)) for p in sorted((folder / "train/masks").iterdir())]
    assert summary.class_counts.tolist() == [sum((m == c).sum() for m in masks) for c in range(3)]
    assert summary.class_images.tolist() == [sum((m == c).any() for m in masks) for c in range(3)]
    assert summary.class_shares.sum() == pytest.approx(1)
    assert summary.ignore_share == pytest.approx(np.mean(np.array(masks) == 255))
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    mean, std = summary.mean_and_std
    assert mean == pytest.approx(pixels.mean(0).tolist())
    assert std == pytest.approx(pixels.std(0).tolist())
    assert summary.sizes == Counter({(12, 8): 4})


def test_label_ids_are_counted_as_classes(cityscapes):
    dataset = Cityscapes(cityscapes, "train")
    look = examine(dataset, 1)
    assert look.counts.tolist() == np.bincount(dataset[1]["mask"].ravel(), minlength=256).tolist()


def test_counts_above_what_a_float32_holds_are_exact():
    ids = np.zeros((4097, 4096), np.uint8)  # 2^24 + 4096 pixels
    ids[-1, -1] = 7
    counts = count_ids(ids)
    assert (counts[0], counts[7], counts.sum()) == (ids.size - 1, 1, ids.size)


def test_single_ids_are_counted_exactly_above_that_too():
    ids = np.tile(np.array([0, 0, 0, 9], np.uint8), 2**21 * 3).reshape(3, -1)
    ids[-1, -1] = 7
    counts = count_ids(ids)
    assert (counts[0], counts[9], counts[7]) == (3 * 2**21 * 3, 2**21 * 3 - 1, 1)
    assert counts[0] > 2**24 and counts.sum() == ids.size


@pytest.mark.parametrize("run", [1, 2, 7, 8, 9, 300])
def test_runs_of_any_length_are_counted(run):
    drawn = np.random.default_rng(run).integers(0, 256, 1000).astype(np.uint8)
    ids = drawn.repeat(run).reshape(run * 10, 100)
    assert count_ids(ids).tolist() == np.bincount(ids.ravel(), minlength=256).tolist()


def test_weights_are_those_of_the_papers_formulas():
    counts, beside = np.array([600, 300, 100, 0]), np.array([1000, 1000, 250, 0])
    expected = [1 / math.log(1.02 + share) for share in (0.6, 0.3, 0.1, 0)]
    assert enet_weights(counts).tolist() == pytest.approx(expected)
    # frequencies 0.6, 0.3, 0.4: their median is 0.4
    assert median_weights(counts, beside).tolist() == pytest.approx([0.4 / 0.6, 0.4 / 0.3, 1, 1])


def test_suggested_weights_are_made_of_the_pixels_of_the_first_split(folder, write):
    rows = {0: [0, 0, 0, 1], 1: [0, 1, 1, 255], 2: [0, 0, 0, 0], 3: [1, 2, 2, 2]}
    for number, row in rows.items():
        write(folder / f"train/masks/{number}.png", np.tile(np.array(row, np.uint8), (8, 3)))
    weights = check(folder).class_weights
    # in 15 labelled of 16 columns; road in 3, house in 3, tree in 1 of 4 images of 4 columns
    shares, frequencies = [8 / 15, 4 / 15, 3 / 15], [8 / 12, 4 / 12, 3 / 4]
    assert weights["enet"] == pytest.approx([1 / math.log(1.02 + share) for share in shares])
    assert weights["median_frequency"] == pytest.approx([8 / 12 / f for f in frequencies])


def test_files_without_counterpart_are_all_named_and_the_rest_is_counted(folder, write, random_ids):
    (folder / "train/masks/1.png").unlink()
    (folder / "train/masks/2.png").unlink()
    write(folder / "val/masks/9.png", random_ids(3))
    report = check(folder)
    assert found(report) == {
        "image-without-mask": ("train", 2),
        "mask-without-image": ("val", 1),
    }
    missing = finding(report, "image-without-mask")
    assert missing.items == tuple(str(folder / f"train/images/{n}.png") for n in (1, 2))
    assert "no label map for 2 of 4 images" in missing.sentence
    assert report.splits["train"].looked_at == 4 and report.splits["train"].class_images.max() == 2
    with pytest.raises(ValueError, match="no label map for 2 of 4 images"):
        FolderDataset(folder, "train")


def test_names_of_a_list_without_an_image_and_files_of_one_name(folder):
    (folder / "train.txt").write_text("0\n1\n7\n")
    (folder / "val.txt").write_text("0\n1\n")
    Image.open(folder / "val/images/0.png").save(folder / "val/images/0.bmp")
    report = check_splits(
        lambda split, unpaired: FolderDataset(
            folder, split, names="{split}.txt", unpaired=unpaired
        ),
        ("train", "val"),
        0,
    )
    assert found(report) == {"name-without-image": ("train", 1), "same-name": ("val", 2)}
    assert finding(report, "name-without-image").items == ("7",)
    assert report.splits["train"].samples == 2


def test_missing_and_spare_labels_of_cityscapes(cityscapes):
    labels = cityscapes / "gtFine/train/aachen"
    gone = labels / "aachen_000001_000019_gtFine_labelIds.png"
    gone.rename(labels / "aachen_000009_000019_gtFine_labelIds.png")
    report = check_splits(
        lambda split, unpaired: Cityscapes(cityscapes, split, unpaired=unpaired), ["train"], 0
    )
    kinds = found(report)
    assert kinds["image-without-mask"] == kinds["mask-without-image"] == ("train", 1)
    assert "aachen_000009" in finding(report, "mask-without-image").items[0]


def test_camvid_goes_on_without_the_images_that_lack_a_mask(tmp_path, write, random_image):
    for name in ("a", "b"):
        write(tmp_path / f"train/{name}.png", random_image(seed=ord(name)))
    write(tmp_path / "trainannot/a.png", np.arange(96, dtype=np.uint8).reshape(8, 12) % 12)
    report = check_splits(
        lambda split, unpaired: CamVid(tmp_path, split, unpaired=unpaired), ["train"], 0
    )
    assert found(report) == {"image-without-mask": ("train", 1)}
    assert report.splits["train"].class_images.tolist() == [1] * 11


def damage_truncated_image(folder, write):
    path = folder / "train/images/2.png"
    path.write_bytes(path.read_bytes()[:-40])


def damage_empty_mask(folder, write):
    (folder / "train/masks/2.png").write_bytes(b"")


def damage_huge_size(folder, write):
    path = folder / "train/images/2.png"
    content = bytearray(path.read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2  # a header of 3.6 gigapixels
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def damage_deep_image(folder, write):
    write(folder / "train/images/2.png", np.full((8, 12), 1000, np.uint16))


def damage_colour_mask(folder, write):
    write(folder / "train/masks/2.png", np.zeros((8, 12, 3), np.uint8))


def damage_size(folder, write):
    write(folder / "train/masks/2.png", np.tile(np.arange(3, dtype=np.uint8), (8, 5)))


def damage_unknown_id(folder, write):
    ids = np.array(Image.open(folder / "train/masks/2.png"))
    ids[3, 3] = 77
    write(folder / "train/masks/2.png", ids)


def damage_black_and_white(folder, write):
    ids = np.array(Image.open(folder / "train/masks/2.png"))
    write(folder / "train/masks/2.png", np.where(ids == 1, 255, 0).astype(np.uint8))


def damage_one_value(folder, write):
    write(folder / "train/masks/2.png", np.ones((8, 12), np.uint8))


def damage_blank_image(folder, write):
    write(folder / "train/images/2.png", np.full((8, 12, 3), 9, np.uint8))


def damage_copy_in_split(folder, write):
    Image.open(folder / "train/images/1.png").save(folder / "train/images/2.png", compress_level=1)


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (damage_truncated_image, "unreadable-image", "2.png"),
        (damage_empty_mask, "unreadable-mask", "2.png"),
        (damage_huge_size, "unreadable-image", "exceeds limit"),
        (damage_deep_image, "image-format", "more than 8 bits"),
        (damage_colour_mask, "mask-format", "holds colours (mode RGB)"),
        (damage_size, "size", "is 12x8 pixels, but its label map"),
        (damage_unknown_id, "unknown-id", "holds the value 77 in 1 of 96 pixels"),
        (damage_black_and_white, "black-and-white-mask", "0 and 255 only"),
        (damage_one_value, "one-value-mask", "the value 1 throughout"),
        (damage_blank_image, "blank-image", "the colour (9, 9, 9)"),
        (damage_copy_in_split, "duplicate-in-split", "equal"),
    ],
)
def test_one_bad_file_is_found_and_all_others_are_counted(folder, write, damage, kind, words):
    damage(folder, write)
    report = check(folder)
    assert found(report) == {kind: ("train", 1)}
    (one,) = report.findings
    assert "2.png" in one.items[0] and words in one.sentence
    assert report.splits["train"].looked_at == 4
    if one.is_error:  # the quick check before training says the same
        assert quick_check(FolderDataset(folder, "train")) == [one.sentence]


def test_an_image_in_two_splits_is_an_error_also_when_it_was_saved_anew(folder):
    source = folder / "train/images/3.png"
    Image.open(source).save(folder / "val/images/1.png", compress_level=0)
    assert source.read_bytes() != (folder / "val/images/1.png").read_bytes()
    report = check(folder)
    assert found(report) == {"duplicate-between-splits": ("train and val", 1)}
    assert finding(report, "duplicate-between-splits").items == (
        f"{source} = {folder / 'val/images/1.png'}",
    )


def test_images_that_differ_in_one_pixel_or_are_mirrored_are_not_one(folder):
    pixels = np.array(Image.open(folder / "train/images/3.png"))
    pixels[2, 2] ^= 1
    Image.fromarray(pixels).save(folder / "val/images/0.png")
    Image.fromarray(pixels[:, ::-1]).save(folder / "val/images/1.png")  # of the same mean and std
    assert found(check(folder)) == {}


def test_palettes_that_disagree_are_found_and_those_that_agree_are_not(folder):
    def save(number, palette):
        mask = Image.open(folder / f"train/masks/{number}.png").convert("L")
        mask.putpalette(palette + [0] * 756)
        mask.save(folder / f"train/masks/{number}.png")

    save(0, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    save(1, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert found(check(folder)) == {}
    save(2, [1, 2, 3, 7, 8, 9, 4, 5, 6])
    report = check(folder)
    assert found(report) == {"palettes": ("train", 2)}
    assert "1 is (4, 5, 6) in" in finding(report, "palettes").items[0]


def test_a_split_without_labels_one_mostly_ignored_and_classes_that_are_absent(folder, write):
    for path in (folder / "val/masks").iterdir():
        write(path, np.full((8, 12), 255, np.uint8))
    for path in (folder / "train/masks").iterdir():
        ids = np.full((8, 12), 255, np.uint8)
        ids[0, :5] = [0, 1, 0, 1, 0]
        write(path, ids)
    report = check(folder)
    assert found(report) == {
        "no-labels": ("val", 0),
        "one-value-mask": ("val", 2),
        "mostly-ignored": ("train", 0),
        "absent-class": ("train", 1),
    }
    assert finding(report, "absent-class").items == ("tree",)
    assert report.findings[0].kind == "no-labels" and report.errors == 1  # errors come first


def test_a_test_split_may_be_without_labels(folder, random_image, write):
    write(folder / "test/images/a.png", random_image(seed=5))
    report = check(folder, ("train", "test"))
    assert found(report) == {} and "none" in report_text(report)


def test_a_split_that_is_not_there_does_not_keep_others_from_being_read(folder):
    report = check(folder, ("test", "train"))
    assert found(report) == {"split": ("test", 0)} and report.errors == 1
    assert report.splits["train"].looked_at == 4
    with pytest.raises(ValueError, match="is not a folder"):
        check(folder, ("test",))


def test_a_limit_reads_samples_spread_over_the_split(folder):
    summary = check(folder, limit=2).splits["train"]
    files = [file for files in summary.files_of.values() for file in files]
    assert (summary.samples, summary.looked_at) == (4, 2)
    assert [Path(file).name for file in files] == ["0.png", "3.png"]


def test_drawn_scenes_are_looked_at_too():
    streets = SyntheticStreets("val", 2, size=(64, 128))
    report = check_splits(lambda split, unpaired: streets, ["val"], 0)
    expected = sum(np.bincount(streets.load(n)[1].ravel(), minlength=256) for n in range(2))
    assert report.errors == 0
    assert report.splits["val"].counts.tolist() == expected.tolist()


def test_any_failure_of_a_decoder_is_a_finding(folder, monkeypatch):
    def fail(path):
        raise MemoryError("no room")

    monkeypatch.setattr("segdeconv.data.check.read_image", fail)
    (look,) = look_at(FolderDataset(folder, "train"), [0], 0)
    assert look.problems[0].kind == "unreadable-image" and "no room" in look.problems[0].sentence
    assert look.counts.sum() == 96


@pytest.mark.data
def test_camvid_is_sound(data_folder, tmp_path):
    root = data_folder("camvid")
    report = check_splits(
        lambda split, unpaired: CamVid(root, split, unpaired=unpaired), ["train", "val"], 2
    )
    assert [s.looked_at for s in report.splits.values()] == [367, 101]
    assert report.errors == 0
    assert set(report.splits["train"].sizes) == {(480, 360)}
    # a copy of one validation image among those to train on is found
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}annot").mkdir()
        for name in CamVid(root, split).names[:3]:
            shutil.copy(root / split / "images" / f"{name}.png", tmp_path / split)
            shutil.copy(root / split / "masks" / f"{name}.png", tmp_path / f"{split}annot")
    name = CamVid(root, "val").names[1]
    shutil.copy(root / "val/images" / f"{name}.png", tmp_path / "train")
    shutil.copy(root / "val/masks" / f"{name}.png", tmp_path / "trainannot")
    report = check_splits(
        lambda split, unpaired: CamVid(tmp_path, split, unpaired=unpaired), ["train", "val"], 0
    )
    assert found(report)["duplicate-between-splits"] == ("train and val", 1)
