/* adapter_private.h - how an adapter is read and kept. Private to src/model. */
#pragma once

#include <stdatomic.h>

#include "base/arena.h"
#include "gguf/gguf.h"
#include "gguf/safetensors.h"
#include "model/adapter.h"
#include "model/internal.h"

/* The products of a layer by what goes in and by what comes out. A shrinks an input, B makes an
 * output; the outputs of one input follow each other. */
enum lora_input { LORA_IN_QKV, LORA_IN_O, LORA_IN_FFN, LORA_IN_DOWN, LORA_INPUTS };
enum lora_output {
    LORA_Q,
    LORA_K,
    LORA_V,
    LORA_O,
    LORA_GATE,
    LORA_UP,
    LORA_DOWN,
    LORA_OUTPUTS,
};

enum lora_input lora_input_of(enum lora_output out);
int lora_n_cols(const struct hparams *hp, enum lora_input in);
int lora_n_rows(const struct hparams *hp, enum lora_output out);

/* --- as it is kept ------------------------------------------------------------------------------
 * For each input the rows of A of all its outputs lie together, so that x is shrunk once. */
struct adapter_layer {
    struct {
        int rank;          /* rows, even; 0: nothing here */
        const uint16_t *a; /* packed, kernels/lora.h */
    } in[LORA_INPUTS];
    struct {
        int rank;    /* even; 0: nothing here */
        int h_begin; /* its first row among those of the input; outputs of a fused weight share */
        const uint16_t *b;
    } out[LORA_OUTPUTS];
};

struct adapter {
    struct adapter_info info;
    struct adapter_layer *layers;
    int n_layers;
    int max_rows; /* largest in[].rank */
    void *memory;
    size_t memory_bytes;
    _Atomic int references;
};

/* --- as it is read ------------------------------------------------------------------------------
 * A matrix in the file, row-major: A is rank x n_cols, B n_rows x rank. */
struct adapter_matrix {
    const struct safetensor *safetensor; /* one of the two */
    const struct gguf_tensor *gguf;
};

/* A and B of one weight of the adapter. */
struct adapter_part {
    const char *name; /* for messages */
    int layer;
    unsigned outputs; /* bits of the outputs that its rows make, one after the other; 0: no part */
    struct adapter_matrix a, b;
    int rank;
    float scale;
    bool permute; /* rows of q and k are to be put in the order of ROPE_NORM */
};

struct adapter_parts {
    const struct model *model;
    struct adapter_part *parts; /* [n_layers][LORA_OUTPUTS], at the first output of each */
    struct arena names;
};

/* The outputs of a weight by its name in a PEFT or a GGUF adapter ("self_attn.q_proj", "attn_q"); 0
 * for a name that the model has no weight for. */
unsigned adapter_peft_outputs(struct str module);
unsigned adapter_gguf_outputs(const struct model *m, struct str module);

/* Takes note of a matrix. `is_b` tells which of the two. */
int adapter_add(struct adapter_parts *p, int layer, unsigned outputs, bool is_b,
                struct adapter_matrix matrix, struct str name, struct err *e);

/* Fill `parts` in from an open file; what it reads must stay open until the adapter is built. */
int adapter_read_peft(struct adapter_parts *p, const struct safetensors *s, const void *config,
                      size_t config_bytes, struct adapter_info *info, struct err *e);
int adapter_read_peft_config(const void *config, size_t config_bytes, struct adapter_info *info,
                             struct err *e); /* without its tensors: info but bytes and digest */
int adapter_read_gguf(struct adapter_parts *p, const struct gguf *g, struct adapter_info *info,
                      struct err *e);
