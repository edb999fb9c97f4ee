/* stream.c - events of the engine to the client: chunk by chunk, or collected into one response. */
#include <stdlib.h>

#include "base/mem.h"
#include "base/rng.h"
#include "server/job.h"
#include "server/router.h"

/* ---- pieces ---- */

static const char *finish_name(const struct choice *c)
{
    if (c->finish == FINISH_LENGTH)
        return "length";
    return c->n_calls ? "tool_calls" : "stop";
}

static struct openai_usage usage_now(const struct choice *c)
{
    return (struct openai_usage){
        .prompt_tokens = (int)c->job->prompts[c->prompt].n,
        .cached_tokens = c->usage.cached_tokens,
        .completion_tokens = (int)c->n_generated,
    };
}

/* A prompt counts once, whatever n is. */
struct openai_usage job_usage(const struct job *j)
{
    struct openai_usage sum = {0};
    for (int i = 0; i < j->n_choices; i++) {
        const struct choice *c = &j->choices[i];
        sum.completion_tokens += c->usage.completion_tokens;
        if (i == 0 || c->prompt != j->choices[i - 1].prompt) {
            sum.prompt_tokens += c->usage.prompt_tokens;
            sum.cached_tokens += c->usage.cached_tokens;
        }
    }
    return sum;
}

static void send_event(struct job *j, struct buf *data)
{
    if (http_write_event(j->x->http, NULL, data->data, data->len) || j->blocked)
        return;
    j->blocked = true;
    cache_pause(j, true);
}

void job_drain(struct http_req *r)
{
    struct exchange *x = r->user;
    struct job *j = x->job;
    j->blocked = false;
    cache_pause(j, false);
}

/* ---- logprobs ---- */

/* The token that ended the generation is no part of the answer, and neither is its logprob. */
static size_t shown_tokens(const struct choice *c, const struct engine_event *ev)
{
    size_t n = (size_t)ev->n_ids;
    const struct tokenizer *t = c->job->model->model.tokenizer;
    bool ended = ev->finish == FINISH_STOP && n && !ev->stop_text;
    if (ended && c->job->req.gen.skip_special &&
        (ev->ids[n - 1] == ev->stop_id || tokenizer_is_eog(t, ev->ids[n - 1])))
        n--;
    return n;
}

/* Appends rows of (1 + n_top) tokens. */
static void fill_tokens(const struct choice *c, const struct engine_event *ev, size_t n,
                        struct openai_token *out)
{
    const struct tokenizer *t = c->job->model->model.tokenizer;
    size_t stride = (size_t)(1 + c->job->req.gen.n_logprobs);
    size_t theirs = (size_t)(1 + ev->n_logprobs);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < stride; k++) {
            struct token_logprob none = {-1, -__builtin_inff()};
            struct token_logprob l = k < theirs ? ev->logprobs[i * theirs + k] : none;
            out[i * stride + k] = (struct openai_token){tokenizer_piece(t, l.id, true), l.logprob};
        }
}

static void collect_tokens(struct choice *c, const struct engine_event *ev, size_t n)
{
    size_t stride = (size_t)(1 + c->job->req.gen.n_logprobs);
    if (c->n_tokens + n > c->cap_tokens) {
        c->cap_tokens = 2 * (c->n_tokens + n) + 16;
        c->tokens = xrealloc(c->tokens, c->cap_tokens * stride * sizeof *c->tokens);
    }
    fill_tokens(c, ev, n, c->tokens + c->n_tokens * stride);
    c->n_tokens += n;
}

/* ---- tool calls ---- */

bool job_finds_calls(const struct job *j)
{
    return j->req.tools && j->model->tool_format != TOOL_NONE;
}

/* The content of an event; what is, or may become, a call is kept back in c->tools. `room` holds
 * the content if it is not the event's text itself. */
static struct str content_of(struct choice *c, const struct engine_event *ev, struct buf *room)
{
    if (!job_finds_calls(c->job))
        return (struct str){ev->text, ev->n_text};
    tool_parse_add(&c->tools, ev->text, ev->n_text, room);
    if (ev->finish)
        tool_parse_end(&c->tools, room);
    return (struct str){buf_str(room), room->len};
}

/* Mistral's templates take ids of nine letters and digits only. */
static const char *call_id(struct job *j)
{
    static const char digits[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    bool bare = j->model->tool_format == TOOL_MISTRAL;
    unsigned char random[24];
    char id[sizeof random + 1] = "";
    size_t n = bare ? 9 : sizeof random;
    rng_secret(random, sizeof random);
    for (size_t i = 0; i < n; i++)
        id[i] = digits[random[i] % (sizeof digits - 1)];
    return arena_printf(&j->req.arena, "%s%s", bare ? "" : "call_", id);
}

/* The next call that has not been sent; false: none. */
static bool next_call(struct choice *c, struct openai_call *out)
{
    size_t most = c->job->req.parallel_calls ? c->tools.n_calls : 1;
    if (c->n_calls >= c->tools.n_calls || c->n_calls >= most)
        return false;
    const struct tool_call *call = &c->tools.calls[c->n_calls];
    *out = (struct openai_call){.index = (int)c->n_calls++,
                                .id = call_id(c->job),
                                .name = call->name,
                                .arguments = call->arguments};
    return true;
}

/* ---- streamed ---- */

/* A completion that echoes begins with the prompt's text. */
static void echo_prompt(const struct choice *c, struct buf *out)
{
    const struct job *j = c->job;
    if (!j->req.echo)
        return;
    const struct gen_prompt *p = &j->req.prompts[c->prompt];
    if (p->ids)
        tokenizer_decode(j->model->model.tokenizer, p->ids, p->n_ids, true, out);
    else
        buf_add(out, p->text.p, p->text.n);
}

static void begin_choice(struct choice *c)
{
    struct job *j = c->job;
    struct buf data = {0}, text = {0};
    c->role_sent = true;
    if (j->endpoint == OPENAI_CHAT) {
        openai_write_role(&data, &j->head, c->index);
        send_event(j, &data);
    } else if (j->req.echo) {
        echo_prompt(c, &text);
        struct openai_choice piece = {
            .index = c->index, .text = {buf_str(&text), text.len}, .stop_id = -1};
        openai_write_text(&data, &j->head, &piece, NULL);
        send_event(j, &data);
    }
    buf_release(&data);
    buf_release(&text);
}

void job_begin_stream(struct job *j)
{
    j->begun = true;
    j->x->status = 200;
    router_explain(j);
    cache_explain(j);
    http_begin_events(j->x->http);
    for (int i = 0; i < j->n_choices; i++)
        begin_choice(&j->choices[i]);
}

static void stream_text(struct choice *c, const struct engine_event *ev)
{
    struct job *j = c->job;
    size_t n = ev->logprobs ? shown_tokens(c, ev) : 0;
    struct buf room = {0};
    struct str text = content_of(c, ev, &room);
    if (!text.n && !n) {
        buf_release(&room);
        return;
    }
    struct openai_logprobs l = {
        .n_tokens = n, .n_top = (int)j->req.gen.n_logprobs, .text_offset = c->text_offset};
    struct openai_token *tokens = NULL;
    if (n) {
        tokens = xcalloc(n * (size_t)(1 + l.n_top), sizeof *tokens);
        fill_tokens(c, ev, n, tokens);
        l.tokens = tokens;
    }
    struct openai_choice piece = {
        .index = c->index, .text = text, .logprobs = n ? &l : NULL, .stop_id = -1};
    struct openai_usage usage = usage_now(c);
    struct buf data = {0};
    openai_write_text(&data, &j->head, &piece, j->req.continuous_usage ? &usage : NULL);
    send_event(j, &data);
    buf_release(&data);
    free(tokens);
    for (size_t i = 0; i < text.n; i++)
        c->text_offset += (text.p[i] & 0xc0) != 0x80;
    buf_release(&room);
}

static void stream_calls(struct choice *c)
{
    struct job *j = c->job;
    struct openai_call call;
    struct openai_usage usage = usage_now(c);
    while (next_call(c, &call)) {
        struct openai_choice piece = {
            .index = c->index, .calls = &call, .n_calls = 1, .stop_id = -1};
        struct buf data = {0};
        openai_write_text(&data, &j->head, &piece, j->req.continuous_usage ? &usage : NULL);
        send_event(j, &data);
        buf_release(&data);
    }
}

static struct openai_choice choice_end(const struct choice *c)
{
    return (struct openai_choice){
        .index = c->index,
        .finish = finish_name(c),
        .stop_text = {c->stop_text, c->stop_text ? strlen(c->stop_text) : 0},
        .stop_id = c->stop_id,
    };
}

static void stream_event(struct choice *c, const struct engine_event *ev)
{
    struct job *j = c->job;
    if (!j->begun)
        job_begin_stream(j);
    stream_text(c, ev);
    stream_calls(c);
    if (!ev->finish)
        return;
    struct buf data = {0};
    struct openai_choice end = choice_end(c);
    struct openai_usage usage = usage_now(c);
    openai_write_finish(&data, &j->head, &end, j->req.continuous_usage ? &usage : NULL);
    send_event(j, &data);
    if (j->n_open == 0) {
        if (j->req.include_usage) {
            usage = job_usage(j);
            buf_clear(&data);
            openai_write_usage(&data, &j->head, &usage);
            send_event(j, &data);
        }
        http_write_event(j->x->http, NULL, OPENAI_DONE, strlen(OPENAI_DONE));
        http_end(j->x->http);
    }
    buf_release(&data);
}

/* ---- collected ---- */

static void collect_calls(struct choice *c, struct openai_choice *out)
{
    struct openai_call *calls =
        arena_alloc(&c->job->req.arena, (c->tools.n_calls + 1) * sizeof *calls);
    size_t n = 0;
    while (next_call(c, &calls[n]))
        n++;
    out->calls = calls;
    out->n_calls = n;
    out->finish = finish_name(c);
}

/* The tier's check of the answers; false: another tier has it now. */
static bool pass_check(struct job *j)
{
    const char *why = "";
    for (int i = 0; i < j->n_choices; i++) {
        const struct buf *text = &j->choices[i].text;
        struct err e = {0};
        if (router_accepts(j, (struct str){buf_str(text), text->len}, &why))
            continue;
        err_set(&e, ERR_FORMAT, "%s", why);
        if (router_escalate(j, 502, &e))
            return false;
    }
    return true;
}

static void respond(struct job *j)
{
    if (!pass_check(j))
        return;
    router_explain(j);
    cache_explain(j);
    struct openai_choice *choices = xcalloc((size_t)j->n_choices, sizeof *choices);
    struct openai_logprobs *logprobs = xcalloc((size_t)j->n_choices, sizeof *logprobs);
    for (int i = 0; i < j->n_choices; i++) {
        struct choice *c = &j->choices[i];
        choices[i] = choice_end(c);
        collect_calls(c, &choices[i]);
        choices[i].text = (struct str){buf_str(&c->text), c->text.len};
        logprobs[i] = (struct openai_logprobs){
            .tokens = c->tokens, .n_tokens = c->n_tokens, .n_top = (int)j->req.gen.n_logprobs};
        if (j->req.gen.n_logprobs >= 0)
            choices[i].logprobs = &logprobs[i];
    }
    struct openai_usage usage = job_usage(j);
    struct buf body = {0};
    openai_write_response(&body, &j->head, choices, (size_t)j->n_choices, &usage);
    answer_json(j->x, 200, &body);
    buf_release(&body);
    free(logprobs);
    free(choices);
}

static void collect_event(struct choice *c, const struct engine_event *ev)
{
    if (!c->role_sent) {
        c->role_sent = true;
        echo_prompt(c, &c->text);
    }
    struct buf room = {0};
    struct str text = content_of(c, ev, &room);
    buf_add(&c->text, text.p, text.n);
    buf_release(&room);
    if (ev->logprobs)
        collect_tokens(c, ev, shown_tokens(c, ev));
    if (ev->finish && c->job->n_open == 0)
        respond(c->job);
}

/* ---- any event ---- */

static void observe_tokens(struct choice *c, const struct engine_event *ev)
{
    struct model_metrics *m = &c->job->model->metrics;
    int64_t now = clock_ns();
    if (!ev->n_ids)
        return;
    if (!c->last_ns)
        metrics_observe(m, HIST_TTFT, (double)(now - c->job->start_ns) / 1e9);
    else
        metrics_observe(m, HIST_INTER_TOKEN, (double)(now - c->last_ns) / 1e9 / ev->n_ids);
    c->last_ns = now;
}

static void observe_end(const struct choice *c, const struct engine_event *ev)
{
    const struct job *j = c->job;
    struct model_metrics *m = &j->model->metrics;
    const struct engine_usage *u = &ev->usage;
    m->finished[ev->finish]++;
    if (ev->finish != FINISH_STOP && ev->finish != FINISH_LENGTH)
        return;
    metrics_observe(m, HIST_E2E, (double)(clock_ns() - j->start_ns) / 1e9);
    metrics_observe(m, HIST_QUEUE, (double)u->queue_ms / 1e3);
    metrics_observe(m, HIST_INFERENCE, (double)(u->prefill_ms + u->decode_ms) / 1e3);
    metrics_observe(m, HIST_PREFILL, (double)u->prefill_ms / 1e3);
    metrics_observe(m, HIST_DECODE, (double)u->decode_ms / 1e3);
    metrics_observe(m, HIST_PROMPT_TOKENS, u->prompt_tokens);
    metrics_observe(m, HIST_COMPUTED_TOKENS, u->prompt_tokens - u->cached_tokens);
    metrics_observe(m, HIST_GENERATION_TOKENS, u->completion_tokens);
    if (u->completion_tokens > 1)
        metrics_observe(m, HIST_PER_OUTPUT_TOKEN,
                        (double)u->decode_ms / 1e3 / (u->completion_tokens - 1));
}

/* What is counted once for a request, whatever n is. */
static void observe_job(struct job *j)
{
    struct model_metrics *m = &j->model->metrics;
    int longest = 0;
    for (int i = 0; i < j->n_choices; i++)
        if (j->choices[i].usage.completion_tokens > longest)
            longest = j->choices[i].usage.completion_tokens;
    metrics_observe(m, HIST_MAX_GENERATION_TOKENS, longest);
    metrics_observe(m, HIST_N, (double)j->req.gen.n);
    if (j->req.gen.max_tokens)
        metrics_observe(m, HIST_MAX_TOKENS, (double)j->req.gen.max_tokens);
}

/* The client's side of a final event. */
static void settle(struct choice *c, const struct engine_event *ev)
{
    c->over = true;
    c->job->n_open--;
    c->finish = ev->finish;
    c->usage = ev->usage;
    c->stop_id = ev->stop_id;
    c->stop_text = ev->stop_text ? xstrdup(ev->stop_text) : NULL;
}

/* An end that is no answer. */
static void fail_event(struct job *j, const struct engine_event *ev)
{
    struct err e = ev->err;
    if (ev->finish == FINISH_TIMEOUT)
        err_set(&e, ERR_TIMEOUT, "the request did not finish before its deadline");
    else if (ev->finish == FINISH_CANCEL)
        err_set(&e, ERR_CANCELED, "the request was cancelled: the server is shutting down");
    else if (!e.msg[0])
        err_set(&e, ERR_IO, "the engine failed");
    job_fail(j, ev->finish == FINISH_ERROR ? 500 : openai_status(e.code), NULL, &e);
}

void job_deliver(struct choice *c, const struct engine_event *ev)
{
    struct job *j = c->job;
    bool good = ev->finish == FINISH_STOP || ev->finish == FINISH_LENGTH;
    c->n_generated += (size_t)ev->n_ids;
    if (ev->finish && !c->over)
        settle(c, ev);
    if (!j->x || j->failed || j->restarting)
        return; /* nobody listens */
    if (ev->n_ids)
        router_first_token(j);
    if (good && j->n_open == 0)
        router_answered(j, &ev->usage);
    if (ev->finish && !good)
        fail_event(j, ev);
    else if (j->req.stream)
        stream_event(c, ev);
    else
        collect_event(c, ev);
}

/* The engine's side of a final event. */
static void run_over(struct choice *c, const struct engine_event *ev)
{
    struct job *j = c->job;
    bool good = ev->finish == FINISH_STOP || ev->finish == FINISH_LENGTH;
    observe_end(c, ev);
    c->running = false;
    c->usage = ev->usage;
    j->n_running--;
    if (good && j->n_running == 0 && !j->failed)
        observe_job(j);
}

void job_event(struct engine_user *choice, const struct engine_event *ev)
{
    struct choice *c = (struct choice *)choice;
    struct job *j = c->job;
    observe_tokens(c, ev);
    if (ev->finish)
        run_over(c, ev);
    cache_take(j, c->index, ev); /* another tier may have begun: c may be gone */
    if (ev->finish)
        job_settled(j);
}
