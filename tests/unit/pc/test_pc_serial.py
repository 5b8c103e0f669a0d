"""The UART's registers, FIFOs and interrupts, and its input and output."""

import threading

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import patience
from uart_driver import Line

from pykvm.pc.serial import (
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
    MCR_RTS,
    MSR,
    RBR_THR,
    SCR,
    Uart16550,
)


@pytest.fixture
def line():
    return Line()


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


def test_no_byte_of_the_host_arrives_during_loopback(line):
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


def test_feed_asks_for_a_pause_and_tells_its_end():
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


def test_a_slow_sink_blocks_only_its_vcpu():
    entered, leave = threading.Event(), threading.Event()

    def sink(data):
        entered.set()
        assert leave.wait(patience())

    uart = Uart16550(lambda level: None, sink)
    writer = threading.Thread(target=uart.write, args=(RBR_THR, 1, 65))
    writer.start()
    try:
        assert entered.wait(patience())
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
            assert raised.acquire(timeout=patience())
            while uart.read(LSR, 1) & LSR_DR:
                got.append(uart.read(RBR_THR, 1))
    finally:
        uart.close()
    assert got == data


# -- random accesses ---------------------------------------------------------

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


def test_a_bug_in_the_pacing_thread_is_reported(line):
    failures = []
    line.uart.on_failure = failures.append
    line.put(IER, IER_RDI)
    line.uart.feed(b"ab")
    del line.now
    line.alarm.ring()
    assert [type(failure) for failure in failures] == [AttributeError]


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


@settings(max_examples=examples(300))
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
