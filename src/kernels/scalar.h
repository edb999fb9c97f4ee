/* scalar.h - the plain C kernels, shared by the tables that have nothing faster. Contracts:
 * kernels.h. */
#pragma once

#include "kernels/kernels.h"

void scalar_act_fill(const struct act *a, const float *x, size_t x_stride, int ith, int nth);
void scalar_matmul(const struct matmul *m, int tile_begin, int tile_end);
void scalar_kv_write(const struct kv_layout *kv, void *block, int slot, const float *k,
                     const float *v, int head_begin, int head_end);
void scalar_attention(const struct attention *a, void *scratch);
void scalar_attention_merge(const float *const *parts, int n_parts, int n_rows, int head_dim,
                            float *out, size_t out_stride);
