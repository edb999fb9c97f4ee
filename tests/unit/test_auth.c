/* Who may do what: keys, roles, failures by address, patterns, pages of other origins. */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "gateway/auth.h"
#include "gateway/origin.h"

static struct key make_key(int64_t id, enum role role, const char *text)
{
    struct key k = {.id = id, .role = role, .created = 1};
    k.name = xstrdup("k");
    k.tenant = xstrdup("t");
    k.models = xstrdup("");
    k.tiers = xstrdup("");
    k.adapters = xstrdup("");
    key_digest(text, strlen(text), k.digest);
    return k;
}

static int ask(struct auth *a, enum role need, const char *text, int64_t now_s)
{
    struct auth_key *k = NULL;
    struct err e = {0};
    int retry_s;
    struct str secret = {text, text ? strlen(text) : 0};
    int status = auth_check(a, need, secret, "192.0.2.9", now_s, &k, &retry_s, &e);
    assert_true((status == 0) == (e.code == 0));
    assert_true((status == 429) == (retry_s > 0));
    if (text && *text)
        assert_null(strstr(e.msg, text));
    auth_key_unref(k);
    return status;
}

static void test_digest(void **state)
{
    /* FIPS 180-2, appendix B.1 */
    static const unsigned char want[] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea,
                                         0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
                                         0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c,
                                         0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad};
    unsigned char got[KEY_DIGEST_BYTES];
    key_digest("abc", 3, got);
    assert_memory_equal(got, want, sizeof want);
}

static void test_roles(void **state)
{
    static const char *const texts[] = {"tk-admin", "tk-metrics", "tk-user"};
    /* by the role of the key, then by what the route asks for: admin, metrics, user, public */
    static const int want[3][4] = {{0, 0, 0, 0}, {403, 0, 403, 0}, {403, 403, 0, 0}};
    struct auth *a = auth_new();
    for (enum role need = ROLE_ADMIN; need <= ROLE_PUBLIC; need++)
        assert_int_equal(ask(a, need, NULL, 100), 0); /* no key was ever made */
    struct key keys[3];
    for (int i = 0; i < 3; i++)
        keys[i] = make_key(i + 1, (enum role)i, texts[i]);
    struct key_list l = {keys, 3};
    auth_set_keys(a, &l);
    assert_true(auth_closed(a));
    for (int has = 0; has < 3; has++)
        for (enum role need = ROLE_ADMIN; need <= ROLE_PUBLIC; need++)
            assert_int_equal(ask(a, need, texts[has], 100), want[has][need]);
    for (enum role need = ROLE_ADMIN; need <= ROLE_USER; need++) {
        assert_int_equal(ask(a, need, NULL, 100), 401);
        assert_int_equal(ask(a, need, "tk-nobody", 100), 401);
        assert_int_equal(ask(a, need, "", 100), 401);
    }
    assert_int_equal(ask(a, ROLE_PUBLIC, "tk-nobody", 100), 0);
    auth_free(a);
    for (int i = 0; i < 3; i++)
        key_release(&keys[i]);
}

static void test_time(void **state)
{
    struct key k = make_key(1, ROLE_USER, "tk-new");
    struct key_list l = {&k, 1};
    struct auth *a = auth_new();
    key_digest("tk-old", 6, k.old_digest);
    k.old_until = 200;
    k.expires = 300;
    auth_set_keys(a, &l);
    assert_int_equal(ask(a, ROLE_USER, "tk-old", 199), 0);
    assert_int_equal(ask(a, ROLE_USER, "tk-old", 200), 401);
    assert_int_equal(ask(a, ROLE_USER, "tk-new", 299), 0);
    assert_int_equal(ask(a, ROLE_USER, "tk-new", 300), 401);
    k.expires = 0;
    k.revoked = 1;
    auth_set_keys(a, &l);
    assert_int_equal(ask(a, ROLE_USER, "tk-new", 1), 401);
    assert_true(auth_closed(a)); /* although no key is left that opens it */
    auth_free(a);
    key_release(&k);
}

static void test_reference_outlives_snapshot(void **state)
{
    struct key k = make_key(7, ROLE_USER, "tk-a");
    struct key_list l = {&k, 1}, none = {0};
    struct auth *a = auth_new();
    struct auth_key *held = NULL;
    int retry_s;
    auth_set_keys(a, &l);
    assert_int_equal(auth_check(a, ROLE_USER, STR("tk-a"), "::1", 5, &held, &retry_s, NULL), 0);
    auth_set_keys(a, &none);
    assert_int_equal(held->key.id, 7);
    assert_string_equal(held->key.tenant, "t");
    auth_key_unref(held);
    auth_free(a);
    key_release(&k);
}

static void test_failures(void **state)
{
    struct key k = make_key(1, ROLE_USER, "tk-a");
    struct key_list l = {&k, 1};
    struct auth *a = auth_new();
    auth_set_keys(a, &l);
    for (int i = 0; i < AUTH_MAX_FAILURES; i++)
        assert_int_equal(ask(a, ROLE_USER, i % 2 ? "tk-x" : NULL, 1000), 401);
    assert_int_equal(ask(a, ROLE_USER, "tk-x", 1000), 429);
    assert_int_equal(ask(a, ROLE_USER, "tk-a", 1000), 0); /* a good key is never kept out */
    assert_int_equal(ask(a, ROLE_USER, "tk-x", 1059), 429);
    assert_int_equal(ask(a, ROLE_USER, "tk-x", 1060), 401);
    struct auth_key *none;
    int retry_s;
    assert_int_equal(
        auth_check(a, ROLE_USER, STR("tk-x"), "192.0.2.10", 1059, &none, &retry_s, NULL), 401);
    assert_int_equal(auth_stats(a).throttled, 2);
    auth_free(a);
    key_release(&k);
}

/* Many keys: each opens as itself, and one bit more opens nothing. */
static void test_many(void **state)
{
    enum { N = 2000 };
    struct key *keys = xcalloc(N, sizeof *keys);
    char text[32];
    for (int i = 0; i < N; i++) {
        snprintf(text, sizeof text, "tk-%d", i);
        keys[i] = make_key(i + 1, ROLE_USER, text);
    }
    struct key_list l = {keys, N};
    struct auth *a = auth_new();
    auth_set_keys(a, &l);
    for (int i = 0; i < N; i++) {
        struct auth_key *k = NULL;
        int retry_s;
        size_t n = (size_t)snprintf(text, sizeof text, "tk-%d", i);
        struct str secret = {text, n};
        assert_int_equal(auth_check(a, ROLE_USER, secret, "::1", 1, &k, &retry_s, NULL), 0);
        assert_int_equal(k->key.id, i + 1);
        auth_key_unref(k);
        text[n - 1] ^= 0x40;
        assert_int_not_equal(auth_check(a, ROLE_USER, secret, "::1", 1, &k, &retry_s, NULL), 0);
    }
    auth_free(a);
    key_list_release(&l);
}

static void test_address(void **state)
{
    static const char *const cases[][2] = {
        {"192.0.2.1", "192.0.2.1"},
        {"::ffff:192.0.2.1", "192.0.2.1"},
        {"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"},
        {"::1", "::"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char out[48];
        auth_address(cases[i][0], out);
        assert_string_equal(out, cases[i][1]);
    }
}

static void test_patterns(void **state)
{
    static const struct {
        const char *patterns, *name;
        bool want;
    } cases[] = {
        {"", "x", true},
        {"x", "x", true},
        {"x", "xy", false},
        {"x", "", false},
        {"*", "", true},
        {"phi3*", "phi3:mini", true},
        {"phi3*", "phi", false},
        {"*:mini", "a:mini", true},
        {"a,b,c*", "cd", true},
        {"a,b,c*", "d", false},
        {"a?c", "abc", true},
        {"a?c", "ac", false},
        {"*a*b", "xaxab", true},
        {"*a*b", "xaxa", false},
        {",", "x", false},
        {",x", "x", true},
        {"**", "any", true},
        {"*aab", "aaab", true},
        {"a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaa", false},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        if (key_allows(cases[i].patterns, cases[i].name) != cases[i].want)
            fail_msg("'%s' for %s", cases[i].patterns, cases[i].name);
}

static void test_origins(void **state)
{
    static const struct {
        const char *allowed, *origin;
        bool want;
    } cases[] = {
        {NULL, "https://evil.example", false},
        {"", "null", false},
        {"*", "https://any.example", true},
        {"https://a.example", "https://a.example", true},
        {"https://a.example", "https://A.Example", true},
        {"https://a.example", "http://a.example", false},
        {"https://a.example", "https://a.example.evil.example", false},
        {"https://a.example", "https://a.example:8443", false},
        {"https://b.example,https://a.example", "https://a.example", true},
        {"https://a.example,", "", false},
        {NULL, "http://localhost:3000", true},
        {NULL, "http://127.0.0.1:8080", true},
        {NULL, "http://[::1]:8080", true},
        {NULL, "http://127.evil.example", false},
        {NULL, "http://localhost.evil.example", false},
        {NULL, "http://evil.example#localhost", false},
        {NULL, "http://app.localhost", true},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        if (origin_allowed(cases[i].allowed, str_of(cases[i].origin), true) != cases[i].want)
            fail_msg("%s", cases[i].origin);
    assert_false(origin_allowed(NULL, STR("http://localhost"), false));
}

static void test_hosts(void **state)
{
    static const char *const local[] = {"localhost:11403", "127.0.0.1", "192.0.2.7:80",
                                        "[::1]:80",        "terrace",   "",
                                        "box.local",       "a.internal"};
    static const char *const others[] = {"evil.example", "evil.example:11403",
                                         "127.0.0.1.evil.example", "localhost.evil.example:80",
                                         "1.2.3"};
    for (size_t i = 0; i < ARRAY_LEN(local); i++)
        assert_true(origin_host_is_local(str_of(local[i])));
    for (size_t i = 0; i < ARRAY_LEN(others); i++)
        assert_false(origin_host_is_local(str_of(others[i])));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_digest),   cmocka_unit_test(test_roles),
        cmocka_unit_test(test_time),     cmocka_unit_test(test_reference_outlives_snapshot),
        cmocka_unit_test(test_failures), cmocka_unit_test(test_many),
        cmocka_unit_test(test_address),  cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_origins),  cmocka_unit_test(test_hosts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
