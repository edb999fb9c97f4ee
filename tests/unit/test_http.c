#define _GNU_SOURCE
#include "http_rig.h"

/* ---- requests that a careless server and its proxy read differently ---- */

#define H     "Host: a\r\n"
#define CLOSE "Connection: close\r\n"
#define POST  "POST /echo HTTP/1.1\r\n" H
#define NEXT  "GET / HTTP/1.1\r\n" H CLOSE "\r\n"
#define CASE(name, statuses, bytes)                                                                \
    {                                                                                              \
        name, statuses, bytes, sizeof bytes - 1                                                    \
    }

/* Each smuggling attempt carries a second request: two statuses mean that it got through. Statuses
 * follow RFC 9110 and RFC 9112; section numbers are those of RFC 9112. Node 20.20's http accepts
 * all that we accept; of what we refuse, it accepts two Hosts, a path in Host, a fragment, two
 * spaces, a request without a version, and gzip under chunked. */
static const struct malformed {
    const char *name, *statuses, *bytes;
    size_t n;
} cases[] = {
    /* 6.3: where the message ends */
    CASE("length and chunked", "400",
         POST "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" NEXT),
    CASE("unknown coding", "501", POST "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" NEXT),
    CASE("gzip, chunked", "501", POST "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" NEXT),
    CASE("chunked twice", "400", POST "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" NEXT),
    CASE("two codings", "400",
         POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" NEXT),
    CASE("space before the colon", "400", POST "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" NEXT),
    CASE("coding on 1.0", "400",
         "POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" NEXT),
    CASE("two lengths", "400", POST "Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc" NEXT),
    CASE("a length twice", "400", POST "Content-Length: 2\r\nContent-Length: 2\r\n\r\nab" NEXT),
    CASE("length list", "400", POST "Content-Length: 2, 2\r\n\r\nab" NEXT),
    CASE("length +2", "400", POST "Content-Length: +2\r\n\r\nab" NEXT),
    CASE("length -2", "400", POST "Content-Length: -2\r\n\r\nab" NEXT),
    CASE("length 0x2", "400", POST "Content-Length: 0x2\r\n\r\nab" NEXT),
    CASE("length 2 2", "400", POST "Content-Length: 2 2\r\n\r\nab" NEXT),
    CASE("no digits", "400", POST "Content-Length:\r\n\r\n" NEXT),
    CASE("length over 64 bits", "400", POST "Content-Length: 18446744073709551618\r\n\r\nab" NEXT),
    /* 7.1: chunks */
    CASE("chunk size 0x2", "400", POST "Transfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n"),
    CASE("chunk size over 64 bits", "400",
         POST "Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\nab\r\n0\r\n\r\n" NEXT),
    CASE("chunk longer than its size", "400",
         POST "Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n" NEXT),
    CASE("bare line feed after a chunk size", "400",
         POST "Transfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n" NEXT),
    CASE("bare line feed after a chunk", "400",
         POST "Transfer-Encoding: chunked\r\n\r\n2\r\nab\n0\r\n\r\n" NEXT),
    CASE("folded trailer", "400",
         POST "Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n c\r\n\r\n" NEXT),
    CASE("trailers ended by CR", "400",
         POST "Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\rX\r\n\r\n" NEXT),
    /* 2.2, 5: lines and headers */
    CASE("bare line feeds", "400", "GET / HTTP/1.1\nHost: a\n\n"),
    CASE("one bare line feed", "400", "GET / HTTP/1.1\r\nHost: a\n\r\n"),
    CASE("NUL in a value", "400", "GET / HTTP/1.1\r\n" H "A: b\0c\r\n\r\n"),
    CASE("CR in a value hides a coding (CVE-2023-30589)", "400",
         POST "A: b\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" NEXT),
    CASE("fold hides a length (CVE-2024-27982)", "400", POST " Content-Length: 2\r\n\r\nab" NEXT),
    CASE("folded value", "400", "GET / HTTP/1.1\r\n" H "A: b\r\n\tc\r\n\r\n"),
    CASE("head ended by CR (CVE-2025-23167)", "400", "GET / HTTP/1.1\r\n" H "\rX" NEXT),
    CASE("line without a colon", "400", "GET / HTTP/1.1\r\n" H "abc\r\n\r\n"),
    CASE("header without a name", "400", "GET / HTTP/1.1\r\n" H ": b\r\n\r\n"),
    CASE("control character in a name", "400", "GET / HTTP/1.1\r\n" H "A\x01: b\r\n\r\n"),
    /* 3.2, 2.3: host, version, target, method */
    CASE("no Host", "400", "GET / HTTP/1.1\r\n\r\n"),
    CASE("two Hosts", "400", "GET / HTTP/1.1\r\n" H "Host: b\r\n\r\n"),
    CASE("Host with a path", "400", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    CASE("HTTP/9.9", "505", "GET / HTTP/9.9\r\n" H "\r\n"),
    CASE("HTTP/1.2", "505", "GET / HTTP/1.2\r\n" H "\r\n"),
    CASE("HTTP/2 preface", "400", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    CASE("no version", "400", "GET /\r\n\r\n"),
    CASE("lower case version", "400", "GET / http/1.1\r\n" H "\r\n"),
    CASE("two spaces", "400", "GET  / HTTP/1.1\r\n" H "\r\n"),
    CASE("tab for a space", "400", "GET\t/ HTTP/1.1\r\n" H "\r\n"),
    CASE("space in the target", "400", "GET /a b HTTP/1.1\r\n" H "\r\n"),
    CASE("fragment", "400", "GET /#a HTTP/1.1\r\n" H "\r\n"),
    CASE("target without a slash", "400", "GET a HTTP/1.1\r\n" H "\r\n"),
    CASE("not ASCII in the target", "400", "GET /\xc3\xa4 HTTP/1.1\r\n" H "\r\n"),
    CASE("lower case method", "400", "get / HTTP/1.1\r\n" H "\r\n"),
    CASE("unknown method", "501", "FROB / HTTP/1.1\r\n" H "\r\n"),
    CASE("CONNECT", "501", "CONNECT a:443 HTTP/1.1\r\n" H "\r\n"),
    CASE("unknown expectation", "417", POST "Expect: tea\r\nContent-Length: 2\r\n\r\nab"),
    CASE("TLS to a plain port", "400", "\x16\x03\x01\x02\x00\x01"),
    /* and what must pass */
    CASE("pipelined after a body", "200,200", POST "Content-Length: 2\r\n\r\nab" NEXT),
    CASE("pipelined after chunks", "200,200",
         POST
         "Transfer-Encoding: Chunked\r\n\r\n1;x=\"y\"\r\na\r\n01\r\nb\r\n0\r\nT: t\r\n\r\n" NEXT),
    CASE("one empty line first", "200", "\r\n" NEXT),
    CASE("absolute target", "200", "GET http://b/ HTTP/1.1\r\n" H CLOSE "\r\n"),
    CASE("1.0 without Host", "200", "GET / HTTP/1.0\r\n\r\n"),
    CASE("names in any case, high bytes in a value", "200",
         "GET / HTTP/1.1\r\nhOST:a\r\ncONNECTION:\t close \r\nA: \xff\r\n\r\n"),
    CASE("upgrade not taken up", "200",
         "GET / HTTP/1.1\r\n" H "Connection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n"),
};

static void test_malformed(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    rig_open(&r, &o);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const struct malformed *m = &cases[i];
        for (size_t cut = 0; cut < m->n; cut += 1 + m->n / 7) { /* whole, and in two parts */
            struct buf in = {0};
            char got[64];
            int fd = rig_connect(&r);
            rig_send(fd, m->bytes, cut);
            rig_send(fd, m->bytes + cut, m->n - cut);
            rig_read_all(fd, &in);
            close(fd);
            rig_statuses(&in, got, sizeof got);
            if (strcmp(got, m->statuses) != 0)
                fail_msg("%s, cut at %zu: %s instead of %s", m->name, cut, got, m->statuses);
            buf_release(&in);
        }
    }
    rig_close(&r);
}

static void test_head_limits(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    o.max_head_bytes = 2000;
    o.max_headers = 10;
    rig_open(&r, &o);
    for (int headers = 8; headers <= 9; headers++) { /* with Host and Connection: 10, 11 */
        struct buf q = {0};
        char got[64];
        buf_adds(&q, "GET / HTTP/1.1\r\n" H CLOSE);
        for (int i = 0; i < headers; i++)
            buf_adds(&q, "A: b\r\n");
        buf_adds(&q, "\r\n");
        struct buf in = rig_exchange(&r, q.data, q.len);
        rig_statuses(&in, got, sizeof got);
        assert_string_equal(got, headers == 8 ? "200" : "431");
        buf_release(&in);
        buf_release(&q);
    }
    for (size_t size = 1999; size <= 2001; size++) { /* bytes of the whole head */
        static const char before[] = "GET / HTTP/1.1\r\n" H CLOSE "A: ";
        struct buf q = {0};
        char got[64];
        buf_adds(&q, before);
        while (q.len < size - 4)
            buf_addc(&q, 'x');
        buf_adds(&q, "\r\n\r\n");
        assert_int_equal(q.len, size);
        struct buf in = rig_exchange(&r, q.data, q.len);
        rig_statuses(&in, got, sizeof got);
        assert_string_equal(got, size <= 2000 ? "200" : "431");
        buf_release(&in);
        buf_release(&q);
    }
    rig_close(&r);
}

/* ---- what a response looks like ---- */

/* The response with its Date taken out. */
static void assert_exchange(const struct rig *r, const char *request, const char *expected)
{
    struct buf in = rig_exchange(r, request, strlen(request));
    char *date = strstr(in.data, "Date: ");
    if (date) {
        char *end = strstr(date, "\r\n");
        assert_int_equal(end - date, strlen("Date: Sun, 06 Nov 1994 08:49:37 GMT"));
        memmove(date, end + 2, strlen(end + 2) + 1);
    }
    assert_string_equal(in.data, expected);
    buf_release(&in);
}

static void test_responses(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    o.name = "t";
    rig_open(&r, &o);
    assert_exchange(&r, "POST /echo HTTP/1.1\r\n" H CLOSE "Content-Length: 2\r\n\r\nhi",
                    "HTTP/1.1 200 OK\r\nServer: t\r\nContent-Type: text/plain\r\n"
                    "X-Method: a  Injected: b\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
    assert_exchange(&r, "GET / HTTP/1.0\r\n\r\n",
                    "HTTP/1.1 200 OK\r\nServer: t\r\nContent-Type: text/plain\r\n"
                    "Content-Length: 5\r\nConnection: close\r\n\r\nGET /");
    assert_exchange(&r, "HEAD / HTTP/1.1\r\n" H CLOSE "\r\n",
                    "HTTP/1.1 200 OK\r\nServer: t\r\nContent-Type: text/plain\r\n"
                    "Content-Length: 6\r\nConnection: close\r\n\r\n");
    assert_exchange(&r, "OPTIONS * HTTP/1.1\r\n" H CLOSE "\r\n",
                    "HTTP/1.1 404 Not Found\r\nServer: t\r\nContent-Type: text/plain\r\n"
                    "Content-Length: 9\r\nConnection: close\r\n\r\nOPTIONS *");
    assert_exchange(&r, "DELETE /nothing HTTP/1.1\r\n" H CLOSE "\r\n",
                    "HTTP/1.1 204 No Content\r\nServer: t\r\nConnection: close\r\n\r\n");
    assert_exchange(&r, "GET /chunks HTTP/1.1\r\n" H CLOSE "\r\n",
                    "HTTP/1.1 200 OK\r\nServer: t\r\nContent-Type: application/x-ndjson\r\n"
                    "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
                    "8\r\n{\"a\":1}\n\r\n8\r\n{\"a\":1}\n\r\n8\r\n{\"a\":1}\n\r\n0\r\n\r\n");
    assert_exchange(&r, "GET /chunks HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
                    "HTTP/1.1 200 OK\r\nServer: t\r\nContent-Type: application/x-ndjson\r\n"
                    "Connection: close\r\n\r\n{\"a\":1}\n{\"a\":1}\n{\"a\":1}\n");
    assert_exchange(&r, "HEAD /chunks HTTP/1.1\r\n" H CLOSE "\r\n",
                    "HTTP/1.1 200 OK\r\nServer: t\r\nContent-Type: application/x-ndjson\r\n"
                    "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
    assert_exchange(&r, "GET /events HTTP/1.0\r\n\r\n",
                    "HTTP/1.1 200 OK\r\nServer: t\r\n"
                    "Content-Type: text/event-stream; charset=utf-8\r\n"
                    "Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\n"
                    "Connection: close\r\n\r\ndata: one\ndata: two\n\nevent: stop\ndata: \n\n");
    assert_exchange(&r, "POST /sized HTTP/1.1\r\n" H CLOSE "Content-Length: 1\r\n\r\na",
                    "HTTP/1.1 200 OK\r\nServer: t\r\nContent-Type: text/plain\r\n"
                    "Content-Length: 10\r\nConnection: close\r\n\r\n1234567890");
    /* not the bytes that were announced: the connection ends, so the client can tell */
    assert_exchange(&r, "GET /short HTTP/1.1\r\n" H "\r\n", "");
    assert_exchange(&r, "GET /long HTTP/1.1\r\n" H "\r\n", "");
    assert_exchange(&r, "GET /abort HTTP/1.1\r\n" H "\r\n", "");
    assert_exchange(&r, "POST /deny HTTP/1.1\r\n" H "Content-Length: 9\r\n\r\n",
                    "HTTP/1.1 401 Unauthorized\r\nServer: t\r\nContent-Type: text/plain\r\n"
                    "Content-Length: 2\r\nConnection: close\r\n\r\nno");
    assert_exchange(&r, "GET / HTTP/1.1\r\n\r\n",
                    "HTTP/1.1 400 Bad Request\r\nServer: t\r\nContent-Type: application/json\r\n"
                    "Content-Length: 65\r\nConnection: close\r\n\r\n"
                    "{\"error\":{\"message\":\"The request has no Host header\",\"code\":400}}");
    rig_close(&r);
}

static void test_lookup(void **state)
{
    static const struct http_header headers[] = {
        {{"Content-Type", 12}, {"a/b", 3}}, {{"X-A", 3}, {"1", 1}}, {{"x-a", 3}, {"2", 1}}};
    struct http_req q = {.headers = headers,
                         .n_headers = 3,
                         .query = STR("a=1&b+c=x%2By+z&&flag&e=%zz&n=%00&a=2&%61%62=%c3%a4=%")};
    assert_true(str_eqs(http_header(&q, "content-TYPE"), "a/b"));
    assert_true(str_eqs(http_header(&q, "X-a"), "1"));
    assert_null(http_header(&q, "X").p);
    assert_true(str_eqs(http_query(&q, "a"), "1"));
    assert_true(str_eqs(http_query(&q, "b c"), "x+y z"));
    assert_true(str_eqs(http_query(&q, "flag"), ""));
    assert_null(http_query(&q, "e").p);  /* malformed */
    assert_null(http_query(&q, "n").p);  /* a NUL */
    assert_null(http_query(&q, "ab").p); /* cut */
    assert_null(http_query(&q, "z").p);
    assert_true(str_eqs(http_unescape(&q.arena, STR("%2Fa+%7e"), false), "/a+~"));
    assert_null(http_unescape(&q.arena, STR("a%2"), false).p);
    q.query = STR("");
    assert_null(http_query(&q, "").p);
    arena_release(&q.arena);
}

static void test_keep_alive(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    rig_open(&r, &o);
    struct buf in = {0};
    int fd = rig_connect(&r);
    for (int i = 0; i < 100; i++) {
        buf_clear(&in);
        assert_true(rig_sends(fd, "GET / HTTP/1.1\r\n" H "\r\n"));
        assert_true(rig_read_to(fd, &in, "GET /"));
        assert_null(strstr(in.data, "Connection:"));
    }
    buf_clear(&in);
    assert_true(rig_sends(fd, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
    assert_true(rig_read_to(fd, &in, "GET /"));
    assert_non_null(strstr(in.data, "Connection: keep-alive\r\n"));
    /* a refusal before a body that has come does not lose the connection's order */
    assert_true(rig_sends(fd, "GET /deny HTTP/1.1\r\n" H "\r\n" NEXT));
    buf_clear(&in);
    rig_read_all(fd, &in);
    char got[64];
    rig_statuses(&in, got, sizeof got);
    assert_string_equal(got, "401,200");
    close(fd);
    buf_release(&in);
    rig_wait(&r, &r.n_complete, 103);
    assert_int_equal(rig_count(&r, &r.n_cut), 0);
    assert_int_equal(rig_stats(&r).accepted, 1);
    rig_close(&r);
}

/* 3000 requests in one go, by a client that reads only after it has sent them all. */
static void test_pipelining(void **state)
{
    enum { N = 3000 };
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    rig_open(&r, &o);
    struct buf q = {0};
    for (int i = 0; i < N; i++)
        buf_addf(&q, "POST /echo HTTP/1.1\r\n" H "Content-Length: 4\r\n%s\r\n%04d",
                 i == N - 1 ? CLOSE : "", i);
    struct buf in = rig_exchange(&r, q.data, q.len);
    const char *p = in.data;
    for (int i = 0; i < N; i++) {
        char body[16];
        snprintf(body, sizeof body, "\r\n\r\n%04d", i);
        p = strstr(p, "\r\n\r\n");
        assert_non_null(p);
        assert_memory_equal(p, body, 8);
        p += 8;
    }
    assert_string_equal(p, "");
    buf_release(&in);
    buf_release(&q);
    rig_wait(&r, &r.n_complete, N);
    rig_close(&r);
}

static void test_continue(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    o.max_body_bytes = 100;
    rig_open(&r, &o);
    struct buf in = {0};
    int fd = rig_connect(&r);
    assert_true(rig_sends(fd, POST CLOSE "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"));
    assert_true(rig_read_to(fd, &in, "HTTP/1.1 100 Continue\r\n\r\n"));
    assert_true(rig_sends(fd, "hi"));
    rig_read_all(fd, &in);
    assert_non_null(strstr(in.data, "\r\n\r\nhi"));
    close(fd);
    buf_release(&in);
    /* refused without asking for the body */
    static const char big[] = POST "Expect: 100-continue\r\nContent-Length: 101\r\n\r\n";
    in = rig_exchange(&r, big, sizeof big - 1);
    assert_int_equal(strncmp(in.data, "HTTP/1.1 413 ", 13), 0);
    buf_release(&in);
    rig_close(&r);
}

static void test_big_response(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    rig_open(&r, &o);
    static const char q[] = "GET /big?x=y&n=20%3000000 HTTP/1.1\r\n" H CLOSE "\r\n"; /* %30 is 0 */
    struct buf in = rig_exchange(&r, q, sizeof q - 1);
    const char *body = strstr(in.data, "\r\n\r\n") + 4;
    assert_int_equal(in.data + in.len - body, 20000000);
    buf_release(&in);
    rig_close(&r);
}

/* A body in pieces, each of which stops the reading until the loop has turned. */
static void test_upload(void **state)
{
    enum { PIECE = 1 << 16, N = 200 };
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    o.max_body_bytes = 1000; /* on_head raises it */
    rig_open(&r, &o);
    struct buf in = {0};
    char *piece = xcalloc(1, PIECE);
    for (int chunked = 0; chunked < 2; chunked++) {
        int fd = rig_connect(&r);
        char head[200];
        snprintf(head, sizeof head, "PUT /upload HTTP/1.1\r\n" H CLOSE "%s: %s\r\n\r\n",
                 chunked ? "Transfer-Encoding" : "Content-Length",
                 chunked ? "chunked" : "13107200");
        assert_true(rig_sends(fd, head));
        for (int i = 0; i < N; i++) {
            if (chunked)
                assert_true(rig_sends(fd, "10000\r\n"));
            assert_true(rig_send(fd, piece, PIECE));
            if (chunked)
                assert_true(rig_sends(fd, "\r\n"));
        }
        if (chunked)
            assert_true(rig_sends(fd, "0\r\n\r\n"));
        buf_clear(&in);
        rig_read_all(fd, &in);
        assert_non_null(strstr(in.data, "\r\n\r\n13107200"));
        close(fd);
    }
    free(piece);
    buf_release(&in);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_malformed), cmocka_unit_test(test_head_limits),
        cmocka_unit_test(test_responses), cmocka_unit_test(test_keep_alive),
        cmocka_unit_test(test_lookup),    cmocka_unit_test(test_pipelining),
        cmocka_unit_test(test_continue),  cmocka_unit_test(test_big_response),
        cmocka_unit_test(test_upload),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
