#include "tensor/type.h"

#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "tensor/block.h"
#include "tensor/codec.h"

/* One row a type. Sizes come from the structs of block.h, so the two cannot disagree. */
#define PLAIN(label, bytes, fn)                                                                    \
    {                                                                                              \
        label, 1, bytes, decode_##fn, encode_##fn                                                  \
    }
#define BLOCK(label, elems, fn)                                                                    \
    {                                                                                              \
        label, elems, sizeof(struct block_##fn), decode_##fn, encode_##fn                          \
    }
static const struct ttype_info types[] = {
    [TTYPE_F32] = PLAIN("F32", 4, f32),
    [TTYPE_F16] = PLAIN("F16", 2, f16),
    [TTYPE_Q4_0] = BLOCK("Q4_0", BLOCK_SMALL, q4_0),
    [TTYPE_Q4_1] = BLOCK("Q4_1", BLOCK_SMALL, q4_1),
    [TTYPE_Q5_0] = BLOCK("Q5_0", BLOCK_SMALL, q5_0),
    [TTYPE_Q5_1] = BLOCK("Q5_1", BLOCK_SMALL, q5_1),
    [TTYPE_Q8_0] = BLOCK("Q8_0", BLOCK_SMALL, q8_0),
    [TTYPE_Q2_K] = BLOCK("Q2_K", BLOCK_SUPER, q2_k),
    [TTYPE_Q3_K] = BLOCK("Q3_K", BLOCK_SUPER, q3_k),
    [TTYPE_Q4_K] = BLOCK("Q4_K", BLOCK_SUPER, q4_k),
    [TTYPE_Q5_K] = BLOCK("Q5_K", BLOCK_SUPER, q5_k),
    [TTYPE_Q6_K] = BLOCK("Q6_K", BLOCK_SUPER, q6_k),
    [TTYPE_IQ4_NL] = BLOCK("IQ4_NL", BLOCK_SMALL, iq4_nl),
    [TTYPE_IQ4_XS] = BLOCK("IQ4_XS", BLOCK_SUPER, iq4_xs),
    [TTYPE_BF16] = PLAIN("BF16", 2, bf16),
};

const struct ttype_info *ttype_info(uint32_t type)
{
    return type < ARRAY_LEN(types) && types[type].name ? &types[type] : NULL;
}

size_t ttype_row_bytes(enum ttype type, size_t n)
{
    const struct ttype_info *t = ttype_info(type);
    BUG_ON(!t || n % t->block_elems);
    return n / t->block_elems * t->block_bytes;
}

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31) /* infinity, NaN */
        return float_of(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) /* zero, subnormal: a whole number of 2^-24 */
        return float_of(sign | bits_of((float)mantissa * 0x1p-24f));
    return float_of(sign | (exponent + 127 - 15) << 23 | mantissa << 13);
}

uint16_t f32_to_f16(float f)
{
    uint32_t u = bits_of(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) /* NaN: keep it one */
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= bits_of(65520.0f)) /* rounds up to more than the largest half, 65504 */
        return (uint16_t)(sign | 0x7c00);
    if (a <
        bits_of(0x1p-14f)) /* subnormal: the last bit of 0.5f + |f| is worth 2^-24, as is ours */
        return (uint16_t)(sign | (bits_of(float_of(a) + 0.5f) - bits_of(0.5f)));
    a += 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | (a - ((127u - 15) << 23)) >> 13);
}
