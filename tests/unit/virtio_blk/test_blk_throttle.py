"""A disk with rate limits at work: limited requests start in time, and delay no other request.

The limits make requests wait for minutes, or for milliseconds. No test measures
the real time.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from blk_bench import EngineScript, Maker, benches, fill
from blk_device import FLUSH, IN, OK, OUT
from blk_device import Disk as StartedDisk
from blk_requests import request_of
from patience import ends as ended
from patience import goes_on, in_thread, patience

from pykvm.devices.virtio_blk import ErrorAction, Image, MergePolicy, RateLimits, VirtioBlk
from pykvm.devices.virtio_blk.core.planner import Limits, Planner
from pykvm.devices.virtio_blk.core.scheduler import Schedule
from pykvm.devices.virtio_blk.core.throttle import Throttle
from pykvm.devices.virtio_blk.options import DiskOptions
from pykvm.testing.fake_transport import FakeTransport

SLOW = RateLimits(iops_wr=1, iops_wr_max=2)
"""Two writes, and then a second until the next."""
HOURS = RateLimits(bps_wr=1)
"""One write, and then minutes until the next."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def make(path: Path) -> Iterator[Maker]:
    with benches(path, merge=MergePolicy.OFF) as maker:
        yield maker


def test_all_requests_are_done_in_order(make: Maker) -> None:
    script = EngineScript()
    bench = make(script, limits=RateLimits(iops=1000, iops_max=1))
    heads = [bench.write(index, fill("w")) for index in range(6)]
    heads += [bench.read(10), bench.flush(), bench.read(11)]
    assert [bench.wait(head)[0] for head in heads] == [OK] * 9
    log = script.take_log()
    assert [one for one in log if one[0] == "write"] == [("write", i, 1) for i in range(6)]
    assert log.index(("flush", 0, 0)) > log.index(("write", 5, 1))


def test_reads_go_on_while_writes_wait(make: Maker) -> None:
    script = EngineScript()
    bench = make(script, limits=HOURS)
    first, second = bench.write(0, fill("a")), bench.write(1, fill("b"))
    assert bench.wait(first)[0] == OK
    for _ in range(3):
        assert bench.wait(bench.read(1))[0] == OK
    flush = bench.flush()
    assert bench.wait(bench.read(1))[0] == OK
    assert bench.answered() == [], "the flush waits for the write before it"
    bench.device.limits = RateLimits()
    assert bench.wait(second)[0] == bench.wait(flush)[0] == OK


def test_limits_may_change_at_any_time(make: Maker) -> None:
    bench = make(EngineScript(), limits=HOURS)
    assert bench.device.limits == HOURS
    heads = [bench.write(index, fill("w")) for index in range(4)]
    assert bench.wait(heads[0])[0] == OK
    bench.device.limits = RateLimits(iops=5000)
    assert [bench.wait(head)[0] for head in heads[1:]] == [OK] * 3
    bench.device.limits = HOURS
    heads = [bench.write(index, fill("w")) for index in range(2)]
    assert bench.wait(heads[0])[0] == OK
    assert bench.wait(bench.read(0))[0] == OK
    assert bench.answered() == []


def test_a_pause_does_not_wait_for_limited_requests(make: Maker) -> None:
    script = EngineScript()
    bench = make(script, limits=HOURS)
    heads = [bench.write(index, fill("w")) for index in range(3)]
    assert bench.wait(heads[0])[0] == OK
    assert bench.device.pause(timeout=patience())
    bench.device.limits = RateLimits()
    assert script.take_log() == [("write", 0, 1)], "nothing starts in a paused disk"
    bench.device.resume()
    assert [bench.wait(head)[0] for head in heads[1:]] == [OK] * 2


def test_a_resumed_disk_obeys_its_limits(make: Maker) -> None:
    script = EngineScript()
    bench = make(script, limits=HOURS)
    heads = [bench.write(index, fill("w")) for index in range(3)]
    assert bench.wait(heads[0])[0] == OK
    bench.device.pause()
    bench.device.resume()
    assert bench.wait(bench.read(0))[0] == OK
    assert script.take_log() == [("write", 0, 1), ("read", 0, 1)]


def test_a_reset_does_not_wait_for_limited_requests(make: Maker) -> None:
    script = EngineScript(slow=True)
    bench = make(script, limits=HOURS)
    for index in range(3):
        bench.write(index, fill("w"))
    bench.kick()
    script.wait_for(1)
    resetting = in_thread(bench.transport.reset)
    assert goes_on(resetting)
    script.release()
    assert ended(resetting)
    assert script.take_log() == [("write", 0, 1)]
    script.slow = False
    bench.transport.start()
    assert bench.wait(bench.read(0))[0] == OK


def test_waiting_costs_no_processor_time(make: Maker) -> None:
    """Nobody looks again and again whether its time has come."""
    bench = make(EngineScript(), limits=SLOW)
    heads = [bench.write(index, fill("w")) for index in range(3)]
    assert bench.wait(heads[1])[0] == OK
    before = resource.getrusage(resource.RUSAGE_SELF)
    assert bench.wait(heads[2])[0] == OK
    after = resource.getrusage(resource.RUSAGE_SELF)
    switches = after.ru_nvcsw - before.ru_nvcsw
    assert switches < 50, "it slept until its time had come"


def test_a_wait_of_years_works(make: Maker) -> None:
    """It is longer than epoll can sleep."""
    bench = make(EngineScript(), limits=RateLimits(bps_rd=1))
    bench.device.resize(3 << 20)
    first, second = bench.read(0, 6144), bench.read(1)
    assert bench.wait(first)[0] == OK
    assert bench.wait(bench.write(0, fill("w")))[0] == OK
    assert bench.answered() == []
    bench.device.limits = RateLimits()
    assert bench.wait(second)[0] == OK


def test_limits_may_be_removed_while_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread takes them away between two looks at them."""
    schedule = Schedule(Planner(MergePolicy.OFF, Limits()), lambda request: ErrorAction.REPORT)
    schedule.throttle = Throttle(SLOW, nullcontext())

    def now() -> int:
        schedule.throttle = None
        return 1

    schedule.add([request_of(0, OUT, 0, 512)])
    monkeypatch.setattr(time, "monotonic_ns", now)
    assert len(schedule.take()) == 1


def test_queues_share_the_limits(path: Path) -> None:
    """Each of several, on threads of their own, gets its share; the disk gets all of it."""
    path.write_bytes(bytes(1 << 16))
    limits = RateLimits(iops=2000, iops_max=1)
    device = VirtioBlk(
        Image(path), DiskOptions(limits=limits, num_queues=3, iothreads=3, merge=MergePolicy.OFF)
    )
    with FakeTransport(device) as transport:
        transport.start()
        disk = StartedDisk(transport, device)
        heads = {
            queue: [driver.send([bytes(16)], [512, 1]) for _ in range(20)]
            for queue, driver in enumerate(transport.drivers)
        }
        for queue in heads:
            transport.submit(queue)
        for queue, sent in heads.items():
            for head in sent:
                transport.wait(head, queue)
        assert disk.stats()["rd_operations"] == 60
        assert disk.do(OUT, 0, bytes(512)) == (OK, b"")
        assert disk.do(FLUSH) == (OK, b"")
        assert disk.do(IN, 0, size=512) == (OK, bytes(512))
    device.close()
