#include "cli/session.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"

enum { SESSION_POLL_MS = 50 };

struct session {
    const struct loaded *model;
    struct session_opts o;
    struct engine *engine;
    json_t *messages;
    pthread_mutex_t lock; /* guards events */
    pthread_cond_t arrived;
    struct engine_event *first, **last; /* in order */
    atomic_bool interrupted;
    struct engine_usage usage; /* of the last answer */
};

/* On the engine's thread. */
static void on_events(void *arg, struct engine_event *list)
{
    struct session *s = arg;
    pthread_mutex_lock(&s->lock);
    *s->last = list;
    while (*s->last)
        s->last = &(*s->last)->next;
    pthread_cond_signal(&s->arrived);
    pthread_mutex_unlock(&s->lock);
}

/* The events so far; waits a moment for the first, NULL if none came. */
static struct engine_event *take_events(struct session *s)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += SESSION_POLL_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&s->lock);
    if (!s->first)
        pthread_cond_timedwait(&s->arrived, &s->lock, &until);
    struct engine_event *list = s->first;
    s->first = NULL;
    s->last = &s->first;
    pthread_mutex_unlock(&s->lock);
    return list;
}

int session_new(struct session **out, const struct loaded *l, const struct load_options *lo,
                const struct session_opts *o, struct err *e)
{
    struct session *s = xcalloc(1, sizeof *s);
    s->model = l;
    s->o = *o;
    s->last = &s->first;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->arrived, NULL);
    session_reset(s, o->system);
    int rc = load_engine(l, lo, on_events, s, &s->engine, e);
    if (rc) {
        session_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

void session_free(struct session *s)
{
    if (!s)
        return;
    engine_free(s->engine);
    engine_events_free(s->first);
    json_decref(s->messages);
    pthread_cond_destroy(&s->arrived);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static void add_message(struct session *s, const char *role, const char *text, size_t n)
{
    json_t *content = json_stringn(text, n);
    if (content)
        json_array_append_new(s->messages,
                              json_pack("{s:s, s:o}", "role", role, "content", content));
}

void session_reset(struct session *s, const char *system)
{
    json_decref(s->messages);
    s->messages = json_array();
    if (system)
        add_message(s, "system", system, strlen(system));
}

void session_interrupt(struct session *s)
{
    atomic_store(&s->interrupted, true);
}

static const char *special(const struct session *s, int32_t id, struct buf *out)
{
    struct str p = tokenizer_piece(s->model->tokenizer, id, true);
    buf_add(out, p.p, p.n);
    return buf_str(out);
}

/* The conversation as token ids, through the model's template. */
static int render(struct session *s, struct token_list *ids, struct err *e)
{
    struct buf bos = {0}, eos = {0};
    struct template_vars v = {
        .messages = s->messages,
        .bos_token = special(s, tokenizer_bos(s->model->tokenizer), &bos),
        .eos_token = special(s, tokenizer_eos(s->model->tokenizer), &eos),
        .add_generation_prompt = true,
        .now_unix_s = clock_unix_s(),
    };
    struct template_output text = {0};
    int rc = template_render(s->model->template, &v, &text, e);
    if (rc == 0) {
        struct tok_span *spans = xcalloc(text.n_spans + 1, sizeof *spans);
        size_t from = 0;
        for (size_t i = 0; i < text.n_spans; from = text.spans[i++].end)
            spans[i] = (struct tok_span){{text.text.data + from, text.spans[i].end - from},
                                         text.spans[i].trusted};
        rc = tokenizer_encode(s->model->tokenizer, spans, text.n_spans, 0, ids, e);
        free(spans);
    }
    template_output_release(&text);
    buf_release(&bos);
    buf_release(&eos);
    return rc;
}

/* A model without a template simply goes on with the text. */
static int encode(struct session *s, const char *text, struct token_list *ids, struct err *e)
{
    if (s->model->template)
        return render(s, ids, e);
    struct tok_span span = {str_of(text), false};
    return tokenizer_encode(s->model->tokenizer, &span, 1, TOK_ADD_SPECIAL, ids, e);
}

/* Follows one request to its final event. */
static int follow(struct session *s, uint64_t id, void (*print)(const char *, size_t),
                  struct buf *answer, struct err *e)
{
    for (bool asked = false;;) {
        if (!asked && atomic_load(&s->interrupted)) {
            engine_cancel(s->engine, id);
            asked = true;
        }
        struct engine_event *list = take_events(s);
        enum finish_reason finish = FINISH_NONE;
        for (struct engine_event *ev = list; ev; ev = ev->next) {
            print(ev->text, ev->n_text);
            buf_add(answer, ev->text, ev->n_text);
            finish = ev->finish;
            s->usage = ev->usage;
            if (finish == FINISH_ERROR && e)
                *e = ev->err;
        }
        engine_events_free(list);
        if (finish)
            return finish == FINISH_ERROR ? ERR_IO : 0;
    }
}

int session_say(struct session *s, const char *text, void (*print)(const char *text, size_t n),
                struct err *e)
{
    struct token_list ids = {0};
    struct buf answer = {0};
    uint64_t id;
    if (!utf8_valid(text, strlen(text)))
        return err_set(e, ERR_INVALID, "the text is not UTF-8");
    add_message(s, "user", text, strlen(text));
    atomic_store(&s->interrupted, false);
    int rc = encode(s, text, &ids, e);
    if (rc == 0) {
        struct engine_request r = {
            .prompt = ids.ids,
            .n_prompt = (int)ids.n,
            .max_tokens = s->o.max_tokens ? (int)s->o.max_tokens : s->model->n_ctx,
        };
        sampling_default(&r.sampling);
        r.sampling.temperature = (float)s->o.temperature;
        r.sampling.top_p = (float)s->o.top_p;
        r.sampling.top_k = (int)s->o.top_k;
        r.sampling.has_seed = s->o.has_seed;
        r.sampling.seed = s->o.seed;
        rc = engine_submit(s->engine, &r, &id, e);
    }
    if (rc == 0)
        rc = follow(s, id, print, &answer, e);
    if (rc == 0)
        add_message(s, "assistant", buf_str(&answer), answer.len);
    else
        json_array_remove(s->messages, json_array_size(s->messages) - 1);
    buf_release(&answer);
    token_list_release(&ids);
    return rc;
}

void session_stats(const struct session *s, char *out, size_t size)
{
    const struct engine_usage *u = &s->usage;
    double prefill = (double)u->prefill_ms / 1000 + 1e-3,
           decode = (double)u->decode_ms / 1000 + 1e-3;
    snprintf(out, size,
             "prompt %d tokens (%d cached) in %.2f s, %.0f/s; answer %d tokens in %.2f s, %.1f/s",
             u->prompt_tokens, u->cached_tokens, prefill,
             (u->prompt_tokens - u->cached_tokens) / prefill, u->completion_tokens, decode,
             u->completion_tokens / decode);
}
