"""Numbers of <linux/kvm.h>, in its spelling.

ioctl numbers are computed from the sizes of the structures, as the header's
_IOW and its like do, so a wrong structure shows as a wrong number in
``tests/kvm/test_kvm_abi.py``.
"""

from types import MappingProxyType

from pykvm.kvm.native import ffi
from pykvm.lean.typing_names import Final

_KVMIO: Final = 0xAE
_WRITE: Final = 1
_READ: Final = 2


def _ioc(direction: int, number: int, type_name: str | None) -> int:
    size = ffi.sizeof(type_name) if type_name else 0
    return (direction << 30) | (size << 16) | (_KVMIO << 8) | number


def _io(number: int) -> int:
    return _ioc(0, number, None)


def _iow(number: int, type_name: str) -> int:
    return _ioc(_WRITE, number, type_name)


def _ior(number: int, type_name: str) -> int:
    return _ioc(_READ, number, type_name)


def _iowr(number: int, type_name: str) -> int:
    return _ioc(_WRITE | _READ, number, type_name)


KVM_API_VERSION: Final = 12

# /dev/kvm
KVM_GET_API_VERSION: Final = _io(0x00)
KVM_CREATE_VM: Final = _io(0x01)
KVM_GET_MSR_INDEX_LIST: Final = _iowr(0x02, "struct kvm_msr_list")
KVM_CHECK_EXTENSION: Final = _io(0x03)
KVM_GET_VCPU_MMAP_SIZE: Final = _io(0x04)
KVM_GET_SUPPORTED_CPUID: Final = _iowr(0x05, "struct kvm_cpuid2")

# VM
KVM_CREATE_VCPU: Final = _io(0x41)
KVM_SET_USER_MEMORY_REGION: Final = _iow(0x46, "struct kvm_userspace_memory_region")
KVM_SET_TSS_ADDR: Final = _io(0x47)
KVM_SET_IDENTITY_MAP_ADDR: Final = _iow(0x48, "uint64_t")
KVM_CREATE_IRQCHIP: Final = _io(0x60)
KVM_IRQ_LINE: Final = _iow(0x61, "struct kvm_irq_level")
KVM_GET_IRQCHIP: Final = _iowr(0x62, "struct kvm_irqchip")
KVM_SET_IRQCHIP: Final = _ior(0x63, "struct kvm_irqchip")
KVM_SET_GSI_ROUTING: Final = _iow(0x6A, "struct kvm_irq_routing")
KVM_IRQFD: Final = _iow(0x76, "struct kvm_irqfd")
KVM_CREATE_PIT2: Final = _iow(0x77, "struct kvm_pit_config")
KVM_IOEVENTFD: Final = _iow(0x79, "struct kvm_ioeventfd")
KVM_SET_CLOCK: Final = _iow(0x7B, "struct kvm_clock_data")
KVM_GET_CLOCK: Final = _ior(0x7C, "struct kvm_clock_data")
KVM_GET_PIT2: Final = _ior(0x9F, "struct kvm_pit_state2")
KVM_SET_PIT2: Final = _iow(0xA0, "struct kvm_pit_state2")
KVM_ENABLE_CAP: Final = _iow(0xA3, "struct kvm_enable_cap")
KVM_X86_SET_MSR_FILTER: Final = _iow(0xC6, "struct kvm_msr_filter")

# vCPU
KVM_RUN: Final = _io(0x80)
KVM_GET_REGS: Final = _ior(0x81, "struct kvm_regs")
KVM_SET_REGS: Final = _iow(0x82, "struct kvm_regs")
KVM_GET_SREGS: Final = _ior(0x83, "struct kvm_sregs")
KVM_SET_SREGS: Final = _iow(0x84, "struct kvm_sregs")
KVM_GET_MSRS: Final = _iowr(0x88, "struct kvm_msrs")
KVM_SET_MSRS: Final = _iow(0x89, "struct kvm_msrs")
KVM_SET_SIGNAL_MASK: Final = _iow(0x8B, "struct kvm_signal_mask")
KVM_GET_LAPIC: Final = _ior(0x8E, "struct kvm_lapic_state")
KVM_SET_LAPIC: Final = _iow(0x8F, "struct kvm_lapic_state")
KVM_SET_CPUID2: Final = _iow(0x90, "struct kvm_cpuid2")
KVM_GET_MP_STATE: Final = _ior(0x98, "struct kvm_mp_state")
KVM_SET_MP_STATE: Final = _iow(0x99, "struct kvm_mp_state")
KVM_SET_GUEST_DEBUG: Final = _iow(0x9B, "struct kvm_guest_debug")
KVM_GET_VCPU_EVENTS: Final = _ior(0x9F, "struct kvm_vcpu_events")
KVM_SET_VCPU_EVENTS: Final = _iow(0xA0, "struct kvm_vcpu_events")
KVM_GET_DEBUGREGS: Final = _ior(0xA1, "struct kvm_debugregs")
KVM_SET_DEBUGREGS: Final = _iow(0xA2, "struct kvm_debugregs")
KVM_GET_TSC_KHZ: Final = _io(0xA3)
KVM_GET_XSAVE: Final = _ior(0xA4, "struct kvm_xsave")
KVM_SET_XSAVE: Final = _iow(0xA5, "struct kvm_xsave")
KVM_GET_XCRS: Final = _ior(0xA6, "struct kvm_xcrs")
KVM_SET_XCRS: Final = _iow(0xA7, "struct kvm_xcrs")
KVM_GET_XSAVE2: Final = _ior(0xCF, "struct kvm_xsave")
KVM_KVMCLOCK_CTRL: Final = _io(0xAD)

# kvm_run.exit_reason
KVM_EXIT_IO: Final = 2
KVM_EXIT_DEBUG: Final = 4
KVM_EXIT_HLT: Final = 5
KVM_EXIT_MMIO: Final = 6
KVM_EXIT_SHUTDOWN: Final = 8
KVM_EXIT_FAIL_ENTRY: Final = 9
KVM_EXIT_INTR: Final = 10
KVM_EXIT_INTERNAL_ERROR: Final = 17
KVM_EXIT_SYSTEM_EVENT: Final = 24
KVM_EXIT_X86_RDMSR: Final = 29
KVM_EXIT_X86_WRMSR: Final = 30

KVM_EXIT_IO_OUT: Final = 1

KVM_INTERNAL_ERROR_EMULATION: Final = 1
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES: Final = 1

KVM_SYSTEM_EVENT_SHUTDOWN: Final = 1
KVM_SYSTEM_EVENT_RESET: Final = 2
KVM_SYSTEM_EVENT_CRASH: Final = 3

KVM_MSR_EXIT_REASON_FILTER: Final = 4

# Flags and selectors of the structures
KVM_IRQCHIP_PIC_MASTER: Final = 0
KVM_IRQCHIP_PIC_SLAVE: Final = 1
KVM_IRQCHIP_IOAPIC: Final = 2
KVM_IOAPIC_NUM_PINS: Final = 24
KVM_IRQ_ROUTING_IRQCHIP: Final = 1
KVM_IRQ_ROUTING_MSI: Final = 2
KVM_IRQFD_FLAG_DEASSIGN: Final = 1
KVM_IOEVENTFD_FLAG_DEASSIGN: Final = 4
KVM_PIT_SPEAKER_DUMMY: Final = 1
KVM_MSR_FILTER_READ: Final = 1
KVM_MSR_FILTER_WRITE: Final = 2
KVM_MSR_FILTER_MAX_RANGES: Final = 16
KVM_MSR_FILTER_MAX_BITMAP_SIZE: Final = 0x600
KVM_CPUID_FLAG_SIGNIFCANT_INDEX: Final = 1
KVM_MP_STATE_RUNNABLE: Final = 0
KVM_MP_STATE_UNINITIALIZED: Final = 1
KVM_MP_STATE_INIT_RECEIVED: Final = 2
KVM_MP_STATE_HALTED: Final = 3
KVM_GUESTDBG_ENABLE: Final = 0x00000001
KVM_GUESTDBG_SINGLESTEP: Final = 0x00000002
KVM_GUESTDBG_USE_HW_BP: Final = 0x00020000
KVM_SYNC_X86_REGS: Final = 1
KVM_SYNC_X86_SREGS: Final = 2
KVM_SYNC_X86_EVENTS: Final = 4

# KVM_CHECK_EXTENSION
KVM_CAP_IRQCHIP: Final = 0
KVM_CAP_USER_MEMORY: Final = 3
KVM_CAP_SET_TSS_ADDR: Final = 4
KVM_CAP_EXT_CPUID: Final = 7
KVM_CAP_NR_VCPUS: Final = 9
KVM_CAP_MP_STATE: Final = 14
KVM_CAP_SET_GUEST_DEBUG: Final = 23
KVM_CAP_IRQ_ROUTING: Final = 25
KVM_CAP_IRQFD: Final = 32
KVM_CAP_PIT2: Final = 33
KVM_CAP_IOEVENTFD: Final = 36
KVM_CAP_SET_IDENTITY_MAP_ADDR: Final = 37
KVM_CAP_VCPU_EVENTS: Final = 41
KVM_CAP_GET_TSC_KHZ: Final = 61
KVM_CAP_MAX_VCPUS: Final = 66
KVM_CAP_TSC_DEADLINE_TIMER: Final = 72
KVM_CAP_SYNC_REGS: Final = 74
KVM_CAP_IOEVENTFD_ANY_LENGTH: Final = 122
KVM_CAP_IMMEDIATE_EXIT: Final = 136
KVM_CAP_X86_USER_SPACE_MSR: Final = 188
KVM_CAP_X86_MSR_FILTER: Final = 189
KVM_CAP_XSAVE2: Final = 208
KVM_CAP_EXIT_ON_EMULATION_FAILURE: Final = 204


def _names(prefix: str) -> MappingProxyType[int, str]:
    found = {value: name for name, value in globals().items() if name.startswith(prefix)}
    return MappingProxyType(found)


_CAP_NAMES: Final = _names("KVM_CAP_")


def cap_name(cap: int) -> str:
    """The name of a capability: ``KVM_CAP_IRQCHIP`` for 0."""
    return _CAP_NAMES.get(cap, f"KVM_CAP {cap}")


# MSRs that SYSCALL uses (SDM volume 4, "IA-32 Architectural MSRs").
MSR_STAR: Final = 0xC000_0081
MSR_LSTAR: Final = 0xC000_0082
MSR_SYSCALL_MASK: Final = 0xC000_0084

# The time-stamp counter and the timer that compares with it (SDM volume 4).
MSR_TSC: Final = 0x10
MSR_TSC_DEADLINE: Final = 0x6E0

# A paravirtual MSR (Documentation/virt/kvm/x86/msr.rst).
MSR_KVM_ASYNC_PF_EN: Final = 0x4B56_4D02
