/* managed.h - backends that are programs of ours: started, watched, restarted, stopped.
 *
 * A program gets a process group of its own, a guard (guard.h: the executable must hand its verb
 * over), no standard input, and a pipe for its output, which goes to our log line by line under the
 * backend's name. One that ends, or is not healthy within start_ms, is started again after a pause
 * that doubles up to a minute. Ending everything that came from it is the guard's: SIGTERM, and
 * SIGKILL after stop_ms; only then it counts as ended, so that the next one finds its port and its
 * memory free. What even SIGKILL does not end is left behind after 15 more seconds. The loop's
 * thread. */
#pragma once

#include "gateway/backend.h"

bool managed_runs(const struct backend *b);

/* Starts what should run, ends what should not. Returns when to look again, 0: no need. */
int64_t managed_look(struct backend *b, int64_t now_ms);

/* Somebody needs a backend that was stopped for being idle. */
void managed_wake(struct backend *b);

/* true: there is no process (any more). Else it is told to end, and backends_poke comes then. */
bool managed_stop(struct backend *b);

/* With the backend, when nothing runs. */
void managed_free(struct backend *b);
