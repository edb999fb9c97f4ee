#include "http/client.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

#include "base/clock.h"
#include "base/mem.h"
#include "http/link.h"

enum {
    MAX_IDLE = 256,
    MAX_HEAD_BYTES = 64 << 10,
    MAX_SPARE = 256, /* easy handles kept for later */
    MAX_ROOM = 256 << 10,
};

struct http_client {
    struct http_client_opts opts;
    uv_loop_t *uv;
    CURLM *multi;
    uv_timer_t timer;    /* libcurl's */
    uv_timer_t due;      /* the earliest limit of a call */
    int64_t due_ms;      /* of the running timer, 0: it is idle */
    int depth;           /* > 0: libcurl is on the stack, where handles cannot come and go */
    struct link calls;   /* known to libcurl */
    struct link fresh;   /* started while libcurl was on the stack */
    struct link dead;    /* cancelled while libcurl was on the stack */
    struct link fed;     /* have data for on_data */
    struct buf room;     /* memory for it that is used again */
    struct sock **socks; /* by descriptor, NULL: not ours */
    size_t n_socks;
    CURL *spare[MAX_SPARE];
    int n_spare;
    int n_handles; /* of libuv, not closed yet */
};

enum call_state { CALL_FRESH, CALL_RUNS, CALL_ENDS, CALL_DEAD };

struct http_call {
    struct http_client *client;
    struct link link, fed;
    struct buf data;            /* pieces of this turn */
    struct http_call_opts opts; /* strings are not kept but by libcurl */
    enum call_state state;
    CURL *easy;
    struct curl_slist *lines;
    struct arena arena;
    struct http_header *headers;
    size_t n_headers, cap_headers, head_bytes;
    int status;
    bool head_seen, paused, too_large;
    int64_t start_ms, last_ms;
};

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

static int64_t now_ms(const struct http_client *c)
{
    return (int64_t)uv_now(c->uv);
}

/* ---- libcurl on libuv ---- */

static void free_client(struct http_client *c)
{
    free((char *)c->opts.user_agent);
    free(c->socks);
    buf_release(&c->room);
    free(c);
}

static void on_handle_closed(uv_handle_t *h)
{
    struct http_client *c = h->data;
    if (--c->n_handles == 0)
        free_client(c);
}

static void on_sock_closed(uv_handle_t *h)
{
    struct sock *s = h->data;
    struct http_client *c = s->client;
    free(s);
    if (--c->n_handles == 0)
        free_client(c);
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

/* ---- calls: memory ---- */

static CURL *take_easy(struct http_client *c)
{
    CURL *easy = c->n_spare ? c->spare[--c->n_spare] : curl_easy_init();
    BUG_ON(!easy); /* libcurl says only that there is no memory */
    return easy;
}

static void free_call(struct http_call *call)
{
    struct http_client *c = call->client;
    link_del(&call->link);
    link_del(&call->fed);
    buf_release(&call->data);
    if (c->n_spare < MAX_SPARE) {
        curl_easy_reset(call->easy); /* drops options, keeps buffers */
        c->spare[c->n_spare++] = call->easy;
    } else {
        curl_easy_cleanup(call->easy);
    }
    curl_slist_free_all(call->lines);
    free(call->headers);
    arena_release(&call->arena);
    free(call);
}

/* The last callback of a call that libcurl doesn't know any more. */
static void end_call(struct http_call *call, const struct err *e)
{
    link_del(&call->link);
    call->state = CALL_ENDS;
    call->opts.on_end(call, e);
    free_call(call);
}

/* ---- limits ---- */

static int64_t sooner(int64_t a, int64_t b)
{
    return a && (!b || a < b) ? a : b;
}

/* When the call's next limit is met, 0: never. */
static int64_t call_due(const struct http_call *call)
{
    const struct http_call_opts *o = &call->opts;
    int64_t due = o->deadline_ms;
    if (!call->head_seen)
        due = sooner(o->first_byte_ms ? call->start_ms + o->first_byte_ms : 0, due);
    else if (!call->paused)
        due = sooner(o->idle_ms ? call->last_ms + o->idle_ms : 0, due);
    return due;
}

static void on_due(uv_timer_t *t);

static void watch_due(struct http_client *c, int64_t due)
{
    if (!due || (c->due_ms && c->due_ms <= due))
        return;
    int64_t wait = due - now_ms(c);
    c->due_ms = due;
    uv_timer_start(&c->due, on_due, wait > 0 ? (uint64_t)wait : 0, 0);
}

static void expire(struct http_call *call, int64_t now)
{
    const struct http_call_opts *o = &call->opts;
    struct err e = {0};
    if (o->deadline_ms && now >= o->deadline_ms)
        err_set(&e, ERR_TIMEOUT, "the deadline has passed");
    else if (!call->head_seen)
        err_set(&e, ERR_TIMEOUT, "no answer within %lld ms", (long long)o->first_byte_ms);
    else
        err_set(&e, ERR_TIMEOUT, "the answer stopped for %lld ms", (long long)o->idle_ms);
    curl_multi_remove_handle(call->client->multi, call->easy);
    end_call(call, &e);
}

/* Progress moves limits without touching the timer, so some are found to be later than thought. */
static void on_due(uv_timer_t *t)
{
    struct http_client *c = t->data;
    int64_t now = now_ms(c), next = 0;
    struct link late;
    link_init(&late);
    c->due_ms = 0;
    for (struct link *l = c->calls.next, *after; l != &c->calls; l = after) {
        after = l->next;
        int64_t due = call_due(CONTAINER_OF(l, struct http_call, link));
        if (due && due <= now) {
            link_del(l);
            link_add(&late, l);
        } else {
            next = sooner(due, next);
        }
    }
    watch_due(c, next);
    while (!link_alone(&late)) /* a callback may cancel others of the list */
        expire(CONTAINER_OF(late.next, struct http_call, link), now);
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
    struct str value = {colon + 1, line.n - name.n - 1};
    while (value.n && (*value.p == ' ' || *value.p == '\t'))
        value = (struct str){value.p + 1, value.n - 1};
    while (value.n && (value.p[value.n - 1] == ' ' || value.p[value.n - 1] == '\t'))
        value.n--;
    if (call->n_headers == call->cap_headers) {
        call->cap_headers = call->cap_headers ? 2 * call->cap_headers : 16;
        call->headers = xrealloc(call->headers, call->cap_headers * sizeof *call->headers);
    }
    call->headers[call->n_headers++] = (struct http_header){
        {arena_strdup(&call->arena, name), name.n}, {arena_strdup(&call->arena, value), value.n}};
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
    call->head_seen = true;
    call->last_ms = now_ms(call->client);
    struct http_head head = {call->status, call->headers, call->n_headers};
    if (call->opts.on_head)
        call->opts.on_head(call, &head);
    if (call->state == CALL_DEAD)
        return 0;
    if (call->opts.idle_ms)
        watch_due(call->client, call_due(call));
    return n;
}

static size_t on_body(char *p, size_t size, size_t n, void *arg)
{
    struct http_call *call = arg;
    if (call->state == CALL_DEAD)
        return 0;
    call->last_ms = now_ms(call->client);
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
    watch_due(c, call_due(call));
    if (curl_multi_add_handle(c->multi, call->easy) != CURLM_OK)
        BUG("a fresh handle was refused");
}

static void bury_dead(struct http_client *c)
{
    while (!link_alone(&c->dead)) {
        struct http_call *call = CONTAINER_OF(c->dead.next, struct http_call, link);
        curl_multi_remove_handle(c->multi, call->easy);
        free_call(call);
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
        end_call(call, rc == CURLE_OK ? NULL : &e);
    }
}

/* ---- what callers use ---- */

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

struct http_call *http_call_start(struct http_client *c, const struct http_call_opts *o)
{
    struct http_call *call = xcalloc(1, sizeof *call);
    BUG_ON(!o->on_end);
    call->client = c;
    call->opts = *o;
    call->easy = take_easy(c);
    link_init(&call->link);
    link_init(&call->fed);
    set_options(call, o);
    call->opts.method = call->opts.url = call->opts.ca_file = NULL;
    call->opts.headers = NULL;
    uv_update_time(c->uv); /* the caller may have worked for long on this turn */
    call->start_ms = call->last_ms = now_ms(c);
    if (c->depth)
        link_add(&c->fresh, &call->link);
    else
        add(call);
    return call;
}

void http_call_cancel(struct http_call *call)
{
    struct http_client *c = call->client;
    switch (call->state) {
    case CALL_DEAD:
    case CALL_ENDS: /* freed when its on_end returns */
        return;
    case CALL_FRESH:
        free_call(call);
        return;
    case CALL_RUNS:
        break;
    }
    call->state = CALL_DEAD;
    link_del(&call->link);
    link_add(&c->dead, &call->link);
    if (!c->depth)
        bury_dead(c);
}

void http_call_pause(struct http_call *call)
{
    if (call->paused || call->state != CALL_RUNS)
        return;
    call->paused = true;
    call->client->depth++;
    curl_easy_pause(call->easy, CURLPAUSE_RECV);
    call->client->depth--;
}

void http_call_resume(struct http_call *call)
{
    struct http_client *c = call->client;
    if (!call->paused || call->state != CALL_RUNS)
        return;
    call->paused = false;
    call->last_ms = now_ms(c);
    watch_due(c, call_due(call));
    c->depth++;
    curl_easy_pause(call->easy, CURLPAUSE_CONT);
    c->depth--;
    if (!c->depth)
        feed(c); /* what it had kept */
}

void *http_call_arg(const struct http_call *call)
{
    return call->opts.arg;
}

bool http_call_reused(const struct http_call *call)
{
    long connects = 0;
    curl_easy_getinfo(call->easy, CURLINFO_NUM_CONNECTS, &connects);
    return connects == 0;
}

struct str http_head_get(const struct http_head *h, const char *name)
{
    for (size_t i = 0; i < h->n_headers; i++)
        if (str_case_eq(h->headers[i].name, name))
            return h->headers[i].value;
    return (struct str){NULL, 0};
}

/* ---- life ---- */

int http_client_open(struct http_client **out, struct http_loop *l,
                     const struct http_client_opts *o, struct err *e)
{
    static const struct http_client_opts defaults;
    if (curl_global_init(CURL_GLOBAL_DEFAULT))
        return err_set(e, ERR_IO, "libcurl cannot be set up");
    CURLM *multi = curl_multi_init();
    if (!multi)
        return err_set(e, ERR_NOMEM, "no memory for an HTTP client");
    struct http_client *c = xcalloc(1, sizeof *c);
    c->opts = o ? *o : defaults;
    c->opts.user_agent = c->opts.user_agent ? xstrdup(c->opts.user_agent) : NULL;
    if (!c->opts.max_head_bytes)
        c->opts.max_head_bytes = MAX_HEAD_BYTES;
    c->uv = http_loop_uv(l);
    c->multi = multi;
    link_init(&c->calls);
    link_init(&c->fresh);
    link_init(&c->dead);
    link_init(&c->fed);
    uv_timer_init(c->uv, &c->timer);
    uv_timer_init(c->uv, &c->due);
    c->timer.data = c->due.data = c;
    c->n_handles = 2;
    curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, watch_socket);
    curl_multi_setopt(multi, CURLMOPT_SOCKETDATA, c);
    curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, set_timer);
    curl_multi_setopt(multi, CURLMOPT_TIMERDATA, c);
    curl_multi_setopt(multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING);
    curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS,
                      (long)(c->opts.max_idle ? c->opts.max_idle : MAX_IDLE));
    curl_multi_setopt(multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long)c->opts.max_per_host);
    *out = c;
    return 0;
}

void http_client_close(struct http_client *c)
{
    if (!c)
        return;
    BUG_ON(c->depth);
    while (!link_alone(&c->fresh))
        http_call_cancel(CONTAINER_OF(c->fresh.next, struct http_call, link));
    while (!link_alone(&c->calls))
        http_call_cancel(CONTAINER_OF(c->calls.next, struct http_call, link));
    while (c->n_spare)
        curl_easy_cleanup(c->spare[--c->n_spare]);
    curl_multi_cleanup(c->multi);
    uv_close((uv_handle_t *)&c->timer, on_handle_closed);
    uv_close((uv_handle_t *)&c->due, on_handle_closed);
}
