#include "chat/jinja.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* Python's repr(float): the shortest digits that read back the same, with an exponent only below
 * 1e-4 and from 1e16. */
size_t jinja_float_text(double f, char out[32])
{
    if (!isfinite(f))
        return (size_t)sprintf(out, "%s", isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
    char text[40];
    int digits = 0;
    do
        snprintf(text, sizeof text, "%.*e", digits, f);
    while (strtod(text, NULL) != f && ++digits < 17);
    int exponent = atoi(strchr(text, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        int decimals = digits - exponent;
        return (size_t)snprintf(out, 32, "%.*f", decimals > 1 ? decimals : 1, f);
    }
    *strchr(text, 'e') = 0;
    return (size_t)snprintf(out, 32, "%se%c%02d", text, exponent < 0 ? '-' : '+', abs(exponent));
}

/* str.isprintable() of one code point: no separators but the space, no control, format, private
 * or surrogate characters. Unassigned ones are taken as printable. */
static bool printable(uint32_t cp)
{
    static const struct {
        uint32_t from, to;
    } hidden[] = {
        {0x0, 0x1f},        {0x7f, 0xa0},        {0xad, 0xad},       {0x600, 0x605},
        {0x61c, 0x61c},     {0x6dd, 0x6dd},      {0x70f, 0x70f},     {0x890, 0x891},
        {0x8e2, 0x8e2},     {0x1680, 0x1680},    {0x180e, 0x180e},   {0x2000, 0x200f},
        {0x2028, 0x202f},   {0x205f, 0x206f},    {0x3000, 0x3000},   {0xd800, 0xf8ff},
        {0xfeff, 0xfeff},   {0xfff0, 0xfffb},    {0xfffe, 0xffff},   {0x110bd, 0x110bd},
        {0x110cd, 0x110cd}, {0x13430, 0x1343f},  {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a},
        {0xe0000, 0xe00ff}, {0xe01f0, 0x10ffff},
    };
    for (size_t i = 0; i < ARRAY_LEN(hidden); i++)
        if (cp >= hidden[i].from && cp <= hidden[i].to)
            return false;
    return true;
}

static void repr_escape(struct builder *b, uint32_t cp, char quote, bool trusted)
{
    char text[16];
    const char *simple = cp == '\n' ? "\\n" : cp == '\r' ? "\\r" : cp == '\t' ? "\\t" : NULL;
    if (simple)
        snprintf(text, sizeof text, "%s", simple);
    else if (cp == '\\' || cp == (unsigned char)quote)
        snprintf(text, sizeof text, "\\%c", (int)cp);
    else
        snprintf(text, sizeof text,
                 cp < 0x100     ? "\\x%02" PRIx32
                 : cp < 0x10000 ? "\\u%04" PRIx32
                                : "\\U%08" PRIx32,
                 cp);
    jinja_adds(b, text, trusted);
}

static void repr_string(struct builder *b, struct string s)
{
    char quote = s.n && memchr(s.p, '\'', s.n) && !memchr(s.p, '"', s.n) ? '"' : '\'';
    bool trusted = jinja_is_trusted(s);
    size_t from = 0;
    jinja_add_bytes(b, &quote, 1, trusted);
    jinja_charge(b->run, s.n / 64);
    for (size_t i = 0, n; i < s.n && !b->run->code; i += n) {
        uint32_t cp;
        n = jinja_code_point(s.p + i, s.n - i, &cp);
        if (cp != '\\' && cp != (unsigned char)quote && printable(cp))
            continue;
        jinja_add(b, jinja_cut(s, from, i));
        repr_escape(b, cp, quote, s.marks ? s.marks[i] : s.trusted);
        from = i + n;
    }
    jinja_add(b, jinja_cut(s, from, s.n));
    jinja_add_bytes(b, &quote, 1, trusted);
}

static void repr_items(struct builder *b, struct value v)
{
    static const char *const brackets[][2] = {
        [V_LIST] = {"[", "]"}, [V_TUPLE] = {"(", ")"}, [V_VIEW] = {"([", "])"}};
    if (v.kind == V_VIEW)
        jinja_adds(b, v.seq->label, v.trusted);
    jinja_adds(b, brackets[v.kind][0], v.trusted);
    for (size_t i = 0; i < v.seq->n && jinja_charge(b->run, 1); i++) {
        if (i)
            jinja_adds(b, ", ", v.trusted);
        jinja_repr(b, v.seq->items[i]);
    }
    if (v.kind == V_TUPLE && v.seq->n == 1)
        jinja_adds(b, ",", v.trusted);
    jinja_adds(b, brackets[v.kind][1], v.trusted);
}

static void repr_dict(struct builder *b, struct value v)
{
    jinja_adds(b, v.kind == V_NAMESPACE ? "<Namespace {" : "{", v.trusted);
    for (size_t i = 0; i < v.dict->n && jinja_charge(b->run, 1); i++) {
        if (i)
            jinja_adds(b, ", ", v.trusted);
        jinja_repr(b, v.dict->entries[i].key);
        jinja_adds(b, ": ", v.trusted);
        jinja_repr(b, v.dict->entries[i].value);
    }
    jinja_adds(b, v.kind == V_NAMESPACE ? "}>" : "}", v.trusted);
}

static void repr_range(struct builder *b, const struct seq *q)
{
    char text[96];
    int n = snprintf(text, sizeof text, "range(%" PRId64 ", %" PRId64, q->start, q->stop);
    if (q->step != 1)
        n += snprintf(text + n, sizeof text - (size_t)n, ", %" PRId64, q->step);
    snprintf(text + n, sizeof text - (size_t)n, ")");
    jinja_adds(b, text, true);
}

static void print_number(struct builder *b, struct value v)
{
    char text[32];
    if (v.kind == V_INT)
        snprintf(text, sizeof text, "%" PRId64, v.i);
    else
        jinja_float_text(v.f, text);
    jinja_adds(b, text, v.trusted);
}

void jinja_repr(struct builder *b, struct value v)
{
    char text[64];
    if (!jinja_descend(b->run))
        return;
    switch (v.kind) {
    case V_STRING:
        repr_string(b, v.s);
        break;
    case V_UNDEFINED:
        jinja_adds(b, "Undefined", true);
        break;
    case V_NONE:
        jinja_adds(b, "None", v.trusted);
        break;
    case V_BOOL:
        jinja_adds(b, v.b ? "True" : "False", v.trusted);
        break;
    case V_INT:
    case V_FLOAT:
        print_number(b, v);
        break;
    case V_LIST:
    case V_TUPLE:
    case V_VIEW:
        repr_items(b, v);
        break;
    case V_RANGE:
        repr_range(b, v.seq);
        break;
    case V_DICT:
    case V_NAMESPACE:
        repr_dict(b, v);
        break;
    case V_LOOP:
        snprintf(text, sizeof text, "<LoopContext %zu/%zu>", v.loop->i + 1, v.loop->n);
        jinja_adds(b, text, true);
        break;
    default: /* Python prints an address here: nothing that a template could mean */
        jinja_adds(b, "<", true);
        jinja_adds(b, jinja_kind_name(v.kind), true);
        jinja_adds(b, ">", true);
    }
    b->run->depth--;
}

void jinja_print(struct builder *b, struct value v)
{
    if (v.kind == V_STRING)
        jinja_add(b, v.s);
    else if (v.kind != V_UNDEFINED && v.kind != V_ABSENT)
        jinja_repr(b, v);
}

struct string jinja_text(struct run *r, struct value v)
{
    if (v.kind == V_STRING)
        return v.s;
    struct builder b = {.run = r};
    jinja_print(&b, v);
    return jinja_built(&b);
}

/* ---- json.dumps ---- */

static void json_escape(struct builder *b, uint32_t cp, bool trusted)
{
    static const char short_forms[] = "btn\0fr"; /* 8 to 13; 11 has none */
    char text[16];
    if (cp == '"' || cp == '\\')
        snprintf(text, sizeof text, "\\%c", (int)cp);
    else if (cp >= 8 && cp <= 13 && cp != 11)
        snprintf(text, sizeof text, "\\%c", short_forms[cp - 8]);
    else if (cp < 0x10000)
        snprintf(text, sizeof text, "\\u%04" PRIx32, cp);
    else
        snprintf(text, sizeof text, "\\u%04" PRIx32 "\\u%04" PRIx32,
                 0xd800 + ((cp - 0x10000) >> 10), 0xdc00 + ((cp - 0x10000) & 0x3ff));
    jinja_adds(b, text, trusted);
}

static void dump_string(struct builder *b, struct string s, bool ascii)
{
    bool trusted = jinja_is_trusted(s);
    size_t from = 0;
    jinja_adds(b, "\"", trusted);
    jinja_charge(b->run, s.n / 64);
    for (size_t i = 0, n; i < s.n && !b->run->code; i += n) {
        uint32_t cp;
        n = jinja_code_point(s.p + i, s.n - i, &cp);
        if (cp >= 0x20 && cp != '"' && cp != '\\' && (!ascii || cp < 0x7f))
            continue;
        jinja_add(b, jinja_cut(s, from, i));
        json_escape(b, cp, s.marks ? s.marks[i] : s.trusted);
        from = i + n;
    }
    jinja_add(b, jinja_cut(s, from, s.n));
    jinja_adds(b, "\"", trusted);
}

static void dump_scalar(struct builder *b, struct value v)
{
    if (v.kind == V_NONE)
        jinja_adds(b, "null", v.trusted);
    else if (v.kind == V_BOOL)
        jinja_adds(b, v.b ? "true" : "false", v.trusted);
    else if (v.kind == V_FLOAT && !isfinite(v.f))
        jinja_adds(b, isnan(v.f) ? "NaN" : v.f > 0 ? "Infinity" : "-Infinity", v.trusted);
    else
        print_number(b, v);
}

static void dump_key(struct builder *b, struct value key, bool ascii)
{
    if (key.kind == V_STRING) {
        dump_string(b, key.s, ascii);
        return;
    }
    jinja_adds(b, "\"", key.trusted);
    dump_scalar(b, key);
    jinja_adds(b, "\"", key.trusted);
}

static void dump_newline(struct builder *b, const struct json_form *form, size_t level,
                         bool trusted)
{
    if (!form->indent.p)
        return;
    jinja_adds(b, "\n", trusted);
    for (size_t i = 0; i < level && jinja_charge(b->run, 1); i++)
        jinja_add_bytes(b, form->indent.p, form->indent.n, trusted);
}

/* The entries of d in order of their keys; insertion keeps equal ones as they were. */
static struct entry *sorted_entries(struct run *r, const struct dict *d)
{
    struct entry *sorted = jinja_alloc(r, (d->n + 1) * sizeof *sorted);
    for (size_t i = 0; sorted && i < d->n; i++) {
        size_t j = i;
        for (; j > 0 && jinja_charge(r, 1) &&
               jinja_order(r, sorted[j - 1].key, d->entries[i].key) > 0;
             j--)
            sorted[j] = sorted[j - 1];
        sorted[j] = d->entries[i];
    }
    return r->code ? NULL : sorted;
}

static void dump_dict(struct builder *b, struct value v, const struct json_form *form, size_t level)
{
    const struct dict *d = v.dict;
    const struct entry *entries = form->sort ? sorted_entries(b->run, d) : d->entries;
    jinja_adds(b, "{", v.trusted);
    for (size_t i = 0; i < d->n && jinja_charge(b->run, 1); i++) {
        if (i)
            jinja_add_bytes(b, form->item_separator.p, form->item_separator.n, v.trusted);
        dump_newline(b, form, level + 1, v.trusted);
        dump_key(b, entries[i].key, form->ascii);
        jinja_add_bytes(b, form->key_separator.p, form->key_separator.n, v.trusted);
        jinja_dump(b, entries[i].value, form, level + 1);
    }
    if (d->n)
        dump_newline(b, form, level, v.trusted);
    jinja_adds(b, "}", v.trusted);
}

static void dump_list(struct builder *b, struct value v, const struct json_form *form, size_t level)
{
    jinja_adds(b, "[", v.trusted);
    for (size_t i = 0; i < v.seq->n && jinja_charge(b->run, 1); i++) {
        if (i)
            jinja_add_bytes(b, form->item_separator.p, form->item_separator.n, v.trusted);
        dump_newline(b, form, level + 1, v.trusted);
        jinja_dump(b, v.seq->items[i], form, level + 1);
    }
    if (v.seq->n)
        dump_newline(b, form, level, v.trusted);
    jinja_adds(b, "]", v.trusted);
}

void jinja_dump(struct builder *b, struct value v, const struct json_form *form, size_t level)
{
    if (!jinja_descend(b->run))
        return;
    if (v.kind == V_STRING)
        dump_string(b, v.s, form->ascii);
    else if (v.kind == V_DICT)
        dump_dict(b, v, form, level);
    else if (v.kind == V_LIST || v.kind == V_TUPLE)
        dump_list(b, v, form, level);
    else if (v.kind >= V_NONE && v.kind <= V_FLOAT)
        dump_scalar(b, v);
    else
        jinja_fail(b->run, ERR_FORMAT, "a %s cannot be written as JSON", jinja_kind_name(v.kind));
    b->run->depth--;
}
