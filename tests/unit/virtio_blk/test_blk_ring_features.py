"""Ring features of a disk, turned on and off: IN_ORDER, RING_RESET and more."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from blk_bench import EngineScript, Maker, fill, stopping_benches
from blk_device import IN, OK, device_threads, disks
from patience import ends, goes_on, in_thread

from pykvm.devices.virtio_blk import DiskOptions
from pykvm.devices.virtio_blk.features import offered
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
)

DEFAULT = VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_RING_RESET


@pytest.fixture
def make(path: Path, packed: bool) -> Iterator[Maker]:
    """Of two queues."""
    with stopping_benches(path, packed=packed, num_queues=2) as maker:
        yield maker
    assert device_threads() == []


@pytest.mark.parametrize(
    ("options", "features"),
    [
        ({}, DEFAULT),
        ({"packed": True}, DEFAULT | VIRTIO_F_RING_PACKED),
        ({"in_order": True}, DEFAULT | VIRTIO_F_IN_ORDER),
        ({"notification_data": True}, DEFAULT | VIRTIO_F_NOTIFICATION_DATA),
        ({"indirect_desc": False}, VIRTIO_F_EVENT_IDX | VIRTIO_F_RING_RESET),
        ({"event_idx": False}, VIRTIO_F_INDIRECT_DESC | VIRTIO_F_RING_RESET),
        ({"queue_reset": False}, VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX),
    ],
)
def test_each_feature_is_offered_and_turned_off(
    path: Path, options: dict[str, bool], features: int
) -> None:
    ring = 0x1FF_3000_0000
    assert offered(DiskOptions(**options), readonly=False) & ring == features
    with disks(path) as maker:
        disk = maker(**options)
        assert disk.device.features & ring == features
        assert disk.do(IN, 3, size=512)[0] == OK


# -- IN_ORDER -----------------------------------------------------------------


def test_in_order_answers_wait_for_those_before_them(make: Maker) -> None:
    script = EngineScript(slow=True)
    bench = make(script, in_order=True, num_queues=1)
    heads = [bench.read(sector) for sector in range(3)]
    bench.kick()
    script.wait_for(3)
    script.release(2)
    script.release(1)
    bench.device.pause(0)  # has complete() run to its end
    bench.device.resume()
    assert bench.answered() == []
    script.release(0)
    for head in heads:
        assert bench.wait(head) == (OK, fill("o"))


def test_in_order_refused_requests_wait_too(make: Maker) -> None:
    script = EngineScript(slow=True)
    bench = make(script, in_order=True, num_queues=1)
    heads = [bench.read(0), bench.send(77), bench.read(1)]
    bench.kick()
    script.wait_for(2)
    script.release(1)
    script.release(0)
    bench.wait(heads[-1])
    assert bench.transport.done.keys() == {(0, head) for head in heads[:-1]}


# -- RING_RESET ---------------------------------------------------------------


def test_a_stopped_queue_awaits_operations_in_flight_and_answers_nothing(make: Maker) -> None:
    script = EngineScript(slow=True)
    bench = make(script)
    bench.read(0, queue=1)
    bench.kick(1)
    script.wait_for(1)
    stopping = in_thread(lambda: bench.transport.stop_queue(1))
    assert goes_on(stopping)
    script.release()
    assert ends(stopping)
    assert bench.answered(1) == []
    bench.kick(1)
    assert bench.answered(1) == []


@pytest.mark.parametrize("iothreads", [1, 2])
def test_a_queue_works_while_the_other_is_stopped_and_restarted(
    make: Maker, iothreads: int
) -> None:
    bench = make(EngineScript(), iothreads=iothreads)
    threads = bench.device._threads
    for size in (0, 8, 16):
        for queue in (0, 1):
            assert bench.wait(bench.read(1, queue=queue), queue) == (OK, fill("o"))
        bench.transport.stop_queue(1, size)
        assert bench.wait(bench.read(2)) == (OK, fill("o"))
        bench.transport.start_queue(1)
        assert [thread.load for thread in threads._threads] == [2 // iothreads] * iothreads
    assert bench.transport.drivers[1].size == 16
    assert bench.wait(bench.read(3, queue=1), 1) == (OK, fill("o"))
    assert bench.stats()["rd_operations"] == 10


def test_a_kept_request_is_dropped_with_its_queue(make: Maker) -> None:
    broken = [True]
    script = EngineScript(lambda operation: 5 if broken else 0)
    bench = make(script)
    bench.read(1)
    bench.kick()
    bench.wait_errors(1)
    bench.transport.stop_queue(0)
    bench.transport.start_queue(0)
    head = bench.read(2)
    bench.kick()
    broken.clear()
    script.take_log()
    bench.device.resume()
    assert bench.wait(head) == (OK, fill("o"))
    assert script.take_log() == [("read", 2, 1)]


def test_a_queue_that_starts_while_the_disk_is_paused_waits(make: Maker) -> None:
    script = EngineScript(slow=True)
    bench = make(script)
    bench.device.pause()
    bench.transport.stop_queue(0)
    head = bench.read(2)
    bench.transport.drivers[0].publish()
    bench.transport.start_queue(0)
    serving = in_thread(lambda: script.wait_for(1))
    assert goes_on(serving)
    bench.device.resume()
    assert ends(serving)
    script.release()
    assert bench.wait(head) == (OK, fill("o"))


def test_a_stopped_queue_is_not_looked_at_again(make: Maker) -> None:
    bench = make(EngineScript())
    bench.device.pause()
    head = bench.send(77)  # would be refused without the engine
    bench.kick()
    bench.device.stop_queue(0)
    bench.device.resume()
    assert bench.wait(bench.read(1, queue=1), 1) == (OK, fill("o"))
    (status,) = bench.transport.drivers[0].outstanding[head]
    assert bench.transport.ram.read(status.address, 1) == b"\xaa"


def test_all_queues_may_be_stopped_and_the_device_reset(make: Maker) -> None:
    bench = make(EngineScript(), iothreads=2)
    for queue in (0, 1):
        bench.transport.stop_queue(queue)
    bench.device.pause()
    bench.device.resume()
    for queue in (1, 0):
        bench.transport.start_queue(queue)
        assert bench.wait(bench.read(1, queue=queue), queue) == (OK, fill("o"))
    bench.transport.stop_queue(1)
    bench.transport.reset()
    bench.transport.start()
    assert bench.wait(bench.read(1, queue=1), 1) == (OK, fill("o"))


def test_a_queue_can_be_stopped_after_another_broke(make: Maker) -> None:
    bench = make(EngineScript())
    bench.transport.drivers[1].spoil()
    bench.kick(1)
    bench.transport.wait_broken()
    bench.transport.stop_queue(0)
