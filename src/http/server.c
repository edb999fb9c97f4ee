#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/mem.h"
#include "http/conn.h"
#include "http/loop.h"

enum { ACCEPTS_PER_TURN = 64, ACCEPT_PAUSE_MS = 100, SHED_PER_PAUSE = 16 };

struct http_server_opts http_server_defaults(void)
{
    return (struct http_server_opts){
        .host = "127.0.0.1",
        .backlog = 1024,
        .name = "terrace",
        .max_head_bytes = 32 << 10,
        .max_headers = 128,
        .max_body_bytes = 64 << 20,
        .max_body_total_bytes = 512 << 20,
        .max_queue_bytes = 64 << 10,
        .max_connections = 16384,
        .max_per_peer = 2048,
        .head_timeout_ms = 10 * 1000,
        .idle_timeout_ms = 75 * 1000,
        .min_bytes_per_s = 1024,
        .rate_grace_ms = 30 * 1000,
        .ping_ms = 15 * 1000,
    };
}

/* ---- counts ---- */

static struct str peer_key(const struct http_conn *c)
{
    return (struct str){(const char *)c->peer_key, sizeof c->peer_key};
}

bool server_remember(struct http_conn *c)
{
    struct http_server *s = c->server;
    const struct http_server_opts *o = &s->opts;
    link_add(&s->conns, &c->all);
    s->n_handles += c->n_handles;
    s->stats.connections++;
    s->stats.accepted++;
    uintptr_t n = (uintptr_t)map_get(&s->peers, peer_key(c)) + 1;
    map_put(&s->peers, peer_key(c), (void *)n);
    if (o->max_per_peer > 0 && n > (uintptr_t)o->max_per_peer)
        c->refuse_with = 429;
    else if (s->stats.connections > o->max_connections)
        c->refuse_with = 503;
    return o->max_per_peer <= 0 || n <= (uintptr_t)o->max_per_peer + HTTP_OVERFLOW;
}

void server_forget(struct http_conn *c)
{
    struct http_server *s = c->server;
    link_del(&c->all);
    link_del(&c->dirty);
    s->stats.connections--;
    uintptr_t n = (uintptr_t)map_get(&s->peers, peer_key(c)) - 1;
    if (n)
        map_put(&s->peers, peer_key(c), (void *)n);
    else
        map_del(&s->peers, peer_key(c));
}

struct http_server_stats http_server_stats(const struct http_server *s)
{
    return s->stats;
}

/* ---- the head lines that all responses share ---- */

const char *server_date(struct http_server *s)
{
    static const char *const days[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    int64_t now = clock_unix_s();
    if (now != s->date_s) {
        time_t t = (time_t)now;
        struct tm tm;
        gmtime_r(&t, &tm);
        s->date_s = now;
        buf_clear(&s->date);
        buf_addf(&s->date, "Date: %s, %02d %s %d %02d:%02d:%02d GMT\r\n", days[tm.tm_wday],
                 tm.tm_mday, months[tm.tm_mon], tm.tm_year + 1900, tm.tm_hour, tm.tm_min,
                 tm.tm_sec);
        if (s->opts.name)
            buf_addf(&s->date, "Server: %s\r\n", s->opts.name);
    }
    return s->date.data;
}

/* ---- accepting ---- */

static void on_listener(uv_poll_t *poll, int status, int events);

static void listen_on(struct http_server *s)
{
    for (int i = 0; i < s->n_listeners; i++)
        uv_poll_start(&s->listeners[i].poll, UV_READABLE, on_listener);
}

static void on_accept_again(uv_timer_t *timer)
{
    listen_on(timer->data);
}

/* New clients wait in the kernel's queue meanwhile. */
static void pause_accepting(struct http_server *s)
{
    for (int i = 0; i < s->n_listeners; i++)
        uv_poll_stop(&s->listeners[i].poll);
    uv_timer_start(&s->accept_again, on_accept_again, ACCEPT_PAUSE_MS, 0);
}

/* Out of descriptors: spends the spare one to tell some clients, so that they don't hang until the
 * queue moves again. */
static void shed(struct http_server *s, int listener)
{
    static const char reply[] = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n"
                                "Retry-After: 1\r\nContent-Length: 0\r\n\r\n";
    log_warn("http",
             "out of file descriptors: refusing connections (raise LimitNOFILE or ulimit -n)");
    for (int i = 0; i < SHED_PER_PAUSE; i++) {
        if (s->spare_fd >= 0)
            close(s->spare_fd);
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            if (!s->tls)
                (void)!send(fd, reply, sizeof reply - 1, MSG_NOSIGNAL);
            close(fd);
        }
        s->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            break;
        s->stats.refused++;
    }
    pause_accepting(s);
}

static int accept_one(int listener, struct sockaddr_storage *peer)
{
    socklen_t n = sizeof *peer;
    if (fault(FAULT_ACCEPT)) {
        errno = EMFILE;
        return -1;
    }
    return accept4(listener, (struct sockaddr *)peer, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

static void on_listener(uv_poll_t *poll, int status, int events)
{
    struct http_listener *l = poll->data;
    struct http_server *s = l->server;
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        if (s->stats.connections >= s->opts.max_connections + HTTP_OVERFLOW) {
            pause_accepting(s);
            return;
        }
        struct sockaddr_storage peer = {0};
        int fd = accept_one(l->fd, &peer);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
                shed(s, l->fd);
            else if (errno != EAGAIN && errno != EWOULDBLOCK)
                continue; /* that client has given up already */
            return;
        }
        if (!conn_open(s, fd, (struct sockaddr *)&peer))
            close(fd);
    }
}

/* ---- once a turn ---- */

/* Nothing to do: an active idle handle keeps the loop from sleeping. */
static void on_again(uv_idle_t *idle)
{
}

static void on_settle(uv_prepare_t *prepare)
{
    struct http_server *s = prepare->data;
    struct link now;
    link_init(&now);
    if (!link_alone(&s->dirty)) { /* what this makes dirty again waits for the next turn */
        link_add(&s->dirty, &now);
        link_del(&s->dirty);
    }
    while (!link_alone(&now)) {
        struct http_conn *c = CONTAINER_OF(now.next, struct http_conn, dirty);
        link_del(&c->dirty);
        conn_settle(c);
    }
    if (link_alone(&s->dirty))
        uv_idle_stop(&s->again);
    else
        uv_idle_start(&s->again, on_again);
}

/* ---- opening ---- */

static int check_opts(const struct http_server_opts *o, struct err *e)
{
    const struct {
        const char *name;
        int64_t value;
    } positive[] = {
        {"backlog", o->backlog},
        {"max_head_bytes", (int64_t)o->max_head_bytes},
        {"max_headers", (int64_t)o->max_headers},
        {"max_queue_bytes", (int64_t)o->max_queue_bytes},
        {"max_connections", o->max_connections},
        {"head_timeout_ms", o->head_timeout_ms},
        {"idle_timeout_ms", o->idle_timeout_ms},
        {"min_bytes_per_s", o->min_bytes_per_s},
        {"rate_grace_ms", o->rate_grace_ms},
    };
    BUG_ON(!o->handler.on_request);
    for (size_t i = 0; i < ARRAY_LEN(positive); i++)
        if (positive[i].value <= 0)
            return err_param(e, ERR_INVALID, positive[i].name, "%s must be greater than 0",
                             positive[i].name);
    if (o->port < 0 || o->port > 65535)
        return err_param(e, ERR_INVALID, "port", "port %d is not in 0..65535", o->port);
    if (!o->cert_file != !o->key_file)
        return err_param(e, ERR_INVALID, o->cert_file ? "key_file" : "cert_file",
                         "TLS needs both a certificate and a key: the %s is missing",
                         o->cert_file ? "key" : "certificate");
    return 0;
}

/* All of it is inherited by the accepted sockets. */
static void set_options(int fd, const struct http_server_opts *o)
{
    const struct {
        int level, name, value;
    } options[] = {
        {SOL_SOCKET, SO_REUSEADDR, 1},
        {IPPROTO_TCP, TCP_NODELAY, 1},
        /* A peer that vanished without a word is noticed after 2 minutes. */
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, 60},
        {IPPROTO_TCP, TCP_KEEPINTVL, 15},
        {IPPROTO_TCP, TCP_KEEPCNT, 4},
        /* Else the kernel takes megabytes for a client that doesn't read. */
        {IPPROTO_TCP, TCP_NOTSENT_LOWAT, (int)o->max_queue_bytes},
    };
    for (size_t i = 0; i < ARRAY_LEN(options); i++)
        setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
}

static int bound_port(int fd)
{
    struct sockaddr_storage a = {0};
    socklen_t n = sizeof a;
    getsockname(fd, (struct sockaddr *)&a, &n);
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

/* Binds one address. Returns the descriptor or -1 with errno. */
static int bind_one(const struct addrinfo *a, int port, bool several,
                    const struct http_server_opts *o)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    set_options(fd, o);
    if (a->ai_family == AF_INET6) {
        int only = several;
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only);
        ((struct sockaddr_in6 *)a->ai_addr)->sin6_port = htons((uint16_t)port);
    } else {
        ((struct sockaddr_in *)a->ai_addr)->sin_port = htons((uint16_t)port);
    }
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, o->backlog) == 0)
        return fd;
    int why = errno;
    close(fd);
    errno = why;
    return -1;
}

static int bind_all(struct http_server *s, int *port, struct err *e)
{
    const struct http_server_opts *o = &s->opts;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list = NULL;
    bool any = !o->host || !*o->host || str_eqs(str_of(o->host), "*");
    int rc = getaddrinfo(any ? NULL : o->host, "0", &hints, &list);
    if (rc)
        return err_param(e, ERR_INVALID, "host", "cannot listen on %s: %s", o->host,
                         gai_strerror(rc));
    int bound = o->port, why = 0;
    for (struct addrinfo *a = list; a && s->n_listeners < HTTP_MAX_LISTENERS; a = a->ai_next) {
        if (a->ai_family != AF_INET && a->ai_family != AF_INET6)
            continue;
        int fd = bind_one(a, bound, list->ai_next != NULL, o);
        if (fd < 0) {
            why = errno;
            if (why == EADDRNOTAVAIL || why == EAFNOSUPPORT)
                continue; /* a name for IPv4 and IPv6 on a machine that has one of them */
            break;
        }
        s->listeners[s->n_listeners++] = (struct http_listener){.fd = fd, .server = s};
        bound = bound_port(fd);
        why = 0;
    }
    freeaddrinfo(list);
    if (s->n_listeners == 0 || (why && why != EADDRNOTAVAIL && why != EAFNOSUPPORT))
        return err_param(e, ERR_IO, "port", "cannot listen on %s port %d: %s", any ? "*" : o->host,
                         o->port, strerror(why));
    if (port)
        *port = bound;
    return 0;
}

static void free_server(struct http_server *s)
{
    SSL_CTX_free(s->tls);
    map_release(&s->peers);
    buf_release(&s->date);
    free(s->read_buf);
    free((char *)s->opts.host);
    free((char *)s->opts.name);
    free((char *)s->opts.cert_file);
    free((char *)s->opts.key_file);
    if (s->spare_fd >= 0)
        close(s->spare_fd);
    free(s);
}

static char *copy(const char *text)
{
    return text ? xstrdup(text) : NULL;
}

static struct http_server *new_server(const struct http_server_opts *opts)
{
    struct http_server *s = xcalloc(1, sizeof *s);
    s->opts = *opts;
    s->opts.host = copy(opts->host);
    s->opts.name = copy(opts->name);
    s->opts.cert_file = copy(opts->cert_file);
    s->opts.key_file = copy(opts->key_file);
    s->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    s->read_buf = xmalloc(HTTP_READ_BYTES);
    link_init(&s->conns);
    link_init(&s->dirty);
    return s;
}

static void start(struct http_server *s, struct http_loop *l)
{
    s->uv = http_loop_uv(l);
    uv_timer_init(s->uv, &s->accept_again);
    uv_timer_init(s->uv, &s->grace);
    uv_prepare_init(s->uv, &s->settle);
    uv_idle_init(s->uv, &s->again);
    s->accept_again.data = s->grace.data = s->settle.data = s->again.data = s;
    s->n_handles = 4;
    uv_prepare_start(&s->settle, on_settle);
}

int http_server_open(struct http_server **out, struct http_loop *l,
                     const struct http_server_opts *opts, int *port, struct err *e)
{
    int rc = check_opts(opts, e);
    if (rc < 0)
        return rc;
    struct http_server *s = new_server(opts);
    if (opts->cert_file)
        rc = tls_open(&s->tls, opts->cert_file, opts->key_file, e);
    if (rc == 0)
        rc = bind_all(s, port, e);
    if (rc < 0) {
        for (int i = 0; i < s->n_listeners; i++)
            close(s->listeners[i].fd);
        free_server(s);
        return rc;
    }
    start(s, l);
    for (int i = 0; i < s->n_listeners; i++) {
        struct http_listener *li = &s->listeners[i];
        int bad = uv_poll_init(s->uv, &li->poll, li->fd);
        BUG_ON(bad); /* a fresh socket that epoll refuses */
        li->poll.data = li;
        s->n_handles++;
    }
    listen_on(s);
    *out = s;
    return 0;
}

int http_server_reload_tls(struct http_server *s, struct err *e)
{
    SSL_CTX *fresh;
    if (!s->tls)
        return err_set(e, ERR_INVALID, "the server was started without TLS");
    int rc = tls_open(&fresh, s->opts.cert_file, s->opts.key_file, e);
    if (rc < 0)
        return rc;
    SSL_CTX_free(s->tls); /* running connections hold a reference */
    s->tls = fresh;
    return 0;
}

/* ---- closing ---- */

static void on_closed(uv_handle_t *handle)
{
    server_handle_closed(handle->data);
}

static void on_listener_closed(uv_handle_t *handle)
{
    struct http_listener *l = handle->data;
    server_handle_closed(l->server);
}

void server_handle_closed(struct http_server *s)
{
    s->n_handles--;
    if (!s->closing || !link_alone(&s->conns))
        return;
    if (!uv_is_closing((uv_handle_t *)&s->settle)) {
        uv_close((uv_handle_t *)&s->accept_again, on_closed);
        uv_close((uv_handle_t *)&s->grace, on_closed);
        uv_close((uv_handle_t *)&s->settle, on_closed);
        uv_close((uv_handle_t *)&s->again, on_closed);
    }
    if (s->n_handles)
        return;
    void (*done)(void *arg) = s->done;
    void *arg = s->done_arg;
    free_server(s);
    if (done)
        done(arg);
}

static void on_grace_over(uv_timer_t *timer)
{
    struct http_server *s = timer->data;
    while (!link_alone(&s->conns))
        conn_close(CONTAINER_OF(s->conns.next, struct http_conn, all));
}

static void stop_listening(struct http_server *s)
{
    uv_timer_stop(&s->accept_again);
    for (int i = 0; i < s->n_listeners; i++) {
        uv_close((uv_handle_t *)&s->listeners[i].poll, on_listener_closed);
        close(s->listeners[i].fd);
    }
}

void http_server_close(struct http_server *s, int64_t grace_ms, void (*done)(void *arg), void *arg)
{
    if (!s->closing) {
        s->closing = true;
        s->done = done;
        s->done_arg = arg;
        stop_listening(s);
        for (struct link *l = s->conns.next, *next; l != &s->conns; l = next) {
            next = l->next;
            struct http_conn *c = CONTAINER_OF(l, struct http_conn, all);
            if (conn_is_idle(c))
                conn_close(c);
        }
    }
    if (!uv_is_closing((uv_handle_t *)&s->grace))
        uv_timer_start(&s->grace, on_grace_over, grace_ms > 0 ? (uint64_t)grace_ms : 0, 0);
}
