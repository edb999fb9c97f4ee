/* layout.h - how packed weights, activations and KV blocks lie in memory. Private to src/kernels.
 *
 * PACKED WEIGHTS. A tile of 32 rows is a sequence of blocks along the columns; a block is as wide
 * as a block of the source type, 32 or 256 columns ("super"). All numbers of 32 rows side by side:
 *
 *   simple block  f16 d[32]  (f16 m[32])                          weight = d * (u - zero) (+ m)
 *   super block   f16 d[32]  (f16 dmin[32])  i8/u8 sc[groups][32]  (u8 mn[groups / 2][32][2])
 *                                            weight = d * sc * (u - zero) (- dmin * mn)
 *   followed, for each 32 columns, by the codes u, unsigned: a low plane, then a high plane.
 *
 * The unit of vpdpbusd is "4 columns of a row in 4 bytes", 16 rows in a vector. With c4 = the
 * number (0..7) of four columns within 32, h = the half (0, 1) of the tile's rows, r = the row in
 * the half, b = the column within the four: 8 bits  byte [c4][h][r][b] 4 bits  byte [c4 /
 * 2][h][r][b], low nibble for even c4 2 bits  byte [c4 / 4][h][r][b], bits 2 * (c4 % 4) 1 bit byte
 * [h][r][b], bit c4
 *
 *   type          block  low  high  zero  group  scale
 *   Q4_0  Q4_1      32    4    -     8 -   32    d (m)
 *   Q5_0  Q5_1      32    4    1    16 -   32    d (m)
 *   Q8_0            32    8    -   128     32    d
 *   IQ4_NL          32    4    -   128     32    d            u = iq4_values[code] + 128
 *   Q2_K           256    2    -     -     16    d dmin sc mn
 *   Q3_K           256    2    1     4     16    d sc
 *   Q4_K           256    4    -     -     32    d dmin sc mn
 *   Q5_K           256    4    1     -     32    d dmin sc mn
 *   Q6_K           256    4    2    32     16    d sc
 *   IQ4_XS         256    4    -   128     32    d sc         u as IQ4_NL
 *   F32 F16        [column][row]
 *   BF16           [column / 2][row][2]
 *
 * ACTIVATIONS. A group (act_group_begin) of w tokens lies together. For each 32 columns:
 *
 *   ACT_Q8        f32 scale[w]  f32 dsum[w]    i32 nsum[w]  i32 unused[2][w]  i8 q[8][w][4]
 *   ACT_Q8_POW2   f32 scale[w]  i32 minsum[w]  f32 base[w]  i32 start[2][w]   i8 q[8][w][4]
 *
 * where x = scale * q, nsum = -sum(q), dsum = scale * sum(q).
 *   base: powers of two turn integers into scaled floats without a conversion. It is 1.5 * 2^23 *
 *     scale, so a sum of integers that begins at the bits of base is, read as a float, base + scale
 * * sum, exactly (for |sum| < 2^22). start: where sums of weights with zero = 32 begin: the bits of
 * base, less 32 times the sum of 16 q. minsum: what minimums multiply, for 256 columns at once. In
 * the first four of their eight blocks pairs of 16-bit numbers, sum(x) of two blocks in units; in
 * the fifth the unit, an f32; in the sixth its logarithm to the base 2, an f32 too. The unit is an
 * eighth of the largest scale: so all sums fit, and those of blocks whose scale is no smaller than
 * the unit are exact. ACT_F32 is [column][w], ACT_BF16 [column / 2][w][2].
 *
 * KV. One head of one block, D = head_dim:
 *   BF16  K [D/2][32 positions][2]    V [16 pairs of positions][D][2]
 *   F16   K [D][32]                   V [32][D]
 *   Q8_0  K [D/2][32][2] i8           V [16][D][2] i8   f16 kscale[32]  f16 vscale[32]
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"
#include "tensor/type.h"

struct layout {
    int block;     /* columns: 32, 256, or 1 for floats (2 for bf16 pairs) */
    int low_bits;  /* of the low plane: 2, 4, 8; 0 for floats */
    int high_bits; /* 0, 1, 2 */
    int zero;
    int group;  /* columns for each scale */
    bool super; /* integer scales for each group beside d */
    bool min;
    bool table; /* codes are indices into iq4_values */
};

/* Folds to constants where the type is one. block 0: no packed form. */
static inline __attribute__((always_inline)) struct layout layout_of(enum ttype type)
{
    switch (type) {
    case TTYPE_Q4_0:
        return (struct layout){32, 4, 0, 8, 32, false, false, false};
    case TTYPE_Q4_1:
        return (struct layout){32, 4, 0, 0, 32, false, true, false};
    case TTYPE_Q5_0:
        return (struct layout){32, 4, 1, 16, 32, false, false, false};
    case TTYPE_Q5_1:
        return (struct layout){32, 4, 1, 0, 32, false, true, false};
    case TTYPE_Q8_0:
        return (struct layout){32, 8, 0, 128, 32, false, false, false};
    case TTYPE_IQ4_NL:
        return (struct layout){32, 4, 0, 128, 32, false, false, true};
    case TTYPE_Q2_K:
        return (struct layout){256, 2, 0, 0, 16, true, true, false};
    case TTYPE_Q3_K:
        return (struct layout){256, 2, 1, 4, 16, true, false, false};
    case TTYPE_Q4_K:
        return (struct layout){256, 4, 0, 0, 32, true, true, false};
    case TTYPE_Q5_K:
        return (struct layout){256, 4, 1, 0, 32, true, true, false};
    case TTYPE_Q6_K:
        return (struct layout){256, 4, 2, 32, 16, true, false, false};
    case TTYPE_IQ4_XS:
        return (struct layout){256, 4, 0, 128, 32, true, false, true};
    case TTYPE_F32:
    case TTYPE_F16:
        return (struct layout){1, 0, 0, 0, 1, false, false, false};
    case TTYPE_BF16:
        return (struct layout){2, 0, 0, 0, 1, false, false, false};
    }
    return (struct layout){0};
}

/* Its products take activations of ACT_Q8_POW2. */
static inline bool layout_pow2(const struct layout *l)
{
    return l->super && !l->table;
}

/* Its minimums are multiplied with minsum of the activations. */
static inline bool layout_word_mins(const struct layout *l)
{
    return layout_pow2(l) && l->min && l->group == 32;
}

/* Bytes of the codes of 32 columns of a tile. */
static inline size_t layout_code_bytes(const struct layout *l)
{
    return (size_t)128 * (l->low_bits + l->high_bits);
}

static inline size_t layout_header_bytes(const struct layout *l)
{
    size_t n = 64 * (1 + (size_t)l->min);
    if (l->super)
        n += (size_t)(256 / l->group) * 32 * (1 + (size_t)l->min);
    return n;
}

static inline size_t layout_block_bytes(const struct layout *l)
{
    return layout_header_bytes(l) + layout_code_bytes(l) * (size_t)(l->block / 32);
}

/* Where mn of a row's group lies, counted from sc. */
static inline int layout_mn_at(int groups, int g, int row)
{
    return 32 * groups + g / 2 * 64 + 2 * row + g % 2;
}

/* Bytes of 32 columns of one token of 8-bit activations: 5 numbers and 32 codes. */
enum { ACT_Q8_BLOCK = 5 * 4 + 32 };

/* The scale of 32 numbers of which the largest is max. Powers of two stay where exponents of
 * products with weight scales (at least 2^-24) cannot leave their range. */
static inline float act_scale_of(enum act_type type, float max)
{
    union {
        float f;
        uint32_t u;
    } scale = {max / 127};
    if (type == ACT_Q8)
        return scale.f;
    if (!(scale.f > 0x1p-80f))
        return 0x1p-80f;
    if (scale.f > 0x1p80f)
        return 0x1p80f;
    scale.u = (scale.u + 0x7fffff) & 0xff800000;
    return scale.f;
}

/* The parts of 32 columns of a group of w tokens. */
static inline float *act_scale(void *block)
{
    return block;
}
static inline float *act_dsum(void *block, int w)
{
    return (float *)block + w;
}
static inline int32_t *act_nsum(void *block, int w)
{
    return (int32_t *)block + 2 * w;
}
static inline int32_t *act_minsum(void *block, int w)
{
    return (int32_t *)block + w;
}
static inline float *act_base(void *block, int w)
{
    return (float *)block + 2 * w;
}
static inline int32_t *act_start(void *block, int w)
{
    return (int32_t *)block + 3 * w;
}
static inline int8_t *act_codes(void *block, int w)
{
    return (int8_t *)block + 20 * w;
}

/* Which of 8 blocks holds what in the place of minsum. */
enum { ACT_MINSUM_UNIT = 4, ACT_MINSUM_LOG2 = 5 };

/* What else is kept of 32 columns of token i whose codes sum up to half[0] + half[1]. */
static inline void act_put_sums(enum act_type type, void *block, int i, int w, float scale,
                                const int half[2])
{
    act_scale(block)[i] = scale;
    if (type == ACT_Q8) {
        act_dsum(block, w)[i] = scale * (float)(half[0] + half[1]);
        act_nsum(block, w)[i] = -(half[0] + half[1]);
        return;
    }
    union {
        float f;
        int32_t i;
    } base = {0x1.8p23f * scale};
    act_base(block, w)[i] = base.f;
    act_start(block, w)[i] = base.i - 32 * half[0];
    act_start(block, w)[w + i] = base.i - 32 * half[1];
}

/* minsum of token i for 256 columns, whose blocks have these scales and sums of codes. */
static inline void act_put_minsum(void *block, int i, int w, const float scale[8], const int sum[8])
{
    float largest = scale[0];
    for (int s = 1; s < 8; s++)
        largest = scale[s] > largest ? scale[s] : largest;
    union {
        float f;
        uint32_t bits;
    } unit = {largest / 8};
    float inverse = 1 / unit.f, log2_unit = (float)((int)(unit.bits >> 23) - 127);
    int16_t words[8];
    for (int s = 0; s < 8; s++) { /* |sum| is at most 32 * 127 */
        float v = (float)sum[s] * scale[s] * inverse;
        words[s] = (int16_t)(v + (v < 0 ? -0.5f : 0.5f));
    }
    for (int pair = 0; pair < 4; pair++)
        memcpy(&act_minsum((char *)block + pair * w * ACT_Q8_BLOCK, w)[i], words + 2 * pair, 4);
    memcpy(&act_minsum((char *)block + ACT_MINSUM_UNIT * w * ACT_Q8_BLOCK, w)[i], &unit, 4);
    memcpy(&act_minsum((char *)block + ACT_MINSUM_LOG2 * w * ACT_Q8_BLOCK, w)[i], &log2_unit, 4);
}

/* Bytes of scratch memory that every attention gets. */
enum { ATTENTION_SCRATCH = 192 << 10 };

static inline size_t kv_half_bytes(const struct kv_layout *kv) /* keys or values of one head */
{
    return (size_t)KV_BLOCK_TOKENS * (size_t)kv->head_dim * (kv->type == KV_Q8_0 ? 1 : 2);
}

static inline const void *kv_head(const struct attention *a, int i) /* table entry i */
{
    return (const char *)a->blocks + (size_t)a->table[i] * a->block_stride +
           (size_t)a->kv_head * kv_head_bytes(a->kv);
}

/* The codes of 32 columns of a tile as u[row][column], zero point not taken off. */
void layout_unpack(const struct layout *l, const uint8_t *codes, uint8_t u[KERNEL_TILE][32]);

extern const struct kernels kernels_scalar;
#if defined(__x86_64__)
extern const struct kernels kernels_avx2;
extern const struct kernels kernels_avxvnni;
extern const struct kernels kernels_avx512;
#endif
