/* The tables of AVX2 and of AVX2 with AVX-VNNI. */
#include "kernels/layout.h"
#include "kernels/x86.h"

const struct kernels kernels_avx2 = {
    .name = "avx2",
    .act_fill = avx2_act_fill,
    .matmul = avx2_matmul,
    .kv_write = avx2_kv_write,
    .attention = avx2_attention,
    .attention_merge = avx2_attention_merge,
    .rmsnorm = avx2_rmsnorm,
    .rope = avx2_rope,
    .lora_shrink = avx2_lora_shrink,
    .lora_expand = avx2_lora_expand,
    .add = avx2_add,
    .axpy = avx2_axpy,
    .silu_mul = avx2_silu_mul,
    .softmax = avx2_softmax,
    .dot_rounds = avx2_dot_rounds,
};

const struct kernels kernels_avxvnni = {
    .name = "avxvnni",
    .act_fill = avx2_act_fill,
    .matmul = avxvnni_matmul,
    .kv_write = avx2_kv_write,
    .attention = avx2_attention,
    .attention_merge = avx2_attention_merge,
    .rmsnorm = avx2_rmsnorm,
    .rope = avx2_rope,
    .lora_shrink = avx2_lora_shrink,
    .lora_expand = avx2_lora_expand,
    .add = avx2_add,
    .axpy = avx2_axpy,
    .silu_mul = avx2_silu_mul,
    .softmax = avx2_softmax,
    .dot_rounds = avxvnni_dot_rounds,
};
