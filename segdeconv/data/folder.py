"""Anyone's own data: a folder of images, a folder of label maps, and a file that names the classes.

::

    my_streets/
        classes.yaml                  see `segdeconv.data.labels.load_label_set`
        train/images/0001.jpg         png, jpg, webp, tif, bmp; any size, sub-folders if you like
        train/masks/0001.png          one number per pixel: the id of its class
        val/images/..., val/masks/...
"""

from pathlib import Path

from segdeconv.data.labels import LabelSet, load_label_set
from segdeconv.data.pairs import PairedImages, Transform, Unpaired, match_by_stem


def classes_file(root: str | Path, classes: str | Path | None = None) -> Path:
    """The file that names the classes: ``classes`` if given, else classes.yaml in ``root``."""
    return Path(classes or Path(root) / "classes.yaml").expanduser()


class FolderDataset(PairedImages):
    """Images and label maps that have the same name without the ending.

    Args:
        root: Folder that holds all of it.
        split: Put in the place of ``{split}`` below.  Images of "test" may be without label maps.
        classes: File that names the classes; default: ``classes.yaml`` in the root.
        transform: See `PairedImages`.
        images: Folder of the images, in the root.
        masks: Folder of the label maps, in the root.
        names: File in the root with one image name per line, such as "{split}.txt", for splits that
            share their folders; default: every image.
        mask_suffix: What a label map's name has behind the image's, such as "_mask".
        unpaired: Gets the files without counterpart, in place of an error; the rest is read.

    Raises:
        ValueError: A folder or the classes file is missing, or images lack their label maps.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        classes: str | Path | None = None,
        transform: Transform | None = None,
        images: str = "{split}/images",
        masks: str = "{split}/masks",
        names: str | None = None,
        mask_suffix: str = "",
        unpaired: list[Unpaired] | None = None,
    ) -> None:
        root = Path(root).expanduser()
        if not root.is_dir():
            raise ValueError(f"the data folder {root} does not exist")
        self.classes_path = classes_file(root, classes)
        image_folder, mask_folder = (root / name.format(split=split) for name in (images, masks))
        layout = (
            f"{root} is to hold classes.yaml, and for each image in {image_folder} a label map of "
            f"the same name in {mask_folder}, as docs/own-data.md shows"
        )
        if not self.classes_path.is_file():
            content = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing"
            raise ValueError(
                f"no classes file {self.classes_path}; {root} holds {content}; {layout}"
            )
        label_set = load_label_set(self.classes_path)
        try:
            pairs = match_by_stem(
                image_folder,
                mask_folder,
                root / names.format(split=split) if names else None,
                mask_suffix=mask_suffix,
                labelled=split != "test",
                unpaired=unpaired,
            )
        except ValueError as error:
            if image_folder.is_dir() and mask_folder.is_dir():
                raise
            raise ValueError(f"{error}; {layout}") from error
        super().__init__(label_set, *pairs, transform)

    def meaning_of(self, path: Path) -> tuple[LabelSet, str]:
        """What the ids of a label file mean, and what to do about one that means nothing."""
        hint = f"add it to a class or to ignore_ids in {self.classes_path}, or check the file"
        return self.label_set, hint
