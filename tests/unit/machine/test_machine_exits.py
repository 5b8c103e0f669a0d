"""The answer to each vCPU exit, with fake buses and a fake vCPU."""

from types import SimpleNamespace

import pytest

from pykvm.kvm.exits import (
    Debug,
    FailEntry,
    InternalError,
    IoExit,
    MmioExit,
    MsrRead,
    MsrWrite,
    Shutdown,
    SystemEvent,
    Unknown,
)
from pykvm.kvm.run_page import MMIO_DATA
from pykvm.machine.exits import ExitHandler, GuestStopped
from pykvm.machine.outcome import OutcomeKind


class Page:
    """Stands for the kvm_run area."""

    def __init__(self):
        self.bytes = bytearray(8192)
        self.run = SimpleNamespace(msr=SimpleNamespace(error=0, data=0))


class RecordingBus:
    """Notes writes; reads give the address plus one for each read before."""

    def __init__(self):
        self.writes = []
        self.reads = []

    def write(self, address, size, value):
        self.writes.append((address, size, value))

    def read(self, address, size):
        self.reads.append((address, size))
        return address + len(self.reads)


class Rig:
    """An ExitHandler with its buses and its vCPU."""

    def __init__(self, assistant=None):
        self.page = Page()
        self.ports, self.mmio = RecordingBus(), RecordingBus()
        self.outcomes = []
        self.vcpu = SimpleNamespace(regs=SimpleNamespace(rip=0x1234))
        self.handle = ExitHandler(
            self.vcpu,
            self.ports,
            self.mmio,
            self.outcomes.append,
            lambda: bool(self.outcomes),
            assistant,
        )


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_port_writes_arrive_one_by_one(rig):
    data = b"\x01\x02\x03\x04"
    assert rig.handle(IoExit(True, 0x3F8, 2, 2, data, rig.page, 4096)) is None
    assert rig.ports.writes == [(0x3F8, 2, 0x0201), (0x3F8, 2, 0x0403)]
    assert rig.mmio.writes == []


def test_port_reads_are_answered_in_order(rig):
    assert rig.handle(IoExit(False, 0x10, 1, 3, b"", rig.page, 4096)) is None
    assert rig.ports.reads == [(0x10, 1)] * 3
    assert rig.page.bytes[4096:4099] == bytes((0x11, 0x12, 0x13))


def test_mmio_accesses_reach_their_device(rig):
    assert rig.handle(MmioExit(True, 0xE000_0004, 4, b"\x78\x56\x34\x12", rig.page)) is None
    assert rig.mmio.writes == [(0xE000_0004, 4, 0x12345678)]
    rig.handle(MmioExit(False, 0xE000_0008, 8, b"", rig.page))
    assert int.from_bytes(rig.page.bytes[MMIO_DATA : MMIO_DATA + 8], "little") == 0xE000_0009


def test_the_thread_ends_when_an_access_ends_the_run(rig):
    rig.ports.write = lambda *access: rig.outcomes.append("over")
    assert rig.handle(IoExit(True, 0xF4, 1, 1, b"\0", rig.page, 4096)) is not None


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (Shutdown(), OutcomeKind.TRIPLE_FAULT),
        (SystemEvent(1, ()), OutcomeKind.POWER_OFF),
        (SystemEvent(2, ()), OutcomeKind.RESET),
        (SystemEvent(3, ()), OutcomeKind.PANIC),
    ],
)
def test_exits_that_end_the_run(rig, reason, kind):
    assert rig.handle(reason) is not None
    assert [outcome.kind for outcome in rig.outcomes] == [kind]


def test_an_unknown_msr_faults(rig):
    for reason in (MsrRead(0x123, 0, rig.page), MsrWrite(0x123, 5, 0, rig.page)):
        rig.page.run.msr.error = 0
        assert rig.handle(reason) is None
        assert rig.page.run.msr.error == 1


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (InternalError(1, b"\x0f\x01\xca", ()), ["0x1234", "0f 01 ca", "suberror 1"]),
        (FailEntry(0x8000_0021, 0), ["0x80000021", "doctor"]),
        (SystemEvent(77, ()), ["77"]),
        (Unknown(99), ["99"]),
        (Debug(1, 0, 0, 0), ["Debug"]),
    ],
)
def test_exits_that_stop_the_guest(rig, reason, words):
    with pytest.raises(GuestStopped) as stopped:
        rig.handle(reason)
    assert all(word in str(stopped.value) for word in words)
    assert stopped.value.hint
    assert rig.outcomes == []


def test_an_assistant_gets_every_exit_that_no_device_handles():
    seen = []

    def assist(vcpu, reason):
        seen.append(reason)
        return isinstance(reason, InternalError)

    rig = Rig(assist)
    assert rig.handle(InternalError(1, b"", ())) is None
    assert rig.handle(Shutdown()) is not None
    rig.handle(IoExit(True, 1, 1, 1, b"\0", rig.page, 4096))
    assert seen == [InternalError(1, b"", ()), Shutdown()]
