/* What a guest has to do after it was restored from a snapshot: WAKE; and RESCAN. */
#define _GNU_SOURCE 1

#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { SET_CLOCK = 1, ADD_ENTROPY = 2, NEW_DISKS = 4 };
enum { WAKE_LENGTH = 8 + 1 + 8 + ENTROPY };

static int random_numbers = -1;

void wake_prepare(void)
{
    random_numbers = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
}

/* All guests of one snapshot have the same random numbers to come, until this. */
static int add_entropy(const uint8_t *bytes)
{
    union {
        struct rand_pool_info info;
        uint8_t space[sizeof(struct rand_pool_info) + ENTROPY];
    } pool = {.info = {.entropy_count = 8 * ENTROPY, .buf_size = ENTROPY}};

    memcpy(pool.info.buf, bytes, ENTROPY);
    return ioctl(random_numbers, RNDADDENTROPY, &pool) < 0
        || ioctl(random_numbers, RNDRESEEDCRNG) < 0 ? -1 : 0;
}

static int look_for_disks(void)
{
    int fd = open("/sys/bus/pci/rescan", O_WRONLY | O_CLOEXEC);
    int failed = fd < 0 || write(fd, "1", 1) != 1;

    if (fd >= 0)
        close(fd);
    return failed ? -1 : 0;
}

static int set_clock(uint64_t ns)
{
    const struct timespec now = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};

    return clock_settime(CLOCK_REALTIME, &now);
}

void wake(const struct frame *frame)
{
    static char problem[512];
    const uint8_t *data = frame->data;
    size_t length = 0;
    const struct {
        int flag;
        const char *what;
    } steps[] = {
        {ADD_ENTROPY, "the random numbers could not be renewed: "},
        {SET_CLOCK, "the clock could not be set: "},
        {NEW_DISKS, "new disks could not be found: "},
    };

    if (frame->length != WAKE_LENGTH) {
        channel_error(0, "a WAKE frame has another length", NULL);
        return;
    }
    command_forget();
    jobs_detach();
    shells_detach();
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        int failed = 0;
        if (!(data[8] & steps[i].flag))
            continue;
        if (steps[i].flag == ADD_ENTROPY)
            failed = add_entropy(data + 17);
        else if (steps[i].flag == SET_CLOCK)
            failed = set_clock(get_u64(data + 9));
        else
            failed = look_for_disks();
        if (failed && length < sizeof problem - 128) {
            const char *why = strerror(errno);
            const char *parts[] = {length ? "; " : "", steps[i].what, why};
            for (int j = 0; j < 3; j++) {
                strcpy(problem + length, parts[j]);
                length += strlen(parts[j]);
            }
        }
    }
    problem[length] = 0;
    agent_hello(get_u64(data), problem);
}

void rescan(const struct frame *frame)
{
    if (look_for_disks() < 0)
        channel_error(frame->id, "new disks could not be found", strerror(errno));
    else
        channel_put(DONE, frame->id, "\0\0\0", 4);
}
