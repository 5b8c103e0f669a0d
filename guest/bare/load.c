/* Closed loops of block requests: for throughput, latency and counting exits. */
#include "guest.h"

#define DEPTH_MAX 128
#define SEGMENTS_MAX 126 /* with header and status what a queue of 128 can take */

/* The loop on one queue. */
struct loop {
	struct queue *queue;
	uint64_t first;
	uint64_t random;
	uint64_t offset;
	uint32_t tags;        /* requests of the loops before this one: where its memory begins */
	uint32_t posted;
	uint64_t posted_at[DEPTH_MAX];
};

struct load {
	const struct op_load *op;
	struct loop loops[QUEUES];
	uint64_t status;      /* address of device_status, 0 unless it is to be read */
	uint64_t last_start;
	uint64_t deadline;
	uint32_t in_flight;
};

static uint64_t next_sector(const struct op_load *op, struct loop *loop)
{
	uint64_t at = loop->offset;

	if (op->random) {
		loop->random ^= loop->random << 13; /* xorshift64 */
		loop->random ^= loop->random >> 7;
		loop->random ^= loop->random << 17;
		at = loop->random % (op->span / op->stride) * op->stride;
	} else {
		loop->offset += op->stride;
		if (loop->offset + op->sectors > op->span)
			loop->offset = 0;
	}
	return loop->first + at;
}

static bool post(struct load *load, struct loop *loop, uint32_t tag)
{
	const struct op_load *op = load->op;
	uint64_t place = loop->tags + tag, header = op->headers + 32 * place;
	uint32_t length = 512 * op->sectors, piece = length / op->segments;
	uint64_t buffer = op->buffers + place * length;
	struct chain chain = {.tag = tag, .segments = op->segments + 2};
	struct segment segments[SEGMENTS_MAX + 2];

	segments[0] = (struct segment){.address = header, .length = 16};
	for (unsigned i = 0; i < op->segments; i++)
		segments[1 + i] = (struct segment){
			.address = buffer + i * piece, .length = piece,
			.flags = op->type == 0 ? SEGMENT_DEVICE_WRITES : 0};
	segments[op->segments].length += length % op->segments;
	segments[1 + op->segments] = (struct segment){
		.address = header + 16, .length = 1, .flags = SEGMENT_DEVICE_WRITES};
	if (op->indirect)
		chain.indirect = op->indirect + 16 * chain.segments * place;
	*(volatile uint32_t *)header = op->type;
	*(volatile uint32_t *)(header + 4) = 0;
	*(volatile uint64_t *)(header + 8) = next_sector(op, loop);
	*(volatile uint8_t *)(header + 16) = 0xff;
	loop->posted++;
	load->in_flight++;
	loop->posted_at[tag] = tsc();
	return queue_add(loop->queue, &chain, segments);
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

static void count(struct latencies *latencies, uint64_t latency)
{
	latencies->sum += latency;
	if (latency < latencies->least)
		latencies->least = latency;
	if (latency > latencies->most)
		latencies->most = latency;
	latencies->counts[bucket_of(latency)]++;
}

static bool anything_used(const struct load *load)
{
	for (unsigned i = 0; i < load->op->queues; i++)
		if (queue_pending(load->loops[i].queue))
			return true;
	return false;
}

/* Until something is used; false if the deadline comes first. */
static bool wait(struct load *load, struct load_result *result)
{
	const struct op_load *op = load->op;

	if (op->wait != WAIT_POLL)
		return queue_wait(load->loops[0].queue, op->wait, load->deadline);
	while (!anything_used(load)) {
		uint64_t now = tsc();

		if (now > load->deadline)
			return false;
		if (load->status) {
			mmio_read(load->status, 1);
			count(&result->exits, tsc() - now);
		} else {
			relax();
		}
	}
	return true;
}

/* Take what is used, and put new requests in its place. */
static int turn_over(struct load *load, struct loop *loop, struct load_result *result)
{
	const struct op_load *op = load->op;
	struct completion done;
	uint32_t before = loop->posted;

	while (queue_take(loop->queue, &done)) {
		volatile uint8_t *status;

		if (done.tag >= op->depth)
			return ERROR_BAD_ARGUMENT;
		status = (volatile uint8_t *)(op->headers + 32 * (loop->tags + done.tag) + 16);
		result->errors += *status != 0;
		result->completed++;
		load->in_flight--;
		count(&result->requests, done.tsc - loop->posted_at[done.tag]);
		if (loop->posted < op->total && done.tsc <= load->last_start &&
		    !post(load, loop, done.tag))
			return ERROR_NO_DESCRIPTORS;
	}
	queue_ask(loop->queue, op->wait);
	if (loop->posted != before)
		result->notifications += queue_publish(loop->queue, op->notify);
	return ERROR_NONE;
}

static int begin(struct load *load, struct load_result *result)
{
	const struct op_load *op = load->op;

	for (unsigned i = 0; i < op->queues; i++) {
		struct loop *loop = &load->loops[i];

		while (loop->posted < op->depth && loop->posted < op->total)
			if (!post(load, loop, loop->posted))
				return ERROR_NO_DESCRIPTORS;
		queue_ask(loop->queue, op->wait);
		result->notifications += queue_publish(loop->queue, op->notify);
	}
	return ERROR_NONE;
}

static bool prepare(struct load *load)
{
	const struct op_load *op = load->op;

	if (op->depth > DEPTH_MAX || !op->stride || op->span < op->stride ||
	    !op->queues || op->queues > QUEUES || !op->segments || op->segments > SEGMENTS_MAX ||
	    (op->wait != WAIT_POLL && (op->queues > 1 || op->exits)))
		return false;
	for (unsigned i = 0; i < op->queues; i++) {
		struct loop *loop = &load->loops[i];

		loop->queue = queue_at(op->slot, op->queue + i);
		if (!loop->queue)
			return false;
		loop->first = op->first + i * op->span;
		loop->random = op->random + i;
		loop->tags = i * op->depth;
	}
	load->status = op->exits ? virtio_status_address(op->slot) : 0;
	load->last_start = op->duration_us ? deadline_after(op->duration_us) : ~0ull;
	load->deadline = deadline_after(op->timeout_us);
	if (!op->depth && load->last_start < load->deadline)
		load->deadline = load->last_start;
	return true;
}

static uint32_t interrupts(const struct load *load)
{
	/* Queues that share a vector share the count; a load that asks for any has one queue. */
	return *load->loops[0].queue->irq_count;
}

int load_run(const struct op_load *op, struct load_result *result)
{
	struct load load = {.op = op};
	uint64_t started = tsc();
	int error;

	if (!prepare(&load))
		return ERROR_BAD_ARGUMENT;
	result->interrupts = -interrupts(&load);
	result->requests.least = result->exits.least = ~0ull;
	error = begin(&load, result);
	while (!error && (load.in_flight || !op->depth) && wait(&load, result))
		for (unsigned i = 0; i < op->queues && !error; i++)
			error = turn_over(&load, &load.loops[i], result);
	result->interrupts += interrupts(&load);
	result->ticks = tsc() - started;
	return error || !load.in_flight ? error : ERROR_TIMEOUT;
}
