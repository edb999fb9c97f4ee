/* upstream.c - answers: what a dialect tells of one becomes OpenAI's chunks or one answer. */
#include "api/upstream.h"

#include <stdio.h>
#include <stdlib.h>

#include "api/upstream_private.h"
#include "base/mem.h"

const struct upstream_wire upstream_wires[UPSTREAM_APIS] = {
    [UPSTREAM_OPENAI] = {"openai", "/v1/chat/completions", "/v1/completions", "text/event-stream",
                         "Authorization: Bearer ", NULL},
    [UPSTREAM_OLLAMA] = {"ollama", "/api/chat", "/api/generate", "application/x-ndjson",
                         "Authorization: Bearer ", NULL},
    [UPSTREAM_ANTHROPIC] = {"anthropic", "/v1/messages", NULL, "text/event-stream",
                            "x-api-key: ", "anthropic-version: 2023-06-01"},
};

static const struct upstream_dialect *const dialects[UPSTREAM_APIS] = {
    [UPSTREAM_OLLAMA] = &upstream_ollama,
    [UPSTREAM_ANTHROPIC] = &upstream_anthropic,
};

enum { MAX_CALLS = 1024 };

struct call {
    char *id, *name;
    struct buf arguments;
};

struct upstream {
    const struct upstream_dialect *dialect;
    struct openai_head head;
    bool stream, include_usage;

    struct buf line; /* the beginning of one */
    struct buf *out; /* of upstream_take */
    bool role_sent;
    bool ended;       /* the dialect has told the end */
    struct call open; /* id set: its arguments are still coming */
    int n_calls;      /* that are complete */

    /* not streaming */
    struct buf text, reasoning;
    struct call *calls;

    struct openai_usage usage;
    const char *finish;
    char *stop_text; /* NULL: none */
};

int upstream_garbled(struct err *e, const char *where, const char *what)
{
    return err_set(e, ERR_FORMAT, "its answer is garbled: '%s' is not %s", where, what);
}

/* ---- life ---- */

struct upstream *upstream_new(const struct upstream_request *q, const struct openai_head *head)
{
    struct upstream *u = xcalloc(1, sizeof *u);
    const json_t *options = json_object_get(q->body, "stream_options");
    u->dialect = dialects[q->api];
    u->head = *head;
    u->stream = json_is_true(json_object_get(q->body, "stream"));
    u->include_usage = json_is_true(json_object_get(options, "include_usage"));
    u->head.usage_null = u->include_usage;
    return u;
}

static void call_release(struct call *c)
{
    free(c->id);
    free(c->name);
    buf_release(&c->arguments);
    *c = (struct call){0};
}

void upstream_free(struct upstream *u)
{
    if (!u)
        return;
    for (int i = 0; u->calls && i < u->n_calls; i++)
        call_release(&u->calls[i]);
    free(u->calls);
    call_release(&u->open);
    buf_release(&u->line);
    buf_release(&u->text);
    buf_release(&u->reasoning);
    free(u->stop_text);
    free(u);
}

struct openai_usage upstream_usage(const struct upstream *u)
{
    return u->usage;
}

/* ---- what a dialect tells ---- */

static void add_event(struct upstream *u, const struct buf *data)
{
    buf_adds(u->out, "data: ");
    buf_add(u->out, data->data, data->len);
    buf_adds(u->out, "\n\n");
}

typedef void write_fn(struct buf *out, const struct openai_head *h, const struct openai_choice *c,
                      const struct openai_usage *usage);

static void add_chunk(struct upstream *u, write_fn *write, const struct openai_choice *c)
{
    struct buf data = {0};
    if (!u->role_sent && u->head.endpoint == OPENAI_CHAT) {
        openai_write_role(&data, &u->head, 0);
        add_event(u, &data);
        buf_clear(&data);
    }
    u->role_sent = true;
    write(&data, &u->head, c, NULL);
    add_event(u, &data);
    buf_release(&data);
}

static struct str text_of(const json_t *v)
{
    return (struct str){json_string_value(v), json_string_length(v)};
}

void upstream_text(struct upstream *u, const json_t *text)
{
    struct openai_choice c = {.text = text_of(text), .stop_id = -1};
    if (!c.text.n)
        return;
    if (u->stream)
        add_chunk(u, openai_write_text, &c);
    else
        buf_add(&u->text, c.text.p, c.text.n);
}

void upstream_reasoning(struct upstream *u, const json_t *text)
{
    struct openai_choice c = {.reasoning = text_of(text), .stop_id = -1};
    if (!c.reasoning.n || u->head.endpoint != OPENAI_CHAT)
        return;
    if (u->stream)
        add_chunk(u, openai_write_text, &c);
    else
        buf_add(&u->reasoning, c.reasoning.p, c.reasoning.n);
}

/* An id of ours follows from the answer's, so that translating stays a pure function. */
void upstream_call_begin(struct upstream *u, const char *id, const char *name)
{
    upstream_call_end(u);
    if (id && *id) {
        u->open.id = xstrdup(id);
    } else {
        const char *dash = strchr(u->head.id, '-');
        struct buf made = {0};
        buf_addf(&made, "call_%s_%d", dash ? dash + 1 : u->head.id, u->n_calls);
        u->open.id = buf_take(&made);
    }
    u->open.name = xstrdup(name);
}

void upstream_call_add(struct upstream *u, struct str arguments)
{
    if (u->open.id)
        buf_add(&u->open.arguments, arguments.p, arguments.n);
}

void upstream_call_add_tree(struct upstream *u, const json_t *arguments)
{
    struct buf text = {0};
    struct jw w;
    jw_init(&w, &text);
    jw_tree(&w, arguments);
    jw_done(&w);
    upstream_call_add(u, (struct str){text.data, text.len});
    buf_release(&text);
}

static struct openai_call call_of(const struct call *c, int index)
{
    return (struct openai_call){index, c->id, c->name, c->arguments.len ? c->arguments.data : "{}"};
}

void upstream_call_end(struct upstream *u)
{
    if (!u->open.id)
        return;
    if (u->stream) {
        struct openai_call call = call_of(&u->open, u->n_calls);
        struct openai_choice c = {.calls = &call, .n_calls = 1, .stop_id = -1};
        add_chunk(u, openai_write_text, &c);
        call_release(&u->open);
    } else {
        u->calls = xrealloc(u->calls, (size_t)(u->n_calls + 1) * sizeof *u->calls);
        u->calls[u->n_calls] = u->open;
        u->open = (struct call){0};
    }
    u->n_calls++;
}

static int count(int64_t n)
{
    return n < 0 ? 0 : n > INT32_MAX ? INT32_MAX : (int)n;
}

void upstream_usage_is(struct upstream *u, int64_t prompt, int64_t cached, int64_t completion)
{
    u->usage = (struct openai_usage){.prompt_tokens = count(prompt),
                                     .cached_tokens = count(cached),
                                     .completion_tokens = count(completion)};
}

void upstream_end(struct upstream *u, const char *finish, const char *stop_text)
{
    upstream_call_end(u);
    u->ended = true;
    u->finish = u->n_calls && strcmp(finish, "stop") == 0 ? "tool_calls" : finish;
    u->stop_text = stop_text ? xstrdup(stop_text) : NULL;
    if (!u->stream)
        return;
    struct openai_choice c = {.finish = u->finish, .stop_id = -1};
    if (stop_text)
        c.stop_text = str_of(stop_text);
    add_chunk(u, openai_write_finish, &c);
    if (u->include_usage) {
        struct buf data = {0};
        openai_write_usage(&data, &u->head, &u->usage);
        add_event(u, &data);
        buf_release(&data);
    }
    buf_adds(u->out, "data: " OPENAI_DONE "\n\n");
}

/* ---- streams ---- */

/* A report of an error, wherever an answer or a part of one was due. */
static int check_error(const struct upstream *u, const json_t *answer, struct err *e)
{
    const char *why = u->dialect->error(answer);
    return why ? err_set(e, ERR_IO, "it reports: %.300s", why) : 0;
}

static int take_object(struct upstream *u, struct str text, struct err *e)
{
    json_t *event = jr_parse(text.p, text.n, NULL);
    int rc = json_is_object(event) ? check_error(u, event, e)
                                   : upstream_garbled(e, "a part of its stream", "a JSON object");
    if (!rc)
        rc = u->dialect->take(u, event, e);
    json_decref(event);
    if (!rc && (u->n_calls > MAX_CALLS || u->open.arguments.len > UPSTREAM_LINE_BYTES))
        rc = upstream_garbled(e, "tool_calls", "of a sensible size");
    return rc;
}

/* The type of an event is in its data too, so that `event:` lines say nothing new. */
static int take_line(struct upstream *u, struct str line, struct err *e)
{
    static const char *const others[] = {":", "event:", "id:", "retry:"};
    if (line.n && line.p[line.n - 1] == '\r')
        line.n--;
    if (line.n == 0)
        return 0;
    if (!u->dialect->events)
        return take_object(u, line, e);
    if (str_starts(line, "data:"))
        return take_object(u, (struct str){line.p + 5, line.n - 5}, e);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (str_starts(line, others[i]))
            return 0;
    return upstream_garbled(e, "a line of its stream", "a field of an event");
}

int upstream_take(struct upstream *u, const char *data, size_t n, struct buf *out, struct err *e)
{
    const char *at = data, *end = data + n;
    if (!u->stream)
        return upstream_garbled(e, "the body", "one answer, but a stream");
    u->out = out;
    while (at < end && !u->ended) {
        const char *nl = memchr(at, '\n', (size_t)(end - at));
        size_t piece = (size_t)((nl ? nl : end) - at);
        if (u->line.len + piece > UPSTREAM_LINE_BYTES)
            return upstream_garbled(e, "a line of its stream", "of a sensible length");
        bool whole = nl && !u->line.len; /* as a rule: no copy */
        if (!whole)
            buf_add(&u->line, at, piece);
        if (!nl)
            break;
        struct str line =
            whole ? (struct str){at, piece} : (struct str){buf_str(&u->line), u->line.len};
        int rc = take_line(u, line, e);
        if (rc)
            return rc;
        buf_clear(&u->line);
        at = nl + 1;
    }
    return 0;
}

/* ---- whole answers ---- */

static void write_answer(struct upstream *u, struct buf *out)
{
    struct openai_call *calls = xcalloc((size_t)u->n_calls + 1, sizeof *calls);
    for (int i = 0; i < u->n_calls; i++)
        calls[i] = call_of(&u->calls[i], i);
    struct openai_choice c = {
        .text = {buf_str(&u->text), u->text.len},
        .reasoning = {buf_str(&u->reasoning), u->reasoning.len},
        .calls = calls,
        .n_calls = (size_t)u->n_calls,
        .finish = u->finish,
        .stop_id = -1,
    };
    if (u->stop_text)
        c.stop_text = str_of(u->stop_text);
    openai_write_response(out, &u->head, &c, 1, &u->usage);
    free(calls);
}

int upstream_answer(struct upstream *u, struct str body, struct buf *out, struct err *e)
{
    if (u->stream)
        return upstream_garbled(e, "the body", "a stream");
    json_t *answer = jr_parse(body.p, body.n, NULL);
    int rc = json_is_object(answer) ? check_error(u, answer, e)
                                    : upstream_garbled(e, "the body", "one JSON object");
    if (!rc)
        rc = u->dialect->answer(u, answer, e);
    if (!rc && !u->ended)
        rc = upstream_garbled(e, "the body", "a complete answer");
    if (!rc)
        write_answer(u, out);
    json_decref(answer);
    return rc;
}

bool upstream_error(enum upstream_api api, int status, struct str body, struct buf *out)
{
    json_t *answer = jr_parse(body.p, body.n, NULL);
    const char *why = dialects[api]->error(answer);
    struct err e = {0};
    if (why) {
        err_set(&e, ERR_INVALID, "%.400s", why);
        openai_write_error(out, status, NULL, &e);
    }
    json_decref(answer);
    return why != NULL;
}

/* ---- requests ---- */

int upstream_ask(struct buf *out, const struct upstream_request *q, struct err *e)
{
    struct upstream_asking a = {q, json_object()};
    json_object_set_new(a.out, "model", json_string(q->model));
    int rc = dialects[q->api]->ask(&a, e);
    if (!rc) {
        struct jw w;
        jw_init(&w, out);
        jw_tree(&w, a.out);
        jw_done(&w);
    }
    json_decref(a.out);
    return rc;
}
