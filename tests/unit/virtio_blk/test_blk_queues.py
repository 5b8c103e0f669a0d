"""A disk with several queues, served by one thread or by one for each."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread

import pytest
from blk_bench import Bench, EngineScript, Faults, Maker, benches, fill, stopping_benches
from blk_device import block_device, device_threads, disk_file
from patience import ends, goes_on, in_thread

from pykvm.devices.virtio_blk import DiskOptions, ErrorPolicy, Image, SyncEngine
from pykvm.devices.virtio_blk.constants import (
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
)
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.serving.io_thread_group import IoThreadGroup
from pykvm.errors import UsageError
from pykvm.testing.fake_transport import FakeTransport

OK, IOERR = VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR
FULL = errno.ENOSPC
QUEUES = range(3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def make(path: Path, request: pytest.FixtureRequest) -> Iterator[Maker]:
    """Of three queues, unless told otherwise."""
    with stopping_benches(path, num_queues=3, iothreads=request.param) as maker:
        yield maker
    assert device_threads() == []


def one_each(send: Callable[[int], int], bench: Bench) -> list[int]:
    """The heads of the requests that ``send`` put into each queue, kicked."""
    heads = [send(queue) for queue in QUEUES]
    for queue in QUEUES:
        bench.kick(queue)
    return heads


# -- the driver's view ------------------------------------------------------


@pytest.mark.parametrize("queues", [1, 2, 64])
def test_several_queues_are_offered(path: Path, queues: int) -> None:
    path.write_bytes(bytes(512))
    device = block_device(Image(path), num_queues=queues, queue_size=8)
    assert bool(device.features & VIRTIO_BLK_F_MQ) == (queues > 1)
    assert list(device.queue_sizes) == [8] * queues
    # num_queues, after writeback and a byte of padding (§5.2.4).
    assert int.from_bytes(device.config[34:36], "little") == (queues if queues > 1 else 0)
    device.close()


@pytest.mark.parametrize(
    ("queues", "threads", "says"),
    [
        (0, 1, "num-queues cannot be 0; use 1 to 64"),
        (65, 1, "use 1 to 64"),
        (2, -1, "iothreads cannot be -1"),
        (2, 65, "iothreads cannot be 65"),
        (2, 3, "3 threads cannot serve 2 queues"),
        (1, 2, "2 threads cannot serve one queue"),
    ],
)
def test_impossible_numbers_are_refused(queues: int, threads: int, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        DiskOptions(num_queues=queues, iothreads=threads)
    assert says in str(caught.value)


def test_each_queue_has_its_own_answers_and_interrupts(make: Maker) -> None:
    bench = make(EngineScript())
    for queue in QUEUES:
        head = bench.write(queue, fill(f"{queue}"), queue)
        assert bench.wait(head, queue) == (OK, b"")
        bench.device.pause()  # the answer is there before the interrupt
        assert bench.transport.interrupts == [queue]
        bench.transport.interrupts.clear()
        bench.device.resume()
    assert bench.wait(bench.read(0, 3), 0) == (OK, fill("0") + fill("1") + fill("2"))


def test_requests_in_all_rings_at_the_start_are_served_without_a_kick(path: Path) -> None:
    path.write_bytes(fill("o"))
    with FakeTransport(block_device(Image(path), num_queues=2, queue_size=8)) as transport:
        heads = [driver.send([bytes(16)], [512, 1]) for driver in transport.drivers]
        for driver in transport.drivers:
            driver.publish()
        transport.start()
        for queue, head in enumerate(heads):
            assert transport.wait(head, queue) == 513
    transport.device.close()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("disabled", [(), (0,), (1,), (0, 2), (0, 1, 2)])
def test_a_driver_may_use_fewer(path: Path, threads: int, disabled: tuple[int, ...]) -> None:
    path.write_bytes(fill("o"))
    device = block_device(Image(path), num_queues=3, iothreads=threads)
    with FakeTransport(device, disabled=disabled) as transport:
        transport.start()
        for queue in QUEUES:
            head = transport.drivers[queue].send([bytes(16)], [512, 1])
            if queue not in disabled:
                assert transport.wait(head, queue) == 513
            transport.submit(queue)
        used = len(QUEUES) - len(disabled)
        assert len(device_threads()) == min(threads, used)
        assert device.pause()
        device.resume()
        assert len(transport.interrupts) == used
    device.close()


def test_a_driver_that_knows_one_queue_uses_the_first(path: Path) -> None:
    path.write_bytes(fill("o"))
    device = block_device(Image(path), num_queues=2, iothreads=2)
    features = device.features & ~VIRTIO_BLK_F_MQ
    with FakeTransport(device, features=features, disabled=[1]) as transport:
        transport.start()
        assert transport.wait(transport.drivers[0].send([bytes(16)], [512, 1])) == 513
    device.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_run_on_the_chosen_cpus(path: Path, threads: int) -> None:
    path.write_bytes(fill("o"))
    last = max(os.sched_getaffinity(0))
    seen: list[set[int]] = []

    class Engine(SyncEngine):
        def submit(self, operations: Sequence[Operation]) -> None:
            seen.append(os.sched_getaffinity(0))
            super().submit(operations)

    options = {"num_queues": 2, "iothreads": threads, "cpu_affinity": frozenset([last])}
    before = os.sched_getaffinity(0)
    device = block_device(Image(path), engine=Engine, **options)
    with FakeTransport(device) as transport:
        transport.start()
        for queue, driver in enumerate(transport.drivers):
            assert transport.wait(driver.send([bytes(16)], [512, 1]), queue) == 513
    device.close()
    assert seen == [{last}] * 2
    assert os.sched_getaffinity(0) == before


# -- statistics ------------------------------------------------------------------


def test_statistics_add_up(make: Maker) -> None:
    bench = make(EngineScript())
    for queue in QUEUES:
        for sector in range(queue + 1):
            assert bench.wait(bench.read(sector, queue=queue), queue)[0] == OK
    assert [stats.rd_operations for stats in bench.device.queue_stats] == [1, 2, 3]
    assert bench.stats() == {"rd_operations": 6, "rd_bytes": 6 * 512}
    counts = bench.device.stats.as_dict()
    times = [stats.as_dict() for stats in bench.device.queue_stats]
    assert counts["rd_total_time_ns"] == sum(each["rd_total_time_ns"] for each in times)
    # It was the last queue that completed something last.
    assert counts["idle_time_ns"] <= times[2]["idle_time_ns"] < times[0]["idle_time_ns"]
    bench.transport.reset()
    assert bench.stats()["rd_operations"] == 6


# -- errors, stop and resume -------------------------------------------------------


def test_an_error_in_one_queue_halts_all(make: Maker, path: Path) -> None:
    """A resume retries the failed request, and the other queues serve new requests again."""
    bench = make(EngineScript(Faults({("write", 5): [FULL]})))
    failed = bench.write(5, fill("n"), 1)
    bench.kick(1)
    (error,) = bench.wait_errors(1)
    assert (error.sector, error.errno) == (5, FULL)
    bench.device.pause()
    bench.script.take_log()
    late = one_each(lambda queue: bench.read(queue, queue=queue), bench)
    assert goes_on(bench.io_thread)
    assert not any(bench.answered(queue) for queue in QUEUES)
    assert bench.script.take_log() == []
    bench.device.resume()
    assert bench.wait(failed, 1) == (OK, b"")
    for queue, head in zip(QUEUES, late, strict=True):
        assert bench.wait(head, queue) == (OK, fill("o"))
    assert path.read_bytes()[5 * 512 :][:512] == fill("n")


def test_an_error_halts_the_other_queues_before_the_owner_acts(make: Maker) -> None:
    """The owner needs time to pause the disk after the report."""
    bench = make(EngineScript(Faults({("write", 5): [FULL]})))
    bench.write(5, fill("n"), 2)
    bench.kick(2)
    bench.wait_errors(1)
    assert goes_on(bench.io_thread)  # the other threads were woken, and have obeyed by then
    bench.script.take_log()
    late = one_each(lambda queue: bench.read(queue, queue=queue), bench)
    assert goes_on(bench.io_thread)
    assert bench.script.take_log() == []
    bench.device.resume()
    assert all(bench.wait(late[queue], queue)[0] == OK for queue in QUEUES)


def test_errors_in_all_queues_at_once(make: Maker) -> None:
    """Each is told of, and each request comes again; as often as it fails."""
    faults = {("write", queue): [FULL] * (queue + 1) for queue in QUEUES}
    bench = make(EngineScript(Faults(faults)))  # type: ignore[arg-type]
    heads = one_each(lambda queue: bench.write(queue, fill("n"), queue), bench)
    heard = 0
    while heard < 6:
        heard = len(bench.wait_errors(heard + 1))
        bench.device.pause()
        bench.device.resume()
    assert [bench.wait(heads[queue], queue)[0] for queue in QUEUES] == [OK] * 3
    assert sorted(error.sector for error in bench.errors) == [0, 1, 1, 2, 2, 2]
    assert bench.stats() == {"wr_operations": 3, "wr_bytes": 3 * 512}


def test_a_pause_awaits_the_operations_of_every_queue(make: Maker) -> None:
    bench = make(EngineScript(slow=True))
    heads = one_each(lambda queue: bench.read(queue, queue=queue), bench)
    bench.script.wait_for(3)
    assert not bench.device.pause(0.001)
    pausing = in_thread(bench.device.pause)
    for _ in QUEUES:
        assert goes_on(pausing)
        bench.script.release()
    assert ends(pausing)
    for queue, head in zip(QUEUES, heads, strict=True):
        assert bench.answered(queue) == [head]
    bench.device.resume()


def test_a_resume_ends_a_pause_that_waits(make: Maker) -> None:
    bench = make(EngineScript(slow=True))
    heads = one_each(lambda queue: bench.read(queue, queue=queue), bench)
    bench.script.wait_for(3)
    pausing = in_thread(bench.device.pause)
    assert goes_on(pausing)
    bench.device.resume()
    assert ends(pausing)
    for _ in QUEUES:
        bench.script.release()
    assert [bench.wait(heads[queue], queue)[0] for queue in QUEUES] == [OK] * 3


# -- flushes -----------------------------------------------------------------------


def test_after_a_failed_sync_no_queue_can_flush(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux reports a lost write to one flush only (see Image.sync)."""
    report, syncs = ErrorPolicy.REPORT, iter([errno.EIO])

    def fdatasync(fd: int) -> None:
        for number in syncs:
            raise OSError(number, "")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with benches(path, werror=report, num_queues=3, iothreads=3) as make:
        bench = make(EngineScript())
        assert bench.wait(bench.flush(1), 1)[0] == IOERR
        assert [bench.wait(bench.flush(queue), queue)[0] for queue in QUEUES] == [IOERR] * 3


# -- reset, and failures ------------------------------------------------------


def test_reset_with_requests_of_all_queues_in_flight(make: Maker) -> None:
    bench = make(EngineScript(slow=True))
    one_each(lambda queue: bench.write(queue, fill("n"), queue), bench)
    bench.script.wait_for(3)
    resetting = in_thread(bench.transport.reset)
    for _ in QUEUES:
        assert goes_on(resetting)
        bench.script.release()
    assert ends(resetting)
    assert bench.transport.interrupts == []
    assert bench.stats() == {}
    assert device_threads() == []
    bench.transport.start()
    heads = one_each(lambda queue: bench.read(queue, queue=queue), bench)
    bench.script.wait_for(3)
    for _ in QUEUES:
        bench.script.release()
    assert [bench.wait(heads[queue], queue) for queue in QUEUES] == [(OK, fill("n"))] * 3


@pytest.mark.parametrize("halted", [False, True])
def test_a_queue_that_breaks_ends_the_service_of_all(make: Maker, halted: bool) -> None:
    bench = make(EngineScript())
    if halted:
        bench.device.pause()
    bench.transport.drivers[1].offer(9999)
    bench.kick(1)
    bench.device.resume()
    assert "9999" in bench.transport.wait_broken()
    for thread in bench.device._threads._threads:
        assert ends(thread._thread)
    for queue in (0, 2):
        bench.read(0, queue=queue)
        bench.transport.drivers[queue].offer(9999)
        bench.kick(queue)
        assert bench.answered(queue) == []
    assert len(bench.transport.broken) == 1
    assert bench.device.pause()
    bench.device.resume()
    bench.transport.reset()
    bench.transport.start()
    for queue in QUEUES:
        assert bench.wait(bench.read(0, queue=queue), queue) == (OK, fill("o"))


def test_a_bug_ends_the_service_of_all(make: Maker) -> None:
    failures: list[BaseException] = []
    bench = make(EngineScript(), on_failure=failures.append)
    engine = bench.device._threads._services[1].engine
    engine.submit = lambda operations: 1 // 0  # type: ignore[assignment, method-assign, misc]
    bench.read(0, queue=1)
    bench.kick(1)
    assert "ZeroDivisionError" in bench.transport.wait_broken()
    threads: list[Thread] = [thread._thread for thread in bench.device._threads._threads]
    assert all(ends(thread) for thread in threads)
    assert [type(failure) for failure in failures] == [ZeroDivisionError]
    assert bench.device.failure is failures[0]


def test_resets_leave_no_descriptor(tmp_path: Path) -> None:
    device = block_device(Image(disk_file(tmp_path)), num_queues=8, iothreads=4, queue_size=8)
    with FakeTransport(device) as transport:
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(3):
            transport.start()
            assert len(device_threads()) == 4
            transport.reset()
            assert set(os.listdir("/proc/self/fd")) == before
    device.close()


def test_only_the_first_broken_queue_is_reported() -> None:
    """Two threads may find theirs broken before either hears of the other."""
    told: list[str] = []
    threads = IoThreadGroup("virtio-blk", 2, told.append, lambda error: None)
    threads.start()
    threads._broken("queue 1")
    threads._broken("queue 0")
    threads.stop()
    assert told == ["queue 1"]
