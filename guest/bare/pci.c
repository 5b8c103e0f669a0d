/* PCI configuration mechanism 1 (ports 0xcf8 and 0xcfc). */
#include "guest.h"

static uint16_t select(uint16_t bdf, unsigned offset)
{
	gate(GATE_OUT32, 0xcf8, 0x80000000u | (uint32_t)bdf << 8 | (offset & 0xfc));
	return 0xcfc + (offset & 3);
}

static unsigned service_of(unsigned width)
{
	return width == 1 ? 0 : width == 2 ? 1 : 2;
}

uint32_t pci_read(uint16_t bdf, unsigned offset, unsigned width)
{
	uint16_t port = select(bdf, offset);

	return gate(GATE_IN8 + service_of(width), port, 0);
}

void pci_write(uint16_t bdf, unsigned offset, unsigned width, uint32_t value)
{
	uint16_t port = select(bdf, offset);

	gate(GATE_OUT8 + service_of(width), port, value);
}

bool pci_bar_is_64(uint16_t bdf, unsigned bar)
{
	return (pci_read(bdf, 0x10 + 4 * bar, 4) & 7) == 4;
}

uint64_t pci_bar(uint16_t bdf, unsigned bar)
{
	uint64_t base = pci_read(bdf, 0x10 + 4 * bar, 4);

	if ((base & 7) == 4 && bar < 5)
		base |= (uint64_t)pci_read(bdf, 0x14 + 4 * bar, 4) << 32;
	return base & ~0xfull;
}

size_t pci_scan(struct pci_function *found, size_t most)
{
	size_t count = 0;

	for (unsigned device = 0; device < 32 && count < most; device++) {
		uint16_t bdf = device << 3;
		uint32_t id = pci_read(bdf, 0, 4);

		if (id == 0xffffffff)
			continue;
		found[count++] = (struct pci_function){
			.bdf = bdf,
			.id = id,
			.class_revision = pci_read(bdf, 8, 4),
			.header_type = pci_read(bdf, 0x0e, 1),
			.interrupt_line = pci_read(bdf, 0x3c, 1),
		};
	}
	return count;
}
