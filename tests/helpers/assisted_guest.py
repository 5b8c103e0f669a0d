"""A guest in 64-bit mode, of which a test writes each instruction, with assists around its vCPU.

It has a kernel at KERNEL, which only CPL 0 may touch, and user code at USER. It
reports by OUT from CPL 0.
"""

from contextlib import ExitStack
from struct import pack

from pykvm.kvm.assist import Assist
from pykvm.kvm.constants import MSR_LSTAR, MSR_STAR, MSR_SYSCALL_MASK
from pykvm.kvm.exits import Exit, IoExit
from pykvm.kvm.host_traits import HostTraits
from pykvm.kvm.segments import load_code, load_data, load_tss
from pykvm.kvm.system import Kvm
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
        """Run to the next exit that the assists do not handle."""
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
        load_code(sregs.cs, 0x08)
        for data in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
            load_data(data, 0x10)
        load_tss(sregs.tr, 0x28, KERNEL + TSS)
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
