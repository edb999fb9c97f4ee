/* Qwen2 and Qwen2.5: as Llama with biases on q, k and v, and rope that turns halves. */
#include "model/arch.h"

static const struct tensor_spec tensors[] = {
    VECTOR("attn_norm.weight", attn_norm, DIM_EMBD),
    MATRIX("attn_q.weight", qkv[0], DIM_Q, DIM_EMBD),
    MATRIX("attn_k.weight", qkv[1], DIM_KV, DIM_EMBD),
    MATRIX("attn_v.weight", qkv[2], DIM_KV, DIM_EMBD),
    VECTOR("attn_q.bias", qkv_bias[0], DIM_Q),
    VECTOR("attn_k.bias", qkv_bias[1], DIM_KV),
    VECTOR("attn_v.bias", qkv_bias[2], DIM_KV),
    MATRIX("attn_output.weight", o, DIM_EMBD, DIM_Q),
    VECTOR("ffn_norm.weight", ffn_norm, DIM_EMBD),
    MATRIX("ffn_gate.weight", gate, DIM_FF, DIM_EMBD),
    MATRIX("ffn_up.weight", up, DIM_FF, DIM_EMBD),
    MATRIX("ffn_down.weight", down, DIM_EMBD, DIM_FF),
    {0},
};

const struct arch arch_qwen2 = {"qwen2", ROPE_NEOX, false, tensors};
