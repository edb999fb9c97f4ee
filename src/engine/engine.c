#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/draft.h"
#include "engine/inside.h"

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

const struct sched_ops engine_block_ops = {
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

static int begin_pin(struct engine *g, uint64_t id, const struct engine_prefix *p, struct err *e)
{
    pthread_mutex_lock(&g->lock);
    int rc = engine_take_pin_room(g, kv_blocks_for(&g->blocks.kv, p->n_tokens), e);
    pthread_mutex_unlock(&g->lock);
    if (!rc)
        blocks_pin_begin(&g->blocks, id, p);
    return rc;
}

static int transfer_block(struct engine *g, uint64_t id, const struct transfer *t, struct err *e)
{
    if (t->begin.tokens)
        return begin_pin(g, id, &t->begin, e);
    if (t->out)
        return blocks_export(&g->blocks, id, t->index, t->out, e);
    return blocks_import(&g->blocks, id, t->in, e);
}

static void transfer(struct engine *g, uint64_t id, struct transfer *t)
{
    t->rc = transfer_block(g, id, t, &t->err);
    pthread_mutex_lock(&g->lock);
    t->done = true; /* t may be gone as soon as the lock is */
    pthread_cond_broadcast(&g->transferred);
    pthread_mutex_unlock(&g->lock);
}

/* A command for a request that is over already has no effect. */
static void obey(struct engine *g, const struct command *c)
{
    struct seq *q = map_get(&g->by_id, id_key(&c->id));
    if (c->kind == COMMAND_UNPIN)
        unpin(g, q, c->id);
    else if (c->kind == COMMAND_FORGET)
        forget(g, c->salt);
    else if (c->kind == COMMAND_TRANSFER)
        transfer(g, c->id, c->transfer);
    else if (c->kind == COMMAND_CANCEL && q)
        end(g, q, FINISH_CANCEL);
    else if (q)
        q->item.paused = c->kind == COMMAND_PAUSE;
}

void engine_drain_inbox(struct engine *g)
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

const int engine_step_sizes[ENGINE_STEP_SIZES] = {1,   8,   16,   32,   64,   128,
                                                  256, 512, 1024, 2048, 4096, 8192};

static void count_step(struct engine *g, double ms)
{
    int n = g->sched.n_plan_tokens, i = 0;
    while (i < ENGINE_STEP_SIZES && n > engine_step_sizes[i])
        i++;
    g->count.step_sizes[i]++;
    g->count.steps++;
    g->count.computed_tokens += (uint64_t)n;
    g->count.steps_ms += ms;
    g->count.last_step_ms = ms;
    g->count.last_step_tokens = n;
}

/* Waits until nobody else computes; what has come meanwhile takes part in the step. */
static void enter_pool(struct engine *g)
{
    if (!g->o.pool)
        return;
    int64_t begin = clock_ns();
    pool_enter(g->o.pool, &g->turn);
    g->count.turns_ms += (double)(clock_ns() - begin) * 1e-6;
    g->in_pool = true;
    engine_drain_inbox(g);
}

static void leave_pool(struct engine *g)
{
    if (g->in_pool)
        pool_leave(g->o.pool);
    g->in_pool = false;
}

/* Others compute while this one samples, and where the model yields: that is none of its time. */
static void run_batch(struct engine *g)
{
    int64_t begin = g->o.now_ns(g->o.now_arg), away = g->turn.away_ns;
    atomic_store(&g->step_started_ms, clock_ms());
    forward(g);
    leave_pool(g);
    commit(g);
    atomic_store(&g->step_started_ms, 0);
    away = g->turn.away_ns - away;
    g->count.turns_ms += (double)away * 1e-6;
    double ms = (double)(g->o.now_ns(g->o.now_arg) - begin - away) * 1e-6;
    sched_measured(&g->sched, ms);
    count_step(g, ms);
}

void engine_publish_stats(struct engine *g)
{
    struct engine_stats s = g->count;
    s.running = g->sched.running.n;
    s.waiting = g->sched.waiting.n;
    s.deferred = sched_n_deferred(&g->sched);
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

void engine_check_accounts(const struct engine *g)
{
    struct err e = {0};
    if (!blocks_check(&g->blocks, g->seqs, &e) || !sched_check(&g->sched, &e))
        BUG("%s", e.msg);
}

bool engine_step(struct engine *g)
{
    engine_drain_inbox(g);
    if (g->seqs)
        enter_pool(g);
    end_expired(g);
    schedule(g);
    int n = g->sched.n_plan;
    if (n)
        run_batch(g);
    leave_pool(g);
    if (g->o.check)
        engine_check_accounts(g);
    engine_publish_stats(g);
    return deliver(g) || n;
}

void engine_end_all(struct engine *g)
{
    engine_drain_inbox(g);
    while (g->seqs)
        end(g, g->seqs, FINISH_CANCEL);
    engine_check_accounts(g);
    engine_publish_stats(g);
    deliver(g);
}
