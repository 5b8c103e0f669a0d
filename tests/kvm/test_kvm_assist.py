"""Assists on a real vCPU: the guest sees the same as on an ordinary host.

Every expectation here holds on an ordinary host without any assist as well;
only the counts of the assists differ.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from struct import pack

import pytest
from assisted_guest import (
    BREAKPOINT,
    DATA,
    DROP_ERROR_CODE,
    EVERYTHING,
    IDT,
    IRETQ,
    KERNEL,
    LSTAR,
    NOP3,
    OTHER_PAGE_FAULT,
    OUT,
    PAGE_FAULT,
    START,
    SYSCALL,
    SYSRETQ,
    UNMAPPED,
    USER,
    Guest,
    mov_eax,
    wrmsr,
)

from pykvm.kvm.assist import Assist
from pykvm.kvm.constants import MSR_LSTAR, MSR_SYSCALL_MASK
from pykvm.kvm.exits import Debug, InternalError, IoExit, Shutdown
from pykvm.kvm.host_traits import HostTraits
from pykvm.kvm.probe import probe
from pykvm.kvm.refused import RefusedInstruction
from pykvm.kvm.system import Kvm

pytestmark = pytest.mark.kvm


@pytest.fixture
def guest() -> Iterator[Guest]:
    with ExitStack() as stack:
        yield Guest(stack)


@pytest.fixture(scope="module")
def host() -> HostTraits:
    with Kvm.open() as kvm:
        return probe(kvm)


def test_system_calls_reach_the_kernel_and_return(guest, host):
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


def test_sysret_works_where_kvm_refuses_it(guest, host):
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


def test_a_trampoline_takes_over_system_calls_after_the_first_ones(guest, host):
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


def test_page_faults_pass_the_trampoline(guest):
    many_calls(guest, mov_eax(5), b"\xa0" + pack("<Q", UNMAPPED))
    guest.code(BREAKPOINT + 16, PADDING)
    # The handler skips the faulting instruction, 9 bytes, which is the loop's last but one.
    guest.code(PAGE_FAULT, NOP3, OUT, DROP_ERROR_CODE, b"\x48\x83\x04\x24\x09", IRETQ)
    assert [guest.out() for _ in range(60)] == [1, 5] * 30


@pytest.mark.parametrize("why", ["no padding", "trap gate", "mask"])
def test_system_calls_work_where_no_trampoline_can_be_written(guest, host, why):
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


def test_a_handler_may_begin_with_any_instruction(guest):
    guest.code(PAGE_FAULT, b"\x50", OUT, b"\x58", DROP_ERROR_CODE, IRETQ)  # push %rax … pop %rax
    guest.start_user(mov_eax(6), b"\xa0", pack("<Q", UNMAPPED))
    assert [guest.out() for _ in range(3)] == [6, 6, 6]


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


def test_prepare_takes_over_msrs_that_were_set_from_outside(guest):
    # As after a snapshot: LSTAR is there without a WRMSR.
    guest.start_user(mov_eax(7), SYSCALL)
    guest.code(START, IRETQ)
    guest.code(LSTAR, OUT)
    guest.vcpu.set_msrs({MSR_LSTAR: KERNEL + LSTAR, MSR_SYSCALL_MASK: 0x200})
    guest.assist.prepare(guest.vcpu)
    assert guest.out() == 7
    assert guest.vcpu.regs.rflags & 0x200 == 0


def test_jumping_to_lstar_gains_no_privileged_flags(guest, host):
    target = b"\x48\xb9" + pack("<Q", KERNEL + LSTAR)  # mov $LSTAR, %rcx
    guest.start_user(b"\x49\xc7\xc3\xff\x7f\x07\x00", target, b"\xff\xe1")  # r11; jmp *%rcx
    guest.code(LSTAR, OUT)
    guest.out()
    if not host.syscall_works:
        assert guest.vcpu.regs.r11 & 0x2_3000 == 0  # VM, IOPL


def test_a_write_of_a_bad_lstar_faults_in_the_guest(guest):
    guest.code(START, wrmsr(MSR_LSTAR, 1 << 63), OUT)
    guest.gate(13, BREAKPOINT)
    assert guest.out() == 0
    assert guest.vcpu.regs.rip == KERNEL + BREAKPOINT + len(OUT)


def test_debug_exceptions_of_the_guest_reach_the_guest(guest):
    # TF set by IRETQ: #DB after the first instruction at CPL 3.
    guest.gate(1, BREAKPOINT)
    guest.start_user(mov_eax(3), mov_eax(4), rflags=0x302)
    assert guest.out() == 3
    assert guest.vcpu.get_debugregs().dr6 & 1 << 14


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


def test_the_guest_continues_behind_int3(guest):
    guest.code(START, mov_eax(1), b"\xcc", mov_eax(2), OUT)
    assert [guest.out(), guest.out()] == [1, 2]


def test_a_vcpu_does_not_stop_between_int3_and_its_exception(guest):
    """KVM would not report the exception."""
    guest.code(START, b"\xcc", OUT)
    reason = guest.vcpu.run()
    if isinstance(reason, InternalError):
        assert guest.assist.handle(guest.vcpu, reason)
        guest.vcpu.complete_io()
        assert guest.vcpu.events.exception.injected == 0
        assert not guest.assist.can_stop(guest.vcpu)
        reason = guest.run()
    assert isinstance(reason, IoExit)
    guest.vcpu.complete_io()
    assert guest.assist.can_stop(guest.vcpu)


def test_a_fault_of_an_emulated_instruction_reaches_the_guest(guest):
    # popcnt (%rax), %rcx
    guest.code(START, mov_eax(UNMAPPED + 0x123), b"\xf3\x48\x0f\xb8\x08")
    assert guest.out() == 0x23
    assert guest.vcpu.sregs.cr2 == UNMAPPED + 0x123


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


def test_an_interrupt_table_outside_ram_does_no_harm(guest):
    sregs = guest.vcpu.get_sregs()
    sregs.idt.base = 0xFFFF_9000_0000_0000
    guest.vcpu.set_sregs(sregs)
    guest.start_user(mov_eax(1), SYSCALL)
    guest.code(LSTAR, OUT)
    reason = guest.run()
    assert isinstance(reason, Shutdown | IoExit)


def test_msr_writes_cause_no_exit_where_syscall_works():
    with ExitStack() as stack:
        guest = Guest(stack, HostTraits(instructions_complete=False))
        guest.code(START, wrmsr(MSR_LSTAR, KERNEL + LSTAR), b"\x9b", OUT)
        guest.out()
        assert all(type(reason).__name__ != "MsrWrite" for reason in guest.exits)
