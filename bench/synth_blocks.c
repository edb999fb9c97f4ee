/* synth_blocks.c - random weights in any tensor type, as fast as random bits come.
 *
 * Quantised numbers are random bits, uniform over their levels; only the scales are computed. Types
 * with a minimum get the one that brings the mean to zero; in the others scales of either sign do.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "synth_private.h"
#include "tensor/block.h"

enum { N_SAMPLES = 1 << 14 };

struct synth_source {
    enum ttype type;
    float deviation;
    struct rng rng;
    uint8_t samples[N_SAMPLES * 4]; /* for plain types: encoded normal numbers to draw from */
};

static void random_bytes(struct rng *r, void *p, size_t n)
{
    uint8_t *to = p;
    for (; n >= 8; n -= 8, to += 8) {
        uint64_t v = rng_u64(r);
        memcpy(to, &v, 8);
    }
    uint64_t v = rng_u64(r);
    memcpy(to, &v, n);
}

/* Uniform over 0.5..1.5 times x, so that blocks differ in scale as real ones do. */
static float vary(struct rng *r, float x)
{
    return x * (0.5f + (float)(rng_u64(r) >> 40) * 0x1p-24f);
}

static uint16_t half_varied(struct rng *r, float x)
{
    return f32_to_f16(vary(r, x));
}

static uint16_t half_either_sign(struct rng *r, float x)
{
    uint16_t h = half_varied(r, x);
    return (uint16_t)(h ^ (rng_u64(r) >> 48 & 0x8000));
}

/* Deviation of a uniform draw from k whole numbers in a row. */
static float spread(int k)
{
    return sqrtf((float)(k * k - 1) / 12);
}

/* Root mean square of the sixteen IQ4 levels. */
static float iq4_rms(void)
{
    float sum = 0;
    for (int i = 0; i < 16; i++)
        sum += (float)(iq4_values[i] * iq4_values[i]);
    return sqrtf(sum / 16);
}

#define FILL(fn, type, elems)                                                                      \
    static void fn##_block(struct rng *r, float deviation, struct type *b);                        \
    static void fn(struct synth_source *s, void *blocks, size_t n)                                 \
    {                                                                                              \
        struct type *b = blocks;                                                                   \
        for (size_t i = 0; i < n / (elems); i++)                                                   \
            fn##_block(&s->rng, s->deviation, &b[i]);                                              \
    }                                                                                              \
    static void fn##_block(struct rng *r, float deviation, struct type *b)

FILL(fill_q4_0, block_q4_0, BLOCK_SMALL)
{
    random_bytes(r, b, sizeof *b);
    b->d = half_either_sign(r, deviation / spread(16));
}

FILL(fill_q4_1, block_q4_1, BLOCK_SMALL)
{
    random_bytes(r, b, sizeof *b);
    float d = vary(r, deviation / spread(16));
    b->d = f32_to_f16(d);
    b->m = f32_to_f16(-7.5f * d);
}

FILL(fill_q5_0, block_q5_0, BLOCK_SMALL)
{
    random_bytes(r, b, sizeof *b);
    b->d = half_either_sign(r, deviation / spread(32));
}

FILL(fill_q5_1, block_q5_1, BLOCK_SMALL)
{
    random_bytes(r, b, sizeof *b);
    float d = vary(r, deviation / spread(32));
    b->d = f32_to_f16(d);
    b->m = f32_to_f16(-15.5f * d);
}

FILL(fill_q8_0, block_q8_0, BLOCK_SMALL)
{
    random_bytes(r, b, sizeof *b);
    for (int i = 0; i < 32; i++)
        b->qs[i] = b->qs[i] == -128 ? -127 : b->qs[i]; /* no encoder writes -128 */
    b->d = half_varied(r, deviation / spread(255));
}

FILL(fill_q2_k, block_q2_k, BLOCK_SUPER)
{
    random_bytes(r, b, sizeof *b);
    for (int g = 0; g < 16; g++) { /* scale and min alike, 8..15, so that the mean is zero */
        int scale = 8 + (b->scales[g] & 7);
        b->scales[g] = (uint8_t)(scale | scale << 4);
    }
    float d = vary(r, deviation / (spread(4) * 11.7f));
    b->d = f32_to_f16(d);
    b->dmin = f32_to_f16(1.5f * d);
}

FILL(fill_q3_k, block_q3_k, BLOCK_SUPER)
{
    random_bytes(r, b, sizeof *b);
    b->d = half_varied(r, deviation / (spread(8) * spread(64)));
}

/* Random 6-bit scales from 16 up, each min equal to its scale; their root mean square is 42. */
static void random_scales(struct rng *r, uint8_t scales[12])
{
    uint8_t s[8];
    random_bytes(r, s, sizeof s);
    for (int g = 0; g < 8; g++)
        s[g] = (uint8_t)(16 + s[g] % 48);
    for (int g = 0; g < 4; g++) {
        scales[g] = scales[g + 4] = (uint8_t)(s[g] | s[g + 4] >> 4 << 6);
        scales[g + 8] = (uint8_t)((s[g + 4] & 15) | (s[g + 4] & 15) << 4);
    }
}

FILL(fill_q4_k, block_q4_k, BLOCK_SUPER)
{
    random_bytes(r, b->qs, sizeof b->qs);
    random_scales(r, b->scales);
    float d = vary(r, deviation / (spread(16) * 42));
    b->d = f32_to_f16(d);
    b->dmin = f32_to_f16(7.5f * d);
}

FILL(fill_q5_k, block_q5_k, BLOCK_SUPER)
{
    random_bytes(r, b->qs, sizeof b->qs);
    random_bytes(r, b->qh, sizeof b->qh);
    random_scales(r, b->scales);
    float d = vary(r, deviation / (spread(32) * 42));
    b->d = f32_to_f16(d);
    b->dmin = f32_to_f16(15.5f * d);
}

FILL(fill_q6_k, block_q6_k, BLOCK_SUPER)
{
    random_bytes(r, b, sizeof *b);
    b->d = half_varied(r, deviation / (spread(64) * spread(256)));
}

FILL(fill_iq4_nl, block_iq4_nl, BLOCK_SMALL)
{
    random_bytes(r, b, sizeof *b);
    b->d = half_either_sign(r, deviation / iq4_rms());
}

FILL(fill_iq4_xs, block_iq4_xs, BLOCK_SUPER)
{
    random_bytes(r, b, sizeof *b);
    b->d = half_varied(r, deviation / (iq4_rms() * spread(64)));
}

/* Draws from the samples; 14 bits a draw, four draws a random number. */
static void fill_plain(struct synth_source *s, void *blocks, size_t n)
{
    size_t size = ttype_info(s->type)->block_bytes;
    uint8_t *to = blocks;
    for (size_t i = 0; i < n; i += 4) {
        uint64_t bits = rng_u64(&s->rng);
        for (size_t k = i; k < n && k < i + 4; k++, bits >>= 16, to += size)
            memcpy(to, s->samples + bits % N_SAMPLES * size, size);
    }
}

typedef void fill_fn(struct synth_source *s, void *blocks, size_t n);

static fill_fn *const fills[] = {
    [TTYPE_F32] = fill_plain, [TTYPE_F16] = fill_plain,     [TTYPE_BF16] = fill_plain,
    [TTYPE_Q4_0] = fill_q4_0, [TTYPE_Q4_1] = fill_q4_1,     [TTYPE_Q5_0] = fill_q5_0,
    [TTYPE_Q5_1] = fill_q5_1, [TTYPE_Q8_0] = fill_q8_0,     [TTYPE_Q2_K] = fill_q2_k,
    [TTYPE_Q3_K] = fill_q3_k, [TTYPE_Q4_K] = fill_q4_k,     [TTYPE_Q5_K] = fill_q5_k,
    [TTYPE_Q6_K] = fill_q6_k, [TTYPE_IQ4_NL] = fill_iq4_nl, [TTYPE_IQ4_XS] = fill_iq4_xs,
};

struct synth_source *synth_source_new(enum ttype type, float deviation, uint64_t seed)
{
    struct synth_source *s = xcalloc(1, sizeof *s);
    s->type = type;
    s->deviation = deviation;
    rng_seed(&s->rng, seed);
    if (fills[type] == fill_plain) {
        const struct ttype_info *t = ttype_info(type);
        for (int i = 0; i < N_SAMPLES; i++) {
            float x = rng_normal(&s->rng) * deviation;
            t->encode(&x, 1, s->samples + (size_t)i * t->block_bytes);
        }
    }
    return s;
}

void synth_source_fill(struct synth_source *s, void *blocks, size_t n)
{
    fills[s->type](s, blocks, n);
}

void synth_source_free(struct synth_source *s)
{
    free(s);
}
