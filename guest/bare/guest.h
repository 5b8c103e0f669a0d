/* What the parts of the bare guest share. All of this runs at CPL3. */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"
#include "script.h"

#define SLOTS 4
#define QUEUES 4
#define QUEUE_SIZE_MAX 1024

/* start.S */
extern volatile uint32_t irq_counts[COUNTER_INTX_EMPTY - VECTOR_IRQ_FIRST + 1];
extern volatile uint64_t intx_isr;
extern volatile uint32_t spawned_cpu;
extern const char trampoline[], trampoline_end[];

static inline uint32_t gate(uint32_t service, uint64_t rdx, uint64_t rcx)
{
	uint64_t rax = service;
	__asm__ volatile("int3" : "+a"(rax) : "d"(rdx), "c"(rcx) : "memory");
	return rax;
}

static inline void out8(uint16_t port, uint8_t value) { gate(GATE_OUT8, port, value); }
static inline uint8_t in8(uint16_t port) { return gate(GATE_IN8, port, 0); }

static inline uint64_t tsc(void)
{
	uint32_t low, high;
	__asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static inline void relax(void) { __asm__ volatile("pause" : : : "memory"); }
static inline void full_fence(void) { __asm__ volatile("mfence" : : : "memory"); }
static inline void compiler_fence(void) { __asm__ volatile("" : : : "memory"); }

/* MMIO of exactly this width; other widths read all ones and write nothing. */
uint64_t mmio_read(uint64_t address, unsigned width);
void mmio_write(uint64_t address, unsigned width, uint64_t value);
uint64_t port_access(const struct op_access *access);

void *memcpy(void *to, const void *from, size_t length);
void *memset(void *to, int byte, size_t length);
uint32_t crc32(const uint8_t *bytes, size_t length);
void fill_words(uint64_t *words, size_t count, uint64_t seed, uint64_t step);

void print(const char *text);
void print_bytes(uint16_t port, const uint8_t *bytes, size_t length);
__attribute__((noreturn)) void leave(uint8_t status);
__attribute__((noreturn)) void halt(void);

/* Deadlines are TSC values. */
extern uint32_t tsc_khz;
uint64_t deadline_after(uint32_t microseconds);

/* pci.c */
uint32_t pci_read(uint16_t bdf, unsigned offset, unsigned width);
void pci_write(uint16_t bdf, unsigned offset, unsigned width, uint32_t value);
uint64_t pci_bar(uint16_t bdf, unsigned bar);
bool pci_bar_is_64(uint16_t bdf, unsigned bar);
size_t pci_scan(struct pci_function *found, size_t most);

/* apic.c */
void apic_start(void);
void ioapic_route(unsigned gsi, uint8_t vector);
void apic_spawn(uint8_t apic_id);

/* A virtqueue from the driver's side. */
struct queue {
	volatile struct descriptor *descriptors;
	volatile uint16_t *available; /* flags, idx, ring[], used_event; packed: the driver area */
	volatile uint16_t *used;      /* flags, idx, elements, avail_event; packed: the device area */
	uint64_t doorbell;
	uint16_t doorbell_value;       /* the queue index */
	volatile uint32_t *irq_count;
	uint16_t size;
	uint16_t free_count;
	uint16_t free_head;
	uint16_t posted;              /* next available index; packed: position */
	uint16_t notified;            /* available index at the last decision to notify */
	uint16_t seen;                /* next used index; packed: position */
	bool event_idx;
	bool notification_data;
	bool packed;
	bool wrap;                    /* packed: the wrap counter at posted */
	bool seen_wrap;               /* packed: that at seen */
	uint16_t added;               /* packed: descriptors since the last publish */
	uint16_t held_flags;          /* packed: what goes to *held then */
	volatile uint16_t *held;
	uint32_t irq_base;            /* *irq_count when interrupts were last asked for by a post */
	uint16_t next[QUEUE_SIZE_MAX];
	/* Descriptors of the chain with this head or, if packed, buffer id; 0 if idle. */
	uint16_t length[QUEUE_SIZE_MAX];
	uint32_t tag[QUEUE_SIZE_MAX];
};

struct descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
	uint16_t next;
};

struct device {
	bool open;
	struct open_result at;
	uint64_t features;
	uint8_t first_vector;
	bool intx;
	struct queue queues[QUEUES];
};

struct device *device_at(uint32_t slot);                  /* NULL unless open */
struct queue *queue_at(uint32_t slot, uint32_t queue);    /* NULL unless set up */

/* virtio.c: what returns an int returns a record_error. */
int virtio_open(const struct op_open *op, struct open_result *result);
int virtio_initialise(const struct op_initialise *op, uint16_t flags, struct initialise_result *);
int virtio_queue(const struct op_queue *op, struct queue_result *result);
int virtio_ready(uint32_t slot, uint64_t *status);
int virtio_reset(uint32_t slot, uint64_t *status);
int virtio_msix(const struct op_msix *op, uint64_t *table_size);
int virtio_intx(const struct op_intx *op);
uint64_t virtio_status_address(uint32_t slot);            /* of an open device */
int virtio_register(const struct op_register *op, uint64_t *value);
int virtio_relocate(const struct op_relocate *op, uint64_t *bar);

/* queue.c */
void queue_start(struct queue *queue);
bool queue_add(struct queue *queue, const struct chain *chain, const struct segment *segments);
unsigned queue_publish(struct queue *queue, unsigned notify); /* notifications sent: 0 or 1 */
bool queue_take(struct queue *queue, struct completion *completion);
void queue_ask(struct queue *queue, unsigned mode);
bool queue_pending(struct queue *queue); /* is there something to take? */
bool queue_wait(struct queue *queue, unsigned mode, uint64_t deadline); /* … until the deadline? */
bool queue_interrupted(struct queue *queue, unsigned mode, uint64_t deadline);

/* packed.c */
void packed_add(struct queue *, const struct chain *, const struct segment *, uint16_t id);
void packed_show(struct queue *queue);
bool packed_notification_wanted(struct queue *queue);
bool packed_pending(struct queue *queue);
void packed_take(struct queue *queue, uint32_t *id, uint32_t *length);
void packed_ask(struct queue *queue, unsigned mode);

/* load.c */
int load_run(const struct op_load *op, struct load_result *result);

/* interpreter.c: runs operations on one vCPU, records in its results area. */
void interpret(uint32_t cpu, const uint8_t *ops, size_t size);

/* smp.c */
int smp_spawn(const struct op_spawn *op, const uint8_t *ops);
int smp_join(const struct op_join *op, uint64_t *state);
int smp_ping_pong(const struct op_ping_pong *op, struct ping_pong_result *result);
__attribute__((noreturn)) void smp_other(uint32_t cpu);

static inline struct results_header *results_of(uint32_t cpu)
{
	return (struct results_header *)(uintptr_t)(RESULTS_BASE + cpu * RESULTS_SIZE);
}

#endif
