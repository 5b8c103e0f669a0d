/* What the parts of the agent share. agent.c describes the frames. */
#ifndef PYKVM_AGENT_H
#define PYKVM_AGENT_H

#include "guest.h"

#include <stdint.h>

enum {
    HELLO = 0x01, STDOUT = 0x02, STDERR = 0x03, EXIT = 0x04, ERROR = 0x05, CREDIT = 0x06,
    DATA = 0x07, DONE = 0x08,
    RUN = 0x81, RUN_PART = 0x82, STDIN = 0x83, STDIN_EOF = 0x84, SIGNAL = 0x85, POWEROFF = 0x86,
    RESIZE = 0x87, WAKE = 0x88, OUTPUT_CREDIT = 0x89, PUSH = 0x8a, PULL = 0x8b, DMESG = 0x8c,
    RESCAN = 0x8d, SETTLE = 0x8e,
};

enum {
    PROTOCOL_VERSION = 3,
    HEADER = 4,
    PAYLOAD = 32 * 1024,
    REQUEST = 256 * 1024,        /* the most bytes of one RUN, all its parts together */
    JOBS = 64,                   /* requests that run at the same time */
    SHELLS = 2,                  /* that wait for a line */
    MOST_LINE = 32 * 1024,       /* with its NUL; an empty pipe takes 64 KiB at once */
    INPUT_WINDOW = 64 * 1024,    /* bytes of input that the host may send ahead, for each job */
    OUTPUT_WINDOW = 256 * 1024,  /* bytes of each output that may be sent ahead */
    ENTROPY = 32,
};

/* channel.c: frames to and from the host. */

/* The serial line is `fd`. */
void channel_open(int fd);
/* Maps the mailbox of `size` bytes at `place` in the file `path`, and the bell if it has a place.
 * Returns 0, or -1 when that is not possible: then the frames go over the line. */
int channel_map(const char *path, uint64_t place, size_t size, uint64_t bell);
/* The descriptor to poll for POLLIN; -1 when the line is gone. */
int channel_fd(void);
/* That descriptor is readable. */
void channel_read(void);
/* The next complete frame from the host, valid until channel_taken(); 0 when there is none. */
struct frame {
    uint8_t kind, id;
    uint16_t length;
    const uint8_t *data;
};
int channel_next(struct frame *frame);
void channel_taken(const struct frame *frame);
/* The most bytes of output that a frame can carry now; 0 when output has to wait. */
size_t channel_room(void);
/* Where the payload of the next frame is put, before channel_send(). */
uint8_t *channel_space(void);
void channel_send(uint8_t kind, uint8_t id, size_t length);
/* A frame with this payload. */
void channel_put(uint8_t kind, uint8_t id, const void *data, size_t length);
/* ERROR with "what: why". */
void channel_error(uint8_t id, const char *what, const char *why);
/* Tells the host of all that was sent and taken since the last call. */
void channel_flush(void);
/* Whether channel_next() would find a frame. */
int channel_pending(void);
/* Call before this side sleeps. Returns 0 if it must not, because a frame has come. A frame that
 * comes later makes the descriptor readable. `idle`: it looks for a while before. */
int channel_sleep(int idle);
/* This side does not sleep any more. */
void channel_awake(void);

/* jobs.c: what the host has asked for and is not done. */

enum job_kind { JOB_NONE, JOB_COMMAND, JOB_PUSH, JOB_PULL };

struct job {
    enum job_kind kind;
    uint8_t id;                  /* 0 when the host that asked is gone */
    /* Our ends of a command's pipes; a pushed file is [0], a pulled file [1]. -1 when closed. */
    int ends[3];
    int polled[3];               /* the place of each among the polled descriptors, or -1 */
    uint32_t credit[3];          /* bytes of each output that may still be sent */
    /* The input, from `input_start`; `input_end` is where the next byte goes. */
    size_t input_start, input_end;
    uint32_t input_taken;        /* bytes that the host has not heard of yet */
    int input_closed, nonblocking;
    /* A command. */
    pid_t pid;
    int ended, wait_status;
    int left[3];                 /* when it has ended: bytes of each output that it has written */
    int timed_out;
    /* Where a shell that waited for its line tells its status, with 0x100, before it has ended. */
    volatile uint32_t *told;
    int line;                    /* where such a shell reads its line, or -1 */
    int spent[3];                /* our ends of outputs that are over, closed with the job; or -1 */
    int touched;                 /* it has got input or a signal */
    uint64_t deadline;           /* in ns of CLOCK_MONOTONIC; 0: none */
    /* A pushed file. */
    unsigned mode;
    char path[4096], temporary[4096];
    uint8_t input[INPUT_WINDOW];
};

/* The job with this id, or NULL. */
struct job *job_find(uint8_t id);
/* A new job; NULL after an ERROR frame when there are too many or the id is taken. */
struct job *job_new(uint8_t id, enum job_kind kind);
/* Closes what is open and forgets the job. */
void job_end(struct job *job);
/* Whether a command runs that somebody waits for. */
int jobs_running(void);
/* The host is gone, and the next one knows nothing of these jobs. */
void jobs_detach(void);
void job_close(struct job *job, int which);
int jobs_poll_setup(struct pollfd *fds, int count);
void jobs_poll_done(const struct pollfd *fds);
/* The time until something has to be done, in ms for poll(). */
int jobs_wait(void);
void jobs_child_ended(pid_t pid, int wait_status);
void take_input(struct job *job, const uint8_t *data, size_t length);
void take_credit(struct job *job, const uint8_t *data, size_t length);

/* command.c: RUN and SIGNAL. */
void command_part(const struct frame *frame);
/* Forgets the parts of a RUN that never came to its end. */
void command_forget(void);
void command_signal(struct job *job, int number);
/* A shell that waited was killed before it had its line: another one runs it. Returns 0 when that
 * is not so. */
int command_again(struct job *job);
/* Kills a command whose time is over. */
void command_expired(struct job *job, uint64_t now);
/* The end: EXIT. */
void command_done(struct job *job);

/* shell.c: shells that wait for a line, and SETTLE. */
void shells_enable(void);
/* A command starts or ends now. */
void shells_busy(void);
/* Gives the line to a shell that waits, which becomes the job's. Returns 0 when there is none. */
int shell_take(struct job *job, const char *line);
/* The line that the job's shell, which is dead, has not read. Returns its length, or 0. */
size_t shell_unread(struct job *job, char *line, size_t space);
/* Frees what `told` of a job is, and lets its shell end. */
void shell_forget(volatile uint32_t *told);
int shells_poll_setup(struct pollfd *fds, int count);
int shells_wait(void);
void shells_poll_done(const struct pollfd *fds);
void shells_child_ended(pid_t pid);
/* DONE when all shells wait. */
void shells_settle(uint8_t id);
void shells_detach(void);

/* files.c: PUSH, PULL, DMESG. */
void push_start(const struct frame *frame);
void push_data(struct job *job, const uint8_t *data, size_t length);
void push_finish(struct job *job);
void push_drop(struct job *job);
void pull_start(const struct frame *frame);
void pull_log(const struct frame *frame);

/* agent.c: HELLO. */
void agent_hello(uint64_t number, const char *problem);

/* wake.c: WAKE and RESCAN. */
/* Opens what WAKE needs, because each restored guest would do it again. */
void wake_prepare(void);
void wake(const struct frame *frame);
void rescan(const struct frame *frame);

uint64_t monotonic_ns(void);
uint32_t get_u32(const uint8_t *data);
uint64_t get_u64(const uint8_t *data);
void put_u32(uint8_t *data, uint32_t value);
void put_u64(uint8_t *data, uint64_t value);

#endif
