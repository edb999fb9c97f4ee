#include "gateway/backends.h"
#include "server/service.h"

/* The sum of what watches, models and engines say. */
struct health {
    const char *status; /* "ok", "loading", "unhealthy" */
    struct buf reason;
    double progress; /* -1: none */
};

/* A model that was named and cannot be loaded, or whose engine has failed. */
static bool has_broken_model(struct server *s, struct buf *reason)
{
    bool broken = false;
    for (struct served *m = served_first(s); m; m = served_next(m)) {
        struct err e = {0};
        if (m->named && m->state == SERVED_FAILED)
            e = m->failure;
        else if (!served_is_loaded(m) || engine_health(m->model.engine, &e))
            continue;
        broken = true;
        buf_addf(reason, "%s%s: %s", reason->len ? "; " : "", m->name, e.msg);
    }
    return broken;
}

static bool waits_for_model(struct server *s)
{
    struct served *m = served_first(s);
    bool expected = m || !s->opts.loader.find;
    while (m && !m->n_loads)
        m = served_next(m);
    return expected && !m;
}

static struct health health_now(struct server *s)
{
    struct health h = {.status = "ok"};
    struct watch_report w = watch_report(&s->watches, &h.reason);
    bool only_backends = !served_first(s) && s->backends->n > 0;
    enum backends_health remote = BACKENDS_SERVE;
    h.progress = w.running ? w.progress : -1;
    if (only_backends)
        remote = backends_health(s->backends, &h.reason);
    if (has_broken_model(s, &h.reason) || w.unhealthy || remote == BACKENDS_DOWN) {
        h.status = "unhealthy";
    } else if (remote == BACKENDS_START || (!only_backends && waits_for_model(s))) {
        h.status = "loading";
        if (!h.reason.len)
            buf_adds(&h.reason, "no model is attached yet");
    } else if (s->draining) {
        h.status = "stopping";
        buf_adds(&h.reason, "the server is shutting down");
    }
    return h;
}

void handle_health(struct exchange *x)
{
    struct server *s = x->server;
    struct health h = health_now(s);
    bool ok = strcmp(h.status, "ok") == 0;
    struct buf body = {0};
    struct jw w;
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kstr(&w, "status", h.status);
    if (h.reason.len)
        jw_kstr(&w, ok ? "loading" : "reason", buf_str(&h.reason));
    if (!ok && h.progress >= 0)
        jw_knum(&w, "progress", (double)(int)(h.progress * 1000) / 1000);
    backends_write_managed(s->backends, &w);
    jw_obj_end(&w);
    jw_done(&w);
    if (!ok)
        http_add_header(x->http, "Retry-After", "1");
    answer_json(x, ok ? 200 : 503, &body);
    buf_release(&body);
    buf_release(&h.reason);
}

void handle_ping(struct exchange *x)
{
    answer(x, 200, NULL, NULL, 0);
}

void handle_version(struct exchange *x)
{
    struct buf body = {0};
    struct jw w;
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kstr(&w, "version", x->server->version);
    jw_obj_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}
