/* Writing of KV blocks with AVX2; the AVX-512 table uses it too. Positions lie side by side, so
 * each number goes to its place alone: threads may write neighbouring positions at the same time.
 */
#include <immintrin.h>
#include <string.h>

#include "kernels/layout.h"
#include "kernels/x86.h"
#include "kernels/x86_avx2.h"
#include "kernels/x86_bf16.h"

static void to_f16(const float *x, int n, uint16_t *out)
{
    for (int i = 0; i < n; i += 8)
        _mm_storeu_si128((__m128i *)(out + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
}

/* n numbers (a multiple of 16) as 8 bits, in order; returns their scale, exact in half precision.
 */
static uint16_t to_q8(const float *x, int n, int8_t *out)
{
    __m256 max = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8)
        max = _mm256_max_ps(absolute(_mm256_loadu_ps(x + i)), max);
    float top = max_of(max) / 127;
    uint16_t scale = f32_to_f16(top < 65504 ? top : 65504);
    float d = f16_to_f32(scale);
    __m256 inverse = _mm256_set1_ps(d > 0 ? 1 / d : 0);
    for (int i = 0; i < n; i += 16) {
        __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse));
        __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), inverse));
        __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(words, words), 0xd8);
        bytes = _mm256_max_epi8(bytes, _mm256_set1_epi8(-127));
        _mm_storeu_si128((__m128i *)(out + i), _mm256_castsi256_si128(bytes));
    }
    return scale;
}

static void write_bf16(const struct kv_layout *kv, uint8_t *head, int slot, const float *k,
                       const float *v)
{
    uint16_t x[KERNEL_MAX_HEAD_DIM];
    int dim = kv->head_dim;
    uint16_t *vals = (uint16_t *)(head + kv_half_bytes(kv)) + slot / 2 * dim * 2 + slot % 2;
    to_bf16(k, dim, x);
    for (int d = 0; d < dim; d += 2)
        memcpy(head + (d / 2 * KV_BLOCK_TOKENS + slot) * 4, x + d, 4);
    to_bf16(v, dim, x);
    for (int d = 0; d < dim; d++)
        vals[2 * d] = x[d];
}

static void write_f16(const struct kv_layout *kv, uint8_t *head, int slot, const float *k,
                      const float *v)
{
    uint16_t x[KERNEL_MAX_HEAD_DIM], *keys = (uint16_t *)head + slot;
    int dim = kv->head_dim;
    to_f16(k, dim, x);
    for (int d = 0; d < dim; d++)
        keys[d * KV_BLOCK_TOKENS] = x[d];
    to_f16(v, dim, (uint16_t *)(head + kv_half_bytes(kv)) + slot * dim);
}

static void write_q8(const struct kv_layout *kv, uint8_t *head, int slot, const float *k,
                     const float *v)
{
    int8_t x[KERNEL_MAX_HEAD_DIM];
    int dim = kv->head_dim;
    int8_t *vals = (int8_t *)head + kv_half_bytes(kv) + slot / 2 * dim * 2 + slot % 2;
    uint16_t *scales = (uint16_t *)(head + 2 * kv_half_bytes(kv));
    scales[slot] = to_q8(k, dim, x);
    for (int d = 0; d < dim; d += 2)
        memcpy(head + (d / 2 * KV_BLOCK_TOKENS + slot) * 2, x + d, 2);
    scales[KV_BLOCK_TOKENS + slot] = to_q8(v, dim, x);
    for (int d = 0; d < dim; d++)
        vals[2 * d] = x[d];
}

void avx2_kv_write(const struct kv_layout *kv, void *block, int slot, const float *k,
                   const float *v, int head_begin, int head_end)
{
    static void (*const write[])(const struct kv_layout *, uint8_t *, int, const float *,
                                 const float *) = {
        [KV_BF16] = write_bf16, [KV_F16] = write_f16, [KV_Q8_0] = write_q8};
    for (int h = head_begin; h < head_end; h++)
        write[kv->type](kv, (uint8_t *)block + (size_t)h * kv_head_bytes(kv), slot,
                        k + (size_t)h * kv->head_dim, v + (size_t)h * kv->head_dim);
}
