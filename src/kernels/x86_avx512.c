/* The AVX-512 table. */
#include <math.h>

#include "kernels/layout.h"
#include "kernels/scalar.h"
#include "kernels/x86.h"

void avx512_silu_mul(const float *gate, const float *up, int n, float *out)
{
    kernels_scalar.silu_mul(gate, up, n, out);
}

const struct kernels kernels_avx512 = {
    .name = "avx512",
    .act_fill = scalar_act_fill,
    .matmul = avx512_matmul,
    .kv_write = scalar_kv_write,
    .attention = scalar_attention,
    .attention_merge = scalar_attention_merge,
    .rmsnorm = scalar_rmsnorm,
    .rope = scalar_rope,
    .add = scalar_add,
    .axpy = scalar_axpy,
    .softmax = scalar_softmax,
    .silu_mul = avx512_silu_mul,
    .dot_rounds = avx512_dot_rounds,
};
