/* The scan against jansson: on whatever the parser takes they agree. */
#include "unit.h"

#include "base/json.h"
#include "base/json_scan.h"
#include "base/mem.h"
#include "base/rng.h"

static const char *const keys[] = {"model", "stream", "messages", "prompt"};

static void test_finds_members(void **state)
{
    static const char text[] =
        " {\"a\": {\"model\": \"no\", \"x\": [1, {\"model\": 2}]}, \"model\" : \"m\\u0031\",\n"
        "\"stream\":true, \"messages\": [ {\"role\":\"system\",\"content\":\"}]\\\"\"}, 2 ]}\t";
    struct str v[4], s;
    assert_true(json_scan(STR(text), keys, v, 4));
    assert_true(str_eqs(v[0], "\"m\\u0031\""));
    assert_true(str_eqs(v[1], "true"));
    assert_null(v[3].p);
    assert_false(json_scan_string(v[0], &s)); /* escapes: somebody else's business */
    assert_true(json_scan_first(v[2], &s));
    assert_true(str_eqs(s, "{\"role\":\"system\",\"content\":\"}]\\\"\"}"));
    assert_true(json_scan_string(STR("\"abc\""), &s));
    assert_true(str_eqs(s, "abc"));
    assert_false(json_scan_string(STR("17"), &s));
    uint64_t n;
    assert_true(json_scan_uint(STR("17"), &n));
    assert_int_equal(n, 17);
    assert_false(json_scan_uint(STR("-1"), &n));
    assert_false(json_scan_uint(STR("1.5"), &n));
}

static void test_refuses(void **state)
{
    static const char *const bad[] = {
        "",
        " ",
        "[]",
        "{",
        "{}x",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":1 \"b\":2}",
        "{a:1}",
        "{\"model\":\"a\",\"model\":\"b\"}",
        "{\"mod\\u0065l\":\"a\"}",
        "{\"a\":[}",
        "{\"a\":[1,]}",
        "{\"a\":{\"b\" 1}}",
        "{\"a\":\"\n\"}",
        "{\"a\":\"\\",
        "{\"a\":[1}}",
        "{\"a\":{,}}",
    };
    struct str v[4];
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        if (json_scan(str_of(bad[i]), keys, v, 4))
            fail_msg("taken: %s", bad[i]);
    struct buf deep = {0};
    buf_adds(&deep, "{\"a\":");
    for (int i = 0; i < 200; i++)
        buf_addc(&deep, '[');
    assert_false(json_scan((struct str){deep.data, deep.len}, keys, v, 4));
    buf_release(&deep);
}

/* Documents of random members, some of them cut or changed in one byte: what jansson takes, the
 * scan takes, with the same value of "model". */
static void test_agrees_with_the_parser(void **state)
{
    static const char *const pieces[] = {
        "\"model\":\"x\"",    "\"model\":7",        "\"a\":[1,-2.5e3,null]", "\"b\":{\"model\":{}}",
        "\"c\":\"\\\\\\\"\"", "\"d\":[[],{},[{}]]", "\"e\" : true",          "\"f\":\"{[,:\"",
    };
    struct rng rng;
    rng_seed(&rng, 11);
    int taken = 0;
    for (int round = 0; round < 20000; round++) {
        struct buf b = {0};
        buf_addc(&b, '{');
        size_t n = rng_below(&rng, 5), first = rng_below(&rng, ARRAY_LEN(pieces));
        for (size_t i = 0; i < n; i++)
            buf_addf(&b, "%s%s", i ? "," : "", pieces[(first + i) % ARRAY_LEN(pieces)]);
        buf_addc(&b, '}');
        if (rng_below(&rng, 2))
            b.data[rng_below(&rng, b.len)] = "{}[]\",:1\\a"[rng_below(&rng, 10)];
        struct err e;
        json_t *tree = jr_parse(b.data, b.len, &e);
        struct str v[4];
        bool fine = json_scan((struct str){b.data, b.len}, keys, v, 4);
        if (json_is_object(tree)) {
            json_t *model = json_object_get(tree, "model");
            bool escaped = strchr(b.data, '\\') != NULL; /* maybe in a key */
            if (!fine && !escaped)
                fail_msg("refused: %s", b.data);
            if (fine) {
                taken++;
                assert_int_equal(v[0].p != NULL, model != NULL);
                if (json_is_string(model))
                    assert_int_equal(v[0].n, json_string_length(model) + 2);
            }
        }
        json_decref(tree);
        buf_release(&b);
    }
    assert_true(taken > 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finds_members),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_agrees_with_the_parser),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
