/* kv and prefix against a twin that knows each block's whole history of tokens and searches all of
 * it every time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "engine/prefix.h"
#include "program.h"

enum { BLOCK = 4, MOST_BLOCKS = 40, MOST_TOKENS = 48, MOST_SEQS = 12, N_SALTS = 3 };

/* What the twin knows of a block. */
struct twin_block {
    int held;
    bool kept; /* findable */
    bool forgotten;
    int salt, n_before;         /* tokens before the block */
    int32_t chain[MOST_TOKENS]; /* all tokens from the start to the end of what is in the block */
    int n;                      /* in the block */
    uint64_t used;
    /* what the "model" wrote: must always be what the finder asked for */
    int written_salt;
    int32_t written[MOST_TOKENS];
    int n_written;
};

struct twin_seq {
    bool live;
    int salt, n_tokens, n_computed;
    int32_t tokens[MOST_TOKENS];
    struct kv_table table;
};

enum plant { PLANT_NOTHING, PLANT_WRONG_TOKEN, PLANT_LOST_REF, PLANT_RECENCY };

struct program {
    struct kv kv;
    struct prefix prefix;
    struct rng rng;
    struct twin_block blocks[MOST_BLOCKS];
    struct twin_seq seqs[MOST_SEQS];
    int32_t past[64][MOST_TOKENS]; /* prompts to come back to */
    int n_past;
    uint64_t tick;
    enum plant plant;
    int n_hits, n_evictions, n_swaps, n_partial;
    char why[256];
};

static const char *const salts[N_SALTS] = {"", "a", "tenant with a long name"};

static struct str salt_str(int i)
{
    return str_of(salts[i]);
}

/* The twin. */

static bool is_child(const struct twin_block *c, const struct twin_block *p)
{
    return c->kept && c->salt == p->salt && c->n_before == p->n_before + BLOCK &&
           memcmp(c->chain, p->chain, (size_t)c->n_before * sizeof *c->chain) == 0;
}

static int twin_victim(const struct program *p)
{
    int victim = -1;
    for (int b = 0; b < p->kv.n_blocks; b++) {
        const struct twin_block *t = &p->blocks[b];
        if (!t->kept || t->held || (victim >= 0 && p->blocks[victim].used < t->used))
            continue;
        bool leaf = true;
        for (int c = 0; c < p->kv.n_blocks && leaf; c++)
            leaf = !(t->n == BLOCK && is_child(&p->blocks[c], t));
        if (leaf)
            victim = b;
    }
    return victim;
}

static int twin_full(const struct program *p, int salt, const int32_t *tokens, int n_before)
{
    for (int b = 0; b < p->kv.n_blocks; b++) {
        const struct twin_block *t = &p->blocks[b];
        if (t->kept && t->salt == salt && t->n_before == n_before && t->n == BLOCK &&
            memcmp(t->chain, tokens, (size_t)(n_before + BLOCK) * sizeof *tokens) == 0)
            return b;
    }
    return -1;
}

static int twin_partial(const struct program *p, int salt, const int32_t *tokens, int n_before,
                        int n)
{
    int best = 0;
    for (int b = 0; b < p->kv.n_blocks; b++) {
        const struct twin_block *t = &p->blocks[b];
        if (!t->kept || t->salt != salt || t->n_before != n_before ||
            memcmp(t->chain, tokens, (size_t)n_before * sizeof *tokens) != 0)
            continue;
        int same = 0;
        while (same < t->n && n_before + same < n &&
               t->chain[n_before + same] == tokens[n_before + same])
            same++;
        best = same > best ? same : best;
    }
    return best;
}

/* Whether a holds all that b holds, at the same place. */
static bool twin_covers(const struct twin_block *a, const struct twin_block *b)
{
    return a != b && a->kept && a->salt == b->salt && a->n_before == b->n_before && a->n >= b->n &&
           memcmp(a->chain, b->chain, (size_t)(b->n_before + b->n) * sizeof *b->chain) == 0;
}

static void twin_unref(struct program *p, int32_t b)
{
    struct twin_block *t = &p->blocks[b];
    if (--t->held || !t->kept)
        return;
    t->used = ++p->tick;
    for (int i = 0; i < p->kv.n_blocks; i++)
        if (t->n < BLOCK && twin_covers(&p->blocks[i], t))
            t->kept = false;
    for (int i = 0; i < p->kv.n_blocks && t->kept; i++) {
        struct twin_block *c = &p->blocks[i];
        if (c->kept && !c->held && c->n < BLOCK && twin_covers(t, c))
            c->kept = false;
    }
}

/* Operations, on both. */

static void unref(struct program *p, int32_t b)
{
    prefix_unref(&p->prefix, b);
    twin_unref(p, b);
}

static void ref(struct program *p, int32_t b)
{
    prefix_ref(&p->prefix, b);
    p->blocks[b].held++;
}

static const char *take(struct program *p, int32_t *out)
{
    int n_free = p->kv.n_free, victim = twin_victim(p);
    if (p->plant == PLANT_RECENCY && p->n_evictions == 50 && victim >= 0) {
        prefix_ref(&p->prefix, victim); /* the real one believes that it was used just now */
        prefix_unref(&p->prefix, victim);
    }
    int32_t b = prefix_take(&p->prefix);
    if (b < 0 && (n_free || victim >= 0))
        DIFFER(p->why, "no block, but %d are free and %d can be evicted", n_free, victim);
    if (b >= 0 && n_free == 0) {
        p->n_evictions++;
        if (b != victim)
            DIFFER(p->why, "block %d was evicted, the oldest leaf is %d", b, victim);
    }
    if (b >= 0) {
        if (p->blocks[b].held)
            DIFFER(p->why, "block %d was given while held", b);
        p->blocks[b] = (struct twin_block){.held = 1};
    }
    *out = b;
    return NULL;
}

static void release(struct program *p, struct twin_seq *q)
{
    while (q->table.n)
        unref(p, q->table.blocks[--q->table.n]);
    q->live = false;
}

static void make_prompt(struct program *p, struct twin_seq *q)
{
    q->salt = (int)rng_below(&p->rng, N_SALTS);
    q->n_tokens = 1 + (int)rng_below(&p->rng, MOST_TOKENS);
    int keep = 0;
    if (p->n_past && rng_below(&p->rng, 4)) {
        keep = (int)rng_below(&p->rng, MOST_TOKENS + 1);
        memcpy(q->tokens, p->past[rng_below(&p->rng, (uint64_t)p->n_past)],
               (size_t)keep * sizeof *q->tokens);
    }
    for (int i = keep; i < MOST_TOKENS; i++)
        q->tokens[i] = (int32_t)rng_below(&p->rng, 3);
    int slot = p->n_past < 64 ? p->n_past++ : (int)rng_below(&p->rng, 64);
    memcpy(p->past[slot], q->tokens, sizeof q->tokens);
}

/* The content of what was found is what was asked for. */
static const char *check_content(struct program *p, const struct twin_seq *q, int32_t b,
                                 int n_before, int n)
{
    const struct twin_block *t = &p->blocks[b];
    if (t->written_salt != q->salt || t->n_written < n_before + n ||
        memcmp(t->written, q->tokens, (size_t)(n_before + n) * sizeof *q->tokens) != 0)
        DIFFER(p->why, "block %d does not hold the %d tokens after %d", b, n, n_before);
    return NULL;
}

static const char *find(struct program *p, const struct twin_seq *q, struct prefix_match *m,
                        int32_t *found)
{
    int n = q->n_tokens - 1;
    *m = prefix_find(&p->prefix, salt_str(q->salt), q->tokens, n, found);
    int want = 0;
    for (; (want + 1) * BLOCK <= n; want++) {
        int b = twin_full(p, q->salt, q->tokens, want * BLOCK);
        if (b < 0)
            break;
        if (want < m->n_full && found[want] != b)
            DIFFER(p->why, "block %d found where %d has the content", found[want], b);
    }
    int partial = twin_partial(p, q->salt, q->tokens, want * BLOCK, n);
    if (m->n_full != want || m->n_partial != partial)
        DIFFER(p->why, "found %d blocks and %d tokens, not %d and %d", m->n_full, m->n_partial,
               want, partial);
    const char *bad = NULL;
    for (int i = 0; i < want && !bad; i++)
        bad = check_content(p, q, found[i], i * BLOCK, BLOCK);
    if (!bad && partial)
        bad = check_content(p, q, m->partial, want * BLOCK, partial);
    p->n_hits += want > 0;
    p->n_partial += partial > 0;
    return bad;
}

static const char *admit(struct program *p, struct twin_seq *q)
{
    struct prefix_match m;
    int32_t found[MOST_TOKENS];
    make_prompt(p, q);
    const char *bad = find(p, q, &m, found);
    if (bad)
        return bad;
    for (int i = 0; i < m.n_full; i++) {
        ref(p, found[i]);
        kv_table_add(&q->table, found[i]);
    }
    if (m.n_partial)
        ref(p, m.partial);
    q->live = true;
    q->n_computed = m.n_full * BLOCK;
    int need = kv_blocks_for(&p->kv, q->n_tokens);
    while (q->table.n < need) {
        int32_t b;
        if ((bad = take(p, &b)))
            return bad;
        if (b < 0) { /* as if preempted at once */
            if (m.n_partial)
                unref(p, m.partial);
            release(p, q);
            return NULL;
        }
        kv_table_add(&q->table, b);
    }
    if (m.n_partial) {
        struct twin_block *to = &p->blocks[q->table.blocks[m.n_full]];
        const struct twin_block *from = &p->blocks[m.partial];
        to->written_salt = from->written_salt;
        to->n_written = m.n_full * BLOCK + m.n_partial;
        memcpy(to->written, from->written, (size_t)to->n_written * sizeof *to->written);
        unref(p, m.partial);
        q->n_computed += m.n_partial;
    }
    return NULL;
}

/* prefix_put on both. */
static const char *put(struct program *p, struct twin_seq *q, int i, int n)
{
    int32_t b = q->table.blocks[i], parent = i ? q->table.blocks[i - 1] : -1;
    struct twin_block *t = &p->blocks[b];
    int32_t tokens[BLOCK];
    memcpy(tokens, q->tokens + i * BLOCK, sizeof tokens);
    if (p->plant == PLANT_WRONG_TOKEN && p->n_hits % 64 == 63) /* now and then */
        tokens[n - 1] ^= 1;
    int32_t got = prefix_put(&p->prefix, salt_str(q->salt), parent, b, tokens, n);
    int want = b;
    bool alive = !t->forgotten && (parent < 0 || p->blocks[parent].kept);
    if (alive && n == BLOCK && t->n < BLOCK) {
        int same = twin_full(p, q->salt, q->tokens, i * BLOCK);
        want = same >= 0 ? same : b;
    }
    if (got != want)
        DIFFER(p->why, "put of block %d gave %d, not %d", b, got, want);
    if (!alive)
        return NULL;
    if (got != b) {
        p->n_swaps++;
        p->blocks[got].held++;
        t->kept = false;
        twin_unref(p, b);
        q->table.blocks[i] = got;
        return check_content(p, q, got, i * BLOCK, BLOCK);
    }
    t->kept = true;
    t->salt = q->salt;
    t->n_before = i * BLOCK;
    t->n = n;
    memcpy(t->chain, q->tokens, (size_t)(i * BLOCK + n) * sizeof *t->chain);
    return NULL;
}

/* Computes some more tokens and publishes them. */
static const char *compute(struct program *p, struct twin_seq *q)
{
    int left = q->table.n * BLOCK - q->n_computed;
    int most = left < MOST_TOKENS - q->n_computed ? left : MOST_TOKENS - q->n_computed;
    if (most < 1)
        return NULL;
    int from = q->n_computed, to = from + 1 + (int)rng_below(&p->rng, (uint64_t)most);
    for (int i = from / BLOCK; i * BLOCK < to; i++) {
        struct twin_block *t = &p->blocks[q->table.blocks[i]];
        if (t->held != 1)
            DIFFER(p->why, "a shared block would be written");
        t->written_salt = q->salt;
        t->n_written = to < (i + 1) * BLOCK ? to : (i + 1) * BLOCK;
        memcpy(t->written, q->tokens, (size_t)t->n_written * sizeof *t->written);
    }
    const char *bad = NULL;
    for (int i = from / BLOCK; i * BLOCK < to && !bad; i++)
        bad = put(p, q, i, to - i * BLOCK < BLOCK ? to - i * BLOCK : BLOCK);
    q->n_computed = to;
    return bad;
}

static void forget(struct program *p)
{
    int salt = (int)rng_below(&p->rng, N_SALTS + 1);
    struct str s = salt < N_SALTS ? salt_str(salt) : STR("");
    prefix_forget(&p->prefix, salt < N_SALTS ? &s : NULL);
    for (int b = 0; b < p->kv.n_blocks; b++) {
        struct twin_block *t = &p->blocks[b];
        if (t->kept && (salt == N_SALTS || t->salt == salt)) {
            t->kept = false;
            t->forgotten = true;
            t->n = 0;
        }
    }
}

static const char *check(struct program *p)
{
    int32_t refs[MOST_BLOCKS] = {0};
    int n_cached = 0;
    struct err e = {0};
    for (int i = 0; i < MOST_SEQS; i++)
        for (int k = 0; k < p->seqs[i].table.n; k++)
            refs[p->seqs[i].table.blocks[k]]++;
    if (p->plant == PLANT_LOST_REF && p->n_hits == 100)
        p->kv.ref[p->kv.stack[0]]++;
    if (!kv_check(&p->kv, refs, &e) || !prefix_check(&p->prefix, &e))
        DIFFER(p->why, "%s", e.msg);
    for (int b = 0; b < p->kv.n_blocks; b++) {
        if (refs[b] != p->blocks[b].held || p->kv.kept[b] != p->blocks[b].kept)
            DIFFER(p->why, "block %d: held %d kept %d, twin %d %d", b, refs[b], p->kv.kept[b],
                   p->blocks[b].held, p->blocks[b].kept);
        n_cached += !refs[b] && p->kv.kept[b];
    }
    if (prefix_available(&p->prefix) != n_cached + p->kv.n_free)
        DIFFER(p->why, "%d blocks available, not %d", prefix_available(&p->prefix),
               n_cached + p->kv.n_free);
    return NULL;
}

static const char *operate(struct program *p)
{
    struct twin_seq *q = &p->seqs[rng_below(&p->rng, MOST_SEQS)];
    uint64_t what = rng_below(&p->rng, 2000);
    if (what == 0)
        forget(p);
    else if (!q->live)
        return admit(p, q);
    else if (what < 200)
        release(p, q);
    else
        return compute(p, q);
    return NULL;
}

static const char *run_program(struct program *p, uint64_t seed, int n_ops, enum plant plant)
{
    const char *bad = NULL;
    *p = (struct program){.plant = plant};
    rng_seed(&p->rng, seed);
    kv_init(&p->kv, 8 + (int)rng_below(&p->rng, MOST_BLOCKS - 7), BLOCK);
    prefix_init(&p->prefix, &p->kv, true);
    for (int i = 0; i < n_ops && !bad; i++) {
        bad = operate(p);
        if (!bad)
            bad = check(p);
    }
    if (!bad) {
        for (int i = 0; i < MOST_SEQS; i++)
            release(p, &p->seqs[i]);
        prefix_forget(&p->prefix, NULL);
        if (p->kv.n_free != p->kv.n_blocks)
            snprintf(p->why, sizeof p->why, "%d blocks are lost", p->kv.n_blocks - p->kv.n_free);
        bad = p->kv.n_free != p->kv.n_blocks ? p->why : NULL;
    }
    for (int i = 0; i < MOST_SEQS; i++)
        kv_table_release(&p->seqs[i].table);
    prefix_release(&p->prefix);
    kv_release(&p->kv);
    return bad;
}

static void test_program(void **state)
{
    struct program *p = xcalloc(1, sizeof *p);
    int64_t hits = 0, evictions = 0, swaps = 0, partial = 0;
    for (uint64_t seed = 1; seed <= 50; seed++) {
        const char *bad = run_program(p, seed, 20000 / PROGRAM_SCALE, PLANT_NOTHING);
        if (bad)
            fail_msg("seed %d: %s", (int)seed, bad);
        hits += p->n_hits;
        evictions += p->n_evictions;
        swaps += p->n_swaps;
        partial += p->n_partial;
    }
    print_message("# %d hits %d partial %d evictions %d swaps\n", (int)hits, (int)partial,
                  (int)evictions, (int)swaps);
    /* the programs went where it is interesting */
    assert_true(hits > 1000 && evictions > 1000 && swaps > 100 && partial > 1000);
    free(p);
}

static void test_planted_bugs_are_found(void **state)
{
    struct program *p = xcalloc(1, sizeof *p);
    for (enum plant plant = PLANT_WRONG_TOKEN; plant <= PLANT_RECENCY; plant++)
        assert_non_null(run_program(p, 1, 20000, plant));
    free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_program),
        cmocka_unit_test(test_planted_bugs_are_found),
    };
    return cmocka_run_group_tests_name("prefix program", tests, NULL, NULL);
}
