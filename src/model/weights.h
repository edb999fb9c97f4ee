/* weights.h - finds the tensors of a model, checks their shapes and packs them.
 *
 * All packed matrices lie in one block of memory in the order of their use. */
#pragma once

#include <stdbool.h>

#include "base/arena.h"
#include "base/pool.h"
#include "gguf/gguf.h"
#include "model/arch.h"
#include "model/hparams.h"

/* A tensor and the matrix it becomes, at `offset` in the packed memory. */
struct weight {
    const struct gguf_tensor *tensor;
    struct packed_matrix *matrix;
    size_t offset;
};

struct weights {
    const struct gguf_tensor *token_embd; /* rows are decoded from the file as they are needed */
    const float *output_norm;             /* [n_embd] */
    struct packed_matrix output;          /* (n_vocab, n_embd); token_embd's where there is none */
    struct layer *layers;
    int n_layers;

    struct weight *packed; /* in order of offset */
    int n_packed;
    size_t packed_bytes;
    void *memory;  /* where they were packed, NULL if mapped from a file */
    void *mapping; /* the file, NULL if packed */
    size_t mapping_bytes;
    const void *data;    /* the packed matrices in one or the other, 64-byte aligned */
    struct arena floats; /* norms and biases */
};

/* Fills in everything but the packed data. Sets hp->n_vocab. Tensors that the architecture does not
 * know are refused: leaving one out would give wrong answers. */
int weights_bind(struct weights *w, struct hparams *hp, const struct arch *arch,
                 const struct gguf *g, struct err *e);

typedef bool weights_progress_fn(void *arg, size_t done_bytes, size_t total_bytes);

/* Packs every matrix of g into fresh memory on the pool's threads. */
int weights_pack(struct weights *w, const struct gguf *g, struct pool *pool,
                 weights_progress_fn *progress, void *progress_arg, struct err *e);

/* Frees what weights_pack made. */
void weights_unpack(struct weights *w);

/* Points the matrices into w->data. */
void weights_attach(struct weights *w, const struct hparams *hp);

void weights_release(struct weights *w);
