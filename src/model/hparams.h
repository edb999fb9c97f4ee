/* hparams.h - the shape of a model as its GGUF metadata states it.
 *
 * Keys are "<architecture>.<name>"; the table in hparams.c lists them. Values are checked here, so
 * that the rest of the module can multiply them without fear. */
#pragma once

#include <stdbool.h>

#include "base/err.h"
#include "gguf/gguf.h"

enum rope_scaling { ROPE_PLAIN, ROPE_LINEAR, ROPE_YARN, ROPE_LONG };

struct hparams {
    int n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim;
    int n_vocab; /* rows of token_embd.weight */
    int n_ctx_train;
    int n_rot;  /* dimensions of a head that rope turns, even */
    int window; /* sliding window in positions, 0: none */
    float norm_eps;
    float rope_base;
    enum rope_scaling rope_scaling;
    float rope_factor;      /* of LINEAR and YARN */
    int rope_ctx_orig;      /* context before scaling, of YARN and LONG */
    float rope_attn_factor; /* of LONG: scales cos and sin; 0: not stated */
};

/* ERR_NOTFOUND for a missing key, ERR_FORMAT for a value out of range, ERR_UNSUPPORTED for what is
 * not run here (experts, per-layer head counts, an unknown rope scaling); the message names the
 * key. */
int hparams_read(struct hparams *hp, const struct gguf *g, const char *arch, struct err *e);

static inline int hparams_q(const struct hparams *hp)
{
    return hp->n_heads * hp->head_dim;
}

static inline int hparams_kv(const struct hparams *hp)
{
    return hp->n_kv_heads * hp->head_dim;
}
