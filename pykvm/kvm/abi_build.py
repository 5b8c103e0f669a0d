"""The part of <linux/kvm.h> that pykvm uses, and the generator of ``_abi.py``.

``python -P pykvm/kvm/abi_build.py`` writes ``_abi.py``, in cffi's out-of-line ABI mode,
which is plain Python and needs no compiler. It is run as a file, because the package
imports ``_abi.py``. The generated file is committed, because parsing these declarations
at every start would take 40 ms. ``tests/kvm/test_kvm_abi.py`` generates the file again,
and compares every structure, offset and ioctl number with the system's header through
a C compiler.

Structures name only the fields that pykvm reads or writes. Unions are padded to their
full size. Source: <linux/kvm.h> and <asm/kvm.h> of Linux 6.1. Later kernels only add
to this ABI.
"""

from pathlib import Path

from cffi import FFI

MODULE = "pykvm.kvm._abi"

# ioctl(2) is variadic in C and is declared here with a fixed third argument.
# On x86-64 both conventions pass an integer or pointer third argument in rdx.
# A variadic call differs only in AL (the number of vector registers used),
# which ioctl ignores. cffi calls a fixed signature much faster.
FUNCTIONS = """
int ioctl(int fd, unsigned long request, void *argument);
"""

SYSTEM = """
struct kvm_cpuid_entry2 {
    uint32_t function, index, flags, eax, ebx, ecx, edx;
    uint32_t padding[3];
};
struct kvm_cpuid2 { uint32_t nent, padding; struct kvm_cpuid_entry2 entries[]; };
struct kvm_msr_list { uint32_t nmsrs; uint32_t indices[]; };
"""

VM = """
struct kvm_userspace_memory_region {
    uint32_t slot, flags;
    uint64_t guest_phys_addr, memory_size, userspace_addr;
};
struct kvm_enable_cap { uint32_t cap, flags; uint64_t args[4]; uint8_t pad[64]; };
struct kvm_pit_config { uint32_t flags; uint32_t pad[15]; };
struct kvm_pit_channel_state {
    uint32_t count;
    uint16_t latched_count;
    uint8_t count_latched, status_latched, status, read_state, write_state, write_latch;
    uint8_t rw_mode, mode, bcd, gate;
    int64_t count_load_time;
};
struct kvm_pit_state2 {
    struct kvm_pit_channel_state channels[3];
    uint32_t flags;
    uint32_t reserved[9];
};
struct kvm_irqchip { uint32_t chip_id, pad; union { char dummy[512]; } chip; };
struct kvm_clock_data {
    uint64_t clock;
    uint32_t flags, pad0;
    uint64_t realtime, host_tsc;
    uint32_t pad[4];
};
struct kvm_irq_level { uint32_t irq, level; };
struct kvm_irqfd { uint32_t fd, gsi, flags, resamplefd; uint8_t pad[16]; };
struct kvm_ioeventfd {
    uint64_t datamatch, addr;
    uint32_t len;
    int32_t fd;
    uint32_t flags;
    uint8_t pad[36];
};
struct kvm_irq_routing_irqchip { uint32_t irqchip, pin; };
struct kvm_irq_routing_msi { uint32_t address_lo, address_hi, data, devid; };
struct kvm_irq_routing_entry {
    uint32_t gsi, type, flags, pad;
    union {
        struct kvm_irq_routing_irqchip irqchip;
        struct kvm_irq_routing_msi msi;
        uint32_t pad[8];
    } u;
};
struct kvm_irq_routing { uint32_t nr, flags; struct kvm_irq_routing_entry entries[]; };
struct kvm_msr_filter_range { uint32_t flags, nmsrs, base; uint8_t *bitmap; };
struct kvm_msr_filter { uint32_t flags; struct kvm_msr_filter_range ranges[16]; };
"""

VCPU = """
struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t rip, rflags;
};
struct kvm_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint8_t type, present, dpl, db, s, l, g, avl, unusable, padding;
};
struct kvm_dtable { uint64_t base; uint16_t limit; uint16_t padding[3]; };
struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    uint64_t interrupt_bitmap[4];
};
struct kvm_msr_entry { uint32_t index, reserved; uint64_t data; };
struct kvm_msrs { uint32_t nmsrs, pad; struct kvm_msr_entry entries[]; };
struct kvm_lapic_state { char regs[1024]; };
struct kvm_mp_state { uint32_t mp_state; };
struct kvm_vcpu_events {
    struct { uint8_t injected, nr, has_error_code, pending; uint32_t error_code; } exception;
    struct { uint8_t injected, nr, soft, shadow; } interrupt;
    struct { uint8_t injected, pending, masked, pad; } nmi;
    uint32_t sipi_vector, flags;
    struct { uint8_t smm, pending, smm_inside_nmi, latched_init; } smi;
    struct { uint8_t pending; } triple_fault;
    uint8_t reserved[26];
    uint8_t exception_has_payload;
    uint64_t exception_payload;
};
struct kvm_xsave { uint32_t region[1024]; uint32_t extra[]; };
struct kvm_xcr { uint32_t xcr, reserved; uint64_t value; };
struct kvm_xcrs { uint32_t nr_xcrs, flags; struct kvm_xcr xcrs[16]; uint64_t padding[16]; };
struct kvm_debugregs { uint64_t db[4]; uint64_t dr6, dr7, flags; uint64_t reserved[9]; };
struct kvm_guest_debug_arch { uint64_t debugreg[8]; };
struct kvm_guest_debug { uint32_t control, pad; struct kvm_guest_debug_arch arch; };
struct kvm_signal_mask { uint32_t len; uint8_t sigset[]; };
"""

RUN = """
struct kvm_debug_exit_arch { uint32_t exception, pad; uint64_t pc, dr6, dr7; };
struct kvm_sync_regs {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
};
struct kvm_run {
    uint8_t request_interrupt_window, immediate_exit;
    uint8_t padding1[6];
    uint32_t exit_reason;
    uint8_t ready_for_interrupt_injection, if_flag;
    uint16_t flags;
    uint64_t cr8, apic_base;
    union {
        struct { uint64_t hardware_exit_reason; } hw;
        struct { uint64_t hardware_entry_failure_reason; uint32_t cpu; } fail_entry;
        struct { uint8_t direction, size; uint16_t port; uint32_t count; uint64_t data_offset; } io;
        struct { struct kvm_debug_exit_arch arch; } debug;
        struct { uint64_t phys_addr; uint8_t data[8]; uint32_t len; uint8_t is_write; } mmio;
        struct { uint32_t suberror, ndata; uint64_t data[16]; } internal;
        struct {
            uint32_t suberror, ndata;
            uint64_t flags;
            uint8_t insn_size;
            uint8_t insn_bytes[15];
        } emulation_failure;
        struct { uint32_t type, ndata; uint64_t data[16]; } system_event;
        struct { uint8_t error; uint8_t pad[7]; uint32_t reason, index; uint64_t data; } msr;
        char padding[256];
    };
    uint64_t kvm_valid_regs, kvm_dirty_regs;
    union { struct kvm_sync_regs regs; char padding[2048]; } s;
};
"""

CDEF = FUNCTIONS + SYSTEM + VM + VCPU + RUN


def write_abi(path: Path) -> None:
    """Write the generated module to ``path``."""
    builder = FFI()
    builder.cdef(CDEF)
    builder.set_source(MODULE, None)
    builder.emit_python_code(str(path))


if __name__ == "__main__":
    write_abi(Path(__file__).with_name("_abi.py"))
