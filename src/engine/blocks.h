/* blocks.h - the KV blocks of sequences: who gets which, what is found in the prefix cache, what
 * stays pinned. Ties kv and prefix to struct seq; the bytes are the model's. One thread. */
#pragma once

#include "base/map.h"
#include "engine/kv.h"
#include "engine/prefix.h"
#include "engine/seq.h"

struct pin;

struct blocks {
    struct kv kv;
    struct prefix prefix;
    const struct engine_model *model; /* copies blocks */
    int32_t *found;                   /* [n_blocks] scratch of blocks_admit */
    struct map marks;                 /* what activated adapters add -> their mark / n_vocab */
    struct buf keys;                  /* scratch: marked tokens */
    struct pin *pins;
    int n_pinned; /* references that pins hold */
};

/* model outlives b. Without the cache nothing is found or kept. */
void blocks_init(struct blocks *b, const struct engine_model *model, bool prefix_cache);
void blocks_release(struct blocks *b); /* pins and all */

/* Gives q blocks for all its tokens, as sched_ops.admit asks; plan[0..n_plan) is what the step
 * computes already. What the cache knew of the prompt is counted in q->cached_tokens the first
 * time. */
enum sched_answer blocks_admit(struct blocks *b, struct seq *q, struct sched_item *const *plan,
                               int n_plan, int reserve);

/* As sched_ops.catch_up asks: takes over blocks of q's prompt that others have computed since q
 * began. Returns in *n_tokens how many tokens q was spared. */
enum sched_answer blocks_catch_up(struct blocks *b, struct seq *q, struct sched_item *const *plan,
                                  int n_plan, int *n_tokens);

/* Blocks for n_tokens positions; false when there is none to take. */
bool blocks_grow(struct blocks *b, struct seq *q, int n_tokens);

void blocks_drop(struct blocks *b, struct seq *q);

/* Positions from .. to-1 of q have been computed: others may use them. */
void blocks_publish(struct blocks *b, struct seq *q, int from, int to);

/* Keeps the blocks of q's prompt (all computed) under q->id after q drops them. */
void blocks_pin(struct blocks *b, const struct seq *q);

/* A pin whose blocks come from elsewhere. They come one by one, in order, and can be found at once.
 * ERR_CANCELED: no such pin, or it has them all; ERR_LIMIT: every block is held. */
void blocks_pin_begin(struct blocks *b, uint64_t id, const struct engine_prefix *p);
int blocks_import(struct blocks *b, uint64_t id, const void *in, struct err *e);

/* Copies a block of a pin. ERR_CANCELED: no such pin or block. */
int blocks_export(const struct blocks *b, uint64_t id, int index, void *out, struct err *e);

/* Lets go. Returns how many blocks were promised to the pin, 0: no such pin. */
int blocks_unpin(struct blocks *b, uint64_t id);

/* Forgets cached prefixes and pins under a salt, or (NULL) all. Sequences keep their blocks, but
 * nobody finds them any more. Returns how many blocks were promised to pins. */
int blocks_forget(struct blocks *b, const struct str *salt);

/* The promises of kv.h and prefix.h, over everything that holds blocks: the list of sequences (by
 * seq.next) and the pins. */
bool blocks_check(const struct blocks *b, const struct seq *seqs, struct err *e);
