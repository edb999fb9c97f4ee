#include "unit.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/map.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/rng.h"
#include "base/str.h"

static void test_err(void **state)
{
    struct err e = {0};
    assert_int_equal(err_param(&e, ERR_INVALID, "top_p", "must be %d", 1), ERR_INVALID);
    assert_string_equal(e.param, "top_p");
    assert_int_equal(err_prefix(&e, ERR_IO, "request %d", 7), ERR_INVALID);
    assert_string_equal(e.msg, "request 7: must be 1");
    assert_int_equal(err_set(NULL, ERR_IO, "nobody reads"), ERR_IO);
    assert_string_equal(err_name(ERR_DENIED), "not allowed");
}

static void test_buf(void **state)
{
    struct buf b = {0};
    assert_string_equal(buf_str(&b), "");
    for (int i = 0; i < 1000; i++)
        buf_addf(&b, "%d,", i);
    assert_int_equal(b.len, 3890);
    buf_consume(&b, 2);
    assert_memory_equal(b.data, "1,2,", 4);
    char *p = buf_take(&b);
    assert_int_equal(strlen(p), 3888);
    assert_null(b.data);
    free(p);
}

static void test_utf8(void **state)
{
    static const char *const bad[] = {"\x80",
                                      "\xc0\xaf",
                                      "\xc1\xbf",
                                      "\xe0\x80\xaf",
                                      "\xed\xa0\x80",
                                      "\xf0\x80\x80\xaf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xe2\x82",
                                      "a\xff"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_false(utf8_valid(bad[i], strlen(bad[i])));
    for (uint32_t cp = 0; cp <= 0x10ffff; cp++) {
        if (cp >= 0xd800 && cp < 0xe000)
            continue;
        char tmp[4];
        uint32_t back = ~cp;
        int n = utf8_encode(cp, tmp);
        assert_int_equal(utf8_decode(tmp, (size_t)n, &back), n);
        assert_int_equal(back, cp);
        for (int cut = 1; cut < n; cut++)
            assert_int_equal(utf8_cut(tmp, (size_t)cut), cut);
        assert_int_equal(utf8_cut(tmp, (size_t)n), 0);
    }
}

static void test_numbers(void **state)
{
    int64_t i;
    uint64_t u;
    double d;
    assert_true(str_to_i64(STR("-9223372036854775808"), &i) && i == INT64_MIN);
    assert_false(str_to_i64(STR("9223372036854775808"), &i));
    assert_false(str_to_i64(STR("1x"), &i));
    assert_false(str_to_u64(STR("18446744073709551616"), &u));
    assert_true(str_to_bytes(STR("8GiB"), &u) && u == (uint64_t)8 << 30);
    assert_true(str_to_bytes(STR("1.5 K"), &u) && u == 1536);
    assert_false(str_to_bytes(STR("8 GiBs"), &u));
    assert_false(str_to_bytes(STR("-1"), &u));
    assert_true(str_to_ms(STR("250ms"), &i) && i == 250);
    assert_true(str_to_ms(STR("1.5h"), &i) && i == 5400000);
    assert_false(str_to_ms(STR("5 fortnights"), &i));
    assert_true(str_to_double(STR("1e-3"), &d) && fabs(d - 1e-3) < 1e-12);
    assert_false(str_to_double(STR("1e999"), &d));
    assert_false(str_to_double(STR("nan"), &d));
}

static void test_json_out(void **state)
{
    struct buf b = {0};
    struct jw w;
    jw_init(&w, &b);
    jw_obj(&w);
    jw_kstr(&w, "a\"", "x\n\x01\\ \xff\xe2\x82\xac");
    jw_key(&w, "n");
    jw_arr(&w);
    jw_int(&w, -3);
    jw_num(&w, 0.1);
    jw_num(&w, NAN);
    jw_bool(&w, true);
    jw_arr_end(&w);
    jw_obj_end(&w);
    jw_done(&w);
    assert_string_equal(
        b.data,
        "{\"a\\\"\":\"x\\n\\u0001\\\\ \xef\xbf\xbd\xe2\x82\xac\",\"n\":[-3,0.1,null,true]}");
    struct err e = {0};
    json_t *back = jr_parse(b.data, b.len, &e);
    assert_non_null(back);
    json_decref(back);
    buf_release(&b);
}

/* What was parsed is written as it was; kinds of numbers stay. */
static void test_json_tree(void **state)
{
    static const char text[] =
        "{\"z\":[1,1.0,0.1,-2.5e+300,-9223372036854775808,true,false,null,[],{}],"
        "\"a\":{\"k\\\"\":\"\xc3\xa9\\n\"},\"e\":\"\"}";
    struct buf b = {0};
    struct jw w;
    struct err e = {0};
    json_t *v = jr_parse(text, sizeof text - 1, &e);
    assert_non_null(v);
    jw_init(&w, &b);
    jw_arr(&w);
    jw_tree(&w, v);
    jw_tree(&w, NULL);
    jw_arr_end(&w);
    jw_done(&w);
    assert_int_equal(b.len, sizeof text - 1 + strlen("[,null]"));
    assert_memory_equal(b.data + 1, text, sizeof text - 1);
    json_decref(v);
    buf_release(&b);
}

static void test_json_in(void **state)
{
    static const char *const bad[] = {
        "",
        "{\"a\":1,\"a\":2}",
        "\"\xc0\xaf\"",
        "\"\\ud800\"",
        "\"\\u0000\"",
        "[1]x",
        "[012]",
        "[1e999]",
        "[18446744073709551616]",
        "[NaN]",
        "{'a':1}",
        "[1,]",
        "\"\x01\"",
    };
    struct err e;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        e = (struct err){0};
        assert_null(jr_parse(bad[i], strlen(bad[i]), &e));
        assert_int_equal(e.code, ERR_INVALID);
    }
    struct buf deep = {0};
    for (int i = 0; i < 100000; i++)
        buf_addc(&deep, '[');
    assert_null(jr_parse(deep.data, deep.len, &e));
    assert_non_null(strstr(e.msg, "128"));
    buf_release(&deep);
}

/* A random program of operations against the map and a plain array. */
static void test_map(void **state)
{
    struct map m = {0};
    static char twin[500];
    memset(twin, 0, sizeof twin);
    struct rng r;
    rng_seed(&r, 1);
    static char marks[256];
    for (int step = 0; step < 200000; step++) {
        int k = (int)rng_below(&r, 500);
        char key[16];
        snprintf(key, sizeof key, "k%d", k);
        char *had = twin[k] ? &marks[(unsigned char)twin[k]] : NULL;
        switch (rng_below(&r, 3)) {
        case 0:
            assert_ptr_equal(map_get(&m, str_of(key)), had);
            break;
        case 1:
            twin[k] = (char)(1 + rng_below(&r, 255));
            assert_ptr_equal(map_put(&m, str_of(key), &marks[(unsigned char)twin[k]]), had);
            break;
        default:
            assert_ptr_equal(map_del(&m, str_of(key)), had);
            twin[k] = 0;
        }
    }
    size_t live = 0, seen = 0;
    for (int k = 0; k < 500; k++)
        live += twin[k] != 0;
    for (size_t i = 0; map_next(&m, &i);)
        seen++;
    assert_int_equal(seen, live);
    assert_int_equal(m.n, live);
    map_release(&m);
}

static void test_arena(void **state)
{
    struct arena a = {0};
    char *s = arena_strdup(&a, STR("hello"));
    for (int i = 0; i < 1000; i++)
        memset(arena_alloc(&a, 100), i, 100);
    memset(arena_alloc(&a, 1 << 20), 1, 1 << 20);
    assert_string_equal(s, "hello");
    assert_string_equal(arena_printf(&a, "%d-%s", 5, "x"), "5-x");
    arena_release(&a);
}

static void test_fault(void **state)
{
    fault_set(FAULT_ALLOC, 2);
    void *p = try_alloc(8);
    assert_non_null(p);
    assert_null(try_alloc(8));
    void *q = try_alloc(8);
    assert_non_null(q);
    free(p);
    free(q);
    assert_null(try_calloc(SIZE_MAX / 2, 16));
}

struct sums {
    struct pool *pool;
    atomic_int phase[64];
    atomic_int wrong;
};

static void count_phases(void *arg, int ith, int nth)
{
    struct sums *s = arg;
    for (int i = 0; i < 64; i++) {
        atomic_fetch_add(&s->phase[i], 1);
        pool_barrier(s->pool, ith);
        if (atomic_load(&s->phase[i]) != nth)
            atomic_fetch_add(&s->wrong, 1);
    }
}

static void test_pool(void **state)
{
    for (int n = 1; n <= 5; n++) {
        struct sums s = {0};
        assert_int_equal(pool_new(&s.pool, n, NULL), 0);
        assert_int_equal(pool_threads(s.pool), n);
        for (int run = 0; run < 200; run++) {
            for (int i = 0; i < 64; i++)
                atomic_store(&s.phase[i], 0);
            pool_run(s.pool, count_phases, &s);
        }
        assert_int_equal(s.wrong, 0);
        pool_free(s.pool);
    }
    struct err e = {0};
    struct pool *p;
    assert_int_equal(pool_new(&p, -1, &e), ERR_INVALID);
    assert_string_equal(e.param, "threads");
    assert_true(pool_cpus() >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err),      cmocka_unit_test(test_buf),
        cmocka_unit_test(test_utf8),     cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_json_out), cmocka_unit_test(test_json_tree),
        cmocka_unit_test(test_json_in),  cmocka_unit_test(test_map),
        cmocka_unit_test(test_arena),    cmocka_unit_test(test_fault),
        cmocka_unit_test(test_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
