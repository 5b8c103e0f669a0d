"""Finds out how this host's KVM treats a guest, by running one.

KVM's capabilities do not tell whether it uses hardware virtualization, so
:func:`probe` runs a few instructions in a scratch VM. The code begins at CPL 0
in 64-bit mode, measures its speed if asked to, reads CPUID, runs FWAIT, leaves
by IRETQ for CPL 3, and comes back by SYSCALL. It neither loops without end nor handles
exceptions, so every surprise ends in a triple fault, which is an answer too.
"""

from collections.abc import Generator
from math import inf
from struct import pack
from time import perf_counter
from typing import Final

from pykvm.kvm import constants as c
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.errors import KvmError
from pykvm.kvm.exits import Exit, InternalError, IoExit
from pykvm.kvm.host_traits import HostTraits
from pykvm.kvm.runner import VcpuThread
from pykvm.kvm.segments import load_code, load_data, load_tss
from pykvm.kvm.system import Kvm
from pykvm.kvm.vcpu import Vcpu
from pykvm.lean.records import replace
from pykvm.memory import GuestMemory, Ram

FAST_MIPS: Final = 1000.0
"""The largest figure that is reported, because a short measurement cannot tell more."""


def probe(kvm: Kvm, timeout: float = 5.0, *, measure: bool = False) -> HostTraits:
    """Probe this host, in a few milliseconds; its speed only with ``measure``.

    KvmError if KVM cannot run even this, or not within ``timeout`` seconds.
    """
    rounds = _ROUNDS if measure else 0
    with kvm.create_vm() as vm:
        memory = GuestMemory(_RAM_SIZE)
        try:
            _write_guest(memory.ram, rounds)
            vm.set_memory(0, 0, _RAM_SIZE, memory.address)
            with vm.create_vcpu(0) as vcpu:
                vcpu.set_cpuid2([_without_popcnt(entry) for entry in kvm.supported_cpuid()])
                _set_registers(vcpu, rounds)
                return _run(vcpu, rounds, timeout)
        finally:
            vm.close()
            memory.close()


def _run(vcpu: Vcpu, rounds: int, timeout: float) -> HostTraits:
    steps = _steps(vcpu, rounds)
    next(steps)

    def handle(reason: Exit) -> HostTraits | None:
        try:
            steps.send(reason)
        except StopIteration as end:
            traits: HostTraits = end.value
            return traits
        return None

    thread = VcpuThread(vcpu, handle)
    thread.start()
    try:
        thread.join(timeout)
    except TimeoutError:
        thread.stop()
        thread.join()
    if thread.error is not None:
        raise thread.error
    if not isinstance(thread.outcome, HostTraits):
        raise KvmError("KVM_RUN", 0, f"KVM did not finish a few instructions within {timeout:g} s")
    return thread.outcome


def _steps(vcpu: Vcpu, rounds: int) -> Generator[None, Exit, HostTraits]:
    """Judge the exits in turn; the guest continues at each ``yield``."""
    _expect_out((yield))  # the pages are mapped now
    mips = (yield from _measure(rounds)) if rounds else None

    _expect_out((yield))
    cpuid_masked = not vcpu.regs.rcx & _CPUID_1_ECX_POPCNT

    reason = yield
    complete = not isinstance(reason, InternalError)
    if not complete:
        vcpu.regs.rip += len(_FWAIT)
        vcpu.changed(c.KVM_SYNC_X86_REGS)
        reason = yield
    _expect_out(reason)

    # If SYSCALL is broken, the OUT behind LSTAR is executed at CPL 3, or not at all.
    reason = yield
    works = isinstance(reason, IoExit) and vcpu.sregs.cs.selector & 3 == 0
    return HostTraits(
        syscall_works=works,
        cpuid_masked=cpuid_masked,
        instructions_complete=complete,
        cpl0_mips=mips,
    )


def _measure(rounds: int) -> Generator[None, Exit, float]:
    """Million instructions per second: a long loop minus a short one, so that exits cancel out."""
    short = long = inf
    for _ in range(rounds):
        start = perf_counter()
        _expect_out((yield))
        middle = perf_counter()
        _expect_out((yield))
        short = min(short, middle - start)
        long = min(long, perf_counter() - middle)
    microseconds = (long - short) * 1e6
    instructions = (_LOOPS - 1) * 2
    return instructions / max(microseconds, instructions / FAST_MIPS)


def _expect_out(reason: Exit) -> None:
    if not isinstance(reason, IoExit):
        raise KvmError(
            "KVM_RUN",
            0,
            f"KVM cannot run the simplest kernel code: {reason}",
            "see the host's kernel log; a different hypervisor may hold the processor",
        )


# Guest-physical layout of the scratch VM, whose first 2 MiB are mapped one to one.
_RAM_SIZE: Final = 1 << 20
_CODE: Final = 0x1000
_GDT: Final = 0x2000
_TSS: Final = 0x2100
_PML4: Final = 0x3000
_PDPT: Final = 0x4000
_PD: Final = 0x5000
_STACK: Final = 0x8000
_FRAME: Final = 0x7000

_KERNEL_CS, _KERNEL_SS, _USER_SS, _USER_CS, _TR = 0x08, 0x10, 0x1B, 0x23, 0x28
_DESCRIPTORS: Final = (
    0,
    0x00AF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x00CF_F300_0000_FFFF,
    0x00AF_FB00_0000_FFFF,
)
_LOOPS: Final = 500
_ROUNDS: Final = 8  # the fastest counts, because slow exits also jitter
_CPUID_1_ECX_POPCNT: Final = 1 << 23
_CR0: Final = 0x8001_0031  # PG, WP, NE, ET, PE
_CR4: Final = 0x20  # PAE
_EFER: Final = 0x501  # LMA, LME, SCE
_RFLAGS: Final = 2
_PRESENT_WRITABLE_USER: Final = 7
_PAGE_SIZE: Final = 0x80

_OUT: Final = b"\xe6\x80"  # out %al, $0x80
_CPUID: Final = b"\xb8\x01\x00\x00\x00\x0f\xa2"  # mov $1, %eax; cpuid
_FWAIT: Final = b"\x9b"
_IRETQ: Final = b"\x48\xcf"
_SYSCALL: Final = b"\x0f\x05"


def _loop(count: int) -> bytes:
    return b"\xb9" + count.to_bytes(4, "little") + b"\xff\xc9\x75\xfc"  # mov; 1: dec; jnz 1b


def _code(rounds: int) -> tuple[bytes, int]:
    """The guest's code, and the offset of the SYSCALL in it. Each OUT is an exit."""
    kernel = _loop(1) + _OUT
    kernel += (_loop(1) + _OUT + _loop(_LOOPS) + _OUT) * rounds
    kernel += _CPUID + _OUT + _FWAIT + _OUT + _IRETQ
    return kernel + _SYSCALL + _OUT, len(kernel)


def _write_guest(ram: Ram, rounds: int) -> None:
    code, syscall = _code(rounds)
    ram.write(_CODE, code)
    # IRETQ takes these from the stack: rip, cs, rflags, rsp, ss.
    ram.write(_FRAME, pack("<5Q", _CODE + syscall, _USER_CS, _RFLAGS, _STACK, _USER_SS))
    ram.write(_GDT, pack("<5Q", *_DESCRIPTORS))
    ram.write(_PML4, pack("<Q", _PDPT | _PRESENT_WRITABLE_USER))
    ram.write(_PDPT, pack("<Q", _PD | _PRESENT_WRITABLE_USER))
    ram.write(_PD, pack("<Q", _PAGE_SIZE | _PRESENT_WRITABLE_USER))


def _set_registers(vcpu: Vcpu, rounds: int) -> None:
    code, _ = _code(rounds)
    vcpu.set_msrs(
        {
            c.MSR_STAR: (_KERNEL_SS | 3) << 48 | _KERNEL_CS << 32,
            c.MSR_LSTAR: _CODE + len(code) - len(_OUT),
        }
    )
    sregs = vcpu.get_sregs()
    load_code(sregs.cs, _KERNEL_CS)
    for data in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        load_data(data, _KERNEL_SS)
    load_tss(sregs.tr, _TR, _TSS)
    sregs.gdt.base, sregs.gdt.limit = _GDT, 8 * len(_DESCRIPTORS) - 1
    sregs.idt.base, sregs.idt.limit = 0, 0
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = _CR0, _PML4, _CR4, _EFER
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rip, regs.rsp, regs.rflags = _CODE, _FRAME, _RFLAGS
    vcpu.set_regs(regs)


def _without_popcnt(entry: CpuidEntry) -> CpuidEntry:
    if entry.function != 1:
        return entry
    return replace(entry, ecx=entry.ecx & ~_CPUID_1_ECX_POPCNT)
