/* What the parts of the guest's first process share. */
#ifndef PYKVM_GUEST_H
#define PYKVM_GUEST_H

#include <poll.h>
#include <stddef.h>
#include <sys/types.h>

/* Descriptors that the main loop polls: signals, the channel, a command's three pipes, and for a
 * script the console and the shell's input. */
enum {
    POLL_SIGNALS, POLL_CHANNEL, POLL_STDOUT, POLL_STDERR, POLL_STDIN, POLL_CONSOLE, POLL_SCRIPT,
    POLL_COUNT,
};

/* The status of a program that could not be run, as shells have it. */
enum { EXEC_FAILED = 127 };

/* Starts a program with the given standard descriptors in a session of its own, signals unblocked.
 * A terminal path instead of descriptors makes that terminal the session's controlling one.
 * Returns the process id, or -1 with errno set, also when the program itself could not be run. */
pid_t spawn(const char *const argv[], const char *terminal, const int fds[3]);

/* agent.c: the channel to the host. */
void agent_start(int fd);
void agent_poll_setup(struct pollfd fds[POLL_COUNT]);
void agent_poll_done(const struct pollfd fds[POLL_COUNT]);
void agent_child_ended(pid_t pid, int wait_status);

/* script.c: passes a script from the console `fd`, in raw mode, to the pipe whose other end it
 * returns; -1 with errno set if there can be none. */
int script_start(int fd);
void script_poll_setup(struct pollfd fds[POLL_COUNT]);
void script_poll_done(const struct pollfd fds[POLL_COUNT]);

/* tools.c: becomes the tool `name`, after unpacking it. Returns an exit status if it cannot. */
int run_tool(const char *name, char **argv);

/* The host's terminal has another size now: so has the console, and its programs are told. */
void window_changed(unsigned rows, unsigned columns);

/* The end of the machine: flushes, unmounts, and reports `status` to the host. */
void power_off(int status) __attribute__((noreturn));

/* Writes all of it, whatever a single write takes. Returns 0, or -1 with errno set. */
int write_all(int fd, const void *data, size_t length);

/* A wait status as a shell shows it: the exit code, or 128 + the signal's number. */
int shell_status(int wait_status);

#endif
