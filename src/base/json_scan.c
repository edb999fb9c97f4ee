#include "base/json_scan.h"

#include "base/json.h"

struct scan {
    const char *p, *end;
};

static void skip_space(struct scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\r' || *s->p == '\t'))
        s->p++;
}

/* At an opening quote. */
static bool skip_string(struct scan *s)
{
    for (s->p++; s->p < s->end; s->p++) {
        unsigned char c = (unsigned char)*s->p;
        if (c == '"') {
            s->p++;
            return true;
        }
        if (c < 0x20)
            return false;
        if (c == '\\' && ++s->p == s->end)
            return false;
    }
    return false;
}

/* A number, true, false or null: their letters, without their grammar. */
static bool skip_word(struct scan *s)
{
    const char *start = s->p;
    while (s->p < s->end && ((*s->p >= 'a' && *s->p <= 'z') || (*s->p >= '0' && *s->p <= '9') ||
                             *s->p == '-' || *s->p == '+' || *s->p == '.' || *s->p == 'E'))
        s->p++;
    return s->p > start;
}

/* After a value inside of `depth` brackets: closes those that end here, and goes past the comma.
 * false if neither a bracket nor a comma follows. */
static bool skip_closing(struct scan *s, const char *stack, int *depth, bool *member)
{
    for (;;) {
        skip_space(s);
        if (*depth == 0)
            return true;
        if (s->p == s->end)
            return false;
        char c = *s->p++;
        if (c == ',') {
            *member = stack[*depth - 1] == '}';
            return true;
        }
        if (c != stack[*depth - 1])
            return false;
        --*depth;
    }
}

/* "key": of a nested object. */
static bool skip_key(struct scan *s)
{
    skip_space(s);
    if (s->p == s->end || *s->p != '"' || !skip_string(s))
        return false;
    skip_space(s);
    return s->p < s->end && *s->p++ == ':';
}

/* Any value, from its first character to behind its last. */
static bool skip_value(struct scan *s)
{
    char stack[JSON_MAX_DEPTH]; /* the closing brackets that are due */
    int depth = 0;
    bool member = false; /* a key comes next */
    do {
        if (member && !skip_key(s))
            return false;
        member = false;
        skip_space(s);
        if (s->p == s->end)
            return false;
        char c = *s->p;
        if (c == '{' || c == '[') {
            if (depth == JSON_MAX_DEPTH)
                return false;
            stack[depth++] = c == '{' ? '}' : ']';
            s->p++;
            skip_space(s);
            if (s->p == s->end)
                return false;
            if (*s->p != stack[depth - 1]) {
                member = c == '{';
                continue;
            }
        } else if (c == '"' ? !skip_string(s) : !skip_word(s)) {
            return false;
        }
        if (depth && !skip_closing(s, stack, &depth, &member))
            return false;
    } while (depth);
    return true;
}

/* One member of the top level; *key is as it is written between the quotes. */
static bool scan_member(struct scan *s, struct str *key, struct str *value)
{
    skip_space(s);
    const char *start = s->p + 1;
    if (s->p == s->end || *s->p != '"' || !skip_string(s))
        return false;
    *key = (struct str){start, (size_t)(s->p - 1 - start)};
    skip_space(s);
    if (s->p == s->end || *s->p++ != ':' || memchr(key->p, '\\', key->n))
        return false;
    skip_space(s);
    start = s->p;
    if (!skip_value(s))
        return false;
    *value = (struct str){start, (size_t)(s->p - start)};
    return true;
}

static bool opens(struct scan *s, struct str text, char bracket)
{
    *s = (struct scan){text.p, text.p + text.n};
    skip_space(s);
    if (s->p == s->end || *s->p++ != bracket)
        return false;
    skip_space(s);
    return s->p < s->end;
}

bool json_scan(struct str text, const char *const *keys, struct str *values, size_t n)
{
    struct scan s;
    for (size_t i = 0; i < n; i++)
        values[i] = (struct str){NULL, 0};
    if (!opens(&s, text, '{'))
        return false;
    bool more = *s.p != '}';
    if (!more)
        s.p++;
    while (more) {
        struct str key, value;
        if (!scan_member(&s, &key, &value))
            return false;
        for (size_t i = 0; i < n; i++) {
            if (!str_eqs(key, keys[i]))
                continue;
            if (values[i].p)
                return false;
            values[i] = value;
        }
        skip_space(&s);
        if (s.p == s.end || (*s.p != ',' && *s.p != '}'))
            return false;
        more = *s.p++ == ',';
    }
    skip_space(&s);
    return s.p == s.end;
}

bool json_scan_first(struct str text, struct str *first)
{
    struct scan s;
    if (!opens(&s, text, '[') || *s.p == ']')
        return false;
    const char *start = s.p;
    if (!skip_value(&s))
        return false;
    *first = (struct str){start, (size_t)(s.p - start)};
    return true;
}

bool json_scan_string(struct str value, struct str *out)
{
    if (value.n < 2 || value.p[0] != '"' || memchr(value.p, '\\', value.n))
        return false;
    *out = (struct str){value.p + 1, value.n - 2};
    return true;
}

bool json_scan_uint(struct str value, uint64_t *out)
{
    return value.n > 0 && value.p[0] >= '0' && value.p[0] <= '9' && str_to_u64(value, out);
}
