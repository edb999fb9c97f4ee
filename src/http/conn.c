#include "http/conn.h"

#include <arpa/inet.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"

/* ---- rates ---- */

void pace_start(struct pace *p, const struct http_conn *c)
{
    p->deadline_us = (conn_now_ms(c) + c->server->opts.rate_grace_ms) * 1000;
}

void pace_progress(struct pace *p, const struct http_conn *c, size_t bytes)
{
    const struct http_server_opts *o = &c->server->opts;
    int64_t most = (conn_now_ms(c) + o->rate_grace_ms) * 1000;
    p->deadline_us += (int64_t)bytes * 1000000 / o->min_bytes_per_s;
    if (p->deadline_us > most)
        p->deadline_us = most;
}

/* ---- deadlines ---- */

bool conn_is_idle(const struct http_conn *c)
{
    return c->state == CONN_HEAD && !http_parse_begun(&c->parse);
}

static void enter(struct http_conn *c, enum conn_state state)
{
    c->state = state;
    c->since_ms = conn_now_ms(c);
}

static int64_t deadline_ms(const struct http_conn *c)
{
    const struct http_server_opts *o = &c->server->opts;
    int64_t due = INT64_MAX;
    switch (c->state) {
    case CONN_HEAD:
        due =
            c->since_ms + (c->fresh || !conn_is_idle(c) ? o->head_timeout_ms : o->idle_timeout_ms);
        break;
    case CONN_BODY:
        if (!c->paused)
            due = c->body_pace.deadline_us / 1000;
        break;
    case CONN_BUSY:
        if (conn_queued(c))
            due = c->out_pace.deadline_us / 1000;
        else if (c->events && !c->ended && o->ping_ms > 0)
            due = c->written_ms + o->ping_ms;
        break;
    case CONN_LINGER:
        due = c->since_ms + HTTP_LINGER_MS;
        break;
    case CONN_CLOSED:
        break;
    }
    return due;
}

static void refuse(struct http_conn *c, int status, const char *reason);
static void readable(struct http_conn *c);
static void on_timer(uv_timer_t *timer);

/* The loop may be the late one, and timers come before sockets: what has arrived by now, or can be
 * sent, counts. */
static void catch_up(struct http_conn *c)
{
    if (conn_reads(c))
        readable(c);
    else if (!io_flush(c))
        conn_close(c);
    conn_dirty(c);
}

/* A timer that runs too early is left alone and set anew when it fires, so that the deadlines of
 * ordinary requests, which always move on, cost nothing. */
static void arm(struct http_conn *c)
{
    int64_t due = deadline_ms(c), now = conn_now_ms(c);
    if (due == INT64_MAX || (uv_is_active((uv_handle_t *)&c->timer) && c->timer_due_ms <= due))
        return;
    c->timer_due_ms = due;
    uv_timer_start(&c->timer, on_timer, due > now ? (uint64_t)(due - now) : 0, 0);
}

static void on_timer(uv_timer_t *timer)
{
    struct http_conn *c = timer->data;
    if (deadline_ms(c) <= conn_now_ms(c))
        catch_up(c);
    if (c->state == CONN_CLOSED)
        return;
    if (deadline_ms(c) > conn_now_ms(c)) {
        arm(c);
        return;
    }
    if (c->state == CONN_HEAD && !conn_is_idle(c))
        refuse(c, 408, "The head of the request did not arrive in time");
    else if (c->state == CONN_BODY)
        refuse(c, 408, "The body of the request arrives too slowly");
    else if (c->state == CONN_BUSY && !conn_queued(c))
        reply_ping(c);
    else
        conn_close(c);
}

/* ---- the end of a request, of a connection ---- */

static void tell_closed(struct http_conn *c, bool complete)
{
    if (!c->seen)
        return;
    c->seen = false;
    c->server->stats.requests--;
    if (c->req.on_closed)
        c->req.on_closed(&c->req, complete);
}

void conn_release_body(struct http_conn *c)
{
    c->req.body = STR("");
    c->server->stats.body_bytes -= c->body.len;
    buf_release(&c->body);
}

static void release_request(struct http_conn *c)
{
    conn_release_body(c);
    reply_reset(c);
    arena_release(&c->req.arena);
    http_parse_reset(&c->parse);
    c->req = (struct http_req){0};
    c->paused = c->streamed = false;
    c->on_data = NULL;
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct http_conn *c = handle->data;
    struct http_server *s = c->server;
    if (--c->n_handles == 0) {
        http_parse_release(&c->parse);
        free(c);
    }
    server_handle_closed(s);
}

void conn_close(struct http_conn *c)
{
    if (c->state == CONN_CLOSED)
        return;
    c->state = CONN_CLOSED;
    server_forget(c);
    tell_closed(c, false);
    release_request(c);
    buf_release(&c->in);
    uv_close((uv_handle_t *)&c->poll, on_handle_closed);
    uv_close((uv_handle_t *)&c->timer, on_handle_closed);
    io_close(c);
}

/* The response was for nothing if the client is still sending and our close() resets the connection
 * before it has read: so read a little longer, and drop what comes. */
static void linger(struct http_conn *c)
{
    io_finish(c);
    buf_release(&c->in);
    c->in_pos = 0;
    enter(c, CONN_LINGER);
}

static void take_input(struct http_conn *c);

/* The last byte of the response has gone to the kernel. */
static void finish(struct http_conn *c)
{
    bool unread = !http_parse_ended(&c->parse) || c->in.len > c->in_pos;
    tell_closed(c, true);
    bool again = c->keep_alive && !c->server->closing; /* it may have begun to close just now */
    release_request(c);
    c->fresh = false;
    c->head_begun = false;
    if (again) {
        enter(c, CONN_HEAD);
        take_input(c);
    } else if (unread || io_unread(c)) {
        linger(c);
    } else {
        io_finish(c);
        conn_close(c);
    }
}

/* Answers without the handler, which hears that its request is over if it knew it. */
static void refuse(struct http_conn *c, int status, const char *reason)
{
    c->server->stats.refused++;
    log_debug("http", "%s: %d %s", c->peer, status, reason);
    tell_closed(c, false);
    reply_reset(c);
    enter(c, CONN_BUSY);
    reply_error(c, status, reason);
}

/* ---- from bytes to the handler ---- */

static void fill_request(struct http_conn *c)
{
    struct http_parse *p = &c->parse;
    c->req.method = p->method;
    c->req.path = p->path;
    c->req.query = p->query;
    c->req.body = STR("");
    c->req.headers = p->headers;
    c->req.n_headers = p->n_headers;
    c->req.content_length = p->content_length;
    c->req.peer = c->peer;
    c->req.http10 = p->http10;
    c->req.tls = c->ssl != NULL;
    c->req.arg = c->server->opts.arg;
}

static void hand_over(struct http_conn *c, void (*fn)(struct http_req *))
{
    if (!c->seen) {
        c->seen = true;
        c->server->stats.requests++;
        c->server->stats.served++;
    }
    fn(&c->req);
}

static void on_head(struct http_conn *c, bool more_here)
{
    struct http_server *s = c->server;
    fill_request(c);
    enter(c, CONN_BODY);
    pace_start(&c->body_pace, c);
    http_parse_limit_body(&c->parse, s->opts.max_body_bytes);
    if (c->refuse_with) {
        refuse(c, c->refuse_with, "Too many connections, try again later");
        return;
    }
    if (s->opts.handler.on_head)
        hand_over(c, s->opts.handler.on_head);
    if (c->state != CONN_BODY || c->aborted)
        return; /* answered already */
    if (!http_parse_limit_body(&c->parse, c->parse.max_body_bytes)) {
        refuse(c, 413, "The request body is too large");
        return;
    }
    if (c->parse.expect_continue && !more_here)
        conn_queue(c, STR("HTTP/1.1 100 Continue\r\n\r\n"));
    if (c->streamed)
        hand_over(c, s->opts.handler.on_request);
}

static void on_body(struct http_conn *c)
{
    struct http_server *s = c->server;
    struct str data = c->parse.data;
    pace_progress(&c->body_pace, c, data.n);
    if (c->streamed) {
        c->on_data(&c->req, data.p, data.n);
        return;
    }
    if (data.n > s->opts.max_body_total_bytes - s->stats.body_bytes) {
        refuse(c, 503, "Too many large requests at once, try again later");
        return;
    }
    buf_add(&c->body, data.p, data.n);
    s->stats.body_bytes += data.n;
}

static void on_end(struct http_conn *c)
{
    enter(c, CONN_BUSY);
    if (c->streamed) {
        c->on_data(&c->req, "", 0);
        return;
    }
    if (c->body.len)
        c->req.body = (struct str){c->body.data, c->body.len};
    hand_over(c, c->server->opts.handler.on_request);
}

bool conn_reads(const struct http_conn *c)
{
    return c->state == CONN_HEAD || (c->state == CONN_BODY && !c->paused);
}

/* Parses until a request is complete or the bytes are used up. Returns how many were used. */
static size_t feed(struct http_conn *c, const char *p, size_t n)
{
    size_t used = 0;
    enum http_parse_event ev;
    while (conn_reads(c) && !c->aborted) {
        used += http_parse(&c->parse, p + used, n - used, &ev);
        if (c->state == CONN_HEAD && !c->head_begun && http_parse_begun(&c->parse)) {
            c->head_begun = true;
            if (!c->fresh) /* a new connection has one deadline for silence and head */
                c->since_ms = conn_now_ms(c);
        }
        switch (ev) {
        case HTTP_PARSE_MORE:
            return used;
        case HTTP_PARSE_HEAD:
            on_head(c, used < n);
            break;
        case HTTP_PARSE_DATA:
            on_body(c);
            break;
        case HTTP_PARSE_END:
            on_end(c);
            break;
        case HTTP_PARSE_ERROR:
            refuse(c, c->parse.status, c->parse.reason);
            break;
        }
    }
    return used;
}

static void readable(struct http_conn *c)
{
    char *to = c->server->read_buf;
    if (c->in.len > c->in_pos)
        return; /* older bytes first: settling takes them */
    for (int i = 0; i < HTTP_READS_PER_TURN && (conn_reads(c) || c->state == CONN_LINGER); i++) {
        ssize_t n = io_read(c, to, HTTP_READ_BYTES);
        if (n == IO_AGAIN)
            return;
        if (n <= 0) {
            conn_close(c);
            return;
        }
        if (c->state == CONN_LINGER)
            continue;
        bool head = c->state == CONN_HEAD;
        size_t used = feed(c, to, (size_t)n);
        buf_add(&c->in, to + used, (size_t)n - used);
        if (head) /* it may hold a key, and the buffer lives on */
            explicit_bzero(to, (size_t)n);
        if (!c->ssl && n < HTTP_READ_BYTES)
            return;
    }
}

/* Goes on with bytes that were read before: pipelined ones, or those left when a body was paused,
 * when even without bytes the end may be due. */
static void take_input(struct http_conn *c)
{
    const char *in = buf_str(&c->in);
    c->in_pos += feed(c, in + c->in_pos, c->in.len - c->in_pos);
    if (c->in_pos == c->in.len) {
        if (c->in.len)
            explicit_bzero(c->in.data, c->in.len);
        buf_release(&c->in);
        c->in_pos = 0;
    }
    /* What TLS has decrypted and nobody has read makes no event on the socket. */
    if (conn_reads(c) && c->ssl && SSL_pending(c->ssl) > 0)
        readable(c);
}

void conn_event(uv_poll_t *poll, int status, int events)
{
    struct http_conn *c = poll->data;
    if (status < 0 || (events & UV_DISCONNECT) || ((events & UV_PRIORITIZED) && io_hung_up(c))) {
        conn_close(c);
        return;
    }
    if ((events & UV_READABLE) || c->ssl_wants_other)
        readable(c);
    conn_dirty(c);
}

/* ---- once a turn ---- */

void conn_queue(struct http_conn *c, struct str bytes)
{
    if (!conn_queued(c))
        pace_start(&c->out_pace, c);
    buf_add(&c->out, bytes.p, bytes.n);
    conn_dirty(c);
}

void conn_dirty(struct http_conn *c)
{
    if (c->state != CONN_CLOSED && link_alone(&c->dirty))
        link_add(&c->server->dirty, &c->dirty);
}

void conn_settle(struct http_conn *c)
{
    if (c->aborted || !io_flush(c)) {
        conn_close(c);
        return;
    }
    if (c->state == CONN_BUSY && c->ended && !conn_queued(c))
        finish(c);
    else if (c->state == CONN_BODY && !c->paused)
        take_input(c);
    if (c->blocked && conn_queued(c) <= c->server->opts.max_queue_bytes / 2) {
        c->blocked = false;
        if (!c->ended && c->req.on_drain)
            c->req.on_drain(&c->req);
    }
    if (c->state == CONN_CLOSED)
        return;
    arm(c);
    io_watch(c);
}

/* ---- birth ---- */

static void read_peer(struct http_conn *c, const struct sockaddr *peer)
{
    static const unsigned char mapped[12] = {[10] = 0xff, [11] = 0xff};
    if (peer->sa_family == AF_INET) {
        const struct in_addr *a = &((const struct sockaddr_in *)peer)->sin_addr;
        memcpy(c->peer_key, mapped, sizeof mapped);
        memcpy(c->peer_key + 12, a, 4);
        inet_ntop(AF_INET, a, c->peer, sizeof c->peer);
    } else if (peer->sa_family == AF_INET6) {
        const struct in6_addr *a = &((const struct sockaddr_in6 *)peer)->sin6_addr;
        memcpy(c->peer_key, a, 16);
        if (memcmp(a, mapped, sizeof mapped) == 0) {
            inet_ntop(AF_INET, c->peer_key + 12, c->peer, sizeof c->peer);
        } else {
            inet_ntop(AF_INET6, a, c->peer, sizeof c->peer);
            memset(c->peer_key + 8, 0, 8); /* one customer has a /64 */
        }
    }
}

bool conn_open(struct http_server *s, int fd, const struct sockaddr *peer)
{
    struct http_conn *c = xcalloc(1, sizeof *c);
    if (uv_poll_init(s->uv, &c->poll, fd) != 0) {
        free(c);
        return false;
    }
    uv_timer_init(s->uv, &c->timer);
    c->poll.data = c->timer.data = c;
    c->n_handles = 2;
    c->server = s;
    c->fd = fd;
    c->fresh = true;
    link_init(&c->dirty);
    read_peer(c, peer);
    http_parse_init(&c->parse, s->opts.max_head_bytes, s->opts.max_headers, &c->req.arena);
    reply_reset(c);
    enter(c, CONN_HEAD);
    if (server_remember(c) && io_open(c) == 0)
        conn_dirty(c);
    else
        conn_close(c);
    return true;
}
