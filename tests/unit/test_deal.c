/* Every thing is done once, whoever does it. */
#include "unit.h"

#include <stdlib.h>

#include "base/mem.h"
#include "base/pool.h"
#include "base/rng.h"
#include "model/deal.h"

enum { THREADS = 4, THINGS = 300, PHASES = 2000 };

struct world {
    struct pool *pool;
    struct deal_run runs[THREADS];
    int cuts[PHASES][THREADS + 1];
    atomic_int done[THINGS];
    atomic_uint idled;
};

static int cut_of(const void *arg, int i)
{
    return ((const int *)arg)[i];
}

static struct deal phase_of(struct world *w, int phase)
{
    return (struct deal){w->runs, THREADS, (uint16_t)(1 + phase), cut_of, w->cuts[phase]};
}

static void run(void *arg, int ith, int nth)
{
    struct world *w = arg;
    struct rng rng;
    rng_seed(&rng, (uint64_t)ith);
    for (int p = 0; p < PHASES; p++) {
        struct deal d = phase_of(w, p);
        struct helping h;
        bool late = rng_below(&rng, 4) == 0; /* comes when others have begun its things */
        for (int i = 0; late && i < 2000; i++)
            atomic_fetch_add(&w->idled, 1);
        while (deal_take(&d, ith, &h))
            for (int i = h.begin; i < h.end; i++)
                atomic_fetch_add(&w->done[i], 1);
        pool_barrier(w->pool, ith);
    }
}

static void test_each_once(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct err e = {0};
    struct rng rng;
    int want[THINGS] = {0};
    rng_seed(&rng, 7);
    for (int p = 0; p < PHASES; p++) {
        int *cut = w->cuts[p], at = 0;
        for (int i = 1; i <= THREADS; i++) /* empty runs too */
            cut[i] = at += (int)rng_below(&rng, 2) * (int)rng_below(&rng, THINGS / THREADS + 1);
        for (int i = 0; i < cut[THREADS]; i++)
            want[i]++;
    }
    assert_int_equal(pool_new(&w->pool, THREADS, &e), 0);
    pool_run(w->pool, run, w);
    for (int i = 0; i < THINGS; i++)
        assert_int_equal(atomic_load(&w->done[i]), want[i]);
    pool_free(w->pool);
    free(w);
}

/* A thread that is held up loses its things from the back, and finds the rest. Helpings become
 * small towards the end of a run. */
static void test_one_is_held_up(void **state)
{
    static const int ends[] = {90, 100, 110, 120, 130, 140, 150, 155, 158, 159, 160};
    struct deal_run runs[2] = {0};
    const int cuts[] = {0, 80, 160};
    struct deal d = {runs, 2, 1, cut_of, cuts};
    struct helping h;
    assert_true(deal_take(&d, 0, &h));
    assert_int_equal(h.begin, 0);
    assert_int_equal(h.end, 10);
    assert_int_equal(h.next_end, 80);
    for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
        assert_true(deal_take(&d, 1, &h));
        assert_int_equal(h.begin, i ? ends[i - 1] : 80);
        assert_int_equal(h.end, ends[i]);
    }
    assert_true(deal_take(&d, 1, &h));
    assert_int_equal(h.begin, 70);
    assert_int_equal(h.end, 80);
    assert_true(deal_take(&d, 0, &h));
    assert_int_equal(h.begin, 10);
    assert_int_equal(h.next_end, 70);
    for (int i = 0; i < 8; i++) /* 60, 50, 40, 30, 25, 22, 21, 20 */
        assert_true(deal_take(&d, 1, &h));
    assert_int_equal(h.begin, 20);
    assert_false(deal_take(&d, 0, &h));
    assert_false(deal_take(&d, 1, &h));
    d.phase = 2; /* the runs are whole again */
    assert_true(deal_take(&d, 1, &h));
    assert_int_equal(h.begin, 80);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_once),
        cmocka_unit_test(test_one_is_held_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
