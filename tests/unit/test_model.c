/* The forward pass of every architecture and quantisation on small random models, against plain
 * loops in double precision (reference_forward.h), and against itself: any way of cutting the same
 * tokens into steps, batches and shared blocks gives the same logits. */
#define _GNU_SOURCE /* memmem, MADV_POPULATE_WRITE */
#include "unit.h"

#include <glob.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fault.h"
#include "base/mem.h"
#include "base/rng.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "reference_forward.h"
#include "synth.h"

enum { N_BLOCKS = 160, MAX_TOKENS = 832, MAX_SEQS = 8 };

static const char *const archs[] = {"tiny-llama", "tiny-phi3", "tiny-qwen2", "tiny-qwen3"};

/* A model file, opened, with its own pool and cache. */
struct rig {
    struct pool *pool;
    struct gguf *gguf;
    struct model *model;
    struct kv_mem *kv;
    int n_vocab;
};

static struct gguf *make_file(const char *arch, const char *quant)
{
    char path[] = "/tmp/terrace-test-model-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct err e = {0};
    struct gguf *g = NULL;
    if (synth_write(arch, quant, path, &(struct synth_options){.seed = 7}, &e) ||
        gguf_open(&g, path, &e))
        fail_msg("%s %s: %s", arch, quant, e.msg);
    unlink(path);
    return g;
}

static struct rig rig_open(const char *arch, const char *quant, struct model_opts o, int n_threads)
{
    struct rig r = {.gguf = make_file(arch, quant)};
    struct err e = {0};
    if (pool_new(&r.pool, n_threads, &e))
        fail_msg("%s", e.msg);
    o.pool = r.pool;
    if (model_open(&r.model, r.gguf, &o, &e) || kv_mem_new(&r.kv, r.model, N_BLOCKS, &e))
        fail_msg("%s %s: %s", arch, quant, e.msg);
    r.n_vocab = model_info(r.model)->n_vocab;
    return r;
}

static void rig_close(struct rig *r)
{
    kv_mem_free(r->kv);
    model_close(r->model);
    gguf_close(r->gguf);
    pool_free(r->pool);
}

static void random_tokens(struct rng *rng, int32_t *tokens, int n, int n_vocab)
{
    for (int i = 0; i < n; i++)
        tokens[i] = (int32_t)rng_below(rng, (uint64_t)n_vocab);
}

/* |got - want| / |want - mean|, so that a common offset of all logits does not hide an error. */
static double distance(const float *got, const double *want, size_t n)
{
    double mean = 0, sum = 0, diff = 0;
    for (size_t i = 0; i < n; i++)
        mean += want[i] / (double)n;
    for (size_t i = 0; i < n; i++) {
        sum += (want[i] - mean) * (want[i] - mean);
        diff += (got[i] - want[i]) * (got[i] - want[i]);
    }
    return sqrt(diff / sum);
}

static double distance_f(const float *got, const float *want, size_t n)
{
    double *w = xcalloc(n, sizeof *w);
    for (size_t i = 0; i < n; i++)
        w[i] = want[i];
    double d = distance(got, w, n);
    free(w);
    return d;
}

/* --- against double precision -------------------------------------------------------------------
 */

static double error_of(const char *arch, const char *quant, struct model_opts o, int n)
{
    struct rig r = rig_open(arch, quant, o, 2);
    struct rng rng;
    rng_seed(&rng, 5);
    int32_t tokens[MAX_TOKENS], blocks[N_BLOCKS];
    for (int i = 0; i < N_BLOCKS; i++)
        blocks[i] = (i * 13 + 5) % N_BLOCKS;
    random_tokens(&rng, tokens, n, r.n_vocab);
    size_t size = (size_t)n * (size_t)r.n_vocab;
    float *got = xcalloc(size, sizeof *got);
    double *want = xcalloc(size, sizeof *want);
    struct batch_seq s = {tokens, n, 0, blocks, n};
    model_forward(r.model, r.kv, &s, 1, got);
    reference_forward(r.gguf, tokens, n, o.n_ctx, want);
    double d = distance(got, want, size);
    free(got);
    free(want);
    rig_close(&r);
    return d;
}

/* The bounds: float weights leave the rounding of the f16 cache; bf16 weights round their input to
 * 8 bits of fraction; quantised weights round it to 8-bit integers, once for each product. Q3_K is
 * the worst of them: it wanders by 3 % with the order of sums alone, from 0.058 to 0.061. */
static double bound_of(const char *quant)
{
    if (!strcmp(quant, "f32") || !strcmp(quant, "f16"))
        return 0.002;
    if (!strcmp(quant, "q3_k_m"))
        return 0.065;
    return strcmp(quant, "bf16") ? 0.06 : 0.015;
}

static void test_every_type(void **state)
{
    double worst[3] = {0};
    for (size_t a = 0; a < ARRAY_LEN(archs); a++) {
        for (size_t i = 0; synth_quant(i); i++) {
            const char *quant = synth_quant(i);
            double d = error_of(archs[a], quant, (struct model_opts){.kv_type = KV_F16}, 24);
            double bound = bound_of(quant);
            double *w = &worst[bound < 0.01 ? 0 : bound < 0.02 ? 1 : 2];
            *w = fmax(*w, d);
            if (!(d < bound))
                fail_msg("%s %s: relative error %g, bound %g", archs[a], quant, d, bound);
        }
    }
    print_message("# worst relative error: float %.2g, bf16 %.2g, quantised %.2g\n", worst[0],
                  worst[1], worst[2]);
}

/* Beyond the sliding window and the original context of tiny-phi3, and with the short factors. */
static void test_long_context(void **state)
{
    double far = error_of("tiny-phi3", "f32", (struct model_opts){.kv_type = KV_F16}, 300);
    double near =
        error_of("tiny-phi3", "f32", (struct model_opts){.kv_type = KV_F16, .n_ctx = 200}, 150);
    double llama = error_of("tiny-llama", "f32", (struct model_opts){.kv_type = KV_F16}, 300);
    print_message("# long factors and window %.2g, short factors %.2g, llama %.2g\n", far, near,
                  llama);
    assert_true(far < 0.002 && near < 0.002 && llama < 0.002);
}

static void test_kv_types(void **state)
{
    static const struct {
        enum kv_type type;
        double bound;
    } types[] = {{KV_F16, 0.002}, {KV_BF16, 0.015}, {KV_Q8_0, 0.04}};
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        for (size_t a = 0; a < ARRAY_LEN(archs); a++) {
            double d = error_of(archs[a], "f32", (struct model_opts){.kv_type = types[i].type}, 70);
            if (!(d < types[i].bound))
                fail_msg("%s, KV type %d: relative error %g", archs[a], (int)types[i].type, d);
        }
}

/* --- against itself -----------------------------------------------------------------------------
 */

/* However a sequence is cut into chunks, whatever it shares a step or its blocks with, and whoever
 * computes it: its logits are the same to the last bit. */
static bool same_bits(const float *a, const float *b, size_t n)
{
    return memcmp(a, b, n * sizeof *a) == 0;
}

static const char *const both_kinds[] = {"f32", "q4_k_m"};

/* Runs tokens [from, to) in chunks of random size up to `most`, logits for all of them. */
static void run_chunks(struct rig *r, struct rng *rng, const int32_t *tokens, int n, int most,
                       const int32_t *blocks, float *logits)
{
    for (int pos = 0; pos < n;) {
        int m = 1 + (int)rng_below(rng, (uint64_t)most);
        m = m > n - pos ? n - pos : m;
        struct batch_seq s = {tokens + pos, m, pos, blocks, m};
        model_forward(r->model, r->kv, &s, 1, logits + (size_t)pos * (size_t)r->n_vocab);
        pos += m;
    }
}

static void test_chunks(void **state)
{
    static const int most[] = {1, 7, 40, 150};
    enum { N = 230 };
    for (size_t a = 0; a < 2 * ARRAY_LEN(archs); a++) {
        const char *arch = archs[a / 2], *quant = both_kinds[a % 2];
        struct rig r =
            rig_open(arch, quant, (struct model_opts){.kv_type = KV_F16}, 1 + (int)a / 2);
        struct rng rng;
        rng_seed(&rng, 11);
        int32_t tokens[N], blocks[N_BLOCKS];
        random_tokens(&rng, tokens, N, r.n_vocab);
        size_t size = (size_t)N * (size_t)r.n_vocab;
        float *whole = xcalloc(size, sizeof *whole), *parts = xcalloc(size, sizeof *parts);
        for (int i = 0; i < N_BLOCKS; i++)
            blocks[i] = i;
        struct batch_seq s = {tokens, N, 0, blocks, N};
        model_forward(r.model, r.kv, &s, 1, whole);
        for (size_t i = 0; i < ARRAY_LEN(most); i++) {
            for (int b = 0; b < N_BLOCKS; b++)
                blocks[b] = (b * 5 + (int)i) % N_BLOCKS;
            run_chunks(&r, &rng, tokens, N, most[i], blocks, parts);
            if (!same_bits(parts, whole, size))
                fail_msg("%s %s in chunks up to %d: %g", arch, quant, most[i],
                         distance_f(parts, whole, size));
        }
        free(whole);
        free(parts);
        rig_close(&r);
    }
}

/* Somebody who wants the pool all the time. */
struct other {
    struct pool *pool;
    atomic_bool stop;
    atomic_int n_turns;
};

static void *compete(void *arg)
{
    struct other *o = arg;
    struct turn_user turn = {0};
    while (!atomic_load(&o->stop)) {
        pool_enter(o->pool, &turn);
        atomic_fetch_add(&o->n_turns, 1);
        pool_leave(o->pool);
    }
    return NULL;
}

/* A step that yields between any two layers gives the same bits. */
static void test_yields(void **state)
{
    enum { N = 60 };
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        struct rig r = rig_open("tiny-llama", "q4_k_m", (struct model_opts){0}, n_threads);
        struct turn_user turn = {0};
        struct other other = {.pool = r.pool};
        struct rng rng;
        pthread_t thread;
        rng_seed(&rng, 12);
        int32_t tokens[N], blocks[N_BLOCKS];
        random_tokens(&rng, tokens, N, r.n_vocab);
        size_t size = (size_t)N * (size_t)r.n_vocab;
        float *alone = xcalloc(size, sizeof *alone), *beside = xcalloc(size, sizeof *beside);
        for (int i = 0; i < N_BLOCKS; i++)
            blocks[i] = i;
        run_chunks(&r, &rng, tokens, N, 20, blocks, alone);
        pool_set_slice(r.pool, 0);
        assert_int_equal(pthread_create(&thread, NULL, compete, &other), 0);
        while (turn.away_ns == 0) {
            pool_enter(r.pool, &turn);
            run_chunks(&r, &rng, tokens, N, 20, blocks, beside);
            pool_leave(r.pool);
            assert_true(same_bits(beside, alone, size));
        }
        atomic_store(&other.stop, true);
        pthread_join(thread, NULL);
        assert_true(atomic_load(&other.n_turns) > 0);
        free(alone);
        free(beside);
        rig_close(&r);
    }
}

/* A sequence of a batch test: its tokens, how many are in the cache, its blocks. */
struct user {
    int32_t tokens[MAX_TOKENS];
    int n, pos;
    int32_t blocks[MAX_TOKENS / KV_BLOCK_TOKENS];
    float *want; /* logits of all tokens, alone */
};

/* One step of a random choice of users with random chunk sizes; compares the last logits. */
static void random_step(struct rig *r, struct rng *rng, struct user *users, int n_users,
                        float *logits)
{
    struct batch_seq seqs[MAX_SEQS];
    int who[MAX_SEQS], n = 0;
    for (int i = 0; i < n_users; i++) {
        struct user *u = &users[i];
        int most = rng_below(rng, 3) ? 1 : 50, m = 1 + (int)rng_below(rng, (uint64_t)most);
        m = m > u->n - u->pos ? u->n - u->pos : m;
        if (m < 1 || !rng_below(rng, 6))
            continue;
        who[n] = i;
        seqs[n++] = (struct batch_seq){u->tokens + u->pos, m, u->pos, u->blocks,
                                       m > 1 && !rng_below(rng, 4) ? 0 : 1};
    }
    model_forward(r->model, r->kv, seqs, n, logits);
    for (int i = 0; i < n; i++) {
        struct user *u = &users[who[i]];
        u->pos += seqs[i].n_tokens;
        if (!seqs[i].n_logits)
            continue;
        const float *want = u->want + (size_t)(u->pos - 1) * (size_t)r->n_vocab;
        if (!same_bits(logits, want, (size_t)r->n_vocab))
            fail_msg("user %d at position %d in a batch of %d: %g", who[i], u->pos - 1, n,
                     distance_f(logits, want, (size_t)r->n_vocab));
        logits += r->n_vocab;
    }
}

/* Users whose first `shared` tokens are the same, in the same blocks after the first user. */
static void run_users(const char *arch, const char *quant, int n_threads, int shared, uint64_t seed)
{
    enum { USERS = 6, PER_USER = MAX_TOKENS / KV_BLOCK_TOKENS, OWN = 256 };
    struct rig r = rig_open(arch, quant, (struct model_opts){.kv_type = KV_F16}, n_threads);
    struct rng rng;
    rng_seed(&rng, seed);
    struct user users[USERS];
    for (int i = 0; i < USERS; i++) {
        struct user *u = &users[i];
        u->n = shared + 20 + (int)rng_below(&rng, OWN - 20);
        random_tokens(&rng, u->tokens, u->n, r.n_vocab);
        memcpy(u->tokens, users[0].tokens, (size_t)shared * sizeof *u->tokens);
        for (int b = 0; b < PER_USER; b++)
            u->blocks[b] = i * PER_USER + b;
        u->want = xcalloc((size_t)u->n * (size_t)r.n_vocab, sizeof *u->want);
        for (int at = 0, n; at < u->n; at += n) {
            n = u->n - at < 256 ? u->n - at : 256;
            struct batch_seq s = {u->tokens + at, n, at, u->blocks, n};
            model_forward(r.model, r.kv, &s, 1, u->want + (size_t)at * (size_t)r.n_vocab);
        }
        u->pos = shared;
        for (int b = 0; b < shared / KV_BLOCK_TOKENS; b++)
            u->blocks[b] = users[0].blocks[b];
        /* a shared part of a block is copied */
        if (i && shared % KV_BLOCK_TOKENS)
            kv_mem_copy(r.kv, u->blocks[shared / KV_BLOCK_TOKENS],
                        users[0].blocks[shared / KV_BLOCK_TOKENS], shared % KV_BLOCK_TOKENS);
    }
    float *logits = xcalloc((size_t)MAX_SEQS * (size_t)r.n_vocab, sizeof *logits);
    for (int step = 0; step < 60; step++)
        random_step(&r, &rng, users, USERS, logits);
    for (int i = 0; i < USERS; i++)
        free(users[i].want);
    free(logits);
    rig_close(&r);
}

static void test_batches(void **state)
{
    for (size_t a = 0; a < 2 * ARRAY_LEN(archs); a++)
        run_users(archs[a / 2], both_kinds[a % 2], 2, 0, 21 + a);
}

static void test_shared_prefix(void **state)
{
    /* sharing is worth while from a segment of 256 tokens on; the second has a window */
    static const int shared[] = {256, 530, 101, 512};
    for (size_t a = 0; a < 2 * ARRAY_LEN(archs); a++)
        run_users(archs[a / 2], both_kinds[a % 2], 1 + (int)a % 4, shared[a / 2], 31 + a);
}

static void test_isas(void **state)
{
    static const char *const isas[] = {"scalar", "avx2", "avxvnni", "avx512"};
    for (size_t i = 0; i < ARRAY_LEN(isas); i++) {
        if (!kernels_select(isas[i], NULL))
            continue;
        for (int type = KV_BF16; type <= KV_Q8_0; type++) {
            struct model_opts o = {.isa = isas[i], .kv_type = (enum kv_type)type};
            double d = error_of("tiny-llama", "q4_k_m", o, 40);
            if (!(d < bound_of("q4_k_m")))
                fail_msg("%s, KV type %d: relative error %g", isas[i], type, d);
        }
    }
}

/* --- memory of KV blocks ------------------------------------------------------------------------
 */

static size_t resident_bytes(void)
{
    size_t all = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%zu %zu", &all, &resident), 2);
    fclose(f);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

static bool system_can_populate(void)
{
    void *p = mem_alloc_big(1);
    int rc = madvise(p, 1, MADV_POPULATE_WRITE);
    mem_free_big(p, 1);
    return rc == 0;
}

/* Steps go on while all of it is made, and a pool that nobody used yet can be freed meanwhile. */
static void test_kv_memory_is_made(void **state)
{
    (void)state;
    enum { POOL_BYTES = 192 << 20 };
    static const int32_t tokens[] = {5, 300, 17, 42, 42, 9};
    static const int32_t block = 0;
    struct rig r = rig_open("tiny-llama", "q4_0", (struct model_opts){0}, 2);
    struct err e = {0};
    int n_blocks = (int)(POOL_BYTES / model_info(r.model)->kv_block_bytes);
    float *want = xcalloc((size_t)r.n_vocab, sizeof *want), *got = xcalloc((size_t)r.n_vocab, 4);
    struct batch_seq s = {tokens, ARRAY_LEN(tokens), 0, &block, 1};
    model_forward(r.model, r.kv, &s, 1, want);

    size_t before = resident_bytes();
    struct kv_mem *kv;
    assert_int_equal(kv_mem_new(&kv, r.model, n_blocks, &e), 0);
    kv_mem_make_all(kv);
    do {
        model_forward(r.model, kv, &s, 1, got);
        assert_memory_equal(got, want, (size_t)r.n_vocab * sizeof *want);
    } while (system_can_populate() && resident_bytes() < before + POOL_BYTES / 10 * 9);
    kv_mem_free(kv);

    assert_int_equal(kv_mem_new(&kv, r.model, n_blocks, &e), 0);
    kv_mem_make_all(kv);
    kv_mem_free(kv);
    free(want);
    free(got);
    rig_close(&r);
}

/* --- the packed file ----------------------------------------------------------------------------
 */

static void logits_of(struct gguf *g, struct pool *pool, const char *dir, float *logits)
{
    static const int32_t tokens[] = {5, 300, 17, 42, 42, 9};
    static const int32_t block = 0;
    struct model *m;
    struct kv_mem *kv;
    struct err e = {0};
    if (model_open(&m, g, &(struct model_opts){.pool = pool, .pack_dir = dir}, &e) ||
        kv_mem_new(&kv, m, 1, &e))
        fail_msg("%s", e.msg);
    struct batch_seq s = {tokens, ARRAY_LEN(tokens), 0, &block, 1};
    model_forward(m, kv, &s, 1, logits);
    kv_mem_free(kv);
    model_close(m);
}

/* The only file in dir; its name into path. Returns its size, 0 when there is none. */
static off_t only_file(const char *dir, char *path, size_t size)
{
    glob_t found;
    struct stat st = {0};
    char pattern[64];
    snprintf(pattern, sizeof pattern, "%s/*", dir);
    if (glob(pattern, 0, NULL, &found) == 0) {
        assert_int_equal(found.gl_pathc, 1);
        snprintf(path, size, "%s", found.gl_pathv[0]);
        assert_int_equal(stat(path, &st), 0);
        globfree(&found);
    }
    return st.st_size;
}

static void damage(const char *path, off_t at)
{
    FILE *f = fopen(path, "r+e");
    assert_non_null(f);
    fseeko(f, at, SEEK_SET);
    int c = fgetc(f);
    fseeko(f, at, SEEK_SET);
    fputc(c ^ 64, f);
    fclose(f);
}

static void test_packed_file(void **state)
{
    struct gguf *g = make_file("tiny-llama", "q4_k_m");
    struct pool *pool;
    assert_int_equal(pool_new(&pool, 2, NULL), 0);
    char dir[] = "/tmp/terrace-test-pack-XXXXXX", path[256];
    assert_non_null(mkdtemp(dir));
    float want[512], got[512];
    logits_of(g, pool, NULL, want);

    fault_set(FAULT_WRITE, 2); /* the disk is full: no file, and the model works */
    logits_of(g, pool, dir, got);
    fault_set(FAULT_WRITE, 0);
    assert_memory_equal(got, want, sizeof want);
    assert_int_equal(only_file(dir, path, sizeof path), 0);

    for (int i = 0; i < 2; i++) { /* written, then read */
        logits_of(g, pool, dir, got);
        assert_memory_equal(got, want, sizeof want);
    }
    off_t size = only_file(dir, path, sizeof path);
    assert_true(size > 100000);
    const off_t places[] = {3, 9, 20, 60, 72 + 8, 72 + 30, size / 2, size - 1};
    for (size_t i = 0; i <= ARRAY_LEN(places); i++) { /* damaged or cut: written anew */
        if (i < ARRAY_LEN(places))
            damage(path, places[i]);
        else
            assert_int_equal(truncate(path, size - 4096), 0);
        logits_of(g, pool, dir, got);
        assert_memory_equal(got, want, sizeof want);
        assert_int_equal(only_file(dir, path, sizeof path), size);
    }
    /* Written anew, files of older layouts of the same model go, those of others stay. */
    char old[256], newer[256], other[256], name[256];
    int prefix = (int)(strrchr(path, '-') - path);
    snprintf(name, sizeof name, "%s", path);
    snprintf(old, sizeof old, "%.*s-1.tpk", prefix, path);
    snprintf(newer, sizeof newer, "%.*s-1000.tpk", prefix, path);
    snprintf(other, sizeof other, "%s/0123-1.tpk", dir);
    const char *const stale[] = {old, newer, other};
    for (size_t i = 0; i < ARRAY_LEN(stale); i++) {
        FILE *f = fopen(stale[i], "we");
        assert_non_null(f);
        fclose(f);
    }
    damage(path, 9);
    logits_of(g, pool, dir, got);
    assert_int_equal(access(old, F_OK), -1);
    assert_int_equal(unlink(newer), 0);
    assert_int_equal(unlink(other), 0);
    assert_int_equal(only_file(dir, path, sizeof path), size);
    assert_string_equal(path, name);
    logits_of(g, pool, path, got); /* not a directory */
    assert_memory_equal(got, want, sizeof want);
    unlink(path);
    rmdir(dir);
    gguf_close(g);
    pool_free(pool);
}

/* --- files that are not models ------------------------------------------------------------------
 */

static void test_bad_files(void **state)
{
    static const struct {
        const char *arch, *from, *to; /* bytes of the file replaced, same length */
        int code;
        const char *names; /* what the message must name */
    } cases[] = {
        {"tiny-llama", "general.architecture", "general.archXtecture", ERR_NOTFOUND,
         "general.architecture"},
        {"tiny-llama", "llama.block_count", "llama.block_kount", ERR_NOTFOUND, "llama.block_count"},
        {"tiny-llama", "blk.1.ffn_up.weight", "blk.1.ffn_uq.weight", ERR_UNSUPPORTED,
         "blk.1.ffn_uq.weight"},
        {"tiny-llama", "blk.1.ffn_up.weight", "blk.7.ffn_up.weight", ERR_UNSUPPORTED,
         "blk.7.ffn_up.weight"},
        {"tiny-llama", "token_embd.weight", "blk.0.attn_q.bias", ERR_FORMAT, "attn_q.bias"},
        {"tiny-llama", "llama.rope.dimension_count", "llama.rope.dimension_kount", 0, ""},
        {"tiny-qwen2", "qwen2.block_count", "qwen2.block_kount", ERR_NOTFOUND, "qwen2.block_count"},
        {"tiny-phi3", "phi3.attention.layer_norm_rms_epsilon",
         "phi3.attention.layer_norm_rms_epsilom", ERR_NOTFOUND, "layer_norm_rms_epsilon"},
    };
    struct pool *pool;
    assert_int_equal(pool_new(&pool, 1, NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct buf b = {0};
        char path[] = "/tmp/terrace-test-model-XXXXXX";
        close(mkstemp(path));
        assert_int_equal(synth_write(cases[i].arch, "q8_0", path, NULL, NULL), 0);
        FILE *f = fopen(path, "re");
        for (size_t n = 1; n; b.len += n)
            n = fread(buf_reserve(&b, 1 << 16), 1, 1 << 16, f);
        fclose(f);
        unlink(path);
        char *at = memmem(b.data, b.len, cases[i].from, strlen(cases[i].from));
        assert_non_null(at);
        memcpy(at, cases[i].to, strlen(cases[i].to));
        struct gguf *g;
        struct model *m = NULL;
        struct err e = {0};
        assert_int_equal(gguf_open_mem(&g, b.data, b.len, &e), 0);
        int rc = model_open(&m, g, &(struct model_opts){.pool = pool}, &e);
        if (rc != cases[i].code || !strstr(e.msg, cases[i].names))
            fail_msg("%s -> %s: %d %s", cases[i].from, cases[i].to, rc, e.msg);
        model_close(m);
        gguf_close(g);
        buf_release(&b);
    }
    pool_free(pool);
}

static bool cancel(void *arg, size_t done, size_t total)
{
    assert_true(done <= total);
    return ++*(int *)arg < 3;
}

static void test_open_fails_cleanly(void **state)
{
    struct gguf *g = make_file("tiny-qwen3", "q4_0");
    struct pool *pool;
    assert_int_equal(pool_new(&pool, 2, NULL), 0);
    struct model_opts o = {.pool = pool};
    struct model *m = NULL;
    struct err e = {0};
    int n = 0;
    for (int rc = ERR_NOMEM; rc; n++) { /* every allocation fails once */
        fault_set(FAULT_ALLOC, n + 1);
        rc = model_open(&m, g, &o, &e);
        fault_set(FAULT_ALLOC, 0);
        assert_true(rc == 0 || rc == ERR_NOMEM);
    }
    assert_true(n > 5);
    struct kv_mem *kv;
    assert_int_equal(kv_mem_new(&kv, m, INT32_MAX, &e), ERR_NOMEM);
    assert_int_equal(kv_mem_new(&kv, m, 0, &e), ERR_INVALID);
    model_close(m);

    int calls = 0;
    o.progress = cancel;
    o.progress_arg = &calls;
    assert_int_equal(model_open(&m, g, &o, &e), ERR_CANCELED);
    assert_int_equal(calls, 3);
    o = (struct model_opts){.pool = pool, .max_batch_tokens = 1 << 30};
    assert_int_equal(model_open(&m, g, &o, &e), ERR_INVALID);
    o = (struct model_opts){.pool = pool, .isa = "mmx"};
    assert_true(model_open(&m, g, &o, &e) < 0);
    gguf_close(g);
    pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type),
        cmocka_unit_test(test_long_context),
        cmocka_unit_test(test_kv_types),
        cmocka_unit_test(test_yields),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_shared_prefix),
        cmocka_unit_test(test_isas),
        cmocka_unit_test(test_kv_memory_is_made),
        cmocka_unit_test(test_packed_file),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_open_fails_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
