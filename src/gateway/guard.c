#define _GNU_SOURCE /* signalfd */
#include "gateway/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

enum { CANNOT_START = 127 }; /* as shells say it */

/* For the group, not for its guard. */
static const int others[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};

static void run_program(char **argv, const sigset_t *mask)
{
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        signal(others[i], SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* should somebody kill the guard */
    dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), STDIN_FILENO);
    sigprocmask(SIG_SETMASK, mask, NULL);
    execvp(argv[0], argv);
    fprintf(stderr, "%s cannot be started: %s\n", argv[0], strerror(errno));
    _exit(CANNOT_START);
}

/* Has the program ended? Then so does the guard, in the same way. */
static void end_as(pid_t program)
{
    int status;
    if (waitpid(program, &status, WNOHANG) != program)
        return;
    if (WIFEXITED(status))
        _exit(WEXITSTATUS(status));
    prctl(PR_SET_DUMPABLE, 0); /* its core is the program's business */
    signal(WTERMSIG(status), SIG_DFL);
    raise(WTERMSIG(status));
    _exit(128 + WTERMSIG(status));
}

/* Waits for the end of the program, or of the service. */
static void watch(pid_t program, int children)
{
    struct pollfd fds[] = {{.fd = STDIN_FILENO, .events = POLLIN},
                           {.fd = children, .events = POLLIN}};
    struct signalfd_siginfo info;
    while (!fds[0].revents) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return;
        if (fds[1].revents && read(children, &info, sizeof info) > 0)
            end_as(program);
    }
}

/* The service is gone. Does not return. */
static void end_group(pid_t program, int children, int64_t stop_ms)
{
    int64_t until = clock_ms() + stop_ms, left;
    kill(0, SIGTERM);
    while ((left = until - clock_ms()) > 0 && waitpid(program, NULL, WNOHANG) == 0) {
        struct pollfd fd = {.fd = children, .events = POLLIN};
        struct signalfd_siginfo info;
        if (poll(&fd, 1, left < INT32_MAX ? (int)left : INT32_MAX) > 0 &&
            read(children, &info, sizeof info) < 0)
            break;
    }
    kill(0, SIGKILL);
}

int guard_main(int argc, char **argv)
{
    sigset_t child, before;
    if (argc < 3 || getpgrp() != getpid()) {
        fputs("terrace guard is started by the service, as the leader of a process group\n",
              stderr);
        return 2;
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        signal(others[i], SIG_IGN);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &before);
    int children = signalfd(-1, &child, SFD_CLOEXEC);
    pid_t program = children < 0 ? -1 : fork();
    if (program < 0) {
        fprintf(stderr, "terrace guard: %s\n", strerror(errno));
        return CANNOT_START;
    }
    if (program == 0)
        run_program(argv + 2, &before);
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC); /* the program's output ends with it */
    dup2(null, STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    watch(program, children);
    end_group(program, children, strtoll(argv[1], NULL, 10));
    return CANNOT_START;
}
