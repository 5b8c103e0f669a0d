"""Records behave as frozen dataclasses do."""

import pytest

from pykvm.lean.records import keyword_record, record, replace


@record
class Point:
    x: int
    y: int = 7


@record
class Place(Point):
    name: str = ""
    _hidden: int = 0

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x")


@keyword_record
class Options:
    size: int = 4
    mode: str = "a"


@record
class Thing(Options):
    path: str
    flag: bool = False


@record
class Nothing:
    pass


def test_fields_come_by_position_or_by_name_with_defaults():
    assert (Point(1, 2).x, Point(1, 2).y) == (1, 2)
    assert Point(y=1, x=2) == Point(2, 1)
    assert Point(3).y == 7
    assert vars(Place(1, 2, "here")) == {"x": 1, "y": 2, "name": "here", "_hidden": 0}


def test_keyword_fields_come_by_name_only_also_in_derived_records():
    thing = Thing("here", True, size=5)
    assert (thing.path, thing.flag, thing.size, thing.mode) == ("here", True, 5, "a")
    for arguments in (("here", True, 5), ("here", True, 5, "b")):
        with pytest.raises(TypeError, match="not"):
            Thing(*arguments)
    with pytest.raises(TypeError, match="not 2 values"):
        Options(5, "b")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "named", "guilty"),
    [
        ((), {}, "with x$"),
        ((1,), {"z": 2}, "with z$"),
        ((1,), {"x": 2}, "with x$"),
        ((1, 2, 3), {}, "not 3 values$"),
        ((), {"y": 1, "z": 1}, "with z, x$"),
    ],
)
def test_wrong_arguments_are_named(values, named, guilty):
    with pytest.raises(TypeError, match=guilty):
        Point(*values, **named)


def test_post_init_is_called_however_the_fields_came():
    for make in (lambda: Place(-1, 0, "", 0), lambda: Place(-1), lambda: replace(Place(1), x=-1)):
        with pytest.raises(ValueError, match="x"):
            make()


def test_records_of_one_class_with_equal_fields_are_equal():
    assert Point(1, 2) == Point(1, 2)
    assert hash(Point(1, 2)) == hash(Point(1, 2))
    assert Point(1, 2) != Point(1, 3)
    assert Point(1, 2) != Place(1, 2)
    assert Point(1, 2) != (1, 2)
    assert Nothing() == Nothing()


def test_hidden_fields_neither_count_nor_show():
    assert Place(1, 2, "a", 3) == Place(1, 2, "a", 4)
    assert hash(Place(1, 2, "a", 3)) == hash(Place(1, 2, "a", 4))
    assert repr(Place(1, 2, "a", 3)) == "Place(x=1, y=2, name='a')"
    assert repr(Nothing()) == "Nothing()"


def test_no_field_can_be_changed():
    point = Point(1)
    with pytest.raises(AttributeError, match="x of a Point"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="z of a Point"):
        point.z = 2  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="x of a Point"):
        del point.x
    assert point == Point(1)


def test_replace_makes_a_changed_copy():
    place = Place(1, 2, "a", 3)
    assert vars(replace(place, name="b")) == {**vars(place), "name": "b"}
    assert place.name == "a"
    assert replace(Thing("p", size=9), flag=True) == Thing("p", True, size=9)
    with pytest.raises(TypeError, match=r"with z$"):
        replace(place, z=1)


def test_patterns_match_positional_fields():
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)
