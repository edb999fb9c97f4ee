#include "engine/seq.h"

#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/sampler.h"
#include "model/adapter.h"

enum { MOST_STOPS = 64, MOST_STOP_BYTES = 1024 }; /* each string is followed byte by byte */

/* Making and ending. */

static int check_prompt(const struct engine_request *r, const struct seq_limits *l, struct err *e)
{
    if (r->n_prompt < 1 || !r->prompt)
        return err_param(e, ERR_INVALID, "prompt", "the prompt is empty");
    if (r->n_prompt >= l->n_ctx)
        return err_param(e, ERR_INVALID, "prompt",
                         "the prompt has %d tokens, the context has room for %d and one answer "
                         "token: shorten it",
                         r->n_prompt, l->n_ctx - 1);
    for (int i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= l->n_vocab)
            return err_param(e, ERR_INVALID, "prompt", "token id %d is not in 0 to %d",
                             r->prompt[i], l->n_vocab - 1);
    return 0;
}

static int check_stops(const struct engine_request *r, const struct seq_limits *l, struct err *e)
{
    if (r->n_stop > MOST_STOPS)
        return err_param(e, ERR_INVALID, "stop", "%d stop strings, at most %d are taken", r->n_stop,
                         MOST_STOPS);
    for (int i = 0; i < r->n_stop; i++) {
        struct str s = str_of(r->stop[i]);
        if (s.n == 0 || s.n > MOST_STOP_BYTES)
            return err_param(e, ERR_INVALID, "stop",
                             "stop string %d has %zu bytes, it must have 1 to %d", i, s.n,
                             MOST_STOP_BYTES);
        if (!utf8_valid(s.p, s.n))
            return err_param(e, ERR_INVALID, "stop", "stop string %d is not UTF-8", i);
    }
    if (r->n_stop_ids > l->n_vocab)
        return err_param(e, ERR_INVALID, "stop_token_ids", "there are only %d tokens", l->n_vocab);
    for (int i = 0; i < r->n_stop_ids; i++)
        if (r->stop_ids[i] < 0 || r->stop_ids[i] >= l->n_vocab)
            return err_param(e, ERR_INVALID, "stop_token_ids", "token id %d is not in 0 to %d",
                             r->stop_ids[i], l->n_vocab - 1);
    return 0;
}

/* The position from which an adapter changes a prompt: where its tokens stand last in it, -1 if
 * they don't; 0 for an adapter without such tokens. */
static int activation(const int32_t *tokens, int n_tokens, const struct adapter_use *use)
{
    const struct adapter_info *info = adapter_info(use->adapter);
    size_t bytes = (size_t)info->n_invocation * sizeof *tokens;
    if (!bytes)
        return 0;
    int at = n_tokens - info->n_invocation;
    while (at >= 0 && memcmp(tokens + at, info->invocation, bytes) != 0)
        at--;
    return at < 0 ? -1 : at;
}

static int check_adapters(const struct engine_request *r, struct err *e)
{
    int from = 0;
    if (r->n_adapters < 0 || r->n_adapters > MODEL_MAX_ADAPTERS)
        return err_param(e, ERR_INVALID, "adapters", "%d adapters, at most %d are taken",
                         r->n_adapters, MODEL_MAX_ADAPTERS);
    for (int i = 0; i < r->n_adapters; i++) {
        int at = activation(r->prompt, r->n_prompt, &r->adapters[i]);
        if (!isfinite(r->adapters[i].scale))
            return err_param(e, ERR_INVALID, "adapters", "the scale of adapter %d is not finite",
                             i);
        if (at > 0 && from > 0 && at != from)
            return err_param(e, ERR_UNSUPPORTED, "adapters",
                             "activated adapters begin at tokens %d and %d of the prompt: they "
                             "cannot be combined",
                             from, at);
        from = at > 0 ? at : from;
    }
    return 0;
}

static int check(const struct engine_request *r, const struct seq_limits *l, struct err *e)
{
    int rc;
    if ((rc = check_prompt(r, l, e)) || (rc = check_stops(r, l, e)) ||
        (rc = check_adapters(r, e)) || (rc = sampling_check(&r->sampling, l->n_vocab, e)))
        return rc;
    if (r->max_tokens < 1)
        return err_param(e, ERR_INVALID, "max_tokens", "max_tokens must be at least 1, not %d",
                         r->max_tokens);
    if (r->min_tokens < 0 || r->min_tokens > r->max_tokens)
        return err_param(e, ERR_INVALID, "min_tokens",
                         "min_tokens must be 0 to max_tokens (%d), not %d", r->max_tokens,
                         r->min_tokens);
    return 0;
}

static void *copy(const void *p, int n, size_t size)
{
    if (n < 1)
        return NULL;
    void *out = xmalloc((size_t)n * size);
    memcpy(out, p, (size_t)n * size);
    return out;
}

static void seed_rng(struct seq *q)
{
    uint64_t seed = q->how.seed;
    if (!q->how.has_seed)
        rng_secret(&seed, sizeof seed);
    rng_seed(&q->rng, seed);
}

static void add_use(struct buf *out, const struct adapter_use *use)
{
    const struct adapter_info *info = adapter_info(use->adapter);
    buf_addc(out, 0);
    buf_add(out, info->digest, sizeof info->digest);
    buf_add(out, &use->scale, sizeof use->scale);
}

void seq_keys_init(struct seq_keys *k, const struct engine_prefix *p)
{
    *k = (struct seq_keys){0};
    buf_adds(&k->salt, p->cache_salt ? p->cache_salt : "");
    for (int i = 0; i < p->n_adapters; i++) {
        int from = activation(p->tokens, p->n_tokens, &p->adapters[i]);
        if (from == 0)
            add_use(&k->salt, &p->adapters[i]);
        if (from <= 0)
            continue;
        k->active_from = from;
        add_use(&k->active, &p->adapters[i]);
    }
}

void seq_keys_release(struct seq_keys *k)
{
    buf_release(&k->salt);
    buf_release(&k->active);
}

/* Takes those that have an effect on the prompt; check_adapters has seen them. */
static void take_adapters(struct seq *q, const struct engine_request *r)
{
    for (int i = 0; i < r->n_adapters; i++) {
        struct adapter_use use = r->adapters[i];
        use.from = activation(r->prompt, r->n_prompt, &use);
        if (use.from < 0)
            continue;
        adapter_ref(use.adapter);
        q->adapters[q->n_adapters++] = use;
    }
    seq_keys_init(&q->keys, &(struct engine_prefix){.tokens = r->prompt,
                                                    .n_tokens = r->n_prompt,
                                                    .cache_salt = r->cache_salt,
                                                    .adapters = r->adapters,
                                                    .n_adapters = r->n_adapters});
}

int seq_new(struct seq **out, const struct engine_request *r, const struct seq_limits *l,
            struct err *e)
{
    int rc = check(r, l, e), room = l->n_ctx - r->n_prompt;
    if (rc)
        return rc;
    struct seq *q = xcalloc(1, sizeof *q);
    *q = (struct seq){.user = r->user,
                      .n_prompt = r->n_prompt,
                      .how = r->sampling,
                      .max_tokens = r->max_tokens < room ? r->max_tokens : room,
                      .min_tokens = r->min_tokens,
                      .ignore_eos = r->ignore_eos,
                      .include_stop = r->include_stop,
                      .special = r->special,
                      .speculate = r->speculate,
                      .pin = r->pin,
                      .n_guess = 2,
                      .n_stop_ids = r->n_stop_ids,
                      .priority = r->priority,
                      .deadline_ms = r->deadline_ms,
                      .stop_match = -1,
                      .stop_id = -1,
                      .submit_ms = clock_ms()};
    q->cap = r->n_prompt + (q->max_tokens < 64 ? q->max_tokens : 64);
    q->tokens = xmalloc((size_t)q->cap * sizeof *q->tokens);
    memcpy(q->tokens, r->prompt, (size_t)r->n_prompt * sizeof *q->tokens);
    q->item.n_tokens = r->n_prompt;
    q->how.bias = copy(r->sampling.bias, r->sampling.n_bias, sizeof *r->sampling.bias);
    q->stop_ids = copy(r->stop_ids, r->n_stop_ids, sizeof *r->stop_ids);
    stop_init(&q->stop, r->stop, r->n_stop);
    seed_rng(q);
    buf_adds(&q->tenant, r->tenant ? r->tenant : "");
    take_adapters(q, r);
    *out = q;
    return 0;
}

void seq_free(struct seq *q)
{
    if (!q)
        return;
    free(q->tokens);
    kv_table_release(&q->table);
    free((void *)q->how.bias);
    free(q->stop_ids);
    stop_release(&q->stop);
    for (int i = 0; i < q->n_adapters; i++)
        adapter_unref(q->adapters[i].adapter);
    buf_release(&q->tenant);
    seq_keys_release(&q->keys);
    buf_release(&q->text);
    buf_release(&q->logprobs);
    free(q);
}

/* One more token. */

int32_t *seq_room(struct seq *q, int n)
{
    int need = q->item.n_tokens + n;
    if (need > q->cap) {
        q->cap = need + q->cap / 2;
        q->tokens = xrealloc(q->tokens, (size_t)q->cap * sizeof *q->tokens);
    }
    return q->tokens + q->item.n_tokens;
}

/* Gives text through the stop strings. Before min_tokens they do not exist. */
static void add_text(struct seq *q, struct str text)
{
    if (seq_n_output(q) <= q->min_tokens) {
        buf_add(&q->text, text.p, text.n);
        return;
    }
    q->stop_match = stop_feed(&q->stop, text, &q->text);
    if (q->stop_match < 0)
        return;
    q->finish = FINISH_STOP;
    if (q->include_stop) {
        struct str s = stop_string(&q->stop, q->stop_match);
        buf_add(&q->text, s.p, s.n);
    }
}

static bool is_stop_id(const struct seq *q, int32_t id)
{
    for (int i = 0; i < q->n_stop_ids; i++)
        if (q->stop_ids[i] == id)
            return true;
    return false;
}

void seq_finish(struct seq *q, enum finish_reason why)
{
    if (q->finish)
        return;
    struct buf rest = {0};
    tok_stream_end(&q->stream, &rest);
    add_text(q, (struct str){rest.data, rest.len});
    buf_release(&rest);
    if (!q->finish) {
        stop_flush(&q->stop, &q->text);
        q->finish = why;
    }
}

void seq_commit(struct seq *q, const struct tokenizer *t, int32_t id,
                const struct token_logprob *logprobs)
{
    *seq_room(q, 1) = id;
    q->item.n_tokens++;
    q->n_new++;
    if (logprobs)
        buf_add(&q->logprobs, logprobs, sizeof *logprobs * (size_t)(1 + q->how.n_logprobs));
    bool may_end = seq_n_output(q) > q->min_tokens;
    bool stop_id = may_end && is_stop_id(q, id);
    bool ends = stop_id || (may_end && !q->ignore_eos && tokenizer_is_eog(t, id));
    if (!ends || q->include_stop) {
        struct buf text = {0};
        tok_stream_add(&q->stream, t, id, q->special, &text);
        add_text(q, (struct str){text.data, text.len});
        buf_release(&text);
    }
    if (ends && !q->finish) {
        q->stop_id = stop_id ? id : -1;
        seq_finish(q, FINISH_STOP);
    }
    if (seq_n_output(q) >= q->max_tokens)
        seq_finish(q, FINISH_LENGTH);
}

/* Events. */

bool seq_has_event(const struct seq *q)
{
    return q->finish || q->n_new || q->text.len;
}

/* Times of a request that ended in the queue or before its first token are 0 from there on. */
static struct engine_usage usage(const struct seq *q)
{
    int64_t now = clock_ms(), start = q->start_ms ? q->start_ms : now;
    int64_t first = q->first_ms ? q->first_ms : now;
    return (struct engine_usage){.prompt_tokens = q->n_prompt,
                                 .cached_tokens = q->cached_tokens,
                                 .completion_tokens = seq_n_output(q),
                                 .queue_ms = start - q->submit_ms,
                                 .prefill_ms = first - start,
                                 .decode_ms = now - first};
}

/* One allocation: event, logprobs, ids, text, stop text. */
struct engine_event *seq_take_event(struct seq *q)
{
    struct str stop = {"", 0};
    if (q->stop_match >= 0)
        stop = stop_string(&q->stop, q->stop_match);
    size_t ids = (size_t)q->n_new * sizeof *q->tokens;
    struct engine_event *ev =
        xcalloc(1, sizeof *ev + q->logprobs.len + ids + q->text.len + 1 + stop.n + 1);
    char *at = (char *)(ev + 1);
    ev->user = q->user;
    ev->n_logprobs = q->how.n_logprobs;
    if (q->logprobs.len)
        ev->logprobs = memcpy(at, q->logprobs.data, q->logprobs.len);
    at += q->logprobs.len;
    ev->ids = memcpy(at, q->tokens + q->item.n_tokens - q->n_new, ids);
    ev->n_ids = q->n_new;
    at += ids;
    ev->text = memcpy(at, buf_str(&q->text), q->text.len);
    ev->n_text = q->text.len;
    at += q->text.len + 1;
    if (q->stop_match >= 0)
        ev->stop_text = memcpy(at, stop.p, stop.n);
    ev->finish = q->finish;
    ev->stop_id = q->stop_id;
    ev->err = q->err;
    if (q->finish)
        ev->usage = usage(q);
    buf_clear(&q->text);
    buf_clear(&q->logprobs);
    q->n_new = 0;
    return ev;
}

void engine_events_free(struct engine_event *list)
{
    while (list) {
        struct engine_event *next = list->next;
        free(list);
        list = next;
    }
}
