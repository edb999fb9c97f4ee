#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rng.h"
#include "engine/draft.h"

/* The naive twin: every earlier place, every length. */
static int naive(const int32_t *t, int n, int32_t *out, int n_most)
{
    for (int len = 8; len >= 2; len--)
        for (int end = n - 1; end >= len; end--) {
            int same = 0;
            while (same < len && t[end - 1 - same] == t[n - 1 - same])
                same++;
            if (same < len)
                continue;
            for (int i = 0; i < n_most; i++)
                out[i] = t[end + i % (n - end)];
            return n_most;
        }
    return 0;
}

static void test_against_twin(void **state)
{
    struct rng rng;
    int found = 0;
    rng_seed(&rng, 1);
    for (int round = 0; round < 200000; round++) {
        int32_t tokens[60], got[12], want[12];
        int n = 1 + (int)rng_below(&rng, ARRAY_LEN(tokens));
        uint64_t n_letters = 1 + rng_below(&rng, 12);
        for (int i = 0; i < n; i++)
            tokens[i] = (int32_t)rng_below(&rng, n_letters);
        int n_most = 1 + (int)rng_below(&rng, ARRAY_LEN(got));
        int k = draft_guess(tokens, n, got, n_most);
        assert_int_equal(k, naive(tokens, n, want, n_most));
        assert_memory_equal(got, want, (size_t)k * sizeof *got);
        found += k > 0;
    }
    assert_true(found > 50000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_twin),
    };
    return cmocka_run_group_tests_name("draft", tests, NULL, NULL);
}
