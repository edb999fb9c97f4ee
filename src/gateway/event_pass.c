#include "gateway/event_pass.h"

#include "base/json_scan.h"

bool event_usage(struct str json, int64_t *prompt, int64_t *completion)
{
    static const char *const top[] = {"usage"};
    static const char *const counts[] = {"prompt_tokens", "completion_tokens"};
    struct str usage, v[2];
    uint64_t n[2] = {0};
    if (!json_scan(json, top, &usage, 1) || !usage.p || !json_scan(usage, counts, v, 2))
        return false;
    for (int i = 0; i < 2; i++)
        if (v[i].p && !json_scan_uint(v[i], &n[i]))
            return false;
    *prompt = (int64_t)(n[0] & INT32_MAX);
    *completion = (int64_t)(n[1] & INT32_MAX);
    return true;
}

static bool take_data(struct event_pass *p, struct str v)
{
    while (v.n && *v.p == ' ')
        v = (struct str){v.p + 1, v.n - 1};
    if (str_eqs(v, "[DONE]")) {
        struct str last = p->last.p ? p->last : (struct str){buf_str(&p->kept), p->kept.len};
        p->done = true;
        event_usage(last, &p->prompt_tokens, &p->completion_tokens);
        return true;
    }
    if (v.n < 2 || v.p[0] != '{' || v.p[v.n - 1] != '}' || memchr(v.p, 0, v.n))
        return false;
    p->n_data++;
    p->last = v;
    return true;
}

/* One line without its end. */
static bool take_line(struct event_pass *p, struct str line)
{
    static const char *const others[] = {"event:", "id:", "retry:"};
    if (line.n == 0 || line.p[0] == ':')
        return true;
    if (p->done)
        return false;
    if (str_starts(line, "data:"))
        return take_data(p, (struct str){line.p + 5, line.n - 5});
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (str_starts(line, others[i]))
            return true;
    return false;
}

/* Checks the lines of text[from..n); *whole is behind the last empty one, *seen behind the last
 * line. */
static bool take_lines(struct event_pass *p, struct str text, size_t *whole, size_t *seen)
{
    const char *at = text.p, *end = text.p + text.n;
    for (const char *nl; at < end && (nl = memchr(at, '\n', (size_t)(end - at))); at = nl + 1) {
        struct str line = {at, (size_t)(nl - at)};
        if (line.n && line.p[line.n - 1] == '\r')
            line.n--;
        if (!take_line(p, line))
            return false;
        if (line.n == 0)
            *whole = (size_t)(nl + 1 - text.p);
    }
    *seen = (size_t)(at - text.p);
    return true;
}

/* Usage comes with the last data line, which may be in an earlier piece than [DONE]. */
static void keep_last(struct event_pass *p)
{
    if (p->last.p && !p->done) {
        buf_clear(&p->kept);
        buf_add(&p->kept, p->last.p, p->last.n);
    }
    p->last = (struct str){NULL, 0};
}

/* As a rule a piece is whole events, and goes on from where it is. */
static bool add_direct(struct event_pass *p, const char *data, size_t n, struct str *out)
{
    size_t whole = 0, seen = 0;
    if (!take_lines(p, (struct str){data, n}, &whole, &seen))
        return false;
    *out = (struct str){data, whole};
    if (whole < n)
        buf_add(&p->held, data + whole, n - whole);
    p->scanned = seen - whole;
    return true;
}

static bool add_held(struct event_pass *p, const char *data, size_t n, struct str *out)
{
    size_t whole = 0, seen = 0;
    buf_add(&p->held, data, n);
    struct str rest = {p->held.data + p->scanned, p->held.len - p->scanned};
    if (!take_lines(p, rest, &whole, &seen))
        return false;
    if (whole) {
        p->passed = p->scanned + whole;
        *out = (struct str){p->held.data, p->passed};
        p->scanned = seen - whole;
    } else {
        p->scanned += seen;
    }
    return true;
}

bool event_pass_add(struct event_pass *p, const char *data, size_t n, struct str *out)
{
    *out = (struct str){NULL, 0};
    buf_consume(&p->held, p->passed);
    p->passed = 0;
    bool fine = (p->held.len ? add_held : add_direct)(p, data, n, out);
    keep_last(p);
    return fine && p->held.len - p->passed <= EVENT_MAX_BYTES;
}

void event_pass_release(struct event_pass *p)
{
    buf_release(&p->held);
    buf_release(&p->kept);
    *p = (struct event_pass){0};
}
