/* The driver's side of a virtqueue: split (virtio 1.2 §2.7), or packed, with packed.c. */
#include "guest.h"

enum { DESC_NEXT = 1, DESC_INDIRECT = 4, NO_INTERRUPT = 1, NO_NOTIFY = 1 };

void queue_start(struct queue *queue)
{
	queue->posted = queue->notified = queue->seen = queue->added = 0;
	queue->wrap = queue->seen_wrap = true;
	queue->irq_base = *queue->irq_count;
	queue->free_head = 0;
	queue->free_count = queue->size;
	for (unsigned i = 0; i < queue->size; i++) {
		queue->next[i] = i + 1;
		queue->length[i] = 0;
	}
}

static void put(volatile struct descriptor *slot, const struct segment *segment, uint16_t flags,
		uint16_t next)
{
	slot->address = segment->address;
	slot->length = segment->length;
	slot->flags = flags | (segment->flags & SEGMENT_DEVICE_WRITES);
	slot->next = next;
}

static void put_indirect(struct queue *queue, const struct chain *chain,
			 const struct segment *segments)
{
	volatile struct descriptor *table = (volatile struct descriptor *)chain->indirect;
	struct segment whole = {.address = chain->indirect, .length = 16 * chain->segments};

	for (unsigned i = 0; i < chain->segments; i++) {
		bool last = i + 1 == chain->segments;

		put(&table[i], &segments[i], last ? 0 : DESC_NEXT, last ? 0 : i + 1);
	}
	put(&queue->descriptors[queue->free_head], &whole, DESC_INDIRECT, 0);
}

bool queue_add(struct queue *queue, const struct chain *chain, const struct segment *segments)
{
	unsigned count = chain->indirect ? 1 : chain->segments;
	uint16_t head = queue->free_head, slot = head;

	if (!count || count > queue->free_count)
		return false;
	if (queue->packed) {
		packed_add(queue, chain, segments, head);
		slot = queue->next[slot];
	} else if (chain->indirect) {
		put_indirect(queue, chain, segments);
		slot = queue->next[slot];
	} else {
		for (unsigned i = 0; i < count; i++, slot = queue->next[slot])
			put(&queue->descriptors[slot], &segments[i],
			    i + 1 == count ? 0 : DESC_NEXT, queue->next[slot]);
	}
	queue->free_head = slot;
	queue->free_count -= count;
	queue->length[head] = count;
	queue->tag[head] = chain->tag;
	if (!queue->packed)
		queue->available[2 + queue->posted++ % queue->size] = head;
	return true;
}

static bool notification_wanted(struct queue *queue)
{
	uint16_t event;

	if (queue->packed)
		return packed_notification_wanted(queue);
	if (!queue->event_idx)
		return !(queue->used[0] & NO_NOTIFY);
	event = queue->used[2 + 4 * queue->size];
	/* virtio 1.2 §2.7.10: did the index pass the event since the last decision? */
	return (uint16_t)(queue->posted - event - 1) < (uint16_t)(queue->posted - queue->notified);
}

unsigned queue_publish(struct queue *queue, unsigned notify)
{
	uint32_t next = queue->posted | queue->wrap << 15;
	bool send;

	compiler_fence();
	if (queue->packed)
		packed_show(queue);
	else
		queue->available[1] = next = queue->posted;
	full_fence(); /* the device's event index is read only after the new index is visible */
	send = notify == NOTIFY_ALWAYS || (notify == NOTIFY_IF_WANTED && notification_wanted(queue));
	queue->notified = queue->posted;
	queue->added = 0;
	if (send && queue->notification_data) /* virtio 1.2 §2.9 */
		mmio_write(queue->doorbell, 4, next << 16 | queue->doorbell_value);
	else if (send)
		mmio_write(queue->doorbell, 2, queue->doorbell_value);
	return send;
}

bool queue_pending(struct queue *queue)
{
	return queue->packed ? packed_pending(queue) : queue->used[1] != queue->seen;
}

bool queue_take(struct queue *queue, struct completion *completion)
{
	volatile uint32_t *element;
	uint16_t head;

	if (!queue_pending(queue))
		return false;
	compiler_fence();
	*completion = (struct completion){.tag = ~0u, .tsc = tsc()};
	if (queue->packed) {
		packed_take(queue, &completion->id, &completion->length);
	} else {
		element = (volatile uint32_t *)(queue->used + 2) + 2 * (queue->seen++ % queue->size);
		completion->id = element[0];
		completion->length = element[1];
	}
	if (completion->id >= queue->size || !queue->length[completion->id])
		return true;
	completion->tag = queue->tag[completion->id];
	head = completion->id;
	for (unsigned left = queue->packed ? 1 : queue->length[head]; left > 1; left--)
		head = queue->next[head];
	queue->next[head] = queue->free_head;
	queue->free_head = completion->id;
	queue->free_count += queue->length[completion->id];
	queue->length[completion->id] = 0;
	return true;
}

/* The next used element shall interrupt, or in poll mode none. */
void queue_ask(struct queue *queue, unsigned mode)
{
	if (queue->packed)
		packed_ask(queue, mode);
	else if (queue->event_idx)
		queue->available[2 + queue->size] = queue->seen + (mode == WAIT_POLL ? 0x8000 : 0);
	else
		queue->available[0] = mode == WAIT_POLL ? NO_INTERRUPT : 0;
	full_fence();
}

bool queue_wait(struct queue *queue, unsigned mode, uint64_t deadline)
{
	uint32_t count = *queue->irq_count;

	queue_ask(queue, mode);
	while (!queue_pending(queue)) {
		if (tsc() > deadline)
			return false;
		if (mode == WAIT_IDLE)
			gate(GATE_IDLE, (uint64_t)queue->irq_count, count);
		while (mode == WAIT_SPIN && *queue->irq_count == count && tsc() < deadline)
			relax();
		count = *queue->irq_count;
		relax();
	}
	return true;
}

/* Did an interrupt arrive since irq_base was taken, or does one until the deadline? */
bool queue_interrupted(struct queue *queue, unsigned mode, uint64_t deadline)
{
	while (*queue->irq_count == queue->irq_base) {
		if (tsc() > deadline)
			return false;
		if (mode == WAIT_IDLE)
			gate(GATE_IDLE, (uint64_t)queue->irq_count, queue->irq_base);
		relax();
	}
	return true;
}
