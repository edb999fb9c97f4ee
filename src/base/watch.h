/* watch.h - a watchdog over one slow operation: a download, a load, a step, an upstream.
 *
 * The operation says when it starts, makes progress and stops; anyone may ask whether it has gone
 * silent for longer than its limit. Nothing is killed: the operation is reported, the rest of the
 * process goes on. {.name = "..."} is a watch at rest. watch_start/beat/stop belong to the
 * operation's thread, watch_late to any. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct watch {
    const char *name;             /* "model load" */
    int64_t limit_ms;             /* longest silence */
    _Atomic int64_t last_sign_ms; /* clock_ms of the last sign of life, 0: at rest */
};

void watch_start(struct watch *w, int64_t limit_ms);
void watch_beat(struct watch *w); /* progress was made */
void watch_stop(struct watch *w);

/* True when the operation runs and has been silent for longer than its limit; *silent_ms is then
 * how long. */
bool watch_late(const struct watch *w, int64_t *silent_ms);
