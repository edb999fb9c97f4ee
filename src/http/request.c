#include "base/mem.h"
#include "http/conn.h"

struct str http_header(const struct http_req *r, const char *name)
{
    for (size_t i = 0; i < r->n_headers; i++)
        if (str_case_eq(r->headers[i].name, name))
            return r->headers[i].value;
    return (struct str){NULL, 0};
}

void http_forget_header(struct http_req *r, const char *name)
{
    for (size_t i = 0; i < r->n_headers; i++)
        if (str_case_eq(r->headers[i].name, name)) /* it lies in the connection's own buffer */
            explicit_bzero((char *)(uintptr_t)r->headers[i].value.p, r->headers[i].value.n);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

struct str http_unescape(struct arena *a, struct str s, bool plus_is_space)
{
    char *out = arena_alloc(a, s.n + 1);
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        if (c == '%') {
            int high = i + 2 < s.n ? hex_digit(s.p[i + 1]) : -1;
            int low = i + 2 < s.n ? hex_digit(s.p[i + 2]) : -1;
            if (high < 0 || low < 0 || high + low == 0)
                return (struct str){NULL, 0};
            c = (char)(high * 16 + low);
            i += 2;
        } else if (c == '+' && plus_is_space) {
            c = ' ';
        }
        out[n++] = c;
    }
    return (struct str){out, n};
}

struct str http_query(struct http_req *r, const char *name)
{
    const char *p = r->query.p, *end = p + r->query.n;
    while (p < end) {
        const char *stop = memchr(p, '&', (size_t)(end - p));
        if (!stop)
            stop = end;
        const char *is = memchr(p, '=', (size_t)(stop - p));
        struct str key = {p, (size_t)((is ? is : stop) - p)};
        struct str value = is ? (struct str){is + 1, (size_t)(stop - is - 1)} : STR("");
        key = http_unescape(&r->arena, key, true);
        if (key.p && str_eqs(key, name))
            return http_unescape(&r->arena, value, true);
        p = stop + 1;
    }
    return (struct str){NULL, 0};
}

void http_set_body_limit(struct http_req *r, size_t n)
{
    http_parse_limit_body(&conn_of(r)->parse, n);
}

void http_stream_body(struct http_req *r,
                      void (*on_data)(struct http_req *r, const char *p, size_t n))
{
    struct http_conn *c = conn_of(r);
    BUG_ON(c->state != CONN_BODY || c->streamed);
    c->streamed = true;
    c->on_data = on_data;
}

void http_pause_body(struct http_req *r)
{
    conn_of(r)->paused = true;
    conn_dirty(conn_of(r));
}

void http_resume_body(struct http_req *r)
{
    struct http_conn *c = conn_of(r);
    c->paused = false;
    pace_start(&c->body_pace, c);
    conn_dirty(c);
}

void http_drop_body(struct http_req *r)
{
    conn_release_body(conn_of(r));
}
