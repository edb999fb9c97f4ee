/* kv.h - who owns which KV block.
 *
 * A pool of n_blocks equal blocks, each with a reference count. Every block is in one state:
 *
 *     free      ref 0, not kept    on the free stack
 *     cached    ref 0, kept        content may be wanted again (prefix.h says by whom)
 *     held      ref > 0            in the block table of ref sequences (or pins)
 *
 * free + cached + held = total, always; kv_check proves it. Knows integers only: the bytes of a
 * block are the model's. One thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct kv {
    int n_blocks, block_tokens;
    int32_t *ref;   /* [n_blocks] */
    bool *kept;     /* [n_blocks] */
    int32_t *stack; /* free blocks, n_free of them */
    int n_free, n_cached;
};

/* The blocks of one sequence: position p is in blocks[p / block_tokens]. {0} is empty. */
struct kv_table {
    int32_t *blocks;
    int n, cap;
};

void kv_init(struct kv *kv, int n_blocks, int block_tokens);
void kv_release(struct kv *kv);

int32_t kv_take(struct kv *kv); /* a free block, now with ref 1; -1 if none is free */
void kv_ref(struct kv *kv, int32_t block);
void kv_unref(struct kv *kv, int32_t block); /* the last reference frees it, or leaves it cached */

/* Whether the block outlives its last reference. Clearing it on a cached block frees the block. */
void kv_keep(struct kv *kv, int32_t block, bool keep);

/* How many blocks n_positions need. */
int kv_blocks_for(const struct kv *kv, int n_positions);

void kv_table_add(struct kv_table *t, int32_t block);
void kv_table_release(struct kv_table *t); /* the array only; references are the caller's */

static inline int kv_held(const struct kv *kv)
{
    return kv->n_blocks - kv->n_free - kv->n_cached;
}

/* Whether counts, states and the free stack agree, and every reference is accounted for: `refs[b]`
 * is how often block b stands in all tables and pins (NULL: not checked). False and the reason in
 * e. */
bool kv_check(const struct kv *kv, const int32_t *refs, struct err *e);
