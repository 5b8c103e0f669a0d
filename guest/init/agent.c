/* The agent: runs the host's commands and carries their input and output over one serial line.
 *
 * A frame is a header of 4 bytes (kind, 0, length as little-endian u16) and `length` bytes of
 * payload, at most 4096. One command runs at a time:
 *
 *     EXEC_PART* EXEC  ->  (STDOUT | STDERR)* EXIT     and meanwhile STDIN*, STDIN_EOF, SIGNAL*
 *
 * At any time RESIZE, with rows and columns as u16, tells the size of the host's terminal.
 *
 * WAKE comes first after the machine was restored from a snapshot: the time in nanoseconds since
 * 1970 as u64, 32 bytes of entropy, and as u8 whether there may be new disks. HELLO answers it.
 *
 * Where the host emulates kernel code, a system call costs as much as a million user-mode
 * instructions. So a frame is read and written whole, and no call is made that could be avoided:
 * in particular pipes stay blocking, because poll() says when at least PIPE_BUF bytes fit.
 */
#define _GNU_SOURCE 1

#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/random.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    HELLO = 0x01, STDOUT = 0x02, STDERR = 0x03, EXIT = 0x04, ERROR = 0x05,
    EXEC = 0x81, EXEC_PART = 0x82, STDIN = 0x83, STDIN_EOF = 0x84, SIGNAL = 0x85, POWEROFF = 0x86,
    RESIZE = 0x87, WAKE = 0x88,
};

enum {
    PROTOCOL_VERSION = 2,
    HEADER = 4,
    PAYLOAD = 4096,
    COMMAND = 128 * 1024,        /* the kernel's own limit for one argument (MAX_ARG_STRLEN) */
    INPUT = 16 * PAYLOAD,
    ENTROPY = 32,
    WAKE_LENGTH = 8 + ENTROPY + 1,
};

static int channel = -1;

/* What came from the host and is not a complete frame yet. */
static uint8_t received[2 * (HEADER + PAYLOAD)];
static size_t received_length;

/* The command being assembled from EXEC_PART frames. */
static char command[COMMAND];
static size_t command_length;
static int command_too_long;

/* Input for the running command, from `input_start`; `input_end` is where the next byte goes. */
static uint8_t input[INPUT];
static size_t input_start, input_end;
static int input_closed;

/* The running command: its process (0 when none) and our ends of its pipes (-1 when closed). */
static pid_t child;
static int child_pipes[3] = {-1, -1, -1};

static void send_frame(uint8_t kind, uint8_t frame[HEADER + PAYLOAD], size_t length)
{
    frame[0] = kind;
    frame[1] = 0;
    frame[2] = (uint8_t)(length & 0xff);
    frame[3] = (uint8_t)(length >> 8);
    /* A channel that does not take frames any more leaves nobody to tell. */
    (void)write_all(channel, frame, HEADER + length);
}

static void send_error(const char *what, const char *why)
{
    uint8_t frame[HEADER + PAYLOAD];
    size_t length = 0;
    const char *parts[] = {what, why ? ": " : "", why ? why : ""};

    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t n = strlen(parts[i]);
        memcpy(frame + HEADER + length, parts[i], n);
        length += n;
    }
    send_frame(ERROR, frame, length);
}

static void close_pipe(int which)
{
    if (child_pipes[which] >= 0)
        close(child_pipes[which]);
    child_pipes[which] = -1;
}

/* Passes on what one output pipe holds. Returns 0 at the end of the pipe. */
static int forward_output(int which)
{
    uint8_t frame[HEADER + PAYLOAD];
    ssize_t n;

    do {
        n = read(child_pipes[which], frame + HEADER, PAYLOAD);
    } while (n < 0 && errno == EINTR);
    if (n <= 0) {
        close_pipe(which);
        return 0;
    }
    send_frame(which == 1 ? STDOUT : STDERR, frame, (size_t)n);
    return 1;
}

/* What the command wrote before it ended. A background process may keep the pipe open for ever,
 * so the command's output ends where the pipe is empty, not where it is closed. */
static void drain_output(int which)
{
    struct pollfd fd = {.fd = child_pipes[which], .events = POLLIN};

    while (child_pipes[which] >= 0 && poll(&fd, 1, 0) > 0)
        if (!forward_output(which))
            break;
    close_pipe(which);
}

static void feed_input(void)
{
    size_t n = input_end - input_start;
    ssize_t written;

    if (n > PIPE_BUF)
        n = PIPE_BUF;
    written = n ? write(child_pipes[0], input + input_start, n) : 0;
    if (written < 0 && errno != EINTR && errno != EAGAIN) {
        /* The command reads no more: the rest is dropped, as a shell's pipe would. */
        close_pipe(0);
        return;
    }
    if (written > 0)
        input_start += (size_t)written;
    if (input_start == input_end) {
        input_start = input_end = 0;
        if (input_closed)
            close_pipe(0);
    }
}

static void take_input(const uint8_t *data, size_t length)
{
    /* A command that has ended or closed its input is the usual reason, and no mistake. */
    if (child_pipes[0] < 0 || input_closed)
        return;
    if (input_end + length > INPUT) {
        memmove(input, input + input_start, input_end - input_start);
        input_end -= input_start;
        input_start = 0;
    }
    memcpy(input + input_end, data, length);
    input_end += length;
}

static int input_has_room(void)
{
    return input_end - input_start + PAYLOAD <= INPUT;
}

static void start_command(void)
{
    const char *const argv[] = {"/bin/sh", "-c", command, NULL};
    int pipes[3][2];
    int opened = 0;

    while (opened < 3 && pipe2(pipes[opened], O_CLOEXEC) == 0)
        opened++;
    if (opened == 3) {
        const int theirs[3] = {pipes[0][0], pipes[1][1], pipes[2][1]};
        child = spawn(argv, NULL, theirs);
    }
    if (opened < 3 || child < 0) {
        const char *why = strerror(errno);
        for (int i = 0; i < opened; i++) {
            close(pipes[i][0]);
            close(pipes[i][1]);
        }
        child = 0;
        send_error("the command could not be started", why);
        return;
    }
    for (int i = 0; i < 3; i++) {
        child_pipes[i] = pipes[i][i == 0];
        close(pipes[i][i != 0]);
    }
    input_start = input_end = 0;
    input_closed = 0;
}

static void take_command(const uint8_t *data, size_t length, int complete)
{
    /* One byte stays free for the terminating NUL. */
    if (length >= COMMAND - command_length)
        command_too_long = 1;
    else {
        memcpy(command + command_length, data, length);
        command_length += length;
    }
    if (!complete)
        return;
    command[command_length] = 0;
    if (command_too_long)
        send_error("the command is longer than 128 KiB", NULL);
    else if (strlen(command) != command_length)
        send_error("the command contains a NUL byte", NULL);
    else if (child)
        send_error("a command is already running", NULL);
    else
        start_command();
    command_length = 0;
    command_too_long = 0;
}

/* All guests of one snapshot have the same random numbers to come, until this. */
static void add_entropy(const uint8_t *bytes)
{
    union {
        struct rand_pool_info info;
        uint8_t space[sizeof(struct rand_pool_info) + ENTROPY];
    } pool = {.info = {.entropy_count = 8 * ENTROPY, .buf_size = ENTROPY}};
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);

    memcpy(pool.info.buf, bytes, ENTROPY);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
        send_error("the random numbers could not be renewed", strerror(errno));
    if (fd >= 0)
        close(fd);
}

static void look_for_disks(void)
{
    int fd = open("/sys/bus/pci/rescan", O_WRONLY | O_CLOEXEC);

    if (fd < 0 || write(fd, "1", 1) != 1)
        send_error("new disks could not be found", strerror(errno));
    if (fd >= 0)
        close(fd);
}

static void say_hello(void)
{
    uint8_t frame[HEADER + PAYLOAD];

    frame[HEADER] = PROTOCOL_VERSION;
    frame[HEADER + 1] = 0;
    send_frame(HELLO, frame, 2);
}

static void wake(const uint8_t *data)
{
    struct timespec now;
    uint64_t ns = 0;

    for (int i = 0; i < 8; i++)
        ns |= (uint64_t)data[i] << (8 * i);
    now.tv_sec = (time_t)(ns / 1000000000);
    now.tv_nsec = (long)(ns % 1000000000);
    add_entropy(data + 8);
    if (clock_settime(CLOCK_REALTIME, &now) < 0)
        send_error("the clock could not be set", strerror(errno));
    if (data[8 + ENTROPY])
        look_for_disks();
    say_hello();
}

static void take_frame(uint8_t kind, const uint8_t *data, size_t length)
{
    switch (kind) {
    case EXEC:
    case EXEC_PART:
        take_command(data, length, kind == EXEC);
        break;
    case STDIN:
        take_input(data, length);
        break;
    case STDIN_EOF:
        input_closed = 1;
        break;
    case SIGNAL:
        if (length != 1 || data[0] < 1 || data[0] > SIGRTMAX)
            send_error("a SIGNAL frame needs one byte, a signal number", NULL);
        else if (child)
            kill(-child, data[0]);
        break;
    case RESIZE:
        if (length != 4)
            send_error("a RESIZE frame needs four bytes, rows and columns", NULL);
        else
            window_changed(data[0] | (unsigned)data[1] << 8, data[2] | (unsigned)data[3] << 8);
        break;
    case WAKE:
        if (length != WAKE_LENGTH)
            send_error("a WAKE frame has another length", NULL);
        else
            wake(data);
        break;
    case POWEROFF:
        power_off(length == 1 ? data[0] : 0);
    default:
        send_error("a frame of an unknown kind was ignored", NULL);
    }
}

/* Takes the complete frames out of `received`, as far as the command's input has room. */
static void take_frames(void)
{
    size_t start = 0;

    while (received_length - start >= HEADER && input_has_room()) {
        const uint8_t *frame = received + start;
        size_t length = (size_t)frame[2] | (size_t)frame[3] << 8;

        if (frame[1] != 0 || length > PAYLOAD) {
            /* The stream is out of step, and a length cannot be trusted to find the next frame. */
            send_error("a malformed frame was dropped with all that was received after it", NULL);
            start = received_length;
            break;
        }
        if (received_length - start < HEADER + length)
            break;
        take_frame(frame[0], frame + HEADER, length);
        start += HEADER + length;
    }
    memmove(received, received + start, received_length - start);
    received_length -= start;
}

static void read_channel(void)
{
    ssize_t n = read(channel, received + received_length, sizeof received - received_length);

    if (n > 0)
        received_length += (size_t)n;
    else if (n == 0 || (errno != EINTR && errno != EAGAIN))
        channel = -1;
}

void agent_start(int fd)
{
    channel = fd;
    say_hello();
}

void agent_poll_setup(struct pollfd fds[POLL_COUNT])
{
    int feeding = input_end > input_start || input_closed;

    /* A frame takes at most half of `received`, so there is always room for the rest of one. Not
     * polling the channel is the flow control: the line's buffer fills, and RTS goes off. */
    fds[POLL_CHANNEL] = (struct pollfd){.fd = input_has_room() ? channel : -1, .events = POLLIN};
    fds[POLL_STDOUT] = (struct pollfd){.fd = child_pipes[1], .events = POLLIN};
    fds[POLL_STDERR] = (struct pollfd){.fd = child_pipes[2], .events = POLLIN};
    fds[POLL_STDIN] = (struct pollfd){.fd = feeding ? child_pipes[0] : -1, .events = POLLOUT};
}

void agent_poll_done(const struct pollfd fds[POLL_COUNT])
{
    if (fds[POLL_STDOUT].revents)
        forward_output(1);
    if (fds[POLL_STDERR].revents)
        forward_output(2);
    if (fds[POLL_STDIN].revents)
        feed_input();
    if (fds[POLL_CHANNEL].revents)
        read_channel();
    take_frames();
}

void agent_child_ended(pid_t pid, int wait_status)
{
    uint8_t frame[HEADER + PAYLOAD];
    uint32_t status = (uint32_t)shell_status(wait_status);

    if (!child || pid != child)
        return;
    drain_output(1);
    drain_output(2);
    close_pipe(0);
    input_start = input_end = 0;
    child = 0;
    /* Whoever sees EXIT may look at the disk's file, or end the machine without asking. */
    sync();
    for (int i = 0; i < 4; i++)
        frame[HEADER + i] = (uint8_t)(status >> (8 * i));
    send_frame(EXIT, frame, 4);
}
