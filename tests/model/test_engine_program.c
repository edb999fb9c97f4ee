/* The whole engine on a fake model: requests are handed in, cancelled, paused and resumed between
 * steps; the accounts are checked after every step; every answer must be that of the request alone,
 * which the harness computes without the engine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "engine_harness.h"
#include "program.h"

enum { N_CTX = 400, MOST_PROMPT = 150, MOST_NEW = 80, N_SLOTS = 24 };

struct slot {
    bool live, paused, cancelled;
    uint64_t id;
    int32_t prompt[MOST_PROMPT];
    struct engine_request r;
    struct answer answer;
};

struct program {
    struct fake_model model;
    struct engine *g;
    int capacity; /* positions that one request may have */
    struct rng rng;
    struct slot slots[N_SLOTS];
    int32_t past[16][MOST_PROMPT];
    int n_done;
    int64_t prompt_tokens, computed_alone;
    struct engine_stats stats;
    char why[256];
};

static const char *const stops[] = {"abc", "b c", "日本", "c.c", "a\nb", "é"};
static const char *const tenants[] = {NULL, "a", "b"};

static int below(struct program *p, int n)
{
    return (int)rng_below(&p->rng, (uint64_t)n);
}

static void fill_prompt(struct program *p, struct slot *s)
{
    int32_t *past = p->past[below(p, 16)];
    int keep = below(p, 3) ? below(p, MOST_PROMPT) : 0;
    memcpy(s->prompt, past, (size_t)keep * sizeof *past);
    for (int i = keep; i < MOST_PROMPT; i++)
        s->prompt[i] = 2 + below(p, FAKE_VOCAB - 2);
    memcpy(past, s->prompt, sizeof s->prompt);
}

static const char *submit(struct program *p, struct slot *s)
{
    fill_prompt(p, s);
    int n = 1 + below(p, MOST_PROMPT < p->capacity ? MOST_PROMPT : p->capacity - 1);
    s->r = greedy_request(s->prompt, n, 1 + below(p, MOST_NEW), &s->answer);
    s->r.stop = stops;
    s->r.n_stop = below(p, 2) * below(p, (int)ARRAY_LEN(stops) + 1);
    s->r.include_stop = below(p, 8) == 0;
    s->r.ignore_eos = below(p, 4) == 0;
    s->r.min_tokens = below(p, 4) ? 0 : below(p, s->r.max_tokens + 1);
    s->r.tenant = tenants[below(p, 3)];
    s->r.cache_salt = tenants[below(p, 3)];
    s->r.priority = below(p, 5) - 2;
    s->r.speculate = below(p, 2);
    s->live = true;
    s->paused = s->cancelled = false;
    s->r.pin = below(p, 20) == 0;
    struct err e = {0};
    int rc = engine_submit(p->g, &s->r, &s->id, &e);
    s->r.pin &= rc == 0;
    if (rc == ERR_LIMIT)
        rc = engine_submit(p->g, &s->r, &s->id, &e);
    if (rc)
        DIFFER(p->why, "refused: %s", e.msg);
    return NULL;
}

static bool is_prefix(const struct answer *a, const struct answer *of)
{
    return a->n_ids <= of->n_ids && memcmp(a->ids, of->ids, (size_t)a->n_ids * sizeof *a->ids) == 0;
}

/* A slot whose answer is complete is judged and free again. */
static const char *judge(struct program *p, struct slot *s)
{
    const struct answer *a = &s->answer;
    struct answer want;
    answer_expected(&p->model, &s->r, p->capacity, &want);
    bool cut = s->cancelled && a->finish == FINISH_CANCEL;
    bool good = cut ? is_prefix(a, &want) : answer_equal(a, &want);
    good &= a->usage.prompt_tokens == s->r.n_prompt && a->usage.cached_tokens < s->r.n_prompt;
    if (!good)
        snprintf(p->why, sizeof p->why, "request %d: %d tokens, finish %d, not %d and %d",
                 (int)s->id, a->n_ids, (int)a->finish, want.n_ids, (int)want.finish);
    answer_release(&want);
    answer_clear(&s->answer);
    s->live = false;
    p->n_done++;
    p->prompt_tokens += s->r.n_prompt;
    return good ? NULL : p->why;
}

static const char *operate(struct program *p)
{
    struct slot *s = &p->slots[below(p, N_SLOTS)];
    int what = below(p, 100);
    if (what < 80)
        engine_step(p->g);
    else if (what == 98)
        engine_unpin(p->g, 1 + rng_below(&p->rng, s->id + 1));
    else if (what == 99 && below(p, 20) == 0)
        engine_forget(p->g, tenants[below(p, 3)]);
    else if (!s->live && what < 95)
        return submit(p, s);
    else if (s->live && what == 95) {
        s->cancelled = true;
        engine_cancel(p->g, s->id);
    } else if (s->live && what < 98) {
        s->paused = true;
        engine_pause(p->g, s->id, true);
    } else if (s->live) {
        s->paused = false;
        engine_pause(p->g, s->id, false);
    }
    return NULL;
}

static const char *judge_all(struct program *p)
{
    const char *bad = NULL;
    for (int i = 0; i < N_SLOTS && !bad; i++)
        if (p->slots[i].live && p->slots[i].answer.n_finals)
            bad = judge(p, &p->slots[i]);
    return bad;
}

/* Resumes everybody and lets them finish: nobody may be left. */
static const char *finish(struct program *p)
{
    for (int i = 0; i < N_SLOTS; i++)
        if (p->slots[i].live)
            engine_pause(p->g, p->slots[i].id, false);
    run_until_idle(p->g);
    engine_forget_all(p->g);
    engine_step(p->g);
    const char *bad = judge_all(p);
    if (bad)
        return bad;
    engine_get_stats(p->g, &p->stats);
    for (int i = 0; i < N_SLOTS; i++)
        if (p->slots[i].live)
            DIFFER(p->why, "request %d got no final event", (int)p->slots[i].id);
    if (p->stats.blocks_held || p->stats.running || p->stats.waiting)
        DIFFER(p->why, "%d blocks are held by nobody", p->stats.blocks_held);
    return NULL;
}

static const char *run_program(struct program *p, uint64_t seed, int n_ops, bool forgetful)
{
    *p = (struct program){0};
    rng_seed(&p->rng, seed);
    fake_model_init(&p->model, 3 + below(p, 30), 8 + below(p, 56));
    p->model.eog_every = 50;
    p->model.forgetful = forgetful;
    p->model.repetitive = seed % 3 == 0;
    struct engine_opts o = {.model = fake_engine_model(&p->model, N_CTX),
                            .tokenizer = fake_tokenizer(),
                            .max_running = 1 + below(p, 12),
                            .prefix_cache = seed % 4 != 0,
                            .spec_tokens = 1 + below(p, 12),
                            .max_pinned_blocks = below(p, p->model.n_blocks / 2),
                            .check = true,
                            .manual = true,
                            .sink = answer_sink};
    int n_blocks = p->model.n_blocks - (o.prefix_cache ? o.max_pinned_blocks : 0);
    p->capacity = n_blocks * KV_BLOCK_TOKENS < N_CTX ? n_blocks * KV_BLOCK_TOKENS : N_CTX;
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < MOST_PROMPT; k++)
            p->past[i][k] = 2 + below(p, FAKE_VOCAB - 2);
    if (engine_new(&p->g, &o, NULL))
        return "engine_new";
    const char *bad = NULL;
    for (int i = 0; i < n_ops && !bad; i++) {
        bad = operate(p);
        if (!bad)
            bad = judge_all(p);
    }
    if (!bad)
        bad = finish(p);
    engine_free(p->g);
    for (int i = 0; i < N_SLOTS; i++)
        answer_release(&p->slots[i].answer);
    fake_model_release(&p->model);
    return bad;
}

static void test_program(void **state)
{
    struct program *p = xcalloc(1, sizeof *p);
    uint64_t preemptions = 0, evictions = 0, steps = 0, cached = 0, guessed = 0, held = 0;
    int done = 0;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        const char *bad = run_program(p, seed, 10000 / PROGRAM_SCALE, false);
        if (bad)
            fail_msg("seed %d: %s", (int)seed, bad);
        preemptions += p->stats.preemptions;
        evictions += p->stats.evictions;
        cached += p->stats.cached_tokens;
        steps += p->stats.steps;
        guessed += p->stats.draft_tokens;
        held += p->stats.accepted_tokens;
        done += p->n_done;
    }
    print_message("# %d requests, %d steps, %d preemptions, %d evictions, %d cached tokens, "
                  "%d of %d guesses held\n",
                  done, (int)steps, (int)preemptions, (int)evictions, (int)cached, (int)held,
                  (int)guessed);
    assert_true(preemptions > 100 && evictions > 100 && cached > 1000 && held > 100 &&
                guessed > held);
    free(p);
}

static void test_a_planted_bug_is_found(void **state)
{
    struct program *p = xcalloc(1, sizeof *p);
    assert_non_null(run_program(p, 1, 10000, true));
    free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_program),
        cmocka_unit_test(test_a_planted_bug_is_found),
    };
    return cmocka_run_group_tests_name("engine program", tests, NULL, NULL);
}
