/* synth_private.h - what the files of the generator share. */
#pragma once

#include "base/rng.h"
#include "gguf/gguf_writer.h"

/* -- vocabularies (synth_vocab.c) */
enum synth_vocab_kind { VOCAB_PHI3, VOCAB_MISTRAL, VOCAB_LLAMA3, VOCAB_SMOLLM, VOCAB_QWEN };

/* Adds all tokenizer.* keys for n_tokens tokens: the special tokens at the ids of the real model
 * when n_tokens is that of the real model, invented pieces everywhere else. */
void synth_add_vocab(struct gguf_writer *w, enum synth_vocab_kind kind, uint32_t n_tokens,
                     uint64_t seed);

/* -- weights (synth_blocks.c) */

/* Fills n elements (a multiple of the block) of the type with numbers of mean 0 and about the given
 * deviation. */
struct synth_source;
struct synth_source *synth_source_new(enum ttype type, float deviation, uint64_t seed);
void synth_source_fill(struct synth_source *s, void *blocks, size_t n);
void synth_source_free(struct synth_source *s);
