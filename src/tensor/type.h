/* type.h - the data types of tensors, as GGUF numbers them, and their scalar decoding.
 *
 * A quantised row is a sequence of blocks of block_elems numbers in block_bytes bytes. Layouts are
 * drawn in block.h (source: the GGUF specification and ggml's published block structs). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum ttype {
    TTYPE_F32 = 0,
    TTYPE_F16 = 1,
    TTYPE_Q4_0 = 2,
    TTYPE_Q4_1 = 3,
    TTYPE_Q5_0 = 6,
    TTYPE_Q5_1 = 7,
    TTYPE_Q8_0 = 8,
    TTYPE_Q2_K = 10,
    TTYPE_Q3_K = 11,
    TTYPE_Q4_K = 12,
    TTYPE_Q5_K = 13,
    TTYPE_Q6_K = 14,
    TTYPE_IQ4_NL = 20,
    TTYPE_IQ4_XS = 23,
    TTYPE_BF16 = 30,
};

struct ttype_info {
    const char *name;     /* "Q4_K" */
    uint16_t block_elems; /* 1, 32 or 256 */
    uint16_t block_bytes;
    /* Decodes n elements (a multiple of block_elems) to out. */
    void (*decode)(const void *blocks, size_t n, float *out);
    /* Encodes n elements, round to nearest with the simplest scale search: for tests, synthetic
     * models and adapters, not for publishing models. NULL where nobody needs it. */
    void (*encode)(const float *in, size_t n, void *blocks);
};

/* NULL for a type this program does not read. */
const struct ttype_info *ttype_info(uint32_t type);

/* Bytes of a row of n elements; n must be a multiple of block_elems. */
size_t ttype_row_bytes(enum ttype type, size_t n);

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f); /* round to nearest even */

static inline float bf16_to_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)h << 16};
    return v.f;
}

static inline uint16_t f32_to_bf16(float f) /* round to nearest even; NaN stays NaN */
{
    union {
        float f;
        uint32_t u;
    } v = {f};
    if ((v.u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(v.u >> 16 | 64);
    return (uint16_t)((v.u + 0x7fff + (v.u >> 16 & 1)) >> 16);
}
