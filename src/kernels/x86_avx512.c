/* The AVX-512 table. */
#include "kernels/layout.h"
#include "kernels/x86.h"

const struct kernels kernels_avx512 = {
    .name = "avx512",
    .act_fill = avx2_act_fill,
    .matmul = avx512_matmul,
    .kv_write = avx2_kv_write,
    .attention = avx512_attention,
    .attention_merge = avx2_attention_merge,
    .rmsnorm = avx2_rmsnorm,
    .rope = avx2_rope,
    .lora_shrink = avx512_lora_shrink,
    .lora_expand = avx512_lora_expand,
    .add = avx2_add,
    .axpy = avx2_axpy,
    .silu_mul = avx2_silu_mul,
    .softmax = avx2_softmax,
    .dot_rounds = avx512_dot_rounds,
};
