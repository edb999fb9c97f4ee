#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

#include "base/rng.h"
#include "engine/stop.h"

/* The naive twin: looks at the whole text again after every byte. */
static int naive(const char *const *stops, int n_stops, struct str text, size_t *at)
{
    for (size_t end = 1; end <= text.n; end++) {
        int hit = -1;
        for (int i = 0; i < n_stops; i++) {
            size_t n = strlen(stops[i]);
            if (n <= end && memcmp(text.p + end - n, stops[i], n) == 0 &&
                (hit < 0 || n > strlen(stops[hit])))
                hit = i;
        }
        if (hit >= 0) {
            *at = end - strlen(stops[hit]);
            return hit;
        }
    }
    return -1;
}

/* How much of the end of text could still become a stop string. */
static size_t naive_hold(const char *const *stops, int n_stops, struct str text)
{
    size_t hold = 0;
    for (int i = 0; i < n_stops; i++)
        for (size_t n = 1; n < strlen(stops[i]) && n <= text.n; n++)
            if (n > hold && memcmp(text.p + text.n - n, stops[i], n) == 0)
                hold = n;
    return hold;
}

static void random_text(struct rng *rng, char *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (char)('a' + rng_below(rng, 3));
    out[n] = 0;
}

static void run_program(struct rng *rng)
{
    char strings[4][8], text[201];
    const char *stops[4];
    int n_stops = (int)rng_below(rng, 5);
    for (int i = 0; i < n_stops; i++) {
        random_text(rng, strings[i], 1 + rng_below(rng, 7));
        stops[i] = strings[i];
    }
    size_t n = rng_below(rng, 200);
    random_text(rng, text, n);
    struct stop s;
    struct buf out = {0};
    stop_init(&s, stops, n_stops);
    int hit = -1;
    size_t fed = 0;
    while (fed < n && hit < 0) {
        size_t piece = rng_below(rng, n - fed + 1) % 9;
        hit = stop_feed(&s, (struct str){text + fed, piece}, &out);
        fed += piece;
        if (hit < 0)
            assert_int_equal(out.len, fed - naive_hold(stops, n_stops, (struct str){text, fed}));
    }
    size_t at = n;
    int want = naive(stops, n_stops, (struct str){text, n}, &at);
    if (hit < 0)
        stop_flush(&s, &out);
    assert_int_equal(hit < 0, want < 0);
    if (hit >= 0)
        assert_string_equal(stops[hit], stops[want]);
    assert_int_equal(out.len, at);
    assert_memory_equal(buf_str(&out), text, at);
    stop_release(&s);
    buf_release(&out);
}

static void test_against_twin(void **state)
{
    struct rng rng;
    rng_seed(&rng, 11);
    for (int i = 0; i < 100000; i++)
        run_program(&rng);
}

static void test_holds_only_what_it_must(void **state)
{
    static const char *const stops[] = {"\n\nUser:", "</s>"};
    struct stop s;
    struct buf out = {0};
    stop_init(&s, stops, 2);
    assert_int_equal(stop_feed(&s, STR("Hello\n"), &out), -1);
    assert_string_equal(buf_str(&out), "Hello");
    assert_int_equal(stop_feed(&s, STR("\n"), &out), -1);
    assert_string_equal(buf_str(&out), "Hello");
    assert_int_equal(stop_feed(&s, STR("\n"), &out), -1);
    assert_string_equal(buf_str(&out), "Hello\n");
    assert_int_equal(stop_feed(&s, STR("Use"), &out), -1);
    assert_string_equal(buf_str(&out), "Hello\n");
    assert_int_equal(stop_feed(&s, STR("r: and more"), &out), 0);
    assert_string_equal(buf_str(&out), "Hello\n");
    stop_release(&s);
    buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_twin),
        cmocka_unit_test(test_holds_only_what_it_must),
    };
    return cmocka_run_group_tests_name("stop", tests, NULL, NULL);
}
