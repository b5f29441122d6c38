"""Label sets against cityscapesScripts' own table, and the file of one's own classes."""

import numpy as np
import pytest

from segdeconv.data.labels import CAMVID, CITYSCAPES, load_label_set

labels = pytest.importorskip("cityscapesscripts.helpers.labels")


def test_the_cityscapes_table_is_that_of_the_official_scripts():
    official = [
        (x.id, x.name, x.trainId if 0 <= x.trainId < 255 else None, x.category, x.color)
        for x in labels.labels
    ]
    ours = [(x.id, x.name, x.train_id, x.category, x.colour) for x in CITYSCAPES.labels]
    assert ours == official
    instances = [x.hasInstances for x in labels.labels]
    assert [x.has_instances for x in CITYSCAPES.labels] == instances


def test_the_cityscapes_tables_map_each_id_as_the_official_scripts_do():
    for label in labels.labels[:-1]:
        assert CITYSCAPES.id_to_train[label.id] == label.trainId
    assert (CITYSCAPES.id_to_train[34:] == 255).all()
    assert [labels.trainId2label[t].id for t in range(19)] == CITYSCAPES.train_to_id.tolist()
    assert tuple(labels.trainId2label[t].name for t in range(19)) == CITYSCAPES.class_names
    assert tuple(labels.trainId2label[t].category for t in range(19)) == CITYSCAPES.categories
    assert CITYSCAPES.num_classes == 19


def test_camvid_has_eleven_classes_and_ignores_id_11():
    assert CAMVID.num_classes == 11
    assert CAMVID.id_to_train[:12].tolist() == [*range(11), 255]
    assert CAMVID.categories is None


def test_the_tables_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        CITYSCAPES.id_to_train[0] = 1


CLASSES = """
name: my streets
classes:
  - road
  - {name: pavement, id: 5, colour: [244, 35, 232]}
  - {name: vehicle, id: [2, 3, 7]}
ignore_ids: [9, 255]
"""


@pytest.fixture
def classes_file(tmp_path):
    def write(text):
        path = tmp_path / "classes.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_classes_file_gives_names_ids_and_colours(classes_file):
    label_set = load_label_set(classes_file(CLASSES))
    assert label_set.name == "my streets"
    assert label_set.class_names == ("road", "pavement", "vehicle")
    assert label_set.id_to_train[[0, 5, 2, 3, 7, 9, 255]].tolist() == [0, 1, 2, 2, 2, 255, 255]
    assert label_set.train_to_id.tolist() == [0, 5, 2]
    assert label_set.colours[1] == (244, 35, 232)
    assert label_set.describe_ids() == "0, 2 to 3, 5, 7, 9, 255"
    assert np.flatnonzero(label_set.is_unknown == 0).tolist() == [0, 2, 3, 5, 7, 9, 255]


def test_without_ignore_ids_255_is_ignored_unless_a_class_has_it(classes_file):
    assert load_label_set(classes_file("classes: [a, b]")).ids == (0, 1, 255)
    binary = load_label_set(classes_file("classes: [a, {name: b, id: 255}]"))
    assert binary.ids == (0, 255) and binary.id_to_train[255] == 1


def test_colours_that_are_not_given_differ(classes_file):
    names = "\n".join(f"  - class{number}" for number in range(60))
    label_set = load_label_set(classes_file("classes:\n" + names))
    assert len(set(label_set.colours)) == 60
    assert all(0 <= part <= 255 for colour in label_set.colours for part in colour)


def test_categories_come_for_all_classes(classes_file):
    text = "classes: [{name: a, category: flat}, {name: b, category: thing}]"
    assert load_label_set(classes_file(text)).categories == ("flat", "thing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [a, b", "cannot read the classes file"),
        ("names: [a, b]", "no list under 'classes'"),
        ("classes: []", "lists 0 classes"),
        ("classes: [a]\nignore_index: 0", "unknown key 'ignore_index'.*did you mean 'ignore_ids'"),
        ("classes: [{name: a, color: [1, 2, 3]}]", "unknown key 'color'.*did you mean 'colour'"),
        ("classes: [yes, no]", "class 0 .* has the name True"),
        ("classes: [{name: a, id: 256}]", "has the id 256"),
        ("classes: [{name: a, id: []}]", "class 'a' .* has no id"),
        ("classes: [a, {name: b, id: 0}]", r"the id 0 more than once \(a, b\)"),
        ("classes: [a]\nignore_ids: [0]", r"the id 0 more than once \(a, ignored\)"),
        ("classes: [a]\nignore_ids: 0", "expected a list"),
        ("classes: [a, a]", "the class 'a' twice"),
        ("classes: [{name: a, colour: [0, 0]}]", r"has the colour \[0, 0\]"),
        ("classes: [{name: a, category: x}, b]", r"1 of 2 classes no category \(first: b\)"),
    ],
)
def test_a_wrong_classes_file_is_refused_in_one_sentence(classes_file, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load_label_set(classes_file(text))
    assert "\n" not in str(error.value) and "classes.yaml" in str(error.value)


def test_a_missing_classes_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the classes file .*nowhere\.yaml"):
        load_label_set(tmp_path / "nowhere.yaml")
