/* Balancing policies: how they spread, that bounds hold, and what moves when a backend leaves. */
/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
/* clang-format on */

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "gateway/balance.h"
#include "program.h"

enum { MAX = 16 };

struct fleet {
    struct balance b;
    struct balance_candidate c[MAX];
    double credit[MAX];
    size_t n;
    int picks[MAX];
};

static void fleet_init(struct fleet *f, enum balance_kind kind, size_t n, uint64_t seed)
{
    struct rng ids;
    rng_seed(&ids, seed + 77);
    *f = (struct fleet){.n = n};
    balance_init(&f->b, kind, 1.25, seed);
    for (size_t i = 0; i < n; i++)
        f->c[i] =
            (struct balance_candidate){.id = rng_u64(&ids), .weight = 1, .credit = &f->credit[i]};
}

static size_t pick(struct fleet *f, uint64_t prefix)
{
    struct balance_request r = {true, prefix};
    size_t i = balance_pick(&f->b, f->c, f->n, &r);
    assert_true(i < f->n);
    f->picks[i]++;
    return i;
}

/* ---- in turn ---- */

static void test_round_robin_is_exact(void **state)
{
    for (size_t n = 1; n <= 7; n++) {
        struct fleet f;
        fleet_init(&f, BALANCE_ROUND_ROBIN, n, n);
        for (size_t i = 0; i < n * 100; i++)
            assert_int_equal(pick(&f, 0), i % n);
    }
}

/* After every turn each has its share to within one (the bound for smooth weighted round robin is
 * that of the whole cycle: exact). */
static void test_weighted_is_exact_and_smooth(void **state)
{
    static const double weights[] = {5, 1, 1, 3};
    struct fleet f;
    fleet_init(&f, BALANCE_WEIGHTED, 4, 1);
    for (size_t i = 0; i < 4; i++)
        f.c[i].weight = weights[i];
    for (int turn = 1; turn <= 1000; turn++) {
        pick(&f, 0);
        for (size_t i = 0; i < 4; i++)
            assert_true(fabs(f.picks[i] - turn * weights[i] / 10) <= 2);
    }
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(f.picks[i], (int)(weights[i] * 100));
}

/* ---- by load ---- */

static void test_least_tokens_takes_the_least(void **state)
{
    struct fleet f;
    struct rng rng;
    rng_seed(&rng, 3);
    fleet_init(&f, BALANCE_LEAST_TOKENS, 6, 3);
    for (int turn = 0; turn < 5000; turn++) {
        for (size_t i = 0; i < f.n; i++) {
            f.c[i].tokens = (int64_t)rng_below(&rng, 5);
            f.c[i].weight = 1 + (double)rng_below(&rng, 3);
        }
        size_t got = pick(&f, 0);
        for (size_t i = 0; i < f.n; i++)
            assert_true((double)f.c[got].tokens / f.c[got].weight <=
                        (double)f.c[i].tokens / f.c[i].weight);
    }
    fleet_init(&f, BALANCE_LEAST_TOKENS, 6, 3); /* nothing known: evenly */
    for (int turn = 0; turn < 600; turn++)
        pick(&f, 0);
    for (size_t i = 0; i < f.n; i++)
        assert_int_equal(f.picks[i], 100);
}

static int spread_of(enum balance_kind kind, uint64_t seed)
{
    struct fleet f;
    fleet_init(&f, kind, 10, seed);
    for (int turn = 0; turn < 10000; turn++) {
        size_t i = pick(&f, 0);
        f.c[i].requests++;
        f.c[i].tokens += 100;
    }
    int least = f.picks[0], most = f.picks[0];
    for (size_t i = 1; i < f.n; i++) {
        least = f.picks[i] < least ? f.picks[i] : least;
        most = f.picks[i] > most ? f.picks[i] : most;
    }
    return most - least;
}

/* Balls into bins: one random choice would leave a gap of about 4 sqrt(1000) = 126, two choices
 * leave log log n. */
static void test_power_of_two_is_nearly_even(void **state)
{
    for (uint64_t seed = 0; seed < 20; seed++)
        assert_true(spread_of(BALANCE_POWER_OF_TWO, seed) <= 6);
}

/* ---- prefix affinity ---- */

static void test_affinity_spreads_by_weight(void **state)
{
    struct fleet f;
    struct rng rng;
    rng_seed(&rng, 5);
    fleet_init(&f, BALANCE_PREFIX_AFFINITY, 4, 5);
    f.c[3].weight = 3;
    enum { N = 60000 };
    for (int i = 0; i < N; i++)
        pick(&f, rng_u64(&rng));
    for (size_t i = 0; i < 4; i++) {
        double want = N * f.c[i].weight / 6;
        assert_true(fabs(f.picks[i] - want) < 5 * sqrt(want));
    }
}

static void test_affinity_moves_the_least(void **state)
{
    enum { KEYS = 5000 };
    static size_t before[KEYS];
    struct fleet f, less;
    fleet_init(&f, BALANCE_PREFIX_AFFINITY, 8, 9);
    for (uint64_t k = 0; k < KEYS; k++) {
        before[k] = pick(&f, k);
        assert_int_equal(pick(&f, k), before[k]); /* the same again */
    }
    for (size_t gone = 0; gone < 8; gone++) {
        less = f;
        memmove(&less.c[gone], &less.c[gone + 1], (7 - gone) * sizeof *less.c);
        less.n = 7;
        int moved = 0;
        for (uint64_t k = 0; k < KEYS; k++) {
            size_t now = pick(&less, k);
            uint64_t id = less.c[now].id;
            if (before[k] != gone)
                assert_true(id == f.c[before[k]].id); /* only what it had */
            else
                moved++;
        }
        assert_true(moved > KEYS / 16 && moved < KEYS / 4);
    }
}

/* Random arrivals and ends, most of them with the same few prefixes: nobody ever gets more than its
 * bound, and while there is room the favourite gets them. */
static const char *bounded(uint64_t seed, bool planted, char *why)
{
    struct fleet f;
    struct rng rng;
    rng_seed(&rng, seed);
    fleet_init(&f, BALANCE_PREFIX_AFFINITY, 2 + seed % 9, seed);
    if (planted)
        f.b.load_factor = 4;
    size_t owner[400];
    int n_running = 0;
    for (int step = 0; step < 3000; step++) {
        if (n_running && (n_running == 400 || rng_below(&rng, 100) < 45)) {
            int k = (int)rng_below(&rng, (uint64_t)n_running);
            f.c[owner[k]].requests--;
            owner[k] = owner[--n_running];
            continue;
        }
        double most = ceil(1.25 * (n_running + 1) / (double)f.n);
        size_t i = pick(&f, rng_below(&rng, 3));
        if (++f.c[i].requests > most)
            DIFFER(why, "step %d: backend %zu has %d requests of %d, the bound is %g", step, i,
                   f.c[i].requests, n_running + 1, most);
        owner[n_running++] = i;
    }
    return NULL;
}

static void test_affinity_is_bounded(void **state)
{
    char why[256];
    for (uint64_t seed = 0; seed < 200 / PROGRAM_SCALE; seed++) {
        const char *bad = bounded(seed, false, why);
        if (bad)
            fail_msg("seed %d: %s", (int)seed, bad);
    }
    int found = 0;
    for (uint64_t seed = 0; seed < 20; seed++)
        found += bounded(seed, true, why) != NULL;
    assert_true(found > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_robin_is_exact),
        cmocka_unit_test(test_weighted_is_exact_and_smooth),
        cmocka_unit_test(test_least_tokens_takes_the_least),
        cmocka_unit_test(test_power_of_two_is_nearly_even),
        cmocka_unit_test(test_affinity_spreads_by_weight),
        cmocka_unit_test(test_affinity_moves_the_least),
        cmocka_unit_test(test_affinity_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
