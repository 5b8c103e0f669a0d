"""The UART, driven as Linux's 8250 driver drives it (drivers/tty/serial/8250/8250_port.c)."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.platform.alarm import Alarm
from pykvm.platform.serial import (
    BACKLOG_LIMIT,
    DLL,
    DLM,
    FCR_CLEAR_RCVR,
    FCR_ENABLE,
    IER,
    IER_MSI,
    IER_RDI,
    IER_RLSI,
    IER_THRI,
    IIR_CTI,
    IIR_FCR,
    IIR_FIFO_ENABLED,
    IIR_MSI,
    IIR_NO_INT,
    IIR_RDI,
    IIR_RLSI,
    IIR_THRI,
    LCR,
    LCR_DLAB,
    LSR,
    LSR_DR,
    LSR_OE,
    LSR_TEMT,
    LSR_THRE,
    MCR,
    MCR_DTR,
    MCR_LOOP,
    MCR_OUT1,
    MCR_OUT2,
    MCR_RTS,
    MSR,
    RBR_THR,
    SCR,
    Uart16550,
)


class FakeAlarm(Alarm):
    """An alarm that rings when the test says so."""

    def __init__(self, ring):
        self.ring = ring
        self.when = None

    def set(self, when):
        self.when = when

    def close(self):
        self.when = None


class Line:
    """A UART with everything around it recorded, on a clock that the test turns."""

    def __init__(self, **options):
        self.sent = bytearray()
        self.edges = []
        self.now = 100.0
        self.uart = Uart16550(
            self.edges.append,
            self.sent.extend,
            clock=lambda: self.now,
            alarm=self._make_alarm,
            **options,
        )

    def _make_alarm(self, ring):
        self.alarm = FakeAlarm(ring)
        return self.alarm

    @property
    def irq(self):
        return bool(self.edges) and self.edges[-1]

    def get(self, register):
        return self.uart.read(register, 1)

    def put(self, register, value):
        self.uart.write(register, 1, value)

    def pass_time(self, seconds):
        self.now += seconds
        if self.alarm.when is not None and self.alarm.when <= self.now:
            self.alarm.when = None
            self.alarm.ring()

    def read_available(self, limit=1 << 30):
        """What a polling receiver gets."""
        got = bytearray()
        while len(got) < limit and self.get(LSR) & LSR_DR:
            got.append(self.get(RBR_THR))
        return bytes(got)


class Linux:
    """As much of the 8250 driver as touches registers."""

    def __init__(self, line):
        self.line = line
        self.got = bytearray()

    def clear_fifos(self):
        for value in (FCR_ENABLE, FCR_ENABLE | 0x06, 0):
            self.line.put(IIR_FCR, value)

    def autoconfig(self):
        """The type of port found; None for none."""
        get, put = self.line.get, self.line.put
        ier = get(IER)
        put(IER, 0)
        none = get(IER) & 0x0F
        put(IER, 0x0F)
        every = get(IER) & 0x0F
        put(IER, ier)
        if none != 0 or every != 0x0F:
            return None
        mcr, lcr = get(MCR), get(LCR)
        put(MCR, MCR_LOOP | 0x0A)
        status = get(MSR) & 0xF0
        put(MCR, mcr)
        if status != 0x90:
            return None
        put(LCR, 0xBF)
        put(IIR_FCR, 0)  # EFR, on chips that have it
        put(LCR, 0)
        put(IIR_FCR, FCR_ENABLE)
        kind = ("8250", "unknown", "16550", "16550A")[get(IIR_FCR) >> 6]
        if kind == "16550A":
            kind = self.autoconfig_16550a()
        put(LCR, lcr)
        put(MCR, mcr)
        self.clear_fifos()
        get(RBR_THR)
        put(IER, 0)
        return kind

    def autoconfig_16550a(self):
        get, put = self.line.get, self.line.put
        put(LCR, 0x80)
        if get(2) == 0:
            return "16650"
        put(LCR, 0xBF)
        if get(2) == 0:
            return "16650V2"
        put(LCR, 0)
        before = get(MCR)
        put(LCR, 0xE0)
        first = get(2)
        put(LCR, 0)
        put(MCR, before ^ MCR_LOOP)
        put(LCR, 0xE0)
        second = get(2)
        put(LCR, 0)
        put(MCR, before)
        if not (first ^ before) & MCR_LOOP and (second ^ before) & MCR_LOOP:
            return "NS16550A"
        put(IIR_FCR, FCR_ENABLE | 0x20)
        plain = get(2) >> 5
        put(LCR, 0x80)
        put(IIR_FCR, FCR_ENABLE | 0x20)
        latched = get(2) >> 5
        put(IIR_FCR, FCR_ENABLE)
        put(LCR, 0)
        if (plain, latched) == (6, 7):
            return "16750"
        put(IER, 0x40)
        if get(IER) & 0x40:
            return "XScale"
        put(IER, 0)
        return "16550A" if self.size_fifo() == 16 else "U6_16550A"

    def size_fifo(self):
        get, put = self.line.get, self.line.put
        mcr = get(MCR)
        put(IIR_FCR, FCR_ENABLE | 0x06)
        put(MCR, MCR_LOOP)
        for value in range(256):
            put(RBR_THR, value)
        size = 0
        while get(LSR) & LSR_DR:
            assert get(RBR_THR) == size
            size += 1
        put(MCR, mcr)
        return size

    def startup(self):
        """Open the port. Returns the bugs that the driver believes to see."""
        get, put = self.line.get, self.line.put
        self.clear_fifos()
        for register in (LSR, RBR_THR, IIR_FCR, MSR):
            get(register)
        put(LCR, 3)
        put(MCR, MCR_OUT2)
        bugs = set()
        put(IER, IER_THRI)
        first = get(IIR_FCR)
        put(IER, 0)
        put(IER, IER_THRI)
        second = get(IIR_FCR)
        put(IER, 0)
        if not first & IIR_NO_INT and second & IIR_NO_INT:
            bugs.add("THRE")
        put(IER, IER_THRI)
        if get(LSR) & LSR_TEMT and get(IIR_FCR) & IIR_NO_INT:
            bugs.add("TXEN")
        put(IER, 0)
        for register in (LSR, RBR_THR, IIR_FCR, MSR):
            get(register)
        put(LCR, LCR_DLAB | 3)
        put(DLL, 1)
        put(DLM, 0)
        put(LCR, 3)
        put(IIR_FCR, FCR_ENABLE | 0x80)
        put(IER, IER_RDI | IER_RLSI)
        put(MCR, MCR_OUT2 | MCR_DTR | MCR_RTS)
        return bugs

    def interrupt(self):
        """serial8250_interrupt: go on until the port is quiet; the number of rounds."""
        rounds = 0
        while not self.line.get(IIR_FCR) & IIR_NO_INT:
            rounds += 1
            assert rounds < 512, "the handler never comes to an end"
            self.got += self.line.read_available(256)
            self.line.get(MSR)
        return rounds


@pytest.fixture
def line():
    return Line()


@pytest.fixture
def linux(line):
    return Linux(line)


def test_linux_finds_a_16550a_without_bugs(line, linux):
    assert linux.autoconfig() == "16550A"
    assert linux.startup() == set()
    assert not line.irq
    assert not line.sent


def test_what_waits_while_linux_detects_and_opens_the_port_is_read_afterwards(line, linux):
    line.uart.feed(b"typed ahead")
    assert linux.autoconfig() == "16550A"
    linux.startup()
    assert line.irq
    linux.interrupt()
    assert linux.got == b"typed ahead"
    assert not line.irq


def test_early_console_that_left_rts_on_loses_nothing(line, linux):
    line.put(MCR, MCR_DTR | MCR_RTS)
    line.uart.feed(b"abc")
    assert line.get(LSR) & LSR_DR
    linux.autoconfig()
    line.put(MCR, MCR_DTR)  # uart_configure_port
    linux.startup()
    linux.interrupt()
    assert linux.got == b"abc"


def test_rts_stops_and_starts_the_flow(line, linux):
    linux.startup()
    line.put(MCR, MCR_OUT2 | MCR_DTR)
    line.uart.feed(b"x")
    assert not line.irq
    assert not line.get(LSR) & LSR_DR
    line.put(MCR, MCR_OUT2 | MCR_DTR | MCR_RTS)
    assert line.irq
    assert line.get(RBR_THR) == ord("x")


def test_bytes_already_in_the_fifo_stay_readable_when_rts_drops(line, linux):
    linux.startup()
    line.uart.feed(bytes(range(20)))
    line.put(MCR, MCR_OUT2)
    assert line.read_available() == bytes(range(16))
    line.pass_time(1)
    assert line.uart.waiting == 4


def test_a_poller_that_never_writes_mcr_receives(line):
    line.uart.feed(b"hello, this is more than a FIFO")
    assert line.read_available() == b"hello, this is more than a FIFO"


def test_input_can_wait_for_out1():
    line = Line(ready=MCR_RTS | MCR_OUT1)
    Linux(line).startup()
    line.uart.feed(b"x")
    assert not line.irq
    line.put(MCR, MCR_OUT2 | MCR_DTR | MCR_RTS | MCR_OUT1)
    assert line.irq


def test_the_handler_comes_to_an_end_and_leaves_time_for_the_rest(line, linux):
    """However much waits, one interrupt takes one FIFO, and the next waits for a while."""
    data = bytes(range(256)) * 40
    linux.startup()
    line.uart.feed(data)
    while len(linux.got) < len(data):
        assert line.irq
        before = len(linux.got)
        line.now += 0.005
        linux.interrupt()
        assert len(linux.got) - before <= 16
        if len(linux.got) < len(data):
            assert not line.irq
            line.pass_time(0.004)
            assert not line.irq
            line.pass_time(0.002)
    assert linux.got == data


def test_the_pause_is_bounded(line, linux):
    linux.startup()
    line.uart.feed(bytes(17))
    line.now += 3600
    linux.interrupt()
    line.pass_time(0.021)
    assert line.irq


def test_a_single_key_is_delivered_at_once(line, linux):
    linux.startup()
    for key in b"ls -l\r":
        line.pass_time(0.1)
        line.uart.feed(bytes((key,)))
        assert line.irq
        linux.interrupt()
    assert linux.got == b"ls -l\r"


def test_fifo_reset_puts_unread_bytes_back_in_order(line):
    line.put(IIR_FCR, FCR_ENABLE)
    line.uart.feed(b"0123456789abcdefghij")
    assert line.read_available(3) == b"012"
    line.put(IIR_FCR, FCR_ENABLE | FCR_CLEAR_RCVR)
    assert line.get(RBR_THR) == 0, "a blind read after a reset finds nothing"
    line.put(IIR_FCR, 0)
    assert line.read_available() == b"3456789abcdefghij"


def test_loopback_bytes_are_the_guests_and_are_dropped_by_a_reset(line):
    line.put(IIR_FCR, FCR_ENABLE)
    line.put(MCR, MCR_LOOP)
    line.put(RBR_THR, 0x55)
    line.uart.feed(b"host")
    assert line.get(LSR) & LSR_DR
    line.put(IIR_FCR, FCR_ENABLE | FCR_CLEAR_RCVR)
    assert not line.get(LSR) & LSR_DR
    line.put(MCR, MCR_RTS)
    assert line.read_available() == b"host"
    assert not line.sent


def test_nothing_comes_in_from_outside_during_loopback(line):
    line.put(MCR, MCR_LOOP | MCR_RTS)
    line.uart.feed(b"x")
    assert not line.get(LSR) & LSR_DR
    line.put(MCR, MCR_RTS)
    assert line.get(LSR) & LSR_DR


def test_interrupt_priorities(line):
    line.put(IIR_FCR, FCR_ENABLE | 0x40)  # trigger level 4
    line.put(MCR, MCR_LOOP)
    line.get(MSR)
    line.put(IER, IER_RDI | IER_THRI | IER_RLSI | IER_MSI)
    for value in range(17):
        line.put(RBR_THR, value)
    line.put(MCR, MCR_LOOP | MCR_RTS)

    def cause():
        return line.get(IIR_FCR) ^ IIR_FIFO_ENABLED

    assert cause() == IIR_RLSI
    assert line.get(LSR) & LSR_OE
    assert cause() == IIR_RDI
    assert [line.get(RBR_THR) for _ in range(13)] == list(range(13))
    assert cause() == IIR_CTI
    assert [line.get(RBR_THR) for _ in range(3)] == [13, 14, 15]
    assert cause() == IIR_THRI
    assert cause() == IIR_MSI, "reading IIR clears THRI"
    assert line.irq
    assert line.get(MSR) == 0x11
    assert cause() == IIR_NO_INT
    assert not line.irq


def test_thre_interrupt(line):
    line.put(IER, IER_THRI)
    assert line.irq
    assert line.get(IIR_FCR) == IIR_THRI
    assert not line.irq
    line.put(RBR_THR, ord("a"))
    assert line.irq, "the transmitter is empty again"
    assert line.get(IIR_FCR) == IIR_THRI
    line.put(IER, 0)
    line.put(IER, IER_THRI)
    assert line.irq, "enabling raises it again"
    assert line.sent == b"a"


def test_modem_status_and_its_changes(line):
    assert line.get(MSR) == 0xB0
    line.put(MCR, MCR_LOOP | MCR_OUT1)
    assert line.get(MSR) == 0x40 | 0x0B, "CTS, DSR and DCD went; RI came, which is not reported"
    line.put(MCR, MCR_LOOP)
    assert line.get(MSR) == 0x04, "the trailing edge of RI is"
    assert line.get(MSR) == 0


def test_divisor_scratch_and_reserved_bits(line):
    line.put(LCR, LCR_DLAB)
    line.put(DLL, 0x34)
    line.put(DLM, 0x12)
    assert (line.get(DLL), line.get(DLM)) == (0x34, 0x12)
    line.put(LCR, 0)
    assert line.get(IER) == 0
    assert not line.sent
    line.put(SCR, 0xA5)
    line.put(IER, 0xFF)
    line.put(MCR, 0xFF)
    assert (line.get(SCR), line.get(IER), line.get(MCR)) == (0xA5, 0x0F, 0x1F)
    line.put(LSR, 0)
    assert line.get(LSR) & LSR_THRE


def test_wide_accesses_are_byte_cycles(line):
    line.uart.write(LCR, 2, MCR_DTR << 8 | 3)
    assert (line.get(LCR), line.get(MCR)) == (3, MCR_DTR)
    assert line.uart.read(LCR, 2) == MCR_DTR << 8 | 3
    assert line.uart.read(SCR, 4) == 0xFFFFFF00


def test_feed_asks_for_a_break_and_says_when_to_go_on():
    line = Line()
    calls = []
    line.uart.on_room = lambda: calls.append(line.uart.waiting)
    assert line.uart.feed(bytes(BACKLOG_LIMIT))
    assert not line.uart.feed(b"x")
    assert not line.uart.feed(b"y")
    line.put(IIR_FCR, FCR_ENABLE)
    line.read_available()
    assert len(calls) == 1
    assert calls[0] <= BACKLOG_LIMIT // 2
    assert line.uart.feed(b"z")


def test_a_slow_sink_blocks_nobody_else():
    entered, leave = threading.Event(), threading.Event()

    def sink(data):
        entered.set()
        assert leave.wait(10)

    uart = Uart16550(lambda level: None, sink)
    writer = threading.Thread(target=uart.write, args=(RBR_THR, 1, 65))
    writer.start()
    try:
        assert entered.wait(10)
        assert uart.read(LSR, 1) == LSR_THRE | LSR_TEMT
        assert uart.feed(b"x")
    finally:
        leave.set()
        writer.join()
        uart.close()


def test_pacing_with_the_real_clock_and_thread():
    """A guest thread that only reacts to interrupts gets everything, in order."""
    data = bytes(range(256)) * 4
    raised = threading.Semaphore(0)
    uart = Uart16550(lambda level: raised.release() if level else None, lambda data: None)
    got = bytearray()
    try:
        uart.write(IIR_FCR, 1, FCR_ENABLE)
        uart.write(MCR, 1, MCR_RTS)
        uart.write(IER, 1, IER_RDI)
        uart.feed(data)
        while len(got) < len(data):
            assert raised.acquire(timeout=10)
            while uart.read(LSR, 1) & LSR_DR:
                got.append(uart.read(RBR_THR, 1))
    finally:
        uart.close()
    assert got == data


def test_alarm_rings_at_the_latest_time_set_and_closes():
    rang = threading.Event()
    alarm = Alarm(rang.set)
    try:
        alarm.set(time.monotonic() + 3600)
        alarm.set(time.monotonic() + 0.01)
        assert rang.wait(10)
    finally:
        alarm.close()
    alarm.set(time.monotonic())
    alarm.close()


def test_alarm_that_was_never_set_has_no_thread():
    before = threading.active_count()
    alarm = Alarm(lambda: None)
    assert threading.active_count() == before
    alarm.close()


accesses = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "feed", "time"]),
        st.integers(0, 8),
        st.sampled_from([1, 2, 4, 8]),
        st.integers(0, (1 << 64) - 1),
    ),
    max_size=60,
)


@given(accesses)
def test_no_access_raises_and_answers_fit(operations):
    line = Line()
    for operation, offset, size, value in operations:
        if operation == "read":
            assert 0 <= line.uart.read(offset, size) < 1 << (8 * size)
        elif operation == "write":
            line.uart.write(offset, size, value & ((1 << (8 * size)) - 1))
        elif operation == "feed":
            line.uart.feed(value.to_bytes(8, "little"))
        else:
            line.pass_time(0.01)
    # Edges alternate, beginning with a rise.
    assert line.edges == [index % 2 == 0 for index in range(len(line.edges))]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.integers(0, 40)),
        st.tuples(st.just("read"), st.integers(0, 20)),
        st.tuples(st.just("fcr"), st.integers(0, 255)),
        st.tuples(st.just("mcr"), st.integers(0, 31)),
        st.tuples(st.just("ier"), st.integers(0, 15)),
        st.tuples(st.just("loop"), st.integers(0x80, 0xFF)),
        st.tuples(st.just("time"), st.integers(0, 30)),
    ),
    max_size=80,
)


@settings(max_examples=300)
@given(steps)
def test_every_byte_fed_comes_out_once_and_in_order(operations):
    """Whatever resets, loopbacks and flow control happen in between."""
    line = Line()
    fed, got = bytearray(), bytearray()
    for operation, value in operations:
        if operation == "feed":
            data = bytes((len(fed) + index) % 128 for index in range(value))
            fed += data
            line.uart.feed(data)
        elif operation == "read":
            got += line.read_available(value)
        elif operation == "time":
            line.pass_time(value / 1000)
        elif operation == "loop":
            if line.get(MCR) & MCR_LOOP:
                line.put(RBR_THR, value)
        else:
            line.put({"fcr": IIR_FCR, "mcr": MCR, "ier": IER}[operation], value)
    line.put(MCR, MCR_RTS)
    line.put(IER, 0)
    got += line.read_available()
    assert bytes(byte for byte in got if byte < 0x80) == fed
    assert line.uart.waiting == 0
