#define _GNU_SOURCE /* close_range */
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
#include "gateway/descendants.h"

enum {
    CANNOT_START = 127,  /* as shells say it */
    LEFT_MS = 1000,      /* for those that outlive the program, to tidy up after it */
    KILL_AGAIN_MS = 100, /* who has been adopted meanwhile */
};

struct guard {
    pid_t program;
    int status; /* once it has ended */
    bool ended;
    int sigchld; /* a signalfd */
    struct descendants descendants;
};

/* For the group, not for its guard. */
static const int others[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};

static void run_program(char **argv, const sigset_t *mask, pid_t guard)
{
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        signal(others[i], SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* should somebody kill the guard */
    if (getppid() != guard)           /* somebody has */
        _exit(CANNOT_START);
    dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), STDIN_FILENO);
    sigprocmask(SIG_SETMASK, mask, NULL);
    execvp(argv[0], argv);
    fprintf(stderr, "%s cannot be started: %s\n", argv[0], strerror(errno));
    _exit(CANNOT_START);
}

/* Takes leave of all children that have ended, adopted ones included. False: none is left. */
static bool reap(struct guard *g)
{
    pid_t pid;
    int status;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == g->program && !g->ended) { /* its number may come back after that */
            g->ended = true;
            g->status = status;
        }
    return pid == 0;
}

/* Waits for the end of a child, and with `service` for the end of its pipe. True: the latter. */
static bool await(const struct guard *g, int64_t ms, bool service)
{
    struct pollfd fds[] = {{.fd = g->sigchld, .events = POLLIN},
                           {.fd = STDIN_FILENO, .events = POLLIN}};
    struct signalfd_siginfo info;
    if (poll(fds, service ? 2 : 1, ms < INT32_MAX ? (int)ms : INT32_MAX) <= 0)
        return false;
    if (fds[0].revents && read(g->sigchld, &info, sizeof info) < 0)
        return false;
    return fds[1].revents != 0;
}

static void end_all(struct guard *g, int64_t stop_ms)
{
    int64_t until = clock_ms() + stop_ms;
    descendants_terminate(&g->descendants);
    for (bool alone = false; reap(g);) {
        int64_t now = clock_ms();
        if (g->ended && !alone) {
            alone = true;
            until = until < now + LEFT_MS ? until : now + LEFT_MS;
        }
        if (now >= until)
            descendants_kill(&g->descendants);
        await(g, now < until ? until - now : KILL_AGAIN_MS, false);
    }
}

/* Does not return. */
static void end_as(int status)
{
    if (WIFEXITED(status))
        _exit(WEXITSTATUS(status));
    prctl(PR_SET_DUMPABLE, 0); /* its core is the program's business */
    signal(WTERMSIG(status), SIG_DFL);
    raise(WTERMSIG(status));
    _exit(128 + WTERMSIG(status));
}

int guard_main(int argc, char **argv)
{
    sigset_t child, before;
    if (argc < 3 || getpgrp() != getpid()) {
        fputs("terrace guard is started by the service, as the leader of a process group\n",
              stderr);
        return 2;
    }
    close_range(STDERR_FILENO + 1, ~0U, 0); /* libcurl's sockets, which stay open at exec */
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        signal(others[i], SIG_IGN);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &before);
    struct guard g = {.sigchld = signalfd(-1, &child, SFD_CLOEXEC)};
    if (!descendants_open(&g.descendants))
        fprintf(stderr, "terrace guard: only the process group is guarded: %s\n", strerror(errno));
    pid_t self = getpid();
    g.program = g.sigchld < 0 ? -1 : fork();
    if (g.program < 0) {
        fprintf(stderr, "terrace guard: %s\n", strerror(errno));
        return CANNOT_START;
    }
    if (g.program == 0)
        run_program(argv + 2, &before, self);
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC); /* the program's output ends with it */
    dup2(null, STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    while (!g.ended && !await(&g, -1, true))
        reap(&g);
    end_all(&g, strtoll(argv[1], NULL, 10));
    end_as(g.status);
    return CANNOT_START;
}
