/* The tokenizer against what the reference implementations make of
 * tests/vectors/tokenizer/corpus.py (make_small.py and make_real.py there wrote the vectors). */
#include "unit.h"

#include <stdio.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "tokenizer_help.h"

static bool read_file(const char *path, struct buf *out)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return false;
    char *p;
    size_t n;
    while (p = buf_reserve(out, 1 << 16), (n = fread(p, 1, 1 << 16, f)) > 0)
        out->len += n;
    fclose(f);
    buf_reserve(out, 0)[0] = 0;
    return true;
}

static const char *text_of(const json_t *v, const char *key)
{
    return json_string_value(json_object_get(v, key));
}

static json_t *load_vectors(const char *path)
{
    struct buf b = {0};
    struct err e = {0};
    if (!read_file(path, &b))
        fail_msg("cannot read %s", path);
    json_t *v = jr_parse(b.data, b.len, &e);
    if (!v)
        fail_msg("%s: %s", path, e.msg);
    buf_release(&b);
    return v;
}

/* ---- against the oracles ------------------------------------------------------------------- */

static void check_case(const struct tokenizer *t, const json_t *v, struct rng *rng)
{
    struct buf text = {0};
    struct token_list want = {0};
    struct token_list got = {0};
    const char *s = text_of(v, "text");
    json_int_t times = json_integer_value(json_object_get(v, "times"));
    for (json_int_t i = 0; i < (times ? times : 1); i++)
        buf_adds(&text, s);

    struct tok_span whole = {{text.data, text.len}, true};
    if (text_of(v, "ids")) {
        unpack(text_of(v, "ids"), &want);
        encode(t, &whole, 1, &got);
        expect_ids(s, &got, &want);
    }

    const char *plain = text_of(v, "plain");
    got.n = 0;
    if (plain) {
        want.n = 0;
        unpack(plain, &want);
    }
    whole.trusted = false;
    encode(t, &whole, 1, &got);
    expect_ids(s, &got, &want);
    for (size_t i = 0; i < got.n; i++)
        assert_false(tokenizer_is_special(t, got.ids[i]));

    /* Where an untrusted text is cut makes no difference. */
    struct tok_span parts[8];
    size_t at = 0;
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        size_t n = i + 1 < ARRAY_LEN(parts) ? rng_below(rng, text.len - at + 1) : text.len - at;
        parts[i] = (struct tok_span){{text.data ? text.data + at : "", n}, false};
        at += n;
    }
    got.n = 0;
    encode(t, parts, ARRAY_LEN(parts), &got);
    expect_ids(s, &got, &want);
    token_list_release(&got);
    token_list_release(&want);
    buf_release(&text);
}

static void check_decode(const struct tokenizer *t, const json_t *v)
{
    struct token_list ids = {0};
    struct buf got = {0};
    unpack(text_of(v, "ids"), &ids);
    tokenizer_decode(t, ids.ids, ids.n, false, &got);
    assert_string_equal(buf_str(&got), text_of(v, "text"));
    buf_clear(&got);
    tokenizer_decode(t, ids.ids, ids.n, true, &got);
    assert_string_equal(buf_str(&got), text_of(v, json_object_get(v, "full") ? "full" : "text"));
    buf_release(&got);
    token_list_release(&ids);
}

/* Ids at random come out of a stream as they come out of tokenizer_decode, and every step emits
 * whole characters. */
static void check_stream(const struct tokenizer *t, struct rng *rng)
{
    for (int round = 0; round < 50; round++) {
        struct buf got = {0};
        struct buf want = {0};
        struct token_list ids = {0};
        struct tok_stream s = {0};
        bool special = rng_below(rng, 2);
        for (int i = 0; i < 40; i++) {
            token_list_add(&ids, (int32_t)rng_below(rng, (uint64_t)tokenizer_n_vocab(t) + 3) - 1);
            size_t before = got.len;
            tok_stream_add(&s, t, ids.ids[i], special, &got);
            assert_true(utf8_valid(buf_str(&got) + before, got.len - before));
        }
        tok_stream_end(&s, &got);
        tokenizer_decode(t, ids.ids, ids.n, special, &want);
        assert_int_equal(got.len, want.len);
        assert_memory_equal(buf_str(&got), buf_str(&want), got.len);
        buf_release(&got);
        buf_release(&want);
        token_list_release(&ids);
    }
}

static void check_vectors(const struct tokenizer *t, const char *path)
{
    struct rng rng;
    rng_seed(&rng, 1);
    json_t *v = load_vectors(path);
    size_t i;
    json_t *one;
    assert_true(json_array_size(json_object_get(v, "cases")) > 100);
    json_array_foreach(json_object_get(v, "cases"), i, one) check_case(t, one, &rng);
    json_array_foreach(json_object_get(v, "decode"), i, one) check_decode(t, one);
    json_decref(v);
    check_stream(t, &rng);
}

static void test_spm(void **state)
{
    static const char *const names[] = {"spm-llama", "spm-gemma", "spm-plain", "spm-phi"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/tokenizer/%s.gguf", VECTORS, names[i]);
        struct tokenizer *t = open_tokenizer(path);
        snprintf(path, sizeof path, "%s/tokenizer/%s.json", VECTORS, names[i]);
        print_message("# %s\n", names[i]);
        check_vectors(t, path);
        tokenizer_free(t);
    }
}

static void test_bpe(void **state)
{
    static const char *const names[] = {"gpt-2",  "smollm", "llama-bpe",   "dbrx",          "qwen2",
                                        "gpt-4o", "tekken", "deepseek-v3", "deepseek-coder"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char path[256];
        struct tokenizer *t = open_bpe(names[i]);
        snprintf(path, sizeof path, "%s/tokenizer/bpe-%s.json", VECTORS, names[i]);
        print_message("# %s\n", names[i]);
        check_vectors(t, path);
        tokenizer_free(t);
    }
}

/* make_real.py fetches the vocabularies and writes them into a folder. */
static void test_real(void **state)
{
    static const char *const names[] = {"llama3_1",   "qwen3",      "gpt4o", "deepseek_v3",
                                        "mistral_v1", "mistral_v3", "tekken"};
    const char *dir = getenv("TERRACE_TEST_TOKENIZERS");
    if (!dir) {
        print_message("# TERRACE_TEST_TOKENIZERS names no folder of make_real.py: skipped\n");
        skip();
    }
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s.gguf", dir, names[i]);
        print_message("# %s\n", names[i]);
        struct tokenizer *t = open_tokenizer(path);
        snprintf(path, sizeof path, "%s/tokenizer/real-%s.json", VECTORS, names[i]);
        check_vectors(t, path);
        tokenizer_free(t);
    }
}

static void test_smollm2(void **state)
{
    const char *path = getenv("TERRACE_TEST_MODEL");
    if (!path) {
        print_message("# TERRACE_TEST_MODEL names no model file: skipped\n");
        skip();
    }
    struct tokenizer *t = open_tokenizer(path);
    if (!str_eqs(tokenizer_vocab(t, 4), "<reponame>") || tokenizer_n_vocab(t) != 49152) {
        print_message("# TERRACE_TEST_MODEL is not SmolLM2: skipped\n");
        tokenizer_free(t);
        skip();
    }
    check_vectors(t, VECTORS "/tokenizer/real-smollm2.json");
    assert_int_equal(tokenizer_bos(t), 1);
    assert_int_equal(tokenizer_eos(t), 2);
    assert_true(tokenizer_is_eog(t, 2));
    assert_true(tokenizer_is_eog(t, 0)); /* <|endoftext|> */
    assert_false(tokenizer_is_eog(t, 1));
    tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spm),
        cmocka_unit_test(test_bpe),
        cmocka_unit_test(test_real),
        cmocka_unit_test(test_smollm2),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
