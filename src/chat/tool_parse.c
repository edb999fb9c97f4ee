#define _GNU_SOURCE /* memmem */
#include "chat/tool_parse.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"

static const struct {
    const char *begin; /* comes before the calls */
    const char *end;   /* comes after each; NULL: the end of the text does */
} markers[] = {
    [TOOL_NONE] = {NULL, NULL},
    [TOOL_HERMES] = {"<tool_call>", "</tool_call>"},
    [TOOL_LLAMA] = {"<|python_tag|>", NULL},
    [TOOL_MISTRAL] = {"[TOOL_CALLS]", NULL},
};

enum tool_format tool_format_of(struct str source)
{
    static const struct {
        const char *text;
        enum tool_format format;
    } signs[] = {
        {"<tool_call>", TOOL_HERMES},
        {"[TOOL_CALLS]", TOOL_MISTRAL},
        {"<|python_tag|>", TOOL_LLAMA},
        {"\"parameters\": dictionary of argument", TOOL_LLAMA},
    };
    for (size_t i = 0; i < ARRAY_LEN(signs); i++)
        if (source.n && memmem(source.p, source.n, signs[i].text, strlen(signs[i].text)))
            return signs[i].format;
    return TOOL_NONE;
}

void tool_parse_init(struct tool_parse *p, enum tool_format format)
{
    *p = (struct tool_parse){.format = format};
}

static void drop_calls(struct tool_parse *p, size_t keep)
{
    while (p->n_calls > keep) {
        p->n_calls--;
        free(p->calls[p->n_calls].name);
        free(p->calls[p->n_calls].arguments);
    }
}

void tool_parse_release(struct tool_parse *p)
{
    if (!p)
        return;
    drop_calls(p, 0);
    free(p->calls);
    buf_release(&p->held);
    *p = (struct tool_parse){0};
}

/* ---- one text with calls in it ---- */

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* The arguments as JSON text: an object, or a string that holds one. NULL: neither. Freed by the
 * caller. */
static char *arguments_text(const json_t *v)
{
    if (!v)
        return xstrdup("{}");
    if (json_is_object(v))
        return json_dumps(v, JSON_COMPACT);
    json_t *inner =
        json_is_string(v) ? jr_parse(json_string_value(v), json_string_length(v), NULL) : NULL;
    char *text = json_is_object(inner) ? xstrdup(json_string_value(v)) : NULL;
    json_decref(inner);
    return text;
}

static bool add_call(struct tool_parse *p, const char *name, const json_t *arguments)
{
    char *text = name && name[0] ? arguments_text(arguments) : NULL;
    if (!text)
        return false;
    if (p->n_calls == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 4;
        p->calls = xrealloc(p->calls, p->cap * sizeof *p->calls);
    }
    p->calls[p->n_calls++] = (struct tool_call){xstrdup(name), text};
    return true;
}

/* {"name": ..., "arguments" or "parameters": ...}, or an array of them. */
static bool add_json(struct tool_parse *p, const json_t *v)
{
    size_t i;
    json_t *item;
    if (json_is_array(v)) {
        json_array_foreach(v, i,
                           item) if (!json_is_object(item) || !add_json(p, item)) return false;
        return i > 0;
    }
    const json_t *arguments = json_object_get(v, "arguments");
    if (!arguments)
        arguments = json_object_get(v, "parameters");
    return add_call(p, json_string_value(json_object_get(v, "name")), arguments);
}

/* Takes name[ARGS] off the front of *text, if it is there. */
static char *take_name(struct str *text)
{
    static const char mark[] = "[ARGS]";
    const char *at = text->n ? memmem(text->p, text->n, mark, strlen(mark)) : NULL;
    if (!at || memchr(text->p, '{', (size_t)(at - text->p)))
        return NULL;
    char *name = xstrndup(text->p, (size_t)(at - text->p));
    text->n -= (size_t)(at - text->p) + strlen(mark);
    text->p = at + strlen(mark);
    return name;
}

/* One or more calls, `;` `,` or the begin marker between them. All or nothing. */
static bool read_calls(struct tool_parse *p, struct str text)
{
    const char *begin = markers[p->format].begin;
    size_t before = p->n_calls;
    bool ok = true;
    while (ok) {
        while (text.n && (is_space(*text.p) || *text.p == ';' || *text.p == ','))
            text = (struct str){text.p + 1, text.n - 1};
        if (str_starts(text, begin)) {
            text = (struct str){text.p + strlen(begin), text.n - strlen(begin)};
            continue;
        }
        if (!text.n)
            break;
        json_error_t where;
        char *name = p->format == TOOL_MISTRAL ? take_name(&text) : NULL;
        json_t *v =
            json_loadb(text.p, text.n, JSON_REJECT_DUPLICATES | JSON_DISABLE_EOF_CHECK, &where);
        ok = v && (name ? add_call(p, name, v) : add_json(p, v));
        if (ok)
            text = (struct str){text.p + where.position, text.n - (size_t)where.position};
        json_decref(v);
        free(name);
    }
    if (!ok)
        drop_calls(p, before);
    return ok && p->n_calls > before;
}

/* ---- text as it comes ---- */

static void emit(struct tool_parse *p, size_t n, struct buf *content)
{
    size_t from = 0;
    while (p->after && from < n && is_space(p->held.data[from]))
        from++;
    if (from < n) {
        p->after = false;
        buf_add(content, p->held.data + from, n - from);
    }
    buf_consume(&p->held, n);
}

/* How many bytes at the end of the held text may begin `mark`. */
static size_t begun(const struct buf *held, const char *mark)
{
    size_t n = strlen(mark) - 1;
    for (n = n < held->len ? n : held->len; n > 0; n--)
        if (memcmp(held->data + held->len - n, mark, n) == 0)
            break;
    return n;
}

/* Between calls. True when a call begins here, its marker being at the front of what is held. */
static bool outside(struct tool_parse *p, struct buf *content)
{
    const char *mark = markers[p->format].begin;
    const char *at = p->held.len ? memmem(p->held.data, p->held.len, mark, strlen(mark)) : NULL;
    emit(p, at ? (size_t)(at - p->held.data) : p->held.len - begun(&p->held, mark), content);
    return at != NULL;
}

/* A LLAMA answer is a call from its first byte, or never. */
static bool begins_as_call(struct tool_parse *p)
{
    const char *mark = markers[TOOL_LLAMA].begin;
    size_t i = 0;
    while (i < p->held.len && is_space(p->held.data[i]))
        i++;
    size_t n = p->held.len - i;
    if (!n)
        return false;
    size_t shared = n < strlen(mark) ? n : strlen(mark);
    bool tag = memcmp(p->held.data + i, mark, shared) == 0;
    if (tag && shared < strlen(mark))
        return false; /* wait for more */
    p->decided = true;
    return tag || p->held.data[i] == '{';
}

/* The call in held[0, n), which its marker begins: taken, or given out as content. */
static void close_call(struct tool_parse *p, size_t n, struct buf *content)
{
    const char *begin = markers[p->format].begin, *end = markers[p->format].end;
    struct str text = {p->held.data, n};
    if (end && n >= strlen(end) && memcmp(text.p + n - strlen(end), end, strlen(end)) == 0)
        text.n -= strlen(end);
    if (str_starts(text, begin))
        text = (struct str){text.p + strlen(begin), text.n - strlen(begin)};
    p->inside = false;
    p->searched = 0;
    if (read_calls(p, text)) {
        buf_consume(&p->held, n);
        p->after = true;
    } else {
        emit(p, n, content);
    }
}

/* Where the call being held ends, its end marker included; 0: not yet. */
static size_t call_end(struct tool_parse *p)
{
    const char *end = markers[p->format].end;
    size_t n = end ? strlen(end) : 0;
    const char *from = p->held.data + p->searched;
    const char *at = end ? memmem(from, p->held.len - p->searched, end, n) : NULL;
    if (at)
        return (size_t)(at - p->held.data) + n;
    if (end && p->held.len >= n)
        p->searched = p->held.len - n + 1;
    return 0;
}

void tool_parse_add(struct tool_parse *p, const char *text, size_t n, struct buf *content)
{
    buf_add(&p->held, text, n);
    for (;;) {
        if (p->format == TOOL_NONE || (p->format == TOOL_LLAMA && p->decided && !p->inside)) {
            emit(p, p->held.len, content);
            return;
        }
        if (!p->inside) {
            p->inside = p->format == TOOL_LLAMA ? begins_as_call(p) : outside(p, content);
            if (!p->inside && !p->decided)
                return;
            continue;
        }
        size_t end = call_end(p);
        if (end) {
            close_call(p, end, content);
        } else if (p->held.len > TOOL_PARSE_HELD_BYTES) {
            p->inside = false;
            p->searched = 0;
            emit(p, strlen(markers[p->format].begin), content);
        } else {
            return;
        }
    }
}

void tool_parse_end(struct tool_parse *p, struct buf *content)
{
    if (p->inside)
        close_call(p, p->held.len, content);
    emit(p, p->held.len, content);
}
