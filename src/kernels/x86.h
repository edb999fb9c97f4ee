/* x86.h - the functions behind the x86-64 tables. Contracts: kernels.h. */
#pragma once

#include "kernels/kernels.h"

void avx512_act_fill(const struct act *a, const float *x, size_t x_stride, int ith, int nth);
void avx512_matmul(const struct matmul *m, int tile_begin, int tile_end);
void avx512_silu_mul(const float *gate, const float *up, int n, float *out);
int64_t avx512_dot_rounds(int64_t rounds);
