/* fake_model.h - a model and a tokenizer for engine tests: small, exact, and unforgiving.
 *
 * The model's KV slot holds the token that was computed there. Logits are a hash of all tokens
 * found through the block table, so a wrong, stale or missing block changes the answer.
 * fake_continue says what a sequence alone must get, from its tokens only.
 *
 * The tokenizer has FAKE_VOCAB tokens: 0 is the end of generation, 1 a control token, 2..5 the four
 * bytes of a character, the others one to three letters of a small alphabet, so that stop strings
 * often lie across tokens. */
#pragma once

#include "base/buf.h"
#include "engine/engine.h"

enum { FAKE_VOCAB = 61, FAKE_EOG = 0, FAKE_CONTROL = 1, FAKE_BYTES = 2 };

struct fake_model {
    int32_t *slots; /* [n_blocks * KV_BLOCK_TOKENS] token + 1, 0: never written */
    int n_blocks, max_batch_tokens;
    int64_t n_computed; /* tokens that went through forward */
    int most_tokens;    /* in one step */
    int nan_after;      /* positions from which logits are NaN, 0: never */
    int eog_every; /* the end of generation is the likeliest for one context in so many, 0: never */
    bool repetitive; /* the last two tokens count most: answers run in circles, but not always */
    bool forgetful;  /* a planted bug: copy_block leaves out the last token */
    void (*on_step)(void *arg);
    void *arg;
};

void fake_model_init(struct fake_model *m, int n_blocks, int max_batch_tokens);
void fake_model_release(struct fake_model *m);
struct engine_model fake_engine_model(struct fake_model *m, int n_ctx);

/* The logits after tokens[0..n). */
void fake_logits(const struct fake_model *m, const int32_t *tokens, int n, float *logits);

const struct tokenizer *fake_tokenizer(void);
