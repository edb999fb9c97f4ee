/* Products with AVX2, compiled twice: alone, and with AVX-VNNI.
 *
 * 16 registers hold the sums of 16 rows and 3 tokens, so a group of w tokens takes two halves of
 * the tile times w / 3 passes. Without VNNI, vpmaddubsw multiplies 8-bit pairs into 16-bit sums,
 * which hold as many terms as the width of the codes lets them: 2 * 127 * largest code * terms <
 * 32768. */
#include <immintrin.h>
#include <string.h>

#include "kernels/layout.h"
#include "kernels/x86_avx2.h"
#include "kernels/x86_matmul.h"
#include "tensor/block.h"

#ifdef __AVXVNNI__
#define EXPORT(name) avxvnni_##name
enum { VNNI = 1 };
#else
#define EXPORT(name) avx2_##name
enum { VNNI = 0 };
#endif

enum {
    CHUNK = 3,      /* tokens in a pass */
    NEAR_TOKENS = 2 /* more take several passes over a tile */
};

/* Where a pass finds and leaves its things: half h of the rows of a tile, some tokens of a group of
 * w. x points at the first of them: all that is kept of a token takes 4 bytes side by side. */
struct pass {
    const uint8_t *tile, *x;
    int n_cols, h;
    struct ahead ahead;
    float (*sums)[KERNEL_TILE];
};

INLINE __m256i load(const void *p)
{
    return _mm256_loadu_si256(p);
}

INLINE __m256 load_half(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}

INLINE __m256i broadcast4(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

INLINE __m256i dot4_vnni(__m256i sum, __m256i u, __m256i q)
{
#ifdef __AVXVNNI__
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(u), "x"(q));
#endif
    return sum;
}

/* Codes above 127 are multiplied as signed numbers where there is no VNNI. */
INLINE bool is_signed(const struct layout l)
{
    return !VNNI && l.zero == 128;
}

/* How many products of four columns a 16-bit sum holds. */
INLINE int terms_of(const struct layout l)
{
    int largest = (1 << (l.low_bits + l.high_bits)) - 1;
    int terms = 32767 / (2 * 127 * largest);
    return terms > 8 ? 8 : terms;
}

/* Codes of four columns (number c4 of 32) of 8 rows; `codes` points at the rows' first. */
INLINE __m256i codes_of(const struct layout l, const uint8_t *codes, int c4)
{
    const uint8_t *high = codes + 128 * l.low_bits;
    __m256i u;
    if (l.low_bits == 8)
        u = load(codes + 128 * c4);
    else if (l.low_bits == 4)
        u = _mm256_and_si256(_mm256_srli_epi32(load(codes + c4 / 2 * 128), c4 % 2 * 4),
                             _mm256_set1_epi8(15));
    else
        u = _mm256_and_si256(_mm256_srli_epi32(load(codes + c4 / 4 * 128), c4 % 4 * 2),
                             _mm256_set1_epi8(3));
    if (l.high_bits) {
        int in_byte = 8 / l.high_bits;
        int shift = l.low_bits - c4 % in_byte * l.high_bits; /* to the left */
        __m256i b = load(high + c4 / in_byte * 128);
        b = shift >= 0 ? _mm256_slli_epi32(b, shift) : _mm256_srli_epi32(b, -shift);
        char mask = (char)(((1 << l.high_bits) - 1) << l.low_bits);
        u = _mm256_or_si256(u, _mm256_and_si256(b, _mm256_set1_epi8(mask)));
    }
    if (l.table)
        u = _mm256_shuffle_epi8(
            _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)iq4_values)), u);
    bool flip = l.table ? !is_signed(l) : is_signed(l); /* the table's values are signed */
    return flip ? _mm256_xor_si256(u, _mm256_set1_epi8(-128)) : u;
}

/* Scales of group g of a block: 8 rows from `row` on. */
INLINE __m256 scale_of(const struct layout l, const uint8_t *block, int g, int row)
{
    __m256 d = load_half(block + 2 * row);
    if (!l.super)
        return d;
    __m128i sc = _mm_loadl_epi64((const __m128i *)(block + (l.min ? 128 : 64) + 32 * g + row));
    __m256i wide = l.min ? _mm256_cvtepu8_epi32(sc) : _mm256_cvtepi8_epi32(sc);
    return _mm256_mul_ps(d, _mm256_cvtepi32_ps(wide));
}

/* What to add for each unit of the sum of activations. */
INLINE __m256 min_of(const struct layout l, const uint8_t *block, int g, int row)
{
    __m256 m = load_half(block + 64 + 2 * row);
    if (!l.super)
        return m;
    const uint8_t *mn = block + 128 + layout_mn_at(256 / l.group, g / 2 * 2, row);
    __m256i pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)mn));
    __m256i wide =
        g % 2 ? _mm256_srli_epi32(pairs, 16) : _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff));
    return _mm256_mul_ps(m, _mm256_sub_ps(_mm256_setzero_ps(), _mm256_cvtepi32_ps(wide)));
}

INLINE int log2_of(int power)
{
    return __builtin_ctz((unsigned)power);
}

/* What the integer sum of columns [16 * part, ...) of token i begins with: -zero * sum(q), which
 * for activations of ACT_Q8_POW2 counts from the bits of base. */
INLINE __m256i start_of(const struct layout l, const uint8_t *x, int part, int w, int i)
{
    if (!layout_pow2(&l))
        return l.zero && !is_signed(l)
                   ? _mm256_slli_epi32(_mm256_set1_epi32(act_nsum((void *)x, w)[i]),
                                       log2_of(l.zero))
                   : _mm256_setzero_si256();
    __m256i base = broadcast4((const int8_t *)(act_base((void *)x, w) + i));
    if (!l.zero)
        return base;
    __m256i start = _mm256_set1_epi32(act_start((void *)x, w)[part * w + i]);
    if (l.zero == 32)
        return start;
    start = _mm256_srai_epi32(_mm256_sub_epi32(start, base), 5 - log2_of(l.zero));
    return _mm256_add_epi32(start, base);
}

/* What the sum of token i stands for, its scale included where that is a power of two. */
INLINE __m256 sum_of_token(const struct layout l, const uint8_t *x, int w, int i, __m256i isum)
{
    if (!layout_pow2(&l))
        return _mm256_cvtepi32_ps(isum);
    return _mm256_sub_ps(_mm256_castsi256_ps(isum),
                         _mm256_broadcast_ss(act_base((void *)x, w) + i));
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

/* Keeps gcc from making a tree of a chain of sums, all leaves of which need registers. */
INLINE __m256i in_order(__m256i v)
{
    __asm__("" : "+x"(v));
    return v;
}

/* Adds the products of four-column numbers c4 .. c4 + n - 1, which fit one 16-bit sum. */
INLINE void dot_run(const struct layout l, const uint8_t *codes, const int8_t *q, int w, int c4,
                    int n, int tokens, __m256i isum[2][CHUNK])
{
    __m256i sum16[2][CHUNK];
    UNROLL
    for (int c = 0; c < n; c++)
        UNROLL
    for (int v = 0; v < 2; v++) {
        __m256i u = codes_of(l, codes + 32 * v, c4 + c);
        __m256i size = is_signed(l) ? _mm256_abs_epi8(u) : u;
        UNROLL
        for (int i = 0; i < tokens; i++) {
            __m256i a = broadcast4(q + ((c4 + c) * w + i) * 4);
            if (VNNI) {
                isum[v][i] = dot4_vnni(isum[v][i], u, a);
                continue;
            }
            if (is_signed(l))
                a = _mm256_sign_epi8(a, u);
            __m256i p = _mm256_maddubs_epi16(size, a);
            sum16[v][i] = c ? in_order(_mm256_add_epi16(sum16[v][i], p)) : p;
        }
    }
    UNROLL
    for (int i = 0; i < 2 * tokens && !VNNI; i++)
        isum[i % 2][i / 2] = _mm256_add_epi32(
            isum[i % 2][i / 2], _mm256_madd_epi16(sum16[i % 2][i / 2], _mm256_set1_epi16(1)));
}

INLINE void pass_32(const struct layout l, const struct pass *p, const uint8_t *block,
                    const uint8_t *codes, const uint8_t *x, int s, int w, int tokens,
                    __m256 acc[2][CHUNK])
{
    int parts = 32 / l.group, each = 8 / parts;
    int run = is_signed(l) ? 1 : VNNI || terms_of(l) > each ? each : terms_of(l);
    const int8_t *q = act_codes((void *)x, w);
    const float *scales = act_scale((void *)x);
    UNROLL
    for (int part = 0; part < parts; part++) {
        __m256i isum[2][CHUNK];
        UNROLL
        for (int i = 0; i < tokens; i++)
            isum[0][i] = isum[1][i] = VNNI ? start_of(l, x, part, w, i) : _mm256_setzero_si256();
        UNROLL
        for (int c4 = each * part; c4 < each * (part + 1); c4 += run)
            dot_run(l, codes + 64 * p->h, q, w, c4, run, tokens, isum);
        UNROLL
        for (int v = 0; v < 2; v++) {
            int row = 16 * p->h + 8 * v, g = s * parts + part;
            __m256 scale = scale_of(l, block, g, row);
            UNROLL
            for (int i = 0; i < tokens; i++) {
                if (!VNNI) /* not sooner: registers are scarce before */
                    isum[v][i] = _mm256_add_epi32(isum[v][i], start_of(l, x, part, w, i));
                __m256 sum = sum_of_token(l, x, w, i, isum[v][i]), both = scale;
                if (!layout_pow2(&l))
                    both = _mm256_mul_ps(scale, _mm256_broadcast_ss(scales + i));
                acc[v][i] = _mm256_fmadd_ps(sum, both, acc[v][i]);
            }
            if (!l.min || layout_word_mins(&l))
                continue;
            __m256 min = min_of(l, block, g, row);
            UNROLL
            for (int i = 0; i < tokens; i++) {
                __m256 sum = _mm256_set1_ps(act_sum(l, x, part, w, i));
                acc[v][i] = _mm256_fmadd_ps(min, sum, acc[v][i]);
            }
        }
    }
}

/* The minimums of a super block with groups of 32 columns, two groups in a product of 16-bit
 * numbers. */
INLINE void add_word_mins(const struct pass *p, const uint8_t *block, const uint8_t *x, int w,
                          int tokens, __m256 acc[2][CHUNK])
{
    const uint8_t *mn = block + 128 + layout_mn_at(8, 0, 16 * p->h);
    __m256i isum[2][CHUNK];
    UNROLL
    for (int i = 0; i < tokens; i++)
        isum[0][i] = isum[1][i] = _mm256_setzero_si256();
    for (int pair = 0; pair < 4; pair++) {
        const int32_t *sums = act_minsum((uint8_t *)x + pair * ACT_Q8_BLOCK * w, w);
        UNROLL
        for (int v = 0; v < 2; v++) {
            const __m128i *at = (const __m128i *)(mn + 64 * pair + 16 * v);
            __m256i u = _mm256_cvtepu8_epi16(_mm_loadu_si128(at));
            UNROLL
            for (int i = 0; i < tokens; i++)
                isum[v][i] =
                    _mm256_add_epi32(isum[v][i], _mm256_madd_epi16(u, _mm256_set1_epi32(sums[i])));
        }
    }
    uint8_t *unit_block = (uint8_t *)x + ACT_MINSUM_UNIT * ACT_Q8_BLOCK * w;
    const float *units = (const float *)act_minsum(unit_block, w);
    UNROLL
    for (int v = 0; v < 2; v++) {
        __m256 min = load_half(block + 64 + 2 * (16 * p->h + 8 * v));
        UNROLL
        for (int i = 0; i < tokens; i++) {
            __m256 both = _mm256_mul_ps(min, _mm256_broadcast_ss(units + i));
            acc[v][i] = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(isum[v][i]), both, acc[v][i]);
        }
    }
}

INLINE void store_acc(const struct pass *p, int tokens, __m256 acc[2][CHUNK])
{
    UNROLL
    for (int i = 0; i < tokens; i++) {
        _mm256_storeu_ps(p->sums[i] + 16 * p->h, acc[0][i]);
        _mm256_storeu_ps(p->sums[i] + 16 * p->h + 8, acc[1][i]);
    }
}

INLINE void pass_q8(enum ttype type, int w, int tokens, const struct pass *p)
{
    const struct layout l = layout_of(type);
    const uint8_t *block = p->tile, *x = p->x;
    struct ahead ahead = p->ahead;
    __m256 acc[2][CHUNK];
    UNROLL
    for (int i = 0; i < tokens; i++)
        acc[0][i] = acc[1][i] = _mm256_setzero_ps();
    for (int b = 0; b < p->n_cols / l.block; b++, block += layout_block_bytes(&l)) {
        const uint8_t *codes = block + layout_header_bytes(&l);
        if (layout_word_mins(&l))
            add_word_mins(p, block, x, w, tokens, acc);
        for (int s = 0; s < l.block / 32; s++, codes += layout_code_bytes(&l)) {
            fetch(&ahead);
            pass_32(l, p, block, codes, x, s, w, tokens, acc);
            x += ACT_Q8_BLOCK * w;
        }
    }
    store_acc(p, tokens, acc);
}

/* --- float weights -------------------------------------------------------------------------------
 */

INLINE __m256 float_weights(enum ttype type, const uint8_t *p)
{
    return type == TTYPE_F32 ? _mm256_loadu_ps((const float *)p) : load_half(p);
}

INLINE void pass_float(enum ttype type, int w, int tokens, const struct pass *p)
{
    size_t each = type == TTYPE_F32 ? 4 : 2;
    const uint8_t *tile = p->tile + 16 * each * (size_t)p->h;
    const float *x = (const float *)p->x;
    struct ahead ahead = p->ahead;
    __m256 acc[2][CHUNK];
    UNROLL
    for (int i = 0; i < tokens; i++)
        acc[0][i] = acc[1][i] = _mm256_setzero_ps();
    for (int c = 0; c < p->n_cols; c++, tile += KERNEL_TILE * each, x += w) {
        if (c % 32 == 0)
            fetch(&ahead);
        __m256 w0 = float_weights(type, tile), w1 = float_weights(type, tile + 8 * each);
        UNROLL
        for (int i = 0; i < tokens; i++) {
            __m256 v = _mm256_broadcast_ss(x + i);
            acc[0][i] = _mm256_fmadd_ps(w0, v, acc[0][i]);
            acc[1][i] = _mm256_fmadd_ps(w1, v, acc[1][i]);
        }
    }
    store_acc(p, tokens, acc);
}

INLINE __m256 low_half(__m256i v)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}

INLINE __m256 high_half(__m256i v)
{
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000)));
}

INLINE void pass_bf16(enum ttype type, int w, int tokens, const struct pass *p)
{
    (void)type;
    const uint8_t *tile = p->tile + 64 * p->h;
    const int8_t *x = (const int8_t *)p->x;
    struct ahead ahead = p->ahead;
    __m256 acc[2][CHUNK];
    UNROLL
    for (int i = 0; i < tokens; i++)
        acc[0][i] = acc[1][i] = _mm256_setzero_ps();
    for (int c = 0; c < p->n_cols; c += 2, tile += 128, x += 4 * w) {
        if (c % 32 == 0)
            fetch(&ahead);
        __m256i w0 = load(tile), w1 = load(tile + 32);
        UNROLL
        for (int i = 0; i < tokens; i++) {
            __m256i v = broadcast4(x + 4 * i);
            acc[0][i] = _mm256_fmadd_ps(low_half(w0), low_half(v), acc[0][i]);
            acc[1][i] = _mm256_fmadd_ps(low_half(w1), low_half(v), acc[1][i]);
            acc[0][i] = _mm256_fmadd_ps(high_half(w0), high_half(v), acc[0][i]);
            acc[1][i] = _mm256_fmadd_ps(high_half(w1), high_half(v), acc[1][i]);
        }
    }
    store_acc(p, tokens, acc);
}

/* --- one function for each type, width of a group and number of tokens ---------------------------
 */

typedef void pass_fn(const struct pass *p);
#define PASS(kind, name, type, w, tokens)                                                          \
    static void pass_##name##_##w##_##tokens(const struct pass *p)                                 \
    {                                                                                              \
        kind(type, w, tokens, p);                                                                  \
    }
#define PASSES(kind, name, type)                                                                   \
    PASS(kind, name, type, 1, 1)                                                                   \
    PASS(kind, name, type, 2, 2)                                                                   \
    PASS(kind, name, type, 3, 3)                                                                   \
    PASS(kind, name, type, 4, 2)                                                                   \
    PASS(kind, name, type, 5, 2)                                                                   \
    PASS(kind, name, type, 5, 3)                                                                   \
    PASS(kind, name, type, 6, 3)
/* [w - 1][chunk] */
#define ROW(kind, name, type)                                                                      \
    [type] = {{pass_##name##_1_1, NULL},                                                           \
              {pass_##name##_2_2, NULL},                                                           \
              {pass_##name##_3_3, NULL},                                                           \
              {pass_##name##_4_2, pass_##name##_4_2},                                              \
              {pass_##name##_5_2, pass_##name##_5_3},                                              \
              {pass_##name##_6_3, pass_##name##_6_3}},
EACH_TYPE(PASSES)
static pass_fn *const passes[TTYPE_BF16 + 1][KERNEL_GROUP][2] = {EACH_TYPE(ROW)};

static void run_pass(enum ttype type, int w, const uint8_t *tile, const uint8_t *x, int n_cols,
                     struct ahead ahead, float sums[KERNEL_GROUP][KERNEL_TILE])
{
    int chunks = (w + CHUNK - 1) / CHUNK, part = 0;
    size_t bytes = ahead.step * units_of(n_cols);
    for (int h = 0; h < 2; h++)
        for (int c = 0; c < chunks; c++) {
            int i0 = w * c / chunks;
            struct ahead share = ahead; /* near: the first pass fetches for all */
            if (w > NEAR_TOKENS)
                share = ahead_share(ahead.at, bytes, n_cols, part, 2 * chunks);
            else if (part)
                share.step = 0;
            part++;
            struct pass p = {tile, x + 4 * i0, n_cols, h, share, sums + i0};
            passes[type][w - 1][c](&p);
        }
}

void EXPORT(matmul)(const struct matmul *j, int tile_begin, int tile_end)
{
    matmul_tiles(j, tile_begin, tile_end, run_pass, NEAR_TOKENS);
}

int64_t EXPORT(dot_rounds)(int64_t rounds)
{
    enum { SUMS = 12 };
    __m256i sums[SUMS], u = _mm256_set1_epi8(3), q = _mm256_set1_epi8(-5);
    UNROLL
    for (int i = 0; i < SUMS; i++)
        sums[i] = _mm256_setzero_si256();
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL
        for (int i = 0; i < SUMS; i++) {
#ifdef __AVXVNNI__
            __asm__ volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums[i]) : "x"(u), "x"(q));
#else
            __m256i p;
            __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(p) : "x"(u), "x"(q));
            __asm__ volatile("vpaddw %1, %0, %0" : "+x"(sums[i]) : "x"(p));
#endif
        }
    }
    return rounds * SUMS * 32;
}
