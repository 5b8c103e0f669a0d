"""Guest memory for requests, where everything that the device must not write is known."""

import time
from collections.abc import Sequence
from random import Random
from typing import Final

from pykvm.memory.ram import Ram
from pykvm.testing.fake_transport import FakeTransport
from pykvm.testing.ring_driver import Buffer

GUARD: Final = bytes.fromhex("c75a1ee92d054b83")
"""What is between buffers."""
FILL: Final = 0xAA
"""What buffers hold that the device may write."""


class Slot:
    """One request's memory: buffers one after another, with guards around them.

    Nobody but the device may write it, and that only buffers that are lent to it.
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
        """Begin anew."""
        self.check()
        self._new = bytearray(GUARD * (self.size // len(GUARD)))
        self._at = len(GUARD)

    def put(self, data: bytes, gap: int, align: int) -> Buffer:
        """A device-readable buffer, ``gap`` bytes after the last one and aligned."""
        buffer = self._place(len(data), gap, align, False)
        at = buffer.address - self.start
        self._new[at : at + len(data)] = data
        return buffer

    def lend(self, length: int, gap: int, align: int) -> Buffer:
        """A device-writable buffer."""
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
        """Let memory hold it."""
        self._content = bytes(self._new)
        self._ram.write(self.start, self._content)

    def take_back(self, lent: Sequence[Buffer]) -> bytes:
        """What ``lent`` hold; AssertionError if anything else was written."""
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
        """A reset: what it holds now, it holds for good."""
        self._content = self._ram.read(self.start, self.size)

    def check(self) -> None:
        """AssertionError if it was written while nothing of it was lent."""
        now = self._ram.read(self.start, self.size)
        assert now == self._content, f"memory was written late: {_difference(self._content, now)}"


class Slots:
    """Those that are free, the small ones and the large ones."""

    def __init__(
        self, ram: Ram, start: int, small: tuple[int, int], large: tuple[int, int]
    ) -> None:
        """``small`` and ``large``: how many, and how many bytes each has."""
        self._small: list[Slot] = []
        self._large: list[Slot] = []
        for free, (count, size) in ((self._small, small), (self._large, large)):
            for _ in range(count):
                free.append(Slot(ram, start, size))
                start += size
        self._border = small[1]

    def take(self, size: int, dice: Random) -> Slot | None:
        """A slot for ``size`` bytes, if there is one."""
        free = self._small if size <= self._border else self._large
        if not free:
            return None
        index = dice.randrange(len(free))
        free[index], free[-1] = free[-1], free[index]
        slot = free.pop()
        slot.open()
        return slot

    def give(self, slot: Slot) -> None:
        """``slot`` is free."""
        (self._small if slot.size == self._border else self._large).append(slot)

    def check(self) -> None:
        """See Slot, for all that are free."""
        for slot in (*self._small, *self._large):
            slot.check()


def check_quiet(transport: FakeTransport) -> None:
    """AssertionError if anything happens in guest RAM, though the device is notified."""
    before = bytes(transport.ram.bytes)
    for queue in range(len(transport.kicks)):
        transport.notify(queue)
    time.sleep(0.001)
    now = bytes(transport.ram.bytes)
    assert before == now, f"a device at rest wrote guest RAM: {_difference(before, now)}"


def _difference(was: bytes | bytearray, now: bytes) -> str:
    places = [at for at, (a, b) in enumerate(zip(was, now, strict=True)) if a != b]
    return f"{len(places)} bytes, from {places[0]:#x} to {places[-1]:#x} of its memory"
