/* Attention with AVX2: blocks of any type become f32 on the way, the rest is multiply-add. Also the
 * merging of partials, which the AVX-512 table shares. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "base/err.h"
#include "kernels/layout.h"
#include "kernels/x86.h"
#include "kernels/x86_avx2.h"
#include "kernels/x86_bf16.h"

enum { ROWS = 12, LANES = 8 };

struct work {
    _Alignas(64) uint32_t q[KERNEL_MAX_HEAD_DIM][ROWS]; /* [dimension][row], scale applied */
    float s[ROWS][KV_BLOCK_TOKENS];
    float acc[ROWS][KERNEL_MAX_HEAD_DIM];            /* of this segment */
    float total[ROWS][2 + KERNEL_MAX_HEAD_DIM];      /* partial of the segments before */
    float kv[KERNEL_MAX_HEAD_DIM * KV_BLOCK_TOKENS]; /* keys [dim][32] or values [32][dim] */
    float q_unit[ROWS], max[ROWS], sum[ROWS][LANES];
    int first[ROWS], last[ROWS]; /* positions that the row sees */
};
_Static_assert(sizeof(struct work) <= ATTENTION_SCRATCH, "scratch memory too small");

#include "kernels/x86_attention.h"

/* --- blocks to f32
 * -------------------------------------------------------------------------------- */

/* [n][width][2] becomes [2 n][width]. */
static void widen_bf16(const uint8_t *from, int n, int width, float *to)
{
    for (int i = 0; i < n; i++, to += 2 * width, from += 4 * width)
        for (int j = 0; j < width; j += 8) {
            __m256i both = _mm256_loadu_si256((const __m256i *)(from + 4 * j));
            __m256i odd = _mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000));
            _mm256_storeu_ps(to + j, _mm256_castsi256_ps(_mm256_slli_epi32(both, 16)));
            _mm256_storeu_ps(to + width + j, _mm256_castsi256_ps(odd));
        }
}

static void widen_q8(const uint8_t *from, int n, int width, float *to)
{
    for (int i = 0; i < n; i++, to += 2 * width, from += 2 * width)
        for (int j = 0; j < width; j += 8) {
            __m256i both = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(from + 2 * j)));
            __m256i even = _mm256_srai_epi32(_mm256_slli_epi32(both, 24), 24);
            _mm256_storeu_ps(to + j, _mm256_cvtepi32_ps(even));
            _mm256_storeu_ps(to + width + j, _mm256_cvtepi32_ps(_mm256_srai_epi32(both, 8)));
        }
}

static void widen_f16(const uint8_t *from, int n, float *to)
{
    for (int i = 0; i < n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + 2 * i))));
}

static void widen_keys(const struct attention *a, const uint8_t *head, float *k)
{
    int dim = a->kv->head_dim;
    if (a->kv->type == KV_BF16)
        widen_bf16(head, dim / 2, KV_BLOCK_TOKENS, k);
    else if (a->kv->type == KV_F16)
        widen_f16(head, dim * KV_BLOCK_TOKENS, k);
    else
        widen_q8(head, dim / 2, KV_BLOCK_TOKENS, k);
}

static void widen_values(const struct attention *a, const uint8_t *head, float *v)
{
    int dim = a->kv->head_dim;
    const uint8_t *from = head + kv_half_bytes(a->kv);
    if (a->kv->type == KV_BF16)
        widen_bf16(from, KV_BLOCK_TOKENS / 2, dim, v);
    else if (a->kv->type == KV_F16)
        widen_f16(from, dim * KV_BLOCK_TOKENS, v);
    else
        widen_q8(from, KV_BLOCK_TOKENS / 2, dim, v);
}

/* Scales of 8 slots of a Q8_0 block: of its keys (which = 0) or values. */
INLINE __m256 scales_at(const struct attention *a, const uint8_t *head, int which, int slot)
{
    const uint8_t *p = head + 2 * kv_half_bytes(a->kv) + which * 2 * KV_BLOCK_TOKENS + 2 * slot;
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

/* --- scores and values
 * ---------------------------------------------------------------------------- */

/* rw rows by 16 positions. */
INLINE void score_16(int rw, const float *k, const uint32_t *q, int dim, float *s)
{
    __m256 acc[2][6];
    UNROLL
    for (int r = 0; r < rw; r++)
        acc[0][r] = acc[1][r] = _mm256_setzero_ps();
    for (int d = 0; d < dim; d++, k += KV_BLOCK_TOKENS, q += ROWS) {
        __m256 k0 = _mm256_loadu_ps(k), k1 = _mm256_loadu_ps(k + 8);
        UNROLL
        for (int r = 0; r < rw; r++) {
            __m256 v = _mm256_broadcast_ss((const float *)&q[r]);
            acc[0][r] = _mm256_fmadd_ps(k0, v, acc[0][r]);
            acc[1][r] = _mm256_fmadd_ps(k1, v, acc[1][r]);
        }
    }
    UNROLL
    for (int r = 0; r < rw; r++) {
        _mm256_storeu_ps(s + r * KV_BLOCK_TOKENS, acc[0][r]);
        _mm256_storeu_ps(s + r * KV_BLOCK_TOKENS + 8, acc[1][r]);
    }
}

/* rv rows by nv vectors of 8 dimensions, n positions. */
INLINE void value_8(int rv, int nv, const float *v, int dim, const float *p, int n, float *sums)
{
    __m256 acc[2][6];
    UNROLL
    for (int r = 0; r < rv; r++)
        UNROLL
    for (int i = 0; i < nv; i++)
        acc[r][i] = _mm256_loadu_ps(sums + r * KERNEL_MAX_HEAD_DIM + 8 * i);
    for (int j = 0; j < n; j++, v += dim, p++)
        UNROLL
    for (int i = 0; i < nv; i++) {
        __m256 value = _mm256_loadu_ps(v + 8 * i);
        UNROLL
        for (int r = 0; r < rv; r++)
            acc[r][i] =
                _mm256_fmadd_ps(value, _mm256_broadcast_ss(p + r * KV_BLOCK_TOKENS), acc[r][i]);
    }
    UNROLL
    for (int r = 0; r < rv; r++)
        UNROLL
    for (int i = 0; i < nv; i++)
        _mm256_storeu_ps(sums + r * KERNEL_MAX_HEAD_DIM + 8 * i, acc[r][i]);
}

typedef void score_fn(const float *k, const uint32_t *q, int dim, float *s);
typedef void value_fn(const float *v, int dim, const float *p, int n, float *sums);
#define SCORE(rw)                                                                                  \
    static void score_##rw(const float *k, const uint32_t *q, int dim, float *s)                   \
    {                                                                                              \
        score_16(rw, k, q, dim, s);                                                                \
    }
#define VALUE(rv, nv)                                                                              \
    static void value_##rv##_##nv(const float *v, int dim, const float *p, int n, float *sums)     \
    {                                                                                              \
        value_8(rv, nv, v, dim, p, n, sums);                                                       \
    }
#define VALUES(nv) VALUE(1, nv) VALUE(2, nv)
#define UP_TO_6(X) X(1) X(2) X(3) X(4) X(5) X(6)
UP_TO_6(SCORE)
UP_TO_6(VALUES)
enum { SCORE_ROWS = 6, VALUE_ROWS = 2, VALUE_VECTORS = 6 };
#define SCORE_NAME(rw)  score_##rw,
#define VALUE_NAMES(nv) {value_1_##nv, value_2_##nv},
static score_fn *const score_fns[SCORE_ROWS] = {UP_TO_6(SCORE_NAME)};
static value_fn *const value_fns[VALUE_VECTORS][VALUE_ROWS] = {UP_TO_6(VALUE_NAMES)};

static int least(int a, int b)
{
    return a < b ? a : b;
}

static void scores(const struct tile *t, int b)
{
    struct work *w = t->w;
    int dim = t->a->kv->head_dim;
    const uint8_t *head = kv_head(t->a, b);
    widen_keys(t->a, head, w->kv);
    for (int h = 0; h < KV_BLOCK_TOKENS; h += 16)
        for (int r = 0; r < t->rows; r += SCORE_ROWS)
            score_fns[least(t->rows - r, SCORE_ROWS) - 1](w->kv + h, &w->q[0][r], dim, w->s[r] + h);
    for (int i = 0; i < KV_BLOCK_TOKENS && t->a->kv->type == KV_Q8_0; i += 8) {
        __m256 scale = scales_at(t->a, head, 0, i);
        for (int r = 0; r < t->rows; r++) {
            float *s = w->s[r] + i;
            _mm256_storeu_ps(s, _mm256_mul_ps(_mm256_loadu_ps(s), scale));
        }
    }
}

static void values(const struct tile *t, int b, int last)
{
    struct work *w = t->w;
    int dim = t->a->kv->head_dim, n = least(last + 1 - b * KV_BLOCK_TOKENS, KV_BLOCK_TOKENS);
    widen_values(t->a, kv_head(t->a, b), w->kv);
    for (int i = 0; i < dim / 8; i += VALUE_VECTORS)
        for (int r = 0; r < t->rows; r += VALUE_ROWS)
            value_fns[least(dim / 8 - i, VALUE_VECTORS) - 1][least(t->rows - r, VALUE_ROWS) - 1](
                w->kv + 8 * i, dim, w->s[r], n, w->acc[r] + 8 * i);
}

static void shrink_row(float *acc, int dim, float factor)
{
    for (int d = 0; d < dim; d += 8)
        _mm256_storeu_ps(acc + d, _mm256_mul_ps(_mm256_loadu_ps(acc + d), _mm256_set1_ps(factor)));
}

INLINE __m256 seen_mask(int at, int first, int last)
{
    __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i set = _mm256_set1_epi32((int)seen(at, 8, first, last));
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(set, bits), bits));
}

static void soften(const struct tile *t, int r, int b)
{
    const struct attention *a = t->a;
    struct work *w = t->w;
    float *s = w->s[r];
    const uint8_t *head = kv_head(a, b);
    int at = b * KV_BLOCK_TOKENS, first = w->first[r], last = w->last[r];
    __m256 top = _mm256_set1_ps(-INFINITY);
    for (int i = 0; i < KV_BLOCK_TOKENS; i += 8)
        top = _mm256_max_ps(
            top, _mm256_blendv_ps(top, _mm256_loadu_ps(s + i), seen_mask(at + i, first, last)));
    float here = max_of(top);
    if (here > w->max[r]) {
        float factor = _mm256_cvtss_f32(exponential(_mm256_set1_ps(w->max[r] - here)));
        shrink_row(w->acc[r], a->kv->head_dim, factor);
        shrink_row(w->sum[r], LANES, factor);
        w->max[r] = here;
    }
    __m256 max = _mm256_set1_ps(w->max[r]), sum = _mm256_loadu_ps(w->sum[r]);
    for (int i = 0; i < KV_BLOCK_TOKENS; i += 8) {
        __m256 mask = seen_mask(at + i, first, last);
        __m256 p = _mm256_and_ps(exponential(_mm256_sub_ps(_mm256_loadu_ps(s + i), max)), mask);
        sum = _mm256_add_ps(sum, p);
        if (a->kv->type == KV_Q8_0)
            p = _mm256_and_ps(_mm256_mul_ps(p, scales_at(a, head, 1, i)), mask);
        _mm256_storeu_ps(s + i, p);
    }
    _mm256_storeu_ps(w->sum[r], sum);
}

void avx2_attention(const struct attention *a, void *scratch)
{
    run_attention(a, scratch, SINGLES);
}

/* --- merging
 * -------------------------------------------------------------------------------------- */

void avx2_attention_fold(float *total, float max, float sum, const float *acc, int dim)
{
    if (!(sum > 0))
        return;
    if (!(total[1] > 0)) {
        total[0] = max;
        total[1] = sum;
        memcpy(total + 2, acc, (size_t)dim * sizeof *acc);
        return;
    }
    bool rises = max > total[0];
    float factor = expf(rises ? total[0] - max : max - total[0]);
    __m256 f = _mm256_set1_ps(factor);
    for (int d = 0; d < dim; d += 8) {
        __m256 old = _mm256_loadu_ps(total + 2 + d), add = _mm256_loadu_ps(acc + d);
        __m256 new = rises ? _mm256_fmadd_ps(old, f, add) : _mm256_fmadd_ps(add, f, old);
        _mm256_storeu_ps(total + 2 + d, new);
    }
    total[1] = rises ? fmaf(total[1], factor, sum) : fmaf(sum, factor, total[1]);
    if (rises)
        total[0] = max;
}

void avx2_attention_merge(const float *const *parts, int n_parts, int n_rows, int head_dim,
                          float *out, size_t out_stride)
{
    float total[2 + KERNEL_MAX_HEAD_DIM];
    for (int r = 0; r < n_rows; r++, out += out_stride) {
        size_t at = (size_t)r * (2 + (size_t)head_dim);
        total[1] = 0;
        for (int i = 0; i < n_parts; i++)
            avx2_attention_fold(total, parts[i][at], parts[i][at + 1], parts[i] + at + 2, head_dim);
        if (!(total[1] > 0))
            memset(total + 2, 0, (size_t)head_dim * sizeof *total);
        shrink_row(total + 2, head_dim, total[1] > 0 ? 1 / total[1] : 0);
        memcpy(out, total + 2, (size_t)head_dim * sizeof *out);
    }
}
