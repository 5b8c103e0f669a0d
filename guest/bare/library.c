/* Memory, ports, MMIO, time and text. */
#include "guest.h"

uint32_t tsc_khz = 2000000;

volatile uint32_t irq_counts[COUNTER_INTX_EMPTY - VECTOR_IRQ_FIRST + 1];
volatile uint64_t intx_isr;

void *memcpy(void *to, const void *from, size_t length)
{
	void *start = to;
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
	return start;
}

void *memset(void *to, int byte, size_t length)
{
	void *start = to;
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(byte) : "memory");
	return start;
}

void fill_words(uint64_t *words, size_t count, uint64_t seed, uint64_t step)
{
	for (size_t i = 0; i < count; i++, seed += step)
		words[i] = seed;
}

/* As zlib has it, so that the host can compare. */
uint32_t crc32(const uint8_t *bytes, size_t length)
{
	static uint32_t table[256];
	uint32_t crc = ~0u;

	if (!table[1])
		for (uint32_t byte = 255; byte; byte--) {
			uint32_t value = byte;
			for (int bit = 0; bit < 8; bit++)
				value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
			table[byte] = value;
		}
	while (length--)
		crc = crc >> 8 ^ table[(crc ^ *bytes++) & 0xff];
	return ~crc;
}

/* Explicit instructions: every access must be one of exactly this width. */
uint64_t mmio_read(uint64_t address, unsigned width)
{
	uint64_t value = 0;

	switch (width) {
	case 1: __asm__ volatile("movb (%1), %b0" : "+a"(value) : "r"(address) : "memory"); break;
	case 2: __asm__ volatile("movw (%1), %w0" : "+a"(value) : "r"(address) : "memory"); break;
	case 4: __asm__ volatile("movl (%1), %k0" : "+a"(value) : "r"(address) : "memory"); break;
	case 8: __asm__ volatile("movq (%1), %0" : "+a"(value) : "r"(address) : "memory"); break;
	default: return ~0ull;
	}
	return value;
}

void mmio_write(uint64_t address, unsigned width, uint64_t value)
{
	switch (width) {
	case 1: __asm__ volatile("movb %b0, (%1)" : : "a"(value), "r"(address) : "memory"); break;
	case 2: __asm__ volatile("movw %w0, (%1)" : : "a"(value), "r"(address) : "memory"); break;
	case 4: __asm__ volatile("movl %k0, (%1)" : : "a"(value), "r"(address) : "memory"); break;
	case 8: __asm__ volatile("movq %0, (%1)" : : "a"(value), "r"(address) : "memory"); break;
	}
}

uint64_t port_access(const struct op_access *access)
{
	unsigned service = access->width == 1 ? 0 : access->width == 2 ? 1 : 2;

	if (!access->write)
		return gate(GATE_IN8 + service, access->address, 0);
	gate(GATE_OUT8 + service, access->address, access->value);
	return access->value;
}

void print_bytes(uint16_t port, const uint8_t *bytes, size_t length)
{
	while (length--)
		out8(port, *bytes++);
}

void print(const char *text)
{
	while (*text)
		out8(0x3f8, *text++);
}

uint64_t deadline_after(uint32_t microseconds)
{
	return tsc() + (uint64_t)microseconds * tsc_khz / 1000;
}

void halt(void)
{
	for (;;)
		gate(GATE_HALT, 0, 0);
}

void leave(uint8_t status)
{
	out8(PORT_EXIT, status);
	halt();
}
