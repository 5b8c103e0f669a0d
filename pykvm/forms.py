"""The accepted forms of values in a configuration.

A configuration is a record (:mod:`pykvm.lean.records`) with a form for each of its
fields. A form takes the field's name and the value that the user gave, and returns
a value of the field's type: bytes for ``"64M"``, ``CacheMode.NONE`` for ``"none"``.
Any other value is a UsageError with the field's name and the accepted values.
"""

import os
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from types import MappingProxyType

from pykvm.errors import UsageError
from pykvm.lean.typing_names import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

Form = Callable[[str, object], Any]

MOST_DIGITS: Final = 15
_MOST: Final = 1 << 64
_MOST_BYTES: Final = 1 << 96
"""More than digits and a unit can express; the caller judges whether a size is too large."""
_SHOWN: Final = 80
"""The most characters of a value in a message."""
_UNITS: Final = MappingProxyType({"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40})
_SUFFIXES: Final = frozenset(unit + rest for unit in "KMGT" for rest in ("", "B", "IB"))


def adapt(record: object, forms: Mapping[str, Form], keep_none: Collection[str] = ()) -> None:
    """Convert each field of ``record`` by its form. To be called at the end of the constructor.

    None means the field's default, except for the fields of ``keep_none``.
    """
    state = vars(record)
    defaults: Mapping[str, object] = type(record)._record_defaults  # type: ignore[attr-defined]
    for name, form in forms.items():
        value = state[name]
        if value is not None:
            state[name] = form(name, value)
        elif name not in defaults:
            raise refused(name, value, "give a value")
        elif name not in keep_none:
            state[name] = defaults[name]


def refused(name: str, value: object, wanted: str) -> UsageError:
    """The error for a ``value`` that the field ``name`` does not accept."""
    return UsageError(f"{name} cannot be {value_text(value)}", wanted)


def value_text(value: object) -> str:
    """``value`` for a message: its repr, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:  # a number with too many digits, perhaps in a container
        return f"this {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


# -- forms -----------------------------------------------------------------------


def whole(name: str, value: object) -> int:
    """A whole number."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST:
        return int(value)
    raise refused(name, value, "give a whole number")


def size(name: str, value: object) -> int:
    """Bytes: a whole number, or a string with a unit, such as ``"64M"``."""
    if (
        isinstance(value, str)
        and not value.strip().isdigit()
        and (number := parse_bytes(value)) >= 0
    ):
        return number
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST_BYTES:
        return int(value)
    raise refused(name, value, "give a number of bytes, or a size such as '64M'")


def flag(name: str, value: object) -> bool:
    """A truth value, or ``"on"`` or ``"off"`` as on the command line."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in ("on", "off"):
        return value == "on"
    raise refused(name, value, "give True or False")


def text(name: str, value: object) -> str:
    """A string."""
    if isinstance(value, str):
        return value
    raise refused(name, value, "give a string")


def file_name(name: str, value: object) -> "Path | str":
    """A path: a string, bytes, or a path object."""
    if isinstance(value, str | bytes | os.PathLike):
        path = os.fsdecode(value)
        if "\0" in path:
            raise refused(name, value, "a path cannot contain a NUL character")
        return value if isinstance(value, str | os.PathLike) else path  # type: ignore[return-value]
    raise refused(name, value, "give a path")


def path(name: str, value: object) -> "Path":
    """A path, as a Path."""
    from pathlib import Path

    return Path(file_name(name, value))


def file_or_bytes(name: str, value: object) -> "Path | str | bytes":
    """A path, or the content of a file as bytes."""
    return value if isinstance(value, bytes) else file_name(name, value)


def cpus(name: str, value: object) -> frozenset[int]:
    """CPUs of the host: a collection of their numbers."""
    if isinstance(value, frozenset | set | list | tuple | range):
        return frozenset(whole(name, number) for number in value)
    raise refused(name, value, "give the CPUs' numbers, such as {0, 2}")


def member(kind: type[Enum]) -> Form:
    """The form of a field of ``kind``: a member, or its value."""
    members = {str(one.value): one for one in kind}
    *some, last = members
    wanted = f"use {', '.join(some)} or {last}" if some else f"use {last}"

    def form(name: str, value: object) -> Enum:
        if isinstance(value, kind):
            return value
        if isinstance(value, str) and value in members:
            return members[value]
        raise refused(name, value, wanted)

    return form


# -- sizes as text: without regular expressions, whose import takes longer ------------


def parse_bytes(text: str, unit: str = "") -> int:
    """The bytes of a size such as 64M; ``unit`` is the default unit. -1 if it is not a size."""
    word = text.strip().upper() if text.isascii() else ""
    digits = word.rstrip("KMGTIB")
    letters = word[len(digits) :]
    if not is_number(digits, MOST_DIGITS) or (letters and letters not in _SUFFIXES):
        return -1
    return int(digits) * _UNITS[letters[:1] or unit]


def is_number(text: str, digits: int) -> bool:
    """True if ``text`` consists of 1 to ``digits`` of the digits 0 to 9."""
    return text.isascii() and text.isdigit() and len(text) <= digits
