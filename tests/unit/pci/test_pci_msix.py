"""The MSI-X table, its masks and its pending bits."""

import errno
from collections.abc import Iterator

import pytest

from pykvm.pci.config import PciFunction
from pykvm.pci.msix import MsixTable
from pykvm.testing.fake_pci_services import FakePciServices

ENABLE, MASKALL = 0x8000, 0x4000
MASTER = 4
COUNT = 3


class Setup:
    """A function with an MSI-X table of three vectors."""

    def __init__(self) -> None:
        self.services = FakePciServices()
        self.function = PciFunction(vendor=1, device=2, class_code=0)
        self.lacks: list[str] = []
        self.msix = MsixTable(
            self.services, self.function, bar=1, count=COUNT, lacks=self.lacks.append
        )
        self.vectors = self.services.vectors
        self.command(MASTER)

    def command(self, value: int) -> None:
        self.function.write_config(0x04, 2, value)
        self.msix.configured()

    def control(self, value: int) -> None:
        self.function.write_config(0x42, 2, value)
        self.msix.configured()

    def entry(self, index: int, address: int, data: int, masked: bool = False) -> None:
        self.msix.write(16 * index, 4, address & 0xFFFFFFFF)
        self.msix.write(16 * index + 4, 4, address >> 32)
        self.msix.write(16 * index + 8, 4, data)
        self.msix.write(16 * index + 12, 4, int(masked))

    def pending(self) -> int:
        return self.msix.read(2048, 8)


@pytest.fixture
def setup() -> Iterator[Setup]:
    setup = Setup()
    yield setup
    setup.msix.close()


def test_the_capability_describes_the_bar(setup: Setup) -> None:
    config = setup.function.config
    assert config.get(0x40, 1) == 0x11
    assert config.get(0x42, 2) == COUNT - 1
    assert config.get(0x44, 4) == 1  # table in BAR 1 at 0
    assert config.get(0x48, 4) == 2048 | 1
    setup.control(0xFFFF)
    assert config.get(0x42, 2) == COUNT - 1 | ENABLE | MASKALL


def test_the_table_starts_masked_and_empty(setup: Setup) -> None:
    for index in range(COUNT):
        words = [setup.msix.read(16 * index + at, 4) for at in range(0, 16, 4)]
        assert words == [0, 0, 0, 1]


def test_an_unmasked_vector_delivers_its_message(setup: Setup) -> None:
    setup.control(ENABLE)
    setup.entry(1, 0x1_FEE0_1000, 0x4021)
    setup.msix.signal(1)
    assert setup.vectors[1].delivered() == (0x1_FEE0_1000, 0x4021)
    assert setup.vectors[1].delivered() is None
    assert setup.vectors[0].message is None
    assert setup.vectors[1].routes == 1  # not once per word


def test_linux_sets_up_under_the_function_mask(setup: Setup) -> None:
    setup.control(ENABLE | MASKALL)
    setup.entry(0, 0xFEE00000, 0x31)
    assert setup.vectors[0].message is None
    setup.control(ENABLE)
    assert setup.vectors[0].message == (0xFEE00000, 0x31)


def test_the_message_can_move_to_a_different_cpu(setup: Setup) -> None:
    setup.control(ENABLE)
    setup.entry(0, 0xFEE00000, 0x31)
    setup.msix.write(12, 4, 1)
    setup.msix.write(0, 8, 0xFEE01000)
    setup.msix.write(8, 8, 0x32)  # data and unmask at once
    setup.msix.signal(0)
    assert setup.vectors[0].delivered() == (0xFEE01000, 0x32)


@pytest.mark.parametrize("look", [True, False])
def test_interrupts_that_arrive_while_masked_are_pending_and_delivered_once(
    setup: Setup, look: bool
) -> None:
    setup.control(ENABLE)
    setup.entry(2, 0xFEE00000, 0x31, masked=True)
    setup.msix.signal(2)
    setup.msix.signal(2)
    if look:
        assert setup.pending() == 0b100
        assert setup.pending() == 0b100
        assert setup.msix.read(2048, 4) == 0b100
        assert setup.msix.read(2052, 4) == 0
    assert setup.vectors[2].delivered() is None
    setup.msix.write(16 * 2 + 12, 4, 0)
    assert setup.vectors[2].delivered() == (0xFEE00000, 0x31)
    assert setup.vectors[2].delivered() is None
    assert setup.pending() == 0


def test_a_function_that_is_no_bus_master_sends_no_message(setup: Setup) -> None:
    """An MSI is a write to memory (PCI 3.0 §6.8.3)."""
    setup.control(ENABLE)
    setup.entry(1, 0xFEE00000, 0x31)
    setup.command(0)
    setup.msix.signal(1)
    assert setup.pending() == 0b010
    assert setup.vectors[1].delivered() is None
    setup.command(MASTER)
    assert setup.vectors[1].delivered() == (0xFEE00000, 0x31)
    assert setup.pending() == 0


def test_disabling_drops_pending_interrupts(setup: Setup) -> None:
    setup.control(ENABLE)
    setup.entry(0, 0xFEE00000, 0x31, masked=True)
    setup.msix.signal(0)
    setup.control(0)
    setup.control(ENABLE)
    setup.msix.write(12, 4, 0)
    assert setup.vectors[0].delivered() is None


def test_a_disabled_vector_delivers_nothing(setup: Setup) -> None:
    setup.entry(0, 0xFEE00000, 0x31)
    assert setup.vectors[0].message is None
    setup.control(ENABLE)
    assert setup.vectors[0].routes == 1
    setup.control(0)
    assert setup.vectors[0].message is None
    assert not setup.msix.enabled


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (2, 4), (4, 8), (15, 1)])
def test_other_widths_read_0_and_write_nothing(setup: Setup, offset: int, size: int) -> None:
    before = [setup.msix.read(at, 4) for at in range(0, 48, 4)]
    setup.msix.write(offset, size, (1 << 8 * size) - 1)
    assert [setup.msix.read(at, 4) for at in range(0, 48, 4)] == before
    assert setup.msix.read(offset, size) == 0


def test_reserved_bits_stay_clear_and_the_rest_of_the_bar_is_empty(setup: Setup) -> None:
    for offset in range(0, 4096, 4):
        setup.msix.write(offset, 4, 0xFFFFFFFF)
    words = [setup.msix.read(at, 4) for at in range(0, 16, 4)]
    assert words == [0xFFFFFFFC, 0xFFFFFFFF, 0xFFFFFFFF, 1]
    assert not any(setup.msix.read(at, 4) for at in range(48, 4096, 4))


def test_a_large_table_gets_a_larger_bar() -> None:
    services = FakePciServices()
    function = PciFunction(vendor=1, device=2, class_code=0)
    msix = MsixTable(services, function, bar=1, count=129, lacks=print)
    assert msix.size == 8192
    assert function.config.get(0x48, 4) == 4096 | 1
    msix.close()


def test_a_vector_that_the_host_cannot_route_stays_masked_until_the_next_change(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poor(address: int, data: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    vector = setup.vectors[1]
    setup.control(ENABLE)
    with monkeypatch.context() as patch:
        patch.setattr(vector, "route", poor)
        setup.entry(1, 0xFEE00000, 0x41)
        assert setup.lacks == ["cannot allocate memory"]
    setup.msix.signal(1)
    assert vector.delivered() is None
    setup.entry(1, 0xFEE00000, 0x41)
    assert vector.delivered() == (0xFEE00000, 0x41)
    assert len(setup.lacks) == 1


def test_a_bug_in_routing_is_no_shortage(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(address: int, data: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    setup.control(ENABLE)
    monkeypatch.setattr(setup.vectors[1], "route", buggy)
    with pytest.raises(OSError, match="Bad"):
        setup.entry(1, 0xFEE00000, 0x41)
    assert setup.lacks == []
