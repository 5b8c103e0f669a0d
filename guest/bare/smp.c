/* Further vCPUs: started through the local APIC, each runs a script of its own. */
#include "guest.h"

struct work {
	const uint8_t *ops;
	size_t size;
	volatile bool arrived;
};

volatile uint32_t spawned_cpu;
static struct work work[CPUS_MAX];

int smp_spawn(const struct op_spawn *op, const uint8_t *ops)
{
	uint64_t deadline;
	struct work *mine;

	if (op->apic_id < 1 || op->apic_id >= CPUS_MAX)
		return ERROR_BAD_ARGUMENT;
	mine = &work[op->apic_id];
	*mine = (struct work){.ops = ops, .size = op->length};
	memcpy((void *)TRAMPOLINE_BASE, trampoline, trampoline_end - trampoline);
	spawned_cpu = op->apic_id;
	full_fence();
	apic_spawn(op->apic_id);
	deadline = deadline_after(op->timeout_us);
	while (!mine->arrived)
		if (tsc() > deadline)
			return ERROR_TIMEOUT;
		else
			relax();
	return ERROR_NONE;
}

void smp_other(uint32_t cpu)
{
	work[cpu].arrived = true;
	mmio_write(LAPIC_BASE + 0xf0, 4, 0x100 | VECTOR_SPURIOUS);
	interpret(cpu, work[cpu].ops, work[cpu].size);
	halt();
}

int smp_join(const struct op_join *op, uint64_t *state)
{
	volatile struct results_header *results;
	uint64_t deadline = deadline_after(op->timeout_us);

	if (op->apic_id < 1 || op->apic_id >= CPUS_MAX)
		return ERROR_BAD_ARGUMENT;
	results = results_of(op->apic_id);
	while ((*state = results->state) != RUN_FINISHED)
		if (tsc() > deadline)
			return ERROR_TIMEOUT;
		else
			relax();
	return ERROR_NONE;
}

/* The word counts handovers: even, it is 0's turn, odd, 1's. */
int smp_ping_pong(const struct op_ping_pong *op, struct ping_pong_result *result)
{
	volatile uint64_t *word = (volatile uint64_t *)op->address;
	uint64_t deadline = deadline_after(op->timeout_us), begin = tsc(), now;

	result->fastest = ~0ull;
	for (; result->rounds < op->rounds; result->rounds++, begin = now) {
		while (*word != 2 * result->rounds + op->turn)
			if (tsc() > deadline)
				return ERROR_TIMEOUT;
			else
				relax();
		*word = *word + 1;
		now = tsc();
		if (now - begin < result->fastest)
			result->fastest = now - begin;
	}
	return ERROR_NONE;
}
