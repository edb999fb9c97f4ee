/* Attention with AVX-512.
 *
 * Query rows are taken ROWS at a time and KV blocks one at a time. For a block: all scores, then
 * the online softmax of each row, then the weighted values, with sums in registers throughout. Keys
 * and values of BF16 blocks are multiplied as they lie, two dimensions or two positions an
 * instruction. Q8_0 blocks are multiplied as integers: queries and weights become 16-bit integers,
 * finer than bf16, whose sums cannot leave 32 bits (256 * 127 * 32767 < 2^31). F16 blocks are
 * multiplied as f32.
 *
 * A head's blocks lie far apart, where the processor cannot guess them, so the keys of the block
 * after are fetched while those of this one are multiplied, and its values likewise, evenly: what
 * comes in one burst stops the multiplications. Larger steps than a block were slower, because
 * they and what is fetched fill the first-level cache. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "base/err.h"
#include "kernels/layout.h"
#include "kernels/x86.h"
#include "kernels/x86_bf16.h"

enum { ROWS = 24, LANES = 16 };

struct work {
    _Alignas(64) uint32_t q[KERNEL_MAX_HEAD_DIM][ROWS]; /* [step][row], scale applied */
    /* scores, then weights: pairs or f32, 4 bytes for each step */
    float s[ROWS][KV_BLOCK_TOKENS];
    float acc[ROWS][KERNEL_MAX_HEAD_DIM];       /* of this segment */
    float total[ROWS][2 + KERNEL_MAX_HEAD_DIM]; /* partial of the segments before */
    float q_unit[ROWS], p_unit[ROWS];           /* what an integer query or weight stands for */
    float max[ROWS], sum[ROWS][LANES];
    int first[ROWS], last[ROWS]; /* positions that the row sees */
};
_Static_assert(sizeof(struct work) <= ATTENTION_SCRATCH, "scratch memory too small");

#include "kernels/x86_attention.h"

/* --- scores: rw rows by the 32 positions of a block
 * ----------------------------------------------- */

/* Bytes of a step of 16 positions or dimensions. */
INLINE int step_bytes(enum math math)
{
    return math == PAIRS ? 64 : 32;
}

INLINE __m512 step_of(enum math math, const uint8_t *p)
{
    if (math == PAIRS)
        return _mm512_loadu_ps(p);
    __m256i half = _mm256_loadu_si256((const __m256i *)p);
    return math == WORDS ? _mm512_castsi512_ps(_mm512_cvtepi8_epi16(half)) : _mm512_cvtph_ps(half);
}

/* acc is of 32-bit integers for WORDS. */
INLINE __m512 multiply(enum math math, __m512 acc, __m512 a, uint32_t both)
{
    __m512 b = _mm512_castsi512_ps(_mm512_set1_epi32((int)both));
    if (math == PAIRS)
        return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
    if (math == WORDS) {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
        return acc;
    }
    return _mm512_fmadd_ps(a, b, acc);
}

INLINE __m512 sum_of(enum math math, __m512 a, __m512 b)
{
    if (math != WORDS)
        return _mm512_add_ps(a, b);
    __m512i sum = _mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b));
    return _mm512_cvtepi32_ps(sum);
}

/* Memory to fetch while something else is computed: so many lines in each turn of the loop. */
struct ahead {
    const char *at;
    int lines;
};

INLINE void fetch(struct ahead *a, int most)
{
    UNROLL
    for (int i = 0; i < most; i++)
        if (i < a->lines)
            _mm_prefetch(a->at + 64 * i, _MM_HINT_T0);
    a->at += (ptrdiff_t)a->lines * 64;
}

/* Even and odd steps are summed apart, so that few rows make chains enough; always, so that a row's
 * score does not depend on how many there are. */
INLINE void score_block(enum math math, int rw, const uint8_t *k, const uint32_t *q, int dim,
                        float *s, struct ahead ahead)
{
    int bytes = step_bytes(math), steps = math == SINGLES ? dim : dim / 2;
    __m512 even[2][4], odd[2][4];
    UNROLL
    for (int r = 0; r < rw; r++)
        even[0][r] = even[1][r] = odd[0][r] = odd[1][r] = _mm512_setzero_ps();
    for (int i = 0; i < steps; i += 2, k += 4 * bytes, q += 2 * ROWS) {
        fetch(&ahead, 4);
        UNROLL
        for (int h = 0; h < 2; h++) {
            __m512 step = step_of(math, k + h * bytes), next = step_of(math, k + (2 + h) * bytes);
            UNROLL
            for (int r = 0; r < rw; r++) {
                even[h][r] = multiply(math, even[h][r], step, q[r]);
                odd[h][r] = multiply(math, odd[h][r], next, q[ROWS + r]);
            }
        }
    }
    UNROLL
    for (int r = 0; r < rw; r++) {
        _mm512_storeu_ps(s + r * KV_BLOCK_TOKENS, sum_of(math, even[0][r], odd[0][r]));
        _mm512_storeu_ps(s + r * KV_BLOCK_TOKENS + 16, sum_of(math, even[1][r], odd[1][r]));
    }
}

/* --- values: rv rows by nv vectors of 16 dimensions, over a block
 * ---------------------------------- */

struct values {
    const uint8_t *v;  /* at the first of the nv vectors */
    size_t stride;     /* bytes from a step to the next */
    int n;             /* positions */
    const float *p;    /* weights of the first row */
    const float *unit; /* what an integer weight of each row stands for */
    float *acc;        /* of the first row */
    struct ahead ahead;
};

INLINE void value_block(enum math math, int rv, int nv, const struct values *x)
{
    int bytes = step_bytes(math), each = math == SINGLES ? 1 : 2;
    __m512 acc[4][8];
    UNROLL
    for (int r = 0; r < rv; r++)
        UNROLL
    for (int i = 0; i < nv; i++)
        acc[r][i] = math == WORDS ? _mm512_setzero_ps()
                                  : _mm512_loadu_ps(x->acc + r * KERNEL_MAX_HEAD_DIM + 16 * i);
    const uint32_t *p = (const uint32_t *)x->p;
    const uint8_t *v = x->v;
    struct ahead ahead = x->ahead;
    int steps = math == WORDS ? (x->n + 1) / 2 : x->n / each;
    for (int i = 0; i < steps; i++, v += x->stride, p++) {
        fetch(&ahead, nv);
        UNROLL
        for (int j = 0; j < nv; j++) {
            __m512 value = step_of(math, v + j * bytes);
            UNROLL
            for (int r = 0; r < rv; r++)
                acc[r][j] = multiply(math, acc[r][j], value, p[r * KV_BLOCK_TOKENS]);
        }
    }
    if (math == PAIRS && x->n % 2)
        UNROLL
    for (int j = 0; j < nv; j++) { /* nobody has written the odd position yet */
        __m512i value = _mm512_maskz_loadu_epi16(0x55555555, v + j * bytes);
        UNROLL
        for (int r = 0; r < rv; r++)
            acc[r][j] =
                multiply(math, acc[r][j], _mm512_castsi512_ps(value), p[r * KV_BLOCK_TOKENS]);
    }
    UNROLL
    for (int r = 0; r < rv; r++)
        UNROLL
    for (int i = 0; i < nv; i++) {
        float *to = x->acc + r * KERNEL_MAX_HEAD_DIM + 16 * i;
        if (math == WORDS)
            acc[r][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(acc[r][i])),
                                        _mm512_set1_ps(x->unit[r]), _mm512_loadu_ps(to));
        _mm512_storeu_ps(to, acc[r][i]);
    }
}

/* --- one function for each shape
 * ------------------------------------------------------------------ */

#define SCORE(math, rw)                                                                            \
    static void score_##math##_##rw(const uint8_t *k, const uint32_t *q, int dim, float *s,        \
                                    struct ahead ahead)                                            \
    {                                                                                              \
        score_block(math, rw, k, q, dim, s, ahead);                                                \
    }
#define VALUE(math, rv, nv)                                                                        \
    static void value_##math##_##rv##_##nv(const struct values *x)                                 \
    {                                                                                              \
        value_block(math, rv, nv, x);                                                              \
    }
#define UP_TO_4(X, ...)                                                                            \
    X(__VA_ARGS__, 1)                                                                              \
    X(__VA_ARGS__, 2)                                                                              \
    X(__VA_ARGS__, 3)                                                                              \
    X(__VA_ARGS__, 4)
#define UP_TO_8(X, ...)                                                                            \
    UP_TO_4(X, __VA_ARGS__)                                                                        \
    X(__VA_ARGS__, 5)                                                                              \
    X(__VA_ARGS__, 6)                                                                              \
    X(__VA_ARGS__, 7)                                                                              \
    X(__VA_ARGS__, 8)
UP_TO_4(SCORE, PAIRS)
UP_TO_4(SCORE, WORDS)
UP_TO_4(SCORE, SINGLES)
UP_TO_8(VALUE, PAIRS, 1)
UP_TO_8(VALUE, PAIRS, 2)
UP_TO_8(VALUE, PAIRS, 3)
UP_TO_8(VALUE, WORDS, 1)
UP_TO_8(VALUE, WORDS, 2)
UP_TO_8(VALUE, WORDS, 3)
UP_TO_8(VALUE, SINGLES, 1)
UP_TO_8(VALUE, SINGLES, 2)
UP_TO_8(VALUE, SINGLES, 3)

typedef void score_fn(const uint8_t *k, const uint32_t *q, int dim, float *s, struct ahead ahead);
typedef void value_fn(const struct values *x);
#define SCORE_NAME(math, rw)     score_##math##_##rw,
#define VALUE_NAME(math, rv, nv) value_##math##_##rv##_##nv,
#define VALUE_NAMES(math)                                                                          \
    {                                                                                              \
        {UP_TO_8(VALUE_NAME, math, 1)}, {UP_TO_8(VALUE_NAME, math, 2)},                            \
        {                                                                                          \
            UP_TO_8(VALUE_NAME, math, 3)                                                           \
        }                                                                                          \
    }
enum { SCORE_ROWS = 4, VALUE_ROWS = 3, VALUE_VECTORS = 8 };
static score_fn *const score_fns[][SCORE_ROWS] = {[PAIRS] = {UP_TO_4(SCORE_NAME, PAIRS)},
                                                  [WORDS] = {UP_TO_4(SCORE_NAME, WORDS)},
                                                  [SINGLES] = {UP_TO_4(SCORE_NAME, SINGLES)}};
static value_fn *const value_fns[][VALUE_ROWS][VALUE_VECTORS] = {
    [PAIRS] = VALUE_NAMES(PAIRS), [WORDS] = VALUE_NAMES(WORDS), [SINGLES] = VALUE_NAMES(SINGLES)};

/* --- the parts of a tile
 * -------------------------------------------------------------------------- */

INLINE __m512 scales_at(const struct attention *a, const uint8_t *head, int which, int slot)
{
    const uint8_t *p = head + 2 * kv_half_bytes(a->kv) + which * 2 * KV_BLOCK_TOKENS + 2 * slot;
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

/* Part i of n of what is read after block b, from its byte `begin` to `end`, for so many turns of a
 * loop. */
static struct ahead part_ahead(const struct tile *t, int b, size_t begin, size_t end, int i, int n,
                               int turns)
{
    const struct attention *a = t->a;
    if (++b == a->block_end) {
        a = a->next;
        b = a ? a->block_begin : 0;
    }
    int lines = (int)((end - begin + 63) / 64), each = (lines + n * turns - 1) / (n * turns);
    int from = i * turns * each;
    if (!a || from >= lines)
        return (struct ahead){NULL, 0};
    return (struct ahead){(const char *)kv_head(a, b) + begin + (size_t)from * 64, each};
}

static int pieces_of(int n, int size)
{
    return (n + size - 1) / size;
}

static void scores(const struct tile *t, int b)
{
    const struct attention *a = t->a;
    struct work *w = t->w;
    int dim = a->kv->head_dim, turns = (t->math == SINGLES ? dim : dim / 2) / 2;
    int passes = pieces_of(t->rows, SCORE_ROWS);
    const uint8_t *head = kv_head(a, b);
    for (int i = 0; i < passes; i++) {
        int r = i * SCORE_ROWS, rw = t->rows - r < SCORE_ROWS ? t->rows - r : SCORE_ROWS;
        score_fns[t->math][rw - 1](head, &w->q[0][r], dim, w->s[r],
                                   part_ahead(t, b, 0, kv_half_bytes(a->kv), i, passes, turns));
    }
    for (int h = 0; h < 2 && t->math == WORDS; h++) {
        __m512 scale = scales_at(a, head, 0, 16 * h);
        for (int r = 0; r < t->rows; r++) {
            float *s = w->s[r] + 16 * h;
            __m512 unit = _mm512_mul_ps(scale, _mm512_set1_ps(w->q_unit[r]));
            _mm512_storeu_ps(s, _mm512_mul_ps(_mm512_loadu_ps(s), unit));
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

/* Weights of one row as pairs of integers, for values of 8 bits: their scales go into the weights.
 */
static void weights_to_words(const struct tile *t, int r, int b, __m512 p[2])
{
    const uint8_t *head = kv_head(t->a, b);
    for (int h = 0; h < 2; h++) {
        __mmask16 mask = _mm512_cmp_ps_mask(p[h], _mm512_setzero_ps(), _CMP_GT_OQ);
        p[h] = _mm512_maskz_mul_ps(mask, p[h], scales_at(t->a, head, 1, 16 * h));
    }
    float max = _mm512_reduce_max_ps(_mm512_max_ps(p[0], p[1]));
    __m512 inverse = _mm512_set1_ps(max > 0 ? 32767 / max : 0);
    for (int h = 0; h < 2; h++) {
        __m512i words = _mm512_cvtps_epi32(_mm512_mul_ps(p[h], inverse));
        _mm256_storeu_si256((__m256i *)(t->w->s[r] + 8 * h), _mm512_cvtepi32_epi16(words));
    }
    t->w->p_unit[r] = max / 32767;
}

static void soften(const struct tile *t, int r, int b)
{
    struct work *w = t->w;
    float *s = w->s[r];
    uint32_t mask = seen(b * KV_BLOCK_TOKENS, KV_BLOCK_TOKENS, w->first[r], w->last[r]);
    __mmask16 masks[2] = {(__mmask16)mask, (__mmask16)(mask >> 16)};
    __m512 p[2] = {_mm512_loadu_ps(s), _mm512_loadu_ps(s + 16)};
    __m512 low = _mm512_set1_ps(-INFINITY);
    __m512 top = _mm512_max_ps(_mm512_mask_mov_ps(low, masks[0], p[0]),
                               _mm512_mask_mov_ps(low, masks[1], p[1]));
    if (_mm512_cmp_ps_mask(top, _mm512_set1_ps(w->max[r]), _CMP_GT_OQ)) {
        float here = _mm512_reduce_max_ps(top);
        __m512 factor = exponential(_mm512_set1_ps(w->max[r] - here));
        shrink_row(w->acc[r], t->a->kv->head_dim, _mm512_cvtss_f32(factor));
        shrink_row(w->sum[r], LANES, _mm512_cvtss_f32(factor));
        w->max[r] = here;
    }
    for (int h = 0; h < 2; h++) {
        p[h] = exponential(_mm512_sub_ps(p[h], _mm512_set1_ps(w->max[r])));
        p[h] = _mm512_maskz_mov_ps(masks[h], p[h]);
    }
    __m512 sum = _mm512_add_ps(p[0], p[1]);
    _mm512_storeu_ps(w->sum[r], _mm512_add_ps(_mm512_loadu_ps(w->sum[r]), sum));
    if (t->math == PAIRS) {
        _mm512_storeu_si512(s, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
    } else if (t->math == WORDS) {
        weights_to_words(t, r, b, p);
    } else {
        _mm512_storeu_ps(s, p[0]);
        _mm512_storeu_ps(s + 16, p[1]);
    }
}

static void values(const struct tile *t, int b, int last)
{
    const struct attention *a = t->a;
    struct work *w = t->w;
    int vectors = a->kv->head_dim / 16, bytes = step_bytes(t->math);
    size_t half = kv_half_bytes(a->kv), all = kv_head_bytes(a->kv);
    int n = last + 1 - b * KV_BLOCK_TOKENS, turns = t->math == SINGLES ? 32 : 16, call = 0;
    int calls = pieces_of(vectors, VALUE_VECTORS) * pieces_of(t->rows, VALUE_ROWS);
    for (int i = 0; i < vectors; i += VALUE_VECTORS)
        for (int r = 0; r < t->rows; r += VALUE_ROWS, call++) {
            int nv = vectors - i < VALUE_VECTORS ? vectors - i : VALUE_VECTORS;
            int rv = t->rows - r < VALUE_ROWS ? t->rows - r : VALUE_ROWS;
            struct values x = {.v = (const uint8_t *)kv_head(a, b) + half + i * bytes,
                               .stride = (size_t)(vectors * bytes),
                               .n = n < KV_BLOCK_TOKENS ? n : KV_BLOCK_TOKENS,
                               .p = w->s[r],
                               .unit = &w->p_unit[r],
                               .acc = w->acc[r] + 16 * i,
                               .ahead = part_ahead(t, b, half, all, call, calls, turns)};
            value_fns[t->math][rv - 1][nv - 1](&x);
        }
}

void avx512_attention(const struct attention *a, void *scratch)
{
    static const enum math math[] = {[KV_BF16] = PAIRS, [KV_F16] = SINGLES, [KV_Q8_0] = WORDS};
    run_attention(a, scratch, math[a->kv->type]);
}
