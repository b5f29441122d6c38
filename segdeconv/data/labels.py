"""Label sets: the names, colours, categories and ids of the classes of a data set.

A label file holds *ids*, one per pixel (Cityscapes: 0 to 33).  Networks, losses and metrics speak
*train ids*: 0 to C - 1 in the order of `LabelSet.class_names`, and `LabelSet.ignore_index` for
every pixel that is not scored.  `LabelSet.id_to_train` leads from the first to the second and
`LabelSet.train_to_id` back.

The Cityscapes table is that of cityscapesScripts 2.3.0 (`helpers/labels.py`), the CamVid table that
of SegNet's 11 classes; `load_label_set` reads the table of anyone's own data from a YAML file.
"""

import colorsys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from segdeconv.registry import suggest

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Label:
    """What one value in a label file means.

    Args:
        id: The value in the file, 0 to 255; -1 for a label that is never drawn.
        name: Name of the label.
        train_id: Its class, counted from 0; None for a label that is neither trained nor scored.
        colour: Red, green and blue, 0 to 255, for pictures.
        category: The coarser class that it belongs to, if the set has such.
        has_instances: Single objects are told apart in the set's instance files.
    """

    id: int
    name: str
    train_id: int | None
    colour: Colour
    category: str | None = None
    has_instances: bool = False


@dataclass(frozen=True)
class LabelSet:
    """The labels of a data set, and the tables between its ids and train ids.

    Args:
        name: Name of the set, for messages.
        labels: Every label that a file may hold, in any order.  Several may share a train id; the
            first of them names the class.
        ignore_index: Train id of the pixels that are not scored.
    """

    name: str
    labels: tuple[Label, ...]
    ignore_index: int = 255

    @cached_property
    def classes(self) -> tuple[Label, ...]:
        """The label that stands for each train id, in the order of the train ids."""
        first: dict[int, Label] = {}
        for label in self.labels:
            if label.train_id is not None:
                first.setdefault(label.train_id, label)
        assert sorted(first) == list(range(len(first))), f"{self.name}: train ids with gaps"
        return tuple(first[train_id] for train_id in range(len(first)))

    @property
    def num_classes(self) -> int:
        """Number C of classes that are trained and scored."""
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in the order of the train ids."""
        return tuple(label.name for label in self.classes)

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Red, green and blue (0 to 255) of each class, in the order of the train ids."""
        return tuple(label.colour for label in self.classes)

    @property
    def categories(self) -> tuple[str, ...] | None:
        """Category of each class, in the order of the train ids; None if the set has none."""
        names = tuple(label.category for label in self.classes if label.category is not None)
        return names if len(names) == self.num_classes else None

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """Every id that a label file may hold, sorted."""
        return tuple(sorted(label.id for label in self.labels if label.id >= 0))

    @cached_property
    def id_to_train(self) -> NDArray[np.uint8]:
        """Train id of each id, (256,) uint8; `ignore_index` where no class is."""
        table = np.full(256, self.ignore_index, np.uint8)
        for label in self.labels:
            if label.id >= 0 and label.train_id is not None:
                table[label.id] = label.train_id
        table.flags.writeable = False
        return table

    @cached_property
    def train_to_id(self) -> NDArray[np.uint8]:
        """Id of each class, (C,) uint8: the way back, for files that others will read."""
        table = np.array([label.id for label in self.classes], np.uint8)
        table.flags.writeable = False
        return table

    @cached_property
    def is_unknown(self) -> NDArray[np.uint8]:
        """1 for each value that no label file may hold, else 0; (256,) uint8."""
        table = np.ones(256, np.uint8)
        table[list(self.ids)] = 0
        table.flags.writeable = False
        return table

    def describe_ids(self) -> str:
        """The ids of a label file in words, such as "0 to 33" or "0 to 11, 255"."""
        runs: list[list[int]] = []
        for value in self.ids:
            if runs and value == runs[-1][-1] + 1:
                runs[-1].append(value)
            else:
                runs.append([value])
        return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)

    def as_train_ids(self) -> "LabelSet":
        """The same classes for files that hold train ids already (and `ignore_index`)."""
        classes = tuple(
            Label(number, c.name, number, c.colour, c.category, c.has_instances)
            for number, c in enumerate(self.classes)
        )
        void = Label(self.ignore_index, "ignored", None, (0, 0, 0))
        return LabelSet(f"{self.name} train ids", (*classes, void), self.ignore_index)


CITYSCAPES = LabelSet(
    "Cityscapes",
    (
        Label(0, "unlabeled", None, (0, 0, 0), "void"),
        Label(1, "ego vehicle", None, (0, 0, 0), "void"),
        Label(2, "rectification border", None, (0, 0, 0), "void"),
        Label(3, "out of roi", None, (0, 0, 0), "void"),
        Label(4, "static", None, (0, 0, 0), "void"),
        Label(5, "dynamic", None, (111, 74, 0), "void"),
        Label(6, "ground", None, (81, 0, 81), "void"),
        Label(7, "road", 0, (128, 64, 128), "flat"),
        Label(8, "sidewalk", 1, (244, 35, 232), "flat"),
        Label(9, "parking", None, (250, 170, 160), "flat"),
        Label(10, "rail track", None, (230, 150, 140), "flat"),
        Label(11, "building", 2, (70, 70, 70), "construction"),
        Label(12, "wall", 3, (102, 102, 156), "construction"),
        Label(13, "fence", 4, (190, 153, 153), "construction"),
        Label(14, "guard rail", None, (180, 165, 180), "construction"),
        Label(15, "bridge", None, (150, 100, 100), "construction"),
        Label(16, "tunnel", None, (150, 120, 90), "construction"),
        Label(17, "pole", 5, (153, 153, 153), "object"),
        Label(18, "polegroup", None, (153, 153, 153), "object"),
        Label(19, "traffic light", 6, (250, 170, 30), "object"),
        Label(20, "traffic sign", 7, (220, 220, 0), "object"),
        Label(21, "vegetation", 8, (107, 142, 35), "nature"),
        Label(22, "terrain", 9, (152, 251, 152), "nature"),
        Label(23, "sky", 10, (70, 130, 180), "sky"),
        Label(24, "person", 11, (220, 20, 60), "human", has_instances=True),
        Label(25, "rider", 12, (255, 0, 0), "human", has_instances=True),
        Label(26, "car", 13, (0, 0, 142), "vehicle", has_instances=True),
        Label(27, "truck", 14, (0, 0, 70), "vehicle", has_instances=True),
        Label(28, "bus", 15, (0, 60, 100), "vehicle", has_instances=True),
        Label(29, "caravan", None, (0, 0, 90), "vehicle", has_instances=True),
        Label(30, "trailer", None, (0, 0, 110), "vehicle", has_instances=True),
        Label(31, "train", 16, (0, 80, 100), "vehicle", has_instances=True),
        Label(32, "motorcycle", 17, (0, 0, 230), "vehicle", has_instances=True),
        Label(33, "bicycle", 18, (119, 11, 32), "vehicle", has_instances=True),
        Label(-1, "license plate", None, (0, 0, 142), "vehicle"),
    ),
)

CAMVID = LabelSet(
    "CamVid",
    (
        Label(0, "Sky", 0, (128, 128, 128)),
        Label(1, "Building", 1, (128, 0, 0)),
        Label(2, "Pole", 2, (192, 192, 128)),
        Label(3, "Road", 3, (128, 64, 128)),
        Label(4, "Pavement", 4, (60, 40, 222)),
        Label(5, "Tree", 5, (128, 128, 0)),
        Label(6, "SignSymbol", 6, (192, 128, 128)),
        Label(7, "Fence", 7, (64, 64, 128)),
        Label(8, "Car", 8, (64, 0, 128)),
        Label(9, "Pedestrian", 9, (64, 64, 0)),
        Label(10, "Bicyclist", 10, (0, 128, 192)),
        Label(11, "Unlabelled", None, (0, 0, 0)),
    ),
)


def load_label_set(path: str | Path) -> LabelSet:
    """Read a label set from a YAML file.

    The file lists the classes in the order of the network's outputs.  A class is a name, or a
    mapping with ``name`` and, as needed,

    * ``id``: the value of the class in the mask files, 0 to 255, or a list of values that are
      merged into this class; default: the position in the list, counted from 0;
    * ``colour``: ``[red, green, blue]``, 0 to 255; default: a colour unlike the others;
    * ``category``: the coarser class it counts for; for all classes or for none.

    Beside ``classes`` there may be ``name`` (default: the file's name) and ``ignore_ids``: the
    values in the masks that are neither trained nor scored (default: ``[255]``, unless a class has
    that id).  Any other value in a mask is an error::

        name: my streets
        classes:
          - road
          - {name: pavement, colour: [244, 35, 232]}
          - {name: vehicle, id: [2, 3, 7]}
        ignore_ids: [0, 255]

    Raises:
        ValueError: The file cannot be read, or says something else than the above.
    """
    path = Path(path)
    entries, ignore_ids, name = _read_classes(path)
    labels: list[Label] = []
    for number, entry in enumerate(entries):
        ids = entry.get("id", number)
        colour = entry.get("colour", _spread_colour(number))
        if ids == []:
            raise ValueError(f"class {entry['name']!r} of {path} has no id; list at least one")
        for value in ids if isinstance(ids, list) else [ids]:
            _check_id(value, path)
            labels.append(
                Label(value, entry["name"], number, _as_colour(colour, path), entry.get("category"))
            )
    taken = {label.id for label in labels}
    if ignore_ids is None:
        ignore_ids = [255] if 255 not in taken else []
    for value in ignore_ids:
        _check_id(value, path)
        labels.append(Label(value, "ignored", None, (0, 0, 0)))
    _check_labels(labels, len(entries), path)
    return LabelSet(name, tuple(labels))


def _read_classes(path: Path) -> tuple[list[dict[str, Any]], list[Any] | None, str]:
    """The classes as mappings, the ignored ids if given, and the name of the set."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot read the classes file {path}: {reason}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("classes"), list):
        raise ValueError(
            f"{path} has no list under 'classes'; write one class per line, such as '- road'"
        )
    _check_keys(content, ("classes", "ignore_ids", "name"), str(path))
    entries = [
        dict(entry) if isinstance(entry, Mapping) else {"name": entry}
        for entry in content["classes"]
    ]
    for number, entry in enumerate(entries):
        _check_keys(entry, ("category", "colour", "id", "name"), f"class {number} of {path}")
        if not isinstance(entry.get("name"), str):
            raise ValueError(
                f"class {number} of {path} has the name {entry.get('name')!r}; expected text, in "
                f"quotes if it reads as a number or as yes or no"
            )
    ignore_ids = content.get("ignore_ids")
    if ignore_ids is not None and not isinstance(ignore_ids, list):
        raise ValueError(f"ignore_ids={ignore_ids!r} in {path}: expected a list, such as [255]")
    return entries, ignore_ids, str(content.get("name", path.stem))


def _check_keys(mapping: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    for key in mapping:
        if key not in known:
            rest = suggest(key, known, f"known: {', '.join(known)}")
            raise ValueError(f"unknown key {key!r} in {where}; {rest}")


def _check_id(value: Any, path: Path) -> None:
    if type(value) is not int or not 0 <= value <= 255:
        raise ValueError(f"{path} has the id {value!r}; expected a whole number from 0 to 255")


def _as_colour(colour: Any, path: Path) -> Colour:
    parts = list(colour) if isinstance(colour, list | tuple) else []
    if len(parts) != 3 or any(type(part) is not int or not 0 <= part <= 255 for part in parts):
        raise ValueError(
            f"{path} has the colour {colour!r}; expected [red, green, blue], each from 0 to 255"
        )
    return parts[0], parts[1], parts[2]


def _check_labels(labels: list[Label], num_classes: int, path: Path) -> None:
    if not 1 <= num_classes <= 255:
        raise ValueError(f"{path} lists {num_classes} classes; expected 1 to 255")
    twice = [value for value, count in Counter(label.id for label in labels).items() if count > 1]
    if twice:
        owners = ", ".join(label.name for label in labels if label.id == twice[0])
        raise ValueError(f"{path} gives the id {twice[0]} more than once ({owners})")
    classes = {label.train_id: label for label in labels if label.train_id is not None}.values()
    names = Counter(label.name for label in classes)
    if max(names.values()) > 1:
        raise ValueError(
            f"{path} lists the class {names.most_common(1)[0][0]!r} twice; to merge several ids "
            f"into one class, give it a list of ids"
        )
    without = [label.name for label in classes if label.category is None]
    if 0 < len(without) < num_classes:
        raise ValueError(
            f"{path} gives {len(without)} of {num_classes} classes no category "
            f"(first: {without[0]}); give all of them one, or none"
        )


def _spread_colour(number: int) -> Colour:
    """A colour for class ``number``, far from those of its neighbours."""
    # Steps of the golden ratio around the colour circle never come close to an earlier hue.
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.8, 0.95 - 0.35 * (number % 2))
    return round(255 * red), round(255 * green), round(255 * blue)
