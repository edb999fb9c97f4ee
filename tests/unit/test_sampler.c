#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "engine/sampler.h"

static json_t *load(const char *path)
{
    struct buf b = {0};
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    for (size_t n = 1; n;) {
        char *to = buf_reserve(&b, 65536);
        n = fread(to, 1, 65536, f);
        b.len += n;
    }
    fclose(f);
    struct err e = {0};
    json_t *j = jr_parse(b.data, b.len, &e);
    if (!j)
        fail_msg("%s", e.msg);
    buf_release(&b);
    return j;
}

static double number(const json_t *c, const char *key, double otherwise)
{
    const json_t *v = json_object_get(c, key);
    return v ? json_number_value(v) : otherwise;
}

static void read_case(const json_t *c, struct sampling *how, struct logit_bias *bias)
{
    sampling_default(how);
    how->temperature = (float)number(c, "temperature", 1);
    how->top_k = (int)number(c, "top_k", 0);
    how->typical_p = (float)number(c, "typical_p", 1);
    how->top_p = (float)number(c, "top_p", 1);
    how->min_p = (float)number(c, "min_p", 0);
    how->repetition_penalty = (float)number(c, "repetition_penalty", 1);
    how->repeat_last_n = (int)number(c, "repeat_last_n", -1);
    how->frequency_penalty = (float)number(c, "frequency_penalty", 0);
    how->presence_penalty = (float)number(c, "presence_penalty", 0);
    const json_t *list = json_object_get(c, "bias");
    how->bias = bias;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *pair = json_array_get(list, i);
        bias[how->n_bias].id = (int32_t)json_integer_value(json_array_get(pair, 0));
        bias[how->n_bias++].bias = (float)json_number_value(json_array_get(pair, 1));
    }
}

static void test_against_transformers(void **state)
{
    json_t *all = load(VECTORS "/sampler/cases.json");
    int n_vocab = (int)number(all, "n_vocab", 0);
    const json_t *cases = json_object_get(all, "cases");
    struct sampler s;
    sampler_init(&s, n_vocab);
    assert_true(json_array_size(cases) >= 80);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i);
        const json_t *row = json_array_get(json_object_get(all, "logits"), i);
        const json_t *tokens = json_object_get(c, "tokens");
        float logits[512];
        int32_t history[64];
        struct sampling how;
        struct logit_bias bias[8];
        read_case(c, &how, bias);
        for (int k = 0; k < n_vocab; k++)
            logits[k] = (float)json_number_value(json_array_get(row, (size_t)k));
        int n = (int)json_array_size(tokens);
        for (int k = 0; k < n; k++)
            history[k] = (int32_t)json_integer_value(json_array_get(tokens, (size_t)k));
        struct sampler_task task = {.how = &how,
                                    .tokens = history,
                                    .n_tokens = n,
                                    .n_prompt = (int)number(c, "n_prompt", 0)};
        int got = sampler_cut(&s, logits, &task);
        const json_t *want = json_object_get(c, "expected");
        if (got != (int)json_array_size(want))
            fail_msg("case %zu: %d candidates, not %zu", i, got, json_array_size(want));
        for (int k = 0; k < got; k++) {
            const json_t *pair = json_array_get(want, (size_t)k);
            double p = json_number_value(json_array_get(pair, 1));
            assert_int_equal(s.cands[k].id, json_integer_value(json_array_get(pair, 0)));
            if (fabs(s.cands[k].p - p) > 1e-5 * p + 1e-9)
                fail_msg("case %zu token %d: p %g, not %g", i, s.cands[k].id, s.cands[k].p, p);
        }
    }
    sampler_release(&s);
    json_decref(all);
}

/* Selection against sorting, over sizes where the top-k buffer wraps, with many equal logits. */

struct ranked {
    float logit;
    int32_t id;
};

static int by_rank(const void *pa, const void *pb)
{
    const struct ranked *a = pa, *b = pb;
    if (a->logit != b->logit)
        return a->logit > b->logit ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}

static int by_id(const void *pa, const void *pb)
{
    const struct ranked *a = pa, *b = pb;
    return (a->id > b->id) - (a->id < b->id);
}

static void test_cuts_against_sorting(void **state)
{
    enum { MOST = 20000 };
    float *logits = xcalloc(MOST, sizeof *logits);
    struct ranked *ranks = xcalloc(MOST, sizeof *ranks);
    struct rng rng;
    rng_seed(&rng, 1);
    for (int round = 0; round < 300; round++) {
        int n = 1 + (int)rng_below(&rng, round % 10 ? 300 : MOST);
        bool ties = round % 2;
        struct sampler s;
        sampler_init(&s, n);
        for (int i = 0; i < n; i++) {
            logits[i] = ties ? (float)rng_below(&rng, 20) : rng_normal(&rng) * 3;
            if (rng_below(&rng, 10) == 0 && i)
                logits[i] = -INFINITY;
            ranks[i] = (struct ranked){logits[i], i};
        }
        struct sampling how;
        sampling_default(&how);
        how.top_k = 1 + (int)rng_below(&rng, (uint64_t)n);
        struct sampler_task task = {.how = &how};
        qsort(ranks, (size_t)n, sizeof *ranks, by_rank);
        int want = 0;
        while (want < n && want < how.top_k && ranks[want].logit > -INFINITY)
            want++;
        if (round % 3 == 0) { /* and a nucleus of that */
            double sum = 0, run = 0;
            how.top_p = 0.7f;
            for (int i = 0; i < want; i++)
                sum += exp((double)(ranks[i].logit - ranks[0].logit));
            int most = want;
            for (want = 0; want < most && run < how.top_p * sum; want++)
                run += exp((double)(ranks[want].logit - ranks[0].logit));
        }
        qsort(ranks, (size_t)want, sizeof *ranks, by_id);
        int got = sampler_cut(&s, logits, &task);
        assert_int_equal(got, want);
        for (int i = 0; i < got; i++)
            assert_int_equal(s.cands[i].id, ranks[i].id);
        sampler_release(&s);
    }
    free(logits);
    free(ranks);
}

static void test_draw(void **state)
{
    enum { N = 6, DRAWS = 200000 };
    const float base[N] = {1, 0, -1, 2, -INFINITY, 0.5f};
    int count[N] = {0};
    struct sampler s;
    struct sampling how;
    struct rng rng;
    sampler_init(&s, N);
    sampling_default(&how);
    rng_seed(&rng, 7);
    double sum = 0;
    for (int i = 0; i < N; i++)
        sum += exp((double)base[i]);
    for (int i = 0; i < DRAWS; i++) {
        float logits[N];
        memcpy(logits, base, sizeof base);
        struct sampler_task task = {.how = &how, .rng = &rng};
        count[sampler_pick(&s, logits, &task, NULL)]++;
    }
    for (int i = 0; i < N; i++) {
        double p = exp((double)base[i]) / sum, sd = sqrt(DRAWS * p * (1 - p));
        assert_true(fabs(count[i] - DRAWS * p) <= 4.5 * sd);
    }
    sampler_release(&s);
}

static void test_what_is_not_a_number(void **state)
{
    static const float bad[][3] = {
        {1, NAN, 2}, {NAN, 1, 2}, {1, 2, NAN}, {1, INFINITY, 2}, {-INFINITY, -INFINITY, -INFINITY}};
    struct sampler s;
    sampler_init(&s, 3);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        for (int k = 0; k < 4; k++) {
            float logits[3];
            struct sampling how;
            struct rng rng;
            rng_seed(&rng, 1);
            sampling_default(&how);
            how.temperature = k & 1 ? 0 : 1;
            how.top_k = k & 2 ? 2 : 0;
            memcpy(logits, bad[i], sizeof logits);
            struct sampler_task task = {.how = &how, .rng = &rng};
            assert_int_equal(sampler_pick(&s, logits, &task, NULL), -1);
        }
    sampler_release(&s);
}

static void test_banned(void **state)
{
    const int32_t banned[] = {1, 3};
    struct sampler s;
    struct rng rng;
    sampler_init(&s, 4);
    rng_seed(&rng, 3);
    for (int i = 0; i < 1000; i++) {
        float logits[4] = {0, 50, -40, 50};
        struct sampling how;
        sampling_default(&how);
        how.temperature = (float)(i % 3);
        how.top_k = i % 5;
        how.min_p = i % 2 ? 0.1f : 0;
        how.typical_p = i % 7 ? 1 : 0.2f;
        struct sampler_task task = {.how = &how, .rng = &rng, .banned = banned, .n_banned = 2};
        int32_t id = sampler_pick(&s, logits, &task, NULL);
        assert_true(id == 0 || id == 2);
    }
    sampler_release(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_transformers),
        cmocka_unit_test(test_cuts_against_sorting),
        cmocka_unit_test(test_draw),
        cmocka_unit_test(test_what_is_not_a_number),
        cmocka_unit_test(test_banned),
    };
    return cmocka_run_group_tests_name("sampler", tests, NULL, NULL);
}
