/* The table of what the host has asked for and is not done, and the streams of each. */
#define _GNU_SOURCE 1

#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* After this much input was taken, or all of it, the host may send more. */
enum { TELL_INPUT = INPUT_WINDOW / 4 };

static struct job jobs[JOBS];
static int used;                /* none beyond this place is in use */
static uint8_t dropped[PAYLOAD];

struct job *job_find(uint8_t id)
{
    for (int i = 0; i < used; i++)
        if (jobs[i].kind != JOB_NONE && jobs[i].id == id && id)
            return &jobs[i];
    return NULL;
}

struct job *job_new(uint8_t id, enum job_kind kind)
{
    struct job *job = jobs;

    if (!id || job_find(id)) {
        channel_error(0, "a request has the id of one that still runs", NULL);
        return NULL;
    }
    while (job < jobs + JOBS && job->kind != JOB_NONE)
        job++;
    if (job == jobs + JOBS) {
        channel_error(id, "too many requests at once", NULL);
        return NULL;
    }
    if (job - jobs >= used)
        used = (int)(job - jobs) + 1;
    /* All but the space for input, which costs a page for each 4 KiB that is touched. */
    memset(job, 0, offsetof(struct job, path));
    job->kind = kind;
    job->id = id;
    job->line = -1;
    for (int i = 0; i < 3; i++) {
        job->ends[i] = job->spent[i] = -1;
        job->credit[i] = OUTPUT_WINDOW;
    }
    return job;
}

void job_close(struct job *job, int which)
{
    if (job->ends[which] >= 0)
        close(job->ends[which]);
    job->ends[which] = -1;
}

void job_end(struct job *job)
{
    for (int i = 0; i < 3; i++) {
        job_close(job, i);
        if (job->spent[i] >= 0)
            close(job->spent[i]);
    }
    if (job->told)
        shell_forget(job->told);
    if (job->line >= 0)
        close(job->line);
    job->kind = JOB_NONE;
    while (used && jobs[used - 1].kind == JOB_NONE)
        used--;
}

/* This output is over. Closing it can wait until the host knows. */
static void output_over(struct job *job, int which)
{
    if (job->spent[which] >= 0)
        close(job->spent[which]);
    job->spent[which] = job->ends[which];
    job->ends[which] = -1;
}

int jobs_running(void)
{
    for (int i = 0; i < used; i++)
        if (jobs[i].kind == JOB_COMMAND && jobs[i].id)
            return 1;
    return 0;
}

void jobs_detach(void)
{
    for (int i = 0; i < used; i++) {
        struct job *job = &jobs[i];
        if (job->kind == JOB_COMMAND) {
            job->id = 0;
            job->credit[1] = job->credit[2] = UINT32_MAX;
        } else if (job->kind == JOB_PUSH)
            push_drop(job);
        else if (job->kind == JOB_PULL)
            job_end(job);
    }
}

void take_credit(struct job *job, const uint8_t *data, size_t length)
{
    if (length != 8) {
        channel_error(0, "an OUTPUT_CREDIT frame needs eight bytes", NULL);
        return;
    }
    for (int i = 1; i <= 2; i++) {
        uint32_t more = get_u32(data + 4 * (i - 1));
        job->credit[i] = more > UINT32_MAX - job->credit[i] ? UINT32_MAX : job->credit[i] + more;
    }
}

/* Input was used: the host may send as much again. */
static void input_used(struct job *job, size_t n)
{
    uint8_t *space;

    job->input_taken += (uint32_t)n;
    if (!job->id || !job->input_taken
        || (job->input_taken < TELL_INPUT && job->input_end > job->input_start))
        return;
    space = channel_space();
    put_u32(space, job->input_taken);
    channel_send(CREDIT, job->id, 4);
    job->input_taken = 0;
}

void take_input(struct job *job, const uint8_t *data, size_t length)
{
    if (job->kind == JOB_PUSH) {
        uint8_t id = job->id;
        push_data(job, data, length);
        if (job_find(id))
            input_used(job, length);
        return;
    }
    /* A command that has ended or closed its input takes no more, and that is no mistake. */
    if (job->ends[0] < 0 || job->input_closed)
        return;
    if (job->input_end - job->input_start + length > INPUT_WINDOW) {
        channel_error(0, "more input than there is credit for", NULL);
        return;
    }
    if (job->input_end + length > INPUT_WINDOW) {
        memmove(job->input, job->input + job->input_start, job->input_end - job->input_start);
        job->input_end -= job->input_start;
        job->input_start = 0;
    }
    memcpy(job->input + job->input_end, data, length);
    job->input_end += length;
}

static void feed_input(struct job *job)
{
    size_t n = job->input_end - job->input_start;
    ssize_t written;

    /* poll() promises PIPE_BUF bytes; only who has more asks for a pipe that takes what it can. */
    if (n > PIPE_BUF && !job->nonblocking) {
        fcntl(job->ends[0], F_SETFL, O_WRONLY | O_NONBLOCK);
        job->nonblocking = 1;
    }
    written = n ? write(job->ends[0], job->input + job->input_start, n) : 0;
    if (written < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (written < 0) {
        /* The command reads no more: the rest is dropped, as a shell's pipe would. */
        job_close(job, 0);
        return;
    }
    job->input_start += (size_t)written;
    job->touched = 1;
    if (job->input_start == job->input_end)
        job->input_start = job->input_end = 0;
    input_used(job, (size_t)written);
    if (!job->input_end && job->input_closed)
        job_close(job, 0);
}

/* Passes on what one output holds, or finds that it is over. `events`: what poll() found. */
static void forward_output(struct job *job, int which, int events)
{
    uint8_t *space = job->id ? channel_space() : dropped;
    size_t most = job->id ? channel_room() : sizeof dropped;
    ssize_t n;

    if (most > job->credit[which])
        most = job->credit[which];
    if (job->ended && most > (size_t)job->left[which])
        most = (size_t)job->left[which];
    if (!most)
        return;
    if (job->kind == JOB_COMMAND && events == POLLHUP) {
        output_over(job, which);
        return;
    }
    do {
        n = read(job->ends[which], space, most);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0 && job->kind == JOB_PULL) {
        if (n < 0)
            channel_error(job->id, job->path, strerror(errno));
        else {
            put_u32(channel_space(), job->mode);
            channel_send(DONE, job->id, 4);
        }
        job_end(job);
        return;
    }
    if (n <= 0) {
        output_over(job, which);
        return;
    }
    if (job->ended) {
        job->left[which] -= (int)n;
        if (!job->left[which])
            output_over(job, which);
    } else if (job->kind == JOB_COMMAND && events & POLLHUP && (size_t)n < most)
        output_over(job, which);        /* nobody can write to it, and it is empty */
    if (!job->id)
        return;                 /* nobody listens, and credit is without end */
    job->credit[which] -= (uint32_t)n;
    channel_send(job->kind == JOB_PULL ? DATA : which == 1 ? STDOUT : STDERR, job->id, (size_t)n);
}

int jobs_poll_setup(struct pollfd *fds, int count)
{
    for (int i = 0; i < used; i++) {
        struct job *job = &jobs[i];
        if (job->kind == JOB_NONE)
            continue;
        for (int j = 0; j < 3; j++) {
            int input = job->kind == JOB_COMMAND
                && (job->input_end > job->input_start || job->input_closed);
            int output = job->credit[j] > 0 && (!job->id || channel_room() > 0);
            int wanted = j == 0 ? input : output;
            job->polled[j] = -1;
            if (job->ends[j] < 0 || !wanted)
                continue;
            fds[count].fd = job->ends[j];
            fds[count].events = j == 0 ? POLLOUT : POLLIN;
            job->polled[j] = count++;
        }
    }
    return count;
}

static int readable(const struct pollfd *fds, int place)
{
    return place >= 0 && fds[place].revents;
}

static void has_ended(struct job *job, int wait_status)
{
    job->ended = 1;
    job->wait_status = wait_status;
    job->deadline = 0;
    job_close(job, 0);
    job->input_start = job->input_end = 0;
    /* What it wrote is in the pipes. A background process may keep them open, and write for ever. */
    for (int i = 1; i < 3; i++)
        if (job->ends[i] >= 0 && (ioctl(job->ends[i], FIONREAD, &job->left[i]) < 0 || !job->left[i]))
            output_over(job, i);
}

void jobs_poll_done(const struct pollfd *fds)
{
    uint64_t now = 0;

    for (int i = 0; i < used; i++) {
        struct job *job = &jobs[i];
        for (int j = 1; j < 3 && job->kind != JOB_NONE; j++)
            if (readable(fds, job->polled[j]))
                forward_output(job, j, fds[job->polled[j]].revents);
        if (job->kind == JOB_COMMAND && readable(fds, job->polled[0]))
            feed_input(job);
        if (job->kind == JOB_COMMAND && job->told && *job->told && !job->ended)
            has_ended(job, (int)(*job->told & 0xff) << 8);
        if (job->kind == JOB_COMMAND && job->ended && job->ends[1] < 0 && job->ends[2] < 0)
            command_done(job);
        else if (job->kind == JOB_COMMAND && job->deadline) {
            now = now ? now : monotonic_ns();
            if (now >= job->deadline)
                command_expired(job, now);
        }
    }
}

int jobs_wait(void)
{
    uint64_t first = UINT64_MAX;
    uint64_t now;

    for (int i = 0; i < used; i++) {
        const struct job *job = &jobs[i];
        if (job->kind == JOB_COMMAND && job->ended && job->ends[1] < 0 && job->ends[2] < 0)
            return 0;
        if (job->kind == JOB_COMMAND && job->deadline && job->deadline < first)
            first = job->deadline;
    }
    if (first == UINT64_MAX)
        return -1;
    now = monotonic_ns();
    if (first <= now)
        return 0;
    first = (first - now) / 1000000 + 1;
    return first < INT_MAX ? (int)first : INT_MAX;
}

void jobs_child_ended(pid_t pid, int wait_status)
{
    for (int i = 0; i < used; i++) {
        struct job *job = &jobs[i];
        if (job->kind != JOB_COMMAND || job->pid != pid || job->ended)
            continue;
        if (!command_again(job))
            has_ended(job, wait_status);
    }
}
