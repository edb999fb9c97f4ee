#define _GNU_SOURCE /* memmem */
#include "server/service.h"

#include <inttypes.h>
#include <stdlib.h>
#include <xxhash.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/persona.h"

enum { RETRY_MS = 5000 }; /* a load that failed is not tried again sooner */

/* ---- the list ---- */

struct served *served_first(struct server *s)
{
    return atomic_load_explicit(&s->served.first, memory_order_acquire);
}

struct served *served_next(const struct served *m)
{
    return atomic_load_explicit(&m->next, memory_order_acquire);
}

struct served *served_find(struct server *s, const char *name)
{
    struct served *m = served_first(s);
    while (m && name && strcmp(m->name, name) != 0)
        m = served_next(m);
    return m;
}

struct served *served_add(struct server *s, const char *name, bool named)
{
    struct served *m = xcalloc(1, sizeof *m);
    m->name = xstrdup(name);
    m->server = s;
    m->named = named;
    m->keep_ms = named ? KEEP_FOREVER : s->opts.keep_alive_ms;
    _Atomic(struct served *) *end = &s->served.first;
    for (struct served *at; (at = atomic_load(end));)
        end = &at->next;
    atomic_store_explicit(end, m, memory_order_release);
    return m;
}

bool served_is_loaded(const struct served *m)
{
    return m->state == SERVED_READY || m->state == SERVED_DRAINING;
}

void served_watch(struct server *s, served_hook_fn *fn, void *arg)
{
    struct served_list *l = &s->served;
    BUG_ON(l->n_hooks == SERVED_HOOKS);
    l->hooks[l->n_hooks].fn = fn;
    l->hooks[l->n_hooks++].arg = arg;
}

static void tell(struct served *m, bool ready)
{
    struct served_list *l = &m->server->served;
    for (int i = 0; i < l->n_hooks; i++)
        l->hooks[i].fn(l->hooks[i].arg, m, ready);
}

/* ---- what a model tells about itself ---- */

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

static void find_tools(struct served *m)
{
    m->knows_tools = false;
    m->tells_time = false;
    m->tool_format = TOOL_NONE;
    if (!m->model.chat_template)
        return;
    struct str source = template_source(m->model.chat_template);
    m->tells_time = source.n && memmem(source.p, source.n, "strftime", strlen("strftime"));
    m->knows_tools = source.n && memmem(source.p, source.n, "tools", strlen("tools"));
    m->tool_format = tool_format_of(source);
}

void served_become_ready(struct served *m, const struct server_model *model)
{
    m->model = *model;
    m->model.name = m->name;
    m->fingerprint = fingerprint(m->server, &m->model);
    find_tools(m);
    m->bos = vocab_text(model->tokenizer, tokenizer_bos(model->tokenizer));
    m->eos = vocab_text(model->tokenizer, tokenizer_eos(model->tokenizer));
    if (!m->model.created_unix_s)
        m->model.created_unix_s = clock_unix_s();
    m->state = SERVED_READY;
    m->evicted = false;
    m->used_ms = clock_ms();
    m->n_loads++;
    m->serial = ++m->server->n_loads;
    server_changed(m->server);
    log_info("server", "serving %s, context %d", m->name, m->model.n_ctx);
    tell(m, true);
    waiters_wake(&m->ready, NULL);
    personas_advance(m->server->personas);
}

void served_forget_model(struct served *m)
{
    free(m->fingerprint);
    free(m->bos);
    free(m->eos);
    m->fingerprint = m->bos = m->eos = NULL;
    m->model = (struct server_model){.name = m->name};
}

/* ---- users ---- */

/* The entry of a model that clients may name though nobody has so far. */
static struct served *discover(struct server *s, const char *name, struct err *e)
{
    const struct server_loader *l = &s->opts.loader;
    struct server_candidate c = {{0}};
    if (!l->find || l->find(l->arg, name, &c, e))
        return NULL;
    struct served *m = served_find(s, c.name);
    if (!m) {
        m = served_add(s, c.name, false);
        m->candidate = xmalloc(sizeof c);
        *m->candidate = c;
    }
    return m;
}

struct served *served_discover(struct server *s, const char *name)
{
    struct err e = {0};
    struct served *m = served_find(s, name);
    return m ? m : discover(s, name, &e);
}

/* No such model: 503 while none is there at all, else 404. */
static int not_found(struct server *s, const char *name, const char **code, struct err *e)
{
    if (!name && s->opts.loader.find) {
        *code = "model_not_found";
        err_param(e, ERR_NOTFOUND, "model",
                  "there is no default model: name one, GET /v1/models lists them");
        return 404;
    }
    if (!served_first(s)) {
        struct buf why = {0};
        watch_report(&s->watches, &why);
        *code = "model_not_ready";
        err_set(e, ERR_BUSY, "no model is ready yet%s%.300s", why.len ? ": " : "", buf_str(&why));
        buf_release(&why);
        return 503;
    }
    *code = "model_not_found";
    if (!e->code || e->code == ERR_NOTFOUND)
        err_param(e, ERR_NOTFOUND, "model", "The model `%.128s` does not exist", name);
    return 404;
}

static int not_ready(struct server *s, const struct served *m, const char **code, struct err *e)
{
    struct buf why = {0};
    watch_report(&s->watches, &why);
    *code = "model_not_ready";
    err_param(e, ERR_BUSY, "model", "%.128s is not ready yet%s%.250s", m->name, why.len ? ": " : "",
              buf_str(&why));
    buf_release(&why);
    return 503;
}

void served_hold(struct served *m)
{
    BUG_ON(m->state != SERVED_READY && !(m->state == SERVED_DRAINING && m->users));
    m->users++;
    m->used_ms = clock_ms();
}

int served_acquire(struct server *s, const char *name, const struct keep_alive *keep,
                   struct waiter *w, struct served **out, const char **code, struct err *e)
{
    struct served *m = served_find(s, name);
    if (!m && name)
        m = discover(s, name, e);
    if (m && !name && !m->named) /* it only happens to be there */
        m = NULL;
    if (!m)
        return not_found(s, name, code, e);
    if (keep && keep->given && !m->named)
        m->keep_ms = keep->ms;
    if (m->state == SERVED_READY) {
        served_hold(m);
        *out = m;
        return 0;
    }
    bool retry = m->state == SERVED_UNLOADED || m->state == SERVED_FAILED;
    if (m->state == SERVED_FAILED && clock_ms() - m->failed_ms < RETRY_MS) {
        *e = m->failure;
        *code = "model_not_loaded";
        return openai_status(e->code);
    }
    if (s->draining || load_is_slow(m))
        return not_ready(s, m, code, e);
    if (retry && load_start(m, e)) {
        *code = "model_not_loaded";
        return 503;
    }
    waiters_add(&m->ready, w);
    return SERVED_WAIT;
}

void served_put(struct served *m)
{
    if (!m)
        return;
    BUG_ON(m->users <= 0);
    m->used_ms = clock_ms();
    bool over = m->server->draining && !m->server->http; /* no thread can report back any more */
    if (--m->users || !m->model.owner || over)
        return;
    if (m->state == SERVED_DRAINING || (m->keep_ms == 0 && !m->named))
        unload_start(m);
    else
        rooms_advance(m->server);
}

bool served_unload(struct served *m, struct waiter *w)
{
    m->evicted = false;
    if (m->state == SERVED_LOADING)
        load_cancel(m);
    if (m->state == SERVED_LOADING || m->state == SERVED_UNLOADING) {
        waiters_add(&m->gone, w);
        return true;
    }
    if (!served_is_loaded(m) || !m->model.owner)
        return false;
    if (w)
        waiters_add(&m->gone, w);
    m->state = SERVED_DRAINING;
    m->unwanted = true;
    if (!m->users)
        unload_start(m);
    return true;
}

/* ---- attached models ---- */

struct attachment {
    struct server *server;
    struct server_model model;
    char *name;
};

static void attach_on_loop(void *arg)
{
    struct attachment *a = arg;
    if (served_find(a->server, a->name)) {
        log_warn("server", "a model named %s is attached already", a->name);
    } else {
        a->model.owner = NULL;
        served_become_ready(served_add(a->server, a->name, true), &a->model);
    }
    free(a->name);
    free(a);
}

void server_attach(struct server *s, const struct server_model *model)
{
    struct attachment *a = xmalloc(sizeof *a);
    *a = (struct attachment){s, *model, xstrdup(model->name)};
    http_loop_post(s->loop, attach_on_loop, a);
}

/* ---- life ---- */

void served_start(struct server *s)
{
    for (struct served *m = served_first(s); m; m = served_next(m))
        if (m->named && m->state == SERVED_UNLOADED)
            load_start(m, NULL);
}

void served_tick(struct server *s)
{
    int64_t now = clock_ms();
    for (struct served *m = served_first(s); m; m = served_next(m)) {
        if (m->state == SERVED_READY && !m->users && m->model.owner && m->keep_ms >= 0 &&
            now - m->used_ms >= m->keep_ms && !s->draining)
            unload_start(m);
        if (load_is_slow(m) && m->ready.first) {
            struct err e = {0};
            const char *code;
            not_ready(s, m, &code, &e);
            waiters_wake(&m->ready, &e);
        }
    }
    rooms_tick(s);
}

void served_stop(struct server *s)
{
    for (struct served *m = served_first(s); m; m = served_next(m))
        if (m->state == SERVED_LOADING)
            load_cancel(m);
}

/* Models that the loader has made; those that were attached are their owners'. */
void served_free_engines(struct server *s)
{
    for (struct served *m = served_first(s); m; m = served_next(m))
        if (m->model.owner) {
            engine_free(m->model.engine);
            m->model.engine = NULL;
        }
}

void served_free_all(struct server *s)
{
    for (struct served *m = served_first(s), *next; m; m = next) {
        next = served_next(m);
        if (m->model.owner)
            s->opts.loader.unload(s->opts.loader.arg, &m->model);
        served_forget_model(m);
        free(m->candidate);
        free(m->name);
        free(m);
    }
    atomic_store(&s->served.first, NULL);
}
