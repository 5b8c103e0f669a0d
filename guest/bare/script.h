/*
 * The script that a host hands to the bare guest as its initrd, and the
 * records the guest leaves behind. Everything is little-endian and naturally aligned;
 * pykvm/bare/script.py mirrors it, and tests/bare/test_bare_layout.py
 * compiles this file to prove that both agree.
 *
 * A script is a script_header and then operations, each an op_header, the
 * operation's own structure and perhaps a payload, padded to 8 bytes. The
 * guest runs them in order and appends one record per operation to the
 * results area of the vCPU that ran it: a record_header, then the result
 * structure named in the comment, then perhaps a payload, padded to 8 bytes.
 * Addresses are guest-physical and are trusted: a script may break anything.
 */
#ifndef SCRIPT_H
#define SCRIPT_H

#include <stdint.h>

#define SCRIPT_MAGIC 0x3152435345524142ull  /* "BARESCR1" */
#define RESULTS_MAGIC 0x3153455245524142ull /* "BARERES1" */

struct script_header {
	uint64_t magic;
	uint32_t size;          /* of the script, this header included */
	uint32_t tsc_khz;       /* converts the timeouts */
};

struct op_header {
	uint16_t code;          /* OP_… */
	uint16_t flags;         /* meaning per operation */
	uint32_t size;          /* of the operation, this header and the padding included */
};

enum run_state { RUN_NOT_STARTED, RUN_ACTIVE, RUN_FINISHED, RUN_FAILED };

/* At the start of each vCPU's results area; the records follow. */
struct results_header {
	uint64_t magic;
	uint32_t state;         /* enum run_state */
	uint32_t used;          /* bytes used in the area, this header included */
	uint32_t records;
	uint32_t vector;        /* RUN_FAILED: the exception … */
	uint64_t error_code;
	uint64_t rip;
	uint64_t cr2;
};

enum record_error {
	ERROR_NONE,
	ERROR_UNKNOWN_OP,
	ERROR_BAD_ARGUMENT,
	ERROR_TIMEOUT,
	ERROR_NO_DEVICE,
	ERROR_NO_CAPABILITY,
	ERROR_NO_DESCRIPTORS,
	ERROR_REFUSED,          /* the device withheld FEATURES_OK, or a vector */
	ERROR_NO_SPACE,         /* the results area is full; the run ends */
};

struct record_header {
	uint16_t code;
	uint16_t error;         /* enum record_error */
	uint32_t size;          /* of the record, this header and the padding included */
	uint32_t index;         /* of the operation in its script, from 0 */
	uint32_t payload;       /* bytes after the result structure */
	uint64_t tsc_begin;
	uint64_t tsc_end;
};

enum op_code {
	OP_EXIT = 1,
	OP_PRINT,
	OP_WRITE_MEMORY,
	OP_READ_MEMORY,
	OP_FILL_MEMORY,
	OP_HASH_MEMORY,
	OP_PORT,
	OP_MMIO,
	OP_PCI_CONFIG,
	OP_PCI_SCAN,
	OP_OPEN,
	OP_REGISTER,
	OP_INITIALISE,
	OP_QUEUE,
	OP_READY,
	OP_MSIX,
	OP_INTX,
	OP_POST,
	OP_NOTIFY,
	OP_WAIT,
	OP_RESET,
	OP_RELOCATE,
	OP_SLEEP,
	OP_COUNTERS,
	OP_LOAD,
	OP_SPAWN,
	OP_JOIN,
	OP_PING_PONG,
};

struct value_result {
	uint64_t value;
};

/* Leave through the exit port at once, with this status. */
struct op_exit {
	uint32_t status;
	uint32_t reserved;
};

/* Send the payload to a serial port; flags bit 0: as one string instruction. */
struct op_print {
	uint32_t port;
	uint32_t length;
};

/* WRITE: store the payload. READ: record the bytes. HASH: value_result, a CRC-32. */
struct op_memory {
	uint64_t address;
	uint32_t length;
	uint32_t reserved;
};

/* 64-bit words seed, seed + step, seed + 2 * step, …; length a multiple of 8. */
struct op_fill {
	uint64_t address;
	uint64_t seed;
	uint64_t step;
	uint32_t length;
	uint32_t reserved;
};

/* PORT, MMIO and PCI_CONFIG: value_result, of the last access. */
struct op_access {
	uint64_t address;       /* PCI_CONFIG: bus/device/function << 16 | offset */
	uint64_t value;         /* written */
	uint8_t width;          /* bytes */
	uint8_t write;
	uint16_t reserved;
	uint32_t count;         /* how often; 0 is once */
};

/* PCI_SCAN of bus 0 takes nothing and records an array of: */
struct pci_function {
	uint16_t bdf;           /* bus << 8 | device << 3 | function */
	uint8_t header_type;
	uint8_t interrupt_line;
	uint32_t id;            /* device << 16 | vendor */
	uint32_t class_revision;
};

/* Find a modern virtio function and its structures, and let it decode and master the bus. */
struct op_open {
	uint32_t slot;          /* from now on the device's number, 0 to 3 */
	uint32_t device_id;     /* virtio device type */
	uint32_t nth;           /* of these, in order of bus 0 */
	uint32_t reserved;
};

enum region { REGION_COMMON, REGION_NOTIFY, REGION_ISR, REGION_DEVICE, REGION_MSIX, REGIONS };

struct open_result {
	uint16_t bdf;
	uint8_t interrupt_line;
	uint8_t interrupt_pin;
	uint32_t notify_multiplier;
	uint64_t region[REGIONS]; /* address, 0 if absent; MSIX: the vector table */
	uint32_t length[REGIONS];
	uint8_t bar[REGIONS];
	uint8_t pci_cfg;        /* offset of the PCI-cfg capability, 0 if absent */
	uint8_t msix;           /* offset of the MSI-X capability, 0 if absent */
	uint8_t reserved[5];
};

/* One access to a structure of the device: value_result. */
struct op_register {
	uint32_t slot;
	uint32_t offset;
	uint64_t value;
	uint8_t region;         /* enum region */
	uint8_t width;
	uint8_t write;
	uint8_t reserved[5];
};

/* Reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK. Not DRIVER_OK: see OP_READY. */
struct op_initialise {
	uint32_t slot;
	uint32_t reserved;
	uint64_t features;      /* those wanted; flags bit 0: accept them even if not offered */
};

struct initialise_result {
	uint64_t offered;
	uint64_t accepted;
	uint32_t status;        /* device_status afterwards */
	uint16_t queues;
	uint8_t generation;
	uint8_t reserved;
};

/* Set up a virtqueue on memory that the host zeroed. The features decide on EVENT_IDX. */
struct op_queue {
	uint32_t slot;
	uint16_t queue;
	uint16_t size;          /* 0: the largest */
	uint64_t descriptors;
	uint64_t available;
	uint64_t used;
	uint16_t vector;        /* index into the MSI-X table, 0xffff for none */
	uint16_t reserved[3];
};

struct queue_result {
	uint16_t size_max;      /* queue_size before the driver wrote it */
	uint16_t size;          /* and after */
	uint16_t notify_offset;
	uint16_t vector;        /* as read back */
	uint64_t notify_address;
};

/* READY sets DRIVER_OK and RESET writes 0 and waits: value_result, the status read back. */
struct op_slot {
	uint32_t slot;
	uint32_t reserved;
};

/* Program entries 0 … count - 1 with vectors first … and enable MSI-X: value_result, table size. */
struct op_msix {
	uint32_t slot;
	uint16_t count;
	uint8_t first;          /* CPU vector of entry 0, VECTOR_IRQ_FIRST or more */
	uint8_t apic_id;
};

/* Let the I/O APIC send this global interrupt, level-triggered, as VECTOR_INTX. */
struct op_intx {
	uint32_t slot;
	uint32_t gsi;           /* 0: what the Interrupt Line register says */
};

enum notify_mode { NOTIFY_NEVER, NOTIFY_IF_WANTED, NOTIFY_ALWAYS };
enum segment_flag { SEGMENT_DEVICE_WRITES = 2 };

/* Put descriptor chains into the available ring: post_result. Payload: chain, its segments, … */
struct op_post {
	uint32_t slot;
	uint16_t queue;
	uint8_t notify;         /* enum notify_mode, once after the whole batch */
	uint8_t wait;           /* enum wait_mode of the wait to come */
	uint32_t chains;
	uint32_t reserved2;
};

struct chain {
	uint64_t indirect;      /* address of a table to build, 0 for direct descriptors */
	uint32_t tag;           /* comes back in the completion */
	uint32_t segments;
};

struct segment {
	uint64_t address;
	uint32_t length;
	uint32_t flags;         /* enum segment_flag */
};

struct post_result {
	uint32_t posted;
	uint32_t notifications;
};

/* Write value to the queue's notification address, width 2. */
struct op_notify {
	uint32_t slot;
	uint16_t queue;
	uint16_t value;
};

enum wait_mode {
	WAIT_POLL,              /* watch the used ring; ask for no interrupt */
	WAIT_SPIN,              /* ask for interrupts and spin until one arrives */
	WAIT_IDLE,              /* ask for interrupts and halt */
};
enum wait_flag { NEEDS_INTERRUPT = 1 }; /* one must arrive since the post, too */

/* Take count used elements: wait_result, then a completion each, in used-ring order. */
struct op_wait {
	uint32_t slot;
	uint16_t queue;
	uint8_t mode;           /* enum wait_mode */
	uint8_t reserved;
	uint32_t count;
	uint32_t timeout_us;
};

struct wait_result {
	uint32_t completions;
	uint32_t interrupts;    /* that arrived since the last post */
};

struct completion {
	uint32_t id;            /* as the device wrote it */
	uint32_t length;
	uint32_t tag;           /* 0xffffffff: no such chain is in flight */
	uint32_t reserved;
	uint64_t tsc;           /* when the driver saw it */
};

/* Move a BAR while memory decoding is off: value_result, the BAR read back. */
struct op_relocate {
	uint32_t slot;
	uint32_t bar;
	uint64_t address;
};

struct op_sleep {
	uint32_t microseconds;
	uint32_t reserved;
};

/* COUNTERS takes nothing and records uint32_t, from VECTOR_IRQ_FIRST to COUNTER_INTX_EMPTY. */

/*
 * A closed loop of equal requests on each of some queues, depth of them in
 * flight, until total or the time is up. More than one queue, and exits, are
 * for WAIT_POLL only.
 */
struct op_load {
	uint32_t slot;
	uint16_t queue;         /* the first; queue i of them uses the i-th span after first */
	uint8_t wait;           /* enum wait_mode */
	uint8_t notify;         /* enum notify_mode, after each round of posts */
	uint32_t type;          /* VIRTIO_BLK_T_… */
	uint32_t depth;         /* requests in flight on each queue, at most 128; 0: none */
	uint32_t total;         /* requests to do on each queue */
	uint32_t sectors;       /* per request */
	uint64_t first;         /* sector */
	uint64_t stride;        /* sectors from one request to the next … */
	uint64_t span;          /* … modulo this */
	uint64_t random;        /* not 0: a seed, and the offset is any multiple of stride */
	uint64_t headers;       /* address of 32 * depth * queues bytes */
	uint64_t buffers;       /* address of 512 * sectors * depth * queues bytes */
	uint64_t indirect;      /* address of 16 * (segments + 2) * depth * queues bytes; 0: direct */
	uint32_t timeout_us;    /* for all of it */
	uint32_t duration_us;   /* start no request after this; 0: no limit */
	uint16_t queues;        /* 1 to 4 */
	uint16_t segments;      /* descriptors that a request's data is cut into, 1 to 126 */
	uint8_t exits;          /* read device_status all the while, and time that */
	uint8_t reserved[3];
};

/*
 * Latencies are counted by size, in ticks: LATENCY_STEPS buckets of equal width
 * for each power of 2 from LATENCY_FIRST on. The first and the last bucket
 * take what lies beyond.
 */
#define LATENCY_FIRST 8
#define LATENCY_STEPS 16
#define LATENCY_BUCKETS (32 * LATENCY_STEPS)

struct latencies {
	uint64_t sum;           /* ticks */
	uint64_t least;
	uint64_t most;
	uint32_t counts[LATENCY_BUCKETS];
};

struct load_result {
	uint32_t completed;
	uint32_t errors;        /* statuses other than 0 */
	uint32_t notifications;
	uint32_t interrupts;
	uint64_t ticks;
	struct latencies requests; /* from post to sight, of the completed */
	struct latencies exits;    /* of the reads of device_status */
};

/* Start a vCPU by INIT and SIPI; the payload is its script, operations without a header. */
struct op_spawn {
	uint32_t apic_id;       /* 1 to 3; also the number of its results area */
	uint32_t length;
	uint32_t timeout_us;    /* for it to arrive */
	uint32_t reserved;
};

/* Wait for a spawned vCPU to finish: value_result, its enum run_state. */
struct op_join {
	uint32_t apic_id;
	uint32_t timeout_us;
};

/* Two vCPUs hand a word at address back and forth. */
struct op_ping_pong {
	uint64_t address;
	uint32_t turn;          /* 0 begins, 1 answers */
	uint32_t rounds;
	uint32_t timeout_us;
	uint32_t reserved;
};

struct ping_pong_result {
	uint64_t rounds;        /* done */
	uint64_t fastest;       /* round, in TSC ticks: short only if both run at once */
};

#endif
