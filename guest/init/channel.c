/* The channel to the host: frames over the serial line. */
#define _GNU_SOURCE 1

#include "agent.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { LINE_PAYLOAD = 4096 };   /* of output, so that a frame does not hold up the others for long */

static int line = -1;

/* What came over the line, from `received_start` to `received_end`, and was not taken yet. */
static uint8_t received[2 * (HEADER + PAYLOAD)];
static size_t received_start, received_end;

static uint8_t sent[HEADER + PAYLOAD];

void channel_open(int fd)
{
    line = fd;
}

int channel_fd(void)
{
    return line;
}

void channel_read(void)
{
    ssize_t n;

    memmove(received, received + received_start, received_end - received_start);
    received_end -= received_start;
    received_start = 0;
    n = read(line, received + received_end, sizeof received - received_end);
    if (n > 0)
        received_end += (size_t)n;
    else if (n == 0 || (errno != EINTR && errno != EAGAIN))
        line = -1;
}

/* The length of the complete frame that begins at `at`; 0 when it is not complete. */
static size_t complete(const uint8_t *at, size_t available)
{
    size_t length = HEADER;

    if (available < HEADER)
        return 0;
    length += (size_t)at[2] | (size_t)at[3] << 8;
    return length <= available ? length : 0;
}

int channel_pending(void)
{
    return complete(received + received_start, received_end - received_start) > 0;
}

int channel_next(struct frame *frame)
{
    const uint8_t *at = received + received_start;
    size_t available = received_end - received_start;
    size_t length = complete(at, available);

    if (available >= HEADER && ((size_t)at[2] | (size_t)at[3] << 8) > PAYLOAD) {
        /* The stream is out of step, and a length cannot be trusted to find the next frame. */
        received_start = received_end = 0;
        channel_error(0, "a malformed frame was dropped with all that was received after it", NULL);
        return 0;
    }
    if (!length)
        return 0;
    *frame = (struct frame){at[0], at[1], (uint16_t)(length - HEADER), at + HEADER};
    received_start += length;
    return 1;
}

size_t channel_room(void)
{
    return LINE_PAYLOAD;
}

uint8_t *channel_space(void)
{
    return sent + HEADER;
}

void channel_send(uint8_t kind, uint8_t id, size_t length)
{
    sent[0] = kind;
    sent[1] = id;
    sent[2] = (uint8_t)(length & 0xff);
    sent[3] = (uint8_t)(length >> 8);
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
}
