"""Photographs in folders, one folder per class: ImageNet, and anyone's own classes."""

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from segdeconv.data.arrays import held_out
from segdeconv.data.classes import ClassNames
from segdeconv.data.photos import PhotoTransform
from segdeconv.data.readers import read_image


class ImageFolder(Dataset[dict[str, Any]]):
    """Images in ROOT/SPLIT/CLASS/, in torchvision's order; sub-folders of a class are its own.

    A sample is {"image": (3, H, W) float32, "label": int, "name": str}; without a transform the
    image is uint8 (H, W, 3).

    Args:
        root: Folder with a folder for each split.
        split: Name of such a folder; "holdout", images of "train" drawn at random, and "fit", the
            others.
        transform: What is done with an image.
        holdout: Number of images in "holdout".
        holdout_seed: Seed that they are drawn with.

    Raises:
        ValueError: A folder that is missing, empty, or holds other classes than "train".
    """

    photos = True
    channels = 3

    def __init__(
        self,
        root: str,
        split: str = "train",
        transform: PhotoTransform | None = None,
        holdout: int = 10_000,
        holdout_seed: int = 0,
    ) -> None:
        folder = Path(root) / ("train" if split in ("fit", "holdout") else split)
        own = _class_folders(folder)
        classes = _class_folders(Path(root) / "train") if (Path(root) / "train").is_dir() else own
        if strange := sorted(set(own) - set(classes)):
            raise ValueError(
                f"{folder / strange[0]} is a class that {Path(root) / 'train'} does not have"
            )
        numbers = {name: number for number, name in enumerate(classes)}
        self.files: list[tuple[str, int]] = make_dataset(
            str(folder), numbers, IMG_EXTENSIONS, allow_empty=True
        )
        if not self.files:
            raise ValueError(
                f"no images in the class folders of {folder}; expected {', '.join(IMG_EXTENSIONS)}"
            )
        if split in ("fit", "holdout"):
            parts = held_out(len(self.files), holdout, holdout_seed)
            self.files = [self.files[index] for index in parts[split == "holdout"].tolist()]
        self.label_set = ClassNames(Path(root).name, tuple(classes))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.files[index]
        image = read_image(path)
        return {
            "image": image if self.transform is None else self.transform(image),
            "label": label,
            "name": path,
        }


def _class_folders(folder: Path) -> list[str]:
    """Names of the folders in ``folder``, sorted."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder; expected one in it for each class, see docs/data.md"
        )
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not names:
        raise ValueError(
            f"{folder} holds no folders; its images must lie in one folder per class, see "
            "docs/data.md"
        )
    return names
