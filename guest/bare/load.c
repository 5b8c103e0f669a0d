/* A closed loop of block requests: for throughput, latency and counting exits. */
#include "guest.h"

#define DEPTH_MAX 128

struct load {
	const struct op_load *op;
	struct queue *queue;
	uint64_t random;
	uint64_t offset;
	uint64_t posted_at[DEPTH_MAX];
};

static uint64_t next_sector(struct load *load)
{
	const struct op_load *op = load->op;
	uint64_t at = load->offset;

	if (op->random) {
		load->random ^= load->random << 13; /* xorshift64 */
		load->random ^= load->random >> 7;
		load->random ^= load->random << 17;
		at = load->random % (op->span / op->stride) * op->stride;
	} else {
		load->offset += op->stride;
		if (load->offset + op->sectors > op->span)
			load->offset = 0;
	}
	return op->first + at;
}

static bool post(struct load *load, uint32_t tag)
{
	const struct op_load *op = load->op;
	uint64_t header = op->headers + 32 * tag;
	uint32_t length = 512 * op->sectors;
	struct chain chain = {.tag = tag, .segments = 3};
	struct segment segments[3] = {
		{.address = header, .length = 16},
		{.address = op->buffers + (uint64_t)tag * length, .length = length,
		 .flags = op->type == 0 ? SEGMENT_DEVICE_WRITES : 0},
		{.address = header + 16, .length = 1, .flags = SEGMENT_DEVICE_WRITES},
	};

	if (op->indirect)
		chain.indirect = op->indirect + 48 * tag;
	*(volatile uint32_t *)header = op->type;
	*(volatile uint32_t *)(header + 4) = 0;
	*(volatile uint64_t *)(header + 8) = next_sector(load);
	*(volatile uint8_t *)(header + 16) = 0xff;
	load->posted_at[tag] = tsc();
	return queue_add(load->queue, &chain, segments);
}

static unsigned bucket_of(uint64_t latency)
{
	unsigned octave, bucket;

	if (latency >> LATENCY_FIRST == 0)
		return 0;
	octave = 63 - __builtin_clzll(latency);
	bucket = (octave - LATENCY_FIRST) * LATENCY_STEPS +
		 (latency * LATENCY_STEPS >> octave) % LATENCY_STEPS;
	return bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1;
}

static void account(struct load *load, struct load_result *result, struct completion *done)
{
	uint64_t latency = done->tsc - load->posted_at[done->tag];

	result->completed++;
	result->errors += *(volatile uint8_t *)(load->op->headers + 32 * done->tag + 16) != 0;
	result->latency_sum += latency;
	if (latency < result->latency_min)
		result->latency_min = latency;
	if (latency > result->latency_max)
		result->latency_max = latency;
	result->latency[bucket_of(latency)]++;
}

int load_run(const struct op_load *op, struct load_result *result)
{
	struct load load = {.op = op, .queue = queue_at(op->slot, op->queue), .random = op->random};
	uint64_t deadline = deadline_after(op->timeout_us), begin = tsc();
	struct completion done;
	uint32_t posted = 0, total = op->total, interrupts;
	uint64_t last_start = op->duration_us ? deadline_after(op->duration_us) : ~0ull;

	if (!load.queue || !op->depth || op->depth > DEPTH_MAX || !op->stride ||
	    op->span < op->stride)
		return ERROR_BAD_ARGUMENT;
	interrupts = *load.queue->irq_count;
	result->latency_min = ~0ull;
	while (posted < op->depth && posted < total)
		if (!post(&load, posted++))
			return ERROR_NO_DESCRIPTORS;
	queue_ask(load.queue, op->wait);
	result->notifications = queue_publish(load.queue, op->notify);
	while (result->completed < total) {
		unsigned again = 0;

		if (!queue_wait(load.queue, op->wait, 1, deadline))
			break;
		while (queue_take(load.queue, &done)) {
			if (done.tag >= op->depth)
				return ERROR_BAD_ARGUMENT;
			account(&load, result, &done);
			if (done.tsc > last_start)
				total = posted;
			if (posted < total && ++posted && ++again && !post(&load, done.tag))
				return ERROR_NO_DESCRIPTORS;
		}
		queue_ask(load.queue, op->wait);
		if (again)
			result->notifications += queue_publish(load.queue, op->notify);
	}
	result->interrupts = *load.queue->irq_count - interrupts;
	result->ticks = tsc() - begin;
	return result->completed == total ? ERROR_NONE : ERROR_TIMEOUT;
}
