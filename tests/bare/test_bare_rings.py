"""Ring features through the whole stack: packed queues, reset of a queue, notifications."""

from pathlib import Path
from struct import pack

import pytest

from pykvm.bare import (
    BlockDriver,
    BlockRequest,
    NotifyMode,
    Region,
    Script,
    WaitMode,
)
from pykvm.bare.block import DEFAULT_FEATURES, VIRTIO_BLK_T_IN
from pykvm.bare.run import run_script
from pykvm.machine import DiskConfig
from pykvm.virtio.constants import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
    VIRTQ_DESC_F_AVAIL,
    VIRTQ_DESC_F_NEXT,
)

pytestmark = pytest.mark.kvm

OK = 0
DEVICE_STATUS, NEEDS_RESET = 0x14, 64
QUEUE_SELECT, QUEUE_SIZE, QUEUE_ENABLE, QUEUE_RESET = 0x16, 0x18, 0x1C, 0x3A
PACKED = VIRTIO_F_RING_PACKED


def disk_of(folder: Path, content: bytes, **options: bool) -> DiskConfig:
    path = folder / "disk.img"
    path.write_bytes(content)
    return DiskConfig(path, **options)


@pytest.mark.parametrize("without", [0, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC])
@pytest.mark.parametrize("size", [16, 13])
def test_a_packed_queue_goes_round(tmp_path: Path, content: bytes, without: int, size: int):
    """Lists and tables, many rounds of a ring whose size need not be a power of 2."""
    disk = disk_of(tmp_path, content, packed=True)
    script = Script()
    driver = BlockDriver(script)
    driver.start((DEFAULT_FEATURES | PACKED) & ~without, size=size)
    indirect = not without & VIRTIO_F_INDIRECT_DESC
    batches = []
    for lap in range(20):
        requests = [
            BlockRequest.read(3 * lap, 1024),
            BlockRequest.write(1000 + lap, bytes([lap]) * 512),
            BlockRequest.read(lap, 512).laid_out(readable=[3, 8], writable=[100, 300]),
        ]
        if indirect:
            requests.append(BlockRequest.read(lap, 512).laid_out(indirect=True))
        batches.append(driver.submit(requests))
    run = run_script(script, [disk])
    assert run.results[driver.initialised].accepted & (PACKED | without) == PACKED
    for lap, batch in enumerate(batches):
        read, written, cut, *table = batch.outcomes(run.results)
        assert (read.status, read.data) == (OK, content[1536 * lap :][:1024])
        assert (written.status, written.length) == (OK, 1)
        for again in (cut, *table):
            assert (again.status, again.data) == (OK, content[512 * lap :][:512])
            assert again.length == 513
    expected = b"".join(bytes([lap]) * 512 for lap in range(20))
    assert disk.path.read_bytes()[512000:][: len(expected)] == expected


@pytest.mark.parametrize("wait", [WaitMode.SPIN, WaitMode.IDLE])
@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("msix", [True, False])
def test_packed_interrupts_arrive(
    tmp_path: Path, content: bytes, wait: WaitMode, event_idx: bool, msix: bool
):
    disk = disk_of(tmp_path, content, packed=True, event_idx=event_idx)
    script = Script()
    driver = BlockDriver(script)
    driver.start(DEFAULT_FEATURES | PACKED, msix=msix, intx=not msix, size=8)
    batches = [driver.submit([BlockRequest.read(i, 512)], wait=wait) for i in range(10)]
    run = run_script(script, [disk])
    for batch in batches:
        assert batch.wait is not None
        assert run.results[batch.wait].interrupts >= 1
        assert batch.outcomes(run.results)[0].status == OK


@pytest.mark.parametrize("wait", list(WaitMode))
def test_a_packed_load(tmp_path: Path, content: bytes, wait: WaitMode):
    disk = disk_of(tmp_path, content, packed=True)
    script = Script()
    BlockDriver(script).start(DEFAULT_FEATURES | PACKED, msix=True)
    load = script.load(VIRTIO_BLK_T_IN, total=2000, sectors=8, span=2048, depth=8, wait=wait)
    result = run_script(script, [disk]).results[load]
    assert (result.completed, result.errors) == (2000, 0)


def test_a_packed_ring_beyond_sense_needs_a_reset(tmp_path: Path, content: bytes):
    disk = disk_of(tmp_path, content, packed=True)
    script = Script()
    driver = BlockDriver(script)
    driver.start(DEFAULT_FEATURES | PACKED, size=16)
    endless = pack("<QIHH", 0x1000, 1, 0, VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_NEXT) * 16
    script.write_memory(driver.rings[0].descriptors, endless)
    script.notify()
    script.sleep(20_000)
    status = script.register(Region.COMMON, DEVICE_STATUS, 1)
    driver.start(DEFAULT_FEATURES | PACKED)
    batch = driver.submit([BlockRequest.read(1, 512)])
    run = run_script(script, [disk])
    assert run.results[status] & NEEDS_RESET
    assert batch.outcomes(run.results)[0].data == content[512:1024]


@pytest.mark.parametrize("packed", [0, PACKED])
def test_a_queue_is_reset_and_set_up_anew(tmp_path: Path, content: bytes, packed: int):
    disk = disk_of(tmp_path, content, packed=bool(packed))
    script = Script()
    driver = BlockDriver(script)
    driver.start(DEFAULT_FEATURES | VIRTIO_F_RING_RESET | packed, size=16)
    batches = []
    states = []
    for size in (8, 128, 4):
        batches.append(driver.submit([BlockRequest.read(size, 512)]))
        script.register(Region.COMMON, QUEUE_SELECT, 2, 0)
        script.register(Region.COMMON, QUEUE_RESET, 2, 1)
        registers = (QUEUE_RESET, QUEUE_ENABLE, QUEUE_SIZE)
        states.append([script.register(Region.COMMON, at, 2) for at in registers])
        script.queue(script.arena.ring(size), size=size)
    batches.append(driver.submit([BlockRequest.read(4, 512)]))
    run = run_script(script, [disk])
    assert [[run.results[value] for value in state] for state in states] == [[0, 0, 256]] * 3
    for batch, sector in zip(batches, (8, 128, 4, 4), strict=True):
        assert batch.outcomes(run.results)[0].data == content[512 * sector :][:512]


@pytest.mark.parametrize("packed", [0, PACKED])
def test_notifications_may_say_how_far_the_driver_is(tmp_path: Path, content: bytes, packed: int):
    disk = disk_of(tmp_path, content, packed=bool(packed), notification_data=True)
    script = Script()
    driver = BlockDriver(script)
    driver.start(DEFAULT_FEATURES | VIRTIO_F_NOTIFICATION_DATA | packed)
    requests = [[BlockRequest.read(i, 512)] for i in range(5)]
    batches = [driver.submit(request, notify=NotifyMode.ALWAYS) for request in requests]
    run = run_script(script, [disk])
    assert run.results[driver.initialised].accepted & VIRTIO_F_NOTIFICATION_DATA
    for sector, batch in enumerate(batches):
        assert run.results[batch.posted].notifications == 1
        assert batch.outcomes(run.results)[0].data == content[512 * sector :][:512]


@pytest.mark.parametrize("packed", [0, PACKED])
def test_in_order_answers_keep_their_order(tmp_path: Path, content: bytes, packed: int):
    """A request that is refused at once waits for the read before it."""
    disk = disk_of(tmp_path, content, packed=bool(packed), in_order=True)
    script = Script()
    driver = BlockDriver(script)
    driver.start(DEFAULT_FEATURES | VIRTIO_F_IN_ORDER | packed)
    requests = [BlockRequest.read(0, 65536, hashed=True), BlockRequest.get_id(), BlockRequest(77)]
    batch = driver.submit(requests * 3)
    run = run_script(script, [disk])
    assert [outcome.order for outcome in batch.outcomes(run.results)] == list(range(9))
