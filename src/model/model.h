/* model.h - a model: weights, shape, and the forward pass of one step.
 *
 * The forward pass takes a batch: for each sequence its new tokens, their position and the KV
 * blocks it lives in. Prefill chunks and decodes are the same thing with different n_tokens.
 *
 * Weights are immutable after model_open. A model runs one forward pass at a time (its scratch
 * memory is its own); the caller is the only thread that calls model_forward. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/pool.h"
#include "gguf/gguf.h"
#include "tensor/kv_type.h"

struct model;

struct model_opts {
    struct pool *pool; /* outlives the model; who shares it has the turn when model_forward is
                          called, which yields it between layers */
    const char *isa;   /* "auto", "avx512", "avx2", "scalar"; NULL is auto */
    enum kv_type kv_type;
    int max_batch_tokens; /* most tokens in one step, 0: 512 */
    int n_ctx;            /* the longest context that will be used, 0: the model's. Decides between
                             the short and the long rope factors of Phi-3 */
    const char *pack_dir; /* where the packed cache file may be written; NULL: do not cache */
    /* Called now and then while weights are packed, on the calling thread; may be NULL. Returning
     * false cancels with ERR_CANCELED. */
    bool (*progress)(void *arg, size_t done_bytes, size_t total_bytes);
    void *progress_arg;
};

struct model_info {
    char arch[32];  /* "llama", "phi3", "qwen2", "qwen3" */
    char name[128]; /* general.name, may be "" */
    char quant[16]; /* "Q4_K_M": general.file_type, or the commonest tensor type */
    int n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim, n_vocab;
    int n_ctx_train; /* the longest context the model was made for */
    uint64_t n_params;
    size_t weight_bytes;   /* packed, resident */
    size_t kv_block_bytes; /* of one KV block over all layers */
    size_t scratch_bytes;  /* for max_batch_tokens */
    const char *isa;       /* kernels in use */
};

/* Binds and packs the weights of g. g must stay open as long as the model. ERR_NOTFOUND names a
 * missing key or tensor, ERR_FORMAT a wrong value or shape, ERR_UNSUPPORTED an unknown
 * architecture, tensor or rope scaling. */
int model_open(struct model **out, const struct gguf *g, const struct model_opts *o, struct err *e);
void model_close(struct model *m);

/* What model_open would make of g, its memory above all, without packing a weight: milliseconds.
 * The same errors, but for damage inside the weights. */
int model_measure(struct model_info *out, const struct gguf *g, const struct model_opts *o,
                  struct err *e);

const struct model_info *model_info(const struct model *m);

/* The memory of KV blocks 0 .. n_blocks-1, one pool for all sequences. Who owns which block is the
 * caller's business. The system gives the memory as it is used, low blocks first, a thread somewhat
 * ahead of that. */
struct kv_mem;
int kv_mem_new(struct kv_mem **out, const struct model *m, int n_blocks, struct err *e);
void kv_mem_free(struct kv_mem *kv);
/* Asks for all of the memory, in the background: some seconds for a few GiB. */
void kv_mem_make_all(struct kv_mem *kv);
/* Copies the first n_tokens positions of block `from` into block `to` (copy on write). */
void kv_mem_copy(struct kv_mem *kv, int32_t to, int32_t from, int n_tokens);

/* The bytes of a block, model_info.kv_block_bytes of them: they mean the same in another pool of
 * the same model, KV type and kernels. */
void kv_mem_read(const struct kv_mem *kv, int32_t block, void *out);
void kv_mem_write(struct kv_mem *kv, int32_t block, const void *in);

/* An adapter (adapter.h) that a sequence uses, how strongly (1 as it was trained), and from which
 * position on. The engine finds `from` out itself (activated adapters); for others it is 0. */
struct adapter;
struct adapter_use {
    struct adapter *adapter;
    float scale;
    int from;
};

enum { MODEL_MAX_ADAPTERS = 4 }; /* of a sequence */

/* One sequence's part of a step. Its KV of positions 0 .. pos-1 is in the blocks already; positions
 * pos .. pos+n_tokens-1 are written by the step, so blocks covers pos+n_tokens positions. */
struct batch_seq {
    const int32_t *tokens; /* [n_tokens] */
    int n_tokens;          /* >= 1 */
    int pos;
    const int32_t *blocks; /* block table */
    int n_logits;          /* logits are wanted for the last n_logits tokens, 0 .. n_tokens */
    /* What changes the weights for these tokens. The KV of a sequence depends on it, so blocks may
     * be shared only under the same adapters and scales. */
    const struct adapter_use *adapters;
    int n_adapters; /* 0 .. MODEL_MAX_ADAPTERS; 0 is the base model and costs nothing */
};

/* Runs all layers for the batch (at most max_batch_tokens tokens in all). Writes n_vocab floats to
 * `logits` for each wanted token, sequence by sequence. Blocks that several sequences share as a
 * prefix (equal ids) may be shared only for positions before every `pos`. Token ids and block ids
 * must be in range (BUG otherwise: the caller checked them). */
void model_forward(struct model *m, struct kv_mem *kv, const struct batch_seq *seqs, int n_seqs,
                   float *logits);

/* Whether blocks that several sequences of a step share are read once for all of them (the default)
 * or by each, which gives the same bits and is there to be measured. Between steps. */
void model_share_prefixes(struct model *m, bool on);
