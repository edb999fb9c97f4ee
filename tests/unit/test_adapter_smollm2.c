/* An adapter trained with the peft package on real weights, SmolLM2-135M-Instruct that talks like a
 * pirate (tests/vectors/adapter/train_pirate.py), against the answers that peft computes
 * (make_pirate.py). $TERRACE_TEST_MODEL names the GGUF file; without it the test is skipped. */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "gguf/safetensors.h"
#include "model/adapter.h"
#include "model/model.h"

enum { SEQ_BLOCKS = 8, MAX_TOKENS = SEQ_BLOCKS * KV_BLOCK_TOKENS, MAX_ANSWER = 64 };

static json_t *read_json(const char *path)
{
    void *text;
    size_t n;
    assert_int_equal(file_read(&text, &n, path, 16 << 20, NULL), 0);
    json_t *j = jr_parse(text, n, NULL);
    assert_non_null(j);
    free(text);
    return j;
}

static int read_ids(const json_t *array, int32_t *out)
{
    size_t n = json_array_size(array);
    assert_in_range(n, 1, MAX_TOKENS);
    for (size_t i = 0; i < n; i++)
        out[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return (int)n;
}

static int argmax(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

/* Both answers to a question in one batch, with the adapter and without, the reference's tokens fed
 * back. Counts where ours differ though the reference's two best logits were further apart than
 * `rounding`. */
static int check_question(struct model *m, struct kv_mem *kv, const struct adapter_use *use,
                          const json_t *c, double rounding)
{
    static int32_t ids[2][MAX_TOKENS], blocks[2][SEQ_BLOCKS];
    int n_prompt = read_ids(json_object_get(c, "prompt"), ids[0]), wrong = 0;
    read_ids(json_object_get(c, "prompt"), ids[1]);
    int n = read_ids(json_object_get(c, "tokens"), ids[0] + n_prompt);
    assert_int_equal(read_ids(json_object_get(c, "base_tokens"), ids[1] + n_prompt), n);
    assert_memory_not_equal(ids[0] + n_prompt, ids[1] + n_prompt, sizeof(int32_t));
    for (int i = 0; i < 2 * SEQ_BLOCKS; i++)
        blocks[i / SEQ_BLOCKS][i % SEQ_BLOCKS] = i;
    struct batch_seq seqs[2] = {
        {ids[0], n_prompt + n - 1, 0, blocks[0], n, use, 1},
        {ids[1], n_prompt + n - 1, 0, blocks[1], n, NULL, 0},
    };
    size_t n_vocab = (size_t)model_info(m)->n_vocab;
    float *logits = xcalloc(2 * (size_t)n * n_vocab, sizeof *logits);
    model_forward(m, kv, seqs, 2, logits);
    for (int k = 0; k < n; k++) {
        double gap = json_number_value(json_array_get(json_object_get(c, "gaps"), (size_t)k));
        int ours = argmax(logits + (size_t)k * n_vocab, (int)n_vocab);
        wrong += ours != ids[0][n_prompt + k] && gap >= rounding;
    }
    /* The first word shows the adapter: "Arr" with it, another without. */
    assert_int_equal(argmax(logits, (int)n_vocab), ids[0][n_prompt]);
    assert_int_equal(argmax(logits + (size_t)n * n_vocab, (int)n_vocab), ids[1][n_prompt]);
    free(logits);
    return wrong;
}

static void a_trained_adapter_answers_as_in_peft(void **state)
{
    const char *path = getenv("TERRACE_TEST_MODEL");
    if (!path)
        skip();
    struct pool *pool;
    struct gguf *gguf;
    struct model *m;
    struct kv_mem *kv;
    struct adapter *a;
    struct err e = {0};
    if (pool_new(&pool, 2, &e) || gguf_open(&gguf, path, &e) ||
        model_open(&m, gguf, &(struct model_opts){.pool = pool, .kv_type = KV_F16}, &e) ||
        kv_mem_new(&kv, m, 2 * SEQ_BLOCKS, &e) ||
        adapter_open(&a, m, VECTORS "/adapter/pirate", &e))
        fail_msg("%s", e.msg);
    assert_int_equal(adapter_info(a)->max_rank, 4);
    assert_int_equal(adapter_info(a)->n_targets, 90);
    json_t *cases = read_json(VECTORS "/adapter/pirate.json");
    json_t *smollm2 = read_json(VECTORS "/model/smollm2.json");
    double rounding =
        json_number_value(json_object_get(json_object_get(smollm2, "rounding"), "gap_moved_p99"));
    assert_true(rounding > 0);
    struct adapter_use use = {a, 1};
    size_t i;
    json_t *c;
    json_array_foreach(cases, i, c)
    {
        assert_int_equal(
            memcmp(json_string_value(json_object_get(c, "text")), "Arr", sizeof "Arr" - 1), 0);
        assert_int_equal(check_question(m, kv, &use, c, rounding), 0);
    }
    json_decref(smollm2);
    json_decref(cases);
    adapter_unref(a);
    kv_mem_free(kv);
    model_close(m);
    gguf_close(gguf);
    pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_trained_adapter_answers_as_in_peft)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
