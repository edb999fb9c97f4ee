/* Products with AVX-512 VNNI and BF16.
 *
 * A pass multiplies a tile of 32 rows with a group of w tokens: 2 w sums of 16 rows in registers,
 * weights unpacked on the way from the cache, four activations at a time broadcast by the load
 * ports. While a tile is at work, its passes fetch the next tile, so memory stays busy for any
 * number of tokens. */
#include <immintrin.h>
#include <string.h>

#include "base/err.h"
#include "kernels/layout.h"
#include "kernels/x86.h"
#include "kernels/x86_matmul.h"
#include "tensor/block.h"

/* One pass: sums[i][row] for w tokens. */
typedef void pass_fn(const uint8_t *tile, const uint8_t *x, int n_cols, struct ahead ahead,
                     float sums[KERNEL_GROUP][KERNEL_TILE]);

/* As assembly: gcc 12 copies the accumulator of _mm512_dpbusd_epi32 around twice. */
INLINE __m512i dot4(__m512i sum, __m512i u, __m512i q)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(q));
    return sum;
}

INLINE __m512i load(const void *p)
{
    return _mm512_loadu_si512(p);
}

INLINE __m512 load_half(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}

INLINE __m512i broadcast4(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
}

/* Codes of four columns (number c4 of 32) of the half h of the rows. */
INLINE __m512i codes_of(const struct layout l, const uint8_t *codes, int c4, int h)
{
    const uint8_t *low = codes + 64 * h, *high = low + 128 * l.low_bits;
    __m512i u;
    if (l.low_bits == 8)
        return load(low + 128 * c4);
    if (l.low_bits == 4)
        u = _mm512_and_si512(_mm512_srli_epi32(load(low + c4 / 2 * 128), (unsigned)(c4 % 2 * 4)),
                             _mm512_set1_epi8(15));
    else
        u = _mm512_and_si512(_mm512_srli_epi32(load(low + c4 / 4 * 128), (unsigned)(c4 % 4 * 2)),
                             _mm512_set1_epi8(3));
    if (l.high_bits) {
        int in_byte = 8 / l.high_bits;
        int shift = l.low_bits - c4 % in_byte * l.high_bits; /* to the left */
        __m512i b = load(high + c4 / in_byte * 128);
        b = shift >= 0 ? _mm512_slli_epi32(b, (unsigned)shift)
                       : _mm512_srli_epi32(b, (unsigned)-shift);
        char mask = (char)(((1 << l.high_bits) - 1) << l.low_bits);
        u = _mm512_ternarylogic_epi32(u, b, _mm512_set1_epi8(mask), 0xf8); /* u | (b & mask) */
    }
    return u;
}

INLINE __m512i table_of(const struct layout l, __m512i u)
{
    if (!l.table)
        return u;
    __m128i t = _mm_xor_si128(_mm_loadu_si128((const __m128i *)iq4_values), _mm_set1_epi8(-128));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), u);
}

/* Scales of group g of a block, rows of half h. */
INLINE __m512 scale_of(const struct layout l, const uint8_t *block, int g, int h)
{
    __m512 d = load_half(block + 32 * h);
    if (!l.super)
        return d;
    __m128i sc = _mm_loadu_si128((const __m128i *)(block + (l.min ? 128 : 64) + 32 * g + 16 * h));
    __m512i wide = l.min ? _mm512_cvtepu8_epi32(sc) : _mm512_cvtepi8_epi32(sc);
    return _mm512_mul_ps(d, _mm512_cvtepi32_ps(wide));
}

/* What to add for each unit of the sum of activations. */
INLINE __m512 min_of(const struct layout l, const uint8_t *block, int g, int h)
{
    __m512 m = load_half(block + 64 + 32 * h);
    if (!l.super)
        return m;
    const uint8_t *mn = block + 128 + layout_mn_at(256 / l.group, g / 2 * 2, 16 * h);
    __m512i pairs = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)mn));
    __m512i wide =
        g % 2 ? _mm512_srli_epi32(pairs, 16) : _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff));
    return _mm512_mul_ps(m, _mm512_sub_ps(_mm512_setzero_ps(), _mm512_cvtepi32_ps(wide)));
}

INLINE int log2_of(int power)
{
    return __builtin_ctz((unsigned)power);
}

/* Where the integer sum of columns [16 * part, ...) of token i begins: -zero * sum(q), which for
 * activations of ACT_Q8_POW2 counts from the bits of base. */
INLINE __m512i start_of(const struct layout l, const uint8_t *x, int part, int w, int i)
{
    if (!layout_pow2(&l))
        return l.zero ? _mm512_slli_epi32(_mm512_set1_epi32(act_nsum((void *)x, w)[i]),
                                          (unsigned)log2_of(l.zero))
                      : _mm512_setzero_si512();
    __m512i base = broadcast4((const int8_t *)(act_base((void *)x, w) + i));
    if (!l.zero)
        return base;
    __m512i start = _mm512_set1_epi32(act_start((void *)x, w)[part * w + i]);
    if (l.zero == 32)
        return start;
    start = _mm512_srai_epi32(_mm512_sub_epi32(start, base), 5 - (unsigned)log2_of(l.zero));
    return _mm512_add_epi32(start, base);
}

/* What the sum of token i stands for, its scale included where that is a power of two. */
INLINE __m512 sum_of(const struct layout l, const uint8_t *x, int w, int i, __m512i isum)
{
    if (!layout_pow2(&l))
        return _mm512_cvtepi32_ps(isum);
    return _mm512_sub_ps(_mm512_castsi512_ps(isum), _mm512_set1_ps(act_base((void *)x, w)[i]));
}

/* Sum of the activations of a group of columns, times the token's scale. */
INLINE float act_sum(const struct layout l, const uint8_t *x, int part, int w, int i)
{
    if (l.group == 32)
        return act_dsum((void *)x, w)[i];
    float start;
    memcpy(&start, act_start((void *)x, w) + part * w + i, sizeof start);
    return (act_base((void *)x, w)[i] - start) / 32;
}

INLINE void add_sums(const struct layout l, const uint8_t *block, const uint8_t *x, int g, int part,
                     int w, __m512i isum[2][6], __m512 acc[2][6])
{
    UNROLL
    for (int h = 0; h < 2; h++) {
        __m512 scale = scale_of(l, block, g, h);
        UNROLL
        for (int i = 0; i < w; i++) {
            __m512 both = scale;
            if (!layout_pow2(&l))
                both = _mm512_mul_ps(scale, _mm512_set1_ps(act_scale((void *)x)[i]));
            acc[h][i] = _mm512_fmadd_ps(sum_of(l, x, w, i, isum[h][i]), both, acc[h][i]);
        }
        if (!l.min || layout_word_mins(&l))
            continue;
        __m512 min = min_of(l, block, g, h);
        UNROLL
        for (int i = 0; i < w; i++)
            acc[h][i] = _mm512_fmadd_ps(min, _mm512_set1_ps(act_sum(l, x, part, w, i)), acc[h][i]);
    }
}

INLINE __m512i dot2(__m512i sum, __m512i u, __m512i q)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(q));
    return sum;
}

/* The minimums of a super block with groups of 32 columns, two groups in a product of 16-bit
 * numbers. */
INLINE void add_word_mins(const uint8_t *block, const uint8_t *x, int w, __m512 acc[2][6])
{
    const uint8_t *mn = block + 128 + layout_mn_at(8, 0, 0);
    const int32_t *log2_unit = act_minsum((uint8_t *)x + ACT_MINSUM_LOG2 * ACT_Q8_BLOCK * w, w);
    __m512i isum[2][6];
    UNROLL
    for (int i = 0; i < w; i++)
        isum[0][i] = isum[1][i] = _mm512_setzero_si512();
    ONE_BY_ONE /* unrolled, gcc mixes the steps and runs out of registers */
        for (int pair = 0; pair < 4; pair++)
    {
        const int32_t *sums = act_minsum((uint8_t *)x + pair * ACT_Q8_BLOCK * w, w);
        __m256i low = _mm256_loadu_si256((const __m256i *)(mn + 64 * pair));
        __m256i high = _mm256_loadu_si256((const __m256i *)(mn + 64 * pair + 32));
        __m512i u0 = _mm512_cvtepu8_epi16(low), u1 = _mm512_cvtepu8_epi16(high);
        UNROLL
        for (int i = 0; i < w; i++) {
            __m512i v = _mm512_set1_epi32(sums[i]);
            isum[0][i] = dot2(isum[0][i], u0, v);
            isum[1][i] = dot2(isum[1][i], u1, v);
        }
    }
    UNROLL
    for (int h = 0; h < 2; h++) {
        __m512 min = load_half(block + 64 + 32 * h);
        UNROLL
        for (int i = 0; i < w; i++) {
            /* unlike a product, this leaves the units of the dot products alone */
            __m512 log2 = _mm512_castsi512_ps(_mm512_set1_epi32(log2_unit[i]));
            __m512 both = _mm512_scalef_ps(min, log2);
            acc[h][i] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(isum[h][i]), both, acc[h][i]);
        }
    }
}

/* 32 columns, part s of the block. */
INLINE void pass_32(const struct layout l, const uint8_t *block, const uint8_t *codes,
                    const uint8_t *x, int s, int w, __m512 acc[2][6])
{
    const int8_t *q = act_codes((void *)x, w);
    int parts = 32 / l.group;
    UNROLL
    for (int part = 0; part < parts; part++) {
        __m512i isum[2][6];
        UNROLL
        for (int i = 0; i < w; i++)
            isum[0][i] = isum[1][i] = start_of(l, x, part, w, i);
        UNROLL
        for (int c4 = 8 / parts * part; c4 < 8 / parts * (part + 1); c4++) {
            __m512i u0 = table_of(l, codes_of(l, codes, c4, 0));
            __m512i u1 = table_of(l, codes_of(l, codes, c4, 1));
            UNROLL
            for (int i = 0; i < w; i++) {
                __m512i v = broadcast4(q + (c4 * w + i) * 4);
                isum[0][i] = dot4(isum[0][i], u0, v);
                isum[1][i] = dot4(isum[1][i], u1, v);
            }
        }
        add_sums(l, block, x, s * parts + part, part, w, isum, acc);
    }
}

INLINE void store_sums(int w, __m512 acc[2][6], float sums[KERNEL_GROUP][KERNEL_TILE])
{
    UNROLL
    for (int i = 0; i < w; i++) {
        _mm512_storeu_ps(sums[i], acc[0][i]);
        _mm512_storeu_ps(sums[i] + 16, acc[1][i]);
    }
}

INLINE void pass_q8(enum ttype type, int w, const uint8_t *tile, const uint8_t *x, int n_cols,
                    struct ahead ahead, float sums[KERNEL_GROUP][KERNEL_TILE])
{
    const struct layout l = layout_of(type);
    __m512 acc[2][6];
    UNROLL
    for (int i = 0; i < w; i++)
        acc[0][i] = acc[1][i] = _mm512_setzero_ps();
    for (int b = 0; b < n_cols / l.block; b++, tile += layout_block_bytes(&l)) {
        const uint8_t *codes = tile + layout_header_bytes(&l);
        if (layout_word_mins(&l))
            add_word_mins(tile, x, w, acc);
        for (int s = 0; s < l.block / 32; s++, codes += layout_code_bytes(&l)) {
            fetch(&ahead);
            pass_32(l, tile, codes, x, s, w, acc);
            x += ACT_Q8_BLOCK * w;
        }
    }
    store_sums(w, acc, sums);
}

/* --- float weights: one column (or pair of columns) at a time -----------------------------------
 */

INLINE __m512 float_weights(enum ttype type, const uint8_t *p)
{
    return type == TTYPE_F32 ? _mm512_loadu_ps(p) : load_half(p);
}

INLINE void pass_float(enum ttype type, int w, const uint8_t *tile, const uint8_t *x, int n_cols,
                       struct ahead ahead, float sums[KERNEL_GROUP][KERNEL_TILE])
{
    size_t half = type == TTYPE_F32 ? 64 : 32;
    __m512 acc[2][6];
    UNROLL
    for (int i = 0; i < w; i++)
        acc[0][i] = acc[1][i] = _mm512_setzero_ps();
    const float *v = (const float *)x;
    for (int c = 0; c < n_cols; c++, tile += 2 * half, v += w) {
        if (c % 32 == 0)
            fetch(&ahead);
        __m512 w0 = float_weights(type, tile), w1 = float_weights(type, tile + half);
        UNROLL
        for (int i = 0; i < w; i++) {
            acc[0][i] = _mm512_fmadd_ps(w0, _mm512_set1_ps(v[i]), acc[0][i]);
            acc[1][i] = _mm512_fmadd_ps(w1, _mm512_set1_ps(v[i]), acc[1][i]);
        }
    }
    store_sums(w, acc, sums);
}

INLINE void pass_bf16(enum ttype type, int w, const uint8_t *tile, const uint8_t *x, int n_cols,
                      struct ahead ahead, float sums[KERNEL_GROUP][KERNEL_TILE])
{
    (void)type;
    __m512 acc[2][6];
    UNROLL
    for (int i = 0; i < w; i++)
        acc[0][i] = acc[1][i] = _mm512_setzero_ps();
    for (int c = 0; c < n_cols; c += 2, tile += 128, x += 4 * w) {
        if (c % 32 == 0)
            fetch(&ahead);
        __m512bh w0 = (__m512bh)load(tile), w1 = (__m512bh)load(tile + 64);
        UNROLL
        for (int i = 0; i < w; i++) {
            __m512bh v = (__m512bh)broadcast4((const int8_t *)x + 4 * i);
            acc[0][i] = _mm512_dpbf16_ps(acc[0][i], w0, v);
            acc[1][i] = _mm512_dpbf16_ps(acc[1][i], w1, v);
        }
    }
    store_sums(w, acc, sums);
}

/* --- one function for each type and group width --------------------------------------------------
 */

#define PASS(kind, name, type, w)                                                                  \
    static void pass_##name##_##w(const uint8_t *tile, const uint8_t *x, int n_cols,               \
                                  struct ahead ahead, float sums[KERNEL_GROUP][KERNEL_TILE])       \
    {                                                                                              \
        kind(type, w, tile, x, n_cols, ahead, sums);                                               \
    }
#define PASSES(kind, name, type)                                                                   \
    PASS(kind, name, type, 1)                                                                      \
    PASS(kind, name, type, 2)                                                                      \
    PASS(kind, name, type, 3)                                                                      \
    PASS(kind, name, type, 4)                                                                      \
    PASS(kind, name, type, 5)                                                                      \
    PASS(kind, name, type, 6)
EACH_TYPE(PASSES)

#define ROW(kind, name, type)                                                                      \
    [type] = {pass_##name##_1, pass_##name##_2, pass_##name##_3,                                   \
              pass_##name##_4, pass_##name##_5, pass_##name##_6},
static pass_fn *const passes[TTYPE_BF16 + 1][KERNEL_GROUP] = {EACH_TYPE(ROW)};

static void run_pass(enum ttype type, int w, const uint8_t *tile, const uint8_t *x, int n_cols,
                     struct ahead ahead, float sums[KERNEL_GROUP][KERNEL_TILE])
{
    passes[type][w - 1](tile, x, n_cols, ahead, sums);
}

void avx512_matmul(const struct matmul *j, int tile_begin, int tile_end)
{
    matmul_tiles(j, tile_begin, tile_end, run_pass, KERNEL_GROUP);
}

int64_t avx512_dot_rounds(int64_t rounds)
{
    enum { SUMS = 16 };
    __m512i sums[SUMS], u = _mm512_set1_epi8(3), q = _mm512_set1_epi8(-5);
    UNROLL
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm512_setzero_si512();
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL
        for (int i = 0; i < SUMS; i++)
            __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sums[i]) : "v"(u), "v"(q));
    }
    return rounds * SUMS * 64;
}
