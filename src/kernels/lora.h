/* lora.h - low-rank products of adapters, for any adapters and ranks among the rows of a batch.
 *
 * An adapter changes a product W x into W x + B A x, A being rank x n_cols and B n_rows x rank. The
 * first step (shrink) makes the few numbers h = A x of each token, the second (expand) adds B h to
 * the rows that the base product has just written. A token of several adapters is listed by each.
 *
 * A and B are bf16, h too; sums are kept in f32. x may be rounded to bf16. Ranks are even: callers
 * add a row of zeros to an odd one. How they lie in memory, as 16-bit numbers:
 *
 *   A   panels of LORA_PANEL rows (the last may have 2): [column / 32][row in panel][column % 32],
 *       columns padded to 32 with zeros. A panel is one stream, read once for up to 6 tokens.
 *   B   tiles of LORA_TILE rows: [r / 2][row in tile][r % 2], rows padded with zeros.
 *   h   [place in the list of tokens][h_stride]; the adapter's numbers begin where h points. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { LORA_PANEL = 4, LORA_TILE = 16 };

static inline size_t lora_a_elems(int rank, int n_cols)
{
    return (size_t)rank * (((size_t)n_cols + 31) / 32 * 32);
}

static inline size_t lora_b_elems(int rank, int n_rows)
{
    return (size_t)rank * (((size_t)n_rows + LORA_TILE - 1) / LORA_TILE * LORA_TILE);
}

static inline int lora_panels(int rank)
{
    return (rank + LORA_PANEL - 1) / LORA_PANEL;
}

/* Write one row into packed memory that was zero: row r of A (n_cols numbers), row `row` of B
 * (n <= rank numbers). */
void lora_pack_a(uint16_t *a, int rank, int n_cols, int r, const float *values);
void lora_pack_b(uint16_t *b, int rank, int row, const float *values, int n);

struct lora_shrink {
    const uint16_t *a; /* 64-byte aligned */
    int rank, n_cols;
    const float *x;
    size_t x_stride;       /* floats from a token to the next */
    const int32_t *tokens; /* n_tokens rows of x */
    const float *scales;   /* n_tokens factors on h */
    int n_tokens;
    uint16_t *h; /* 4-byte aligned */
    size_t h_stride;
};

struct lora_expand {
    const uint16_t *b; /* 64-byte aligned */
    int rank, n_rows;
    const uint16_t *h; /* 4-byte aligned */
    size_t h_stride;   /* even */
    const int32_t *tokens;
    int n_tokens;
    float *out; /* row 0 of B is added to out[token * out_stride] */
    size_t out_stride;
};
