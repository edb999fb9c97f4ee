/* x86.h - the functions behind the x86-64 tables. Contracts: kernels.h. */
#pragma once

#include "kernels/kernels.h"

/* Vector functions are written once with their width as an argument: everything is inlined, and
 * loops whose bounds become constants disappear, which keeps arrays of vectors in registers. */
#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL     _Pragma("clang loop unroll(full)")
#define ONE_BY_ONE _Pragma("clang loop unroll(disable)")
#else
#define UNROLL     _Pragma("GCC unroll 16")
#define ONE_BY_ONE _Pragma("GCC unroll 1")
#endif

void avx2_matmul(const struct matmul *m, int tile_begin, int tile_end);
void avx2_lora_shrink(const struct lora_shrink *s, int panel_begin, int panel_end);
void avx2_lora_expand(const struct lora_expand *x, int row_begin, int row_end);
int64_t avx2_dot_rounds(int64_t rounds);
void avx2_act_fill(const struct act *a, const float *x, size_t x_stride, int ith, int nth);
void avx2_rmsnorm(const float *x, const float *weight, float eps, int n, float *out);
void avx2_rope(float *x, int n_heads, int head_dim, int n_rot, const float *cos_sin,
               enum rope_style style);
void avx2_add(float *x, const float *y, int n);
void avx2_axpy(float *x, float a, const float *y, int n);
void avx2_silu_mul(const float *gate, const float *up, int n, float *out);
void avx2_softmax(float *x, int n);
void avx2_kv_write(const struct kv_layout *kv, void *block, int slot, const float *k,
                   const float *v, int head_begin, int head_end);
void avx2_attention(const struct attention *a, void *scratch);
/* Adds the partial (max, sum, acc) of the next segment to the partial of those before. */
void avx2_attention_fold(float *total, float max, float sum, const float *acc, int dim);
void avx2_attention_merge(const float *const *parts, int n_parts, int n_rows, int head_dim,
                          float *out, size_t out_stride);

void avxvnni_matmul(const struct matmul *m, int tile_begin, int tile_end);
int64_t avxvnni_dot_rounds(int64_t rounds);

void avx512_matmul(const struct matmul *m, int tile_begin, int tile_end);
void avx512_attention(const struct attention *a, void *scratch);
void avx512_lora_shrink(const struct lora_shrink *s, int panel_begin, int panel_end);
void avx512_lora_expand(const struct lora_expand *x, int row_begin, int row_end);
int64_t avx512_dot_rounds(int64_t rounds);
