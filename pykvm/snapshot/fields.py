"""The fields of a saved part, checked as they are read. Pure.

A snapshot is hostile input: the file may hold anything. So each part names the
fields that it wants, with their kinds and ranges, and :meth:`Saved.end` refuses
fields that nobody has asked for.

A part is saved as a dictionary of integers, booleans, strings, bytes, and
dictionaries and lists of dictionaries of these.
"""

from collections.abc import Mapping

from pykvm.errors import PykvmError, shown
from pykvm.lean.typing_names import Any, NoReturn, Protocol

Fields = dict[str, Any]
"""The fields that a part saves."""

_MOST_REASON = 200
"""Characters of a reason, which may quote a name or a number from the file."""


class SnapshotError(PykvmError):
    """A snapshot cannot be written, read or restored."""


class Saved:
    """The saved fields of the part ``name``."""

    def __init__(self, name: str, fields: object) -> None:
        """SnapshotError if ``fields`` are none."""
        self.name = name
        self._left: dict[str, object] = {}
        if not isinstance(fields, Mapping):
            self.refuse("it has no fields")
        self._left = dict(fields)

    def integer(self, field: str, least: int, most: int) -> int:
        """A whole number from ``least`` to ``most``."""
        value = self._take(field)
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(f"{field} is no number")
        if not least <= value <= most:
            self.refuse(f"{field} is {value}, not {least} to {most}")
        return value

    def flag(self, field: str) -> bool:
        """True or False."""
        value = self._take(field)
        if not isinstance(value, bool):
            self.refuse(f"{field} is neither true nor false")
        return value

    def text(self, field: str, most: int) -> str:
        """A string of at most ``most`` characters."""
        value = self._take(field)
        if not isinstance(value, str) or len(value) > most:
            self.refuse(f"{field} is no string of at most {most} characters")
        return value

    def data(self, field: str, least: int, most: int) -> bytes:
        """From ``least`` to ``most`` bytes."""
        value = self._take(field)
        if not isinstance(value, bytes) or not least <= len(value) <= most:
            self.refuse(f"{field} is no data of {least} to {most} bytes")
        return value

    def part(self, field: str) -> "Saved":
        """A part of this part."""
        return Saved(f"{self.name}.{field}", self._take(field))

    def parts(self, field: str, count: int) -> "list[Saved]":
        """``count`` parts of this part."""
        value = self._take(field)
        if not isinstance(value, list) or len(value) != count:
            self.refuse(f"{field} does not have {count} entries")
        return [Saved(f"{self.name}.{field}[{at}]", one) for at, one in enumerate(value)]

    def blocks(self, most: int) -> dict[str, bytes]:
        """All fields that are left, each of them data of at most ``most`` bytes."""
        return {field: self.data(field, 0, most) for field in list(self._left)}

    def is_same(self, fields: Fields) -> bool:
        """The fields that are left are ``fields``, which a part has just saved."""
        return self._left == fields

    @property
    def empty(self) -> bool:
        """True if there are no fields that nobody has read."""
        return not self._left

    def end(self) -> None:
        """SnapshotError if there are fields that nobody has read."""
        if self._left:
            self.refuse(f"{min(self._left)} means nothing here")

    def _take(self, field: str) -> object:
        if field not in self._left:
            self.refuse(f"{field} is missing")
        return self._left.pop(field)

    def refuse(self, reason: str) -> NoReturn:
        """SnapshotError: the part makes no sense because of ``reason``."""
        raise SnapshotError(
            f"the snapshot's part {self.name} makes no sense: {shown(reason, most=_MOST_REASON)}",
            "make a new snapshot with this version of pykvm",
        )


class Stateful(Protocol):
    """A part of a machine that can be saved and restored."""

    def save(self) -> Fields:
        """The fields of its state. No vCPU runs meanwhile."""
        ...

    def load(self, saved: Saved) -> None:
        """Take over a state that :meth:`save` gave. SnapshotError."""
        ...
