/* For whom a request runs and until when: from headers, body and peer. */
#include "unit.h"

#include <string.h>

#include "server/terms.h"

static void test_tenant(void **state)
{
    static char long_user[] =
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdefTAIL";
    static const struct {
        const char *peer, *header, *user, *want;
    } cases[] = {
        {"192.0.2.1", NULL, NULL, "peer:192.0.2.1"},
        {"192.0.2.1", NULL, "ann", "user:ann"},
        {"192.0.2.1", "x", NULL, "peer:192.0.2.1"}, /* anybody could send it */
        {"192.0.2.1", "x", "ann", "user:ann"},
        {"127.0.0.1", "x", "ann", "tenant:x"},
        {"127.8.8.8", "x", NULL, "tenant:x"},
        {"::1", "x", NULL, "tenant:x"},
        {"::ffff:127.0.0.1", "x", NULL, "tenant:x"},
        {"::ffff:192.0.2.1", "x", NULL, "peer:::ffff:192.0.2.1"},
        {"127.0.0.1", "", "ann", "user:ann"},
        {"127.0.0.1", NULL, NULL, "peer:127.0.0.1"},
    };
    struct chat_request r = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *h = cases[i].header;
        struct http_header header = {STR("X-Terrace-Tenant"), {h, h ? strlen(h) : 0}};
        struct http_req http = {.peer = cases[i].peer, .headers = &header, .n_headers = h != NULL};
        r.user = cases[i].user;
        assert_string_equal(request_tenant(&http, &r, NULL), cases[i].want);
    }
    struct http_req http = {.peer = "192.0.2.1"};
    r.user = long_user;
    const char *cut = request_tenant(&http, &r, NULL);
    assert_int_equal(strlen(cut), strlen("user:") + 128);
    assert_null(strstr(cut, "TAIL"));
    assert_string_equal(request_tenant(&http, &r, "acme"), "key:acme"); /* whatever else it says */
    chat_request_release(&r);
}

static void test_salt(void **state)
{
    struct chat_request r = {0};
    assert_null(request_salt(&r, NULL));
    assert_string_equal(request_salt(&r, "acme"), "@acme@");
    r.gen.cache_salt = "mine";
    assert_string_equal(request_salt(&r, NULL), "mine");
    assert_string_equal(request_salt(&r, "acme"), "@acme@mine");
    chat_request_release(&r);
}

static void test_deadline(void **state)
{
    static const struct {
        double body_s;
        const char *header;
        int rc;
        int64_t want_ms;
    } cases[] = {
        {0, NULL, 0, 0},
        {1.5, NULL, 0, 9501},
        {0, "0.25", 0, 8251},
        {2, "3", 0, 10001}, /* the sooner one */
        {3, "2", 0, 10001},
        {0, "86400", 0, 86408001},
        {0, "86401", ERR_INVALID, 0},
        {0, "0", ERR_INVALID, 0},
        {0, "-1", ERR_INVALID, 0},
        {0, "nan", ERR_INVALID, 0},
        {0, "10 s", ERR_INVALID, 0},
        {0, "", ERR_INVALID, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *h = cases[i].header;
        struct http_header header = {STR("x-request-timeout"), {h, h ? strlen(h) : 0}};
        struct http_req http = {.peer = "::1", .headers = &header, .n_headers = h != NULL};
        struct chat_request r = {.timeout_s = cases[i].body_s};
        struct err e = {0};
        int64_t ms;
        assert_int_equal(request_deadline(&http, &r, 8000000000, &ms, &e), cases[i].rc);
        if (cases[i].rc)
            assert_string_equal(e.param, "x-request-timeout");
        else
            assert_int_equal(ms, cases[i].want_ms);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tenant),
        cmocka_unit_test(test_salt),
        cmocka_unit_test(test_deadline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
