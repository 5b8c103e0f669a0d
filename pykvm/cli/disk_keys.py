"""``--disk``: its keys, their values and their help."""

from collections.abc import Callable, Iterator
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pykvm.cli.values import parse_cpus, parse_whole, split_options
from pykvm.devices.virtio_blk import (
    CacheMode,
    DetectZeroes,
    DiscardMode,
    EngineKind,
    ErrorPolicy,
    ImageFormat,
    Locking,
    MergePolicy,
    RateLimits,
)
from pykvm.devices.virtio_blk.open import MOST_BLANK, DiskConfig
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
from pykvm.forms import parse_bytes
from pykvm.lean.records import record, replace

if TYPE_CHECKING:
    from pykvm.devices.virtio_blk.layers.faults import FaultPlan


def parse_disk(text: str) -> DiskConfig:
    """A disk from ``PATH[,KEY=VALUE…]``; :func:`disk_help` lists the keys. UsageError.

    ``blank=SIZE`` instead of a path makes a blank disk.

    A key may have underscores for its hyphens, as some of QEMU's have.
    """
    path, *options = split_options(text)
    if not path:
        raise UsageError("--disk needs a path", "write it like --disk disk.img,readonly=on")
    fields: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        word = name.replace("_", "-")
        word = _ALIASES.get(word, word)
        key = _DISK_KEYS.get(word)
        if key is None:
            raise UsageError(f"--disk has no option '{name}'", _hint(word))
        if not equals:
            raise UsageError(f"--disk option '{name}' needs a value", f"write {name}={key.values}")
        field = word.replace("-", "_")
        if field in fields:
            raise UsageError(f"--disk option '{name}' is given twice", "give it once")
        fields[field] = key.parse(name, value)
    from pathlib import Path

    limits = {name: fields.pop(name) for name in RATES if name in fields}
    blank = path.removeprefix(_BLANK)
    if blank != path:
        image: dict[str, Any] = {"blank": _size(range(1, MOST_BLANK + 1), "").parse("blank", blank)}
    else:
        image = {"path": Path(path)}
    return DiskConfig(**image, **fields, limits=RateLimits(**limits))


def disk_help() -> str:
    """The text that ``--disk help`` prints: every key, its values, meaning and default."""
    lines = [
        "--disk PATH[,KEY=VALUE…]: a virtio-blk disk, a raw image or a block device.",
        "--disk blank=SIZE[,KEY=VALUE…]: a disk of zeros in memory, dropped at the end.",
        "The default of each key is in parentheses.",
    ]
    for name, key in _DISK_KEYS.items():
        lines.append(f"  {name}={key.values}")
        lines.append(f"        {key.meaning}")
    lines.append("Write a comma in a path or a value twice, and a file named help as ./help.")
    return "\n".join(lines) + "\n"


_BLANK: Final = "blank="


def _hint(unknown: str) -> str:
    # Needed in failures only.
    from pykvm.suggest import did_you_mean

    if not unknown:
        return "write a comma in a path twice"
    return did_you_mean(unknown, _DISK_KEYS, "--disk help lists all options")


@record
class _DiskKey:
    """A key of ``--disk``, which sets the field of the same name in DiskConfig or RateLimits.

    ``parse`` takes the key, as the user spelled it, and the text after the equals sign. It returns
    the field's value, or raises UsageError. ``values`` and ``meaning`` are for the help;
    ``meaning`` ends with the default in parentheses.
    """

    parse: Callable[[str, str], object]
    values: str
    meaning: str


def _switch(meaning: str) -> _DiskKey:
    def parse(name: str, text: str) -> bool:
        if text not in ("on", "off"):
            hint = f"write {name}=on or {name}=off"
            raise UsageError(f"{name}={text} is neither on nor off", hint)
        return text == "on"

    return _DiskKey(parse, "on|off", meaning)


def _choice(kind: type[Enum], meaning: str) -> _DiskKey:
    """One of the values of ``kind``."""
    values = [member.value for member in kind]

    def parse(name: str, text: str) -> Enum:
        try:
            return kind(text)
        except ValueError:
            hint = f"use {', '.join(values[:-1])} or {values[-1]}"
            raise UsageError(f"{name} cannot be '{text}'", hint) from None

    return _DiskKey(parse, "|".join(values), meaning)


def _number(allowed: range, meaning: str) -> _DiskKey:
    def parse(name: str, text: str) -> int:
        value = parse_whole(text)
        if value not in allowed:
            raise UsageError(f"{name} cannot be '{text}'", f"use {allowed[0]} to {allowed[-1]}")
        return value

    return _DiskKey(parse, "N", meaning)


def _size(allowed: range, meaning: str) -> _DiskKey:
    """Bytes."""

    def parse(name: str, text: str) -> int:
        value = parse_bytes(text)
        if value not in allowed:
            hint = f"use {allowed[0]} to {allowed[-1]} bytes; a suffix K, M, G or T is allowed"
            raise UsageError(f"{name} cannot be '{text}'", hint)
        return value

    return _DiskKey(parse, "SIZE", meaning)


def _or_off(key: _DiskKey) -> _DiskKey:
    """``key``, which also accepts ``off`` and then gives None."""
    return replace(
        key,
        parse=lambda name, text: None if text == "off" else key.parse(name, text),
        values=f"{key.values}|off",
    )


def _lifetime(name: str, text: str) -> tuple[int, ...]:
    values = tuple(parse_whole(part) for part in text.split(":"))
    if len(values) != len(LIFETIME) or any(map(_outside, values, LIFETIME)):
        *first, last = (f"{allowed[0]} to {allowed[-1]}" for allowed in LIFETIME)
        hint = f"use three numbers, {', '.join(first)} and {last}, like {name}=1:2:3"
        raise UsageError(f"{name} cannot be '{text}'", hint)
    return values


def _outside(value: int, allowed: range) -> bool:
    return value not in allowed


def _format(name: str, text: str) -> ImageFormat:
    if text != ImageFormat.RAW.value:
        hint = f"convert the image with qemu-img convert -O raw, or insist with {name}=raw"
        raise UsageError(f"{name} cannot be '{text}'", hint)
    return ImageFormat.RAW


def _faults(name: str, text: str) -> "FaultPlan":
    if not text:
        raise UsageError(f"--disk option '{name}' needs a file", f"write {name}=FILE.toml")
    # Imported only for the few runs with faults.
    from pykvm.devices.virtio_blk.layers.faults import FaultPlan

    return FaultPlan.load(text)


def _rate_keys() -> Iterator[tuple[str, _DiskKey]]:
    """The keys for the fields of RateLimits."""
    for unit, make, many in (("iops", _number, "N requests"), ("bps", _size, "SIZE bytes")):
        for kind, of_these in (("", ""), ("-rd", ", reads"), ("-wr", ", writes")):
            key = unit + kind
            yield key, make(RATE, f"at most {many} per second{of_these} (no limit)")
            burst = f"at most {many} at once after a rest{of_these} (a tenth of {key})"
            yield f"{key}-max", make(RATE, burst)
    meaning = "iops counts each SIZE bytes of a request as one (never more than one)"
    yield "iops-size", _size(RATE, meaning)


_DISK_KEYS: Final = MappingProxyType(
    {
        "readonly": _switch("the guest cannot write, and pykvm only reads the file (off)"),
        "snapshot": _switch("keep writes until the end of the run, then drop them (off)"),
        "format": _DiskKey(_format, "raw", "take the image as raw, whatever it looks like"),
        "locking": _choice(
            Locking, "lock the image against other programs; auto: if the host can (auto)"
        ),
        "serial": _DiskKey(
            lambda _, text: text, "TEXT", "the disk's serial number, at most 20 characters (none)"
        ),
        "cache": _choice(CacheMode, "caching, and when writes are durable (writeback)"),
        "engine": _choice(EngineKind, "the way to do I/O on the host (auto)"),
        "merge": _choice(MergePolicy, "which requests become one operation (sequential)"),
        "merge-max": _number(MERGE_MAX, "most requests in one operation (32)"),
        "poll-max-ns": _number(
            POLL_MAX_NS, "poll the ring for at most N ns before sleeping (32768)"
        ),
        "queue-size": _number(QUEUE_SIZE, "descriptors of a queue, a power of 2 (256)"),
        "num-queues": _number(NUM_QUEUES, "number of queues; short: queues=N (1)"),
        "iothreads": _number(NUM_QUEUES, "number of threads that serve the queues (1)"),
        "cpu-affinity": _DiskKey(
            lambda _, text: parse_cpus(text),
            "CPUS",
            "host CPUs for these threads, such as 0+2-3 (any)",
        ),
        "seg-max": _or_off(
            _number(SEG_MAX, "most segments that the guest may give a request (254)")
        ),
        "size-max": _size(SIZE_MAX, "most bytes that a segment may have, such as 4K (no limit)"),
        "rerror": _choice(ErrorPolicy, "reaction to a read that fails on the host (report)"),
        "werror": _choice(
            ErrorPolicy, "reaction to a write or flush that fails on the host (enospc)"
        ),
        "discard": _choice(
            DiscardMode, "discards free the host's space, do nothing, or are not offered (unmap)"
        ),
        "write-zeroes": _switch("offer VIRTIO_BLK_F_WRITE_ZEROES: zeros without data (on)"),
        "detect-zeroes": _choice(
            DetectZeroes,
            "turn writes of zeros into write zeroes; unmap also frees space (off)",
        ),
        "logical-block-size": _size(
            LOGICAL_BLOCK_SIZE, "the guest's unit of access (512, or the host device's)"
        ),
        "physical-block-size": _size(
            PHYSICAL_BLOCK_SIZE, "the guest's preferred alignment (that of O_DIRECT)"
        ),
        "min-io-size": _size(IO_SIZE, "least efficient size of a transfer (the host device's)"),
        "opt-io-size": _size(IO_SIZE, "best size of a transfer (the host device's)"),
        "discard-granularity": _size(IO_SIZE, "unit of discards (the host's)"),
        "cyls": _number(CYLS, "cylinders of the geometry; needs heads= and secs= (none)"),
        "heads": _number(HEADS, "heads of the geometry"),
        "secs": _number(SECS, "sectors in a track of the geometry"),
        "lifetime": _DiskKey(
            _lifetime, "EOL:A:B", "the wear that the disk reports, such as 1:2:3 (none)"
        ),
        "flush": _switch("offer VIRTIO_BLK_F_FLUSH (on)"),
        "config-wce": _switch("offer VIRTIO_BLK_F_CONFIG_WCE (on)"),
        "blk-size": _switch("offer VIRTIO_BLK_F_BLK_SIZE (on)"),
        "topology": _switch("offer VIRTIO_BLK_F_TOPOLOGY (on)"),
        "packed": _switch("offer packed virtqueues (off)"),
        "indirect-desc": _switch("offer indirect descriptors (on)"),
        "event-idx": _switch("offer VIRTIO_F_EVENT_IDX: fewer notifications and interrupts (on)"),
        "in-order": _switch("offer to complete requests in their order (off)"),
        "queue-reset": _switch("offer the reset of a single queue (on)"),
        "notification-data": _switch("offer notifications that carry a ring position (off)"),
        **dict(_rate_keys()),
        "faults": _DiskKey(_faults, "FILE", "inject the faults that this TOML file describes"),
    }
)
"""The keys, in the order of the help."""

_ALIASES: Final = MappingProxyType({"queues": "num-queues", "indirect": "indirect-desc"})
"""Other names for keys of ``--disk``."""
