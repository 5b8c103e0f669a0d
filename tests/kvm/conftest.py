"""A machine of 1 MiB for guests of a few bytes."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pykvm.kvm.system import Kvm
from pykvm.kvm.vcpu import Vcpu
from pykvm.memory.guest import GuestMemory

CODE = 0x1000
STACK = 0x8000
PAGE_TABLES = 0x10000
MIB = 1 << 20


class TinyMachine:
    """A VM with RAM at 0, and vCPUs that start in the mode asked for. Closed by its fixture."""

    def __init__(self, stack: ExitStack, irqchip: bool) -> None:
        self.stack = stack
        self.memory = GuestMemory(MIB)
        stack.callback(self.memory.close)
        self.kvm = stack.enter_context(Kvm.open())
        self.vm = stack.enter_context(self.kvm.create_vm())
        self.vm.set_tss_address(0xFFFBD000)
        self.vm.set_identity_map_address(0xFFFBC000)
        if irqchip:
            self.vm.create_irqchip()
        self.vm.set_memory(0, 0, MIB, self.memory.address)
        self.ram = self.memory.ram

    def real_mode(self, code: bytes, index: int = 0, address: int = CODE) -> Vcpu:
        """A vCPU about to execute ``code`` in 16-bit real mode with all segments at 0."""
        vcpu = self.stack.enter_context(self.vm.create_vcpu(index))
        self.ram.write(address, code)
        sregs = vcpu.get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.set_sregs(sregs)
        self._start(vcpu, address)
        return vcpu

    def long_mode(self, code: bytes, index: int = 0, address: int = CODE, cpl: int = 0) -> Vcpu:
        """A vCPU about to execute ``code`` in 64-bit mode, GiB 0 and 3 mapped one to one."""
        vcpu = self.stack.enter_context(self.vm.create_vcpu(index))
        vcpu.set_cpuid2(self.kvm.supported_cpuid())
        self.ram.write(address, code)
        self._map_one_to_one()
        sregs = vcpu.get_sregs()
        # Present, 64-bit code (11) and writable data (3), accessed.
        for segment, kind, selector in [(sregs.cs, 11, 8), (sregs.ss, 3, 16)]:
            segment.base, segment.limit, segment.selector = 0, 0xFFFFFFFF, selector | cpl
            segment.type, segment.present, segment.s, segment.g = kind, 1, 1, 1
            segment.dpl, segment.l, segment.db = cpl, int(kind == 11), int(kind == 3)
        for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs):
            segment.type, segment.present, segment.s, segment.g = 3, 1, 1, 1
            segment.base, segment.limit, segment.selector = 0, 0xFFFFFFFF, 16 | cpl
            segment.dpl, segment.db = cpl, 1
        sregs.cr3 = PAGE_TABLES
        sregs.cr4 |= 1 << 5  # PAE
        sregs.efer |= 0x500  # LME, LMA
        sregs.cr0 |= 0x80000001  # PG, PE
        vcpu.set_sregs(sregs)
        self._start(vcpu, address)
        return vcpu

    def _map_one_to_one(self) -> None:
        pml4, pdpt = PAGE_TABLES, PAGE_TABLES + 0x1000
        self.ram.write(pml4, (pdpt | 7).to_bytes(8, "little"))
        for gib, pd in [(0, PAGE_TABLES + 0x2000), (3, PAGE_TABLES + 0x3000)]:
            self.ram.write(pdpt + 8 * gib, (pd | 7).to_bytes(8, "little"))
            for number in range(512):
                entry = (gib << 30) | (number << 21) | 0x87
                self.ram.write(pd + 8 * number, entry.to_bytes(8, "little"))

    def _start(self, vcpu: Vcpu, address: int) -> None:
        regs = vcpu.get_regs()
        regs.rip, regs.rsp, regs.rflags = address, STACK, 2
        vcpu.set_regs(regs)


@pytest.fixture
def machine() -> Iterator[TinyMachine]:
    """A machine without interrupt controllers."""
    with ExitStack() as stack:
        yield TinyMachine(stack, irqchip=False)


@pytest.fixture
def irqchip_machine() -> Iterator[TinyMachine]:
    """A machine with the in-kernel interrupt controllers."""
    with ExitStack() as stack:
        yield TinyMachine(stack, irqchip=True)


@pytest.fixture
def second_machine() -> Iterator[TinyMachine]:
    """A second machine with the in-kernel interrupt controllers."""
    with ExitStack() as stack:
        yield TinyMachine(stack, irqchip=True)
