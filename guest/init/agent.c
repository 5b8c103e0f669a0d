/* The agent: runs what the host asks for, for the guest's whole life, many requests side by side.
 *
 * A frame is a header of 4 bytes (kind, id, length as little-endian u16) and `length` bytes of
 * payload, at most 32 KiB. The host gives each request an id from 1 to 255, which is free again
 * after EXIT, DONE or ERROR. Id 0 is the conversation's own.
 *
 *     RUN_PART* RUN  ->  (STDOUT | STDERR)* EXIT   and meanwhile STDIN*, STDIN_EOF, SIGNAL*
 *     PUSH STDIN* STDIN_EOF  ->  DONE              the file has its name when it is complete
 *     PULL | DMESG  ->  DATA* DONE
 *     RESCAN  ->  DONE                             looks for new disks
 *     SETTLE  ->  DONE                             makes ready what commands need (shell.c)
 *     anything  ->  ERROR                          the request failed; the others go on
 *
 * Nobody waits for anybody else: the host sends at most INPUT_WINDOW bytes of input for a job, and
 * more when CREDIT tells that some were taken. Likewise, at most OUTPUT_WINDOW bytes of each output
 * are sent until OUTPUT_CREDIT comes.
 *
 * WAKE comes first after the machine was restored from a snapshot: a number as u64, flags (1: the
 * time follows, 2: entropy follows, 4: there may be new disks), the time in nanoseconds since 1970
 * as u64, 32 bytes of entropy. HELLO answers with that number. The requests of before go on
 * without a host.
 *
 * Where the host emulates kernel code, a system call costs as much as a million user-mode
 * instructions. So no call is made that could be avoided: in particular pipes stay blocking,
 * because poll() says when at least PIPE_BUF bytes fit.
 */
#define _GNU_SOURCE 1

#include "agent.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { REPLIES = 8 };           /* frames taken between two looks at everything else */

uint32_t get_u32(const uint8_t *data)
{
    uint32_t value;

    memcpy(&value, data, sizeof value);
    return value;
}

uint64_t get_u64(const uint8_t *data)
{
    uint64_t value;

    memcpy(&value, data, sizeof value);
    return value;
}

void put_u32(uint8_t *data, uint32_t value)
{
    memcpy(data, &value, sizeof value);
}

void put_u64(uint8_t *data, uint64_t value)
{
    memcpy(data, &value, sizeof value);
}

uint64_t monotonic_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void take_frame(const struct frame *frame)
{
    /* What comes for a job that has ended is no mistake: the host did not know yet. */
    struct job *job = job_find(frame->id);
    const uint8_t *data = frame->data;

    switch (frame->kind) {
    case RUN:
    case RUN_PART:
        command_part(frame);
        break;
    case STDIN:
        if (job)
            take_input(job, data, frame->length);
        break;
    case STDIN_EOF:
        if (job)
            job->input_closed = 1;
        if (job && job->kind == JOB_PUSH)
            push_finish(job);
        break;
    case SIGNAL:
        if (frame->length != 1 || data[0] < 1 || data[0] > SIGRTMAX)
            channel_error(0, "a SIGNAL frame needs one byte, a signal number", NULL);
        else if (job)
            command_signal(job, data[0]);
        break;
    case OUTPUT_CREDIT:
        if (job)
            take_credit(job, data, frame->length);
        break;
    case PUSH:
        push_start(frame);
        break;
    case PULL:
        pull_start(frame);
        break;
    case DMESG:
        pull_log(frame);
        break;
    case RESCAN:
        rescan(frame);
        break;
    case SETTLE:
        shells_settle(frame->id);
        break;
    case RESIZE:
        if (frame->length != 4)
            channel_error(0, "a RESIZE frame needs four bytes, rows and columns", NULL);
        else
            window_changed(data[0] | (unsigned)data[1] << 8, data[2] | (unsigned)data[3] << 8);
        break;
    case WAKE:
        wake(frame);
        break;
    case POWEROFF:
        power_off(frame->length == 1 ? data[0] : 0);
    default:
        channel_error(0, "a frame of an unknown kind was ignored", NULL);
    }
}

/* Takes the frames that have come, but not so many that a command's output waits for long. */
static void take_frames(void)
{
    struct frame frame;

    for (int i = 0; i < REPLIES && channel_next(&frame); i++) {
        take_frame(&frame);
        channel_taken(&frame);
    }
}

void agent_hello(uint64_t number, const char *problem)
{
    uint8_t *space = channel_space();
    size_t length = strlen(problem);

    space[0] = PROTOCOL_VERSION;
    space[1] = 0;
    put_u64(space + 2, number);
    memcpy(space + 10, problem, length);
    channel_send(HELLO, 0, 10 + length);
}

void agent_start(int fd, const char *memory, const char *mailbox, int shells)
{
    uint64_t numbers[3] = {0};
    char *end;

    channel_open(fd);
    for (int i = 0; i < 3 && mailbox && *mailbox; i++) {
        numbers[i] = strtoull(mailbox, &end, 0);
        mailbox = *end == ',' ? end + 1 : NULL;
    }
    if (numbers[1])
        (void)channel_map(memory, numbers[0], numbers[1], numbers[2]);
    wake_prepare();
    if (shells)
        shells_enable();
    shells_busy();
    agent_hello(0, "");
}

int agent_poll_setup(struct pollfd *fds, int count)
{
    /* First, because it makes room for more output. */
    channel_flush();
    fds[count++] = (struct pollfd){.fd = channel_fd(), .events = POLLIN};
    return shells_poll_setup(fds, jobs_poll_setup(fds, count));
}

int agent_wait(void)
{
    int jobs = channel_pending() ? 0 : jobs_wait();
    int shells = jobs ? shells_wait() : -1;
    int wait = shells < 0 || (jobs >= 0 && jobs < shells) ? jobs : shells;

    return wait && channel_sleep(!jobs_running()) ? wait : 0;
}

void agent_poll_done(const struct pollfd *fds)
{
    channel_awake();
    jobs_poll_done(fds);
    if (fds[POLL_AGENT].revents)
        channel_read();
    take_frames();
    shells_poll_done(fds);
}

int agent_lost(void)
{
    return channel_fd() < 0;
}

void agent_child_ended(pid_t pid, int wait_status)
{
    shells_child_ended(pid);
    jobs_child_ended(pid, wait_status);
}
