/* What clients may not do to the server: leave unnoticed, drip, flood, not read, be too many. Short
 * timeouts are configured, and the tests wait for what must happen; how long it took is printed. */
#define _GNU_SOURCE
#include "http_rig.h"

#include <sys/time.h>

#define H     "Host: a\r\n"
#define CLOSE "Connection: close\r\n"

static void print_ms(const char *what, int64_t ns)
{
    print_message("# %s: %.2f ms\n", what, (double)ns / 1e6);
}

static int open_stream(struct rig *r, const char *path, int n_seen)
{
    int fd = rig_connect(r);
    char q[100];
    snprintf(q, sizeof q, "GET %s HTTP/1.1\r\n" H "\r\n", path);
    assert_true(rig_sends(fd, q));
    rig_wait(r, &r->n_seen, n_seen);
    return fd;
}

static void reset(int fd)
{
    struct linger hard = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close(fd);
}

/* ---- clients that leave ---- */

static void test_gone(void **state)
{
    enum { N = 40 };
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    rig_open(&r, &o);
    int64_t worst = 0;
    for (int i = 0; i < N; i++) { /* an idle stream, or no response at all; FIN or RST */
        int fd = open_stream(&r, i % 2 ? "/sse" : "/hold", i + 1);
        int64_t start = clock_ns();
        if (i % 4 < 2)
            close(fd);
        else
            reset(fd);
        rig_wait(&r, &r.n_cut, i + 1);
        pthread_mutex_lock(&r.lock);
        if (r.cut_ns - start > worst)
            worst = r.cut_ns - start;
        pthread_mutex_unlock(&r.lock);
    }
    print_ms("a client's leaving was noticed after, at worst", worst);
    assert_int_equal(rig_count(&r, &r.n_complete), 0);
    assert_int_equal(rig_stats(&r).requests, 0);
    rig_close(&r);
}

static void reply_held(struct rig *r, void *arg)
{
    assert_non_null(r->held);
    http_reply(r->held, 200, "text/plain", "late", 4);
}

static void test_half_close(void **state)
{
    for (int allow = 0; allow < 2; allow++) {
        struct rig r;
        struct http_server_opts o = rig_opts(&r);
        o.allow_half_close = allow;
        rig_open(&r, &o);
        int fd = open_stream(&r, "/hold", 1);
        shutdown(fd, SHUT_WR);
        struct buf in = {0};
        if (allow) {
            rig_call(&r, reply_held, NULL);
            assert_true(rig_read_to(fd, &in, "\r\n\r\nlate"));
            close(fd);
            fd = open_stream(&r, "/hold", 2);
            reset(fd);
            rig_wait(&r, &r.n_cut, 1);
        } else {
            rig_wait(&r, &r.n_cut, 1);
            rig_read_all(fd, &in);
            assert_int_equal(in.len, 0);
            close(fd);
        }
        buf_release(&in);
        rig_close(&r);
    }
}

/* ---- clients that are slow ---- */

static void test_slow_head(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    o.head_timeout_ms = 300;
    rig_open(&r, &o);
    struct buf in = {0};
    int fd = rig_connect(&r);
    int64_t start = clock_ns();
    /* a byte now and then does not help: the deadline is absolute */
    for (const char *p = "GET / HTTP/1.1\r\nHost: a\r\nX: "; rig_send(fd, p, 1); p += p[1] != 0) {
        char c;
        if (recv(fd, &c, 1, MSG_DONTWAIT) == 1) {
            buf_addc(&in, c);
            break;
        }
        struct pollfd w = {.fd = fd, .events = POLLIN};
        poll(&w, 1, 20);
    }
    rig_read_all(fd, &in);
    assert_int_equal(strncmp(in.data, "HTTP/1.1 408 ", 13), 0);
    assert_true(clock_ns() - start >= 290000000);
    print_ms("a dripping head (limit 300 ms) was closed after", clock_ns() - start);
    close(fd);

    buf_clear(&in); /* silence: nothing to answer */
    fd = rig_connect(&r);
    start = clock_ns();
    rig_read_all(fd, &in);
    assert_int_equal(in.len, 0);
    print_ms("a silent connection (limit 300 ms) was closed after", clock_ns() - start);
    close(fd);
    buf_release(&in);
    rig_close(&r);
}

static void test_idle(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    o.idle_timeout_ms = 200;
    rig_open(&r, &o);
    struct buf in = {0};
    int fd = rig_connect(&r);
    assert_true(rig_sends(fd, "GET / HTTP/1.1\r\n" H "\r\n"));
    assert_true(rig_read_to(fd, &in, "GET /"));
    int64_t start = clock_ns();
    size_t n = in.len;
    rig_read_all(fd, &in);
    assert_int_equal(in.len, n);
    print_ms("an idle connection (limit 200 ms) was closed after", clock_ns() - start);
    close(fd);
    buf_release(&in);
    rig_close(&r);
}

static void test_slow_body(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    o.rate_grace_ms = 200;
    o.min_bytes_per_s = 1000000;
    rig_open(&r, &o);
    static const char q[] = "POST /echo HTTP/1.1\r\n" H "Content-Length: 10\r\n\r\nabc";
    struct buf in = rig_exchange(&r, q, sizeof q - 1);
    assert_int_equal(strncmp(in.data, "HTTP/1.1 408 ", 13), 0);
    buf_release(&in);
    rig_wait(&r, &r.n_cut, 1); /* on_head has seen it */
    assert_int_equal(rig_count(&r, &r.n_seen), 0);
    rig_close(&r);
}

static void test_slow_reader(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    o.rate_grace_ms = 500;
    rig_open(&r, &o);
    /* it reads a lot and stops: what it has read before buys no more than the grace */
    int fd = open_stream(&r, "/fill", 1);
    size_t before = rig_rss(), n_read = 0;
    char tmp[65536];
    for (ssize_t n; n_read < 100 << 20 && (n = recv(fd, tmp, sizeof tmp, 0)) > 0;)
        n_read += (size_t)n;
    rig_wait(&r, &r.n_cut, 1);
    size_t grown = rig_rss() > before ? rig_rss() - before : 0;
    print_message("# slow reader: %zu KiB queued at most, rss +%zu KiB\n", r.most_queued >> 10,
                  grown >> 10);
    assert_true(r.most_queued <= o.max_queue_bytes + 4096);
    assert_memory_growth(grown, 8 << 20);
    close(fd);
    rig_close(&r);
}

static void test_cut(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    rig_open(&r, &o);
    int fd = open_stream(&r, "/ignore", 1);
    rig_wait(&r, &r.n_cut, 1);
    close(fd);
    rig_close(&r);
}

static void test_ping(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    o.ping_ms = 30;
    rig_open(&r, &o);
    struct buf in = {0};
    int fd = open_stream(&r, "/sse", 1);
    assert_true(rig_read_to(fd, &in, "8\r\n: ping\n\n\r\n8\r\n: ping\n\n\r\n8\r\n: ping\n\n\r\n"));
    close(fd);
    buf_release(&in);
    rig_wait(&r, &r.n_cut, 1);
    rig_close(&r);
}

/* ---- clients that send too much ---- */

static void test_flood(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    rig_open(&r, &o);
    int fd = open_stream(&r, "/sse", 1);
    size_t before = rig_rss(), sent = 0;
    char *junk = xcalloc(1, 1 << 20);
    for (;;) {
        ssize_t n = send(fd, junk, 1 << 20, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            sent += (size_t)n;
            assert_true(sent < 64 << 20); /* of 256 MB it would like to send */
            continue;
        }
        assert_int_equal(errno, EAGAIN);
        struct pollfd w = {.fd = fd, .events = POLLOUT};
        if (poll(&w, 1, 200) == 0)
            break; /* the kernel's buffers are full and stay so */
    }
    size_t grown = rig_rss() > before ? rig_rss() - before : 0;
    print_message("# flood during a stream: stops at %zu KiB, rss +%zu KiB\n", sent >> 10,
                  grown >> 10);
    assert_memory_growth(grown, 4 << 20);
    assert_int_equal(rig_count(&r, &r.n_cut), 0);
    close(fd);
    rig_wait(&r, &r.n_cut, 1);
    free(junk);
    rig_close(&r);
}

static void test_large_body(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    o.max_body_bytes = 1 << 20;
    rig_open(&r, &o);
    char *piece = xcalloc(1, 1 << 16);
    struct buf in = {0};
    int fd = rig_connect(&r);
    size_t before = rig_rss(), sent = 0;
    assert_true(rig_sends(fd, "POST /echo HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n"));
    struct pollfd answer = {.fd = fd, .events = POLLIN};
    while (sent < 1 << 30 && poll(&answer, 1, 0) == 0) {
        if (!rig_sends(fd, "10000\r\n") || !rig_send(fd, piece, 1 << 16) || !rig_sends(fd, "\r\n"))
            break;
        sent += 1 << 16;
    }
    size_t grown = rig_rss() > before ? rig_rss() - before : 0;
    rig_read_to(fd, &in, "\r\n\r\n");
    assert_int_equal(strncmp(in.data, "HTTP/1.1 413 ", 13), 0);
    print_message("# chunked body over 1 MiB: 413 after %zu KiB, rss +%zu KiB\n", sent >> 10,
                  grown >> 10);
    assert_memory_growth(grown, 8 << 20);
    close(fd);
    static const char announced[] = "POST /echo HTTP/1.1\r\n" H "Content-Length: 1048577\r\n\r\n";
    buf_release(&in);
    in = rig_exchange(&r, announced, sizeof announced - 1);
    assert_int_equal(strncmp(in.data, "HTTP/1.1 413 ", 13), 0);
    buf_release(&in);
    free(piece);
    assert_int_equal(rig_count(&r, &r.n_seen), 0);
    rig_close(&r);
}

/* Chunks whose extensions or trailers never end are not bodies that never end. */
static void test_endless_framing(void **state)
{
    static const char *const begins[] = {"1;", "1\r\na\r\n0\r\n"};
    static const char *const goes_on[] = {"extension;", "Trailer: x\r\n"};
    static const char *const statuses[] = {"HTTP/1.1 400 ", "HTTP/1.1 431 "};
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    rig_open(&r, &o);
    for (int i = 0; i < 2; i++) {
        struct buf q = {0};
        buf_addf(&q, "POST /echo HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n%s", begins[i]);
        while (q.len < 80 << 10)
            buf_adds(&q, goes_on[i]);
        struct buf in = rig_exchange(&r, q.data, q.len);
        assert_int_equal(strncmp(in.data, statuses[i], 13), 0);
        buf_release(&in);
        buf_release(&q);
    }
    rig_close(&r);
}

static void test_body_total(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    o.max_body_total_bytes = 1 << 20;
    rig_open(&r, &o);
    struct buf q = {0};
    buf_adds(&q, "POST /hold HTTP/1.1\r\n" H CLOSE "Content-Length: 700000\r\n\r\n");
    size_t head = q.len;
    memset(buf_reserve(&q, 700000), 'x', 700000);
    q.len += 700000;
    int fd = rig_connect(&r);
    assert_true(rig_send(fd, q.data, q.len));
    rig_wait(&r, &r.n_seen, 1);
    assert_int_equal(rig_stats(&r).body_bytes, 700000);
    memcpy(q.data, "POST /echo", 10);
    struct buf in = rig_exchange(&r, q.data, q.len);
    assert_int_equal(strncmp(in.data, "HTTP/1.1 503 ", 13), 0);
    assert_non_null(strstr(in.data, "Retry-After: 1\r\n"));
    buf_release(&in);
    close(fd);
    rig_wait(&r, &r.n_cut, 2);
    assert_int_equal(rig_stats(&r).body_bytes, 0);
    in = rig_exchange(&r, q.data, q.len);
    assert_int_equal(strncmp(in.data, "HTTP/1.1 200 ", 13), 0);
    assert_int_equal(in.data + in.len - strstr(in.data, "\r\n\r\n"), q.len - head + 4);
    buf_release(&in);
    buf_release(&q);
    rig_close(&r);
}

/* ---- clients that are many ---- */

static void test_too_many(void **state)
{
    static const char q[] = "GET / HTTP/1.1\r\n" H "\r\n";
    for (int per_peer = 0; per_peer < 2; per_peer++) {
        struct rig r;
        struct http_server_opts o = rig_opts(&r);
        *(per_peer ? &o.max_per_peer : &o.max_connections) = 3;
        rig_open(&r, &o);
        int fds[3];
        struct buf in = {0};
        for (int i = 0; i < 3; i++)
            fds[i] = open_stream(&r, "/sse", i + 1);
        in = rig_exchange(&r, q, sizeof q - 1);
        assert_int_equal(strncmp(in.data, per_peer ? "HTTP/1.1 429 " : "HTTP/1.1 503 ", 13), 0);
        buf_release(&in);
        close(fds[0]);
        rig_wait(&r, &r.n_cut, 1);
        fds[0] = rig_connect(&r);
        assert_true(rig_sends(fds[0], q));
        assert_true(rig_read_to(fds[0], &in, "HTTP/1.1 200 "));
        buf_release(&in);
        for (int i = 0; i < 3; i++)
            close(fds[i]);
        rig_close(&r);
    }
}

static void test_flat(void **state)
{
    enum { REQUESTS = 10000, CONNECTIONS = 3000 };
    static const char q[] = "GET / HTTP/1.1\r\n" H "\r\n",
                      last[] = "GET / HTTP/1.1\r\n" H CLOSE "\r\n";
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    rig_open(&r, &o);
    size_t rss = 0;
    int fds = 0;
    for (int round = 0; round < 2; round++) { /* the first one warms up */
        struct buf in = {0};
        int fd = rig_connect(&r);
        for (int i = 0; i < REQUESTS; i++) {
            buf_clear(&in);
            assert_true(rig_send(fd, q, sizeof q - 1));
            assert_true(rig_read_to(fd, &in, "GET /"));
        }
        close(fd);
        buf_release(&in);
        for (int i = 0; i < CONNECTIONS; i++) {
            in = rig_exchange(&r, last, sizeof last - 1);
            assert_non_null(strstr(in.data, "GET /"));
            buf_release(&in);
        }
        rig_wait(&r, &r.n_complete, (round + 1) * (REQUESTS + CONNECTIONS));
        while (rig_stats(&r).connections)
            sched_yield();
        if (round == 0) {
            rss = rig_rss();
            fds = rig_fds();
        }
    }
    print_message("# %d requests, %d connections: rss %+zd KiB, descriptors %+d\n", REQUESTS,
                  CONNECTIONS, (ssize_t)(rig_rss() - rss) / 1024, rig_fds() - fds);
    assert_int_equal(rig_fds(), fds);
    size_t now = rig_rss();
    assert_memory_growth(now > rss ? now - rss : 0, 2 << 20);
    rig_close(&r);
}

/* ---- the system refuses ---- */

struct fault_at {
    enum fault_kind kind;
    int n;
};

static void set_fault(struct rig *r, void *arg)
{
    struct fault_at *f = arg;
    fault_set(f->kind, f->n);
}

static void test_faults(void **state)
{
    static const char q[] = "GET /big?n=300000 HTTP/1.1\r\n" H "\r\n"
                            "POST /echo HTTP/1.1\r\n" H "Content-Length: 2\r\n\r\nhi"
                            "GET /chunks HTTP/1.1\r\n" H CLOSE "\r\n";
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    rig_open(&r, &o);
    for (int kind = FAULT_READ; kind <= FAULT_ACCEPT; kind++) {
        bool whole = false; /* the walk has gone past the last call */
        for (int n = 1; !whole; n++) {
            assert_true(n < 1000);
            struct fault_at f = {(enum fault_kind)kind, n};
            rig_call(&r, set_fault, &f);
            struct buf in = rig_exchange(&r, q, sizeof q - 1);
            char got[64];
            rig_statuses(&in, got, sizeof got);
            whole = strcmp(got, "200,200,200") == 0;
            if (n == 1 && kind == FAULT_ACCEPT) /* out of descriptors: told so by the spare one */
                assert_string_equal(got, "503");
            else if (n == 1)
                assert_string_equal(got, "");
            buf_release(&in);
            f.n = 0;
            rig_call(&r, set_fault, &f);
        }
    }
    static const char last[] = "GET / HTTP/1.1\r\n" H CLOSE "\r\n";
    struct buf in = rig_exchange(&r, last, sizeof last - 1);
    assert_non_null(strstr(in.data, "GET /"));
    buf_release(&in);
    rig_wait(&r, &r.n_complete, 1);
    while (rig_stats(&r).connections)
        sched_yield();
    assert_int_equal(r.n_seen, r.n_complete + r.n_cut);
    rig_close(&r);
}

static void test_cannot_listen(void **state)
{
    struct rig r, second;
    struct http_server_opts o = rig_opts(&r);
    rig_open(&r, &o);
    struct http_server_opts again = rig_opts(&second);
    struct err e = {0};
    assert_int_equal(http_loop_new(&second.loop, &e), 0);
    again.port = r.port;
    assert_int_equal(http_server_open(&second.server, second.loop, &again, NULL, &e), ERR_IO);
    assert_non_null(strstr(e.msg, "Address already in use"));
    again.port = 0;
    again.host = "no.such.host.invalid";
    assert_int_equal(http_server_open(&second.server, second.loop, &again, NULL, &e), ERR_INVALID);
    assert_string_equal(e.param, "host");
    again.host = "127.0.0.1";
    again.head_timeout_ms = 0;
    assert_int_equal(http_server_open(&second.server, second.loop, &again, NULL, &e), ERR_INVALID);
    assert_string_equal(e.param, "head_timeout_ms");
    http_loop_free(second.loop);
    rig_close(&r);
}

/* ---- shutting down ---- */

static void test_shutdown(void **state)
{
    struct rig r;
    struct http_server_opts o = rig_opts(&r);
    rig_open(&r, &o);
    struct buf in = {0};
    int idle = rig_connect(&r);
    assert_true(rig_sends(idle, "GET / HTTP/1.1\r\n" H "\r\n"));
    assert_true(rig_read_to(idle, &in, "GET /"));
    rig_wait(&r, &r.n_complete, 1);
    int busy = open_stream(&r, "/hold", 2);
    int grace_ms = 3600 * 1000;
    rig_call(&r, rig_shut, &grace_ms);
    rig_read_all(idle, &in); /* closed at once */
    buf_clear(&in);
    rig_call(&r, reply_held, NULL);
    rig_read_all(busy, &in);
    assert_non_null(strstr(in.data, "Connection: close\r\n"));
    assert_non_null(strstr(in.data, "\r\n\r\nlate"));
    rig_join(&r); /* the server has closed and stopped the loop, long before the grace is over */
    assert_int_equal(r.n_complete, 2);
    close(idle);
    close(busy);
    buf_release(&in);

    o = rig_opts(&r);
    rig_open(&r, &o);
    busy = open_stream(&r, "/sse", 1);
    grace_ms = 50; /* the stream does not end by itself */
    rig_call(&r, rig_shut, &grace_ms);
    rig_join(&r);
    assert_int_equal(r.n_cut, 1);
    close(busy);

    o = rig_opts(&r); /* closed by the last callback of a connection that was to be kept */
    rig_open(&r, &o);
    busy = open_stream(&r, "/quit", 1);
    rig_join(&r);
    assert_int_equal(r.n_complete, 1);
    close(busy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gone),
        cmocka_unit_test(test_half_close),
        cmocka_unit_test(test_slow_head),
        cmocka_unit_test(test_idle),
        cmocka_unit_test(test_slow_body),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_ping),
        cmocka_unit_test(test_flood),
        cmocka_unit_test(test_large_body),
        cmocka_unit_test(test_endless_framing),
        cmocka_unit_test(test_body_total),
        cmocka_unit_test(test_too_many),
        cmocka_unit_test(test_flat),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_cannot_listen),
        cmocka_unit_test(test_shutdown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
