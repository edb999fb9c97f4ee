/* answer_cache.c - the cache stage of a job, and answers found by the bytes of a request.
 *
 * A job that may share its answer is a reader of it (gateway/response_cache.h), also when it leads:
 *
 *   engine -> job_event -> cache_take -> record -> take -> job_deliver -> client
 *                                               \-> take -> job_deliver -> another client
 *
 * A hit is replayed through the same job_deliver at once. The bytes that a hit turns into are kept
 * too, by the bytes of the request and who sent it, so that the next equal request is answered
 * without being parsed. */
#include "gateway/adapter_push.h"
#include "gateway/answer_marks.h"
#include "server/bill.h"
#include "server/job.h"
#include "server/router.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/rng.h"

enum {
    MAX_HASHED_BODY = 64 << 10,    /* larger requests are not found by their bytes */
    MAX_RENDERED_BYTES = 64 << 10, /* nor are larger answers kept as bytes */
};

static struct job *job_of(struct response_reader *r)
{
    return (struct job *)((char *)r - offsetof(struct job, cache.reader));
}

/* ---- what a request wants ---- */

static bool directive(struct str all, const char *name, struct str *value)
{
    size_t n = strlen(name);
    while (all.n) {
        const char *end = memchr(all.p, ',', all.n);
        struct str one = {all.p, end ? (size_t)(end - all.p) : all.n};
        all = end ? (struct str){end + 1, all.n - one.n - 1} : STR("");
        while (one.n && (*one.p == ' ' || *one.p == '\t'))
            one = (struct str){one.p + 1, one.n - 1};
        while (one.n && (one.p[one.n - 1] == ' ' || one.p[one.n - 1] == '\t'))
            one.n--;
        bool has_value = one.n > n && one.p[n] == '=';
        if (!str_case_eq((struct str){one.p, one.n < n ? one.n : n}, name) ||
            (one.n > n && !has_value))
            continue;
        *value = has_value ? (struct str){one.p + n + 1, one.n - n - 1} : STR("");
        return true;
    }
    return false;
}

/* The header says it as RFC 9111, section 5.2.1, and adds to what the body says. */
static void read_header(const struct http_req *http, struct cache_wish *w)
{
    struct str header = http_header(http, "cache-control"), value;
    int64_t age_s;
    w->no_cache = w->no_cache || directive(header, "no-cache", &value);
    w->no_store = w->no_store || directive(header, "no-store", &value);
    if (directive(header, "max-age", &value) && str_to_i64(value, &age_s) && age_s >= 0) {
        w->no_cache = w->no_cache || age_s == 0;
        if (!w->max_age_s || (double)age_s < w->max_age_s)
            w->max_age_s = (double)age_s;
    }
}

/* ---- keys ---- */

static void hash_text(struct response_hash *h, const char *text)
{
    response_hash_u64(h, text != NULL);
    response_hash_str(h, text ? str_of(text) : STR(""));
}

/* Who may share an answer: one tenant, one salt, one namespace. The name of a tenant that is not a
 * key's was cut to a length (terms.c), so what it was cut from counts too. */
void cache_hash_tenant(struct response_hash *h, const struct job *j)
{
    hash_text(h, j->tenant);
    if (!key_tenant(j->x->key)) {
        hash_text(h, j->req.user);
        response_hash_str(h, http_header(j->x->http, "x-terrace-tenant"));
    }
    hash_text(h, j->req.gen.cache_salt);
    hash_text(h, j->req.cache.space);
}

/* For response_drop. */
static const char *adapter_names(struct job *j)
{
    struct buf names = {0};
    if (j->pushed)
        buf_addf(&names, "%s\n", j->pushed->name);
    for (int i = 0; i < j->lease.n; i++)
        buf_addf(&names, "%s\n", adapters_name(&j->lease, i));
    const char *copy = arena_strdup(&j->req.arena, (struct str){buf_str(&names), names.len});
    buf_release(&names);
    return copy;
}

/* They may still be on their way into memory: a hit does not wait for them. */
static void hash_adapters(struct response_hash *h, const struct adapter_lease *l)
{
    response_hash_u64(h, (uint64_t)l->n);
    for (int i = 0; i < l->n; i++) {
        response_hash_bytes(h, adapters_digest(l, i), 32);
        response_hash_bytes(h, &l->uses[i].scale, sizeof l->uses[i].scale);
    }
}

static struct response_key engine_key(struct job *j)
{
    struct response_hash *h = &j->server->hash;
    struct logit_bias *bias = job_biases(j);
    const struct gen_params *g = &j->req.gen;
    response_hash_begin(h);
    cache_hash_tenant(h, j);
    response_hash_u64(h, j->model->serial);
    hash_adapters(h, &j->lease);
    response_hash_u64(h, (uint64_t)g->n);
    response_hash_u64(h, (uint64_t)j->n_prompts);
    for (int i = 0; i < j->n_prompts; i++) {
        struct engine_request er;
        job_fill_request(&j->choices[i * (int)g->n], &er, bias);
        er.n_adapters = 0; /* hashed already */
        response_hash_request(h, &er);
    }
    return response_hash_end(h);
}

/* What a backend answers is recorded as one choice (remote_answer.c). Two runs of it differ in ids
 * and times, so who has seen a part of one cannot go on with another. */
static void fill_terms(struct job *j)
{
    const struct gen_params *g = &j->req.gen;
    const struct cache_wish *w = &j->req.cache;
    j->cache.terms = (struct response_terms){
        .key = j->proxied ? remote_key(j) : engine_key(j),
        .tenant = j->tenant,
        .model = j->proxied ? j->req.model : j->model->name,
        .adapters = adapter_names(j),
        .n_choices = j->proxied ? 1 : j->n_choices,
        .repeatable = !j->proxied && (g->temperature == 0 || g->has_seed),
        .fresh = w->no_cache,
        .no_store = w->no_store,
        .ttl_ms = (int64_t)(w->ttl_s * 1e3 + 0.5),
        .max_age_ms = (int64_t)(w->max_age_s * 1e3),
    };
}

/* Who sends what, apart from headers that change nothing of the answer. A header that is not known
 * here counts, which can only cost a hit. */
static bool header_counts(struct str name)
{
    static const char *const harmless[] = {
        "accept",
        "accept-encoding",
        "accept-language",
        "api-key",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "idempotency-key",
        "keep-alive",
        "origin",
        "referer",
        "traceparent",
        "tracestate",
        "user-agent",
        "x-api-key",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
        "x-request-id",
        "baggage",
    };
    static const char *const families[] = {"x-stainless-", "sec-", "x-b3-"};
    for (size_t i = 0; i < ARRAY_LEN(families); i++) {
        size_t n = strlen(families[i]);
        if (name.n > n && str_case_eq((struct str){name.p, n}, families[i]))
            return false;
    }
    for (size_t i = 0; i < ARRAY_LEN(harmless); i++)
        if (str_case_eq(name, harmless[i]))
            return false;
    return true;
}

static struct response_key request_key(const struct exchange *x, enum openai_endpoint endpoint)
{
    struct response_hash *h = &x->server->hash;
    const struct http_req *r = x->http;
    response_hash_begin(h);
    response_hash_u64(h, endpoint);
    response_hash_u64(h, x->key ? (uint64_t)x->key->key.id + 1 : 0);
    response_hash_str(h, str_of(r->peer));
    response_hash_str(h, r->query);
    for (size_t i = 0; i < r->n_headers; i++)
        if (header_counts(r->headers[i].name)) {
            response_hash_str(h, r->headers[i].name);
            response_hash_str(h, r->headers[i].value);
        }
    response_hash_str(h, STR("")); /* no header has an empty name */
    response_hash_str(h, r->body);
    return response_hash_end(h);
}

/* ---- answers as bytes ---- */

static const char cache_header[] = "x-terrace-cache";

void cache_explain(struct job *j)
{
    if (j->cache.said && j->x)
        http_add_header(j->x->http, cache_header, j->cache.said);
}

static void write_digits(char *at, uint64_t v, size_t n, unsigned base)
{
    for (size_t i = n; i-- > 0; v /= base)
        at[i] = "0123456789abcdef"[v % base];
}

static void renew(struct response_rendered *v)
{
    uint64_t id[2];
    char hex[RESPONSE_ID_DIGITS], time[RESPONSE_TIME_DIGITS];
    rng_secret(id, sizeof id);
    write_digits(hex, id[0], 16, 16);
    write_digits(hex + 16, id[1], RESPONSE_ID_DIGITS - 16, 16);
    write_digits(time, (uint64_t)clock_unix_s(), sizeof time, 10);
    for (size_t i = 0; i < v->n_ids; i++)
        memcpy(v->body + v->id_at[i], hex, sizeof hex);
    for (size_t i = 0; i < v->n_times; i++)
        memcpy(v->body + v->time_at[i], time, sizeof time);
}

static void note_usage(struct exchange *x, const struct response_rendered *v)
{
    struct bill_counts counts = {
        .model = arena_strdup(&x->http->arena, str_of(response_rendered_model(v))),
        .tier = "",
        .prompt_tokens = v->prompt_tokens,
        .cached_tokens = v->cached_tokens,
        .completion_tokens = v->completion_tokens,
    };
    bill_note(x->bill, &counts);
}

bool cache_answers(struct exchange *x, enum openai_endpoint endpoint, struct job_cache *out)
{
    struct response_cache *c = x->server->cache;
    if (!c || !x->http->body.n || x->http->body.n > MAX_HASHED_BODY)
        return false;
    out->bytes = request_key(x, endpoint);
    out->hashed = true;
    out->generation = response_generation(c);
    struct response_rendered *v = response_rendered_find(c, &out->bytes);
    if (!v)
        return false;
    renew(v);
    note_usage(x, v);
    if (v->route[0])
        http_add_header(x->http, "x-terrace-route", v->route);
    if (v->backend[0])
        http_add_header(x->http, "x-terrace-backend", v->backend);
    http_add_header(x->http, cache_header, "hit");
    if (!v->events) {
        answer(x, 200, "application/json", v->body, v->n_body);
        return true;
    }
    x->status = 200;
    http_begin_events(x->http);
    http_write(x->http, v->body, v->n_body);
    http_end(x->http);
    return true;
}

/* Where the answer's id and time stand in its bytes. False: not as in answers of ours. */
static bool find_places(const struct job *j, struct response_rendered *v)
{
    struct buf all = {0};
    answer_marks_find((struct str){v->body, v->n_body}, &all);
    const struct answer_mark *marks = (const void *)all.data;
    size_t n = all.len / sizeof *marks;
    bool fine = true;
    v->id_at = xcalloc(n + 1, sizeof *v->id_at);
    v->time_at = xcalloc(n + 1, sizeof *v->time_at);
    for (size_t i = 0; i < n; i++) {
        struct str text = {v->body + marks[i].at, (size_t)marks[i].n};
        uint32_t end = (uint32_t)(marks[i].at + marks[i].n);
        if (marks[i].kind == MARK_ID) {
            fine = fine && str_eqs(text, j->id);
            v->id_at[v->n_ids++] = end - RESPONSE_ID_DIGITS; /* what an id of ours ends with */
        } else {
            fine = fine && text.n == RESPONSE_TIME_DIGITS;
            v->time_at[v->n_times++] = end - RESPONSE_TIME_DIGITS;
        }
    }
    buf_release(&all);
    return fine && v->n_ids > 0;
}

/* Calls have ids of their own, and a template may tell the time. */
static bool is_fixed(const struct job *j)
{
    bool calls = false;
    for (int i = 0; i < j->n_choices; i++)
        calls = calls || j->choices[i].n_calls;
    return j->proxied || (!calls && !j->model->tells_time);
}

static bool has_all(const struct job *j)
{
    bool all = true;
    for (int i = 0; i < j->cache.reader.n_choices; i++)
        all = all && j->cache.reader.seen[i].over;
    return all && !j->failed;
}

/* Some requests must be looked at again each time, and what a tier takes depends on more than the
 * request. */
static bool may_render(const struct job *j)
{
    return j->cache.hashed && has_all(j) && is_fixed(j) && !j->cache.terms.max_age_ms &&
           !router_tier(j) && j->cache.generation == response_generation(j->server->cache);
}

static void replay(struct job *j)
{
    struct response_rendered v = {.events = j->req.stream};
    struct buf copy = {0};
    j->x->http->copy = &copy;
    response_pump(&j->cache.reader);
    j->x->http->copy = NULL;
    if (may_render(j) && copy.len <= MAX_RENDERED_BYTES) {
        v.n_body = copy.len;
        v.body = xrealloc(buf_take(&copy), v.n_body + 1);
        struct buf route = {0};
        router_explanation(j, &route);
        v.route = buf_take(&route);
        v.backend = xstrdup(j->backend);
        struct openai_usage u = job_spent(j);
        v.prompt_tokens = u.prompt_tokens;
        v.cached_tokens = u.cached_tokens;
        v.completion_tokens = u.completion_tokens;
        if (find_places(j, &v))
            response_rendered_add(j->server->cache, &j->cache.reader, &j->cache.bytes, &v);
    }
    response_rendered_release(&v);
    buf_release(&copy);
}

/* ---- readers ---- */

static void deliver(struct job *j, int choice, const struct engine_event *ev)
{
    if (j->proxied)
        remote_deliver(j, ev);
    else
        job_deliver(&j->choices[choice], ev);
}

static void take(struct response_reader *r, int choice, const struct engine_event *ev)
{
    deliver(job_of(r), choice, ev);
}

static void rerun(struct response_reader *r)
{
    job_rerun(job_of(r));
}

static void hold(struct response_reader *r, bool on)
{
    job_hold(job_of(r), on);
}

/* An engine says later that the run is over, a backend is left at once. */
static void stop(struct response_reader *r)
{
    struct job *j = job_of(r);
    job_stop(j);
    if (j->n_running == 0)
        response_unlead(r);
}

/* The engine keeps the deadline of who leads. */
static void deadline_over(void *arg)
{
    struct job *j = arg;
    struct err e = {0};
    err_set(&e, ERR_TIMEOUT, "the request did not finish before its deadline");
    job_fail(j, openai_status(e.code), NULL, &e);
}

static void watch_deadline(struct job *j)
{
    if (!j->deadline_ms || j->cache.deadline)
        return;
    int64_t left_ms = j->deadline_ms - clock_ms();
    j->cache.deadline = http_timer_new(j->server->loop, deadline_over, j);
    http_timer_start(j->cache.deadline, left_ms > 0 ? left_ms : 0, 0);
}

bool cache_asks(const struct job *j)
{
    const struct gen_params *g = &j->req.gen;
    const struct cache_wish *w = &j->req.cache;
    return j->server->cache && (g->temperature == 0 || g->has_seed || w->opt_in) &&
           !(w->no_cache && w->no_store);
}

enum job_step cache_stage(struct job *j)
{
    struct response_cache *c = j->server->cache;
    struct response_reader *r = &j->cache.reader;
    if (!c)
        return JOB_GO;
    if (!j->cache.asked) { /* else it runs again */
        read_header(j->x->http, &j->req.cache);
        if (!cache_asks(j)) {
            response_bypass(c);
            j->cache.said = "bypass";
            return JOB_GO;
        }
        fill_terms(j);
        j->cache.asked = true;
        r->take = take;
        r->rerun = rerun;
        r->hold = hold;
        r->stop = stop;
    }
    static const char *const words[] = {[RESPONSE_NONE] = "miss",
                                        [RESPONSE_LEAD] = "miss",
                                        [RESPONSE_COALESCED] = "coalesced",
                                        [RESPONSE_HIT] = "hit"};
    enum response_found found = response_open(c, r, &j->cache.terms);
    j->cache.repeats = found == RESPONSE_HIT || found == RESPONSE_COALESCED;
    if (!j->cache.said)
        j->cache.said = j->cache.terms.fresh ? "bypass" : words[found];
    if (found == RESPONSE_LEAD && j->proxied)
        job_keep_body(j); /* the run may outlive the client */
    if (found == RESPONSE_NONE || found == RESPONSE_LEAD)
        return JOB_GO;
    if (found == RESPONSE_HIT) {
        replay(j);
    } else {
        watch_deadline(j);
        response_pump(r);
    }
    return JOB_TAKEN;
}

/* ---- the rest of a job's life ---- */

void cache_take(struct job *j, int choice, const struct engine_event *ev)
{
    struct response_reader *r = &j->cache.reader;
    if (!r->made) {
        deliver(j, choice, ev);
        return;
    }
    const struct response_entry *made = r->made;
    response_add(r, choice, ev);
    if (r->made == made && made && j->n_running == 0) /* else another tier has begun */
        response_unlead(r);
}

void cache_pause(struct job *j, bool paused)
{
    response_pause(&j->cache.reader, paused);
    if (!j->cache.reader.made) /* else `hold` is told when all readers are slow */
        job_hold(j, paused);
}

void cache_leave(struct job *j)
{
    struct response_reader *r = &j->cache.reader;
    bool leads = r->made;
    if (leads && j->n_running == 0)
        response_unlead(r); /* it never began: a follower will */
    response_close(r);      /* stops the run if nobody else reads */
    if (!leads)
        job_stop(j);
}

void cache_failed(struct job *j)
{
    if (j->cache.reader.made)
        response_unlead(&j->cache.reader);
    response_close(&j->cache.reader);
    job_stop(j);
}

void cache_release(struct job *j)
{
    struct job_cache *c = &j->cache;
    response_reader_release(&c->reader);
    if (c->deadline)
        http_timer_free(c->deadline);
    c->reader = (struct response_reader){.paused = j->blocked};
    c->deadline = NULL;
    c->said = NULL;
    c->asked = false;
    c->repeats = false;
}
