#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "engine_harness.h"

enum { N_CTX = 400 };

struct fixture {
    struct fake_model model;
    struct engine *g;
    struct answer answers[64];
};

static void open_fixture(struct fixture *f, int n_blocks, int batch, struct engine_opts o)
{
    *f = (struct fixture){0};
    fake_model_init(&f->model, n_blocks, batch);
    o.model = fake_engine_model(&f->model, N_CTX);
    o.tokenizer = fake_tokenizer();
    o.sink = answer_sink;
    o.check = true;
    struct err e = {0};
    assert_int_equal(engine_new(&f->g, &o, &e), 0);
}

static void close_fixture(struct fixture *f)
{
    engine_free(f->g);
    for (size_t i = 0; i < ARRAY_LEN(f->answers); i++)
        answer_release(&f->answers[i]);
    fake_model_release(&f->model);
}

static const struct engine_opts manual = {.manual = true, .prefix_cache = true};

static void fill_prompt(struct rng *rng, int32_t *prompt, int n)
{
    for (int i = 0; i < n; i++)
        prompt[i] = 2 + (int32_t)rng_below(rng, FAKE_VOCAB - 2);
}

static uint64_t submit(struct fixture *f, const struct engine_request *r)
{
    uint64_t id = 0;
    struct err e = {0};
    if (engine_submit(f->g, r, &id, &e))
        fail_msg("%s", e.msg);
    return id;
}

static void expect(const struct fixture *f, const struct engine_request *r)
{
    struct answer want;
    answer_expected(&f->model, r, N_CTX, &want);
    assert_answer(r->user, &want);
    answer_release(&want);
}

/* What a request gives when it runs alone; the answer is where r->user points. */
static void run_alone(struct fixture *f, const struct engine_request *r)
{
    submit(f, r);
    run_until_idle(f->g);
}

static void test_one(void **state)
{
    struct fixture f;
    open_fixture(&f, 64, 32, manual);
    f.model.eog_every = 40;
    int32_t prompt[N_CTX];
    struct rng rng;
    rng_seed(&rng, 1);
    for (int i = 0; i < 60; i++) {
        int n = 1 + (int)rng_below(&rng, 120);
        fill_prompt(&rng, prompt, n);
        answer_clear(&f.answers[0]);
        struct engine_request r =
            greedy_request(prompt, n, 1 + (int)rng_below(&rng, 80), f.answers);
        r.ignore_eos = i % 4 == 1;
        r.min_tokens = i % 3 == 0 ? (r.max_tokens < 20 ? r.max_tokens : 20) : 0;
        run_alone(&f, &r);
        expect(&f, &r);
        assert_int_equal(f.answers[0].usage.prompt_tokens, n);
    }
    struct engine_stats s;
    engine_get_stats(f.g, &s);
    assert_int_equal(s.blocks_held, 0);
    assert_int_equal(s.requests_done, 60);
    assert_int_equal(s.running + s.waiting, 0);
    close_fixture(&f);
}

static void test_length_is_cut_to_context(void **state)
{
    struct fixture f;
    open_fixture(&f, 5, 16, manual); /* 160 positions */
    int32_t prompt[N_CTX];
    struct rng rng;
    rng_seed(&rng, 2);
    fill_prompt(&rng, prompt, N_CTX);
    struct engine_request r = greedy_request(prompt, 150, 1000, f.answers);
    run_alone(&f, &r);
    assert_int_equal(f.answers[0].n_ids, 10);
    assert_int_equal(f.answers[0].finish, FINISH_LENGTH);
    struct err e = {0};
    uint64_t id;
    r.n_prompt = 160;
    assert_int_equal(engine_submit(f.g, &r, &id, &e), ERR_INVALID);
    assert_string_equal(e.param, "prompt");
    close_fixture(&f);
}

/* Requests join and leave at every step; each answer is that of the request alone. */
static void test_many(void **state)
{
    struct fixture f;
    int32_t prompts[64][N_CTX];
    struct engine_request r[64];
    struct rng rng;
    rng_seed(&rng, 3);
    static const char *const stops[] = {"abc", "b c", "日本", "c.c", "a\nb"};
    for (int round = 0; round < 6; round++) {
        int pool = round % 2 ? 16 : 200; /* the small one preempts */
        open_fixture(&f, pool, 48,
                     (struct engine_opts){
                         .manual = true, .prefix_cache = round % 3 != 0, .max_running = 12});
        f.model.eog_every = 60;
        for (int i = 0; i < 64; i++) {
            int n = 1 + (int)rng_below(&rng, 150);
            fill_prompt(&rng, prompts[i], n);
            if (i % 3 && i >= 3) /* a prefix of another one */
                memcpy(prompts[i], prompts[i - 3],
                       sizeof(int32_t) * (rng_below(&rng, (uint64_t)n) + 1));
            r[i] = greedy_request(prompts[i], n, 1 + (int)rng_below(&rng, 100), &f.answers[i]);
            r[i].stop = stops;
            r[i].n_stop = i % 2 ? (int)ARRAY_LEN(stops) : 0;
            r[i].include_stop = i % 5 == 0;
            r[i].tenant = i % 7 == 0 ? "other" : NULL;
            r[i].priority = i % 11 == 0 ? 1 : 0;
            submit(&f, &r[i]);
            for (uint64_t k = rng_below(&rng, 4); k > 0; k--)
                engine_step(f.g);
        }
        run_until_idle(f.g);
        for (int i = 0; i < 64; i++)
            expect(&f, &r[i]);
        struct engine_stats s;
        engine_get_stats(f.g, &s);
        assert_int_equal(s.blocks_held, 0);
        if (pool == 16)
            assert_true(s.preemptions > 0);
        assert_true(f.model.most_tokens <= 48);
        close_fixture(&f);
    }
}

/* The same seed gives the same tokens whatever else is in the batch. */
static void test_seed_does_not_see_the_batch(void **state)
{
    struct fixture f;
    int32_t prompts[33][60];
    struct rng rng;
    rng_seed(&rng, 4);
    open_fixture(&f, 24, 64, manual);
    struct engine_request r = greedy_request(prompts[32], 60, 50, &f.answers[62]);
    fill_prompt(&rng, prompts[32], 60);
    r.sampling.temperature = 1.5f;
    r.sampling.top_p = 0.95f;
    r.sampling.has_seed = true;
    r.sampling.seed = 42;
    run_alone(&f, &r);
    for (int i = 0; i < 32; i++) {
        fill_prompt(&rng, prompts[i], 60);
        struct engine_request other = greedy_request(prompts[i], 60, 40, &f.answers[i]);
        other.sampling.temperature = 1;
        submit(&f, &other);
        r.user = &f.answers[63];
        if (i == 16)
            submit(&f, &r);
        engine_step(f.g);
    }
    run_until_idle(f.g);
    assert_answer(&f.answers[63], &f.answers[62]);
    assert_int_equal(f.answers[63].n_ids, 50);
    close_fixture(&f);
}

/* Guessing changes how many steps there are, not what comes. */
static void test_guesses_change_nothing(void **state)
{
    int64_t steps[2];
    int32_t prompt[30];
    struct rng rng;
    struct answer plain[8] = {0};
    rng_seed(&rng, 12);
    fill_prompt(&rng, prompt, 30);
    for (int guess = 0; guess < 2; guess++) {
        struct fixture f;
        struct engine_opts o = manual;
        o.spec_tokens = guess ? 8 : 1;
        open_fixture(&f, 64, 64, o);
        f.model.repetitive = true;
        for (int i = 0; i < 8; i++) {
            struct engine_request r = greedy_request(prompt + i, 30 - i, 200, &f.answers[i]);
            r.speculate = true;
            r.sampling.temperature = i % 2 ? 0.3f : 0;
            r.sampling.has_seed = true;
            r.sampling.seed = (uint64_t)i;
            r.sampling.n_logprobs = i % 3 ? -1 : 2;
            run_alone(&f, &r);
            if (guess)
                assert_answer(&f.answers[i], &plain[i]);
            else
                plain[i] = f.answers[i];
            f.answers[i].text = guess ? f.answers[i].text : (struct buf){0};
        }
        struct engine_stats s;
        engine_get_stats(f.g, &s);
        steps[guess] = (int64_t)s.steps;
        assert_int_equal(s.drafts > 0, guess);
        close_fixture(&f);
    }
    assert_true(steps[1] * 6 < steps[0] * 5);
    for (int i = 0; i < 8; i++)
        answer_release(&plain[i]);
}

static void test_cancel(void **state)
{
    struct fixture f;
    int32_t prompt[200];
    struct rng rng;
    rng_seed(&rng, 5);
    fill_prompt(&rng, prompt, 200);
    open_fixture(&f, 20, 16, (struct engine_opts){.manual = true, .max_running = 2});
    struct engine_request r = greedy_request(prompt, 200, 50, &f.answers[0]);
    uint64_t prefill = submit(&f, &r);
    r.n_prompt = 3;
    r.user = &f.answers[1];
    uint64_t decode = submit(&f, &r);
    r.user = &f.answers[2];
    uint64_t queued = submit(&f, &r);
    r.user = &f.answers[3];
    engine_cancel(f.g, submit(&f, &r)); /* in the inbox */
    engine_step(f.g);
    assert_int_equal(f.answers[3].finish, FINISH_CANCEL);
    engine_cancel(f.g, prefill);
    engine_cancel(f.g, queued);
    engine_cancel(f.g, 12345);
    engine_step(f.g);
    assert_int_equal(f.answers[0].finish, FINISH_CANCEL);
    assert_int_equal(f.answers[0].n_ids, 0);
    assert_int_equal(f.answers[2].finish, FINISH_CANCEL);
    engine_step(f.g);
    engine_cancel(f.g, decode);
    engine_cancel(f.g, decode);
    engine_step(f.g);
    assert_int_equal(f.answers[1].finish, FINISH_CANCEL);
    assert_true(f.answers[1].n_ids > 0);
    struct engine_stats s;
    engine_get_stats(f.g, &s);
    assert_int_equal(s.blocks_held, 0);
    assert_int_equal(s.running + s.waiting, 0);
    /* whoever is left gets its final event when the engine goes */
    r.user = &f.answers[4];
    submit(&f, &r);
    engine_step(f.g);
    r.user = &f.answers[5];
    submit(&f, &r);
    engine_free(f.g);
    f.g = NULL;
    assert_int_equal(f.answers[4].finish, FINISH_CANCEL);
    assert_int_equal(f.answers[5].finish, FINISH_CANCEL);
    close_fixture(&f);
}

static void test_pause(void **state)
{
    struct fixture f;
    int32_t prompt[40];
    struct rng rng;
    rng_seed(&rng, 6);
    fill_prompt(&rng, prompt, 40);
    open_fixture(&f, 4, 16, manual); /* room for one long sequence */
    struct engine_request slow = greedy_request(prompt, 40, 60, &f.answers[0]);
    uint64_t id = submit(&f, &slow);
    for (int i = 0; i < 10; i++)
        engine_step(f.g);
    int n = f.answers[0].n_ids;
    assert_true(n > 0 && n < 60);
    engine_pause(f.g, id, true);
    assert_false(engine_step(f.g));
    assert_int_equal(f.answers[0].n_ids, n);
    /* another one needs the blocks: the paused one gives them up and loses nothing */
    struct engine_request other = greedy_request(prompt + 5, 35, 60, &f.answers[1]);
    submit(&f, &other);
    run_until_idle(f.g);
    expect(&f, &other);
    assert_int_equal(f.answers[0].n_ids, n);
    engine_pause(f.g, id, false);
    run_until_idle(f.g);
    expect(&f, &slow);
    close_fixture(&f);
}

static void test_deadline(void **state)
{
    struct fixture f;
    int32_t prompt[] = {7, 8, 9};
    open_fixture(&f, 4, 16, manual);
    struct engine_request r = greedy_request(prompt, 3, 60, &f.answers[0]);
    r.deadline_ms = clock_ms(); /* has passed when the step looks */
    submit(&f, &r);
    engine_step(f.g);
    assert_int_equal(f.answers[0].finish, FINISH_TIMEOUT);
    assert_int_equal(f.answers[0].n_ids, 0);
    close_fixture(&f);
}

static void test_nan(void **state)
{
    struct fixture f;
    int32_t prompt[] = {7, 8, 9, 10, 11, 12};
    open_fixture(&f, 4, 16, manual);
    f.model.nan_after = 6;
    struct engine_request bad = greedy_request(prompt, 6, 2, &f.answers[0]);
    struct engine_request good = greedy_request(prompt, 2, 3, &f.answers[1]);
    submit(&f, &bad);
    submit(&f, &good);
    run_until_idle(f.g);
    assert_int_equal(f.answers[0].finish, FINISH_ERROR);
    assert_int_not_equal(f.answers[0].err.code, 0);
    expect(&f, &good);
    close_fixture(&f);
}

static void test_logprobs(void **state)
{
    struct fixture f;
    int32_t prompt[] = {7, 8, 9, 10, 11, 12};
    open_fixture(&f, 4, 16, manual);
    struct engine_request r = greedy_request(prompt, 6, 4, &f.answers[0]);
    r.sampling.n_logprobs = 3;
    r.sampling.presence_penalty = 1; /* does not show in logprobs */
    run_alone(&f, &r);
    const struct answer *a = &f.answers[0];
    assert_int_equal(a->n_logprobs, a->n_ids);
    int32_t tokens[10];
    float logits[FAKE_VOCAB];
    memcpy(tokens, prompt, sizeof prompt);
    memcpy(tokens + 6, a->ids, 3 * sizeof *tokens);
    fake_logits(&f.model, tokens, 9, logits);
    double sum = 0;
    for (int i = 0; i < FAKE_VOCAB; i++)
        sum += exp((double)logits[i]);
    for (int i = 0; i < 4; i++) {
        const struct token_logprob *lp = &a->last_logprobs[i];
        assert_true(fabs(lp->logprob - (logits[lp->id] - log(sum))) < 1e-4);
        assert_true(i < 2 || lp->logprob <= a->last_logprobs[i - 1].logprob);
    }
    int better = 0;
    for (int i = 0; i < FAKE_VOCAB; i++)
        better += logits[i] > logits[a->last_logprobs[3].id];
    assert_int_equal(better, 2);
    close_fixture(&f);
}

static void refuse(struct fixture *f, const struct engine_request *r, const char *param)
{
    struct err e = {0};
    uint64_t id;
    assert_int_equal(engine_submit(f->g, r, &id, &e), ERR_INVALID);
    assert_string_equal(e.param, param);
}

static void test_refusals(void **state)
{
    struct fixture f;
    int32_t prompt[] = {7, 8, 9, FAKE_VOCAB};
    const char *stops[] = {"", "\xff"};
    struct logit_bias bias = {.id = FAKE_VOCAB, .bias = 1};
    open_fixture(&f, 4, 16, (struct engine_opts){.manual = true, .max_queue = 2});
    const struct engine_request ok = greedy_request(prompt, 3, 4, &f.answers[0]);
    struct engine_request r = ok;
    r.n_prompt = 0;
    refuse(&f, &r, "prompt");
    r.n_prompt = 4;
    refuse(&f, &r, "prompt");
    r = ok;
    r.max_tokens = 0;
    refuse(&f, &r, "max_tokens");
    r = ok;
    r.min_tokens = 5;
    refuse(&f, &r, "min_tokens");
    r = ok;
    r.stop = stops;
    r.n_stop = 1;
    refuse(&f, &r, "stop");
    r.stop = stops + 1;
    refuse(&f, &r, "stop");
    r.n_stop = 65;
    refuse(&f, &r, "stop");
    r = ok;
    r.stop_ids = prompt + 3;
    r.n_stop_ids = 1;
    refuse(&f, &r, "stop_token_ids");
    r = ok;
    r.sampling.temperature = NAN;
    refuse(&f, &r, "temperature");
    r = ok;
    r.sampling.top_p = 0;
    refuse(&f, &r, "top_p");
    r = ok;
    r.sampling.bias = &bias;
    r.sampling.n_bias = 1;
    refuse(&f, &r, "logit_bias");
    /* the queue */
    struct err e = {0};
    uint64_t id;
    r = ok;
    submit(&f, &r);
    r.user = &f.answers[1];
    submit(&f, &r);
    r.user = &f.answers[2];
    assert_int_equal(engine_submit(f.g, &r, &id, &e), ERR_BUSY);
    engine_step(f.g);
    submit(&f, &r);
    run_until_idle(f.g);
    expect(&f, &r);
    close_fixture(&f);
}

static void test_stop_ids(void **state)
{
    struct fixture f;
    int32_t prompt[] = {7, 8, 9};
    open_fixture(&f, 4, 16, manual);
    struct engine_request r = greedy_request(prompt, 3, 20, &f.answers[0]);
    run_alone(&f, &r);
    int32_t fifth = f.answers[0].ids[4];
    int first = 0;
    while (f.answers[0].ids[first] != fifth)
        first++;
    r.user = &f.answers[1];
    r.stop_ids = &fifth;
    r.n_stop_ids = 1;
    run_alone(&f, &r);
    assert_int_equal(f.answers[1].finish, FINISH_STOP);
    assert_int_equal(f.answers[1].stop_id, fifth);
    assert_int_equal(f.answers[1].n_ids, first + 1);
    r.user = &f.answers[2];
    r.min_tokens = 10;
    run_alone(&f, &r);
    assert_true(f.answers[2].n_ids > 10);
    for (int i = 0; i < 10; i++)
        assert_int_not_equal(f.answers[2].ids[i], fifth);
    close_fixture(&f);
}

/* Eight clients, one persona, a question each, all at once: the persona is computed once. */
static void test_a_persona_is_computed_once(void **state)
{
    enum { PERSONA = 340, OWN = 20, CLIENTS = 8 };
    struct fixture f;
    int32_t prompts[CLIENTS][PERSONA + OWN];
    struct engine_request r[CLIENTS];
    struct rng rng;
    rng_seed(&rng, 8);
    for (int warm = 0; warm < 2; warm++) {
        open_fixture(&f, 64, 512, manual);
        fill_prompt(&rng, prompts[0], PERSONA);
        for (int i = 0; i < CLIENTS; i++) {
            memcpy(prompts[i], prompts[0], PERSONA * sizeof **prompts);
            fill_prompt(&rng, prompts[i] + PERSONA, OWN);
            prompts[i][PERSONA] = 2 + i; /* all different from there */
            r[i] = greedy_request(prompts[i], PERSONA + OWN, 16, &f.answers[i]);
        }
        if (warm) {
            struct engine_request first = greedy_request(prompts[0], PERSONA, 1, &f.answers[60]);
            run_alone(&f, &first);
            f.model.n_computed = 0;
        }
        for (int i = 0; i < CLIENTS; i++)
            submit(&f, &r[i]);
        run_until_idle(f.g);
        for (int i = 0; i < CLIENTS; i++) {
            expect(&f, &r[i]);
            int cached = f.answers[i].usage.cached_tokens;
            assert_int_equal(cached, i || warm ? PERSONA : 0);
        }
        int decodes = CLIENTS * 15;
        int prompt = CLIENTS * OWN + (warm ? 0 : PERSONA);
        assert_int_equal(f.model.n_computed, prompt + decodes);
        close_fixture(&f);
    }
}

/* The same prompt several times, as n > 1 is: one token of the prompt is computed again for each.
 */
static void test_the_same_prompt(void **state)
{
    struct fixture f;
    int32_t prompt[100];
    struct rng rng;
    rng_seed(&rng, 9);
    open_fixture(&f, 64, 256, manual);
    fill_prompt(&rng, prompt, 100);
    for (int n = 95; n < 100; n++) { /* 96 ends at the end of a block */
        prompt[0] = n - 90;
        f.model.n_computed = 0;
        for (int i = 0; i < 4; i++) {
            answer_clear(&f.answers[i]);
            struct engine_request r = greedy_request(prompt, n, 2, &f.answers[i]);
            submit(&f, &r);
        }
        run_until_idle(f.g);
        for (int i = 1; i < 4; i++)
            assert_int_equal(f.answers[i].usage.cached_tokens, n - 1);
        assert_int_equal(f.model.n_computed, n + 3 + 4);
    }
    close_fixture(&f);
}

/* A conversation goes on: question and answer so far are not computed again. */
static void test_turns(void **state)
{
    struct fixture f;
    int32_t prompt[N_CTX];
    struct rng rng;
    rng_seed(&rng, 10);
    open_fixture(&f, 64, 64, manual);
    int n = 0, known = 0;
    for (int turn = 0; turn < 6; turn++) {
        fill_prompt(&rng, prompt + n, 25);
        n += 25;
        answer_clear(&f.answers[0]);
        struct engine_request r = greedy_request(prompt, n, 30, &f.answers[0]);
        run_alone(&f, &r);
        expect(&f, &r);
        assert_int_equal(f.answers[0].usage.cached_tokens, known);
        memcpy(prompt + n, f.answers[0].ids, 30 * sizeof *prompt);
        n += 30;
        known = n - 1; /* the last token of the answer was never computed */
    }
    close_fixture(&f);
}

/* What is cached is shared under one salt, whoever asks. */
static void test_salts_do_not_share(void **state)
{
    struct fixture f;
    int32_t prompt[100];
    struct rng rng;
    const char *salts[] = {NULL, "a", "b", "ab"}, *tenants[] = {"a", "b", ""};
    rng_seed(&rng, 11);
    fill_prompt(&rng, prompt, 100);
    open_fixture(&f, 64, 256, manual);
    for (size_t t = 0; t < ARRAY_LEN(tenants); t++)
        for (size_t i = 0; i < ARRAY_LEN(salts); i++) {
            answer_clear(&f.answers[0]);
            struct engine_request r = greedy_request(prompt, 100, 2, &f.answers[0]);
            r.tenant = tenants[t];
            r.cache_salt = salts[i];
            run_alone(&f, &r);
            assert_int_equal(f.answers[0].usage.cached_tokens, t ? 99 : 0);
        }
    close_fixture(&f);
}

/* A pinned prompt survives whatever comes after it, and its room comes back. */
static void test_pins(void **state)
{
    struct fixture f;
    int32_t prompt[100], other[150];
    struct rng rng;
    struct err e = {0};
    struct engine_stats s;
    uint64_t id, late;
    rng_seed(&rng, 13);
    fill_prompt(&rng, prompt, 100);
    struct engine_opts o = manual;
    o.max_pinned_blocks = 5;
    open_fixture(&f, 12, 64, o);
    for (int how = 0; how < 3; how++) {
        for (int i = 0; i < 4; i++)
            answer_clear(&f.answers[i]);
        struct engine_request r = greedy_request(prompt, 100, 1, &f.answers[0]);
        r.pin = true;
        id = submit(&f, &r);
        assert_int_equal(engine_submit(f.g, &r, &late, &e), ERR_LIMIT);
        run_until_idle(f.g);
        for (int i = 0; i < 5; i++) { /* everything else is evicted */
            fill_prompt(&rng, other, 150);
            answer_clear(&f.answers[1]);
            struct engine_request big = greedy_request(other, 150, 70, &f.answers[1]);
            run_alone(&f, &big);
            expect(&f, &big);
        }
        r.user = &f.answers[2];
        r.pin = false;
        run_alone(&f, &r);
        assert_int_equal(f.answers[2].usage.cached_tokens, 99);
        engine_get_stats(f.g, &s);
        assert_int_equal(s.blocks_pinned, 4);
        assert_int_equal(s.blocks_held, 4);
        if (how == 0)
            engine_unpin(f.g, id);
        else if (how == 1)
            engine_forget(f.g, NULL);
        else
            engine_forget_all(f.g);
        engine_unpin(f.g, id);
        engine_step(f.g);
        engine_get_stats(f.g, &s);
        assert_int_equal(s.blocks_held, 0);
        r.user = &f.answers[3];
        run_alone(&f, &r);
        assert_int_equal(f.answers[3].usage.cached_tokens, how ? 0 : 99);
    }
    /* unpinned or cancelled before it is computed: nothing stays, the room is there again */
    for (int how = 0; how < 2; how++) {
        answer_clear(&f.answers[0]);
        struct engine_request r = greedy_request(prompt, 100, 1, &f.answers[0]);
        r.pin = true;
        id = submit(&f, &r);
        (how ? engine_cancel : engine_unpin)(f.g, id);
        run_until_idle(f.g);
        engine_get_stats(f.g, &s);
        assert_int_equal(s.blocks_pinned, 0);
    }
    close_fixture(&f);
}

/* Forgetting while a request runs: it goes on, but nobody finds what it had before. */
static void test_forget(void **state)
{
    struct fixture f;
    int32_t prompt[100];
    struct rng rng;
    rng_seed(&rng, 14);
    fill_prompt(&rng, prompt, 100);
    open_fixture(&f, 32, 64, manual);
    struct engine_request a = greedy_request(prompt, 100, 60, &f.answers[0]);
    submit(&f, &a);
    for (int i = 0; i < 10; i++)
        engine_step(f.g);
    engine_forget(f.g, "somebody else");
    struct engine_request b = greedy_request(prompt, 100, 5, &f.answers[1]);
    submit(&f, &b);
    engine_step(f.g);
    engine_forget(f.g, NULL);
    struct engine_request c = greedy_request(prompt, 100, 5, &f.answers[2]);
    submit(&f, &c);
    run_until_idle(f.g);
    expect(&f, &a);
    expect(&f, &b);
    expect(&f, &c);
    assert_int_equal(f.answers[1].usage.cached_tokens, 99);
    assert_int_equal(f.answers[2].usage.cached_tokens, 0);
    close_fixture(&f);
}

/* Several threads submit, cancel and pause while the engine runs. */

struct client {
    struct fixture *f;
    int first, n;
    int32_t prompts[64][80];
};

static void *client_thread(void *arg)
{
    struct client *c = arg;
    struct rng rng;
    rng_seed(&rng, (uint64_t)c->first);
    for (int i = c->first; i < c->first + c->n; i++) {
        int n = 1 + (int)rng_below(&rng, 79);
        fill_prompt(&rng, c->prompts[i], n);
        struct engine_request r = greedy_request(c->prompts[i], n, 60, &c->f->answers[i]);
        uint64_t id;
        while (engine_submit(c->f->g, &r, &id, NULL))
            sched_yield();
        if (i % 4 == 1)
            engine_cancel(c->f->g, id);
        if (i % 4 == 2) {
            engine_pause(c->f->g, id, true);
            engine_pause(c->f->g, id, false);
        }
        struct engine_stats s;
        engine_get_stats(c->f->g, &s);
        assert_true(engine_health(c->f->g, NULL));
        if (i % 4 != 3) {
            while (!__atomic_load_n(&c->f->answers[i].n_finals, __ATOMIC_ACQUIRE))
                sched_yield();
            enum finish_reason why = c->f->answers[i].finish;
            assert_true(why == FINISH_LENGTH || (i % 4 == 1 && why == FINISH_CANCEL));
        }
    }
    return NULL;
}

static void test_threads(void **state)
{
    struct fixture f;
    open_fixture(&f, 30, 64, (struct engine_opts){.prefix_cache = true, .max_queue = 8});
    static struct client clients[4];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        clients[i].f = &f;
        clients[i].first = i * 16;
        clients[i].n = 16;
        pthread_create(&threads[i], NULL, client_thread, &clients[i]);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    engine_free(f.g);
    f.g = NULL;
    for (int i = 0; i < 64; i++)
        assert_int_equal(f.answers[i].n_finals, 1);
    close_fixture(&f);
}

/* Two engines on one pool. */

struct crowd {
    atomic_int inside, most;
};

static void count_inside(void *arg)
{
    struct crowd *c = arg;
    int n = atomic_fetch_add(&c->inside, 1) + 1;
    sched_yield(); /* time for another one to come in */
    if (n > atomic_load(&c->most))
        atomic_store(&c->most, n);
    atomic_fetch_sub(&c->inside, 1);
}

static void test_engines_take_turns(void **state)
{
    enum { ENGINES = 2, REQUESTS = 16 };
    struct fixture f[ENGINES];
    struct crowd crowd = {0};
    struct pool *pool;
    static int32_t prompts[ENGINES][REQUESTS][80];
    struct engine_request r[ENGINES][REQUESTS];
    struct rng rng;
    rng_seed(&rng, 5);
    assert_int_equal(pool_new(&pool, 1, NULL), 0);
    for (int k = 0; k < ENGINES; k++) {
        open_fixture(&f[k], 64, 32, (struct engine_opts){.pool = pool});
        f[k].model.on_step = count_inside;
        f[k].model.arg = &crowd;
    }
    for (int i = 0; i < REQUESTS; i++)
        for (int k = 0; k < ENGINES; k++) {
            fill_prompt(&rng, prompts[k][i], 80);
            r[k][i] = greedy_request(prompts[k][i], 80, 40, &f[k].answers[i]);
            submit(&f[k], &r[k][i]);
        }
    for (int i = 0; i < REQUESTS; i++)
        for (int k = 0; k < ENGINES; k++) {
            while (!__atomic_load_n(&f[k].answers[i].n_finals, __ATOMIC_ACQUIRE))
                sched_yield();
            expect(&f[k], &r[k][i]);
        }
    assert_int_equal(atomic_load(&crowd.most), 1);
    for (int k = 0; k < ENGINES; k++)
        close_fixture(&f[k]);
    pool_free(pool);
}

/* The watchdog sees a step that does not end. */

struct hang {
    atomic_bool inside, go;
};

static void hang_in_step(void *arg)
{
    struct hang *h = arg;
    atomic_store(&h->inside, true);
    while (!atomic_load(&h->go))
        sched_yield();
}

static void test_watchdog(void **state)
{
    struct fixture f;
    struct hang h = {0};
    int32_t prompt[] = {7, 8, 9};
    open_fixture(&f, 4, 16, (struct engine_opts){.step_deadline_ms = 1});
    f.model.on_step = hang_in_step;
    f.model.arg = &h;
    struct engine_request r = greedy_request(prompt, 3, 1, &f.answers[0]);
    struct err e = {0};
    submit(&f, &r);
    while (!atomic_load(&h.inside))
        sched_yield();
    while (engine_health(f.g, &e))
        sched_yield();
    assert_int_equal(e.code, ERR_TIMEOUT);
    atomic_store(&h.go, true);
    while (!__atomic_load_n(&f.answers[0].n_finals, __ATOMIC_ACQUIRE))
        sched_yield();
    assert_true(engine_health(f.g, NULL));
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one),
        cmocka_unit_test(test_length_is_cut_to_context),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_seed_does_not_see_the_batch),
        cmocka_unit_test(test_guesses_change_nothing),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_pause),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_nan),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_stop_ids),
        cmocka_unit_test(test_a_persona_is_computed_once),
        cmocka_unit_test(test_the_same_prompt),
        cmocka_unit_test(test_turns),
        cmocka_unit_test(test_salts_do_not_share),
        cmocka_unit_test(test_pins),
        cmocka_unit_test(test_forget),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_engines_take_turns),
        cmocka_unit_test(test_watchdog),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
