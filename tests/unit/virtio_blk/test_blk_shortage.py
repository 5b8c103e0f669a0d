"""A host that lacks something when a driver starts the disk or one of its queues.

The driver gets DEVICE_NEEDS_RESET, the user gets a notice, nothing is left
behind, and the next start may succeed.
"""

import errno
import mmap
import os
import resource
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from struct import pack

import pytest
from blk_device import IN, IOERR, OK, block_device, device_threads, disks
from blk_engines import engines
from patience import PATIENCE, until

from pykvm.devices.virtio_blk import (
    DiskOptions,
    Engine,
    EngineFactory,
    Image,
    SyncEngine,
    VirtioBlk,
)
from pykvm.devices.virtio_blk.constants import VIRTIO_BLK_T_WRITE_ZEROES
from pykvm.devices.virtio_blk.engines.thread_pool import ThreadsEngine
from pykvm.devices.virtio_blk.layers.overlay import OverlayImage
from pykvm.devices.virtio_blk.serving import io_thread
from pykvm.errors import HostError, shortage
from pykvm.memory.guest import GuestMemory
from pykvm.memory.ram import Ram
from pykvm.testing.fake_transport import FakeTransport
from pykvm.testing.hostile_rig import Rig
from pykvm.virtio.constants import VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_RING_RESET

QUEUES = range(3)
FULL = OSError(errno.EMFILE, "Too many open files")
NO_MEMORY = OSError(errno.ENOMEM, "Cannot allocate memory")
SHORTAGES = [
    pytest.param(FULL, "too many open files (ulimit -n)", id="files"),
    pytest.param(NO_MEMORY, "cannot allocate memory", id="memory"),
    pytest.param(HostError("there is no ring"), "there is no ring", id="rings"),
]


class Host:
    """Makes engines until ``left`` of them are made; then ``error`` is raised."""

    def __init__(self, make: EngineFactory = ThreadsEngine) -> None:
        self.left = 1000
        self.error: Exception = FULL
        self._make = make

    def engine(self, image: Image, ram: Ram) -> Engine:
        """An EngineFactory."""
        if not self.left:
            raise self.error
        self.left -= 1
        return self._make(image, ram)


class Bench:
    """A disk of three queues on ``host``; ``lacks`` has the notices to its user."""

    def __init__(self, path: Path, host: Host, threads: int = 1) -> None:
        self.host = host
        self.lacks: list[str] = []
        self.device = block_device(
            Image(path),
            engine=host.engine,
            num_queues=len(QUEUES),
            iothreads=threads,
            on_shortage=self.lacks.append,
        )
        self.transport = FakeTransport(self.device)

    def works(self) -> None:
        """Each queue answers."""
        for queue in QUEUES:
            head = self.transport.drivers[queue].send([bytes(16)], [512, 1])
            assert self.transport.wait(head, queue, PATIENCE) == 513

    def close(self) -> None:
        self.transport.close()
        self.device.close()


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def bench(path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(path, Host(), request.param)
    yield made
    made.close()
    assert device_threads() == []


def held() -> list[str]:
    """The descriptors and threads of this process."""
    return [*sorted(os.listdir("/proc/self/fd")), *sorted(t.name for t in threading.enumerate())]


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """This process may open only ``count`` more descriptors."""
    listed = os.listdir("/proc/self/fd")  # and the descriptor that was used for this
    used = {int(fd) for fd in listed if os.path.lexists(f"/proc/self/fd/{fd}")}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (fd for fd in range(soft) if fd not in used)
    limit = next(islice(free, count, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def no_more_threads(started: int) -> Iterator[None]:
    """Only ``started`` more threads can be started."""
    left = started
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        nonlocal left
        if not left:
            raise RuntimeError("can't start new thread")  # as CPython has it
        left -= 1
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", limited)
        yield


# -- the start of the device ------------------------------------------------------


@pytest.mark.parametrize("made", QUEUES)
@pytest.mark.parametrize(("error", "says"), SHORTAGES)
def test_no_engine(bench: Bench, made: int, error: Exception, says: str) -> None:
    bench.host.error = error
    before = held()
    for left in (made, 1000, made, 1000):
        bench.host.left = left
        bench.lacks.clear()
        bench.transport.broken.clear()
        bench.transport.start()
        if left == made:
            assert bench.lacks == [says]
            assert bench.transport.broken == [f"the host cannot serve the disk: {says}"]
            assert held() == before
        else:
            bench.works()
            assert (bench.lacks, bench.transport.broken) == ([], [])
        bench.transport.reset()
    assert held() == before


@pytest.mark.parametrize("started", QUEUES)
def test_no_thread(path: Path, started: int) -> None:
    bench = Bench(path, Host(SyncEngine), threads=len(QUEUES))
    before = held()
    for _ in range(2):
        with no_more_threads(started):
            bench.transport.start()
        assert held() == before
        assert len(bench.transport.broken) == 1
        assert bench.lacks == ["the host has no thread for a disk"]
        bench.transport.reset()
        bench.transport.start()
        bench.works()
        bench.transport.reset()
        assert held() == before
        bench.lacks.clear()
        bench.transport.broken.clear()
    bench.close()


@pytest.mark.parametrize("started", [0, 1, 2])
def test_few_threads_for_an_engine(path: Path, started: int) -> None:
    """One is enough. Without any, requests fail like all that the host cannot carry out."""
    with disks(path) as make:
        disk = make(engine=ThreadsEngine)
        with no_more_threads(started):
            heads = [disk.send(IN, sector, size=512) for sector in range(8)]
            answers = [disk.wait(head)[:2] for head in heads]
        content = path.read_bytes()
        right = [(OK, content[at * 512 : at * 512 + 512]) for at in range(8)]
        if started:
            assert answers == right
        else:
            assert [status for status, _ in answers] == [IOERR] * 8
        assert disk.do(IN, 0, size=512) == right[0]
    assert device_threads() == []


@engines(["sync", "threads", "io_uring"])
@pytest.mark.parametrize("snapshot", [False, True], ids=["", "snapshot"])
def test_a_start_fails_cleanly_with_each_number_of_descriptors(
    path: Path, factory: EngineFactory, snapshot: bool
) -> None:
    """Wherever they run out: nothing is left behind, and with enough of them the disk works."""
    image = Image(path, readonly=snapshot)
    if snapshot:
        image = over = OverlayImage(image)
        factory = over.wrap(factory)
    device = block_device(image, engine=factory, num_queues=2, iothreads=2)
    with FakeTransport(device) as transport:
        before = held()
        starts = 0
        for count in range(100):
            with descriptors(count):
                transport.start()
            if not transport.broken:
                break
            assert len(transport.broken) == 1
            assert "too many open files" in transport.broken.pop()
            assert held() == before
            transport.reset()
            starts += 1
        assert starts >= 4, "each thread has two"
        for queue in range(2):
            head = transport.drivers[queue].send([bytes(16)], [512, 1])
            assert transport.wait(head, queue, PATIENCE) == 513
        transport.reset()
        assert held() == before
    device.close()


@engines(["threads", "io_uring"])
@pytest.mark.parametrize("snapshot", [False, True], ids=["", "snapshot"])
def test_an_exception_keeps_nothing_open(
    path: Path, factory: EngineFactory, snapshot: bool
) -> None:
    """However long it lives, as with the frames of its traceback on some versions of Python."""
    image = Image(path, readonly=snapshot)
    if snapshot:
        image = over = OverlayImage(image)
        factory = over.wrap(factory)
    memory = GuestMemory(1 << 20)
    before = held()
    kept: list[Exception] = []
    for count in range(100):
        with descriptors(count):
            try:
                engine = factory(image, memory.ram)
            except (OSError, HostError) as error:
                kept.append(error)
            else:
                break
        assert held() == before
    engine.close()
    assert kept
    assert held() == before
    image.close()
    kept.clear()
    memory.close()


@pytest.mark.parametrize("made", QUEUES)
@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EBADF, "Bad descriptor")])
def test_a_bug_is_no_shortage(bench: Bench, made: int, error: Exception) -> None:
    """The exception reaches the vCPU's thread and ends the run."""
    before = held()
    bench.host.error = error
    bench.host.left = made
    with pytest.raises(type(error)) as caught:
        bench.transport.start()
    assert caught.value is error
    assert (bench.lacks, bench.transport.broken) == ([], [])
    caught = None  # type: ignore[assignment]  # which refers to the half-made objects
    bench.device.reset()
    assert held() == before


# -- a queue alone -----------------------------------------------------------------


@pytest.mark.parametrize(("error", "says"), SHORTAGES)
def test_no_engine_for_a_queue_that_was_reset(bench: Bench, error: Exception, says: str) -> None:
    before = held()
    bench.host.error = error
    for _ in range(2):
        bench.transport.start()
        bench.works()
        bench.transport.stop_queue(1)
        bench.host.left = 0
        bench.transport.start_queue(1)
        assert bench.lacks == [says]
        assert len(bench.transport.broken) == 1
        assert held() == before, "the others are not served either"
        for queue in (1, 0):
            bench.transport.stop_queue(queue)
        bench.device.resume()
        assert bench.device.pause()
        bench.transport.reset()
        bench.host.left = 1000
        bench.lacks.clear()
        bench.transport.broken.clear()
    bench.transport.start()
    bench.works()


def test_a_queue_restarts_when_the_shortage_is_over(bench: Bench) -> None:
    bench.transport.start()
    bench.transport.stop_queue(1)
    bench.transport.start_queue(1)
    bench.works()
    assert (bench.lacks, bench.transport.broken) == ([], [])


class PoorEpoll:
    """Registers ``left`` more descriptors; ``epoll`` does the rest."""

    def __init__(self, epoll: select.epoll, left: int) -> None:
        self._epoll = epoll
        self._left = left

    def register(self, fd: int, events: int) -> None:
        if not self._left:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        self._left -= 1
        self._epoll.register(fd, events)

    def __getattr__(self, name: str) -> object:
        return getattr(self._epoll, name)


@pytest.mark.parametrize("left", [0, 1])
def test_a_queue_that_cannot_be_watched(bench: Bench, left: int) -> None:
    """Neither its notifications nor its engine: the disk needs a reset, and the run goes on."""
    before = held()
    bench.transport.start()
    bench.transport.stop_queue(1)
    for thread in bench.device._threads._threads:
        thread._loop._epoll = PoorEpoll(thread._loop._epoll, left)  # type: ignore[assignment]
    bench.transport.start_queue(1)
    assert bench.lacks == ["cannot allocate memory"]
    assert bench.device.failure is None
    assert held() == before
    bench.transport.reset()
    bench.transport.start()
    bench.works()


# -- in the disk's thread -------------------------------------------------------------


def test_a_thread_that_may_not_run_on_its_cpus(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(cpus: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    bench = Bench(path, Host(SyncEngine))
    with monkeypatch.context() as patch:
        patch.setattr(io_thread, "run_on", refused)
        bench.transport.start()
        says = bench.transport.wait_broken()
    until(lambda: bench.lacks)
    assert says == f"the host cannot serve the disk: {bench.lacks[0]}"
    assert "may not run on CPU" in bench.lacks[0]
    assert bench.device.failure is None
    bench.transport.reset()
    bench.transport.start()
    bench.works()
    bench.close()


def test_no_memory_for_zeros_to_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request fails like all that the host cannot carry out."""

    def poor(*arguments: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with disks(path) as make:
        disk = make()
        disk.device.image.allocation.zero = lambda *_: errno.EOPNOTSUPP
        zeroes = pack("<QII", 0, 8, 0)
        with monkeypatch.context() as patch:
            patch.setattr(mmap, "mmap", poor)
            assert disk.do(VIRTIO_BLK_T_WRITE_ZEROES, 0, zeroes)[0] == IOERR
        assert disk.do(VIRTIO_BLK_T_WRITE_ZEROES, 0, zeroes)[0] == OK
        assert path.read_bytes()[:4096] == bytes(4096)


# -- while it needs a reset -----------------------------------------------------------


def test_a_disk_that_needs_a_reset_may_shrink(bench: Bench, path: Path) -> None:
    bench.host.left = 1
    bench.transport.start()
    bench.device.resize(512)
    bench.device.limits = bench.device.limits
    assert path.stat().st_size == 512
    assert bench.transport.config_changes == 1
    bench.transport.reset()
    bench.host.left = 1000
    bench.transport.start()
    bench.works()


class Lacking:
    """Wraps a rig's engines: there are none while ``lacking``."""

    def __init__(self, device: VirtioBlk) -> None:
        self.lacking = False
        self._make: Callable[[Image, Ram], Engine] = device._assembly._engine
        device._assembly._engine = self.engine

    def engine(self, image: Image, ram: Ram) -> Engine:
        if self.lacking:
            raise FULL
        return self._make(image, ram)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_driver_behind_pci(packed: bool) -> None:
    """It sees the status bit, and whatever it does then: only the reset helps."""
    with Rig(DiskOptions(packed=packed, num_queues=2, queue_size=16)) as rig:
        host = Lacking(rig.device)
        features = rig.function.state.offered
        assert features & VIRTIO_F_RING_RESET
        for at_start in (True, False, True):
            host.lacking = at_start
            rig.start(features)
            host.lacking = True
            if not at_start:
                rig.serve()
                reset_queue(rig, 1)
                rig.place(1)
            assert rig.read(0x14, 1) & VIRTIO_CONFIG_S_NEEDS_RESET
            assert (
                rig.function.state.reason
                == "the host cannot serve the disk: too many open files (ulimit -n)"
            )
            for queue in range(2):
                rig.notify(queue)
                rig.serve()
                reset_queue(rig, queue)
                rig.place(queue)
                rig.notify(queue)
                rig.serve()
            host.lacking = False
            rig.works(features)


def reset_queue(rig: Rig, queue: int) -> None:
    rig.write(0x16, 2, queue)
    rig.write(0x3A, 2, 1)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC])
def test_shortages(number: int) -> None:
    assert shortage(OSError(number, os.strerror(number))).startswith(os.strerror(number).lower())


@pytest.mark.parametrize("error", [OSError(errno.EPERM, "no"), ValueError("EMFILE"), MemoryError()])
def test_other_errors_are_no_shortage(error: Exception) -> None:
    assert shortage(error) == ""
