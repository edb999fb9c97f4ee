#define _GNU_SOURCE /* memmem */
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
        p->done = true;
        return true;
    }
    if (v.n < 2 || v.p[0] != '{' || v.p[v.n - 1] != '}' || memchr(v.p, 0, v.n))
        return false;
    p->n_data++;
    if (memmem(v.p, v.n, "\"usage\":{", 9) || memmem(v.p, v.n, "\"usage\": {", 10))
        event_usage(v, &p->prompt_tokens, &p->completion_tokens);
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

bool event_pass_add(struct event_pass *p, const char *data, size_t n, struct str *out)
{
    size_t whole = 0, seen = 0;
    *out = (struct str){NULL, 0};
    buf_consume(&p->held, p->passed);
    p->passed = 0;
    if (!p->held.len) { /* as a rule a piece is whole events */
        if (!take_lines(p, (struct str){data, n}, &whole, &seen))
            return false;
        *out = (struct str){data, whole};
        if (whole < n)
            buf_add(&p->held, data + whole, n - whole);
        p->scanned = seen - whole;
    } else {
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
    }
    return p->held.len - p->passed <= EVENT_MAX_BYTES;
}

void event_pass_release(struct event_pass *p)
{
    buf_release(&p->held);
    *p = (struct event_pass){0};
}
