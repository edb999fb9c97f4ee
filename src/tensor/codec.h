/* codec.h - the functions behind the type table. Private to src/tensor; use ttype_info(). */
#pragma once

#include <stddef.h>

#define CODEC(name)                                                                                \
    void decode_##name(const void *blocks, size_t n, float *out);                                  \
    void encode_##name(const float *in, size_t n, void *blocks);
CODEC(f32)
CODEC(f16)
CODEC(bf16)
CODEC(q4_0)
CODEC(q4_1)
CODEC(q5_0)
CODEC(q5_1)
CODEC(q8_0)
CODEC(q2_k)
CODEC(q3_k)
CODEC(q4_k)
CODEC(q5_k)
CODEC(q6_k)
CODEC(iq4_nl)
CODEC(iq4_xs)
#undef CODEC
