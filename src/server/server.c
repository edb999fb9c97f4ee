#include "server/bill.h"
#include "server/books.h"
#include "server/job.h"
#include "server/persona.h"
#include "server/router.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "gateway/backends.h"

enum {
    GIVE_UP_MS = 10000, /* an engine that does not answer a cancel holds the exit up so long */
    TICK_MS = 1000,
    SWEEP_TICKS = 60,
    RESPONSE_TTL_MS = 3600 * 1000,
};

/* ---- events of engines ---- */

static void take_events(void *arg)
{
    struct server *s = arg;
    pthread_mutex_lock(&s->inbox_lock);
    struct engine_event *list = s->inbox;
    s->inbox = NULL;
    s->inbox_tail = &s->inbox;
    pthread_mutex_unlock(&s->inbox_lock);
    for (const struct engine_event *ev = list; ev; ev = ev->next) {
        struct engine_user *u = ev->user;
        u->take(u, ev);
    }
    engine_events_free(list);
}

void server_sink(void *arg, struct engine_event *list)
{
    struct server *s = arg;
    if (!list)
        return;
    pthread_mutex_lock(&s->inbox_lock);
    bool was_empty = !s->inbox;
    *s->inbox_tail = list;
    while (*s->inbox_tail)
        s->inbox_tail = &(*s->inbox_tail)->next;
    pthread_mutex_unlock(&s->inbox_lock);
    if (was_empty)
        http_loop_post(s->loop, take_events, s);
}

/* ---- life ---- */

static void backends_are_closed(void *arg)
{
    struct server *s = arg;
    s->backends_closed = true;
}

/* One program that hangs leaves the others: what nobody serves any more is health.c's to see. */
static void *watch_backend(void *arg, const char *what, int64_t stall_ms)
{
    struct server *s = arg;
    return watch_begin_minor(&s->watches, what, stall_ms);
}

static void unwatch_backend(void *watch)
{
    server_watch_end(watch, NULL);
}

/* The last to go, as requests need them. True once their programs have ended. */
static bool close_backends(struct server *s)
{
    if (!s->backends_closing) {
        s->backends_closing = true;
        backends_close(s->backends, backends_are_closed, s);
    }
    return s->backends_closed;
}

/* Late stream heads, and the end of the drain. */
static void tick(void *arg)
{
    struct server *s = arg;
    for (struct job *j = s->jobs, *next; j; j = next) {
        next = j->next;
        job_tick(j);
    }
    served_tick(s);
    adapters_tick(s->adapters);
    personas_advance(s->personas);
    personas_save_again(s->personas);
    if (s->cache && ++s->ticks % SWEEP_TICKS == 0)
        response_sweep(s->cache);
    bills_tick(s);
    bool late = !s->http && clock_ms() >= s->give_up_ms;
    if (late)
        personas_stop(s->personas, true);
    if (!s->http && !s->served.n_threads && !personas_busy(s->personas) && (!s->jobs || late) &&
        close_backends(s)) {
        if (s->jobs)
            log_error("server", "leaving with requests that their engine never finished");
        http_timer_stop(s->tick);
        http_loop_stop(s->loop);
    }
}

static void http_closed(void *arg)
{
    struct server *s = arg;
    s->http = NULL;
    s->give_up_ms = clock_ms() + GIVE_UP_MS;
    http_timer_start(s->tick, 0, 10);
}

static void stop_on_loop(void *arg)
{
    struct server *s = arg;
    if (!s->http)
        return;
    personas_stop(s->personas, s->draining);
    http_server_close(s->http, s->draining ? 0 : s->opts.drain_ms, http_closed, s);
    s->draining = true;
    served_stop(s);
}

void server_stop(struct server *s)
{
    http_loop_post(s->loop, stop_on_loop, s);
}

void server_run(struct server *s)
{
    http_timer_start(s->tick, TICK_MS, TICK_MS);
    served_start(s);
    http_loop_run(s->loop);
}

const struct err *server_failure(const struct server *s)
{
    return s->served.failure.code ? &s->served.failure : NULL;
}

static int open_cache(struct server *s, struct err *e)
{
    const struct server_opts *o = &s->opts;
    struct response_cache_opts co = {.budget_bytes = o->response_cache_bytes,
                                     .ttl_ms =
                                         o->response_ttl_ms ? o->response_ttl_ms : RESPONSE_TTL_MS};
    if (!co.budget_bytes)
        return 0;
    s->cache = response_cache_new(&co);
    return o->budget ? budget_take(o->budget, BUDGET_CACHE, "answers", co.budget_bytes,
                                   &s->cache_share, e)
                     : 0;
}

int server_new(struct server **out, const struct server_opts *o, struct err *e)
{
    struct server *s = xcalloc(1, sizeof *s);
    s->opts = *o;
    s->auth = auth_new();
    s->limits = limits_new();
    s->router = router_new(s);
    s->personas = personas_new(s, o->state_dir, o->spill_bytes);
    s->version = xstrdup(o->version ? o->version : "0");
    s->inbox_tail = &s->inbox;
    pthread_mutex_init(&s->inbox_lock, NULL);
    watch_init(&s->watches);
    s->opts.http.handler =
        (struct http_handler){.on_head = route_head, .on_request = route_request};
    s->opts.http.arg = s;
    int rc = http_loop_new(&s->loop, e);
    if (!rc) {
        s->tick = http_timer_new(s->loop, tick, s);
        rc = backends_open(&s->backends, s->loop, e);
    }
    if (!rc)
        s->backends->watch = (struct backends_watch){s, watch_backend, unwatch_backend};
    if (!rc)
        rc = open_cache(s, e);
    if (!rc)
        rc = adapters_new(&s->adapters, s, &o->adapters, e);
    if (!rc)
        rc = books_open(s, e);
    if (!rc)
        rc = http_server_open(&s->http, s->loop, &s->opts.http, &s->port, e);
    if (rc) {
        server_free(s);
        return rc;
    }
    for (size_t i = 0; i < o->n_models; i++)
        if (!served_find(s, o->models[i]))
            served_add(s, o->models[i], true);
    *out = s;
    return 0;
}

void server_free(struct server *s)
{
    if (!s)
        return;
    if (s->http) {
        s->draining = true;
        stop_on_loop(s);
        http_loop_run(s->loop);
    }
    adapters_stop(s->adapters);
    served_free_engines(s);
    backends_free(s->backends);
    take_events(s); /* what they said last */
    books_close(s); /* its last answers are posted to the loop */
    if (s->tick)
        http_timer_free(s->tick);
    if (s->loop)
        http_loop_free(s->loop); /* runs what engines posted last, so that their jobs end */
    adapters_free(s->adapters);
    lora_table_release(&s->lora);
    served_free_all(s);
    personas_free(s->personas);
    router_free(s->router);
    auth_free(s->auth);
    limits_free(s->limits);
    response_cache_free(s->cache);
    budget_give(s->cache_share);
    response_hash_release(&s->hash);
    http_metrics_release(&s->metrics);
    map_release(&s->noted);
    watch_release(&s->watches);
    pthread_mutex_destroy(&s->inbox_lock);
    free(s->version);
    free(s);
}

void server_changed(struct server *s)
{
    if (s->cache)
        response_rendered_forget(s->cache);
}

int server_port(const struct server *s)
{
    return s->port;
}

/* What may go into the log as it came: a name that looks like a field. */
static bool is_plain(struct str name)
{
    bool plain = name.n > 0 && name.n <= 64;
    for (size_t i = 0; plain && i < name.n; i++)
        plain = isalnum((unsigned char)name.p[i]) || name.p[i] == '_' || name.p[i] == '-' ||
                name.p[i] == '.';
    return plain;
}

void note_unknown_fields(struct server *s, const struct chat_request *r)
{
    enum { MAX_NOTED = 64 }; /* names come from clients: the map must not grow with them */
    s->metrics.unknown_fields += r->n_unknown;
    for (size_t i = 0; i < r->n_unknown && i < API_MAX_UNKNOWN; i++) {
        struct str name = str_of(r->unknown[i]);
        if (!is_plain(name) || s->noted.n >= MAX_NOTED || map_get(&s->noted, name))
            continue;
        map_put(&s->noted, name, s);
        log_info("server", "requests carry the field '%s', which is ignored", r->unknown[i]);
    }
}
