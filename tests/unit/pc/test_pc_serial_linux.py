"""The UART as Linux's driver finds it, opens it and receives: detection, flow control, pace."""

import pytest
from uart_driver import Line, Linux

from pykvm.pc.serial import (
    LSR,
    LSR_DR,
    MCR,
    MCR_DTR,
    MCR_OUT1,
    MCR_OUT2,
    MCR_RTS,
    RBR_THR,
)


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


def test_linux_reads_bytes_that_came_while_it_detected_and_opened_the_port(line, linux):
    line.uart.feed(b"typed ahead")
    assert linux.autoconfig() == "16550A"
    linux.startup()
    assert line.irq
    linux.interrupt()
    assert linux.got == b"typed ahead"
    assert not line.irq


def test_an_early_console_that_left_rts_on_loses_no_byte(line, linux):
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


def test_pacing_lets_the_handler_end_and_leaves_time_for_the_guest(line, linux):
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
