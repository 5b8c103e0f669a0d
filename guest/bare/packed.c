/* What is different in a packed virtqueue (virtio 1.2 §2.8); queue.c calls it. */
#include "guest.h"

enum { DESC_NEXT = 1, DESC_INDIRECT = 4, DESC_AVAIL = 1 << 7, DESC_USED = 1 << 15 };
enum { EVENT_ENABLE, EVENT_DISABLE, EVENT_DESC };

struct packed_descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t id;
	uint16_t flags;
};

static volatile struct packed_descriptor *at(struct queue *queue, unsigned position)
{
	return (volatile struct packed_descriptor *)queue->descriptors + position;
}

/* The first one since the last publish keeps its flags until then. */
static void append(struct queue *queue, const struct segment *segment, uint16_t id, uint16_t flags)
{
	volatile struct packed_descriptor *slot = at(queue, queue->posted);

	flags |= (segment->flags & SEGMENT_DEVICE_WRITES) | (queue->wrap ? DESC_AVAIL : DESC_USED);
	slot->address = segment->address;
	slot->length = segment->length;
	slot->id = id;
	if (queue->added++) {
		slot->flags = flags;
	} else {
		queue->held = &slot->flags;
		queue->held_flags = flags;
	}
	if (++queue->posted == queue->size) {
		queue->posted = 0;
		queue->wrap = !queue->wrap;
	}
}

void packed_add(struct queue *queue, const struct chain *chain, const struct segment *segments,
		uint16_t id)
{
	volatile struct packed_descriptor *table = (void *)chain->indirect;
	struct segment whole = {.address = chain->indirect, .length = 16 * chain->segments};

	for (unsigned i = 0; i < chain->segments; i++)
		if (table)
			table[i] = (struct packed_descriptor){
				.address = segments[i].address, .length = segments[i].length,
				.flags = segments[i].flags & SEGMENT_DEVICE_WRITES};
		else
			append(queue, &segments[i], id, i + 1 < chain->segments ? DESC_NEXT : 0);
	if (table)
		append(queue, &whole, id, DESC_INDIRECT);
}

void packed_show(struct queue *queue)
{
	if (queue->added)
		*queue->held = queue->held_flags;
}

/* Did the descriptors added pass the one that the device waits for (§2.8.10)? */
bool packed_notification_wanted(struct queue *queue)
{
	uint32_t wanted = *(volatile uint32_t *)queue->used;
	uint16_t event = wanted & 0x7fff;

	if (wanted >> 16 != EVENT_DESC)
		return wanted >> 16 != EVENT_DISABLE;
	if ((wanted >> 15 & 1) != queue->wrap)
		event -= queue->size;
	return (uint16_t)(queue->posted - event - 1) < queue->added;
}

bool packed_pending(struct queue *queue)
{
	uint16_t flags = at(queue, queue->seen)->flags & (DESC_AVAIL | DESC_USED);

	return flags == (queue->seen_wrap ? DESC_AVAIL | DESC_USED : 0);
}

/* The next used descriptor; the driver goes on after as many as the buffer had. */
void packed_take(struct queue *queue, uint32_t *id, uint32_t *length)
{
	volatile struct packed_descriptor *slot = at(queue, queue->seen);

	*id = slot->id;
	*length = slot->length;
	queue->seen += *id < queue->size && queue->length[*id] ? queue->length[*id] : 1;
	if (queue->seen >= queue->size) {
		queue->seen -= queue->size;
		queue->seen_wrap = !queue->seen_wrap;
	}
}

void packed_ask(struct queue *queue, unsigned mode)
{
	uint32_t wanted = EVENT_ENABLE << 16;

	if (mode == WAIT_POLL)
		wanted = EVENT_DISABLE << 16;
	else if (queue->event_idx)
		wanted = EVENT_DESC << 16 | queue->seen_wrap << 15 | queue->seen;
	*(volatile uint32_t *)queue->available = wanted;
}
