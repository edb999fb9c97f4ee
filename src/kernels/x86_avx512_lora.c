/* Low-rank products with AVX-512 BF16. */
#include <immintrin.h>
#include <string.h>

#include "kernels/lora.h"
#include "kernels/x86.h"
#include "tensor/type.h"

enum {
    GROUP = 6,    /* most tokens of a pass */
    AHEAD = 4096, /* bytes that B is fetched before its use: its streams are too short for the
                     processor to see them, and this nearly doubles the speed for one token */
};

INLINE __m512 dot2(__m512 sum, __m512i a, __m512i b)
{
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

/* 32 numbers as bf16; those from n on are zeros. */
INLINE __m512i pairs_of(const float *x, int n)
{
    __m512 low, high;
    if (n >= 32) {
        low = _mm512_loadu_ps(x);
        high = _mm512_loadu_ps(x + 16);
    } else {
        uint32_t mask = (1u << n) - 1;
        low = _mm512_maskz_loadu_ps((__mmask16)mask, x);
        high = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), x + 16);
    }
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

INLINE void shrink_32(int rows, int w, const uint16_t *a, const float *const x[GROUP], int c, int n,
                      __m512 acc[LORA_PANEL][GROUP])
{
    __m512i v[GROUP];
    UNROLL
    for (int i = 0; i < w; i++)
        v[i] = pairs_of(x[i] + c, n);
    UNROLL
    for (int r = 0; r < rows; r++) {
        __m512i row = _mm512_load_si512(a + (size_t)c * (size_t)rows + 32 * r);
        UNROLL
        for (int i = 0; i < w; i++)
            acc[r][i] = dot2(acc[r][i], row, v[i]);
    }
}

/* sums[i][row] of a panel for w tokens */
INLINE void shrink_pass(int rows, int w, const uint16_t *a, int n_cols, const float *const x[GROUP],
                        float sums[GROUP][LORA_PANEL])
{
    __m512 acc[LORA_PANEL][GROUP];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int i = 0; i < w; i++)
            acc[r][i] = _mm512_setzero_ps();
    }
    int c = 0;
    for (; c + 32 <= n_cols; c += 32)
        shrink_32(rows, w, a, x, c, 32, acc);
    if (c < n_cols)
        shrink_32(rows, w, a, x, c, n_cols - c, acc);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < w; i++)
            sums[i][r] = _mm512_reduce_add_ps(acc[r][i]);
}

INLINE __m512i broadcast2(const uint16_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

/* Adds `tiles` tiles, the first at row `row`, to w tokens. */
INLINE void expand_pass(int tiles, int w, const struct lora_expand *x, int row, int first)
{
    __m512 acc[2][GROUP];
    UNROLL
    for (int i = 0; i < w; i++)
        acc[0][i] = acc[1][i] = _mm512_setzero_ps();
    const uint16_t *b = x->b + (size_t)row * (size_t)x->rank;
    const uint16_t *h = x->h + (size_t)first * x->h_stride;
    size_t tile = (size_t)LORA_TILE * (size_t)x->rank;
    for (int r = 0; r < x->rank; r += 2, b += 2 * LORA_TILE) {
        __m512i b0 = _mm512_load_si512(b), b1 = b0;
        _mm_prefetch((const char *)b + AHEAD, _MM_HINT_T0);
        if (tiles == 2) {
            b1 = _mm512_load_si512(b + tile);
            _mm_prefetch((const char *)(b + tile) + AHEAD, _MM_HINT_T0);
        }
        UNROLL
        for (int i = 0; i < w; i++) {
            __m512i v = broadcast2(h + (size_t)i * x->h_stride + r);
            acc[0][i] = dot2(acc[0][i], b0, v);
            if (tiles == 2)
                acc[1][i] = dot2(acc[1][i], b1, v);
        }
    }
    int left = x->n_rows - row;
    for (int t = 0; t < tiles; t++, left -= LORA_TILE) {
        __mmask16 mask = left >= LORA_TILE ? 0xffff : (__mmask16)((1u << left) - 1);
        for (int i = 0; i < w; i++) {
            float *out =
                x->out + (size_t)x->tokens[first + i] * x->out_stride + row + t * LORA_TILE;
            __m512 v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), acc[t][i]);
            _mm512_mask_storeu_ps(out, mask, v);
        }
    }
}

/* One function for each number of rows or tiles and of tokens. */
#define SHRINK(rows, w)                                                                            \
    static void shrink_##rows##_##w(const uint16_t *a, int n_cols, const float *const x[GROUP],    \
                                    float sums[GROUP][LORA_PANEL])                                 \
    {                                                                                              \
        shrink_pass(rows, w, a, n_cols, x, sums);                                                  \
    }
#define EXPAND(tiles, w)                                                                           \
    static void expand_##tiles##_##w(const struct lora_expand *x, int row, int first)              \
    {                                                                                              \
        expand_pass(tiles, w, x, row, first);                                                      \
    }
#define WIDTHS(X, n) X(n, 1) X(n, 2) X(n, 3) X(n, 4) X(n, 5) X(n, 6)
#define NAMES(f, n)  f##_##n##_1, f##_##n##_2, f##_##n##_3, f##_##n##_4, f##_##n##_5, f##_##n##_6
WIDTHS(SHRINK, 2)
WIDTHS(SHRINK, 4)
WIDTHS(EXPAND, 1)
WIDTHS(EXPAND, 2)

typedef void shrink_fn(const uint16_t *a, int n_cols, const float *const x[GROUP],
                       float sums[GROUP][LORA_PANEL]);
typedef void expand_fn(const struct lora_expand *x, int row, int first);
static shrink_fn *const shrinks[2][GROUP] = {{NAMES(shrink, 2)}, {NAMES(shrink, 4)}};
static expand_fn *const expands[2][GROUP] = {{NAMES(expand, 1)}, {NAMES(expand, 2)}};

void avx512_lora_shrink(const struct lora_shrink *s, int panel_begin, int panel_end)
{
    for (int p = panel_begin * LORA_PANEL; p < panel_end * LORA_PANEL && p < s->rank;
         p += LORA_PANEL) {
        const uint16_t *panel = s->a + lora_a_elems(p, s->n_cols);
        int rows = s->rank - p < LORA_PANEL ? s->rank - p : LORA_PANEL;
        for (int first = 0; first < s->n_tokens; first += GROUP) {
            int w = s->n_tokens - first < GROUP ? s->n_tokens - first : GROUP;
            const float *x[GROUP];
            float sums[GROUP][LORA_PANEL];
            for (int i = 0; i < w; i++)
                x[i] = s->x + (size_t)s->tokens[first + i] * s->x_stride;
            shrinks[rows / 2 - 1][w - 1](panel, s->n_cols, x, sums);
            for (int i = 0; i < w; i++)
                for (int r = 0; r < rows; r++)
                    s->h[(size_t)(first + i) * s->h_stride + (size_t)(p + r)] =
                        f32_to_bf16(s->scales[first + i] * sums[i][r]);
        }
    }
}

void avx512_lora_expand(const struct lora_expand *x, int row_begin, int row_end)
{
    for (int row = row_begin; row < row_end; row += 2 * LORA_TILE) {
        int tiles = row + LORA_TILE < row_end ? 2 : 1;
        for (int first = 0; first < x->n_tokens; first += GROUP) {
            int w = x->n_tokens - first < GROUP ? x->n_tokens - first : GROUP;
            expands[tiles - 1][w - 1](x, row, first);
        }
    }
}
