/* What the parts of the guest's first process share. */
#ifndef PYKVM_GUEST_H
#define PYKVM_GUEST_H

#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/types.h>

/* Descriptors that the main loop polls: signals, for a script the console and the shell's input,
 * and from POLL_AGENT on the agent's. */
enum { POLL_SIGNALS, POLL_CONSOLE, POLL_SCRIPT, POLL_AGENT, POLL_COUNT = POLL_AGENT + 256 };

/* The status of a program that could not be run, as shells have it. */
enum { EXEC_FAILED = 127 };

/* A program to start. */
struct program {
    const char *const *argv;            /* a name without '/' is looked for as a shell does */
    const char *const *variables;       /* more of the environment, or NULL */
    const char *folder;                 /* the working directory, or NULL */
    const char *terminal;               /* the session's terminal, instead of `fds`, or NULL */
    int fds[3];
    int more[2];                        /* become descriptors 3 and 4; 0: none */
};

/* spawn.c: starts a program in a session of its own, signals unblocked. Returns the process id, or
 * -1 with errno set, also when the program itself could not be run: then `culprit`, if given, is
 * its name, or that of its folder. */
pid_t spawn(const struct program *program, const char **culprit);
/* The value of TERM that programs get. */
void spawn_terminal_type(const char *term);
void block_signals(void);
extern sigset_t signals;

/* agent.c: the channel to the host over the serial line `fd` and, if `mailbox` is its place, size
 * and bell ("N,N,N"), over a piece of the file `memory`. The descriptors to poll are those from
 * `count` on; their new number is returned. `shells`: some are started before they are needed. */
void agent_start(int fd, const char *memory, const char *mailbox, int shells);
int agent_poll_setup(struct pollfd *fds, int count);
/* How long poll() may wait, in ms. */
int agent_wait(void);
void agent_poll_done(const struct pollfd *fds);
int agent_lost(void);
void agent_child_ended(pid_t pid, int wait_status);

/* script.c: passes a script from the console `fd`, in raw mode, to the pipe whose other end it
 * returns; -1 with errno set if there can be none. */
int script_start(int fd);
void script_poll_setup(struct pollfd *fds);
void script_poll_done(const struct pollfd *fds);

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
