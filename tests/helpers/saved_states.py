"""States of devices on their way through a snapshot, whole and damaged."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st

from pykvm.snapshot.fields import Fields, Saved, SnapshotError, Stateful

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=40),
    st.just({}),
    st.lists(st.just({}), max_size=3),
)


def moved(source: Stateful, target: Stateful) -> None:
    """Give ``target`` the state of ``source``."""
    target.load(Saved("device", source.save()))


def _damaged(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """``value``, or something near it, or something else."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 9)):
        copy: Any = value.copy()
        at = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
        copy[at] = _damaged(value[at], draw)
        return copy
    if isinstance(value, bytes) and value and draw(st.booleans()):
        data = bytearray(value)
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return bytes(data)
    if isinstance(value, int) and not isinstance(value, bool) and draw(st.booleans()):
        return value ^ 1 << draw(st.integers(0, 40))
    return draw(junk)


@st.composite
def damages(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Callable[[Fields], Fields]:
    """Functions that damage a state in up to three places, and may take or add a field."""
    data = draw(st.data())

    def damage(fields: Fields) -> Fields:
        for _ in range(data.draw(st.integers(1, 3))):
            fields = _damaged(fields, data.draw)
            if not isinstance(fields, dict) or not fields:
                return fields
        match data.draw(st.integers(0, 9)):
            case 0:
                del fields[data.draw(st.sampled_from(list(fields)))]
            case 1:
                fields = {**fields, "more": data.draw(junk)}
        return fields

    return damage


def survives(device: Stateful, fields: object) -> None:
    """Load ``fields``; nothing but a SnapshotError may come of it."""
    with suppress(SnapshotError):
        device.load(Saved("device", fields))
