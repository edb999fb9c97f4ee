/* Encoders by the simplest rule that is sound: a group's scale (and minimum) comes from its extreme
 * values, the super-block's from the groups', each number goes to the nearest level of the scales
 * as stored. No search, no importance weights: files meant to be published are made elsewhere. */
#include <math.h>
#include <string.h>

#include "tensor/block.h"
#include "tensor/codec.h"
#include "tensor/type.h"

#define EACH_BLOCK(b, type, elems)                                                                 \
    for (struct type *b = blocks, *end = b + n / (elems); b < end; b++, in += (elems))

/* The whole number nearest to x * inverse, within lo..hi; halves go up, as in the reference, which
 * adds the half before it truncates. NaN gives lo. */
static int quantum(float x, float inverse, int lo, int hi)
{
    float above = floorf(x * inverse + (0.5f - (float)lo));
    return above > 0 ? (above < (float)(hi - lo) ? (int)above + lo : hi) : lo;
}

/* 0 where the inverse would be infinite. */
static float inverse_of(float scale)
{
    return fabsf(scale) >= 0x1p-126f ? 1.0f / scale : 0;
}

/* The element of largest magnitude, with its sign. */
static float extreme(const float *x, int n)
{
    float best = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(best))
            best = x[i];
    return best;
}

static void range(const float *x, int n, float *lo, float *hi)
{
    *lo = *hi = x[0];
    for (int i = 1; i < n; i++) {
        *lo = fminf(*lo, x[i]);
        *hi = fmaxf(*hi, x[i]);
    }
}

void encode_f32(const float *in, size_t n, void *blocks)
{
    memcpy(blocks, in, n * sizeof *in);
}

void encode_f16(const float *in, size_t n, void *blocks)
{
    uint16_t *h = blocks;
    for (size_t i = 0; i < n; i++)
        h[i] = f32_to_f16(in[i]);
}

void encode_bf16(const float *in, size_t n, void *blocks)
{
    uint16_t *h = blocks;
    for (size_t i = 0; i < n; i++)
        h[i] = f32_to_bf16(in[i]);
}

/* Low nibbles of the first 16 numbers, high nibbles of the second 16. */
static void pack_nibbles(const uint8_t q[32], uint8_t qs[16])
{
    for (int j = 0; j < 16; j++)
        qs[j] = (uint8_t)((q[j] & 15) | (q[j + 16] & 15) << 4);
}

static void pack_fifth_bits(const uint8_t q[32], uint8_t qh[4])
{
    memset(qh, 0, 4);
    for (int i = 0; i < 32; i++)
        qh[i / 8] |= (uint8_t)((q[i] >> 4 & 1) << i % 8);
}

/* q = round(x/d) + bias in 0..2*bias-1, d such that the extreme value falls on 0 */
static uint16_t encode_around_zero(const float *in, int bias, uint8_t q[32])
{
    float d = extreme(in, 32) / (float)-bias, inverse = inverse_of(d);
    for (int i = 0; i < 32; i++)
        q[i] = (uint8_t)(quantum(in[i], inverse, -bias, bias - 1) + bias);
    return f32_to_f16(d);
}

/* q = round((x - lo) / d) in 0..top */
static void encode_from_minimum(const float *in, int top, uint8_t q[32], uint16_t *d, uint16_t *m)
{
    float lo, hi;
    range(in, 32, &lo, &hi);
    float scale = (hi - lo) / (float)top, inverse = inverse_of(scale);
    for (int i = 0; i < 32; i++)
        q[i] = (uint8_t)quantum(in[i] - lo, inverse, 0, top);
    *d = f32_to_f16(scale);
    *m = f32_to_f16(lo);
}

void encode_q4_0(const float *in, size_t n, void *blocks)
{
    uint8_t q[32];
    EACH_BLOCK(b, block_q4_0, BLOCK_SMALL)
    {
        b->d = encode_around_zero(in, 8, q);
        pack_nibbles(q, b->qs);
    }
}

void encode_q4_1(const float *in, size_t n, void *blocks)
{
    uint8_t q[32];
    EACH_BLOCK(b, block_q4_1, BLOCK_SMALL)
    {
        encode_from_minimum(in, 15, q, &b->d, &b->m);
        pack_nibbles(q, b->qs);
    }
}

void encode_q5_0(const float *in, size_t n, void *blocks)
{
    uint8_t q[32];
    EACH_BLOCK(b, block_q5_0, BLOCK_SMALL)
    {
        b->d = encode_around_zero(in, 16, q);
        pack_nibbles(q, b->qs);
        pack_fifth_bits(q, b->qh);
    }
}

void encode_q5_1(const float *in, size_t n, void *blocks)
{
    uint8_t q[32];
    EACH_BLOCK(b, block_q5_1, BLOCK_SMALL)
    {
        encode_from_minimum(in, 31, q, &b->d, &b->m);
        pack_nibbles(q, b->qs);
        pack_fifth_bits(q, b->qh);
    }
}

void encode_q8_0(const float *in, size_t n, void *blocks)
{
    EACH_BLOCK(b, block_q8_0, BLOCK_SMALL)
    {
        float d = fabsf(extreme(in, 32)) / 127, inverse = inverse_of(d);
        for (int i = 0; i < 32; i++)
            b->qs[i] = (int8_t)fmaxf(-127, roundf(in[i] * inverse)); /* halves away from zero */
        b->d = f32_to_f16(d);
    }
}

/* Two-bit fields as Q2_K and Q3_K lay them out. */
static void pack_pairs(const uint8_t q[256], uint8_t qs[64])
{
    memset(qs, 0, 64);
    for (int i = 0; i < 256; i++)
        qs[i / 128 * 32 + i % 32] |= (uint8_t)((q[i] & 3) << i % 128 / 32 * 2);
}

/* Scales and mins of n groups of `size` numbers of a super-block whose levels are 0..top, as whole
 * multiples (0..most) of *d and *dmin, which are stored as half precision. */
static void group_scales(const float *in, int n, int size, int top, int most, uint8_t *scale,
                         uint8_t *min, uint16_t *d, uint16_t *dmin)
{
    float step[16], low[16], step_max = 0, low_max = 0;
    for (int g = 0; g < n; g++) {
        float lo, hi;
        range(in + g * size, size, &lo, &hi);
        lo = fminf(lo, 0);
        step[g] = fmaxf(hi - lo, 0) / (float)top;
        low[g] = -lo;
        step_max = fmaxf(step_max, step[g]);
        low_max = fmaxf(low_max, low[g]);
    }
    *d = f32_to_f16(step_max / (float)most);
    *dmin = f32_to_f16(low_max / (float)most);
    float inverse_d = inverse_of(f16_to_f32(*d)), inverse_dmin = inverse_of(f16_to_f32(*dmin));
    for (int g = 0; g < n; g++) {
        scale[g] = (uint8_t)quantum(step[g], inverse_d, 0, most);
        min[g] = (uint8_t)quantum(low[g], inverse_dmin, 0, most);
    }
}

/* q[i] = round((x + dmin * min) / (d * scale)) in 0..top */
static void group_levels(const float *in, int size, int top, const uint8_t *scale,
                         const uint8_t *min, uint16_t d, uint16_t dmin, uint8_t q[256])
{
    for (int i = 0; i < 256; i++) {
        float inverse = inverse_of(f16_to_f32(d) * (float)scale[i / size]);
        q[i] = (uint8_t)quantum(in[i] + f16_to_f32(dmin) * (float)min[i / size], inverse, 0, top);
    }
}

void encode_q2_k(const float *in, size_t n, void *blocks)
{
    uint8_t scale[16], min[16], q[256];
    EACH_BLOCK(b, block_q2_k, BLOCK_SUPER)
    {
        group_scales(in, 16, 16, 3, 15, scale, min, &b->d, &b->dmin);
        group_levels(in, 16, 3, scale, min, b->d, b->dmin, q);
        for (int g = 0; g < 16; g++)
            b->scales[g] = (uint8_t)(scale[g] | min[g] << 4);
        pack_pairs(q, b->qs);
    }
}

/* The inverse of q4_k_scale_min. */
static void pack_q4_k_scales(const uint8_t scale[8], const uint8_t min[8], uint8_t scales[12])
{
    for (int g = 0; g < 4; g++) {
        scales[g] = (uint8_t)(scale[g] | (scale[g + 4] >> 4) << 6);
        scales[g + 4] = (uint8_t)(min[g] | (min[g + 4] >> 4) << 6);
        scales[g + 8] = (uint8_t)((scale[g + 4] & 15) | (min[g + 4] & 15) << 4);
    }
}

/* Nibbles of four runs of 64, low ones the first 32 of a run. */
static void pack_runs(const uint8_t q[256], uint8_t qs[128])
{
    for (int r = 0; r < 4; r++)
        for (int l = 0; l < 32; l++)
            qs[r * 32 + l] = (uint8_t)((q[r * 64 + l] & 15) | (q[r * 64 + 32 + l] & 15) << 4);
}

void encode_q4_k(const float *in, size_t n, void *blocks)
{
    uint8_t scale[8], min[8], q[256];
    EACH_BLOCK(b, block_q4_k, BLOCK_SUPER)
    {
        group_scales(in, 8, 32, 15, 63, scale, min, &b->d, &b->dmin);
        group_levels(in, 32, 15, scale, min, b->d, b->dmin, q);
        pack_q4_k_scales(scale, min, b->scales);
        pack_runs(q, b->qs);
    }
}

void encode_q5_k(const float *in, size_t n, void *blocks)
{
    uint8_t scale[8], min[8], q[256];
    EACH_BLOCK(b, block_q5_k, BLOCK_SUPER)
    {
        group_scales(in, 8, 32, 31, 63, scale, min, &b->d, &b->dmin);
        group_levels(in, 32, 31, scale, min, b->d, b->dmin, q);
        pack_q4_k_scales(scale, min, b->scales);
        pack_runs(q, b->qs);
        memset(b->qh, 0, sizeof b->qh);
        for (int i = 0; i < 256; i++)
            b->qh[i % 32] |= (uint8_t)((q[i] >> 4 & 1) << i / 32);
    }
}

/* Signed scales of n groups of `size` numbers as whole multiples of *d within -most..most-1, such
 * that a group's extreme value falls on its lowest level, -low (in units of scale * d). */
static void signed_scales(const float *in, int n, int size, float low, int most, int8_t *scale,
                          uint16_t *d)
{
    float step[16];
    for (int g = 0; g < n; g++)
        step[g] = extreme(in + g * size, size) / -low;
    *d = f32_to_f16(extreme(step, n) / (float)-most);
    float inverse = inverse_of(f16_to_f32(*d));
    for (int g = 0; g < n; g++)
        scale[g] = (int8_t)quantum(step[g], inverse, -most, most - 1);
}

/* q[i] = round(x / (d * scale)) + bias in 0..2*bias-1, groups of 16 */
static void signed_levels(const float *in, int bias, const int8_t scale[16], uint16_t d,
                          uint8_t q[256])
{
    for (int i = 0; i < 256; i++) {
        float inverse = inverse_of(f16_to_f32(d) * (float)scale[i / 16]);
        q[i] = (uint8_t)(quantum(in[i], inverse, -bias, bias - 1) + bias);
    }
}

void encode_q3_k(const float *in, size_t n, void *blocks)
{
    int8_t scale[16];
    uint8_t q[256];
    EACH_BLOCK(b, block_q3_k, BLOCK_SUPER)
    {
        signed_scales(in, 16, 16, 4, 32, scale, &b->d);
        signed_levels(in, 4, scale, b->d, q);
        pack_pairs(q, b->qs);
        memset(b->hmask, 0, sizeof b->hmask);
        for (int i = 0; i < 256; i++)
            b->hmask[i % 32] |= (uint8_t)((q[i] >> 2 & 1) << i / 32);
        memset(b->scales, 0, sizeof b->scales);
        for (int g = 0; g < 16; g++) {
            int s = scale[g] + 32;
            b->scales[g % 8] |= (uint8_t)((s & 15) << g / 8 * 4);
            b->scales[8 + g % 4] |= (uint8_t)(s >> 4 << g / 4 * 2);
        }
    }
}

void encode_q6_k(const float *in, size_t n, void *blocks)
{
    uint8_t q[256];
    EACH_BLOCK(b, block_q6_k, BLOCK_SUPER)
    {
        signed_scales(in, 16, 16, 32, 128, b->scales, &b->d);
        signed_levels(in, 32, b->scales, b->d, q);
        memset(b->ql, 0, sizeof b->ql);
        memset(b->qh, 0, sizeof b->qh);
        for (int i = 0; i < 256; i++) {
            int half = i / 128, k = i % 128;
            b->ql[half * 64 + k % 64] |= (uint8_t)((q[i] & 15) << k / 64 * 4);
            b->qh[half * 32 + k % 32] |= (uint8_t)(q[i] >> 4 << k / 32 * 2);
        }
    }
}

/* The level nearest to x. */
static uint8_t iq4_level(float x)
{
    int best = 0;
    for (int i = 1; i < 16; i++)
        if (fabsf(x - iq4_values[i]) < fabsf(x - iq4_values[best]))
            best = i;
    return (uint8_t)best;
}

static void encode_iq4(const float *in, float d, uint8_t qs[16])
{
    uint8_t q[32];
    float inverse = inverse_of(d);
    for (int i = 0; i < 32; i++)
        q[i] = iq4_level(in[i] * inverse);
    pack_nibbles(q, qs);
}

void encode_iq4_nl(const float *in, size_t n, void *blocks)
{
    EACH_BLOCK(b, block_iq4_nl, BLOCK_SMALL)
    {
        b->d = f32_to_f16(extreme(in, 32) / (float)iq4_values[0]);
        encode_iq4(in, f16_to_f32(b->d), b->qs);
    }
}

void encode_iq4_xs(const float *in, size_t n, void *blocks)
{
    int8_t scale[8];
    EACH_BLOCK(b, block_iq4_xs, BLOCK_SUPER)
    {
        signed_scales(in, 8, 32, 127, 32, scale, &b->d);
        b->scales_h = 0;
        memset(b->scales_l, 0, sizeof b->scales_l);
        for (int g = 0; g < 8; g++) {
            int s = scale[g] + 32;
            b->scales_l[g / 2] |= (uint8_t)((s & 15) << g % 2 * 4);
            b->scales_h |= (uint16_t)(s >> 4 << 2 * g);
            encode_iq4(in + g * 32, f16_to_f32(b->d) * (float)scale[g], b->qs + g * 16);
        }
    }
}
