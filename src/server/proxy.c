#include "server/proxy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/json_scan.h"
#include "base/log.h"
#include "base/mem.h"
#include "gateway/event_pass.h"
#include "http/link.h"
#include "server/proxy_body.h"
#include "server/router.h"

enum {
    REPLY_MAX_BYTES = 64 << 20,
    UNKNOWN_TOKENS = 256, /* of an answer, for the load of a backend */
    MAX_REQUEST_ID_BYTES = 128,
};

/* One backend at work on the request. */
struct attempt {
    struct proxy *proxy;
    struct backend *backend; /* NULL: this place is free */
    struct push_use push;    /* the adapter there, which may have to be loaded first */
    bool pushed_again;       /* the backend had forgotten it */
    struct http_call *call;
    struct buf body; /* as the backend wants it; empty: the client's bytes */
    int status;
    char type[96], retry_after[16];
    bool streams;
    struct upstream *translation; /* of its answer; NULL: it speaks the client's dialect */
    struct buf translated;
    struct event_pass events;
    struct buf reply;
};

struct proxy {
    struct job *job;
    struct backends *all;
    const char *request_id; /* the client's, "" if it has none */
    struct proxy_body body;
    struct openai_head head; /* of a translated answer; id NULL: there was none yet */
    struct balance_request balance;
    int64_t tokens, start_ms;
    struct attempt attempts[2]; /* the second one is the hedge */
    struct attempt *winner;     /* whose bytes the client gets */
    struct backend *tried[BACKENDS_MAX_TRIES];
    size_t n_tried;
    int retries;
    bool waits;
    struct waiter waiter;
    struct http_timer *hedge; /* NULL: none */
    struct http_timer *going; /* NULL: it was never held */
    bool starting;            /* inside of proxy_submit: a failure is for its caller */
    int status;               /* of the last failure, for the client */
    const char *code;
    char retry_after[16];
    struct err err;
    struct err unsaid; /* what a backend's dialect had no words for; code 0: nothing */
};

static void try_next(struct proxy *p);

/* ---- memory ---- */

static void attempt_release(struct attempt *a, enum backend_outcome o, const char *why)
{
    struct proxy *p = a->proxy;
    struct backend *b = a->backend;
    if (!b)
        return;
    if (a->call)
        http_call_cancel(a->call);
    push_release(&a->push);
    event_pass_release(&a->events);
    upstream_free(a->translation);
    buf_release(&a->translated);
    buf_release(&a->body);
    buf_release(&a->reply);
    *a = (struct attempt){.proxy = p};
    backends_end(p->all, b, p->tokens, o, why);
}

/* The job goes on without the proxy. */
static void proxy_free(struct proxy *p)
{
    struct backends *all = p->all;
    p->job->proxy = NULL;
    p->job->n_running = 0;
    if (p->waits)
        all->n_waiting--;
    waiter_cancel(&p->waiter);
    http_timer_free(p->hedge);
    http_timer_free(p->going);
    for (int i = 0; i < 2; i++)
        attempt_release(&p->attempts[i], OUTCOME_NEUTRAL, NULL);
    for (size_t i = 0; i < p->n_tried; i++)
        backend_unref(p->tried[i]);
    free(p);
}

/* ---- failures ---- */

static void fail(struct proxy *p, int status, const char *code, const struct err *e)
{
    struct job *j = p->job;
    struct err copy = *e;
    if (p->starting) {
        p->status = status;
        p->code = code;
        p->err = copy;
        return;
    }
    if (status == 429 && p->retry_after[0] && j->x && !j->x->says_when) {
        http_add_header(j->x->http, "Retry-After", p->retry_after);
        j->x->says_when = true;
    }
    proxy_free(p);
    remote_fail(j, status, code, &copy);
}

static void fail_last(struct proxy *p)
{
    fail(p, p->status, p->status == 504 ? "backend_timeout" : "backend_error", &p->err);
}

static bool may_retry(struct proxy *p)
{
    bool late = p->job->deadline_ms && clock_ms() >= p->job->deadline_ms;
    if (late || p->retries >= p->all->config.retries || p->n_tried == BACKENDS_MAX_TRIES)
        return false;
    if (!retry_budget_take(&p->all->retries)) {
        p->all->n_budget_empty++;
        return false;
    }
    p->retries++;
    p->all->n_retries++;
    return true;
}

static bool is_running(const struct proxy *p)
{
    return p->attempts[0].backend || p->attempts[1].backend;
}

/* The attempt is over without an answer; `status` is what the client would get. */
static void attempt_failed(struct attempt *a, enum backend_outcome o, int status, const char *why)
{
    struct proxy *p = a->proxy;
    bool begun = p->winner == a;
    int code = status == 504 ? ERR_TIMEOUT : status == 429 ? ERR_BUSY : ERR_IO;
    p->status = status;
    err_set(&p->err, code, "backend %s: %s", a->backend->config.name, why);
    log_debug("proxy", "%s", p->err.msg);
    snprintf(p->retry_after, sizeof p->retry_after, "%s", a->retry_after);
    attempt_release(a, o, why);
    if (begun)
        fail_last(p);
    else if (is_running(p))
        return;
    else if (may_retry(p))
        try_next(p);
    else
        fail_last(p);
}

/* ---- the answer ---- */

/* This attempt answers; the other one may go. */
static void win(struct attempt *a, const char *type)
{
    struct proxy *p = a->proxy;
    p->winner = a;
    for (int i = 0; i < 2; i++)
        if (&p->attempts[i] != a)
            attempt_release(&p->attempts[i], OUTCOME_NEUTRAL, NULL);
    remote_begin(p->job, type, a->backend->config.name);
}

/* The answer is complete. */
static struct engine_usage finish(struct attempt *a, int64_t prompt, int64_t completion)
{
    struct proxy *p = a->proxy;
    struct engine_usage u = {.prompt_tokens = (int)prompt,
                             .completion_tokens = (int)completion,
                             .decode_ms = clock_ms() - p->start_ms};
    a->backend->prompt_tokens += (uint64_t)prompt;
    a->backend->completion_tokens += (uint64_t)completion;
    if (a->call)
        http_call_abandon(a->call);
    a->call = NULL;
    attempt_release(a, OUTCOME_OK, NULL);
    proxy_free(p);
    return u;
}

static void stream_over(struct attempt *a, const struct err *e)
{
    struct job *j = a->proxy->job;
    if (!a->events.done) {
        int status = e && e->code == ERR_TIMEOUT ? 504 : 502;
        const char *why =
            a->translation ? "its stream ended too early" : "its stream ended without [DONE]";
        attempt_failed(a, OUTCOME_FAILED, status, e ? e->msg : why);
        return;
    }
    int64_t prompt = a->events.prompt_tokens, completion = a->events.completion_tokens;
    if (a->translation) { /* knows it whether the client asked or not */
        struct openai_usage counted = upstream_usage(a->translation);
        prompt = counted.prompt_tokens;
        completion = counted.completion_tokens;
    }
    struct engine_usage u = finish(a, prompt, completion ? completion : (int64_t)a->events.n_data);
    remote_end(j, &u);
}

static void pass_events(struct attempt *a, const char *data, size_t n)
{
    struct proxy *p = a->proxy;
    struct str whole;
    struct err e = {0};
    buf_clear(&a->translated);
    if (a->translation && upstream_take(a->translation, data, n, &a->translated, &e)) {
        attempt_failed(a, OUTCOME_FAILED, 502, e.msg);
        return;
    }
    if (a->translation) {
        data = buf_str(&a->translated);
        n = a->translated.len;
    }
    if (!event_pass_add(&a->events, data, n, &whole)) {
        attempt_failed(a, OUTCOME_FAILED, 502, "its event stream is garbled");
        return;
    }
    if (!whole.n)
        return;
    if (!p->winner) {
        if (!a->events.n_data && !a->events.done)
            return; /* pings: another backend may still be the one */
        win(a, REMOTE_EVENTS);
    }
    remote_text(p->job, whole);
    if (a->events.done) /* clients leave at [DONE], and the backend's last bytes may be late */
        stream_over(a, NULL);
}

static void ask(struct attempt *a);

/* A vLLM that was restarted knows the model no more, and says so: once more, with a new copy. */
static bool was_forgotten(struct attempt *a)
{
    return a->status == 404 && a->push.copy && !a->pushed_again;
}

static void push_again(struct attempt *a)
{
    push_lost(&a->push);
    a->pushed_again = true;
    a->status = 0;
    buf_clear(&a->reply);
    ask(a);
}

/* false: this is not what the backend's dialect looks like, or it reports an error (in e). */
static bool translate_reply(struct attempt *a, struct str *body, struct err *e)
{
    if (!a->translation)
        return true;
    bool fine = a->status == 200
                    ? upstream_answer(a->translation, *body, &a->translated, e) == 0
                    : upstream_error(a->backend->config.api, a->status, *body, &a->translated);
    *body = (struct str){buf_str(&a->translated), a->translated.len};
    return fine;
}

static void reply_over(struct attempt *a)
{
    struct job *j = a->proxy->job;
    struct str body = {buf_str(&a->reply), a->reply.len};
    struct err e = {0};
    char why[64];
    int64_t prompt = 0, completion = 0;
    if (was_forgotten(a)) {
        push_again(a);
        return;
    }
    if (a->status == 401 || a->status == 403) {
        attempt_failed(a, OUTCOME_FAILED, 502, "it refuses our key");
        return;
    }
    if (a->status == 429 || a->status >= 500) {
        snprintf(why, sizeof why, "it answered with status %d", a->status);
        attempt_failed(a, a->status == 429 ? OUTCOME_NEUTRAL : OUTCOME_FAILED,
                       a->status == 429 ? 429 : 502, why);
        return;
    }
    if (a->status < 200 || (a->status >= 300 && a->status < 400) ||
        !translate_reply(a, &body, &e) || !json_scan(body, NULL, NULL, 0)) {
        snprintf(why, sizeof why, "its answer (status %d) is not JSON", a->status);
        attempt_failed(a, OUTCOME_FAILED, 502, e.code ? e.msg : why);
        return;
    }
    win(a, REMOTE_JSON);
    event_usage(body, &prompt, &completion);
    if (a->status == 200) {
        remote_text(j, body);
        struct engine_usage u = finish(a, prompt, completion);
        remote_end(j, &u);
        return;
    }
    int status = a->status;
    struct buf *from = a->translation ? &a->translated : &a->reply;
    struct buf reply = *from; /* outlives the attempt */
    *from = (struct buf){0};
    struct engine_usage u = finish(a, prompt, completion);
    remote_refuse(j, status, body, &u);
    buf_release(&reply);
}

/* ---- callbacks of the call ---- */

static void copy_value(const struct http_head *head, const char *name, char *out, size_t room)
{
    struct str v = http_head_get(head, name);
    snprintf(out, room, "%.*s", v.p ? (int)(v.n < room ? v.n : room) : 0, v.p ? v.p : "");
}

static void on_head(struct http_call *call, const struct http_head *head)
{
    struct attempt *a = http_call_arg(call);
    a->status = head->status;
    copy_value(head, "content-type", a->type, sizeof a->type);
    copy_value(head, "retry-after", a->retry_after, sizeof a->retry_after);
    const char *stream = upstream_wires[a->backend->config.api].stream;
    a->streams = a->status == 200 && str_starts(str_of(a->type), stream);
}

static void on_data(struct http_call *call, const char *data, size_t n)
{
    struct attempt *a = http_call_arg(call);
    if (a->streams)
        pass_events(a, data, n);
    else if (a->reply.len + n > REPLY_MAX_BYTES)
        attempt_failed(a, OUTCOME_FAILED, 502, "its answer is too large");
    else
        buf_add(&a->reply, data, n);
}

static void on_end(struct http_call *call, const struct err *e)
{
    struct attempt *a = http_call_arg(call);
    if (a->streams) {
        a->call = NULL;
        stream_over(a, e);
        return;
    }
    a->call = NULL;
    if (!e) {
        reply_over(a);
        return;
    }
    bool late = a->proxy->job->deadline_ms && clock_ms() >= a->proxy->job->deadline_ms;
    enum backend_outcome o = e->code == ERR_IO && !a->status ? OUTCOME_UNREACHABLE : OUTCOME_FAILED;
    /* a deadline of the client's choice is not the backend's fault */
    attempt_failed(a, late ? OUTCOME_NEUTRAL : o, e->code == ERR_TIMEOUT ? 504 : 502, e->msg);
}

/* ---- the request ---- */

/* What the answer is called, whichever backend gives it. */
static void make_head(struct proxy *p)
{
    char id[48];
    if (p->head.id)
        return;
    job_make_id(p->job->endpoint, id, sizeof id);
    p->head = (struct openai_head){
        .endpoint = p->job->endpoint,
        .id = arena_strdup(&p->job->req.arena, str_of(id)),
        .model = p->job->req.model,
        .created = clock_unix_s(),
    };
}

static void send(struct attempt *a)
{
    struct proxy *p = a->proxy;
    const struct backend_config *c = &a->backend->config;
    const struct upstream_wire *wire = &upstream_wires[c->api];
    const char *path = p->job->endpoint == OPENAI_CHAT ? wire->chat : wire->completion;
    struct arena *arena = &p->job->req.arena;
    const char *headers[6], *url = arena_printf(arena, "%s%s", c->url, path);
    int n = 0;
    headers[n++] = "Content-Type: application/json";
    if (wire->header)
        headers[n++] = wire->header;
    if (c->key)
        headers[n++] = arena_printf(arena, "%s%s", wire->key, c->key);
    if (p->request_id[0])
        headers[n++] = arena_printf(arena, "X-Request-Id: %s", p->request_id);
    headers[n] = NULL;
    a->call =
        http_call_start(p->all->client, &(struct http_call_opts){
                                            .url = url,
                                            .headers = headers,
                                            .body = a->body.len ? a->body.data : p->body.bytes.p,
                                            .n_body = a->body.len ? a->body.len : p->body.bytes.n,
                                            .ca_file = c->ca_file,
                                            .connect_ms = c->connect_ms,
                                            .first_byte_ms = c->first_byte_ms,
                                            .idle_ms = c->idle_ms,
                                            .deadline_ms = p->job->deadline_ms,
                                            .arg = a,
                                            .on_head = on_head,
                                            .on_data = on_data,
                                            .on_end = on_end,
                                        });
}

/* The backend cannot have the adapter: refused, which says nothing of its health, or out of reach.
 */
static void push_failed(struct attempt *a, const struct err *e)
{
    enum backend_outcome o = e->code == ERR_IO        ? OUTCOME_UNREACHABLE
                             : e->code == ERR_TIMEOUT ? OUTCOME_FAILED
                                                      : OUTCOME_NEUTRAL;
    attempt_failed(a, o, e->code == ERR_TIMEOUT ? 504 : 502, e->msg);
}

/* The request for this backend, which knows its model as `as`. */
static int write_body(struct proxy *p, const struct backend *b, const char *as, struct buf *out,
                      struct err *e)
{
    const struct upstream_request q = proxy_body_for(&p->body, b->config.api, as);
    buf_clear(out);
    return proxy_body_write(&p->body, &q, out, e);
}

/* Sends the request as soon as its adapter is there, under whose name it then goes. */
static void ask(struct attempt *a)
{
    const struct push_adapter *adapter = a->proxy->job->pushed;
    struct err e = {0};
    const char *as = NULL;
    int rc = adapter ? push_take(a->backend, adapter, &a->push, &as, &e) : 1;
    if (rc > 0 && as && write_body(a->proxy, a->backend, as, &a->body, &e))
        rc = e.code;
    if (rc > 0)
        send(a);
    else if (rc < 0)
        push_failed(a, &e);
}

static void on_pushed(struct waiter *w, const struct err *failed)
{
    struct attempt *a = CONTAINER_OF(w, struct attempt, push.waiter);
    if (failed)
        push_failed(a, failed);
    else
        ask(a);
}

/* Asks a backend; p may be gone on return. ERR_*: its dialect cannot say what the client wants, and
 * it was not asked. */
static int start_attempt(struct proxy *p, struct attempt *a, struct backend *b, const char *as,
                         struct err *e)
{
    struct buf body = {0};
    backend_ref(b);
    p->tried[p->n_tried++] = b;
    int rc = write_body(p, b, as, &body, e);
    if (rc) {
        buf_release(&body);
        return rc;
    }
    *a = (struct attempt){.proxy = p, .backend = b, .body = body, .push.waiter.wake = on_pushed};
    if (b->config.api != UPSTREAM_OPENAI) {
        const struct upstream_request q = proxy_body_for(&p->body, b->config.api, as);
        make_head(p);
        a->translation = upstream_new(&q, &p->head);
    }
    backend_begin(b, p->tokens, clock_ms());
    ask(a);
    return 0;
}

static enum backend_answer pick(struct proxy *p, struct backend **b, const char **as,
                                struct buf *why)
{
    struct backend_query q = proxy_query(p->job);
    q.tried = p->tried;
    q.n_tried = p->n_tried;
    q.balance = p->balance;
    return backends_pick(p->all, &q, b, as, why);
}

static void wait_for_backend(struct proxy *p)
{
    if (p->all->n_waiting >= BACKENDS_MAX_WAITING) {
        struct err e = {0};
        err_set(&e, ERR_BUSY, "too many requests wait for backends of '%.128s'", p->job->req.model);
        fail(p, 429, "queue_full", &e);
        return;
    }
    p->waits = true;
    p->all->n_waiting++;
    waiters_add(&p->all->ready, &p->waiter);
}

/* Asks the next backend whose dialect has words for the request. */
static enum backend_answer ask_next(struct proxy *p, struct buf *why)
{
    struct backend *b;
    const char *as;
    while (p->n_tried < BACKENDS_MAX_TRIES) {
        struct err e = {0};
        enum backend_answer found = pick(p, &b, &as, why);
        if (found != BACKENDS_HERE || start_attempt(p, &p->attempts[0], b, as, &e) == 0)
            return found;
        p->unsaid = e;
    }
    return BACKENDS_NONE;
}

static void try_next(struct proxy *p)
{
    struct buf why = {0};
    switch (ask_next(p, &why)) {
    case BACKENDS_HERE:
        break;
    case BACKENDS_WAIT:
        wait_for_backend(p);
        break;
    case BACKENDS_NONE:
        if (p->status) { /* there was a try, and its reason says more */
            fail_last(p);
        } else if (p->unsaid.code) {
            fail(p, openai_status(p->unsaid.code), NULL, &p->unsaid);
        } else {
            struct err e = {0};
            err_set(&e, ERR_BUSY, "no backend can serve '%.128s' now: %.250s", p->job->req.model,
                    why.len ? why.data : "none is configured for it");
            fail(p, 503, "no_backend", &e);
        }
        break;
    }
    buf_release(&why);
}

static void on_ready(struct waiter *w, const struct err *failed)
{
    struct proxy *p = CONTAINER_OF(w, struct proxy, waiter);
    p->waits = false;
    p->all->n_waiting--;
    try_next(p);
}

/* The first backend is slow to begin. */
static void on_hedge(void *arg)
{
    struct proxy *p = arg;
    struct backend *b;
    const char *as;
    struct buf why = {0};
    struct err e = {0};
    struct backends *all = p->all;
    bool alone = p->attempts[0].backend && !p->attempts[1].backend && !p->winner;
    if (alone && p->n_tried < BACKENDS_MAX_TRIES && pick(p, &b, &as, &why) == BACKENDS_HERE &&
        retry_budget_take(&p->all->retries) && !start_attempt(p, &p->attempts[1], b, as, &e))
        all->n_hedges++;
    buf_release(&why);
}

static void go_on(void *arg)
{
    struct proxy *p = arg;
    if (p->winner && p->winner->call)
        http_call_resume(p->winner->call);
}

void proxy_hold(struct job *j, bool hold)
{
    struct proxy *p = j->proxy;
    struct attempt *a = p ? p->winner : NULL;
    if (!a || !a->call || a->events.done)
        return;
    if (!p->going)
        p->going = http_timer_new(j->server->loop, go_on, p);
    if (hold) {
        http_timer_stop(p->going);
        http_call_pause(a->call);
    } else { /* it may have data at once, and the caller is not ready for events of his own */
        http_timer_start(p->going, 0, 0);
    }
}

static void begin(struct proxy *p)
{
    const struct balance_config *c = &p->all->config;
    int64_t max_tokens = p->job->req.gen.max_tokens;
    struct err e = {0};
    p->all->n_requests++;
    retry_budget_request(&p->all->retries);
    if (!proxy_body_read(&p->body)) {
        err_set(&e, ERR_INVALID,
                "a request for a remote model must be one JSON object, its field "
                "names written without escapes");
        fail(p, 400, NULL, &e);
        return;
    }
    struct str prefix = proxy_body_prefix(&p->body);
    if (prefix.p)
        p->balance = (struct balance_request){true, XXH3_64bits(prefix.p, prefix.n)};
    if (c->hedge_ms && max_tokens && max_tokens <= c->hedge_tokens) {
        p->hedge = http_timer_new(p->job->server->loop, on_hedge, p);
        http_timer_start(p->hedge, c->hedge_ms, 0);
    }
    try_next(p);
}

enum job_step proxy_submit(struct job *j)
{
    struct proxy *p = xcalloc(1, sizeof *p);
    int64_t max_tokens = j->req.gen.max_tokens;
    struct str id = http_header(j->x->http, "x-request-id");
    *p = (struct proxy){
        .job = j,
        .all = j->server->backends,
        .request_id = arena_strdup(&j->req.arena, id.n <= MAX_REQUEST_ID_BYTES ? id : STR("")),
        .body = {.endpoint = j->endpoint,
                 .bytes = job_body(j),
                 .tree = j->req.root,
                 .messages = j->req.persona ? j->req.messages : NULL},
        .tokens = (int64_t)job_body(j).n / 4 + (max_tokens ? max_tokens : UNKNOWN_TOKENS),
        .start_ms = clock_ms(),
        .attempts = {{.proxy = p}, {.proxy = p}},
        .waiter = {.wake = on_ready},
        .starting = true,
    };
    j->proxy = p;
    j->n_running = 1;
    begin(p);
    p->starting = false;
    if (!p->status)
        return JOB_TAKEN;
    int status = p->status;
    const char *code = p->code;
    j->err = p->err;
    proxy_free(p);
    return job_refuse(j, status, code);
}

void proxy_cancel(struct job *j)
{
    const struct attempt *a = j->proxy ? j->proxy->winner : NULL;
    if (a) /* the client left in the middle: what came until then */
        j->remote = (struct openai_usage){.completion_tokens = (int)a->events.n_data};
    if (j->proxy)
        proxy_free(j->proxy);
}

void proxy_tick(struct job *j)
{
    struct proxy *p = j->proxy;
    bool waits = p->waits || waiter_waits(&p->attempts[0].push.waiter);
    if (!waits || !j->deadline_ms || clock_ms() < j->deadline_ms)
        return;
    struct err e = {0};
    err_set(&e, ERR_TIMEOUT, "no backend of '%.128s' was free before the deadline", j->req.model);
    fail(p, 504, "backend_timeout", &e);
}
