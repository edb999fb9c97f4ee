#include "unit.h"

#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/yaml_tree.h"

static struct yaml_tree *parse(const char *text, struct err *e)
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
        struct yaml_tree *t = parse(cases[i].yaml, &e);
        assert_string_equal(e.msg, "");
        json_t *want = json_loads(cases[i].json, 0, NULL);
        assert_non_null(want);
        assert_true(json_equal(yaml_tree_root(t), want));
        yaml_tree_free(t);
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
        {"a: 1\n---\nb: 2", "t.yaml:2:1: there is something after the first document"},
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

/* The places, line and column, are counted by hand in the text. */
static void test_locates(void **state)
{
    static const char text[] = "tiers:\n"                       /* 1 */
                               "  - name: a\n"                  /* 2 */
                               "    models: [x, y]\n"           /* 3 */
                               "  - name: b\n"                  /* 4 */
                               "    check:\n"                   /* 5 */
                               "      regex: '('\n"             /* 6 */
                               "aliases: {m: a, 'm.2[1]': b}\n" /* 7 */
                               "base: &base {weight: 1}\n"      /* 8 */
                               "backends: [*base, {x: *base}]"; /* 9 */
    static const struct {
        const char *path, *place;
    } cases[] = {
        {"tiers", "1:1"},
        {"tiers[0]", "2:5"},
        {"tiers[0].models", "3:5"},
        {"tiers[0].models[1]", "3:17"},
        {"tiers[1].check.regex", "6:7"},
        {"tiers[1].check.absent", "5:5"},
        {"tiers[1].check.regex.deeper", "6:7"},
        {"tiers[2].name", "1:1"},
        {"tiers[1", "1:1"},
        {"aliases.m", "7:11"},
        {"aliases.m.2[1]", "7:17"},
        {"backends[0].weight", "8:14"},
        {"backends[1].x.weight", "8:14"},
        {"backends[1].x", "9:20"},
        {"absent", NULL},
        {"tier", NULL},
        {"", NULL},
    };
    struct err e = {0};
    struct yaml_tree *t = parse(text, &e);
    assert_non_null(t);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char want[64];
        snprintf(want, sizeof want, cases[i].place ? "t.yaml:%s: wrong" : "t.yaml: wrong",
                 cases[i].place);
        err_param(&e, ERR_INVALID, cases[i].path, "wrong");
        assert_int_equal(yaml_tree_locate(t, ERR_INVALID, &e), ERR_INVALID);
        assert_string_equal(e.msg, want);
        assert_string_equal(e.param, cases[i].path);
    }
    assert_int_equal(yaml_tree_locate(t, ERR_LIMIT, NULL), ERR_LIMIT);
    yaml_tree_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_unfolding_is_limited),
        cmocka_unit_test(test_locates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
