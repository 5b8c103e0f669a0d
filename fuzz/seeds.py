"""Writes the corpus's scripts: ``python -m fuzz.seeds``.

Each script is one action of an honest or hostile driver, and libFuzzer combines them. The
other files of the corpus were found by fuzzing, or are input for the parsers.
"""

from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Any

from fuzz.play import DISK, KINDS, PCI, script

CORPUS = Path(__file__).parent / "corpus"
Played = tuple[Any, ...]
"""A step's name and its fields."""

SPLIT, PACKED, IN_ORDER, TWO_QUEUES = 0, 1, 2, 64
STOP_ON_ERRORS = 2 << 2 | 2 << 4
ALL = 0xFF
"""Accept all offered features."""
READ, WRITE, FLUSH, GET_ID, LIFETIME, DISCARD, ZEROES = range(7)
SECTORS, OUT, WITH_STATUS = 16, 32, 64
"""Framing: data in sectors, device-readable data, data and status in one descriptor."""
NEXT, DEVICE_WRITES, INDIRECT, AVAIL = 1, 2, 4, 1 << 7
DESC, HEAP, TABLE, NOWHERE, NEAR_THE_END = 0x1000, 0x4000, 0x5000, 0xF000, 0xEFF0
BYTE, WORD, LONG, QUAD = range(4)
"""Widths of accesses."""

START, GO, TURN, COLLECT = ("start", ALL, 1), ("submit", 0), ("serve",), ("collect", 0)


def disk() -> Iterator[tuple[str, bytes]]:
    """Rings and requests."""
    for name, ring in (("split", SPLIT), ("packed", PACKED), ("in-order", PACKED | IN_ORDER)):
        for kind in range(len(KINDS)):
            yield f"{name}-{kind}", script(DISK, bytes([ring, 128]), *one_request(kind))
        for merge in range(4):
            yield f"{name}-batch-{merge}", script(DISK, bytes([ring | TWO_QUEUES, merge]), *batch())
        for sector in (62, 63, 64, 0xF0, 0xF1, 0xF2, 0xF3, 0xF4):
            asked = ("request", 0, READ, sector, SECTORS, b"xy")
            yield f"{name}-at-{sector}", script(DISK, bytes([ring, 0]), START, asked, GO, TURN)
        for segments, length in ((1024, 2), (1026, 1), (512, 64), (1, 0)):
            table = (START, ("errors", 4, 3), ("table", 0, segments, length, 0), GO, TURN, COLLECT)
            yield f"{name}-table-{segments}", script(DISK, bytes([ring, 3]), *table)
        short = (START, ("errors", 4, 7), *reads(), GO, TURN, COLLECT)
        yield f"{name}-short", script(DISK, bytes([ring, 0]), *short)
        choice = bytes([ring | TWO_QUEUES, STOP_ON_ERRORS])
        yield f"{name}-life", script(DISK, choice, *life())
    for name, slots in chains():
        split = [("descriptor", i, *slot) for i, slot in enumerate(slots)]
        offered = (("start", ALL & ~PACKED, 1), *split, ("offer", 0, 0, 0), GO, TURN, COLLECT)
        yield f"chain-{name}", script(DISK, bytes([SPLIT, 0]), *offered)
        packed = [
            ("descriptor", i, place, length, i, flags | AVAIL)
            for i, (place, length, flags, _) in enumerate(slots)
        ]
        kick = ("notify", 0, WORD, 0)
        yield f"list-{name}", script(DISK, bytes([PACKED, 0]), START, *packed, kick, TURN, COLLECT)
    for index in (1, 8, 9, 0x8000, 0xFFFF):
        jump = (START, ("offer", 0, 3, index), GO, TURN, COLLECT)
        yield f"index-{index}", script(DISK, bytes([SPLIT, 0]), *jump)
    twice = (START, ("offer", 0, 0, 0), ("offer", 0, 0, 0), GO, TURN, COLLECT)
    yield "head-twice", script(DISK, bytes([SPLIT, 0]), *twice)
    for head in (8, 16, 0x7FFF, 0xFFFF):
        beyond = (START, ("offer", 0, head, 0), GO, TURN, COLLECT)
        yield f"head-{head}", script(DISK, bytes([SPLIT, 0]), *beyond)


def one_request(kind: int) -> list[Played]:
    """A request of KINDS[kind]."""
    data, framing = b"\x55" * 2, 0
    if kind in (DISCARD, ZEROES):
        data = pack("<QII", 1, 2, 0)
    if kind in (READ, WRITE):
        framing |= SECTORS
    if kind in (WRITE, DISCARD, ZEROES):
        framing |= OUT
    return [START, ("request", 0, kind, 3, framing, data), GO, TURN, COLLECT]


def reads() -> list[Played]:
    """Three reads of consecutive sectors."""
    return [("request", 0, READ, at, SECTORS, b"xy") for at in (0, 2, 4)]


def batch() -> list[Played]:
    """Requests that may merge, in two queues."""
    framed = ("request", 0, READ, 6, SECTORS | WITH_STATUS | 7, b"xy")
    writes = [("request", 1, WRITE, at, SECTORS | OUT, b"xy") for at in (9, 4, 6)]
    flush = ("request", 0, FLUSH, 0, 0, b"")
    return [START, *reads(), framed, flush, GO, *writes, ("submit", 1), TURN, COLLECT]


def life() -> list[Played]:
    """An error that stops the machine, a resize, a queue reset, a reset."""
    stopped = [("errors", 1, 2), GO, TURN, ("pause", 1), ("resize", 9), ("pause", 0), TURN]
    renewed = [("renew", 0), *reads(), GO, ("cache", 32, 0), ("meanwhile", HEAP, b"\xff" * 16)]
    return [START, *reads(), *stopped, *renewed, TURN, ("reset",), ("start", 0, 0)]


def chains() -> Iterator[tuple[str, list[tuple[int, int, int, int]]]]:
    """Chains that no driver should make: (place, length, flags, next) of each descriptor."""
    header, data, status = (HEAP, 16), (HEAP + 64, 512), (HEAP + 600, 1)
    writes = NEXT | DEVICE_WRITES
    good = [(*header, NEXT, 1), (*data, writes, 2), (*status, DEVICE_WRITES, 0)]
    yield "good", good
    yield "loop", [good[0], good[1], (*status, writes, 0)]
    yield "order", [(*status, writes, 1), (*header, NEXT, 2), good[2]]
    yield "nowhere", [good[0], (NOWHERE, 512, writes, 2), good[2]]
    yield "wrap", [good[0], (NEAR_THE_END, 512, writes, 2), good[2]]
    yield "huge", [good[0], (HEAP, 2**32 - 1, writes, 2), (HEAP, 2**32 - 1, writes, 3), good[2]]
    yield "empty", [good[0], (HEAP, 0, writes, 2), good[2]]
    yield "no-status", [(*header, 0, 0)]
    yield "own-ring", [good[0], (DESC, 512, writes, 2), good[2]]
    yield "next", [(*header, NEXT, 99)]
    yield "table", [(TABLE, 48, INDIRECT, 0)]
    yield "table-length", [(TABLE, 40, INDIRECT, 0)]
    yield "table-next", [(TABLE, 48, INDIRECT | NEXT, 1), good[2]]


def pci() -> Iterator[tuple[str, bytes]]:
    """Registers, configuration space, MSI-X."""
    for name, steps in {**registers(), **configuration()}.items():
        yield name, script(PCI, bytes([TWO_QUEUES, 0]), *steps)


READ_ONE = ("request", 0, READ, 1, SECTORS, b"x")
WORK = (READ_ONE, GO, TURN)


def registers() -> dict[str, list[Played]]:
    """The common configuration (§4.1.4.3), the device's, notifications, the ISR status."""
    status, features_ok, driver_ok = 0x14, 11, 15
    begun = [("field", status, BYTE, value) for value in (1, 3)]
    begun += [("field", 8, LONG, 1), ("field", 12, LONG, 1), ("field", status, BYTE, features_ok)]
    enable, go = ("field", 0x1C, WORD, 1), ("field", status, BYTE, driver_ok)
    quietly = ("submit", 0x80)
    return {
        "read": [START, *WORK],
        "fields": [("field", offset, LONG, 0xFFFF_FFFF) for offset in range(0, 0x40, 4)],
        "rings": [*begun, ("ring", 0, 0, NOWHERE), enable, go, TURN],
        "renew": [START, ("renew", 0), *WORK, ("reset",), ("renew", 0)],
        "device": [START, *(("bar", 0x2000 + at, at, 2**64 - 1) for at in (0, 32, 60, 71, 72))],
        "isr": [START, *WORK, ("bar", 0x1000, BYTE, 0), ("bar", 0x1001, WORD, 0)],
        "doorbell": [START, TURN, READ_ONE, quietly, ("mmio", 0x3000, WORD, 0), TURN],
        "kicks": [("notify", 0, WORD, 0), START, *(("notify", i, i, i) for i in range(9)), TURN],
        "window": [
            START,
            *(("window", bar, at, 4, 1) for bar in (0, 1, 2) for at in (0x14, 0x3000, 0x3FFE)),
        ],
    }


def configuration() -> dict[str, list[Played]]:
    """Configuration space and the MSI-X table."""
    places = (2**32 - 1, 0xD000_0000, 0xD000_0000, 0, 0xFEC0_0000, 0xE000_4000)
    command, msix = 0x04, 0x42
    return {
        "bars": [("config", 0x10 + 4 * (i % 2), LONG, at) for i, at in enumerate(places)],
        "command": [START, ("config", command, WORD, 0), ("config", command, WORD, 0x406), *WORK],
        "ports": [("port", port, size, 0x8000_1010) for port in range(8) for size in range(3)],
        "msix": [
            ("config", msix, WORD, 0x8000),
            *(("msix", at, LONG, 0xFEE0_0000) for at in range(0, 48, 4)),
            START,
            *(("field", at, WORD, 1) for at in (0x10, 0x1A)),
            *WORK,
            ("config", msix, WORD, 0xC000),
            *WORK,
            ("msix", 0x800, QUAD, 1),
            ("config", msix, WORD, 0),
        ],
    }


SEEDS = {"disk": disk, "pci": pci}


def main() -> None:
    """Write all scripts to the corpus."""
    for target, made in SEEDS.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in made():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
