/* kernels.h - the arithmetic of a transformer on a processor: products with packed weights,
 * attention over a paged KV cache, and the small operations between them.
 *
 * Every function works on memory of the caller, allocates nothing and keeps no state, so any number
 * of threads may run it on disjoint outputs. One table of functions for each instruction set;
 * kernels_select takes the best that the processor has. Every table reads and writes the same
 * packed layouts, so that files packed on one machine serve on another.
 *
 * The shape of a product: out[token][row] = sum over col of weight[row][col] * x[token][col].
 * Weights are cut into tiles of KERNEL_TILE rows; a tile is read from memory once for all tokens.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "tensor/kv_type.h"
#include "tensor/type.h"

enum {
    KERNEL_TILE = 32,  /* rows of a weight tile */
    KERNEL_GROUP = 6,  /* most tokens that one pass over a tile serves */
    KERNEL_LAYOUT = 3, /* version of the packed layout: goes into the name of packed files */
    KERNEL_ALIGN = 64, /* of every buffer given to a kernel as void * */
    KERNEL_MAX_HEAD_DIM = 256,
};

/* --- packed weights -----------------------------------------------------------------------------
 * Position independent; the rows of the last tile beyond n_rows are zeros. How each type is laid
 * out is drawn in layout.h. Nothing of the source type is lost: packed_row gives what its own
 * decoder gives, but for the last bit of a float product. */
struct packed_matrix {
    enum ttype type; /* of the source */
    int n_rows;      /* outputs */
    int n_cols;      /* inputs */
    size_t tile_bytes;
    const void *data; /* KERNEL_ALIGN aligned, packed_tiles(m) * tile_bytes bytes */
};

/* Fills in all but data. Fails on a type that has no packed form and on a n_cols that is no
 * multiple of the type's block. */
int packed_init(struct packed_matrix *m, enum ttype type, int64_t n_rows, int64_t n_cols,
                struct err *e);

static inline int packed_tiles(const struct packed_matrix *m)
{
    return (m->n_rows + KERNEL_TILE - 1) / KERNEL_TILE;
}

static inline size_t packed_bytes(const struct packed_matrix *m)
{
    return (size_t)packed_tiles(m) * m->tile_bytes;
}

/* Packs tiles [tile_begin, tile_end) of a matrix of GGUF rows into `data` (packed_bytes long).
 * Tiles are independent: threads take ranges. `rows` is row 0, rows follow each other without gaps.
 */
void packed_fill(const struct packed_matrix *m, void *data, const void *rows, int tile_begin,
                 int tile_end);

/* The rows [row_begin, row_begin + n_rows) as a matrix of its own; row_begin a multiple of
 * KERNEL_TILE: parts of a fused tensor (gate and up, or q, k and v). */
struct packed_matrix packed_view(const struct packed_matrix *m, int row_begin, int n_rows);

/* Decodes one row, n_cols floats: embedding look-up from a packed table. */
void packed_row(const struct packed_matrix *m, int row, float *out);

/* --- activations --------------------------------------------------------------------------------
 * The input of a product, made ready once and used by every matrix that takes it.
 *
 * Integer weights take 8 bits with a scale for every 32 columns. ACT_Q8 has the scale max |x| /
 * 127. ACT_Q8_POW2, for the types Q2_K to Q6_K, rounds it up to a power of two, so that multiplying
 * by it costs nothing: integer sums begin where their bits, read as a float, are scaled already.
 * Measured on SmolLM2-135M Q4_1, perplexity against the reference: ACT_Q8 +0.26 %, ACT_Q8_POW2
 * +0.78 %, one exact scale for 256 columns, which others use for these types, +2.2 %. Float weights
 * take ACT_F32, bf16 weights ACT_BF16. */
enum act_type { ACT_Q8, ACT_Q8_POW2, ACT_F32, ACT_BF16, ACT_TYPES };

struct act {
    enum act_type type;
    int n_cols;
    int n_tokens;
    void *data; /* KERNEL_ALIGN aligned, act_bytes long, the caller's */
};

enum act_type packed_act_type(const struct packed_matrix *m);
/* n_cols a multiple of 32 for 8-bit types, any for the others. Grows with n_tokens. */
size_t act_bytes(enum act_type type, int n_cols, int n_tokens);

/* Tokens are made ready and multiplied in groups of at most KERNEL_GROUP, as even as can be: how
 * many there are, and the first token of group g (the end of the last one for g = act_groups(n)).
 */
static inline int act_groups(int n_tokens)
{
    return (n_tokens + KERNEL_GROUP - 1) / KERNEL_GROUP;
}

static inline int act_group_begin(int n_tokens, int g)
{
    int groups = act_groups(n_tokens), base = n_tokens / groups, extra = n_tokens % groups;
    return g * base + (g < extra ? g : extra);
}

/* --- products -----------------------------------------------------------------------------------
 */
struct matmul {
    const struct packed_matrix *w;
    /* Not NULL: out = silu(gate x) * (w x). Same n_rows, n_cols and act type as w. */
    const struct packed_matrix *gate;
    const struct act *x;
    float *out;
    size_t out_stride; /* floats from a token to the next */
    const float *bias; /* n_rows numbers added to each token, or NULL; not with gate */
    bool add;          /* add to what out holds (a residual) instead of replacing it */
    int next_end;      /* tiles up to here may come next and are fetched ahead; 0: unknown */
};

/* --- KV blocks ----------------------------------------------------------------------------------
 * A block holds KV_BLOCK_TOKENS positions of one layer: for each KV head its keys, then its values.
 * Slots beyond the last position written may hold anything that kv_write once wrote, or zeros. */
struct kv_layout {
    enum kv_type type;
    int n_heads;  /* KV heads */
    int head_dim; /* a multiple of 16, at most KERNEL_MAX_HEAD_DIM */
};

size_t kv_head_bytes(const struct kv_layout *kv);  /* one head of one block, keys and values */
size_t kv_block_bytes(const struct kv_layout *kv); /* one block of one layer */
const char *kv_type_name(enum kv_type type);       /* "f16" "bf16" "q8_0" */
bool kv_type_parse(const char *name, enum kv_type *out);

/* A row's softmax runs over segments of so many blocks, at fixed places in the sequence, each by
 * itself; the results of the segments are then combined in their order. So a row's result is the
 * same to the last bit whichever pieces and batches it was computed in. */
enum { ATTENTION_SEGMENT = 8 };

/* One piece of attention: some query tokens, the query heads of one KV head, a range of KV blocks.
 * A piece over all blocks that its queries see finishes them. A piece over one segment leaves
 * partial results, which attention_merge combines. Query token i stands at position pos[i] and sees
 * key positions in (pos[i] - window, pos[i]]. Tokens of different sequences may share a piece over
 * blocks that they share. Algorithm: online softmax (Milakov and Gimelshein, arXiv 1805.02867) in
 * the split form of FlashDecoding. */
struct attention {
    const struct kv_layout *kv;
    const void *blocks;         /* the layer's blocks; block b lies at blocks + b * block_stride */
    size_t block_stride;        /* bytes */
    const int32_t *table;       /* table[i] holds positions i * KV_BLOCK_TOKENS and up */
    int block_begin, block_end; /* range in table, from the start of a segment */
    int kv_head;
    int group;             /* query heads for each KV head */
    const float *q;        /* head h of token t: q + t * q_stride + h * head_dim, rope applied */
    size_t q_stride;       /* floats */
    const int32_t *tokens; /* n_tokens indices t into q and out, NULL for 0, 1, 2 ... */
    const int32_t *pos;    /* n_tokens positions */
    int n_tokens;
    int window;  /* how many positions a query sees, itself included; 0: all before it */
    float scale; /* of the scores, 1 / sqrt(head_dim) as a rule */
    /* The result: finished rows (same head order as q) into out, or partials, one of them NULL. */
    float *out;
    size_t out_stride; /* floats */
    float *partial;    /* n_tokens * group * attention_partial_floats(kv) */
    /* The piece that the thread computes after this one, or NULL: its first keys and values are
     * fetched meanwhile. */
    const struct attention *next;
};

/* Floats of one partial row: the score that weights are relative to, which is the largest or a
 * little less, the sum of weights, the weighted sum of values.
 * Row i * group + g belongs to token i of the piece and query head kv_head * group + g. A row that
 * saw no key has maximum -inf and sum 0. */
static inline size_t attention_partial_floats(const struct kv_layout *kv)
{
    return 2 + (size_t)kv->head_dim;
}

/* Scratch memory that an attention call needs, whatever its number of tokens. */
size_t attention_scratch_bytes(const struct kv_layout *kv);

/* --- rope ---------------------------------------------------------------------------------------
 * cos_sin holds n_rot / 2 pairs (cos, sin) for one position, any scaling applied. ROPE_NORM turns
 * the numbers 2i and 2i+1 (llama GGUF files), ROPE_NEOX i and i + n_rot/2 (phi3, qwen). Numbers
 * from n_rot on stay. */
enum rope_style { ROPE_NORM, ROPE_NEOX };

struct lora_shrink;
struct lora_expand;

struct kernels {
    const char *name; /* "avx512" "avxvnni" "avx2" "scalar" */

    /* Converts x (a token's row every x_stride floats) into a->data. Thread ith of nth does its
     * share; all must be done before a product reads it. With nth = act_groups(a->n_tokens), share
     * g is group g: it reads the rows of no other token. */
    void (*act_fill)(const struct act *a, const float *x, size_t x_stride, int ith, int nth);

    /* Tiles [tile_begin, tile_end) of the product, all tokens of x. */
    void (*matmul)(const struct matmul *m, int tile_begin, int tile_end);

    /* Writes keys and values of one position of KV heads [head_begin, head_end) into a block. k and
     * v are the position's first heads: head h at k + h * head_dim. */
    void (*kv_write)(const struct kv_layout *kv, void *block, int slot, const float *k,
                     const float *v, int head_begin, int head_end);

    void (*attention)(const struct attention *a, void *scratch);

    /* Combines the partials of the same n_rows rows over n_parts segments, in the order of the
     * segments: parts[i] points at the first row. Row
     * r becomes the head_dim floats at out + r * out_stride; zeros if it saw no key. */
    void (*attention_merge)(const float *const *parts, int n_parts, int n_rows, int head_dim,
                            float *out, size_t out_stride);

    /* out = x / sqrt(mean(x^2) + eps) * weight; out may be x. */
    void (*rmsnorm)(const float *x, const float *weight, float eps, int n, float *out);

    /* In place on n_heads heads of head_dim floats. */
    void (*rope)(float *x, int n_heads, int head_dim, int n_rot, const float *cos_sin,
                 enum rope_style style);

    /* Low-rank products, see lora.h. Panels [panel_begin, panel_end) of A make their numbers of h;
     * rows [row_begin, row_end) of B h are added to the output, row_begin a multiple of LORA_TILE,
     * row_end too or n_rows. */
    void (*lora_shrink)(const struct lora_shrink *s, int panel_begin, int panel_end);
    void (*lora_expand)(const struct lora_expand *x, int row_begin, int row_end);

    void (*add)(float *x, const float *y, int n);           /* x += y */
    void (*axpy)(float *x, float a, const float *y, int n); /* x += a y */
    void (*silu_mul)(const float *gate, const float *up, int n, float *out);
    void (*softmax)(float *x, int n); /* in place */

    /* Does `rounds` rounds of independent 8-bit products and nothing else; returns how many
     * multiply-adds that was. For roof.h. */
    int64_t (*dot_rounds)(int64_t rounds);
};

/* "auto" (or NULL) takes the best for this processor. NULL with e filled in for an unknown name or
 * one this processor cannot run. */
const struct kernels *kernels_select(const char *name, struct err *e);
