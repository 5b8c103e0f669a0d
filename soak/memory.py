"""Guest memory for requests, which shows every byte that the device must not write."""

import time
from collections.abc import Sequence
from random import Random
from typing import Final

from pykvm.memory.ram import Ram
from pykvm.testing.fake_transport import FakeTransport
from pykvm.testing.ring_driver import Buffer

GUARD: Final = bytes.fromhex("c75a1ee92d054b83")
"""The bytes between buffers."""
FILL: Final = 0xAA
"""The initial content of device-writable buffers."""


class Slot:
    """One request's memory: buffers one after another, with guards around them.

    Only the device may write to it, and only to buffers that are lent to the device.
    """

    def __init__(self, ram: Ram, start: int, size: int) -> None:
        self.start = start
        self.size = size
        self._ram = ram
        self._content = bytes(size)
        self._new = bytearray()
        self._at = 0
        ram.write(start, self._content)

    def open(self) -> None:
        """Start a new request."""
        self.check()
        self._new = bytearray(GUARD * (self.size // len(GUARD)))
        self._at = len(GUARD)

    def put(self, data: bytes, gap: int, align: int) -> Buffer:
        """Add a device-readable buffer, ``gap`` bytes behind the last one, and aligned."""
        buffer = self._place(len(data), gap, align, False)
        at = buffer.address - self.start
        self._new[at : at + len(data)] = data
        return buffer

    def lend(self, length: int, gap: int, align: int) -> Buffer:
        """Add a device-writable buffer."""
        buffer = self._place(length, gap, align, True)
        at = buffer.address - self.start
        self._new[at : at + length] = bytes([FILL]) * length
        return buffer

    def _place(self, length: int, gap: int, align: int, writable: bool) -> Buffer:
        at = -(-(self._at + gap) // align) * align
        self._at = at + length
        if self._at + len(GUARD) > self.size:
            raise MemoryError("the slot is too small for the request")
        return Buffer(self.start + at, length, writable)

    def close(self) -> None:
        """Write the request to guest memory."""
        self._content = bytes(self._new)
        self._ram.write(self.start, self._content)

    def take_back(self, lent: Sequence[Buffer]) -> bytes:
        """The contents of ``lent``; AssertionError if the device wrote anywhere else."""
        now = self._ram.read(self.start, self.size)
        was = bytearray(self._content)
        stream = b""
        for buffer in lent:
            at = buffer.address - self.start
            was[at : at + buffer.length] = piece = now[at : at + buffer.length]
            stream += piece
        self._content = now
        assert was == now, f"the device wrote outside of its buffers: {_difference(was, now)}"
        return stream

    def abandon(self) -> None:
        """Accept the present content, because a reset came. It must not change any more."""
        self._content = self._ram.read(self.start, self.size)

    def check(self) -> None:
        """AssertionError if the device wrote to it while no buffer was lent."""
        now = self._ram.read(self.start, self.size)
        assert now == self._content, f"memory was written late: {_difference(self._content, now)}"


class Slots:
    """The free slots: small ones and large ones."""

    def __init__(
        self, ram: Ram, start: int, small: tuple[int, int], large: tuple[int, int]
    ) -> None:
        """``small`` and ``large``: the number of slots, and the bytes of each."""
        self._small: list[Slot] = []
        self._large: list[Slot] = []
        for free, (count, size) in ((self._small, small), (self._large, large)):
            for _ in range(count):
                free.append(Slot(ram, start, size))
                start += size
        self._border = small[1]

    def take(self, size: int, dice: Random) -> Slot | None:
        """A free slot for ``size`` bytes, or None."""
        free = self._small if size <= self._border else self._large
        if not free:
            return None
        index = dice.randrange(len(free))
        free[index], free[-1] = free[-1], free[index]
        slot = free.pop()
        slot.open()
        return slot

    def give(self, slot: Slot) -> None:
        """Free ``slot``."""
        (self._small if slot.size == self._border else self._large).append(slot)

    def check(self) -> None:
        """Check all free slots; see Slot."""
        for slot in (*self._small, *self._large):
            slot.check()


def check_quiet(transport: FakeTransport) -> None:
    """Notify a device at rest. AssertionError if it changes guest RAM."""
    before = bytes(transport.ram.bytes)
    for queue in range(len(transport.kicks)):
        transport.notify(queue)
    time.sleep(0.001)
    now = bytes(transport.ram.bytes)
    assert before == now, f"a device at rest wrote guest RAM: {_difference(before, now)}"


def _difference(was: bytes | bytearray, now: bytes) -> str:
    places = [at for at, (a, b) in enumerate(zip(was, now, strict=True)) if a != b]
    return f"{len(places)} bytes, from {places[0]:#x} to {places[-1]:#x} of its memory"
