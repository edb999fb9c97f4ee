/* sampler.h - from logits to the next token.
 *
 * The order of the steps is stated at struct sampling in engine.h. Definitions of the cuts as in
 * Hugging Face Transformers (LogitsWarpers): each cut works on the distribution that the one before
 * it left, renormalised.
 *
 * Cost: greedy is one pass. Cuts select instead of sorting: O(n_vocab) whatever top_k and top_p
 * are. The draw runs over the candidates in order of id, so that noise in the last bits of the
 * logits hardly ever changes which token a random number means. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/rng.h"
#include "engine/engine.h"

struct sampler_key {
    float key, weight;
    int32_t id;
};

struct sampler_cand {
    int32_t id;
    float logit;
    double p;
};

/* Scratch memory, one per engine. One thread. */
struct sampler {
    int n_vocab;
    struct sampler_cand *cands; /* [n_vocab] */
    struct sampler_key *keys;   /* [n_vocab] */
    float *raw;                 /* [n_vocab] */
    uint32_t *seen;             /* [n_vocab]: stamp of the last pass that met the token */
    uint32_t stamp;
};

void sampler_init(struct sampler *s, int n_vocab);
void sampler_release(struct sampler *s);

/* One sequence's wishes and history. */
struct sampler_task {
    const struct sampling *how;
    const int32_t *tokens; /* prompt and output so far */
    int n_tokens, n_prompt;
    const int32_t *banned; /* ids that must not come now */
    int n_banned;
    struct rng *rng; /* one number is drawn for each token unless greedy */
};

/* Chooses a token from logits[n_vocab], which is changed. With how->n_logprobs >= 0 writes
 * 1 + n_logprobs entries to logprobs: the chosen token, then the likeliest, of log_softmax(logits)
 * as they came in. Returns the id, or -1 when a logit is NaN or +inf or all are -inf. */
int32_t sampler_pick(struct sampler *s, float *logits, const struct sampler_task *t,
                     struct token_logprob *logprobs);

/* The distribution that sampler_pick draws from: s->cands[0 .. result), in order of id, p adding up
 * to 1. Greedy: one candidate. -1 as above. */
int sampler_cut(struct sampler *s, float *logits, const struct sampler_task *t);

/* Whether every value is in range; names the field if not. */
int sampling_check(const struct sampling *how, int n_vocab, struct err *e);
