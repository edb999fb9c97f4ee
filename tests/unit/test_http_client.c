/* The client against the real server of http_rig.h, and against raw sockets that misbehave. */
#define _GNU_SOURCE
#include "http_rig.h"

#include "http/client.h"

/* ---- a client with its own loop, on the test's thread ---- */

struct bench {
    struct http_loop *loop;
    struct http_client *client;
    char base[64];
    int left; /* calls that have not ended */
};

struct ask {
    struct bench *b;
    struct http_call *call;
    int status;
    struct buf body;
    char type[64];
    bool ended, reused;
    struct err err;
    size_t pause_at, cancel_at; /* 0: never */
    bool cancel_on_head;
    size_t abandon_at; /* 0: never */
    struct ask *then;  /* started from inside of on_data */
    const char *then_path;
    struct http_timer *timer;
};

static void bench_open(struct bench *b, int port)
{
    struct err e = {0};
    *b = (struct bench){0};
    assert_int_equal(http_loop_new(&b->loop, &e), 0);
    assert_int_equal(http_client_open(&b->client, b->loop,
                                      &(struct http_client_opts){.user_agent = "terrace-test"}, &e),
                     0);
    snprintf(b->base, sizeof b->base, "http://127.0.0.1:%d", port);
}

static void bench_close(struct bench *b)
{
    http_client_close(b->client);
    http_loop_free(b->loop);
}

static void one_less(struct bench *b)
{
    if (--b->left == 0)
        http_loop_stop(b->loop);
}

static void start(struct bench *b, struct ask *a, const char *path, struct http_call_opts o);

static void on_head(struct http_call *call, const struct http_head *head)
{
    struct ask *a = http_call_arg(call);
    a->status = head->status;
    struct str type = http_head_get(head, "content-type");
    if (type.p)
        snprintf(a->type, sizeof a->type, "%.*s", (int)type.n, type.p);
    if (a->cancel_on_head) {
        http_call_cancel(call);
        one_less(a->b);
    }
}

static void on_data(struct http_call *call, const char *p, size_t n)
{
    struct ask *a = http_call_arg(call);
    buf_add(&a->body, p, n);
    if (a->pause_at && a->body.len >= a->pause_at) {
        a->pause_at = 0;
        http_call_pause(call);
        http_timer_start(a->timer, 100, 0);
    }
    if (a->then) {
        struct ask *then = a->then;
        a->then = NULL;
        start(a->b, then, a->then_path, (struct http_call_opts){0});
    }
    if (a->abandon_at && a->body.len >= a->abandon_at) {
        a->abandon_at = 0;
        http_call_abandon(call);
        one_less(a->b);
    }
    if (a->cancel_at && a->body.len >= a->cancel_at) {
        http_call_cancel(call);
        one_less(a->b);
    }
}

static void on_end(struct http_call *call, const struct err *e)
{
    struct ask *a = http_call_arg(call);
    assert_false(a->ended);
    a->ended = true;
    a->reused = http_call_reused(call);
    if (e)
        a->err = *e;
    http_call_cancel(call); /* too late to mean anything */
    one_less(a->b);
}

static void start(struct bench *b, struct ask *a, const char *path, struct http_call_opts o)
{
    char url[200];
    snprintf(url, sizeof url, "%s%s", b->base, path);
    a->b = b;
    o.url = url;
    o.arg = a;
    o.on_head = on_head;
    o.on_data = on_data;
    o.on_end = on_end;
    b->left++;
    a->call = http_call_start(b->client, &o);
    assert_false(a->ended || a->status); /* never from inside */
}

static struct ask ask(struct bench *b, const char *path, struct http_call_opts o)
{
    struct ask a = {0};
    start(b, &a, path, o);
    http_loop_run(b->loop);
    return a;
}

static void drop(struct ask *a)
{
    buf_release(&a->body);
}

static void open_both(struct rig *r, struct bench *b)
{
    struct http_server_opts o = rig_opts(r);
    rig_open(r, &o);
    bench_open(b, r->port);
}

static void close_both(struct rig *r, struct bench *b)
{
    bench_close(b);
    rig_close(r);
}

/* ---- plain exchanges ---- */

static void test_get_and_post(void **state)
{
    struct rig r;
    struct bench b;
    open_both(&r, &b);
    struct ask a = ask(&b, "/", (struct http_call_opts){0});
    assert_int_equal(a.status, 200);
    assert_int_equal(a.err.code, 0);
    assert_string_equal(buf_str(&a.body), "GET /");
    assert_string_equal(a.type, "text/plain");
    assert_false(a.reused);
    drop(&a);
    static const char *const headers[] = {"Content-Type: text/x", "X-A: b", NULL};
    a = ask(&b, "/echo", (struct http_call_opts){.headers = headers, .body = "hello", .n_body = 5});
    assert_int_equal(a.status, 200);
    assert_string_equal(buf_str(&a.body), "hello");
    assert_true(a.reused);
    drop(&a);
    a = ask(&b, "/nowhere", (struct http_call_opts){.method = "DELETE"});
    assert_int_equal(a.status, 404);
    assert_string_equal(buf_str(&a.body), "DELETE /nowhere");
    drop(&a);
    a = ask(&b, "/nothing", (struct http_call_opts){0});
    assert_int_equal(a.status, 204);
    assert_int_equal(a.body.len, 0);
    a = ask(&b, "/", (struct http_call_opts){.method = "HEAD"});
    assert_int_equal(a.status, 200);
    assert_int_equal(a.body.len, 0);
    a = ask(&b, "/chunks", (struct http_call_opts){0});
    assert_string_equal(buf_str(&a.body), "{\"a\":1}\n{\"a\":1}\n{\"a\":1}\n");
    drop(&a);
    close_both(&r, &b);
}

static void test_large_bodies(void **state)
{
    struct rig r;
    struct bench b;
    open_both(&r, &b);
    size_t n = (size_t)8 << 20;
    char *body = xmalloc(n);
    for (size_t i = 0; i < n; i++)
        body[i] = (char)(i * 131 >> 3);
    struct ask a = ask(&b, "/echo", (struct http_call_opts){.body = body, .n_body = n});
    assert_int_equal(a.err.code, 0);
    assert_int_equal(a.body.len, n);
    assert_memory_equal(a.body.data, body, n);
    drop(&a);
    free(body);
    close_both(&r, &b);
}

static void test_many_at_once(void **state)
{
    enum { N = 200 };
    struct rig r;
    struct bench b;
    open_both(&r, &b);
    struct ask asks[N] = {0};
    for (int i = 0; i < N; i++)
        start(&b, &asks[i], "/big?n=20000", (struct http_call_opts){0});
    http_loop_run(b.loop);
    for (int i = 0; i < N; i++) {
        assert_int_equal(asks[i].err.code, 0);
        assert_int_equal(asks[i].body.len, 20000);
        drop(&asks[i]);
    }
    close_both(&r, &b);
}

/* ---- back-pressure and cancelling ---- */

static void resume(void *arg)
{
    struct ask *a = arg;
    http_call_resume(a->call);
}

static void test_pause(void **state)
{
    struct rig r;
    struct bench b;
    open_both(&r, &b);
    struct ask a = {.pause_at = 100000};
    a.timer = http_timer_new(b.loop, resume, &a);
    start(&b, &a, "/big?n=3000000", (struct http_call_opts){.idle_ms = 30});
    http_loop_run(b.loop);
    assert_int_equal(a.err.code, 0); /* the 100 ms of the pause are no idle time */
    assert_int_equal(a.body.len, 3000000);
    drop(&a);
    http_timer_free(a.timer);

    /* an endless response whose reader stops: the server's queue stays bounded */
    struct ask stuck = {.pause_at = 1};
    stuck.timer = http_timer_new(b.loop, resume, &stuck);
    start(&b, &stuck, "/fill", (struct http_call_opts){.deadline_ms = clock_ms() + 80});
    http_loop_run(b.loop);
    assert_int_equal(stuck.err.code, ERR_TIMEOUT);
    assert_string_equal(stuck.err.msg, "the deadline has passed");
    rig_wait(&r, &r.n_cut, 1);
    assert_true(r.most_queued < 200000);
    drop(&stuck);
    http_timer_free(stuck.timer);
    close_both(&r, &b);
}

static void test_cancel(void **state)
{
    struct rig r;
    struct bench b;
    open_both(&r, &b);
    struct ask a = {.cancel_at = 50000};
    start(&b, &a, "/fill", (struct http_call_opts){0});
    http_loop_run(b.loop);
    assert_false(a.ended);
    rig_wait(&r, &r.n_cut, 1);
    drop(&a);
    struct ask head = {.cancel_on_head = true};
    start(&b, &head, "/sse", (struct http_call_opts){0});
    http_loop_run(b.loop);
    assert_false(head.ended);
    rig_wait(&r, &r.n_cut, 2);
    struct ask early = {0}; /* before anything was sent */
    start(&b, &early, "/", (struct http_call_opts){0});
    http_call_cancel(early.call);
    b.left = 0;
    a = ask(&b, "/", (struct http_call_opts){0});
    assert_int_equal(a.status, 200);
    assert_false(early.ended);
    drop(&a);
    close_both(&r, &b);
}

/* What comes after that is nobody's; an endless response is ended, a short one keeps its
 * connection.
 */
static void test_abandon(void **state)
{
    struct rig r;
    struct bench b;
    open_both(&r, &b);
    struct ask a = {.abandon_at = 1};
    start(&b, &a, "/big?n=3000000", (struct http_call_opts){0});
    http_loop_run(b.loop);
    assert_false(a.ended);
    assert_true(a.body.len < 3000000);
    drop(&a);
    a = (struct ask){.abandon_at = 1};
    start(&b, &a, "/fill", (struct http_call_opts){0});
    http_loop_run(b.loop);
    size_t got = a.body.len;
    struct ask next = ask(&b, "/sse", (struct http_call_opts){.deadline_ms = clock_ms() + 1500});
    assert_int_equal(next.err.code, ERR_TIMEOUT);
    assert_int_equal(a.body.len, got);
    rig_wait(&r, &r.n_complete, 1);
    rig_wait(&r, &r.n_cut, 2);
    drop(&a);
    close_both(&r, &b);
}

static void test_start_inside(void **state)
{
    struct rig r;
    struct bench b;
    open_both(&r, &b);
    struct ask second = {0}, first = {.then = &second, .then_path = "/echo"};
    start(&b, &first, "/big?n=100000", (struct http_call_opts){0});
    http_loop_run(b.loop);
    assert_int_equal(first.body.len, 100000);
    assert_int_equal(second.status, 200);
    drop(&first);
    drop(&second);
    close_both(&r, &b);
}

static void test_close_with_calls(void **state)
{
    struct rig r;
    struct bench b;
    open_both(&r, &b);
    struct ask held = {0}, a;
    start(&b, &held, "/sse", (struct http_call_opts){0});
    b.left = 0; /* does not wait for it */
    a = ask(&b, "/nothing", (struct http_call_opts){0});
    assert_int_equal(a.status, 204);
    close_both(&r, &b);
    assert_false(held.ended);
}

/* ---- limits ---- */

static void test_limits(void **state)
{
    struct rig r;
    struct bench b;
    open_both(&r, &b);
    struct ask a = ask(&b, "/hold", (struct http_call_opts){.first_byte_ms = 30});
    assert_int_equal(a.err.code, ERR_TIMEOUT);
    assert_string_equal(a.err.msg, "no answer within 30 ms");
    a = ask(&b, "/sse", (struct http_call_opts){.first_byte_ms = 60000, .idle_ms = 30});
    assert_int_equal(a.status, 200);
    assert_string_equal(a.err.msg, "the answer stopped for 30 ms");
    a = ask(&b, "/sse", (struct http_call_opts){.deadline_ms = clock_ms() + 30});
    assert_string_equal(a.err.msg, "the deadline has passed");
    a = ask(&b, "/sse", (struct http_call_opts){.deadline_ms = clock_ms() - 5});
    assert_string_equal(a.err.msg, "the deadline has passed");
    close_both(&r, &b);
}

/* ---- bad servers ---- */

struct fake {
    int fd, port;
    const char *reply;
    pthread_t thread;
};

/* Answers one connection with fixed bytes and closes. */
static void *fake_run(void *arg)
{
    struct fake *f = arg;
    int c = accept(f->fd, NULL, NULL);
    char in[4096];
    if (recv(c, in, sizeof in, 0) > 0)
        rig_sends(c, f->reply);
    shutdown(c, SHUT_WR);
    while (recv(c, in, sizeof in, 0) > 0)
        ;
    close(c);
    return NULL;
}

static void fake_open(struct fake *f)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    f->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(f->fd, (struct sockaddr *)&a, n), 0);
    assert_int_equal(listen(f->fd, 8), 0);
    getsockname(f->fd, (struct sockaddr *)&a, &n);
    f->port = ntohs(a.sin_port);
}

static struct ask ask_fake(const char *reply)
{
    struct fake f = {.reply = reply};
    struct bench b;
    fake_open(&f);
    bench_open(&b, f.port);
    assert_int_equal(pthread_create(&f.thread, NULL, fake_run, &f), 0);
    struct ask a = ask(&b, "/", (struct http_call_opts){.first_byte_ms = 20000});
    bench_close(&b);
    pthread_join(f.thread, NULL);
    close(f.fd);
    return a;
}

static void test_bad_servers(void **state)
{
    static const struct {
        const char *reply;
        int code;
    } cases[] = {
        {"", ERR_IO},
        {"garbage\r\n\r\n", ERR_FORMAT},
        {"HTTP/9.9 200 OK\r\n\r\n", ERR_FORMAT},
        {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", ERR_FORMAT},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", ERR_FORMAT},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhel", ERR_FORMAT},
        {"HTTP/1.1 200 OK\r\nContent-Le", ERR_IO},
        {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 0},
        {"HTTP/1.1 200 OK\r\n\r\nto the end", 0},
        {"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct ask a = ask_fake(cases[i].reply);
        if ((a.err.code != 0) != (cases[i].code != 0))
            fail_msg("case %zu: code %d, %s", i, a.err.code, a.err.msg);
        assert_null(strstr(a.err.msg, "127.0.0.1"));
        drop(&a);
    }
    struct buf head = {0};
    buf_adds(&head, "HTTP/1.1 200 OK\r\n");
    for (int i = 0; i < 3000; i++)
        buf_addf(&head, "X-Header-%d: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", i);
    buf_adds(&head, "\r\n");
    struct ask a = ask_fake(head.data);
    assert_string_equal(a.err.msg, "the head of the answer is too large");
    buf_release(&head);
}

static void test_nobody_there(void **state)
{
    struct fake f = {0};
    struct bench b;
    fake_open(&f);
    close(f.fd);
    bench_open(&b, f.port);
    struct ask a = ask(&b, "/", (struct http_call_opts){.connect_ms = 20000});
    assert_int_equal(a.err.code, ERR_IO);
    assert_string_equal(a.err.msg, "no connection can be made");
    snprintf(b.base, sizeof b.base, "http://[oops");
    a = ask(&b, "/", (struct http_call_opts){0});
    assert_int_equal(a.err.code, ERR_INVALID);
    snprintf(b.base, sizeof b.base, "file:///etc/passwd");
    a = ask(&b, "", (struct http_call_opts){0});
    assert_int_not_equal(a.err.code, 0);
    assert_int_equal(a.body.len, 0);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_get_and_post), cmocka_unit_test(test_large_bodies),
        cmocka_unit_test(test_many_at_once), cmocka_unit_test(test_pause),
        cmocka_unit_test(test_cancel),       cmocka_unit_test(test_abandon),
        cmocka_unit_test(test_start_inside), cmocka_unit_test(test_close_with_calls),
        cmocka_unit_test(test_limits),       cmocka_unit_test(test_bad_servers),
        cmocka_unit_test(test_nobody_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
