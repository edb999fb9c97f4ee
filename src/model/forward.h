/* forward.h - a step under way, shared by the files of the forward pass. Private to src/model. */
#pragma once

#include <stdatomic.h>

#include "model/internal.h"

struct step {
    struct model *m;
    struct kv_mem *kv;
    const struct batch_seq *seqs;
    int n_seqs;
    int n_tokens, n_rows; /* of the batch; whose logits are wanted */
    float *logits;
    int layer;                 /* the first one that is not computed yet */
    bool yields;               /* others want the pool: the job ends after this layer */
    bool place_inside;         /* attention places the keys it needs itself */
    _Atomic int64_t next_unit; /* of attention; counts on through all layers */
};

/* One thread's view of it. */
struct worker {
    struct step *st;
    const struct model *m;
    int ith, nth;
};

struct range {
    int begin, end;
};

/* Thread ith's part of n things. */
static inline struct range share(const struct worker *k, int n)
{
    return (struct range){(int)((int64_t)n * k->ith / k->nth),
                          (int)((int64_t)n * (k->ith + 1) / k->nth)};
}

/* From q, k, v in scratch.wide to the heads' outputs in scratch.narrow; k and v go into the cache.
 * Ends with a barrier. */
void attend(const struct worker *k, int layer);

/* Whether each piece of the plan holds all new tokens of its sequence. */
bool attend_can_place(const struct plan *plan, const struct batch_seq *seqs, int n_seqs);
