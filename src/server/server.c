#define _GNU_SOURCE /* memmem */
#include "server/job.h"
#include "server/persona.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <xxhash.h>

#include "base/log.h"
#include "base/mem.h"

enum {
    GIVE_UP_MS = 10000, /* an engine that does not answer a cancel holds the exit up so long */
    TICK_MS = 1000,
};

/* ---- models ---- */

struct served *served_first(struct server *s)
{
    return atomic_load_explicit(&s->models, memory_order_acquire);
}

struct served *served_find(struct server *s, const char *name)
{
    struct served *m = served_first(s);
    while (m && name && strcmp(m->name, name) != 0)
        m = atomic_load_explicit(&m->next, memory_order_acquire);
    return m;
}

static char *vocab_text(const struct tokenizer *t, int32_t id)
{
    struct str s = id >= 0 ? tokenizer_vocab(t, id) : STR("");
    return xstrndup(s.p, s.n);
}

static char *fingerprint(const struct server *s, const struct server_model *m)
{
    struct buf b = {0};
    buf_addf(&b, "%s|%s|%d", s->version, m->name, m->n_ctx);
    if (m->info)
        buf_addf(&b, "|%s|%s|%s|%" PRIu64, m->info->arch, m->info->quant, m->info->isa,
                 m->info->n_params);
    uint64_t hash = XXH3_64bits(b.data, b.len);
    buf_clear(&b);
    buf_addf(&b, "fp_%010" PRIx64, hash & 0xffffffffff);
    return buf_take(&b);
}

static void served_free(struct served *m)
{
    free(m->name);
    free(m->fingerprint);
    free(m->bos);
    free(m->eos);
    free(m);
}

static void find_tools(struct served *m)
{
    if (!m->model.chat_template)
        return;
    struct str source = template_source(m->model.chat_template);
    m->knows_tools = source.n && memmem(source.p, source.n, "tools", strlen("tools"));
    m->tool_format = tool_format_of(source);
}

struct attachment {
    struct server *server;
    struct served *model;
};

static void attach_on_loop(void *arg)
{
    struct attachment *a = arg;
    struct served *m = a->model;
    _Atomic(struct served *) *end = &a->server->models;
    for (struct served *at; (at = atomic_load(end)); end = &at->next) {
        if (strcmp(at->name, m->name) == 0) {
            log_warn("server", "a model named %s is attached already", m->name);
            served_free(m);
            free(a);
            return;
        }
    }
    atomic_store_explicit(end, m, memory_order_release);
    log_info("server", "serving %s, context %d", m->name, m->model.n_ctx);
    personas_lost(a->server->personas, m);
    free(a);
}

void server_attach(struct server *s, const struct server_model *model)
{
    struct served *m = xcalloc(1, sizeof *m);
    m->model = *model;
    m->name = xstrdup(model->name);
    m->model.name = m->name;
    m->fingerprint = fingerprint(s, model);
    find_tools(m);
    m->bos = vocab_text(model->tokenizer, tokenizer_bos(model->tokenizer));
    m->eos = vocab_text(model->tokenizer, tokenizer_eos(model->tokenizer));
    if (!m->model.created_unix_s)
        m->model.created_unix_s = clock_unix_s();
    struct attachment *a = xmalloc(sizeof *a);
    *a = (struct attachment){s, m};
    http_loop_post(s->loop, attach_on_loop, a);
}

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

/* Late stream heads, and the end of the drain. */
static void tick(void *arg)
{
    struct server *s = arg;
    for (struct job *j = s->jobs, *next; j; j = next) {
        next = j->next;
        job_tick(j);
    }
    personas_advance(s->personas);
    if (!s->http && (!s->jobs || clock_ms() >= s->give_up_ms)) {
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
    http_server_close(s->http, s->draining ? 0 : s->opts.drain_ms, http_closed, s);
    s->draining = true;
}

void server_stop(struct server *s)
{
    http_loop_post(s->loop, stop_on_loop, s);
}

void server_run(struct server *s)
{
    http_timer_start(s->tick, TICK_MS, TICK_MS);
    http_loop_run(s->loop);
}

int server_new(struct server **out, const struct server_opts *o, struct err *e)
{
    struct server *s = xcalloc(1, sizeof *s);
    s->opts = *o;
    s->auth = auth_new();
    s->personas = personas_new(s, o->state_dir);
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
        rc = http_server_open(&s->http, s->loop, &s->opts.http, &s->port, e);
    }
    if (rc) {
        server_free(s);
        return rc;
    }
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
    if (s->tick)
        http_timer_free(s->tick);
    if (s->loop)
        http_loop_free(s->loop); /* runs what engines posted last, so that their jobs end */
    for (struct served *m = served_first(s), *next; m; m = next) {
        next = atomic_load(&m->next);
        served_free(m);
    }
    personas_free(s->personas);
    auth_free(s->auth);
    http_metrics_release(&s->metrics);
    map_release(&s->noted);
    watch_release(&s->watches);
    pthread_mutex_destroy(&s->inbox_lock);
    free(s->version);
    free(s);
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
