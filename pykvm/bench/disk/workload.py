"""Workloads: closed loops of equal requests. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Final

from pykvm.errors import UsageError

DEPTHS: Final = (1, 8, 32, 128)
"""The default numbers of requests in flight for blocks of 4 KiB."""
DEPTHS_LARGE: Final = (8,)
"""The default for blocks of other sizes."""
DEPTH_MAX: Final = 128
BLOCK: Final = 4096
BLOCK_MAX: Final = 1 << 20
IN_FLIGHT_MAX: Final = 8 << 20
"""In bytes. The guest's arena has room for no more."""
SEGMENTS_MAX: Final = 126
"""The bare guest's queues have 128 descriptors, two of which are for the header and the status."""
QUEUES_MAX: Final = 4
"""The bare guest's limit."""
VMS_MAX: Final = 16
EXITS: Final = "exits"
_SHIFTS: Final = MappingProxyType({"": 0, "k": 10, "m": 20})
DEFAULTS: Final = (
    *("randread", "randwrite", "seqread", "seqwrite"),
    *("seqread-128k", "seqwrite-128k", "seqread-1m", "seqwrite-1m"),
)
_KINDS: Final = MappingProxyType(
    # (random, write)
    {
        "randread": (True, False),
        "randwrite": (True, True),
        "seqread": (False, False),
        "seqwrite": (False, True),
        EXITS: (False, False),
    }
)


@dataclass(frozen=True, slots=True)
class Workload:
    """``depth`` requests of ``block`` bytes are in flight on each queue until the time is up.

    The data of each request has ``segments`` descriptors. ``vms`` VMs side by side do the same,
    each on ``queues`` queues of its own disk. If ``kind`` is EXITS there are no requests
    (``depth`` is 0), and the vCPU reads a register of the device again and again.
    """

    kind: str
    block: int
    depth: int
    segments: int = 1
    queues: int = 1
    vms: int = 1

    @property
    def random(self) -> bool:
        """True if requests go to random multiples of ``block``; else each follows the last one."""
        return _KINDS[self.kind][0]

    @property
    def write(self) -> bool:
        """True for writes, False for reads."""
        return _KINDS[self.kind][1]

    @property
    def alone(self) -> bool:
        """True if one VM sends requests with one segment on one queue, as fio can."""
        return bool(self.depth) and self.segments == self.queues == self.vms == 1

    @property
    def in_flight(self) -> int:
        """The bytes in flight in each VM."""
        return self.block * self.depth * self.queues

    @property
    def family(self) -> str:
        """The workload without its depth, such as ``randread 4 KiB, 2 queues``."""
        size = self.block
        block = f"{size >> 10} KiB" if size % 1024 == 0 else f"{size} B"
        if size % (1 << 20) == 0:
            block = f"{size >> 20} MiB"
        counts = (("segments", self.segments), ("queues", self.queues), ("VMs", self.vms))
        more = [f"{count} {name}" for name, count in counts if count > 1]
        return ", ".join([f"{self.kind} {block}" if self.depth else self.kind, *more])


@dataclass(frozen=True, slots=True)
class Shapes:
    """The numbers with which each workload is carried out. No ``depths``: the block's default."""

    depths: Sequence[int] = ()
    segments: Sequence[int] = (1,)
    queues: Sequence[int] = (1,)
    vms: Sequence[int] = (1,)


def parse_workloads(
    names: Sequence[str], shapes: Shapes = Shapes(), skip_large: bool = False
) -> list[Workload]:
    """Every workload of ``names`` in each of ``shapes``; UsageError.

    A name is ``randread``, ``randwrite``, ``seqread`` or ``seqwrite``, for blocks of 4 KiB; such a
    word with a block size, as in ``seqread-128k``; or EXITS. A workload with more than
    IN_FLIGHT_MAX in flight is an error, or left out with ``skip_large``. Workloads for the same
    number of VMs and queues are adjacent.
    """
    found: dict[Workload, None] = {}
    for vms, queues, name in product(shapes.vms, shapes.queues, names):
        if name == EXITS:
            found[Workload(EXITS, BLOCK, 0, queues=queues, vms=vms)] = None
            continue
        kind, block = _parse_name(name)
        depths = shapes.depths or (DEPTHS if block == BLOCK else DEPTHS_LARGE)
        for segments, depth in product(shapes.segments, depths):
            workload = Workload(kind, block, depth, segments, queues, vms)
            _check_depth(depth)
            if skip_large and workload.in_flight > IN_FLIGHT_MAX:
                continue
            _check(name, workload)
            found[workload] = None
    return list(found)


def _check_depth(depth: int) -> None:
    if not 1 <= depth <= DEPTH_MAX:
        raise UsageError(f"the depth cannot be {depth}", f"use 1 to {DEPTH_MAX}")


def _check(name: str, workload: Workload) -> None:
    if workload.in_flight > IN_FLIGHT_MAX:
        raise UsageError(
            f"'{name}' at depth {workload.depth} has more than {IN_FLIGHT_MAX >> 20} MiB in flight",
            "use smaller blocks, a lower depth or fewer queues",
        )


def _parse_name(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z]+)(?:-([0-9]{1,5})([km]?))?", name)
    if not match or match[1] not in _KINDS or match[1] == EXITS:
        raise UsageError(
            f"there is no workload '{name}'", f"use {', '.join(_KINDS)} or {name_hint()}"
        )
    block = int(match[2]) << _SHIFTS[match[3]] if match[2] else BLOCK
    if not block or block % 512 or block > BLOCK_MAX:
        raise UsageError(
            f"the block size of '{name}' is wrong", "use a multiple of 512 bytes up to 1m"
        )
    return match[1], block


def name_hint() -> str:
    """An example of a name with a block size, for messages."""
    return "seqread-128k"
