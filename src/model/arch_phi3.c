/* Phi-3 and Phi-4: q, k and v in one tensor, gate and up in another (gate rows first), a sliding
 * window in some sizes, longrope factors in the long-context ones. */
#include "model/arch.h"

static const struct tensor_spec tensors[] = {
    VECTOR("attn_norm.weight", attn_norm, DIM_EMBD),
    MATRIX("attn_qkv.weight", qkv[0], DIM_QKV, DIM_EMBD),
    MATRIX("attn_output.weight", o, DIM_EMBD, DIM_Q),
    VECTOR("ffn_norm.weight", ffn_norm, DIM_EMBD),
    MATRIX("ffn_up.weight", gate_up, DIM_2FF, DIM_EMBD),
    MATRIX("ffn_down.weight", down, DIM_EMBD, DIM_FF),
    {0},
};

const struct arch arch_phi3 = {"phi3", ROPE_NEOX, true, tensors};
