/* virtio over PCI, modern (virtio 1.2 §4.1), from the driver's side. */
#include "guest.h"

enum { CAP_VENDOR = 0x09, CAP_MSIX = 0x11 };
enum { COMMAND_MEMORY_AND_MASTER = 6, COMMAND_INTX_DISABLE = 0x400 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

/* virtio 1.2 §4.1.4.3 */
enum {
	DEVICE_FEATURE_SELECT = 0, DEVICE_FEATURE = 4, DRIVER_FEATURE_SELECT = 8,
	DRIVER_FEATURE = 12, NUM_QUEUES = 18, DEVICE_STATUS = 20, CONFIG_GENERATION = 21,
	QUEUE_SELECT = 22, QUEUE_SIZE = 24, QUEUE_VECTOR = 26, QUEUE_ENABLE = 28,
	QUEUE_NOTIFY_OFFSET = 30, QUEUE_DESCRIPTORS = 32, QUEUE_DRIVER = 40, QUEUE_DEVICE = 48,
};

#define EVENT_IDX_BIT 29
#define RING_PACKED_BIT 34
#define NOTIFICATION_DATA_BIT 38
#define RESET_TIMEOUT_US 1000000

static struct device devices[SLOTS];

struct device *device_at(uint32_t slot)
{
	return slot < SLOTS && devices[slot].open ? &devices[slot] : NULL;
}

struct queue *queue_at(uint32_t slot, uint32_t queue)
{
	struct device *device = device_at(slot);

	if (!device || queue >= QUEUES || !device->queues[queue].size)
		return NULL;
	return &device->queues[queue];
}

static uint64_t common_read(struct device *device, unsigned offset, unsigned width)
{
	return mmio_read(device->at.region[REGION_COMMON] + offset, width);
}

static void common_write(struct device *device, unsigned offset, unsigned width, uint64_t value)
{
	mmio_write(device->at.region[REGION_COMMON] + offset, width, value);
}

static void set_region(struct open_result *at, unsigned region, unsigned bar, uint32_t offset,
		       uint32_t length)
{
	at->bar[region] = bar;
	at->region[region] = pci_bar(at->bdf, bar) + offset;
	at->length[region] = length;
}

/* The first capability of each kind counts (virtio 1.2 §4.1.4). */
static void add_capability(struct open_result *at, uint8_t cap)
{
	uint8_t kind = pci_read(at->bdf, cap, 1);

	if (kind == CAP_MSIX) {
		uint32_t table = pci_read(at->bdf, cap + 4, 4);
		uint16_t control = pci_read(at->bdf, cap + 2, 2);

		at->msix = cap;
		set_region(at, REGION_MSIX, table & 7, table & ~7u, 16 * ((control & 0x7ff) + 1));
	} else if (kind == CAP_VENDOR) {
		uint8_t type = pci_read(at->bdf, cap + 3, 1);
		uint8_t bar = pci_read(at->bdf, cap + 4, 1);

		if (type == 5 && !at->pci_cfg)
			at->pci_cfg = cap;
		if (type < 1 || type > 4 || bar > 5 || at->region[type - 1])
			return;
		set_region(at, type - 1, bar, pci_read(at->bdf, cap + 8, 4),
			   pci_read(at->bdf, cap + 12, 4));
		if (type - 1 == REGION_NOTIFY)
			at->notify_multiplier = pci_read(at->bdf, cap + 16, 4);
	}
}

static int find(const struct op_open *op, uint16_t *bdf)
{
	struct pci_function found[32];
	size_t count = pci_scan(found, 32), nth = 0;

	for (size_t i = 0; i < count; i++)
		if (found[i].id == (0x1af4 | (0x1040 + op->device_id) << 16) && nth++ == op->nth) {
			*bdf = found[i].bdf;
			return ERROR_NONE;
		}
	return ERROR_NO_DEVICE;
}

int virtio_open(const struct op_open *op, struct open_result *result)
{
	struct open_result at = {0};
	uint16_t command;
	uint8_t cap;

	if (op->slot >= SLOTS)
		return ERROR_BAD_ARGUMENT;
	if (find(op, &at.bdf))
		return ERROR_NO_DEVICE;
	at.interrupt_line = pci_read(at.bdf, 0x3c, 1);
	at.interrupt_pin = pci_read(at.bdf, 0x3d, 1);
	command = pci_read(at.bdf, 4, 2);
	pci_write(at.bdf, 4, 2, command | COMMAND_MEMORY_AND_MASTER);
	cap = pci_read(at.bdf, 0x34, 1);
	for (int left = 48; cap >= 0x40 && left; left--) {
		add_capability(&at, cap & 0xfc);
		cap = pci_read(at.bdf, (cap & 0xfc) + 1, 1);
	}
	devices[op->slot] = (struct device){.at = at, .open = true};
	*result = at;
	if (!at.region[REGION_COMMON] || !at.region[REGION_NOTIFY] || !at.region[REGION_ISR])
		return ERROR_NO_CAPABILITY;
	return ERROR_NONE;
}

int virtio_reset(uint32_t slot, uint64_t *status)
{
	struct device *device = device_at(slot);
	uint64_t deadline = deadline_after(RESET_TIMEOUT_US);

	if (!device)
		return ERROR_NO_DEVICE;
	for (unsigned i = 0; i < QUEUES; i++)
		device->queues[i].size = 0;
	common_write(device, DEVICE_STATUS, 1, 0);
	while ((*status = common_read(device, DEVICE_STATUS, 1)))
		if (tsc() > deadline)
			return ERROR_TIMEOUT;
	return ERROR_NONE;
}

uint64_t virtio_status_address(uint32_t slot)
{
	return device_at(slot)->at.region[REGION_COMMON] + DEVICE_STATUS;
}

static uint64_t offered_features(struct device *device)
{
	uint64_t low;

	common_write(device, DEVICE_FEATURE_SELECT, 4, 0);
	low = common_read(device, DEVICE_FEATURE, 4);
	common_write(device, DEVICE_FEATURE_SELECT, 4, 1);
	return common_read(device, DEVICE_FEATURE, 4) << 32 | low;
}

int virtio_initialise(const struct op_initialise *op, uint16_t flags,
		      struct initialise_result *result)
{
	struct device *device = device_at(op->slot);
	uint64_t status;
	int error = virtio_reset(op->slot, &status);

	if (error)
		return error;
	common_write(device, DEVICE_STATUS, 1, ACKNOWLEDGE);
	common_write(device, DEVICE_STATUS, 1, ACKNOWLEDGE | DRIVER);
	result->offered = offered_features(device);
	result->accepted = flags & 1 ? op->features : op->features & result->offered;
	device->features = result->accepted;
	common_write(device, DRIVER_FEATURE_SELECT, 4, 0);
	common_write(device, DRIVER_FEATURE, 4, (uint32_t)result->accepted);
	common_write(device, DRIVER_FEATURE_SELECT, 4, 1);
	common_write(device, DRIVER_FEATURE, 4, result->accepted >> 32);
	common_write(device, DEVICE_STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	result->status = common_read(device, DEVICE_STATUS, 1);
	result->queues = common_read(device, NUM_QUEUES, 2);
	result->generation = common_read(device, CONFIG_GENERATION, 1);
	return result->status & FEATURES_OK ? ERROR_NONE : ERROR_REFUSED;
}

int virtio_ready(uint32_t slot, uint64_t *status)
{
	struct device *device = device_at(slot);

	if (!device)
		return ERROR_NO_DEVICE;
	common_write(device, DEVICE_STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	*status = common_read(device, DEVICE_STATUS, 1);
	return ERROR_NONE;
}

static volatile uint32_t *counter_of(struct device *device, uint16_t entry)
{
	unsigned index = device->intx ? VECTOR_INTX : device->first_vector + entry;

	if (index < VECTOR_IRQ_FIRST || index > VECTOR_INTX)
		index = VECTOR_IRQ_FIRST;
	return &irq_counts[index - VECTOR_IRQ_FIRST];
}

int virtio_queue(const struct op_queue *op, struct queue_result *result)
{
	struct device *device = device_at(op->slot);
	struct queue *queue;

	if (!device || op->queue >= QUEUES)
		return ERROR_BAD_ARGUMENT;
	queue = &device->queues[op->queue];
	queue->size = 0;
	common_write(device, QUEUE_SELECT, 2, op->queue);
	result->size_max = common_read(device, QUEUE_SIZE, 2);
	if (op->size || result->size_max > QUEUE_SIZE_MAX)
		common_write(device, QUEUE_SIZE, 2, op->size ? op->size : QUEUE_SIZE_MAX);
	result->size = common_read(device, QUEUE_SIZE, 2);
	if (!result->size || result->size > QUEUE_SIZE_MAX)
		return ERROR_BAD_ARGUMENT;
	common_write(device, QUEUE_VECTOR, 2, op->vector);
	result->vector = common_read(device, QUEUE_VECTOR, 2);
	for (unsigned half = 0; half < 2; half++) {
		common_write(device, QUEUE_DESCRIPTORS + 4 * half, 4, op->descriptors >> 32 * half);
		common_write(device, QUEUE_DRIVER + 4 * half, 4, op->available >> 32 * half);
		common_write(device, QUEUE_DEVICE + 4 * half, 4, op->used >> 32 * half);
	}
	result->notify_offset = common_read(device, QUEUE_NOTIFY_OFFSET, 2);
	result->notify_address = device->at.region[REGION_NOTIFY] +
		(uint64_t)result->notify_offset * device->at.notify_multiplier;
	common_write(device, QUEUE_ENABLE, 2, 1);

	queue->descriptors = (volatile struct descriptor *)op->descriptors;
	queue->available = (volatile uint16_t *)op->available;
	queue->used = (volatile uint16_t *)op->used;
	queue->doorbell = result->notify_address;
	queue->doorbell_value = op->queue;
	queue->irq_count = counter_of(device, op->vector);
	queue->event_idx = device->features >> EVENT_IDX_BIT & 1;
	queue->packed = device->features >> RING_PACKED_BIT & 1;
	queue->notification_data = device->features >> NOTIFICATION_DATA_BIT & 1;
	queue->size = result->size;
	queue_start(queue);
	return result->vector == op->vector ? ERROR_NONE : ERROR_REFUSED;
}

int virtio_msix(const struct op_msix *op, uint64_t *table_size)
{
	struct device *device = device_at(op->slot);
	uint64_t table;
	uint16_t control;

	if (!device || op->first < VECTOR_IRQ_FIRST || op->first + op->count > VECTOR_IRQ_END)
		return ERROR_BAD_ARGUMENT;
	if (!device->at.msix)
		return ERROR_NO_CAPABILITY;
	table = device->at.region[REGION_MSIX];
	control = pci_read(device->at.bdf, device->at.msix + 2, 2);
	*table_size = (control & 0x7ff) + 1;
	if (op->count > *table_size)
		return ERROR_BAD_ARGUMENT;
	pci_write(device->at.bdf, device->at.msix + 2, 2, control | 0x8000);
	for (unsigned i = 0; i < op->count; i++, table += 16) {
		mmio_write(table, 4, LAPIC_BASE | (uint32_t)op->apic_id << 12);
		mmio_write(table + 4, 4, 0);
		mmio_write(table + 8, 4, op->first + i);
		mmio_write(table + 12, 4, 0);
	}
	device->first_vector = op->first;
	device->intx = false;
	return ERROR_NONE;
}

/* Only one device at a time can use INTx: its handler reads this device's ISR register. */
int virtio_intx(const struct op_intx *op)
{
	struct device *device = device_at(op->slot);
	uint16_t command;

	if (!device)
		return ERROR_NO_DEVICE;
	intx_isr = device->at.region[REGION_ISR];
	device->intx = true;
	command = pci_read(device->at.bdf, 4, 2);
	pci_write(device->at.bdf, 4, 2, command & ~COMMAND_INTX_DISABLE);
	ioapic_route(op->gsi ? op->gsi : device->at.interrupt_line, VECTOR_INTX);
	return ERROR_NONE;
}

int virtio_register(const struct op_register *op, uint64_t *value)
{
	struct device *device = device_at(op->slot);
	uint64_t address;

	if (!device || op->region >= REGIONS || !device->at.region[op->region])
		return ERROR_NO_DEVICE;
	address = device->at.region[op->region] + op->offset;
	if (op->write)
		mmio_write(address, op->width, op->value);
	else
		*value = mmio_read(address, op->width);
	return ERROR_NONE;
}

int virtio_relocate(const struct op_relocate *op, uint64_t *bar)
{
	struct device *device = device_at(op->slot);
	uint64_t old;
	uint16_t command, bdf;

	if (!device || op->bar > 5)
		return ERROR_BAD_ARGUMENT;
	bdf = device->at.bdf;
	old = pci_bar(bdf, op->bar);
	command = pci_read(bdf, 4, 2);
	pci_write(bdf, 4, 2, command & ~2);
	pci_write(bdf, 0x10 + 4 * op->bar, 4, op->address);
	if (pci_bar_is_64(bdf, op->bar))
		pci_write(bdf, 0x14 + 4 * op->bar, 4, op->address >> 32);
	pci_write(bdf, 4, 2, command);
	*bar = pci_bar(bdf, op->bar);
	for (unsigned i = 0; i < REGIONS; i++)
		if (device->at.region[i] && device->at.bar[i] == op->bar)
			device->at.region[i] += *bar - old;
	if (device->at.bar[REGION_NOTIFY] == op->bar)
		for (unsigned i = 0; i < QUEUES; i++)
			device->queues[i].doorbell += *bar - old;
	if (device->intx)
		intx_isr = device->at.region[REGION_ISR];
	return ERROR_NONE;
}
