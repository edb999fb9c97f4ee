/* x86_matmul.h - the frame of a product that the AVX2 and AVX-512 files share: which tile meets
 * which group of tokens, what is fetched ahead, where sums go. */
#pragma once

#include <stdbool.h>
#include <string.h>

#include "base/err.h"
#include "kernels/layout.h"
#include "kernels/x86.h"

/* What a pass fetches ahead: `step` bytes from `at` on for every 32 columns, into the first-level
 * cache, from where it moves on to the second: asked for the second level alone, as prefetcht1
 * does, lines come up to 20 % slower where memory is the limit (3 to 8 tokens), and 1 to 5 %
 * elsewhere.
 *
 * A single group of few tokens fetches what the pass itself comes to soon: 4 KiB ahead for one or
 * two reads up to 40 % faster than a tile ahead, most where unpacking takes longest; for more
 * tokens 16 KiB are 1 to 13 % better than a tile. Several groups fetch a share of the next tiles
 * each, which keeps memory busy for any number of tokens. */
struct ahead {
    const char *at;
    size_t step;
};

static inline size_t near_bytes(int n_tokens)
{
    return n_tokens <= 2 ? 4 << 10 : 16 << 10;
}

static inline __attribute__((always_inline)) void fetch(struct ahead *ahead)
{
    for (size_t i = 0; i < ahead->step; i += 64)
        __builtin_prefetch(ahead->at + i, 0, 3);
    ahead->at += ahead->step;
}

typedef float tile_sums[KERNEL_GROUP][KERNEL_TILE];

/* Multiplies a tile with a group of w tokens: sums[i][row]. */
typedef void run_pass_fn(enum ttype type, int w, const uint8_t *tile, const uint8_t *x, int n_cols,
                         struct ahead ahead, float sums[KERNEL_GROUP][KERNEL_TILE]);

static inline size_t units_of(int n_cols)
{
    return (size_t)((n_cols + 31) / 32);
}

/* The part-th of `parts` shares of `bytes` bytes from `next` on, for a pass over n_cols columns. */
static inline struct ahead ahead_share(const char *next, size_t bytes, int n_cols, int part,
                                       int parts)
{
    size_t units = units_of(n_cols);
    size_t step = (bytes + units * (size_t)parts - 1) / (units * (size_t)parts);
    step = (step + 63) / 64 * 64;
    size_t begin = step * units * (size_t)part;
    if (begin >= bytes)
        return (struct ahead){next, 0};
    return (struct ahead){next + begin, step};
}

/* Some tiles that stay in the second-level cache while all groups of tokens pass over them: so the
 * activations, which for a long prompt lie further away, are read once for several tiles. */
struct tile_block {
    int begin, end; /* tiles */
    int next_end;   /* the block after this one ends here */
};

enum { TILE_BLOCK_BYTES = 320 << 10 };

/* One tile of the block with one group of tokens, while what follows in the tile is fetched, or a
 * share of the next block. */
static inline void pass_of(const struct packed_matrix *m, const struct act *a,
                           const struct tile_block *b, int tile, int g, run_pass_fn *run,
                           int near_tokens, tile_sums sums)
{
    int first = act_group_begin(a->n_tokens, g), n_groups = act_groups(a->n_tokens);
    int w = act_group_begin(a->n_tokens, g + 1) - first, n_tiles = b->end - b->begin;
    const uint8_t *data = m->data;
    const uint8_t *x = (const uint8_t *)a->data + act_bytes(a->type, a->n_cols, first);
    const uint8_t *own = data + (size_t)tile * m->tile_bytes;
    struct ahead ahead = {(const char *)own + near_bytes(w), m->tile_bytes / units_of(m->n_cols)};
    if (a->n_tokens > near_tokens)
        ahead = ahead_share((const char *)data + (size_t)b->end * m->tile_bytes,
                            (size_t)(b->next_end - b->end) * m->tile_bytes, m->n_cols,
                            g * n_tiles + tile - b->begin, n_groups * n_tiles);
    run(m->type, w, own, x, m->n_cols, ahead, sums);
}

static inline void store_sums_of(const struct matmul *j, int tile, int first, int w,
                                 const tile_sums sums)
{
    int row = tile * KERNEL_TILE;
    int n = j->w->n_rows - row < KERNEL_TILE ? j->w->n_rows - row : KERNEL_TILE;
    for (int i = 0; i < w; i++) {
        float *restrict out = j->out + (size_t)(first + i) * j->out_stride + row;
        const float *s = sums[i];
        if (j->bias)
            for (int r = 0; r < n; r++)
                out[r] = (j->add ? out[r] : 0) + s[r] + j->bias[row + r];
        else if (j->add)
            for (int r = 0; r < n; r++)
                out[r] += s[r];
        else
            memcpy(out, s, (size_t)n * sizeof *out);
    }
}

/* Where the sums go is written soon. Rows of tokens lie far apart, so nothing else fetches them. */
static inline void fetch_out(const struct matmul *j, int tile, int first, int w)
{
    for (int i = 0; i < w; i++) {
        const float *out = j->out + (size_t)(first + i) * j->out_stride + tile * KERNEL_TILE;
        __builtin_prefetch(out, 1, 3);
        __builtin_prefetch(out + 16, 1, 3);
    }
}

static inline void matmul_block(const struct matmul *j, const struct tile_block *b,
                                run_pass_fn *run, int near_tokens)
{
    int n = j->x->n_tokens, groups = act_groups(n);
    for (int g = 0; g < groups; g++)
        for (int t = b->begin; t < b->end; t++) {
            int first = act_group_begin(n, g), w = act_group_begin(n, g + 1) - first;
            tile_sums sums, gate;
            fetch_out(j, t, first, w);
            pass_of(j->w, j->x, b, t, g, run, near_tokens, sums);
            if (j->gate) {
                pass_of(j->gate, j->x, b, t, g, run, near_tokens, gate);
                avx2_silu_mul(gate[0], sums[0], w * KERNEL_TILE, sums[0]);
            }
            store_sums_of(j, t, first, w, sums);
        }
}

/* near_tokens: up to so many, at most a group, passes fetch for themselves. */
static inline void matmul_tiles(const struct matmul *j, int tile_begin, int tile_end,
                                run_pass_fn *run, int near_tokens)
{
    BUG_ON(j->w->n_cols != j->x->n_cols || packed_act_type(j->w) != j->x->type);
    size_t tile_bytes = j->w->tile_bytes + (j->gate ? j->gate->tile_bytes : 0);
    int step = tile_bytes < TILE_BLOCK_BYTES ? (int)(TILE_BLOCK_BYTES / tile_bytes) : 1;
    int groups = act_groups(j->x->n_tokens); /* a single one gains nothing from a block */
    step = step < groups ? step : groups;
    int last = j->next_end > tile_end ? j->next_end : tile_end;
    for (int t = tile_begin; t < tile_end; t += step) {
        int end = tile_end - t < step ? tile_end : t + step;
        struct tile_block b = {t, end, last - end < step ? last : end + step};
        matmul_block(j, &b, run, near_tokens);
    }
}

/* X(function, name, type): which kind of pass multiplies each type. */
#define EACH_TYPE(X)                                                                               \
    X(pass_q8, q4_0, TTYPE_Q4_0)                                                                   \
    X(pass_q8, q4_1, TTYPE_Q4_1)                                                                   \
    X(pass_q8, q5_0, TTYPE_Q5_0)                                                                   \
    X(pass_q8, q5_1, TTYPE_Q5_1)                                                                   \
    X(pass_q8, q8_0, TTYPE_Q8_0)                                                                   \
    X(pass_q8, q2_k, TTYPE_Q2_K)                                                                   \
    X(pass_q8, q3_k, TTYPE_Q3_K)                                                                   \
    X(pass_q8, q4_k, TTYPE_Q4_K)                                                                   \
    X(pass_q8, q5_k, TTYPE_Q5_K)                                                                   \
    X(pass_q8, q6_k, TTYPE_Q6_K)                                                                   \
    X(pass_q8, iq4_nl, TTYPE_IQ4_NL)                                                               \
    X(pass_q8, iq4_xs, TTYPE_IQ4_XS)                                                               \
    X(pass_float, f32, TTYPE_F32)                                                                  \
    X(pass_float, f16, TTYPE_F16)                                                                  \
    X(pass_bf16, bf16, TTYPE_BF16)
