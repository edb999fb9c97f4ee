/* layout.h - how packed weights, activations and KV blocks lie in memory. Private to src/kernels.
 *
 * PACKED WEIGHTS. A tile of 32 rows is a sequence of blocks along the columns; a block is as wide
 * as a block of the source type, 32 or 256 columns ("super"). All numbers of 32 rows side by side:
 *
 *   simple block  f16 d[32]  (f16 m[32])                          weight = d * (u - zero) (+ m)
 *   super block   f16 d[32]  (f16 dmin[32])  i8/u8 sc[groups][32]  (u8 mn[groups][32])
 *                                            weight = d * sc * (u - zero) (- dmin * mn)
 *   followed, for each 32 columns, by the codes u, unsigned: a low plane, then a high plane.
 *
 * Types whose activations are ACT_Q8_POW2 never have d or sc 0: what would be 0 has the code `zero`
 * instead, so that arithmetic on the exponent of a scale is safe.
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
 * ACTIVATIONS. A group (act_group_begin) of w tokens lies together; for ACT_Q8 it is, for each 32
 * columns: f32 scale[w]   f32 dsum[w]   i32 nsum[w]   i32 nhalf[2][w]   i8 q[8][w][4] where x =
 * scale * q (a power of two for ACT_Q8_POW2, whose layout is the same), nsum = -sum(q), nhalf the
 * same for each 16 columns, dsum = scale * sum(q). ACT_F32 is [column][w], ACT_BF16 [column /
 * 2][w][2].
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
static inline int32_t *act_nhalf(void *block, int w)
{
    return (int32_t *)block + 3 * w;
}
static inline int8_t *act_codes(void *block, int w)
{
    return (int8_t *)block + 20 * w;
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
