/* How programs are started. */
#define _GNU_SOURCE 1

#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { VARIABLES = 1024, MORE = STDERR_FILENO + 1 };

static const char *environment[] = {
    "PATH=/bin", "HOME=/root", "USER=root", "SHELL=/bin/sh", "TERM=linux", NULL,
};
enum { ENVIRONMENT_PATH = 0, ENVIRONMENT_TERM = 4, ENVIRONMENT_COUNT = 5 };

sigset_t signals;

void spawn_terminal_type(const char *term)
{
    environment[ENVIRONMENT_TERM] = term - strlen("TERM=");
}

void block_signals(void)
{
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGUSR1);
    sigaddset(&signals, SIGUSR2);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGPIPE);               /* a command that stops reading is no reason to die */
    sigprocmask(SIG_BLOCK, &signals, NULL);
}

/* The variable of `variables` that has the name of `text`, up to its '='. */
static const char *same_name(const char *const *variables, const char *text)
{
    size_t length = strcspn(text, "=") + 1;

    for (; variables && *variables; variables++)
        if (!strncmp(*variables, text, length))
            return *variables;
    return NULL;
}

/* Becomes the program. Returns only when that fails. */
static void become(const char *const *argv, const char *const *variables)
{
    const char *all[ENVIRONMENT_COUNT + VARIABLES + 1];
    char *const *words = (char *const *)argv;
    char *const *with = (char *const *)all;
    const char *path = same_name(variables, environment[ENVIRONMENT_PATH]);
    char place[4096];
    size_t count = 0;

    for (int i = 0; environment[i]; i++)
        if (!same_name(variables, environment[i]))
            all[count++] = environment[i];
    for (size_t i = 0; variables && variables[i] && i < VARIABLES; i++)
        all[count++] = variables[i];
    all[count] = NULL;
    if (strchr(argv[0], '/')) {
        execve(argv[0], words, with);
        return;
    }
    path = (path ? path : environment[ENVIRONMENT_PATH]) + strlen("PATH=");
    for (const char *end; *path; path = *end ? end + 1 : end) {
        end = path + strcspn(path, ":");
        if ((size_t)(end - path) + strlen(argv[0]) + 2 > sizeof place)
            continue;
        memcpy(place, path, (size_t)(end - path));
        place[end - path] = '/';
        strcpy(place + (end - path) + 1, argv[0]);
        execve(place, words, with);
        if (errno != ENOENT && errno != ENOTDIR)
            return;
    }
    /* Most applets of busybox have no file, as the shell knows too. */
    execve("/bin/busybox", words, with);
}

pid_t spawn(const struct program *program, const char **culprit)
{
    volatile int failure = 0;
    volatile int no_folder = 0;
    pid_t pid;

    /* vfork: copying the page tables, as fork does, is what a process costs most here. The child
     * shares this memory until it has replaced itself, which is how `failure` comes back. */
    pid = vfork();
    if (pid == 0) {
        int line = -1;

        setsid();
        if (program->terminal) {
            line = open(program->terminal, O_RDWR);
            if (line < 0)
                failure = errno;
        }
        for (int i = 0; i < 3 && !failure; i++)
            if (dup2(program->terminal ? line : program->fds[i], i) < 0)
                failure = errno;
        if (line > STDERR_FILENO)
            close(line);
        for (int i = 0; i < 2 && !failure && program->more[i]; i++)
            if (dup2(program->more[i], MORE + i) < 0)
                failure = errno;
        if (!failure && program->folder && chdir(program->folder) < 0) {
            failure = errno;
            no_folder = 1;
        }
        if (!failure) {
            sigprocmask(SIG_UNBLOCK, &signals, NULL);
            become(program->argv, program->variables);
            failure = errno;
        }
        _exit(EXEC_FAILED);
    }
    if (pid > 0 && failure) {
        waitpid(pid, NULL, 0);
        if (culprit)
            *culprit = no_folder ? program->folder : program->argv[0];
        errno = failure;
        return -1;
    }
    return pid;
}
