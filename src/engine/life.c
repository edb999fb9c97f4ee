#define _GNU_SOURCE
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "engine/inside.h"

enum { DEFAULT_RUNNING = 64, DEFAULT_QUEUE = 1024, DEFAULT_STEP_MS = 150 };
enum { DEFAULT_STEP_DEADLINE_MS = 60000, DEFAULT_SPEC_TOKENS = 6 };

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
        engine_check_accounts(g); /* nobody waits for it now */
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

static void *run(void *arg)
{
    struct engine *g = arg;
    while (!is_closing(g))
        if (!engine_step(g))
            wait_for_work(g);
    engine_end_all(g);
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
    pthread_cond_init(&g->transferred, NULL);
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
    pthread_cond_destroy(&g->transferred);
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
    sched_init(&g->sched, &engine_block_ops, g, g->o.max_running, m->max_batch_tokens,
               g->o.step_ms);
    g->sched.spec_tokens = g->o.spec_tokens;
    sampler_init(&g->sampler, m->n_vocab);
    g->batch = xcalloc((size_t)g->o.max_running, sizeof *g->batch);
    list_eog(g);
    init_sync(g);
    engine_publish_stats(g);
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
        engine_end_all(g);
    else
        pthread_join(g->thread, NULL);
    release(g);
}
