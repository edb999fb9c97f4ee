/* reference_forward.h - the forward pass of llama, phi3, qwen2 and qwen3 in plain loops and double
 * precision, written from the papers and the reference implementations' formulas and not from
 * src/model: the twin that the model tests compare with. No cache, no batch, no packing. */
#pragma once

#include "gguf/gguf.h"

/* Logits of every token of one sequence: logits[t * n_vocab + v]. n_ctx chooses the long rope
 * factors of Phi-3 as model_opts.n_ctx does. Returns n_vocab. */
int reference_forward(const struct gguf *g, const int *tokens, int n_tokens, int n_ctx,
                      double *logits);
int reference_n_vocab(const struct gguf *g);
