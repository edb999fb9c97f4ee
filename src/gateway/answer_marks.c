#include "gateway/answer_marks.h"

#include <string.h>

#include "base/json_scan.h"

static void add(struct buf *out, enum answer_mark_kind kind, struct str text, struct str value)
{
    struct answer_mark m = {(int32_t)kind, (int32_t)(value.p - text.p), (int32_t)value.n};
    buf_add(out, &m, sizeof m);
}

/* Those of one JSON object in text. */
static void find_in(struct str text, struct str json, struct buf *out)
{
    static const char *const keys[] = {"id", "created"};
    struct str v[2], id;
    uint64_t time;
    if (!json_scan(json, keys, v, 2))
        return;
    bool has_id = v[0].p && json_scan_string(v[0], &id) && id.n;
    bool has_time = v[1].p && json_scan_uint(v[1], &time);
    if (has_time && has_id && v[1].p < id.p) {
        add(out, MARK_TIME, text, v[1]);
        has_time = false;
    }
    if (has_id)
        add(out, MARK_ID, text, id);
    if (has_time)
        add(out, MARK_TIME, text, v[1]);
}

void answer_marks_find(struct str text, struct buf *out)
{
    const char *end = text.p + text.n;
    if (text.n > INT32_MAX)
        return;
    find_in(text, text, out);
    for (const char *at = text.p, *nl; at < end && (nl = memchr(at, '\n', (size_t)(end - at)));
         at = nl + 1)
        if (str_starts((struct str){at, (size_t)(nl - at)}, "data:"))
            find_in(text, (struct str){at + 5, (size_t)(nl - at) - 5}, out);
}

void answer_marks_replace(struct str text, const struct answer_mark *marks, size_t n, struct str id,
                          int64_t unix_s, struct buf *out)
{
    size_t from = 0;
    for (size_t i = 0; i < n; i++) {
        size_t at = (size_t)marks[i].at;
        buf_add(out, text.p + from, at - from);
        if (marks[i].kind == MARK_ID)
            buf_add(out, id.p, id.n);
        else
            buf_addf(out, "%lld", (long long)unix_s);
        from = at + (size_t)marks[i].n;
    }
    buf_add(out, text.p + from, text.n - from);
}
