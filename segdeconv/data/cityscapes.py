"""Cityscapes, as its archives unpack, with the label files that are there.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016,
arXiv:1604.01685.  The layout::

    <root>/leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
    <root>/gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png

How this differs from torchvision's `Cityscapes`: the files are sorted, the masks hold train ids,
and files that hold train ids already (``..._labelTrainIds.png``, which mmsegmentation makes) serve
as well.
"""

import os
from pathlib import Path

from segdeconv.data.labels import CITYSCAPES, LabelSet
from segdeconv.data.pairs import PairedImages, Transform, Unpaired, refuse

SPLITS = {"fine": ("train", "val", "test"), "coarse": ("train", "val", "train_extra")}
TRAIN_IDS = CITYSCAPES.as_train_ids()
IMAGE_SUFFIX = "_leftImg8bit.png"


class Cityscapes(PairedImages):
    """Cityscapes: 19 classes on images of 2048 x 1024 pixels.

    Args:
        root: Folder that holds ``leftImg8bit`` and ``gtFine`` or ``gtCoarse``; default: the
            environment variable CITYSCAPES_DATASET.
        split: "train", "val" or "test"; with coarse labels also "train_extra", but not "test".
            Images of "test" may be without labels.
        transform: See `PairedImages`.
        mode: "fine" or "coarse" labels.
        unpaired: Gets the files without counterpart, in place of an error; the rest is read.

    Raises:
        ValueError: The folder is not Cityscapes, or images lack their labels.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        transform: Transform | None = None,
        mode: str = "fine",
        unpaired: list[Unpaired] | None = None,
    ) -> None:
        _check_split(split, mode)
        root = _find_root(root)
        labels = root / ("gtFine" if mode == "fine" else "gtCoarse")
        folder = root / "leftImg8bit" / split
        # Some copies have a hidden "._name.png" beside each file, which is no image.
        images = sorted(folder.glob(f"*/[!.]*{IMAGE_SUFFIX}"))
        if not images:
            raise ValueError(
                f"no images in {folder}; expected {split}/<city>/<name>{IMAGE_SUFFIX} there, as "
                f"the Cityscapes archives unpack"
            )
        paths = [_label_path(image, labels / split) for image in images]
        missing = [image for image, path in zip(images, paths, strict=True) if path is None]
        if missing and split != "test":
            sentence = (
                f"no label file for {len(missing)} of {len(images)} images of split {split} "
                f"(first: {missing[0].relative_to(root)}); expected files such as "
                f"{_label_names(missing[0], labels / split)[0].relative_to(root)} in {root}"
            )
            files = tuple(str(image) for image in missing)
            refuse(Unpaired("image-without-mask", files, sentence), unpaired)
        if unpaired is not None:
            unpaired += _spare_labels(labels / split, {path for path in paths if path})
        names = [image.name.removesuffix(IMAGE_SUFFIX) for image in images]
        super().__init__(CITYSCAPES, names, images, paths, transform)

    def meaning_of(self, path: Path) -> tuple[LabelSet, str]:
        """What a file of label ids or of train ids means; its name tells which it is."""
        if path.name.endswith("_labelTrainIds.png"):
            return TRAIN_IDS, "if the file holds label ids, name it ..._labelIds.png"
        # Label ids never reach 255, so files named wrongly show here.
        return CITYSCAPES, "if the file holds train ids, name it ..._labelTrainIds.png"


def _check_split(split: str, mode: str) -> None:
    if mode not in SPLITS:
        raise ValueError(f"mode={mode!r}: expected 'fine' or 'coarse'")
    if split not in SPLITS[mode]:
        other = "coarse" if mode == "fine" else "fine"
        hint = f"; mode={other!r} has it" if split in SPLITS[other] else ""
        raise ValueError(
            f"split={split!r}: with {mode} labels, Cityscapes has {', '.join(SPLITS[mode])}{hint}"
        )


def _find_root(root: str | Path | None) -> Path:
    given = root or os.environ.get("CITYSCAPES_DATASET")
    if not given:
        raise ValueError(
            "no folder for Cityscapes: give --data.root (root in Python), or set the environment "
            "variable CITYSCAPES_DATASET, to the folder that holds leftImg8bit and gtFine"
        )
    path = Path(given).expanduser()
    source = "" if root else " (from CITYSCAPES_DATASET)"
    if not path.is_dir():
        raise ValueError(
            f"the Cityscapes folder {path}{source} does not exist; expected the folder that holds "
            f"leftImg8bit and gtFine"
        )
    if not (path / "leftImg8bit").is_dir():
        content = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise ValueError(
            f"no leftImg8bit in the Cityscapes folder {path}{source}, which holds {content}; "
            f"pass the folder that holds leftImg8bit and gtFine"
        )
    return path


def _label_names(image: Path, labels: Path) -> list[Path]:
    """Where the label map of an image may lie, the better place first."""
    stem = image.name.removesuffix(IMAGE_SUFFIX)
    kinds = ("labelIds", "labelTrainIds")
    return [labels / image.parent.name / f"{stem}_{labels.parent.name}_{k}.png" for k in kinds]


def _label_path(image: Path, labels: Path) -> Path | None:
    return next((path for path in _label_names(image, labels) if path.is_file()), None)


def _spare_labels(folder: Path, taken: set[Path]) -> list[Unpaired]:
    """Label maps without an image."""
    stems = {path.name.rsplit("_", 1)[0] for path in taken}
    files = sorted(
        str(path)
        for kind in ("labelIds", "labelTrainIds")
        for path in folder.glob(f"*/[!.]*_{kind}.png")
        if path.name.rsplit("_", 1)[0] not in stems
    )
    if not files:
        return []
    sentence = f"{len(files)} label maps in {folder} have no image and are left out"
    return [Unpaired("mask-without-image", tuple(files), sentence)]
