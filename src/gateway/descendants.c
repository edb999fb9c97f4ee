#define _GNU_SOURCE /* syscall */
#include "gateway/descendants.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum {
    TREE_MAX = 512,
    CHILDREN_BYTES = 8 * TREE_MAX, /* numbers have up to seven digits, and a space */
};

/* A process whose number cannot become another's unnoticed. */
struct held {
    pid_t pid;
    int fd; /* a pidfd, -1 for ourselves */
    bool outside;
};

struct tree {
    struct held list[TREE_MAX];
    size_t n;
};

/* The first numbers of a file of children; their count. */
static size_t read_children(int file, pid_t list[TREE_MAX])
{
    char text[CHILDREN_BYTES + 1], *at = text, *end;
    size_t length = 0, n = 0;
    ssize_t got;
    while ((got = pread(file, text + length, CHILDREN_BYTES - length, (off_t)length)) > 0)
        length += (size_t)got;
    text[length] = 0;
    for (; n < TREE_MAX; at = end + 1) {
        long pid = strtol(at, &end, 10);
        if (end == at || *end != ' ') /* else it may be cut off */
            break;
        list[n++] = (pid_t)pid;
    }
    return n;
}

/* ---- SIGTERM ---- */

/* fork(2) leaves parent and group in /proc/PID/stat, after a name that may hold anything. */
static bool read_parent(pid_t pid, pid_t *parent, pid_t *group)
{
    char path[32], text[256], state;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return false;
    ssize_t n = read(file, text, sizeof text - 1);
    close(file);
    text[n > 0 ? n : 0] = 0;
    const char *name_end = strrchr(text, ')');
    return name_end && sscanf(name_end, ") %c %d %d", &state, parent, group) == 3;
}

static int signal_held(int fd, int sig)
{
    return (int)syscall(SYS_pidfd_send_signal, fd, sig, NULL, 0);
}

/* The order is what makes sure of it: held, then seen to be the child of a process that still has
 * its number after that. */
static void hold(struct tree *t, const struct held *parent, pid_t pid)
{
    pid_t of, group;
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        return;
    if (t->n < TREE_MAX && read_parent(pid, &of, &group) && of == parent->pid &&
        (parent->fd < 0 || signal_held(parent->fd, 0) == 0))
        t->list[t->n++] = (struct held){.pid = pid, .fd = fd, .outside = group != getpgrp()};
    else
        close(fd);
}

/* Those of each thread. */
static void hold_children(struct tree *t, const struct held *parent)
{
    char path[32 + sizeof((struct dirent *)NULL)->d_name];
    pid_t children[TREE_MAX];
    snprintf(path, sizeof path, "/proc/%d/task", (int)parent->pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        return;
    for (struct dirent *task; (task = readdir(tasks));) {
        snprintf(path, sizeof path, "%s/children", task->d_name);
        int file = openat(dirfd(tasks), path, O_RDONLY | O_CLOEXEC);
        if (file < 0)
            continue;
        size_t n = read_children(file, children);
        close(file);
        for (size_t i = 0; i < n; i++)
            hold(t, parent, children[i]);
    }
    closedir(tasks);
}

void descendants_terminate(const struct descendants *d)
{
    struct tree t = {.list = {{.pid = getpid(), .fd = -1}}, .n = 1};
    if (d->children >= 0)
        for (size_t i = 0; i < t.n; i++)
            hold_children(&t, &t.list[i]);
    kill(0, SIGTERM);
    for (size_t i = 1; i < t.n; i++) {
        if (t.list[i].outside)
            signal_held(t.list[i].fd, SIGTERM);
        close(t.list[i].fd);
    }
}

/* ---- SIGKILL ---- */

bool descendants_open(struct descendants *d)
{
    d->children = open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
    return d->children >= 0 && prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0;
}

void descendants_kill(const struct descendants *d)
{
    pid_t children[TREE_MAX];
    if (d->children < 0)
        kill(0, SIGKILL);
    size_t n = read_children(d->children, children);
    for (size_t i = 0; i < n; i++)
        kill(children[i], SIGKILL);
}
