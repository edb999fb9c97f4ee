/* Answers of backends that are given again: a whole service before an upstream that does what a
 * request's text says. */
#define _GNU_SOURCE /* strcasestr */
#include "server_rig.h"

#include <arpa/inet.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"

#define CHAT "/v1/chat/completions"
#define TEXT "/v1/completions"

/* ---- the upstream ---- */

enum { LONG_EVENTS = 4000 }; /* of 1 KB */

/* Speaks when it is told to ("wait"), else at once. Every answer has a number of its own. */
struct upstream {
    pthread_t thread;
    int listener, port;
    atomic_int n_asked, n_left; /* chats; of them given up by the service */
    atomic_int n_calls;         /* whose threads still run */
    struct rig_gate gate;
};

struct call {
    struct upstream *upstream;
    int fd;
};

static void wait_count(atomic_int *n, int want)
{
    int64_t until = clock_ms() + 60000;
    while (*n != want)
        assert_true(clock_ms() < until);
}

static void say(int fd, const char *text)
{
    for (size_t n = strlen(text); n;) {
        ssize_t w = send(fd, text, n, MSG_NOSIGNAL);
        if (w <= 0)
            return;
        text += w;
        n -= (size_t)w;
    }
}

static void say_whole(int fd, int status, const char *body)
{
    struct buf b = {0};
    buf_addf(&b,
             "HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
             "Connection: close\r\n\r\n%s",
             status, strlen(body), body);
    say(fd, b.data);
    buf_release(&b);
}

static void say_event(int fd, const char *data)
{
    struct buf b = {0};
    buf_addf(&b, "%zx\r\ndata: %s\n\n\r\n", strlen(data) + 8, data);
    say(fd, b.data);
    buf_release(&b);
}

/* Waits for the gate to open; false: the service has left first. */
static bool wait_to_speak(const struct call *c)
{
    struct rig_gate *g = &c->upstream->gate;
    for (;;) {
        struct pollfd left = {c->fd, POLLIN | POLLRDHUP, 0};
        pthread_mutex_lock(&g->lock);
        bool closed = g->closed;
        pthread_mutex_unlock(&g->lock);
        if (!closed)
            return true;
        if (poll(&left, 1, 2) == 1)
            return false;
    }
}

static const char *reason_in(const char *body)
{
    static const char *const reasons[] = {"abort", "length", "tool_calls"};
    for (size_t i = 0; i < ARRAY_LEN(reasons); i++)
        if (strstr(body, reasons[i]))
            return reasons[i];
    return "stop";
}

static bool stream(const struct call *c, const char *body, int number)
{
    char data[1200], filler[1001] = "";
    int fd = c->fd;
    say(fd, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
            "Transfer-Encoding: chunked\r\n\r\n");
    snprintf(data, sizeof data,
             "{\"id\":\"chatcmpl-%d\",\"created\":5,\"choices\":[{\"delta\":{\"content\":\"one\","
             "\"tool_calls\":[{\"id\":\"call-%d\"}]}}]}",
             number, number);
    say_event(fd, data);
    if (strstr(body, "wait") && !wait_to_speak(c))
        return false;
    if (strstr(body, "long")) {
        memset(filler, 'x', sizeof filler - 1);
        snprintf(data, sizeof data,
                 "{\"choices\":[{\"text\":\"%s\"}],\"created\":5,\"id\":\"chatcmpl-%d\"}", filler,
                 number);
        for (int i = 0; i < LONG_EVENTS; i++)
            say_event(fd, data);
    }
    if (strstr(body, "cut"))
        return true;
    if (strstr(body, "error event"))
        say_event(fd, "{\"error\":{\"message\":\"out of memory\"}}");
    snprintf(
        data, sizeof data,
        "{\"choices\":[{\"delta\":{},\"finish_reason\":\"%s\"}],\"usage\":{\"prompt_tokens\":7,"
        "\"completion_tokens\":2}}",
        reason_in(body));
    if (!strstr(body, "no reason"))
        say_event(fd, data);
    say_event(fd, "[DONE]");
    say(fd, "0\r\n\r\n");
    return true;
}

static bool reply(const struct call *c, const char *body, int number)
{
    char text[400];
    if (strstr(body, "wait") && !wait_to_speak(c))
        return false;
    if (strstr(body, "status 500"))
        say_whole(c->fd, 500, "{}");
    else if (strstr(body, "status 400"))
        say_whole(c->fd, 400, "{\"error\":{\"message\":\"I will not\"}}");
    else if (strstr(body, "error event"))
        say_whole(c->fd, 200, "{\"error\":{\"message\":\"out of memory\"}}");
    else {
        snprintf(text, sizeof text,
                 "{\"choices\":[{\"message\":{\"content\":\"one \\\"error\\\"\"}%s%s%s}],"
                 "\"created\":5,\"id\":\"chatcmpl-%d\","
                 "\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}",
                 strstr(body, "no reason") ? "" : ",\"finish_reason\" : \"",
                 strstr(body, "no reason") ? "" : reason_in(body),
                 strstr(body, "no reason") ? "" : "\"", number);
        if (strstr(body, "cut"))
            text[strlen(text) - 1] = 0;
        say_whole(c->fd, 200, text);
    }
    return true;
}

static void *serve_call(void *arg)
{
    struct call *c = arg;
    struct buf in = {0};
    const char *end = NULL, *length;
    char room[4096];
    for (ssize_t n; (n = recv(c->fd, room, sizeof room, 0)) > 0;) {
        buf_add(&in, room, (size_t)n);
        end = strstr(in.data, "\r\n\r\n");
        length = strcasestr(in.data, "content-length:");
        if (end && strlen(end + 4) >= (length ? strtoul(length + 15, NULL, 10) : 0))
            break;
    }
    if (end && strncmp(in.data, "POST", 4) == 0) {
        int number = ++c->upstream->n_asked;
        bool heard =
            strstr(end, "\"stream\":true") ? stream(c, end, number) : reply(c, end, number);
        c->upstream->n_left += !heard;
    } else if (end) {
        say_whole(c->fd, 200, "{\"object\":\"list\",\"data\":[]}");
    }
    buf_release(&in);
    close(c->fd);
    c->upstream->n_calls--; /* from here on it may be gone */
    free(c);
    return NULL;
}

static void *serve_upstream(void *arg)
{
    struct upstream *u = arg;
    for (int fd; (fd = accept(u->listener, NULL, NULL)) >= 0;) {
        struct call *c = xmalloc(sizeof *c);
        pthread_t thread;
        *c = (struct call){u, fd};
        u->n_calls++;
        assert_int_equal(pthread_create(&thread, NULL, serve_call, c), 0);
        pthread_detach(thread);
    }
    return NULL;
}

static void upstream_open(struct upstream *u)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    *u = (struct upstream){.listener = socket(AF_INET, SOCK_STREAM, 0)};
    pthread_mutex_init(&u->gate.lock, NULL);
    pthread_cond_init(&u->gate.opened, NULL);
    assert_int_equal(bind(u->listener, (struct sockaddr *)&a, n), 0);
    assert_int_equal(listen(u->listener, 100), 0);
    assert_int_equal(getsockname(u->listener, (struct sockaddr *)&a, &n), 0);
    u->port = ntohs(a.sin_port);
    assert_int_equal(pthread_create(&u->thread, NULL, serve_upstream, u), 0);
}

static void upstream_close(struct upstream *u)
{
    shutdown(u->listener, SHUT_RDWR);
    pthread_join(u->thread, NULL);
    close(u->listener);
    wait_count(&u->n_calls, 0);
}

/* ---- the service before it ---- */

struct pair {
    struct upstream up;
    struct rig r;
};

static void pair_open_with(struct pair *p, struct rig_opts o, const char *more)
{
    struct buf config = {0};
    upstream_open(&p->up);
    buf_addf(&config,
             "backends:\n"
             "  - {name: up, url: 'http://127.0.0.1:%d', models: [m, {name: n, as: m}],"
             " fail_after: 1000}\n"
             "balance: {retries: 0}\n%s",
             p->up.port, more);
    o.config = config.data;
    o.response_cache = 64 << 20; /* a reader may be an eighth behind */
    rig_open(&p->r, &o);
    buf_release(&config);
}

static void pair_open(struct pair *p)
{
    pair_open_with(p, (struct rig_opts){.unattached = true}, "");
}

static void pair_close(struct pair *p)
{
    rig_close(&p->r);
    upstream_close(&p->up);
}

static int begin_with(const struct pair *p, const char *headers, const char *body)
{
    int fd = client_open(&p->r);
    assert_true(fd >= 0);
    client_send(fd, "POST", CHAT, headers, body, strlen(body));
    return fd;
}

static void ask_with(const struct pair *p, const char *headers, const char *body,
                     struct response *out)
{
    client_read(begin_with(p, headers, body), out);
    assert_true(out->complete);
}

static void header_of(const struct response *a, const char *name, char out[64])
{
    const char *at = a->head.len ? strcasestr(a->head.data, name) : NULL;
    out[0] = 0;
    if (at)
        snprintf(out, 64, "%.*s", (int)strcspn(at + strlen(name), "\r"), at + strlen(name));
}

static void assert_said(const struct response *a, const char *want)
{
    char said[64];
    header_of(a, "x-terrace-cache: ", said);
    assert_string_equal(said, want);
}

static void expect_with(const struct pair *p, const char *headers, const char *body,
                        const char *want)
{
    struct response a;
    ask_with(p, headers, body, &a);
    if (a.status != 200)
        fail_msg("%s: %d %s", body, a.status, buf_str(&a.body));
    assert_said(&a, want);
    response_release(&a);
}

static void expect(const struct pair *p, const char *body, const char *want)
{
    expect_with(p, "", body, want);
}

static int64_t stat_of(const struct pair *p, const char *name)
{
    struct response a;
    request(&p->r, "GET", "/v1/cache", NULL, &a);
    json_t *v = jr_parse(buf_str(&a.body), a.body.len, NULL);
    const json_t *n = json_object_get(v, name);
    assert_true(json_is_integer(n));
    int64_t value = json_integer_value(n);
    json_decref(v);
    response_release(&a);
    return value;
}

static void wait_for(const struct pair *p, const char *name, int64_t want)
{
    int64_t until = clock_ms() + 60000;
    while (stat_of(p, name) != want)
        assert_true(clock_ms() < until);
}

/* ---- hits ---- */

#define BODY(text, more)                                                                           \
    "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"" text                        \
    "\"}],\"temperature\":0" more "}"
#define STREAM ",\"stream\":true"

/* The id of an answer, the same in all its events, and when it says that it was made. */
static void name_of(const struct response *a, char id[64], long *created)
{
    const char *at = strstr(a->body.data, "\"chatcmpl-"),
               *time = strstr(a->body.data, "\"created\":");
    assert_true(at && time);
    snprintf(id, 64, "%.*s", (int)strcspn(at + 1, "\""), at + 1);
    for (const char *p = at; (p = strstr(p, "\"chatcmpl-")); p++)
        assert_true(str_starts(str_of(p + 1), id));
    *created = strtol(time + strlen("\"created\":"), NULL, 10);
}

static void masked(const struct response *a, struct buf *out)
{
    buf_add(out, a->body.data, a->body.len);
    mask(out);
}

/* The same answer, each under a name of its own. */
static void assert_alike(const struct response *a, const struct response *b)
{
    struct buf x = {0}, y = {0};
    char id[64], other[64];
    long created;
    name_of(a, id, &created);
    name_of(b, other, &created);
    assert_string_not_equal(id, other);
    masked(a, &x);
    masked(b, &y);
    assert_int_equal(x.len, y.len);
    assert_memory_equal(x.data, y.data, x.len);
    buf_release(&x);
    buf_release(&y);
}

/* The same each time: from the record, then as it was found by the request's bytes. */
static void test_again(void **state)
{
    static const char *const bodies[] = {BODY("hi", ""), BODY("hi", STREAM),
                                         BODY("tool_calls length", STREAM)};
    static const char *const want[] = {"miss", "hit", "hit", "hit"};
    struct pair p;
    pair_open(&p);
    for (size_t i = 0; i < ARRAY_LEN(bodies); i++) {
        struct response first, a;
        char ids[ARRAY_LEN(want)][64];
        for (size_t k = 0; k < ARRAY_LEN(want); k++) {
            char backend[64], type[64];
            ask_with(&p, "", bodies[i], k ? &a : &first);
            const struct response *got = k ? &a : &first;
            assert_int_equal(got->status, 200);
            assert_said(got, want[k]);
            header_of(got, "x-terrace-backend: ", backend);
            assert_string_equal(backend, "up");
            header_of(got, "content-type: ", type);
            assert_true(strncmp(type, i ? "text/event-stream" : "application/json", 16) == 0);
            long created;
            name_of(got, ids[k], &created);
            for (size_t before = 0; before < k; before++)
                assert_string_not_equal(ids[k], ids[before]);
            assert_int_equal(strlen(ids[k]), strlen("chatcmpl-") + (k ? 24 : 1));
            assert_true(k ? created > 1700000000 : created == 5);
            if (k) {
                assert_alike(&a, &first);
                response_release(&a);
            }
        }
        assert_non_null(strstr(first.body.data, "one"));
        response_release(&first);
        assert_int_equal(p.up.n_asked, i + 1);
    }
    assert_int_equal(stat_of(&p, "hits"), 9);
    assert_int_equal(stat_of(&p, "rendered"), 3);
    pair_close(&p);
}

/* What counts is what is asked, not how it is written or who pays for it. */
static void test_same_question(void **state)
{
    static const struct {
        const char *body, *want;
    } rows[] = {
        {BODY("hi", ""), "miss"},
        {"{ \"temperature\": 0, \"messages\": [{\"content\":\"\\u0068i\", \"role\":\"user\"}],"
         "\"model\":\"m\"}",
         "hit"},
        {BODY("hi", ",\"stream\":false"), "hit"},
        {BODY("hi", ",\"metadata\":{\"a\":\"b\"},\"timeout\":50,\"priority\":3"), "hit"},
        {BODY("hi", ",\"cache\":{\"ttl\":60}"), "hit"},
        {BODY("hi", ",\"cache\":{\"namespace\":\"x\"}"), "miss"},
        {BODY("hi", ",\"cache\":{\"no-cache\":true}"), "bypass"},
        {BODY("hi", ",\"cache\":{\"no-cache\":true,\"no-store\":true}"), "bypass"},
        {BODY("hi", ",\"cache_salt\":\"x\""), "miss"},
        {BODY("hi", ",\"max_tokens\":5"), "miss"},
        {BODY("hi", ",\"guided_choice\":[\"a\"]"), "miss"},
        {BODY("hi", ",\"guided_choice\":[\"b\"]"), "miss"},
        {BODY("hi", STREAM), "miss"},
        {BODY("hi", STREAM ",\"stream_options\":{\"include_usage\":true}"), "miss"},
        {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", "bypass"},
        {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"seed\":4}",
         "miss"},
        {"{\"model\":\"n\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
         "\"temperature\":0}",
         "miss"},
    };
    struct pair p;
    pair_open(&p);
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        expect(&p, rows[i].body, rows[i].want);
    pair_close(&p);
}

static int64_t drop(const struct pair *p, const char *query)
{
    struct response a;
    char path[80];
    long long n = -1;
    snprintf(path, sizeof path, "/v1/cache%s", query);
    request(&p->r, "DELETE", path, NULL, &a);
    assert_int_equal(sscanf(buf_str(&a.body), "{\"dropped\":%lld}", &n), 1);
    response_release(&a);
    return n;
}

static void test_who(void **state)
{
    static const char *const ann = "x-terrace-tenant: ann\r\n", *bob = "x-terrace-tenant: bob\r\n";
    struct pair p;
    pair_open(&p);
    expect_with(&p, ann, BODY("hi", ""), "miss");
    expect_with(&p, bob, BODY("hi", ""), "miss");
    expect_with(&p, ann, BODY("hi", ""), "hit");
    expect_with(&p, ann, BODY("hi", ",\"user\":\"bob\""), "miss");
    assert_int_equal(drop(&p, "?tenant=tenant:bob"), 1);
    expect_with(&p, ann, BODY("hi", ""), "hit");
    expect_with(&p, bob, BODY("hi", ""), "miss");
    assert_int_equal(drop(&p, "?model=x"), 0);
    assert_int_equal(drop(&p, "?model=m"), 3);
    expect_with(&p, ann, BODY("hi", ""), "miss");
    pair_close(&p);
}

/* ---- what is never kept ---- */

static void test_not_kept(void **state)
{
    static const struct {
        const char *body;
        int status; /* of the answer; streams have begun, and end in an error event */
    } rows[] = {
        {BODY("status 500", ""), 502},
        {BODY("status 400", ""), 400},
        {BODY("error event", ""), 200},
        {BODY("error event", STREAM), 200},
        {BODY("abort", ""), 200},
        {BODY("abort", STREAM), 200},
        {BODY("no reason", ""), 200},
        {BODY("no reason", STREAM), 200},
        {BODY("cut", ""), 502},
        {BODY("cut", STREAM), 200},
        {BODY("hi", ",\"n\":2"), 200},
        {BODY("hi", ",\"n\":2" STREAM), 200},
        {BODY("hi", ",\"cache\":{\"no-store\":true}"), 200},
    };
    struct pair p;
    pair_open(&p);
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        for (int k = 0; k < 2; k++) {
            struct response a;
            ask_with(&p, "", rows[i].body, &a);
            assert_int_equal(a.status, rows[i].status);
            assert_said(&a, "miss");
            response_release(&a);
        }
    assert_int_equal(p.up.n_asked, 2 * ARRAY_LEN(rows));
    assert_int_equal(stat_of(&p, "entries"), 0);
    assert_int_equal(stat_of(&p, "in_flight"), 0);
    pair_close(&p);
}

/* ---- together ---- */

/* The run outlives who began it, and serves all who came meanwhile. */
static void test_coalesced(void **state)
{
    enum { FOLLOWERS = 8 };
    static const char *const bodies[] = {BODY("wait", ""), BODY("wait", STREAM)};
    for (size_t i = 0; i < ARRAY_LEN(bodies); i++)
        for (int leaves = 0; leaves < 2; leaves++) {
            struct pair p;
            struct response a, first = {0};
            int fds[FOLLOWERS];
            pair_open(&p);
            rig_gate_set(&p.up.gate, true);
            int lead = begin_with(&p, "", bodies[i]);
            wait_for(&p, "in_flight", 1);
            for (int k = 0; k < FOLLOWERS; k++) {
                fds[k] = begin_with(&p, "", bodies[i]);
                wait_for(&p, "coalesced", k + 1);
            }
            if (leaves)
                close(lead);
            wait_count(&p.up.n_asked, 1);
            stat_of(&p, "hits"); /* the server has seen the close once this is answered */
            rig_gate_set(&p.up.gate, false);
            if (!leaves) {
                client_read(lead, &first);
                assert_said(&first, "miss");
            }
            for (int k = 0; k < FOLLOWERS; k++) {
                struct response *out = first.body.len ? &a : &first;
                client_read(fds[k], out);
                assert_true(out->complete);
                assert_said(out, "coalesced");
                if (out == &a) {
                    assert_alike(&a, &first);
                    response_release(&a);
                }
            }
            assert_non_null(strstr(first.body.data, "finish_reason"));
            response_release(&first);
            assert_int_equal(p.up.n_asked, 1);
            expect(&p, bodies[i], "hit");
            pair_close(&p);
        }
}

/* The last one to leave ends the run, whoever began it. */
static void test_all_leave(void **state)
{
    for (int order = 0; order < 2; order++) {
        struct pair p;
        int fds[2];
        pair_open(&p);
        rig_gate_set(&p.up.gate, true);
        for (int i = 0; i < 2; i++) {
            fds[i] = begin_with(&p, "", BODY("wait", STREAM));
            wait_for(&p, i ? "coalesced" : "in_flight", 1);
        }
        wait_count(&p.up.n_asked, 1);
        close(fds[order]);
        stat_of(&p, "hits");
        close(fds[!order]);
        wait_count(&p.up.n_left, 1);
        wait_for(&p, "in_flight", 0);
        assert_int_equal(stat_of(&p, "entries"), 0);
        rig_gate_set(&p.up.gate, false);
        expect(&p, BODY("wait", STREAM), "miss");
        pair_close(&p);
    }
}

/* The service ends under a run that others follow. */
static void test_shutdown(void **state)
{
    struct pair p;
    struct response a;
    pair_open(&p);
    rig_gate_set(&p.up.gate, true);
    int lead = begin_with(&p, "", BODY("wait", STREAM));
    wait_for(&p, "in_flight", 1);
    int follower = begin_with(&p, "", BODY("wait", STREAM));
    wait_for(&p, "coalesced", 1);
    close(lead);
    wait_count(&p.up.n_asked, 1);
    rig_stop(&p.r);
    client_read(follower, &a);
    assert_false(a.complete);
    response_release(&a);
    wait_count(&p.up.n_left, 1);
    pair_close(&p);
}

/* Who began it is told of a failure; the others try again, once. A refusal is everybody's. */
static void test_failure(void **state)
{
    enum { CLIENTS = 5 };
    static const struct {
        const char *body;
        int status, asked;
    } rows[] = {{BODY("wait status 500", ""), 502, 2}, {BODY("wait status 400", ""), 400, 1}};
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct pair p;
        int fds[CLIENTS];
        pair_open(&p);
        rig_gate_set(&p.up.gate, true);
        for (int k = 0; k < CLIENTS; k++) {
            fds[k] = begin_with(&p, "", rows[i].body);
            wait_for(&p, k ? "coalesced" : "in_flight", k ? k : 1);
        }
        rig_gate_set(&p.up.gate, false);
        for (int k = 0; k < CLIENTS; k++) {
            struct response a;
            client_read(fds[k], &a);
            assert_int_equal(a.status, rows[i].status);
            response_release(&a);
        }
        assert_int_equal(p.up.n_asked, rows[i].asked);
        assert_int_equal(stat_of(&p, "entries"), 0);
        pair_close(&p);
    }
}

/* Each has its own deadline: a follower's ends nothing, and after a leader's a follower asks again
 * if it has seen nothing yet. */
static void test_deadlines(void **state)
{
    struct pair p;
    struct response a;
    pair_open(&p);
    rig_gate_set(&p.up.gate, true);
    int lead = begin_with(&p, "", BODY("wait", ",\"timeout\":1"));
    wait_for(&p, "in_flight", 1);
    int patient = begin_with(&p, "", BODY("wait", ""));
    wait_for(&p, "coalesced", 1);
    int hasty = begin_with(&p, "X-Request-Timeout: 0.02\r\n", BODY("wait", ""));
    client_read(hasty, &a);
    assert_int_equal(a.status, 504);
    response_release(&a);
    client_read(lead, &a);
    assert_int_equal(a.status, 504);
    response_release(&a);
    wait_for(&p, "reruns", 1);
    rig_gate_set(&p.up.gate, false);
    client_read(patient, &a);
    assert_int_equal(a.status, 200);
    response_release(&a);
    expect(&p, BODY("wait", ""), "hit");
    pair_close(&p);
}

/* A follower that does not read stops nobody, and loses nothing. */
static void test_slow_follower(void **state)
{
    struct pair p;
    struct response fast, slow;
    pair_open(&p);
    rig_gate_set(&p.up.gate, true);
    int lead = begin_with(&p, "", BODY("wait long", STREAM));
    wait_for(&p, "in_flight", 1);
    int follower = begin_with(&p, "", BODY("wait long", STREAM));
    wait_for(&p, "coalesced", 1);
    rig_gate_set(&p.up.gate, false);
    client_read(lead, &fast);
    assert_true(fast.complete && fast.body.len > LONG_EVENTS * 1000);
    client_read(follower, &slow);
    assert_true(slow.complete);
    assert_alike(&slow, &fast);
    response_release(&fast);
    response_release(&slow);

    /* both are slow: then the upstream waits, and goes on with whoever reads first */
    rig_gate_set(&p.up.gate, true);
    lead = begin_with(&p, "", BODY("wait long ", STREAM));
    wait_for(&p, "in_flight", 1);
    follower = begin_with(&p, "", BODY("wait long ", STREAM));
    wait_for(&p, "coalesced", 2);
    rig_gate_set(&p.up.gate, false);
    client_read(follower, &slow);
    client_read(lead, &fast);
    assert_true(fast.complete && slow.complete);
    assert_alike(&slow, &fast);
    response_release(&fast);
    response_release(&slow);
    pair_close(&p);
}

/* A tier whose backend fails gives its leader and its followers to the next one. */
static void test_tiers(void **state)
{
    static const char tiers[] = "tiers:\n"
                                "  - {name: far, models: [m], backends: [up], fallback: [near]}\n"
                                "  - {name: near, models: [alphabet]}\n";
    static const char body[] = "{\"model\":\"far\",\"messages\":[{\"role\":\"user\",\"content\":"
                               "\"wait status 500\"}],\"temperature\":0,\"max_tokens\":4}";
    enum { CLIENTS = 4 };
    struct pair p;
    int fds[CLIENTS];
    pair_open_with(&p, (struct rig_opts){0}, tiers);
    rig_gate_set(&p.up.gate, true);
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = begin_with(&p, "", body);
        wait_for(&p, i ? "coalesced" : "in_flight", i ? i : 1);
    }
    rig_gate_set(&p.up.gate, false);
    for (int i = 0; i < CLIENTS; i++) {
        struct response a;
        client_read(fds[i], &a);
        assert_int_equal(a.status, 200);
        assert_non_null(strstr(a.body.data, "\"abcd\""));
        response_release(&a);
    }
    pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_again),     cmocka_unit_test(test_same_question),
        cmocka_unit_test(test_who),       cmocka_unit_test(test_not_kept),
        cmocka_unit_test(test_coalesced), cmocka_unit_test(test_all_leave),
        cmocka_unit_test(test_failure),   cmocka_unit_test(test_shutdown),
        cmocka_unit_test(test_deadlines), cmocka_unit_test(test_slow_follower),
        cmocka_unit_test(test_tiers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
