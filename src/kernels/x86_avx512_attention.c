/* Attention with AVX-512.
 *
 * Query rows are taken ROWS at a time and KV positions CHUNK at a time. For a chunk: all scores,
 * then the online softmax of each row, then the weighted values, with sums in registers throughout.
 * Keys and values of BF16 blocks are multiplied as they lie, two dimensions or two positions an
 * instruction. Q8_0 blocks become BF16 on the way (whole numbers up to 127 are exact in it); their
 * scales go into scores and weights. F16 blocks are multiplied as f32. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "base/err.h"
#include "kernels/layout.h"
#include "kernels/x86.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { ROWS = 24, BLOCKS = 4, CHUNK = BLOCKS * KV_BLOCK_TOKENS };

struct work {
    _Alignas(64) uint32_t q[KERNEL_MAX_HEAD_DIM][ROWS]; /* [step][row], scale applied */
    float s[ROWS][CHUNK]; /* scores, then weights: bf16 pairs or f32, 4 bytes for each step */
    float acc[ROWS][KERNEL_MAX_HEAD_DIM];
    uint16_t k[KERNEL_MAX_HEAD_DIM * KV_BLOCK_TOKENS]; /* unpacked Q8_0 */
    uint16_t v[BLOCKS][KERNEL_MAX_HEAD_DIM * KV_BLOCK_TOKENS];
    float max[ROWS], sum[ROWS];
    int first[ROWS], last[ROWS]; /* positions that the row sees */
};
_Static_assert(sizeof(struct work) <= ATTENTION_SCRATCH, "scratch memory too small");

#include "kernels/x86_attention.h"

/* --- scores: rw rows by the 32 positions of a block
 * ----------------------------------------------- */

INLINE __m512 step_of(enum math math, const uint8_t *p)
{
    if (math == PAIRS)
        return _mm512_loadu_ps(p);
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

INLINE __m512 multiply(enum math math, __m512 acc, __m512 a, uint32_t both)
{
    __m512i b = _mm512_set1_epi32((int)both);
    if (math == PAIRS)
        return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
    return _mm512_fmadd_ps(a, _mm512_castsi512_ps(b), acc);
}

INLINE void score_block(enum math math, int rw, const uint8_t *k, const uint32_t *q, int dim,
                        float *s, const char *ahead)
{
    int bytes = math == PAIRS ? 64 : 32; /* of 16 positions */
    int steps = math == PAIRS ? dim / 2 : dim;
    __m512 acc[2][8], odd[2][8]; /* odd: a second chain where there are few rows */
    UNROLL
    for (int r = 0; r < rw; r++)
        acc[0][r] = acc[1][r] = odd[0][r] = odd[1][r] = _mm512_setzero_ps();
    for (int i = 0; i < steps; i += 2, k += 4 * bytes, q += 2 * ROWS) {
        _mm_prefetch(ahead, _MM_HINT_T0);
        _mm_prefetch(ahead + 64, _MM_HINT_T0);
        ahead += 4 * bytes;
        _mm_prefetch(ahead - 2 * bytes, _MM_HINT_T0);
        _mm_prefetch(ahead - bytes, _MM_HINT_T0);
        UNROLL
        for (int h = 0; h < 2; h++) {
            __m512 even = step_of(math, k + h * bytes), next = step_of(math, k + (2 + h) * bytes);
            UNROLL
            for (int r = 0; r < rw; r++) {
                acc[h][r] = multiply(math, acc[h][r], even, q[r]);
                if (rw <= 4)
                    odd[h][r] = multiply(math, odd[h][r], next, q[ROWS + r]);
                else
                    acc[h][r] = multiply(math, acc[h][r], next, q[ROWS + r]);
            }
        }
    }
    UNROLL
    for (int r = 0; r < rw; r++) {
        _mm512_storeu_ps(s + r * CHUNK, _mm512_add_ps(acc[0][r], odd[0][r]));
        _mm512_storeu_ps(s + r * CHUNK + 16, _mm512_add_ps(acc[1][r], odd[1][r]));
    }
}

/* --- values: rv rows by nv vectors of 16 dimensions, over a chunk
 * ---------------------------------- */

struct values {
    const uint8_t *v[BLOCKS]; /* blocks of values, at the first of the nv vectors */
    const float *p;           /* weights of the first row */
    float *acc;               /* of the first row */
    int n;                    /* positions */
    size_t stride;            /* bytes from a step to the next */
};

INLINE void value_chunk(enum math math, int rv, int nv, const struct values *x)
{
    int bytes = math == PAIRS ? 64 : 32, each = math == PAIRS ? 2 : 1;
    __m512 acc[4][8];
    UNROLL
    for (int r = 0; r < rv; r++)
        UNROLL
    for (int i = 0; i < nv; i++)
        acc[r][i] = _mm512_loadu_ps(x->acc + r * KERNEL_MAX_HEAD_DIM + 16 * i);
    const uint32_t *p = (const uint32_t *)x->p;
    int steps = x->n / each;
    for (int b = 0; b * KV_BLOCK_TOKENS < x->n; b++) {
        const uint8_t *v = x->v[b];
        int end =
            (b + 1) * KV_BLOCK_TOKENS / each < steps ? (b + 1) * KV_BLOCK_TOKENS / each : steps;
        for (int i = b * KV_BLOCK_TOKENS / each; i < end; i++, v += x->stride, p++)
            UNROLL
        for (int j = 0; j < nv; j++) {
            __m512 value = step_of(math, v + j * bytes);
            UNROLL
            for (int r = 0; r < rv; r++)
                acc[r][j] = multiply(math, acc[r][j], value, p[r * CHUNK]);
        }
        if (math == PAIRS && x->n % 2 && x->n < (b + 1) * KV_BLOCK_TOKENS)
            UNROLL
        for (int j = 0; j < nv; j++) { /* nobody has written the odd position yet */
            __m512i value = _mm512_maskz_loadu_epi16(0x55555555, v + j * bytes);
            UNROLL
            for (int r = 0; r < rv; r++)
                acc[r][j] = multiply(math, acc[r][j], _mm512_castsi512_ps(value), p[r * CHUNK]);
        }
    }
    UNROLL
    for (int r = 0; r < rv; r++)
        UNROLL
    for (int i = 0; i < nv; i++)
        _mm512_storeu_ps(x->acc + r * KERNEL_MAX_HEAD_DIM + 16 * i, acc[r][i]);
}

/* --- one function for each shape
 * ------------------------------------------------------------------ */

#define SCORE(math, rw)                                                                            \
    static void score_##math##_##rw(const uint8_t *k, const uint32_t *q, int dim, float *s,        \
                                    const char *ahead)                                             \
    {                                                                                              \
        score_block(math, rw, k, q, dim, s, ahead);                                                \
    }
#define VALUE(math, rv, nv)                                                                        \
    static void value_##math##_##rv##_##nv(const struct values *x)                                 \
    {                                                                                              \
        value_chunk(math, rv, nv, x);                                                              \
    }
#define UP_TO_8(X, ...)                                                                            \
    X(__VA_ARGS__, 1)                                                                              \
    X(__VA_ARGS__, 2)                                                                              \
    X(__VA_ARGS__, 3)                                                                              \
    X(__VA_ARGS__, 4)                                                                              \
    X(__VA_ARGS__, 5)                                                                              \
    X(__VA_ARGS__, 6)                                                                              \
    X(__VA_ARGS__, 7)                                                                              \
    X(__VA_ARGS__, 8)
UP_TO_8(SCORE, PAIRS)
UP_TO_8(SCORE, SINGLES)
UP_TO_8(VALUE, PAIRS, 1)
UP_TO_8(VALUE, PAIRS, 2)
UP_TO_8(VALUE, PAIRS, 3)
UP_TO_8(VALUE, SINGLES, 1)
UP_TO_8(VALUE, SINGLES, 2)
UP_TO_8(VALUE, SINGLES, 3)

typedef void score_fn(const uint8_t *k, const uint32_t *q, int dim, float *s, const char *ahead);
typedef void value_fn(const struct values *x);
#define SCORE_NAME(math, rw)     score_##math##_##rw,
#define VALUE_NAME(math, rv, nv) value_##math##_##rv##_##nv,
static score_fn *const score_fns[2][8] = {{UP_TO_8(SCORE_NAME, PAIRS)},
                                          {UP_TO_8(SCORE_NAME, SINGLES)}};
enum { VALUE_ROWS = 3, VALUE_VECTORS = 8 };
static value_fn *const value_fns[2][VALUE_ROWS][VALUE_VECTORS] = {
    {{UP_TO_8(VALUE_NAME, PAIRS, 1)},
     {UP_TO_8(VALUE_NAME, PAIRS, 2)},
     {UP_TO_8(VALUE_NAME, PAIRS, 3)}},
    {{UP_TO_8(VALUE_NAME, SINGLES, 1)},
     {UP_TO_8(VALUE_NAME, SINGLES, 2)},
     {UP_TO_8(VALUE_NAME, SINGLES, 3)}},
};

/* --- the parts of a tile
 * -------------------------------------------------------------------------- */

/* n numbers of 8 bits (a multiple of 64) as bf16. */
static void bytes_to_bf16(const uint8_t *from, int n, uint16_t *to)
{
    for (int i = 0; i < n; i += 32) {
        __m512i lo = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + i)));
        __m512i hi = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + i + 16)));
        __m512bh both = _mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(hi), _mm512_cvtepi32_ps(lo));
        _mm512_storeu_si512(to + i, (__m512i)both);
    }
}

INLINE __m512 scales_at(const struct attention *a, const uint8_t *head, int which, int slot)
{
    const uint8_t *p = head + 2 * kv_half_bytes(a->kv) + which * 2 * KV_BLOCK_TOKENS + 2 * slot;
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

static void scores(const struct tile *t, int b, int n)
{
    const struct attention *a = t->a;
    struct work *w = t->w;
    int dim = a->kv->head_dim;
    for (int j = 0; j < n; j++) {
        const uint8_t *head = kv_head(a, b + j), *k = head;
        const char *ahead = kv_head(a, b + j + 1 < a->block_end ? b + j + 1 : b + j);
        if (a->kv->type == KV_Q8_0) {
            bytes_to_bf16(head, dim * KV_BLOCK_TOKENS, w->k);
            k = (const uint8_t *)w->k;
        }
        for (int r = 0; r < t->rows; r += 8) {
            int rw = t->rows - r < 8 ? t->rows - r : 8;
            score_fns[t->math][rw - 1](k, &w->q[0][r], dim, w->s[r] + j * KV_BLOCK_TOKENS, ahead);
        }
        if (a->kv->type == KV_Q8_0)
            for (int h = 0; h < 2; h++) {
                __m512 scale = scales_at(a, head, 0, 16 * h);
                for (int r = 0; r < t->rows; r++) {
                    float *s = w->s[r] + j * KV_BLOCK_TOKENS + 16 * h;
                    _mm512_storeu_ps(s, _mm512_mul_ps(_mm512_loadu_ps(s), scale));
                }
            }
    }
}

/* e^x for x <= 0, 0 below -87.3: argument reduction by multiples of ln 2, Cephes polynomial. */
INLINE __m512 exponential(__m512 x)
{
    __mmask16 in_range = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.3f), _CMP_GT_OQ);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1)));
    return _mm512_maskz_scalef_ps(in_range, p, n);
}

static void shrink_row(float *acc, int dim, float factor)
{
    for (int d = 0; d < dim; d += 16)
        _mm512_storeu_ps(acc + d, _mm512_mul_ps(_mm512_loadu_ps(acc + d), _mm512_set1_ps(factor)));
}

static void soften(const struct tile *t, int r, int b, int n)
{
    const struct attention *a = t->a;
    struct work *w = t->w;
    float *s = w->s[r];
    int at = b * KV_BLOCK_TOKENS, first = w->first[r], last = w->last[r];
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (int i = 0; i < n * KV_BLOCK_TOKENS; i += 16)
        top = _mm512_mask_max_ps(top, (__mmask16)seen(at + i, 16, first, last), top,
                                 _mm512_loadu_ps(s + i));
    float max = fmaxf(w->max[r], _mm512_reduce_max_ps(top));
    if (max > w->max[r]) {
        float factor = _mm512_cvtss_f32(exponential(_mm512_set1_ps(w->max[r] - max)));
        shrink_row(w->acc[r], a->kv->head_dim, factor);
        w->sum[r] *= factor;
        w->max[r] = max;
    }
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < n * KV_BLOCK_TOKENS; i += 32) {
        __m512 p[2];
        for (int h = 0; h < 2; h++) {
            __mmask16 mask = (__mmask16)seen(at + i + 16 * h, 16, first, last);
            __m512 x = _mm512_sub_ps(_mm512_loadu_ps(s + i + 16 * h), _mm512_set1_ps(max));
            p[h] = _mm512_maskz_mov_ps(mask, exponential(x));
            sum = _mm512_add_ps(sum, p[h]);
            if (a->kv->type == KV_Q8_0) {
                const uint8_t *head = kv_head(a, b + i / KV_BLOCK_TOKENS);
                p[h] = _mm512_maskz_mul_ps(mask, p[h], scales_at(a, head, 1, 16 * h));
            }
        }
        if (t->math == PAIRS) {
            _mm512_storeu_si512(s + i / 2, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
        } else {
            _mm512_storeu_ps(s + i, p[0]);
            _mm512_storeu_ps(s + i + 16, p[1]);
        }
    }
    w->sum[r] += _mm512_reduce_add_ps(sum);
}

static void values(const struct tile *t, int b, int n, int last)
{
    const struct attention *a = t->a;
    struct work *w = t->w;
    int dim = a->kv->head_dim, bytes = t->math == PAIRS ? 64 : 32;
    const uint8_t *v[BLOCKS];
    for (int j = 0; j < n; j++) {
        v[j] = (const uint8_t *)kv_head(a, b + j) + kv_half_bytes(a->kv);
        if (a->kv->type == KV_Q8_0) {
            bytes_to_bf16(v[j], dim * KV_BLOCK_TOKENS, w->v[j]);
            v[j] = (const uint8_t *)w->v[j];
        }
    }
    int positions = last + 1 - b * KV_BLOCK_TOKENS;
    if (positions > n * KV_BLOCK_TOKENS)
        positions = n * KV_BLOCK_TOKENS;
    for (int i = 0; i < dim / 16; i += VALUE_VECTORS)
        for (int r = 0; r < t->rows; r += VALUE_ROWS) {
            int nv = dim / 16 - i < VALUE_VECTORS ? dim / 16 - i : VALUE_VECTORS;
            int rv = t->rows - r < VALUE_ROWS ? t->rows - r : VALUE_ROWS;
            struct values x = {.p = w->s[r],
                               .acc = w->acc[r] + 16 * i,
                               .n = positions,
                               .stride = (size_t)(dim / 16 * bytes)};
            for (int j = 0; j < n; j++)
                x.v[j] = v[j] + i * bytes;
            value_fns[t->math][rv - 1][nv - 1](&x);
        }
}

void avx512_attention(const struct attention *a, void *scratch)
{
    run_attention(a, scratch, a->kv->type == KV_F16 ? SINGLES : PAIRS);
}
