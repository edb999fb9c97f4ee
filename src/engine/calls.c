#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"

int engine_take_pin_room(struct engine *g, int n_blocks, struct err *e)
{
    if (n_blocks > g->pin_room)
        return err_set(e, ERR_LIMIT,
                       "pinning the prompt needs %d KV blocks, %d of %d are left for pins",
                       n_blocks, g->pin_room, g->o.max_pinned_blocks);
    g->pin_room -= n_blocks;
    return 0;
}

static int refuse_closing(struct err *e)
{
    return err_set(e, ERR_CANCELED, "the engine is being closed");
}

/* Under the lock: whether the request may come in. */
static int let_in(struct engine *g, const struct seq *q, struct err *e)
{
    if (g->closing)
        return refuse_closing(e);
    if (atomic_load(&g->n_queued) >= g->o.max_queue)
        return err_set(e, ERR_BUSY, "%d requests are waiting already: try again later",
                       g->o.max_queue);
    return engine_take_pin_room(g, q->pin ? kv_blocks_for(&g->blocks.kv, q->n_prompt) : 0, e);
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

/* Under the lock. */
static void queue_command(struct engine *g, struct command c)
{
    struct inbox *in = &g->inbox;
    if (in->n_commands == in->cap_commands) {
        in->cap_commands = in->cap_commands ? in->cap_commands * 2 : 8;
        in->commands = xrealloc(in->commands, (size_t)in->cap_commands * sizeof *in->commands);
    }
    in->commands[in->n_commands++] = c;
    pthread_cond_signal(&g->wake);
}

static void command(struct engine *g, struct command c)
{
    pthread_mutex_lock(&g->lock);
    queue_command(g, c);
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

/* Blocks out and in. */

/* Hands t to the engine's thread and waits for it. */
static int await_transfer(struct engine *g, uint64_t id, struct transfer *t, struct err *e)
{
    if (!g->o.model.read_block)
        return err_set(e, ERR_UNSUPPORTED, "this model's KV blocks cannot be read");
    pthread_mutex_lock(&g->lock);
    int rc = g->closing ? refuse_closing(e) : 0;
    if (!rc)
        queue_command(g, (struct command){.kind = COMMAND_TRANSFER, .id = id, .transfer = t});
    if (!rc && g->o.manual) { /* nobody else would do it */
        pthread_mutex_unlock(&g->lock);
        engine_drain_inbox(g);
        pthread_mutex_lock(&g->lock);
    }
    while (!rc && !t->done)
        pthread_cond_wait(&g->transferred, &g->lock);
    pthread_mutex_unlock(&g->lock);
    if (!rc && t->rc && e)
        *e = t->err;
    return rc ? rc : t->rc;
}

size_t engine_block_bytes(const struct engine *g)
{
    return g->o.model.read_block ? g->o.model.block_bytes : 0;
}

int engine_export_block(struct engine *g, uint64_t id, int index, void *out, struct err *e)
{
    return await_transfer(g, id, &(struct transfer){.index = index, .out = out}, e);
}

int engine_import_begin(struct engine *g, const struct engine_prefix *p, uint64_t *id,
                        struct err *e)
{
    if (p->n_tokens < 1 || p->n_tokens >= g->limits.n_ctx)
        return err_set(e, ERR_INVALID, "a prompt of %d tokens cannot be pinned, the context is %d",
                       p->n_tokens, g->limits.n_ctx);
    for (int i = 0; i < p->n_tokens; i++)
        if (p->tokens[i] < 0 || p->tokens[i] >= g->limits.n_vocab)
            return err_set(e, ERR_INVALID, "token id %d is not in 0 to %d", p->tokens[i],
                           g->limits.n_vocab - 1);
    pthread_mutex_lock(&g->lock);
    *id = ++g->last_id;
    pthread_mutex_unlock(&g->lock);
    return await_transfer(g, *id, &(struct transfer){.begin = *p}, e);
}

int engine_import_block(struct engine *g, uint64_t id, const void *in, struct err *e)
{
    return await_transfer(g, id, &(struct transfer){.in = in}, e);
}

/* What it is doing. */

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
