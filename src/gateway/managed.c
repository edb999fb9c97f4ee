#include "gateway/managed.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "gateway/backends.h"
#include "gateway/guard.h"

enum {
    RESTART_MS = 500, /* the first pause before starting again */
    RESTART_MAX_MS = 60000,
    STEADY_MS = 60000,     /* who ran so long begins with the first pause again */
    LINE_BYTES = 1024,     /* of output in one log line */
    LAST_WORDS_MS = 1000,  /* for output that is still in the pipes when the program has ended */
    HUNG_EJECTIONS = 5,    /* in a row: the program is taken for hung */
    UNENDING_MS = 10000,   /* after SIGKILL: the kernel, or a device, holds it */
    LEAVE_MS = 15000,      /* after SIGKILL: what holds out so long is left behind */
    STATUS_NO_START = 127, /* guard.h */
    HANDLES = 4,
};

/* Standard output or error. */
struct output {
    uv_pipe_t pipe;
    struct backend_process *process;
    struct buf line;
    char chunk[4096];
};

struct backend_process {
    struct backend *backend;
    uv_process_t process; /* the guard, whose id is the group's */
    uv_pipe_t lifeline;   /* the guard holds the other end, and ends all when ours is closed */
    struct output outputs[2];
    bool running; /* from the start until all handles are closed */
    bool stopping, left;
    bool was_healthy; /* since the start */
    int n_handles;
    void *watch;                               /* of the start, then of the end; NULL: none */
    int64_t started_ms, ended_ms, leave_at_ms; /* ended_ms 0: not yet */
    int64_t restart_at_ms, pause_ms;
};

bool managed_runs(const struct backend *b)
{
    const struct backend_process *p = b->process;
    return p && p->running && !p->stopping && !p->ended_ms;
}

/* ---- watches ---- */

static void watch_end(struct backend_process *p)
{
    if (p->watch)
        p->backend->all->watch.end(p->watch);
    p->watch = NULL;
}

static void watch_begin(struct backend_process *p, const char *doing, int64_t stall_ms)
{
    const struct backends *all = p->backend->all;
    char what[96];
    watch_end(p);
    snprintf(what, sizeof what, "%s backend %s", doing, p->backend->config.name);
    if (all->watch.begin)
        p->watch = all->watch.begin(all->watch.arg, what, stall_ms);
}

/* ---- output ---- */

static void log_output(struct output *o, bool rest)
{
    while (o->line.len) {
        const char *end = memchr(o->line.data, '\n', o->line.len);
        size_t n = end ? (size_t)(end - o->line.data) : o->line.len;
        if (!end && n < LINE_BYTES && !rest)
            return;
        n = n < LINE_BYTES ? n : LINE_BYTES;
        for (size_t i = 0; i < n; i++)
            if ((unsigned char)o->line.data[i] < 0x20)
                o->line.data[i] = ' ';
        if (n)
            log_info(o->process->backend->config.name, "%.*s", (int)n, o->line.data);
        buf_consume(&o->line, n + (n < o->line.len && o->line.data[n] == '\n'));
    }
}

static void process_closed(struct backend_process *p)
{
    struct backend *b = p->backend;
    if (--p->n_handles)
        return;
    watch_end(p);
    p->running = p->stopping = p->left = false;
    backends_poke(b->all);
    backend_unref(b); /* of start() */
}

static void on_handle_closed(uv_handle_t *h)
{
    process_closed(h->data);
}

static void close_lifeline(struct backend_process *p)
{
    if (!uv_is_closing((uv_handle_t *)&p->lifeline))
        uv_close((uv_handle_t *)&p->lifeline, on_handle_closed);
}

static void close_process(struct backend_process *p)
{
    uv_close((uv_handle_t *)&p->process, on_handle_closed);
    close_lifeline(p);
}

static void on_output_closed(uv_handle_t *h)
{
    struct output *o = h->data;
    buf_release(&o->line);
    process_closed(o->process);
}

static void close_output(struct output *o)
{
    if (uv_is_closing((uv_handle_t *)&o->pipe))
        return;
    log_output(o, true);
    uv_close((uv_handle_t *)&o->pipe, on_output_closed);
}

static void give_room(uv_handle_t *h, size_t suggested, uv_buf_t *out)
{
    struct output *o = h->data;
    *out = uv_buf_init(o->chunk, sizeof o->chunk);
}

static void on_output(uv_stream_t *s, ssize_t n, const uv_buf_t *chunk)
{
    struct output *o = s->data;
    if (n > 0) {
        buf_add(&o->line, chunk->base, (size_t)n);
        log_output(o, false);
    } else if (n < 0) {
        close_output(o);
    }
}

/* ---- start and end ---- */

/* A start has failed, or what was started has ended: when is the next one? */
static void pause_restarts(struct backend_process *p, int64_t now)
{
    bool steady = p->pause_ms == 0 || now - p->started_ms > STEADY_MS;
    p->pause_ms = steady ? RESTART_MS : 2 * p->pause_ms;
    if (p->pause_ms > RESTART_MAX_MS)
        p->pause_ms = RESTART_MAX_MS;
    p->restart_at_ms = now + p->pause_ms;
}

static void on_ended(uv_process_t *process, int64_t status, int sig)
{
    struct backend_process *p = process->data;
    struct backend *b = p->backend;
    int64_t now = clock_ms();
    const char *form = sig ? "ended by signal"
                       : status == STATUS_NO_START
                           ? "could not be started, its output says why: status"
                           : "ended with status";
    snprintf(b->last_exit, sizeof b->last_exit, "%s %d", form, sig ? sig : (int)status);
    bool killed = p->stopping && sig == SIGKILL;
    log_line(p->stopping && !killed ? LOG_INFO : LOG_WARN, "gateway",
             "backend %s: its program %s%s", b->config.name, b->last_exit,
             killed ? ", as it did not heed SIGTERM" : "");
    if (sig) /* it may have hit the guard, and left some of its group */
        kill(-process->pid, SIGKILL);
    p->ended_ms = now;
    backends_cancel_probe(b);
    if (b->state != BACKEND_STOPPED && b->state != BACKEND_DRAINING && !b->all->closing) {
        snprintf(b->why, sizeof b->why, "its program %s", b->last_exit);
        pause_restarts(p, now);
        backend_set_state(b, BACKEND_STARTING, now);
    }
    close_process(p);
    backends_poke(b->all);
}

/* "terrace guard STOP_MS PROGRAM ARGUMENTS"; the strings belong to the configuration, but for the
 * time in `stop`. The caller frees the list. */
static char **guarded(const struct backend_config *c, char stop[24])
{
    static char name[] = "terrace", verb[] = GUARD_VERB;
    size_t n = 0;
    while (c->argv[n])
        n++;
    char **argv = xcalloc(n + 4, sizeof *argv);
    snprintf(stop, 24, "%lld", (long long)c->stop_ms);
    argv[0] = name;
    argv[1] = verb;
    argv[2] = stop;
    memcpy(argv + 3, c->argv, n * sizeof *argv);
    return argv;
}

static int spawn(struct backend *b, struct backend_process *p)
{
    uv_loop_t *uv = http_loop_uv(b->all->loop);
    uv_pipe_t *pipes[] = {&p->lifeline, &p->outputs[0].pipe, &p->outputs[1].pipe};
    uv_stdio_container_t io[ARRAY_LEN(pipes)];
    char stop[24], **argv = guarded(&b->config, stop);
    uv_process_options_t o = {
        .file = "/proc/self/exe",
        .args = argv,
        .flags = UV_PROCESS_DETACHED,
        .exit_cb = on_ended,
        .stdio = io,
        .stdio_count = ARRAY_LEN(pipes),
    };
    for (size_t i = 0; i < ARRAY_LEN(pipes); i++) {
        uv_pipe_init(uv, pipes[i], 0);
        io[i].flags = UV_CREATE_PIPE | (i ? UV_WRITABLE_PIPE : UV_READABLE_PIPE);
        io[i].data.stream = (uv_stream_t *)pipes[i];
    }
    p->process.data = p->lifeline.data = p;
    for (int i = 0; i < 2; i++) {
        p->outputs[i].pipe.data = &p->outputs[i];
        p->outputs[i].process = p;
    }
    int rc = uv_spawn(uv, &p->process, &o);
    free(argv);
    return rc;
}

static void start(struct backend *b, int64_t now)
{
    if (!b->process) {
        b->process = xcalloc(1, sizeof *b->process);
        b->process->backend = b;
    }
    struct backend_process *p = b->process;
    backend_ref(b);
    p->n_handles = HANDLES;
    p->running = true;
    p->was_healthy = false;
    p->started_ms = now;
    p->ended_ms = 0;
    b->n_starts++;
    int rc = spawn(b, p);
    if (rc) {
        snprintf(b->why, sizeof b->why, "the guard of its program cannot be started: %s",
                 uv_strerror(rc));
        log_error("gateway", "backend %s: %s", b->config.name, b->why);
        p->ended_ms = now;
        pause_restarts(p, now);
        close_process(p);
        for (int i = 0; i < 2; i++)
            close_output(&p->outputs[i]);
        return;
    }
    for (int i = 0; i < 2; i++)
        uv_read_start((uv_stream_t *)&p->outputs[i].pipe, give_room, on_output);
    log_info("gateway", "backend %s: started %s as process %d", b->config.name, b->config.argv[0],
             p->process.pid);
    watch_begin(p, "starting", b->config.start_ms + UNENDING_MS);
    b->probe_at_ms = now;
}

static void stop(struct backend_process *p, int64_t now)
{
    if (p->ended_ms)
        return;
    const struct backend_config *c = &p->backend->config;
    if (!p->stopping) {
        p->stopping = true;
        p->leave_at_ms = now + c->stop_ms + LEAVE_MS;
        watch_begin(p, "stopping", c->stop_ms + UNENDING_MS);
        close_lifeline(p);
    } else if (!p->left && now >= p->leave_at_ms) {
        p->left = true;
        log_error("gateway", "backend %s: its program, or what came from it, cannot be ended: left",
                  c->name);
        kill(-p->process.pid, SIGKILL); /* its guard, which waits */
    }
}

/* ---- watching ---- */

/* Is a running program of no use any more? */
static bool should_end(struct backend *b, int64_t now)
{
    const struct backend_config *c = &b->config;
    struct backend_process *p = b->process;
    if (b->state == BACKEND_STARTING && now - p->started_ms > c->start_ms) {
        log_warn("gateway", "backend %s: not healthy %lld s after its start: restarting it",
                 c->name, (long long)(c->start_ms / 1000));
        return true;
    }
    if (b->state == BACKEND_EJECTED && b->ejections >= HUNG_EJECTIONS) {
        log_warn("gateway", "backend %s: does not recover: restarting it", c->name);
        return true;
    }
    if (c->idle_stop_ms && b->state == BACKEND_HEALTHY && b->requests == 0 &&
        now - b->used_ms >= c->idle_stop_ms) {
        backend_set_state(b, BACKEND_STOPPED, now);
        return true;
    }
    return false;
}

/* Is another one, that a reload has replaced, still to end? It may hold the port, or the memory. */
static bool has_forerunner(const struct backend *b)
{
    const struct backends *all = b->all;
    for (size_t i = 0; i < all->n_leaving; i++) {
        const struct backend *l = all->leaving[i];
        if (l->process && l->process->running &&
            (strcmp(l->config.name, b->config.name) == 0 ||
             strcmp(l->config.url, b->config.url) == 0))
            return true;
    }
    return false;
}

/* It answers for the first time since its start. */
static void started(struct backend *b, int64_t now)
{
    struct backend_process *p = b->process;
    watch_end(p);
    p->was_healthy = true;
    b->start_took_ms = now - p->started_ms;
    log_info("gateway", "backend %s: healthy %.1f s after its start", b->config.name,
             (double)b->start_took_ms / 1000);
}

/* When something may happen next to a program that runs. */
static int64_t next_look(const struct backend *b, int64_t now)
{
    const struct backend_process *p = b->process;
    const struct backend_config *c = &b->config;
    if (p->ended_ms) /* after its last words the handles are closing, which pokes */
        return now - p->ended_ms > LAST_WORDS_MS ? 0 : p->ended_ms + LAST_WORDS_MS + 1;
    if (p->stopping)
        return p->left ? 0 : p->leave_at_ms;
    int64_t next = now + 1000;
    if (c->idle_stop_ms && b->used_ms + c->idle_stop_ms < next)
        next = b->used_ms + c->idle_stop_ms;
    return next > now ? next : now + 1;
}

int64_t managed_look(struct backend *b, int64_t now)
{
    struct backend_process *p = b->process;
    if (!b->config.argv)
        return 0;
    if (p && p->running) {
        if (p->ended_ms && now - p->ended_ms > LAST_WORDS_MS)
            for (int i = 0; i < 2; i++) /* somebody outside of the group holds the other end */
                close_output(&p->outputs[i]);
        else if (p->stopping || should_end(b, now))
            stop(p, now);
        else if (!p->was_healthy && b->state == BACKEND_HEALTHY)
            started(b, now);
        return next_look(b, now);
    }
    if (b->all->closing || b->state == BACKEND_DRAINING || b->state == BACKEND_STOPPED ||
        has_forerunner(b))
        return 0;
    if (p && now < p->restart_at_ms)
        return p->restart_at_ms;
    start(b, now);
    return next_look(b, now);
}

void managed_wake(struct backend *b)
{
    int64_t now = clock_ms();
    b->used_ms = now;
    if (b->process)
        b->process->restart_at_ms = 0;
    backend_set_state(b, BACKEND_STARTING, now);
    backends_poke(b->all);
}

bool managed_stop(struct backend *b)
{
    struct backend_process *p = b->process;
    if (!p || !p->running)
        return true;
    stop(p, clock_ms());
    return false;
}

void managed_free(struct backend *b)
{
    BUG_ON(b->process && b->process->running);
    free(b->process);
    b->process = NULL;
}
