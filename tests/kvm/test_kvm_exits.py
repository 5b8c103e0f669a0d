"""The actions of tiny guests, as exits."""

import pytest

from pykvm.kvm import constants as c
from pykvm.kvm.errors import KvmError
from pykvm.kvm.exits import (
    Debug,
    Hlt,
    InternalError,
    Interrupted,
    IoExit,
    MmioExit,
    MsrRead,
    MsrWrite,
    Shutdown,
    decode,
)
from pykvm.kvm.vcpu import Vcpu

pytestmark = pytest.mark.kvm

HLT = b"\xf4"


def run(vcpu: Vcpu):
    while isinstance(reason := vcpu.run(), Interrupted):
        pass
    return reason


def test_a_port_write_and_a_halt_are_exits(machine):
    vcpu = machine.real_mode(b"\xb0\x42\xe6\x80" + HLT)  # mov al, 0x42; out 0x80, al
    out = run(vcpu)
    assert isinstance(out, IoExit)
    assert (out.is_write, out.port, out.size, out.count) == (True, 0x80, 1, 1)
    assert (out.data, out.value, out.values()) == (b"\x42", 0x42, [0x42])
    assert run(vcpu) == Hlt()
    assert out.value == 0x42  # still there after the next exit


def test_a_port_read_gets_its_answer(machine):
    # mov dx, 0x3f8; in eax, dx; out 0x80, eax
    vcpu = machine.real_mode(b"\xba\xf8\x03\x66\xed\x66\xe7\x80" + HLT)
    read = run(vcpu)
    assert isinstance(read, IoExit)
    assert (read.is_write, read.port, read.size, read.data) == (False, 0x3F8, 4, b"")
    read.set_value(0x1_2345_6789)
    written = run(vcpu)
    assert isinstance(written, IoExit)
    assert written.value == 0x2345_6789


def test_string_output(machine):
    machine.ram.write(0x2000, b"hello")
    # cld; mov si, 0x2000; mov cx, 5; mov dx, 0xe9; rep outsb
    vcpu = machine.real_mode(b"\xfc\xbe\x00\x20\xb9\x05\x00\xba\xe9\x00\xf3\x6e" + HLT)
    seen = b""
    while isinstance(reason := run(vcpu), IoExit):
        assert len(reason.data) == reason.size * reason.count
        seen += bytes(reason.values())
    assert (seen, reason) == (b"hello", Hlt())


def test_string_input(machine):
    # cld; mov di, 0x2000; mov cx, 4; mov dx, 0x1f0; rep insw
    vcpu = machine.real_mode(b"\xfc\xbf\x00\x20\xb9\x04\x00\xba\xf0\x01\xf3\x6d" + HLT)
    given = 0
    while isinstance(reason := run(vcpu), IoExit):
        assert reason.size == 2
        reason.set_values([0x4140 + given + n for n in range(reason.count)])
        given += reason.count
    assert given == 4
    assert machine.ram.read(0x2000, 8) == b"\x40\x41\x41\x41\x42\x41\x43\x41"


def test_mmio_write_and_read_in_long_mode(machine):
    # mov rbx, 0x200000; mov dword [rbx], 0x11223344; mov rax, [rbx+8]; mov [rbx+16], rax
    code = bytes.fromhex("48c7c300002000 c70344332211 488b4308 48894310") + HLT
    vcpu = machine.long_mode(code)
    write = run(vcpu)
    assert isinstance(write, MmioExit)
    assert (write.is_write, write.address, write.size) == (True, 0x200000, 4)
    assert (write.value, write.data) == (0x11223344, b"\x44\x33\x22\x11")
    read = run(vcpu)
    assert isinstance(read, MmioExit)
    assert (read.is_write, read.address, read.size, read.data) == (False, 0x200008, 8, b"")
    read.set_value(0x0123456789ABCDEF)
    echo = run(vcpu)
    assert isinstance(echo, MmioExit)
    assert (echo.address, echo.value) == (0x200010, 0x0123456789ABCDEF)
    assert run(vcpu) == Hlt()


def test_mmio_at_user_level(machine):
    vcpu = machine.long_mode(bytes.fromhex("48c7c300002000 c70344332211"), cpl=3)
    write = run(vcpu)
    assert isinstance(write, MmioExit)
    assert (write.address, write.value) == (0x200000, 0x11223344)


def test_triple_fault_is_shutdown(machine):
    vcpu = machine.long_mode(b"\x0f\x0b")  # ud2 with no IDT
    sregs = vcpu.get_sregs()
    sregs.idt.limit = 0
    vcpu.set_sregs(sregs)
    assert run(vcpu) == Shutdown()


def test_wrong_answers_are_refused(machine):
    vcpu = machine.real_mode(b"\xe4\x80\xe6\x80" + HLT)  # in al, 0x80; out 0x80, al
    read = run(vcpu)
    with pytest.raises(ValueError, match="do not answer"):
        read.set_data(b"\1\2")
    with pytest.raises(ValueError, match="do not answer"):
        read.set_values([1, 2])
    write = run(vcpu)
    with pytest.raises(ValueError, match="do not answer"):
        write.set_value(1)


def test_impossible_exits_from_the_kernel_are_refused(machine):
    vcpu = machine.real_mode(b"\xe4\x80" + HLT)
    run(vcpu)
    io = vcpu.page.run.io
    for field, value in [("data_offset", 1 << 40), ("count", 1 << 31), ("size", 3), ("count", 0)]:
        before = getattr(io, field)
        setattr(io, field, value)
        with pytest.raises(KvmError, match="impossible port access"):
            decode(vcpu.page)
        setattr(io, field, before)
    assert isinstance(decode(vcpu.page), IoExit)
    vcpu.page.run.exit_reason = c.KVM_EXIT_MMIO
    vcpu.page.run.mmio.len = 9
    with pytest.raises(KvmError, match="impossible MMIO"):
        decode(vcpu.page)


def test_an_exit_cannot_be_answered_after_close(machine):
    vcpu = machine.real_mode(b"\xe4\x80" + HLT)
    read = run(vcpu)
    vcpu.close()
    with pytest.raises(ValueError, match="released"):
        read.set_value(1)


def test_emulation_failure_gives_the_instruction(machine):
    # An exit as KVM writes it: flags say that the bytes are there, or not.
    vcpu = machine.real_mode(HLT)
    kvm_run = vcpu.page.run
    kvm_run.exit_reason = c.KVM_EXIT_INTERNAL_ERROR
    kvm_run.internal.suberror = c.KVM_INTERNAL_ERROR_EMULATION
    failure = kvm_run.emulation_failure
    failure.ndata, failure.flags, failure.insn_size = 3, 1, 200
    for at, byte in enumerate(b"\x0f\xae\x2f" + b"\x90" * 12):
        failure.insn_bytes[at] = byte
    error = decode(vcpu.page)
    assert isinstance(error, InternalError)
    assert (error.suberror, error.instruction) == (1, b"\x0f\xae\x2f" + b"\x90" * 12)
    failure.flags = 0
    assert decode(vcpu.page).instruction == b""
    failure.ndata = 1000
    assert len(decode(vcpu.page).data) == 16


def test_msr_filter_reports_writes_and_reads(irqchip_machine):
    machine = irqchip_machine
    machine.vm.set_msr_filter(deny_writes=[(0xC0000080, 5)], deny_reads=[(0x10A, 1)])
    # mov ecx, 0xc0000082; mov edx, 1; mov eax, 2; wrmsr; mov ecx, 0x10a; rdmsr; out 0x80, eax
    code = bytes.fromhex("b9820000c0 ba01000000 b802000000 0f30 b90a010000 0f32 e780")
    vcpu = machine.long_mode(code)
    write = run(vcpu)
    assert isinstance(write, MsrWrite)
    assert (write.index, write.value) == (0xC0000082, 0x1_0000_0002)
    assert write.reason == c.KVM_MSR_EXIT_REASON_FILTER
    read = run(vcpu)
    assert isinstance(read, MsrRead)
    assert read.index == 0x10A
    read.set_value(0x77)
    assert run(vcpu).value == 0x77
    assert vcpu.get_msrs([0xC0000082]) == {0xC0000082: 0}  # it was ours to carry out
    with pytest.raises(ValueError, match="16 ranges"):
        machine.vm.set_msr_filter(deny_writes=[(n, 1) for n in range(17)])


def test_hardware_breakpoint(machine):
    vcpu = machine.long_mode(b"\x90\x90\x90" + HLT)
    control = c.KVM_GUESTDBG_ENABLE | c.KVM_GUESTDBG_USE_HW_BP
    vcpu.set_guest_debug(control, [0x1002, 0, 0, 0, 0, 0, 0, 0x402])
    stop = run(vcpu)
    assert isinstance(stop, Debug)
    assert (stop.exception, stop.pc) == (1, 0x1002)
    assert stop.dr6 & 1
    vcpu.set_guest_debug(0)
    assert run(vcpu) == Hlt()
