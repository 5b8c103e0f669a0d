/* The guest's first process: mounts, starts the console and the agent, reaps, ends the machine.
 *
 * It is a single small static program, because where the host emulates kernel code every system
 * call costs about 0.7 ms and every page touched for the first time a little more. The same file
 * is also `poweroff`, `halt` and `reboot`, by name, which signal process 1, and by every other name
 * a tool that it unpacks first (tools.c).
 *
 * Kernel command line: `pykvm.agent=1` serves the host on /dev/ttyS1, and over the memory at
 * `pykvm.mailbox=PLACE,SIZE,BELL`; `pykvm.console=` is `shell` (interactive, the default), `pipe`
 * (commands come from a host program's output) or `none`; `pykvm.size=ROWSxCOLUMNS` is the host
 * terminal's size.
 */
#define _GNU_SOURCE 1

#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#ifndef TIOCM_OUT1
#define TIOCM_OUT1 0x2000                       /* the kernel's; only some C libraries name it */
#endif

enum { EXIT_PORT = 0xf4 };

enum console { CONSOLE_SHELL, CONSOLE_PIPE, CONSOLE_NONE };

static const char CONSOLE[] = "/dev/ttyS0";
static const char CHANNEL[] = "/dev/ttyS1";

static pid_t shell = -1;
static enum console console;

int write_all(int fd, const void *data, size_t length)
{
    const char *at = data;

    while (length) {
        ssize_t n = write(fd, at, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        at += n;
        length -= (size_t)n;
    }
    return 0;
}

static void say(const char *text)
{
    (void)write_all(STDERR_FILENO, text, strlen(text));
}

int shell_status(int wait_status)
{
    return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

/* Unmounts what was mounted by hand, the last first. Only a file system that holds on to the disk
 * needs the processes gone; nobody waits for them otherwise. */
static void unmount_all(void)
{
    static char text[16384];
    char *places[64];
    int count = 0;
    int fd = open("/proc/mounts", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

    if (length <= 0)
        return;
    text[length] = 0;
    for (char *line = text; *line && count < 64;) {
        char *end = strchr(line, '\n');
        char *place = strchr(line, ' ');
        if (!end || !place || place > end)
            break;
        *end = 0;
        if (*line == '/') {                     /* a device's path: a file system on a disk */
            places[count++] = ++place;
            *strchr(place, ' ') = 0;
        }
        line = end + 1;
    }
    if (count == 0)
        return;
    kill(-1, SIGTERM);
    usleep(100 * 1000);
    kill(-1, SIGKILL);
    while (count--)
        if (umount2(places[count], 0) < 0)
            mount(NULL, places[count], NULL, MS_REMOUNT | MS_RDONLY, NULL);
}

static void stop(int how, int status)
{
    const unsigned char byte = (unsigned char)status;
    int port;

    chdir("/");
    /* What was printed last still waits in the kernel for the UART, all the longer where another
     * CPU takes its interrupts. */
    tcdrain(STDOUT_FILENO);
    unmount_all();
    sync();
    if (how == RB_POWER_OFF) {
        port = open("/dev/port", O_WRONLY | O_CLOEXEC);
        if (port >= 0)
            (void)pwrite(port, &byte, 1, EXIT_PORT);
    }
    reboot(how);
}

void power_off(int status)
{
    if (getpid() != 1)
        _exit(status);                          /* the agent alone, in a test */
    stop(RB_POWER_OFF, status);
    for (;;)
        pause();
}

static void mount_all(void)
{
    /* devtmpfs first: without /dev there is nothing to complain on. */
    if (mount("dev", "/dev", "devtmpfs", 0, NULL) < 0)
        say("pykvm init: /dev could not be mounted\n");
    if (mount("proc", "/proc", "proc", 0, NULL) < 0)
        say("pykvm init: /proc could not be mounted\n");
    if (mount("sys", "/sys", "sysfs", 0, NULL) < 0)
        say("pykvm init: /sys could not be mounted\n");
    if (mount("tmp", "/tmp", "tmpfs", 0, NULL) < 0)
        say("pykvm init: /tmp could not be mounted\n");
}

/* Names that shell scripts expect, and that devtmpfs does not make. */
static void link_descriptors(void)
{
    symlink("/proc/self/fd", "/dev/fd");
    symlink("/proc/self/fd/0", "/dev/stdin");
    symlink("/proc/self/fd/1", "/dev/stdout");
    symlink("/proc/self/fd/2", "/dev/stderr");
}

/* The value of a word `name=value` of the command line, which is changed; NULL without one. */
static char *option(char *line, const char *name)
{
    size_t length = strlen(name);
    char *at = line;

    while ((at = strstr(at, name))) {
        if ((at == line || at[-1] == ' ') && at[length] == '=') {
            at += length + 1;
            return at;
        }
        at++;
    }
    return NULL;
}

static int begins(const char *text, const char *word)
{
    size_t length = strlen(word);

    return text && !strncmp(text, word, length) && strchr(" \n", text[length]);
}

static struct termios raw_line(void)
{
    struct termios line = {
        .c_cflag = B115200 | CS8 | CREAD | CLOCAL | HUPCL | CRTSCTS,
        .c_cc = {[VMIN] = 1, [VEOF] = 4},
    };
    return line;
}

static void start_agent(const char *mailbox)
{
    const struct termios line = raw_line();
    int fd = open(CHANNEL, O_RDWR | O_NOCTTY | O_CLOEXEC);

    if (fd < 0 || ioctl(fd, TCSETS, &line) < 0) {
        say("pykvm init: the agent's channel /dev/ttyS1 could not be opened\n");
        return;
    }
    agent_start(fd, "/dev/mem", mailbox, 1);
}

static void start_pipe_shell(void)
{
    static const char *const argv[] = {"/bin/sh", NULL};
    const int ready = TIOCM_OUT1;
    const struct termios line = raw_line();
    /* Not as the session's terminal: when a session's leader ends, Linux throws away what its
     * terminal has not sent yet. */
    int output = open(CONSOLE, O_WRONLY | O_NOCTTY | O_CLOEXEC);
    int input = script_start(STDIN_FILENO);
    const struct program program = {.argv = argv, .fds = {input, output, output}};

    if (input < 0 || output < 0)
        return;
    /* No echo, no signals, and output exactly as written. */
    ioctl(STDIN_FILENO, TCSETS, &line);
    /* The host holds the input back until now: earlier, it would be echoed, and ^C or ^Z in it
     * would not be data. */
    ioctl(STDIN_FILENO, TIOCMBIS, &ready);
    shell = spawn(&program, NULL);
    close(input);
    close(output);
}

void window_changed(unsigned rows, unsigned columns)
{
    const struct winsize window = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};

    ioctl(STDIN_FILENO, TIOCSWINSZ, &window);
}

static void start_shell(char *size)
{
    static const char *const argv[] = {"/bin/sh", NULL};
    const struct program program = {.argv = argv, .terminal = CONSOLE};
    struct utsname system;
    struct winsize window = {.ws_row = 24, .ws_col = 80};

    if (size) {
        window.ws_row = (unsigned short)strtoul(size, &size, 10);
        if (*size == 'x')
            window.ws_col = (unsigned short)strtoul(size + 1, NULL, 10);
    }
    /* A shell that finds no size asks the terminal with an escape sequence, and waits. */
    ioctl(STDIN_FILENO, TIOCSWINSZ, &window);
    uname(&system);
    say("pykvm guest, Linux ");
    say(system.release);
    say(": `exit` powers off\n");
    shell = spawn(&program, NULL);
}

static void start_console(char *line)
{
    char *mode = option(line, "pykvm.console");

    console = begins(mode, "none") ? CONSOLE_NONE : begins(mode, "pipe") ? CONSOLE_PIPE
                                                                         : CONSOLE_SHELL;
    if (console == CONSOLE_PIPE)
        start_pipe_shell();
    else if (console == CONSOLE_SHELL)
        start_shell(option(line, "pykvm.size"));
    if (console != CONSOLE_NONE && shell < 0) {
        say("pykvm init: the shell could not be started\n");
        power_off(EXEC_FAILED);
    }
}

static void reap(void)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        agent_child_ended(pid, status);
        if (shell > 0 && pid == shell)
            power_off(console == CONSOLE_PIPE ? shell_status(status) : 0);
    }
}

static void take_signal(int fd)
{
    struct signalfd_siginfo signal;

    if (read(fd, &signal, sizeof signal) != sizeof signal)
        return;
    if (signal.ssi_signo == SIGCHLD)
        reap();
    else if (signal.ssi_signo == SIGUSR1 || signal.ssi_signo == SIGUSR2)
        power_off(0);
    else if (signal.ssi_signo == SIGTERM)
        stop(RB_AUTOBOOT, 0);
}

static void run(void)
{
    struct pollfd fds[POLL_COUNT];
    sigset_t awaited = signals;
    int signal_fd;

    sigdelset(&awaited, SIGPIPE);
    signal_fd = signalfd(-1, &awaited, SFD_CLOEXEC);
    for (;;) {
        int count;

        fds[POLL_SIGNALS] = (struct pollfd){.fd = signal_fd, .events = POLLIN};
        script_poll_setup(fds);
        count = agent_poll_setup(fds, POLL_AGENT);
        if (poll(fds, (nfds_t)count, agent_wait()) < 0)
            continue;
        agent_poll_done(fds);
        script_poll_done(fds);
        if (fds[POLL_SIGNALS].revents)
            take_signal(signal_fd);
        if (agent_lost() && getpid() != 1)
            _exit(0);                           /* a test has closed its end */
    }
}

static void boot(void)
{
    static char line[4096];
    const char *term = getenv("TERM");
    ssize_t length;
    int fd;

    if (term)
        spawn_terminal_type(term);
    mount_all();
    link_descriptors();
    chdir("/root");
    fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    length = fd < 0 ? 0 : read(fd, line, sizeof line - 1);
    line[length > 0 ? length : 0] = 0;
    close(fd);
    start_console(line);
    if (begins(option(line, "pykvm.agent"), "1"))
        start_agent(option(line, "pykvm.mailbox"));
}

/* The signal that asks process 1 for what a command is called; 0 for all other names. */
static int request(const char *name)
{
    if (!strcmp(name, "reboot"))
        return SIGTERM;
    if (!strcmp(name, "halt"))
        return SIGUSR1;
    return strcmp(name, "poweroff") ? 0 : SIGUSR2;
}

static int ask_init(int signal)
{
    if (kill(1, signal) == 0)
        return 0;
    say("the machine can be ended by root only\n");
    return 1;
}

int main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/');
    const char *name = slash ? slash + 1 : argv[0];

    if (getpid() != 1 && argc >= 3 && !strcmp(argv[1], "--agent")) {
        block_signals();
        agent_start(atoi(argv[2]), argc == 5 ? argv[3] : NULL, argc == 5 ? argv[4] : NULL, 0);
        run();
    }
    if (getpid() != 1)
        return request(name) ? ask_init(request(name)) : run_tool(name, argv);
    block_signals();
    boot();
    run();
}
