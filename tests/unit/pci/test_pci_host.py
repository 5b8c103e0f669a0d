"""Configuration mechanism 1, BARs and where they are decoded."""

import pytest

from pykvm.bus import Bus
from pykvm.errors import UsageError
from pykvm.pci.config import PciFunction
from pykvm.pci.host import ASSIGN_START, CONFIG_PORT, CONFIG_PORTS, DECODE_START, PciHost
from pykvm.pci.pvpanic import PvPanicPci


class Scratch:
    """A BAR that reads as its tag and remembers writes."""

    def __init__(self, tag: int) -> None:
        self.tag = tag
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return self.tag

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


class Card(PciFunction):
    """A function with BARs of the given sizes."""

    def __init__(self, *sizes: int, tag: int = 0x11) -> None:
        super().__init__(vendor=0x1234, device=0x5678, class_code=0xFF0102, revision=3)
        self.moves = 0
        self.closed = False
        for index, size in enumerate(sizes):
            self.add_bar(index, size, Scratch(tag + index))

    def placed(self) -> None:
        self.moves += 1

    def close(self) -> None:
        self.closed = True


class Pc:
    """Ports and MMIO with a PCI host between them."""

    def __init__(self, ram: int = DECODE_START) -> None:
        """``ram``: bytes of RAM, from address 0."""
        self.ports, self.mmio = Bus(), Bus()
        self.resets: list[int] = []
        self.host = PciHost(self.mmio, self.resets.append, decode_start=ram)
        self.ports.add(CONFIG_PORT, CONFIG_PORTS, self.host)

    def select(self, device: int, register: int, function: int = 0, bus: int = 0) -> None:
        value = 1 << 31 | bus << 16 | device << 11 | function << 8 | register & 0xFC
        self.ports.write(0xCF8, 4, value)

    def read(self, device: int, register: int, size: int = 4) -> int:
        self.select(device, register)
        return self.ports.read(0xCFC + (register & 3), size)

    def write(self, device: int, register: int, size: int, value: int) -> None:
        self.select(device, register)
        self.ports.write(0xCFC + (register & 3), size, value)


@pytest.fixture
def pc() -> Pc:
    return Pc()


def test_the_host_bridge_is_device_0(pc: Pc) -> None:
    assert pc.read(0, 0) == 0x12378086
    assert pc.read(0, 0x0A, 2) == 0x0600
    assert pc.read(0, 0x0E, 1) == 0  # header type 0, one function


def test_the_probe_of_linux_finds_mechanism_1(pc: Pc) -> None:
    pc.ports.write(0xCFB, 1, 0x01)
    before = pc.ports.read(0xCF8, 4)
    pc.ports.write(0xCF8, 4, 0x80000000)
    assert pc.ports.read(0xCF8, 4) == 0x80000000
    pc.ports.write(0xCF8, 4, before)


@pytest.mark.parametrize(("device", "function", "bus"), [(5, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_absent_functions_read_all_ones(pc: Pc, device: int, function: int, bus: int) -> None:
    pc.select(device, 0, function, bus)
    assert pc.ports.read(0xCFC, 4) == 0xFFFFFFFF
    assert pc.ports.read(0xCFC, 2) == 0xFFFF
    pc.ports.write(0xCFC, 4, 0)


def test_without_the_enable_bit_data_is_not_configuration(pc: Pc) -> None:
    pc.ports.write(0xCF8, 4, 0)
    assert pc.ports.read(0xCFC, 4) == 0xFFFFFFFF


def test_narrow_accesses_reach_their_bytes(pc: Pc) -> None:
    number = pc.host.add(Card(4096))
    assert [pc.read(number, offset, 1) for offset in range(4)] == [0x34, 0x12, 0x78, 0x56]
    assert pc.read(number, 2, 2) == 0x5678
    assert pc.read(number, 8) == 0xFF010203
    pc.write(number, 0x3C, 1, 0x0B)
    assert pc.read(number, 0x3C) == 0x0000000B


def test_an_access_across_the_doubleword_reads_all_ones(pc: Pc) -> None:
    pc.select(0, 0)
    assert pc.ports.read(0xCFE, 4) == 0xFFFFFFFF  # also past the last port
    assert pc.host.read(7, 2) == 0xFFFF
    pc.host.write(6, 4, 0)


def test_identification_is_read_only(pc: Pc) -> None:
    number = pc.host.add(Card(4096))
    before = [pc.read(number, register) for register in range(0, 16, 4)]
    for register in (0, 8):
        pc.write(number, register, 4, 0xFFFFFFFF)
    pc.write(number, 4, 4, 0xFFFFFFFF)
    assert pc.read(number, 4) == 0x00000006  # memory and bus master; no status bits
    assert [pc.read(number, r) for r in (0, 8)] == [before[0], before[2]]


def test_reset_control_bytes_are_passed_on(pc: Pc) -> None:
    pc.ports.write(0xCF9, 1, 0x02)
    pc.ports.write(0xCF9, 1, 0x06)
    assert pc.resets == [2, 6]
    assert pc.ports.read(0xCF9, 1) == 6
    pc.ports.write(0xCF8, 2, 0xFFFF)  # a wide write is neither reset nor address
    pc.ports.write(0xCFA, 2, 0xFFFF)
    assert pc.resets == [2, 6]
    assert pc.ports.read(0xCF8, 2) == 0xFFFF


# -- BARs --------------------------------------------------------------------------


def test_bars_are_assigned_aligned_apart_and_decoded(pc: Pc) -> None:
    cards = [Card(16, 65536), Card(4096)]
    numbers = [pc.host.add(card) for card in cards]
    assert numbers == [1, 2]
    places = [(bar.address, bar.size) for card in cards for bar in card.bars]
    assert places == [
        (ASSIGN_START, 16),
        (ASSIGN_START + 0x10000, 0x10000),
        (ASSIGN_START + 0x1000, 4096),
    ]
    assert pc.read(1, 0x10) == ASSIGN_START
    assert pc.mmio.read(ASSIGN_START + 0x10004, 4) == 0x12
    assert pc.mmio.read(ASSIGN_START + 16, 4) == 0xFFFFFFFF


def test_all_ones_show_the_size(pc: Pc) -> None:
    number = pc.host.add(Card(65536))
    pc.write(number, 0x10, 4, 0xFFFFFFFF)
    assert pc.read(number, 0x10) == 0xFFFF0000
    assert pc.mmio.read(ASSIGN_START, 4) == 0xFFFFFFFF  # not decoded meanwhile
    pc.write(number, 0x10, 4, ASSIGN_START)
    assert pc.mmio.read(ASSIGN_START, 4) == 0x11
    pc.write(number, 0x14, 4, 0xFFFFFFFF)  # a BAR that is not there
    assert pc.read(number, 0x14) == 0


def test_a_bar_can_be_moved_and_written_in_parts(pc: Pc) -> None:
    card = Card(4096)
    number = pc.host.add(card)
    pc.write(number, 0x10, 4, 0xD000_0000)
    assert pc.mmio.read(0xD000_0000, 4) == 0x11
    assert pc.mmio.read(ASSIGN_START, 4) == 0xFFFFFFFF
    pc.write(number, 0x12, 2, 0xD123)
    assert card.bars[0].address == 0xD123_0000
    assert card.moves == 1 + 2 * 2  # each time away, then there


def test_the_command_register_gates_decoding(pc: Pc) -> None:
    card = Card(4096)
    number = pc.host.add(card)
    pc.write(number, 4, 2, 0)
    assert pc.mmio.read(ASSIGN_START, 4) == 0xFFFFFFFF
    assert card.bars[0].address is None
    pc.write(number, 4, 2, 2)
    assert pc.mmio.read(ASSIGN_START, 4) == 0x11


@pytest.mark.parametrize("address", [0, 0x1000, 0xBFFF_F000, 0xFEC0_0000, 0xFEE0_0000, 0xFFFF_F000])
def test_a_bar_over_ram_or_apics_is_not_decoded(pc: Pc, address: int) -> None:
    number = pc.host.add(Card(4096))
    pc.write(number, 0x10, 4, address)
    assert pc.read(number, 0x10) == address
    assert pc.mmio.read(address, 4) == 0xFFFFFFFF
    pc.write(number, 0x10, 4, ASSIGN_START)
    assert pc.mmio.read(ASSIGN_START, 4) == 0x11


def test_a_bar_can_lie_anywhere_between_ram_and_the_io_apic() -> None:
    """Linux without ACPI puts the BARs that it places right above RAM."""
    pc = Pc(ram=64 << 20)
    number = pc.host.add(Card(4096))
    for address in (0x0400_0000, 0x0400_1000, 0x7FFF_F000, 0xBFFF_F000, 0xFEBF_F000):
        pc.write(number, 0x10, 4, address)
        assert pc.mmio.read(address, 4) == 0x11
        assert pc.mmio.read(ASSIGN_START, 4) == 0xFFFFFFFF
    for address in (0x03FF_F000, 0, 0xFEC0_0000):
        pc.write(number, 0x10, 4, address)
        assert pc.mmio.read(address, 4) == 0xFFFFFFFF


def test_a_bar_over_a_device_outside_pci_loses_and_comes_back(pc: Pc) -> None:
    fixed = Scratch(0x77)
    pc.mmio.add(0xF000_0800, 16, fixed)
    number = pc.host.add(Card(4096))
    pc.write(number, 0x10, 4, 0xF000_0000)
    assert pc.mmio.read(0xF000_0800, 4) == 0x77
    assert pc.mmio.read(0xF000_0000, 4) == 0xFFFFFFFF
    pc.write(number, 0x10, 4, 0xF000_1000)
    assert pc.mmio.read(0xF000_1000, 4) == 0x11


def test_of_overlapping_bars_the_lower_device_wins(pc: Pc) -> None:
    first, second = Card(4096, tag=0x11), Card(65536, tag=0x22)
    pc.host.add(first)
    number = pc.host.add(second)
    home = second.bars[0].address
    assert home is not None
    pc.write(number, 0x10, 4, ASSIGN_START)
    assert pc.mmio.read(ASSIGN_START, 4) == 0x11
    assert second.bars[0].address is None
    pc.write(1, 0x10, 4, 0xF000_0000)  # the winner leaves: the other is decoded at last
    assert pc.mmio.read(ASSIGN_START, 4) == 0x22
    assert pc.mmio.read(0xF000_0000, 4) == 0x11


def test_two_bars_can_trade_places(pc: Pc) -> None:
    pc.host.add(Card(4096, 4096))
    pc.write(1, 0x10, 4, ASSIGN_START + 4096)
    pc.write(1, 0x14, 4, ASSIGN_START)
    assert pc.mmio.read(ASSIGN_START, 4) == 0x12
    assert pc.mmio.read(ASSIGN_START + 4096, 4) == 0x11


def test_a_full_bus_and_a_full_window_are_usage_errors(pc: Pc) -> None:
    for _ in range(31):
        pc.host.add(Card(4096))
    with pytest.raises(UsageError):
        pc.host.add(Card(4096))
    with pytest.raises(UsageError):
        Pc().host.add(Card(1 << 28, 1 << 28, 1 << 28))


def test_closing_the_host_takes_everything_off_the_bus(pc: Pc) -> None:
    pc.host.add(Card(4096))
    pc.host.close()
    assert pc.mmio.read(ASSIGN_START, 4) == 0xFFFFFFFF


def test_capabilities_are_linked(pc: Pc) -> None:
    card = Card(4096)
    first = card.add_capability(0x09, b"\x05\x01\x02", mask=b"\x00\xff")
    second = card.add_capability(0x11, b"\xaa\xbb")
    number = pc.host.add(card)
    assert pc.read(number, 6, 2) & 0x10
    assert pc.read(number, 0x34, 1) == first
    assert pc.read(number, first) == 0x01050009 | second << 8
    assert pc.read(number, second, 4) == 0xBBAA0011
    pc.write(number, first, 4, 0xFFFFFFFF)
    assert pc.read(number, first) == 0xFF050009 | second << 8


# -- pvpanic ----------------------------------------------------------------------


def test_pvpanic_has_its_port_in_a_bar() -> None:
    port, pc = Scratch(3), Pc()
    pc.host.add(PvPanicPci(port))
    assert pc.read(1, 0) == 0x00111B36
    assert pc.read(1, 0x08) >> 8 == 0x088000
    base = pc.read(1, 0x10)
    assert pc.mmio.read(base, 1) == 3
    pc.mmio.write(base, 1, 1)
    assert port.writes == [(0, 1, 1)]


# -- functions that come and go -------------------------------------------------------


def test_a_function_that_is_unplugged_is_closed_and_reads_as_ones(pc: Pc) -> None:
    card, other = Card(4096), Card(4096)
    number = pc.host.add(card)
    kept = pc.host.add(other)
    pc.host.remove(number)
    assert card.closed
    assert not other.closed
    assert pc.read(number, 0) == 0xFFFFFFFF
    assert pc.mmio.read(ASSIGN_START, 4) == 0xFFFFFFFF
    assert pc.mmio.read(ASSIGN_START + 4096, 4) == 0x11
    pc.write(number, 0x10, 4, 0)
    assert pc.read(kept, 0) != 0xFFFFFFFF


def test_the_place_of_a_function_that_was_unplugged_is_used_again(pc: Pc) -> None:
    first, second = Card(65536, 16), Card(4096)
    assert (pc.host.add(first), pc.host.add(second)) == (1, 2)
    places = [bar.address for bar in first.bars]
    for _ in range(10_000):  # more often than there is room for
        pc.host.remove(1)
        first = Card(65536, 16)
        assert pc.host.add(first) == 1
        assert [bar.address for bar in first.bars] == places


def test_a_new_function_keeps_away_from_the_places_to_which_the_guest_moved_bars(pc: Pc) -> None:
    moved, new = Card(65536), Card(4096, 65536)
    number = pc.host.add(moved)
    pc.write(number, 0x10, 4, ASSIGN_START + 0x10000)
    pc.write(number, 4, 4, 0)  # not decoded at the moment, and yet its place
    pc.host.add(new)
    assert [bar.address for bar in new.bars] == [ASSIGN_START, ASSIGN_START + 0x20000]
    pc.write(number, 4, 4, 2)
    assert moved.bars[0].address == ASSIGN_START + 0x10000


def test_of_two_bars_that_the_guest_puts_on_each_other_the_lower_number_wins(pc: Pc) -> None:
    """Also after functions have come and gone."""
    first, second = Card(4096), Card(4096)
    assert (pc.host.add(first), pc.host.add(second)) == (1, 2)
    pc.host.remove(1)
    late = Card(4096)
    assert pc.host.add(late) == 1
    pc.write(2, 0x10, 4, late.bars[0].address or 0)
    assert late.bars[0].address == ASSIGN_START
    assert second.bars[0].address is None
    pc.host.remove(1)
    assert second.bars[0].address == ASSIGN_START
