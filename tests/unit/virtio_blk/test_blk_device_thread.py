"""The whole block device: the start and the end of its thread, and its failures."""

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from blk_device import IN, OK, Disk, Maker, device_threads, disks
from patience import PATIENCE, ends, in_thread, until

from pykvm.devices.virtio_blk import DiskOptions, Image, SyncEngine, VirtioBlk
from pykvm.devices.virtio_blk.core.operation import Operation
from pykvm.devices.virtio_blk.serving import io_thread
from pykvm.errors import UsageError
from pykvm.memory.ram import Ram
from pykvm.testing.fake_transport import FakeTransport
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
)

# -- threads ---------------------------------------------------------------


def test_requests_in_the_ring_at_the_start_are_served_without_a_kick(make_disk: Maker) -> None:
    disk = make_disk(start=False)
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
def test_requests_that_arrive_during_a_drain_are_served_without_a_kick(
    make_disk: Maker, ring: int
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

    disk = make_disk(engine=Busy, start=False, features=ring | VIRTIO_F_VERSION_1)
    heads.append(disk.send(IN, 0, size=512))
    disk.transport.drivers[0].publish()
    disk.transport.start()
    until(lambda: disk.stats().get("rd_operations", 0) >= 5, "a request was left lying")
    assert notify_wanted == [False] * 4
    assert all(disk.wait(head)[0] == OK for head in heads)


def test_an_idle_device_uses_no_cpu(disk: Disk) -> None:
    assert disk.do(IN, 0, size=512)[0] == OK
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1


def test_two_disks_at_once(make_disk: Maker, disk_path: Path) -> None:
    disks = [make_disk(readonly=True) for _ in range(2)]
    file = disk_path.read_bytes()
    for round_ in range(20):
        heads = [disk.send(IN, round_, size=512) for disk in disks]
        for disk, head in zip(disks, heads, strict=True):
            assert disk.wait(head)[1] == file[round_ * 512 :][:512]


def test_a_second_writer_is_refused(disk: Disk, disk_path: Path) -> None:
    with pytest.raises(UsageError, match="in use"):
        Image(disk_path)
    disk.transport.close()
    disk.device.close()
    Image(disk_path).close()


def test_reset_and_start_again(disk: Disk) -> None:
    for _ in range(5):
        assert disk.do(IN, 0, size=512)[0] == OK
        disk.transport.reset()
        assert device_threads() == []
        disk.transport.start()
    assert disk.stats()["rd_operations"] == 5


def test_reset_when_not_active(make_disk: Maker) -> None:
    disk = make_disk(start=False)
    disk.device.reset()
    disk.transport.start()
    assert disk.do(IN, 0, size=512)[0] == OK


def test_closing_leaves_nothing_behind(disk_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    ram = Ram.flat(1 << 20)
    device = VirtioBlk(Image(disk_path), DiskOptions(queue_size=16))
    with FakeTransport(device, ram) as transport:
        transport.start()
        disk = Disk(transport, device)
        assert disk.do(IN, 0, size=512)[0] == OK
    device.close()
    assert set(os.listdir("/proc/self/fd")) == before
    assert device_threads() == []
    transport.drivers.clear()
    ram.release()


def test_an_image_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff.img"))
    path.write_bytes(bytes(512))
    with disks(path) as make:
        disk = make()
        assert disk.do(IN, 0, size=512) == (OK, bytes(512))
        assert disk.device.pause(PATIENCE)


# -- failures -------------------------------------------------------


def test_a_bug_before_a_thread_serves_anything_is_not_silent(
    make_disk: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(name: str) -> None:
        raise ZeroDivisionError

    seen: list[BaseException] = []
    monkeypatch.setattr(io_thread, "show_thread_name", buggy)
    disk = make_disk(on_failure=seen.append)
    assert "ZeroDivisionError" in disk.transport.wait_broken()
    assert disk.device.pause(PATIENCE)
    assert ends(in_thread(disk.transport.stop_queue))
    assert ends(in_thread(disk.transport.reset))
    assert [type(error) for error in seen] == [ZeroDivisionError]


def test_a_bug_is_reported_even_if_telling_the_driver_fails(
    make_disk: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that waits for the end of the run must not wait for ever."""

    def broken(reason: str) -> None:
        raise OSError

    class Buggy(SyncEngine):
        def submit(self, operations: Sequence[Operation]) -> None:
            raise ZeroDivisionError

    seen: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    disk = make_disk(engine=Buggy, on_failure=seen.append, start=False)
    disk.transport._broken = broken  # type: ignore[method-assign]
    disk.transport.start()
    disk.send(IN, 0, size=512)
    disk.transport.submit()
    until(lambda: seen)
    assert ends(in_thread(disk.transport.reset))
    assert [type(error) for error in seen] == [ZeroDivisionError]


def test_a_broken_ring_ends_the_service_until_reset(disk: Disk) -> None:
    driver = disk.transport.drivers[0]
    good = disk.send(IN, 0, size=512)
    driver.spoil()
    disk.transport.submit()
    assert "queue 0" in disk.transport.wait_broken()
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


def test_an_index_that_jumps_breaks_the_ring(disk_path: Path) -> None:
    with disks(disk_path) as make:
        transport = make().transport
        transport.drivers[0].avail_index = 5000
        transport.submit()
        transport.notify()
        assert "avail.idx" in transport.wait_broken()


def test_a_bug_in_the_device_is_not_silent(make_disk: Maker) -> None:
    seen: list[BaseException] = []

    class Buggy(SyncEngine):
        def submit(self, operations: Sequence[Operation]) -> None:
            raise ZeroDivisionError("a bug")

    disk = make_disk(engine=Buggy, on_failure=seen.append)
    disk.send(IN, 0, size=512)
    disk.transport.submit()
    assert "ZeroDivisionError" in disk.transport.wait_broken()
    disk.transport.reset()
    assert isinstance(disk.device.failure, ZeroDivisionError)
    assert seen == [disk.device.failure]


@pytest.mark.interpreted
def test_a_bug_is_reported_without_a_callback(
    make_disk: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    disk = make_disk()
    monkeypatch.setattr(os, "preadv", lambda *args: 1 // 0)
    disk.send(IN, 0, size=512)
    disk.transport.submit()
    disk.transport.wait_broken()
    disk.transport.reset()
    assert seen[0].exc_type is ZeroDivisionError
