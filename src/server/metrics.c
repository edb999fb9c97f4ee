/* metrics.c - /metrics in Prometheus' text format, version 0.0.4, under vLLM's names (old and new),
 * so that dashboards and routers made for vLLM read them; `terrace_*` where vLLM has none. */
#include <math.h>

#include "base/mem.h"
#include "server/service.h"

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
    [HIST_GENERATION_TOKENS] = {"vllm:request_generation_tokens", NULL, "Tokens generated.",
                                TOKENS},
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

/* {model_name="...",engine="0"MORE} */
static void labels(struct buf *b, const struct served *m, const char *more)
{
    buf_adds(b, "{model_name=\"");
    for (const char *p = m->name; *p; p++) {
        if (*p == '"' || *p == '\\')
            buf_addc(b, '\\');
        buf_addc(b, *p == '\n' ? ' ' : *p);
    }
    buf_addf(b, "\",engine=\"0\"%s}", more);
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

struct engine_metric {
    const char *name, *type, *help;
    double (*value)(const struct engine_stats *s);
};

static double kv_use(const struct engine_stats *s)
{
    return s->blocks_total ? (double)s->blocks_held / s->blocks_total : 0;
}

static double running(const struct engine_stats *s)
{
    return s->running;
}

static double waiting(const struct engine_stats *s)
{
    return s->waiting;
}

static double prompt_tokens(const struct engine_stats *s)
{
    return (double)s->prompt_tokens;
}

static double generated(const struct engine_stats *s)
{
    return (double)s->generated_tokens;
}

static double cached(const struct engine_stats *s)
{
    return (double)s->cached_tokens;
}

static double preemptions(const struct engine_stats *s)
{
    return (double)s->preemptions;
}

static double steps(const struct engine_stats *s)
{
    return (double)s->steps;
}

static double last_step(const struct engine_stats *s)
{
    return s->last_step_ms / 1e3;
}

static double blocks_free(const struct engine_stats *s)
{
    return s->blocks_free;
}

static double blocks_cached(const struct engine_stats *s)
{
    return s->blocks_cached;
}

static const struct engine_metric engine_metrics[] = {
    {"vllm:num_requests_running", "gauge", "Requests in the running batch.", running},
    {"vllm:num_requests_waiting", "gauge", "Requests in the queue.", waiting},
    {"vllm:kv_cache_usage_perc", "gauge", "KV blocks held by requests, 0 to 1.", kv_use},
    {"vllm:gpu_cache_usage_perc", "gauge", "Older name of vllm:kv_cache_usage_perc.", kv_use},
    {"vllm:prompt_tokens_total", "counter", "Tokens of prompts.", prompt_tokens},
    {"vllm:generation_tokens_total", "counter", "Tokens generated.", generated},
    {"vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up.", prompt_tokens},
    {"vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the cache.", cached},
    {"vllm:gpu_prefix_cache_queries_total", "counter", "Older name.", prompt_tokens},
    {"vllm:gpu_prefix_cache_hits_total", "counter", "Older name.", cached},
    {"vllm:prompt_tokens_cached_total", "counter", "Prompt tokens not computed.", cached},
    {"vllm:num_preemptions_total", "counter", "Requests put back for want of blocks.", preemptions},
    {"terrace_engine_steps_total", "counter", "Steps of the engine.", steps},
    {"terrace_engine_last_step_seconds", "gauge", "Duration of the latest step.", last_step},
    {"terrace_kv_blocks_free", "gauge", "KV blocks that hold nothing.", blocks_free},
    {"terrace_kv_blocks_cached", "gauge", "KV blocks kept for later prompts.", blocks_cached},
};

static void write_engines(struct buf *b, struct server *s)
{
    for (size_t i = 0; i < ARRAY_LEN(engine_metrics); i++) {
        const struct engine_metric *em = &engine_metrics[i];
        head(b, em->name, em->type, em->help);
        for (struct served *m = served_first(s); m; m = atomic_load(&m->next)) {
            struct engine_stats stats = {0};
            engine_get_stats(m->model.engine, &stats);
            sample(b, em->name, m, "", em->value(&stats));
        }
    }
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
    for (struct served *m = served_first(s); m; m = atomic_load(&m->next))
        for (int f = FINISH_STOP; f <= FINISH_ERROR; f++)
            sample(b, "vllm:request_success_total", m, names[f], (double)m->metrics.finished[f]);
}

static void write_http(struct buf *b, struct server *s)
{
    struct http_server_stats h = {0};
    if (s->http)
        h = http_server_stats(s->http);
    head(b, "terrace_http_responses_total", "counter", "Responses by status.");
    for (int i = 0; i < METRIC_STATUSES; i++)
        if (s->metrics.by_status[i])
            buf_addf(b, "terrace_http_responses_total{status=\"%d\"} %llu\n", i,
                     (unsigned long long)s->metrics.by_status[i]);
    const struct {
        const char *name, *type, *help;
        double v;
    } rows[] = {
        {"terrace_http_connections", "gauge", "Open connections.", h.connections},
        {"terrace_http_requests_refused_total", "counter",
         "Malformed, too large, too slow or too many.", (double)h.refused},
        {"terrace_http_client_gone_total", "counter", "Clients that left before the end.",
         (double)s->metrics.client_gone},
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
            for (const struct served *m = served_first(s); m; m = atomic_load(&m->next))
                write_histogram(&b, names[i], m, h);
        }
    }
    write_http(&b, s);
    answer(x, 200, "text/plain; version=0.0.4; charset=utf-8", b.data, b.len);
    buf_release(&b);
}
