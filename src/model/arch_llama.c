/* Llama 1 to 3, Mistral, SmolLM and their like. The files hold q and k with the rows of a head
 * permuted so that rope turns neighbours; Llama 3.1 brings rope_freqs.weight. */
#include "model/arch.h"

static const struct tensor_spec tensors[] = {
    VECTOR("attn_norm.weight", attn_norm, DIM_EMBD),
    MATRIX("attn_q.weight", qkv[0], DIM_Q, DIM_EMBD),
    MATRIX("attn_k.weight", qkv[1], DIM_KV, DIM_EMBD),
    MATRIX("attn_v.weight", qkv[2], DIM_KV, DIM_EMBD),
    OPTIONAL_VECTOR("attn_q.bias", qkv_bias[0], DIM_Q),
    OPTIONAL_VECTOR("attn_k.bias", qkv_bias[1], DIM_KV),
    OPTIONAL_VECTOR("attn_v.bias", qkv_bias[2], DIM_KV),
    MATRIX("attn_output.weight", o, DIM_EMBD, DIM_Q),
    OPTIONAL_VECTOR("attn_output.bias", o_bias, DIM_EMBD),
    VECTOR("ffn_norm.weight", ffn_norm, DIM_EMBD),
    MATRIX("ffn_gate.weight", gate, DIM_FF, DIM_EMBD),
    MATRIX("ffn_up.weight", up, DIM_FF, DIM_EMBD),
    MATRIX("ffn_down.weight", down, DIM_EMBD, DIM_FF),
    {0},
};

const struct arch arch_llama = {"llama", ROPE_NORM, true, tensors};
