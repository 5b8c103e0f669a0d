"""Guest RAM as bytes: address translation and bounds-checked access.

Pure: works on any writable buffer, so tests run the parsers of rings and requests
on a bytearray. Guest-physical addresses are untrusted. All of them go through
:meth:`Ram.translate`, which returns -1 for a range that does not lie within one
region.
"""

from collections.abc import Sequence

from pykvm.lean.records import record


class GuestAddressError(LookupError):
    """A guest-physical range does not lie within guest RAM."""


@record
class Region:
    """Guest-physical ``[start, start + size)`` is at ``offset`` in the buffer. In bytes."""

    start: int
    size: int
    offset: int

    @property
    def end(self) -> int:
        """The first address after the region."""
        return self.start + self.size


class Ram:
    """A buffer with guest RAM, accessed by guest-physical addresses.

    ``bytes`` is the whole buffer as a memoryview of unsigned bytes, indexed
    by buffer offset; ``u16``, ``u32`` and ``u64`` are the same memory cast to
    native little-endian words (index = offset // width). An aligned access
    through a cast is one machine access, as ring indices need.
    """

    def __init__(self, buffer: bytearray | memoryview, regions: Sequence[Region]) -> None:
        view = memoryview(buffer).cast("B")
        if len(view) % 8:
            raise ValueError("the buffer's size must be a multiple of 8 bytes")
        if view.readonly:
            raise ValueError("the buffer must be writable")
        for region in regions:
            if region.size <= 0 or region.offset < 0 or region.offset + region.size > len(view):
                raise ValueError(f"region outside the buffer: {region}")
        self.regions = tuple(regions)
        self.bytes = view
        self.u16 = view.cast("H")
        self.u32 = view.cast("I")
        self.u64 = view.cast("Q")

    @classmethod
    def flat(cls, size: int, start: int = 0) -> "Ram":
        """RAM of ``size`` zero bytes at guest-physical ``start``, for tests."""
        return cls(bytearray(size), [Region(start, size, 0)])

    def translate(self, address: int, length: int) -> int:
        """Buffer offset of guest-physical ``[address, address + length)``.

        -1 if any byte of the range lies outside RAM, or if ``length`` is
        negative. A range that leaves its region counts as outside, because
        regions are not neighbours in guest-physical space. A length
        of 0 is inside if ``address`` is within a region or at its end.
        """
        if length < 0:
            return -1
        for region in self.regions:
            into = address - region.start
            if 0 <= into <= region.size - length:
                return region.offset + into
        return -1

    def _offset(self, address: int, length: int) -> int:
        offset = self.translate(address, length)
        if offset < 0:
            raise GuestAddressError(f"{address:#x}+{length:#x} is not guest RAM")
        return offset

    def read(self, address: int, length: int) -> bytes:
        """A copy of ``length`` bytes at guest-physical ``address``; GuestAddressError."""
        offset = self._offset(address, length)
        return bytes(self.bytes[offset : offset + length])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at guest-physical ``address``, all of it or GuestAddressError."""
        offset = self._offset(address, len(data))
        self.bytes[offset : offset + len(data)] = data

    def release(self) -> None:
        """Drop every view of the buffer, so that its owner can unmap it."""
        for view in (self.u16, self.u32, self.u64, self.bytes):
            view.release()
