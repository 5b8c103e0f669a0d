"""Assists on a real vCPU: what the guest sees is what it would see on an ordinary host.

The guest has a kernel at KERNEL, which only CPL 0 may touch, and user code at
USER. It reports by OUT from CPL 0. Every expectation here holds on an
ordinary host without any assist as well; only what the assists count differs.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from struct import pack

import pytest

from pykvm.kvm.assist import Assist, RefusedInstruction
from pykvm.kvm.constants import MSR_LSTAR, MSR_STAR, MSR_SYSCALL_MASK
from pykvm.kvm.cpuid import CpuidEntry
from pykvm.kvm.exits import Debug, Exit, InternalError, IoExit, Shutdown
from pykvm.kvm.linux_options import linux_options, without_hypercalls
from pykvm.kvm.probe import _segment, probe
from pykvm.kvm.system import Kvm
from pykvm.kvm.traits import HostTraits
from pykvm.kvm.vcpu import Vcpu
from pykvm.memory import GuestMemory

KERNEL = 0xFFFF_FFFF_8000_0000  # maps guest-physical 0 to 2 MiB, for CPL 0 only
USER = 0x10_0000  # maps itself, for CPL 3
GDT, TSS, IDT, TABLES, STACK, FRAME = 0x2000, 0x2100, 0x3000, 0x4000, 0x9000, 0x9F00
START, LSTAR, PAGE_FAULT, OTHER_PAGE_FAULT, BREAKPOINT, DATA = range(0x1000, 0x1600, 0x100)
UNMAPPED = 0x7000_0000

OUT = b"\xe6\x10"
IRETQ = b"\x48\xcf"
SYSCALL = b"\x0f\x05"
SYSRETQ = b"\x48\x0f\x07"
NOP3 = b"\x0f\x1f\x00"
DROP_ERROR_CODE = b"\x48\x83\xc4\x08"  # add $8, %rsp
EVERYTHING = HostTraits(syscall_works=False, cpuid_masked=False, instructions_complete=False)


class Guest:
    """A vCPU in 64-bit mode at START, CPL 0, with an Assist around it."""

    def __init__(self, stack: ExitStack, traits: HostTraits = EVERYTHING) -> None:
        kvm = stack.enter_context(Kvm.open())
        self.memory = GuestMemory(2 << 20)
        stack.callback(self.memory.close)
        self.ram = self.memory.ram
        self.vm = vm = stack.enter_context(kvm.create_vm())
        vm.set_memory(0, 0, 2 << 20, self.memory.address)
        self.vcpu: Vcpu = stack.enter_context(vm.create_vcpu(0))
        self.vcpu.set_cpuid2(kvm.supported_cpuid())
        self.assist = Assist(traits, vm, self.ram)
        self.exits: list[Exit] = []
        self._write_tables()
        self._set_registers()
        self.assist.prepare(self.vcpu)

    def code(self, at: int, *parts: bytes) -> None:
        self.ram.write(at, b"".join(parts))

    def gate(self, vector: int, at: int) -> None:
        target = KERNEL + at
        gate = pack("<HHBBHII", target & 0xFFFF, 8, 0, 0x8E, target >> 16 & 0xFFFF, target >> 32, 0)
        self.ram.write(IDT + 16 * vector, gate)

    def run(self) -> Exit:
        """Run to the next exit that is not the assists'."""
        while True:
            reason = self.vcpu.run()
            self.exits.append(reason)
            if not self.assist.handle(self.vcpu, reason):
                return reason

    def out(self) -> int:
        """Run to the next OUT, which must come from CPL 0; the value."""
        reason = self.run()
        assert isinstance(reason, IoExit), reason
        self.vcpu.complete_io()
        assert self.vcpu.sregs.cs.selector & 3 == 0
        return reason.value

    def _write_tables(self) -> None:
        write, pointer = self.ram.write, 7
        write(TABLES, pack("<Q", TABLES + 0x1000 | pointer))
        write(TABLES + 511 * 8, pack("<Q", TABLES + 0x3000 | pointer))
        write(TABLES + 0x1000, pack("<Q", TABLES + 0x2000 | pointer))
        write(TABLES + 0x2000, pack("<Q", 0x87))
        write(TABLES + 0x3000 + 510 * 8, pack("<Q", TABLES + 0x4000 | pointer))
        write(TABLES + 0x4000, pack("<Q", 0x83))
        code, data = 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF
        ring3 = 3 << 45
        write(GDT, pack("<5Q", 0, code, data, data | ring3, code | ring3))
        write(TSS + 4, pack("<Q", KERNEL + STACK))
        write(TSS + 0x66, pack("<H", 0xFFFF))
        self.gate(14, PAGE_FAULT)
        self.gate(3, BREAKPOINT)
        self.code(PAGE_FAULT, NOP3, OUT, DROP_ERROR_CODE, IRETQ)
        self.code(BREAKPOINT, OUT, IRETQ)

    def _set_registers(self) -> None:
        sregs = self.vcpu.get_sregs()
        _segment(sregs.cs, 0x08, kind=11, long=1)
        for data in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
            _segment(data, 0x10, kind=3, long=0)
        _segment(sregs.tr, 0x28, kind=11, long=0, system=True)
        sregs.tr.base = KERNEL + TSS
        sregs.gdt.base, sregs.gdt.limit = KERNEL + GDT, 39
        sregs.idt.base, sregs.idt.limit = KERNEL + IDT, 16 * 32 - 1
        sregs.cr0, sregs.cr3, sregs.cr4 = 0x8001_0031, TABLES, 0x220
        sregs.efer = 0xD01
        self.vcpu.set_sregs(sregs)
        self.vcpu.set_msrs({MSR_STAR: 0x13 << 48 | 8 << 32})
        regs = self.vcpu.get_regs()
        regs.rip, regs.rsp, regs.rflags = KERNEL + START, KERNEL + FRAME, 2
        self.vcpu.set_regs(regs)

    def start_user(self, *parts: bytes, rflags: int = 0x202) -> None:
        """Write code that sets LSTAR and FMASK by WRMSR, then runs ``parts`` at CPL 3."""
        kernel = wrmsr(MSR_LSTAR, KERNEL + LSTAR) + wrmsr(MSR_SYSCALL_MASK, 0x47700)
        self.code(START, kernel, IRETQ)
        self.ram.write(FRAME, pack("<5Q", USER, 0x23, rflags, USER + 0x8000, 0x1B))
        self.code(USER, *parts)


def wrmsr(index: int, value: int) -> bytes:
    low, high = value & 0xFFFF_FFFF, value >> 32
    return (
        b"\xb9"
        + pack("<I", index)
        + b"\xb8"
        + pack("<I", low)
        + b"\xba"
        + pack("<I", high)
        + (b"\x0f\x30")
    )


def mov_eax(value: int) -> bytes:
    return b"\xb8" + pack("<I", value)


@pytest.fixture
def guest() -> Iterator[Guest]:
    with ExitStack() as stack:
        yield Guest(stack)


@pytest.fixture(scope="module")
def host() -> HostTraits:
    with Kvm.open() as kvm:
        return probe(kvm)


@pytest.mark.kvm
def test_system_calls_come_and_return(guest, host):
    guest.start_user(*[mov_eax(n) + SYSCALL for n in (1, 2, 3)], mov_eax(9), SYSCALL)
    guest.code(LSTAR, OUT, SYSRETQ)
    for number in (1, 2, 3):
        assert guest.out() == number
        regs = guest.vcpu.regs
        assert regs.rcx == USER + 7 * number
        assert regs.r11 & ~0x1_0000 == 0x202
        assert regs.rsp == USER + 0x8000
        assert regs.rflags & 0x4_7700 == 0
    assert guest.out() == 9
    assert guest.assist.system_calls == (0 if host.syscall_works else 4)


@pytest.mark.kvm
def test_sysret_is_carried_out_where_it_is_refused(guest, host):
    guest.start_user(mov_eax(1), SYSCALL, mov_eax(2), SYSCALL)
    guest.code(LSTAR, OUT, SYSRETQ)
    guest.out()
    assert guest.assist.handle(guest.vcpu, InternalError(1, SYSRETQ, ()))
    sregs = guest.vcpu.get_sregs()
    assert (sregs.cs.selector, sregs.cs.dpl, sregs.cs.l) == (0x23, 3, 1)
    assert (sregs.ss.selector, sregs.ss.dpl) == (0x1B, 3)
    assert guest.vcpu.regs.rip == USER + 7
    assert guest.out() == 2
    # From now on Linux is asked to return by IRET.
    assert bool(guest.vcpu.regs.r11 & 1 << 16) is not host.syscall_works


PADDING = b"\xcc" * 80


def many_calls(guest: Guest, *parts: bytes) -> None:
    """Have the guest make system calls for ever, with ``parts`` between them."""
    loop = b"".join([mov_eax(1), SYSCALL, *parts])
    guest.start_user(loop, b"\xeb" + pack("<b", -len(loop) - 2))
    guest.code(LSTAR, OUT, SYSRETQ)


@pytest.mark.kvm
def test_system_calls_soon_need_no_exit(guest, host):
    many_calls(guest)
    guest.code(BREAKPOINT + 16, PADDING)
    for _ in range(40):
        assert guest.out() == 1
        regs = guest.vcpu.regs
        assert (regs.rcx, regs.r11, regs.rsp) == (USER + 7, 0x202, USER + 0x8000)
        assert regs.rip == KERNEL + LSTAR + len(OUT)
        assert regs.rflags & 0x700 == 0
    if not host.syscall_works:
        assert guest.assist.system_calls == 16
        assert not any(isinstance(reason, Debug) for reason in guest.exits[-20:])


@pytest.mark.kvm
def test_page_faults_pass_the_trampoline(guest):
    many_calls(guest, mov_eax(5), b"\xa0" + pack("<Q", UNMAPPED))
    guest.code(BREAKPOINT + 16, PADDING)
    # The handler skips the faulting instruction, 9 bytes, which is the loop's last but one.
    guest.code(PAGE_FAULT, NOP3, OUT, DROP_ERROR_CODE, b"\x48\x83\x04\x24\x09", IRETQ)
    assert [guest.out() for _ in range(60)] == [1, 5] * 30


@pytest.mark.kvm
@pytest.mark.parametrize("why", ["no padding", "trap gate", "mask"])
def test_without_a_trampoline_system_calls_go_on(guest, host, why):
    many_calls(guest)
    if why != "no padding":
        guest.code(BREAKPOINT + 16, PADDING)
    if why == "trap gate":
        guest.ram.write(IDT + 14 * 16 + 5, b"\x8f")
    if why == "mask":
        kernel = wrmsr(MSR_LSTAR, KERNEL + LSTAR) + wrmsr(MSR_SYSCALL_MASK, 0x200)
        guest.code(START, kernel, IRETQ)
    assert [guest.out() for _ in range(30)] == [1] * 30
    assert guest.assist.system_calls == (0 if host.syscall_works else 30)


@pytest.mark.kvm
def test_a_trampoline_from_a_snapshot_is_recognized(guest, host):
    many_calls(guest)
    guest.code(BREAKPOINT + 16, PADDING)
    for _ in range(20):
        guest.out()
    assist = Assist(EVERYTHING, guest.vm, guest.ram)
    assist.prepare(guest.vcpu)
    guest.assist = assist
    assert [guest.out() for _ in range(5)] == [1] * 5
    assert assist.system_calls == 0


@pytest.mark.kvm
def test_page_faults_reach_the_guest(guest):
    # Twice from CPL 3, then once from CPL 0, whose frame looks much the same.
    touch = b"\xa0" + pack("<Q", UNMAPPED)  # mov UNMAPPED, %al
    guest.start_user(mov_eax(5), touch)
    for _ in range(2):
        assert guest.out() == 5
        assert guest.vcpu.sregs.cr2 == UNMAPPED
    guest.code(PAGE_FAULT + 3, OUT, touch)
    assert guest.out() == 5
    assert guest.out() == 5
    assert guest.assist.system_calls == 0


@pytest.mark.kvm
def test_a_handler_may_begin_with_any_instruction(guest):
    guest.code(PAGE_FAULT, b"\x50", OUT, b"\x58", DROP_ERROR_CODE, IRETQ)  # push %rax … pop %rax
    guest.start_user(mov_eax(6), b"\xa0", pack("<Q", UNMAPPED))
    assert [guest.out() for _ in range(3)] == [6, 6, 6]


@pytest.mark.kvm
def test_system_calls_survive_a_moved_interrupt_handler(guest):
    guest.start_user(mov_eax(1), SYSCALL, mov_eax(2), SYSCALL)
    # The kernel reports after WRMSR; then its IDT[14] changes, before the first system call.
    kernel = wrmsr(MSR_LSTAR, KERNEL + LSTAR) + wrmsr(MSR_SYSCALL_MASK, 0x47700)
    guest.code(START, kernel, OUT, OUT, IRETQ)
    guest.code(LSTAR, OUT, SYSRETQ)
    guest.out()
    guest.code(OTHER_PAGE_FAULT, NOP3, mov_eax(0xEE), OUT)
    guest.gate(14, OTHER_PAGE_FAULT)
    guest.out()
    assert [guest.out(), guest.out()] == [1, 2]


@pytest.mark.kvm
def test_state_set_from_outside_is_taken_over(guest):
    # As after a snapshot: LSTAR is there without a WRMSR.
    guest.start_user(mov_eax(7), SYSCALL)
    guest.code(START, IRETQ)
    guest.code(LSTAR, OUT)
    guest.vcpu.set_msrs({MSR_LSTAR: KERNEL + LSTAR, MSR_SYSCALL_MASK: 0x200})
    guest.assist.prepare(guest.vcpu)
    assert guest.out() == 7
    assert guest.vcpu.regs.rflags & 0x200 == 0


@pytest.mark.kvm
def test_jumping_to_lstar_gains_no_privileged_flags(guest, host):
    target = b"\x48\xb9" + pack("<Q", KERNEL + LSTAR)  # mov $LSTAR, %rcx
    guest.start_user(b"\x49\xc7\xc3\xff\x7f\x07\x00", target, b"\xff\xe1")  # r11; jmp *%rcx
    guest.code(LSTAR, OUT)
    guest.out()
    if not host.syscall_works:
        assert guest.vcpu.regs.r11 & 0x2_3000 == 0  # VM, IOPL


@pytest.mark.kvm
def test_a_bad_lstar_is_the_guests_fault(guest):
    guest.code(START, wrmsr(MSR_LSTAR, 1 << 63), OUT)
    guest.gate(13, BREAKPOINT)
    assert guest.out() == 0
    assert guest.vcpu.regs.rip == KERNEL + BREAKPOINT + len(OUT)


@pytest.mark.kvm
def test_debug_exceptions_of_the_guest_stay_its_own(guest):
    # TF set by IRETQ: #DB after the first instruction at CPL 3.
    guest.gate(1, BREAKPOINT)
    guest.start_user(mov_eax(3), mov_eax(4), rflags=0x302)
    assert guest.out() == 3
    assert guest.vcpu.get_debugregs().dr6 & 1 << 14


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (mov_eax(0xF0F) + b"\xf3\x0f\xb8\xc0" + OUT, 8),
        (b"\xf3\x48\x0f\xb8\x05\xf7\x04\x00\x00" + OUT, 3),  # popcnt DATA(%rip), %rax
        (mov_eax(4) + b"\x9b" + OUT, 4),
        (mov_eax(5) + b"\xcc" + OUT, 5),
        (b"\x48\x8d\x3d\xf9\x04\x00\x00\x48\x0f\xc7\x0f" + OUT, 0x0B),  # cmpxchg16b DATA
    ],
)
def test_refused_instructions_have_their_effect(guest, code, expected):
    guest.ram.write(DATA, pack("<2Q", 0x0B, 0))
    guest.code(START, code)
    assert guest.out() == expected


@pytest.mark.kvm
def test_int3_goes_on_behind_itself(guest):
    guest.code(START, mov_eax(1), b"\xcc", mov_eax(2), OUT)
    assert [guest.out(), guest.out()] == [1, 2]


@pytest.mark.kvm
def test_a_fault_of_an_emulated_instruction_is_the_guests(guest):
    # popcnt (%rax), %rcx
    guest.code(START, mov_eax(UNMAPPED + 0x123), b"\xf3\x48\x0f\xb8\x08")
    assert guest.out() == 0x23
    assert guest.vcpu.sregs.cr2 == UNMAPPED + 0x123


@pytest.mark.kvm
def test_an_unknown_instruction_is_named(guest, host):
    guest.code(START, b"\xd9\xe8\xdd\xd8", OUT)  # fld1; fstp %st(0)
    if host.instructions_complete:
        guest.out()
        return
    with pytest.raises(RefusedInstruction) as caught:
        guest.run()
    assert caught.value.code.startswith(b"\xd9\xe8")
    assert caught.value.rip == KERNEL + START
    assert "d9 e8" in str(caught.value)
    assert caught.value.exit_status == 125


@pytest.mark.kvm
def test_an_interrupt_table_from_nowhere_does_no_harm(guest):
    sregs = guest.vcpu.get_sregs()
    sregs.idt.base = 0xFFFF_9000_0000_0000
    guest.vcpu.set_sregs(sregs)
    guest.start_user(mov_eax(1), SYSCALL)
    guest.code(LSTAR, OUT)
    reason = guest.run()
    assert isinstance(reason, Shutdown | IoExit)


@pytest.mark.kvm
def test_without_broken_system_calls_nothing_is_watched():
    with ExitStack() as stack:
        guest = Guest(stack, HostTraits(instructions_complete=False))
        guest.code(START, wrmsr(MSR_LSTAR, KERNEL + LSTAR), b"\x9b", OUT)
        guest.out()
        assert all(type(reason).__name__ != "MsrWrite" for reason in guest.exits)


def test_linux_reads_the_whole_list_of_features():
    option = linux_options(2_600_000)[0]
    name, _, value = option.partition("=")
    # Linux 6.1 arch/x86/kernel/fpu/init.c reads it into 128 bytes.
    assert name == "clearcpuid"
    assert len(value) < 128
    assert len(set(value.split(","))) == len(value.split(","))


def test_an_unknown_frequency_is_not_claimed():
    assert not any(option.startswith("tsc") for option in linux_options(0))
    assert "tsc_early_khz=2600000" in linux_options(2_600_000)


def test_only_hypercalls_are_hidden():
    features = CpuidEntry(0x4000_0001, 0, 0, eax=0xFFFF_FFFF, ebx=0, ecx=0, edx=0xFFFF_FFFF)
    other = CpuidEntry(1, 0, 0, eax=0xFFFF_FFFF, ebx=0, ecx=0, edx=0)
    hidden, same = without_hypercalls([features, other])
    assert same == other
    # PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD, HC_MAP_GPA_RANGE
    assert hidden.eax == 0xFFFF_FFFF & ~0x1_2880
    assert hidden.edx == features.edx
