/* rope.h - the angles of rotary position embedding (Su et al., arXiv 2104.09864) and the ways in
 * which models stretch them to longer contexts. */
#pragma once

#include "gguf/gguf.h"
#include "model/hparams.h"

struct rope {
    int n_rot;
    float scale;  /* of cos and sin: the attention factor of yarn and longrope */
    double *freq; /* [n_rot / 2] radians for each position */
};

/* Reads rope_freqs.weight (Llama 3) or rope_factors_{long,short}.weight (Phi-3) where the file has
 * them. The long factors are taken when n_ctx, the longest context that will be used, is beyond the
 * model's original context: one choice for the life of the model, because keys in the KV cache were
 * turned with it. */
int rope_init(struct rope *r, const struct hparams *hp, const struct gguf *g, int n_ctx,
              struct err *e);
void rope_release(struct rope *r);

/* Writes n_rot / 2 pairs (cos, sin) for a position. */
void rope_angles(const struct rope *r, int pos, float *cos_sin);
