"""Values of command-line options: sizes, times, numbers, CPUs."""

from types import MappingProxyType

from pykvm.errors import UsageError
from pykvm.threads import MAX_CPUS
from pykvm.typed import Final

_UNITS: Final = MappingProxyType({"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40})
_SUFFIXES: Final = frozenset(unit + rest for unit in "KMGT" for rest in ("", "B", "IB"))
_DIGITS: Final = 15


def parse_size(text: str) -> int:
    """Bytes meant by ``64M``, ``1G``, ``512K`` or a plain number of MiB, as QEMU's -m."""
    size = parse_bytes(text, "M")
    if size < 0:
        raise UsageError(f"'{text}' is not a size", "write it like 64M or 1G")
    if size == 0:
        raise UsageError("a size of 0 is of no use", "write it like 64M or 1G")
    return size


def parse_seconds(text: str) -> float:
    """A positive, finite number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise UsageError(f"'{text}' is not a time in seconds", "write it like 30 or 2.5")
    return seconds


def parse_count(text: str) -> int:
    """A whole number of 1 or more."""
    if not _is_number(text, 9) or int(text) < 1:
        raise UsageError(f"'{text}' is not a number of CPUs", "write a whole number from 1")
    return int(text)


def parse_cpus(text: str) -> frozenset[int]:
    """CPUs of the host, such as ``0,2-3`` or ``0+2-3``; UsageError."""
    found: set[int] = set()
    for part in text.replace("+", ",").split(","):
        begin, hyphen, end = part.partition("-")
        ends = (begin, end) if hyphen else (begin, begin)
        known = all(_is_number(number, 4) for number in ends)
        first, last = (int(number) for number in ends) if known else (1, 0)
        if first > last or last >= MAX_CPUS:
            raise UsageError(f"'{text}' is not a list of CPUs", "write it like 0 or 0+2-3")
        found.update(range(first, last + 1))
    return frozenset(found)


def split_options(text: str) -> list[str]:
    """Split at commas; a doubled comma stands for one, as in QEMU's options."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def parse_whole(text: str) -> int:
    """A whole number; -1 if it is none."""
    return int(text) if _is_number(text, _DIGITS) else -1


def parse_bytes(text: str, unit: str = "") -> int:
    """Bytes: a number with K, M, G or T, or a plain one, which counts ``unit``; -1 if neither."""
    word = text.strip().upper() if text.isascii() else ""
    digits = word.rstrip("KMGTIB")
    letters = word[len(digits) :]
    if not _is_number(digits, _DIGITS) or (letters and letters not in _SUFFIXES):
        return -1
    return int(digits) * _UNITS[letters[:1] or unit]


# With regular expressions these would be shorter, and importing those takes longer than all of it.


def _is_number(text: str, digits: int) -> bool:
    """Whether ``text`` is 1 to ``digits`` of the digits 0 to 9."""
    return text.isascii() and text.isdigit() and len(text) <= digits
