"""CamVid with the 11 classes of SegNet.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video: a high-definition ground truth
database", 2009; classes and splits of Badrinarayanan et al., "SegNet", arXiv:1511.00561.
"""

from pathlib import Path

from segdeconv.data.labels import CAMVID
from segdeconv.data.pairs import PairedImages, Transform, Unpaired, match_by_stem


class CamVid(PairedImages):
    """CamVid: 11 classes on images of 480 x 360 pixels; id 11 is not scored.

    Two layouts are read: ``<split>/images`` and ``<split>/masks``, with a list ``<split>.txt`` that
    chooses among them if it is there; and SegNet's own, ``<split>`` and ``<split>annot``.

    Args:
        root: Folder that holds the splits.
        split: "train", "val" or "test".
        transform: See `PairedImages`.
        unpaired: Gets the files without counterpart, in place of an error; the rest is read.

    Raises:
        ValueError: The folder is not CamVid, or images lack their label maps.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Transform | None = None,
        unpaired: list[Unpaired] | None = None,
    ) -> None:
        if split not in ("train", "val", "test"):
            raise ValueError(f"split={split!r}: CamVid has train, val, test")
        root = Path(root).expanduser()
        names: Path | None = None
        if (root / f"{split}annot").is_dir():
            images, masks = root / split, root / f"{split}annot"
        else:
            images, masks = root / split / "images", root / split / "masks"
            names = root / f"{split}.txt"
        if not images.is_dir():
            raise ValueError(
                f"no CamVid images in {images}; pass the folder that holds {split}/images and "
                f"{split}/masks, or SegNet's {split} and {split}annot"
            )
        chosen = names if names is not None and names.is_file() else None
        pairs = match_by_stem(images, masks, chosen, labelled=True, unpaired=unpaired)
        super().__init__(CAMVID, *pairs, transform)
