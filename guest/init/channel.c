/* The channel to the host: frames over a mailbox in memory, or over the serial line.
 *
 * The mailbox is a piece of RAM that the kernel leaves alone, because the memory map reserves it.
 * It holds a page of words, a ring of frames to the guest, and one to the host, of equal size. The
 * words are u64. A position counts the bytes since the beginning; modulo the ring's size it is a
 * place in the ring. Only its owner writes a position, and only after a whole frame:
 *
 *     0    "pykvmbx3" once the agent speaks over the mailbox
 *     64   head of the ring to the guest (host)     128  its tail (guest)
 *     192  head of the ring to the host (guest)     256  its tail (host)
 *     320  1 while the guest looks into its ring unasked (guest)
 *
 * The ring's head is where the next byte is put, and its tail where the next one is taken. A byte on
 * the serial line, of any value, wakes a guest that does not look unasked, and a write to the bell
 * tells the host. When that write returns, the host has looked, and perhaps answered already. So bulk
 * data costs neither an interrupt nor a byte on the line, which takes some milliseconds where the
 * host emulates kernel code.
 *
 * Where /dev/mem cannot be mapped, the frames themselves go over the line.
 */
#define _GNU_SOURCE 1

#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096 };
enum { TO_GUEST_HEAD = 64, TO_GUEST_TAIL = 128, TO_HOST_HEAD = 192, TO_HOST_TAIL = 256 };
enum { AWAKE = 320 };
enum { LINE_PAYLOAD = 4096 };   /* of output, so that a frame does not hold up the others for long */

/* Looks at the ring before this side sleeps: about a millisecond. */
enum { LAST_LOOKS = 20000 };

/* Output leaves this much room for replies: a page of errors, and the end of every job. */
enum { RESERVE = 16 * 1024, REPLY = RESERVE / 2 };

static int line = -1;

/* What came over the line, from `received_start` to `received_end`, and was not taken yet. */
static uint8_t received[2 * (HEADER + PAYLOAD)];
static size_t received_start, received_end;

static uint8_t sent[HEADER + PAYLOAD];

/* The mailbox: NULL without one. Each ring is mapped twice, one after the other, so that no frame
 * has a break. */
static uint8_t *mailbox;
static uint8_t *to_guest, *to_host;
static size_t ring_size;
static uint64_t taken, put;     /* our positions: the tail of one ring, the head of the other */
static uint64_t told;           /* the sum of both when the host was told last */
static volatile uint32_t *bell;
static int rung;                /* the host was told since this side slept last */

static uint64_t *word(size_t offset)
{
    return (uint64_t *)(void *)(mailbox + offset);
}

void channel_open(int fd)
{
    line = fd;
}

static int map_at(uint8_t *at, size_t size, int memory, uint64_t place)
{
    const int flags = MAP_SHARED | MAP_FIXED;

    return mmap(at, size, PROT_READ | PROT_WRITE, flags, memory, (off_t)place) == MAP_FAILED;
}

/* The host's own words are zero, or the beginning of what it has to say. */
int channel_map(const char *path, uint64_t place, size_t size, uint64_t bell_place)
{
    int memory = open(path, O_RDWR | O_CLOEXEC);
    size_t ring = size > PAGE ? (size - PAGE) / 2 / PAGE * PAGE : 0;
    uint8_t *at;
    int failed;

    if (memory < 0 || ring < 2 * (HEADER + PAYLOAD)) {
        if (memory >= 0)
            close(memory);
        return -1;
    }
    at = mmap(NULL, 2 * PAGE + 4 * ring, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    failed = at == MAP_FAILED || map_at(at, PAGE, memory, place);
    for (int i = 0; i < 4 && !failed; i++)
        failed = map_at(at + PAGE + (size_t)i * ring, ring, memory,
                        place + PAGE + (size_t)(i / 2) * ring);
    if (!failed && bell_place)
        failed = map_at(at + PAGE + 4 * ring, PAGE, memory, bell_place);
    close(memory);
    if (failed)
        return -1;
    mailbox = at;
    ring_size = ring;
    to_guest = at + PAGE;
    to_host = to_guest + 2 * ring;
    if (bell_place)
        bell = (volatile uint32_t *)(void *)(at + PAGE + 4 * ring);
    channel_awake();
    memcpy(mailbox, "pykvmbx3", 8);
    return 0;
}

int channel_fd(void)
{
    return line;
}

void channel_read(void)
{
    ssize_t n;

    if (mailbox)
        received_start = received_end = 0;      /* bytes of any value, which say: look */
    memmove(received, received + received_start, received_end - received_start);
    received_end -= received_start;
    received_start = 0;
    n = read(line, received + received_end, sizeof received - received_end);
    if (n > 0)
        received_end += (size_t)n;
    else if (n == 0 || (errno != EINTR && errno != EAGAIN))
        line = -1;
}

static size_t ring_free(void)
{
    uint64_t used = put - __atomic_load_n(word(TO_HOST_TAIL), __ATOMIC_ACQUIRE);

    return used <= ring_size ? ring_size - (size_t)used : 0;
}

/* What the host has sent and was not taken yet. */
static const uint8_t *waiting(size_t *available)
{
    uint64_t n;

    if (!mailbox) {
        *available = received_end - received_start;
        return received + received_start;
    }
    n = __atomic_load_n(word(TO_GUEST_HEAD), __ATOMIC_ACQUIRE) - taken;
    *available = n <= ring_size && ring_free() >= REPLY ? (size_t)n : 0;
    return to_guest + taken % ring_size;
}

static void take(size_t length)
{
    if (mailbox) {
        taken += length;
        __atomic_store_n(word(TO_GUEST_TAIL), taken, __ATOMIC_RELEASE);
    } else
        received_start += length;
}

static size_t payload_length(const uint8_t *frame)
{
    return (size_t)frame[2] | (size_t)frame[3] << 8;
}

int channel_pending(void)
{
    size_t available;
    const uint8_t *at = waiting(&available);

    return available >= HEADER && available >= HEADER + payload_length(at);
}

int channel_sleep(int idle)
{
    if (!mailbox)
        return 1;
    /* The host's next request often follows its answer at once. */
    for (int i = 0; idle && rung && i < LAST_LOOKS; i++) {
        if (channel_pending())
            return 0;
        __builtin_ia32_pause();
    }
    rung = 0;
    __atomic_store_n(word(AWAKE), 0, __ATOMIC_SEQ_CST);
    if (!channel_pending())
        return 1;
    channel_awake();            /* a frame came before the host could see that */
    return 0;
}

void channel_awake(void)
{
    if (mailbox)
        __atomic_store_n(word(AWAKE), 1, __ATOMIC_RELAXED);
}

int channel_next(struct frame *frame)
{
    size_t available, length;
    const uint8_t *at = waiting(&available);

    if (available < HEADER)
        return 0;
    length = payload_length(at);
    if (length > PAYLOAD) {
        /* The stream is out of step, and a length cannot be trusted to find the next frame. */
        take(available);
        channel_error(0, "a malformed frame was dropped with all that was received after it", NULL);
        return 0;
    }
    if (available < HEADER + length)
        return 0;
    *frame = (struct frame){at[0], at[1], (uint16_t)length, at + HEADER};
    return 1;
}

void channel_taken(const struct frame *frame)
{
    take(HEADER + frame->length);
}

size_t channel_room(void)
{
    size_t room;

    if (!mailbox)
        return LINE_PAYLOAD;
    room = ring_free();
    if (room < RESERVE + HEADER)
        return 0;
    room -= RESERVE + HEADER;
    return room < PAYLOAD ? room : PAYLOAD;
}

uint8_t *channel_space(void)
{
    return HEADER + (mailbox ? to_host + put % ring_size : sent);
}

void channel_send(uint8_t kind, uint8_t id, size_t length)
{
    uint8_t *frame = channel_space() - HEADER;

    frame[0] = kind;
    frame[1] = id;
    frame[2] = (uint8_t)(length & 0xff);
    frame[3] = (uint8_t)(length >> 8);
    if (mailbox) {
        put += HEADER + length;
        __atomic_store_n(word(TO_HOST_HEAD), put, __ATOMIC_RELEASE);
    } else
        /* A line that does not take frames any more leaves nobody to tell. */
        (void)write_all(line, sent, HEADER + length);
}

void channel_put(uint8_t kind, uint8_t id, const void *data, size_t length)
{
    if (length)
        memcpy(channel_space(), data, length);
    channel_send(kind, id, length);
}

void channel_error(uint8_t id, const char *what, const char *why)
{
    enum { MOST = 512 };
    const char *parts[] = {what, why ? ": " : "", why ? why : ""};
    uint8_t *space = channel_space();
    size_t length = 0;

    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t n = strlen(parts[i]);
        if (n > MOST - length)
            n = MOST - length;
        memcpy(space + length, parts[i], n);
        length += n;
    }
    channel_send(ERROR, id, length);
}

void channel_flush(void)
{
    if (!mailbox || taken + put == told)
        return;
    told = taken + put;
    rung = 1;
    if (bell)
        *bell = 1;
    else
        (void)write_all(line, "", 1);           /* a test, which has no bell */
}
