"""Values of command-line options: sizes, times, numbers, CPUs."""

from pykvm.errors import UsageError
from pykvm.forms import MOST_DIGITS, is_number, parse_bytes
from pykvm.host.threads import MAX_CPUS
from pykvm.lean.typing_names import Any, Final

_MEMORY_KEYS: Final = {"shared": "shared_memory", "thp": "thp"}
"""The keys of --memory, and the field of MachineConfig that each sets."""


def parse_size(text: str) -> int:
    """The bytes in ``64M``, ``1G``, ``512K`` or a number of MiB (as QEMU's -m); UsageError."""
    size = parse_bytes(text, "M")
    if size < 0:
        raise UsageError(f"'{text}' is not a size", "write it like 64M or 1G")
    if size == 0:
        raise UsageError("a size cannot be 0", "write it like 64M or 1G")
    return size


def parse_memory(text: str) -> "dict[str, Any]":
    """The fields of MachineConfig in ``SIZE[,shared=on|off][,thp=on|off]``; UsageError."""
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
    """A positive, finite number of seconds; UsageError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise UsageError(f"'{text}' is not a time in seconds", "write it like 30 or 2.5")
    return seconds


def parse_count(text: str) -> int:
    """A number of CPUs, 1 or more; UsageError."""
    if not is_number(text, 9) or int(text) < 1:
        raise UsageError(f"'{text}' is not a number of CPUs", "write a whole number, 1 or more")
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
    """``text`` split at commas. A doubled comma stands for a comma, as in QEMU's options."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def parse_whole(text: str) -> int:
    """The whole number in ``text``; -1 if it is not one."""
    return int(text) if is_number(text, MOST_DIGITS) else -1
