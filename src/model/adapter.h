/* adapter.h - LoRA adapters: small matrices that change the products of a model.
 *
 * An adapter gives some weights W of the model a change B A of low rank, scaled by alpha / rank (or
 * alpha / sqrt(rank)); the forward pass computes W x + scale B (A x) for the tokens that use it.
 * Read are
 *   - PEFT directories: adapter_config.json and adapter_model.safetensors, with rank and alpha
 *     patterns, rank-stabilised scaling, fused names (qkv_proj, gate_up_proj) and single ones, in
 *     either form on fused weights,
 *   - GGUF adapters (general.type "adapter", adapter.type "lora").
 * Adapters may be activated by tokens of the prompt (alora_invocation_tokens).
 * What would give other numbers than its trainer saw is refused with the reason: DoRA, biases,
 * modules saved whole, initialisations that change the base, shapes of another base, unknown
 * targets, numbers that are not finite.
 *
 * An adapter is immutable, kept as bf16, counted by reference and belongs to one model, which must
 * outlive it. Any thread may open one while the model runs: only the shape of the model is read.
 * Which paths may be opened is the caller's business.
 *
 * Sources: arXiv 2106.09685 (LoRA), 2312.03732 (rank-stabilised), 2504.12397 (activated); peft 0.21
 * for names and patterns; llama.cpp's convert_lora_to_gguf.py for GGUF adapters. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct model;
struct adapter;

enum { ADAPTER_MAX_RANK = 512, ADAPTER_MAX_INVOCATION = 64 };

struct adapter_info {
    const char *format;   /* "peft", "gguf" or "random" */
    char base_model[256]; /* what the adapter says it was trained on, may be "" */
    int max_rank;
    int n_targets;     /* weights that it changes, a fused one counted by its parts */
    uint64_t n_params; /* numbers in A and B */
    size_t bytes;      /* resident */
    /* An activated adapter (aLoRA) changes a sequence from the last place on where its prompt has
     * these tokens, and not at all if it has them nowhere. 0 tokens: it changes everything. */
    int32_t invocation[ADAPTER_MAX_INVOCATION];
    int n_invocation;
    uint8_t digest[32]; /* SHA-256 of all that it computes with: what KV made with it is keyed by.
                           Two adapters of one digest give the same numbers. */
};

/* Loads path, a PEFT directory or a GGUF file, with one reference for the caller. ERR_NOTFOUND,
 * ERR_IO, ERR_FORMAT (damaged, or made for another base), ERR_UNSUPPORTED, ERR_LIMIT, ERR_NOMEM;
 * the message names the tensor or key. */
int adapter_open(struct adapter **out, const struct model *m, const char *path, struct err *e);

/* What a PEFT directory says of itself, for a base model that is not here: format, base_model,
 * max_rank, the bytes of its files, and as digest the SHA-256 of them. Whether it fits the base is
 * for who loads it to find out. Errors as adapter_open; ERR_UNSUPPORTED for a GGUF file. */
int adapter_inspect(const char *path, struct adapter_info *out, struct err *e);

/* adapter_open for the two files of a PEFT directory in memory. */
int adapter_open_peft(struct adapter **out, const struct model *m, const void *config,
                      size_t config_bytes, const void *tensors, size_t tensors_bytes,
                      struct err *e);

/* An adapter of random numbers on every weight, as a trained one might be: for measurements. */
int adapter_random(struct adapter **out, const struct model *m, int rank, uint64_t seed,
                   struct err *e);

struct adapter *adapter_ref(struct adapter *a); /* returns a */
void adapter_unref(struct adapter *a);          /* frees it with the last reference */

const struct adapter_info *adapter_info(const struct adapter *a);
