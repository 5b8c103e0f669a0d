"""Parses a descriptor chain into a request (virtio 1.2 §5.2.6). Pure.

A request is one run of device-readable bytes and one run of device-writable
bytes. The readable run holds the header (16 bytes), then the data of a write.
The writable run holds the data of a read, then the status byte. The cuts
between descriptors mean nothing (§2.7.4.1): the header may be spread over many
descriptors or share one with data, and the status may share one with data.

The parser copies the header once and never reads it again. It copies segments
or leaves them alone, and never trims them in place. So a driver that changes
memory under the device changes its own data and nothing else.

The answer to a request that cannot be carried out:

=============================================================  ==================
no device-writable byte, or the last one is not guest RAM      used length 0
(there is no place for a status)
-------------------------------------------------------------  ------------------
fewer than 16 device-readable bytes; a descriptor of the       VIRTIO_BLK_S_IOERR
header or of the data is not guest RAM; sector or data not a
multiple of the block size; sectors outside the disk; OUT on a
read-only disk; readable after writable descriptors; more than
2^32 bytes; data in the wrong direction; FLUSH with data;
GET_ID or GET_LIFETIME without room for any of the answer
-------------------------------------------------------------  ------------------
an unknown type, such as the legacy SCSI and barrier types     VIRTIO_BLK_S_UNSUPP
(all 32 bits of a type are compared); a type whose feature was
not negotiated (DISCARD, WRITE_ZEROES, GET_LIFETIME); segments
of DISCARD or WRITE_ZEROES with an unknown flag, or of DISCARD
with unmap
=============================================================  ==================

The segments of DISCARD and WRITE_ZEROES are ranges of the disk. They are
copied once. The answer is VIRTIO_BLK_S_IOERR if there are no segments, more
than MAX_RANGES, or a part of one; and if a range has more than MAX_SECTORS,
lies outside the disk or does not consist of whole blocks. A range without
sectors is valid and does nothing. Ranges may overlap.

The used length counts the bytes written without a gap from the first
device-writable byte on (§2.7.8.2), and no byte more: otherwise a driver would
take the old content of its memory for data. So the status, the last byte,
counts only if all data before it were written, or if there are none. A refused
request for data has used length 0.

Nothing of a refused request is executed. IN and OUT without data succeed if
the sector is not past the end. A FLUSH is accepted on read-only disks, and its
sector is ignored. Only IN, GET_ID and GET_LIFETIME may have device-writable
data, and only OUT, DISCARD and WRITE_ZEROES may have device-readable data:
the device would not move any other. GET_ID fills as much of its 20 bytes as
fits, GET_LIFETIME as much of its 6.
"""

from struct import Struct
from typing import Final, NamedTuple

from pykvm.devices.virtio_blk.constants import (
    HEADER_SIZE,
    SECTOR_SHIFT,
    SECTOR_SIZE,
    VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_GET_LIFETIME,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
)
from pykvm.devices.virtio_blk.core.ranges import MAX_RANGES, RANGE_SIZE, read_ranges
from pykvm.devices.virtio_blk.core.request import TYPE_UNREADABLE, Request
from pykvm.hot.words import U64, Bytes, Words32, Words64, longs
from pykvm.memory.ram import Ram
from pykvm.virtio.chain import DescriptorChain

_HEADER = Struct("<IIQ")


class Accepted(NamedTuple):
    """The request types that a parser accepts besides IN, OUT, FLUSH and GET_ID.

    ``discards`` and ``zeroes``: DISCARD and WRITE_ZEROES were negotiated.
    ``unmaps``: both may free space; otherwise a discard does nothing.
    ``lifetime``: the answer to GET_LIFETIME; empty if it was not negotiated.
    """

    discards: bool = False
    zeroes: bool = False
    unmaps: bool = True
    lifetime: bytes = b""


NOTHING_MORE: Final = Accepted()


class RequestParser:
    """Parses and validates the requests of one disk.

    ``capacity`` is in sectors of 512 bytes and may change between requests.
    """

    capacity: U64
    _readonly: bool
    _id: bytes
    _accepted: Accepted
    _block_mask: int
    _sector_mask: U64
    _bytes: Bytes
    _words32: Words32
    _words64: Words64

    def __init__(
        self,
        ram: Ram,
        capacity: int,
        readonly: bool,
        serial: bytes,
        block_size: int = SECTOR_SIZE,
        accepted: Accepted = NOTHING_MORE,
    ) -> None:
        """``serial`` is the answer to GET_ID, at most 20 bytes; ``block_size`` a power of 2."""
        assert len(serial) <= VIRTIO_BLK_ID_BYTES, "the caller checks the serial"
        self.capacity = capacity
        self._readonly = readonly
        self._id = serial.ljust(VIRTIO_BLK_ID_BYTES, b"\0")
        self._accepted = accepted
        self._block_mask = block_size - 1
        self._sector_mask = (block_size >> SECTOR_SHIFT) - 1
        self._bytes = ram.bytes
        self._words32 = ram.u32
        self._words64 = ram.u64

    def parse(self, chain: DescriptorChain, request: Request) -> bool:
        """Fill in ``request`` from ``chain``, which has the same head.

        True: the caller executes the request. False: the request has its
        answer in ``status`` and ``used_length``, and the caller writes the
        status byte, unless ``status_offset`` is -1.
        """
        sector: U64
        readable = chain.readable
        in_last = readable + chain.writable - 1
        request.type = TYPE_UNREADABLE
        request.error = 0
        request.used_length = 0
        if in_last < readable or chain.offsets[in_last] < 0:
            request.status_offset = -1
            return self._refuse(request, VIRTIO_BLK_S_IOERR)
        request.status_offset = chain.offsets[in_last] + chain.lengths[in_last] - 1
        if chain.writable_bytes == 1:
            request.used_length = 1
        if chain.error or chain.readable_bytes < HEADER_SIZE:
            return self._refuse(request, VIRTIO_BLK_S_IOERR)
        if chain.lengths[0] == HEADER_SIZE and chain.lengths[in_last] == 1:
            header = chain.offsets[0]
            if header < 0:
                return self._refuse(request, VIRTIO_BLK_S_IOERR)
            if header & 7:
                kind, _, sector = _HEADER.unpack(self._bytes[header : header + HEADER_SIZE])
            else:
                kind = self._words32[header >> 2]
                sector = self._words64[(header >> 3) + 1]
            out_first = 1
            out_last = readable
            if request.chain is not chain or request.room != chain.room:
                # Not each time: a view of memory costs something when compiled.
                request.borrow(chain)
        else:
            copy = self._reframe(chain, request)
            if len(copy) < HEADER_SIZE:
                return self._refuse(request, VIRTIO_BLK_S_IOERR)
            kind, _, sector = _HEADER.unpack(copy)
            in_last = len(request.offsets)
            out_first = 0
            out_last = request.last
        request.type = kind
        request.first = out_last
        request.last = in_last
        if kind == VIRTIO_BLK_T_IN:
            refused = chain.readable_bytes != HEADER_SIZE
            length = chain.writable_bytes - 1
        elif kind == VIRTIO_BLK_T_OUT:
            request.first = out_first
            request.last = out_last
            refused = self._readonly or chain.writable_bytes != 1
            length = chain.readable_bytes - HEADER_SIZE
        else:
            length = chain.readable_bytes - HEADER_SIZE
            return self._other(request, out_first, length, chain.writable_bytes - 1)
        if refused:
            return self._refuse(request, VIRTIO_BLK_S_IOERR)
        return self._accept(request, sector, length)

    def _accept(self, request: Request, sector: U64, length: int) -> bool:
        capacity: U64 = self.capacity
        # Subtract: an addition could overflow in compiled form.
        if (
            length & self._block_mask
            or sector & self._sector_mask
            or sector > capacity
            or length >> SECTOR_SHIFT > capacity - sector
        ):
            return self._refuse(request, VIRTIO_BLK_S_IOERR)
        for index in range(request.first, request.last):
            if request.offsets[index] < 0:
                return self._refuse(request, VIRTIO_BLK_S_IOERR)
        request.sector = sector
        request.length = length
        if length == 0:
            return self._succeed(request)
        return True

    def _other(self, request: Request, out_first: int, length: int, room: int) -> bool:
        """Accept, answer or refuse a request that is neither IN nor OUT.

        It has ``length`` bytes of readable data, from segment ``out_first`` on,
        and ``room`` bytes of writable data.
        """
        kind = request.type
        if kind in (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES):
            request.last = request.first
            request.first = out_first
            return self._ranges(request, length, room)
        if kind == VIRTIO_BLK_T_FLUSH:
            if length or room:
                return self._refuse(request, VIRTIO_BLK_S_IOERR)
            request.sector = 0
            request.length = 0
            request.last = request.first
            return True
        if kind == VIRTIO_BLK_T_GET_ID:
            answer = self._id
        elif kind == VIRTIO_BLK_T_GET_LIFETIME and self._accepted.lifetime:
            answer = self._accepted.lifetime
        else:
            return self._refuse(request, VIRTIO_BLK_S_UNSUPP)
        if length or not room:
            return self._refuse(request, VIRTIO_BLK_S_IOERR)
        return self._reply(request, answer, room)

    def _ranges(self, request: Request, length: int, room: int) -> bool:
        """Accept or refuse a DISCARD or WRITE_ZEROES with ``length`` bytes of segments."""
        accepted = self._accepted
        discard = request.type == VIRTIO_BLK_T_DISCARD
        if not (accepted.discards if discard else accepted.zeroes):
            return self._refuse(request, VIRTIO_BLK_S_UNSUPP)
        if room or length % RANGE_SIZE or not 0 < length <= MAX_RANGES * RANGE_SIZE:
            return self._refuse(request, VIRTIO_BLK_S_IOERR)
        data = self._copy(request)
        if len(data) < length:
            return self._refuse(request, VIRTIO_BLK_S_IOERR)
        block = self._sector_mask + 1
        ranges = read_ranges(data, discard, accepted.unmaps, self.capacity, block)
        if ranges.status != VIRTIO_BLK_S_OK:
            return self._refuse(request, ranges.status)
        request.first = request.last = 0
        request.ranges = extents = ranges.extents
        request.sector = extents[0] >> SECTOR_SHIFT if ranges.length else 0
        request.length = ranges.length
        if not ranges.length or (discard and not accepted.unmaps):
            return self._succeed(request)
        return True

    def _copy(self, request: Request) -> bytes:
        """The request's data, up to the first segment that is not in guest RAM."""
        data = b""
        for index in range(request.first, request.last):
            offset = request.offsets[index]
            if offset < 0:
                break
            data += bytes(self._bytes[offset : offset + request.lengths[index]])
        return data

    def _reply(self, request: Request, answer: bytes, room: int) -> bool:
        """Write as much of ``answer`` as fits into the writable data, of ``room`` bytes."""
        rest = answer
        for index in range(request.first, request.last):
            offset = request.offsets[index]
            if offset < 0:
                return self._refuse(request, VIRTIO_BLK_S_IOERR)
            piece = rest[: request.lengths[index]]
            for place in range(len(piece)):
                self._bytes[offset + place] = piece[place]
            rest = rest[len(piece) :]
            if not rest:
                break
        written = len(answer) - len(rest)
        request.used_length = written + 1 if written == room else written
        return self._succeed(request)

    def _reframe(self, chain: DescriptorChain, request: Request) -> bytes:
        """Give ``request`` segments of its own, cut between header, data and status.

        Returns the header, or fewer bytes if a part of it is not in guest RAM.
        The segments before ``request.last`` are readable, the others writable.
        """
        offsets: list[int] = []
        lengths: list[int] = []
        header = b""
        for index in range(chain.readable):
            offset, length = chain.offsets[index], chain.lengths[index]
            taken = min(length, HEADER_SIZE - len(header))
            if taken:
                if offset < 0:
                    return b""
                header += bytes(self._bytes[offset : offset + taken])
            if length > taken:
                offsets.append(offset + taken if offset >= 0 else -1)
                lengths.append(length - taken)
        request.last = len(offsets)
        for index in range(chain.readable, chain.readable + chain.writable):
            offsets.append(chain.offsets[index])
            lengths.append(chain.lengths[index])
        lengths[-1] -= 1
        if not lengths[-1]:
            del offsets[-1], lengths[-1]
        request.keep(longs(offsets), longs(lengths), chain.room)
        return header

    def _succeed(self, request: Request) -> bool:
        request.status = VIRTIO_BLK_S_OK
        return False

    def _refuse(self, request: Request, status: int) -> bool:
        request.status = status
        return False
