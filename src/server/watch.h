/* watch.h - long operations with a deadline for progress; see server.h for the public part. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

enum { WATCHES = 64 };

struct server_watch {
    struct watch_list *list;
    bool used, failed;
    bool minor; /* what it says does not make the service unhealthy */
    char what[96];
    char why[440]; /* failed: the reason */
    uint64_t done, total;
    int64_t stall_ms, changed_ms; /* clock_ms() of the latest progress */
};

struct watch_list {
    pthread_mutex_t lock;
    struct server_watch items[WATCHES];
};

void watch_init(struct watch_list *l);
void watch_release(struct watch_list *l);

/* server_watch_begin, for an operation that the service can do without if it stalls. */
struct server_watch *watch_begin_minor(struct watch_list *l, const char *what, int64_t stall_ms);

struct watch_report {
    bool running;    /* something is under way */
    bool unhealthy;  /* something stalled or failed */
    double progress; /* of the first one under way, 0..1, -1 if unknown */
};

/* Appends one sentence about everything there is to tell to `text`. Any thread. */
struct watch_report watch_report(struct watch_list *l, struct buf *text);
