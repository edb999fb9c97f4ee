/* pool.h - the compute threads.
 *
 * A pool runs one job at a time: fn(arg, ith, nth) on every thread, the caller being thread 0.
 * Inside a job the threads meet at pool_barrier. A waiting worker spins for a short while and then
 * sleeps, so an idle pool costs nothing and a busy one wakes fast.
 *
 * Those who share a pool take turns, each for jobs that belong together (a step of an engine):
 * between pool_enter and pool_leave it is theirs, except where they yield. Who has a pool alone
 * need not enter.
 */
#pragma once

#include <stdbool.h>

#include "base/err.h"
#include "base/turn.h"

struct pool;

/* For so long a turn goes on while others wait, before pool_wanted says so. */
enum { POOL_SLICE_NS = 20000000 };

typedef void pool_fn(void *arg, int ith, int nth);

/* n_threads >= 1, the caller included; 0 takes as many as the process may use (affinity and cgroup
 * quota respected). */
int pool_new(struct pool **out, int n_threads, struct err *e);
void pool_free(struct pool *p);

int pool_threads(const struct pool *p);

/* Waits for u's turn (turn.h says whose it is). */
void pool_enter(struct pool *p, struct turn_user *u);
void pool_leave(struct pool *p);

/* On the thread that entered, in a job too: whether others wait and its turn has been long enough.
 * False where nobody enters. */
bool pool_wanted(const struct pool *p);

/* Between two jobs: others go first if it is their turn. */
void pool_yield(struct pool *p);

/* Another length than POOL_SLICE_NS, while nobody has entered. */
void pool_set_slice(struct pool *p, int64_t slice_ns);

/* Runs fn on every thread and returns when all are done. Not reentrant; one caller at a time. */
void pool_run(struct pool *p, pool_fn *fn, void *arg);

/* Called by every thread of a running job: nobody goes on before all have arrived. Writes before
 * the barrier are visible after it. */
void pool_barrier(struct pool *p, int ith);

/* How many processors this process may use: affinity mask and cgroup CPU quota, at least 1. */
int pool_cpus(void);
