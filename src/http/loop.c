#define _GNU_SOURCE
#include "http/loop.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <uv.h>

#include "base/mem.h"

struct post {
    http_loop_fn *fn;
    void *arg;
};

struct posts {
    struct post *items;
    size_t n, cap;
};

struct http_loop {
    uv_loop_t uv;
    uv_async_t wake;
    atomic_bool stop;
    pthread_mutex_t lock;
    struct posts waiting; /* under lock */
    struct posts running; /* the loop's thread only; swapped with waiting, so memory is reused */
};

struct http_timer {
    uv_timer_t uv;
    http_loop_fn *fn;
    void *arg;
};

/* Runs the posts that wait now. Those that they post wait for the next turn, so that sockets and
 * timers get theirs. Posts are values: swapping the arrays under the lock leaves nothing shared. */
static bool run_posts(struct http_loop *l)
{
    pthread_mutex_lock(&l->lock);
    struct posts now = l->waiting;
    l->waiting = l->running;
    pthread_mutex_unlock(&l->lock);
    for (size_t i = 0; i < now.n; i++)
        now.items[i].fn(now.items[i].arg);
    bool any = now.n > 0;
    now.n = 0;
    l->running = now;
    return any;
}

static void on_wake(uv_async_t *wake)
{
    struct http_loop *l = wake->data;
    run_posts(l);
    if (atomic_load(&l->stop))
        uv_stop(&l->uv);
}

int http_loop_new(struct http_loop **out, struct err *e)
{
    struct http_loop *l = xcalloc(1, sizeof *l);
    int rc = uv_loop_init(&l->uv);
    if (rc == 0) {
        rc = uv_async_init(&l->uv, &l->wake, on_wake);
        if (rc)
            uv_loop_close(&l->uv);
    }
    if (rc) {
        free(l);
        return err_set(e, ERR_IO, "cannot make an event loop: %s", uv_strerror(rc));
    }
    l->wake.data = l;
    pthread_mutex_init(&l->lock, NULL);
    *out = l;
    return 0;
}

void http_loop_free(struct http_loop *l)
{
    if (!l)
        return;
    while (run_posts(l))
        ;
    uv_close((uv_handle_t *)&l->wake, NULL);
    /* A handle that was closed on the last turn is let go on the next one. */
    for (int turn = 0; uv_loop_close(&l->uv) == UV_EBUSY; turn++) {
        BUG_ON(turn == 8); /* a server or timer of this loop is still open */
        uv_run(&l->uv, UV_RUN_NOWAIT);
    }
    pthread_mutex_destroy(&l->lock);
    free(l->waiting.items);
    free(l->running.items);
    free(l);
}

/* sched_setattr(2); the C library has neither the call nor the struct. */
struct sched_attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

enum { NOT_FOR_CHILDREN = 1, TURN_NS = 100 * 1000 }; /* SCHED_FLAG_RESET_ON_FORK */

/* Work comes in crumbs here, and the processors are busy computing. Linux (from 6.12) lets a thread
 * that asks for short turns run at once when it wakes, without a larger share; older ones ignore
 * it. A failure costs latency only. */
static void ask_for_short_turns(void)
{
    struct sched_attributes a = {.size = sizeof a,
                                 .policy = SCHED_OTHER,
                                 .flags = NOT_FOR_CHILDREN,
                                 .nice = getpriority(PRIO_PROCESS, 0),
                                 .runtime_ns = TURN_NS};
    if (sched_getscheduler(0) == SCHED_OTHER)
        (void)syscall(SYS_sched_setattr, 0, &a, 0);
}

void http_loop_run(struct http_loop *l)
{
    ask_for_short_turns();
    sigset_t pipe;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, NULL);
    while (!atomic_load(&l->stop))
        uv_run(&l->uv, UV_RUN_DEFAULT);
    atomic_store(&l->stop, false);
}

void http_loop_stop(struct http_loop *l)
{
    atomic_store(&l->stop, true);
    uv_async_send(&l->wake);
}

void http_loop_post(struct http_loop *l, http_loop_fn *fn, void *arg)
{
    pthread_mutex_lock(&l->lock);
    struct posts *w = &l->waiting;
    if (w->n == w->cap) {
        w->cap = w->cap ? w->cap * 2 : 16;
        w->items = xrealloc(w->items, w->cap * sizeof *w->items);
    }
    w->items[w->n++] = (struct post){fn, arg};
    bool first = w->n == 1;
    pthread_mutex_unlock(&l->lock);
    if (first)
        uv_async_send(&l->wake);
}

int64_t http_loop_now_ms(const struct http_loop *l)
{
    return (int64_t)uv_now(&l->uv);
}

struct uv_loop_s *http_loop_uv(struct http_loop *l)
{
    return &l->uv;
}

static void on_timer(uv_timer_t *uv)
{
    struct http_timer *t = uv->data;
    t->fn(t->arg);
}

static void on_timer_closed(uv_handle_t *uv)
{
    free(uv->data);
}

struct http_timer *http_timer_new(struct http_loop *l, http_loop_fn *fn, void *arg)
{
    struct http_timer *t = xcalloc(1, sizeof *t);
    uv_timer_init(&l->uv, &t->uv);
    t->uv.data = t;
    t->fn = fn;
    t->arg = arg;
    return t;
}

void http_timer_start(struct http_timer *t, int64_t delay_ms, int64_t repeat_ms)
{
    /* Not from the cached time: the caller may have worked for long on this turn. */
    uv_update_time(t->uv.loop);
    uv_timer_start(&t->uv, on_timer, delay_ms > 0 ? (uint64_t)delay_ms : 0,
                   repeat_ms > 0 ? (uint64_t)repeat_ms : 0);
}

void http_timer_stop(struct http_timer *t)
{
    uv_timer_stop(&t->uv);
}

void http_timer_free(struct http_timer *t)
{
    if (t)
        uv_close((uv_handle_t *)&t->uv, on_timer_closed);
}
