"""The whole board through a folder: every device goes on, and no file makes one raise."""

from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_states import damages, survives

from pykvm.machine.board import Board
from pykvm.machine.outcome import Outcome
from pykvm.pc.serial import COM1, COM1_IRQ, COM2, COM2_IRQ, IER, IER_THRI, LSR, MCR, MCR_LOOP, SCR
from pykvm.pci.services import PciServices
from pykvm.snapshot import folder
from pykvm.snapshot.fields import Fields, Saved, SnapshotError
from pykvm.snapshot.writing import write

MIB = 1 << 20
CMOS_DATA = 0x71
PORTS = (
    *range(COM1, COM1 + 8),
    *range(COM2, COM2 + 8),
    *(0x60, 0x64, 0x70, CMOS_DATA, 0x92),
    *range(0xCF8, 0xD00),
)


class Pc:
    """A board, its interrupt lines, what it sent, and how it wanted the run to end."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, bool]] = []
        self.sent = bytearray()
        self.ends: list[Outcome] = []
        self.board = Board(
            cast(PciServices, None),
            lambda number, level: self.lines.append((number, level)),
            (64 * MIB, 0),
            console=self.sent.extend,
            channel=self.sent.extend,
            finish=self.ends.append,
        )

    def out(self, port: int, value: int) -> None:
        self.board.ports.write(port, 1, value)

    def drive(self, steps: list[tuple[int, int | None]]) -> list[int]:
        """What a guest reads, but from the clock, whose time is the host's."""
        seen = []
        for port, value in steps:
            if value is not None:
                self.out(port, value)
            elif port != CMOS_DATA:
                seen.append(self.board.ports.read(port, 1))
        return seen


def through_a_folder(path: Path, pc: Pc) -> Pc:
    write(path, {}, pc.board.save(), lambda file: None)
    other = Pc()
    with folder.OpenSnapshot(path) as opened:
        other.board.load(Saved("board", opened.state))
    return other


steps = st.lists(
    st.tuples(st.sampled_from(PORTS), st.none() | st.integers(0, 255)),
    max_size=40,
)


@settings(max_examples=50)
@given(steps, steps)
def test_a_restored_board_behaves_as_the_saved_one(tmp_path_factory, before, after):
    pc = Pc()
    pc.drive(before)
    other = through_a_folder(tmp_path_factory.mktemp("board") / "saved", pc)
    assert other.ends == []
    assert other.sent == b""
    assert other.board.save() == pc.board.save()
    pc.ends.clear()
    pc.sent.clear()
    assert other.drive(after) == pc.drive(after)
    assert (other.ends, other.sent) == (pc.ends, pc.sent)


def test_each_port_has_its_own_state_and_drives_its_own_line(tmp_path: Path):
    pc = Pc()
    for port, value in ((COM1, 0x11), (COM2, 0x22)):
        pc.out(port + SCR, value)
    pc.out(COM2 + IER, IER_THRI)
    pc.board.channel.feed(b"frame")
    pc.board.console.feed(b"typed")
    other = through_a_folder(tmp_path / "saved", pc)
    assert other.lines == [(COM2_IRQ, True)]
    assert [other.board.ports.read(port + SCR, 1) for port in (COM1, COM2)] == [0x11, 0x22]
    got = {COM1: b"", COM2: b""}
    for port in got:
        while other.board.ports.read(port + LSR, 1) & 1:
            got[port] += bytes((other.board.ports.read(port, 1),))
    assert got == {COM1: b"typed", COM2: b"frame"}
    assert (COM1_IRQ, True) not in other.lines


def test_a_console_in_loopback_prints_nothing_after_the_restore(tmp_path: Path):
    pc = Pc()
    pc.out(COM1 + MCR, MCR_LOOP)
    other = through_a_folder(tmp_path / "saved", pc)
    other.out(COM1, ord("x"))
    assert other.sent == b""


@pytest.mark.parametrize("name", ["console", "channel", "cmos", "keyboard", "reset_control", "pci"])
def test_a_board_without_one_of_its_devices_is_refused(name: str):
    fields = Pc().board.save()
    del fields[name]
    with pytest.raises(SnapshotError, match=f"{name} is missing"):
        Pc().board.load(Saved("board", fields))


def test_a_board_with_a_device_too_many_is_refused():
    with pytest.raises(SnapshotError, match="disk means nothing here"):
        Pc().board.load(Saved("board", Pc().board.save() | {"disk": {}}))


@settings(max_examples=200)
@given(steps, damages(), steps)
def test_a_damaged_board_is_refused_or_answers_every_access(before, damage, after):
    pc, other = Pc(), Pc()
    pc.drive(before)
    damaged: Fields = damage(pc.board.save())
    survives(other.board, damaged)
    assert all(0 <= value <= 0xFF for value in other.drive(after))
    other.board.close()
