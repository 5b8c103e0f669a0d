/* Commands: started from RUN frames, ended by themselves, by SIGNAL or by their time limit.
 *
 * The payload of RUN, after that of the RUN_PART frames before it: flags as u8 (1: a shell line,
 * 2: no input), the time limit in ms as u32 (0: none), the number of arguments and of variables
 * as u16, and then strings that each end with a NUL: the working directory (empty: /root), the
 * variables ("NAME=value"), the arguments.
 */
#define _GNU_SOURCE 1

#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SHELL_LINE = 1, NO_INPUT = 2 };
enum { FIXED = 9 };             /* bytes before the strings */
enum { ARGUMENTS = 4096, VARIABLES = 1024 };
enum { SHELL_WORDS = 2 };       /* "/bin/sh", "-c" */

/* From SIGTERM to SIGKILL, when the time is over. */
#define GRACE_NS UINT64_C(2000000000)

/* The request that RUN_PART frames are putting together. */
static uint8_t request[REQUEST];
static size_t request_length;
static int request_too_long;

static const char *arguments[SHELL_WORDS + ARGUMENTS + 1];
static const char *variables[VARIABLES + 1];

/* Takes `count` strings from `*at`. Returns 0 when the request does not hold them. */
static int take_strings(const char **strings, size_t count, const uint8_t **at, const uint8_t *end)
{
    for (size_t i = 0; i < count; i++) {
        const uint8_t *nul = memchr(*at, 0, (size_t)(end - *at));
        if (!nul)
            return 0;
        strings[i] = (const char *)*at;
        *at = nul + 1;
    }
    strings[count] = NULL;
    return 1;
}

/* Starts the program in `program` with pipes, or fails with ERROR. */
static void start(struct job *job, struct program *program)
{
    int pipes[3][2];
    const char *culprit = "the command could not be started";
    int opened = 0;
    int failed = 0;

    while (opened < 3 && pipe2(pipes[opened], O_CLOEXEC) == 0)
        opened++;
    if (opened == 3) {
        const int theirs[3] = {pipes[0][0], pipes[1][1], pipes[2][1]};
        memcpy(program->fds, theirs, sizeof theirs);
        job->pid = spawn(program, &culprit);
    }
    if (opened < 3 || job->pid < 0) {
        failed = errno;
        for (int i = 0; i < opened; i++) {
            close(pipes[i][0]);
            close(pipes[i][1]);
        }
        channel_error(job->id, culprit, strerror(failed));
        job_end(job);
        return;
    }
    for (int i = 0; i < 3; i++) {
        job->ends[i] = pipes[i][i == 0];
        close(pipes[i][i != 0]);
    }
}

static void run(uint8_t id)
{
    const uint8_t *at = request + FIXED;
    const uint8_t *end = request + request_length;
    size_t count, variable_count;
    const char *folder[2];
    struct program program = {.variables = variables, .argv = arguments};
    struct job *job;
    int shell;

    if (request_length < FIXED) {
        channel_error(id, "a RUN frame is too short", NULL);
        return;
    }
    shell = request[0] & SHELL_LINE;
    count = (size_t)request[5] | (size_t)request[6] << 8;
    variable_count = (size_t)request[7] | (size_t)request[8] << 8;
    if (!count || count > ARGUMENTS || variable_count > VARIABLES || (shell && count != 1)) {
        channel_error(id, "a command has at most 4096 arguments and 1024 variables", NULL);
        return;
    }
    if (!take_strings(folder, 1, &at, end) || !take_strings(variables, variable_count, &at, end)
        || !take_strings(arguments + SHELL_WORDS, count, &at, end) || at != end) {
        channel_error(id, "a RUN frame has other strings than it says", NULL);
        return;
    }
    arguments[0] = "/bin/sh";
    arguments[1] = "-c";
    program.argv += shell ? 0 : SHELL_WORDS;
    program.folder = *folder[0] ? folder[0] : NULL;
    job = job_new(id, JOB_COMMAND);
    if (!job)
        return;
    if (get_u32(request + 1))
        job->deadline = monotonic_ns() + UINT64_C(1000000) * get_u32(request + 1);
    shells_busy();
    if (!shell || variable_count || program.folder || !shell_take(job, arguments[SHELL_WORDS]))
        start(job, &program);
    if (job->kind == JOB_COMMAND && request[0] & NO_INPUT)
        job_close(job, 0);
}

int command_again(struct job *job)
{
    static char line[MOST_LINE];
    const char *const argv[] = {"/bin/sh", "-c", line, NULL};
    struct program program = {.argv = argv};
    int no_input = job->ends[0] < 0;

    if (job->touched || !shell_unread(job, line, sizeof line))
        return 0;
    for (int i = 0; i < 3; i++)
        job_close(job, i);
    start(job, &program);
    if (no_input && job->kind == JOB_COMMAND)
        job_close(job, 0);
    return 1;
}

void command_part(const struct frame *frame)
{
    if (frame->length > REQUEST - request_length)
        request_too_long = 1;
    else {
        memcpy(request + request_length, frame->data, frame->length);
        request_length += frame->length;
    }
    if (frame->kind != RUN)
        return;
    if (request_too_long)
        channel_error(frame->id, "the command is longer than 256 KiB", NULL);
    else
        run(frame->id);
    command_forget();
}

void command_forget(void)
{
    request_length = 0;
    request_too_long = 0;
}

void command_signal(struct job *job, int number)
{
    if (job->kind == JOB_COMMAND) {
        /* Also when it has ended: others of its group may go on. */
        job->touched = 1;
        kill(-job->pid, number);
    } else if (job->kind == JOB_PUSH || job->kind == JOB_PULL) {
        uint8_t id = job->id;
        if (job->kind == JOB_PUSH)
            push_drop(job);
        else
            job_end(job);
        channel_error(id, "the transfer was cancelled", NULL);
    }
}

void command_expired(struct job *job, uint64_t now)
{
    job->touched = 1;
    kill(-job->pid, job->timed_out ? SIGKILL : SIGTERM);
    job->deadline = job->timed_out ? 0 : now + GRACE_NS;
    job->timed_out = 1;
}

void command_done(struct job *job)
{
    int status = job->wait_status;
    uint8_t *space;

    shells_busy();
    if (job->timed_out)
        kill(-job->pid, SIGKILL);       /* the rest of its group, which took no notice */
    if (job->id) {
        space = channel_space();
        space[0] = WIFSIGNALED(status) ? 0 : (uint8_t)WEXITSTATUS(status);
        space[1] = WIFSIGNALED(status) ? (uint8_t)WTERMSIG(status) : 0;
        space[2] = (uint8_t)job->timed_out;
        channel_send(EXIT, job->id, 3);
        channel_flush();                /* the rest can wait */
    }
    job_end(job);
}
