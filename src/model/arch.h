/* arch.h - what tells one architecture from another, as data.
 *
 * An architecture is a table of the tensors that a layer has, by role and shape, and the style of
 * its rope. The forward pass asks only whether a layer has a tensor. A new family is one small file
 * with such a table and a line in arch.c. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "gguf/gguf.h"
#include "kernels/kernels.h"
#include "model/hparams.h"

/* A layer's weights. Matrices that the architecture lacks have n_rows 0, vectors are NULL. Shapes
 * as (rows, columns): a product maps columns numbers to rows numbers. */
struct layer {
    const float *attn_norm;       /* [n_embd] */
    struct packed_matrix qkv[3];  /* q, k, v: (q, n_embd), (kv, n_embd) x 2; or all in the first */
    const float *qkv_bias[3];     /* rows of each */
    const float *q_norm, *k_norm; /* [head_dim], on every head before rope */
    struct packed_matrix o;       /* (n_embd, q) */
    const float *o_bias;          /* [n_embd] */
    const float *ffn_norm;        /* [n_embd] */
    struct packed_matrix gate_up; /* (2 n_ff, n_embd): gate rows, then up rows; or gate and up */
    struct packed_matrix gate;    /* (n_ff, n_embd) */
    struct packed_matrix up;      /* (n_ff, n_embd) */
    struct packed_matrix down;    /* (n_embd, n_ff) */
};

/* A dimension of a tensor, named so that tables can hold it. */
enum dim { DIM_NONE, DIM_EMBD, DIM_FF, DIM_2FF, DIM_Q, DIM_KV, DIM_QKV, DIM_HEAD };

struct tensor_spec {
    const char *name; /* "attn_q.weight", after "blk.N." */
    size_t offset;    /* in struct layer, of a packed_matrix (rows given) or a const float * */
    enum dim cols, rows;
    bool optional;
};

struct arch {
    const char *name; /* general.architecture */
    enum rope_style rope;
    bool window;                       /* honours attention.sliding_window */
    const struct tensor_spec *tensors; /* of a layer, ends with a NULL name */
};

extern const struct arch arch_llama, arch_phi3, arch_qwen2, arch_qwen3;

/* The architecture that general.architecture names; ERR_UNSUPPORTED for an unknown one. */
int arch_find(const struct arch **out, const struct gguf *g, struct err *e);

#define MATRIX(name, field, rows, cols)                                                            \
    {                                                                                              \
        name, offsetof(struct layer, field), cols, rows, false                                     \
    }
#define VECTOR(name, field, cols)                                                                  \
    {                                                                                              \
        name, offsetof(struct layer, field), cols, DIM_NONE, false                                 \
    }
#define OPTIONAL_VECTOR(name, field, cols)                                                         \
    {                                                                                              \
        name, offsetof(struct layer, field), cols, DIM_NONE, true                                  \
    }
