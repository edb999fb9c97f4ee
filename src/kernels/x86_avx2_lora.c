/* Low-rank products with AVX2. */
#include <immintrin.h>

#include "kernels/lora.h"
#include "kernels/x86.h"
#include "tensor/type.h"

enum { GROUP = 2 }; /* most tokens of a pass */

INLINE __m256 floats_of(const uint16_t *p)
{
    __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}

INLINE float sum_of(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* sums[i][row] of a panel for w tokens */
INLINE void shrink_pass(int rows, int w, const uint16_t *a, int n_cols, const float *const x[GROUP],
                        float sums[GROUP][LORA_PANEL])
{
    __m256 acc[LORA_PANEL][GROUP];
    UNROLL
    for (int r = 0; r < rows; r++)
        acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    int c = 0;
    for (; c + 8 <= n_cols; c += 8) {
        const uint16_t *block = a + (size_t)(c / 32 * 32) * (size_t)rows + c % 32;
        UNROLL
        for (int r = 0; r < rows; r++) {
            __m256 row = floats_of(block + 32 * r);
            UNROLL
            for (int i = 0; i < w; i++)
                acc[r][i] = _mm256_fmadd_ps(row, _mm256_loadu_ps(x[i] + c), acc[r][i]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < w; i++)
            sums[i][r] = sum_of(acc[r][i]);
    for (; c < n_cols; c++)
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < w; i++)
                sums[i][r] +=
                    bf16_to_f32(
                        a[(size_t)(c / 32 * 32) * (size_t)rows + (size_t)(32 * r + c % 32)]) *
                    x[i][c];
}

/* Adds half a tile, 8 rows, to w tokens. `b` is the first pair of row `row`. */
INLINE void expand_pass(int w, const struct lora_expand *x, const uint16_t *b, int row, int first)
{
    __m256 acc[GROUP] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    const uint16_t *h = x->h + (size_t)first * x->h_stride;
    for (int r = 0; r < x->rank; r += 2, b += 2 * LORA_TILE) {
        __m256i both = _mm256_loadu_si256((const __m256i *)b);
        __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
        __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(~0xffff)));
        UNROLL
        for (int i = 0; i < w; i++) {
            const uint16_t *v = h + (size_t)i * x->h_stride + r;
            acc[i] = _mm256_fmadd_ps(even, _mm256_set1_ps(bf16_to_f32(v[0])), acc[i]);
            acc[i] = _mm256_fmadd_ps(odd, _mm256_set1_ps(bf16_to_f32(v[1])), acc[i]);
        }
    }
    for (int i = 0; i < w; i++) {
        float *out = x->out + (size_t)x->tokens[first + i] * x->out_stride + row;
        if (row + 8 <= x->n_rows) {
            _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), acc[i]));
            continue;
        }
        float v[8];
        _mm256_storeu_ps(v, acc[i]);
        for (int k = 0; row + k < x->n_rows; k++)
            out[k] += v[k];
    }
}

static void shrink_group(const uint16_t *panel, int rows, int w, int n_cols,
                         const float *const x[GROUP], float sums[GROUP][LORA_PANEL])
{
    if (rows == LORA_PANEL && w == 2)
        shrink_pass(LORA_PANEL, 2, panel, n_cols, x, sums);
    else if (rows == LORA_PANEL)
        shrink_pass(LORA_PANEL, 1, panel, n_cols, x, sums);
    else
        shrink_pass(rows, w, panel, n_cols, x, sums);
}

void avx2_lora_shrink(const struct lora_shrink *s, int panel_begin, int panel_end)
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
            shrink_group(panel, rows, w, s->n_cols, x, sums);
            for (int i = 0; i < w; i++)
                for (int r = 0; r < rows; r++)
                    s->h[(size_t)(first + i) * s->h_stride + (size_t)(p + r)] =
                        f32_to_bf16(s->scales[first + i] * sums[i][r]);
        }
    }
}

void avx2_lora_expand(const struct lora_expand *x, int row_begin, int row_end)
{
    for (int row = row_begin; row < row_end && row < x->n_rows; row += 8) {
        const uint16_t *b =
            x->b + (size_t)(row / LORA_TILE * LORA_TILE) * (size_t)x->rank + row % LORA_TILE * 2;
        for (int first = 0; first < x->n_tokens; first += GROUP) {
            if (x->n_tokens - first >= GROUP)
                expand_pass(GROUP, x, b, row, first);
            else
                expand_pass(1, x, b, row, first);
        }
    }
}
