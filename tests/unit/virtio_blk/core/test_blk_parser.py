"""The block device's request parser: framing, validation and the response ladder, no I/O."""

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.core.parser import RequestParser
from pykvm.devices.virtio_blk.core.request import TYPE_UNREADABLE, Request
from pykvm.memory.ram import Ram, Region
from pykvm.testing.split_driver import Buffer, SplitDriver
from pykvm.virtio.constants import VIRTIO_F_INDIRECT_DESC

CAPACITY = 100
SERIAL = b"serial-0"
HOLE = 0x4000_0000


def header(kind: int, sector: int = 0) -> bytes:
    return pack("<IIQ", kind, 0, sector)


class Bench:
    """A ring with a parser at its end."""

    def __init__(self, *, readonly: bool = False, size: int = 64, ram: Ram | None = None) -> None:
        self.ram = ram or Ram.flat(1 << 20)
        self.driver = SplitDriver(self.ram, size=size, features=VIRTIO_F_INDIRECT_DESC)
        self.queue = self.driver.device_queue()
        self.parser = RequestParser(self.ram, CAPACITY, readonly, SERIAL)

    def send(self, readable: list[bytes], writable: list[int]) -> tuple[bool, Request]:
        return self.parse(self.driver.send(readable, writable))

    def add(self, *buffers: Buffer) -> tuple[bool, Request]:
        return self.parse(self.driver.add(buffers))

    def parse(self, head: int) -> tuple[bool, Request]:
        self.driver.publish()
        self.queue.begin_drain()
        assert self.queue.pop() == head
        request = Request(head)
        accepted = self.parser.parse(self.queue.chains[head], request)
        if not accepted and request.status != VIRTIO_BLK_S_OK:
            # A status behind data that were not written does not count (virtio 1.2 §2.7.8.2).
            alone = self.queue.chains[head].writable_bytes == 1 and request.status_offset >= 0
            assert request.used_length == (1 if alone else 0)
        return accepted, request

    def data(self, request: Request) -> bytes:
        """The bytes at the request's data segments, in order."""
        return b"".join(
            bytes(self.ram.bytes[request.offsets[i] : request.offsets[i] + request.lengths[i]])
            for i in range(request.first, request.last)
        )

    def status_is_last_byte(self, head: int, request: Request) -> bool:
        last = self.driver.outstanding[head][-1]
        at = self.ram.translate(last.address, last.length)
        return request.status_offset == at + last.length - 1


def refused(answer: tuple[bool, Request], status: int = VIRTIO_BLK_S_IOERR) -> Request:
    accepted, request = answer
    assert not accepted
    assert request.status == status
    assert request.status_offset >= 0
    return request


def statusless(answer: tuple[bool, Request]) -> None:
    accepted, request = answer
    assert not accepted
    assert request.status_offset == -1
    assert request.used_length == 0


def test_in_is_accepted_with_its_sector_and_segments() -> None:
    bench = Bench()
    accepted, request = bench.send([header(VIRTIO_BLK_T_IN, 7)], [512, 1024, 1])
    assert accepted
    assert (request.type, request.sector, request.length) == (VIRTIO_BLK_T_IN, 7, 1536)
    assert bench.data(request) == b"\xaa" * 1536
    assert bench.status_is_last_byte(request.head, request)


def test_out_is_accepted_with_its_data() -> None:
    bench = Bench()
    data = [b"a" * 512, b"b" * 512]
    accepted, request = bench.send([header(VIRTIO_BLK_T_OUT, 98), *data], [1])
    assert accepted
    assert (request.type, request.sector, request.length) == (VIRTIO_BLK_T_OUT, 98, 1024)
    assert bench.data(request) == b"".join(data)


def cuts(total: int) -> st.SearchStrategy[list[int]]:
    """Lengths that sum up to ``total``."""
    points = st.lists(st.integers(1, max(1, total - 1)), max_size=12, unique=True)
    return points.map(
        lambda found: [
            b - a
            for a, b in zip([0, *sorted(found)], [*sorted(found), total], strict=True)
            if b > a
        ]
    )


@given(st.data())
def test_any_framing_gives_the_same_request(data: st.DataObject) -> None:
    """However header, data and status are cut into descriptors, the request is the same."""
    bench = Bench()
    sectors = data.draw(st.integers(0, 3))
    kind = data.draw(st.sampled_from([VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT]))
    payload = bytes(i * 7 % 251 for i in range(512 * sectors))
    stream = header(kind, 42) + (payload if kind == VIRTIO_BLK_T_OUT else b"")
    readable = []
    for length in data.draw(cuts(len(stream))):
        readable.append(stream[:length])
        stream = stream[length:]
    writable = data.draw(cuts(1 + (512 * sectors if kind == VIRTIO_BLK_T_IN else 0)))
    accepted, request = bench.send(readable, writable)
    assert accepted == (sectors > 0)
    assert (request.type, request.sector, request.length) == (kind, 42, 512 * sectors)
    expected = payload if kind == VIRTIO_BLK_T_OUT else b"\xaa" * len(payload)
    assert bench.data(request) == expected
    assert all(request.lengths[i] > 0 for i in range(request.first, request.last))
    assert bench.status_is_last_byte(request.head, request)
    if not accepted:
        assert (request.status, request.used_length) == (VIRTIO_BLK_S_OK, 1)


def test_the_chain_is_not_trimmed_in_place() -> None:
    bench = Bench()
    driver = bench.driver
    for readable, writable in (
        ([header(VIRTIO_BLK_T_OUT) + b"x" * 512], [1]),
        ([header(0)], [513]),
    ):
        head = driver.send(readable, writable)
        _, request = bench.parse(head)
        chain = bench.queue.chains[head]
        assert list(chain.lengths[:2]) == [len(readable[0]), *writable]
        again = Request(head)
        assert bench.parser.parse(chain, again)
        assert bench.data(again) == bench.data(request)


def test_the_header_is_read_once() -> None:
    bench = Bench()
    _, request = bench.send([header(VIRTIO_BLK_T_IN, 3)], [512, 1])
    header_at = bench.queue.chains[request.head].offsets[0]
    bench.ram.bytes[header_at : header_at + 16] = header(VIRTIO_BLK_T_OUT, 99)
    assert (request.type, request.sector) == (VIRTIO_BLK_T_IN, 3)


@pytest.mark.parametrize("kind", [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT])
@pytest.mark.parametrize(
    ("sector", "sectors", "fits"),
    [
        (CAPACITY - 1, 1, True),
        (CAPACITY - 1, 2, False),
        (CAPACITY, 0, True),
        (CAPACITY, 1, False),
        (CAPACITY + 1, 0, False),
        (0, CAPACITY, True),
        (0, CAPACITY + 1, False),
        ((1 << 64) - 1, 1, False),
        ((1 << 64) - 1, 2, False),
        (1 << 55, 1, False),  # overflows when multiplied by 512
    ],
)
def test_the_range_check(kind: int, sector: int, sectors: int, fits: bool) -> None:
    bench = Bench()
    size = 512 * sectors
    out = kind == VIRTIO_BLK_T_OUT
    readable = [header(kind, sector), *([b"d" * size] if out and size else [])]
    accepted, request = bench.send(readable, [1] if out or not size else [size, 1])
    if fits:
        assert accepted == (sectors > 0)
        assert accepted or request.status == VIRTIO_BLK_S_OK
    else:
        refused((accepted, request))
    assert request.type == kind


@pytest.mark.parametrize("length", [1, 511, 513, 4095])
def test_a_length_that_is_no_multiple_of_512(length: int) -> None:
    bench = Bench()
    refused(bench.send([header(VIRTIO_BLK_T_IN)], [length, 1]))
    refused(bench.send([header(VIRTIO_BLK_T_OUT), b"x" * length], [1]))


def test_a_read_only_disk_refuses_out_and_takes_flush() -> None:
    bench = Bench(readonly=True)
    refused(bench.send([header(VIRTIO_BLK_T_OUT), b"x" * 512], [1]))
    refused(bench.send([header(VIRTIO_BLK_T_OUT)], [1]))
    assert bench.send([header(VIRTIO_BLK_T_FLUSH)], [1])[0]
    assert bench.send([header(VIRTIO_BLK_T_IN)], [512, 1])[0]


@pytest.mark.parametrize("cut", [False, True], ids=["apart", "together"])
@pytest.mark.parametrize(
    ("kind", "readable", "writable"),
    [
        (VIRTIO_BLK_T_IN, 512, 0),
        (VIRTIO_BLK_T_IN, 512, 512),
        (VIRTIO_BLK_T_IN, 1, 512),
        (VIRTIO_BLK_T_OUT, 0, 512),
        (VIRTIO_BLK_T_OUT, 512, 512),
        (VIRTIO_BLK_T_OUT, 512, 1),
        (VIRTIO_BLK_T_FLUSH, 1, 0),
        (VIRTIO_BLK_T_FLUSH, 0, 1),
        (VIRTIO_BLK_T_GET_ID, 1, 20),
        (VIRTIO_BLK_T_GET_ID, 20, 0),
    ],
)
def test_data_in_the_wrong_direction(kind: int, readable: int, writable: int, cut: bool) -> None:
    """They would not be moved, and a driver that takes that for a success has lost them."""
    bench = Bench()
    data = b"x" * readable
    start = [header(kind), data] if data and not cut else [header(kind) + data]
    end = [writable, 1] if writable and not cut else [writable + 1]
    _, request = bench.send(start, end)
    refused((False, request))
    assert request.type == kind
    chain = bench.driver.outstanding[request.head]
    assert {bench.ram.read(one.address, 1) for one in chain} == {b"\xaa"}, "nothing is written"


def test_flush_ignores_its_sector() -> None:
    bench = Bench()
    accepted, request = bench.send([header(VIRTIO_BLK_T_FLUSH, 1 << 60)], [1])
    assert accepted
    assert (request.type, request.length, request.first) == (VIRTIO_BLK_T_FLUSH, 0, request.last)


@pytest.mark.parametrize("kind", [2, 3, 5, 9, 11, 13, 0x100, 0x8000_0000, 0x8000_0001, 0xFFFF_FFFF])
def test_unknown_types_are_unsupported(kind: int) -> None:
    """SCSI, FLUSH_OUT, BARRIER bits, DISCARD and WRITE_ZEROES that were not offered, and noise."""
    bench = Bench()
    refused(bench.send([header(kind), b"x" * 512], [512, 1]), VIRTIO_BLK_S_UNSUPP)
    refused(bench.send([header(kind)], [1]), VIRTIO_BLK_S_UNSUPP)
    statusless(bench.send([header(kind)], []))


@pytest.mark.parametrize(
    ("buffers", "answer", "used"),
    [
        ([20, 1], SERIAL.ljust(20, b"\0"), 21),
        ([21], SERIAL.ljust(20, b"\0"), 21),
        ([7, 13, 1], SERIAL.ljust(20, b"\0"), 21),
        ([5, 1], SERIAL[:5], 6),
        ([64, 1], SERIAL.ljust(20, b"\0"), 20),
    ],
)
def test_get_id(buffers: list[int], answer: bytes, used: int) -> None:
    """The status of a longer buffer is behind bytes that the device did not write."""
    bench = Bench()
    accepted, request = bench.send([header(VIRTIO_BLK_T_GET_ID)], buffers)
    assert not accepted
    assert (request.status, request.used_length) == (VIRTIO_BLK_S_OK, used)
    chain = bench.driver.outstanding[request.head]
    written = b"".join(bench.ram.read(b.address, b.length) for b in chain)
    assert written == answer.ljust(len(written), b"\xaa")


def test_an_answer_needs_room() -> None:
    refused(Bench().send([header(VIRTIO_BLK_T_GET_ID)], [1]))


class TestMalformed:
    """Each line of the lessons' list that a request parser can see."""

    def test_no_writable_descriptor(self) -> None:
        bench = Bench()
        statusless(bench.send([header(VIRTIO_BLK_T_IN)], []))
        statusless(bench.send([header(VIRTIO_BLK_T_OUT), b"x" * 512], []))
        statusless(bench.send([b"short"], []))

    def test_zero_length_status(self) -> None:
        bench = Bench()
        statusless(bench.add(Buffer(bench.driver.put(header(0)), 16, False), Buffer(0, 0, True)))

    def test_zero_length_descriptors_between_change_nothing(self) -> None:
        bench = Bench()
        driver = bench.driver
        accepted, request = bench.add(
            Buffer(0, 0, False),
            Buffer(driver.put(header(VIRTIO_BLK_T_IN, 1)), 16, False),
            Buffer(0, 0, False),
            Buffer(driver.alloc(512), 512, True),
            Buffer(0, 0, True),
            Buffer(driver.alloc(1), 1, True),
            Buffer(0, 0, True),
        )
        assert accepted
        assert (request.sector, request.length, request.last - request.first) == (1, 512, 1)

    @pytest.mark.parametrize("length", [1, 8, 15])
    def test_short_header(self, length: int) -> None:
        bench = Bench()
        assert refused(bench.send([header(0)[:length]], [512, 1])).type == TYPE_UNREADABLE

    def test_writable_header(self) -> None:
        refused(Bench().send([], [16, 512, 1]))

    def test_status_outside_ram(self) -> None:
        bench = Bench()
        at = bench.driver.put(header(VIRTIO_BLK_T_FLUSH))
        for address in (HOLE, (1 << 64) - 1, (1 << 20)):
            statusless(bench.add(Buffer(at, 16, False), Buffer(address, 1, True)))

    def test_header_outside_ram(self) -> None:
        bench = Bench()
        status = Buffer(bench.driver.alloc(1), 1, True)
        for address in (HOLE, (1 << 64) - 8, (1 << 20) - 8):
            refused(bench.add(Buffer(address, 16, False), status))
            refused(bench.add(Buffer(address, 528, False), status))

    def test_half_a_header_outside_ram(self) -> None:
        bench = Bench()
        start = Buffer(bench.driver.put(header(VIRTIO_BLK_T_IN)[:8]), 8, False)
        status = Buffer(bench.driver.alloc(1), 1, True)
        refused(bench.add(start, Buffer(HOLE, 8, False), status))

    @pytest.mark.parametrize("address", [HOLE, (1 << 20) - 256, (1 << 64) - 256])
    @pytest.mark.parametrize("kind", [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT])
    def test_data_outside_ram(self, address: int, kind: int) -> None:
        bench = Bench()
        driver = bench.driver
        writable = kind == VIRTIO_BLK_T_IN
        start = Buffer(driver.put(header(kind)), 16, False)
        good = Buffer(driver.alloc(512), 512, writable)
        bad = Buffer(address, 512, writable)
        status = Buffer(driver.alloc(1), 1, True)
        assert refused(bench.add(start, good, bad, status)).type == kind
        refused(bench.add(start, bad, good, status))

    def test_id_buffer_outside_ram(self) -> None:
        bench = Bench()
        start = Buffer(bench.driver.put(header(VIRTIO_BLK_T_GET_ID)), 16, False)
        status = Buffer(bench.driver.alloc(1), 1, True)
        refused(bench.add(start, Buffer(HOLE, 20, True), status))

    def test_data_across_two_regions(self) -> None:
        ram = Ram(bytearray(1 << 20), [Region(0, 1 << 19, 0), Region(1 << 20, 1 << 19, 1 << 19)])
        bench = Bench(ram=ram)
        start = Buffer(bench.driver.put(header(VIRTIO_BLK_T_IN)), 16, False)
        status = Buffer(bench.driver.alloc(1), 1, True)
        refused(bench.add(start, Buffer((1 << 19) - 256, 512, True), status))
        assert bench.add(start, Buffer(1 << 20, 512, True), status)[0]

    def test_readable_after_writable(self) -> None:
        bench = Bench()
        driver = bench.driver
        refused(
            bench.add(
                Buffer(driver.put(header(VIRTIO_BLK_T_OUT)), 16, False),
                Buffer(driver.alloc(1), 1, True),
                Buffer(driver.put(b"x" * 512), 512, False),
            )
        )

    def test_more_than_4_gib(self) -> None:
        bench = Bench()
        start = Buffer(bench.driver.put(header(VIRTIO_BLK_T_IN)), 16, False)
        status = Buffer(bench.driver.alloc(1), 1, True)
        big = Buffer(HOLE, (1 << 32) - 512, True)
        refused(bench.add(start, big, big, status))

    def test_a_chain_that_cannot_be_walked(self) -> None:
        bench = Bench()
        bench.driver.write_descriptor(5, 0x8000, 16, 1, 5)
        bench.driver.offer(5)
        statusless(bench.parse(5))


pieces = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 8, 15, 16, 17, 20, 511, 512, 513, 1024, 0xFFFF_FFFF]),
        st.booleans(),
        st.sampled_from([0, 0, 0, 0x10_0000 - 64, HOLE, (1 << 64) - 16]),
    ),
    min_size=1,
    max_size=8,
)


@given(pieces, st.integers(0, 16), st.sampled_from([0, 1, CAPACITY - 1, CAPACITY, (1 << 64) - 1]))
def test_no_chain_leads_outside_ram_or_the_disk(
    shape: list[tuple[int, bool, int]], kind: int, sector: int
) -> None:
    """The invariant of the parser: an accepted request is in bounds, whatever its chain."""
    bench = Bench()
    bench.ram.write(0x8_0000, header(kind, sector) * 70)
    buffers = [Buffer(0x8_0000 + bad if bad == 0 else bad, n, w) for n, w, bad in shape]
    accepted, request = bench.add(*buffers)
    assert -1 <= request.status_offset < 1 << 20
    assert request.used_length <= 21
    if accepted:
        assert request.sector * 512 + request.length <= CAPACITY * 512
        segments = range(request.first, request.last)
        assert sum(request.lengths[i] for i in segments) == request.length
        for i in segments:
            assert 0 <= request.offsets[i] <= (1 << 20) - request.lengths[i]
