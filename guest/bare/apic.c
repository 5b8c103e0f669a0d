/* Local APIC and I/O APIC, by MMIO from CPL3. */
#include "guest.h"

enum { LAPIC_SPURIOUS = 0xf0, LAPIC_ICR_LOW = 0x300, LAPIC_ICR_HIGH = 0x310, LAPIC_LINT0 = 0x350 };
enum { ICR_INIT_ASSERT = 0x4500, ICR_STARTUP = 0x4600, ICR_PENDING = 0x1000 };

static uint32_t lapic_read(unsigned offset)
{
	return mmio_read(LAPIC_BASE + offset, 4);
}

static void lapic_write(unsigned offset, uint32_t value)
{
	mmio_write(LAPIC_BASE + offset, 4, value);
}

void apic_start(void)
{
	lapic_write(LAPIC_LINT0, 0x10000);
	lapic_write(LAPIC_SPURIOUS, 0x100 | VECTOR_SPURIOUS);
}

void ioapic_route(unsigned gsi, uint8_t vector)
{
	mmio_write(IOAPIC_BASE, 4, 0x10 + 2 * gsi + 1);
	mmio_write(IOAPIC_BASE + 0x10, 4, 0); /* APIC ID 0 */
	mmio_write(IOAPIC_BASE, 4, 0x10 + 2 * gsi);
	mmio_write(IOAPIC_BASE + 0x10, 4, 0xa000 | vector); /* level, active low */
}

static void send(uint8_t apic_id, uint32_t command)
{
	lapic_write(LAPIC_ICR_HIGH, (uint32_t)apic_id << 24);
	lapic_write(LAPIC_ICR_LOW, command);
	while (lapic_read(LAPIC_ICR_LOW) & ICR_PENDING)
		relax();
}

static void pause_for(uint32_t microseconds)
{
	uint64_t deadline = deadline_after(microseconds);

	while (tsc() < deadline)
		relax();
}

/* INIT, SIPI, SIPI. Virtual CPUs need none of the long delays of real ones. */
void apic_spawn(uint8_t apic_id)
{
	send(apic_id, ICR_INIT_ASSERT);
	pause_for(100);
	send(apic_id, ICR_STARTUP | TRAMPOLINE_BASE >> 12);
	pause_for(200);
	send(apic_id, ICR_STARTUP | TRAMPOLINE_BASE >> 12);
}
