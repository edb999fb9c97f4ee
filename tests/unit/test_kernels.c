/* Every instruction set against double precision, over odd shapes, in buffers that end at a page
 * that may not be touched. */
#include "unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "base/rng.h"
#include "kernels/kernels.h"

enum { PAGE = 4096 };

/* n bytes that end at a forbidden page, or up to 63 bytes before it where `align` demands. */
static void *guarded(size_t n, size_t align)
{
    size_t pages = (n + PAGE - 1) / PAGE + 1;
    char *p =
        mmap(NULL, (pages + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    assert_int_equal(mprotect(p + pages * PAGE, PAGE, PROT_NONE), 0);
    return p + (pages * PAGE - n) / align * align;
}

static void unguard(void *p, size_t n)
{
    size_t pages = (n + PAGE - 1) / PAGE + 1;
    char *edge = (char *)(((uintptr_t)p + n + PAGE - 1) / PAGE * PAGE);
    munmap(edge - pages * PAGE, (pages + 1) * PAGE);
}

static float *random_floats(struct rng *r, size_t n, float scale)
{
    float *x = guarded(n * sizeof *x, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = scale * rng_normal(r);
    return x;
}

static const char *const isas[] = {"scalar", "avx2", "avxvnni", "avx512"};

#define EACH_ISA(k)                                                                                \
    for (size_t isa_ = 0; isa_ < ARRAY_LEN(isas); isa_++)                                          \
        for (const struct kernels *k = kernels_select(isas[isa_], NULL); k; k = NULL)

static const enum ttype types[] = {TTYPE_F32,  TTYPE_F16,  TTYPE_BF16, TTYPE_Q4_0,   TTYPE_Q4_1,
                                   TTYPE_Q5_0, TTYPE_Q5_1, TTYPE_Q8_0, TTYPE_Q2_K,   TTYPE_Q3_K,
                                   TTYPE_Q4_K, TTYPE_Q5_K, TTYPE_Q6_K, TTYPE_IQ4_NL, TTYPE_IQ4_XS};

/* --- weights ------------------------------------------------------------------------------------
 */

struct weights {
    struct packed_matrix packed;
    float *decoded; /* n_rows x n_cols by the type's own decoder */
};

static struct weights make_weights(struct rng *r, enum ttype type, int n_rows, int n_cols)
{
    struct weights w;
    struct err e = {0};
    assert_int_equal(packed_init(&w.packed, type, n_rows, n_cols, &e), 0);
    size_t row = ttype_row_bytes(type, (size_t)n_cols), n = (size_t)n_rows * (size_t)n_cols;
    float *x = random_floats(r, n, 0.05f);
    for (size_t i = 0; i < n; i += 16) /* zero groups, zero blocks and a zero row: scales of 0 */
        if (i / 16 % 7 == 3 || i / 256 % 5 == 1 || i / (size_t)n_cols == 2)
            memset(x + i, 0, (n - i < 16 ? n - i : 16) * sizeof *x);
    uint8_t *blocks = guarded(row * (size_t)n_rows, 4);
    ttype_info(type)->encode(x, n, blocks);
    w.decoded = xmalloc(n * sizeof *w.decoded);
    ttype_info(type)->decode(blocks, n, w.decoded);
    void *data = guarded(packed_bytes(&w.packed), KERNEL_ALIGN);
    int tiles = packed_tiles(&w.packed);
    packed_fill(&w.packed, data, blocks, tiles / 2, tiles);
    packed_fill(&w.packed, data, blocks, 0, tiles / 2);
    w.packed.data = data;
    unguard(blocks, row * (size_t)n_rows);
    unguard(x, n * sizeof *x);
    return w;
}

static void free_weights(struct weights *w)
{
    unguard((void *)w->packed.data, packed_bytes(&w->packed));
    free(w->decoded);
}

static void test_packing(void **state)
{
    struct rng r;
    rng_seed(&r, 1);
    for (size_t t = 0; t < ARRAY_LEN(types); t++) {
        int rows = 70, cols = 512;
        struct weights w = make_weights(&r, types[t], rows, cols);
        float *row = xmalloc((size_t)cols * sizeof *row);
        for (int i = 0; i < rows; i++) {
            packed_row(&w.packed, i, row);
            for (int c = 0; c < cols; c++)
                assert_float_equal(row[c], w.decoded[i * cols + c],
                                   1e-6 * fabsf(w.decoded[i * cols + c]) + 1e-7);
        }
        struct packed_matrix part = packed_view(&w.packed, 32, 20);
        packed_row(&part, 19, row);
        assert_float_equal(row[5], w.decoded[51 * cols + 5], 1e-6);
        free(row);
        free_weights(&w);
    }
}

static void test_refusals(void **state)
{
    struct packed_matrix m;
    struct err e = {0};
    assert_int_equal(packed_init(&m, TTYPE_Q4_K, 32, 288, &e), ERR_FORMAT);
    assert_int_equal(packed_init(&m, (enum ttype)9, 32, 256, &e), ERR_UNSUPPORTED);
    assert_int_equal(packed_init(&m, TTYPE_Q4_0, 0, 256, &e), ERR_FORMAT);
    assert_int_equal(packed_init(&m, TTYPE_Q4_0, (int64_t)1 << 40, 256, &e), ERR_FORMAT);
    assert_null(kernels_select("sse9", &e));
    assert_string_equal(e.param, "isa");
    assert_non_null(kernels_select("auto", &e));
    assert_string_equal(kernels_select("scalar", &e)->name, "scalar");
}

/* --- products -----------------------------------------------------------------------------------
 */

/* What the activation buffer holds, as numbers: the stated rounding, done here a second time. */
static void round_like(enum act_type type, float *x, size_t n)
{
    for (size_t i = 0; i < n && type == ACT_BF16; i++)
        x[i] = bf16_to_f32(f32_to_bf16(x[i]));
    for (size_t i = 0; i < n && (type == ACT_Q8 || type == ACT_Q8_POW2); i += 32) {
        float max = 0;
        for (size_t c = i; c < i + 32; c++)
            max = fmaxf(max, fabsf(x[c]));
        float scale = type == ACT_Q8 ? max / 127 : exp2f(ceilf(log2f(max / 127)));
        for (size_t c = i; c < i + 32; c++)
            x[c] = max > 0 ? nearbyintf(x[c] * (1 / scale)) * scale : 0;
    }
}

struct product {
    double value, size; /* size: the sum of absolute terms, to which rounding errors are relative */
};

static struct product dot(const float *w, const float *x, int n)
{
    struct product p = {0};
    for (int i = 0; i < n; i++) {
        p.value += (double)w[i] * x[i];
        p.size += fabs((double)w[i] * x[i]);
    }
    return p;
}

/* Minimums of Q4_K and Q5_K meet sums of 32 activations that are rounded to a unit, which is an
 * eighth of the largest scale in 256 columns. No minimum is larger than twice the largest weight.
 */
static double minimum_error(enum ttype type, const float *w, const float *x, int n)
{
    double error = 0;
    for (int b = 0; b < n && (type == TTYPE_Q4_K || type == TTYPE_Q5_K); b += 256) {
        float max_w = 0, max_x = 0;
        for (int c = b; c < b + 256; c++) {
            max_w = fmaxf(max_w, fabsf(w[c]));
            max_x = fmaxf(max_x, fabsf(x[c]));
        }
        error += 8 * 2 * max_w * 0.0625 * exp2(ceil(log2(max_x / 127 + 1e-30)));
    }
    return error;
}

static struct act make_act(const struct kernels *k, enum act_type type, const float *x, int n_cols,
                           int n_tokens)
{
    struct act a = {type, n_cols, n_tokens,
                    guarded(act_bytes(type, n_cols, n_tokens), KERNEL_ALIGN)};
    for (int ith = 2; ith >= 0; ith--)
        k->act_fill(&a, x, (size_t)n_cols, ith, 3);
    return a;
}

static void free_act(struct act *a)
{
    unguard(a->data, act_bytes(a->type, a->n_cols, a->n_tokens));
}

static void check_product(const struct kernels *k, struct rng *r, enum ttype type, int n_rows,
                          int n_cols, int n_tokens)
{
    struct weights w = make_weights(r, type, n_rows, n_cols);
    size_t nx = (size_t)n_tokens * (size_t)n_cols, no = (size_t)n_tokens * (size_t)n_rows;
    float *x = random_floats(r, nx, 1);
    for (size_t i = 0; i < nx; i++) /* from nothing to far beyond what models make */
        x[i] *= i / 32 % 11 == 4 ? 0 : i / 32 % 11 == 5 ? 1e-30f : i / 32 % 11 == 6 ? 1e4f : 1;
    float *out = guarded(no * sizeof *out, sizeof *out);
    enum act_type at = packed_act_type(&w.packed);
    struct act a = make_act(k, at, x, n_cols, n_tokens);
    struct matmul job = {.w = &w.packed, .x = &a, .out = out, .out_stride = (size_t)n_rows};
    k->matmul(&job, packed_tiles(&w.packed) / 2, packed_tiles(&w.packed));
    k->matmul(&job, 0, packed_tiles(&w.packed) / 2);
    round_like(at, x, nx);
    for (int t = 0; t < n_tokens; t++)
        for (int i = 0; i < n_rows; i++) {
            const float *row = w.decoded + (size_t)i * (size_t)n_cols;
            const float *token = x + (size_t)t * (size_t)n_cols;
            struct product p = dot(row, token, n_cols);
            double bound = 2e-6 * p.size + 1e-6 + minimum_error(type, row, token, n_cols);
            float got = out[(size_t)t * (size_t)n_rows + (size_t)i];
            if (!(fabs(got - p.value) <= bound))
                fail_msg("%s %s %dx%d n=%d row %d token %d: %g, not %g (size %g)", k->name,
                         ttype_info(type)->name, n_rows, n_cols, n_tokens, i, t, (double)got,
                         p.value, p.size);
        }
    free_act(&a);
    unguard(out, no * sizeof *out);
    unguard(x, nx * sizeof *x);
    free_weights(&w);
}

static void test_products(void **state)
{
    static const int tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 33, 129};
    static const int cols[] = {32, 288, 576, 1536}, super_cols[] = {256, 512, 1536};
    static const int rows[] = {1, 31, 32, 33, 100};
    struct rng r;
    rng_seed(&r, 2);
    EACH_ISA(k)
    for (size_t t = 0; t < ARRAY_LEN(types); t++) {
        bool super = ttype_info(types[t])->block_elems == 256;
        for (size_t n = 0; n < ARRAY_LEN(tokens); n++) {
            int c = super ? super_cols[n % 3] : cols[n % 4];
            check_product(k, &r, types[t], rows[n % 5], tokens[n] > 13 ? 256 : c, tokens[n]);
        }
    }
    EACH_ISA(k)
    for (int cols_f = 1; cols_f < 40; cols_f += 6) { /* floats take any number of columns */
        check_product(k, &r, TTYPE_F32, 40, cols_f, 3);
        check_product(k, &r, TTYPE_F16, 40, cols_f, 5);
        check_product(k, &r, TTYPE_BF16, 40, cols_f, 7);
    }
}

/* out = silu(gate x) * (up x), a bias, and addition to what is there. */
static void test_epilogues(void **state)
{
    enum { ROWS = 45, COLS = 256, N = 8 };
    struct rng r;
    rng_seed(&r, 3);
    EACH_ISA(k)
    {
        struct weights up = make_weights(&r, TTYPE_Q4_K, ROWS, COLS);
        struct weights gate = make_weights(&r, TTYPE_Q6_K, ROWS, COLS);
        float *x = random_floats(&r, N * COLS, 1), *bias = random_floats(&r, ROWS, 1);
        float *base = random_floats(&r, N * ROWS, 1);
        size_t bytes = N * ROWS * sizeof(float);
        float *fused = guarded(bytes, 4), *added = guarded(bytes, 4);
        memcpy(added, base, bytes);
        struct act a = make_act(k, packed_act_type(&up.packed), x, COLS, N);
        k->matmul(&(struct matmul){&up.packed, &gate.packed, &a, fused, ROWS, NULL, false}, 0, 2);
        k->matmul(&(struct matmul){&up.packed, NULL, &a, added, ROWS, bias, true}, 0, 2);
        round_like(ACT_Q8_POW2, x, N * COLS);
        for (int i = 0; i < N * ROWS; i++) {
            double u = dot(up.decoded + i % ROWS * COLS, x + i / ROWS * COLS, COLS).value;
            double g = dot(gate.decoded + i % ROWS * COLS, x + i / ROWS * COLS, COLS).value;
            assert_float_equal(fused[i], u * g / (1 + exp(-g)), 1e-5);
            assert_float_equal(added[i], u + (double)bias[i % ROWS] + (double)base[i], 1e-5);
        }
        free_act(&a);
        unguard(fused, bytes);
        unguard(added, bytes);
        unguard(base, bytes);
        unguard(x, N * COLS * sizeof *x);
        unguard(bias, ROWS * sizeof *bias);
        free_weights(&up);
        free_weights(&gate);
    }
}

/* --- attention ----------------------------------------------------------------------------------
 */

struct scene {
    struct kv_layout kv;
    int group, n_keys, n_tokens, window;
    float *k, *v, *q; /* [position][head][dim], q [token][query head][dim] */
    size_t block_bytes;
    uint8_t *blocks;
    int32_t table[40], tokens[40], pos[40];
};

static void fill_scene(struct scene *s, const struct kernels *k, struct rng *r)
{
    size_t row = (size_t)(s->kv.n_heads * s->kv.head_dim);
    int n_blocks = (s->n_keys + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    s->k = random_floats(r, row * (size_t)s->n_keys, 1);
    s->v = random_floats(r, row * (size_t)s->n_keys, 1);
    s->q = random_floats(r, row * (size_t)(s->group * s->n_tokens), 1);
    s->block_bytes = kv_block_bytes(&s->kv);
    s->blocks = guarded(s->block_bytes * (size_t)n_blocks, KERNEL_ALIGN);
    for (int b = 0; b < n_blocks; b++)
        s->table[b] = n_blocks - 1 - b;
    for (int p = 0; p < s->n_keys; p++) {
        void *block = s->blocks + (size_t)s->table[p / KV_BLOCK_TOKENS] * s->block_bytes;
        const float *kp = s->k + row * (size_t)p, *vp = s->v + row * (size_t)p;
        k->kv_write(&s->kv, block, p % KV_BLOCK_TOKENS, kp, vp, 0, 1);
        k->kv_write(&s->kv, block, p % KV_BLOCK_TOKENS, kp, vp, 1, s->kv.n_heads);
    }
    for (int i = 0; i < s->n_tokens; i++) {
        s->tokens[i] = s->n_tokens - 1 - i;
        s->pos[i] = s->n_keys - 1 - i;
    }
}

static void free_scene(struct scene *s)
{
    size_t row = (size_t)(s->kv.n_heads * s->kv.head_dim) * sizeof(float);
    int n_blocks = (s->n_keys + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    unguard(s->k, row * (size_t)s->n_keys);
    unguard(s->v, row * (size_t)s->n_keys);
    unguard(s->q, row * (size_t)(s->group * s->n_tokens));
    unguard(s->blocks, s->block_bytes * (size_t)n_blocks);
}

/* Plain attention of one query head in double precision. */
static void reference(const struct scene *s, int i, int head, double *out)
{
    int dim = s->kv.head_dim, kvh = head / s->group, heads = s->kv.n_heads * s->group;
    const float *q = s->q + ((size_t)s->tokens[i] * (size_t)heads + (size_t)head) * (size_t)dim;
    double p[1280], max = -INFINITY, sum = 0;
    int first = s->window && s->pos[i] - s->window + 1 > 0 ? s->pos[i] - s->window + 1 : 0;
    for (int j = first; j <= s->pos[i]; j++) {
        const float *key = s->k + ((size_t)j * (size_t)s->kv.n_heads + (size_t)kvh) * (size_t)dim;
        p[j] = dot(q, key, dim).value / sqrt(dim);
        max = fmax(max, p[j]);
    }
    memset(out, 0, (size_t)dim * sizeof *out);
    for (int j = first; j <= s->pos[i]; j++) {
        const float *value = s->v + ((size_t)j * (size_t)s->kv.n_heads + (size_t)kvh) * (size_t)dim;
        sum += p[j] = exp(p[j] - max);
        for (int d = 0; d < dim; d++)
            out[d] += p[j] * (double)value[d];
    }
    for (int d = 0; d < dim; d++)
        out[d] /= sum;
}

/* Whole, or a part for each segment, merged. */
static void run_attention(const struct kernels *k, struct scene *s, float *out, bool split)
{
    int dim = s->kv.head_dim, heads = s->kv.n_heads * s->group, rows = s->n_tokens * s->group;
    int n_blocks = (s->n_keys + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    size_t scratch_bytes = attention_scratch_bytes(&s->kv), stride = (size_t)(heads * dim);
    void *scratch = guarded(scratch_bytes, KERNEL_ALIGN);
    size_t part = (size_t)rows * attention_partial_floats(&s->kv);
    int n_parts = (n_blocks + ATTENTION_SEGMENT - 1) / ATTENTION_SEGMENT;
    size_t parts_bytes = (size_t)n_parts * part * sizeof(float);
    float *parts = guarded(parts_bytes, sizeof *parts);
    for (int h = 0; h < s->kv.n_heads; h++) {
        struct attention a = {
            .kv = &s->kv,
            .blocks = s->blocks,
            .block_stride = s->block_bytes,
            .table = s->table,
            .block_end = n_blocks,
            .kv_head = h,
            .group = s->group,
            .q = s->q,
            .q_stride = stride,
            .tokens = s->tokens,
            .pos = s->pos,
            .n_tokens = s->n_tokens,
            .window = s->window,
            .scale = 1 / sqrtf((float)dim),
            .out = out,
            .out_stride = stride,
        };
        if (!split) {
            k->attention(&a, scratch);
            continue;
        }
        a.out = NULL;
        for (int i = 0; i < n_parts; i++) {
            a.block_begin = ATTENTION_SEGMENT * i;
            a.block_end = a.block_begin + ATTENTION_SEGMENT;
            a.block_end = a.block_end < n_blocks ? a.block_end : n_blocks;
            a.partial = parts + (size_t)i * part;
            k->attention(&a, scratch);
        }
        for (int i = 0; i < s->n_tokens; i++) {
            const float *p[8];
            for (int j = 0; j < n_parts; j++)
                p[j] = parts + (size_t)j * part +
                       (size_t)(i * s->group) * attention_partial_floats(&s->kv);
            k->attention_merge(p, n_parts, s->group, dim,
                               out + (size_t)s->tokens[i] * stride + (size_t)(h * s->group * dim),
                               (size_t)dim);
        }
    }
    unguard(parts, parts_bytes);
    unguard(scratch, scratch_bytes);
}

/* A row's result does not depend on what is computed beside it, nor on how it is cut. */
static void check_same_bits(const struct kernels *k, struct scene *s, const float *together)
{
    int heads = s->kv.n_heads * s->group;
    size_t row = (size_t)(heads * s->kv.head_dim), n = row * (size_t)s->n_tokens;
    float *out = guarded(n * sizeof *out, sizeof *out);
    run_attention(k, s, out, true);
    assert_memory_equal(out, together, n * sizeof *out);
    memset(out, 0, n * sizeof *out);
    for (int i = 0; i < s->n_tokens; i++) {
        struct scene alone = *s;
        alone.n_tokens = 1;
        alone.tokens[0] = s->tokens[i];
        alone.pos[0] = s->pos[i];
        run_attention(k, &alone, out, i % 2);
    }
    assert_memory_equal(out, together, n * sizeof *out);
    unguard(out, n * sizeof *out);
}

/* Largest error allowed on values of size 1: the rounding of keys, values, queries and weights. */
static const double kv_bound[] = {[KV_F16] = 0.004, [KV_BF16] = 0.03, [KV_Q8_0] = 0.05};

static void check_attention(const struct kernels *k, struct rng *r, struct scene s)
{
    fill_scene(&s, k, r);
    int dim = s.kv.head_dim, heads = s.kv.n_heads * s.group;
    size_t n = (size_t)(s.n_tokens * heads * dim);
    for (int split = 0; split < 2; split++) {
        float *out = guarded(n * sizeof *out, sizeof *out);
        run_attention(k, &s, out, split);
        for (int i = 0; i < s.n_tokens; i++)
            for (int h = 0; h < heads; h++) {
                double want[KERNEL_MAX_HEAD_DIM];
                reference(&s, i, h, want);
                const float *got =
                    out + ((size_t)s.tokens[i] * (size_t)heads + (size_t)h) * (size_t)dim;
                for (int d = 0; d < dim; d++)
                    if (!(fabs(got[d] - want[d]) <= kv_bound[s.kv.type]))
                        fail_msg(
                            "%s %s dim %d keys %d tokens %d group %d window %d split %d: token "
                            "%d head %d dim %d: %g, not %g",
                            k->name, kv_type_name(s.kv.type), dim, s.n_keys, s.n_tokens, s.group,
                            s.window, split, i, h, d, (double)got[d], want[d]);
            }
        if (!split)
            check_same_bits(k, &s, out);
        unguard(out, n * sizeof *out);
    }
    free_scene(&s);
}

static void test_attention(void **state)
{
    static const int dims[] = {64, 80, 96, 128, 256, 16};
    struct rng r;
    rng_seed(&r, 4);
    EACH_ISA(k)
    for (int type = KV_BF16; type <= KV_Q8_0; type++)
        for (size_t d = 0; d < ARRAY_LEN(dims); d++) {
            struct scene s = {
                .kv = {(enum kv_type)type, 2, dims[d]}, .group = 1, .n_keys = 1, .n_tokens = 1};
            check_attention(k, &r, s);
            s.n_keys = 97;
            check_attention(k, &r, s);
            s.group = 3;
            s.n_tokens = 5;
            check_attention(k, &r, s);
            s.n_tokens = 33;
            s.window = 20;
            s.n_keys = 64;
            check_attention(k, &r, s);
            s.n_keys = 450;
            s.window = d % 2 ? 300 : 0;
            s.group = 4;
            s.n_tokens = 14;
            check_attention(k, &r, s);
        }
}

/* A split that no query can see, and scores far apart. */
static void test_attention_extremes(void **state)
{
    struct rng r;
    rng_seed(&r, 5);
    EACH_ISA(k)
    {
        struct scene s = {
            .kv = {KV_BF16, 2, 64}, .group = 1, .n_keys = 96, .n_tokens = 2, .window = 8};
        check_attention(k, &r, s);
        fill_scene(&s, k, &r);
        for (int i = 0; i < 2 * 64 * s.n_tokens; i++)
            s.q[i] *= 1000;
        float out[2 * 2 * 64];
        run_attention(k, &s, out, true);
        for (size_t i = 0; i < ARRAY_LEN(out); i++)
            assert_true(isfinite(out[i]));
        free_scene(&s);
    }
}

/* --- small operations ---------------------------------------------------------------------------
 */

static void check_small(const struct kernels *k, struct rng *r, int n)
{
    size_t bytes = (size_t)n * sizeof(float);
    float *x = random_floats(r, (size_t)n, 3), *y = random_floats(r, (size_t)n, 1);
    float *out = guarded(bytes, 4);
    double sum = 0, max = -INFINITY, total = 0;
    for (int i = 0; i < n; i++) {
        sum += (double)x[i] * x[i];
        max = fmax(max, x[i]);
    }
    for (int i = 0; i < n; i++)
        total += exp(x[i] - max);
    k->rmsnorm(x, y, 1e-5f, n, out);
    for (int i = 0; i < n; i++)
        assert_float_equal(out[i], x[i] / sqrt(sum / n + 1e-5) * (double)y[i], 1e-5);
    k->silu_mul(x, y, n, out);
    for (int i = 0; i < n; i++)
        assert_float_equal(out[i], x[i] / (1 + exp(-(double)x[i])) * (double)y[i], 2e-5);
    memcpy(out, x, bytes);
    k->softmax(out, n);
    for (int i = 0; i < n; i++)
        assert_float_equal(out[i], exp(x[i] - max) / total, 1e-6);
    memcpy(out, x, bytes);
    k->add(out, y, n);
    k->axpy(out, 0.5f, y, n);
    for (int i = 0; i < n; i++)
        assert_float_equal(out[i], (double)x[i] + 1.5 * (double)y[i], 1e-5);
    unguard(x, bytes);
    unguard(y, bytes);
    unguard(out, bytes);
}

static void check_rope(const struct kernels *k, struct rng *r, int dim, int n_rot, int style)
{
    enum { HEADS = 3 };
    size_t n = (size_t)(HEADS * dim);
    float *x = random_floats(r, n, 1), *was = xmalloc(n * sizeof *was);
    float *cs = guarded((size_t)n_rot * sizeof *cs, 4);
    for (int i = 0; i < n_rot / 2; i++) {
        cs[2 * i] = cosf((float)i);
        cs[2 * i + 1] = sinf((float)i);
    }
    memcpy(was, x, n * sizeof *was);
    k->rope(x, HEADS, dim, n_rot, cs, (enum rope_style)style);
    for (int h = 0; h < HEADS; h++) {
        float *now = x + h * dim, *old = was + h * dim;
        for (int i = 0; i < n_rot / 2; i++) {
            int a = style == ROPE_NORM ? 2 * i : i, b = style == ROPE_NORM ? a + 1 : i + n_rot / 2;
            assert_float_equal(now[a], old[a] * cs[2 * i] - old[b] * cs[2 * i + 1], 1e-6);
            assert_float_equal(now[b], old[a] * cs[2 * i + 1] + old[b] * cs[2 * i], 1e-6);
        }
        for (int i = n_rot; i < dim; i++)
            assert_true(now[i] == old[i]);
    }
    unguard(x, n * sizeof *x);
    unguard(cs, (size_t)n_rot * sizeof *cs);
    free(was);
}

static void test_small(void **state)
{
    struct rng r;
    rng_seed(&r, 6);
    EACH_ISA(k)
    {
        for (int n = 1; n < 100; n++)
            check_small(k, &r, n);
        check_small(k, &r, 3072);
        for (int style = ROPE_NORM; style <= ROPE_NEOX; style++) {
            check_rope(k, &r, 64, 64, style);
            check_rope(k, &r, 96, 96, style);
            check_rope(k, &r, 80, 20, style);
            check_rope(k, &r, 128, 64, style);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packing),   cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_products),  cmocka_unit_test(test_epilogues),
        cmocka_unit_test(test_attention), cmocka_unit_test(test_attention_extremes),
        cmocka_unit_test(test_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
