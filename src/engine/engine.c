#define _GNU_SOURCE
#include "engine/engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/map.h"
#include "base/mem.h"
#include "engine/blocks.h"
#include "engine/draft.h"
#include "engine/sampler.h"
#include "engine/sched.h"
#include "engine/seq.h"

enum { DEFAULT_RUNNING = 64, DEFAULT_QUEUE = 1024, DEFAULT_STEP_MS = 150 };
enum { DEFAULT_STEP_DEADLINE_MS = 60000, DEFAULT_SPEC_TOKENS = 6 };

enum command_kind { COMMAND_CANCEL, COMMAND_PAUSE, COMMAND_RESUME, COMMAND_UNPIN, COMMAND_FORGET };

struct command {
    enum command_kind kind;
    uint64_t id;
    char *salt; /* COMMAND_FORGET: NULL is all */
};

/* What other threads hand in, taken by the engine thread in one go. Guarded by engine.lock. */
struct inbox {
    struct seq *first, *last;
    int n_seqs;
    struct command *commands;
    int n_commands, cap_commands;
};

struct engine {
    struct engine_opts o;
    struct seq_limits limits;
    int32_t *eog; /* ids that end a generation */
    int n_eog;

    /* the engine thread's own */
    struct blocks blocks;
    struct sched sched;
    struct sampler sampler;
    struct seq *seqs; /* every sequence that was taken in and is not over */
    struct map by_id;
    struct batch_seq *batch; /* [max_running] */
    float *logits;
    int n_rows; /* of n_vocab floats in logits */
    struct token_logprob logprobs[21];
    int32_t *banned; /* scratch of sample */
    int cap_banned;
    struct engine_event *events, **events_end;
    struct engine_stats count; /* the counters; snapshot is what others see */

    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct inbox inbox;
    bool closing;
    uint64_t last_id;
    int pin_room; /* blocks that may still be promised to pins */
    struct engine_stats snapshot;
    atomic_int n_queued;          /* submitted and not in a step yet */
    atomic_llong step_started_ms; /* 0: between steps */
};

static struct seq *seq_of(struct sched_item *item)
{
    return (struct seq *)item;
}

static struct str id_key(const uint64_t *id)
{
    return (struct str){(const char *)id, sizeof *id};
}

/* Blocks: what the scheduler asks for. */

static enum sched_answer admit(void *ctx, struct sched_item *item, int reserve)
{
    struct engine *g = ctx;
    return blocks_admit(&g->blocks, seq_of(item), g->sched.plan, g->sched.n_plan, reserve);
}

static enum sched_answer catch_up(void *ctx, struct sched_item *item)
{
    struct engine *g = ctx;
    struct seq *q = seq_of(item);
    int n;
    enum sched_answer answer = blocks_catch_up(&g->blocks, q, g->sched.plan, g->sched.n_plan, &n);
    int most = q->n_prompt - 1 - q->cached_tokens; /* it may have been preempted and begun again */
    n = n < most ? n : most;
    q->cached_tokens += n;
    if (q->started)
        g->count.cached_tokens += (uint64_t)n;
    return answer;
}

static bool grow(void *ctx, struct sched_item *item, int n_tokens)
{
    return blocks_grow(&((struct engine *)ctx)->blocks, seq_of(item), n_tokens);
}

static void drop(void *ctx, struct sched_item *item)
{
    blocks_drop(&((struct engine *)ctx)->blocks, seq_of(item));
}

static const struct sched_ops block_ops = {
    .admit = admit, .catch_up = catch_up, .grow = grow, .drop = drop};

/* The life of a sequence on the engine thread. */

static void take_in(struct engine *g, struct seq *q)
{
    q->prev = NULL;
    q->next = g->seqs;
    if (g->seqs)
        g->seqs->prev = q;
    g->seqs = q;
    map_put(&g->by_id, id_key(&q->id), q);
    sched_add(&g->sched, &q->item, (struct str){buf_str(&q->tenant), q->tenant.len}, q->priority);
}

static void start(struct engine *g, struct seq *q)
{
    q->started = true;
    q->start_ms = clock_ms();
    g->count.prompt_tokens += (uint64_t)q->n_prompt;
    g->count.cached_tokens += (uint64_t)q->cached_tokens;
    atomic_fetch_sub(&g->n_queued, 1);
}

static void emit(struct engine *g, struct seq *q)
{
    if (!seq_has_event(q))
        return;
    struct engine_event *ev = seq_take_event(q);
    *g->events_end = ev;
    g->events_end = &ev->next;
}

static void give_pin_room(struct engine *g, int n_blocks)
{
    pthread_mutex_lock(&g->lock);
    g->pin_room += n_blocks;
    pthread_mutex_unlock(&g->lock);
}

/* q->finish is set: tells it, gives everything back. */
static void retire(struct engine *g, struct seq *q)
{
    emit(g, q);
    if (!q->started)
        atomic_fetch_sub(&g->n_queued, 1);
    if (q->pin && (q->finish == FINISH_STOP || q->finish == FINISH_LENGTH))
        blocks_pin(&g->blocks, q);
    else if (q->pin)
        give_pin_room(g, kv_blocks_for(&g->blocks.kv, q->n_prompt));
    sched_remove(&g->sched, &q->item);
    blocks_drop(&g->blocks, q);
    map_del(&g->by_id, id_key(&q->id));
    *(q->prev ? &q->prev->next : &g->seqs) = q->next;
    if (q->next)
        q->next->prev = q->prev;
    g->count.requests_done++;
    seq_free(q);
}

static void end(struct engine *g, struct seq *q, enum finish_reason why)
{
    seq_finish(q, why);
    retire(g, q);
}

/* The parts of a step. */

static void unpin(struct engine *g, struct seq *q, uint64_t id)
{
    if (q && q->pin) { /* still running: it will pin nothing */
        q->pin = false;
        give_pin_room(g, kv_blocks_for(&g->blocks.kv, q->n_prompt));
    } else if (!q) {
        give_pin_room(g, blocks_unpin(&g->blocks, id));
    }
}

static void forget(struct engine *g, const char *salt)
{
    struct str s = salt ? str_of(salt) : STR("");
    give_pin_room(g, blocks_forget(&g->blocks, salt ? &s : NULL));
}

/* A command for a request that is over already has no effect. */
static void obey(struct engine *g, const struct command *c)
{
    struct seq *q = map_get(&g->by_id, id_key(&c->id));
    if (c->kind == COMMAND_UNPIN)
        unpin(g, q, c->id);
    else if (c->kind == COMMAND_FORGET)
        forget(g, c->salt);
    else if (c->kind == COMMAND_CANCEL && q)
        end(g, q, FINISH_CANCEL);
    else if (q)
        q->item.paused = c->kind == COMMAND_PAUSE;
}

static void drain_inbox(struct engine *g)
{
    pthread_mutex_lock(&g->lock);
    struct inbox in = g->inbox;
    g->inbox = (struct inbox){0};
    pthread_mutex_unlock(&g->lock);
    for (struct seq *q = in.first, *next; q; q = next) {
        next = q->next;
        take_in(g, q);
    }
    for (int i = 0; i < in.n_commands; i++) {
        obey(g, &in.commands[i]);
        free(in.commands[i].salt);
    }
    free(in.commands);
}

static void end_expired(struct engine *g)
{
    int64_t now = clock_ms();
    for (struct seq *q = g->seqs, *next; q; q = next) {
        next = q->next;
        if (q->deadline_ms && q->deadline_ms <= now)
            end(g, q, FINISH_TIMEOUT);
    }
}

/* Guesses of a sequence that decodes stand after its tokens until the step has judged them. */
static void guess(struct engine *g)
{
    struct sched_list *l = &g->sched.running;
    bool worth = l->n * 2 <= g->sched.spec_tokens;
    for (struct sched_item *it = l->first; it; it = it->next) {
        struct seq *q = seq_of(it);
        int left = q->max_tokens - seq_n_output(q) - 1; /* the step brings one more than guessed */
        int most = left < q->n_guess ? left : q->n_guess;
        it->n_draft = 0;
        if (worth && q->speculate && most > 0)
            it->n_draft = draft_guess(q->tokens, it->n_tokens, seq_room(q, most), most);
    }
}

static void schedule(struct engine *g)
{
    guess(g);
    sched_plan(&g->sched);
    for (int i = 0; i < g->sched.n_plan; i++) {
        struct seq *q = seq_of(g->sched.plan[i]);
        if (!q->started)
            start(g, q);
    }
    if (!g->sched.stuck)
        return;
    struct seq *q = seq_of(g->sched.stuck);
    err_set(&q->err, ERR_LIMIT, "the request needs %d KV blocks, of %d only %d can be freed",
            kv_blocks_for(&g->blocks.kv, q->item.n_tokens), g->blocks.kv.n_blocks,
            prefix_available(&g->blocks.prefix));
    end(g, q, FINISH_ERROR);
}

/* Rows of logits: one when the last known token is computed, and one for each guess after it. */
static int rows_of(const struct seq *q)
{
    int over = q->item.n_computed + q->item.n_planned - q->item.n_tokens;
    return over < 0 ? 0 : over + 1;
}

static void forward(struct engine *g)
{
    int n_rows = 0;
    for (int i = 0; i < g->sched.n_plan; i++) {
        const struct seq *q = seq_of(g->sched.plan[i]);
        g->batch[i] = (struct batch_seq){.tokens = q->tokens + q->item.n_computed,
                                         .n_tokens = q->item.n_planned,
                                         .pos = q->item.n_computed,
                                         .blocks = q->table.blocks,
                                         .n_logits = rows_of(q),
                                         .adapters = q->adapters,
                                         .n_adapters = q->n_adapters};
        n_rows += g->batch[i].n_logits;
    }
    if (n_rows > g->n_rows) {
        g->logits =
            xrealloc(g->logits, (size_t)n_rows * (size_t)g->limits.n_vocab * sizeof *g->logits);
        g->n_rows = n_rows;
    }
    g->o.model.forward(g->o.model.ctx, g->batch, g->sched.n_plan, g->logits);
}

/* Ids that must not come yet because of min_tokens. */
static int ban_ends(struct engine *g, const struct seq *q)
{
    if (seq_n_output(q) >= q->min_tokens)
        return 0;
    int n = 0, most = g->n_eog + q->n_stop_ids;
    if (most > g->cap_banned) {
        g->cap_banned = most;
        g->banned = xrealloc(g->banned, (size_t)most * sizeof *g->banned);
    }
    for (int i = 0; i < g->n_eog && !q->ignore_eos; i++)
        g->banned[n++] = g->eog[i];
    for (int i = 0; i < q->n_stop_ids; i++)
        g->banned[n++] = q->stop_ids[i];
    return n;
}

/* Chooses the next token. Returns it, or -1 when the sequence ended with an error. */
static int32_t sample(struct engine *g, struct seq *q, float *logits)
{
    struct sampler_task task = {.how = &q->how,
                                .tokens = q->tokens,
                                .n_tokens = q->item.n_tokens,
                                .n_prompt = q->n_prompt,
                                .n_banned = ban_ends(g, q),
                                .rng = &q->rng};
    task.banned = g->banned;
    int32_t id = sampler_pick(&g->sampler, logits, &task, g->logprobs);
    if (!q->first_ms)
        q->first_ms = clock_ms();
    if (id < 0) {
        err_set(&q->err, ERR_INVALID, "the model gave a logit that is not a number");
        seq_finish(q, FINISH_ERROR);
        return id;
    }
    g->count.generated_tokens++;
    seq_commit(q, g->o.tokenizer, id, q->how.n_logprobs >= 0 ? g->logprobs : NULL);
    return id;
}

/* Samples from row after row as long as what comes is what was guessed: each token is drawn from
 * its own distribution with the sequence's own numbers, so the answer is the same as without
 * guesses. */
static void sample_rows(struct engine *g, struct seq *q, float *row, int n_rows)
{
    int held = 0;
    for (int i = 0; i < n_rows; i++, row += g->limits.n_vocab) {
        int32_t guessed = i + 1 < n_rows ? q->tokens[q->item.n_tokens] : -1;
        int32_t id = sample(g, q, row);
        if (q->finish || id != guessed)
            break;
        q->item.n_computed++; /* its KV is there already */
        held++;
    }
    if (n_rows < 2)
        return;
    g->count.drafts++;
    g->count.draft_tokens += (uint64_t)n_rows - 1;
    g->count.accepted_tokens += (uint64_t)held;
    if (held == n_rows - 1 && q->n_guess < g->sched.spec_tokens)
        q->n_guess *= 2;
    else if (!held && q->n_guess > 1)
        q->n_guess /= 2;
}

/* Chooses tokens, publishes what was computed, tells them. */
static void commit(struct engine *g)
{
    float *row = g->logits;
    for (int i = 0; i < g->sched.n_plan; i++) {
        struct seq *q = seq_of(g->sched.plan[i]);
        int n_rows = rows_of(q), from = q->item.n_computed;
        q->item.n_computed += n_rows ? q->item.n_tokens - from : q->item.n_planned;
        if (n_rows)
            sample_rows(g, q, row, n_rows);
        row += (size_t)n_rows * (size_t)g->limits.n_vocab;
        blocks_publish(&g->blocks, q, from, q->item.n_computed);
        if (q->finish)
            retire(g, q);
        else
            emit(g, q);
    }
}

static void run_batch(struct engine *g)
{
    int64_t begin = g->o.now_ns(g->o.now_arg);
    atomic_store(&g->step_started_ms, clock_ms());
    forward(g);
    commit(g);
    atomic_store(&g->step_started_ms, 0);
    double ms = (double)(g->o.now_ns(g->o.now_arg) - begin) * 1e-6;
    sched_measured(&g->sched, ms);
    g->count.steps++;
    g->count.computed_tokens += (uint64_t)g->sched.n_plan_tokens;
    g->count.steps_ms += ms;
    g->count.last_step_ms = ms;
    g->count.last_step_tokens = g->sched.n_plan_tokens;
}

static void publish_stats(struct engine *g)
{
    struct engine_stats s = g->count;
    s.running = g->sched.running.n;
    s.waiting = g->sched.waiting.n;
    s.blocks_total = g->blocks.kv.n_blocks;
    s.blocks_free = g->blocks.kv.n_free;
    s.blocks_cached = g->blocks.kv.n_cached;
    s.blocks_held = kv_held(&g->blocks.kv);
    s.blocks_pin_limit = g->o.max_pinned_blocks;
    s.blocks_pinned = g->blocks.n_pinned;
    s.preemptions = g->sched.n_preemptions;
    s.evictions = g->blocks.prefix.n_evicted;
    pthread_mutex_lock(&g->lock);
    g->snapshot = s;
    pthread_mutex_unlock(&g->lock);
}

/* True when there was something to tell. */
static bool deliver(struct engine *g)
{
    struct engine_event *list = g->events;
    g->events = NULL;
    g->events_end = &g->events;
    if (list)
        g->o.sink(g->o.sink_arg, list);
    return list != NULL;
}

static void check_accounts(const struct engine *g)
{
    struct err e = {0};
    if (!blocks_check(&g->blocks, g->seqs, &e) || !sched_check(&g->sched, &e))
        BUG("%s", e.msg);
}

bool engine_step(struct engine *g)
{
    drain_inbox(g);
    end_expired(g);
    schedule(g);
    int n = g->sched.n_plan;
    if (n)
        run_batch(g);
    if (g->o.check)
        check_accounts(g);
    publish_stats(g);
    return deliver(g) || n;
}

/* The thread. */

static int64_t next_deadline(const struct engine *g)
{
    int64_t next = INT64_MAX;
    for (const struct seq *q = g->seqs; q; q = q->next)
        if (q->deadline_ms && q->deadline_ms < next)
            next = q->deadline_ms;
    return next;
}

/* Sleeps until something is handed in or a deadline passes. */
static void wait_for_work(struct engine *g)
{
    if (!g->seqs)
        check_accounts(g); /* nobody waits for it now */
    int64_t at = next_deadline(g);
    struct timespec until = {.tv_sec = at / 1000, .tv_nsec = at % 1000 * 1000000};
    int rc = 0;
    pthread_mutex_lock(&g->lock);
    while (!g->closing && !g->inbox.first && !g->inbox.n_commands && !rc)
        rc = at == INT64_MAX ? pthread_cond_wait(&g->wake, &g->lock)
                             : pthread_cond_timedwait(&g->wake, &g->lock, &until);
    pthread_mutex_unlock(&g->lock);
}

static bool is_closing(struct engine *g)
{
    pthread_mutex_lock(&g->lock);
    bool closing = g->closing;
    pthread_mutex_unlock(&g->lock);
    return closing;
}

static void end_all(struct engine *g)
{
    drain_inbox(g);
    while (g->seqs)
        end(g, g->seqs, FINISH_CANCEL);
    check_accounts(g);
    publish_stats(g);
    deliver(g);
}

static void *run(void *arg)
{
    struct engine *g = arg;
    while (!is_closing(g))
        if (!engine_step(g))
            wait_for_work(g);
    end_all(g);
    return NULL;
}

/* Making and ending. */

static int check_opts(const struct engine_opts *o, struct err *e)
{
    const struct engine_model *m = &o->model;
    if (m->n_vocab < 1 || m->n_blocks < 1 || m->n_ctx < 2 || m->max_batch_tokens < 1)
        return err_set(e, ERR_INVALID,
                       "the model needs a vocabulary (%d), KV blocks (%d), a context (%d) and a "
                       "batch size (%d)",
                       m->n_vocab, m->n_blocks, m->n_ctx, m->max_batch_tokens);
    if (tokenizer_n_vocab(o->tokenizer) > m->n_vocab)
        log_warn("engine", "the tokenizer has %d tokens, the model %d",
                 tokenizer_n_vocab(o->tokenizer), m->n_vocab);
    return 0;
}

static int64_t machine_now_ns(void *arg)
{
    return clock_ns();
}

static void set_defaults(struct engine_opts *o)
{
    if (o->max_running < 1)
        o->max_running = DEFAULT_RUNNING;
    if (o->max_running > o->model.max_batch_tokens)
        o->max_running = o->model.max_batch_tokens;
    if (o->max_queue < 1)
        o->max_queue = DEFAULT_QUEUE;
    if (o->step_ms < 1)
        o->step_ms = DEFAULT_STEP_MS;
    if (!o->prefix_cache || o->max_pinned_blocks < 0)
        o->max_pinned_blocks = 0;
    if (o->max_pinned_blocks >= o->model.n_blocks)
        o->max_pinned_blocks = o->model.n_blocks - 1;
#ifndef __OPTIMIZE__
    o->check = true; /* a debug build */
#endif
    if (o->spec_tokens < 1)
        o->spec_tokens = DEFAULT_SPEC_TOKENS;
    if (o->spec_tokens > o->model.max_batch_tokens)
        o->spec_tokens = o->model.max_batch_tokens;
    if (!o->now_ns)
        o->now_ns = machine_now_ns;
    if (o->step_deadline_ms < 1)
        o->step_deadline_ms = DEFAULT_STEP_DEADLINE_MS;
}

static void list_eog(struct engine *g)
{
    int n = tokenizer_n_vocab(g->o.tokenizer);
    n = n < g->limits.n_vocab ? n : g->limits.n_vocab;
    for (int pass = 0; pass < 2; pass++) {
        g->n_eog = 0;
        for (int32_t id = 0; id < n; id++)
            if (tokenizer_is_eog(g->o.tokenizer, id)) {
                if (pass)
                    g->eog[g->n_eog] = id;
                g->n_eog++;
            }
        if (!pass)
            g->eog = xcalloc((size_t)g->n_eog + 1, sizeof *g->eog);
    }
}

static void init_sync(struct engine *g)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&g->wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&g->lock, NULL);
}

static void release(struct engine *g)
{
    sched_release(&g->sched);
    blocks_release(&g->blocks);
    sampler_release(&g->sampler);
    map_release(&g->by_id);
    for (int i = 0; i < g->inbox.n_commands; i++)
        free(g->inbox.commands[i].salt); /* came while the last events were told */
    free(g->inbox.commands);
    free(g->eog);
    free(g->batch);
    free(g->logits);
    free(g->banned);
    pthread_cond_destroy(&g->wake);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

int engine_new(struct engine **out, const struct engine_opts *o, struct err *e)
{
    int rc = check_opts(o, e);
    if (rc)
        return rc;
    struct engine *g = xcalloc(1, sizeof *g);
    g->o = *o;
    set_defaults(&g->o);
    const struct engine_model *m = &g->o.model;
    /* pins never make a request that was taken impossible */
    int64_t positions = (int64_t)(m->n_blocks - g->o.max_pinned_blocks) * KV_BLOCK_TOKENS;
    g->pin_room = g->o.max_pinned_blocks;
    g->limits = (struct seq_limits){.n_vocab = m->n_vocab,
                                    .n_ctx = positions < m->n_ctx ? (int)positions : m->n_ctx};
    g->events_end = &g->events;
    blocks_init(&g->blocks, m, g->o.prefix_cache);
    sched_init(&g->sched, &block_ops, g, g->o.max_running, m->max_batch_tokens, g->o.step_ms);
    g->sched.spec_tokens = g->o.spec_tokens;
    sampler_init(&g->sampler, m->n_vocab);
    g->batch = xcalloc((size_t)g->o.max_running, sizeof *g->batch);
    list_eog(g);
    init_sync(g);
    publish_stats(g);
    if (!g->o.manual && pthread_create(&g->thread, NULL, run, g)) {
        release(g);
        return err_set(e, ERR_LIMIT, "the system gives no more threads");
    }
    *out = g;
    return 0;
}

void engine_free(struct engine *g)
{
    if (!g)
        return;
    pthread_mutex_lock(&g->lock);
    g->closing = true;
    pthread_cond_signal(&g->wake);
    pthread_mutex_unlock(&g->lock);
    if (g->o.manual)
        end_all(g);
    else
        pthread_join(g->thread, NULL);
    release(g);
}

/* From any thread. */

/* Under the lock: whether the request may come in; takes the room of its pin. */
static int let_in(struct engine *g, const struct seq *q, struct err *e)
{
    int n_pin = q->pin ? kv_blocks_for(&g->blocks.kv, q->n_prompt) : 0;
    if (g->closing)
        return err_set(e, ERR_CANCELED, "the engine is being closed");
    if (atomic_load(&g->n_queued) >= g->o.max_queue)
        return err_set(e, ERR_BUSY, "%d requests are waiting already: try again later",
                       g->o.max_queue);
    if (n_pin > g->pin_room)
        return err_set(e, ERR_LIMIT,
                       "pinning the prompt needs %d KV blocks, %d of %d are left for pins", n_pin,
                       g->pin_room, g->o.max_pinned_blocks);
    g->pin_room -= n_pin;
    return 0;
}

int engine_submit(struct engine *g, const struct engine_request *r, uint64_t *id, struct err *e)
{
    struct seq *q;
    int rc = seq_new(&q, r, &g->limits, e);
    if (rc)
        return rc;
    /* an answer that goes on with ordinary text keeps its leading space */
    q->stream.in_text = !tokenizer_is_special(g->o.tokenizer, r->prompt[r->n_prompt - 1]);
    pthread_mutex_lock(&g->lock);
    rc = let_in(g, q, e);
    if (!rc) {
        atomic_fetch_add(&g->n_queued, 1);
        *id = q->id = ++g->last_id;
        *(g->inbox.last ? &g->inbox.last->next : &g->inbox.first) = q;
        g->inbox.last = q;
        g->inbox.n_seqs++;
        pthread_cond_signal(&g->wake);
    }
    pthread_mutex_unlock(&g->lock);
    if (rc)
        seq_free(q);
    return rc;
}

static void command(struct engine *g, struct command c)
{
    pthread_mutex_lock(&g->lock);
    struct inbox *in = &g->inbox;
    if (in->n_commands == in->cap_commands) {
        in->cap_commands = in->cap_commands ? in->cap_commands * 2 : 8;
        in->commands = xrealloc(in->commands, (size_t)in->cap_commands * sizeof *in->commands);
    }
    in->commands[in->n_commands++] = c;
    pthread_cond_signal(&g->wake);
    pthread_mutex_unlock(&g->lock);
}

void engine_cancel(struct engine *g, uint64_t id)
{
    command(g, (struct command){.kind = COMMAND_CANCEL, .id = id});
}

void engine_pause(struct engine *g, uint64_t id, bool paused)
{
    command(g, (struct command){.kind = paused ? COMMAND_PAUSE : COMMAND_RESUME, .id = id});
}

void engine_unpin(struct engine *g, uint64_t id)
{
    command(g, (struct command){.kind = COMMAND_UNPIN, .id = id});
}

void engine_forget(struct engine *g, const char *cache_salt)
{
    command(
        g, (struct command){.kind = COMMAND_FORGET, .salt = xstrdup(cache_salt ? cache_salt : "")});
}

void engine_forget_all(struct engine *g)
{
    command(g, (struct command){.kind = COMMAND_FORGET});
}

void engine_get_stats(struct engine *g, struct engine_stats *out)
{
    pthread_mutex_lock(&g->lock);
    *out = g->snapshot;
    out->waiting += g->inbox.n_seqs;
    pthread_mutex_unlock(&g->lock);
}

bool engine_health(struct engine *g, struct err *e)
{
    int64_t started = atomic_load(&g->step_started_ms);
    int64_t running = started ? clock_ms() - started : 0;
    if (running <= g->o.step_deadline_ms)
        return true;
    err_set(e, ERR_TIMEOUT, "a step has been running for %lld ms, the limit is %lld ms",
            (long long)running, (long long)g->o.step_deadline_ms);
    return false;
}
