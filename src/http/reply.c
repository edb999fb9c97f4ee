#include <stdio.h>

#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "http/conn.h"

/* ---- head ---- */

static const char *status_text(int status)
{
    static const struct {
        int status;
        const char *text;
    } texts[] = {
        {200, "OK"},
        {201, "Created"},
        {202, "Accepted"},
        {204, "No Content"},
        {206, "Partial Content"},
        {301, "Moved Permanently"},
        {302, "Found"},
        {303, "See Other"},
        {304, "Not Modified"},
        {307, "Temporary Redirect"},
        {308, "Permanent Redirect"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {402, "Payment Required"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {406, "Not Acceptable"},
        {408, "Request Timeout"},
        {409, "Conflict"},
        {410, "Gone"},
        {411, "Length Required"},
        {412, "Precondition Failed"},
        {413, "Content Too Large"},
        {415, "Unsupported Media Type"},
        {416, "Range Not Satisfiable"},
        {417, "Expectation Failed"},
        {422, "Unprocessable Content"},
        {424, "Failed Dependency"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {499, "Client Closed Request"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
        {507, "Insufficient Storage"},
        {529, "Site Is Overloaded"},
    };
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        if (texts[i].status == status)
            return texts[i].text;
    return "Status"; /* the phrase means nothing to clients, RFC 9112 4 */
}

static void add_clean(struct buf *b, const char *value)
{
    size_t from = b->len;
    buf_adds(b, value);
    for (char *p = b->data + from; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = ' ';
}

void http_add_header(struct http_req *r, const char *name, const char *value)
{
    struct http_conn *c = conn_of(r);
    BUG_ON(c->begun);
    buf_adds(&c->headers, name);
    buf_adds(&c->headers, ": ");
    add_clean(&c->headers, value);
    buf_adds(&c->headers, "\r\n");
}

/* Writes the head and decides how the body is framed. length -1: not known. */
static void begin(struct http_conn *c, int status, const char *type, int64_t length)
{
    BUG_ON(status < 200 || status > 599);
    BUG_ON(c->begun); /* a request has one response */
    c->begun = true;
    bool no_length = status == 204 || status == 304;
    bool http10 = c->req.http10;
    c->no_body = no_length || str_eqs(c->req.method, "HEAD");
    c->chunked = length < 0 && !c->no_body && !http10;
    c->length_left = length;
    c->keep_alive = c->parse.keep_alive && !c->server->closing && http_parse_ended(&c->parse) &&
                    (length >= 0 || c->chunked || c->no_body);
    c->state = CONN_BUSY; /* a body that is still to come will not be read */

    conn_queue(c, STR(""));
    struct buf *out = &c->out;
    buf_reserve(out, 512 + c->headers.len);
    buf_addf(out, "HTTP/1.1 %d %s\r\n", status, status_text(status));
    buf_adds(out, server_date(c->server));
    if (type) {
        buf_adds(out, "Content-Type: ");
        add_clean(out, type);
        buf_adds(out, "\r\n");
    }
    buf_adds(out, buf_str(&c->headers));
    if (length >= 0 && !no_length)
        buf_addf(out, "Content-Length: %lld\r\n", (long long)length);
    else if (length < 0 && !no_length && !http10)
        buf_adds(out, "Transfer-Encoding: chunked\r\n");
    if (!c->keep_alive)
        buf_adds(out, "Connection: close\r\n");
    else if (http10)
        buf_adds(out, "Connection: keep-alive\r\n");
    buf_adds(out, "\r\n");
    buf_release(&c->headers);
}

void reply_reset(struct http_conn *c)
{
    buf_release(&c->headers);
    c->begun = c->ended = c->keep_alive = c->no_body = c->chunked = c->events = c->blocked = false;
    c->length_left = -1;
}

/* ---- in one piece ---- */

void http_reply(struct http_req *r, int status, const char *type, const void *body, size_t n)
{
    struct http_conn *c = conn_of(r);
    begin(c, status, type, (int64_t)n);
    if (r->copy)
        buf_add(r->copy, body, n);
    if (n && !c->no_body)
        conn_queue(c, (struct str){body, n});
    c->length_left = 0;
    c->ended = true;
}

void reply_error(struct http_conn *c, int status, const char *reason)
{
    struct buf body = {0};
    struct jw w;
    jw_init(&w, &body);
    jw_obj(&w);
    jw_key(&w, "error");
    jw_obj(&w);
    jw_kstr(&w, "message", reason);
    jw_kint(&w, "code", status);
    jw_obj_end(&w);
    jw_obj_end(&w);
    jw_done(&w);
    if (status == 429 || status == 503)
        http_add_header(&c->req, "Retry-After", "1");
    c->parse.keep_alive = false;
    http_reply(&c->req, status, "application/json", body.data, body.len);
    buf_release(&body);
}

/* ---- in pieces ---- */

void http_begin(struct http_req *r, int status, const char *type, int64_t length)
{
    BUG_ON(length < -1);
    begin(conn_of(r), status, type, length);
}

void http_begin_events(struct http_req *r)
{
    struct http_conn *c = conn_of(r);
    http_add_header(r, "Cache-Control", "no-cache, no-transform");
    http_add_header(r, "X-Accel-Buffering", "no"); /* nginx then passes each event on at once */
    begin(c, 200, "text/event-stream; charset=utf-8", -1);
    c->events = true;
    c->written_ms = conn_now_ms(c);
}

static void overrun(struct http_conn *c, const char *what)
{
    log_warn("http", "%s: response to %.*s cut off: %s", c->peer, (int)c->req.path.n, c->req.path.p,
             what);
    http_abort(&c->req);
}

/* The size of a chunk in hex and the end of its line; snprintf would show in profiles. */
static size_t chunk_head(char *out, size_t n)
{
    size_t digits = 1;
    while (digits < 2 * sizeof n && n >> (4 * digits))
        digits++;
    for (size_t i = 0; i < digits; i++)
        out[i] = "0123456789abcdef"[n >> (4 * (digits - 1 - i)) & 15];
    memcpy(out + digits, "\r\n", 2);
    return digits + 2;
}

bool http_write(struct http_req *r, const void *p, size_t n)
{
    struct http_conn *c = conn_of(r);
    const struct http_server_opts *o = &c->server->opts;
    BUG_ON(!c->begun || c->ended);
    if (r->copy)
        buf_add(r->copy, p, n);
    if (c->no_body || c->aborted || !n)
        return !c->blocked;
    if (c->length_left >= 0) {
        if (n > (uint64_t)c->length_left) {
            overrun(c, "more bytes than its Content-Length");
            return false;
        }
        c->length_left -= (int64_t)n;
    }
    size_t cut = o->max_queue_bytes * HTTP_QUEUE_CUT;
    if (conn_queued(c) + n > cut && !io_flush(c)) { /* most of it may be of this turn */
        http_abort(r);
        return false;
    }
    if (conn_queued(c) + n > cut && conn_queued(c)) {
        overrun(c, "the client reads too slowly");
        return false;
    }
    if (c->chunked) {
        char size[24];
        conn_queue(c, (struct str){size, chunk_head(size, n)});
    }
    conn_queue(c, (struct str){p, n});
    if (c->chunked)
        conn_queue(c, STR("\r\n"));
    c->written_ms = conn_now_ms(c);
    /* stays until on_drain, which is owed from now on, even if the queue shrinks before it */
    c->blocked = c->blocked || conn_queued(c) > o->max_queue_bytes;
    return !c->blocked;
}

bool http_write_event(struct http_req *r, const char *name, const void *data, size_t n)
{
    struct buf event = {0};
    const char *p = data, *end = p + n;
    buf_reserve(&event, n + 64);
    if (name) {
        buf_adds(&event, "event: ");
        add_clean(&event, name);
        buf_addc(&event, '\n');
    }
    for (;;) { /* an empty text is one empty line */
        const char *stop = p;
        while (stop < end && *stop != '\n' && *stop != '\r')
            stop++;
        buf_adds(&event, "data: ");
        buf_add(&event, p, (size_t)(stop - p));
        buf_addc(&event, '\n');
        if (stop == end)
            break;
        p = stop + (stop + 1 < end && stop[0] == '\r' && stop[1] == '\n' ? 2 : 1);
    }
    buf_addc(&event, '\n');
    bool more = http_write(r, event.data, event.len);
    buf_release(&event);
    return more;
}

void reply_ping(struct http_conn *c)
{
    http_write(&c->req, ": ping\n\n", 8);
}

void http_end(struct http_req *r)
{
    struct http_conn *c = conn_of(r);
    BUG_ON(!c->begun || c->ended);
    if (c->length_left > 0 && !c->no_body) {
        overrun(c, "fewer bytes than its Content-Length");
        return;
    }
    if (c->chunked)
        conn_queue(c, STR("0\r\n\r\n"));
    c->ended = true;
    conn_dirty(c);
}

void http_abort(struct http_req *r)
{
    struct http_conn *c = conn_of(r);
    c->aborted = true;
    conn_dirty(c);
}

size_t http_queued(const struct http_req *r)
{
    return conn_queued((const struct http_conn *)r);
}
