"""Clock, keyboard controller and reset control go on in new ones after a snapshot."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_states import damages, moved, survives

from pykvm.bus import Bus
from pykvm.pc.i8042 import I8042
from pykvm.pc.reset_ports import ResetControl
from pykvm.pc.rtc import B_24H, B_SET, CENTURY, CLOCK_REGISTERS, REG_A, REG_B, Cmos
from pykvm.snapshot.fields import Saved, SnapshotError

MIB = 1 << 20
NOW = 1_900_000_000.25
YEAR = 365 * 86400


class Clock:
    """CMOS on a host clock that the test sets."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now
        self.device = Cmos(64 * MIB, now=lambda: self.now)

    def get(self, index: int) -> int:
        self.device.write(0, 1, index)
        return self.device.read(1, 1)

    def put(self, index: int, value: int) -> None:
        self.device.write(0, 2, value << 8 | index)

    def time(self) -> list[int]:
        return [self.get(index) for index in CLOCK_REGISTERS]

    def set(self, year: int, rest: int = 0x01) -> None:
        """Set the clock to a moment in ``year``, which is BCD."""
        self.put(REG_B, B_24H | B_SET)
        for index in CLOCK_REGISTERS:
            self.put(index, rest)
        self.put(9, year & 0xFF)
        self.put(CENTURY, year >> 8)
        self.put(REG_B, B_24H)


def restored(clock: Clock, now: float | None = None) -> Clock:
    other = Clock(clock.now if now is None else now)
    moved(clock.device, other.device)
    return other


cells = st.one_of(
    st.sampled_from([*CLOCK_REGISTERS, REG_A, REG_B, REG_B, CENTURY]), st.integers(0, 255)
)
values = st.one_of(st.integers(0, 255), st.sampled_from([0x00, 0x01, 0x12, 0x20, 0x59, 0x82]))
accesses = st.lists(st.tuples(cells, st.none() | values, st.integers(0, 5)), max_size=30)


def drive(clock: Clock, steps: list[tuple[int, int | None, int]]) -> list[int]:
    """What a guest reads, while time passes."""
    seen = []
    for index, value, seconds in steps:
        clock.now += seconds
        if value is None:
            seen.append(clock.get(index))
        else:
            clock.put(index, value)
            seen.append(clock.device.read(1, 1))
    return seen


@given(accesses, accesses)
def test_a_restored_clock_behaves_as_the_saved_one(before, after):
    clock = Clock()
    drive(clock, before)
    other = restored(clock)
    assert other.device.read(1, 1) == clock.device.read(1, 1), "the chosen cell"
    assert drive(other, after) == drive(clock, after)


def test_a_shifted_clock_goes_on_with_the_hosts():
    clock = Clock()
    clock.set(0x1999)
    other = restored(clock, NOW + 3600)
    clock.now += 3600
    assert other.time() == clock.time()
    assert other.get(CENTURY) == 0x19


def test_a_clock_that_is_being_set_stands_still():
    clock = Clock()
    clock.put(REG_B, B_24H | B_SET)
    clock.put(9, 0x77)
    other = restored(clock, NOW + 3600)
    assert other.get(9) == 0x77
    other.put(REG_B, B_24H)
    assert other.get(9) == 0x77


@pytest.mark.parametrize(
    ("year", "rest", "away"),
    [(0x9999, 0x12, 50 * YEAR), (0x0001, 0x01, -50 * YEAR), (0x9999, 0x12, 0)],
)
def test_a_guest_at_the_end_of_its_calendar_can_be_restored(year: int, rest: int, away: int):
    """The host's clock may have moved meanwhile, also back."""
    clock = Clock()
    clock.set(year, rest)
    other = restored(clock, NOW + away)
    shown = other.get(CENTURY) << 8 | other.get(9)
    assert shown == year


@pytest.mark.parametrize("shift", [1 << 62, -(1 << 62), 10**12, True, 0.5])
def test_a_shift_that_no_guest_can_make_is_refused(shift: object):
    with pytest.raises(SnapshotError, match="shift is "):
        Clock().device.load(Saved("cmos", Clock().device.save() | {"shift": shift}))


@settings(max_examples=300)
@given(accesses, damages(), accesses)
def test_a_damaged_clock_is_refused_or_answers_every_access(before, damage, after):
    clock, other = Clock(), Clock()
    drive(clock, before)
    survives(other.device, damage(clock.device.save()))
    assert all(0 <= value <= 255 for value in drive(other, after) + other.time())


class Controller:
    """The i8042 on a bus, and the resets that it asked for."""

    def __init__(self) -> None:
        self.resets = 0
        self.bus = Bus()
        self.device = I8042(self._reset)
        self.device.attach(self.bus)

    def _reset(self) -> None:
        self.resets += 1


bytes_for_ports = st.one_of(
    st.none(),
    st.sampled_from([0x20, 0x60, 0xA9, 0xAA, 0xAB, 0xD0, 0xD1, 0xD2, 0xD3, 0xD4, 0xFE]),
    st.integers(0, 255),
)
port_accesses = st.lists(st.tuples(st.sampled_from([0x60, 0x64]), bytes_for_ports), max_size=30)


def type_on(controller: Controller, steps: list[tuple[int, int | None]]) -> list[int]:
    seen = []
    for port, value in steps:
        if value is None:
            seen.append(controller.bus.read(port, 1))
        else:
            controller.bus.write(port, 1, value)
    return [*seen, controller.bus.read(0x64, 1), controller.resets]


@given(port_accesses, port_accesses)
def test_a_restored_keyboard_controller_behaves_as_the_saved_one(before, after):
    controller, other = Controller(), Controller()
    type_on(controller, before)
    controller.resets = 0
    moved(controller.device, other.device)
    assert other.resets == 0
    assert type_on(other, after) == type_on(controller, after)


@pytest.mark.parametrize("wait", [False, True])
def test_a_keyboard_controller_between_command_and_parameter(wait: bool):
    controller, other = Controller(), Controller()
    type_on(controller, [(0x64, 0xD1)] if wait else [(0x64, 0xAA)])
    moved(controller.device, other.device)
    other.bus.write(0x60, 1, 0x00)
    assert other.resets == wait
    assert other.bus.read(0x64, 1) & 1 == (not wait)


@given(port_accesses, damages(), port_accesses)
def test_a_damaged_keyboard_controller_is_refused_or_answers(before, damage, after):
    controller, other = Controller(), Controller()
    type_on(controller, before)
    survives(other.device, damage(controller.device.save()))
    assert all(0 <= value <= 255 for value in type_on(other, after))


@given(st.lists(st.integers(0, 255)), st.lists(st.integers(0, 255)))
def test_a_restored_reset_control_wants_the_same_edge(before, after):
    resets: list[str] = []
    port = ResetControl(lambda: resets.append("saved"))
    other = ResetControl(lambda: resets.append("restored"))
    for value in before:
        port.write(0, 1, value)
    resets.clear()
    moved(port, other)
    assert resets == []
    for value in after:
        port.write(0, 1, value)
        other.write(0, 1, value)
        assert port.read(0, 1) == other.read(0, 1)
    assert resets.count("saved") == resets.count("restored")


@pytest.mark.parametrize("value", [-1, 0x01, 0x0F, 0x10, None])
def test_a_reset_control_with_an_impossible_value_is_refused(value: object):
    with pytest.raises(SnapshotError, match="value "):
        ResetControl(lambda: None).load(Saved("reset_control", {"value": value}))
