"""Guest memory that a script uses: the arena, and the rings and descriptor chains in it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from pykvm.bare import layout


@dataclass(frozen=True, slots=True)
class Segment:
    """One descriptor of a chain: guest-physical ``address``, ``length`` in bytes."""

    address: int
    length: int
    device_writes: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """A descriptor chain to post. ``indirect`` is the address for its table, 0 for no table."""

    tag: int
    segments: Sequence[Segment]
    indirect: int = 0

    def encode(self) -> bytes:
        """``struct chain`` and its segments."""
        head = layout.CHAIN.pack(self.indirect, self.tag, len(self.segments))
        return head + b"".join(
            layout.SEGMENT.pack(s.address, s.length, 2 * s.device_writes) for s in self.segments
        )


@dataclass(frozen=True, slots=True)
class Ring:
    """Guest-physical addresses of the three parts of a split virtqueue."""

    descriptors: int
    available: int
    used: int


class Arena:
    """Allocates zeroed guest memory for a script. No memory is ever freed."""

    def __init__(self) -> None:
        self._next = layout.ARENA_BASE

    def allocate(self, size: int, align: int = 16) -> int:
        """The guest-physical address of ``size`` bytes."""
        address = -(-self._next // align) * align
        if address + size > layout.ARENA_BASE + layout.ARENA_SIZE:
            raise ValueError(f"the arena has fewer than {size} bytes left")
        self._next = address + size
        return address

    def ring(self, size: int) -> Ring:
        """Memory for a virtqueue of ``size`` (virtio 1.2 §2.7)."""
        return Ring(
            self.allocate(16 * size, 16),
            self.allocate(6 + 2 * size, 2),
            self.allocate(6 + 8 * size, 4),
        )
