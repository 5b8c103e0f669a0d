"""Values of command-line options: sizes, disks, times. Each parser raises UsageError."""

import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pykvm.devices.virtio_blk import (
    CacheMode,
    DetectZeroes,
    DiscardMode,
    EngineKind,
    ErrorPolicy,
    MergePolicy,
    RateLimits,
)
from pykvm.devices.virtio_blk.options import (
    CYLS,
    HEADS,
    IO_SIZE,
    LIFETIME,
    LOGICAL_BLOCK_SIZE,
    MERGE_MAX,
    NUM_QUEUES,
    PHYSICAL_BLOCK_SIZE,
    POLL_MAX_NS,
    QUEUE_SIZE,
    SECS,
    SEG_MAX,
    SIZE_MAX,
)
from pykvm.devices.virtio_blk.rates import RATE, RATES
from pykvm.errors import UsageError
from pykvm.machine.config import DiskConfig
from pykvm.threads import MAX_CPUS

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.faults import FaultPlan

_UNITS: Final = MappingProxyType({"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40})


def parse_size(text: str) -> int:
    """Bytes meant by ``64M``, ``1G``, ``512K`` or a plain number of MiB, as QEMU's -m."""
    size = _parse_bytes(text, "M")
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
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise UsageError(f"'{text}' is not a number of CPUs", "write a whole number from 1")
    return int(text)


def parse_cpus(text: str) -> frozenset[int]:
    """CPUs of the host, such as ``0,2-3`` or ``0+2-3``; UsageError."""
    found: set[int] = set()
    for part in re.split("[,+]", text):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= MAX_CPUS:
            raise UsageError(f"'{text}' is not a list of CPUs", "write it like 0 or 0,2-3")
        found.update(range(first, last + 1))
    return frozenset(found)


def split_options(text: str) -> list[str]:
    """Split at commas; a doubled comma stands for one, as in QEMU's options."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def parse_disk(text: str) -> DiskConfig:
    """A disk from ``PATH[,KEY=VALUE…]``; :func:`disk_help` lists the keys.

    A key may have underscores for its hyphens, as some of QEMU's have.
    """
    path, *options = split_options(text)
    if not path:
        raise UsageError("--disk needs a path", "write it like --disk disk.img,readonly=on")
    fields: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        word = name.replace("_", "-")
        key = _DISK_KEYS.get(_ALIASES.get(word, word))
        if key is None:
            raise UsageError(f"--disk has no option '{name}'", _suggest(name, _DISK_KEYS))
        if not equals:
            raise UsageError(f"--disk option '{name}' needs a value", f"write {name}=…")
        if key.field in fields:
            raise UsageError(f"--disk option '{name}' is given twice", "give it once")
        fields[key.field] = key.parse(name, value)
    from pathlib import Path

    limits = {name: fields.pop(name) for name in RATES if name in fields}
    return DiskConfig(Path(path), **fields, limits=RateLimits(**limits))


def disk_help() -> str:
    """What ``--disk help`` prints: every key, its values and what it means."""
    lines = ["--disk PATH[,KEY=VALUE…]: a virtio-blk disk, a raw image or a block device."]
    for name, key in _DISK_KEYS.items():
        lines.append(f"  {name}={key.values}")
        lines.append(f"        {key.meaning}")
    lines.append("A comma in a path or a value is written twice; a file named help is ./help.")
    return "\n".join(lines) + "\n"


_Parse = Callable[[str, str], object]
"""A value from a key of ``--disk`` and the text after its equals sign; UsageError."""


class _DiskKey(NamedTuple):
    """A key of ``--disk``: the field of DiskConfig that it sets, and how.

    ``values`` and ``meaning`` are for people, the default in parentheses.
    """

    field: str
    parse: _Parse
    values: str
    meaning: str


def _switch(name: str, text: str) -> bool:
    if text not in ("on", "off"):
        raise UsageError(f"{name}={text} is neither on nor off", f"write {name}=on or {name}=off")
    return text == "on"


def _text(name: str, text: str) -> str:
    return text


def _member(kind: type[Enum]) -> _Parse:
    """A parser for the values of ``kind``."""

    def parse(name: str, text: str) -> Enum:
        try:
            return kind(text)
        except ValueError:
            *most, last = (member.value for member in kind)
            hint = f"use {', '.join(most)} or {last}"
            raise UsageError(f"{name} cannot be '{text}'", hint) from None

    return parse


def _parse_whole(text: str) -> int:
    """A whole number; -1 if it is none."""
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else -1


def _parse_bytes(text: str, unit: str = "") -> int:
    """Bytes: a number with K, M, G or T, or a plain one, which counts ``unit``; -1 if neither."""
    match = re.fullmatch(
        r"([0-9]{1,15})(?:([KMGT])(?:i?B)?)?", text.strip(), re.IGNORECASE | re.ASCII
    )
    return int(match[1]) * _UNITS[(match[2] or unit).upper()] if match else -1


def _number(allowed: range, read: Callable[[str], int] = _parse_whole) -> Callable[[str, str], int]:
    """A parser for what is in ``allowed``; ``read`` makes a number of the text, -1 of others."""

    def parse(name: str, text: str) -> int:
        value = read(text)
        if value not in allowed:
            raise UsageError(f"{name} cannot be '{text}'", f"use {allowed[0]} to {allowed[-1]}")
        return value

    return parse


def _cpus(name: str, text: str) -> frozenset[int]:
    return parse_cpus(text)


def _unless_off(parse: _Parse) -> _Parse:
    """A parser that takes ``off`` besides: None."""
    return lambda name, text: None if text == "off" else parse(name, text)


def _lifetime(name: str, text: str) -> tuple[int, ...]:
    parts = text.split(":")
    if len(parts) != len(LIFETIME):
        hint = f"write it like {name}=1:2:3"
        raise UsageError(f"{name} needs three numbers, not '{text}'", hint)
    parse = [_number(allowed) for allowed in LIFETIME]
    return tuple(read(name, part) for read, part in zip(parse, parts, strict=True))


def _faults(name: str, text: str) -> "FaultPlan":
    if not text:
        raise UsageError(f"--disk option '{name}' needs a file", f"write {name}=FILE.toml")
    # Few runs want faults: not at the top.
    from pykvm.devices.virtio_blk.faults import FaultPlan

    return FaultPlan.load(text)


def _rate_keys() -> Iterator[tuple[str, "_DiskKey"]]:
    """The keys for the fields of RateLimits."""
    whole, size = _number(RATE), _number(RATE, _parse_bytes)
    for unit, parse, what in (("iops", whole, "requests"), ("bps", size, "bytes")):
        for kind, of_these in (("", ""), ("-rd", ", reads"), ("-wr", ", writes")):
            key = unit + kind
            field = key.replace("-", "_")
            most = f"at most N {what} per second{of_these} (no limit)"
            yield key, _DiskKey(field, parse, "N", most)
            burst = f"… and N at once after a rest (a tenth of {key})"
            yield f"{key}-max", _DiskKey(f"{field}_max", parse, "N", burst)
    meaning = "for these limits, N bytes of a larger request count as one (all of it)"
    yield "iops-size", _DiskKey("iops_size", size, "SIZE", meaning)


def _values(kind: type[Enum]) -> str:
    return "|".join(member.value for member in kind)


_DISK_KEYS: Final = MappingProxyType(
    {
        "readonly": _DiskKey(
            "readonly", _switch, "on|off", "the guest cannot write, the file is only read (off)"
        ),
        "snapshot": _DiskKey(
            "snapshot",
            _switch,
            "on|off",
            "writes are dropped at the end, the file is only read (off)",
        ),
        "serial": _DiskKey(
            "serial", _text, "TEXT", "what /sys/block/vda/serial shows, at most 20 characters"
        ),
        "cache": _DiskKey(
            "cache",
            _member(CacheMode),
            _values(CacheMode),
            "caching, and when writes are durable (writeback)",
        ),
        "engine": _DiskKey(
            "engine", _member(EngineKind), _values(EngineKind), "what does the I/O (auto)"
        ),
        "merge": _DiskKey(
            "merge",
            _member(MergePolicy),
            _values(MergePolicy),
            "which requests become one operation (sequential)",
        ),
        "merge-max": _DiskKey(
            "merge_max", _number(MERGE_MAX), "N", "at most N requests in one operation (32)"
        ),
        "poll-max-ns": _DiskKey(
            "poll_max_ns",
            _number(POLL_MAX_NS),
            "N",
            "watch the ring up to N ns before sleeping (32768)",
        ),
        "queue-size": _DiskKey(
            "queue_size", _number(QUEUE_SIZE), "N", "descriptors of a queue, a power of 2 (256)"
        ),
        "num-queues": _DiskKey(
            "num_queues", _number(NUM_QUEUES), "N", "queues; 'queues' means the same (1)"
        ),
        "iothreads": _DiskKey(
            "iothreads", _number(NUM_QUEUES), "N", "threads that serve the queues (one for each)"
        ),
        "cpu-affinity": _DiskKey(
            "cpu_affinity", _cpus, "CPUS", "the host's CPUs for these threads, like 0+2-3 (any)"
        ),
        "seg-max": _DiskKey(
            "seg_max",
            _unless_off(_number(SEG_MAX)),
            "N|off",
            "the guest is to give a request at most N segments (254)",
        ),
        "size-max": _DiskKey(
            "size_max",
            _number(SIZE_MAX, _parse_bytes),
            "SIZE",
            "… and a segment at most SIZE bytes, like 4K (no limit)",
        ),
        "rerror": _DiskKey(
            "rerror",
            _member(ErrorPolicy),
            _values(ErrorPolicy),
            "what becomes of a read that the host cannot carry out (report)",
        ),
        "werror": _DiskKey(
            "werror",
            _member(ErrorPolicy),
            _values(ErrorPolicy),
            "… and of a write or a flush (enospc)",
        ),
        "discard": _DiskKey(
            "discard",
            _member(DiscardMode),
            _values(DiscardMode),
            "discards free the host's space, do nothing, or are not offered (unmap)",
        ),
        "write-zeroes": _DiskKey(
            "write_zeroes", _switch, "on|off", "the guest may have zeros made without data (on)"
        ),
        "detect-zeroes": _DiskKey(
            "detect_zeroes",
            _member(DetectZeroes),
            _values(DetectZeroes),
            "writes of zeros are made without data, and may free space (off)",
        ),
        "logical-block-size": _DiskKey(
            "logical_block_size",
            _number(LOGICAL_BLOCK_SIZE, _parse_bytes),
            "SIZE",
            "the guest's unit of access (512, or the host device's)",
        ),
        "physical-block-size": _DiskKey(
            "physical_block_size",
            _number(PHYSICAL_BLOCK_SIZE, _parse_bytes),
            "SIZE",
            "what the guest is to align to (what O_DIRECT wants)",
        ),
        "min-io-size": _DiskKey(
            "min_io_size",
            _number(IO_SIZE, _parse_bytes),
            "SIZE",
            "the least that is good to transfer (the host device's)",
        ),
        "opt-io-size": _DiskKey(
            "opt_io_size",
            _number(IO_SIZE, _parse_bytes),
            "SIZE",
            "what is best to transfer (the host device's)",
        ),
        "discard-granularity": _DiskKey(
            "discard_granularity",
            _number(IO_SIZE, _parse_bytes),
            "SIZE",
            "the unit of discards (the host's)",
        ),
        "cyls": _DiskKey("cyls", _number(CYLS), "N", "a geometry: cylinders (none)"),
        "heads": _DiskKey("heads", _number(HEADS), "N", "… heads"),
        "secs": _DiskKey("secs", _number(SECS), "N", "… sectors in a track"),
        "lifetime": _DiskKey(
            "lifetime", _lifetime, "EOL:A:B", "the wear that the disk tells of, like 1:2:3 (none)"
        ),
        "flush": _DiskKey("flush", _switch, "on|off", "offer VIRTIO_BLK_F_FLUSH (on)"),
        "config-wce": _DiskKey(
            "config_wce", _switch, "on|off", "offer VIRTIO_BLK_F_CONFIG_WCE (on)"
        ),
        "blk-size": _DiskKey("blk_size", _switch, "on|off", "offer VIRTIO_BLK_F_BLK_SIZE (on)"),
        "topology": _DiskKey("topology", _switch, "on|off", "offer VIRTIO_BLK_F_TOPOLOGY (on)"),
        "packed": _DiskKey("packed", _switch, "on|off", "offer packed virtqueues (off)"),
        "indirect-desc": _DiskKey(
            "indirect_desc", _switch, "on|off", "offer indirect descriptors (on)"
        ),
        "event-idx": _DiskKey(
            "event_idx", _switch, "on|off", "offer interrupts only where they are wanted (on)"
        ),
        "in-order": _DiskKey(
            "in_order", _switch, "on|off", "offer to answer requests in their order (off)"
        ),
        "queue-reset": _DiskKey(
            "queue_reset", _switch, "on|off", "offer the reset of one queue (on)"
        ),
        "notification-data": _DiskKey(
            "notification_data", _switch, "on|off", "offer notifications that say more (off)"
        ),
        **dict(_rate_keys()),
        "faults": _DiskKey(
            "faults", _faults, "FILE", "have operations fail as this TOML file says"
        ),
    }
)

_ALIASES: Final = MappingProxyType({"queues": "num-queues", "indirect": "indirect-desc"})
"""Other names for keys of ``--disk``."""


def _suggest(word: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else "--disk help lists what there is"
