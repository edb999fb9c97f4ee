#define _GNU_SOURCE /* memmem */
#include "gateway/answer_whole.h"

#include <string.h>

#include "base/mem.h"

/* The next member of that name, and *text behind its colon; false: there is none. */
static bool find_member(struct str *text, const char *quoted)
{
    static const char space[] = " \t\r\n";
    size_t n = strlen(quoted);
    const char *end = text->p + text->n;
    for (const char *at; text->n && (at = memmem(text->p, text->n, quoted, n));) {
        for (at += n; at < end && memchr(space, *at, sizeof space - 1);)
            at++;
        bool member = at < end && *at == ':';
        for (at += member; member && at < end && memchr(space, *at, sizeof space - 1);)
            at++;
        *text = (struct str){at, (size_t)(end - at)};
        if (member)
            return true;
    }
    return false;
}

static bool is_end(struct str reason)
{
    static const char *const ends[] = {
        "\"stop\"", "\"length\"", "\"tool_calls\"", "\"function_call\"", "\"content_filter\"",
    };
    for (size_t i = 0; i < ARRAY_LEN(ends); i++)
        if (str_starts(reason, ends[i]))
            return true;
    return false;
}

void answer_whole_add(struct answer_whole *w, struct str text)
{
    struct str rest = text;
    while (find_member(&rest, "\"finish_reason\"")) {
        bool ends = is_end(rest);
        w->finished += ends;
        w->failed = w->failed || !(ends || str_starts(rest, "null"));
    }
    rest = text;
    while (find_member(&rest, "\"error\""))
        w->failed = w->failed || !str_starts(rest, "null");
}

bool answer_is_whole(const struct answer_whole *w, int n_choices)
{
    return !w->failed && w->finished >= n_choices;
}
