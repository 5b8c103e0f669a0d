"""The whole block device on a mock transport: real thread, real file, eventfds."""

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from struct import pack, unpack_from

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.devices.virtio_blk import Image, SyncEngine, VirtioBlk
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_CONFIG_WCE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
)
from pykvm.devices.virtio_blk.operation import Operation
from pykvm.errors import UsageError
from pykvm.memory.ram import Ram
from pykvm.testing.mock_transport import MockTransport
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
)

SECTORS = 256
SIZE = SECTORS * 512
IN, OUT, FLUSH, GET_ID = (
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
)
OK, IOERR, UNSUPP = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP


class Disk:
    """A started device, and a driver that speaks virtio-blk."""

    def __init__(self, transport: MockTransport, device: VirtioBlk) -> None:
        self.transport = transport
        self.device = device

    def send(self, kind: int, sector: int = 0, data: bytes = b"", size: int = 0) -> int:
        head = pack("<IIQ", kind, 0, sector)
        readable = [head, data] if data else [head]
        return self.transport.drivers[0].send(readable, [size, 1] if size else [1])

    def wait(self, head: int) -> tuple[int, bytes, int]:
        """(status, data, used length)"""
        used = self.transport.wait(head)
        answer = self.transport.drivers[0].response(head)
        return answer[-1], answer[:-1], used

    def do(self, kind: int, sector: int = 0, data: bytes = b"", size: int = 0) -> tuple[int, bytes]:
        status, answer, used = self.wait(self.send(kind, sector, data, size))
        assert used == (len(answer) + 1 if status == OK else 1)
        return status, answer

    def stats(self) -> dict[str, int]:
        counts = self.device.stats.as_dict()
        del counts["idle_time_ns"]
        return {name: n for name, n in counts.items() if n}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(random.Random(1).randbytes(SIZE))
    return file


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., Disk]]:
    """Makes started disks on ``path``; keyword arguments of VirtioBlk, MockTransport, Image."""
    made: list[Disk] = []

    def maker(
        readonly: bool = False,
        features: int | None = None,
        ram: Ram | None = None,
        start: bool = True,
        **kwargs: object,
    ) -> Disk:
        device = VirtioBlk(Image(path, readonly), **kwargs)  # type: ignore[arg-type]
        transport = MockTransport(device, ram, features=features)
        made.append(Disk(transport, device))
        if start:
            transport.start()
        return made[-1]

    yield maker
    for disk in made:
        disk.transport.close()
        disk.device.close()


@pytest.fixture
def disk(make: Callable[..., Disk]) -> Disk:
    return make(serial="pykvm-1")


# -- what the driver sees before it starts --------------------------------


def test_features(make: Callable[..., Disk]) -> None:
    disk = make(start=False)
    ring = VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX
    own = VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_FLUSH
    own |= VIRTIO_BLK_F_CONFIG_WCE
    assert disk.device.features == ring | own
    assert disk.device.device_id == 2
    assert disk.device.negotiated(0)


def test_a_read_only_disk_says_so(make: Callable[..., Disk]) -> None:
    assert make(readonly=True, start=False).device.features & VIRTIO_BLK_F_RO


def test_configuration(make: Callable[..., Disk]) -> None:
    device = make(start=False, queue_size=128).device
    assert device.queue_sizes == (128,)
    config = device.config
    assert len(config) == 60
    assert unpack_from("<Q", config, 0) == (SECTORS,)
    assert unpack_from("<I", config, 12) == (126,)
    assert unpack_from("<I", config, 20) == (512,)
    assert unpack_from("<H", config, 34) == (1,)
    device.write_config(0, 8, 5)
    assert device.config is config


@pytest.mark.parametrize("serial", ["x" * 21, "ü", "a\nb", "a\0"])
def test_a_serial_that_cannot_be(make: Callable[..., Disk], path: Path, serial: str) -> None:
    image = Image(path)
    with pytest.raises(UsageError, match="serial"):
        VirtioBlk(image, serial=serial)
    image.close()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 2048, -4])
def test_a_queue_size_that_cannot_be(path: Path, size: int) -> None:
    image = Image(path)
    with pytest.raises(UsageError, match="descriptors"):
        VirtioBlk(image, queue_size=size)
    image.close()


# -- requests --------------------------------------------------------------


def test_read(disk: Disk, path: Path) -> None:
    file = path.read_bytes()
    assert disk.do(IN, 0, size=512) == (OK, file[:512])
    assert disk.do(IN, 8, size=4096) == (OK, file[4096:8192])
    assert disk.do(IN, SECTORS - 1, size=512) == (OK, file[-512:])


def test_write_then_read_back(disk: Disk, path: Path) -> None:
    before = path.read_bytes()
    data = os.urandom(1024)
    assert disk.do(OUT, 3, data) == (OK, b"")
    assert disk.do(FLUSH) == (OK, b"")
    assert disk.do(IN, 2, size=2048)[1] == before[1024:1536] + data + before[2560:3072]
    assert path.read_bytes() == before[:1536] + data + before[2560:]


def test_get_id(disk: Disk) -> None:
    assert disk.do(GET_ID, size=20) == (OK, b"pykvm-1".ljust(20, b"\0"))


def test_out_of_range(disk: Disk, path: Path) -> None:
    before = path.read_bytes()
    assert disk.do(IN, SECTORS, size=512)[0] == IOERR
    assert disk.do(OUT, SECTORS - 1, bytes(1024))[0] == IOERR
    assert disk.do(OUT, (1 << 64) - 1, bytes(512))[0] == IOERR
    assert path.read_bytes() == before


def test_unknown_type(disk: Disk) -> None:
    assert disk.do(11)[0] == UNSUPP


def test_a_read_only_disk(make: Callable[..., Disk], path: Path) -> None:
    disk = make(readonly=True)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert disk.do(OUT, 0, bytes(512))[0] == IOERR
    assert disk.do(FLUSH)[0] == OK
    assert disk.do(IN, 0, size=512) == (OK, before[0][:512])
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_request_without_a_status_byte_is_given_back(disk: Disk) -> None:
    driver = disk.transport.drivers[0]
    head = driver.send([pack("<IIQ", IN, 0, 0)], [])
    assert disk.transport.wait(head) == 0
    assert disk.do(IN, 0, size=512)[0] == OK


def test_an_image_truncated_under_the_device(disk: Disk, path: Path) -> None:
    os.truncate(path, 4096)
    assert disk.do(IN, 8, size=512)[0] == IOERR
    assert disk.do(IN, 0, size=512)[0] == OK
    assert disk.stats()["failed_rd_operations"] == 1


@pytest.mark.interpreted
@pytest.mark.parametrize("kind", [IN, OUT, FLUSH])
def test_a_host_error_is_the_guests_ioerr(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    def failing(*args: object) -> int:
        raise OSError(errno.EIO, "injected")

    for name in ("preadv", "pwritev", "fdatasync"):
        monkeypatch.setattr(os, name, failing)
    assert (
        disk.do(kind, 0, bytes(512) if kind == OUT else b"", 512 if kind == IN else 0)[0] == IOERR
    )
    assert sum(disk.stats().values()) == 1


@pytest.mark.parametrize(
    "features", [0, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_BLK_F_FLUSH]
)
def test_every_negotiation_works(make: Callable[..., Disk], path: Path, features: int) -> None:
    disk = make(features=features | VIRTIO_F_VERSION_1)
    assert disk.do(OUT, 5, b"y" * 512)[0] == OK
    assert disk.do(IN, 5, size=512) == (OK, b"y" * 512)
    assert disk.do(FLUSH)[0] == OK


@pytest.mark.parametrize(("features", "syncs"), [(0, 1), (VIRTIO_BLK_F_FLUSH, 0)])
def test_a_driver_without_flush_gets_write_through(
    make: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch, features: int, syncs: int
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    disk = make(features=features | VIRTIO_F_VERSION_1)
    assert disk.do(OUT, 0, bytes(512))[0] == OK
    assert len(synced) == syncs


item = st.tuples(
    st.sampled_from([IN, IN, OUT, OUT, FLUSH, GET_ID, 77]),
    st.integers(0, SECTORS + 2),
    st.integers(1, 6),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.lists(item, min_size=1, max_size=12), max_size=5))
def test_batches_do_what_a_model_disk_does(
    disk: Disk, path: Path, batches: list[list[tuple[int, int, int]]]
) -> None:
    """Whatever is sent in whatever batches: same bytes, statuses and lengths as one at a time."""
    model = bytearray(path.read_bytes())
    fill = 0
    for batch in batches:
        expected = []
        for kind, sector, count in batch:
            span = slice(sector * 512, (sector + count) * 512)
            inside = sector + count <= SECTORS
            if kind == OUT:
                fill += 1
                data = bytes([fill % 256]) * (count * 512)
                answer = (OK if inside else IOERR, b"")
                if inside:
                    model[span] = data
                head = disk.send(OUT, sector, data)
            elif kind == IN:
                answer = (OK, bytes(model[span])) if inside else (IOERR, b"\xaa" * 512 * count)
                head = disk.send(IN, sector, size=512 * count)
            else:
                answer = (UNSUPP if kind == 77 else OK, b"")
                head = disk.send(kind, sector)
            expected.append((head, *answer))
        answers = {head: disk.wait(head) for head, _, _ in expected}
        for head, status, data in expected:
            used = len(data) + 1 if status == OK else 1
            assert answers[head] == (status, data, used)
    assert path.read_bytes() == model


# -- threads ---------------------------------------------------------------


def test_what_waits_in_the_ring_is_served_without_a_kick(make: Callable[..., Disk]) -> None:
    disk = make(start=False)
    head = disk.send(IN, 0, size=512)
    disk.transport.drivers[0].publish()
    disk.transport.start()
    assert disk.wait(head)[0] == OK


def test_one_interrupt_for_a_batch(disk: Disk) -> None:
    heads = [disk.send(IN, i, size=512) for i in range(32)]
    for head in heads:
        assert disk.wait(head)[0] == OK
    assert 1 <= len(disk.transport.interrupts) <= 2


def test_kicks_without_requests_do_nothing(disk: Disk) -> None:
    for _ in range(50):
        disk.transport.notify()
    assert disk.do(IN, 0, size=512)[0] == OK
    assert disk.stats()["rd_operations"] == 1


@pytest.mark.parametrize("ring", [0, VIRTIO_F_EVENT_IDX])
def test_what_arrives_during_a_drain_is_served_without_a_kick(
    make: Callable[..., Disk], ring: int
) -> None:
    """The driver was told not to notify, so the device must look again before it sleeps."""
    heads: list[int] = []
    notify_wanted: list[bool] = []

    class Busy(SyncEngine):
        def submit(self, operations: Sequence[Operation]) -> None:
            super().submit(operations)
            if len(heads) < 5:
                heads.append(disk.send(IN, len(heads), size=512))
                notify_wanted.append(disk.transport.drivers[0].publish())

    disk = make(engine=Busy, start=False, features=ring | VIRTIO_F_VERSION_1)
    heads.append(disk.send(IN, 0, size=512))
    disk.transport.drivers[0].publish()
    disk.transport.start()
    deadline = time.monotonic() + 5
    while disk.stats().get("rd_operations", 0) < 5:
        assert time.monotonic() < deadline, "a request was left lying"
        time.sleep(0.001)
    assert notify_wanted == [False] * 4
    assert all(disk.wait(head)[0] == OK for head in heads)


def test_an_idle_device_uses_no_cpu(disk: Disk) -> None:
    assert disk.do(IN, 0, size=512)[0] == OK
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1


def test_two_disks_at_once(make: Callable[..., Disk], path: Path) -> None:
    disks = [make(readonly=True) for _ in range(2)]
    file = path.read_bytes()
    for round_ in range(20):
        heads = [disk.send(IN, round_, size=512) for disk in disks]
        for disk, head in zip(disks, heads, strict=True):
            assert disk.wait(head)[1] == file[round_ * 512 :][:512]


def test_a_second_writer_is_refused(disk: Disk, path: Path) -> None:
    with pytest.raises(UsageError, match="in use"):
        Image(path)
    disk.transport.close()
    disk.device.close()
    Image(path).close()


def device_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("virtio-blk")]


def test_reset_and_start_again(disk: Disk) -> None:
    for _ in range(5):
        assert disk.do(IN, 0, size=512)[0] == OK
        disk.transport.reset()
        assert device_threads() == []
        disk.transport.start()
    assert disk.stats()["rd_operations"] == 5


def test_reset_when_not_active(make: Callable[..., Disk]) -> None:
    disk = make(start=False)
    disk.device.reset()
    disk.transport.start()
    assert disk.do(IN, 0, size=512)[0] == OK


def test_closing_leaves_nothing_behind(path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    ram = Ram.flat(1 << 20)
    device = VirtioBlk(Image(path), queue_size=16)
    with MockTransport(device, ram) as transport:
        transport.start()
        disk = Disk(transport, device)
        assert disk.do(IN, 0, size=512)[0] == OK
    device.close()
    assert set(os.listdir("/proc/self/fd")) == before
    assert device_threads() == []
    transport.drivers.clear()
    ram.release()


# -- what goes wrong -------------------------------------------------------


def test_a_broken_ring_ends_the_service_until_reset(disk: Disk) -> None:
    driver = disk.transport.drivers[0]
    good = disk.send(IN, 0, size=512)
    driver.offer(9999)
    disk.transport.submit()
    assert "9999" in disk.transport.wait_broken()
    assert disk.transport.collect() == [(good, 513)]
    disk.send(IN, 1, size=512)
    driver.publish()
    disk.transport.notify()
    time.sleep(0.05)
    assert disk.transport.collect() == []
    assert len(disk.transport.broken) == 1
    disk.transport.reset()
    disk.transport.start()
    assert disk.do(IN, 0, size=512)[0] == OK


def test_an_index_that_jumps_breaks_the_ring(disk: Disk) -> None:
    disk.transport.drivers[0].avail_index = 5000
    disk.transport.submit()
    disk.transport.notify()
    assert "avail.idx" in disk.transport.wait_broken()


def test_a_bug_in_the_device_is_not_silent(make: Callable[..., Disk]) -> None:
    seen: list[BaseException] = []

    class Buggy(SyncEngine):
        def submit(self, operations: Sequence[Operation]) -> None:
            raise ZeroDivisionError("a bug")

    disk = make(engine=Buggy, on_failure=seen.append)
    disk.send(IN, 0, size=512)
    disk.transport.submit()
    assert "ZeroDivisionError" in disk.transport.wait_broken()
    disk.transport.reset()
    assert isinstance(disk.device.failure, ZeroDivisionError)
    assert seen == [disk.device.failure]


@pytest.mark.interpreted
def test_a_bug_is_reported_without_a_callback(
    make: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    disk = make()
    monkeypatch.setattr(os, "preadv", lambda *args: 1 // 0)
    disk.send(IN, 0, size=512)
    disk.transport.submit()
    disk.transport.wait_broken()
    disk.transport.reset()
    assert seen[0].exc_type is ZeroDivisionError


# -- an engine that takes its time ------------------------------------------


class SlowEngine:
    """Completes nothing before :meth:`let_go`; then in its own thread, in any order."""

    def __init__(self, image: Image, ram: Ram) -> None:
        self.notifier = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.inner = SyncEngine(image, ram)
        self.lock = threading.Condition()
        self.waiting: list[Operation] = []
        self.finished: list[Operation] = []
        self.log: list[tuple[str, int]] = []

    def submit(self, operations: Sequence[Operation]) -> None:
        with self.lock:
            self.waiting += operations
            self.log += [("start", op.kind) for op in operations]
            self.lock.notify_all()

    def completions(self) -> Sequence[Operation]:
        with suppress(BlockingIOError):
            os.eventfd_read(self.notifier)
        with self.lock:
            done, self.finished = self.finished, []
        return done

    def wait_for(self, count: int) -> None:
        with self.lock:
            assert self.lock.wait_for(lambda: len(self.waiting) >= count, 5)

    def let_go(self, index: int = -1) -> None:
        """Finish the operation at ``index`` of those waiting."""
        with self.lock:
            operation = self.waiting.pop(index)
            self.inner.submit([operation])
            self.finished += self.inner.completions()
            self.log.append(("end", operation.kind))
        os.eventfd_write(self.notifier, 1)

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self.inner.close()
        os.close(self.notifier)


def slow_engine(disk: Disk) -> SlowEngine:
    (engine,) = disk.device._engines
    assert isinstance(engine, SlowEngine)
    return engine


def test_completions_out_of_order(make: Callable[..., Disk], path: Path) -> None:
    disk = make(engine=SlowEngine)
    file = path.read_bytes()
    heads = [disk.send(IN, 2 * i, size=512) for i in range(4)]
    disk.transport.submit()
    engine = slow_engine(disk)
    engine.wait_for(4)
    for left in (2, 0, 1, 0):
        engine.let_go(left)
    for i, head in enumerate(heads):
        assert disk.wait(head)[:2] == (OK, file[1024 * i :][:512])


def test_a_flush_starts_after_the_writes_before_it(make: Callable[..., Disk]) -> None:
    disk = make(engine=SlowEngine)
    heads = [disk.send(OUT, 0, bytes(512))]
    disk.transport.submit()
    engine = slow_engine(disk)
    engine.wait_for(1)
    heads += [disk.send(OUT, 2, bytes(512)), disk.send(FLUSH), disk.send(IN, 5, size=512)]
    disk.transport.submit()
    disk.transport.notify()
    engine.wait_for(3)
    assert [kind for _, kind in engine.log] == [OUT, OUT, IN]
    engine.let_go(0)
    engine.let_go(0)
    engine.wait_for(2)
    assert engine.log[-1] == ("start", FLUSH)
    engine.let_go()
    engine.let_go()
    assert [disk.wait(head)[0] for head in heads] == [OK] * 4


def test_overlapping_writes_of_a_batch_are_serialised(
    make: Callable[..., Disk], path: Path
) -> None:
    disk = make(engine=SlowEngine)
    heads = [disk.send(OUT, 0, bytes([i]) * 512) for i in range(1, 4)]
    disk.transport.submit()
    engine = slow_engine(disk)
    for _ in heads:
        engine.wait_for(1)
        assert len(engine.waiting) == 1
        engine.let_go()
    assert [disk.wait(head)[0] for head in heads] == [OK] * 3
    assert path.read_bytes()[:512] == bytes([3]) * 512


def test_reset_waits_for_what_is_executing_and_drops_it(make: Callable[..., Disk]) -> None:
    disk = make(engine=SlowEngine)
    disk.send(OUT, 0, bytes(512))
    disk.send(OUT, 0, bytes(512))
    disk.send(IN, 3, size=512)
    disk.send(FLUSH)
    disk.transport.submit()
    engine = slow_engine(disk)
    engine.wait_for(2)
    resetting = threading.Thread(target=disk.device.reset)
    resetting.start()
    resetting.join(0.05)
    assert resetting.is_alive()
    engine.let_go()
    resetting.join(0.05)
    assert resetting.is_alive()
    engine.let_go()
    resetting.join(5)
    assert not resetting.is_alive()
    assert disk.transport.drivers[0].collect() == []
    assert disk.transport.interrupts == []
    assert [kind for what, kind in engine.log if what == "start"] == [OUT, IN]
    disk.transport.reset()
    disk.transport.start()
    fresh = slow_engine(disk)
    head = disk.send(IN, 0, size=512)
    disk.transport.submit()
    fresh.wait_for(1)
    fresh.let_go()
    assert disk.wait(head)[0] == OK


@pytest.mark.interpreted
def test_reset_starts_nothing_that_waits(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver can queue hours of I/O in one batch; its reset takes one operation's time."""
    started, go_on = threading.Event(), threading.Event()
    reads: list[int] = []

    def slow_preadv(fd: int, views: Sequence[memoryview], offset: int) -> int:
        reads.append(offset)
        started.set()
        assert go_on.wait(5)
        return sum(map(len, views))

    monkeypatch.setattr(os, "preadv", slow_preadv)
    for sector in range(8):
        disk.send(IN, 2 * sector, size=512)
    disk.transport.submit()
    assert started.wait(5)
    resetting = threading.Thread(target=disk.device.reset)
    resetting.start()
    resetting.join(0.05)
    assert resetting.is_alive()
    go_on.set()
    resetting.join(5)
    assert not resetting.is_alive()
    assert reads == [0]
    assert disk.transport.drivers[0].collect() == []
    assert disk.stats() == {}


def test_reset_under_load(disk: Disk) -> None:
    """With the real engine: nothing reaches the rings after reset returned."""
    for _ in range(20):
        for i in range(64):
            disk.send(IN, i, size=512)
        disk.transport.submit()
        disk.device.reset()
        used_before = disk.transport.drivers[0].collect()
        time.sleep(0.001)
        assert disk.transport.drivers[0].collect() == []
        assert len(used_before) <= 64
        disk.transport.reset()
        disk.transport.start()


# -- statistics -------------------------------------------------------------


def test_statistics(disk: Disk) -> None:
    disk.do(IN, 0, size=1024)
    disk.do(IN, 0, size=512)
    disk.do(OUT, 0, bytes(2048))
    disk.do(FLUSH)
    disk.do(GET_ID, size=20)
    disk.do(IN, SECTORS, size=512)
    disk.do(OUT, SECTORS, bytes(512))
    disk.do(99)
    stats = disk.stats()
    for name in ("rd", "wr", "flush"):
        assert stats.pop(f"{name}_total_time_ns") > 0
    assert stats == {
        "rd_bytes": 1536,
        "rd_operations": 2,
        "wr_bytes": 2048,
        "wr_operations": 1,
        "flush_operations": 1,
        "invalid_rd_operations": 1,
        "invalid_wr_operations": 1,
        "invalid_other_operations": 1,
    }
    assert {"rd_merged", "wr_merged"} <= disk.device.stats.as_dict().keys()
