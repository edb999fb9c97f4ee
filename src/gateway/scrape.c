#include "gateway/scrape.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "gateway/backends.h"

enum {
    PAGE_MAX_BYTES = 4 << 20,
    TIMEOUT_MS = 5000,
    STALE_INTERVALS = 3,
    NUMBER_BYTES = 64,
};

/* ---- the format ---- */

/* Where several name the same value, the first that is there counts. */
static const struct series {
    const char *name;
    enum scrape_value value;
} series[] = {
    {"vllm:num_requests_running", SCRAPE_RUNNING},
    {"vllm:num_requests_waiting", SCRAPE_WAITING},
    {"vllm:kv_cache_usage_perc", SCRAPE_KV_USAGE},
    {"vllm:prompt_tokens_total", SCRAPE_PROMPT_TOKENS},
    {"vllm:generation_tokens_total", SCRAPE_GENERATION_TOKENS},
    {"vllm:prefix_cache_queries_total", SCRAPE_PREFIX_QUERIES},
    {"vllm:prefix_cache_hits_total", SCRAPE_PREFIX_HITS},
    {"vllm:gpu_cache_usage_perc", SCRAPE_KV_USAGE},
    {"vllm:gpu_prefix_cache_queries_total", SCRAPE_PREFIX_QUERIES},
    {"vllm:gpu_prefix_cache_hits_total", SCRAPE_PREFIX_HITS},
    {"llamacpp:requests_processing", SCRAPE_RUNNING},
    {"llamacpp:requests_deferred", SCRAPE_WAITING},
    {"llamacpp:prompt_tokens_total", SCRAPE_PROMPT_TOKENS},
    {"llamacpp:tokens_predicted_total", SCRAPE_GENERATION_TOKENS},
    {"llamacpp:kv_cache_usage_ratio", SCRAPE_KV_USAGE},
};

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

static struct str trim(struct str s)
{
    for (; s.n && is_space(s.p[0]); s.p++)
        s.n--;
    while (s.n && (is_space(s.p[s.n - 1]) || s.p[s.n - 1] == '\r'))
        s.n--;
    return s;
}

/* Takes the name off the line. */
static bool take_name(struct str *line, struct str *name)
{
    size_t n = 0;
    while (n < line->n &&
           (isalnum((unsigned char)line->p[n]) || line->p[n] == '_' || line->p[n] == ':'))
        n++;
    *name = (struct str){line->p, n};
    line->p += n;
    line->n -= n;
    return n > 0;
}

/* Takes {label="value", ...} off the line, if it is there. */
static bool skip_labels(struct str *line)
{
    bool quoted = false;
    if (!line->n || line->p[0] != '{')
        return true;
    for (size_t i = 1; i < line->n; i++) {
        char c = line->p[i];
        if (quoted && c == '\\') {
            i++;
        } else if (c == '"') {
            quoted = !quoted;
        } else if (c == '}' && !quoted) {
            line->p += i + 1;
            line->n -= i + 1;
            return true;
        }
    }
    return false;
}

/* The number at the beginning; after it a time may follow. */
static bool read_number_at(struct str s, double *out)
{
    char text[NUMBER_BYTES], *end;
    size_t n = 0;
    while (n < s.n && !is_space(s.p[n]))
        n++;
    if (!n || n >= sizeof text)
        return false;
    memcpy(text, s.p, n);
    text[n] = 0;
    *out = strtod(text, &end);
    return end == text + n;
}

/* name{labels} value [time] */
static bool read_line(struct str line, struct str *name, double *value)
{
    if (!take_name(&line, name))
        return false;
    line = trim(line);
    return skip_labels(&line) && read_number_at(trim(line), value);
}

/* Sums of the series, by row of the table. */
struct sums {
    double v[ARRAY_LEN(series)];
    bool has[ARRAY_LEN(series)];
};

static bool count(struct sums *s, struct str name, double value)
{
    for (size_t i = 0; i < ARRAY_LEN(series); i++) {
        if (!str_eqs(name, series[i].name))
            continue;
        if (!isfinite(value) || value < 0)
            return false;
        if (series[i].value != SCRAPE_KV_USAGE)
            s->v[i] += value;
        else if (value > s->v[i])
            s->v[i] = value;
        s->has[i] = true;
    }
    return true;
}

bool scrape_parse(struct scrape *out, struct str text)
{
    struct sums sums = {0};
    while (text.n) {
        const char *end = memchr(text.p, '\n', text.n);
        size_t n = end ? (size_t)(end - text.p) : text.n;
        struct str line = trim((struct str){text.p, n}), name;
        double value;
        text.p += n + (end != NULL);
        text.n -= n + (end != NULL);
        if (!line.n || line.p[0] == '#')
            continue;
        if (!read_line(line, &name, &value) || !count(&sums, name, value))
            return false;
    }
    *out = (struct scrape){0};
    for (size_t i = 0; i < ARRAY_LEN(series); i++) {
        enum scrape_value to = series[i].value;
        if (!sums.has[i] || out->has[to])
            continue;
        out->v[to] = sums.v[i];
        out->has[to] = true;
    }
    return true;
}

/* ---- asking ---- */

struct backend_scrape {
    struct scrape latest;
    int64_t at_ms;  /* of the latest, 0: there is none */
    int64_t due_ms; /* of the next one */
    struct http_call *call;
    struct buf page;
    int status;
    bool too_large, told; /* told: the log knows that it fails */
    uint64_t n_failed;
};

static void on_head(struct http_call *call, const struct http_head *head)
{
    struct backend *b = http_call_arg(call);
    b->scrape->status = head->status;
}

static void on_data(struct http_call *call, const char *p, size_t n)
{
    struct backend *b = http_call_arg(call);
    struct backend_scrape *s = b->scrape;
    s->too_large = s->too_large || s->page.len + n > PAGE_MAX_BYTES;
    if (!s->too_large)
        buf_add(&s->page, p, n);
}

/* NULL, or why there is nothing to learn from the answer. */
static const char *read_page(struct backend_scrape *s, const struct err *e)
{
    if (e)
        return e->msg;
    if (s->status != 200)
        return "it has none (llama-server: --metrics)";
    if (s->too_large)
        return "they are too large";
    if (!scrape_parse(&s->latest, (struct str){buf_str(&s->page), s->page.len}))
        return "they are malformed";
    return NULL;
}

static void on_end(struct http_call *call, const struct err *e)
{
    struct backend *b = http_call_arg(call);
    struct backend_scrape *s = b->scrape;
    s->call = NULL;
    const char *wrong = read_page(s, e);
    if (wrong && !s->told)
        log_info("gateway", "backend %s: no metrics: %s", b->config.name, wrong);
    s->told = wrong != NULL;
    s->n_failed += wrong != NULL;
    s->at_ms = wrong ? 0 : clock_ms();
    buf_release(&s->page);
}

static void ask(struct backend *b, struct backend_scrape *s)
{
    const struct backend_config *c = &b->config;
    struct buf url = {0}, auth = {0};
    buf_addf(&url, "%s/metrics", c->url);
    if (c->key)
        buf_addf(&auth, "Authorization: Bearer %s", c->key);
    const char *headers[] = {c->key ? auth.data : NULL, NULL};
    s->status = 0;
    s->too_large = false;
    s->call = http_call_start(b->all->client, &(struct http_call_opts){
                                                  .url = url.data,
                                                  .headers = headers,
                                                  .ca_file = c->ca_file,
                                                  .deadline_ms = clock_ms() + TIMEOUT_MS,
                                                  .arg = b,
                                                  .on_head = on_head,
                                                  .on_data = on_data,
                                                  .on_end = on_end,
                                              });
    buf_release(&url);
    buf_release(&auth);
}

int64_t scrape_look(struct backend *b, int64_t now)
{
    enum backend_kind kind = b->config.kind;
    bool up = b->state == BACKEND_HEALTHY || b->state == BACKEND_HALF_OPEN;
    if (!b->config.scrape_ms || (kind != BACKEND_VLLM && kind != BACKEND_LLAMA_SERVER) || !up)
        return 0; /* a change of the state brings us here again */
    if (!b->scrape)
        b->scrape = xcalloc(1, sizeof *b->scrape);
    struct backend_scrape *s = b->scrape;
    if (now >= s->due_ms && !s->call) {
        s->due_ms = now + b->config.scrape_ms;
        ask(b, s);
    }
    return s->due_ms > now ? s->due_ms : now + b->config.scrape_ms;
}

const struct scrape *scrape_latest(const struct backend *b, int64_t now)
{
    const struct backend_scrape *s = b->scrape;
    bool fresh = s && s->at_ms && now - s->at_ms <= STALE_INTERVALS * b->config.scrape_ms;
    return fresh ? &s->latest : NULL;
}

uint64_t scrape_failures(const struct backend *b)
{
    return b->scrape ? b->scrape->n_failed : 0;
}

void scrape_cancel(struct backend *b)
{
    struct backend_scrape *s = b->scrape;
    if (!s || !s->call)
        return;
    http_call_cancel(s->call);
    s->call = NULL;
    buf_release(&s->page);
}

void scrape_free(struct backend *b)
{
    scrape_cancel(b);
    free(b->scrape);
    b->scrape = NULL;
}
