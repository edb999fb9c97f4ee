/* x86_bf16.h - f32 to bf16 with AVX2. */
#pragma once

#include <immintrin.h>

#include "kernels/x86.h"

/* 8 numbers as bf16 in the upper halves of 32 bits, rounded to nearest even. */
INLINE __m256i round_bf16(__m256 x)
{
    __m256i u = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(r, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
}

/* n numbers (a multiple of 16) as bf16, in order. */
INLINE void to_bf16(const float *x, int n, uint16_t *out)
{
    for (int i = 0; i < n; i += 16) {
        __m256i a = _mm256_srli_epi32(round_bf16(_mm256_loadu_ps(x + i)), 16);
        __m256i b = _mm256_srli_epi32(round_bf16(_mm256_loadu_ps(x + i + 8)), 16);
        __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
        _mm256_storeu_si256((__m256i *)(out + i), both);
    }
}
