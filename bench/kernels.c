/* Speed of each kernel beside the roof measured in the same minute.
 *
 *   bench-kernels [--isa NAME] [--threads N] [--rows N] [--cols N] [--rounds N]
 * [TYPE|decode|prefill|shared ...]
 *
 * Products: a matrix far larger than the caches is multiplied for n tokens; GB/s is what of it
 * comes from memory, GMAC/s its arithmetic, and "share" the larger of the two as a share of its
 * roof. The kinds take turns, and each figure is the median of its rounds: other work on the
 * machine moves all alike.
 *
 * Attention: one query over a long context, a chunk of a prompt, and eight users' queries over a
 * prefix they share, by segments, in more layers than the caches hold. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/rng.h"
#include "kernels/kernels.h"
#include "kernels/roof.h"

static const int token_counts[] = {1, 2, 4, 6, 8, 16, 32, 128, 512};
enum { COUNTS = ARRAY_LEN(token_counts), MAX_ROUNDS = 99, MAX_TOKENS = 512 };

struct bench {
    struct pool *pool;
    const struct kernels *k;
    int rows, cols, rounds;
    double dot_roof, dram_roof;
};

struct product_job {
    const struct kernels *k;
    const struct matmul *m;
    const float *x;
};

static void product(void *arg, int ith, int nth)
{
    struct product_job *j = arg;
    int tiles = packed_tiles(j->m->w);
    j->k->matmul(j->m, (int)((int64_t)tiles * ith / nth), (int)((int64_t)tiles * (ith + 1) / nth));
}

/* With one thread, the processor time that it had: other work on the machine then hardly matters.
 */
static int64_t now_ns(const struct bench *b)
{
    struct timespec t;
    if (pool_threads(b->pool) > 1)
        return clock_ns();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static double least(const double *x, int n)
{
    double best = x[0];
    for (int i = 1; i < n; i++)
        best = x[i] < best ? x[i] : best;
    return best;
}

/* A matrix of valid blocks: one tile's worth of encoded random rows, repeated. */
static void *make_matrix(struct packed_matrix *m, enum ttype type, int rows, int cols)
{
    struct err e = {0};
    if (packed_init(m, type, rows, cols, &e)) {
        fprintf(stderr, "bench-kernels: %s\n", e.msg);
        exit(1);
    }
    struct rng r;
    rng_seed(&r, 1);
    size_t n = (size_t)KERNEL_TILE * (size_t)cols;
    float *x = xmalloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = rng_normal(&r) * 0.05f;
    void *blocks = xmalloc(ttype_row_bytes(type, n));
    ttype_info(type)->encode(x, n, blocks);
    char *data = mem_alloc_big(packed_bytes(m));
    if (!data) {
        fprintf(stderr, "bench-kernels: not enough memory\n");
        exit(1);
    }
    packed_fill(m, data, blocks, 0, 1);
    for (int t = 1; t < packed_tiles(m); t++)
        memcpy(data + (size_t)t * m->tile_bytes, data, m->tile_bytes);
    free(blocks);
    free(x);
    m->data = data;
    return data;
}

static void fill_job(void *arg, int ith, int nth)
{
    struct product_job *j = arg;
    j->k->act_fill(j->m->x, j->x, (size_t)j->m->x->n_cols, ith, nth);
}

static void bench_type(const struct bench *b, enum ttype type)
{
    struct packed_matrix m;
    void *data = make_matrix(&m, type, b->rows, b->cols);
    size_t nx = (size_t)MAX_TOKENS * (size_t)b->cols;
    float *x = xmalloc(nx * sizeof *x);
    struct rng r;
    rng_seed(&r, 2);
    for (size_t i = 0; i < nx; i++)
        x[i] = rng_normal(&r);
    float *out = xcalloc((size_t)MAX_TOKENS * (size_t)b->rows, sizeof *out);
    enum act_type at = packed_act_type(&m);
    size_t act = act_bytes(at, b->cols, MAX_TOKENS);
    void *memory = mem_alloc_big(act);
    double took[COUNTS][MAX_ROUNDS];
    for (int round = 0; round < b->rounds; round++)
        for (int c = 0; c < COUNTS; c++) {
            struct act a = {at, b->cols, token_counts[c], memory};
            struct matmul j = {&m, NULL, &a, out, (size_t)b->rows, NULL, false};
            struct product_job job = {b->k, &j, x};
            pool_run(b->pool, fill_job, &job);
            int64_t begin = now_ns(b);
            pool_run(b->pool, product, &job);
            took[c][round] = (double)(now_ns(b) - begin);
        }
    for (int c = 0; c < COUNTS; c++) {
        double ns = least(took[c], b->rounds);
        double gb = (double)packed_bytes(&m) / ns;
        double gmac = (double)b->rows * b->cols * token_counts[c] / ns;
        double share = gb / b->dram_roof, dot = gmac / b->dot_roof;
        printf("%-7s %4d tokens %7.1f GB/s %3.0f%% %7.1f GMAC/s %3.0f%%\n", ttype_info(type)->name,
               token_counts[c], gb, 100 * share, gmac, 100 * dot);
    }
    fflush(stdout);
    mem_free_big(memory, act);
    mem_free_big(data, packed_bytes(&m));
    free(out);
    free(x);
}

/* --- attention
 * ------------------------------------------------------------------------------------ */

enum { HEADS = 32, HEAD_DIM = 96 };

struct attention_case {
    const char *name;
    int n_keys, n_tokens;
    bool shared; /* all tokens see all keys, as users do a common prefix, in pieces of a segment */
    int layers;
};

static const struct attention_case attention_cases[] = {
    {"decode", 4096, 1, false, 1},
    {"prefill", 2048, 512, false, 1},
    {"shared", 1536, 8, true, 8},
};

struct attention_job {
    const struct kernels *k;
    const struct attention_case *c;
    struct attention a; /* all but which piece */
    float *partials;
    void *scratch[64];
};

static int n_pieces(const struct attention_job *j)
{
    return j->c->shared ? j->a.block_end / ATTENTION_SEGMENT : 1;
}

/* Unit i of layers x pieces x heads. */
static struct attention unit(const struct attention_job *j, int i)
{
    struct attention a = j->a;
    int piece = i / HEADS % n_pieces(j), layer = i / HEADS / n_pieces(j);
    a.kv_head = i % HEADS;
    a.blocks = (const char *)a.blocks + (size_t)(layer * a.block_end) * a.block_stride;
    if (j->c->shared) {
        a.block_begin = piece * ATTENTION_SEGMENT;
        a.block_end = a.block_begin + ATTENTION_SEGMENT;
        a.out = NULL;
        a.partial = j->partials + (size_t)((piece * HEADS + a.kv_head) * a.n_tokens) *
                                      attention_partial_floats(a.kv);
    }
    return a;
}

static void attend(void *arg, int ith, int nth)
{
    struct attention_job *j = arg;
    int n = j->c->layers * n_pieces(j) * HEADS;
    for (int i = ith; i < n; i += nth) {
        struct attention a = unit(j, i), next = unit(j, i + nth < n ? i + nth : i);
        a.next = &next;
        j->k->attention(&a, j->scratch[ith]);
    }
}

static void bench_attention(const struct bench *b, enum kv_type type,
                            const struct attention_case *c)
{
    struct kv_layout kv = {type, HEADS, HEAD_DIM};
    int n_blocks = c->n_keys / KV_BLOCK_TOKENS, n_tokens = c->n_tokens;
    size_t row = HEADS * HEAD_DIM, bytes = kv_block_bytes(&kv);
    size_t layer_bytes = bytes * (size_t)n_blocks, n_q = row * (size_t)n_tokens;
    char *blocks = mem_alloc_big(layer_bytes * (size_t)c->layers);
    float *q = xmalloc(n_q * sizeof *q), *out = xmalloc(n_q * sizeof *out);
    int32_t *table = xcalloc((size_t)n_blocks, sizeof *table),
            *pos = xcalloc((size_t)n_tokens, sizeof *pos);
    struct rng r;
    rng_seed(&r, 3);
    for (size_t i = 0; i < n_q; i++)
        q[i] = rng_normal(&r);
    for (int i = 0; i < n_tokens; i++)
        pos[i] = c->shared ? c->n_keys : c->n_keys - n_tokens + i;
    for (int i = 0; i < n_blocks; i++)
        table[i] = i;
    for (int p = 0; p < c->n_keys; p++)
        b->k->kv_write(&kv, blocks + bytes * (size_t)(p / KV_BLOCK_TOKENS), p % KV_BLOCK_TOKENS, q,
                       q, 0, HEADS);
    for (int i = 1; i < c->layers; i++)
        memcpy(blocks + (size_t)i * layer_bytes, blocks, layer_bytes);
    struct attention_job j = {.k = b->k,
                              .c = c,
                              .a = {.kv = &kv,
                                    .blocks = blocks,
                                    .block_stride = bytes,
                                    .table = table,
                                    .block_end = n_blocks,
                                    .group = 1,
                                    .q = q,
                                    .q_stride = row,
                                    .pos = pos,
                                    .n_tokens = n_tokens,
                                    .scale = 0.1f,
                                    .out = out,
                                    .out_stride = row}};
    j.partials = xcalloc((size_t)(n_pieces(&j) * HEADS * n_tokens),
                         attention_partial_floats(&kv) * sizeof *j.partials);
    for (int i = 0; i < pool_threads(b->pool) && i < 64; i++)
        j.scratch[i] = mem_alloc_big(attention_scratch_bytes(&kv));
    double took[MAX_ROUNDS] = {0};
    for (int i = 0; i < b->rounds; i++) {
        int64_t begin = now_ns(b);
        pool_run(b->pool, attend, &j);
        took[i] = (double)(now_ns(b) - begin);
    }
    double ns = least(took, b->rounds) / c->layers, seen = 0;
    for (int i = 0; i < n_tokens; i++)
        seen += pos[i] < c->n_keys ? pos[i] + 1 : c->n_keys;
    double gb = (double)layer_bytes / ns, gmac = 2.0 * (double)row * seen / ns;
    printf("attention %-7s %-5s %4d tokens %5d keys %6.1f GB/s %3.0f%% %7.1f GMAC/s %3.0f%%\n",
           c->name, kv_type_name(type), n_tokens, c->n_keys, gb, 100 * gb / b->dram_roof, gmac,
           200 * gmac / b->dot_roof);
    fflush(stdout);
    for (int i = 0; i < pool_threads(b->pool) && i < 64; i++)
        mem_free_big(j.scratch[i], attention_scratch_bytes(&kv));
    mem_free_big(blocks, layer_bytes * (size_t)c->layers);
    free(j.partials);
    free(q);
    free(out);
    free(table);
    free(pos);
}

static bool wanted(int argc, char **argv, int first, const char *name)
{
    bool any = first == argc;
    for (int i = first; i < argc; i++)
        any |= !strcmp(argv[i], name);
    return any;
}

int main(int argc, char **argv)
{
    struct bench b = {.rows = 16384, .cols = 3072, .rounds = 9};
    const char *isa = "auto";
    int threads = 0, first = 1;
    for (; first + 1 < argc && !strncmp(argv[first], "--", 2); first += 2) {
        const char *value = argv[first + 1];
        if (!strcmp(argv[first], "--isa"))
            isa = value;
        else if (!strcmp(argv[first], "--threads"))
            threads = atoi(value);
        else if (!strcmp(argv[first], "--rows"))
            b.rows = atoi(value);
        else if (!strcmp(argv[first], "--cols"))
            b.cols = atoi(value);
        else if (!strcmp(argv[first], "--rounds"))
            b.rounds = atoi(value);
    }
    if (b.rounds < 1 || b.rounds > MAX_ROUNDS || b.rows < 1 || b.cols < 32) {
        fprintf(stderr, "bench-kernels: rounds must be 1 to %d\n", MAX_ROUNDS);
        return 2;
    }
    struct err e = {0};
    b.k = kernels_select(isa, &e);
    if (!b.k || pool_new(&b.pool, threads, &e)) {
        fprintf(stderr, "bench-kernels: %s\n", e.msg);
        return 1;
    }
    b.dot_roof = roof_dot(b.pool, b.k);
    b.dram_roof = roof_dram(b.pool);
    printf("%s, %d threads: roofs %.0f GMAC/s, %.1f GB/s; %d x %d\n", b.k->name,
           pool_threads(b.pool), b.dot_roof, b.dram_roof, b.rows, b.cols);
    static const enum ttype types[] = {TTYPE_Q4_0, TTYPE_Q4_K, TTYPE_Q6_K,   TTYPE_Q8_0,
                                       TTYPE_Q4_1, TTYPE_Q5_0, TTYPE_Q5_1,   TTYPE_Q5_K,
                                       TTYPE_Q2_K, TTYPE_Q3_K, TTYPE_IQ4_NL, TTYPE_IQ4_XS,
                                       TTYPE_BF16, TTYPE_F16,  TTYPE_F32};
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        if (wanted(argc, argv, first, ttype_info(types[i])->name))
            bench_type(&b, types[i]);
    for (int type = KV_BF16; type <= KV_Q8_0; type++)
        for (size_t i = 0; i < ARRAY_LEN(attention_cases); i++)
            if (wanted(argc, argv, first, attention_cases[i].name))
                bench_attention(&b, (enum kv_type)type, &attention_cases[i]);
    printf("roof now %.0f GMAC/s, %.1f GB/s\n", roof_dot(b.pool, b.k), roof_dram(b.pool));
    pool_free(b.pool);
    return 0;
}
