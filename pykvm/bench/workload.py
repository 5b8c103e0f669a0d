"""What is measured: a closed loop of equal requests. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pykvm.errors import UsageError

DEPTHS: Final = (1, 8, 32, 128)
"""Requests in flight, for blocks of 4 KiB unless other depths are asked for."""
DEPTHS_LARGE: Final = (8,)
"""And for other blocks."""
DEPTH_MAX: Final = 128
BLOCK: Final = 4096
IN_FLIGHT_MAX: Final = 4 << 20
"""Bytes, so that the guest has room for them."""
DEFAULTS: Final = ("randread", "randwrite", "seqread", "seqwrite", "seqread-128k", "seqwrite-128k")
_KINDS: Final = MappingProxyType(
    # (random, write)
    {
        "randread": (True, False),
        "randwrite": (True, True),
        "seqread": (False, False),
        "seqwrite": (False, True),
    }
)


@dataclass(frozen=True, slots=True)
class Workload:
    """``depth`` requests of ``block`` bytes are in flight until the time is up."""

    kind: str
    block: int
    depth: int

    @property
    def random(self) -> bool:
        """At random multiples of ``block``, else one after the other."""
        return _KINDS[self.kind][0]

    @property
    def write(self) -> bool:
        """Writes, else reads."""
        return _KINDS[self.kind][1]

    @property
    def family(self) -> str:
        """The workload without its depth, such as ``randread 4 KiB``."""
        size = self.block
        return f"{self.kind} {size >> 10} KiB" if size % 1024 == 0 else f"{self.kind} {size} B"


def parse_workloads(names: Iterable[str], depths: Sequence[int] = ()) -> list[Workload]:
    """Every workload of ``names``, each with every one of ``depths`` (default: what suits it).

    A name is ``randread``, ``randwrite``, ``seqread`` or ``seqwrite``, and
    for blocks of another size than 4 KiB the size: ``seqread-128k``. UsageError.
    """
    found: list[Workload] = []
    for name in names:
        kind, block = _parse_name(name)
        for depth in depths or (DEPTHS if block == BLOCK else DEPTHS_LARGE):
            if not 1 <= depth <= DEPTH_MAX:
                raise UsageError(f"the depth cannot be {depth}", f"use 1 to {DEPTH_MAX}")
            if block * depth > IN_FLIGHT_MAX:
                raise UsageError(
                    f"'{name}' at depth {depth} has more than {IN_FLIGHT_MAX >> 20} MiB in flight",
                    "use smaller blocks or a lower depth",
                )
            workload = Workload(kind, block, depth)
            if workload not in found:
                found.append(workload)
    return found


def _parse_name(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z]+)(?:-([0-9]{1,5})(k?))?", name)
    if not match or match[1] not in _KINDS:
        raise UsageError(
            f"there is no workload '{name}'", f"use {', '.join(_KINDS)} or {name_hint()}"
        )
    block = int(match[2]) << (10 if match[3] else 0) if match[2] else BLOCK
    if not block or block % 512 or block > 1 << 20:
        raise UsageError(
            f"the blocks of '{name}' cannot be", "use a multiple of 512 bytes up to 1024k"
        )
    return match[1], block


def name_hint() -> str:
    """A name with a block size, for messages."""
    return DEFAULTS[-1]
