/* What a backend sends: an event stream, its JSON, and a request's JSON on its way out. However it
 * is cut into pieces, the same bytes go on, and only whole events. */
#define _GNU_SOURCE /* memmem */
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/json_scan.h"
#include "gateway/answer_marks.h"
#include "gateway/answer_whole.h"
#include "gateway/event_pass.h"

/* Passes the stream in pieces of n bytes. false: it was refused; what went on before stays. */
static bool pass(const char *data, size_t size, size_t n, struct buf *out)
{
    struct event_pass p = {0};
    bool fine = true;
    for (size_t at = 0; at < size && fine; at += n) {
        struct str whole;
        fine = event_pass_add(&p, data + at, n < size - at ? n : size - at, &whole);
        if (fine && whole.n)
            buf_add(out, whole.p, whole.n);
    }
    event_pass_release(&p);
    return fine;
}

/* Values of members, one behind the other, none of which holds a quote or a line's end. */
static void check_marks(struct str text)
{
    struct buf all = {0};
    size_t end = 0;
    answer_marks_find(text, &all);
    const struct answer_mark *marks = (const void *)all.data;
    for (size_t i = 0; i < all.len / sizeof *marks; i++) {
        size_t at = (size_t)marks[i].at, n = (size_t)marks[i].n;
        BUG_ON(at <= end || !n || at + n >= text.n || memchr(text.p + at, '"', n));
        BUG_ON(memchr(text.p + at, '\n', n));
        end = at + n;
    }
    buf_release(&all);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const keys[] = {"model", "messages"};
    struct str text = {(const char *)data, size}, v[2], first;
    int64_t prompt, completion;
    if (json_scan(text, keys, v, 2) && v[1].p)
        json_scan_first(v[1], &first);
    event_usage(text, &prompt, &completion);
    struct answer_whole answer = {0};
    answer_whole_add(&answer, text);
    BUG_ON(answer_is_whole(&answer, 1) && !memmem(data, size, "finish_reason", 13));
    check_marks(text);
    struct buf whole = {0}, pieces = {0};
    bool fine = pass(text.p, size, size ? size : 1, &whole);
    bool cut = pass(text.p, size, size ? 1 + data[0] % 16 : 1, &pieces);
    BUG_ON(fine != cut);
    BUG_ON(fine && (whole.len != pieces.len ||
                    (whole.len && memcmp(whole.data, pieces.data, whole.len) != 0)));
    buf_release(&whole);
    buf_release(&pieces);
    return 0;
}
