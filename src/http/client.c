/* client.c - calls and their limits; client_curl.c and client_direct.c move the bytes. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "http/client_private.h"

enum { ABANDONED_MS = 1000 };

/* ---- memory ---- */

void client_handle_closed(struct http_client *c)
{
    if (--c->n_handles)
        return;
    free((char *)c->opts.user_agent);
    free(c->socks);
    free(c->read_buf);
    buf_release(&c->room);
    map_release(&c->hosts);
    free(c);
}

static void on_timer_closed(uv_handle_t *h)
{
    client_handle_closed(h->data);
}

void call_free(struct http_call *call)
{
    link_del(&call->link);
    link_del(&call->fed);
    link_del(&call->broken);
    if (call->easy)
        curl_call_release(call);
    buf_release(&call->data);
    buf_release(&call->request);
    free(call->headers);
    arena_release(&call->arena);
    free(call);
}

void call_end(struct http_call *call, const struct err *e)
{
    link_del(&call->link);
    call->state = CALL_ENDS;
    call->opts.on_end(call, e);
    call_free(call);
}

/* ---- heads ---- */

void call_add_header(struct http_call *call, struct str name, struct str value)
{
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

bool call_head_is_here(struct http_call *call)
{
    call->head_seen = true;
    call->last_ms = client_now_ms(call->client);
    struct http_head head = {call->status, call->headers, call->n_headers};
    struct direct *direct = call->direct;
    if (call->opts.on_head)
        call->opts.on_head(call, &head);
    if (direct ? !direct_serves(direct, call) : call->state == CALL_DEAD)
        return false;
    if (call->opts.idle_ms)
        call_watch_due(call);
    return true;
}

/* ---- limits ---- */

static void drop(struct http_call *call)
{
    if (call->easy)
        curl_call_drop(call);
    else
        direct_call_drop(call);
}

static int64_t sooner(int64_t a, int64_t b)
{
    return a && (!b || a < b) ? a : b;
}

/* When the call's next limit is met, 0: never. */
static int64_t call_due(const struct http_call *call)
{
    const struct http_call_opts *o = &call->opts;
    int64_t due = o->deadline_ms;
    if (o->connect_ms && direct_is_connecting(call)) /* libcurl keeps its own */
        due = sooner(call->start_ms + o->connect_ms, due);
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
    int64_t wait = due - client_now_ms(c);
    c->due_ms = due;
    uv_timer_start(&c->due, on_due, wait > 0 ? (uint64_t)wait : 0, 0);
}

void call_watch_due(struct http_call *call)
{
    watch_due(call->client, call_due(call));
}

static void expire(struct http_call *call, int64_t now)
{
    const struct http_call_opts *o = &call->opts;
    struct err e = {0};
    if (o->deadline_ms && now >= o->deadline_ms)
        err_set(&e, ERR_TIMEOUT, "the deadline has passed");
    else if (o->connect_ms && direct_is_connecting(call) && now >= call->start_ms + o->connect_ms)
        err_set(&e, ERR_TIMEOUT, "no connection within the time limit");
    else if (!call->head_seen)
        err_set(&e, ERR_TIMEOUT, "no answer within %lld ms", (long long)o->first_byte_ms);
    else
        err_set(&e, ERR_TIMEOUT, "the answer stopped for %lld ms", (long long)o->idle_ms);
    drop(call);
    call_end(call, &e);
}

/* Progress moves limits without touching the timer, so some are found to be later than thought. */
static void on_due(uv_timer_t *t)
{
    struct http_client *c = t->data;
    int64_t now = client_now_ms(c), next = 0;
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

/* ---- what callers use ---- */

struct http_call *http_call_start(struct http_client *c, const struct http_call_opts *o)
{
    struct http_call *call = xcalloc(1, sizeof *call);
    BUG_ON(!o->on_end);
    call->client = c;
    call->opts = *o;
    call->opts.method = call->opts.url = call->opts.ca_file = NULL;
    call->opts.headers = NULL;
    link_init(&call->link);
    link_init(&call->fed);
    link_init(&call->broken);
    uv_update_time(c->uv); /* the caller may have worked for long on this turn */
    call->start_ms = call->last_ms = client_now_ms(c);
    if (!direct_call_start(call, o))
        curl_call_start(call, o);
    return call;
}

void http_call_cancel(struct http_call *call)
{
    if (call->state == CALL_DEAD || call->state == CALL_ENDS)
        return; /* freed when its on_end returns */
    if (call->easy) {
        curl_call_cancel(call);
        return;
    }
    direct_call_drop(call);
    call_free(call);
}

static void nobody(struct http_call *call, const struct err *e)
{
}

void http_call_abandon(struct http_call *call)
{
    if (call->state != CALL_RUNS || call->easy || !direct_call_is_sent(call)) {
        http_call_cancel(call);
        return;
    }
    http_call_resume(call);
    call->opts.on_head = NULL;
    call->opts.on_data = NULL;
    call->opts.on_end = nobody;
    call->opts.deadline_ms = client_now_ms(call->client) + ABANDONED_MS;
    call_watch_due(call);
}

void http_call_pause(struct http_call *call)
{
    if (call->paused || call->state != CALL_RUNS)
        return;
    call->paused = true;
    (call->easy ? curl_call_pause : direct_call_pause)(call, true);
}

void http_call_resume(struct http_call *call)
{
    if (!call->paused || call->state != CALL_RUNS)
        return;
    call->paused = false;
    call->last_ms = client_now_ms(call->client);
    call_watch_due(call);
    (call->easy ? curl_call_pause : direct_call_pause)(call, false);
}

void *http_call_arg(const struct http_call *call)
{
    return call->opts.arg;
}

bool http_call_reused(const struct http_call *call)
{
    long connects = 0;
    if (!call->easy)
        return call->reused;
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
    struct http_client *c = xcalloc(1, sizeof *c);
    c->opts = o ? *o : defaults;
    c->opts.user_agent = c->opts.user_agent ? xstrdup(c->opts.user_agent) : NULL;
    if (!c->opts.max_head_bytes)
        c->opts.max_head_bytes = CLIENT_MAX_HEAD_BYTES;
    if (!c->opts.max_idle)
        c->opts.max_idle = CLIENT_MAX_IDLE;
    c->uv = http_loop_uv(l);
    link_init(&c->calls);
    int rc = curl_part_open(c, e);
    if (rc) {
        free((char *)c->opts.user_agent);
        free(c);
        return rc;
    }
    direct_part_open(c);
    uv_timer_init(c->uv, &c->due);
    c->due.data = c;
    c->n_handles++;
    *out = c;
    return 0;
}

void http_client_close(struct http_client *c)
{
    if (!c)
        return;
    BUG_ON(c->depth);
    while (!link_alone(&c->calls))
        http_call_cancel(CONTAINER_OF(c->calls.next, struct http_call, link));
    direct_part_close(c);
    curl_part_close(c);
    uv_close((uv_handle_t *)&c->due, on_timer_closed);
}
