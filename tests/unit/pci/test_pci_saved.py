"""PCI bus 0 goes on in a new machine after a snapshot: the latch, and BARs where they were."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_states import damages, moved, survives

from pykvm.bus import Bus
from pykvm.pci.config import PciFunction
from pykvm.pci.host import ASSIGN_START, CONFIG_PORT, CONFIG_PORTS, DECODE_START, PciHost
from pykvm.snapshot.fields import Saved, SnapshotError


class Tag:
    """A BAR that reads as its number."""

    def __init__(self, tag: int) -> None:
        self._tag = tag

    def read(self, offset: int, size: int) -> int:
        return self._tag

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class Card(PciFunction):
    """A function with BARs of the given sizes, and a capability with writable bits."""

    def __init__(self, tag: int, *sizes: int, device: int = 0x5678) -> None:
        super().__init__(vendor=0x1234, device=device, class_code=0xFF0102)
        for index, size in enumerate(sizes):
            self.add_bar(index, size, Tag(tag + index))
        self.capability = self.add_capability(0x09, b"\0\0\0\0", mask=b"\x0f\x00\xff")


class Pc:
    """Two cards on a bus, above 1 GiB of RAM."""

    def __init__(self, *cards: PciFunction) -> None:
        self.ports, self.mmio = Bus(), Bus()
        self.resets: list[int] = []
        self.host = PciHost(self.mmio, self.resets.append, decode_start=1 << 30)
        self.ports.add(CONFIG_PORT, CONFIG_PORTS, self.host)
        self.cards = cards or (Card(0x11, 4096, 16), Card(0x22, 1 << 16))
        for card in self.cards:
            self.host.add(card)

    def select(self, device: int, register: int) -> None:
        self.ports.write(0xCF8, 4, 1 << 31 | device << 11 | register & 0xFC)

    def read(self, device: int, register: int) -> int:
        self.select(device, register)
        return self.ports.read(0xCFC, 4)

    def write(self, device: int, register: int, value: int) -> None:
        self.select(device, register)
        self.ports.write(0xCFC, 4, value)

    def places(self) -> list[int | None]:
        """Where the BARs are decoded, after a check that they answer there."""
        bars = [(bar, card) for card in self.cards for bar in card.bars]
        for bar, _ in bars:
            if bar.address is not None:
                assert self.mmio.read(bar.address, 4) == bar.device.read(0, 4)
        return [bar.address for bar, _ in bars]


def restored(pc: Pc) -> Pc:
    other = Pc()
    moved(pc.host, other.host)
    return other


addresses = st.one_of(
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from([ASSIGN_START, ASSIGN_START + 4096, DECODE_START, 1 << 30, 0xFEC0_0000]),
)
ones = st.sampled_from([0, 1, 2, 3, 6, 0xFFFFFFFF])
steps = st.lists(
    st.one_of(
        # The registers of a function, with values that matter to them.
        st.tuples(st.just("put"), st.integers(0, 3), st.sampled_from([0x10, 0x14]), addresses),
        st.tuples(st.just("put"), st.integers(0, 3), st.sampled_from([4, 0x3C, 0x40, 0x44]), ones),
        st.tuples(st.just("get"), st.integers(0, 3), st.integers(0, 63), st.just(0)),
        # Any access to the ports.
        st.tuples(
            st.just("out"),
            st.integers(0, 7),
            st.sampled_from([1, 2, 4]),
            st.integers(0, 0xFFFFFFFF),
        ),
        st.tuples(st.just("in"), st.integers(0, 7), st.sampled_from([1, 2, 4]), st.just(0)),
    ),
    max_size=25,
)


def drive(pc: Pc, operations: list[tuple[str, int, int, int]]) -> list[object]:
    """What a guest sees."""
    seen: list[object] = []
    for operation, first, second, value in operations:
        if operation == "put":
            pc.write(first, second, value)
        elif operation == "get":
            seen.append(pc.read(first, 4 * second))
        elif operation == "out":
            pc.host.write(first, second, value & ((1 << 8 * second) - 1))
        else:
            seen.append(pc.host.read(first, second))
        seen.append(pc.places())
    return seen


@settings(max_examples=200)
@given(steps, steps)
def test_a_restored_bus_behaves_as_the_saved_one(before, after):
    pc = Pc()
    drive(pc, before)
    other = restored(pc)
    assert other.host.save() == pc.host.save()
    assert other.places() == pc.places()
    pc.resets.clear()
    assert drive(other, after) == drive(pc, after)
    assert other.resets == pc.resets


def test_the_latch_and_the_reset_byte_are_kept_and_nothing_is_reset():
    pc = Pc()
    pc.select(2, 0)
    pc.ports.write(0xCF9, 1, 0x06)
    other = restored(pc)
    assert other.ports.read(0xCFC, 4) == 0x5678_1234
    assert other.ports.read(0xCF9, 1) == 0x06
    assert other.resets == []


def test_a_bar_that_the_guest_moved_is_decoded_there():
    pc = Pc()
    pc.write(2, 0x10, 0xD000_0000)
    other = restored(pc)
    assert other.mmio.read(0xD000_0000, 4) == 0x22
    assert other.places()[2] == 0xD000_0000
    assert other.places()[:2] == pc.places()[:2] == [ASSIGN_START, ASSIGN_START + 4096]


def test_bars_that_traded_places_are_decoded_there():
    pc = Pc()
    pc.write(1, 0x10, ASSIGN_START + 4096)
    pc.write(1, 0x14, ASSIGN_START)
    assert restored(pc).places() == pc.places()


def test_a_function_that_decodes_nothing_goes_on_so_and_can_be_enabled():
    pc = Pc()
    pc.write(1, 4, 0)
    other = restored(pc)
    assert other.places()[:2] == [None, None]
    assert other.mmio.read(ASSIGN_START, 4) == 0xFFFFFFFF
    other.write(1, 4, 2)
    assert other.mmio.read(ASSIGN_START, 4) == 0x11


def test_a_function_can_be_added_to_a_restored_bus():
    pc = Pc()
    pc.write(1, 0x10, 0xD000_0000)
    other = restored(pc)
    card = Card(0x33, 4096)
    assert other.host.add(card) == 3
    other.cards += (card,)
    assert None not in other.places()


@pytest.mark.parametrize(
    ("cards", "words"),
    [
        ((Card(0x11, 4096, 16),), "functions does not have 2 entries"),
        ((Card(1, 16), Card(2, 16), Card(3, 16)), "functions does not have 4 entries"),
        ((Card(0x11, 4096, 16), Card(0x22, 1 << 16, device=1)), "of another kind"),
        ((Card(0x11, 8192, 16), Card(0x22, 1 << 16)), "of another kind"),
        ((Card(0x11, 4096), Card(0x22, 1 << 16)), "of another kind"),
    ],
    ids=["fewer", "more", "another device", "another size", "fewer BARs"],
)
def test_functions_of_another_kind_are_refused(cards: tuple[Card, ...], words: str):
    pc = Pc()
    pc.write(1, 0x10, ASSIGN_START + 4096)  # a multiple of 4096, and not of 8192
    pc.write(1, 0x14, ASSIGN_START)
    with pytest.raises(SnapshotError, match=words):
        moved(pc.host, Pc(*cards).host)


@pytest.mark.parametrize("at", [0, 2, 6, 8, 0x0E, 0x2C, 0x34, 0x3D, 0x42, 0xFF])
def test_bits_that_no_driver_can_write_are_refused(at: int):
    fields = Pc().host.save()
    config = bytearray(fields["functions"][1]["state"]["config"])
    config[at] ^= 0x80
    fields["functions"][1]["state"]["config"] = bytes(config)
    with pytest.raises(SnapshotError, match=r"functions\[1\]\.state .* of another kind"):
        Pc().host.load(Saved("pci", fields))


def test_functions_get_their_numbers_back_although_there_is_a_gap():
    pc = Pc(Card(0x11, 4096), Card(0x22, 16), Card(0x33, 1 << 16))
    pc.write(3, 0x10, 0xD000_0000)
    pc.host.remove(1)
    pc.cards = pc.cards[1:]
    other = Pc(Card(0x22, 16), Card(0x33, 1 << 16))
    moved(pc.host, other.host)
    assert other.host.save() == pc.host.save()
    assert other.places() == pc.places()
    assert [card.number for card in other.cards] == [2, 3]
    assert other.read(1, 0) == 0xFFFFFFFF
    other.write(3, 0x10, 0xD100_0000)
    assert other.places()[1] == 0xD100_0000


@pytest.mark.parametrize("number", [0, 32, -1, True, None])
def test_a_function_at_an_impossible_number_is_refused(number: object):
    fields = Pc().host.save()
    fields["functions"][1]["number"] = number
    with pytest.raises(SnapshotError, match="number is "):
        Pc().host.load(Saved("pci", fields))
    fields["functions"][1]["number"] = fields["functions"][2]["number"] = 5
    with pytest.raises(SnapshotError, match="number is 5, not 6 to 31"):
        Pc().host.load(Saved("pci", fields))


@settings(max_examples=200)
@given(steps, damages(), steps)
def test_a_damaged_bus_is_refused_or_answers_every_access(before, damage, after):
    pc, other = Pc(), Pc()
    drive(pc, before)
    survives(other.host, damage(pc.host.save()))
    for item in drive(other, after):
        if isinstance(item, int):
            assert 0 <= item <= 0xFFFFFFFF
    other.host.close()
    assert other.mmio.read(ASSIGN_START, 4) == 0xFFFFFFFF
