/*
 * Entry, descriptor tables and the few instructions that run at CPL0.
 *
 * All tables are constants, so entry costs two dozen instructions: on hosts
 * that emulate CPL0 each one takes microseconds, while CPL3 is native. The
 * script therefore runs at CPL3, does MMIO there through page tables that
 * let it, and reaches port I/O and HLT through an INT3 gate (I/O privilege
 * and SYSCALL are not dependable on such hosts; exceptions are).
 */
#include "layout.h"

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 8, 18			/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.quad pvh_entry

/* Identity map of the first 4 GiB in 2 MiB pages, all of it open to CPL3. */
	.section .tables, "aw"
	.globl pml4
pml4:	.quad pdpt + 7
	.fill 511, 8, 0
pdpt:	.quad directories + 7, directories + 0x1007, directories + 0x2007, directories + 0x3007
	.fill 508, 8, 0
directories:
	.set page, 0
	.rept 2048
	.quad page + 0x87
	.set page, page + 0x200000
	.endr

	.org GDT_BASE - IMAGE_BASE
gdt:	.quad 0
	.quad 0x00cf9b000000ffff	/* code, 32 bits */
	.quad 0x00af9b000000ffff	/* code, 64 bits */
	.quad 0x00cf93000000ffff	/* data */
	.quad 0x00cffb000000ffff	/* CPL3 code, 32 bits */
	.quad 0x00cff3000000ffff	/* CPL3 data */
	.quad 0x00affb000000ffff	/* CPL3 code, 64 bits */
	.quad 0
	.set cpu, 0
	.rept CPUS_MAX
	.set tss, TSS_BASE + cpu * TSS_STRIDE
	.word TSS_STRIDE - 1, tss & 0xffff
	.byte (tss >> 16) & 0xff, 0x89, 0, tss >> 24
	.quad 0
	.set cpu, cpu + 1
	.endr
gdt_end:

	.org TSS_BASE - IMAGE_BASE
	.set cpu, 0
	.rept CPUS_MAX
	.long 0
	.quad kernel_stacks + 4096 * (cpu + 1)
	.fill 88, 1, 0
	.word 0, TSS_STRIDE		/* no I/O permission bitmap */
	.fill TSS_STRIDE - 104, 1, 0
	.set cpu, cpu + 1
	.endr

	.org IDT_BASE - IMAGE_BASE
	.set vector, 0
	.rept 256
	.set entry, VECTORS_BASE + vector * VECTOR_STRIDE
	.word entry & 0xffff, SELECTOR_CODE64
	.byte 0
	.if vector == VECTOR_GATE
	.byte 0xee			/* callable from CPL3 */
	.else
	.byte 0x8e
	.endif
	.word (entry >> 16) & 0xffff
	.quad 0
	.set vector, vector + 1
	.endr

	.org VECTORS_BASE - IMAGE_BASE
	.code64
	.set vector, 0
	.rept 256
	.org VECTORS_BASE - IMAGE_BASE + vector * VECTOR_STRIDE
	.if vector == VECTOR_GATE
	jmp *gate_table(, %rax, 8)
	.elseif vector >= VECTOR_IRQ_FIRST && vector < VECTOR_IRQ_END
	incl irq_counts + 4 * (vector - VECTOR_IRQ_FIRST)
	jmp end_of_interrupt
	.elseif vector == VECTOR_INTX
	push %rax
	jmp intx
	.elseif vector == VECTOR_SPURIOUS
	iretq
	.elseif vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
	push $vector			/* the CPU pushed an error code */
	jmp unexpected
	.else
	push $0
	push $vector
	jmp unexpected
	.endif
	.set vector, vector + 1
	.endr
	.org VECTORS_BASE - IMAGE_BASE + 256 * VECTOR_STRIDE

	.text
/* PVH: flat 32-bit protected mode without paging, ebx = address of the start info. */
	.code32
	.globl pvh_entry
pvh_entry:
	xor %ebp, %ebp			/* number of this vCPU */
enter:	mov %cr4, %eax
	or $0x20, %eax			/* PAE */
	mov %eax, %cr4
	mov $pml4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx		/* EFER */
	rdmsr
	or $0x100, %eax			/* LME */
	wrmsr
	mov %cr0, %eax
	or $0x80010001, %eax		/* PG, WP, PE */
	mov %eax, %cr0
	lgdt gdt_pointer
	ljmp $SELECTOR_CODE64, $enter64

	.code64
enter64:
	lidt idt_pointer
	mov $0xff, %eax			/* firmware may have left a timer on the 8259s' IRQ 0 */
	out %al, $0x21
	out %al, $0xa1
	mov $SELECTOR_DATA, %eax
	mov %eax, %ss
	mov $SELECTOR_USER_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %ebp, %eax
	shl $4, %eax
	add $SELECTOR_TSS, %eax
	ltr %ax
	mov %ebp, %edi
	inc %edi
	mov %edi, %eax
	shl $14, %eax			/* 16 KiB each */
	add $user_stacks - 8, %rax	/* as if called: the ABI's alignment */
	shl $12, %edi
	lea kernel_stacks(%rdi), %rsp
	push $SELECTOR_USER_DATA
	push %rax
	push $0x202			/* interrupts on */
	push $SELECTOR_USER_CODE
	push $guest_main
	mov %ebp, %edi
	mov %ebx, %esi
	iretq

/* The other vCPUs: real mode at TRAMPOLINE_BASE, where guest code copies this to. */
	.section .rodata
	.globl trampoline, trampoline_end
	.code16
trampoline:
	cli
	cs lgdtl trampoline_gdt - trampoline
	mov %cr0, %eax
	or $1, %eax
	mov %eax, %cr0
	ljmpl $SELECTOR_CODE32, $enter_other
	.balign 8
trampoline_gdt:
	.word gdt_end - gdt - 1
	.long GDT_BASE
trampoline_end:

	.text
	.code32
enter_other:
	mov $SELECTOR_DATA, %eax
	mov %eax, %ds
	mov %eax, %ss
	mov spawned_cpu, %ebp
	jmp enter

	.code64
gate_in8:
	in %dx, %al
	movzbl %al, %eax
	iretq
gate_in16:
	in %dx, %ax
	movzwl %ax, %eax
	iretq
gate_in32:
	in %dx, %eax
	iretq
gate_out8:
	mov %ecx, %eax
	out %al, %dx
	iretq
gate_out16:
	mov %ecx, %eax
	out %ax, %dx
	iretq
gate_out32:
	mov %ecx, %eax
	out %eax, %dx
	iretq
gate_idle:
	cmp %ecx, (%rdx)
	jne 1f
	sti				/* takes effect after HLT began: no wake-up is lost */
	hlt
1:	iretq
gate_halt:
	cli
	hlt
	jmp gate_halt
gate_no_idt:
	lidt no_idt_pointer
	iretq
gate_outs8:
	rep outsb
	iretq
gate_ins8:
	rep insb
	iretq

intx:	mov intx_isr, %rax
	movzbl (%rax), %eax		/* reading the ISR register lowers the line */
	test %eax, %eax
	setz %al
	movzbl %al, %eax
	incl irq_counts + 4 * (VECTOR_INTX - VECTOR_IRQ_FIRST)(, %rax, 4)
	pop %rax
end_of_interrupt:
	addr32 movl $0, LAPIC_BASE + 0xb0
	iretq

/* Stack: vector, error code, rip, … Leave a note in the results area of vCPU 0 and exit. */
unexpected:
	mov $RESULTS_BASE, %rdi
	movl $3, 8(%rdi)		/* RUN_FAILED */
	pop %rax
	mov %eax, 20(%rdi)
	or $0xe0, %eax
	pop %rcx
	mov %rcx, 24(%rdi)
	pop %rcx
	mov %rcx, 32(%rdi)
	mov %cr2, %rcx
	mov %rcx, 40(%rdi)
	mov $PORT_EXIT, %edx
	out %al, %dx
	jmp gate_halt

	.section .rodata
	.balign 8
gate_table:
	.quad gate_in8, gate_in16, gate_in32, gate_out8, gate_out16, gate_out32
	.quad gate_idle, gate_halt, gate_no_idt, gate_outs8, gate_ins8
gdt_pointer:
	.word gdt_end - gdt - 1
	.quad GDT_BASE
idt_pointer:
	.word 256 * 16 - 1
	.quad IDT_BASE
no_idt_pointer:
	.word 0
	.quad 0

	.bss
	.balign 4096
kernel_stacks:
	.skip 4096 * CPUS_MAX
user_stacks:
	.skip 16384 * CPUS_MAX

	.section .note.GNU-stack, "", @progbits
