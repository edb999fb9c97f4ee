/* http_rig.h - a real server on its own thread, and raw sockets to talk to it. */
#pragma once

#include "unit.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/mem.h"
#include "http/http.h"
#include "http/loop.h"

enum { RIG_PATIENCE_S = 60 }; /* only ends a test that hangs */

struct rig {
    struct http_loop *loop;
    struct http_server *server;
    pthread_t thread;
    int port;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* under lock */
    int n_seen, n_complete, n_cut; /* requests, on_closed(true), on_closed(false) */
    int64_t cut_ns;                /* when the last on_closed(false) came */
    int n_done;                    /* rig_call, server closed */
    size_t most_queued, n_data;    /* of /fill; bytes of /upload */
    struct http_req *held;         /* the last request of /hold, /sse: touched on the loop only */
};

static inline void rig_bump(struct rig *r, int *counter)
{
    pthread_mutex_lock(&r->lock);
    ++*counter;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static inline int rig_count(struct rig *r, const int *counter)
{
    pthread_mutex_lock(&r->lock);
    int n = *counter;
    pthread_mutex_unlock(&r->lock);
    return n;
}

/* Waits until the counter has reached n. */
static inline void rig_wait(struct rig *r, int *counter, int n)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += RIG_PATIENCE_S;
    int rc = 0;
    pthread_mutex_lock(&r->lock);
    while (*counter < n && rc == 0)
        rc = pthread_cond_timedwait(&r->changed, &r->lock, &until);
    int have = *counter;
    pthread_mutex_unlock(&r->lock);
    assert_true(have >= n);
}

/* ---- the handler ---- */

static inline void rig_closed(struct http_req *q, bool complete)
{
    struct rig *r = q->arg;
    pthread_mutex_lock(&r->lock);
    if (r->held == q)
        r->held = NULL;
    if (!complete)
        r->cut_ns = clock_ns();
    pthread_mutex_unlock(&r->lock);
    rig_bump(r, complete ? &r->n_complete : &r->n_cut);
}

static inline void rig_fill(struct http_req *q)
{
    static const char piece[4000];
    struct rig *r = q->arg;
    bool more;
    do {
        more = http_write(q, piece, sizeof piece);
        pthread_mutex_lock(&r->lock);
        if (http_queued(q) > r->most_queued)
            r->most_queued = http_queued(q);
        pthread_mutex_unlock(&r->lock);
    } while (more);
}

static inline void rig_big(struct http_req *q)
{
    struct str n = http_query(q, "n");
    uint64_t size = 0;
    assert_true(n.p && str_to_u64(n, &size));
    char *body = xmalloc(size + 1);
    memset(body, 'x', size);
    http_reply(q, 200, "text/plain", body, size);
    free(body);
}

static inline void rig_chunks(struct http_req *q)
{
    http_begin(q, 200, "application/x-ndjson", -1);
    for (int i = 0; i < 3; i++)
        http_write(q, "{\"a\":1}\n", 8);
    http_end(q);
}

static inline void rig_events(struct http_req *q)
{
    http_begin_events(q);
    http_write_event(q, NULL, "one\ntwo", 7);
    http_write_event(q, "stop", "", 0);
    http_end(q);
}

static inline void rig_short(struct http_req *q)
{
    http_begin(q, 200, "text/plain", 10);
    http_write(q, "12345", 5);
    http_end(q);
}

static inline void rig_sized(struct http_req *q)
{
    http_drop_body(q);
    assert_int_equal(q->body.n, 0);
    http_begin(q, 200, "text/plain", 10);
    http_write(q, "12345", 5);
    http_write(q, "67890", 5);
    http_end(q);
}

static inline void rig_long(struct http_req *q)
{
    http_begin(q, 200, "text/plain", 10);
    assert_false(http_write(q, "12345678901", 11));
}

/* A producer that does not stop when told. */
static inline void rig_ignore(struct http_req *q)
{
    static const char piece[10000];
    http_begin(q, 200, "text/plain", -1);
    for (int i = 0; i < 100000; i++)
        http_write(q, piece, sizeof piece);
    assert_true(http_queued(q) <= 16 * 65536 + 20000);
}

static inline void rig_done(void *arg)
{
    struct rig *r = arg;
    http_loop_stop(r->loop);
}

static inline void rig_quit(struct http_req *q, bool complete)
{
    struct rig *r = q->arg;
    rig_closed(q, complete);
    http_server_close(r->server, 3600 * 1000, rig_done, r);
}

static inline void rig_on_request(struct http_req *q)
{
    struct rig *r = q->arg;
    q->on_closed = rig_closed;
    rig_bump(r, &r->n_seen);
    if (str_eqs(q->path, "/echo")) {
        http_add_header(q, "X-Method", "a\r\nInjected: b");
        http_reply(q, 200, "text/plain", q->body.p, q->body.n);
    } else if (str_eqs(q->path, "/hold") || str_eqs(q->path, "/sse")) {
        pthread_mutex_lock(&r->lock);
        r->held = q;
        pthread_mutex_unlock(&r->lock);
        if (str_eqs(q->path, "/sse"))
            http_begin_events(q);
    } else if (str_eqs(q->path, "/fill")) {
        q->on_drain = rig_fill;
        http_begin(q, 200, NULL, -1);
        rig_fill(q);
    } else if (str_eqs(q->path, "/big")) {
        rig_big(q);
    } else if (str_eqs(q->path, "/chunks")) {
        rig_chunks(q);
    } else if (str_eqs(q->path, "/events")) {
        rig_events(q);
    } else if (str_eqs(q->path, "/short")) {
        rig_short(q);
    } else if (str_eqs(q->path, "/sized")) {
        rig_sized(q);
    } else if (str_eqs(q->path, "/long")) {
        rig_long(q);
    } else if (str_eqs(q->path, "/ignore")) {
        rig_ignore(q);
    } else if (str_eqs(q->path, "/abort")) {
        http_begin_events(q);
        http_abort(q);
    } else if (str_eqs(q->path, "/quit")) {
        q->on_closed = rig_quit;
        http_reply(q, 200, "text/plain", "bye", 3);
    } else if (str_eqs(q->path, "/nothing")) {
        http_reply(q, 204, NULL, NULL, 0);
    } else if (!str_eqs(q->path, "/upload")) {
        char body[200];
        int n = snprintf(body, sizeof body, "%.*s %.*s", (int)q->method.n, q->method.p,
                         (int)q->path.n < 100 ? (int)q->path.n : 100, q->path.p);
        http_reply(q, str_eqs(q->path, "/") ? 200 : 404, "text/plain", body, (size_t)n);
    }
}

static inline void rig_resume(void *arg)
{
    struct rig *r = arg;
    if (r->held)
        http_resume_body(r->held);
}

static inline void rig_on_data(struct http_req *q, const char *p, size_t n)
{
    struct rig *r = q->arg;
    pthread_mutex_lock(&r->lock);
    r->n_data += n;
    size_t all = r->n_data;
    pthread_mutex_unlock(&r->lock);
    if (n) { /* each piece waits for a turn of the loop */
        http_pause_body(q);
        http_loop_post(r->loop, rig_resume, r);
        return;
    }
    char body[32];
    int len = snprintf(body, sizeof body, "%zu", all);
    http_reply(q, 200, "text/plain", body, (size_t)len);
}

static inline void rig_on_head(struct http_req *q)
{
    struct rig *r = q->arg;
    q->on_closed = rig_closed;
    if (str_eqs(q->path, "/deny")) {
        http_reply(q, 401, "text/plain", "no", 2);
    } else if (str_eqs(q->path, "/upload")) {
        http_set_body_limit(q, (size_t)1 << 30);
        http_stream_body(q, rig_on_data);
        pthread_mutex_lock(&r->lock);
        r->held = q;
        r->n_data = 0;
        pthread_mutex_unlock(&r->lock);
    }
}

/* ---- life ---- */

static inline void *rig_run(void *arg)
{
    struct rig *r = arg;
    http_loop_run(r->loop);
    return NULL;
}

static inline struct http_server_opts rig_opts(struct rig *r)
{
    *r = (struct rig){0};
    struct http_server_opts o = http_server_defaults();
    o.handler = (struct http_handler){.on_request = rig_on_request, .on_head = rig_on_head};
    o.arg = r;
    return o;
}

static inline void rig_open(struct rig *r, const struct http_server_opts *o)
{
    struct err e = {0};
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    assert_int_equal(http_loop_new(&r->loop, &e), 0);
    if (http_server_open(&r->server, r->loop, o, &r->port, &e) < 0)
        fail_msg("%s", e.msg);
    assert_true(r->port > 0);
    assert_int_equal(pthread_create(&r->thread, NULL, rig_run, r), 0);
}

struct rig_call {
    struct rig *rig;
    void (*fn)(struct rig *r, void *arg);
    void *arg;
};

static inline void rig_call_run(void *arg)
{
    struct rig_call *c = arg;
    c->fn(c->rig, c->arg);
    rig_bump(c->rig, &c->rig->n_done);
}

/* Runs fn on the loop's thread and waits for it. */
static inline void rig_call(struct rig *r, void (*fn)(struct rig *r, void *arg), void *arg)
{
    struct rig_call c = {r, fn, arg};
    pthread_mutex_lock(&r->lock);
    int n = r->n_done + 1;
    pthread_mutex_unlock(&r->lock);
    http_loop_post(r->loop, rig_call_run, &c);
    rig_wait(r, &r->n_done, n);
}

static inline void rig_shut(struct rig *r, void *grace_ms)
{
    http_server_close(r->server, *(int *)grace_ms, rig_done, r);
}

static inline void rig_get_stats(struct rig *r, void *out)
{
    *(struct http_server_stats *)out = http_server_stats(r->server);
}

static inline struct http_server_stats rig_stats(struct rig *r)
{
    struct http_server_stats s;
    rig_call(r, rig_get_stats, &s);
    return s;
}

static inline void rig_join(struct rig *r)
{
    pthread_join(r->thread, NULL);
    http_loop_free(r->loop);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->changed);
}

static inline void rig_close(struct rig *r)
{
    int grace_ms = 0;
    rig_call(r, rig_shut, &grace_ms);
    rig_join(r);
}

/* ---- client ---- */

static inline int rig_connect(const struct rig *r)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)r->port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = RIG_PATIENCE_S};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

/* false when the server has closed. */
static inline bool rig_send(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t w = send(fd, p, n, MSG_NOSIGNAL);
        if (w <= 0)
            return false;
        p += w;
        n -= (size_t)w;
    }
    return true;
}

static inline bool rig_sends(int fd, const char *s)
{
    return rig_send(fd, s, strlen(s));
}

/* Reads until `text` has come. false at the end of the connection. */
static inline bool rig_read_to(int fd, struct buf *in, const char *text)
{
    while (!in->len || !memmem(in->data, in->len, text, strlen(text))) {
        char tmp[16384];
        ssize_t n = recv(fd, tmp, sizeof tmp, 0);
        if (n <= 0)
            return false;
        buf_add(in, tmp, (size_t)n);
    }
    return true;
}

/* Everything until the server closes. */
static inline void rig_read_all(int fd, struct buf *in)
{
    char tmp[65536];
    ssize_t n;
    while ((n = recv(fd, tmp, sizeof tmp, 0)) > 0)
        buf_add(in, tmp, (size_t)n);
    if (n < 0 && errno != ECONNRESET)
        fail_msg("the server has not closed: %s", strerror(errno));
}

/* "200,404": the status of each response in the bytes. */
static inline void rig_statuses(const struct buf *in, char *out, size_t room)
{
    const char *p = buf_str(in), *end = p + in->len;
    size_t n = 0;
    out[0] = 0;
    while (p < end && (p = memmem(p, (size_t)(end - p), "HTTP/1.1 ", 9)) && n + 5 < room) {
        n += (size_t)snprintf(out + n, room - n, "%s%.3s", n ? "," : "", p + 9);
        p += 9;
    }
}

/* One exchange that ends with the connection; the caller releases the result. */
static inline struct buf rig_exchange(const struct rig *r, const char *p, size_t n)
{
    struct buf in = {0};
    int fd = rig_connect(r);
    rig_send(fd, p, n);
    rig_read_all(fd, &in);
    close(fd);
    buf_adds(&in, "");
    return in;
}

/* ---- this process ---- */

static inline size_t rig_rss(void)
{
    long pages = 0, all = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &all, &pages), 2);
    fclose(f);
    return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

/* Sanitizers keep freed memory and shadows of all of it. */
static inline void assert_memory_growth(size_t grown, size_t most)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(grown <= most);
#endif
}

static inline int rig_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    int n = -1; /* the directory's own */
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}
