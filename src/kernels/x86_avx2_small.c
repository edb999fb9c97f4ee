/* Small operations and activations with AVX2; the AVX-512 table uses them too: next to the products
 * they cost nothing, so wider ones would only be more code. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/layout.h"
#include "kernels/x86.h"
#include "kernels/x86_avx2.h"

/* --- activations --------------------------------------------------------------------------------
 */

/* 32 numbers to 8 bits, in order. */
INLINE __m256i to_bytes(const __m256 x[4], __m256 inverse)
{
    __m256i q[4];
    for (int i = 0; i < 4; i++)
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], inverse));
    __m256i b = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    return _mm256_permutevar8x32_epi32(b, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* Token i of w, 32 columns from x. Returns the sum of the codes. */
INLINE int quantise_32(enum act_type type, const float *x, uint8_t *block, int i, int w)
{
    __m256 v[4], max = _mm256_setzero_ps();
    for (int j = 0; j < 4; j++) {
        v[j] = _mm256_loadu_ps(x + 8 * j);
        max = _mm256_max_ps(absolute(v[j]), max);
    }
    float scale = act_scale_of(type, max_of(max)), inverse = scale > 0 ? 1 / scale : 0;
    __m256i q = to_bytes(v, _mm256_set1_ps(inverse));
    __m256i sums =
        _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q), _mm256_set1_epi16(1));
    sums = _mm256_hadd_epi32(sums, sums);
    sums = _mm256_hadd_epi32(sums, sums);
    int half[2] = {_mm256_extract_epi32(sums, 0), _mm256_extract_epi32(sums, 4)};
    int32_t fours[8];
    _mm256_storeu_si256((__m256i *)fours, q);
    int8_t *codes = act_codes(block, w) + 4 * i;
    for (int c4 = 0; c4 < 8; c4++)
        memcpy(codes + 4 * w * c4, &fours[c4], 4);
    act_put_sums(type, block, i, w, scale, half);
    return half[0] + half[1];
}

/* Columns [begin, end), at most 256 of them. */
INLINE void fill_8_bits(enum act_type type, const struct act *a, const float *x, size_t x_stride,
                        int first, int w, int begin, int end)
{
    uint8_t *block = (uint8_t *)a->data + act_bytes(type, a->n_cols, first) +
                     (size_t)(begin / 32 * ACT_Q8_BLOCK * w);
    for (int i = 0; i < w; i++) {
        const float *row = x + (size_t)(first + i) * x_stride + begin;
        float scale[8];
        int sum[8];
        for (int s = 0; s < (end - begin) / 32; s++) {
            uint8_t *at = block + s * ACT_Q8_BLOCK * w;
            sum[s] = quantise_32(type, row + 32 * s, at, i, w);
            scale[s] = act_scale(at)[i];
        }
        if (type == ACT_Q8_POW2 && end - begin == 256)
            act_put_minsum(block, i, w, scale, sum);
    }
}

static void fill_q8(const struct act *a, const float *x, size_t x_stride, int first, int w,
                    int begin, int end)
{
    fill_8_bits(ACT_Q8, a, x, x_stride, first, w, begin, end);
}

static void fill_pow2(const struct act *a, const float *x, size_t x_stride, int first, int w,
                      int begin, int end)
{
    fill_8_bits(ACT_Q8_POW2, a, x, x_stride, first, w, begin, end);
}

static void fill_f32(const struct act *a, const float *x, size_t x_stride, int first, int w,
                     int begin, int end)
{
    float *base = (float *)a->data + (size_t)first * (size_t)a->n_cols;
    for (int c = begin; c < end; c++)
        for (int i = 0; i < w; i++)
            base[(size_t)c * (size_t)w + (size_t)i] = x[(size_t)(first + i) * x_stride + (size_t)c];
}

static void fill_bf16(const struct act *a, const float *x, size_t x_stride, int first, int w,
                      int begin, int end)
{
    uint32_t *base = (void *)((uint8_t *)a->data + act_bytes(ACT_BF16, a->n_cols, first));
    for (int c = begin; c < end; c += 2)
        for (int i = 0; i < w; i++) {
            const float *p = x + (size_t)(first + i) * x_stride + c;
            base[c / 2 * w + i] =
                f32_to_bf16(p[0]) | (c + 1 < end ? (uint32_t)f32_to_bf16(p[1]) << 16 : 0);
        }
}

void avx2_act_fill(const struct act *a, const float *x, size_t x_stride, int ith, int nth)
{
    enum { UNIT = 256 };
    static void (*const fill[])(const struct act *, const float *, size_t, int, int, int,
                                int) = {[ACT_Q8] = fill_q8,
                                        [ACT_Q8_POW2] = fill_pow2,
                                        [ACT_F32] = fill_f32,
                                        [ACT_BF16] = fill_bf16};
    int groups = act_groups(a->n_tokens), units = (a->n_cols + UNIT - 1) / UNIT;
    int last = (int)((int64_t)groups * units * (ith + 1) / nth);
    for (int u = (int)((int64_t)groups * units * ith / nth); u < last; u++) {
        int first = act_group_begin(a->n_tokens, u / units), begin = u % units * UNIT;
        int end = begin + UNIT < a->n_cols ? begin + UNIT : a->n_cols;
        int w = act_group_begin(a->n_tokens, u / units + 1) - first;
        fill[a->type](a, x, x_stride, first, w, begin, end);
    }
}

/* --- vectors of any length ----------------------------------------------------------------------
 */

/* The first n (1..8) numbers, the others 0. */
INLINE __m256i first_lanes(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* 8 numbers, or the `left` that are left; the others 0. Masked stores take many times as long. */
INLINE __m256 load_8(const float *p, int left)
{
    return left >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first_lanes(left));
}

INLINE void store_8(float *p, int left, __m256 v)
{
    if (left >= 8)
        _mm256_storeu_ps(p, v);
    else
        _mm256_maskstore_ps(p, first_lanes(left), v);
}

void avx2_rmsnorm(const float *x, const float *weight, float eps, int n, float *out)
{
    __m256 even = _mm256_setzero_ps(), odd = even;
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        even = _mm256_fmadd_ps(a, a, even);
        odd = _mm256_fmadd_ps(b, b, odd);
    }
    float sum = sum_of(_mm256_add_ps(even, odd));
    for (; i < n; i++)
        sum += x[i] * x[i];
    __m256 scale = _mm256_set1_ps(1 / sqrtf(sum / (float)n + eps));
    for (int j = 0; j < n; j += 8) {
        __m256 v = _mm256_mul_ps(load_8(x + j, n - j), scale);
        store_8(out + j, n - j, _mm256_mul_ps(v, load_8(weight + j, n - j)));
    }
}

void avx2_add(float *x, const float *y, int n)
{
    for (int i = 0; i < n; i += 8)
        store_8(x + i, n - i, _mm256_add_ps(load_8(x + i, n - i), load_8(y + i, n - i)));
}

void avx2_axpy(float *x, float a, const float *y, int n)
{
    __m256 factor = _mm256_set1_ps(a);
    for (int i = 0; i < n; i += 8)
        store_8(x + i, n - i, _mm256_fmadd_ps(factor, load_8(y + i, n - i), load_8(x + i, n - i)));
}

void avx2_silu_mul(const float *gate, const float *up, int n, float *out)
{
    __m256 one = _mm256_set1_ps(1);
    for (int i = 0; i < n; i += 8) {
        __m256 g = load_8(gate + i, n - i);
        __m256 e = exponential(_mm256_sub_ps(_mm256_setzero_ps(), g));
        __m256 v = _mm256_div_ps(g, _mm256_add_ps(one, e));
        store_8(out + i, n - i, _mm256_mul_ps(v, load_8(up + i, n - i)));
    }
}

void avx2_softmax(float *x, int n)
{
    __m256 top = _mm256_set1_ps(-INFINITY), sum = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8) {
        __m256 mask = _mm256_castsi256_ps(first_lanes(n - i));
        top = _mm256_max_ps(top, _mm256_blendv_ps(top, load_8(x + i, n - i), mask));
    }
    __m256 max = _mm256_set1_ps(max_of(top));
    for (int i = 0; i < n; i += 8) {
        __m256 e = exponential(_mm256_sub_ps(load_8(x + i, n - i), max));
        sum = _mm256_add_ps(sum, _mm256_and_ps(e, _mm256_castsi256_ps(first_lanes(n - i))));
        store_8(x + i, n - i, e);
    }
    __m256 inverse = _mm256_set1_ps(1 / sum_of(sum));
    for (int i = 0; i < n; i += 8)
        store_8(x + i, n - i, _mm256_mul_ps(load_8(x + i, n - i), inverse));
}

/* Plain loops: the compiler makes vectors of them. */
static void turn_pairs(float *restrict x, const float *restrict cs, int n)
{
    for (int i = 0; i < n; i++) {
        float c = cs[2 * i], s = cs[2 * i + 1], a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * c - b * s;
        x[2 * i + 1] = a * s + b * c;
    }
}

static void turn_halves(float *restrict lo, float *restrict hi, const float *restrict cs, int n)
{
    for (int i = 0; i < n; i++) {
        float c = cs[2 * i], s = cs[2 * i + 1], a = lo[i], b = hi[i];
        lo[i] = a * c - b * s;
        hi[i] = a * s + b * c;
    }
}

void avx2_rope(float *x, int n_heads, int head_dim, int n_rot, const float *cos_sin,
               enum rope_style style)
{
    for (int h = 0; h < n_heads; h++, x += head_dim)
        if (style == ROPE_NORM)
            turn_pairs(x, cos_sin, n_rot / 2);
        else
            turn_halves(x, x + n_rot / 2, cos_sin, n_rot / 2);
}
