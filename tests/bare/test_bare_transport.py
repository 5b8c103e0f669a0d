"""What a driver may do wrong with registers, by a guest on the real machine.

Each case is a list of accesses, with what those that read get. Afterwards, and
without a reset where the case says nothing else, the disk works.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pykvm.bare import BlockDriver, BlockRequest, Region, Script
from pykvm.bare.arena import Ring
from pykvm.bare.block import DEFAULT_FEATURES, UNTOUCHED
from pykvm.bare.results import Step
from pykvm.bare.run import run_script
from pykvm.machine import DiskConfig
from pykvm.virtio.constants import VIRTIO_F_VERSION_1

pytestmark = pytest.mark.kvm

BDF = 2 << 3
"""The disk: after the host bridge and pvpanic."""
HOME = 0xE000_4000
PCI_CFG = 0x90
STATUS, QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE = 0x14, 0x16, 0x18, 0x1A, 0x1C
QUEUE_DESC, CONFIG_VECTOR, NUM_QUEUES = 0x20, 0x10, 0x12
READY, NEEDS_RESET = 0xF, 0x40
SIZE = 128
"""Descriptors in a queue of BlockDriver."""
OK = 0
Expected = list[tuple[Step[int], int]]
Case = Callable[[Script, BlockDriver], Expected]


@pytest.fixture
def disk(tmp_path: Path) -> DiskConfig:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 256)
    return DiskConfig(path)


def check(disk: DiskConfig, case: Case, restart: bool = False) -> None:
    script = Script()
    driver = BlockDriver(script)
    driver.start(msix=True)
    before = driver.submit([BlockRequest.read(0, 512)])
    expected = case(script, driver)
    if restart:
        driver.start(msix=True)
    after = driver.submit([BlockRequest.read(1, 512), BlockRequest.write(9, bytes(512))])
    run = run_script(script, [disk])
    assert [run.results[step] for step, _ in expected] == [value for _, value in expected]
    answers = [*before.outcomes(run.results), *after.outcomes(run.results)]
    assert [answer.status for answer in answers] == [OK] * 3
    assert [answer.data for answer in answers[:2]] == [bytes(range(256)) * 2] * 2


# -- accesses without effect ------------------------------------------------------------


def a_queue_that_does_not_exist(script: Script, driver: BlockDriver) -> Expected:
    seen: Expected = []
    for queue in (1, 7, 0xFFFF):
        script.register(Region.COMMON, QUEUE_SELECT, 2, queue)
        for offset, size in ((QUEUE_SIZE, 2), (QUEUE_ENABLE, 2), (QUEUE_DESC, 4), (0x1E, 2)):
            script.register(Region.COMMON, offset, size, 1)
            seen.append((script.register(Region.COMMON, offset, size), 0))
    script.register(Region.COMMON, QUEUE_SELECT, 2, 0)
    return seen


def a_notification_for_one(script: Script, driver: BlockDriver) -> Expected:
    for offset in (2, 4, 0x100, 0xFFC):
        script.register(Region.NOTIFY, offset, 2, 7)
    return [(script.register(Region.COMMON, STATUS, 1), READY)]


def what_is_fixed_by_now(script: Script, driver: BlockDriver) -> Expected:
    """Size and addresses of a queue, and features, after DRIVER_OK."""
    size = script.register(Region.COMMON, QUEUE_SIZE, 2)
    ring = driver.rings[0]
    for offset, width, value in (
        *((QUEUE_SIZE, 2, 2), (QUEUE_ENABLE, 2, 0), (QUEUE_ENABLE, 2, 2)),
        *((QUEUE_DESC, 8, 0), (QUEUE_DESC + 8, 8, 2**64 - 16), (QUEUE_DESC + 16, 4, 0xE000_0000)),
        *((0x08, 4, 0), (0x0C, 4, 0), (0x0C, 4, 2**32 - 1), (0x08, 4, 7), (0x0C, 4, 1)),
    ):
        script.register(Region.COMMON, offset, width, value)
    return [
        (script.register(Region.COMMON, QUEUE_SIZE, 2), SIZE),
        (size, SIZE),
        (script.register(Region.COMMON, QUEUE_ENABLE, 2), 1),
        (script.register(Region.COMMON, QUEUE_DESC, 4), ring.descriptors),
    ]


def status_bits_that_are_cleared(script: Script, driver: BlockDriver) -> Expected:
    seen = []
    for value in (1, 3, 8, 0x40):
        script.register(Region.COMMON, STATUS, 1, value)
        seen.append((script.register(Region.COMMON, STATUS, 1), READY))
    return seen


def vectors_that_do_not_exist(script: Script, driver: BlockDriver) -> Expected:
    """They read back as VIRTIO_MSI_NO_VECTOR (§4.1.5.1.2.1)."""
    seen = []
    for offset in (CONFIG_VECTOR, QUEUE_VECTOR):
        for value in (2, 0x7FF, 0x800, 0xFFFE):
            script.register(Region.COMMON, offset, 2, value)
            seen.append((script.register(Region.COMMON, offset, 2), 0xFFFF))
    return seen


def accesses_of_the_wrong_width(script: Script, driver: BlockDriver) -> Expected:
    """Read 0 and write nothing; also those past a structure's end."""
    seen: Expected = []
    for region, offset, width in (
        *((Region.COMMON, STATUS, 2), (Region.COMMON, STATUS, 4), (Region.COMMON, 0x15, 2)),
        *((Region.COMMON, QUEUE_SIZE, 1), (Region.COMMON, QUEUE_SIZE, 4)),
        *((Region.COMMON, 0x3C, 4), (Region.COMMON, 0x40, 4), (Region.COMMON, 0xFF8, 8)),
        *((Region.COMMON, NUM_QUEUES, 1), (Region.COMMON, 0x2A, 4)),
        *((Region.DEVICE, 72, 4), (Region.DEVICE, 70, 4), (Region.DEVICE, 0xFFC, 4)),
        *((Region.ISR, 1, 1), (Region.NOTIFY, 0, 4), (Region.NOTIFY, 0xFFC, 4)),
    ):
        if region is not Region.NOTIFY:
            script.register(region, offset, width, 0)
        seen.append((script.register(region, offset, width), 0))
    return [*seen, (script.register(Region.COMMON, STATUS, 1), READY)]


def a_window_to_nowhere(script: Script, driver: BlockDriver) -> Expected:
    """The PCI-cfg capability with a BAR, an offset or a length that cannot be (§4.1.4.9)."""
    script.pci_config(BDF, PCI_CFG + 16, 4, 0)
    for bar, offset, length in (
        *((2, 0, 4), (5, 0x14, 1), (255, 0x14, 1), (0, 0x4000, 4), (0, 2**32 - 4, 4)),
        *((0, STATUS, 0), (0, STATUS, 3), (0, STATUS, 8), (0, STATUS, 2**31), (0, 0x15, 2)),
    ):
        for at, size, value in ((4, 1, bar), (8, 4, offset), (12, 4, length)):
            script.pci_config(BDF, PCI_CFG + at, size, value)
        script.pci_config(BDF, PCI_CFG + 16, 4, 0)
        script.pci_config(BDF, PCI_CFG + 16, 4)
    return [(script.register(Region.COMMON, STATUS, 1), READY)]


@pytest.mark.parametrize(
    "case",
    [
        a_queue_that_does_not_exist,
        a_notification_for_one,
        what_is_fixed_by_now,
        status_bits_that_are_cleared,
        vectors_that_do_not_exist,
        accesses_of_the_wrong_width,
        a_window_to_nowhere,
    ],
)
def test_it_changes_nothing(disk: DiskConfig, case: Case) -> None:
    check(disk, case)


# -- a device that does not start -----------------------------------------------


def features_that_are_not_offered(script: Script, driver: BlockDriver) -> Expected:
    """FEATURES_OK is withheld, and with it DRIVER_OK (§2.1.2, §3.1.1)."""
    for features in (VIRTIO_F_VERSION_1 | 1 << 60, 0, DEFAULT_FEATURES | 1 << 24):
        script.initialise(features, force=True)
    script.register(Region.COMMON, STATUS, 1, READY)
    return [(script.register(Region.COMMON, STATUS, 1), 3)]


def status_bits_out_of_order(script: Script, driver: BlockDriver) -> Expected:
    script.reset()
    seen = []
    for value, then in ((4, 0), (8, 0), (2, 0), (1, 1), (13, 1), (0x40, 1), (0x81, 0x81)):
        script.register(Region.COMMON, STATUS, 1, value)
        seen.append((script.register(Region.COMMON, STATUS, 1), then))
    return seen


def kicks_that_come_too_early_or_too_late(script: Script, driver: BlockDriver) -> Expected:
    """Nothing is looked at before DRIVER_OK or after a reset."""
    header = script.arena.allocate(64)
    script.write_memory(header, BlockRequest.flush().header_bytes() + bytes([UNTOUCHED]))
    script.reset()
    script.notify()
    script.initialise(DEFAULT_FEATURES)
    script.notify()
    ring = driver.rings[0]
    script.write_memory(ring.available + 2, (0x7777).to_bytes(2, "little"))
    script.notify()
    script.reset()
    script.notify()
    script.sleep(5000)
    return [(script.register(Region.COMMON, STATUS, 1), 0)]


def a_reset_with_requests_in_flight(script: Script, driver: BlockDriver) -> Expected:
    seen = []
    for _ in range(10):
        driver.submit([BlockRequest.read(i, 2048) for i in range(16)], wait=None)
        seen.append((script.reset(), 0))
        driver.start(msix=True)
    return seen


@pytest.mark.parametrize(
    "case",
    [
        features_that_are_not_offered,
        status_bits_out_of_order,
        kicks_that_come_too_early_or_too_late,
        a_reset_with_requests_in_flight,
    ],
)
def test_the_device_starts_afterwards(disk: DiskConfig, case: Case) -> None:
    check(disk, case, restart=True)


@pytest.mark.parametrize(
    ("moved", "where"),
    [
        ({"descriptors": 8}, "misaligned"),
        ({"available": 1}, "misaligned"),
        ({"used": 2}, "misaligned"),
        ({"descriptors": 0xE000_4000}, "a BAR"),
        ({"available": 0xFEE0_0000}, "MMIO"),
        ({"used": 0xC000_0000}, "a hole"),
        ({"used": 2**64 - 16}, "the end of all addresses"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_rings_that_cannot_be_need_a_reset(
    disk: DiskConfig, moved: dict[str, int], where: str
) -> None:
    def case(script: Script, driver: BlockDriver) -> Expected:
        ring = script.arena.ring(16)
        added = {
            name: value + (getattr(ring, name) if value < 16 else 0)
            for name, value in moved.items()
        }
        return start_with(script, replace(ring, **added))

    check(disk, case, restart=True)


def test_rings_that_overlap_are_the_guests_own_affair(disk: DiskConfig) -> None:

    def case(script: Script, driver: BlockDriver) -> Expected:
        page = script.arena.allocate(4096, 4096)
        start_with(script, Ring(page, page, page))
        script.sleep(1000)
        return []

    check(disk, case, restart=True)


def start_with(script: Script, ring: Ring) -> Expected:
    script.initialise(DEFAULT_FEATURES)
    script.queue(ring, size=16)
    script.ready()
    return [(script.register(Region.COMMON, STATUS, 1), READY | NEEDS_RESET)]
