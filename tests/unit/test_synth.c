#include "unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/map.h"
#include "base/mem.h"
#include "gguf/gguf.h"
#include "synth.h"

struct place {
    char folder[64], path[128];
};

static void make_place(struct place *p)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(p->folder, sizeof p->folder, "%s/synth-XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(p->folder));
    snprintf(p->path, sizeof p->path, "%s/m.gguf", p->folder);
}

static void drop_place(struct place *p)
{
    unlink(p->path);
    assert_int_equal(rmdir(p->folder), 0);
}

static struct gguf *write_and_open(const char *path, const char *arch, const char *quant,
                                   const struct synth_options *options)
{
    struct gguf *g = NULL;
    struct err e = {0};
    if (synth_write(arch, quant, path, options, &e) || gguf_open(&g, path, &e))
        fail_msg("%s %s: %s", arch, quant, e.msg);
    return g;
}

/* Mean near 0 and the deviation that the role calls for, over a matrix of any type. */
static void check_numbers(const struct gguf_tensor *t)
{
    const struct ttype_info *info = ttype_info(t->type);
    size_t n = (size_t)(t->dims[0] * t->dims[1]);
    float *x = xmalloc(n * sizeof *x);
    info->decode(t->data, n, x);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        assert_true(isfinite(x[i]));
        sum += x[i];
        squares += (double)x[i] * x[i];
    }
    double deviation = sqrt(squares / (double)n), mean = sum / (double)n;
    double size = deviation * sqrt((double)t->dims[0]); /* of the output for unit input */
    if (!(size > 0.9 && size < 18 && fabs(mean) < 0.02 * deviation))
        fail_msg("%.*s %s: size %g, mean %g", (int)t->name.n, t->name.p, info->name, size, mean);
    for (uint64_t row = 1; row < t->dims[1]; row++)
        assert_memory_not_equal(x, x + row * t->dims[0], t->dims[0] * sizeof *x);
    free(x);
}

/* Tokens are distinct, ids within range, and merges made of tokens and making tokens. */
static void check_vocab(const struct gguf *g)
{
    struct gguf_arr tokens, types, merges;
    assert_int_equal(gguf_get_arr(g, "tokenizer.ggml.tokens", GGUF_STRING, &tokens, NULL), 0);
    assert_int_equal(gguf_get_arr(g, "tokenizer.ggml.token_type", GGUF_I32, &types, NULL), 0);
    assert_int_equal(tokens.n, gguf_find(g, "token_embd.weight")->dims[1]);
    assert_int_equal(types.n, tokens.n);
    struct map seen = {0};
    for (size_t i = 0; i < tokens.n; i++)
        assert_null(map_put(&seen, tokens.strs[i], &seen));
    assert_true(gguf_u32(g, "tokenizer.ggml.bos_token_id", UINT32_MAX) < tokens.n);
    assert_true(gguf_u32(g, "tokenizer.ggml.eos_token_id", UINT32_MAX) < tokens.n);
    if (!gguf_get_arr(g, "tokenizer.ggml.merges", GGUF_STRING, &merges, NULL)) {
        for (size_t i = 0; i < merges.n; i++) {
            struct str m = merges.strs[i];
            const char *space = memchr(m.p, ' ', m.n);
            assert_non_null(space);
            size_t k = (size_t)(space - m.p);
            char joined[64];
            assert_true(m.n < sizeof joined);
            memcpy(joined, m.p, k);
            memcpy(joined + k, space + 1, m.n - k - 1);
            assert_non_null(map_get(&seen, (struct str){m.p, k}));
            assert_non_null(map_get(&seen, (struct str){space + 1, m.n - k - 1}));
            assert_non_null(map_get(&seen, (struct str){joined, m.n - 1}));
        }
    } else {
        struct gguf_arr scores;
        assert_int_equal(gguf_get_arr(g, "tokenizer.ggml.scores", GGUF_F32, &scores, NULL), 0);
        assert_int_equal(scores.n, tokens.n);
    }
    map_release(&seen);
}

static void test_every_tiny_file(void **state)
{
    struct place p;
    make_place(&p);
    int n_files = 0;
    for (size_t a = 0; synth_arch(a); a++) {
        if (strncmp(synth_arch(a), "tiny", 4) != 0)
            continue;
        for (size_t q = 0; synth_quant(q); q++, n_files++) {
            struct gguf *g = write_and_open(p.path, synth_arch(a), synth_quant(q), NULL);
            check_vocab(g);
            for (size_t i = 0; i < gguf_n_tensors(g); i++)
                if (gguf_tensor_at(g, i)->n_dims == 2)
                    check_numbers(gguf_tensor_at(g, i));
            gguf_close(g);
        }
    }
    assert_int_equal(n_files, 4 * 15);
    drop_place(&p);
}

/* The mixes that llama.cpp's quantiser makes, as far as three layers show them. */
static void test_mixes(void **state)
{
    static const struct {
        const char *arch, *quant, *tensor;
        enum ttype type;
    } rows[] = {
        {"tiny-phi3", "q4_k_m", "blk.0.attn_qkv.weight", TTYPE_Q5_K},
        {"tiny-phi3", "q5_k_m", "blk.0.attn_qkv.weight", TTYPE_Q6_K},
        {"tiny-phi3", "q4_k_m", "blk.0.ffn_up.weight", TTYPE_Q4_K},
        {"tiny-llama", "q4_k_m", "output.weight", TTYPE_Q6_K},
        {"tiny-llama", "q4_k_m", "token_embd.weight", TTYPE_Q4_K},
        {"tiny-llama", "q4_k_m", "blk.0.attn_v.weight", TTYPE_Q4_K},
        {"tiny-llama", "q4_k_m", "blk.2.attn_v.weight", TTYPE_Q6_K},
        {"tiny-llama", "q4_k_m", "blk.2.ffn_down.weight", TTYPE_Q6_K},
        {"tiny-llama", "q3_k_m", "blk.1.attn_v.weight", TTYPE_Q5_K},
        {"tiny-llama", "q3_k_m", "blk.2.attn_v.weight", TTYPE_Q4_K},
        {"tiny-llama", "q2_k", "blk.0.attn_output.weight", TTYPE_Q3_K},
        {"tiny-llama", "q4_0", "output.weight", TTYPE_Q6_K},
        {"tiny-llama", "q8_0", "output.weight", TTYPE_Q8_0},
        {"tiny-llama", "bf16", "blk.0.attn_norm.weight", TTYPE_F32},
        {"tiny-qwen2", "q4_0", "token_embd.weight", TTYPE_Q6_K},
    };
    struct place p;
    make_place(&p);
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct gguf *g = write_and_open(p.path, rows[i].arch, rows[i].quant, NULL);
        const struct gguf_tensor *t = gguf_find(g, rows[i].tensor);
        assert_non_null(t);
        if (t->type != rows[i].type)
            fail_msg("%s %s %s is %s", rows[i].arch, rows[i].quant, rows[i].tensor,
                     ttype_info(t->type)->name);
        gguf_close(g);
    }
    drop_place(&p);
}

/* The published counts of tensors by type: SmolLM2-135M Q4_1. The rows of 576 fit no 256-blocks. */
static void test_real_shape(void **state)
{
    struct place p;
    make_place(&p);
    struct gguf *g = write_and_open(p.path, "smollm2-135m", "q4_1", NULL);
    assert_int_equal(gguf_n_tensors(g), 272);
    assert_int_equal(gguf_find(g, "token_embd.weight")->type, TTYPE_Q8_0);
    assert_null(gguf_find(g, "output.weight"));
    const struct gguf_tensor *t;
    assert_int_equal(gguf_need(g, "blk.29.ffn_down.weight", 2, (uint64_t[]){1536, 576}, &t, NULL),
                     0);
    assert_int_equal(t->type, TTYPE_Q4_1);
    check_vocab(g);
    gguf_close(g);
    drop_place(&p);
}

static void digest(const struct gguf *g, const char *tensor, uint8_t sum[32], float *first)
{
    const struct gguf_tensor *t = gguf_find(g, tensor);
    gguf_fingerprint(g, sum);
    *first = *(const float *)t->data;
}

static void test_repeatable(void **state)
{
    struct place p;
    make_place(&p);
    const struct synth_options seven = {.seed = 7}, more = {.seed = 7, .n_layers = 5};
    uint8_t sum[4][32];
    float first[4];
    for (int i = 0; i < 4; i++) {
        const struct synth_options *o = i < 2 ? &seven : i == 2 ? NULL : &more;
        struct gguf *g = write_and_open(p.path, "tiny-qwen2", "f32", o);
        digest(g, "blk.1.attn_q.weight", sum[i], &first[i]);
        if (i == 3)
            assert_non_null(gguf_find(g, "blk.4.attn_q.weight"));
        gguf_close(g);
    }
    assert_memory_equal(sum[0], sum[1], 32);
    assert_memory_not_equal(sum[0], sum[2], 32); /* the vocabulary is another */
    assert_true(first[0] == first[1] && first[0] != first[2]);
    assert_true(first[0] == first[3]); /* a layer is the same whatever follows it */
    drop_place(&p);
}

static void test_refused(void **state)
{
    struct err e = {0};
    assert_int_equal(synth_write("gpt5", "f32", "x", NULL, &e), ERR_INVALID);
    assert_string_equal(e.param, "arch");
    assert_int_equal(synth_write("tiny-llama", "q9", "x", NULL, &e), ERR_INVALID);
    assert_string_equal(e.param, "quant");
    assert_int_equal(synth_write("tiny-llama", "f32", "/nonexistent/x", NULL, &e), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_tiny_file), cmocka_unit_test(test_mixes),
        cmocka_unit_test(test_real_shape),      cmocka_unit_test(test_repeatable),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("synth", tests, NULL, NULL);
}
