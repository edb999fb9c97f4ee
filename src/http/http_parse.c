#define _GNU_SOURCE

#include "http/http_parse.h"

#include "base/mem.h"

/* ---- the filter in front of llhttp ---- */

static bool fail(struct http_parse *p, int status, const char *reason)
{
    p->phase = PHASE_ERROR;
    p->status = status;
    p->reason = reason;
    return false;
}

static bool is_control(unsigned char c)
{
    return (c < 0x20 && c != '\t') || c == 0x7f;
}

/* One byte of a head or a trailer section. LINE_END_CR means that a CRLF ends the section. */
static bool filter_byte(struct http_parse *p, unsigned char c)
{
    switch (p->line) {
    case LINE_FIRST_CR: /* one empty line before a request is forgiven, RFC 9112 2.2 */
    case LINE_CR:
        if (c != '\n')
            return fail(p, 400, "A carriage return in the head is not followed by a line feed");
        p->line = p->line == LINE_CR ? LINE_START : LINE_REQUEST;
        return true;
    case LINE_FIRST:
        if (c == '\r') {
            p->line = LINE_FIRST_CR;
            return true;
        }
        __attribute__((fallthrough));
    case LINE_REQUEST:
        p->line = LINE_REQUEST;
        if (c == '\t' || c >= 0x80)
            return fail(p, 400, "The request line has a tab or a byte that is not ASCII");
        break;
    case LINE_START:
        if (c == '\r') {
            p->line = LINE_END_CR;
            return true;
        }
        if (c == ' ' || c == '\t')
            return fail(p, 400, "A header line begins with a space");
        if (++p->n_lines > p->max_headers)
            return fail(p, 431, "The request has too many header lines");
        p->line = LINE_IN;
        break;
    case LINE_IN:
        break;
    case LINE_END_CR:
        return c == '\n' || fail(p, 400, "A carriage return is not followed by a line feed");
    }
    if (c == '\r')
        p->line = LINE_CR;
    else if (is_control(c))
        return fail(p, 400, "The head has a control character or a bare line feed");
    return true;
}

/* Filters up to the end of the section. Returns how many bytes belong to it; *end says whether it
 * ended. `room` bytes may still come. */
static size_t filter(struct http_parse *p, const char *data, size_t n, size_t room, bool *end)
{
    size_t most = n < room ? n : room;
    *end = false;
    for (size_t i = 0; i < most; i++) {
        bool last = p->line == LINE_END_CR;
        if (!filter_byte(p, (unsigned char)data[i]))
            return i;
        if (last) {
            *end = true;
            return i + 1;
        }
    }
    if (most == room)
        fail(p, 431, "The head is too large");
    return most;
}

/* ---- llhttp's callbacks ---- */

static int on_url(llhttp_t *h, const char *at, size_t n)
{
    struct http_parse *p = h->data;
    p->target = (struct str){at, n};
    return 0;
}

static int on_field(llhttp_t *h, const char *at, size_t n)
{
    struct http_parse *p = h->data;
    if (p->n_headers == p->n_lines)
        return -1;
    p->headers[p->n_headers++] = (struct http_header){{at, n}, {"", 0}};
    return 0;
}

static int on_value(llhttp_t *h, const char *at, size_t n)
{
    struct http_parse *p = h->data;
    if (!p->n_headers)
        return -1;
    while (n && (at[n - 1] == ' ' || at[n - 1] == '\t'))
        n--;
    p->headers[p->n_headers - 1].value = (struct str){at, n};
    return 0;
}

static int on_head_complete(llhttp_t *h)
{
    struct http_parse *p = h->data;
    p->head_done = true;
    p->http10 = h->http_major == 1 && h->http_minor == 0;
    p->keep_alive = llhttp_should_keep_alive(h);
    h->upgrade = 0; /* offers to change the protocol are not taken up, RFC 9110 7.8 */
    return 0;
}

static int on_body(llhttp_t *h, const char *at, size_t n)
{
    struct http_parse *p = h->data;
    p->data = (struct str){at, n};
    return n ? HPE_PAUSED : HPE_OK;
}

static int on_chunk(llhttp_t *h)
{
    struct http_parse *p = h->data;
    uint64_t sum;
    if (h->content_length == 0) {
        p->phase = PHASE_TRAILER;
        p->line = LINE_START;
        p->n_lines = 0;
        return HPE_PAUSED;
    }
    if (__builtin_add_overflow(p->body_bytes, h->content_length, &sum) || sum > p->max_body_bytes) {
        fail(p, 413, "The request body is too large");
        return -1;
    }
    return 0;
}

/* Extensions mean nothing to us, but must not be a body without end that no limit sees. */
static int on_extension(llhttp_t *h, const char *at, size_t n)
{
    struct http_parse *p = h->data;
    p->extension_bytes += n;
    if (p->extension_bytes <= p->max_head_bytes + p->body_bytes / 16)
        return 0;
    fail(p, 400, "The chunk extensions are too long");
    return -1;
}

static int on_end(llhttp_t *h)
{
    struct http_parse *p = h->data;
    p->phase = PHASE_END;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_url = on_url,
    .on_header_field = on_field,
    .on_header_value = on_value,
    .on_headers_complete = on_head_complete,
    .on_body = on_body,
    .on_chunk_header = on_chunk,
    .on_chunk_extension_name = on_extension,
    .on_chunk_extension_value = on_extension,
    .on_message_complete = on_end,
};

/* ---- checks behind llhttp ---- */

/* At most one header of that name? *out gets its value, p NULL if there is none. */
static bool only_header(const struct http_parse *p, const char *name, struct str *out)
{
    *out = (struct str){NULL, 0};
    for (size_t i = 0; i < p->n_headers; i++) {
        if (!str_case_eq(p->headers[i].name, name))
            continue;
        if (out->p)
            return false;
        *out = p->headers[i].value;
    }
    return true;
}

static bool is_host(struct str host)
{
    for (size_t i = 0; i < host.n; i++)
        if ((unsigned char)host.p[i] <= ' ' || (unsigned char)host.p[i] >= 0x7f ||
            strchr("\"#/<>?@\\^`{|}", host.p[i]))
            return false;
    return true;
}

static bool check_headers(struct http_parse *p)
{
    struct str host, length, coding, expect;
    bool named = p->n_headers == p->n_lines;
    for (size_t i = 0; i < p->n_headers; i++)
        named = named && p->headers[i].name.n > 0;
    if (!named) /* llhttp lets ": value" through */
        return fail(p, 400, "A header line has no name");
    if (!only_header(p, "host", &host))
        return fail(p, 400, "The request has more than one Host header");
    if (!host.p && !p->http10)
        return fail(p, 400, "The request has no Host header");
    if (host.p && !is_host(host))
        return fail(p, 400, "The Host header is not a host name");
    if (!only_header(p, "content-length", &length))
        return fail(p, 400, "The request has more than one Content-Length header");
    if (!only_header(p, "transfer-encoding", &coding))
        return fail(p, 400, "The request has more than one Transfer-Encoding header");
    if (length.p && coding.p)
        return fail(p, 400, "The request has both Content-Length and Transfer-Encoding");
    if (coding.p && p->http10)
        return fail(p, 400, "HTTP/1.0 has no Transfer-Encoding");
    if (coding.p && !str_case_eq(coding, "chunked"))
        return fail(p, 501, "The only Transfer-Encoding for requests is chunked");
    if (length.p &&
        (length.p[0] < '0' || length.p[0] > '9' || !str_to_i64(length, &p->content_length)))
        return fail(p, 400, "The Content-Length header is not a number of bytes");
    if (coding.p)
        p->content_length = -1;
    if (!only_header(p, "expect", &expect) || (expect.p && !str_case_eq(expect, "100-continue")))
        return fail(p, 417, "The only expectation is 100-continue");
    p->expect_continue = expect.p && !p->http10 && p->content_length != 0;
    return true;
}

/* origin-form, absolute-form and the asterisk of RFC 9112 3.2; authority-form is for CONNECT. */
static bool split_target(struct http_parse *p)
{
    struct str t = p->target;
    if (memchr(t.p, '#', t.n))
        return fail(p, 400, "The request target has a fragment");
    if (t.p[0] != '/' && !str_eqs(t, "*")) {
        const char *authority = memmem(t.p, t.n, "://", 3);
        if (!authority)
            return fail(p, 400, "The request target is not a path");
        authority += 3;
        size_t n = (size_t)(t.p + t.n - authority);
        size_t skip = 0;
        while (skip < n && authority[skip] != '/' && authority[skip] != '?')
            skip++;
        t = (struct str){authority + skip, n - skip};
    }
    const char *mark = memchr(t.p, '?', t.n);
    p->path = (struct str){t.p, mark ? (size_t)(mark - t.p) : t.n};
    p->query = mark ? (struct str){mark + 1, (size_t)(t.p + t.n - mark - 1)} : STR("");
    if (!p->path.n)
        p->path = STR("/");
    return true;
}

/* Is the request line METHOD SP TARGET SP VERSION, and the method's name well formed? */
static bool split_request_line(struct http_parse *p)
{
    const char *line = p->head.data;
    const char *end = memchr(line, '\r', p->head.len);
    const char *first = memchr(line, ' ', (size_t)(end - line));
    const char *second = first ? memchr(first + 1, ' ', (size_t)(end - first - 1)) : NULL;
    if (!second || first == line || second == first + 1 ||
        memchr(second + 1, ' ', (size_t)(end - second - 1)))
        return fail(p, 400, "The request line is not METHOD SP TARGET SP VERSION");
    for (const char *c = line; c < first; c++)
        if (*c < 'A' || *c > 'Z')
            if (*c != '-' && *c != '_')
                return fail(p, 400, "The method is not a name in upper case");
    p->method = (struct str){line, (size_t)(first - line)};
    if (str_eqs(p->method, "CONNECT"))
        return fail(p, 501, "This server is not a proxy");
    return true;
}

static bool llhttp_failed(struct http_parse *p, llhttp_errno_t code)
{
    if (p->phase == PHASE_ERROR)
        return false; /* one of our callbacks has said why */
    switch (code) {
    case HPE_INVALID_METHOD:
    case HPE_PAUSED_H2_UPGRADE:
        return fail(p, 501, "The method is unknown");
    case HPE_INVALID_VERSION:
        return fail(p, 505, "The HTTP version is not 1.0 or 1.1");
    default:
        return fail(p, 400, p->llhttp.reason ? p->llhttp.reason : "The request is malformed");
    }
}

/* The whole head is in p->head. */
static bool read_head(struct http_parse *p)
{
    if (!split_request_line(p))
        return false;
    p->headers = arena_alloc(p->arena, (p->n_lines + 1) * sizeof *p->headers);
    p->phase = PHASE_BODY;
    llhttp_errno_t code = llhttp_execute(&p->llhttp, p->head.data, p->head.len);
    bool ok = code == HPE_OK || code == HPE_PAUSED;
    if (!p->head_done)
        return ok ? fail(p, 400, "The head is malformed") : llhttp_failed(p, code);
    if (p->llhttp.http_major != 1 || p->llhttp.http_minor > 1)
        return fail(p, 505, "The HTTP version is not 1.0 or 1.1");
    /* Ours come first: they name the header. */
    return check_headers(p) && (ok || llhttp_failed(p, code)) && split_target(p);
}

/* ---- the phases ---- */

static size_t parse_head(struct http_parse *p, const char *data, size_t n,
                         enum http_parse_event *ev)
{
    bool end;
    size_t skipped = 0;
    while (skipped < n && (p->line == LINE_FIRST_CR || (p->line == LINE_FIRST && *data == '\r'))) {
        if (!filter_byte(p, (unsigned char)*data))
            return skipped;
        data++;
        skipped++;
    }
    size_t used = filter(p, data, n - skipped, p->max_head_bytes - p->head.len, &end);
    if (p->phase == PHASE_ERROR)
        return skipped + used;
    buf_add(&p->head, data, used);
    if (end && read_head(p))
        *ev = HTTP_PARSE_HEAD;
    return skipped + used;
}

static size_t parse_body(struct http_parse *p, const char *data, size_t n,
                         enum http_parse_event *ev)
{
    p->data = (struct str){NULL, 0};
    llhttp_errno_t code = llhttp_execute(&p->llhttp, data, n);
    if (code == HPE_OK)
        return n;
    if (code != HPE_PAUSED) {
        llhttp_failed(p, code);
        return n;
    }
    size_t used = (size_t)(llhttp_get_error_pos(&p->llhttp) - data);
    llhttp_resume(&p->llhttp);
    p->body_bytes += p->data.n;
    if (p->data.n)
        *ev = HTTP_PARSE_DATA;
    return used;
}

/* Trailers are checked like headers and dropped, RFC 9110 6.5.1. */
static size_t parse_trailer(struct http_parse *p, const char *data, size_t n)
{
    bool end;
    size_t used = filter(p, data, n, p->max_head_bytes - p->trailer_bytes, &end);
    p->trailer_bytes += used;
    if (end)
        p->phase = PHASE_END;
    return used;
}

size_t http_parse(struct http_parse *p, const char *data, size_t n, enum http_parse_event *ev)
{
    size_t used = 0;
    *ev = HTTP_PARSE_MORE;
    if (p->phase == PHASE_HEAD)
        used = parse_head(p, data, n, ev);
    while (*ev == HTTP_PARSE_MORE && p->phase == PHASE_BODY) {
        size_t step = parse_body(p, data + used, n - used, ev);
        used += step;
        if (*ev == HTTP_PARSE_MORE && p->phase == PHASE_BODY)
            return used;
    }
    if (*ev == HTTP_PARSE_MORE && p->phase == PHASE_TRAILER)
        used += parse_trailer(p, data + used, n - used);
    if (p->phase == PHASE_ERROR)
        *ev = HTTP_PARSE_ERROR;
    else if (*ev == HTTP_PARSE_MORE && p->phase == PHASE_END)
        *ev = HTTP_PARSE_END;
    return used;
}

bool http_parse_limit_body(struct http_parse *p, uint64_t n)
{
    p->max_body_bytes = n;
    return p->content_length < 0 || (uint64_t)p->content_length <= n;
}

bool http_parse_begun(const struct http_parse *p)
{
    return p->phase != PHASE_HEAD || p->head.len > 0;
}

bool http_parse_ended(const struct http_parse *p)
{
    return p->phase == PHASE_END;
}

/* ---- life ---- */

void http_parse_init(struct http_parse *p, size_t max_head_bytes, size_t max_headers,
                     struct arena *arena)
{
    *p = (struct http_parse){.max_head_bytes = max_head_bytes,
                             .max_headers = max_headers,
                             .max_body_bytes = UINT64_MAX,
                             .arena = arena};
    llhttp_init(&p->llhttp, HTTP_REQUEST, &settings);
    p->llhttp.data = p;
}

void http_parse_release(struct http_parse *p)
{
    buf_release(&p->head);
}

void http_parse_reset(struct http_parse *p)
{
    buf_release(&p->head);
    http_parse_init(p, p->max_head_bytes, p->max_headers, p->arena);
}
