/* block.h - how quantised blocks lie in memory.
 *
 * Numbers are little-endian. `d` is the scale, `m` or `dmin` the scale of the minimum, both half
 * precision. "x[i]" is the i-th number of the block, from 0.
 *
 * Source: the block structs that ggml publishes (ggml/src/ggml-common.h) and the GGUF
 * specification. The decoders in decode.c are the executable form of these drawings. */
#pragma once

#include <assert.h>
#include <stdint.h>

enum { BLOCK_SMALL = 32, BLOCK_SUPER = 256 }; /* elements in a simple block and in a super-block */

/* x[i] = d * (q[i] - 8)
 *   byte   0  1 | 2 ............ 17
 *          d    | qs: low nibble q[j], high nibble q[j + 16], j = 0..15 */
struct block_q4_0 {
    uint16_t d;
    uint8_t qs[16];
};
static_assert(sizeof(struct block_q4_0) == 18, "18 bytes");

/* x[i] = d * q[i] + m; nibbles as in Q4_0 */
struct block_q4_1 {
    uint16_t d;
    uint16_t m;
    uint8_t qs[16];
};
static_assert(sizeof(struct block_q4_1) == 20, "20 bytes");

/* x[i] = d * (q[i] - 16); bits 0-3 of q as in Q4_0, bit 4 of q[i] is bit i of the 32-bit number qh
 */
struct block_q5_0 {
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[16];
};
static_assert(sizeof(struct block_q5_0) == 22, "22 bytes");

/* x[i] = d * q[i] + m; q as in Q5_0 */
struct block_q5_1 {
    uint16_t d;
    uint16_t m;
    uint8_t qh[4];
    uint8_t qs[16];
};
static_assert(sizeof(struct block_q5_1) == 24, "24 bytes");

/* x[i] = d * qs[i] */
struct block_q8_0 {
    uint16_t d;
    int8_t qs[32];
};
static_assert(sizeof(struct block_q8_0) == 34, "34 bytes");

/* 16 groups of 16: x[i] = d * (scales[i/16] & 15) * q[i] - dmin * (scales[i/16] >> 4)
 *
 * qs holds two halves of 128 numbers in 32 bytes each. Byte l (0..31) of a half:
 *   bits  1..0   3..2      5..4      7..6
 *         q[l]   q[l+32]   q[l+64]   q[l+96] */
struct block_q2_k {
    uint8_t scales[16];
    uint8_t qs[64];
    uint16_t d;
    uint16_t dmin;
};
static_assert(sizeof(struct block_q2_k) == 84, "84 bytes");

/* 16 groups of 16: x[i] = d * (scale[i/16] - 32) * (q[i] - 4)
 *
 * Bits 0-1 of q lie in qs as in Q2_K. Bit 2 of q[i] is bit i/32 of hmask[i % 32].
 * The 6-bit scales:
 *   byte  0..7    low nibble: bits 0-3 of scale[0..7], high nibble: bits 0-3 of scale[8..15]
 *   byte  8..11   bits 4-5 of four scales: byte 8+k holds those of k, k+4, k+8, k+12 */
struct block_q3_k {
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    uint16_t d;
};
static_assert(sizeof(struct block_q3_k) == 110, "110 bytes");

/* 8 groups of 32: x[i] = d * scale[i/32] * q[i] - dmin * min[i/32]
 *
 * qs holds four runs of 64 numbers in 32 bytes each: low nibbles are the first 32, high nibbles the
 * second 32. The 6-bit scales and mins:
 *   byte  0..3    bits 0-5 scale[0..3]              bits 6-7: bits 4-5 of scale[4..7]
 *   byte  4..7    bits 0-5 min[0..3]                bits 6-7: bits 4-5 of min[4..7]
 *   byte  8..11   low nibble: bits 0-3 of scale[4..7], high nibble: bits 0-3 of min[4..7] */
struct block_q4_k {
    uint16_t d;
    uint16_t dmin;
    uint8_t scales[12];
    uint8_t qs[128];
};
static_assert(sizeof(struct block_q4_k) == 144, "144 bytes");

/* As Q4_K with a fifth bit: bit 4 of q[i] is bit i/32 of qh[i % 32] */
struct block_q5_k {
    uint16_t d;
    uint16_t dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
};
static_assert(sizeof(struct block_q5_k) == 176, "176 bytes");

/* 16 groups of 16: x[i] = d * scales[i/16] * (q[i] - 32)
 *
 * Two halves of 128 numbers. Within a half, for l = 0..31:
 *   ql[l]      low nibble: bits 0-3 of q[l],    high nibble: of q[l+64]
 *   ql[l+32]   low nibble: bits 0-3 of q[l+32], high nibble: of q[l+96]
 *   qh[l]      bits 1..0, 3..2, 5..4, 7..6: bits 4-5 of q[l], q[l+32], q[l+64], q[l+96] */
struct block_q6_k {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
};
static_assert(sizeof(struct block_q6_k) == 210, "210 bytes");

/* x[i] = d * iq4_values[q[i]]; nibbles as in Q4_0 */
struct block_iq4_nl {
    uint16_t d;
    uint8_t qs[16];
};
static_assert(sizeof(struct block_iq4_nl) == 18, "18 bytes");

/* 8 groups of 32: x[i] = d * (scale[i/32] - 32) * iq4_values[q[i]]
 *
 * qs holds 16 bytes for each group, nibbles as in Q4_0. Bits 0-3 of scale[g] are nibble g%2 of
 * scales_l[g/2] (low nibble first), bits 4-5 are bits 2g, 2g+1 of scales_h. */
struct block_iq4_xs {
    uint16_t d;
    uint16_t scales_h;
    uint8_t scales_l[4];
    uint8_t qs[128];
};
static_assert(sizeof(struct block_iq4_xs) == 136, "136 bytes");

/* The sixteen levels of IQ4_NL and IQ4_XS. */
extern const int8_t iq4_values[16];

/* Scale and min of group g (0..7) of a Q4_K or Q5_K block. */
static inline void q4_k_scale_min(const uint8_t scales[12], int g, uint8_t *scale, uint8_t *min)
{
    if (g < 4) {
        *scale = scales[g] & 63;
        *min = scales[g + 4] & 63;
    } else {
        *scale = (uint8_t)((scales[g + 4] & 15) | (scales[g - 4] >> 6) << 4);
        *min = (uint8_t)(scales[g + 4] >> 4 | (scales[g] >> 6) << 4);
    }
}

/* Scale of group g (0..15) of a Q3_K block, -32..31. */
static inline int q3_k_scale(const uint8_t scales[12], int g)
{
    int low = g < 8 ? scales[g] & 15 : scales[g - 8] >> 4;
    int high = scales[8 + g % 4] >> g / 4 * 2 & 3;
    return (low | high << 4) - 32;
}

/* Scale of group g (0..7) of an IQ4_XS block, -32..31. */
static inline int iq4_xs_scale(const struct block_iq4_xs *b, int g)
{
    int low = b->scales_l[g / 2] >> g % 2 * 4 & 15;
    int high = b->scales_h >> 2 * g & 3;
    return (low | high << 4) - 32;
}
