/* client_direct.c - calls to http://ADDRESS:PORT: llhttp on the socket, connections kept by host.
 *
 *   connecting -> sending, reading the head -> reading the body -> idle -> next call
 *        \______________\______________________\________________/-> closed
 *
 * A head is parsed when all of it is there, so that its names and values lie in one piece. */
#define _GNU_SOURCE /* memmem */
#include <arpa/inet.h>
#include <errno.h>
#include <llhttp.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/mem.h"
#include "http/client_private.h"

enum { IDLE_MS = 60000 }; /* an older connection may have been forgotten on the way */

struct host {
    struct sockaddr_storage address;
    socklen_t n_address;
    struct link idle; /* the youngest last */
};

struct direct {
    uv_poll_t poll;
    int fd, events; /* what the handle waits for */
    struct http_client *client;
    struct host *host;
    struct link all, idle;
    struct http_call *call; /* NULL: idle, or about to be freed */
    bool connecting, used;  /* a call went over it before this one */
    int64_t idle_ms;
    struct str unsent[2]; /* head, body */

    llhttp_t llhttp;
    struct buf head;
    struct str name;          /* of the header whose value comes next */
    bool in_body, done, junk; /* bytes behind the answer */
};

static void start_on(struct http_call *call, bool fresh);

bool direct_serves(const struct direct *d, const struct http_call *call)
{
    return d->call == call;
}

bool direct_is_connecting(const struct http_call *call)
{
    return call->direct && call->direct->connecting;
}

bool direct_call_is_sent(const struct http_call *call)
{
    const struct direct *d = call->direct;
    return d && !d->connecting && d->in_body && !d->unsent[0].n && !d->unsent[1].n;
}

/* ---- connections ---- */

static void on_closed(uv_handle_t *h)
{
    struct direct *d = h->data;
    struct http_client *c = d->client;
    buf_release(&d->head);
    free(d);
    client_handle_closed(c);
}

static void close_direct(struct direct *d)
{
    if (!link_alone(&d->idle))
        d->client->n_idle--;
    link_del(&d->idle);
    link_del(&d->all);
    uv_close((uv_handle_t *)&d->poll, on_closed);
    close(d->fd);
}

/* The call goes on without the connection. */
static struct http_call *detach(struct direct *d)
{
    struct http_call *call = d->call;
    d->call = NULL;
    call->direct = NULL;
    return call;
}

static void fail(struct direct *d, int code, const char *why)
{
    struct http_call *call = detach(d);
    struct err e = {0};
    close_direct(d);
    err_set(&e, code, "%s", why);
    call_end(call, &e);
}

/* The connection is of no use. One that was kept may have been closed while the request was on its
 * way to it: then nobody has read the request, and a fresh one gets it. */
static void broken(struct direct *d, int code, const char *why)
{
    struct http_call *call = d->call;
    if (!d->used || call->retried || d->head.len || d->in_body) {
        fail(d, code, why);
        return;
    }
    detach(d);
    close_direct(d);
    call->retried = true;
    start_on(call, true);
}

static void keep(struct direct *d)
{
    struct http_client *c = d->client;
    if (c->n_idle >= c->opts.max_idle) {
        close_direct(d);
        return;
    }
    d->used = true;
    d->idle_ms = client_now_ms(c);
    link_add(&d->host->idle, &d->idle);
    c->n_idle++;
}

static void finish(struct direct *d)
{
    bool kept =
        llhttp_should_keep_alive(&d->llhttp) && !d->junk && !d->unsent[0].n && !d->unsent[1].n;
    struct http_call *call = detach(d);
    if (kept)
        keep(d);
    else
        close_direct(d);
    call_end(call, NULL);
}

/* ---- sending ---- */

/* false: the connection is broken. */
static bool flush(struct direct *d)
{
    while (d->unsent[0].n || d->unsent[1].n) {
        struct iovec parts[2] = {{(char *)d->unsent[0].p, d->unsent[0].n},
                                 {(char *)d->unsent[1].p, d->unsent[1].n}};
        struct msghdr m = {.msg_iov = parts, .msg_iovlen = 2};
        ssize_t sent = sendmsg(d->fd, &m, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return errno == EAGAIN || errno == EWOULDBLOCK;
        for (int i = 0; i < 2; i++) {
            size_t n = (size_t)sent < d->unsent[i].n ? (size_t)sent : d->unsent[i].n;
            d->unsent[i] = (struct str){d->unsent[i].p + n, d->unsent[i].n - n};
            sent -= (ssize_t)n;
        }
    }
    return true;
}

/* ---- the answer ---- */

static int on_field(llhttp_t *h, const char *p, size_t n)
{
    struct direct *d = h->data;
    d->name = (struct str){p, n};
    return 0;
}

static int on_value(llhttp_t *h, const char *p, size_t n)
{
    struct direct *d = h->data;
    if (d->name.p && !d->in_body) /* trailers mean nothing to us, RFC 9110 6.5.1 */
        call_add_header(d->call, d->name, (struct str){p, n});
    d->name.p = NULL;
    return 0;
}

static int on_head(llhttp_t *h)
{
    struct direct *d = h->data;
    h->upgrade = 0;
    return d->call->is_head; /* 1: there is no body, whatever the head says */
}

static int on_piece(llhttp_t *h, const char *p, size_t n)
{
    struct direct *d = h->data;
    buf_add(&d->call->data, p, n);
    return 0;
}

static int on_done(llhttp_t *h)
{
    struct direct *d = h->data;
    d->done = true;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_header_field = on_field,
    .on_header_value = on_value,
    .on_headers_complete = on_head,
    .on_body = on_piece,
    .on_message_complete = on_done,
};

static void expect_head(struct direct *d)
{
    buf_clear(&d->head);
    d->in_body = d->done = d->junk = false;
    d->name = (struct str){NULL, 0};
    llhttp_init(&d->llhttp, HTTP_RESPONSE, &settings);
    d->llhttp.data = d;
    if (d->call) {
        d->call->n_headers = 0;
        d->call->status = 0;
    }
}

/* The head in d->head. false: the call is over. */
static bool take_head(struct direct *d)
{
    struct http_call *call = d->call;
    llhttp_errno_t rc = llhttp_execute(&d->llhttp, d->head.data, d->head.len);
    int status = d->llhttp.status_code;
    bool fine = (rc == HPE_OK || rc == HPE_PAUSED) && d->llhttp.http_major == 1 && status >= 100 &&
                status != 101;
    if (!fine) {
        fail(d, ERR_FORMAT, "the answer is not HTTP");
        return false;
    }
    if (rc == HPE_PAUSED)
        llhttp_resume(&d->llhttp);
    if (status < 200) { /* another head follows */
        expect_head(d);
        return true;
    }
    d->in_body = true;
    call->status = status;
    return call_head_is_here(call);
}

/* Adds to the head; returns how many bytes belong to it, or -1: the call is over. */
static ssize_t add_head(struct direct *d, const char *p, size_t n)
{
    size_t before = d->head.len, most = d->client->opts.max_head_bytes;
    size_t take = n < most + 1 - before ? n : most + 1 - before;
    buf_add(&d->head, p, take);
    size_t start = before > 3 ? before - 3 : 0, known = d->head.len < 7 ? d->head.len : 7;
    if (memcmp(d->head.data, "HTTP/1.", known) != 0) {
        fail(d, ERR_FORMAT, "the answer is not HTTP");
        return -1;
    }
    const char *end = memmem(d->head.data + start, d->head.len - start, "\r\n\r\n", 4);
    if (!end && d->head.len > most) {
        fail(d, ERR_FORMAT, "the head of the answer is too large");
        return -1;
    }
    if (!end)
        return (ssize_t)take;
    size_t used = (size_t)(end + 4 - d->head.data) - before;
    d->head.len = before + used;
    d->head.data[d->head.len] = 0;
    return take_head(d) ? (ssize_t)used : -1;
}

/* Gives out what has come. false: the call is over. */
static bool give(struct direct *d)
{
    struct http_call *call = d->call;
    struct buf data = call->data;
    call->data = (struct buf){0};
    call->last_ms = client_now_ms(d->client);
    if (data.len && call->opts.on_data)
        call->opts.on_data(call, data.data, data.len);
    bool alive = d->call == call;
    if (alive) { /* the next turn needs as much */
        buf_clear(&data);
        call->data = data;
    } else {
        buf_release(&data);
    }
    return alive;
}

static void add_body(struct direct *d, const char *p, size_t n)
{
    llhttp_errno_t rc = llhttp_execute(&d->llhttp, p, n);
    if (rc == HPE_PAUSED)
        d->junk = llhttp_get_error_pos(&d->llhttp) < p + n;
    bool fine = rc == HPE_OK || rc == HPE_PAUSED;
    if (!give(d))
        return;
    if (!fine)
        fail(d, ERR_FORMAT, "the answer is malformed");
    else if (d->done)
        finish(d);
}

static void take(struct direct *d, const char *p, size_t n)
{
    while (n && !d->in_body) {
        ssize_t used = add_head(d, p, n);
        if (used < 0)
            return;
        p += used;
        n -= (size_t)used;
    }
    if (d->in_body && d->done) { /* the head was all */
        d->junk = n > 0;
        finish(d);
    } else if (d->in_body && n) {
        add_body(d, p, n);
    }
}

static void at_end(struct direct *d)
{
    if (!d->in_body) {
        broken(d, d->head.len ? ERR_FORMAT : ERR_IO,
               d->head.len ? "the answer was cut short"
                           : "the connection was closed without an answer");
        return;
    }
    llhttp_finish(&d->llhttp); /* an answer without a length ends here */
    d->junk = true;
    if (d->done)
        finish(d);
    else
        fail(d, ERR_FORMAT, "the answer was cut short");
}

static void receive(struct direct *d)
{
    char *buf = d->client->read_buf;
    ssize_t n = recv(d->fd, buf, CLIENT_READ_BYTES, 0);
    if (n > 0)
        take(d, buf, (size_t)n);
    else if (n == 0)
        at_end(d);
    else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
        broken(d, ERR_IO, "the connection broke");
}

/* ---- events ---- */

static void on_event(uv_poll_t *poll, int status, int events);

static void watch(struct direct *d)
{
    bool sends = d->connecting || d->unsent[0].n || d->unsent[1].n;
    bool reads = !d->connecting && !(d->call && d->call->paused);
    int events = (reads ? UV_READABLE : 0) | (sends ? UV_WRITABLE : 0);
    if (events == d->events)
        return;
    d->events = events;
    if (events)
        uv_poll_start(&d->poll, events, on_event);
    else
        uv_poll_stop(&d->poll);
}

static bool connected(struct direct *d)
{
    int why = 0;
    socklen_t n = sizeof why;
    getsockopt(d->fd, SOL_SOCKET, SO_ERROR, &why, &n);
    d->connecting = false;
    return why == 0;
}

static void on_event(uv_poll_t *poll, int status, int events)
{
    struct direct *d = poll->data;
    struct http_call *call = d->call;
    if (!call) { /* closed by its server while idle, or talking out of turn */
        close_direct(d);
        return;
    }
    if (d->connecting && !connected(d)) {
        fail(d, ERR_IO, "no connection can be made");
        return;
    }
    if (!flush(d) || status < 0) {
        broken(d, ERR_IO, "the connection broke");
        return;
    }
    if (events & UV_READABLE)
        receive(d);
    if (d->call == call)
        watch(d);
}

/* ---- starting ---- */

/* "127.0.0.1", "[::1]:8000" ... and what follows it. false: no address. */
static bool parse_url(const char *url, struct sockaddr_storage *a, socklen_t *n, struct str *name,
                      const char **path)
{
    if (strncmp(url, "http://", 7) != 0)
        return false;
    const char *p = url + 7, *end = p + strcspn(p, "/?#");
    *name = (struct str){p, (size_t)(end - p)};
    *path = end;
    for (const char *c = url; *c; c++)
        if ((unsigned char)*c <= ' ' || (unsigned char)*c >= 0x7f || *c == '#')
            return false;
    bool six = *p == '[';
    const char *stop = six ? memchr(p, ']', name->n) : memchr(p, ':', name->n);
    if (six && !stop)
        return false;
    char host[64];
    struct str h = {p + six, (size_t)((stop ? stop : end) - p) - six};
    const char *colon = stop ? stop + six : end;
    int64_t port = 80;
    if (h.n >= sizeof host || (colon < end && *colon != ':') ||
        (colon < end && (!str_to_i64((struct str){colon + 1, (size_t)(end - colon - 1)}, &port) ||
                         port < 1 || port > 65535)))
        return false;
    memcpy(host, h.p, h.n);
    host[h.n] = 0;
    memset(a, 0, sizeof *a);
    struct sockaddr_in *a4 = (struct sockaddr_in *)a;
    struct sockaddr_in6 *a6 = (struct sockaddr_in6 *)a;
    a->ss_family = six ? AF_INET6 : AF_INET;
    *n = six ? sizeof *a6 : sizeof *a4;
    if (six)
        a6->sin6_port = htons((uint16_t)port);
    else
        a4->sin_port = htons((uint16_t)port);
    return inet_pton(a->ss_family, host, six ? (void *)&a6->sin6_addr : &a4->sin_addr) == 1;
}

static struct host *host_of(struct http_client *c, struct str name,
                            const struct sockaddr_storage *a, socklen_t n)
{
    struct host *h = map_get(&c->hosts, name);
    if (h)
        return h;
    h = xcalloc(1, sizeof *h);
    h->address = *a;
    h->n_address = n;
    link_init(&h->idle);
    map_put(&c->hosts, name, h);
    return h;
}

static void make_request(struct http_call *call, const struct http_call_opts *o, struct str host,
                         const char *path)
{
    struct buf *b = &call->request;
    const char *agent = call->client->opts.user_agent;
    buf_addf(b, "%s %s%s HTTP/1.1\r\nHost: %.*s\r\nAccept: */*\r\n",
             o->method ? o->method
             : o->body ? "POST"
                       : "GET",
             *path == '/' ? "" : "/", path, (int)host.n, host.p);
    if (agent)
        buf_addf(b, "User-Agent: %s\r\n", agent);
    for (const char *const *h = o->headers; h && *h; h++) {
        buf_adds(b, *h);
        buf_adds(b, "\r\n");
    }
    if (o->body)
        buf_addf(b, "Content-Length: %zu\r\n", o->n_body);
    buf_adds(b, "\r\n");
}

static struct direct *take_idle(struct http_client *c, struct host *h)
{
    while (!link_alone(&h->idle)) {
        struct direct *d = CONTAINER_OF(h->idle.prev, struct direct, idle);
        if (client_now_ms(c) - d->idle_ms < IDLE_MS) {
            link_del(&d->idle);
            c->n_idle--;
            return d;
        }
        close_direct(d);
    }
    return NULL;
}

static struct direct *connect_to(struct http_client *c, struct host *h)
{
    int on = 1, fd = socket(h->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return NULL;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    int rc = connect(fd, (struct sockaddr *)&h->address, h->n_address);
    bool later = rc < 0 && errno == EINPROGRESS;
    struct direct *d = xcalloc(1, sizeof *d);
    if ((rc < 0 && !later) || uv_poll_init_socket(c->uv, &d->poll, fd)) {
        close(fd);
        free(d);
        return NULL;
    }
    d->poll.data = d;
    d->fd = fd;
    d->client = c;
    d->host = h;
    d->connecting = later;
    link_init(&d->idle);
    link_init(&d->all);
    link_add(&c->directs, &d->all);
    c->n_handles++;
    return d;
}

static void tell_broken(uv_timer_t *t)
{
    struct http_client *c = t->data;
    while (!link_alone(&c->broken)) {
        struct err e = {0};
        struct http_call *call = CONTAINER_OF(c->broken.next, struct http_call, broken);
        link_del(&call->broken);
        err_set(&e, ERR_IO, "no connection can be made");
        call_end(call, &e);
    }
}

/* Over a kept connection unless it must be a fresh one. Calls nobody back. */
static void start_on(struct http_call *call, bool fresh)
{
    struct http_client *c = call->client;
    struct direct *d;
    do {
        d = fresh ? NULL : take_idle(c, call->host);
        if (!d) {
            fresh = true;
            d = connect_to(c, call->host);
        }
        if (!d) {
            link_add(&c->broken, &call->broken);
            uv_timer_start(&c->kick, tell_broken, 0, 0);
            return;
        }
        d->call = call;
        call->direct = d;
        call->reused = d->used;
        expect_head(d);
        d->unsent[0] = (struct str){call->request.data, call->request.len};
        d->unsent[1] = (struct str){call->opts.body, call->opts.body ? call->opts.n_body : 0};
        if (!d->connecting && !flush(d)) { /* kept, and closed meanwhile */
            detach(d);
            close_direct(d);
            d = NULL;
        }
    } while (!d);
    watch(d);
}

bool direct_call_start(struct http_call *call, const struct http_call_opts *o)
{
    struct http_client *c = call->client;
    struct sockaddr_storage a;
    socklen_t n;
    struct str name;
    const char *path;
    if (!parse_url(o->url, &a, &n, &name, &path))
        return false;
    call->host = host_of(c, name, &a, n);
    call->is_head = o->method && strcmp(o->method, "HEAD") == 0;
    make_request(call, o, name, path);
    call->state = CALL_RUNS;
    link_add(&c->calls, &call->link);
    start_on(call, false);
    call_watch_due(call);
    return true;
}

void direct_call_drop(struct http_call *call)
{
    struct direct *d = call->direct;
    link_del(&call->broken);
    if (!d)
        return;
    detach(d);
    close_direct(d);
}

void direct_call_pause(struct http_call *call, bool pause)
{
    if (call->direct)
        watch(call->direct);
}

/* ---- life ---- */

void direct_part_open(struct http_client *c)
{
    link_init(&c->directs);
    link_init(&c->broken);
    uv_timer_init(c->uv, &c->kick);
    c->kick.data = c;
    c->n_handles++;
    c->read_buf = xmalloc(CLIENT_READ_BYTES);
}

static void on_kick_closed(uv_handle_t *h)
{
    client_handle_closed(h->data);
}

void direct_part_close(struct http_client *c)
{
    struct map_slot *slot;
    while (!link_alone(&c->directs))
        close_direct(CONTAINER_OF(c->directs.next, struct direct, all));
    for (size_t i = 0; (slot = map_next(&c->hosts, &i));)
        free(slot->value);
    uv_close((uv_handle_t *)&c->kick, on_kick_closed);
}
