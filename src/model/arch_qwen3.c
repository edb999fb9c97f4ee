/* Qwen3 (dense): heads wider than n_embd / n_heads, and an RMS norm on every head of q and k. */
#include "model/arch.h"

static const struct tensor_spec tensors[] = {
    VECTOR("attn_norm.weight", attn_norm, DIM_EMBD),
    MATRIX("attn_q.weight", qkv[0], DIM_Q, DIM_EMBD),
    MATRIX("attn_k.weight", qkv[1], DIM_KV, DIM_EMBD),
    MATRIX("attn_v.weight", qkv[2], DIM_KV, DIM_EMBD),
    VECTOR("attn_q_norm.weight", q_norm, DIM_HEAD),
    VECTOR("attn_k_norm.weight", k_norm, DIM_HEAD),
    MATRIX("attn_output.weight", o, DIM_EMBD, DIM_Q),
    VECTOR("ffn_norm.weight", ffn_norm, DIM_EMBD),
    MATRIX("ffn_gate.weight", gate, DIM_FF, DIM_EMBD),
    MATRIX("ffn_up.weight", up, DIM_FF, DIM_EMBD),
    MATRIX("ffn_down.weight", down, DIM_EMBD, DIM_FF),
    {0},
};

const struct arch arch_qwen3 = {"qwen3", ROPE_NEOX, false, tensors};
