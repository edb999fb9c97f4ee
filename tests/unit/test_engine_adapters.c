/* Adapters through the engine, on a tiny model of random weights (tests/vectors/adapter): requests
 * under different adapters in one batch, adapters replaced and dropped while requests run, and a
 * prefix cache that must never mix them up. */
#define _GNU_SOURCE /* mkstemp */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/rng.h"
#include "engine/spill.h"
#include "engine_harness.h"
#include "model/adapter.h"

enum { N_BLOCKS = 64, N_CTX = 256, N_ADAPTERS = 4, N_REQUESTS = 24, ANSWER = 40, MAX_ROWS = 256 };

struct rig {
    struct pool *pool;
    struct gguf *gguf;
    struct model *model;
    struct kv_mem *kv;
    struct adapter *adapters[N_ADAPTERS];
    struct engine *engine;
    float *logits;
};

/* The tokenizer knows the first FAKE_VOCAB tokens of the model only. */
static void forward(void *ctx, const struct batch_seq *seqs, int n_seqs, float *logits)
{
    struct rig *r = ctx;
    int n = 0, n_vocab = model_info(r->model)->n_vocab;
    for (int i = 0; i < n_seqs; i++)
        n += seqs[i].n_logits;
    assert_in_range(n, 0, MAX_ROWS);
    model_forward(r->model, r->kv, seqs, n_seqs, r->logits);
    for (int i = 0; i < n; i++)
        memcpy(logits + (ptrdiff_t)i * FAKE_VOCAB, r->logits + (ptrdiff_t)i * n_vocab,
               FAKE_VOCAB * sizeof *logits);
}

static void copy_block(void *ctx, int32_t to, int32_t from, int n_tokens)
{
    kv_mem_copy(((struct rig *)ctx)->kv, to, from, n_tokens);
}

static void read_block(void *ctx, int32_t block, void *out)
{
    kv_mem_read(((struct rig *)ctx)->kv, block, out);
}

static void write_block(void *ctx, int32_t block, const void *in)
{
    kv_mem_write(((struct rig *)ctx)->kv, block, in);
}

static void new_engine(struct rig *r)
{
    struct err e = {0};
    struct engine_opts o = {.model = {.ctx = r,
                                      .n_vocab = FAKE_VOCAB,
                                      .max_batch_tokens = 64,
                                      .n_blocks = N_BLOCKS,
                                      .n_ctx = N_CTX,
                                      .forward = forward,
                                      .copy_block = copy_block,
                                      .block_bytes = model_info(r->model)->kv_block_bytes,
                                      .read_block = read_block,
                                      .write_block = write_block},
                            .tokenizer = fake_tokenizer(),
                            .prefix_cache = true,
                            .max_pinned_blocks = 8,
                            .check = true,
                            .manual = true,
                            .sink = answer_sink};
    engine_free(r->engine);
    if (engine_new(&r->engine, &o, &e))
        fail_msg("%s", e.msg);
}

static struct rig *rig_new(void)
{
    static const int ranks[N_ADAPTERS] = {2, 8, 5, 32};
    struct rig *r = xcalloc(1, sizeof *r);
    struct err e = {0};
    if (pool_new(&r->pool, 2, &e) || gguf_open(&r->gguf, VECTORS "/adapter/tiny_llama.gguf", &e))
        fail_msg("%s", e.msg);
    struct model_opts o = {.pool = r->pool, .kv_type = KV_F16, .max_batch_tokens = 64};
    if (model_open(&r->model, r->gguf, &o, &e) || kv_mem_new(&r->kv, r->model, N_BLOCKS, &e))
        fail_msg("%s", e.msg);
    for (int i = 0; i < N_ADAPTERS; i++)
        assert_int_equal(adapter_random(&r->adapters[i], r->model, ranks[i], 5 + i, NULL), 0);
    r->logits = xcalloc(MAX_ROWS, (size_t)model_info(r->model)->n_vocab * sizeof *r->logits);
    new_engine(r);
    return r;
}

static void rig_free(struct rig *r)
{
    engine_free(r->engine);
    for (int i = 0; i < N_ADAPTERS; i++)
        adapter_unref(r->adapters[i]);
    free(r->logits);
    kv_mem_free(r->kv);
    model_close(r->model);
    gguf_close(r->gguf);
    pool_free(r->pool);
    free(r);
}

/* Prompts of one length that share their beginnings. */
static void make_prompt(int32_t *out, int n, int which)
{
    for (int i = 0; i < n; i++)
        out[i] = 6 + (i * 7 + (i < n * 3 / 4 ? 0 : which * 3)) % (FAKE_VOCAB - 6);
}

/* Adapter i % 5 - 1 of those there are: one in five requests is for the base model. The scales are
 * strong, so that answers differ. */
static int uses_of(const struct rig *r, int i, struct adapter_use *use)
{
    if (i % (N_ADAPTERS + 1) == 0)
        return 0;
    *use = (struct adapter_use){r->adapters[i % (N_ADAPTERS + 1) - 1], 8};
    return 1;
}

static uint64_t submit(struct rig *r, int which, const struct adapter_use *use, int n_uses,
                       struct answer *a)
{
    int32_t prompt[80];
    uint64_t id;
    struct err e = {0};
    make_prompt(prompt, 80, which);
    struct engine_request q = greedy_request(prompt, 80, ANSWER, a);
    q.ignore_eos = true;
    q.adapters = use;
    q.n_adapters = n_uses;
    if (engine_submit(r->engine, &q, &id, &e))
        fail_msg("%s", e.msg);
    return id;
}

/* The answer of a fresh engine with nothing else to do. */
static struct answer alone(struct rig *r, int which, const struct adapter_use *use, int n_uses)
{
    struct answer a = {0};
    new_engine(r);
    submit(r, which, use, n_uses, &a);
    run_until_idle(r->engine);
    assert_int_equal(a.n_ids, ANSWER);
    return a;
}

static void each_request_gets_its_adapter(void **state)
{
    struct rig *r = rig_new();
    struct answer want[N_REQUESTS] = {0}, got[N_REQUESTS] = {0};
    struct adapter_use use;
    int differ = 0;
    for (int i = 0; i < N_REQUESTS; i++)
        want[i] = alone(r, i % 3, &use, uses_of(r, i, &use));
    for (int i = 0; i < N_REQUESTS; i++)
        for (int k = 0; k < i; k++)
            differ += i % 3 == k % 3 && i % 5 != k % 5 &&
                      memcmp(want[i].ids, want[k].ids, ANSWER * sizeof(int32_t)) != 0;
    assert_in_range(differ, 70, 1000); /* adapters are seen in the answers */
    new_engine(r);
    for (int round = 0; round < 2; round++) { /* with an empty cache, then with a full one */
        for (int i = 0; i < N_REQUESTS; i++)
            submit(r, i % 3, &use, uses_of(r, i, &use), &got[i]);
        run_until_idle(r->engine);
        for (int i = 0; i < N_REQUESTS; i++) {
            assert_memory_equal(got[i].ids, want[i].ids, ANSWER * sizeof(int32_t));
            answer_clear(&got[i]);
        }
    }
    struct engine_stats stats;
    engine_get_stats(r->engine, &stats);
    assert_true(stats.cached_tokens > 0);
    for (int i = 0; i < N_REQUESTS; i++)
        answer_release(&want[i]);
    rig_free(r);
}

/* Prompts are found again under the same adapter and scale only. */
static void prefixes_are_kept_apart(void **state)
{
    struct rig *r = rig_new();
    struct adapter_use first = {r->adapters[1], 1}, weaker = {r->adapters[1], 0.5f};
    struct adapter_use other = {r->adapters[2], 1}, both[2] = {first, other};
    struct adapter *again; /* the same content, loaded anew */
    assert_int_equal(adapter_random(&again, r->model, 8, 6, NULL), 0);
    struct adapter_use same = {again, 1};
    const struct {
        const struct adapter_use *uses;
        int n;
        bool cached;
    } cases[] = {{&first, 1, false}, {&first, 1, true}, {&weaker, 1, false},
                 {&other, 1, false}, {NULL, 0, false},  {both, 2, false},
                 {&same, 1, true},   {NULL, 0, true},   {both, 2, true}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct answer a = {0};
        submit(r, 0, cases[i].uses, cases[i].n, &a);
        run_until_idle(r->engine);
        if (cases[i].cached)
            assert_in_range(a.usage.cached_tokens, 64, 79);
        else
            assert_int_equal(a.usage.cached_tokens, 0);
        answer_release(&a);
    }
    engine_forget(r->engine, NULL);
    struct answer a = {0};
    submit(r, 0, both, 2, &a);
    run_until_idle(r->engine);
    assert_int_equal(a.usage.cached_tokens, 0);
    answer_release(&a);
    adapter_unref(again);
    rig_free(r);
}

/* A request goes on with its adapter after everyone else has let it go; so does one that is
 * cancelled, to its end. */
static void adapters_outlive_their_owner(void **state)
{
    struct rig *r = rig_new();
    struct adapter_use use = {r->adapters[3], 8};
    struct answer want = alone(r, 1, &use, 1), got = {0}, cancelled = {0};
    new_engine(r);
    submit(r, 1, &use, 1, &got);
    uint64_t id = submit(r, 2, &use, 1, &cancelled);
    adapter_unref(r->adapters[3]);
    r->adapters[3] = NULL;
    for (int i = 0; i < 5; i++)
        engine_step(r->engine);
    engine_cancel(r->engine, id);
    run_until_idle(r->engine);
    assert_memory_equal(got.ids, want.ids, ANSWER * sizeof(int32_t));
    assert_int_equal(cancelled.finish, FINISH_CANCEL);
    answer_release(&got);
    answer_release(&want);
    answer_release(&cancelled);
    rig_free(r);
}

/* ---- activated adapters ---- */

/* The one of the vectors, activated by tokens that the tokenizer knows. */
static struct adapter *open_activated(struct rig *r, const char *invocation)
{
    char config[8192] = {0}, *tensors = xcalloc(1, 1 << 20);
    struct err e = {0};
    struct adapter *a;
    FILE *f = fopen(VECTORS "/adapter/llama_activated/adapter_config.json", "r");
    assert_true(f && fread(config, 1, sizeof config - 1, f) > 0);
    fclose(f);
    char *open = strchr(strstr(config, "alora_invocation_tokens"), '[');
    char *close = strchr(open, ']');
    struct buf changed = {0};
    buf_add(&changed, config, (size_t)(open - config));
    buf_adds(&changed, invocation);
    buf_adds(&changed, close + 1);
    f = fopen(VECTORS "/adapter/llama_activated/adapter_model.safetensors", "rb");
    size_t n = fread(tensors, 1, 1 << 20, f);
    fclose(f);
    if (adapter_open_peft(&a, r->model, changed.data, changed.len, tensors, n, &e))
        fail_msg("%s", e.msg);
    buf_release(&changed);
    free(tensors);
    return a;
}

enum { LONG = 100, OFTEN = 120 };

/* A prompt like others, with the invocation tokens at some places or none. */
static void mixed_prompt(struct rng *rng, int32_t out[LONG])
{
    make_prompt(out, LONG, (int)rng_below(rng, 2));
    for (uint64_t n = rng_below(rng, 3); n; n--) {
        int at = (int)rng_below(rng, 4) * 24 + (int)rng_below(rng, 2);
        out[at] = 44;
        out[at + 1] = 45;
    }
}

static struct answer run_one(struct rig *r, const int32_t *prompt, int n, int n_tokens,
                             const struct adapter_use *uses, int n_uses)
{
    struct answer a = {0};
    struct err e = {0};
    uint64_t id;
    struct engine_request q = greedy_request(prompt, n, n_tokens, &a);
    q.ignore_eos = true;
    q.adapters = uses;
    q.n_adapters = n_uses;
    if (engine_submit(r->engine, &q, &id, &e))
        fail_msg("%s", e.msg);
    run_until_idle(r->engine);
    return a;
}

/* Whatever is cached, each request says what a fresh engine says; and much is cached. */
static void activated_adapters_share_what_they_leave(void **state)
{
    struct rig *r = rig_new();
    struct adapter *a = open_activated(r, "[44, 45]");
    struct adapter_use cases[][2] = {
        {{NULL}}, {{a, 4}}, {{a, 2}}, {{a, 4}, {r->adapters[1], 8}}, {{r->adapters[1], 8}}};
    static const int n_uses[] = {0, 1, 1, 2, 1};
    int32_t(*prompts)[LONG] = xcalloc(OFTEN, sizeof *prompts);
    struct answer *want = xcalloc(OFTEN, sizeof *want);
    struct rng rng;
    int differ = 0;
    rng_seed(&rng, 4);
    for (int i = 0; i < OFTEN; i++) {
        mixed_prompt(&rng, prompts[i]);
        new_engine(r);
        want[i] = run_one(r, prompts[i], LONG, 12, cases[i % 5], n_uses[i % 5]);
        for (int k = 0; k < i; k++)
            differ += !memcmp(prompts[i], prompts[k], sizeof *prompts) &&
                      memcmp(want[i].ids, want[k].ids, 12 * sizeof(int32_t));
    }
    assert_true(differ > 50);
    new_engine(r);
    for (int i = 0; i < OFTEN; i++) {
        struct answer got = run_one(r, prompts[i], LONG, 12, cases[i % 5], n_uses[i % 5]);
        assert_memory_equal(got.ids, want[i].ids, 12 * sizeof(int32_t));
        answer_release(&got);
        answer_release(&want[i]);
    }
    struct engine_stats stats;
    engine_get_stats(r->engine, &stats);
    assert_true(stats.cached_tokens > OFTEN * LONG / 2);
    adapter_unref(a);
    free(want);
    free(prompts);
    rig_free(r);
}

static void activated_where_the_tokens_stand_last(void **state)
{
    struct rig *r = rig_new();
    struct adapter *a = open_activated(r, "[44, 45]"), *b = open_activated(r, "[50]");
    int32_t prompt[LONG];
    make_prompt(prompt, LONG, 0);
    struct adapter_use use = {a, 4}, two[2] = {{a, 4}, {b, 4}};
    struct answer base = run_one(r, prompt, LONG, 12, NULL, 0);
    struct answer none = run_one(r, prompt, LONG, 12, &use, 1); /* is not called for */
    assert_int_equal(none.usage.cached_tokens, LONG - 1);
    assert_memory_equal(none.ids, base.ids, 12 * sizeof(int32_t));
    prompt[10] = prompt[80] = 44;
    prompt[11] = prompt[81] = 45;
    struct answer plain = run_one(r, prompt, LONG, 12, NULL, 0);
    struct answer first = run_one(r, prompt, LONG, 12, &use, 1);
    assert_int_equal(first.usage.cached_tokens, 80); /* all of the base up to the second place */
    assert_memory_not_equal(first.ids, plain.ids, 12 * sizeof(int32_t));
    struct answer second = run_one(r, prompt, LONG, 12, &use, 1);
    assert_int_equal(second.usage.cached_tokens, LONG - 1);
    assert_memory_equal(second.ids, first.ids, 12 * sizeof(int32_t));
    prompt[90] = 50;
    struct answer q = {0};
    struct engine_request er = greedy_request(prompt, LONG, 4, &q);
    struct err e = {0};
    uint64_t id;
    er.adapters = two;
    er.n_adapters = 2;
    assert_int_equal(engine_submit(r->engine, &er, &id, &e), ERR_UNSUPPORTED);
    answer_release(&base);
    answer_release(&none);
    answer_release(&plain);
    answer_release(&first);
    answer_release(&second);
    adapter_unref(a);
    adapter_unref(b);
    rig_free(r);
}

enum { PERSONA = 75 }; /* tokens at the beginning of a prompt: a tail in its last block */

static uint64_t pin(struct rig *r, const int32_t *prompt, const struct adapter_use *use)
{
    struct answer a = {0};
    struct err e = {0};
    uint64_t id;
    struct engine_request q = greedy_request(prompt, PERSONA, 1, &a);
    q.adapters = use;
    q.n_adapters = 1;
    q.pin = true;
    if (engine_submit(r->engine, &q, &id, &e))
        fail_msg("%s", e.msg);
    run_until_idle(r->engine);
    answer_release(&a);
    return id;
}

/* An engine that has nothing of what the last one had. */
static void begin_anew(struct rig *r)
{
    struct err e = {0};
    engine_free(r->engine);
    r->engine = NULL;
    kv_mem_free(r->kv);
    if (kv_mem_new(&r->kv, r->model, N_BLOCKS, &e))
        fail_msg("%s", e.msg);
    new_engine(r);
}

/* Wherever the tokens stand, what is read from a file does what was computed. */
static void activated_prompts_come_back_from_files(void **state)
{
    static const struct {
        int at[2]; /* of the tokens, -1: nowhere */
        int cached;
    } cases[] = {{{-1, -1}, PERSONA},
                 {{10, -1}, PERSONA},
                 {{10, 40}, PERSONA},
                 {{64, -1}, PERSONA},
                 {{-1, 90}, PERSONA}, /* in the chat alone */
                 {{10, 90}, 10},      /* the chat is not activated where the persona is */
                 {{PERSONA - 1, -1}, PERSONA - 1}}; /* begins in one and ends in the other */
    struct rig *r = rig_new();
    struct adapter *a = open_activated(r, "[44, 45]"), *b = open_activated(r, "[44, 45]");
    struct adapter_use use = {a, 4}, other = {b, 3};
    char path[] = "/tmp/terrace-activated-XXXXXX";
    close(mkstemp(path));
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        int32_t prompt[LONG];
        struct err e = {0};
        uint64_t id;
        make_prompt(prompt, LONG, 0);
        for (int k = 0; k < 2; k++)
            if (cases[i].at[k] >= 0)
                memcpy(prompt + cases[i].at[k], (int32_t[]){44, 45}, 2 * sizeof *prompt);
        begin_anew(r);
        struct spill spill = {
            .engine = r->engine, .prefix = {prompt, PERSONA, NULL, &use, 1}, .key = STR("tiny")};
        assert_int_equal(spill_write(&spill, pin(r, prompt, &use), path, &e), 0);
        struct answer want = run_one(r, prompt, LONG, 12, &use, 1);
        assert_int_equal(want.usage.cached_tokens, cases[i].cached);

        begin_anew(r);
        spill.engine = r->engine;
        if (spill_read(&spill, path, &id, &e))
            fail_msg("%s", e.msg);
        struct answer got = run_one(r, prompt, LONG, 12, &use, 1);
        assert_int_equal(got.usage.cached_tokens, cases[i].cached);
        assert_memory_equal(got.ids, want.ids, 12 * sizeof(int32_t));
        answer_release(&got);

        /* of another adapter, unless it was none's */
        bool active = cases[i].at[0] >= 0 && cases[i].at[0] < PERSONA - 1;
        spill.prefix.adapters = &other;
        assert_int_equal(spill_read(&spill, path, &id, &e), active ? ERR_EXISTS : 0);
        answer_release(&want);
    }
    unlink(path);
    adapter_unref(a);
    adapter_unref(b);
    rig_free(r);
}

static void refuses_what_cannot_be_meant(void **state)
{
    struct rig *r = rig_new();
    struct adapter_use uses[MODEL_MAX_ADAPTERS + 1];
    for (size_t i = 0; i < ARRAY_LEN(uses); i++)
        uses[i] = (struct adapter_use){r->adapters[0], 1};
    int32_t prompt[4] = {7, 8, 9, 10};
    struct answer a = {0};
    struct engine_request q = greedy_request(prompt, 4, 4, &a);
    uint64_t id;
    struct err e = {0};
    q.adapters = uses;
    q.n_adapters = ARRAY_LEN(uses);
    assert_int_equal(engine_submit(r->engine, &q, &id, &e), ERR_INVALID);
    assert_string_equal(e.param, "adapters");
    q.n_adapters = 1;
    uses[0].scale = (float)(1e300 * 1e300);
    assert_int_equal(engine_submit(r->engine, &q, &id, &e), ERR_INVALID);
    assert_string_equal(e.param, "adapters");
    rig_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_request_gets_its_adapter),
        cmocka_unit_test(prefixes_are_kept_apart),
        cmocka_unit_test(adapters_outlive_their_owner),
        cmocka_unit_test(activated_adapters_share_what_they_leave),
        cmocka_unit_test(activated_where_the_tokens_stand_last),
        cmocka_unit_test(activated_prompts_come_back_from_files),
        cmocka_unit_test(refuses_what_cannot_be_meant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
