/* seq.h - one request on its way: tokens, how to choose the next, text made so far, limits.
 *
 * Made by the submitting thread, then the engine thread's alone until its final event. */
#pragma once

#include "base/buf.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "engine/kv.h"
#include "engine/sched.h"
#include "engine/stop.h"

/* What the KV of a prompt depends on beside its tokens: prefixes are shared under it. */
struct seq_keys {
    struct buf salt;     /* cache_salt, then what adapters add that change every position */
    struct buf active;   /* what adapters add that begin at active_from, "" if there are none */
    int32_t active_from; /* where the tokens stand that activate them */
    int32_t active_mark; /* tells tokens from there on apart from the same without (blocks.c) */
};

struct seq {
    struct sched_item item; /* first: item.n_tokens tokens are known */
    struct seq *next;       /* in the inbox or in the engine's list */
    struct seq *prev;
    uint64_t id;
    void *user;

    int32_t *tokens; /* prompt, then output */
    int cap, n_prompt;
    struct kv_table table;
    bool started; /* was in a step */

    struct sampling how;
    struct rng rng;
    int max_tokens, min_tokens;
    bool ignore_eos, include_stop, special, speculate, pin;
    int n_guess; /* guesses worth making: doubled when all held, halved when none did */
    int32_t *stop_ids;
    int n_stop_ids;
    struct stop stop;
    struct tok_stream stream;
    struct buf tenant;
    struct seq_keys keys;
    struct adapter_use adapters[MODEL_MAX_ADAPTERS];
    int n_adapters;
    int priority;
    int64_t deadline_ms;

    /* the event of this step */
    struct buf text;
    int n_new;           /* tokens sampled */
    struct buf logprobs; /* n_new x (1 + n_logprobs) struct token_logprob */
    enum finish_reason finish;
    int stop_match; /* index of the stop string, -1 */
    int32_t stop_id;
    struct err err;

    int cached_tokens;
    int64_t submit_ms, start_ms, first_ms;
};

struct seq_limits {
    int n_vocab, n_ctx;
};

/* Checks a request and copies it. ERR_INVALID names the field. */
int seq_new(struct seq **out, const struct engine_request *r, const struct seq_limits *limits,
            struct err *e);
void seq_free(struct seq *q);

/* The salt is cache_salt (or nothing) and, each after a NUL, digest and scale of the adapters, so
 * prefix_forget finds it under cache_salt. Which adapters are activated, and where, follows from
 * the tokens. active_mark stays 0. */
void seq_keys_init(struct seq_keys *k, const struct engine_prefix *p);
void seq_keys_release(struct seq_keys *k);

static inline int seq_n_output(const struct seq *q)
{
    return q->item.n_tokens - q->n_prompt;
}

/* Makes room for n more tokens after those known and returns where they go. */
int32_t *seq_room(struct seq *q, int n);

/* Takes the sampled token in: appends it, makes text, finds out whether this is the end
 * (q->finish). `logprobs` has 1 + n_logprobs entries, or is NULL. */
void seq_commit(struct seq *q, const struct tokenizer *t, int32_t id,
                const struct token_logprob *logprobs);

/* Ends the sequence: gives out held text. No effect if it has ended. */
void seq_finish(struct seq *q, enum finish_reason why);

/* Whether there is something to tell. */
bool seq_has_event(const struct seq *q);

/* Takes the event out of the sequence. */
struct engine_event *seq_take_event(struct seq *q);
