/* Runs a script (script.h): one record per operation. */
#include "guest.h"

/* What an operation leaves: its result structure and, right behind it, a payload. */
struct outcome {
	uint8_t *at;
	size_t room;
	size_t used;
};

typedef int (*handler)(const void *op, const struct op_header *header, struct outcome *outcome);

#define PAYLOAD(op) ((const uint8_t *)((op) + 1))

static void *result(struct outcome *outcome, size_t size)
{
	memset(outcome->at, 0, size);
	outcome->used = size;
	return outcome->at;
}

#define RESULT(type) struct type *out = result(outcome, sizeof *out)
#define HANDLER(name, type)                                                                     \
	static int do_##name(const struct type *op, const struct op_header *header,             \
			     struct outcome *outcome)
#define UNUSED_HEADER (void)header
#define UNUSED_ALL (void)header, (void)outcome

HANDLER(exit, op_exit)
{
	UNUSED_ALL;
	full_fence();
	leave(op->status);
}

HANDLER(print, op_print)
{
	(void)outcome;
	if (header->flags & 1)
		__asm__ volatile("int3" : : "a"(GATE_OUTS8), "d"(op->port), "c"(op->length),
				 "S"(PAYLOAD(op)) : "memory");
	else
		print_bytes(op->port, PAYLOAD(op), op->length);
	return ERROR_NONE;
}

HANDLER(write_memory, op_memory)
{
	UNUSED_ALL;
	memcpy((void *)op->address, PAYLOAD(op), op->length);
	return ERROR_NONE;
}

HANDLER(read_memory, op_memory)
{
	UNUSED_HEADER;
	if (op->length > outcome->room)
		return ERROR_NO_SPACE;
	memcpy(outcome->at, (void *)op->address, op->length);
	outcome->used = op->length;
	return ERROR_NONE;
}

HANDLER(fill_memory, op_fill)
{
	UNUSED_ALL;
	fill_words((uint64_t *)op->address, op->length / 8, op->seed, op->step);
	return ERROR_NONE;
}

HANDLER(hash_memory, op_memory)
{
	RESULT(value_result);
	UNUSED_HEADER;
	out->value = crc32((const uint8_t *)op->address, op->length);
	return ERROR_NONE;
}

HANDLER(port, op_access)
{
	RESULT(value_result);
	UNUSED_HEADER;
	for (uint32_t i = 0; i < op->count || !i; i++)
		out->value = port_access(op);
	return ERROR_NONE;
}

HANDLER(mmio, op_access)
{
	RESULT(value_result);
	UNUSED_HEADER;
	for (uint32_t i = 0; i < op->count || !i; i++)
		if (op->write)
			mmio_write(op->address, op->width, op->value);
		else
			out->value = mmio_read(op->address, op->width);
	return ERROR_NONE;
}

HANDLER(pci_config, op_access)
{
	RESULT(value_result);
	uint16_t bdf = op->address >> 16, offset = op->address;

	UNUSED_HEADER;
	for (uint32_t i = 0; i < op->count || !i; i++)
		if (op->write)
			pci_write(bdf, offset, op->width, op->value);
		else
			out->value = pci_read(bdf, offset, op->width);
	return ERROR_NONE;
}

HANDLER(pci_scan, op_header)
{
	UNUSED_HEADER;
	(void)op;
	if (outcome->room < 32 * sizeof(struct pci_function))
		return ERROR_NO_SPACE;
	outcome->used = sizeof(struct pci_function) *
		pci_scan((struct pci_function *)outcome->at, 32);
	return ERROR_NONE;
}

HANDLER(open, op_open)
{
	RESULT(open_result);
	UNUSED_HEADER;
	return virtio_open(op, out);
}

HANDLER(register, op_register)
{
	RESULT(value_result);
	UNUSED_HEADER;
	return virtio_register(op, &out->value);
}

HANDLER(initialise, op_initialise)
{
	RESULT(initialise_result);
	return virtio_initialise(op, header->flags, out);
}

HANDLER(queue, op_queue)
{
	RESULT(queue_result);
	UNUSED_HEADER;
	return virtio_queue(op, out);
}

HANDLER(ready, op_slot)
{
	RESULT(value_result);
	UNUSED_HEADER;
	return virtio_ready(op->slot, &out->value);
}

HANDLER(reset, op_slot)
{
	RESULT(value_result);
	UNUSED_HEADER;
	return virtio_reset(op->slot, &out->value);
}

HANDLER(msix, op_msix)
{
	RESULT(value_result);
	UNUSED_HEADER;
	return virtio_msix(op, &out->value);
}

HANDLER(intx, op_intx)
{
	UNUSED_ALL;
	return virtio_intx(op);
}

HANDLER(post, op_post)
{
	RESULT(post_result);
	struct queue *queue = queue_at(op->slot, op->queue);
	const uint8_t *at = PAYLOAD(op);
	int error = ERROR_NONE;

	UNUSED_HEADER;
	if (!queue)
		return ERROR_NO_DEVICE;
	for (; out->posted < op->chains; out->posted++) {
		const struct chain *chain = (const struct chain *)at;
		const struct segment *segments = (const struct segment *)PAYLOAD(chain);

		if (!queue_add(queue, chain, segments)) {
			error = ERROR_NO_DESCRIPTORS;
			break;
		}
		at = (const uint8_t *)(segments + chain->segments);
	}
	queue_ask(queue, op->wait);
	queue->irq_base = *queue->irq_count;
	out->notifications = queue_publish(queue, op->notify);
	return error;
}

HANDLER(notify, op_notify)
{
	struct queue *queue = queue_at(op->slot, op->queue);

	UNUSED_ALL;
	if (!queue)
		return ERROR_NO_DEVICE;
	mmio_write(queue->doorbell, 2, op->value);
	return ERROR_NONE;
}

HANDLER(wait, op_wait)
{
	RESULT(wait_result);
	struct queue *queue = queue_at(op->slot, op->queue);
	struct completion *completion = (struct completion *)PAYLOAD(out);
	uint64_t deadline = deadline_after(op->timeout_us);
	bool fine = true;

	if (!queue)
		return ERROR_NO_DEVICE;
	if (sizeof *out + (uint64_t)op->count * sizeof *completion > outcome->room)
		return ERROR_NO_SPACE;
	while (fine && out->completions < op->count) {
		fine = queue_wait(queue, op->mode, deadline);
		while (out->completions < op->count && queue_take(queue, completion)) {
			out->completions++;
			completion++;
		}
	}
	if (fine && header->flags & NEEDS_INTERRUPT)
		fine = queue_interrupted(queue, op->mode, deadline);
	out->interrupts = *queue->irq_count - queue->irq_base;
	outcome->used = (uint8_t *)completion - outcome->at;
	return fine ? ERROR_NONE : ERROR_TIMEOUT;
}

HANDLER(relocate, op_relocate)
{
	RESULT(value_result);
	UNUSED_HEADER;
	return virtio_relocate(op, &out->value);
}

HANDLER(sleep, op_sleep)
{
	uint64_t deadline = deadline_after(op->microseconds);

	UNUSED_ALL;
	while (tsc() < deadline)
		relax();
	return ERROR_NONE;
}

HANDLER(counters, op_header)
{
	UNUSED_HEADER;
	(void)op;
	outcome->used = sizeof irq_counts;
	for (size_t i = 0; i < sizeof irq_counts / sizeof *irq_counts; i++)
		((uint32_t *)outcome->at)[i] = irq_counts[i];
	return ERROR_NONE;
}

HANDLER(load, op_load)
{
	RESULT(load_result);
	struct load_result counted = {0};
	int error = load_run(op, &counted);

	UNUSED_HEADER;
	*out = counted;
	return error;
}

HANDLER(spawn, op_spawn)
{
	UNUSED_ALL;
	return smp_spawn(op, PAYLOAD(op));
}

HANDLER(join, op_join)
{
	RESULT(value_result);
	UNUSED_HEADER;
	return smp_join(op, &out->value);
}

HANDLER(ping_pong, op_ping_pong)
{
	RESULT(ping_pong_result);
	UNUSED_HEADER;
	return smp_ping_pong(op, out);
}

static const handler handlers[] = {
#define ENTRY(code, name) [code] = (handler)do_##name
	ENTRY(OP_EXIT, exit), ENTRY(OP_PRINT, print),
	ENTRY(OP_WRITE_MEMORY, write_memory), ENTRY(OP_READ_MEMORY, read_memory),
	ENTRY(OP_FILL_MEMORY, fill_memory), ENTRY(OP_HASH_MEMORY, hash_memory),
	ENTRY(OP_PORT, port), ENTRY(OP_MMIO, mmio), ENTRY(OP_PCI_CONFIG, pci_config),
	ENTRY(OP_PCI_SCAN, pci_scan), ENTRY(OP_OPEN, open), ENTRY(OP_REGISTER, register),
	ENTRY(OP_INITIALISE, initialise), ENTRY(OP_QUEUE, queue), ENTRY(OP_READY, ready),
	ENTRY(OP_MSIX, msix), ENTRY(OP_INTX, intx), ENTRY(OP_POST, post),
	ENTRY(OP_NOTIFY, notify), ENTRY(OP_WAIT, wait), ENTRY(OP_RESET, reset),
	ENTRY(OP_RELOCATE, relocate), ENTRY(OP_SLEEP, sleep), ENTRY(OP_COUNTERS, counters),
	ENTRY(OP_LOAD, load), ENTRY(OP_SPAWN, spawn), ENTRY(OP_JOIN, join),
	ENTRY(OP_PING_PONG, ping_pong),
#undef ENTRY
};

#define RESULT_ROOM_MIN 8192 /* for every result of fixed size */

static bool run_one(struct results_header *results, const struct op_header *op, uint32_t index)
{
	uint8_t *end = (uint8_t *)results + RESULTS_SIZE;
	struct record_header *record = (void *)((uint8_t *)results + results->used);
	struct outcome outcome = {.at = (uint8_t *)(record + 1)};
	uint32_t size;

	if (end - outcome.at < RESULT_ROOM_MIN)
		return false;
	outcome.room = end - outcome.at - RESULT_ROOM_MIN;
	*record = (struct record_header){.code = op->code, .index = index, .tsc_begin = tsc()};
	if (op->code < sizeof handlers / sizeof *handlers && handlers[op->code])
		record->error = handlers[op->code](op + 1, op, &outcome);
	else
		record->error = ERROR_UNKNOWN_OP;
	record->tsc_end = tsc();
	record->payload = outcome.used;
	size = (sizeof *record + outcome.used + 7) & ~7u;
	record->size = size;
	results->used += size;
	results->records++;
	return record->error != ERROR_NO_SPACE;
}

void interpret(uint32_t cpu, const uint8_t *ops, size_t size)
{
	struct results_header *results = results_of(cpu);
	const uint8_t *end = ops + size;
	uint32_t index = 0;
	bool fine = true;

	*results = (struct results_header){
		.magic = RESULTS_MAGIC, .state = RUN_ACTIVE, .used = sizeof *results};
	while (fine && ops + sizeof(struct op_header) <= end) {
		const struct op_header *op = (const struct op_header *)ops;

		fine = op->size >= sizeof *op && run_one(results, op, index++);
		ops += op->size;
	}
	full_fence();
	results->state = fine ? RUN_FINISHED : RUN_FAILED;
}
