#define _GNU_SOURCE
#include "base/pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

/* Long enough to cover the gap between two steps of a busy engine, short enough that the other
 * threads of a small machine are not starved: about 20 us. */
enum { POOL_SPINS = 2000 };

/* A number that threads wait on. Who changes it asks the kernel to wake somebody only when somebody
 * sleeps. Both sides are sequentially consistent: either the sleeper sees the change, or the one
 * who changes sees the sleeper. */
struct word {
    _Alignas(64) atomic_uint value;
    atomic_uint sleepers;
};

struct pool {
    int n;
    pthread_t *threads; /* n - 1 */
    pool_fn *fn;
    void *arg;
    bool stop;
    struct word job;                  /* counts jobs; workers wait for it to change */
    struct word running;              /* workers still in the current job */
    struct word round;                /* counts barriers passed */
    _Alignas(64) atomic_uint arrived; /* at the current barrier */
    _Alignas(64) atomic_bool busy;    /* a job is running */

    pthread_mutex_t lock;     /* guards turns */
    pthread_cond_t turn_over; /* somebody has left */
    struct turns turns;
    atomic_int n_waiting; /* for their turn */
    int64_t slice_ns;
};

struct worker {
    struct pool *pool;
    int ith;
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Call after changing w->value. */
static void wake(struct word *w)
{
    if (atomic_load(&w->sleepers))
        syscall(SYS_futex, &w->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Returns when w->value is no longer `old`. */
static void wait_change(struct word *w, unsigned old)
{
    for (int i = 0; i < POOL_SPINS; i++) {
        if (atomic_load_explicit(&w->value, memory_order_acquire) != old)
            return;
        relax();
    }
    atomic_fetch_add(&w->sleepers, 1);
    while (atomic_load(&w->value) == old)
        syscall(SYS_futex, &w->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&w->sleepers, 1);
}

static void *work(void *arg)
{
    struct worker w = *(struct worker *)arg;
    free(arg);
    struct pool *p = w.pool;
    for (unsigned seen = 0;; seen++) {
        wait_change(&p->job, seen);
        if (p->stop)
            return NULL;
        p->fn(p->arg, w.ith, p->n);
        if (atomic_fetch_sub(&p->running.value, 1) == 1)
            wake(&p->running);
    }
}

/* The CPU quota of the cgroup (v2, then v1) in whole processors, rounded up; 0 if there is none. */
static int cgroup_cpus(void)
{
    long long quota = -1, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f) {
        if (fscanf(f, "%lld %lld", &quota, &period) != 2)
            quota = -1;
        fclose(f);
    } else if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re"))) {
        if (fscanf(f, "%lld", &quota) != 1)
            quota = -1;
        fclose(f);
        if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re"))) {
            if (fscanf(f, "%lld", &period) != 1)
                period = 0;
            fclose(f);
        }
    }
    return quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

int pool_cpus(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    int quota = cgroup_cpus();
    if (quota && quota < n)
        n = quota;
    return n < 1 ? 1 : n;
}

static void init_turns(struct pool *p)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->turn_over, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&p->lock, NULL);
    p->slice_ns = POOL_SLICE_NS;
}

int pool_new(struct pool **out, int n_threads, struct err *e)
{
    if (n_threads < 0 || n_threads > 1024)
        return err_param(e, ERR_INVALID, "threads", "threads must be 0 (automatic) to 1024, not %d",
                         n_threads);
    struct pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (!p)
        return err_set(e, ERR_NOMEM, "out of memory starting the compute threads");
    memset(p, 0, sizeof *p);
    init_turns(p);
    int want = n_threads ? n_threads : pool_cpus();
    p->threads = xcalloc((size_t)want, sizeof *p->threads);
    p->n = 1;
    for (; p->n < want; p->n++) {
        struct worker *w = xmalloc(sizeof *w);
        *w = (struct worker){p, p->n};
        int rc = pthread_create(&p->threads[p->n - 1], NULL, work, w);
        if (rc) {
            free(w);
            pool_free(p);
            return err_set(e, ERR_IO, "starting compute thread %d: %s", p->n, strerror(rc));
        }
        char name[16];
        snprintf(name, sizeof name, "compute-%d", p->n);
        pthread_setname_np(p->threads[p->n - 1], name);
    }
    *out = p;
    return 0;
}

void pool_free(struct pool *p)
{
    if (!p)
        return;
    p->stop = true;
    atomic_fetch_add(&p->job.value, 1);
    wake(&p->job);
    for (int i = 0; i + 1 < p->n; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->turn_over);
    pthread_mutex_destroy(&p->lock);
    free(p->threads);
    free(p);
}

int pool_threads(const struct pool *p)
{
    return p->n;
}

/* Under the lock; u has asked. */
static void wait_turn(struct pool *p, struct turn_user *u)
{
    atomic_fetch_add(&p->n_waiting, 1);
    for (;;) {
        int64_t until = INT64_MAX;
        if (!p->turns.holder && turn_next(&p->turns, clock_ns(), &until) == u)
            break;
        struct timespec at = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
        if (until == INT64_MAX)
            pthread_cond_wait(&p->turn_over, &p->lock);
        else
            pthread_cond_timedwait(&p->turn_over, &p->lock, &at);
    }
    atomic_fetch_sub(&p->n_waiting, 1);
    turn_begin(&p->turns, u, clock_ns());
}

static void end_turn(struct pool *p)
{
    turn_end(&p->turns, clock_ns());
    if (p->turns.waiting)
        pthread_cond_broadcast(&p->turn_over);
}

void pool_enter(struct pool *p, struct turn_user *u)
{
    pthread_mutex_lock(&p->lock);
    turn_ask(&p->turns, u);
    wait_turn(p, u);
    pthread_mutex_unlock(&p->lock);
}

void pool_leave(struct pool *p)
{
    pthread_mutex_lock(&p->lock);
    end_turn(p);
    pthread_mutex_unlock(&p->lock);
}

/* Only the holder changes begun_ns while it holds. */
bool pool_wanted(const struct pool *p)
{
    return atomic_load_explicit(&p->n_waiting, memory_order_relaxed) &&
           clock_ns() - p->turns.begun_ns >= p->slice_ns;
}

void pool_yield(struct pool *p)
{
    pthread_mutex_lock(&p->lock);
    struct turn_user *u = p->turns.holder;
    if (u && p->turns.waiting) {
        int64_t left_ns = clock_ns();
        end_turn(p);
        turn_ask(&p->turns, u);
        wait_turn(p, u);
        u->away_ns += p->turns.begun_ns - left_ns;
    }
    pthread_mutex_unlock(&p->lock);
}

void pool_set_slice(struct pool *p, int64_t slice_ns)
{
    p->slice_ns = slice_ns;
}

void pool_run(struct pool *p, pool_fn *fn, void *arg)
{
    BUG_ON(atomic_exchange_explicit(&p->busy, true, memory_order_acquire));
    p->fn = fn;
    p->arg = arg;
    atomic_store_explicit(&p->running.value, (unsigned)p->n - 1, memory_order_relaxed);
    if (p->n > 1) {
        atomic_fetch_add(&p->job.value, 1);
        wake(&p->job);
    }
    fn(arg, 0, p->n);
    unsigned left;
    while ((left = atomic_load_explicit(&p->running.value, memory_order_acquire)))
        wait_change(&p->running, left);
    atomic_store_explicit(&p->busy, false, memory_order_release);
}

void pool_barrier(struct pool *p, int ith)
{
    (void)ith;
    if (p->n == 1)
        return;
    unsigned round = atomic_load_explicit(&p->round.value, memory_order_acquire);
    if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) + 1 == (unsigned)p->n) {
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        atomic_fetch_add(&p->round.value, 1);
        wake(&p->round);
    } else {
        wait_change(&p->round, round);
    }
}
