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
void scalar_rmsnorm(const float *x, const float *weight, float eps, int n, float *out);
void scalar_rope(float *x, int n_heads, int head_dim, int n_rot, const float *cos_sin,
                 enum rope_style style);
void scalar_add(float *x, const float *y, int n);
void scalar_axpy(float *x, float a, const float *y, int n);
void scalar_silu_mul(const float *gate, const float *up, int n, float *out);
void scalar_softmax(float *x, int n);
void scalar_lora_shrink(const struct lora_shrink *s, int panel_begin, int panel_end);
void scalar_lora_expand(const struct lora_expand *x, int row_begin, int row_end);
int64_t scalar_dot_rounds(int64_t rounds);
