#include "server/router.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/mem.h"
#include "gateway/adapter_push.h"
#include "server/job.h"
#include "server/terms.h"

/* A configuration; jobs keep the one that they began with. */
struct routing_ref {
    struct routing *routing;
    double full_load;
    int n_refs;
};

/* What a tier of some name did and does: it outlives the configurations. */
struct tier_state {
    struct tier_state *next;
    char *name;
    int running;
    struct waiters waiting;
    uint64_t requests, failed, escalated, shed;
    uint64_t ttft_met, ttft_missed, token_met, token_missed;
};

struct router {
    struct server *server;
    struct routing_ref *now;
    struct tier_state *tiers;
};

struct job_route {
    struct routing_ref *ref;
    struct route_decision decision;
    int step;                    /* the one that runs, -1: none yet */
    struct tier_state *tier;     /* whose place the job holds, or NULL */
    int64_t attempt_ms, ttft_ms; /* began; its first token came after, -1: not yet */
};

enum { DEFAULT_FULL_LOAD = 64 };

/* ---- configuration ---- */

static void ref_put(struct routing_ref *r)
{
    if (!r || --r->n_refs)
        return;
    routing_free(r->routing);
    free(r);
}

static int read_config(struct routing_ref **out, const json_t *config, struct err *e)
{
    const json_t *full = json_object_get(config, "full_load");
    struct routing_ref *ref = xcalloc(1, sizeof *ref);
    ref->n_refs = 1;
    ref->full_load = full ? json_number_value(full) : DEFAULT_FULL_LOAD;
    int rc = routing_new(&ref->routing, config, e);
    if (!rc && !(ref->full_load >= 1))
        rc = err_param(e, ERR_INVALID, "full_load", "full_load must be a number from 1");
    if (rc)
        ref_put(ref);
    else
        *out = ref;
    return rc;
}

int router_configure(struct router *r, const json_t *config, struct err *e)
{
    struct routing_ref *ref;
    int rc = read_config(&ref, config, e);
    if (rc)
        return rc;
    ref_put(r->now);
    r->now = ref;
    return 0;
}

int router_check(const json_t *config, struct err *e)
{
    struct routing_ref *ref;
    int rc = read_config(&ref, config, e);
    if (!rc)
        ref_put(ref);
    return rc;
}

struct router *router_new(struct server *s)
{
    struct router *r = xcalloc(1, sizeof *r);
    json_t *none = json_object();
    r->server = s;
    BUG_ON(router_configure(r, none, NULL));
    json_decref(none);
    return r;
}

void router_free(struct router *r)
{
    if (!r)
        return;
    ref_put(r->now);
    for (struct tier_state *t; (t = r->tiers);) {
        r->tiers = t->next;
        free(t->name);
        free(t);
    }
    free(r);
}

static struct tier_state *state_of(struct router *r, const char *name)
{
    struct tier_state **at = &r->tiers;
    while (*at && strcmp((*at)->name, name) != 0)
        at = &(*at)->next;
    if (!*at) {
        *at = xcalloc(1, sizeof **at);
        (*at)->name = xstrdup(name);
    }
    return *at;
}

/* ---- facts ---- */

static struct str content_of(const json_t *message)
{
    const json_t *content = json_object_get(message, "content");
    return (struct str){json_string_value(content), json_string_length(content)};
}

static void read_texts(const struct chat_request *r, struct route_facts *f)
{
    f->text = STR("");
    f->n_messages = (int64_t)json_array_size(r->messages);
    for (int64_t i = 0; i < f->n_messages; i++) {
        struct str text = content_of(json_array_get(r->messages, (size_t)i));
        if (text.p)
            f->text = text;
        f->prompt_tokens += text.p ? route_estimate_tokens(text) : 0;
    }
    for (size_t i = 0; i < r->n_prompts && !r->messages; i++) {
        const struct gen_prompt *p = &r->prompts[i];
        if (!p->ids)
            f->text = p->text;
        f->prompt_tokens += p->ids ? (int64_t)p->n_ids : route_estimate_tokens(p->text);
    }
}

int64_t router_prompt_tokens(const struct job *j)
{
    struct route_facts f = {0};
    read_texts(&j->req, &f);
    return f.prompt_tokens;
}

static double load_now(struct router *r)
{
    int n = 0;
    for (struct served *m = served_first(r->server); m; m = served_next(m)) {
        struct engine_stats st;
        if (!served_is_loaded(m))
            continue;
        engine_get_stats(m->model.engine, &st);
        n += st.running + st.waiting;
    }
    return n / r->now->full_load;
}

/* The key's patterns, "a,b*", as a list in the request's arena. */
static const struct names *allowed_tiers(struct chat_request *req, const struct key *k)
{
    if (!k->tiers || !*k->tiers)
        return NULL;
    char *text = arena_strdup(&req->arena, str_of(k->tiers)), *save = NULL;
    struct names *out = arena_alloc(&req->arena, sizeof *out);
    out->at = arena_alloc(&req->arena, ROUTE_MAX_NAMES * sizeof *out->at);
    for (char *p = strtok_r(text, ", ", &save); p && out->n < ROUTE_MAX_NAMES;
         p = strtok_r(NULL, ", ", &save))
        out->at[out->n++] = p;
    return out;
}

static struct route_facts facts_of(struct router *r, struct exchange *x, struct chat_request *req,
                                   const char *tenant)
{
    time_t now = (time_t)clock_unix_s();
    struct tm local;
    localtime_r(&now, &local);
    struct route_facts f = {
        .model = req->model,
        .max_tokens = req->gen.max_tokens,
        .tools = req->tools != NULL,
        .stream = req->stream,
        .user = req->user,
        .tenant = tenant,
        .weekday = local.tm_wday,
        .minute_of_day = local.tm_hour * 60 + local.tm_min,
        .load = load_now(r),
        .may_shed = !str_case_eq(http_header(x->http, "x-terrace-shed"), "no"),
    };
    if (x->key) {
        const struct key *k = &x->key->key;
        f.key = k->name;
        f.role = role_names[k->role];
        f.allowed = allowed_tiers(req, k);
    }
    read_texts(req, &f);
    return f;
}

/* ---- decision ---- */

static bool serves(void *arg, const struct tier *t, bool *overloaded, const char **why)
{
    const struct tier_state *st = state_of(arg, t->name);
    *overloaded = t->concurrency && st->running >= t->concurrency;
    *why = "is full";
    return !*overloaded;
}

static int decide(struct router *r, struct exchange *x, struct chat_request *req,
                  const char *tenant, struct route_facts *f, struct route_decision *out,
                  struct err *e)
{
    *f = facts_of(r, x, req, tenant);
    struct route_view view = {r, serves};
    return route_decide(r->now->routing, f, &view, out, e);
}

static struct router *router_of(const struct job *j)
{
    return j->server->router;
}

static struct job_route *begin(struct job *j)
{
    struct router *r = router_of(j);
    struct job_route *route = arena_alloc(&j->req.arena, sizeof *route);
    struct route_facts f;
    route->step = -1;
    route->ref = r->now;
    if (decide(r, j->x, &j->req, j->tenant, &f, &route->decision, &j->err))
        return NULL;
    r->now->n_refs++;
    const struct tier *first = route->decision.steps[0].tier;
    if (first)
        state_of(r, first->name)->requests++;
    return j->route = route;
}

static const struct tier *tier_of(const struct job_route *route)
{
    return route && route->step >= 0 ? route->decision.steps[route->step].tier : NULL;
}

const struct tier *router_tier(const struct job *j)
{
    return tier_of(j->route);
}

enum job_step router_route(struct job *j)
{
    struct job_route *route = j->route ? j->route : begin(j);
    if (!route)
        return job_refuse(j, openai_status(j->err.code), "tier_not_allowed");
    if (route->step < 0)
        route->step = 0;
    const struct route_step *step = &route->decision.steps[route->step];
    if (step->tier) {
        struct tier_state *st = state_of(router_of(j), step->tier->name);
        if (step->tier->concurrency && st->running >= step->tier->concurrency) {
            waiters_add(&st->waiting, &j->waiter);
            return JOB_WAIT;
        }
        st->running++;
        route->tier = st;
    }
    j->req.model = step->model;
    route->attempt_ms = clock_ms();
    route->ttft_ms = -1;
    return JOB_GO;
}

/* ---- the way on ---- */

static void leave_tier(struct job_route *route)
{
    struct tier_state *st = route->tier;
    route->tier = NULL;
    if (!st)
        return;
    st->running--;
    waiters_wake_first(&st->waiting);
}

bool router_escalate(struct job *j, int status, const struct err *e)
{
    struct job_route *route = j->route;
    bool again = status == 429 || status == 404 || status >= 500;
    bool late = j->deadline_ms && clock_ms() >= j->deadline_ms;
    if (!route || route->step < 0 || route->step + 1 >= route->decision.n_steps || !again || late ||
        !j->x || j->begun || j->retry_ms) /* the key's limits are the same on every tier */
        return false;
    const struct tier *t = tier_of(route);
    size_t n = strlen(route->decision.reason);
    snprintf(route->decision.reason + n, sizeof route->decision.reason - n, "; %.40s: %.100s",
             t->name, e->msg);
    state_of(router_of(j), t->name)->escalated++;
    route->step++;
    leave_tier(route);
    job_restart(j);
    return true;
}

const struct names *router_backends(const struct job *j)
{
    const struct tier *t = tier_of(j->route);
    return t && t->backends.n ? &t->backends : NULL;
}

bool router_has_more(const struct job *j)
{
    return j->route && j->route->step + 1 < j->route->decision.n_steps;
}

bool router_accepts(const struct job *j, struct str answer, const char **why)
{
    const struct tier *t = tier_of(j->route);
    bool last = t && j->route->step + 1 == j->route->decision.n_steps;
    return !t || last || route_check(&t->check, answer, why);
}

void router_tick(struct job *j)
{
    const struct tier *t = tier_of(j->route);
    if (!t || !t->timeout_ms || !j->route->tier || j->route->ttft_ms >= 0 ||
        clock_ms() - j->route->attempt_ms < t->timeout_ms)
        return;
    struct err e = {0};
    err_set(&e, ERR_TIMEOUT, "no token within %lld ms", (long long)t->timeout_ms);
    router_escalate(j, 504, &e);
}

void router_explanation(const struct job *j, struct buf *out)
{
    const struct job_route *route = j->route;
    const struct tier *t = tier_of(route);
    size_t from = out->len;
    if (!route)
        return;
    if (t)
        buf_addf(out, "tier=%s; ", t->name);
    if (j->model)
        buf_addf(out, "model=%s; ", j->model->name);
    else if (j->backend[0] && j->req.model)
        buf_addf(out, "model=%s; ", j->req.model);
    if (j->pushed)
        buf_addf(out, "adapter=%s@%d; ", j->pushed->name, j->pushed->version);
    if (j->lease.n) {
        buf_adds(out, "adapter=");
        adapters_describe(&j->lease, out);
        buf_adds(out, "; ");
    }
    buf_addf(out, "backend=%s; ", j->backend[0] ? j->backend : ROUTE_LOCAL);
    buf_addf(out, "reason=\"%s\"", route->decision.reason);
    for (size_t i = from; i < out->len; i++)
        if ((unsigned char)out->data[i] >= 0x7f)
            out->data[i] = '?'; /* headers are ASCII */
}

void router_explain(struct job *j)
{
    struct buf b = {0};
    router_explanation(j, &b);
    if (b.len && j->x)
        http_add_header(j->x->http, "x-terrace-route", b.data);
    buf_release(&b);
}

void router_first_token(struct job *j)
{
    if (j->route && j->route->ttft_ms < 0)
        j->route->ttft_ms = clock_ms() - j->start_ns / 1000000;
}

void router_answered(struct job *j, const struct engine_usage *u)
{
    const struct tier *t = tier_of(j->route);
    if (!t)
        return;
    struct tier_state *st = state_of(router_of(j), t->name);
    if (t->ttft_ms && j->route->ttft_ms >= 0)
        (*(j->route->ttft_ms <= t->ttft_ms ? &st->ttft_met : &st->ttft_missed))++;
    if (t->token_ms && u->completion_tokens > 1)
        (*(u->decode_ms <= t->token_ms * (u->completion_tokens - 1) ? &st->token_met
                                                                    : &st->token_missed))++;
}

void router_over(struct job *j)
{
    struct job_route *route = j->route;
    if (!route)
        return;
    j->route = NULL;
    if (j->failed && tier_of(route))
        state_of(router_of(j), tier_of(route)->name)->failed++;
    leave_tier(route);
    ref_put(route->ref);
}

/* ---- what it tells ---- */

void router_write_metrics(const struct router *r, struct buf *out)
{
#define COUNTER(field, name_, labels_, help_)                                                      \
    {                                                                                              \
        .at = offsetof(struct tier_state, field), .name = name_, .labels = labels_, .help = help_  \
    }
    static const struct {
        size_t at;
        const char *name, *labels, *help;
    } rows[] = {
        COUNTER(requests, "terrace_tier_requests_total", "", "Requests routed to a tier first."),
        COUNTER(failed, "terrace_tier_failed_total", "", "Requests that ended there in an error."),
        COUNTER(escalated, "terrace_tier_escalated_total", "", "Attempts given to another tier."),
        COUNTER(ttft_met, "terrace_tier_target_total", ",target=\"ttft\",met=\"true\"",
                "Answers by whether the tier's latency targets were met."),
        COUNTER(ttft_missed, "terrace_tier_target_total", ",target=\"ttft\",met=\"false\"", NULL),
        COUNTER(token_met, "terrace_tier_target_total", ",target=\"token\",met=\"true\"", NULL),
        COUNTER(token_missed, "terrace_tier_target_total", ",target=\"token\",met=\"false\"", NULL),
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        if (rows[i].help)
            buf_addf(out, "# HELP %s %s\n# TYPE %s counter\n", rows[i].name, rows[i].help,
                     rows[i].name);
        for (const struct tier_state *t = r->tiers; t; t = t->next)
            buf_addf(out, "%s{tier=\"%s\"%s} %llu\n", rows[i].name, t->name, rows[i].labels,
                     (unsigned long long)*(const uint64_t *)((const char *)t + rows[i].at));
    }
    buf_addf(out, "# HELP terrace_tier_running Requests in a tier now.\n"
                  "# TYPE terrace_tier_running gauge\n");
    for (const struct tier_state *t = r->tiers; t; t = t->next)
        buf_addf(out, "terrace_tier_running{tier=\"%s\"} %d\n", t->name, t->running);
}

static void write_step(struct jw *w, const struct route_step *step)
{
    jw_obj(w);
    jw_kstr(w, "tier", step->tier ? step->tier->name : NULL);
    jw_kstr(w, "model", step->model);
    jw_kstr(w, "adapter", step->tier ? step->tier->adapter : NULL);
    jw_kbool(w, "personal", step->tier && step->tier->personal);
    jw_obj_end(w);
}

static void write_decision(struct buf *body, const struct route_facts *f,
                           const struct route_decision *d)
{
    struct jw w;
    jw_init(&w, body);
    jw_obj(&w);
    jw_kstr(&w, "object", "terrace.route");
    jw_kstr(&w, "reason", d->reason);
    jw_key(&w, "steps");
    jw_arr(&w);
    for (int i = 0; i < d->n_steps; i++)
        write_step(&w, &d->steps[i]);
    jw_arr_end(&w);
    jw_key(&w, "facts");
    jw_obj(&w);
    jw_kint(&w, "prompt_tokens", f->prompt_tokens);
    jw_kint(&w, "max_tokens", f->max_tokens);
    jw_kint(&w, "messages", f->n_messages);
    jw_kbool(&w, "tools", f->tools);
    jw_kbool(&w, "stream", f->stream);
    jw_kstr(&w, "language", route_language(f->text));
    jw_kstr(&w, "user", f->user);
    jw_kstr(&w, "tenant", f->tenant);
    jw_kstr(&w, "key", f->key);
    jw_kstr(&w, "role", f->role);
    jw_knum(&w, "load", f->load);
    jw_obj_end(&w);
    jw_obj_end(&w);
    jw_done(&w);
}

/* POST /v1/route: what would happen to this request, without doing it. */
void handle_route(struct exchange *x)
{
    struct http_req *http = x->http;
    struct chat_request req = {0};
    struct err e = {0};
    json_t *body = jr_parse(http->body.p, http->body.n, &e);
    enum openai_endpoint as = json_object_get(body, "prompt") ? OPENAI_COMPLETION : OPENAI_CHAT;
    int rc = body ? openai_parse_any(&req, as, http->body.p, http->body.n, &e) : e.code;
    json_decref(body);
    struct route_facts f;
    struct route_decision d;
    if (!rc)
        rc = decide(x->server->router, x, &req, request_tenant(http, &req, key_tenant(x->key)), &f,
                    &d, &e);
    if (rc) {
        answer_err(x, &e);
    } else {
        struct buf out = {0};
        write_decision(&out, &f, &d);
        answer_json(x, 200, &out);
        buf_release(&out);
    }
    chat_request_release(&req);
}
