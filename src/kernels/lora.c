#include "kernels/lora.h"

#include "tensor/type.h"

void lora_pack_a(uint16_t *a, int rank, int n_cols, int r, const float *values)
{
    int panel = r / LORA_PANEL * LORA_PANEL;
    int rows = rank - panel < LORA_PANEL ? rank - panel : LORA_PANEL;
    uint16_t *out = a + lora_a_elems(panel, n_cols) + (size_t)(r - panel) * 32;
    for (int c = 0; c < n_cols; c++)
        out[(size_t)(c / 32) * (size_t)rows * 32 + (size_t)(c % 32)] = f32_to_bf16(values[c]);
}

void lora_pack_b(uint16_t *b, int rank, int row, const float *values, int n)
{
    uint16_t *out = b + lora_b_elems(rank, row / LORA_TILE * LORA_TILE) + row % LORA_TILE * 2;
    for (int r = 0; r < n; r++)
        out[(size_t)(r / 2) * 2 * LORA_TILE + (size_t)(r % 2)] = f32_to_bf16(values[r]);
}
