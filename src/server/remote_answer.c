/* remote_answer.c - the answer of a backend, from the proxy to all who want it.
 *
 * It takes the way of a local one: as events of one choice, through the response cache if the job
 * asks it, and to the client:
 *
 *   proxy -> remote_begin ... remote_end -> cache_take -> record -> remote_deliver -> client
 *                                                             \-> remote_deliver -> another client
 *
 *   begin   text is "TYPE BACKEND"
 *   text    bytes as the backend sent them: whole events, or all of the document; its ids are where
 *           the answer's id and time stand in them (gateway/answer_marks.h)
 *   end     FINISH_STOP, with the usage
 *   or, of what is no answer and therefore never kept:
 *   refuse  FINISH_CANCEL, stop_id is the HTTP status, text the JSON; all who follow get it too
 *   fail    FINISH_ERROR or FINISH_TIMEOUT, with err; who follows may try again
 *
 * Who leads gets the bytes as they are. All others read the same under an id and a time of their
 * own, as with answers of ours. */
#include <stdlib.h>

#include "base/mem.h"
#include "gateway/answer_marks.h"
#include "server/job.h"
#include "server/proxy.h"
#include "server/router.h"

/* ---- the key ---- */

/* The body without what says who asks, in which form, or how to use the cache: the key has that
 * apart, or need not have it. A field that is not known here counts. Messages of a persona are
 * those that the backend gets. */
static json_t *canonical_body(const struct job *j)
{
    static const char *const left_out[] = {
        "cache",
        "cache_salt",
        "keep_alive",
        "metadata",
        "model",
        "priority",
        "prompt_cache_key",
        "request_id",
        "safety_identifier",
        "stream",
        "timeout",
        "user",
    };
    json_t *body = json_copy(j->req.root);
    for (size_t i = 0; i < ARRAY_LEN(left_out); i++)
        json_object_del(body, left_out[i]);
    if (j->req.persona) {
        json_object_del(body, "persona");
        json_object_set(body, "messages", j->req.messages);
    }
    return body;
}

enum job_step remote_hash_body(struct job *j)
{
    struct response_hash h = {0}; /* the server's is not for other threads */
    if (!cache_asks(j))
        return JOB_GO;
    json_t *body = canonical_body(j);
    char *text = json_dumps(body, JSON_SORT_KEYS | JSON_COMPACT);
    BUG_ON(!text); /* it was parsed from text */
    response_hash_begin(&h);
    response_hash_str(&h, str_of(text));
    j->cache.body = response_hash_end(&h);
    response_hash_release(&h);
    free(text);
    json_decref(body);
    return JOB_GO;
}

struct response_key remote_key(struct job *j)
{
    struct response_hash *h = &j->server->hash;
    struct backend_query q = proxy_query(j);
    response_hash_begin(h);
    response_hash_str(h, STR("backends")); /* no answer of ours begins so */
    cache_hash_tenant(h, j);
    response_hash_u64(h, j->endpoint);
    response_hash_u64(h, j->req.stream);
    response_hash_str(h, str_of(j->req.model));
    backends_hash(j->server->backends, &q, h);
    response_hash_str(h, str_of(j->pushed ? j->pushed->as : "")); /* by its digest */
    response_hash_bytes(h, j->cache.body.bytes, sizeof j->cache.body.bytes);
    return response_hash_end(h);
}

/* ---- from the proxy ---- */

static void pass(struct job *j, const struct engine_event *ev)
{
    cache_take(j, 0, ev);
    if (ev->finish)
        job_settled(j);
}

static void pass_text(struct job *j, struct str text, const struct buf *marks)
{
    struct engine_event ev = {.text = (char *)text.p,
                              .n_text = text.n,
                              .ids = (const int32_t *)(const void *)marks->data,
                              .n_ids = (int)(marks->len / sizeof(int32_t)),
                              .stop_id = -1};
    pass(j, &ev);
}

/* Who has it made pays for it, also when the client has left. */
static void note_usage(struct job *j, const struct engine_usage *u)
{
    j->remote = (struct openai_usage){.prompt_tokens = u->prompt_tokens,
                                      .completion_tokens = u->completion_tokens};
}

void remote_begin(struct job *j, const char *type, const char *backend)
{
    const char *text = arena_printf(&j->req.arena, "%s %s", type, backend);
    snprintf(j->backend, sizeof j->backend, "%s", backend);
    j->whole = (struct answer_whole){0};
    pass_text(j, str_of(text), &(struct buf){0});
}

void remote_text(struct job *j, struct str text)
{
    struct buf marks = {0};
    if (j->cache.reader.made) {
        answer_whole_add(&j->whole, text);
        answer_marks_find(text, &marks);
    }
    pass_text(j, text, &marks);
    buf_release(&marks);
}

void remote_end(struct job *j, const struct engine_usage *u)
{
    struct engine_event ev = {
        .text = (char[]){""}, .finish = FINISH_STOP, .stop_id = -1, .usage = *u};
    size_t n_prompts = j->req.n_prompts ? j->req.n_prompts : 1;
    int n_choices = (int)(j->req.gen.n * (int64_t)n_prompts);
    note_usage(j, u);
    if (j->cache.reader.made && !answer_is_whole(&j->whole, n_choices))
        response_spoil(&j->cache.reader);
    pass(j, &ev);
}

void remote_refuse(struct job *j, int status, struct str json, const struct engine_usage *u)
{
    struct engine_event ev = {.text = (char *)json.p,
                              .n_text = json.n,
                              .finish = FINISH_CANCEL,
                              .stop_id = status,
                              .usage = *u};
    note_usage(j, u);
    pass(j, &ev);
}

void remote_fail(struct job *j, int status, const char *code, const struct err *e)
{
    struct engine_event ev = {.text = (char[]){""},
                              .finish = status == 504 ? FINISH_TIMEOUT : FINISH_ERROR,
                              .stop_id = -1,
                              .err = *e};
    j->status = status;
    j->code = code;
    pass(j, &ev);
}

/* ---- to the client ---- */

static bool is_stream(const struct job *j)
{
    return j->type && strcmp(j->type, REMOTE_EVENTS) == 0;
}

static void begin(struct job *j, struct str head)
{
    static const char header[] = "x-terrace-backend";
    const char *space = memchr(head.p, ' ', head.n);
    j->type = str_starts(head, REMOTE_EVENTS) ? REMOTE_EVENTS : REMOTE_JSON;
    if (j->cache.repeats) {
        job_make_id(j->endpoint, j->id, sizeof j->id);
        j->head.created = clock_unix_s();
    }
    snprintf(j->backend, sizeof j->backend, "%.*s", (int)(head.p + head.n - space - 1), space + 1);
    http_add_header(j->x->http, header, j->backend);
    router_explain(j);
    cache_explain(j);
    router_first_token(j);
    if (!is_stream(j))
        return;
    j->x->status = 200;
    j->begun = true;
    http_begin_events(j->x->http);
}

static void send_text(struct job *j, struct str text)
{
    if (!is_stream(j)) {
        answer(j->x, 200, REMOTE_JSON, text.p, text.n);
        return;
    }
    if (http_write(j->x->http, text.p, text.n) || j->blocked)
        return;
    j->blocked = true;
    cache_pause(j, true);
}

static void deliver_text(struct job *j, const struct engine_event *ev)
{
    const struct answer_mark *marks = (const void *)ev->ids;
    struct str text = {ev->text, ev->n_text};
    struct buf own = {0};
    if (j->cache.repeats) {
        answer_marks_replace(text, marks, (size_t)ev->n_ids * sizeof *ev->ids / sizeof *marks,
                             str_of(j->id), j->head.created, &own);
        text = (struct str){own.data, own.len};
    }
    send_text(j, text);
    buf_release(&own);
}

/* Who leads knows the status; the others go by the error. */
static void send_failure(struct job *j, const struct err *e)
{
    int status = j->status                ? j->status
                 : e->code == ERR_TIMEOUT ? 504
                 : e->code == ERR_BUSY    ? 429
                                          : 502;
    const char *code = status == 504 ? "backend_timeout" : "backend_error";
    job_fail(j, status, j->status ? j->code : code, e);
}

void remote_deliver(struct job *j, const struct engine_event *ev)
{
    struct str text = {ev->text, ev->n_text};
    if (ev->finish == FINISH_STOP || ev->finish == FINISH_CANCEL)
        note_usage(j, &ev->usage);
    if (!j->x || j->failed || j->restarting)
        return; /* nobody listens */
    switch (ev->finish) {
    case FINISH_NONE:
        if (j->type)
            deliver_text(j, ev);
        else
            begin(j, text);
        break;
    case FINISH_CANCEL:
        answer(j->x, ev->stop_id, REMOTE_JSON, text.p, text.n);
        router_answered(j, &ev->usage);
        break;
    case FINISH_STOP:
    case FINISH_LENGTH:
        if (is_stream(j))
            http_end(j->x->http);
        router_answered(j, &ev->usage);
        break;
    case FINISH_TIMEOUT:
    case FINISH_ERROR:
        send_failure(j, &ev->err);
        break;
    }
}
