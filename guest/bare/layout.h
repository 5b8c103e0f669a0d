/*
 * Where everything lies in guest-physical memory. The host relies on the
 * areas from RESULTS_BASE on (pykvm/bare/layout.py); the rest is the
 * guest's own business. Included by C, by assembly and by the linker script.
 */
#ifndef LAYOUT_H
#define LAYOUT_H

#define CPUS_MAX 4

#define TRAMPOLINE_BASE 0x10000  /* real-mode start of the other vCPUs; SIPI vector 16 */
#define IMAGE_BASE 0x100000      /* page tables first, then descriptor tables, code and data */
#define RESULTS_BASE 0x200000    /* one area per vCPU */
#define RESULTS_SIZE 0x80000
#define ARENA_BASE 0x400000      /* rings and buffers, laid out by the host's script */
#define ARENA_SIZE 0xa00000
#define MEMORY_END (ARENA_BASE + ARENA_SIZE)

/* Fixed, so that the descriptor tables are constants and cost no instruction at run time. */
#define GDT_BASE (IMAGE_BASE + 0x6000)
#define TSS_BASE (IMAGE_BASE + 0x6100)
#define TSS_STRIDE 0x80
#define IDT_BASE (IMAGE_BASE + 0x7000)
#define VECTORS_BASE (IMAGE_BASE + 0x8000)
#define VECTOR_STRIDE 16

#define VECTOR_GATE 3            /* INT3: the only gate that CPL3 may call */
#define VECTOR_IRQ_FIRST 0x40    /* message-signalled interrupts use 0x40 to 0x5f */
#define VECTOR_IRQ_END 0x60
#define VECTOR_INTX 0x60         /* its handler reads the ISR register … */
#define COUNTER_INTX_EMPTY 0x61  /* … and counts here when that read 0: no vector */
#define VECTOR_SPURIOUS 0xff

/* Selectors as Linux has them: some software backends of KVM expect no others. */
#define SELECTOR_CODE32 0x08
#define SELECTOR_CODE64 0x10
#define SELECTOR_DATA 0x18
#define SELECTOR_USER_DATA 0x2b
#define SELECTOR_USER_CODE 0x33
#define SELECTOR_TSS 0x40        /* plus 16 per vCPU */

#define PORT_EXIT 0xf4
#define LAPIC_BASE 0xfee00000
#define IOAPIC_BASE 0xfec00000

/* The services of the INT3 gate: number in eax, arguments in edx and ecx, result in eax. */
#define GATE_IN8 0
#define GATE_IN16 1
#define GATE_IN32 2
#define GATE_OUT8 3
#define GATE_OUT16 4
#define GATE_OUT32 5
#define GATE_IDLE 6              /* halt unless *(u32 *)rdx differs from ecx */
#define GATE_HALT 7              /* halt for ever with interrupts off */
#define GATE_NO_IDT 8            /* after this, the next exception is a triple fault */
#define GATE_OUTS8 9             /* rep outsb: port edx, count ecx, bytes at rsi */
#define GATE_INS8 10             /* rep insb: port edx, count ecx, bytes to rdi */

#endif
