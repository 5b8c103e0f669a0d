/* Preprocessed before use: the addresses are those of layout.h. */
#include "layout.h"

ENTRY(pvh_entry)

PHDRS
{
	note PT_NOTE FLAGS(4);
	image PT_LOAD FLAGS(7);
	host PT_LOAD FLAGS(6);
}

SECTIONS
{
	. = IMAGE_BASE;
	.tables : { *(.tables) } :image
	.text : { *(.text .text.*) } :image
	.note.pvh : { KEEP(*(.note.pvh)) } :image :note
	.rodata : { *(.rodata .rodata.*) } :image
	.data : { *(.data .data.*) } :image
	.bss : { *(.bss .bss.*) *(COMMON) } :image
	ASSERT(. <= RESULTS_BASE, "the image runs into the results area")

	/* Claimed, so that a loader puts nothing else there. */
	. = RESULTS_BASE;
	.host (NOLOAD) : { . += MEMORY_END - RESULTS_BASE; } :host

	/DISCARD/ : { *(.comment) *(.eh_frame) *(.note.*) }
}
