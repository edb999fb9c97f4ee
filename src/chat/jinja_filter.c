#include "chat/jinja.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* ---- helpers ---- */

static struct value text(struct run *r, struct value v)
{
    return jinja_string(jinja_text(r, v));
}

static int64_t integer_arg(struct run *r, const struct args *a, size_t i, int64_t absent)
{
    int64_t v = absent;
    if (jinja_given(a, i) && a->pos[i].kind != V_NONE && !jinja_integer(a->pos[i], &v))
        jinja_fail(r, ERR_FORMAT, "an argument must be an integer, not %s",
                   jinja_kind_name(a->pos[i].kind));
    return v;
}

static bool flag_arg(const struct args *a, size_t i, bool absent)
{
    return jinja_given(a, i) ? jinja_truth(a->pos[i]) : absent;
}

/* ---- text ---- */

static struct value filter_trim(struct run *r, struct value self, struct args *a)
{
    bool chars = jinja_given(a, 0) && a->pos[0].kind == V_STRING;
    return jinja_string(
        jinja_strip(r, jinja_text(r, self), chars ? &a->pos[0].s : NULL, STRIP_LEFT | STRIP_RIGHT));
}

static struct value filter_upper(struct run *r, struct value self, struct args *a)
{
    return jinja_string(jinja_case(r, jinja_text(r, self), CASE_UPPER));
}

static struct value filter_lower(struct run *r, struct value self, struct args *a)
{
    return jinja_string(jinja_case(r, jinja_text(r, self), CASE_LOWER));
}

static struct value filter_capitalize(struct run *r, struct value self, struct args *a)
{
    return jinja_string(jinja_case(r, jinja_text(r, self), CASE_CAPITAL));
}

/* Unlike str.title(), words begin only after white space and - ( { [ < */
static struct value filter_title(struct run *r, struct value self, struct args *a)
{
    struct string s = jinja_text(r, self);
    struct builder b = {.run = r};
    size_t from = 0;
    jinja_charge(r, s.n / 16);
    for (size_t i = 0, n; i < s.n && !r->code; i += n) {
        uint32_t cp;
        n = jinja_code_point(s.p + i, s.n - i, &cp);
        if (!jinja_is_space(cp) && !(cp < 0x80 && cp && strchr("-({[<", (int)cp)))
            continue;
        jinja_add(&b, jinja_case(r, jinja_cut(s, from, i), CASE_CAPITAL));
        jinja_add(&b, jinja_cut(s, i, i + n));
        from = i + n;
    }
    jinja_add(&b, jinja_case(r, jinja_cut(s, from, s.n), CASE_CAPITAL));
    return jinja_string(jinja_built(&b));
}

static struct value filter_replace(struct run *r, struct value self, struct args *a)
{
    return jinja_string(jinja_replace(r, jinja_text(r, self), jinja_text(r, a->pos[0]),
                                      jinja_text(r, a->pos[1]), integer_arg(r, a, 2, -1)));
}

static struct value filter_string(struct run *r, struct value self, struct args *a)
{
    return text(r, self);
}

static struct value filter_escape(struct run *r, struct value self, struct args *a)
{
    static const struct {
        char c;
        const char *entity;
    } entities[] = {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'\'', "&#39;"}, {'"', "&#34;"}};
    struct string s = jinja_text(r, self);
    for (size_t i = 0; i < ARRAY_LEN(entities); i++)
        s = jinja_replace(
            r, s, (struct string){&entities[i].c, 1, NULL, true},
            (struct string){entities[i].entity, strlen(entities[i].entity), NULL, false}, -1);
    return jinja_string(s);
}

/* indent(width=4, first=false, blank=false): each line but the first, and no empty ones. */
static struct value filter_indent(struct run *r, struct value self, struct args *a)
{
    struct string s = jinja_text(r, self), space = jinja_trusted("");
    if (jinja_given(a, 0) && a->pos[0].kind == V_STRING)
        space = a->pos[0].s;
    else
        space = jinja_binary(r, OP_MUL, jinja_string(jinja_trusted(" ")),
                             jinja_int(integer_arg(r, a, 0, 4)))
                    .s;
    if (r->code)
        return jinja_none();
    bool first = flag_arg(a, 1, false), blank = flag_arg(a, 2, false);
    struct builder b = {.run = r};
    for (size_t from = 0; from <= s.n && jinja_charge(r, 1);) {
        size_t to = jinja_find(r, s, STR("\n"), from);
        bool last = to == JINJA_NOT_FOUND;
        if (last)
            to = s.n;
        bool empty = from == to;
        if (from == 0 ? first : (blank || !empty))
            jinja_add(&b, space);
        jinja_add(&b, jinja_cut(s, from, to));
        if (last)
            break;
        jinja_adds(&b, "\n", s.marks ? s.marks[to] : s.trusted);
        from = to + 1;
    }
    return jinja_string(jinja_built(&b));
}

static struct value filter_format(struct run *r, struct value self, struct args *a)
{
    struct value args = jinja_seq(r, V_TUPLE);
    for (size_t i = 0; i < a->n; i++)
        jinja_push(r, args, a->pos[i]);
    return jinja_format(r, jinja_text(r, self), args);
}

static struct value filter_wordcount(struct run *r, struct value self, struct args *a)
{
    struct string s = jinja_text(r, self);
    int64_t words = 0;
    bool inside = false;
    jinja_charge(r, s.n / 64);
    for (size_t i = 0; i < s.n;) {
        uint32_t cp;
        i += jinja_code_point(s.p + i, s.n - i, &cp);
        bool letter = cp == '_' || cp >= 0x80 || (cp >= '0' && cp <= '9') ||
                      ((cp | 32) >= 'a' && (cp | 32) <= 'z');
        letter = letter && !jinja_is_space(cp);
        words += letter && !inside;
        inside = letter;
    }
    return jinja_int(words);
}

/* ---- JSON ---- */

/* The `indent` of json.dumps: a string, or a number of spaces. */
static struct string json_indent(struct run *r, const struct args *a, size_t i)
{
    struct value v = jinja_given(a, i) ? a->pos[i] : jinja_none();
    if (v.kind == V_NONE)
        return (struct string){0};
    if (v.kind == V_STRING)
        return v.s;
    int64_t n = integer_arg(r, a, i, 0);
    v = jinja_binary(r, OP_MUL, jinja_string(jinja_trusted(" ")), jinja_int(n > 0 ? n : 0));
    return v.kind == V_STRING ? v.s : jinja_trusted("");
}

/* json.dumps as Transformers sets it: no escaping of HTML or of other alphabets. */
static struct value filter_tojson(struct run *r, struct value self, struct args *a)
{
    struct json_form form = {.ascii = jinja_given(a, 0) && jinja_truth(a->pos[0]),
                             .indent = json_indent(r, a, 1),
                             .sort = jinja_given(a, 3) && jinja_truth(a->pos[3]),
                             .key_separator = jinja_trusted(": ")};
    form.item_separator = jinja_trusted(form.indent.p ? "," : ", ");
    if (jinja_given(a, 2) && a->pos[2].kind != V_NONE) {
        struct value pair = jinja_list_of(r, a->pos[2], V_LIST);
        if (r->code || pair.seq->n != 2 || pair.seq->items[0].kind != V_STRING ||
            pair.seq->items[1].kind != V_STRING) {
            jinja_fail(r, ERR_FORMAT, "tojson: separators must be two strings");
            return jinja_none();
        }
        form.item_separator = pair.seq->items[0].s;
        form.key_separator = pair.seq->items[1].s;
    }
    struct builder b = {.run = r};
    jinja_dump(&b, self, &form, 0);
    return jinja_string(jinja_built(&b));
}

/* ---- numbers ---- */

/* int("12"), int("12.7") through float, or the default. */
static bool parse_int(struct string s, int64_t base, int64_t *out)
{
    char plain[72];
    size_t n = 0;
    for (size_t i = 0; i < s.n && n < sizeof plain - 1; i++)
        if (s.p[i] != '_')
            plain[n++] = s.p[i];
    plain[n] = 0;
    if (!n || n == sizeof plain - 1 || memchr(plain, 0, n))
        return false;
    char *end;
    const char *digits = plain + (plain[0] == '-' || plain[0] == '+');
    bool prefix = digits[0] == '0' && digits[1] && strchr("box", digits[1] | 32);
    if (prefix && (digits[1] | 32) != (base == 2 ? 'b' : base == 8 ? 'o' : base == 16 ? 'x' : 0))
        return false;
    long long v = strtoll(prefix ? digits + 2 : digits, &end, (int)base);
    *out = plain[0] == '-' ? -v : v;
    return !*end && v != INT64_MAX && v >= 0 && digits[0] != '-' && digits[0] != '+' &&
           !(prefix && !digits[2]);
}

static bool parse_float(struct string s, double *out)
{
    char plain[72];
    if (!s.n || s.n >= sizeof plain || memchr(s.p, 0, s.n) || memchr(s.p, 'x', s.n) ||
        memchr(s.p, 'X', s.n))
        return false;
    memcpy(plain, s.p, s.n);
    plain[s.n] = 0;
    char *end;
    *out = strtod(plain, &end);
    return !*end;
}

static bool whole(double f, int64_t *out)
{
    if (!(fabs(f) < 9.2e18))
        return false;
    *out = (int64_t)f;
    return true;
}

static struct value filter_int(struct run *r, struct value self, struct args *a)
{
    struct value absent = jinja_given(a, 0) ? a->pos[0] : jinja_int(0);
    int64_t v = 0, base = integer_arg(r, a, 1, 10);
    double f = 0;
    if (base < 2 || base > 36)
        base = 10;
    bool ok = jinja_integer(self, &v) || (jinja_number(self, &f) && whole(f, &v));
    struct value out = jinja_int(v);
    out.trusted = self.trusted;
    if (self.kind == V_STRING) {
        struct string s = jinja_strip(r, self.s, NULL, STRIP_LEFT | STRIP_RIGHT);
        ok = parse_int(s, base, &out.i) || (parse_float(s, &f) && whole(f, &out.i));
        out.trusted = jinja_is_trusted(s);
    } else if (self.kind == V_UNDEFINED) {
        jinja_fail(r, ERR_FORMAT, "'%.*s' is undefined", (int)self.s.n, self.s.p);
    }
    return ok ? out : absent;
}

static struct value filter_float(struct run *r, struct value self, struct args *a)
{
    struct value out = jinja_float(0);
    bool ok = jinja_number(self, &out.f);
    out.trusted = self.trusted;
    if (self.kind == V_STRING) {
        struct string s = jinja_strip(r, self.s, NULL, STRIP_LEFT | STRIP_RIGHT);
        ok = parse_float(s, &out.f);
        out.trusted = jinja_is_trusted(s);
    } else if (self.kind == V_UNDEFINED) {
        jinja_fail(r, ERR_FORMAT, "'%.*s' is undefined", (int)self.s.n, self.s.p);
    }
    return ok ? out : jinja_given(a, 0) ? a->pos[0] : jinja_float(0);
}

static struct value filter_abs(struct run *r, struct value self, struct args *a)
{
    double f;
    if (!jinja_number(self, &f))
        jinja_fail(r, ERR_FORMAT, "abs: a %s is no number", jinja_kind_name(self.kind));
    if (self.kind == V_FLOAT) {
        self.f = fabs(f);
        return self;
    }
    struct value zero = jinja_int(0);
    zero.trusted = self.trusted;
    return jinja_binary(r, f < 0 ? OP_SUB : OP_ADD, zero, self);
}

/* Rounds to even at .5 as Python does, on the decimal digits of the number. */
static struct value filter_round(struct run *r, struct value self, struct args *a)
{
    double f;
    int64_t digits = integer_arg(r, a, 0, 0);
    struct string method = jinja_given(a, 1) ? jinja_text(r, a->pos[1]) : jinja_trusted("common");
    struct str name = {method.p, method.n};
    if (!jinja_number(self, &f))
        jinja_fail(r, ERR_FORMAT, "round: a %s is no number", jinja_kind_name(self.kind));
    if (!str_eqs(name, "common") && !str_eqs(name, "ceil") && !str_eqs(name, "floor"))
        jinja_fail(r, ERR_FORMAT, "round: method must be common, ceil or floor");
    if (r->code)
        return jinja_none();
    digits = digits < -300 ? -300 : digits > 300 ? 300 : digits;
    double scale = pow(10, (double)digits);
    if (str_eqs(name, "ceil")) {
        f = ceil(f * scale) / scale;
    } else if (str_eqs(name, "floor")) {
        f = floor(f * scale) / scale;
    } else if (digits >= 0 && digits < 20 && fabs(f) < 1e15) {
        char decimal[64];
        snprintf(decimal, sizeof decimal, "%.*f", (int)digits, f);
        f = strtod(decimal, NULL);
    } else if (digits < 0) {
        f = nearbyint(f * scale) / scale;
    }
    struct value v = jinja_float(f);
    if (self.kind != V_FLOAT && str_eqs(name, "common") && fabs(f) < 9e15)
        v = jinja_int((int64_t)f); /* round(int, n) stays an int */
    v.trusted = self.trusted;
    return v;
}

/* ---- sequences and dicts ---- */

static struct value filter_length(struct run *r, struct value self, struct args *a)
{
    size_t n;
    if (!jinja_length(self, &n, r))
        jinja_fail(r, ERR_FORMAT, "a %s has no length", jinja_kind_name(self.kind));
    return jinja_int((int64_t)n);
}

static struct value filter_default(struct run *r, struct value self, struct args *a)
{
    bool missing = self.kind == V_UNDEFINED || (flag_arg(a, 1, false) && !jinja_truth(self));
    if (!missing)
        return self;
    return jinja_given(a, 0) ? a->pos[0] : jinja_string(jinja_trusted(""));
}

static struct value filter_first(struct run *r, struct value self, struct args *a)
{
    struct iter it = jinja_iter(r, self);
    struct value v;
    return jinja_next(&it, &v) ? v : jinja_undefined("first", 5);
}

static struct value filter_last(struct run *r, struct value self, struct args *a)
{
    if (self.kind == V_GENERATOR) {
        jinja_fail(r, ERR_FORMAT, "last: a generator cannot be read backwards");
        return jinja_none();
    }
    struct value list = jinja_list_of(r, self, V_LIST);
    return list.seq->n ? list.seq->items[list.seq->n - 1] : jinja_undefined("last", 4);
}

static struct value filter_list(struct run *r, struct value self, struct args *a)
{
    return jinja_list_of(r, self, V_LIST);
}

static struct value filter_reverse(struct run *r, struct value self, struct args *a)
{
    struct value one_back = jinja_int(-1), none = jinja_none();
    int64_t first = 0, stride = 0;
    size_t count = 0;
    if (self.kind == V_STRING) {
        jinja_slice_bounds(r, jinja_count(r, self.s), &none, &none, &one_back, &first, &stride,
                           &count);
        return jinja_string(jinja_slice(r, self.s, first, stride, count));
    }
    struct value list = jinja_list_of(r, self, V_GENERATOR);
    for (size_t i = 0, n = list.seq->n; i < n / 2; i++) {
        struct value v = list.seq->items[i];
        list.seq->items[i] = list.seq->items[n - 1 - i];
        list.seq->items[n - 1 - i] = v;
    }
    return list;
}

static struct value filter_items(struct run *r, struct value self, struct args *a)
{
    struct value list = jinja_seq(r, V_GENERATOR);
    if (self.kind != V_DICT && self.kind != V_UNDEFINED)
        jinja_fail(r, ERR_FORMAT, "items: a %s is no dict", jinja_kind_name(self.kind));
    for (size_t i = 0; self.kind == V_DICT && i < self.dict->n && jinja_charge(r, 1); i++) {
        struct value pair = jinja_seq(r, V_TUPLE);
        jinja_push(r, pair, self.dict->entries[i].key);
        jinja_push(r, pair, self.dict->entries[i].value);
        jinja_push(r, list, pair);
    }
    return list;
}

static struct value filter_batch(struct run *r, struct value self, struct args *a)
{
    struct value out = jinja_seq(r, V_GENERATOR), row = {0}, item;
    int64_t size = integer_arg(r, a, 0, 1);
    if (size < 1) {
        jinja_fail(r, ERR_FORMAT, "batch: the size must be at least 1");
        return jinja_none();
    }
    for (struct iter it = jinja_iter(r, self); jinja_next(&it, &item);) {
        if (!row.seq || row.seq->n == (size_t)size) {
            row = jinja_seq(r, V_LIST);
            jinja_push(r, out, row);
        }
        jinja_push(r, row, item);
    }
    while (row.seq && jinja_given(a, 1) && a->pos[1].kind != V_NONE && row.seq->n < (size_t)size &&
           jinja_charge(r, 1))
        jinja_push(r, row, a->pos[1]);
    return out;
}

static const struct native filters[] = {
    {"abs", filter_abs},
    {"batch", filter_batch, .required = 1, .params = {"linecount", "fill_with"}},
    {"capitalize", filter_capitalize},
    {"count", filter_length},
    {"d", filter_default, .params = {"default_value", "boolean"}},
    {"default", filter_default, .params = {"default_value", "boolean"}},
    {"e", filter_escape},
    {"escape", filter_escape},
    {"first", filter_first},
    {"float", filter_float, .params = {"default"}},
    {"format", filter_format, .variadic = true},
    {"indent", filter_indent, .params = {"width", "first", "blank"}},
    {"int", filter_int, .params = {"default", "base"}},
    {"items", filter_items},
    {"last", filter_last},
    {"length", filter_length},
    {"list", filter_list},
    {"lower", filter_lower},
    {"replace", filter_replace, .required = 2, .params = {"old", "new", "count"}},
    {"reverse", filter_reverse},
    {"round", filter_round, .params = {"precision", "method"}},
    {"safe", filter_string},
    {"string", filter_string},
    {"title", filter_title},
    {"tojson", filter_tojson, .params = {"ensure_ascii", "indent", "separators", "sort_keys"}},
    {"trim", filter_trim, .params = {"chars"}},
    {"upper", filter_upper},
    {"wordcount", filter_wordcount},
};

const struct native *jinja_find_filter(struct str name)
{
    for (size_t i = 0; i < ARRAY_LEN(filters); i++)
        if (str_eqs(name, filters[i].name))
            return &filters[i];
    return jinja_find_select_filter(name);
}
