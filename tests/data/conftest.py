"""Small data sets on disk, written with Pillow from arrays whose pixels are known."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def write():
    return write_png


@pytest.fixture
def random_image():
    """An image (rows, columns, 3) uint8 that is a function of the seed."""
    return lambda rows=8, columns=12, seed=0: np.random.default_rng(seed).integers(
        0, 256, (rows, columns, 3), dtype=np.uint8
    )


@pytest.fixture
def random_ids():
    """A label map (rows, columns) uint8 with values from 0 to ``high`` - 1."""
    return lambda high, rows=8, columns=12, seed=0: np.random.default_rng(seed).integers(
        0, high, (rows, columns), dtype=np.uint8
    )


@pytest.fixture
def cityscapes(tmp_path, random_image, random_ids):
    """A Cityscapes folder: two cities, three training and two validation images, one for test."""
    frames = {
        "train": ["aachen_000001_000019", "aachen_000000_000019", "zurich_000000_000019"],
        "val": ["munster_000000_000019", "munster_000001_000019"],
        "test": ["bonn_000000_000019"],
    }
    for split, names in frames.items():
        for seed, name in enumerate(names):
            folder = f"{split}/{name.split('_')[0]}"
            image, ids = random_image(seed=seed), random_ids(34, seed=seed)
            write_png(tmp_path / f"leftImg8bit/{folder}/{name}_leftImg8bit.png", image)
            if split != "test":
                write_png(tmp_path / f"gtFine/{folder}/{name}_gtFine_labelIds.png", ids)
                write_png(tmp_path / f"gtFine/{folder}/{name}_gtFine_color.png", image)
    return tmp_path


@pytest.fixture
def data_folder():
    """A data set below ``data/``; the test is skipped where it is not laid out."""

    def find(name):
        folder = Path(__file__).parents[2] / "data" / name
        if not folder.is_dir():
            pytest.skip(f"{folder} is not laid out")
        return folder

    return find
