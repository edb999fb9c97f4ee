#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void jw_init(struct jw *w, struct buf *out)
{
    *w = (struct jw){.out = out};
}

void jw_done(const struct jw *w)
{
    BUG_ON(w->depth);
}

static void value(struct jw *w)
{
    if (w->comma)
        buf_addc(w->out, ',');
    w->comma = true;
}

static void begin(struct jw *w, char c)
{
    value(w);
    buf_addc(w->out, c);
    w->depth++;
    w->comma = false;
}

static void end(struct jw *w, char c)
{
    BUG_ON(w->depth-- <= 0);
    buf_addc(w->out, c);
    w->comma = true;
}

void jw_obj(struct jw *w)
{
    begin(w, '{');
}

void jw_obj_end(struct jw *w)
{
    end(w, '}');
}

void jw_arr(struct jw *w)
{
    begin(w, '[');
}

void jw_arr_end(struct jw *w)
{
    end(w, ']');
}

static void quoted(struct buf *b, const char *p, size_t n)
{
    static const char hex[] = "0123456789abcdef";
    static const char escapes[] = "btn\0fr"; /* 8 to 13; 11 has no short form */
    buf_addc(b, '"');
    for (size_t i = 0; i < n;) {
        size_t start = i;
        uint32_t cp = 0;
        int len = 0;
        /* the longest run that needs no change */
        while (i < n) {
            unsigned char c = (unsigned char)p[i];
            if (c < 0x20 || c == '"' || c == '\\')
                break;
            len = c < 0x80 ? 1 : utf8_decode(p + i, n - i, &cp);
            if (!len)
                break;
            i += (size_t)len;
        }
        buf_add(b, p + start, i - start);
        if (i == n)
            break;
        unsigned char c = (unsigned char)p[i++];
        if (c >= 0x80) {
            buf_adds(b, "\xef\xbf\xbd");
        } else if (c == '"' || c == '\\') {
            buf_addc(b, '\\');
            buf_addc(b, (char)c);
        } else if (c >= 8 && c <= 13 && c != 11) {
            buf_addc(b, '\\');
            buf_addc(b, escapes[c - 8]);
        } else {
            char esc[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
            buf_add(b, esc, 6);
        }
    }
    buf_addc(b, '"');
}

void jw_key(struct jw *w, const char *key)
{
    value(w);
    quoted(w->out, key, strlen(key));
    buf_addc(w->out, ':');
    w->comma = false;
}

void jw_strn(struct jw *w, const char *p, size_t n)
{
    value(w);
    quoted(w->out, p, n);
}

void jw_str(struct jw *w, const char *s)
{
    if (s)
        jw_strn(w, s, strlen(s));
    else
        jw_null(w);
}

void jw_int(struct jw *w, int64_t v)
{
    value(w);
    buf_addf(w->out, "%lld", (long long)v);
}

void jw_uint(struct jw *w, uint64_t v)
{
    value(w);
    buf_addf(w->out, "%llu", (unsigned long long)v);
}

void jw_num(struct jw *w, double v)
{
    char tmp[40];
    if (!isfinite(v)) {
        jw_null(w);
        return;
    }
    value(w);
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(tmp, sizeof tmp, "%.*g", digits, v);
        if (strtod(tmp, NULL) == v)
            break;
    }
    buf_adds(w->out, tmp);
}

void jw_bool(struct jw *w, bool v)
{
    value(w);
    buf_adds(w->out, v ? "true" : "false");
}

void jw_null(struct jw *w)
{
    value(w);
    buf_adds(w->out, "null");
}

void jw_raw(struct jw *w, const char *json, size_t n)
{
    value(w);
    buf_add(w->out, json, n);
}

/* A number with a point keeps it, as its reader may tell the two kinds apart. */
static void write_real(struct jw *w, double v)
{
    size_t from = w->out->len;
    jw_num(w, v);
    if (isfinite(v) && !strpbrk(w->out->data + from, ".e"))
        buf_adds(w->out, ".0");
}

static void write_members(struct jw *w, const json_t *v)
{
    const char *key;
    json_t *member;
    jw_obj(w);
    json_object_foreach((json_t *)v, key, member)
    {
        jw_key(w, key);
        jw_tree(w, member);
    }
    jw_obj_end(w);
}

static void write_elements(struct jw *w, const json_t *v)
{
    jw_arr(w);
    for (size_t i = 0; i < json_array_size(v); i++)
        jw_tree(w, json_array_get(v, i));
    jw_arr_end(w);
}

void jw_tree(struct jw *w, const json_t *v)
{
    if (json_is_object(v))
        write_members(w, v);
    else if (json_is_array(v))
        write_elements(w, v);
    else if (json_is_string(v))
        jw_strn(w, json_string_value(v), json_string_length(v));
    else if (json_is_integer(v))
        jw_int(w, json_integer_value(v));
    else if (json_is_real(v))
        write_real(w, json_real_value(v));
    else if (json_is_boolean(v))
        jw_bool(w, json_is_true(v));
    else
        jw_null(w);
}

void jw_kstr(struct jw *w, const char *key, const char *s)
{
    jw_key(w, key);
    jw_str(w, s);
}

void jw_kstrn(struct jw *w, const char *key, const char *p, size_t n)
{
    jw_key(w, key);
    jw_strn(w, p, n);
}

void jw_kint(struct jw *w, const char *key, int64_t v)
{
    jw_key(w, key);
    jw_int(w, v);
}

void jw_kuint(struct jw *w, const char *key, uint64_t v)
{
    jw_key(w, key);
    jw_uint(w, v);
}

void jw_knum(struct jw *w, const char *key, double v)
{
    jw_key(w, key);
    jw_num(w, v);
}

void jw_kbool(struct jw *w, const char *key, bool v)
{
    jw_key(w, key);
    jw_bool(w, v);
}

void jw_knull(struct jw *w, const char *key)
{
    jw_key(w, key);
    jw_null(w);
}

/* Nesting is counted before the parser recurses, strings skipped. */
static bool too_deep(const char *p, size_t n)
{
    int depth = 0;
    for (size_t i = 0; i < n; i++) {
        if (p[i] == '"') {
            for (i++; i < n && p[i] != '"'; i++)
                i += p[i] == '\\';
        } else if (p[i] == '{' || p[i] == '[') {
            if (++depth > JSON_MAX_DEPTH)
                return true;
        } else if (p[i] == '}' || p[i] == ']') {
            depth--;
        }
    }
    return false;
}

json_t *jr_parse(const char *text, size_t n, struct err *e)
{
    if (too_deep(text, n)) {
        err_set(e, ERR_INVALID, "JSON is nested deeper than %d levels", JSON_MAX_DEPTH);
        return NULL;
    }
    json_error_t je;
    json_t *v = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &je);
    if (!v)
        err_set(e, ERR_INVALID, "JSON is malformed at line %d, column %d: %s", je.line, je.column,
                je.text);
    return v;
}
