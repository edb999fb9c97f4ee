/* client_curl.c - calls over libcurl's multi interface, driven by the loop's poll handles. */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "http/client_private.h"

enum { MAX_ROOM = 256 << 10 };

/* One socket of libcurl. Those of connections keep their handle from request to request, and the
 * handle keeps waiting for input between two: taking it out of epoll and putting it back would cost
 * more system calls than the request. */
struct sock {
    uv_poll_t poll;
    struct http_client *client;
    curl_socket_t fd;
    int events;      /* what the handle waits for, 0: it is stopped */
    bool connection; /* made by open_socket, so close_socket will be told of its end */
    bool wanted;     /* libcurl waits for it */
};

static void settle(struct http_client *c);

/* ---- libcurl on libuv ---- */

static void on_timer_closed(uv_handle_t *h)
{
    client_handle_closed(h->data);
}

static void on_sock_closed(uv_handle_t *h)
{
    struct sock *s = h->data;
    struct http_client *c = s->client;
    free(s);
    client_handle_closed(c);
}

static void act(struct http_client *c, curl_socket_t fd, int what)
{
    int running;
    c->depth++;
    curl_multi_socket_action(c->multi, fd, what, &running);
    c->depth--;
    settle(c);
}

static void on_sock(uv_poll_t *poll, int status, int events)
{
    struct sock *s = poll->data;
    int what = (events & UV_READABLE ? CURL_CSELECT_IN : 0) |
               (events & UV_WRITABLE ? CURL_CSELECT_OUT : 0) | (status < 0 ? CURL_CSELECT_ERR : 0);
    if (s->wanted) {
        act(s->client, s->fd, what);
        return;
    }
    uv_poll_stop(poll); /* closed by its server while idle, or the call is paused */
    s->events = 0;
}

static struct sock *find_sock(struct http_client *c, curl_socket_t fd)
{
    return (size_t)fd < c->n_socks ? c->socks[fd] : NULL;
}

static struct sock *add_sock(struct http_client *c, curl_socket_t fd, bool connection)
{
    struct sock *s = xcalloc(1, sizeof *s);
    *s = (struct sock){.client = c, .fd = fd, .connection = connection};
    if (uv_poll_init_socket(c->uv, &s->poll, fd)) {
        free(s);
        return NULL;
    }
    if ((size_t)fd >= c->n_socks) {
        size_t n = (size_t)fd + 64;
        c->socks = xrealloc(c->socks, n * sizeof(struct sock *));
        memset(c->socks + c->n_socks, 0, (n - c->n_socks) * sizeof(struct sock *));
        c->n_socks = n;
    }
    s->poll.data = s;
    c->socks[fd] = s;
    c->n_handles++;
    return s;
}

static void drop_sock(struct http_client *c, struct sock *s)
{
    c->socks[s->fd] = NULL;
    uv_close((uv_handle_t *)&s->poll, on_sock_closed);
}

static curl_socket_t open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *a)
{
    curl_socket_t fd = socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
    if (fd >= 0 && !add_sock(arg, fd, true)) {
        close(fd);
        return CURL_SOCKET_BAD;
    }
    return fd;
}

static int close_socket(void *arg, curl_socket_t fd)
{
    struct sock *s = find_sock(arg, fd);
    if (s)
        drop_sock(arg, s);
    return close(fd);
}

/* libcurl says what it waits for on a socket. */
static int watch_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *known)
{
    struct http_client *c = arg;
    struct sock *s = find_sock(c, fd);
    if (what == CURL_POLL_REMOVE) {
        if (s && s->connection)
            s->wanted = false;
        else if (s) /* of the resolver */
            drop_sock(c, s);
        return 0;
    }
    if (!s)
        s = add_sock(c, fd, false);
    if (!s)
        return -1;
    int events = (what & CURL_POLL_IN ? UV_READABLE : 0) | (what & CURL_POLL_OUT ? UV_WRITABLE : 0);
    s->wanted = true;
    if (events != s->events)
        uv_poll_start(&s->poll, events, on_sock);
    s->events = events;
    return 0;
}

static void on_timer(uv_timer_t *t)
{
    act(t->data, CURL_SOCKET_TIMEOUT, 0);
}

static int set_timer(CURLM *multi, long ms, void *arg)
{
    struct http_client *c = arg;
    if (ms < 0)
        uv_timer_stop(&c->timer);
    else
        uv_timer_start(&c->timer, on_timer, (uint64_t)ms, 0);
    return 0;
}

/* ---- libcurl's callbacks ---- */

/* "HTTP/1.1 200 OK": begins a head; those of 1xx are followed by another. */
static void begin_head(struct http_call *call)
{
    long status = 0;
    curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &status);
    call->status = (int)status;
    call->n_headers = 0;
}

static void add_header(struct http_call *call, struct str line)
{
    const char *colon = memchr(line.p, ':', line.n);
    if (!colon)
        return;
    struct str name = {line.p, (size_t)(colon - line.p)};
    call_add_header(call, name, (struct str){colon + 1, line.n - name.n - 1});
}

static size_t on_line(char *p, size_t size, size_t n, void *arg)
{
    struct http_call *call = arg;
    struct str line = {p, n};
    while (line.n && (line.p[line.n - 1] == '\r' || line.p[line.n - 1] == '\n'))
        line.n--;
    if (call->state == CALL_DEAD)
        return 0;
    if (call->head_seen) /* trailers mean nothing to us, RFC 9110 6.5.1 */
        return n;
    call->head_bytes += n;
    if (call->head_bytes > call->client->opts.max_head_bytes) {
        call->too_large = true;
        return 0;
    }
    if (str_starts(line, "HTTP/"))
        begin_head(call);
    else if (line.n)
        add_header(call, line);
    if (line.n || call->status < 200)
        return n;
    return call_head_is_here(call) ? n : 0;
}

static size_t on_body(char *p, size_t size, size_t n, void *arg)
{
    struct http_call *call = arg;
    if (call->state == CALL_DEAD)
        return 0;
    call->last_ms = client_now_ms(call->client);
    if (call->opts.on_data && n) {
        struct http_client *c = call->client;
        if (!call->data.data && c->room.data) {
            call->data = c->room;
            c->room = (struct buf){0};
        }
        buf_add(&call->data, p, n);
        if (link_alone(&call->fed))
            link_add(&c->fed, &call->fed);
    }
    return n;
}

/* libcurl brings each chunk of a chunked body by itself; callers get what one turn has brought. */
static void feed(struct http_client *c)
{
    while (!link_alone(&c->fed)) {
        struct http_call *call = CONTAINER_OF(c->fed.next, struct http_call, fed);
        struct buf data = call->data;
        link_del(&call->fed);
        call->data = (struct buf){0};
        if (call->state == CALL_RUNS)
            call->opts.on_data(call, data.data, data.len);
        if (c->room.data || data.cap > MAX_ROOM) {
            buf_release(&data);
            continue;
        }
        buf_clear(&data);
        c->room = data;
    }
}

/* ---- the end of calls ---- */

/* libcurl's own texts name hosts and addresses, which are nobody's business. */
static void explain(struct http_call *call, CURLcode rc, struct err *e)
{
    static const struct {
        CURLcode rc;
        int code;
        const char *text;
    } reasons[] = {
        {CURLE_COULDNT_CONNECT, ERR_IO, "no connection can be made"},
        {CURLE_COULDNT_RESOLVE_HOST, ERR_IO, "its name cannot be resolved"},
        {CURLE_OPERATION_TIMEDOUT, ERR_TIMEOUT, "no connection within the time limit"},
        {CURLE_SSL_CONNECT_ERROR, ERR_IO, "the TLS handshake failed"},
        {CURLE_PEER_FAILED_VERIFICATION, ERR_IO, "its TLS certificate cannot be verified"},
        {CURLE_SSL_CACERT_BADFILE, ERR_IO, "the CA file cannot be read"},
        {CURLE_GOT_NOTHING, ERR_IO, "the connection was closed without an answer"},
        {CURLE_RECV_ERROR, ERR_IO, "the connection broke"},
        {CURLE_SEND_ERROR, ERR_IO, "the connection broke"},
        {CURLE_PARTIAL_FILE, ERR_FORMAT, "the answer was cut short"},
        {CURLE_UNSUPPORTED_PROTOCOL, ERR_FORMAT, "the answer is not HTTP"},
        {CURLE_WEIRD_SERVER_REPLY, ERR_FORMAT, "the answer is not HTTP"},
        {CURLE_BAD_CONTENT_ENCODING, ERR_FORMAT, "the answer is coded in an unknown way"},
        {CURLE_URL_MALFORMAT, ERR_INVALID, "its URL is malformed"},
    };
    if (call->too_large) {
        err_set(e, ERR_FORMAT, "the head of the answer is too large");
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(reasons); i++)
        if (reasons[i].rc == rc) {
            err_set(e, reasons[i].code, "%s", reasons[i].text);
            return;
        }
    err_set(e, ERR_FORMAT, "the exchange failed (libcurl error %d)", (int)rc);
}

static void add(struct http_call *call)
{
    struct http_client *c = call->client;
    link_del(&call->link);
    link_add(&c->calls, &call->link);
    call->state = CALL_RUNS;
    call_watch_due(call);
    if (curl_multi_add_handle(c->multi, call->easy) != CURLM_OK)
        BUG("a fresh handle was refused");
}

static void bury_dead(struct http_client *c)
{
    while (!link_alone(&c->dead)) {
        struct http_call *call = CONTAINER_OF(c->dead.next, struct http_call, link);
        curl_multi_remove_handle(c->multi, call->easy);
        call_free(call);
    }
}

/* Does what could not be done while libcurl was on the stack. */
static void settle(struct http_client *c)
{
    int left;
    if (c->depth)
        return;
    bury_dead(c);
    feed(c);
    while (!link_alone(&c->fresh))
        add(CONTAINER_OF(c->fresh.next, struct http_call, link));
    for (CURLMsg *m; (m = curl_multi_info_read(c->multi, &left));) {
        struct http_call *call = NULL;
        CURLcode rc = m->data.result;
        if (m->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&call);
        curl_multi_remove_handle(c->multi, call->easy);
        struct err e = {0};
        if (rc == CURLE_OK && !call->head_seen) /* libcurl takes half a head for a whole one */
            rc = CURLE_PARTIAL_FILE;
        if (rc != CURLE_OK)
            explain(call, rc, &e);
        call_end(call, rc == CURLE_OK ? NULL : &e);
    }
}

/* ---- for client.c ---- */

static void set_method(CURL *easy, const struct http_call_opts *o)
{
    bool has_body = o->body != NULL;
    const char *method = o->method ? o->method : has_body ? "POST" : "GET";
    if (has_body) {
        curl_easy_setopt(easy, CURLOPT_POST, 1L);
        curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)o->n_body);
        curl_easy_setopt(easy, CURLOPT_POSTFIELDS, o->body);
    }
    if (strcmp(method, "HEAD") == 0)
        curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
    else if (strcmp(method, has_body ? "POST" : "GET") != 0)
        curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, method);
}

static void set_options(struct http_call *call, const struct http_call_opts *o)
{
    CURL *easy = call->easy;
    call->lines = curl_slist_append(NULL, "Expect:");
    for (const char *const *h = o->headers; h && *h; h++)
        call->lines = curl_slist_append(call->lines, *h);
    BUG_ON(!call->lines);
    set_method(easy, o);
    curl_easy_setopt(easy, CURLOPT_URL, o->url);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, call->lines);
    curl_easy_setopt(easy, CURLOPT_PRIVATE, call);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_line);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, call);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, call);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, open_socket);
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, call->client);
    curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, close_socket);
    curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, call->client);
    curl_easy_setopt(easy, CURLOPT_PROXY, "");
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    curl_easy_setopt(easy, CURLOPT_USERAGENT, call->client->opts.user_agent);
    if (o->ca_file)
        curl_easy_setopt(easy, CURLOPT_CAINFO, o->ca_file);
    if (o->connect_ms)
        curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)o->connect_ms);
}

void curl_call_start(struct http_call *call, const struct http_call_opts *o)
{
    struct http_client *c = call->client;
    call->easy = c->n_spare ? c->spare[--c->n_spare] : curl_easy_init();
    BUG_ON(!call->easy); /* libcurl says only that there is no memory */
    set_options(call, o);
    if (c->depth)
        link_add(&c->fresh, &call->link);
    else
        add(call);
}

void curl_call_drop(struct http_call *call)
{
    curl_multi_remove_handle(call->client->multi, call->easy);
}

void curl_call_cancel(struct http_call *call)
{
    struct http_client *c = call->client;
    if (call->state == CALL_FRESH) {
        call_free(call);
        return;
    }
    call->state = CALL_DEAD;
    link_del(&call->link);
    link_add(&c->dead, &call->link);
    if (!c->depth)
        bury_dead(c);
}

void curl_call_pause(struct http_call *call, bool pause)
{
    struct http_client *c = call->client;
    c->depth++;
    curl_easy_pause(call->easy, pause ? CURLPAUSE_RECV : CURLPAUSE_CONT);
    c->depth--;
    if (!c->depth && !pause)
        feed(c); /* what it had kept */
}

void curl_call_release(struct http_call *call)
{
    struct http_client *c = call->client;
    if (c->n_spare < CLIENT_MAX_SPARE) {
        curl_easy_reset(call->easy); /* drops options, keeps buffers */
        c->spare[c->n_spare++] = call->easy;
    } else {
        curl_easy_cleanup(call->easy);
    }
    curl_slist_free_all(call->lines);
    call->easy = NULL;
}

int curl_part_open(struct http_client *c, struct err *e)
{
    if (curl_global_init(CURL_GLOBAL_DEFAULT))
        return err_set(e, ERR_IO, "libcurl cannot be set up");
    c->multi = curl_multi_init();
    if (!c->multi)
        return err_set(e, ERR_NOMEM, "no memory for an HTTP client");
    link_init(&c->fresh);
    link_init(&c->dead);
    link_init(&c->fed);
    uv_timer_init(c->uv, &c->timer);
    c->timer.data = c;
    c->n_handles++;
    curl_multi_setopt(c->multi, CURLMOPT_SOCKETFUNCTION, watch_socket);
    curl_multi_setopt(c->multi, CURLMOPT_SOCKETDATA, c);
    curl_multi_setopt(c->multi, CURLMOPT_TIMERFUNCTION, set_timer);
    curl_multi_setopt(c->multi, CURLMOPT_TIMERDATA, c);
    curl_multi_setopt(c->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING);
    curl_multi_setopt(c->multi, CURLMOPT_MAXCONNECTS, (long)c->opts.max_idle);
    return 0;
}

void curl_part_close(struct http_client *c)
{
    while (!link_alone(&c->fresh))
        http_call_cancel(CONTAINER_OF(c->fresh.next, struct http_call, link));
    while (c->n_spare)
        curl_easy_cleanup(c->spare[--c->n_spare]);
    curl_multi_cleanup(c->multi);
    uv_close((uv_handle_t *)&c->timer, on_timer_closed);
}
