"""CamVid in its two layouts, and the real thing where it is laid out."""

import numpy as np
import pytest
from PIL import Image

from segdeconv.data.camvid import CamVid
from segdeconv.data.check import quick_check


@pytest.fixture
def camvid(tmp_path, write, random_image, random_ids):
    for seed, name in enumerate(("0001TP_000030", "0001TP_000000", "0006R0_f00930")):
        write(tmp_path / f"train/images/{name}.png", random_image(seed=seed))
        write(tmp_path / f"train/masks/{name}.png", random_ids(12, seed=seed))
    return tmp_path


def test_id_11_is_ignored_and_the_rest_are_classes(camvid, random_ids):
    sample = CamVid(camvid, "train")[1]
    ids = random_ids(12, seed=0)
    assert sample["name"] == "0001TP_000030"
    np.testing.assert_array_equal(sample["mask"], np.where(ids == 11, 255, ids))


def test_the_list_chooses_among_the_files(camvid):
    assert CamVid(camvid).names == ["0001TP_000000", "0001TP_000030", "0006R0_f00930"]
    (camvid / "train.txt").write_text("0006R0_f00930\n0001TP_000000.png\n\n")
    assert CamVid(camvid).names == ["0006R0_f00930", "0001TP_000000"]
    (camvid / "train.txt").write_text("0006R0_f00930\n0006R0_f00931\n")
    with pytest.raises(ValueError, match=r"1 of 2 names in .*train\.txt have no image"):
        CamVid(camvid)


def test_segnets_own_layout_is_read(camvid):
    expected = CamVid(camvid)[0]
    (camvid / "train").rename(camvid / "old")
    (camvid / "old/images").rename(camvid / "train")
    (camvid / "old/masks").rename(camvid / "trainannot")
    (camvid / "train.txt").write_text("/SegNet/CamVid/train/0.png /SegNet/CamVid/trainannot/0.png")
    dataset = CamVid(camvid)
    assert len(dataset) == 3
    np.testing.assert_array_equal(dataset[0]["mask"], expected["mask"])


def test_an_id_above_11_is_refused(camvid, write):
    write(camvid / "train/masks/0001TP_000000.png", np.full((8, 12), 12, np.uint8))
    with pytest.raises(ValueError, match=r"holds the value 12 .*CamVid has the ids 0 to 11 \(Sky"):
        CamVid(camvid)[0]


def test_a_missing_mask_is_counted(camvid):
    (camvid / "train/masks/0001TP_000030.png").unlink()
    with pytest.raises(ValueError, match=r"no label map for 1 of 3 images \(first: .*000030\.png"):
        CamVid(camvid)


def test_a_folder_without_camvid_says_what_was_expected(tmp_path):
    with pytest.raises(
        ValueError, match=r"no CamVid images in .*pass the folder that holds val/im"
    ):
        CamVid(tmp_path, "val")
    with pytest.raises(ValueError, match="split='valid': CamVid has train, val, test"):
        CamVid(tmp_path, "valid")


@pytest.mark.data
@pytest.mark.parametrize(("split", "length"), [("train", 367), ("val", 101)])
def test_the_real_camvid_is_read_exactly(data_folder, split, length):
    root = data_folder("camvid")
    dataset = CamVid(root, split)
    assert len(dataset) == length
    sample = dataset[length // 2]
    ids = np.asarray(Image.open(root / split / "masks" / f"{sample['name']}.png"))
    image = np.asarray(Image.open(root / split / "images" / f"{sample['name']}.png"))
    np.testing.assert_array_equal(sample["mask"], np.where(ids == 11, 255, ids))
    np.testing.assert_array_equal(sample["image"], image)
    assert quick_check(dataset) == []


@pytest.mark.data
def test_the_real_camvid_has_its_known_share_of_road_and_unlabelled_pixels(data_folder):
    dataset = CamVid(data_folder("camvid"), "val")
    counts = sum(np.bincount(dataset.load(i)[1].ravel(), minlength=256) for i in range(101))
    share = 100 * counts / counts.sum()
    # Counted when the set was published in this form: 28.95 % road, 1.70 % without a label.
    assert abs(share[3] - 28.95) < 0.005 and abs(share[255] - 1.70) < 0.005
