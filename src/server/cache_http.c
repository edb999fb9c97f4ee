/* cache_http.c - /v1/cache: what the response cache holds, and dropping it; and its metrics. */
#include <inttypes.h>

#include "server/service.h"

static void answer_off(struct exchange *x)
{
    struct err e = {0};
    err_set(&e, ERR_NOTFOUND,
            "the response cache is off: start the service with --response-cache "
            "and a size, such as 64MiB");
    answer_error(x, 404, "cache_off", &e);
}

void handle_cache(struct exchange *x)
{
    struct buf body = {0};
    struct jw w;
    if (!x->server->cache) {
        answer_off(x);
        return;
    }
    struct response_stats s = response_stats(x->server->cache);
    const struct {
        const char *name;
        uint64_t v;
    } rows[] = {
        {"entries", s.entries},   {"bytes", s.bytes},         {"budget_bytes", s.budget_bytes},
        {"rendered", s.rendered}, {"in_flight", s.in_flight}, {"hits", s.hits},
        {"misses", s.misses},     {"coalesced", s.coalesced}, {"bypassed", s.bypassed},
        {"reruns", s.reruns},     {"evictions", s.evictions}, {"expired", s.expired},
        {"dropped", s.dropped},   {"too_large", s.too_large},
    };
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kstr(&w, "object", "cache");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        jw_kuint(&w, rows[i].name, rows[i].v);
    jw_obj_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}

void handle_cache_delete(struct exchange *x)
{
    static const char *const names[] = {"tenant", "model", "adapter"};
    const char *value[3];
    struct buf body = {0};
    struct jw w;
    if (!x->server->cache) {
        answer_off(x);
        return;
    }
    for (int i = 0; i < 3; i++)
        value[i] = http_query(x->http, names[i]).p;
    size_t n = response_drop(x->server->cache, value[0], value[1], value[2]);
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kuint(&w, "dropped", n);
    jw_obj_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}

void write_cache_metrics(struct buf *b, const struct server *s)
{
    if (!s->cache)
        return;
    struct response_stats c = response_stats(s->cache);
    const struct {
        const char *name, *type, *help, *label;
        uint64_t v;
    } rows[] = {
        {"terrace_cache_requests_total", "counter", "Requests by what the response cache did.",
         "{result=\"hit\"}", c.hits},
        {"terrace_cache_requests_total", NULL, NULL, "{result=\"miss\"}", c.misses},
        {"terrace_cache_requests_total", NULL, NULL, "{result=\"coalesced\"}", c.coalesced},
        {"terrace_cache_requests_total", NULL, NULL, "{result=\"bypass\"}", c.bypassed},
        {"terrace_cache_reruns_total", "counter", "Requests run again for a follower.", "",
         c.reruns},
        {"terrace_cache_entries", "gauge", "Answers kept.", "", c.entries},
        {"terrace_cache_bytes", "gauge", "Memory of the answers kept.", "", c.bytes},
        {"terrace_cache_budget_bytes", "gauge", "Memory that they may take.", "", c.budget_bytes},
        {"terrace_cache_in_flight", "gauge", "Answers being made that may be shared.", "",
         c.in_flight},
        {"terrace_cache_removed_total", "counter", "Answers removed, by reason.",
         "{reason=\"evicted\"}", c.evictions},
        {"terrace_cache_removed_total", NULL, NULL, "{reason=\"expired\"}", c.expired},
        {"terrace_cache_removed_total", NULL, NULL, "{reason=\"dropped\"}", c.dropped},
        {"terrace_cache_too_large_total", "counter", "Answers not kept for their size.", "",
         c.too_large},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].type)
            buf_addf(b, "# HELP %s %s\n# TYPE %s %s\n", rows[i].name, rows[i].help, rows[i].name,
                     rows[i].type);
        buf_addf(b, "%s%s %" PRIu64 "\n", rows[i].name, rows[i].label, rows[i].v);
    }
}
