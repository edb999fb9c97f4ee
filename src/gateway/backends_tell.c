/* backends_tell.c - what operators and clients see of the backends. */
#include "base/clock.h"
#include "base/mem.h"
#include "gateway/backends.h"
#include "gateway/managed.h"
#include "gateway/scrape.h"

static const struct backend_model *models_of(const struct backend *b, size_t *n)
{
    *n = b->config.n_models ? b->config.n_models : b->n_found;
    return b->config.n_models ? b->config.models : b->found;
}

void backends_each_model(const struct backends *all,
                         void (*fn)(void *arg, const char *model, const struct backend *b),
                         void *arg)
{
    for (size_t i = 0; i < all->n; i++) {
        size_t n;
        const struct backend_model *m = models_of(all->list[i], &n);
        for (size_t k = 0; k < n; k++) {
            bool first = true;
            for (size_t before = 0; before < i && first; before++)
                first = !backend_serves(all->list[before], m[k].name);
            if (first)
                fn(arg, m[k].name, all->list[i]);
        }
    }
}

/* What engines say of themselves: in JSON, and in Prometheus' text format. */
static const struct told {
    const char *key, *name, *type, *help;
} told[SCRAPE_VALUES] = {
    [SCRAPE_RUNNING] = {"running", "terrace_backend_engine_requests_running", "gauge",
                        "Requests in its batch, as it says."},
    [SCRAPE_WAITING] = {"waiting", "terrace_backend_engine_requests_waiting", "gauge",
                        "Requests in its queue, as it says."},
    [SCRAPE_KV_USAGE] = {"kv_cache_usage", "terrace_backend_engine_kv_cache_usage_ratio", "gauge",
                         "Use of its KV cache, 0 to 1, as it says."},
    [SCRAPE_PROMPT_TOKENS] = {"prompt_tokens", "terrace_backend_engine_prompt_tokens_total",
                              "counter", "Tokens of prompts, whoever asked it."},
    [SCRAPE_GENERATION_TOKENS] = {"generation_tokens",
                                  "terrace_backend_engine_generation_tokens_total", "counter",
                                  "Tokens generated, whoever asked it."},
    [SCRAPE_PREFIX_QUERIES] = {"prefix_cache_queries",
                               "terrace_backend_engine_prefix_cache_queries_total", "counter",
                               "Tokens that it looked up in its prefix cache."},
    [SCRAPE_PREFIX_HITS] = {"prefix_cache_hits", "terrace_backend_engine_prefix_cache_hits_total",
                            "counter", "Tokens that it found there."},
};

static void write_scrape(struct jw *w, const struct scrape *s)
{
    jw_obj(w);
    for (int i = 0; i < SCRAPE_VALUES; i++)
        if (s->has[i])
            jw_knum(w, told[i].key, s->v[i]);
    jw_obj_end(w);
}

/* What there is to tell of a program of ours. */
static void write_program(struct jw *w, const struct backend *b)
{
    int64_t restarts = b->n_starts ? (int64_t)b->n_starts - 1 : 0;
    jw_kint(w, "seconds", (clock_ms() - b->since_ms) / 1000);
    jw_kint(w, "restarts", restarts);
    if (b->last_exit[0])
        jw_kstr(w, "last_exit", b->last_exit);
}

static void write_backend(struct jw *w, const struct backend *b, bool urls)
{
    size_t n;
    const struct backend_model *m = models_of(b, &n);
    jw_obj(w);
    jw_kstr(w, "name", b->config.name);
    jw_kstr(w, "kind", backend_kinds[b->config.kind]);
    jw_kstr(w, "api", upstream_wires[b->config.api].name);
    if (urls)
        jw_kstr(w, "url", b->config.url);
    jw_kstr(w, "state", backend_states[b->state]);
    if (b->state != BACKEND_HEALTHY && b->why[0])
        jw_kstr(w, "reason", b->why);
    jw_kbool(w, "managed", b->config.argv != NULL);
    if (b->config.argv)
        write_program(w, b);
    jw_kint(w, "requests", b->requests);
    jw_kint(w, "max_requests", b->config.max_requests);
    jw_kint(w, "tokens", b->tokens);
    jw_knum(w, "weight", b->config.weight);
    jw_key(w, "models");
    jw_arr(w);
    for (size_t k = 0; k < n; k++)
        jw_str(w, m[k].name);
    jw_arr_end(w);
    const struct scrape *s = scrape_latest(b, clock_ms());
    if (s) {
        jw_key(w, "engine");
        write_scrape(w, s);
    }
    if (b->config.kind == BACKEND_VLLM) {
        jw_key(w, "adapters");
        push_write(b, w);
    }
    jw_obj_end(w);
}

void backends_write(const struct backends *all, struct jw *w, bool urls)
{
    jw_arr(w);
    for (size_t i = 0; i < all->n; i++)
        write_backend(w, all->list[i], urls);
    for (size_t i = 0; i < all->n_leaving; i++)
        write_backend(w, all->leaving[i], urls);
    jw_arr_end(w);
}

void backends_write_managed(const struct backends *all, struct jw *w)
{
    bool begun = false;
    for (size_t i = 0; i < all->n; i++) {
        const struct backend *b = all->list[i];
        if (!b->config.argv)
            continue;
        if (!begun) {
            jw_key(w, "backends");
            jw_arr(w);
        }
        begun = true;
        jw_obj(w);
        jw_kstr(w, "name", b->config.name);
        jw_kstr(w, "state", backend_states[b->state]);
        write_program(w, b);
        jw_obj_end(w);
    }
    if (begun)
        jw_arr_end(w);
}

enum backends_health backends_health(const struct backends *all, struct buf *why)
{
    bool starting = false;
    for (size_t i = 0; i < all->n; i++) {
        const struct backend *b = all->list[i];
        if (b->state != BACKEND_STARTING && b->state != BACKEND_EJECTED)
            return BACKENDS_SERVE;
        starting = starting || b->state == BACKEND_STARTING;
    }
    for (size_t i = 0; i < all->n; i++) {
        const struct backend *b = all->list[i];
        buf_addf(why, "%sbackend %s is %s", why->len ? "; " : "", b->config.name,
                 backend_states[b->state]);
        if (b->why[0])
            buf_addf(why, " (%s)", b->why);
    }
    return !all->n ? BACKENDS_SERVE : starting ? BACKENDS_START : BACKENDS_DOWN;
}

static void head(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_addf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

#define COUNT_OF(field)                                                                            \
    static double field##_of(const struct backend *b)                                              \
    {                                                                                              \
        return (double)b->field;                                                                   \
    }
COUNT_OF(requests)
COUNT_OF(tokens)
COUNT_OF(n_ejections)
COUNT_OF(n_probes)
COUNT_OF(n_failed_probes)
COUNT_OF(prompt_tokens)
COUNT_OF(completion_tokens)
COUNT_OF(n_pushes)
COUNT_OF(n_push_failures)

static double up_of(const struct backend *b)
{
    return b->state == BACKEND_HEALTHY || b->state == BACKEND_HALF_OPEN;
}

static double running_of(const struct backend *b)
{
    return managed_runs(b);
}

static double restarts_of(const struct backend *b)
{
    return b->n_starts ? (double)(b->n_starts - 1) : 0;
}

static double start_seconds_of(const struct backend *b)
{
    return (double)b->start_took_ms / 1000;
}

static bool any(const struct backend *b)
{
    return true;
}

static double adapters_of(const struct backend *b)
{
    return push_count(b);
}

static bool takes_adapters(const struct backend *b)
{
    return b->config.kind == BACKEND_VLLM;
}

static double scrape_failures_of(const struct backend *b)
{
    return (double)scrape_failures(b);
}

static bool is_scraped(const struct backend *b)
{
    return b->scrape != NULL;
}

static bool is_managed(const struct backend *b)
{
    return b->config.argv != NULL;
}

static const struct row {
    const char *name, *type, *help;
    double (*of)(const struct backend *b);
    bool (*has)(const struct backend *b); /* it */
} rows[] = {
    {"terrace_backend_up", "gauge", "1 if it gets requests.", up_of, any},
    {"terrace_backend_requests", "gauge", "Requests under way.", requests_of, any},
    {"terrace_backend_tokens", "gauge", "Tokens under way, estimated.", tokens_of, any},
    {"terrace_backend_ejections_total", "counter", "Times it was ejected.", n_ejections_of, any},
    {"terrace_backend_probes_total", "counter", "Probes that ended.", n_probes_of, any},
    {"terrace_backend_failed_probes_total", "counter", "Of them failed.", n_failed_probes_of, any},
    {"terrace_backend_prompt_tokens_total", "counter", "As it counted them.", prompt_tokens_of,
     any},
    {"terrace_backend_completion_tokens_total", "counter", "As it counted them.",
     completion_tokens_of, any},
    {"terrace_backend_program_running", "gauge", "1 while the program of a managed one runs.",
     running_of, is_managed},
    {"terrace_backend_restarts_total", "counter", "Starts of its program after the first.",
     restarts_of, is_managed},
    {"terrace_backend_start_seconds", "gauge",
     "How long its latest start took until it was healthy, 0: none was.", start_seconds_of,
     is_managed},
    {"terrace_backend_adapters", "gauge", "Adapters of ours that it has loaded, or is loading.",
     adapters_of, takes_adapters},
    {"terrace_backend_adapter_loads_total", "counter", "Loads of adapters that it was asked for.",
     n_pushes_of, takes_adapters},
    {"terrace_backend_adapter_load_failures_total", "counter", "Of them failed.",
     n_push_failures_of, takes_adapters},
    {"terrace_backend_scrape_failures_total", "counter",
     "Times that it did not say how its engine is.", scrape_failures_of, is_scraped},
};

static void write_row(const struct backends *all, const struct row *r, struct buf *out)
{
    bool begun = false;
    for (size_t i = 0; i < all->n; i++) {
        const struct backend *b = all->list[i];
        if (!r->has(b))
            continue;
        if (!begun)
            head(out, r->name, r->type, r->help);
        begun = true;
        buf_addf(out, "%s{backend=\"%s\"} %.15g\n", r->name, b->config.name, r->of(b));
    }
}

static void write_engines(const struct backends *all, int64_t now, struct buf *out)
{
    for (int v = 0; v < SCRAPE_VALUES; v++) {
        bool begun = false;
        for (size_t i = 0; i < all->n; i++) {
            const struct scrape *s = scrape_latest(all->list[i], now);
            if (!s || !s->has[v])
                continue;
            if (!begun)
                head(out, told[v].name, told[v].type, told[v].help);
            begun = true;
            buf_addf(out, "%s{backend=\"%s\"} %.15g\n", told[v].name, all->list[i]->config.name,
                     s->v[v]);
        }
    }
}

void backends_metrics(const struct backends *all, struct buf *out)
{
    if (!all->n)
        return;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        write_row(all, &rows[i], out);
    write_engines(all, clock_ms(), out);
    head(out, "terrace_backend_outcomes_total", "counter", "Requests by how they ended.");
    for (size_t i = 0; i < all->n; i++)
        for (int o = 0; o < OUTCOMES; o++)
            buf_addf(out, "terrace_backend_outcomes_total{backend=\"%s\",outcome=\"%s\"} %llu\n",
                     all->list[i]->config.name, backend_outcomes[o],
                     (unsigned long long)all->list[i]->outcomes[o]);
    const struct {
        const char *name, *help;
        uint64_t v;
    } sums[] = {
        {"terrace_proxy_requests_total", "Requests for backends.", all->n_requests},
        {"terrace_proxy_retries_total", "Tries of another backend.", all->n_retries},
        {"terrace_proxy_hedges_total", "Second backends asked for speed.", all->n_hedges},
        {"terrace_proxy_budget_empty_total", "Retries that were not allowed.", all->n_budget_empty},
    };
    for (size_t i = 0; i < ARRAY_LEN(sums); i++) {
        head(out, sums[i].name, "counter", sums[i].help);
        buf_addf(out, "%s %llu\n", sums[i].name, (unsigned long long)sums[i].v);
    }
}
