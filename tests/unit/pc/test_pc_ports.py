"""CMOS and clock, keyboard controller, reset ports, exit port, pvpanic."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import Bus
from pykvm.pc.exit_port import EXIT_PORT, EXIT_PORTS, ExitPort
from pykvm.pc.i8042 import I8042
from pykvm.pc.pvpanic import Pvpanic
from pykvm.pc.reset_ports import PortA, ResetControl
from pykvm.pc.rtc import B_24H, B_BINARY, B_SET, CENTURY, REG_A, REG_B, REG_C, REG_D, Cmos

GIB = 1 << 30
MIB = 1 << 20
TIME_CELLS = (CENTURY, 9, 8, 7, 4, 2, 0)


class Clock:
    """CMOS with a host clock that the test sets."""

    def __init__(self, moment):
        self.moment = moment
        self.cmos = Cmos(64 * MIB, now=self._now)

    def _now(self):
        return self.moment.timestamp()

    def get(self, index):
        self.cmos.write(0, 1, index)
        return self.cmos.read(1, 1)

    def put(self, index, value):
        self.cmos.write(0, 1, index)
        self.cmos.write(1, 1, value)

    def time(self):
        return [self.get(index) for index in TIME_CELLS]


@pytest.fixture
def clock():
    return Clock(datetime(2031, 12, 28, 23, 59, 58, 999_000, tzinfo=UTC))


def test_the_clock_is_bcd_and_24_hours(clock):
    assert clock.time() == [0x20, 0x31, 0x12, 0x28, 0x23, 0x59, 0x58]
    assert clock.get(6) == 1, "a Sunday"
    assert clock.get(REG_A) == 0x26
    assert clock.get(REG_B) == B_24H
    assert clock.get(REG_C) == 0
    assert clock.get(REG_D) == 0x80


def test_binary_and_12_hour_formats(clock):
    clock.put(REG_B, B_BINARY)
    assert clock.time() == [20, 31, 12, 28, 0x80 | 11, 59, 58]
    clock.put(REG_B, 0)
    assert clock.get(4) == 0x91
    clock.moment = clock.moment.replace(hour=0)
    assert clock.get(4) == 0x12
    clock.moment = clock.moment.replace(hour=12)
    assert clock.get(4) == 0x92


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(9998, 1, 1)),
    st.sampled_from([0, B_24H, B_BINARY, B_24H | B_BINARY]),
)
def test_a_time_that_the_guest_sets_is_read_back_and_advances(moment, form):
    clock = Clock(datetime(2024, 1, 1, tzinfo=UTC))
    shown = Clock(moment.replace(tzinfo=UTC))
    shown.put(REG_B, form)
    clock.put(REG_B, form | B_SET)
    for index in TIME_CELLS:
        clock.put(index, shown.get(index))
    clock.put(REG_B, form)
    assert clock.time() == shown.time()
    clock.moment = clock.moment.replace(minute=1)
    assert clock.time() != shown.time()


def test_the_clock_stands_still_while_set_is_on(clock):
    clock.put(REG_B, B_SET | B_24H)
    clock.moment = clock.moment.replace(year=2032)
    assert clock.get(9) == 0x31


def test_a_single_field_can_be_set_at_once(clock):
    clock.put(4, 0x07)
    assert clock.time()[4:] == [0x07, 0x59, 0x58]


def test_an_impossible_time_does_not_change_the_clock(clock):
    before = clock.time()
    clock.put(8, 0xFF)
    assert clock.time() == before


def test_uip_and_read_only_registers_cannot_be_set(clock):
    for index in (REG_A, REG_C, REG_D):
        clock.put(index, 0xFF)
    assert clock.get(REG_A) == 0x7F
    assert clock.get(REG_C) == 0
    assert clock.get(REG_D) == 0x80


def test_cells_keep_their_bytes_and_the_nmi_bit_is_not_part_of_the_index(clock):
    clock.put(0x0F, 0x5A)
    clock.cmos.write(0, 2, 0x77 << 8 | 0x8F)
    assert clock.get(0x0F) == 0x77
    assert clock.cmos.read(0, 1) == 0xFF


@pytest.mark.parametrize(
    ("low", "high", "extended", "above_16_mib", "above_4_gib"),
    [
        (MIB, 0, 0, 0, 0),
        (64 * MIB, 0, 63 * 1024, 48 * 16, 0),
        (3 * GIB, 2 * GIB, 0xFFFF, (3 * 1024 - 16) * 16, 2 * 1024 * 16),
        (3 * GIB, 1 << 50, 0xFFFF, (3 * 1024 - 16) * 16, 0xFFFFFF),
    ],
)
def test_memory_size(low, high, extended, above_16_mib, above_4_gib):
    clock = Clock(datetime(2024, 1, 1, tzinfo=UTC))
    clock.cmos = Cmos(low, high)

    def cells(start, count):
        return sum(clock.get(start + index) << 8 * index for index in range(count))

    assert cells(0x15, 2) == 640
    assert cells(0x17, 2) == cells(0x30, 2) == extended
    assert cells(0x34, 2) == above_16_mib
    assert cells(0x5B, 3) == above_4_gib


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([1, 2]), st.integers(0, 0xFFFF))))
def test_no_cmos_access_raises(accesses):
    cmos = Cmos(64 * MIB)
    for offset, size, value in accesses:
        cmos.write(offset, size, value)
        assert 0 <= cmos.read(offset, size) < 1 << (8 * size)


class Controller:
    """The i8042 on a bus, and the resets that it asked for."""

    def __init__(self):
        self.resets = 0
        self.bus = Bus()
        I8042(self._reset).attach(self.bus)

    def _reset(self):
        self.resets += 1

    def command(self, *values):
        self.bus.write(0x64, 1, values[0])
        for value in values[1:]:
            self.bus.write(0x60, 1, value)

    @property
    def status(self):
        return self.bus.read(0x64, 1)


@pytest.fixture
def controller():
    return Controller()


def test_i8042_is_always_ready_and_empty_at_first(controller):
    assert controller.status & 0x03 == 0
    assert controller.bus.read(0x61, 1) == 0xFF, "port 0x61 is not the controller's"


@pytest.mark.parametrize(
    ("command", "answer"), [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0xFF), (0xD0, 0x03), (0x20, 0x00)]
)
def test_i8042_answers_the_probes_of_drivers(controller, command, answer):
    controller.command(command)
    assert controller.status & 0x01
    assert controller.bus.read(0x60, 1) == answer
    assert not controller.status & 0x01


def test_i8042_configuration_byte(controller):
    controller.command(0x60, 0x45)
    controller.command(0x20)
    assert controller.bus.read(0x60, 1) == 0x45


def test_i8042_resets(controller):
    controller.command(0xFE)
    assert controller.resets == 1
    controller.command(0xD1, 0x02)
    assert controller.resets == 2


def test_i8042_resets_only_on_request(controller):
    controller.command(0xFF)
    controller.command(0xD1, 0x03)
    controller.command(0xD4, 0xFE)
    controller.command(0x60, 0x00)
    controller.bus.write(0x60, 1, 0x00)
    assert controller.resets == 0


def test_port_a_resets_and_has_a20_open():
    resets = []
    port = PortA(lambda: resets.append(1))
    port.write(0, 1, 0x02)
    assert not resets
    assert port.read(0, 1) == 0x02
    port.write(0, 1, 0x03)
    assert resets


def test_reset_control_needs_a_rising_edge():
    resets = []
    port = ResetControl(lambda: resets.append(1))
    port.write(0, 1, 0x02)
    assert not resets
    port.write(0, 1, 0x06)
    port.write(0, 1, 0x06)
    assert len(resets) == 1
    assert port.read(0, 1) == 0x06
    port.write(0, 1, 0x00)
    port.write(0, 1, 0x0E)
    assert len(resets) == 2


def test_exit_port_passes_one_byte_on():
    statuses = []
    bus = Bus()
    bus.add(EXIT_PORT, EXIT_PORTS, ExitPort(statuses.append))
    bus.write(EXIT_PORT, 1, 42)
    ExitPort(statuses.append).write(0, 4, 0x1FF)
    assert statuses == [42, 0xFF]
    assert bus.read(EXIT_PORT, 1) == 0xFF


def test_pvpanic_reports_known_events_only():
    events = []
    device = Pvpanic(events.append)
    assert device.read(0, 1) == 0x03
    device.write(0, 1, 0xFC)
    device.write(0, 1, 0xFD)
    device.write(0, 1, 0x02)
    assert events == [1, 2]


def test_pvpanic_is_one_byte_also_in_a_larger_bar():
    events = []
    device = Pvpanic(events.append)
    device.write(1, 1, 0x01)
    device.write(4, 4, 0x01)
    assert device.read(1, 1) == 0
    assert not events
