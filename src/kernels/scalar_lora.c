#include "kernels/lora.h"
#include "kernels/scalar.h"

/* Row r of a panel with a token. */
static float dot(const uint16_t *panel, int rows, int r, const float *x, int n_cols)
{
    float sum = 0;
    for (int c = 0; c < n_cols; c++)
        sum +=
            bf16_to_f32(panel[(size_t)(c / 32) * (size_t)rows * 32 + (size_t)(32 * r + c % 32)]) *
            x[c];
    return sum;
}

void scalar_lora_shrink(const struct lora_shrink *s, int panel_begin, int panel_end)
{
    for (int p = panel_begin * LORA_PANEL; p < panel_end * LORA_PANEL; p += LORA_PANEL) {
        const uint16_t *panel = s->a + lora_a_elems(p, s->n_cols);
        int rows = s->rank - p < LORA_PANEL ? s->rank - p : LORA_PANEL;
        for (int i = 0; i < s->n_tokens; i++) {
            const float *x = s->x + (size_t)s->tokens[i] * s->x_stride;
            uint16_t *h = s->h + (size_t)i * s->h_stride + p;
            for (int r = 0; r < rows; r++)
                h[r] = f32_to_bf16(s->scales[i] * dot(panel, rows, r, x, s->n_cols));
        }
    }
}

void scalar_lora_expand(const struct lora_expand *x, int row_begin, int row_end)
{
    for (int row = row_begin; row < row_end; row++) {
        const uint16_t *b =
            x->b + lora_b_elems(x->rank, row / LORA_TILE * LORA_TILE) + row % LORA_TILE * 2;
        for (int i = 0; i < x->n_tokens; i++) {
            const uint16_t *h = x->h + (size_t)i * x->h_stride;
            float sum = 0;
            for (int r = 0; r < x->rank; r++)
                sum += bf16_to_f32(b[(size_t)(r / 2) * 2 * LORA_TILE + (size_t)(r % 2)]) *
                       bf16_to_f32(h[r]);
            x->out[(size_t)x->tokens[i] * x->out_stride + (size_t)row] += sum;
        }
    }
}
