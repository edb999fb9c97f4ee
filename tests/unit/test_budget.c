#include "unit.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/budget.h"
#include "base/rng.h"

#define MIB(n) ((uint64_t)(n) << 20)

static void test_take_and_give(void **state)
{
    struct budget *b = budget_new(MIB(100));
    struct budget_share *weights, *kv, *more = NULL;
    struct err e = {0};
    assert_int_equal(budget_take(b, BUDGET_WEIGHTS, "small", MIB(60), &weights, &e), 0);
    assert_int_equal(budget_take(b, BUDGET_KV, "small", MIB(30), &kv, &e), 0);
    assert_int_equal(budget_left(b), MIB(10));
    assert_int_equal(budget_take(b, BUDGET_ADAPTERS, "formal", MIB(11), &more, &e), ERR_LIMIT);
    assert_null(more);
    assert_string_equal(e.msg, "adapters of formal needs 11 MiB more, of 100 MiB: small 90 "
                               "(weights 60, kv 30), left 10");
    assert_int_equal(budget_resize(kv, MIB(41), &e), ERR_LIMIT);
    assert_int_equal(budget_resize(kv, MIB(40), &e), 0);
    assert_int_equal(budget_left(b), 0);
    assert_int_equal(budget_resize(kv, MIB(5), &e), 0);
    assert_int_equal(budget_left(b), MIB(35));
    budget_give(weights);
    assert_int_equal(budget_left(b), MIB(95));
    assert_int_equal(budget_take(b, BUDGET_WEIGHTS, "all", UINT64_MAX, &more, &e), ERR_LIMIT);
    budget_give(kv);
    budget_give(NULL);
    assert_int_equal(budget_left(b), budget_limit(b));
    budget_free(b);
    budget_free(NULL);
}

static void test_sums(void **state)
{
    struct budget *b = budget_new(MIB(1000));
    struct budget_share *shares[4];
    assert_int_equal(budget_take(b, BUDGET_PROCESS, "process", MIB(100), &shares[0], NULL), 0);
    assert_int_equal(budget_take(b, BUDGET_KV, "a", MIB(10), &shares[1], NULL), 0);
    assert_int_equal(budget_take(b, BUDGET_KV, "b", MIB(20), &shares[2], NULL), 0);
    assert_int_equal(budget_take(b, BUDGET_WEIGHTS, "a", MIB(40), &shares[3], NULL), 0);
    struct budget_sums all = budget_sums(b, NULL), a = budget_sums(b, "a");
    assert_int_equal(all.bytes[BUDGET_KV], MIB(30));
    assert_int_equal(a.bytes[BUDGET_KV], MIB(10));
    assert_int_equal(a.bytes[BUDGET_WEIGHTS], MIB(40));
    assert_int_equal(budget_sums(b, "nobody").bytes[BUDGET_KV], 0);
    struct buf text = {0};
    budget_print(b, &text);
    assert_string_equal(buf_str(&text),
                        "1000 MiB: process 100, a 50 (weights 40, kv 10), b 20, left 830");
    buf_release(&text);
    for (int i = 0; i < 4; i++)
        budget_give(shares[i]);
    budget_free(b);
}

/* Takes and gives at random; the limit is never exceeded, and nothing is lost. */
static void *churn(void *arg)
{
    struct budget *b = arg;
    struct budget_share *held[8] = {0};
    struct rng rng;
    rng_seed(&rng, (uint64_t)(uintptr_t)held);
    for (int i = 0; i < 20000; i++) {
        int k = (int)(rng_below(&rng, 8));
        uint64_t bytes = rng_below(&rng, 300);
        if (held[k] && bytes % 3 == 0) {
            budget_resize(held[k], bytes, NULL);
        } else if (held[k]) {
            budget_give(held[k]);
            held[k] = NULL;
        } else {
            budget_take(b, (enum budget_use)(bytes % BUDGET_USES), "x", bytes, &held[k], NULL);
        }
        if (budget_left(b) > budget_limit(b))
            abort();
    }
    for (int k = 0; k < 8; k++)
        budget_give(held[k]);
    return NULL;
}

static void test_threads(void **state)
{
    struct budget *b = budget_new(1500);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, churn, b), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(budget_left(b), 1500);
    budget_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_take_and_give),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
