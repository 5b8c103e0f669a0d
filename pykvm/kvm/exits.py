"""The exits of KVM_RUN as typed values.

:func:`decode` turns the shared kvm_run page into one of the classes below
(:data:`Exit`). Data that the guest writes is copied, so it stays valid. For a
read, call the exit's setter before the vCPU runs again; otherwise the guest reads
zeros. Source: Linux Documentation/virt/kvm/api.rst, "The kvm_run structure".
"""

from collections.abc import Callable, Sequence

from pykvm.kvm.constants import (
    KVM_EXIT_DEBUG,
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_HLT,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_INTR,
    KVM_EXIT_IO,
    KVM_EXIT_IO_OUT,
    KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT,
    KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR,
    KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
)
from pykvm.kvm.errors import KvmError
from pykvm.kvm.run_page import MMIO_DATA, RunPage
from pykvm.lean.records import record


@record
class IoExit:
    """IN or OUT (also INS and OUTS): ``count`` items of ``size`` bytes at ``port``.

    ``data`` has the ``size * count`` bytes that the guest writes. It is empty for
    a read; answer that with :meth:`set_value`, :meth:`set_values` or
    :meth:`set_data`.
    """

    is_write: bool
    port: int
    size: int
    count: int
    data: bytes
    _page: RunPage
    _offset: int

    @property
    def value(self) -> int:
        """The first item that the guest writes."""
        return int.from_bytes(self.data[: self.size], "little")

    def values(self) -> list[int]:
        """All items that the guest writes, in order."""
        size = self.size
        return [
            int.from_bytes(self.data[at : at + size], "little")
            for at in range(0, len(self.data), size)
        ]

    def set_value(self, value: int) -> None:
        """Answer a read of one item; bits above ``size`` bytes are dropped."""
        self.set_values((value,))

    def set_values(self, values: Sequence[int]) -> None:
        """Answer a read with ``count`` items; bits above ``size`` bytes are dropped."""
        mask = (1 << (8 * self.size)) - 1
        self.set_data(b"".join((value & mask).to_bytes(self.size, "little") for value in values))

    def set_data(self, data: bytes) -> None:
        """Answer a read with its ``size * count`` bytes."""
        if self.is_write or len(data) != self.size * self.count:
            raise ValueError(f"{len(data)} bytes do not answer {self}")
        self._page.bytes[self._offset : self._offset + len(data)] = data


@record
class MmioExit:
    """An access of ``size`` bytes (1 to 8) to guest-physical ``address`` outside memory.

    ``data`` has the bytes that the guest writes. It is empty for a read; answer
    that with :meth:`set_value` or :meth:`set_data`.
    """

    is_write: bool
    address: int
    size: int
    data: bytes
    _page: RunPage

    @property
    def value(self) -> int:
        """The bytes that the guest writes, as an integer."""
        return int.from_bytes(self.data, "little")

    def set_value(self, value: int) -> None:
        """Answer a read; bits above ``size`` bytes are dropped."""
        self.set_data((value & ((1 << (8 * self.size)) - 1)).to_bytes(self.size, "little"))

    def set_data(self, data: bytes) -> None:
        """Answer a read with its ``size`` bytes."""
        if self.is_write or len(data) != self.size:
            raise ValueError(f"{len(data)} bytes do not answer {self}")
        self._page.bytes[MMIO_DATA : MMIO_DATA + len(data)] = data


@record
class Hlt:
    """HLT, on a VM without the in-kernel interrupt controllers."""


@record
class Shutdown:
    """A triple fault."""


@record
class SystemEvent:
    """The guest requested ``type`` (KVM_SYSTEM_EVENT_*), with ``data`` words."""

    type: int
    data: tuple[int, ...]


@record
class InternalError:
    """KVM cannot continue this vCPU. ``suberror`` is KVM_INTERNAL_ERROR_*.

    ``instruction`` has up to 15 bytes from rip on if KVM refused to emulate an
    instruction and reports its bytes, else b"". Older kernels report them when
    they can. Newer kernels report them for every refusal once
    KVM_CAP_EXIT_ON_EMULATION_FAILURE is enabled. ``data`` has the words of the
    exit, for a message.
    """

    suberror: int
    instruction: bytes
    data: tuple[int, ...]


@record
class Debug:
    """A breakpoint or single step: ``exception`` is its vector (1 or 3), ``pc`` is linear."""

    exception: int
    pc: int
    dr6: int
    dr7: int


@record
class FailEntry:
    """The processor refused the vCPU's state; ``hardware_reason`` is the processor's own code."""

    hardware_reason: int
    cpu: int


@record
class Interrupted:
    """A signal or immediate_exit ended KVM_RUN. The guest does not notice."""


@record
class MsrRead:
    """RDMSR of a filtered or unknown MSR; ``reason`` is KVM_MSR_EXIT_REASON_*."""

    index: int
    reason: int
    _page: RunPage

    def set_value(self, value: int) -> None:
        """Answer with the 64 bits that the guest reads."""
        self._page.run.msr.data = value
        self._page.run.msr.error = 0

    def fault(self) -> None:
        """Raise #GP in the guest instead."""
        self._page.run.msr.error = 1


@record
class MsrWrite:
    """WRMSR of a filtered or unknown MSR. It counts as done unless :meth:`fault` is called."""

    index: int
    value: int
    reason: int
    _page: RunPage

    def fault(self) -> None:
        """Raise #GP in the guest instead."""
        self._page.run.msr.error = 1


@record
class Unknown:
    """An exit that pykvm does not handle: KVM_EXIT_* ``reason``."""

    reason: int


Exit = (
    IoExit
    | MmioExit
    | Hlt
    | Shutdown
    | SystemEvent
    | InternalError
    | Debug
    | FailEntry
    | Interrupted
    | MsrRead
    | MsrWrite
    | Unknown
)

INTERRUPTED = Interrupted()


def decode(page: RunPage) -> Exit:
    """The exit in ``page``; KvmError if its contents are impossible."""
    reason = page.run.exit_reason
    decoder = _DECODERS.get(reason)
    return decoder(page) if decoder else Unknown(reason)


def _io(page: RunPage) -> IoExit:
    io = page.run.io
    size, count, offset = io.size, io.count, io.data_offset
    end = offset + size * count
    if size not in {1, 2, 4} or count < 1 or end > len(page.bytes):
        raise KvmError("KVM_RUN", 0, f"KVM reported an impossible port access at offset {offset}")
    is_write = io.direction == KVM_EXIT_IO_OUT
    data = bytes(page.bytes[offset:end]) if is_write else b""
    return IoExit(is_write, io.port, size, count, data, page, offset)


def _mmio(page: RunPage) -> MmioExit:
    mmio = page.run.mmio
    size = mmio.len
    if not 1 <= size <= 8:
        raise KvmError("KVM_RUN", 0, f"KVM reported an impossible MMIO access of {size} bytes")
    is_write = mmio.is_write != 0
    data = bytes(page.bytes[MMIO_DATA : MMIO_DATA + size]) if is_write else b""
    return MmioExit(is_write, mmio.phys_addr, size, data, page)


def _internal_error(page: RunPage) -> InternalError:
    internal, failure = page.run.internal, page.run.emulation_failure
    words = min(internal.ndata, 16)
    instruction = b""
    # The flags, the size and the 15 bytes take three words of the data.
    if (
        internal.suberror == KVM_INTERNAL_ERROR_EMULATION
        and words >= 3
        and failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    ):
        instruction = bytes(failure.insn_bytes)[: min(failure.insn_size, 15)]
    return InternalError(internal.suberror, instruction, tuple(internal.data[0:words]))


def _debug(page: RunPage) -> Debug:
    arch = page.run.debug.arch
    return Debug(arch.exception, arch.pc, arch.dr6, arch.dr7)


def _system_event(page: RunPage) -> SystemEvent:
    event = page.run.system_event
    return SystemEvent(event.type, tuple(event.data[0 : min(event.ndata, 16)]))


def _fail_entry(page: RunPage) -> FailEntry:
    entry = page.run.fail_entry
    return FailEntry(entry.hardware_entry_failure_reason, entry.cpu)


def _msr_read(page: RunPage) -> MsrRead:
    msr = page.run.msr
    return MsrRead(msr.index, msr.reason, page)


def _msr_write(page: RunPage) -> MsrWrite:
    msr = page.run.msr
    return MsrWrite(msr.index, msr.data, msr.reason, page)


_DECODERS: dict[int, Callable[[RunPage], Exit]] = {
    KVM_EXIT_IO: _io,
    KVM_EXIT_MMIO: _mmio,
    KVM_EXIT_HLT: lambda page: Hlt(),
    KVM_EXIT_SHUTDOWN: lambda page: Shutdown(),
    KVM_EXIT_SYSTEM_EVENT: _system_event,
    KVM_EXIT_INTERNAL_ERROR: _internal_error,
    KVM_EXIT_DEBUG: _debug,
    KVM_EXIT_FAIL_ENTRY: _fail_entry,
    KVM_EXIT_INTR: lambda page: INTERRUPTED,
    KVM_EXIT_X86_RDMSR: _msr_read,
    KVM_EXIT_X86_WRMSR: _msr_write,
}
