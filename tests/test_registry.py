"""The one table by which everything is chosen by name."""

import pytest

from segdeconv.registry import Registry


@pytest.fixture
def shapes():
    return Registry("shape", square=4, circle=0)


def test_an_entry_is_found_by_its_name(shapes):
    assert shapes["square"] == 4


def test_a_typo_is_answered_with_the_nearest_name_and_all_names(shapes):
    with pytest.raises(ValueError) as error:
        shapes["sqare"]
    assert str(error.value) == (
        "unknown shape 'sqare'; did you mean 'square'? Known: circle, square"
    )


def test_a_name_like_no_other_is_answered_with_all_names(shapes):
    with pytest.raises(ValueError) as error:
        shapes["xyz"]
    assert str(error.value) == "unknown shape 'xyz'; known: circle, square"


@pytest.mark.parametrize("name", [None, 3])
def test_something_that_is_no_name_is_a_miss_like_any_other(shapes, name):
    with pytest.raises(ValueError, match="unknown shape"):
        shapes[name]
    assert name not in shapes


def test_an_added_entry_is_returned_and_found(shapes):
    assert shapes.add("triangle", 3) == 3
    assert "triangle" in shapes and shapes["triangle"] == 3


def test_adding_a_name_twice_is_refused_and_changes_nothing(shapes):
    with pytest.raises(ValueError, match="shape 'square' is already registered as 4"):
        shapes.add("square", 5)
    assert shapes["square"] == 4


def test_it_lists_its_names_in_order(shapes):
    assert list(shapes) == ["circle", "square"] and len(shapes) == 2
