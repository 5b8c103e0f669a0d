"""A UART that is saved goes on in a new one: registers, bytes on their way, interrupts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_states import damages, moved, survives
from uart_driver import Line, Linux

from pykvm.pc.serial import (
    BACKLOG_LIMIT,
    FCR_ENABLE,
    IER,
    IER_RDI,
    IER_RLSI,
    IER_THRI,
    IIR_FCR,
    IIR_THRI,
    LSR,
    LSR_DR,
    LSR_OE,
    MCR,
    MCR_LOOP,
    MCR_OUT1,
    MCR_RTS,
    RBR_THR,
)
from pykvm.pc.serial_input import MAX_BACKLOG
from pykvm.snapshot.fields import Saved, SnapshotError


def restored(line: Line, **options: int) -> Line:
    """A new line that goes on where ``line`` was."""
    other = Line(**options)
    moved(line.uart, other.uart)
    return other


operations = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("write"), st.integers(0, 7), st.integers(0, 255)),
        # Often enough, what makes the port interesting.
        st.tuples(st.just("write"), st.just(IIR_FCR), st.sampled_from([0, 1, 0x41, 0xC1, 3, 7])),
        st.tuples(st.just("write"), st.just(MCR), st.sampled_from([0, MCR_RTS, MCR_LOOP, 0x1F])),
        st.tuples(st.just("feed"), st.just(0), st.integers(0, 40)),
    ),
    max_size=40,
)


def drive(line: Line, steps: list[tuple[str, int, int]], interrupts: int) -> list[object]:
    """What a guest sees that does ``steps``, and enables only the ``interrupts`` given."""
    seen: list[object] = []
    for step, register, value in steps:
        if step == "feed":
            seen.append(line.uart.feed(bytes(index % 251 for index in range(value))))
        elif step == "read":
            seen.append(line.get(register))
        elif register != IER:
            line.put(register, value)
        else:
            line.put(register, value & interrupts)
        seen.append((line.irq, line.uart.waiting))
    return seen


@settings(max_examples=300)
@given(operations, operations)
def test_a_restored_port_behaves_as_the_saved_one(before, after):
    """Without the received-data interrupt, whose pauses are not saved."""
    line = Line()
    drive(line, before, 0xFF & ~IER_RDI)
    line.sent.clear()
    other = restored(line)
    assert other.irq == line.irq
    assert other.uart.save() == line.uart.save()
    assert drive(other, after, 0xFF & ~IER_RDI) == drive(line, after, 0xFF & ~IER_RDI)
    assert other.sent == line.sent
    assert other.uart.save() == line.uart.save()


@settings(max_examples=300)
@given(operations)
def test_every_byte_on_its_way_arrives_after_the_restore(before):
    """With all interrupts: the same bytes in the same order, whatever the pace."""
    line = Line()
    drive(line, before, 0xFF)
    other = restored(line)
    got = []
    for port in (line, other):
        port.put(3, 0)
        port.put(IER, 0)
        port.put(MCR, MCR_RTS)
        got.append(port.read_available())
    assert got[0] == got[1]


@given(st.integers(0, 200), st.integers(0, 200))
def test_linux_receives_all_of_it_by_interrupts_alone(early, read):
    """Saved at any moment of a pause, when only the alarm would have raised the line again."""
    line = Line()
    linux = Linux(line)
    linux.autoconfig()
    linux.startup()
    data = bytes(range(early))
    line.uart.feed(data)
    for _ in range(read // 16):
        linux.interrupt()
        line.pass_time(0.001)
    linux.interrupt()
    other = restored(line)
    rest = Linux(other)
    for _ in range(early):
        other.pass_time(0.03)
        if other.irq:
            rest.interrupt()
    assert linux.got + rest.got == data


def test_input_that_a_pause_held_back_comes_at_once():
    line = Line()
    line.put(IIR_FCR, FCR_ENABLE)
    line.put(IER, IER_RDI)
    line.uart.feed(bytes(range(20)))
    line.now += 0.01
    assert line.read_available() == bytes(range(16))
    assert line.alarm.when is not None, "the rest waits for the end of a pause"
    assert not line.irq
    other = restored(line)
    assert other.irq
    assert other.read_available() == bytes(range(16, 20))


def test_the_line_is_driven_again():
    line = Line()
    line.put(IER, IER_THRI)
    assert line.irq
    other = restored(line)
    assert other.edges == [True]
    assert other.get(IIR_FCR) == IIR_THRI
    assert other.edges == [True, False]
    assert restored(other).edges == []


def test_an_overrun_in_loopback_is_still_to_be_seen():
    line = Line()
    line.put(MCR, MCR_LOOP)
    line.put(IER, IER_RLSI)
    line.put(RBR_THR, 1)
    line.put(RBR_THR, 2)
    other = restored(line)
    assert other.irq
    assert other.get(LSR) & (LSR_OE | LSR_DR) == LSR_OE | LSR_DR
    assert not other.irq
    assert other.get(RBR_THR) == 1


def test_looped_bytes_are_dropped_by_a_reset_and_the_hosts_are_not():
    line = Line()
    line.put(IIR_FCR, FCR_ENABLE)
    line.uart.feed(b"host")
    line.get(LSR)
    line.put(MCR, MCR_LOOP)
    line.put(RBR_THR, 0x55)
    other = restored(line)
    other.put(IIR_FCR, 0)
    other.put(MCR, MCR_RTS)
    assert other.read_available() == b"host"


def test_a_backlog_that_is_too_long_asks_for_a_break_and_for_more():
    line = Line()
    line.uart.feed(bytes(BACKLOG_LIMIT + 1))
    other = restored(line)
    calls: list[int] = []
    other.uart.on_room = lambda: calls.append(1)
    assert not other.uart.feed(b"")
    other.read_available()
    assert calls == [1]
    assert other.uart.feed(b"x")


def test_a_backlog_is_saved_up_to_a_limit_that_can_be_restored():
    line = Line()
    line.uart.feed(bytes(MAX_BACKLOG))
    assert restored(line).uart.waiting == MAX_BACKLOG
    line.uart.feed(b"x")
    with pytest.raises(SnapshotError, match=f"{MAX_BACKLOG + 1} bytes of input wait"):
        line.uart.save()


def test_whether_input_waits_for_a_program_is_not_the_snapshots_to_say():
    line = Line()
    line.put(MCR, MCR_RTS)
    line.uart.feed(b"x")
    other = restored(line, ready=MCR_RTS | MCR_OUT1)
    assert not other.get(LSR) & LSR_DR
    other.put(MCR, MCR_RTS | MCR_OUT1)
    assert other.get(LSR) & LSR_DR


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ier", 0x10),
        ("fcr", 0x100),
        ("fcr", 0xC0),
        ("mcr", 0x20),
        ("divisor", 1 << 16),
        ("lcr", -1),
    ],
)
def test_a_register_with_an_impossible_value_is_refused(field: str, value: int):
    with pytest.raises(SnapshotError, match=f"{field} "):
        Line().uart.load(Saved("console", Line().uart.save() | {field: value}))


@pytest.mark.parametrize(
    ("fifo", "words"),
    [
        (b"a", "fifo has a length"),
        (b"a\0b\0", "fifo has a length"),  # two bytes, but FIFOs are disabled
        (b"a\2", "fifo holds"),
        (bytes(34), "fifo is no data"),
    ],
)
def test_a_fifo_that_cannot_be_is_refused(fifo: bytes, words: str):
    fields = Line().uart.save()
    fields["receive"]["fifo"] = fifo
    with pytest.raises(SnapshotError, match=words):
        Line().uart.load(Saved("console", fields))


@settings(max_examples=300)
@given(operations, damages(), operations)
def test_a_damaged_state_is_refused_or_answers_every_access(before, damage, after):
    line, other = Line(), Line()
    drive(line, before, 0xFF)
    survives(other.uart, damage(line.uart.save()))
    for item in drive(other, after, 0xFF):
        if type(item) is int:
            assert 0 <= item <= 0xFF
    other.pass_time(1)
    for register in range(8):
        assert 0 <= other.get(register) <= 0xFF
