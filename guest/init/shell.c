/* Shells that wait for their line.
 *
 * Where the host emulates kernel code, starting a program costs as much as a hundred system calls.
 * So some shells have been started before, and wait for what `sh -c` would get as its argument
 * (guest/recipe/shell_edits.py). From then on nothing differs: each runs one line and ends, so no
 * line sees what another one has left. A snapshot holds them, and all guests of it begin with them.
 *
 * Ending a process costs the kernel even more. So a shell tells its status in a page of memory when
 * nothing is left to do but that, and closes its output, which the agent notices. It ends when the
 * agent has told the host, and changes what stands in the page; or after 50 ms, because the agent
 * notices no more than the end if a background process has the output open.
 *
 * A new one costs time that commands want, also those of other guests. So it is started when no
 * command runs, and none has started or ended for a while, which is longer if the next command finds
 * a shell; a command that runs for long is not waited for. SETTLE asks for all at once.
 */
#define _GNU_SOURCE 1

#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096 };

#define QUIET_NS UINT64_C(100000000)
#define LONG_NS UINT64_C(2000000000)
#define SPARE_NS UINT64_C(10000000000)

static struct shell {
    pid_t pid;                          /* 0: none */
    int ends[3];                        /* as a job's */
    int control, line;                  /* where the line goes, and where it comes from */
    volatile uint32_t *told;            /* as a job's */
    int ready;                          /* it has said that it waits */
    int polled;
} shells[SHELLS];

static int enabled;
static uint64_t last_command;           /* when one started or ended */
static uint8_t settling;                /* the id of SETTLE, or 0 */

void shell_forget(volatile uint32_t *told)
{
    enum { FUTEX_WAKE = 1 };

    if (*told) {
        *told = 0;
        syscall(SYS_futex, told, FUTEX_WAKE, 1);
    }
    munmap((void *)told, PAGE);
}

static void drop(struct shell *shell)
{
    for (int i = 0; i < 3; i++)
        close(shell->ends[i]);
    close(shell->control);
    close(shell->line);
    shell_forget(shell->told);
    shell->pid = 0;
}

void shells_enable(void)
{
    enabled = 1;
}

void shells_busy(void)
{
    last_command = monotonic_ns();
}

/* Descriptors from FIRST on, so that none is the target of another one in the new process. */
static int high(int fd)
{
    enum { FIRST = 10 };
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, FIRST);

    close(fd);
    return moved;
}

static int prepare_page(struct shell *shell)
{
    int page = memfd_create("status", MFD_CLOEXEC);
    void *told = MAP_FAILED;

    if (page >= 0 && ftruncate(page, PAGE) == 0)
        told = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
    if (told == MAP_FAILED && page >= 0) {
        close(page);
        return -1;
    }
    shell->told = told;
    return page;
}

static void prepare(struct shell *shell)
{
    static const char *const argv[] = {"/bin/sh", "-c", "await-line-on-3", NULL};
    struct program program = {.argv = argv};
    int pipes[4][2];
    int opened = 0;
    int page = prepare_page(shell);

    while (page >= 0 && opened < 4 && pipe2(pipes[opened], O_CLOEXEC) == 0)
        opened++;
    if (opened == 4) {
        const int theirs[3] = {pipes[0][0], pipes[1][1], pipes[2][1]};
        memcpy(program.fds, theirs, sizeof theirs);
        program.more[0] = pipes[3][0] = high(pipes[3][0]);
        program.more[1] = page = high(page);
        shell->pid = spawn(&program, NULL);
    }
    if (page >= 0)
        close(page);
    if (opened < 4 || shell->pid < 0) {
        for (int i = 0; i < opened; i++) {
            close(pipes[i][0]);
            close(pipes[i][1]);
        }
        if (page >= 0)
            shell_forget(shell->told);
        shell->pid = 0;
        enabled = 0;                    /* commands start their own */
        return;
    }
    for (int i = 0; i < 3; i++) {
        shell->ends[i] = pipes[i][i == 0];
        close(pipes[i][i != 0]);
    }
    shell->control = pipes[3][1];
    shell->line = pipes[3][0];
    shell->ready = 0;
}

static struct shell *missing(void)
{
    for (struct shell *shell = shells; enabled && shell < shells + SHELLS; shell++)
        if (!shell->pid)
            return shell;
    return NULL;
}

int shell_take(struct job *job, const char *line)
{
    size_t length = strlen(line) + 1;

    for (struct shell *shell = shells; length <= MOST_LINE && shell < shells + SHELLS; shell++) {
        if (!shell->pid || !shell->ready)
            continue;
        if (write(shell->control, line, length) != (ssize_t)length) {
            drop(shell);
            continue;
        }
        close(shell->control);
        job->line = shell->line;
        memcpy(job->ends, shell->ends, sizeof job->ends);
        job->pid = shell->pid;
        job->told = shell->told;
        shell->pid = 0;
        return 1;
    }
    return 0;
}

size_t shell_unread(struct job *job, char *line, size_t space)
{
    int unread = 0;

    if (job->line < 0 || ioctl(job->line, FIONREAD, &unread) < 0 || !unread
        || read(job->line, line, space) != unread)
        return 0;
    shell_forget(job->told);
    job->told = NULL;
    close(job->line);
    job->line = -1;
    return (size_t)unread;
}

int shells_poll_setup(struct pollfd *fds, int count)
{
    for (struct shell *shell = shells; shell < shells + SHELLS; shell++) {
        shell->polled = -1;
        if (!shell->pid || shell->ready)
            continue;
        fds[count] = (struct pollfd){.fd = shell->ends[1], .events = POLLIN};
        shell->polled = count++;
    }
    return count;
}

static int some_wait(void)
{
    for (const struct shell *shell = shells; shell < shells + SHELLS; shell++)
        if (shell->pid && shell->ready)
            return 1;
    return 0;
}

int shells_wait(void)
{
    uint64_t enough = some_wait() ? SPARE_NS : jobs_running() ? LONG_NS : QUIET_NS;
    uint64_t quiet;

    if (!missing())
        return -1;
    quiet = monotonic_ns() - last_command;
    return settling || quiet >= enough ? 0 : (int)((enough - quiet) / 1000000) + 1;
}

void shells_poll_done(const struct pollfd *fds)
{
    int waiting = 1;
    char byte;

    for (struct shell *shell = shells; shell < shells + SHELLS; shell++) {
        if (shell->pid && shell->polled >= 0 && fds[shell->polled].revents) {
            shell->ready = read(shell->ends[1], &byte, 1) == 1;
            if (!shell->ready) {
                drop(shell);
                enabled = 0;            /* a shell that does not know how to wait */
            }
        }
        waiting = waiting && shell->pid && shell->ready;
    }
    if (shells_wait() == 0)
        prepare(missing());
    if (settling && (waiting || !enabled)) {
        channel_put(DONE, settling, "\0\0\0", 4);
        settling = 0;
    }
}

void shells_child_ended(pid_t pid)
{
    for (struct shell *shell = shells; shell < shells + SHELLS; shell++)
        if (shell->pid == pid && shell->ready)
            drop(shell);
}

void shells_settle(uint8_t id)
{
    if (settling)
        channel_error(id, "the guest settles already", NULL);
    else
        settling = id;
}

void shells_detach(void)
{
    settling = 0;
}
