"""Values of command-line options: sizes, times, numbers, CPUs."""

from pykvm.errors import UsageError
from pykvm.forms import MOST_DIGITS, is_number, parse_bytes
from pykvm.host.threads import MAX_CPUS
from pykvm.lean.typing_names import Any, Final

_MEMORY_KEYS: Final = {"shared": "shared_memory", "thp": "thp"}
"""The keys of --memory, and the fields that they are of."""


def parse_size(text: str) -> int:
    """Bytes meant by ``64M``, ``1G``, ``512K`` or a plain number of MiB, as QEMU's -m."""
    size = parse_bytes(text, "M")
    if size < 0:
        raise UsageError(f"'{text}' is not a size", "write it like 64M or 1G")
    if size == 0:
        raise UsageError("a size of 0 is of no use", "write it like 64M or 1G")
    return size


def parse_memory(text: str) -> "dict[str, Any]":
    """Fields of MachineConfig meant by ``SIZE[,shared=on|off][,thp=on|off]``; UsageError."""
    size, *keys = text.split(",")
    found: dict[str, Any] = {"memory": parse_size(size)}
    for key in keys:
        name, equals, value = key.partition("=")
        if name not in _MEMORY_KEYS:
            raise UsageError(f"--memory has no option '{name}'", "use shared= or thp=")
        hint = f"write {name}=on or {name}=off"
        if not equals:
            raise UsageError(f"--memory option '{name}' needs a value", hint)
        if _MEMORY_KEYS[name] in found:
            raise UsageError(f"--memory option '{name}' is given twice", "give it once")
        if value not in ("on", "off"):
            raise UsageError(f"{name}={value} is neither on nor off", hint)
        found[_MEMORY_KEYS[name]] = value == "on"
    return found


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
    if not is_number(text, 9) or int(text) < 1:
        raise UsageError(f"'{text}' is not a number of CPUs", "write a whole number from 1")
    return int(text)


def parse_cpus(text: str) -> frozenset[int]:
    """CPUs of the host, such as ``0,2-3`` or ``0+2-3``; UsageError."""
    found: set[int] = set()
    for part in text.replace("+", ",").split(","):
        begin, hyphen, end = part.partition("-")
        ends = (begin, end) if hyphen else (begin, begin)
        known = all(is_number(number, 4) for number in ends)
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
    return int(text) if is_number(text, MOST_DIGITS) else -1
