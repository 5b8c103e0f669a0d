"""Values of command-line options: sizes, disks, times. Each parser raises UsageError."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from pykvm.errors import UsageError
from pykvm.machine.config import DiskConfig

_UNITS = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DISK_OPTIONS = ("readonly", "serial")


def parse_size(text: str) -> int:
    """Bytes meant by ``64M``, ``1G``, ``512K`` or a plain number of MiB, as QEMU's -m."""
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"'{text}' is not a size", "write it like 64M or 1G")
    size = int(match[1]) * _UNITS[match[2].upper()]
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
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise UsageError(f"'{text}' is not a number of CPUs", "write a whole number from 1")
    return int(text)


def split_options(text: str) -> list[str]:
    """Split at commas; a doubled comma stands for one, as in QEMU's options."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def parse_disk(text: str) -> DiskConfig:
    """A disk from ``PATH[,readonly=on|off][,serial=TEXT]``."""
    path, *options = split_options(text)
    if not path:
        raise UsageError("--disk needs a path", "write it like --disk disk.img,readonly=on")
    seen: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in _DISK_OPTIONS:
            raise UsageError(f"--disk has no option '{key}'", _suggest(key, _DISK_OPTIONS))
        if not equals:
            raise UsageError(f"--disk option '{key}' needs a value", f"write {key}=…")
        if key in seen:
            raise UsageError(f"--disk option '{key}' is given twice", "give it once")
        seen[key] = value
    return DiskConfig(
        Path(path),
        readonly=parse_switch("readonly", seen.get("readonly", "off")),
        serial=seen.get("serial", ""),
    )


def parse_switch(name: str, text: str) -> bool:
    """``on`` or ``off``."""
    if text not in ("on", "off"):
        raise UsageError(f"{name}={text} is neither on nor off", f"write {name}=on or {name}=off")
    return text == "on"


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"it knows {', '.join(known)}"
