"""The fields of a saved part: every kind, its ranges, and fields that are missing or unknown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.snapshot.fields import Saved, SnapshotError


def saved(**fields: object) -> Saved:
    return Saved("clock", fields)


@pytest.mark.parametrize("fields", [None, 7, "text", b"bytes", [], [("a", 1)], True])
def test_a_part_without_fields_is_refused(fields: object):
    with pytest.raises(SnapshotError, match=r"part clock makes no sense: it has no fields"):
        Saved("clock", fields)


@pytest.mark.parametrize("value", [-3, 0, 5])
def test_an_integer_in_its_range(value: int):
    assert saved(shift=value).integer("shift", -3, 5) == value


@pytest.mark.parametrize("value", [-4, 6, 1 << 64, 10**4000])
def test_an_integer_out_of_its_range_is_refused(value: int):
    with pytest.raises(SnapshotError, match=r"shift is .*") as caught:
        saved(shift=value).integer("shift", -3, 5)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("value", [True, False, 1.0, float("nan"), "1", b"\1", None, [1], {}])
def test_an_integer_of_the_wrong_kind_is_refused(value: object):
    with pytest.raises(SnapshotError, match="shift is no number"):
        saved(shift=value).integer("shift", -3, 5)


@pytest.mark.parametrize("value", [True, False])
def test_a_flag(value: bool):
    assert saved(on=value).flag("on") is value


@pytest.mark.parametrize("value", [0, 1, "true", b"", None, []])
def test_a_flag_of_the_wrong_kind_is_refused(value: object):
    with pytest.raises(SnapshotError, match="on is neither true nor false"):
        saved(on=value).flag("on")


@pytest.mark.parametrize("value", ["", "abcd", "\u20ac" * 4])
def test_a_text_up_to_its_length(value: str):
    assert saved(name=value).text("name", 4) == value


@pytest.mark.parametrize("value", ["abcde", b"abc", 3, None, ["a"]])
def test_a_text_too_long_or_of_the_wrong_kind_is_refused(value: object):
    with pytest.raises(SnapshotError, match="name is no string of at most 4 characters"):
        saved(name=value).text("name", 4)


@pytest.mark.parametrize("value", [b"ab", b"abcd"])
def test_data_of_its_length(value: bytes):
    assert saved(cells=value).data("cells", 2, 4) == value


@pytest.mark.parametrize("value", [b"", b"a", b"abcde", "abc", [97, 98], None, {"hex": "zz"}])
def test_data_of_a_wrong_length_or_kind_is_refused(value: object):
    with pytest.raises(SnapshotError, match="cells is no data of 2 to 4 bytes"):
        saved(cells=value).data("cells", 2, 4)


def test_parts_have_the_name_of_their_place():
    whole = saved(fifo={"size": 1}, timers=[{"on": True}, {"on": 2}])
    with pytest.raises(SnapshotError, match=r"part clock\.fifo makes no sense: size is 1"):
        whole.part("fifo").integer("size", 2, 3)
    first, second = whole.parts("timers", 2)
    assert first.flag("on")
    with pytest.raises(SnapshotError, match=r"part clock\.timers\[1\] makes no sense"):
        second.flag("on")


@pytest.mark.parametrize("value", [None, 1, "ab", b"ab", {}, {"0": {}}, [], [{}], [{}, {}, {}]])
def test_parts_of_another_number_or_kind_are_refused(value: object):
    with pytest.raises(SnapshotError, match="timers does not have 2 entries"):
        saved(timers=value).parts("timers", 2)


def test_an_entry_that_is_no_part_is_refused():
    with pytest.raises(SnapshotError, match=r"part clock\.timers\[1\] makes no sense"):
        saved(timers=[{}, 5]).parts("timers", 2)


def test_blocks_are_all_data_that_is_left():
    whole = saved(size=1, regs=b"abc", msrs=b"")
    whole.integer("size", 1, 1)
    assert whole.blocks(3) == {"regs": b"abc", "msrs": b""}
    whole.end()
    with pytest.raises(SnapshotError, match="regs is no data of 0 to 2 bytes"):
        saved(regs=b"abc").blocks(2)


@pytest.mark.parametrize(
    "read",
    [
        lambda part: part.integer("absent", 0, 1),
        lambda part: part.flag("absent"),
        lambda part: part.text("absent", 9),
        lambda part: part.data("absent", 0, 9),
        lambda part: part.part("absent"),
        lambda part: part.parts("absent", 0),
    ],
    ids=["integer", "flag", "text", "data", "part", "parts"],
)
def test_a_missing_field_is_refused(read):
    with pytest.raises(SnapshotError, match="absent is missing"):
        read(saved(present=1))


def test_a_field_is_read_once():
    part = saved(on=True)
    part.flag("on")
    part.end()
    with pytest.raises(SnapshotError, match="on is missing"):
        part.flag("on")


def test_an_unknown_field_is_refused_by_name():
    part = saved(on=True, more=1)
    part.flag("on")
    with pytest.raises(SnapshotError, match="more means nothing here"):
        part.end()


def test_reading_leaves_the_fields_alone():
    fields = {"on": True}
    Saved("clock", fields).flag("on")
    assert fields == {"on": True}


@given(st.text(min_size=1, max_size=1000))
def test_a_hostile_name_cannot_drive_a_terminal_or_fill_it(name: str):
    with pytest.raises(SnapshotError) as ended:
        Saved("clock", {name: 1}).end()
    with pytest.raises(SnapshotError) as read:
        Saved("clock", {name: 1}).blocks(9)
    for caught in (ended, read):
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 3000
