#include "gateway/backends.h"
#include "server/service.h"

/* The sum of what watches, models and engines say. */
struct health {
    const char *status; /* "ok", "loading", "unhealthy" */
    struct buf reason;
    double progress; /* -1: none */
};

static struct health health_now(struct server *s)
{
    struct health h = {.status = "ok"};
    struct watch_report w = watch_report(&s->watches, &h.reason);
    bool unhealthy = w.unhealthy;
    h.progress = w.running ? w.progress : -1;
    bool only_backends = !served_first(s) && s->backends->n > 0;
    bool any = false; /* model that has been there */
    for (struct served *m = served_first(s); m; m = served_next(m)) {
        struct err e = {0};
        any = any || m->n_loads;
        if (m->named && m->state == SERVED_FAILED)
            e = m->failure;
        else if (!served_is_loaded(m) || engine_health(m->model.engine, &e))
            continue;
        unhealthy = true;
        buf_addf(&h.reason, "%s%s: %s", h.reason.len ? "; " : "", m->name, e.msg);
    }
    if (unhealthy) {
        h.status = "unhealthy";
    } else if (!any && !only_backends && (served_first(s) || !s->opts.loader.find)) {
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
    struct health h = health_now(x->server);
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
