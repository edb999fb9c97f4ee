/* generate.c - /v1/chat/completions and /v1/completions: from the request to running choices.
 *
 * A job passes the stages of the table at the end of this file, one after the other; any may wait
 * for something (job->waiter) or fail with a status, as nothing was sent yet. From the last stage
 * on the engine owes one final event for each choice that it took, and stream.c answers. */
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <uv.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "server/job.h"
#include "server/persona.h"
#include "server/proxy.h"
#include "server/router.h"
#include "server/terms.h"

enum {
    INLINE_BODY_BYTES = 256 << 10, /* larger ones are parsed on the pool */
    MAX_CHOICES = 128,             /* prompts x n */
    BEGIN_AFTER_MS = 5000, /* a stream without an event gets its head, so that clients see life */
};

enum job_step job_refuse(struct job *j, int status, const char *code)
{
    j->status = status;
    j->code = code;
    return JOB_FAILED;
}

struct str job_body(const struct job *j)
{
    if (j->body)
        return (struct str){j->body, j->n_body};
    return j->x ? j->x->http->body : STR("");
}

void job_keep_body(struct job *j)
{
    struct str body = job_body(j);
    if (j->body)
        return;
    j->body = xstrndup(body.p, body.n);
    j->n_body = body.n;
    http_drop_body(j->x->http);
}

/* ---- heavy stages: any thread ---- */

static enum job_step stage_parse(struct job *j)
{
    struct str body = job_body(j);
    int rc = openai_parse_any(&j->req, j->endpoint, body.p, body.n, &j->err);
    if (rc)
        return job_refuse(j, openai_status(rc), NULL);
    if (j->req.persona && personas_apply(j->server->personas, job_tenant(j), &j->req, &j->err))
        return job_refuse(j, 404, "persona_not_found");
    int64_t n_choices = (int64_t)j->req.n_prompts * j->req.gen.n;
    if (n_choices <= MAX_CHOICES)
        return JOB_GO;
    err_param(&j->err, ERR_LIMIT, "n",
              "%zu prompts with 'n' = %" PRId64 " are more than %d choices", j->req.n_prompts,
              j->req.gen.n, MAX_CHOICES);
    return job_refuse(j, 400, NULL);
}

static enum job_step check_length(struct job *j, const struct token_list *prompt)
{
    const char *field = j->endpoint == OPENAI_CHAT ? "messages" : "prompt";
    int n_ctx = j->model->model.n_ctx;
    if (prompt->n > 0 && prompt->n < (size_t)n_ctx)
        return JOB_GO;
    if (prompt->n == 0) {
        err_param(&j->err, ERR_INVALID, field, "'%s' holds no tokens", field);
        return job_refuse(j, 400, NULL);
    }
    err_param(&j->err, ERR_INVALID, field,
              "'%s' takes %zu tokens, and the context of %s is %d tokens, of which one at "
              "least must be left for the answer: shorten it",
              field, prompt->n, j->model->name, n_ctx);
    return job_refuse(j, 400, "context_length_exceeded");
}

static enum job_step stage_prompt(struct job *j)
{
    const struct chat_request *r = &j->req;
    j->n_prompts = r->messages ? 1 : (int)r->n_prompts;
    j->prompts = xcalloc((size_t)j->n_prompts, sizeof *j->prompts);
    for (int i = 0; i < j->n_prompts; i++) {
        struct token_list *out = &j->prompts[i];
        int rc = r->messages ? prompt_from_messages(j->model, r, out, &j->err)
                             : prompt_from_raw(j->model, r, &r->prompts[i], out, &j->err);
        if (rc)
            return job_refuse(j, openai_status(rc), NULL);
        if (check_length(j, out))
            return JOB_FAILED;
    }
    return JOB_GO;
}

/* ---- life of a job ---- */

/* Forgets what the stages after the route made. */
static void job_reset(struct job *j)
{
    for (int i = 0; i < j->n_choices; i++) {
        buf_release(&j->choices[i].text);
        tool_parse_release(&j->choices[i].tools);
        free(j->choices[i].tokens);
        free(j->choices[i].stop_text);
    }
    for (int i = 0; i < j->n_prompts; i++)
        token_list_release(&j->prompts[i]);
    adapters_release(&j->lease);
    cache_release(j);
    free(j->choices);
    free(j->prompts);
    j->choices = NULL;
    j->prompts = NULL;
    j->n_choices = j->n_prompts = j->n_adapters = 0;
    j->proxied = false;
    j->backend[0] = 0;
    j->type = NULL;
    served_put(j->model);
    j->model = NULL;
    j->pushed = NULL;
    j->status = 0;
    j->code = NULL;
    j->err = (struct err){0};
}

static void job_free(struct job *j)
{
    *j->link = j->next;
    if (j->next)
        j->next->link = j->link;
    job_bill(j);
    router_over(j);
    job_reset(j);
    free(j->body);
    chat_request_release(&j->req);
    free(j);
}

void job_put(struct job *j)
{
    if (!j->x && !j->preparing && j->n_running == 0 && !waiter_waits(&j->waiter))
        job_free(j);
}

void job_stop(struct job *j)
{
    for (int i = 0; i < j->n_choices; i++)
        if (j->choices[i].running)
            engine_cancel(j->model->model.engine, j->choices[i].id);
    proxy_cancel(j);
}

void job_hold(struct job *j, bool hold)
{
    for (int i = 0; i < j->n_choices; i++)
        if (j->choices[i].running)
            engine_pause(j->model->model.engine, j->choices[i].id, hold);
    proxy_hold(j, hold);
}

void job_closed(struct job *j)
{
    waiter_cancel(&j->waiter);
    cache_leave(j);
    j->x = NULL;
    job_put(j);
}

void job_fail(struct job *j, int status, const char *code, const struct err *e)
{
    if (j->failed || router_escalate(j, status, e))
        return;
    j->failed = true;
    waiter_cancel(&j->waiter);
    cache_failed(j);
    if (!j->x)
        return;
    if (!j->begun) {
        router_explain(j);
        cache_explain(j);
        if (status == 429 && j->retry_ms)
            answer_too_many(j->x, code, j->retry_ms, e);
        else
            answer_error(j->x, status, code, e);
        return;
    }
    struct buf body = {0};
    openai_write_error(&body, status, code, e);
    http_write_event(j->x->http, NULL, body.data, body.len);
    http_write_event(j->x->http, NULL, OPENAI_DONE, strlen(OPENAI_DONE));
    http_end(j->x->http);
    buf_release(&body);
}

void job_tick(struct job *j)
{
    if (waiter_waits(&j->waiter) && j->deadline_ms && clock_ms() >= j->deadline_ms) {
        struct err e = {0};
        err_set(&e, ERR_TIMEOUT, "the request did not begin before its deadline");
        job_fail(j, openai_status(e.code), NULL, &e);
        return;
    }
    router_tick(j);
    bool late = clock_ns() - j->start_ns > (int64_t)BEGIN_AFTER_MS * 1000000;
    bool follows = j->cache.reader.entry && !j->cache.reader.made;
    if (late && j->x && !j->begun && !j->failed && !j->proxied && j->req.stream &&
        (j->n_running || follows))
        job_begin_stream(j);
    if (j->proxy)
        proxy_tick(j);
    else
        job_put(j); /* what it did for others may have ended since the last time */
}

/* ---- into the engine ---- */

static struct sampling sampling_of(const struct gen_params *g)
{
    struct sampling s;
    sampling_default(&s);
    s.temperature = (float)g->temperature;
    s.top_k = g->top_k > 0 ? (int)g->top_k : 0;
    s.top_p = (float)g->top_p;
    s.min_p = (float)g->min_p;
    s.typical_p = (float)g->typical_p;
    s.repetition_penalty = (float)g->repetition_penalty;
    s.repeat_last_n = (int)g->repeat_last_n;
    s.frequency_penalty = (float)g->frequency_penalty;
    s.presence_penalty = (float)g->presence_penalty;
    s.n_logprobs = (int)g->n_logprobs;
    return s;
}

struct logit_bias *job_biases(struct job *j)
{
    return arena_alloc(&j->req.arena, (j->req.gen.n_bias + 1) * sizeof(struct logit_bias));
}

void job_fill_request(const struct choice *c, struct engine_request *out, struct logit_bias *bias)
{
    const struct job *j = c->job;
    const struct gen_params *g = &j->req.gen;
    *out = (struct engine_request){
        .prompt = j->prompts[c->prompt].ids,
        .n_prompt = (int)j->prompts[c->prompt].n,
        .sampling = sampling_of(g),
        .max_tokens = g->max_tokens ? (int)g->max_tokens : j->model->model.n_ctx,
        .min_tokens = (int)g->min_tokens,
        .ignore_eos = g->ignore_eos,
        .speculate = g->speculate,
        .stop = g->stop,
        .n_stop = (int)g->n_stop,
        .include_stop = g->include_stop,
        .stop_ids = g->stop_ids,
        .n_stop_ids = (int)g->n_stop_ids,
        /* some models mark calls with control tokens */
        .special = !g->skip_special || job_finds_calls(j),
        .cache_salt = j->salt,
        .adapters = j->adapters,
        .n_adapters = j->n_adapters,
        .tenant = j->tenant,
        .priority = (int)g->priority,
        .deadline_ms = j->deadline_ms,
        .user = (void *)&c->user,
    };
    /* choices of one prompt must differ, and each must be repeatable */
    out->sampling.has_seed = g->has_seed;
    out->sampling.seed = (uint64_t)g->seed + (uint64_t)(c->index % (int)g->n);
    for (size_t i = 0; i < g->n_bias; i++)
        bias[i] = (struct logit_bias){g->bias[i].id, g->bias[i].bias};
    out->sampling.bias = bias;
    out->sampling.n_bias = (int)g->n_bias;
}

static void make_choices(struct job *j)
{
    int n = (int)j->req.gen.n;
    j->n_open = j->n_choices = n * j->n_prompts;
    j->choices = xcalloc((size_t)j->n_choices, sizeof *j->choices);
    for (int i = 0; i < j->n_choices; i++) {
        j->choices[i] = (struct choice){
            .user = {job_event}, .job = j, .index = i, .prompt = i / n, .stop_id = -1};
        if (j->req.tools)
            tool_parse_init(&j->choices[i].tools, j->model->tool_format);
    }
}

void job_make_id(enum openai_endpoint endpoint, char *id, size_t room)
{
    uint64_t n[2];
    rng_secret(n, sizeof n);
    snprintf(id, room, "%s-%016" PRIx64 "%08x", endpoint == OPENAI_CHAT ? "chatcmpl" : "cmpl", n[0],
             (unsigned)n[1]);
}

static void make_head(struct job *j)
{
    job_make_id(j->endpoint, j->id, sizeof j->id);
    j->head = (struct openai_head){
        .endpoint = j->endpoint,
        .id = j->id,
        .model = j->named ? j->named : j->model->name,
        .fingerprint = j->model->fingerprint,
        .created = clock_unix_s(),
        .usage_null = j->req.include_usage,
    };
}

/* A full queue is the server's state, all else that submit refuses is the request's fault. */
static enum job_step submit_failed(struct job *j)
{
    if (j->err.code != ERR_BUSY)
        return job_refuse(j, openai_status(j->err.code), NULL);
    j->model->metrics.rejected++;
    return job_refuse(j, 429, "queue_full");
}

static enum job_step stage_choices(struct job *j)
{
    j->x->http->on_drain = job_drain;
    if (!router_has_more(j)) /* else a backend may need it */
        http_drop_body(j->x->http);
    make_choices(j);
    make_head(j);
    return JOB_GO;
}

static enum job_step stage_submit(struct job *j)
{
    struct logit_bias *bias = job_biases(j);
    for (int i = 0; i < j->n_choices; i++) {
        struct choice *c = &j->choices[i];
        struct engine_request er;
        job_fill_request(c, &er, bias);
        if (engine_submit(j->model->model.engine, &er, &c->id, &j->err))
            return submit_failed(j);
        c->running = true;
        j->n_running++;
    }
    return JOB_GO;
}

/* ---- the other stages ---- */

static enum job_step stage_terms(struct job *j)
{
    note_unknown_fields(j->server, &j->req);
    j->tenant = request_tenant(j->x->http, &j->req, key_tenant(j->x->key));
    j->salt = request_salt(&j->req, j->server->opts.share_prefixes ? NULL : key_tenant(j->x->key));
    if (request_deadline(j->x->http, &j->req, j->start_ns, &j->deadline_ms, &j->err))
        return job_refuse(j, 400, NULL);
    return JOB_GO;
}

/* From here on it is this process that answers. */
static enum job_step stage_here(struct job *j)
{
    int rc = openai_served_here(&j->req, &j->err);
    return rc ? job_refuse(j, openai_status(rc), NULL) : JOB_GO;
}

static enum job_step stage_model(struct job *j)
{
    int status = served_acquire(j->server, j->req.model, &j->req.keep_alive, &j->waiter, &j->model,
                                &j->code, &j->err);
    if (status == SERVED_WAIT)
        return JOB_WAIT;
    return status ? job_refuse(j, status, j->code) : JOB_GO;
}

enum where { ANYWHERE, HERE, AT_BACKENDS }; /* who will answer */

static const struct stage {
    enum job_step (*run)(struct job *j);
    enum where where;
    bool heavy; /* any thread may run it; else the server's, with a client that is still there */
} stages[] = {
    {stage_parse, ANYWHERE, true},         /* bytes -> req */
    {stage_terms, ANYWHERE, false},        /* for whom, and until when */
    {router_route, ANYWHERE, false},       /* on which tier */
    {job_find_adapter, ANYWHERE, false},   /* a model that is an adapter's name */
    {job_permit, ANYWHERE, false},         /* the key may use them */
    {proxy_stage, ANYWHERE, false},        /* another engine has the model */
    {stage_here, HERE, false},             /* none has: we must be able to */
    {stage_model, HERE, false},            /* is there, or gets loaded */
    {job_take_adapters, HERE, false},      /* which they are; their loads begin */
    {stage_prompt, HERE, true},            /* messages -> tokens */
    {job_permit, ANYWHERE, false},         /* now that the model is known */
    {stage_choices, HERE, false},          /* what the answer will be made of */
    {remote_hash_body, AT_BACKENDS, true}, /* what it depends on */
    {cache_stage, ANYWHERE, false},        /* perhaps it is there already */
    {job_get_adapters, HERE, false},       /* are there */
    {job_admit, ANYWHERE, false},          /* the limits have room for its tokens */
    {stage_submit, HERE, false},
    {proxy_submit, AT_BACKENDS, false},
};

enum { STAGE_ROUTE = 2 }; /* where another tier begins */

/* ---- the way through the stages ---- */

static void advance(struct job *j);

static bool concerns(const struct stage *s, const struct job *j)
{
    return s->where == ANYWHERE || (s->where == AT_BACKENDS) == j->proxied;
}

/* The stage has said rc. */
static void stage_over(struct job *j, enum job_step rc)
{
    j->stage = rc == JOB_GO ? j->stage + 1 : (int)ARRAY_LEN(stages);
    if (!j->x)
        job_put(j); /* the client left meanwhile */
    else if (rc == JOB_FAILED)
        job_fail(j, j->status, j->code, &j->err);
    else
        advance(j);
}

static void run_on_pool(uv_work_t *work)
{
    struct job *j = work->data;
    j->outcome = stages[j->stage].run(j);
}

static void ran_on_pool(uv_work_t *work, int status)
{
    struct job *j = work->data;
    free(work);
    j->preparing = false;
    stage_over(j, j->outcome);
}

static void run_later(struct job *j)
{
    uv_work_t *work = xcalloc(1, sizeof *work);
    work->data = j;
    j->preparing = true;
    int rc = uv_queue_work(http_loop_uv(j->server->loop), work, run_on_pool, ran_on_pool);
    BUG_ON(rc); /* only for a NULL callback */
}

/* Runs the stages until one waits, or all are over. */
static void advance(struct job *j)
{
    while (j->stage < (int)ARRAY_LEN(stages) && !concerns(&stages[j->stage], j))
        j->stage++;
    if (j->stage == (int)ARRAY_LEN(stages))
        return;
    if (j->large && stages[j->stage].heavy) {
        run_later(j);
        return;
    }
    enum job_step rc = stages[j->stage].run(j);
    if (rc != JOB_WAIT)
        stage_over(j, rc);
}

static void restart(struct job *j)
{
    job_reset(j);
    j->restarting = false;
    j->stage = STAGE_ROUTE;
    advance(j);
}

void job_restart(struct job *j)
{
    j->restarting = true;
    waiter_cancel(&j->waiter);
    cache_failed(j);
    job_settled(j);
}

void job_settled(struct job *j)
{
    if (j->restarting && j->x && j->n_running == 0)
        restart(j);
    else
        job_put(j);
}

void job_rerun(struct job *j)
{
    for (j->stage = 0; stages[j->stage].run != cache_stage;)
        j->stage++;
    advance(j);
}

static void woken(struct waiter *w, const struct err *failed)
{
    struct job *j = (struct job *)((char *)w - offsetof(struct job, waiter));
    if (!failed) {
        advance(j);
        return;
    }
    j->err = *failed;
    stage_over(j, job_refuse(j, openai_status(failed->code), NULL));
}

static void generate(struct exchange *x, enum openai_endpoint endpoint)
{
    struct server *s = x->server;
    struct job_cache cache = {0};
    if (cache_answers(x, endpoint, &cache))
        return;
    struct job *j = xcalloc(1, sizeof *j);
    *j = (struct job){.server = s,
                      .x = x,
                      .endpoint = endpoint,
                      .start_ns = x->start_ns,
                      .cache = cache,
                      .waiter = {.wake = woken}};
    j->next = s->jobs;
    j->link = &s->jobs;
    if (j->next)
        j->next->link = &j->next;
    s->jobs = j;
    x->job = j;
    j->bill = x->bill;
    j->large = x->http->body.n > INLINE_BODY_BYTES;
    if (j->large)
        job_keep_body(j);
    advance(j);
}

void handle_chat(struct exchange *x)
{
    generate(x, OPENAI_CHAT);
}

void handle_completion(struct exchange *x)
{
    generate(x, OPENAI_COMPLETION);
}
