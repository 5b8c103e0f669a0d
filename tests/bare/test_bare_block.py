"""The block device as the bare guest sees it, through the whole stack: PCI, KVM, ring, file."""

import zlib
from pathlib import Path

import pytest

from pykvm.bare import (
    BlockDriver,
    BlockRequest,
    Chain,
    NotifyMode,
    RecordError,
    Region,
    Script,
    Segment,
    WaitMode,
)
from pykvm.bare.block import (
    DEFAULT_FEATURES,
    UNTOUCHED,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
)
from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.bare.run import run_script
from pykvm.machine import DiskConfig

pytestmark = pytest.mark.kvm

OK, IOERR, UNSUPP = 0, 1, 2
DEVICE_STATUS = 20
BDF = 2 << 3
"""The disk: after the host bridge and pvpanic."""
COMMAND, MEMORY, MASTER = 0x04, 2, 4
NEEDS_RESET = 64


@pytest.fixture
def disk(tmp_path: Path, content: bytes) -> DiskConfig:
    """A disk of 1 MiB."""
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    return DiskConfig(path, serial="bare")


def test_requests_reach_the_file(disk: DiskConfig, content: bytes):
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    data = bytes(range(256)) * 16
    batch = driver.submit(
        [
            BlockRequest.read(3, 1024),
            BlockRequest.write(8, data),
            BlockRequest.flush(),
            BlockRequest.get_id(),
            BlockRequest.read(16, 65536, hashed=True),
            BlockRequest.read(2047, 512),
        ]
    )
    again = driver.submit([BlockRequest.read(7, 4096 + 1024)])
    run = run_script(script, [disk])
    read, written, flushed, id_, hashed, last = batch.outcomes(run.results)
    assert [o.status for o in (read, written, flushed, id_, hashed, last)] == [OK] * 6
    assert read.data == content[3 * 512 : 5 * 512]
    assert read.length == 1025
    assert written.length == flushed.length == 1
    assert id_.data == b"bare" + bytes(16)
    assert hashed.crc == zlib.crc32(content[8192:][:65536])
    assert last.data == content[-512:]
    assert (
        again.outcomes(run.results)[0].data == content[7 * 512 : 4096] + data + content[8192:8704]
    )
    assert disk.path.read_bytes() == content[:4096] + data + content[8192:]


def test_any_framing_is_the_same_request(disk: DiskConfig, content: bytes):
    """virtio 1.2 §2.7.4.1: how a request is cut into descriptors has no meaning."""
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    read = BlockRequest.read(1, 1024)
    framings = [
        read.laid_out(readable=[4, 4, 7]),
        read.laid_out(readable=[1] * 15),
        read.laid_out(writable=[1, 511, 3, 509]),
        read.laid_out(writable=[]),
        read.laid_out(readable=[8], writable=[1023], indirect=True),
        read.laid_out(indirect=True),
    ]
    write = BlockRequest.write(4, bytes(512)).laid_out(readable=[3, 20, 100])
    batch = driver.submit([*framings, write])
    outcomes = batch.outcomes(run_script(script, [disk]).results)
    assert [o.status for o in outcomes] == [OK] * 7
    assert {o.data for o in outcomes[:-1]} == {content[512:1536]}
    assert {o.length for o in outcomes[:-1]} == {1025}
    assert disk.path.read_bytes()[2048:2560] == bytes(512)


def test_bad_requests_are_answered_and_change_nothing(disk: DiskConfig, content: bytes):
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    batch = driver.submit(
        [
            BlockRequest(99, length=4),
            BlockRequest.read(2048, 512),
            BlockRequest.read(2047, 1024),
            BlockRequest.write(2**64 - 1, bytes(1024)),
            BlockRequest.write(0, bytes(100)),
            BlockRequest(VIRTIO_BLK_T_IN, 0, data=bytes(512), length=512),
            BlockRequest(VIRTIO_BLK_T_OUT, 0, data=bytes(512), length=512),
            BlockRequest(VIRTIO_BLK_T_FLUSH, 0, data=bytes(512)),
            BlockRequest.get_id(0),
        ]
    )
    good = driver.submit([BlockRequest.read(0, 512)])
    run = run_script(script, [disk])
    assert [o.status for o in batch.outcomes(run.results)] == [UNSUPP, *[IOERR] * 8]
    assert [o.length for o in batch.outcomes(run.results)] == [0, 0, 0, 1, 1, 0, 0, 1, 1]
    assert good.outcomes(run.results)[0].data == content[:512]
    assert disk.path.read_bytes() == content


@pytest.mark.parametrize("wait", [WaitMode.SPIN, WaitMode.IDLE])
@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("msix", [True, False])
def test_interrupts_arrive(disk: DiskConfig, wait: WaitMode, event_idx: bool, msix: bool):
    script = Script()
    driver = BlockDriver(script)
    driver.start(DEFAULT_FEATURES if event_idx else VIRTIO_F_VERSION_1, msix=msix, intx=not msix)
    batches = [driver.submit([BlockRequest.read(i, 512)], wait=wait) for i in range(5)]
    counters = script.counters()
    run = run_script(script, [disk])
    for batch in batches:
        assert batch.wait is not None
        assert run.results[batch.wait].interrupts >= 1
        assert batch.outcomes(run.results)[0].status == OK
    assert run.results[counters][0x41 if msix else 0x60] >= 5


def test_no_interrupt_comes_unasked(disk: DiskConfig):
    script = Script()
    driver = BlockDriver(script)
    driver.start(msix=True)
    driver.submit([BlockRequest.read(0, 512)] * 20, wait=WaitMode.POLL)
    script.sleep(2000)
    counters = script.counters()
    assert run_script(script, [disk]).results[counters] == {}


def exits_of_load(disk: DiskConfig, total: int, wait: WaitMode) -> dict[str, int]:
    """Exits to Python of a run that does ``total`` requests."""
    script = Script()
    BlockDriver(script).start(msix=True)
    load = script.load(
        VIRTIO_BLK_T_IN,
        total=total,
        sectors=8,
        span=2048,
        depth=4,
        wait=wait,
        notify=NotifyMode.ALWAYS,
    )
    run = run_script(script, [disk])
    result = run.results[load]
    assert (result.completed, result.errors) == (total, 0)
    assert result.notifications >= total // 4
    assert (result.interrupts > 0) == (wait is not WaitMode.POLL)
    return {cause: run.exits[cause] for cause in ("IoExit", "MmioExit")}


@pytest.mark.parametrize("wait", list(WaitMode))
def test_steady_state_causes_no_exit(disk: DiskConfig, wait: WaitMode):
    assert exits_of_load(disk, 20, wait) == exits_of_load(disk, 400, wait)


@pytest.mark.parametrize(
    "places",
    [
        (0xF000_0000, 0xF100_0000),
        (MEMORY_NEEDED + 0x8000, MEMORY_NEEDED),
        (0xBFFF_C000, 0x8000_0000),
    ],
    ids=["far", "right above RAM", "below 3 GiB"],
)
def test_a_moved_bar_moves_its_doorbells(disk: DiskConfig, content: bytes, places: tuple[int, int]):
    script = Script()
    driver = BlockDriver(script)
    driver.start(msix=True)
    before = driver.submit([BlockRequest.read(0, 512)])
    moved = [script.relocate(0, address) for address in places]
    table = script.relocate(1, places[1] + 0x4000)
    status = [script.mmio(address + DEVICE_STATUS, 1) for address in places]
    after = driver.submit([BlockRequest.read(1, 512)])
    run = run_script(script, [disk], memory=MEMORY_NEEDED)
    assert [run.results[step] for step in (*moved, table)] == [*places, places[1] + 0x4000]
    assert [run.results[step] for step in status] == [0xFF, 0xF]
    assert before.outcomes(run.results)[0].data == content[:512]
    assert after.outcomes(run.results)[0].data == content[512:1024]


@pytest.mark.parametrize("msix", [True, False])
def test_requests_wait_until_the_driver_makes_the_disk_a_bus_master(
    disk: DiskConfig, content: bytes, msix: bool
):
    """It answers nothing and interrupts nobody; DRIVER_OK may come before the bit or after."""
    script = Script()
    driver = BlockDriver(script)
    silent, late, interrupts = [], [], []
    script.pci_config(BDF, COMMAND, 2, MEMORY)
    status = driver.start(msix=msix, intx=not msix)
    for _ in range(2):
        request = BlockRequest.read(0, 512)
        silent.append(driver.submit([request], notify=NotifyMode.ALWAYS, timeout_us=20_000))
        interrupts.append(script.counters())
        script.pci_config(BDF, COMMAND, 2, MEMORY | MASTER)
        late.append(script.wait(1, WaitMode.IDLE))
        script.pci_config(BDF, COMMAND, 2, MEMORY)
    script.pci_config(BDF, COMMAND, 2, MEMORY | MASTER)
    last = driver.submit([BlockRequest.read(1, 512)], wait=WaitMode.IDLE)
    run = run_script(script, [disk])
    assert run.results[status] == 0xF
    for batch, waited in zip(silent, late, strict=True):
        assert batch.wait is not None
        assert run.results.record(batch.wait).error is RecordError.TIMEOUT
        assert batch.outcomes(run.results)[0].status == UNTOUCHED
        assert len(run.results[waited].completions) == 1
    assert run.results[interrupts[0]] == {}
    assert last.outcomes(run.results)[0].data == content[512:1024]


def test_two_disks_and_a_read_only_one(disk: DiskConfig, tmp_path: Path, content: bytes):
    other = tmp_path / "other.img"
    other.write_bytes(content[::-1])
    script = Script()
    drivers = [BlockDriver(script, nth=i, slot=i) for i in range(2)]
    for driver in drivers:
        driver.start(msix=True)
    requests = [BlockRequest.read(0, 512), BlockRequest.write(0, bytes(512))]
    batches = [driver.submit(requests, wait=WaitMode.SPIN) for driver in drivers]
    counters = script.counters()
    run = run_script(script, [disk, DiskConfig(other, readonly=True)])
    (read, written), (read_other, refused) = (batch.outcomes(run.results) for batch in batches)
    assert (read.data, read_other.data) == (content[:512], content[::-1][:512])
    assert (written.status, refused.status) == (OK, IOERR)
    assert other.read_bytes() == content[::-1]
    assert set(run.results[counters]) == {0x41, 0x46}


def test_without_a_notification_nothing_happens(disk: DiskConfig):
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    # A device may look at its ring for a while after DRIVER_OK and after each kick.
    driver.submit([BlockRequest.flush()])
    script.sleep(50_000)
    silent = driver.submit([BlockRequest.read(0, 512)], notify=NotifyMode.NEVER, timeout_us=20_000)
    script.notify()
    late = script.wait(1)
    run = run_script(script, [disk])
    assert silent.wait is not None
    assert run.results.record(silent.wait).error is RecordError.TIMEOUT
    assert len(run.results[late].completions) == 1


def test_an_unusable_ring_needs_a_reset_and_gets_it(disk: DiskConfig, content: bytes):
    script = Script()
    driver = BlockDriver(script)
    driver.start(VIRTIO_F_VERSION_1)
    # An available index further ahead than the ring is long (virtio 1.2 §2.7.13).
    script.write_memory(driver.rings[0].available + 2, (1000).to_bytes(2, "little"))
    script.notify()
    script.sleep(20_000)
    broken = script.register(Region.COMMON, DEVICE_STATUS, 1)
    reset = script.reset()
    driver.start(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX)
    good = driver.submit([BlockRequest.read(0, 512)])
    run = run_script(script, [disk])
    assert run.results[broken] & NEEDS_RESET
    assert run.results[reset] == 0
    assert good.outcomes(run.results)[0].data == content[:512]


def test_a_request_without_a_status_byte_is_given_back_empty(disk: DiskConfig):
    script = Script()
    driver = BlockDriver(script)
    driver.start()
    # The device may only write where the driver let it: nowhere.
    header = BlockRequest.flush().header_bytes()
    address = script.arena.allocate(32)
    script.write_memory(address, header + bytes([UNTOUCHED]))
    script.post([Chain(77, [Segment(address, 16), Segment(address + 16, 1)])])
    waited = script.wait(1)
    status = script.read_memory(address + 16, 1)
    run = run_script(script, [disk])
    (completion,) = run.results[waited].completions
    assert (completion.tag, completion.length) == (77, 0)
    assert run.results[status] == bytes([UNTOUCHED])
