#include "unit.h"

#include <string.h>

#include "base/buf.h"
#include "base/yaml_tree.h"

static json_t *parse(const char *text, struct err *e)
{
    return yaml_tree_parse(text, strlen(text), "t.yaml", e);
}

static void test_values(void **state)
{
    static const struct {
        const char *yaml, *json;
    } cases[] = {
        {"", "{}"},
        {"a: 1\nb: [x, \"2\", 2.5, ~, true, no]",
         "{\"a\":1,\"b\":[\"x\",\"2\",2.5,null,true,\"no\"]}"},
        {"a:\n  - b: c\n    d: ''\n", "{\"a\":[{\"b\":\"c\",\"d\":\"\"}]}"},
        {"a: &x [1]\nb: *x", "{\"a\":[1],\"b\":[1]}"},
        {"a: 9223372036854775808", "{\"a\":9.2233720368547758e18}"},
        {"a: |\n  two\n  lines\n", "{\"a\":\"two\\nlines\\n\"}"},
        {"a: .inf\nb: 0x10", "{\"a\":\".inf\",\"b\":\"0x10\"}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        json_t *v = parse(cases[i].yaml, &e);
        assert_string_equal(e.msg, "");
        json_t *want = json_loads(cases[i].json, 0, NULL);
        assert_non_null(want);
        assert_true(json_equal(v, want));
        json_decref(v);
        json_decref(want);
    }
}

static void test_refusals(void **state)
{
    static const struct {
        const char *yaml, *says;
    } cases[] = {
        {"a: 1\na: 2", "t.yaml:2:1: this key is there twice"},
        {"[a]: 1", "t.yaml:1:1: a key must be plain text"},
        {"a: [1", "t.yaml:2:1:"},
        {"a: 1\n---\nb: 2", "something after the first document"},
        {"a: \"\\xff", "t.yaml:"},
        {"a: &x [*x]", "t.yaml:1:"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        assert_null(parse(cases[i].yaml, &e));
        assert_int_equal(e.code, ERR_INVALID);
        if (!strstr(e.msg, cases[i].says))
            fail_msg("%s: %s", cases[i].yaml, e.msg);
    }
    struct err e = {0};
    assert_null(yaml_tree_read("/nowhere/t.yaml", &e));
    assert_int_equal(e.code, ERR_IO);
}

/* A few lines that unfold to billions of values. */
static void test_unfolding_is_limited(void **state)
{
    struct buf b = {0};
    buf_adds(&b, "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n");
    for (int i = 1; i < 12; i++) {
        buf_addf(&b, "a%d: &a%d [", i, i);
        for (int k = 0; k < 9; k++)
            buf_addf(&b, "%s*a%d", k ? ", " : "", i - 1);
        buf_adds(&b, "]\n");
    }
    struct err e = {0};
    assert_null(parse(buf_str(&b), &e));
    assert_non_null(strstr(e.msg, "too many values"));
    buf_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_unfolding_is_limited),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
