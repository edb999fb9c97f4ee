/* metrics.c - /metrics in Prometheus' text format, version 0.0.4, under vLLM's names (old and new),
 * so that dashboards and routers made for vLLM read them; `terrace_*` where vLLM has none. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/mem.h"
#include "gateway/backends.h"
#include "server/adapter_http.h"
#include "server/router.h"
#include "server/service.h"
#include "store/ledger.h"

/* ---- histograms ---- */

#define LATENCY                                                                                    \
    {                                                                                              \
        .3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680  \
    }
#define PER_TOKEN                                                                                  \
    {                                                                                              \
        .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80         \
    }
#define TOKENS                                                                                     \
    {                                                                                              \
        1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000  \
    }

static const struct {
    const char *name, *older; /* older: the name before vLLM changed it, or NULL */
    const char *help;
    double buckets[HISTOGRAM_MAX_BUCKETS]; /* ends with the first 0 */
} histograms[MODEL_HISTOGRAMS] = {
    [HIST_TTFT] = {"vllm:time_to_first_token_seconds",
                   NULL,
                   "Request received to first token.",
                   {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                    1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560}},
    [HIST_INTER_TOKEN] = {"vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds",
                          "Time between two tokens of a stream.", PER_TOKEN},
    [HIST_PER_OUTPUT_TOKEN] = {"vllm:request_time_per_output_token_seconds", NULL,
                               "Mean time per token of a request, the first left out.", PER_TOKEN},
    [HIST_E2E] = {"vllm:e2e_request_latency_seconds", NULL, "Request received to last token.",
                  LATENCY},
    [HIST_QUEUE] = {"vllm:request_queue_time_seconds", NULL, "Submission to first step.", LATENCY},
    [HIST_INFERENCE] = {"vllm:request_inference_time_seconds", NULL, "First step to last token.",
                        LATENCY},
    [HIST_PREFILL] = {"vllm:request_prefill_time_seconds", NULL, "First step to first token.",
                      LATENCY},
    [HIST_DECODE] = {"vllm:request_decode_time_seconds", NULL, "First to last token.", LATENCY},
    [HIST_PROMPT_TOKENS] = {"vllm:request_prompt_tokens", NULL, "Tokens of the prompt.", TOKENS},
    [HIST_COMPUTED_TOKENS] = {"vllm:request_prefill_kv_computed_tokens", NULL,
                              "Tokens of the prompt that were not in the cache.", TOKENS},
    [HIST_GENERATION_TOKENS] = {"vllm:request_generation_tokens", NULL, "Tokens generated.",
                                TOKENS},
    [HIST_MAX_GENERATION_TOKENS] = {"vllm:request_max_num_generation_tokens", NULL,
                                    "Tokens of the longest choice of a request.", TOKENS},
    [HIST_MAX_TOKENS] = {"vllm:request_params_max_tokens", NULL,
                         "max_tokens of requests that gave it.", TOKENS},
    [HIST_N] = {"vllm:request_params_n", NULL, "Choices asked for.", {1, 2, 5, 10, 20}},
};

static int n_buckets(enum model_histogram which)
{
    int n = 0;
    while (n < HISTOGRAM_MAX_BUCKETS && histograms[which].buckets[n] > 0)
        n++;
    return n;
}

void metrics_observe(struct model_metrics *m, enum model_histogram which, double v)
{
    struct histogram *h = &m->histograms[which];
    int n = n_buckets(which), i = 0;
    while (i < n && v > histograms[which].buckets[i])
        i++;
    h->counts[i]++;
    h->n++;
    h->sum += v;
}

/* ---- text ---- */

static void head(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_addf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* {model_name="..." */
static void name_label(struct buf *b, const struct served *m)
{
    buf_adds(b, "{model_name=\"");
    for (const char *p = m->name; *p; p++) {
        if (*p == '"' || *p == '\\')
            buf_addc(b, '\\');
        buf_addc(b, *p == '\n' ? ' ' : *p);
    }
    buf_addc(b, '"');
}

/* {model_name="...",engine="0"MORE} */
static void labels(struct buf *b, const struct served *m, const char *more)
{
    name_label(b, m);
    buf_addf(b, ",engine=\"0\"%s}", more);
}

static void sample(struct buf *b, const char *name, const struct served *m, const char *more,
                   double v)
{
    buf_adds(b, name);
    labels(b, m, more);
    buf_addf(b, " %.15g\n", v);
}

static void write_histogram(struct buf *b, const char *name, const struct served *m,
                            enum model_histogram which)
{
    const struct histogram *h = &m->metrics.histograms[which];
    char series[96], le[48];
    uint64_t below = 0;
    int n = n_buckets(which);
    snprintf(series, sizeof series, "%s_bucket", name);
    for (int i = 0; i <= n; i++) {
        below += h->counts[i];
        if (i < n)
            snprintf(le, sizeof le, ",le=\"%g\"", histograms[which].buckets[i]);
        else
            snprintf(le, sizeof le, ",le=\"+Inf\"");
        sample(b, series, m, le, (double)below);
    }
    snprintf(series, sizeof series, "%s_sum", name);
    sample(b, series, m, "", h->sum);
    snprintf(series, sizeof series, "%s_count", name);
    sample(b, series, m, "", (double)h->n);
}

/* ---- what engines count ---- */

/* All samples of one scrape come from one snapshot of each engine, so that they agree. */
struct scrape {
    const struct served *model;
    struct engine_stats stats;
};

enum stat_type { STAT_INT, STAT_U64, STAT_MS, STAT_RATIO };

/* A number of struct engine_stats; a ratio is `offset` over `of`, both ints or both counters. */
struct engine_metric {
    const char *name, *type, *help;
    enum stat_type stat;
    size_t offset, of;
};

#define AT(member) offsetof(struct engine_stats, member)

static const struct engine_metric engine_metrics[] = {
    {"vllm:num_requests_running", "gauge", "Requests in the running batch.", STAT_INT, AT(running)},
    {"vllm:num_requests_waiting", "gauge", "Requests in the queue.", STAT_INT, AT(waiting)},
    {"vllm:kv_cache_usage_perc", "gauge", "KV blocks held by requests and pins, 0 to 1.",
     STAT_RATIO, AT(blocks_held), AT(blocks_total)},
    {"vllm:gpu_cache_usage_perc", "gauge", "Older name of vllm:kv_cache_usage_perc.", STAT_RATIO,
     AT(blocks_held), AT(blocks_total)},
    {"vllm:prompt_tokens_total", "counter", "Tokens of prompts.", STAT_U64, AT(prompt_tokens)},
    {"vllm:generation_tokens_total", "counter", "Tokens generated.", STAT_U64,
     AT(generated_tokens)},
    {"vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up.", STAT_U64,
     AT(prompt_tokens)},
    {"vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the cache.", STAT_U64,
     AT(cached_tokens)},
    {"vllm:gpu_prefix_cache_queries_total", "counter",
     "Older name of vllm:prefix_cache_queries_total.", STAT_U64, AT(prompt_tokens)},
    {"vllm:gpu_prefix_cache_hits_total", "counter", "Older name of vllm:prefix_cache_hits_total.",
     STAT_U64, AT(cached_tokens)},
    {"vllm:gpu_prefix_cache_hit_rate", "gauge", "Share of prompt tokens found, since the start.",
     STAT_RATIO, AT(cached_tokens), AT(prompt_tokens)},
    {"vllm:prompt_tokens_cached_total", "counter", "Prompt tokens not computed.", STAT_U64,
     AT(cached_tokens)},
    {"vllm:num_preemptions_total", "counter", "Requests put back for want of blocks.", STAT_U64,
     AT(preemptions)},
    {"vllm:spec_decode_num_drafts_total", "counter", "Guesses at tokens to come.", STAT_U64,
     AT(drafts)},
    {"vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens guessed.", STAT_U64,
     AT(draft_tokens)},
    {"vllm:spec_decode_num_accepted_tokens_total", "counter", "Guessed tokens that held.", STAT_U64,
     AT(accepted_tokens)},
    {"terrace_engine_steps_total", "counter", "Steps of the engine.", STAT_U64, AT(steps)},
    {"terrace_engine_step_seconds_total", "counter", "Time spent in steps.", STAT_MS, AT(steps_ms)},
    {"terrace_engine_turn_seconds_total", "counter",
     "Time that steps waited for other models to compute.", STAT_MS, AT(turns_ms)},
    {"terrace_engine_last_step_seconds", "gauge", "Duration of the latest step.", STAT_MS,
     AT(last_step_ms)},
    {"terrace_engine_last_step_tokens", "gauge", "Tokens computed in the latest step.", STAT_INT,
     AT(last_step_tokens)},
    {"terrace_engine_computed_tokens_total", "counter",
     "Tokens that went through the model, recomputation included.", STAT_U64, AT(computed_tokens)},
    {"terrace_kv_block_evictions_total", "counter", "Cached blocks given up for new ones.",
     STAT_U64, AT(evictions)},
    {"terrace_kv_blocks_pin_limit", "gauge", "Most blocks that pinned prompts may refer to.",
     STAT_INT, AT(blocks_pin_limit)},
    {"terrace_kv_blocks_pinned", "gauge", "Blocks that pinned prompts refer to.", STAT_INT,
     AT(blocks_pinned)},
};

static double stat_value(const struct engine_stats *s, enum stat_type type, size_t offset)
{
    const char *at = (const char *)s + offset;
    if (type == STAT_INT)
        return *(const int *)at;
    if (type == STAT_MS)
        return *(const double *)at / 1e3;
    return (double)*(const uint64_t *)at;
}

static double engine_value(const struct engine_metric *m, const struct engine_stats *s)
{
    if (m->stat != STAT_RATIO)
        return stat_value(s, m->stat, m->offset);
    enum stat_type type = m->of == AT(blocks_total) ? STAT_INT : STAT_U64;
    double of = stat_value(s, type, m->of);
    return of > 0 ? stat_value(s, type, m->offset) / of : 0;
}

static void write_blocks(struct buf *b, const struct scrape *scrapes, size_t n)
{
    head(b, "terrace_kv_blocks", "gauge", "KV blocks by state; the sum is the pool.");
    for (size_t k = 0; k < n; k++) {
        const struct engine_stats *s = &scrapes[k].stats;
        sample(b, "terrace_kv_blocks", scrapes[k].model, ",state=\"free\"", s->blocks_free);
        sample(b, "terrace_kv_blocks", scrapes[k].model, ",state=\"cached\"", s->blocks_cached);
        sample(b, "terrace_kv_blocks", scrapes[k].model, ",state=\"held\"", s->blocks_held);
    }
}

static void write_sources(struct buf *b, const struct scrape *scrapes, size_t n)
{
    static const char name[] = "vllm:prompt_tokens_by_source_total";
    head(b, name, "counter", "Prompt tokens by where their KV came from.");
    for (size_t k = 0; k < n; k++) {
        const struct engine_stats *s = &scrapes[k].stats;
        sample(b, name, scrapes[k].model, ",source=\"local_compute\"",
               (double)(s->prompt_tokens - s->cached_tokens));
        sample(b, name, scrapes[k].model, ",source=\"local_cache_hit\"", (double)s->cached_tokens);
        sample(b, name, scrapes[k].model, ",source=\"external_kv_transfer\"", 0);
    }
}

/* vLLM's reasons: no room in the batch or the cache, or something that is over soon. */
static void write_waiting(struct buf *b, const struct scrape *scrapes, size_t n)
{
    static const char name[] = "vllm:num_requests_waiting_by_reason";
    head(b, name, "gauge", "Requests in the queue by what they wait for.");
    for (size_t k = 0; k < n; k++) {
        const struct engine_stats *s = &scrapes[k].stats;
        int deferred = s->deferred < s->waiting ? s->deferred : s->waiting;
        sample(b, name, scrapes[k].model, ",reason=\"capacity\"", s->waiting - deferred);
        sample(b, name, scrapes[k].model, ",reason=\"deferred\"", deferred);
    }
}

static void write_steps(struct buf *b, const struct scrape *scrapes, size_t n)
{
    static const char name[] = "vllm:iteration_tokens_total";
    head(b, name, "histogram", "Tokens of a step of the engine.");
    for (size_t k = 0; k < n; k++) {
        const struct engine_stats *s = &scrapes[k].stats;
        uint64_t below = 0;
        for (int i = 0; i < ENGINE_STEP_SIZES; i++) {
            char bucket[32];
            below += s->step_sizes[i];
            snprintf(bucket, sizeof bucket, ",le=\"%d\"", engine_step_sizes[i]);
            sample(b, "vllm:iteration_tokens_total_bucket", scrapes[k].model, bucket,
                   (double)below);
        }
        sample(b, "vllm:iteration_tokens_total_bucket", scrapes[k].model, ",le=\"+Inf\"",
               (double)s->steps);
        sample(b, "vllm:iteration_tokens_total_sum", scrapes[k].model, "",
               (double)s->computed_tokens);
        sample(b, "vllm:iteration_tokens_total_count", scrapes[k].model, "", (double)s->steps);
    }
}

static void write_cache_config(struct buf *b, const struct scrape *scrapes, size_t n)
{
    char more[96];
    head(b, "vllm:cache_config_info", "gauge", "How the KV cache is made.");
    for (size_t k = 0; k < n; k++) {
        snprintf(more, sizeof more, ",block_size=\"%d\",num_gpu_blocks=\"%d\"", KV_BLOCK_TOKENS,
                 scrapes[k].stats.blocks_total);
        sample(b, "vllm:cache_config_info", scrapes[k].model, more, 1);
    }
}

static void write_engines(struct buf *b, struct server *s)
{
    size_t n = 0;
    for (struct served *m = served_first(s); m; m = served_next(m))
        n++;
    struct scrape *scrapes = xcalloc(n + 1, sizeof *scrapes);
    n = 0;
    for (struct served *m = served_first(s); m; m = served_next(m)) {
        if (!served_is_loaded(m))
            continue;
        scrapes[n].model = m;
        engine_get_stats(m->model.engine, &scrapes[n++].stats);
    }
    for (size_t i = 0; i < ARRAY_LEN(engine_metrics); i++) {
        const struct engine_metric *em = &engine_metrics[i];
        head(b, em->name, em->type, em->help);
        for (size_t k = 0; k < n; k++)
            sample(b, em->name, scrapes[k].model, "", engine_value(em, &scrapes[k].stats));
    }
    write_blocks(b, scrapes, n);
    write_sources(b, scrapes, n);
    write_waiting(b, scrapes, n);
    write_steps(b, scrapes, n);
    write_cache_config(b, scrapes, n);
    free(scrapes);
}

/* ---- which models are loaded ---- */

static double loads_of(const struct served *m)
{
    return (double)m->n_loads;
}

static double evictions_of(const struct served *m)
{
    return (double)m->n_evictions;
}

static double bytes_of(const struct served *m)
{
    const struct budget_sums sums = budget_sums(m->server->opts.budget, m->name);
    uint64_t all = 0;
    for (int i = 0; i < BUDGET_USES; i++)
        all += sums.bytes[i];
    return (double)all;
}

static double is_loaded(const struct served *m)
{
    return served_is_loaded(m);
}

static void write_models(struct buf *b, struct server *s)
{
    static const struct {
        const char *name, *type, *help;
        double (*of)(const struct served *m);
        bool counted; /* needs a budget */
    } rows[] = {
        {"terrace_model_loaded", "gauge", "1 while the model can answer.", is_loaded, false},
        {"terrace_model_loads_total", "counter", "Times the model was loaded.", loads_of, false},
        {"terrace_model_evictions_total", "counter",
         "Times the model was unloaded to make room for another.", evictions_of, false},
        {"terrace_model_bytes", "gauge", "Memory that is set aside for the model.", bytes_of, true},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        if (rows[i].counted && !s->opts.budget)
            continue;
        head(b, rows[i].name, rows[i].type, rows[i].help);
        for (const struct served *m = served_first(s); m; m = served_next(m)) {
            buf_adds(b, rows[i].name);
            name_label(b, m);
            buf_addf(b, "} %.15g\n", rows[i].of(m));
        }
    }
}

static void write_memory(struct buf *b, struct budget *budget)
{
    if (!budget)
        return;
    struct budget_sums sums = budget_sums(budget, NULL);
    head(b, "terrace_memory_bytes", "gauge", "Memory that is set aside, by use.");
    for (int i = 0; i < BUDGET_USES; i++)
        buf_addf(b, "terrace_memory_bytes{use=\"%s\"} %" PRIu64 "\n",
                 budget_use_name((enum budget_use)i), sums.bytes[i]);
    head(b, "terrace_memory_limit_bytes", "gauge", "The most that may be set aside.");
    buf_addf(b, "terrace_memory_limit_bytes %" PRIu64 "\n", budget_limit(budget));
}

/* ---- what this server counts ---- */

static void write_finished(struct buf *b, struct server *s)
{
    static const char *const names[] = {
        [FINISH_STOP] = ",finished_reason=\"stop\"",
        [FINISH_LENGTH] = ",finished_reason=\"length\"",
        [FINISH_CANCEL] = ",finished_reason=\"abort\"",
        [FINISH_TIMEOUT] = ",finished_reason=\"timeout\"",
        [FINISH_ERROR] = ",finished_reason=\"error\"",
    };
    head(b, "vllm:request_success_total", "counter", "Finished requests by reason.");
    for (struct served *m = served_first(s); m; m = served_next(m))
        for (int f = FINISH_STOP; f <= FINISH_ERROR; f++)
            sample(b, "vllm:request_success_total", m, names[f], (double)m->metrics.finished[f]);
    head(b, "vllm:admission_rejections_total", "counter", "Requests that found the queue full.");
    for (struct served *m = served_first(s); m; m = served_next(m))
        sample(b, "vllm:admission_rejections_total", m, "", (double)m->metrics.rejected);
}

void http_metrics_release(struct http_metrics *m)
{
    free(m->routes);
    m->routes = NULL;
    m->n_routes = 0;
}

void metrics_count_request(struct http_metrics *m, const char *method, const char *route,
                           int status)
{
    for (size_t i = 0; i < m->n_routes; i++)
        if (m->routes[i].method == method && m->routes[i].route == route &&
            m->routes[i].status == status) {
            m->routes[i].n++;
            return;
        }
    m->routes = xrealloc(m->routes, (m->n_routes + 1) * sizeof *m->routes);
    m->routes[m->n_routes++] = (struct route_count){method, route, status, 1};
}

/* Memory of this process that is in RAM, 0: unknown. */
static double resident_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "re");
    unsigned long long size = 0, resident = 0;
    if (!f)
        return 0;
    if (fscanf(f, "%llu %llu", &size, &resident) != 2)
        resident = 0;
    fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

static void write_auth(struct buf *b, const struct server *s)
{
    struct auth_stats a = auth_stats(s->auth);
    const struct {
        const char *reason;
        uint64_t n;
    } rows[] = {
        {"missing", a.missing}, {"wrong", a.wrong}, {"expired", a.expired}, {"role", a.forbidden}};
    head(b, "terrace_auth_failures_total", "counter", "Requests refused for their key, by reason.");
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        buf_addf(b, "terrace_auth_failures_total{reason=\"%s\"} %" PRIu64 "\n", rows[i].reason,
                 rows[i].n);
    head(b, "terrace_auth_throttled_total", "counter",
         "Of those, the ones that were told to wait, as their address had failed too often.");
    buf_addf(b, "terrace_auth_throttled_total %" PRIu64 "\n", a.throttled);
}

static void write_http(struct buf *b, struct server *s)
{
    struct http_server_stats h = {0};
    if (s->http)
        h = http_server_stats(s->http);
    struct ledger_stats books = {0};
    if (s->ledger)
        books = ledger_stats(s->ledger);
    write_auth(b, s);
    head(b, "terrace_http_requests_total", "counter", "Answered requests by route and status.");
    for (size_t i = 0; i < s->metrics.n_routes; i++) {
        const struct route_count *c = &s->metrics.routes[i];
        buf_addf(b,
                 "terrace_http_requests_total{method=\"%s\",route=\"%s\",status=\"%d\"} "
                 "%" PRIu64 "\n",
                 c->method, c->route, c->status, c->n);
    }
    const struct {
        const char *name, *type, *help;
        double v;
    } rows[] = {
        {"terrace_http_connections", "gauge", "Open connections.", h.connections},
        {"terrace_resident_bytes", "gauge", "Memory of the process in RAM.", resident_bytes()},
        {"terrace_http_requests_refused_total", "counter",
         "Malformed, too large, too slow or too many.", (double)h.refused},
        {"terrace_http_client_gone_total", "counter", "Clients that left before the end.",
         (double)s->metrics.client_gone},
        {"terrace_limited_requests_total", "counter",
         "Requests that a limit of a key, tenant or address refused.", (double)s->metrics.limited},
        {"terrace_usage_rows_written_total", "counter", "Rows of usage and audit that are durable.",
         (double)books.written},
        {"terrace_usage_rows_lost_total", "counter",
         "Rows of usage and audit that could not be kept.", (double)books.lost},
        {"terrace_usage_failures_total", "counter", "Attempts to write them that failed.",
         (double)books.failures},
        {"terrace_request_unknown_fields_total", "counter", "Request fields that were ignored.",
         (double)s->metrics.unknown_fields},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        head(b, rows[i].name, rows[i].type, rows[i].help);
        buf_addf(b, "%s %.15g\n", rows[i].name, rows[i].v);
    }
}

void handle_metrics(struct exchange *x)
{
    struct server *s = x->server;
    struct buf b = {0};
    write_engines(&b, s);
    write_finished(&b, s);
    for (int h = 0; h < MODEL_HISTOGRAMS; h++) {
        const char *names[] = {histograms[h].name, histograms[h].older};
        for (size_t i = 0; i < ARRAY_LEN(names) && names[i]; i++) {
            head(&b, names[i], "histogram", histograms[h].help);
            for (const struct served *m = served_first(s); m; m = served_next(m))
                write_histogram(&b, names[i], m, h);
        }
    }
    router_write_metrics(s->router, &b);
    backends_metrics(s->backends, &b);
    adapter_write_metrics(s, &b);
    write_models(&b, s);
    write_memory(&b, s->opts.budget);
    write_http(&b, s);
    write_cache_metrics(&b, s);
    answer(x, 200, "text/plain; version=0.0.4; charset=utf-8", b.data, b.len);
    buf_release(&b);
}
