"""A hostile guest on the real machine: random accesses to all that a guest can reach.

Invariant: whatever the guest does, the run ends by the end of its script, no
thread of ours dies of an exception, and after a device reset an ordinary
driver finds an ordinary device.

What the guest spares is itself. The device may write only to ``targets``, and
reads descriptors only from ``tables``, so that it never writes over the
guest's code; interrupts go to a CPU that does not exist, until the end; ports
that end the run or belong to KVM's own chips are left alone.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykvm.bare import BlockDriver, BlockRequest, Region, Script, WaitMode
from pykvm.bare.block import DEFAULT_FEATURES
from pykvm.bare.layout import MEMORY_NEEDED
from pykvm.bare.run import run_script
from pykvm.machine import DiskConfig
from pykvm.machine.outcome import OutcomeKind

pytestmark = pytest.mark.kvm

SECTORS = 64
STEPS = 400
BDF = 2 << 3
"""The disk: after the host bridge and pvpanic."""
WIDTHS = (1, 2, 4, 8)
HOMES = (0xE000_4000, 0xE000_8000)
"""Where its BARs are at first."""
COMMAND, BAR0, BAR1, MSIX_CONTROL, PCI_CFG = 0x04, 0x10, 0x14, 0x42, 0x90
DEVICE_STATUS, QUEUE_DESC, QUEUE_END = 0x14, 0x20, 0x38
FIELDS = ((0, 4), (4, 4), (8, 4), (12, 4), (16, 2), (0x14, 1), (0x16, 2), (0x18, 2), (0x1A, 2))
NOWHERE = 0xFEE7_7000
"""Where an MSI goes to a local APIC that is not there."""
PORTS = (
    *range(0x3F8, 0x400),
    *range(0x2F8, 0x300),
    *(0x60, 0x70, 0x71, 0xCF8, 0xCFA, 0xCFB, 0xCFC, 0xCFD, 0xCFE, 0xCFF),
    *(0x80, 0xED, 0x1F0, 0xFFFF),
)
INTERESTING = (0, 1, 2, 3, 7, 0xF, 0x40, 0x80, 0xFF, 0x100, 0xFFFF, 0x8000_0000, 2**32 - 1)
PLACES = (
    *(0, 0x1000, MEMORY_NEEDED - 0x1000, MEMORY_NEEDED, 0xBFFF_F000, 0xD000_0000, 0xE000_1000),
    *(0xFEBF_C000, 0xFEC0_0000, NOWHERE),
)


class Attacker:
    """Adds random operations against one disk to ``script``."""

    def __init__(self, script: Script, seed: int) -> None:
        self.script = script
        self.random = random.Random(seed)
        arena = script.arena
        self.tables = arena.allocate(0x4000, 4096)
        self.targets = arena.allocate(0x4000, 4096)
        self.moves = (
            *[self.common] * 6,
            *[self.structure] * 4,
            *[self.life] * 3,
            *[self.memory] * 2,
            *[self.work] * 2,
            *[self.config] * 2,
            *[self.msix] * 2,
            self.window,
            self.port,
            *[self.move] * 3,
        )

    def attack(self, steps: int) -> None:
        """``steps`` random operations."""
        for index in range(16):
            self.script.register(Region.MSIX, 4 * index, 4, NOWHERE if index % 4 == 0 else 1)
        for _ in range(steps):
            self.random.choice(self.moves)()

    def value(self, width: int) -> int:
        pick = self.random
        value = pick.choice((pick.choice(INTERESTING), pick.getrandbits(64), 2**64 - 1))
        return value & (1 << 8 * width) - 1

    def address(self, base: int) -> int:
        """In the area at ``base``, or outside RAM."""
        pick = self.random
        inside = base + pick.choice((0, 8, 16, 0x100, 0x1000, 0x1001, 0x3F00))
        return pick.choice((inside, inside, inside, *PLACES[2:], 2**32 + 16, 2**64 - 16))

    def common(self) -> None:
        anything = (self.random.randrange(0x44), self.random.choice(WIDTHS))
        offset, width = self.random.choice((anything, self.random.choice(FIELDS)))
        if QUEUE_DESC - width < offset < QUEUE_END:
            offset = self.random.choice((0x20, 0x28, 0x30))
            value, width = self.address(self.targets if offset == 0x30 else self.tables), 8
            self.script.register(Region.COMMON, offset, width, value)
            return
        value = self.value(width) if self.random.random() < 0.7 else None
        self.script.register(Region.COMMON, offset, width, value)

    def structure(self) -> None:
        region = self.random.choice((Region.ISR, Region.DEVICE, Region.NOTIFY))
        width = self.random.choice(WIDTHS)
        offset = self.random.choice((0, 1, 4, 0x38, 0x3C, 0xFF8, 0xFFD, 0xFFF))
        value = self.value(width) if self.random.random() < 0.6 else None
        self.script.register(region, offset, width, value)

    def life(self) -> None:
        """What brings a device to life, in an order that sometimes works."""
        write = self.script.register
        for offset, width, value in (
            (DEVICE_STATUS, 1, 0),
            (DEVICE_STATUS, 1, 3),
            (0x08, 4, 1),
            (0x0C, 4, DEFAULT_FEATURES >> 32),
            (0x08, 4, 0),
            (0x0C, 4, self.random.choice((0, DEFAULT_FEATURES & 0xFFFF_FFFF))),
            (DEVICE_STATUS, 1, 11),
            (0x16, 2, 0),
            (0x18, 2, self.random.choice((2, 16, 256))),
            (0x20, 8, self.ring_address(self.tables)),
            (0x28, 8, self.ring_address(self.tables + 0x1000)),
            (0x30, 8, self.ring_address(self.targets)),
            (0x1A, 2, self.random.choice((0, 1, 5))),
            (0x10, 2, self.random.choice((0, 1, 5))),
            (0x1C, 2, 1),
            (DEVICE_STATUS, 1, 15),
        ):
            if self.random.random() < 0.97:
                write(Region.COMMON, offset, width, value)

    def ring_address(self, right: int) -> int:
        return right if self.random.random() < 0.95 else self.address(right)

    def work(self) -> None:
        self.life()
        self.memory()

    def memory(self) -> None:
        """A queue's worth of requests, nearly right, then a notification."""
        pick, script = self.random, self.script
        table = b"".join(self.descriptor(index) for index in range(16))
        script.write_memory(self.tables, table)
        script.write_memory(self.tables + 0x2000, table)
        heads = [pick.choice((0, 3, 6, 9, 12, 12, 15, pick.randrange(20))) for _ in range(16)]
        ring = (pick.choice((0, 1)), pick.choice((1, 1, 2, 3, 16, 257, 0xFFFF)), *heads)
        words = b"".join(word.to_bytes(2, "little") for word in ring)
        script.write_memory(self.tables + 0x1000, words)
        header = pick.choice((0, 0, 1, 1, 4, 8, 11, 2**32 - 1)).to_bytes(8, "little")
        sector = pick.choice((0, 1, 8, SECTORS - 1, SECTORS, 2**64 - 1)).to_bytes(8, "little")
        script.write_memory(self.tables + 0x3000, (header + sector) * 32)
        script.register(Region.NOTIFY, 0, pick.choice(WIDTHS), self.value(1))

    def descriptor(self, index: int) -> bytes:
        """One of header, data and status, three by three; one in ten is bad."""
        pick = self.random
        flags = (1, 3 if index % 2 else 1, 2)[index % 3]
        length = (16, 512, 1)[index % 3]
        address = (self.targets if flags & 2 else self.tables) + (0x3000, 0x3000, 0x3800)[index % 3]
        following = index + 1
        if pick.random() < 0.1:
            flags = pick.choice((0, 1, 2, 3, 4, 5, 0xFFFF))
            length = pick.choice((0, 1, 15, 16, 32, 48, 513, 2**32 - 1))
            address = self.address(self.targets if flags & 2 else self.tables)
            following = pick.choice((*range(16), 0xFFFF))
        encoded = ((address, 8), (length, 4), (flags, 2), (following, 2))
        return b"".join(value.to_bytes(size, "little") for value, size in encoded)

    def config(self) -> None:
        width = self.random.choice((1, 2, 4))
        offset = self.random.choice((COMMAND, BAR0, 0x3C, self.random.randrange(256))) & -width
        if BAR0 <= offset < BAR0 + 24:
            return self.move()
        value = self.value(width) if self.random.random() < 0.6 else None
        self.script.pci_config(self.random.choice((0, 1 << 3, BDF)), offset, width, value)
        return None

    def move(self) -> None:
        """A BAR to a place where it can or cannot be, often back home."""
        bar = self.random.randrange(2)
        home = HOMES[bar]
        place = self.random.choice((*PLACES, *HOMES, home, home, 2**32 - 1))
        self.script.pci_config(BDF, BAR0 + 4 * bar, 4, place)
        if self.random.random() < 0.5:
            self.script.pci_config(BDF, COMMAND, 2, 6)

    def msix(self) -> None:
        entry, field = self.random.randrange(4), self.random.randrange(4)
        width = self.random.choice(WIDTHS)
        value = NOWHERE if field == 0 else self.value(width)
        if field == 0 or self.random.random() < 0.2:
            width = 4
        self.script.register(Region.MSIX, 16 * entry + 4 * field, width, value)
        self.script.register(Region.MSIX, 0x800, self.random.choice(WIDTHS))
        self.script.pci_config(BDF, MSIX_CONTROL, 2, self.random.choice((0, 0x8000, 0xC000)))

    def window(self) -> None:
        """Through the PCI-cfg capability."""
        for offset, width, value in (
            (4, 1, self.random.choice((0, 0, 0, 1, 2, 255))),
            (8, 4, self.random.choice((0x14, 0x1000, 0x3000, 0x3002, 0x3FFF, 2**32 - 4))),
            (12, 4, self.random.choice((0, 1, 2, 4, 8))),
            (16, self.random.choice((1, 2, 4)), self.value(1)),
            (16, 4, None),
        ):
            self.script.pci_config(BDF, PCI_CFG + offset, width, value)

    def port(self) -> None:
        port, width = self.random.choice(PORTS), self.random.choice((1, 2, 4))
        value = self.value(width) if self.random.random() < 0.6 else None
        self.script.port(port, width, value)


@pytest.fixture
def disk(tmp_path: Path) -> DiskConfig:
    """A disk of 32 KiB, of bytes that are no descriptors within RAM."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xff" * (512 * SECTORS))
    return DiskConfig(path)


@pytest.fixture
def eager() -> Iterator[None]:
    """Threads take turns so often that missing locks show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def recover(script: Script) -> BlockDriver:
    """What firmware and a driver would do: put the function right and reset the device."""
    for register, size, value in (
        (BAR0, 4, HOMES[0]),
        (BAR1, 4, HOMES[1]),
        (COMMAND, 2, 6),
        (MSIX_CONTROL, 2, 0),
    ):
        script.pci_config(BDF, register, size, value)
    driver = BlockDriver(script, slot=1)
    driver.start(msix=True)
    return driver


def check(script: Script, disk: DiskConfig, cpus: int = 1) -> None:
    """Run the attack in ``script``; afterwards the disk works."""
    driver = recover(script)
    data = bytes(range(256)) * 2
    batch = driver.submit(
        [BlockRequest.write(5, data), BlockRequest.flush(), BlockRequest.read(5, 512)],
        wait=WaitMode.SPIN,
    )
    run = run_script(script, [disk], cpus=cpus)
    assert run.outcome.kind is OutcomeKind.POWER_OFF
    assert run.outcome.status == 0
    opened = run.results[driver.opened]
    assert (opened.bdf, opened.pci_cfg, opened.regions[Region.COMMON].address) == (
        BDF,
        PCI_CFG,
        HOMES[0],
    )
    written, flushed, read = batch.outcomes(run.results)
    assert [o.status for o in (written, flushed, read)] == [0, 0, 0]
    assert read.data == data
    assert disk.path.read_bytes()[5 * 512 :][:512] == data


@pytest.mark.parametrize("seed", range(6))
def test_random_accesses_never_end_the_run(disk: DiskConfig, seed: int) -> None:
    script = Script()
    BlockDriver(script)
    Attacker(script, seed).attack(STEPS)
    check(script, disk)


@pytest.mark.parametrize("seed", range(100, 103))
def test_two_cpus_attack_at_once(disk: DiskConfig, eager: None, seed: int) -> None:
    script = Script()
    other = Script(1, script.arena)
    BlockDriver(script)
    Attacker(other, seed).attack(STEPS)
    script.spawn(other)
    Attacker(script, seed + 1000).attack(STEPS)
    script.join(1)
    check(script, disk, cpus=2)


def test_a_broken_ring_interrupts_with_the_configurations_vector(disk: DiskConfig) -> None:
    script = Script()
    driver = BlockDriver(script)
    driver.start(msix=True)
    script.register(Region.COMMON, 0x10, 2, 0)
    script.write_memory(driver.rings[0].available + 2, (1000).to_bytes(2, "little"))
    script.notify()
    script.sleep(20_000)
    counters = script.counters()
    status = script.register(Region.COMMON, DEVICE_STATUS, 1)
    run = run_script(script, [disk])
    assert run.results[status] == 0x4F
    assert run.results[counters] == {0x40: 1}
