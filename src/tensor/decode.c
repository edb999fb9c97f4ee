/* Scalar decoders, one for each drawing in block.h. Products are rounded in the order in which ggml
 * rounds them (scale first, then the quantised number), so results are equal bit for bit. */
#include <string.h>

#include "tensor/block.h"
#include "tensor/codec.h"
#include "tensor/type.h"

const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};

/* The loop over blocks that every decoder begins with. */
#define EACH_BLOCK(b, type, elems)                                                                 \
    for (const struct type *b = blocks, *end = b + n / (elems); b < end; b++, out += (elems))

void decode_f32(const void *blocks, size_t n, float *out)
{
    memcpy(out, blocks, n * sizeof *out);
}

void decode_f16(const void *blocks, size_t n, float *out)
{
    const uint16_t *h = blocks;
    for (size_t i = 0; i < n; i++)
        out[i] = f16_to_f32(h[i]);
}

void decode_bf16(const void *blocks, size_t n, float *out)
{
    const uint16_t *h = blocks;
    for (size_t i = 0; i < n; i++)
        out[i] = bf16_to_f32(h[i]);
}

void decode_q4_0(const void *blocks, size_t n, float *out)
{
    EACH_BLOCK(b, block_q4_0, BLOCK_SMALL)
    {
        float d = f16_to_f32(b->d);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)((b->qs[j] & 15) - 8);
            out[j + 16] = d * (float)((b->qs[j] >> 4) - 8);
        }
    }
}

void decode_q4_1(const void *blocks, size_t n, float *out)
{
    EACH_BLOCK(b, block_q4_1, BLOCK_SMALL)
    {
        float d = f16_to_f32(b->d), m = f16_to_f32(b->m);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)(b->qs[j] & 15) + m;
            out[j + 16] = d * (float)(b->qs[j] >> 4) + m;
        }
    }
}

/* The fifth bit of number i, in its place. */
static int fifth_bit(const uint8_t qh[4], int i)
{
    return (qh[i / 8] >> i % 8 & 1) << 4;
}

void decode_q5_0(const void *blocks, size_t n, float *out)
{
    EACH_BLOCK(b, block_q5_0, BLOCK_SMALL)
    {
        float d = f16_to_f32(b->d);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)(((b->qs[j] & 15) | fifth_bit(b->qh, j)) - 16);
            out[j + 16] = d * (float)((b->qs[j] >> 4 | fifth_bit(b->qh, j + 16)) - 16);
        }
    }
}

void decode_q5_1(const void *blocks, size_t n, float *out)
{
    EACH_BLOCK(b, block_q5_1, BLOCK_SMALL)
    {
        float d = f16_to_f32(b->d), m = f16_to_f32(b->m);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)((b->qs[j] & 15) | fifth_bit(b->qh, j)) + m;
            out[j + 16] = d * (float)(b->qs[j] >> 4 | fifth_bit(b->qh, j + 16)) + m;
        }
    }
}

void decode_q8_0(const void *blocks, size_t n, float *out)
{
    EACH_BLOCK(b, block_q8_0, BLOCK_SMALL)
    {
        float d = f16_to_f32(b->d);
        for (int i = 0; i < 32; i++)
            out[i] = d * (float)b->qs[i];
    }
}

void decode_q2_k(const void *blocks, size_t n, float *out)
{
    EACH_BLOCK(b, block_q2_k, BLOCK_SUPER)
    {
        float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
        for (int g = 0; g < 16; g++) {
            float scale = d * (float)(b->scales[g] & 15), min = dmin * (float)(b->scales[g] >> 4);
            const uint8_t *qs = b->qs + g / 8 * 32 + g % 2 * 16;
            int shift = g % 8 / 2 * 2;
            for (int l = 0; l < 16; l++)
                out[g * 16 + l] = scale * (float)(qs[l] >> shift & 3) - min;
        }
    }
}

void decode_q3_k(const void *blocks, size_t n, float *out)
{
    EACH_BLOCK(b, block_q3_k, BLOCK_SUPER)
    {
        float d = f16_to_f32(b->d);
        for (int g = 0; g < 16; g++) {
            float scale = d * (float)q3_k_scale(b->scales, g);
            const uint8_t *qs = b->qs + g / 8 * 32 + g % 2 * 16, *hmask = b->hmask + g % 2 * 16;
            int shift = g % 8 / 2 * 2, bit = g / 2;
            for (int l = 0; l < 16; l++) {
                int q = (qs[l] >> shift & 3) | (hmask[l] >> bit & 1) << 2;
                out[g * 16 + l] = scale * (float)(q - 4);
            }
        }
    }
}

void decode_q4_k(const void *blocks, size_t n, float *out)
{
    EACH_BLOCK(b, block_q4_k, BLOCK_SUPER)
    {
        float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
        for (int g = 0; g < 8; g++) {
            uint8_t sc, mn;
            q4_k_scale_min(b->scales, g, &sc, &mn);
            float scale = d * (float)sc, min = dmin * (float)mn;
            const uint8_t *qs = b->qs + g / 2 * 32;
            for (int l = 0; l < 32; l++)
                out[g * 32 + l] = scale * (float)(qs[l] >> g % 2 * 4 & 15) - min;
        }
    }
}

void decode_q5_k(const void *blocks, size_t n, float *out)
{
    EACH_BLOCK(b, block_q5_k, BLOCK_SUPER)
    {
        float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
        for (int g = 0; g < 8; g++) {
            uint8_t sc, mn;
            q4_k_scale_min(b->scales, g, &sc, &mn);
            float scale = d * (float)sc, min = dmin * (float)mn;
            const uint8_t *qs = b->qs + g / 2 * 32;
            for (int l = 0; l < 32; l++) {
                int q = (qs[l] >> g % 2 * 4 & 15) | (b->qh[l] >> g & 1) << 4;
                out[g * 32 + l] = scale * (float)q - min;
            }
        }
    }
}

void decode_q6_k(const void *blocks, size_t n, float *out)
{
    EACH_BLOCK(b, block_q6_k, BLOCK_SUPER)
    {
        float d = f16_to_f32(b->d);
        for (int g = 0; g < 16; g++) {
            float scale = d * (float)b->scales[g];
            const uint8_t *ql = b->ql + g / 8 * 64 + g % 4 * 16,
                          *qh = b->qh + g / 8 * 32 + g % 2 * 16;
            int low_shift = g % 8 / 4 * 4, high_shift = g % 8 / 2 * 2;
            for (int l = 0; l < 16; l++) {
                int q = (ql[l] >> low_shift & 15) | (qh[l] >> high_shift & 3) << 4;
                out[g * 16 + l] = scale * (float)(q - 32);
            }
        }
    }
}

void decode_iq4_nl(const void *blocks, size_t n, float *out)
{
    EACH_BLOCK(b, block_iq4_nl, BLOCK_SMALL)
    {
        float d = f16_to_f32(b->d);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)iq4_values[b->qs[j] & 15];
            out[j + 16] = d * (float)iq4_values[b->qs[j] >> 4];
        }
    }
}

void decode_iq4_xs(const void *blocks, size_t n, float *out)
{
    EACH_BLOCK(b, block_iq4_xs, BLOCK_SUPER)
    {
        float d = f16_to_f32(b->d);
        for (int g = 0; g < 8; g++) {
            float scale = d * (float)iq4_xs_scale(b, g);
            const uint8_t *qs = b->qs + g * 16;
            for (int j = 0; j < 16; j++) {
                out[g * 32 + j] = scale * (float)iq4_values[qs[j] & 15];
                out[g * 32 + j + 16] = scale * (float)iq4_values[qs[j] >> 4];
            }
        }
    }
}
