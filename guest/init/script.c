/* A script from the console: what the host sends there is passed to the shell, byte by byte.
 *
 * The shell cannot read the terminal itself. A terminal that gives lines cuts them at 4095 bytes
 * and takes some bytes for keys; one that gives bytes has no end. So the line is raw and the shell
 * reads a pipe. Two bytes have a meaning on the line, as they have on a terminal: ^D ends the
 * input, and ^V makes the byte after it an ordinary one.
 *
 * A shell reads what its pipe holds, though a command that it runs may want the rest. So the pipe
 * never holds more than one line, and the next one follows when it is empty. A pipe of one page
 * can be written when it is empty and not before, which saves asking.
 */
#define _GNU_SOURCE 1

#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

enum { END_OF_INPUT = 0x04, LITERAL_NEXT = 0x16, PIPE_SIZE = 4096 };

/* The console, and our end of the shell's pipe: -1 when there is no script, or no more of it. */
static int console = -1, shell_input = -1;

/* What came and was not written yet, from `held_start` to `held_end`. */
static uint8_t held[PIPE_SIZE];
static size_t held_start, held_end;
static int literal_next, ended;

int script_start(int fd)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    if (fcntl(ends[1], F_SETPIPE_SZ, PIPE_SIZE) != PIPE_SIZE) {
        close(ends[0]);
        close(ends[1]);
        return -1;
    }
    console = fd;
    shell_input = ends[1];
    return ends[0];
}

static void finish(void)
{
    close(shell_input);
    shell_input = -1;
}

/* How much of what is held is to be written at once: a line, or all if that is no whole line and
 * no more of it can be awaited. */
static size_t ready_length(void)
{
    size_t length = held_end - held_start;
    const uint8_t *newline = length ? memchr(held + held_start, '\n', length) : NULL;

    if (newline)
        return (size_t)(newline + 1 - (held + held_start));
    return ended || length == PIPE_SIZE ? length : 0;
}

void script_poll_setup(struct pollfd *fds)
{
    int ready = ready_length() > 0;

    fds[POLL_CONSOLE] = (struct pollfd){.fd = -1, .events = POLLIN};
    fds[POLL_SCRIPT] = (struct pollfd){.fd = -1, .events = POLLOUT};
    if (shell_input >= 0 && ready)
        fds[POLL_SCRIPT].fd = shell_input;
    else if (shell_input >= 0)
        fds[POLL_CONSOLE].fd = console;
}

static void take_input(void)
{
    uint8_t bytes[PIPE_SIZE];
    ssize_t n;

    memmove(held, held + held_start, held_end - held_start);
    held_end -= held_start;
    held_start = 0;
    n = read(console, bytes, sizeof held - held_end);
    for (ssize_t i = 0; i < n && !ended; i++) {
        if (!literal_next && bytes[i] == END_OF_INPUT)
            ended = 1;
        else if (!literal_next && bytes[i] == LITERAL_NEXT)
            literal_next = 1;
        else {
            held[held_end++] = bytes[i];
            literal_next = 0;
        }
    }
    if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
        ended = 1;
    if (ended && held_end == 0)
        finish();
}

static void pass_on(void)
{
    ssize_t n = write(shell_input, held + held_start, ready_length());

    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n > 0)
        held_start += (size_t)n;
    if (n < 0 || (ended && held_start == held_end))
        finish();                               /* the shell reads no more, or has it all */
}

void script_poll_done(const struct pollfd *fds)
{
    if (fds[POLL_SCRIPT].fd >= 0 && fds[POLL_SCRIPT].revents)
        pass_on();
    else if (fds[POLL_CONSOLE].fd >= 0 && fds[POLL_CONSOLE].revents)
        take_input();
}
