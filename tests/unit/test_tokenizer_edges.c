/* The tokenizer where the oracles are silent: trust, hostile files, missing memory, streams, size.
 */
#include "unit.h"

#include <math.h>

#include "base/fault.h"
#include "base/mem.h"
#include "base/pool.h"
#include "tokenizer_help.h"

/* ---- spans --------------------------------------------------------------------------------- */

#define TRUSTED(s)   ((struct tok_span){STR(s), true})
#define UNTRUSTED(s) ((struct tok_span){STR(s), false})

static int32_t id_of(const struct tokenizer *t, const char *spelled)
{
    int32_t id = tokenizer_find(t, str_of(spelled));
    if (id < 0)
        fail_msg("no token %s", spelled);
    return id;
}

static size_t count(const struct token_list *l, int32_t id)
{
    size_t n = 0;
    for (size_t i = 0; i < l->n; i++)
        n += l->ids[i] == id;
    return n;
}

static void test_special_only_in_trusted_spans(void **state)
{
    struct tokenizer *t = open_bpe("gpt-2");
    int32_t start = id_of(t, "<|im_start|>");
    int32_t end = id_of(t, "<|im_end|>");
    int32_t call = id_of(t, "<tool_call>");
    int32_t twice = id_of(t, "<|im_start|><|im_start|>");
    const struct {
        struct tok_span spans[4];
        size_t n_start, n_end, n_call, n_twice;
    } cases[] = {
        {{TRUSTED("<|im_start|>")}, 1, 0, 0, 0},
        {{UNTRUSTED("<|im_start|>")}, 0, 0, 0, 0},
        {{TRUSTED("<tool_call>"), UNTRUSTED("<tool_call>")}, 0, 0, 1, 0},
        {{TRUSTED("<|im_"), TRUSTED("start|>")}, 0, 0, 0, 0},
        {{TRUSTED("<|im_"), UNTRUSTED("start|>")}, 0, 0, 0, 0},
        {{UNTRUSTED("<|im_start|"), TRUSTED(">")}, 0, 0, 0, 0},
        {{UNTRUSTED("<"), TRUSTED("|im_start|>")}, 0, 0, 0, 0},
        {{TRUSTED("<|im_start|>"), UNTRUSTED("<|im_end|>"), TRUSTED("<|im_end|>")}, 1, 1, 0, 0},
        {{TRUSTED("<|im_start|><|im_start|>")}, 0, 0, 0, 1},
        {{TRUSTED("<|im_start|>"), TRUSTED("<|im_start|>")}, 2, 0, 0, 0},
        {{TRUSTED("<|im_start|><|im_start"), UNTRUSTED("|>")}, 1, 0, 0, 0},
        {{TRUSTED(""), UNTRUSTED(""), TRUSTED("<<|im_end|>>"), UNTRUSTED("")}, 0, 1, 0, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct token_list got = {0};
        encode(t, cases[i].spans, 4, &got);
        assert_int_equal(count(&got, start), cases[i].n_start);
        assert_int_equal(count(&got, end), cases[i].n_end);
        assert_int_equal(count(&got, call), cases[i].n_call);
        assert_int_equal(count(&got, twice), cases[i].n_twice);

        struct buf text = {0};
        struct buf want = {0};
        for (size_t k = 0; k < 4; k++)
            buf_add(&want, cases[i].spans[k].text.p, cases[i].spans[k].text.n);
        tokenizer_decode(t, got.ids, got.n, true, &text);
        assert_string_equal(buf_str(&text), buf_str(&want));
        buf_release(&text);
        buf_release(&want);
        token_list_release(&got);
    }
    tokenizer_free(t);
}

static void test_blank_tokens_are_text(void **state)
{
    struct tokenizer *t = open_tokenizer(VECTORS "/tokenizer/spm-gemma.gguf");
    struct token_list got = {0};
    struct tok_span spans[] = {UNTRUSTED("\n"), TRUSTED("\n")};
    encode(t, spans, 2, &got);
    assert_int_equal(got.n, 1);
    assert_int_equal(got.ids[0], id_of(t, "\n\n"));
    token_list_release(&got);
    tokenizer_free(t);
}

static void test_invalid_utf8(void **state)
{
    static const struct {
        struct str text;
        const char *at;
    } bad[] = {{STR("ab\x80"), "byte 2"},       {STR("\xc3"), "byte 0"},
               {STR("\xed\xa0\x80"), "byte 0"}, {STR("x\xf4\x90\x80\x80"), "byte 1"},
               {STR("xyz\xc0\x80"), "byte 3"},  {STR("\xff"), "byte 0"}};
    struct tokenizer *t = open_bpe("gpt-2");
    struct token_list got = {0};
    token_list_add(&got, 7);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct err e = {0};
        struct tok_span span = {bad[i].text, true};
        assert_int_equal(tokenizer_encode(t, &span, 1, TOK_ADD_SPECIAL, &got, &e), ERR_INVALID);
        assert_non_null(strstr(e.msg, bad[i].at));
        assert_int_equal(got.n, 1);
    }
    /* A character may be cut by a border between spans. */
    struct tok_span cut[] = {UNTRUSTED("\xc3"), TRUSTED("\xa9")};
    encode(t, cut, 2, &got);
    struct buf text = {0};
    tokenizer_decode(t, got.ids + 1, got.n - 1, false, &text);
    assert_string_equal(buf_str(&text), "é");
    buf_release(&text);
    token_list_release(&got);
    tokenizer_free(t);
}

/* ---- vocabularies made by hand -------------------------------------------------------------- */

enum { NORMAL = 1, UNKNOWN, CONTROL, USER, UNUSED, BYTE };

struct vocab_made {
    struct gguf_build b;
    struct str tokens[32];
    int32_t types[32];
    float scores[32];
    size_t n;
};

static void made_add(struct vocab_made *m, struct str token, int32_t type, float score)
{
    m->tokens[m->n] = token;
    m->types[m->n] = type;
    m->scores[m->n++] = score;
}

static struct tokenizer *made_open(struct vocab_made *m, const char *model, struct err *e)
{
    gguf_build_str(&m->b, "tokenizer.ggml.model", model);
    gguf_build_strs(&m->b, "tokenizer.ggml.tokens", m->tokens, m->n);
    gguf_build_words(&m->b, "tokenizer.ggml.token_type", GGUF_I32, m->types, m->n);
    if (strcmp(model, "llama") == 0)
        gguf_build_words(&m->b, "tokenizer.ggml.scores", GGUF_F32, m->scores, m->n);
    struct gguf *g = gguf_build_open(&m->b, e);
    if (!g)
        return NULL;
    struct tokenizer *t = NULL;
    if (tokenizer_new(&t, g, e))
        t = NULL;
    gguf_close(g);
    gguf_build_release(&m->b);
    return t;
}

static void expect_encoding(const struct tokenizer *t, const char *text, unsigned flags,
                            const char *ids)
{
    struct token_list got = {0};
    struct token_list want = {0};
    struct err e = {0};
    struct tok_span span = {str_of(text), true};
    if (tokenizer_encode(t, &span, 1, flags, &got, &e))
        fail_msg("%s", e.msg);
    unpack(ids, &want);
    expect_ids(text, &got, &want);
    token_list_release(&got);
    token_list_release(&want);
}

/* a b c are tokens, and abc, which no merge makes. Byte d has none. */
static struct tokenizer *made_bpe(const char *pre)
{
    struct vocab_made m = {0};
    struct err e = {0};
    static const char *const tokens[] = {"a", "b", "c", "abc", "ab", "<|end|>"};
    for (size_t i = 0; i < ARRAY_LEN(tokens); i++)
        made_add(&m, str_of(tokens[i]), i == 5 ? CONTROL : NORMAL, 0);
    made_add(&m, STR("a"), NORMAL, 0); /* 6: as 0 */
    made_add(&m, STR(""), NORMAL, 0);
    gguf_build_str(&m.b, "tokenizer.ggml.pre", pre);
    gguf_build_strs(
        &m.b, "tokenizer.ggml.merges",
        (struct str[]){STR("a b"), STR("ab d"), STR("nothing"), STR(""), STR("<|end| >")}, 5);
    gguf_build_u32(&m.b, "tokenizer.ggml.bos_token_id", 5);
    gguf_build_u32(&m.b, "tokenizer.ggml.eos_token_id", 3);
    struct tokenizer *t = made_open(&m, "gpt2", &e);
    if (!t)
        fail_msg("%s", e.msg);
    return t;
}

static void test_bpe_made(void **state)
{
    struct tokenizer *t = made_bpe("gpt-2");
    expect_encoding(t, "ab", TOK_ADD_SPECIAL, "4");
    expect_encoding(t, "dadbd", 0, "4"); /* as if d were not there */
    expect_encoding(t, "ddd", 0, "");
    expect_encoding(t, "a<|end|>b", 0, "0 5 1");
    assert_true(tokenizer_is_special(t, 3)); /* EOS is control, whatever its type */
    assert_true(tokenizer_is_eog(t, 3));
    assert_true(tokenizer_is_eog(t, 5)); /* by its name */
    assert_false(tokenizer_is_eog(t, 0));
    assert_int_equal(tokenizer_find(t, STR("a")), 0);
    assert_int_equal(tokenizer_find(t, STR("")), -1);
    assert_int_equal(tokenizer_find(t, STR("zz")), -1);
    assert_true(str_eqs(tokenizer_piece(t, 6, false), "a"));
    assert_true(str_eqs(tokenizer_piece(t, 7, true), ""));
    assert_true(str_eqs(tokenizer_piece(t, 5, false), ""));
    assert_true(str_eqs(tokenizer_piece(t, 5, true), "<|end|>"));
    assert_true(str_eqs(tokenizer_piece(t, -1, true), ""));
    assert_true(str_eqs(tokenizer_vocab(t, INT32_MAX), ""));
    assert_false(tokenizer_is_eog(t, INT32_MIN));
    assert_false(tokenizer_is_special(t, 8));
    tokenizer_free(t);

    t = made_bpe("no-such-family"); /* a warning, and as gpt-2 */
    expect_encoding(t, "abab", TOK_ADD_SPECIAL, "4 4");
    tokenizer_free(t);

    t = made_bpe("llama-bpe"); /* BOS unless the file says no; EOS "abc" is not text any more */
    expect_encoding(t, "ab", TOK_ADD_SPECIAL, "5 4");
    expect_encoding(t, "", TOK_ADD_SPECIAL, "5");
    tokenizer_free(t);
}

static void test_whole_words(void **state)
{
    static const struct {
        const char *pre, *ids;
    } cases[] = {{"llama-bpe", "3"}, {"tekken", "3"}, {"dbrx", "0 1 2"}, {"qwen2", "0 1 2"}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct vocab_made m = {0};
        struct err e = {0};
        for (int k = 0; k < 4; k++)
            made_add(&m, (struct str[]){STR("a"), STR("b"), STR("c"), STR("abc")}[k], NORMAL, 0);
        gguf_build_str(&m.b, "tokenizer.ggml.pre", cases[i].pre);
        gguf_build_strs(&m.b, "tokenizer.ggml.merges", NULL, 0);
        struct tokenizer *t = made_open(&m, "gpt2", &e);
        assert_non_null(t);
        expect_encoding(t, "abc", 0, cases[i].ids);
        expect_encoding(t, "abca", 0, "0 1 2 0");
        tokenizer_free(t);
    }
}

static void test_spm_made(void **state)
{
    struct vocab_made m = {0};
    struct err e = {0};
    made_add(&m, STR("<unk>"), UNKNOWN, 0);
    made_add(&m, STR("<s>"), CONTROL, 0);
    made_add(&m, STR("</s>"), CONTROL, 0);
    made_add(&m, STR("<0x0A>"), BYTE, 0);
    made_add(&m, STR("a"), NORMAL, -1);
    made_add(&m, STR("aa"), NORMAL, -2);
    made_add(&m, STR("aaa"), UNUSED, 5);
    made_add(&m,
             STR("\xe2\x96\x81"
                 "a"),
             NORMAL, -3);
    made_add(&m, STR("\xe2\x96\x81"), NORMAL, -4);
    made_add(&m, STR("\xff\xfe"), NORMAL, -5);
    gguf_build_bool(&m.b, "tokenizer.ggml.add_eos_token", true);
    struct tokenizer *t = made_open(&m, "llama", &e);
    if (!t)
        fail_msg("%s", e.msg);
    expect_encoding(t, "", TOK_ADD_SPECIAL, "1 2");
    expect_encoding(t, "aaa", TOK_ADD_SPECIAL, "1 8 5 4 2");
    expect_encoding(t, "a", 0, "7");
    expect_encoding(t, "a\nxyz\na", 0, "7 3 0 3 4");
    expect_encoding(t, "</s>a<unk>", 0, "2 7 0");
    expect_encoding(t, "<0x0A>", 0, "8 0");

    struct buf text = {0};
    tokenizer_decode(t, (int32_t[]){1, 7, 3, 7, 9, 0, 2}, 7, false, &text);
    assert_string_equal(buf_str(&text), "a\n a\xef\xbf\xbd\xef\xbf\xbd");
    buf_clear(&text);
    tokenizer_decode(t, (int32_t[]){1, 7, 3, 0, 2}, 5, true, &text);
    assert_string_equal(buf_str(&text), "<s> a\n<unk></s>");
    buf_clear(&text);
    struct tok_stream s = {.in_text = true};
    tok_stream_add(&s, t, 7, false, &text);
    assert_string_equal(buf_str(&text), " a");
    buf_release(&text);
    tokenizer_free(t);
}

/* ---- hostile files ------------------------------------------------------------------------- */

enum wrong {
    NO_MODEL,
    OTHER_MODEL,
    NO_TOKENS,
    EMPTY_TOKENS,
    TOKENS_OF_NUMBERS,
    NO_SCORES,
    SHORT_SCORES,
    LONG_SCORES,
    NAN_SCORE,
    SHORT_TYPES,
    BOS_OUT_OF_RANGE,
    EOT_OUT_OF_RANGE,
    EOS_OF_TEXT,
    BOS_WANTED,
    NO_MERGES,
    MERGES_OF_NUMBERS,
    N_WRONGS
};

static void build_wrong(struct gguf_build *b, enum wrong w)
{
    static const struct str tokens[] = {STR("<unk>"), STR("a"), STR("b")};
    const float scores[] = {0, w == NAN_SCORE ? NAN : -1, -2, -3};
    const int32_t types[] = {2, 1, 99};
    bool bpe = w >= BOS_WANTED;
    if (w != NO_MODEL)
        gguf_build_str(b, "tokenizer.ggml.model", w == OTHER_MODEL ? "t5" : bpe ? "gpt2" : "llama");
    if (w == TOKENS_OF_NUMBERS)
        gguf_build_words(b, "tokenizer.ggml.tokens", GGUF_I32, types, 3);
    else if (w != NO_TOKENS)
        gguf_build_strs(b, "tokenizer.ggml.tokens", tokens, w == EMPTY_TOKENS ? 0 : 3);
    if (w != NO_SCORES)
        gguf_build_words(b, "tokenizer.ggml.scores", GGUF_F32, scores,
                         w == SHORT_SCORES  ? 2
                         : w == LONG_SCORES ? 4
                                            : 3);
    gguf_build_words(b, "tokenizer.ggml.token_type", GGUF_I32, types, w == SHORT_TYPES ? 2 : 3);
    if (w == BOS_OUT_OF_RANGE)
        gguf_build_u32(b, "tokenizer.ggml.bos_token_id", 3);
    if (w == EOT_OUT_OF_RANGE)
        gguf_build_u32(b, "tokenizer.ggml.eot_token_id", 0x80000000);
    if (w == EOS_OF_TEXT)
        gguf_build_str(b, "tokenizer.ggml.eos_token_id", "2");
    if (w == BOS_WANTED)
        gguf_build_bool(b, "tokenizer.ggml.add_bos_token", true);
    if (w == MERGES_OF_NUMBERS)
        gguf_build_words(b, "tokenizer.ggml.merges", GGUF_I32, types, 3);
    else if (bpe && w != NO_MERGES)
        gguf_build_strs(b, "tokenizer.ggml.merges", tokens, 3);
}

static void test_hostile(void **state)
{
    static const struct {
        int code;
        const char *names;
    } want[N_WRONGS] = {
        [NO_MODEL] = {ERR_NOTFOUND, "tokenizer.ggml.model"},
        [OTHER_MODEL] = {ERR_UNSUPPORTED, "t5"},
        [NO_TOKENS] = {ERR_NOTFOUND, "tokenizer.ggml.tokens"},
        [EMPTY_TOKENS] = {ERR_FORMAT, "tokenizer.ggml.tokens"},
        [TOKENS_OF_NUMBERS] = {ERR_FORMAT, "tokenizer.ggml.tokens"},
        [NO_SCORES] = {ERR_NOTFOUND, "tokenizer.ggml.scores"},
        [SHORT_SCORES] = {ERR_FORMAT, "tokenizer.ggml.scores"},
        [LONG_SCORES] = {ERR_FORMAT, "tokenizer.ggml.scores"},
        [NAN_SCORE] = {ERR_FORMAT, "tokenizer.ggml.scores[1]"},
        [SHORT_TYPES] = {ERR_FORMAT, "tokenizer.ggml.token_type"},
        [BOS_OUT_OF_RANGE] = {ERR_FORMAT, "tokenizer.ggml.bos_token_id"},
        [EOT_OUT_OF_RANGE] = {ERR_FORMAT, "tokenizer.ggml.eot_token_id"},
        [EOS_OF_TEXT] = {ERR_FORMAT, "tokenizer.ggml.eos_token_id"},
        [BOS_WANTED] = {ERR_FORMAT, "tokenizer.ggml.bos_token_id"},
        [NO_MERGES] = {ERR_NOTFOUND, "tokenizer.ggml.merges"},
        [MERGES_OF_NUMBERS] = {ERR_FORMAT, "tokenizer.ggml.merges"},
    };
    for (int w = 0; w < N_WRONGS; w++) {
        struct gguf_build b = {0};
        struct err e = {0};
        struct tokenizer *t = NULL;
        build_wrong(&b, (enum wrong)w);
        struct gguf *g = gguf_build_open(&b, &e);
        if (!g)
            fail_msg("%d: %s", w, e.msg);
        int rc = tokenizer_new(&t, g, &e);
        if (rc != want[w].code || !strstr(e.msg, want[w].names))
            fail_msg("%d: answers %d, \"%s\"", w, rc, e.msg);
        assert_null(t);
        gguf_close(g);
        gguf_build_release(&b);
    }
}

/* Every allocation that depends on input may fail: an error, and nothing appended. */
static void test_out_of_memory(void **state)
{
    static const char *const paths[] = {VECTORS "/tokenizer/spm-phi.gguf",
                                        VECTORS "/tokenizer/bpe.gguf"};
    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        struct gguf *g = NULL;
        struct err e = {0};
        struct tokenizer *t = NULL;
        if (gguf_open(&g, paths[i], &e))
            fail_msg("%s", e.msg);
        int n = 0;
        int rc;
        do {
            fault_set(FAULT_ALLOC, ++n);
            rc = tokenizer_new(&t, g, &e);
            fault_set(FAULT_ALLOC, 0);
            assert_true(rc == 0 || rc == ERR_NOMEM);
        } while (rc);
        assert_true(n > 5);
        gguf_close(g);

        struct token_list got = {0};
        struct tok_span span = TRUSTED("Hello <s> world");
        n = 0;
        do {
            fault_set(FAULT_ALLOC, ++n);
            rc = tokenizer_encode(t, &span, 1, TOK_ADD_SPECIAL, &got, &e);
            fault_set(FAULT_ALLOC, 0);
            assert_true(rc == 0 || (rc == ERR_NOMEM && !got.n));
        } while (rc);
        assert_true(n > 1 && got.n);
        token_list_release(&got);
        tokenizer_free(t);
    }
}

/* ---- streams and long texts ----------------------------------------------------------------- */

static void test_stream_holds_cut_characters(void **state)
{
    struct tokenizer *t = open_bpe("gpt-2");
    static const struct {
        struct str bytes;
        const char *steps; /* what has come out after each byte, '|' between, and at the end */
    } cases[] = {
        {STR("a\xc3\xa9"
             "b"),
         "a|a|aé|aéb|aéb"},
        {STR("\xf0\x9f\x98\x80"), "|||😀|😀"},
        {STR("\xf0\x9f\x98"), "|||\xef\xbf\xbd"},
        {STR("\xe2\x82"
             "A"),
         "||\xef\xbf\xbd"
         "A|\xef\xbf\xbd"
         "A"},
        {STR("\xff"
             "A"),
         "\xef\xbf\xbd|\xef\xbf\xbd"
         "A|\xef\xbf\xbd"
         "A"},
        {STR("\xe0\x80"), "|\xef\xbf\xbd\xef\xbf\xbd|\xef\xbf\xbd\xef\xbf\xbd"},
        {STR("\xed\xa0"), "|\xef\xbf\xbd\xef\xbf\xbd|\xef\xbf\xbd\xef\xbf\xbd"},
        {STR("\xc3\xc3\xa9"), "|\xef\xbf\xbd|\xef\xbf\xbd"
                              "é|\xef\xbf\xbd"
                              "é"},
    };
    int32_t of_byte[256];
    for (int32_t id = 0; id < tokenizer_n_vocab(t); id++) {
        struct str piece = tokenizer_piece(t, id, false);
        if (piece.n == 1)
            of_byte[(unsigned char)piece.p[0]] = id;
    }
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct tok_stream s = {0};
        struct buf out = {0};
        struct buf steps = {0};
        for (size_t k = 0; k < cases[i].bytes.n; k++) {
            tok_stream_add(&s, t, of_byte[(unsigned char)cases[i].bytes.p[k]], false, &out);
            buf_addf(&steps, "%s|", buf_str(&out));
        }
        tok_stream_end(&s, &out);
        buf_adds(&steps, buf_str(&out));
        assert_string_equal(buf_str(&steps), cases[i].steps);
        buf_release(&out);
        buf_release(&steps);
    }
    tokenizer_free(t);
}

/* A megabyte of the same: comes back as it was. Were any step quadratic, this would take hours. */
static void check_long(const struct tokenizer *t, const char *unit)
{
    struct buf text = {0};
    struct buf back = {0};
    struct token_list ids = {0};
    while (text.len < 1 << 20)
        buf_adds(&text, unit);
    buf_adds(&text, "x");
    struct tok_span span = {{text.data, text.len}, true};
    encode(t, &span, 1, &ids);
    tokenizer_decode(t, ids.ids, ids.n, true, &back);
    assert_int_equal(back.len, text.len);
    assert_memory_equal(back.data, text.data, text.len);
    buf_release(&text);
    buf_release(&back);
    token_list_release(&ids);
}

static void test_long_runs(void **state)
{
    static const char *const units[] = {"a", " ", "!", "\n", "7", "A", "中", "<|", " \t"};
    static const char *const families[] = {"gpt-2", "llama-bpe", "gpt-4o", "deepseek-v3",
                                           "deepseek-llm"};
    struct tokenizer *t = open_tokenizer(VECTORS "/tokenizer/spm-llama.gguf");
    for (size_t i = 0; i < ARRAY_LEN(units); i++)
        check_long(t, units[i]);
    tokenizer_free(t);
    for (size_t f = 0; f < ARRAY_LEN(families); f++) {
        t = open_bpe(families[f]);
        for (size_t i = f % 3; i < ARRAY_LEN(units); i += 3)
            check_long(t, units[i]);
        tokenizer_free(t);
    }
    t = open_bpe("qwen2"); /* marks in the wrong order, to be sorted */
    struct buf text = {0};
    struct token_list ids = {0};
    while (text.len < 1 << 20)
        buf_adds(&text, "\u0301\u0323");
    struct tok_span span = {{text.data, text.len}, false};
    encode(t, &span, 1, &ids);
    assert_true(ids.n > 0);
    buf_release(&text);
    token_list_release(&ids);
    tokenizer_free(t);
}

/* ---- threads -------------------------------------------------------------------------------- */

struct shared {
    const struct tokenizer *t;
    struct tok_span span;
    struct token_list got[4];
};

static void encode_often(void *arg, int ith, int nth)
{
    struct shared *s = arg;
    for (int round = 0; round < 20; round++) {
        s->got[ith].n = 0;
        encode(s->t, &s->span, 1, &s->got[ith]);
    }
}

static void test_threads_share_a_tokenizer(void **state)
{
    struct tokenizer *tokenizers[] = {open_bpe("qwen2"),
                                      open_tokenizer(VECTORS "/tokenizer/spm-llama.gguf")};
    struct pool *pool = NULL;
    assert_int_equal(pool_new(&pool, 4, NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(tokenizers); i++) {
        struct shared s = {tokenizers[i],
                           TRUSTED("<|im_start|>e\u0301 1234 don't </s> 日本\n\n x")};
        pool_run(pool, encode_often, &s);
        for (int k = 0; k < 4; k++)
            expect_ids("on each thread the same", &s.got[k], &s.got[0]);
        for (int k = 0; k < 4; k++)
            token_list_release(&s.got[k]);
        tokenizer_free(tokenizers[i]);
    }
    pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_special_only_in_trusted_spans),
        cmocka_unit_test(test_blank_tokens_are_text),
        cmocka_unit_test(test_invalid_utf8),
        cmocka_unit_test(test_bpe_made),
        cmocka_unit_test(test_whole_words),
        cmocka_unit_test(test_spm_made),
        cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_stream_holds_cut_characters),
        cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_threads_share_a_tokenizer),
    };
    return cmocka_run_group_tests_name("tokenizer_edges", tests, NULL, NULL);
}
