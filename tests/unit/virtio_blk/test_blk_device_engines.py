"""A whole disk with each engine: a driver sees no difference between them."""

import errno
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack

import pytest
from blk_device import block_device
from blk_engines import engines
from blk_host import require_direct
from patience import patience

from pykvm.devices.virtio_blk import (
    CacheMode,
    EngineFactory,
    ErrorPolicy,
    Image,
    IoError,
    MergePolicy,
)
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.layers.faults import Fault, FaultPlan
from pykvm.memory.guest import GuestMemory
from pykvm.testing.fake_transport import FakeTransport
from pykvm.testing.recording_engine import EngineLog
from pykvm.testing.split_driver import Buffer

IN, OUT, FLUSH = VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH
OK, IOERR = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR
BLOCK = 4096
BLOCKS = 128

pytestmark = engines(wrapped=False)


class Disk:
    """A started disk whose driver's data is in aligned blocks, ``at`` by head."""

    def __init__(self, path: Path, cache: CacheMode, engine: EngineFactory, **options: object):
        self.errors: list[IoError] = []
        self.failed = threading.Event()
        self.memory = GuestMemory(4 << 20)
        self.image = Image(path, cache=cache)
        self.device = block_device(self.image, engine=engine, on_error=self.note, **options)
        self.transport = FakeTransport(self.device, self.memory.ram)
        self.at: dict[int, int] = {}
        self.statuses: dict[int, int] = {}
        self._driver = self.transport.drivers[0]
        self._buffers: dict[int, list[int]] = {}
        self._used = Counter[int]()
        self.transport.start()

    def note(self, error: IoError) -> None:
        """The ``on_error`` of the device."""
        self.errors.append(error)
        self.failed.set()

    def send(self, kind: int, block: int = 0, data: bytes = b"", count: int = 1) -> int:
        """Put a request for whole blocks into the ring, unpublished; its head."""
        driver = self.transport.drivers[0]
        if not driver.outstanding:
            self._used.clear()
        header, status = self._buffer(16), self._buffer(1)
        self.memory.ram.write(header, pack("<IIQ", kind, 0, block * 8))
        self.memory.ram.write(status, b"\xaa")
        chain = [Buffer(header, 16, False)]
        at = 0
        if kind != FLUSH:
            size = len(data) or count * BLOCK
            at = self._buffer(size)
            self.memory.ram.write(at, data or bytes(size))
            chain.append(Buffer(at, size, kind == IN))
        head = driver.add([*chain, Buffer(status, 1, True)])
        self.at[head], self.statuses[head] = at, status
        return head

    def _buffer(self, size: int) -> int:
        """The address of ``size`` unused bytes, aligned to a block if they are as large as one."""
        driver = self.transport.drivers[0]
        if driver is not self._driver:
            self._driver = driver
            self._buffers.clear()
        known = self._buffers.setdefault(size, [])
        self._used[size] += 1
        if self._used[size] > len(known):
            known.append(driver.alloc(size, min(size, BLOCK)))
        return known[self._used[size] - 1]

    def wait(self, head: int) -> int:
        """The status."""
        self.transport.wait(head, timeout=patience())
        return self.memory.ram.read(self.statuses[head], 1)[0]

    def data(self, head: int, size: int = BLOCK) -> bytes:
        return self.memory.ram.read(self.at[head], size)

    def close(self) -> None:
        self.transport.close()
        self.device.close()
        self.memory.close()


@pytest.fixture(params=[CacheMode.WRITEBACK, CacheMode.DIRECTSYNC], ids=["cached", "direct"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> CacheMode:
    mode: CacheMode = request.param
    if mode.direct:
        require_direct(tmp_path)
    return mode


@pytest.fixture
def content() -> bytes:
    return random.Random(1).randbytes(BLOCKS * BLOCK)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(content)
    return file


@pytest.fixture
def make(path: Path, cache: CacheMode) -> Iterator[Callable[..., Disk]]:
    made: list[Disk] = []

    def maker(engine: EngineFactory, **options: object) -> Disk:
        made.append(Disk(path, cache, engine, **options))
        return made[-1]

    yield maker
    for disk in made:
        disk.close()


def of(content: bytes, block: int, count: int = 1) -> bytes:
    return content[block * BLOCK : (block + count) * BLOCK]


def test_a_read_returns_the_written_data(
    factory: EngineFactory, make: Callable[..., Disk], path: Path, content: bytes
) -> None:
    disk = make(factory)
    data = random.Random(2).randbytes(3 * BLOCK)
    assert disk.wait(disk.send(OUT, 5, data)) == OK
    heads = [disk.send(FLUSH), disk.send(IN, 4, count=5)]
    assert [disk.wait(head) for head in heads] == [OK, OK]
    assert disk.data(heads[1], 5 * BLOCK) == of(content, 4) + data + of(content, 8)
    assert path.read_bytes() == of(content, 0, 5) + data + content[8 * BLOCK :]


def test_a_full_ring_of_reads_and_writes(
    factory: EngineFactory, make: Callable[..., Disk], path: Path, content: bytes
) -> None:
    disk = make(factory)
    order = random.Random(3).sample(range(BLOCKS), BLOCKS)
    new = random.Random(4).randbytes(BLOCKS * BLOCK)
    heads = {
        block: disk.send(OUT, block, of(new, block)) if block % 2 else disk.send(IN, block)
        for block in order
    }
    assert {disk.wait(head) for head in heads.values()} == {OK}
    after = path.read_bytes()
    for block, head in heads.items():
        assert of(after, block) == of(new if block % 2 else content, block)
        assert disk.data(head) == of(new if block % 2 else content, block)


def test_a_flush_is_asked_for_when_the_writes_before_it_are_done(
    factory: EngineFactory, make: Callable[..., Disk]
) -> None:
    log = EngineLog()
    disk = make(log.wrap(factory))
    heads = [disk.send(OUT, 2 * block, bytes(BLOCK)) for block in range(16)]
    heads += [disk.send(FLUSH), disk.send(OUT, 64, bytes(BLOCK))]
    assert {disk.wait(head) for head in heads} == {OK}
    events = [(event.event, event.kind, event.sector) for event in log.events]
    flush = events.index(("submitted", "flush", 0))
    assert {("completed", "write", 16 * block) for block in range(16)} <= {*events[:flush]}


def test_one_bad_block_fails_one_request_of_a_merged_read(
    factory: EngineFactory, make: Callable[..., Disk], content: bytes
) -> None:
    plan = FaultPlan([Fault(operation="read", sectors=17 * 8 + 3, errno="EIO")])
    disk = make(plan.wrap(factory))
    heads = [disk.send(IN, block) for block in range(32)]
    assert [disk.wait(head) for head in heads] == [OK] * 17 + [IOERR] + [OK] * 14
    good = [block for block in range(32) if block != 17]
    assert all(disk.data(heads[block]) == of(content, block) for block in good)
    assert disk.device.stats.as_dict()["rd_merged"] == 31


def test_a_file_truncated_under_it(
    factory: EngineFactory, make: Callable[..., Disk], path: Path, content: bytes
) -> None:
    disk = make(factory)
    with path.open("r+b") as file:
        file.truncate(2 * BLOCK)
    heads = [disk.send(IN, block) for block in range(4)]
    assert [disk.wait(head) for head in heads] == [OK, OK, IOERR, IOERR]
    assert disk.data(heads[1]) == of(content, 1)
    assert [error.errno for error in disk.errors] == [errno.EIO] * 2


def test_an_error_stops_the_disk_until_it_is_mended(
    factory: EngineFactory, make: Callable[..., Disk], path: Path
) -> None:
    plan = FaultPlan()
    rule = plan.add(Fault(operation="write", sectors=8, errno="ENOSPC"))
    disk = make(plan.wrap(factory), werror=ErrorPolicy.STOP, merge=MergePolicy.OFF)
    data = random.Random(5).randbytes(BLOCKS * BLOCK)
    heads = [disk.send(OUT, block, of(data, block)) for block in range(64)]
    heads.append(disk.send(FLUSH))
    disk.transport.submit()
    assert disk.failed.wait(patience())
    disk.device.pause()  # the error has halted it; this returns when no operation is in flight
    assert [error.errno for error in disk.errors] == [errno.ENOSPC]
    plan.remove(rule)
    disk.device.resume()
    assert {disk.wait(head) for head in heads} == {OK}
    assert path.read_bytes()[: 64 * BLOCK] == data[: 64 * BLOCK]
    assert disk.device.stats.as_dict()["wr_operations"] == 64


def test_a_pause_at_any_moment_loses_nothing(
    factory: EngineFactory, make: Callable[..., Disk], content: bytes
) -> None:
    disk = make(factory, merge=MergePolicy.OFF)
    for _ in range(20):
        heads = [disk.send(IN, block) for block in range(64)]
        disk.transport.submit()
        disk.device.pause()
        disk.transport.collect()
        disk.transport.notify()
        assert not disk.transport.collect()
        disk.device.resume()
        assert {disk.wait(head) for head in heads} == {OK}
        assert all(disk.data(head) == of(content, block) for block, head in enumerate(heads))


def test_nothing_is_written_after_a_reset(
    factory: EngineFactory, make: Callable[..., Disk], content: bytes
) -> None:
    """Into memory that the driver has for other things by then; and a new start works."""
    disk = make(factory, merge=MergePolicy.OFF)
    for _ in range(10):
        heads = [disk.send(IN, block) for block in range(BLOCKS // 2)]
        disk.transport.submit()
        disk.transport.reset()
        for head in heads:
            disk.memory.ram.write(disk.at[head], b"\x55" * BLOCK)
        disk.transport.start()
        assert all(disk.data(head) == b"\x55" * BLOCK for head in heads)
        again = disk.send(IN, 3)
        assert disk.wait(again) == OK
        assert disk.data(again) == of(content, 3)
