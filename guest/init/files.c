/* Files from and to the host, and the kernel's messages.
 *
 * The payload of PUSH is the file's mode as u32 and its path; STDIN frames with its content follow,
 * and STDIN_EOF. It grows beside its place under a name of its own, and gets its name when it is
 * complete. The payload of PULL is a path; DONE brings the mode as u32. DMESG has none.
 */
#define _GNU_SOURCE 1

#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SYSLOG_ACTION_READ_ALL = 3, SYSLOG_ACTION_SIZE_BUFFER = 10 };
enum { MOST_LOG = 4 << 20 };
enum { PERMISSIONS = 07777 };

/* Puts the path of a request into the job. Returns 0 after an ERROR frame, and ends the job. */
static int take_path(struct job *job, const uint8_t *path, size_t length)
{
    if (length && length < sizeof job->path - 32 && !memchr(path, 0, length)) {
        memcpy(job->path, path, length);
        job->path[length] = 0;
        return 1;
    }
    channel_error(job->id, "a path has 1 to 4063 bytes, and no NUL", NULL);
    job_end(job);
    return 0;
}

static void push_failed(struct job *job)
{
    const char *why = strerror(errno);
    uint8_t id = job->id;

    push_drop(job);
    channel_error(id, job->path, why);
}

void push_start(const struct frame *frame)
{
    static unsigned number;
    struct job *job = job_new(frame->id, JOB_PUSH);
    struct stat there;
    const char *slash;
    size_t folder;

    if (!job)
        return;
    if (frame->length < 4 || !take_path(job, frame->data + 4, frame->length - 4)) {
        if (frame->length < 4) {
            channel_error(frame->id, "a PUSH frame is too short", NULL);
            job_end(job);
        }
        return;
    }
    job->mode = get_u32(frame->data) & PERMISSIONS;
    /* A device, a pipe or a folder is not to be replaced by a file. */
    if (lstat(job->path, &there) == 0 && !S_ISREG(there.st_mode) && !S_ISLNK(there.st_mode)) {
        channel_error(job->id, job->path, S_ISDIR(there.st_mode) ? strerror(EISDIR)
                                                                : "not an ordinary file");
        job_end(job);
        return;
    }
    slash = strrchr(job->path, '/');
    folder = slash ? (size_t)(slash + 1 - job->path) : 0;
    memcpy(job->temporary, job->path, folder);
    snprintf(job->temporary + folder, sizeof job->temporary - folder, ".push-%u", number++);
    unlink(job->temporary);
    job->ends[0] = open(job->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (job->ends[0] < 0) {
        channel_error(job->id, job->path, strerror(errno));
        job_end(job);
    }
}

void push_data(struct job *job, const uint8_t *data, size_t length)
{
    if (write_all(job->ends[0], data, length) < 0)
        push_failed(job);
}

void push_finish(struct job *job)
{
    int failed = fchmod(job->ends[0], job->mode) < 0;

    if (!failed) {
        failed = close(job->ends[0]) < 0;
        job->ends[0] = -1;
    }
    if (failed || rename(job->temporary, job->path) < 0) {
        push_failed(job);
        return;
    }
    put_u32(channel_space(), job->mode);
    channel_send(DONE, job->id, 4);
    job_end(job);
}

void push_drop(struct job *job)
{
    unlink(job->temporary);
    job_end(job);
}

void pull_start(const struct frame *frame)
{
    struct job *job = job_new(frame->id, JOB_PULL);
    struct stat there;
    int failed;

    if (!job || !take_path(job, frame->data, frame->length))
        return;
    /* O_NONBLOCK: a pipe that nobody writes must not hold up the rest. */
    job->ends[1] = open(job->path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    failed = job->ends[1] < 0 || fstat(job->ends[1], &there) < 0;
    if (failed || S_ISDIR(there.st_mode)) {
        channel_error(job->id, job->path, strerror(failed ? errno : EISDIR));
        job_end(job);
        return;
    }
    job->mode = there.st_mode & PERMISSIONS;
}

void pull_log(const struct frame *frame)
{
    struct job *job = job_new(frame->id, JOB_PULL);
    int size = klogctl(SYSLOG_ACTION_SIZE_BUFFER, NULL, 0);
    /* With times, the text is longer than the kernel's records. */
    size_t space = size > 0 && size < MOST_LOG ? 2 * (size_t)size : MOST_LOG;
    char *text = MAP_FAILED;
    int length = -1;

    if (!job)
        return;
    strcpy(job->path, "the kernel's messages");
    job->ends[1] = memfd_create("messages", MFD_CLOEXEC);
    if (job->ends[1] >= 0)
        text = mmap(NULL, space, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (text != MAP_FAILED)
        length = klogctl(SYSLOG_ACTION_READ_ALL, text, (int)space);
    if (length < 0 || write_all(job->ends[1], text, (size_t)length) < 0
        || lseek(job->ends[1], 0, SEEK_SET) < 0) {
        channel_error(job->id, job->path, strerror(errno));
        job_end(job);
    }
    if (text != MAP_FAILED)
        munmap(text, space);
}
