#include "chat/jinja.h"

#include <string.h>

#include "base/mem.h"

/* The methods of Python's str, dict, list and tuple that do not change their object; of those that
 * do, the names, so that they are hidden as in Jinja's immutable sandbox. */

static struct str raw(struct string s)
{
    return (struct str){s.p, s.n};
}

/* An argument that must be a str; fails and gives "" otherwise. */
static struct string string_arg(struct run *r, const struct args *a, size_t i, const char *method)
{
    if (a->pos[i].kind == V_STRING)
        return a->pos[i].s;
    jinja_fail(r, ERR_FORMAT, "%s() needs a str, not %s", method, jinja_kind_name(a->pos[i].kind));
    return jinja_trusted("");
}

static int64_t count_arg(struct run *r, const struct args *a, size_t i)
{
    int64_t n = -1;
    if (jinja_given(a, i) && !jinja_integer(a->pos[i], &n))
        jinja_fail(r, ERR_FORMAT, "a count must be an integer, not %s",
                   jinja_kind_name(a->pos[i].kind));
    return n;
}

/* ---- strip ---- */

static struct value strip(struct run *r, struct value self, struct args *a, int sides)
{
    bool chars = jinja_given(a, 0) && a->pos[0].kind != V_NONE;
    struct string set = chars ? string_arg(r, a, 0, "strip") : jinja_trusted("");
    return jinja_string(jinja_strip(r, self.s, chars ? &set : NULL, sides));
}

static struct value str_strip(struct run *r, struct value self, struct args *a)
{
    return strip(r, self, a, STRIP_LEFT | STRIP_RIGHT);
}

static struct value str_lstrip(struct run *r, struct value self, struct args *a)
{
    return strip(r, self, a, STRIP_LEFT);
}

static struct value str_rstrip(struct run *r, struct value self, struct args *a)
{
    return strip(r, self, a, STRIP_RIGHT);
}

static struct value without(struct run *r, struct value self, struct args *a, bool prefix)
{
    struct string s = self.s, part = string_arg(r, a, 0, "removeprefix");
    if (part.n > s.n || !part.n)
        return self;
    size_t at = prefix ? 0 : s.n - part.n;
    if (memcmp(s.p + at, part.p, part.n) != 0)
        return self;
    return jinja_string(prefix ? jinja_cut(s, part.n, s.n) : jinja_cut(s, 0, at));
}

static struct value str_removeprefix(struct run *r, struct value self, struct args *a)
{
    return without(r, self, a, true);
}

static struct value str_removesuffix(struct run *r, struct value self, struct args *a)
{
    return without(r, self, a, false);
}

/* ---- split and join ---- */

static struct value split_spaces(struct run *r, struct string s, int64_t limit)
{
    struct value list = jinja_seq(r, V_LIST);
    s = jinja_strip(r, s, NULL, STRIP_LEFT);
    while (s.n && limit != 0 && jinja_charge(r, 1)) {
        size_t end = 0, n;
        uint32_t cp;
        for (; end < s.n; end += n) {
            n = jinja_code_point(s.p + end, s.n - end, &cp);
            if (jinja_is_space(cp))
                break;
        }
        jinja_charge(r, end / 64);
        jinja_push(r, list, jinja_string(jinja_cut(s, 0, end)));
        s = jinja_strip(r, jinja_cut(s, end, s.n), NULL, STRIP_LEFT);
        limit -= limit > 0;
    }
    if (s.n)
        jinja_push(r, list, jinja_string(s));
    return list;
}

static struct value str_split(struct run *r, struct value self, struct args *a)
{
    int64_t limit = count_arg(r, a, 1);
    struct string s = self.s;
    if (!jinja_given(a, 0) || a->pos[0].kind == V_NONE)
        return split_spaces(r, s, limit);
    struct str by = raw(string_arg(r, a, 0, "split"));
    struct value list = jinja_seq(r, V_LIST);
    if (!by.n)
        jinja_fail(r, ERR_FORMAT, "split() needs a separator that is not empty");
    size_t from = 0, at;
    while (!r->code && limit != 0 && (at = jinja_find(r, s, by, from)) != JINJA_NOT_FOUND) {
        jinja_push(r, list, jinja_string(jinja_cut(s, from, at)));
        from = at + by.n;
        limit -= limit > 0;
        jinja_charge(r, 1);
    }
    jinja_push(r, list, jinja_string(jinja_cut(s, from, s.n)));
    return list;
}

static void reverse(struct value list)
{
    for (size_t i = 0, n = list.seq->n; i < n / 2; i++) {
        struct value v = list.seq->items[i];
        list.seq->items[i] = list.seq->items[n - 1 - i];
        list.seq->items[n - 1 - i] = v;
    }
}

/* Words from the end: white space of the last code points. */
static struct value rsplit_spaces(struct run *r, struct string s, int64_t limit)
{
    struct value list = jinja_seq(r, V_LIST);
    s = jinja_strip(r, s, NULL, STRIP_RIGHT);
    while (s.n && limit != 0 && jinja_charge(r, 1)) {
        size_t start = s.n;
        while (start > 0 && jinja_space_suffix(s.p, start) == start) {
            start--;
            while (start > 0 && ((unsigned char)s.p[start] & 0xc0) == 0x80)
                start--;
        }
        jinja_charge(r, (s.n - start) / 16);
        jinja_push(r, list, jinja_string(jinja_cut(s, start, s.n)));
        s = jinja_strip(r, jinja_cut(s, 0, start), NULL, STRIP_RIGHT);
        limit -= limit > 0;
    }
    if (s.n)
        jinja_push(r, list, jinja_string(s));
    reverse(list);
    return list;
}

static struct value str_rsplit(struct run *r, struct value self, struct args *a)
{
    int64_t limit = count_arg(r, a, 1);
    struct string s = self.s;
    if (!jinja_given(a, 0) || a->pos[0].kind == V_NONE)
        return rsplit_spaces(r, s, limit);
    struct str by = raw(string_arg(r, a, 0, "rsplit"));
    struct value list = jinja_seq(r, V_LIST);
    if (!by.n)
        jinja_fail(r, ERR_FORMAT, "rsplit() needs a separator that is not empty");
    size_t at;
    while (!r->code && limit != 0 && (at = jinja_find_last(r, s, by)) != JINJA_NOT_FOUND) {
        jinja_push(r, list, jinja_string(jinja_cut(s, at + by.n, s.n)));
        s = jinja_cut(s, 0, at);
        limit -= limit > 0;
        jinja_charge(r, 1);
    }
    jinja_push(r, list, jinja_string(s));
    reverse(list);
    return list;
}

static struct value partition(struct run *r, struct value self, struct args *a, bool last)
{
    struct string s = self.s, by = string_arg(r, a, 0, "partition");
    struct value parts = jinja_seq(r, V_TUPLE), empty = jinja_string(jinja_trusted(""));
    if (!by.n)
        jinja_fail(r, ERR_FORMAT, "partition() needs a separator that is not empty");
    size_t at = last ? jinja_find_last(r, s, raw(by)) : jinja_find(r, s, raw(by), 0);
    bool found = at != JINJA_NOT_FOUND;
    struct value whole[] = {last ? empty : self, empty, last ? self : empty};
    struct value cut[] = {whole[0], whole[1], whole[2]};
    if (found) {
        cut[0] = jinja_string(jinja_cut(s, 0, at));
        cut[1] = jinja_string(by);
        cut[2] = jinja_string(jinja_cut(s, at + by.n, s.n));
    }
    for (size_t i = 0; i < 3; i++)
        jinja_push(r, parts, cut[i]);
    return parts;
}

static struct value str_partition(struct run *r, struct value self, struct args *a)
{
    return partition(r, self, a, false);
}

static struct value str_rpartition(struct run *r, struct value self, struct args *a)
{
    return partition(r, self, a, true);
}

/* Length of the line break at i: \r\n is one. 0 if there is none. */
static size_t line_break(struct string s, size_t i)
{
    uint32_t cp;
    size_t n = jinja_code_point(s.p + i, s.n - i, &cp);
    if (cp == '\r' && i + 1 < s.n && s.p[i + 1] == '\n')
        return 2;
    bool is = (cp >= 10 && cp <= 13) || (cp >= 0x1c && cp <= 0x1e) || cp == 0x85 || cp == 0x2028 ||
              cp == 0x2029;
    return is ? n : 0;
}

static struct value str_splitlines(struct run *r, struct value self, struct args *a)
{
    struct string s = self.s;
    struct value list = jinja_seq(r, V_LIST);
    bool keep = jinja_given(a, 0) && jinja_truth(a->pos[0]);
    size_t from = 0;
    jinja_charge(r, s.n / 64);
    for (size_t i = 0, n; i < s.n && !r->code; i += n) {
        n = line_break(s, i);
        if (n) {
            jinja_push(r, list, jinja_string(jinja_cut(s, from, keep ? i + n : i)));
            from = i + n;
        } else {
            n = 1; /* the bytes of a longer character are no line breaks: cut at ASCII only */
            while (i + n < s.n && ((unsigned char)s.p[i + n] & 0xc0) == 0x80)
                n++;
        }
    }
    if (from < s.n)
        jinja_push(r, list, jinja_string(jinja_cut(s, from, s.n)));
    return list;
}

static struct value str_join(struct run *r, struct value self, struct args *a)
{
    struct builder b = {.run = r};
    struct value item;
    bool first = true;
    for (struct iter it = jinja_iter(r, a->pos[0]); jinja_next(&it, &item); first = false) {
        if (item.kind != V_STRING) {
            jinja_fail(r, ERR_FORMAT, "join() needs strs, not %s", jinja_kind_name(item.kind));
            break;
        }
        if (!first)
            jinja_add(&b, self.s);
        jinja_add(&b, item.s);
    }
    return jinja_string(jinja_built(&b));
}

/* ---- looking ---- */

/* The part of self that [start, end) names, and the byte where it begins. */
static struct string part_of(struct run *r, struct value self, const struct args *a,
                             int64_t *first_char)
{
    int64_t first = 0, stride = 1;
    size_t n = 0;
    struct value none = jinja_none();
    const struct value *start = jinja_given(a, 1) ? &a->pos[1] : &none;
    const struct value *end = jinja_given(a, 2) ? &a->pos[2] : &none;
    jinja_slice_bounds(r, jinja_count(r, self.s), start, end, NULL, &first, &stride, &n);
    *first_char = first;
    return n ? jinja_slice(r, self.s, first, stride, n) : jinja_trusted("");
}

static bool affix(struct run *r, struct string s, struct value v, bool prefix)
{
    if (v.kind != V_STRING) {
        jinja_fail(r, ERR_FORMAT, "startswith() and endswith() need a str or a tuple of str");
        return false;
    }
    size_t at = prefix || v.s.n > s.n ? 0 : s.n - v.s.n;
    return v.s.n <= s.n && (!v.s.n || memcmp(s.p + at, v.s.p, v.s.n) == 0);
}

static struct value has_affix(struct run *r, struct value self, struct args *a, bool prefix)
{
    int64_t first;
    struct string s = part_of(r, self, a, &first);
    bool any = false;
    if (a->pos[0].kind != V_TUPLE)
        return jinja_bool(affix(r, s, a->pos[0], prefix));
    for (size_t i = 0; i < a->pos[0].seq->n && !any && jinja_charge(r, 1); i++)
        any = affix(r, s, a->pos[0].seq->items[i], prefix);
    return jinja_bool(any);
}

static struct value str_startswith(struct run *r, struct value self, struct args *a)
{
    return has_affix(r, self, a, true);
}

static struct value str_endswith(struct run *r, struct value self, struct args *a)
{
    return has_affix(r, self, a, false);
}

static int64_t find_in(struct run *r, struct value self, struct args *a, bool last)
{
    int64_t first;
    struct string s = part_of(r, self, a, &first);
    struct str needle = raw(string_arg(r, a, 0, "find"));
    size_t at = last ? jinja_find_last(r, s, needle) : jinja_find(r, s, needle, 0);
    return at == JINJA_NOT_FOUND ? -1 : first + (int64_t)jinja_count(r, jinja_cut(s, 0, at));
}

static struct value str_find(struct run *r, struct value self, struct args *a)
{
    return jinja_int(find_in(r, self, a, false));
}

static struct value str_rfind(struct run *r, struct value self, struct args *a)
{
    return jinja_int(find_in(r, self, a, true));
}

static struct value str_index(struct run *r, struct value self, struct args *a)
{
    int64_t i = find_in(r, self, a, false);
    if (i < 0)
        jinja_fail(r, ERR_FORMAT, "index(): the substring is not there");
    return jinja_int(i);
}

static struct value str_count(struct run *r, struct value self, struct args *a)
{
    int64_t first, n = 0;
    struct string s = part_of(r, self, a, &first);
    struct str needle = raw(string_arg(r, a, 0, "count"));
    if (!needle.n)
        return jinja_int((int64_t)jinja_count(r, s) + 1);
    for (size_t at = 0; (at = jinja_find(r, s, needle, at)) != JINJA_NOT_FOUND; at += needle.n) {
        n++;
        jinja_charge(r, 1);
    }
    return jinja_int(n);
}

/* ---- case and kind of characters ---- */

#define CASE_METHOD(name, to)                                                                      \
    static struct value name(struct run *r, struct value self, struct args *a)                     \
    {                                                                                              \
        return jinja_string(jinja_case(r, self.s, to));                                            \
    }
CASE_METHOD(str_lower, CASE_LOWER)
CASE_METHOD(str_upper, CASE_UPPER)
CASE_METHOD(str_title, CASE_TITLE)
CASE_METHOD(str_capitalize, CASE_CAPITAL)
CASE_METHOD(str_swapcase, CASE_SWAP)

static struct value str_islower(struct run *r, struct value self, struct args *a)
{
    return jinja_bool(jinja_is_cased(r, self.s, false));
}

static struct value str_isupper(struct run *r, struct value self, struct args *a)
{
    return jinja_bool(jinja_is_cased(r, self.s, true));
}

static bool is_digit(uint32_t cp)
{
    return cp >= '0' && cp <= '9';
}

/* Letters beyond ASCII count as letters, which digits of other scripts are not: near enough. */
static bool is_letter(uint32_t cp)
{
    return cp >= 0x80 ? !jinja_is_space(cp) : (cp | 32) >= 'a' && (cp | 32) <= 'z';
}

static bool is_letter_or_digit(uint32_t cp)
{
    return is_digit(cp) || is_letter(cp);
}

static struct value all_are(struct run *r, struct value self, bool (*is)(uint32_t))
{
    uint32_t cp;
    bool all = self.s.n > 0;
    jinja_charge(r, self.s.n / 64);
    for (size_t i = 0; i < self.s.n && all;) {
        i += jinja_code_point(self.s.p + i, self.s.n - i, &cp);
        all = is(cp);
    }
    return jinja_bool(all);
}

static struct value str_isdigit(struct run *r, struct value self, struct args *a)
{
    return all_are(r, self, is_digit);
}

static struct value str_isalpha(struct run *r, struct value self, struct args *a)
{
    return all_are(r, self, is_letter);
}

static struct value str_isalnum(struct run *r, struct value self, struct args *a)
{
    return all_are(r, self, is_letter_or_digit);
}

static struct value str_isspace(struct run *r, struct value self, struct args *a)
{
    return all_are(r, self, jinja_is_space);
}

/* ---- replace, format, padding ---- */

static struct value str_replace(struct run *r, struct value self, struct args *a)
{
    return jinja_string(jinja_replace(r, self.s, string_arg(r, a, 0, "replace"),
                                      string_arg(r, a, 1, "replace"), count_arg(r, a, 2)));
}

/* What stands between braces: "" the next argument, digits one by its place, else by its name. */
static struct value format_field(struct run *r, struct args *a, struct str field, size_t *next)
{
    int64_t i = 0;
    if (!field.n)
        i = (int64_t)(*next)++;
    if (!field.n || str_to_i64(field, &i)) {
        if (i >= 0 && (size_t)i < a->n)
            return a->pos[i];
        jinja_fail(r, ERR_FORMAT, "format() has too few arguments");
        return jinja_none();
    }
    for (size_t k = 0; k < a->n_keywords; k++)
        if (str_eq(a->keywords[k].name, field))
            return a->keywords[k].value;
    jinja_fail(r, ERR_UNSUPPORTED,
               "format() has no argument '%.*s'; only {}, {0} and {name} are "
               "supported",
               field.n > 40 ? 40 : (int)field.n, field.p);
    return jinja_none();
}

static struct value str_format(struct run *r, struct value self, struct args *a)
{
    struct builder b = {.run = r};
    struct string s = self.s;
    size_t next = 0;
    for (size_t i = 0; i < s.n && jinja_charge(r, 1);) {
        size_t from = i;
        while (i < s.n && s.p[i] != '{' && s.p[i] != '}')
            i++;
        jinja_add(&b, jinja_cut(s, from, i));
        if (i == s.n)
            break;
        if (i + 1 < s.n && s.p[i + 1] == s.p[i]) {
            jinja_add(&b, jinja_cut(s, i, i + 1));
            i += 2;
            continue;
        }
        size_t end = jinja_find(r, s, STR("}"), i);
        if (s.p[i] == '}' || end == JINJA_NOT_FOUND) {
            jinja_fail(r, ERR_FORMAT, "format() has a single brace in its text");
            break;
        }
        jinja_print(&b, format_field(r, a, (struct str){s.p + i + 1, end - i - 1}, &next));
        i = end + 1;
    }
    return jinja_string(jinja_built(&b));
}

static struct value justify(struct run *r, struct value self, struct args *a, int left, int right)
{
    int64_t width = count_arg(r, a, 0), n = (int64_t)jinja_count(r, self.s);
    struct string fill = jinja_given(a, 1) ? string_arg(r, a, 1, "ljust") : jinja_trusted(" ");
    int64_t room = width > n ? width - n : 0;
    /* center() puts the odd one where Python does */
    int64_t before = left && right ? room / 2 + (room & width & 1) : left ? room : 0;
    struct builder b = {.run = r};
    for (int64_t i = 0; i < before && jinja_charge(r, 1); i++)
        jinja_add(&b, fill);
    jinja_add(&b, self.s);
    for (int64_t i = before; i < room && jinja_charge(r, 1); i++)
        jinja_add(&b, fill);
    return jinja_string(jinja_built(&b));
}

static struct value str_ljust(struct run *r, struct value self, struct args *a)
{
    return justify(r, self, a, 0, 1);
}

static struct value str_rjust(struct run *r, struct value self, struct args *a)
{
    return justify(r, self, a, 1, 0);
}

static struct value str_center(struct run *r, struct value self, struct args *a)
{
    return justify(r, self, a, 1, 1);
}

/* ---- dict ---- */

static struct value dict_view(struct run *r, struct value self, const char *label, bool keys,
                              bool values)
{
    struct value view = jinja_seq(r, V_VIEW);
    view.seq->label = label;
    for (size_t i = 0; i < self.dict->n && jinja_charge(r, 1); i++) {
        struct value item = keys ? self.dict->entries[i].key : self.dict->entries[i].value;
        if (keys && values) {
            item = jinja_seq(r, V_TUPLE);
            jinja_push(r, item, self.dict->entries[i].key);
            jinja_push(r, item, self.dict->entries[i].value);
        }
        jinja_push(r, view, item);
    }
    return view;
}

static struct value dict_keys(struct run *r, struct value self, struct args *a)
{
    return dict_view(r, self, "dict_keys", true, false);
}

static struct value dict_values(struct run *r, struct value self, struct args *a)
{
    return dict_view(r, self, "dict_values", false, true);
}

static struct value dict_items(struct run *r, struct value self, struct args *a)
{
    return dict_view(r, self, "dict_items", true, true);
}

static struct value dict_get(struct run *r, struct value self, struct args *a)
{
    const struct value *v = jinja_get(r, self.dict, a->pos[0]);
    return v ? *v : jinja_given(a, 1) ? a->pos[1] : jinja_none();
}

static struct value dict_copy(struct run *r, struct value self, struct args *a)
{
    struct value copy = jinja_dict(r, V_DICT);
    for (size_t i = 0; i < self.dict->n && jinja_charge(r, 1); i++)
        jinja_put(r, copy.dict, self.dict->entries[i].key, self.dict->entries[i].value);
    return copy;
}

/* ---- list and tuple ---- */

static struct value seq_count(struct run *r, struct value self, struct args *a)
{
    int64_t n = 0;
    for (size_t i = 0; i < self.seq->n && jinja_charge(r, 1); i++)
        n += jinja_equal(r, jinja_at(self, i), a->pos[0]);
    return jinja_int(n);
}

static struct value seq_index(struct run *r, struct value self, struct args *a)
{
    for (size_t i = 0; i < self.seq->n && jinja_charge(r, 1); i++)
        if (jinja_equal(r, jinja_at(self, i), a->pos[0]))
            return jinja_int((int64_t)i);
    jinja_fail(r, ERR_FORMAT, "index(): the item is not there");
    return jinja_none();
}

static struct value list_copy(struct run *r, struct value self, struct args *a)
{
    return jinja_list_of(r, self, V_LIST);
}

/* ---- loop ---- */

static struct value loop_cycle(struct run *r, struct value self, struct args *a)
{
    if (a->n)
        return a->pos[self.loop->i % a->n];
    jinja_fail(r, ERR_FORMAT, "loop.cycle() needs something to cycle through");
    return jinja_none();
}

static struct value loop_changed(struct run *r, struct value self, struct args *a)
{
    struct value now = jinja_seq(r, V_TUPLE);
    for (size_t i = 0; i < a->n; i++)
        jinja_push(r, now, a->pos[i]);
    bool changed = !self.loop->changed_before || !jinja_equal(r, now, self.loop->changed);
    self.loop->changed_before = true;
    self.loop->changed = now;
    return jinja_bool(changed);
}

enum {
    IN_STRING = 1 << V_STRING,
    IN_DICT = 1 << V_DICT,
    IN_LIST = 1 << V_LIST,
    IN_SEQ = 1 << V_LIST | 1 << V_TUPLE | 1 << V_RANGE,
    IN_LOOP = 1 << V_LOOP,
};

#define FIND .required = 1, .params = {"sub", "start", "end"}

static const struct native methods[] = {
    {"append", NULL, IN_LIST},
    {"capitalize", str_capitalize, IN_STRING},
    {"center", str_center, IN_STRING, 1, {"width", "fillchar"}},
    {"changed", loop_changed, IN_LOOP, .variadic = true},
    {"clear", NULL, IN_LIST | IN_DICT},
    {"copy", dict_copy, IN_DICT},
    {"copy", list_copy, IN_LIST},
    {"count", str_count, IN_STRING, FIND},
    {"count", seq_count, IN_SEQ, 1, {"value"}},
    {"cycle", loop_cycle, IN_LOOP, .variadic = true},
    {"endswith", str_endswith, IN_STRING, FIND},
    {"extend", NULL, IN_LIST},
    {"find", str_find, IN_STRING, FIND},
    {"format", str_format, IN_STRING, .variadic = true},
    {"get", dict_get, IN_DICT, 1, {"key", "default"}},
    {"index", str_index, IN_STRING, FIND},
    {"index", seq_index, IN_SEQ, 1, {"value"}},
    {"insert", NULL, IN_LIST},
    {"isalnum", str_isalnum, IN_STRING},
    {"isalpha", str_isalpha, IN_STRING},
    {"isdecimal", str_isdigit, IN_STRING},
    {"isdigit", str_isdigit, IN_STRING},
    {"islower", str_islower, IN_STRING},
    {"isnumeric", str_isdigit, IN_STRING},
    {"isspace", str_isspace, IN_STRING},
    {"isupper", str_isupper, IN_STRING},
    {"items", dict_items, IN_DICT},
    {"join", str_join, IN_STRING, 1, {"iterable"}},
    {"keys", dict_keys, IN_DICT},
    {"ljust", str_ljust, IN_STRING, 1, {"width", "fillchar"}},
    {"lower", str_lower, IN_STRING},
    {"casefold", str_lower, IN_STRING},
    {"lstrip", str_lstrip, IN_STRING, 0, {"chars"}},
    {"partition", str_partition, IN_STRING, 1, {"sep"}},
    {"pop", NULL, IN_LIST | IN_DICT},
    {"popitem", NULL, IN_DICT},
    {"remove", NULL, IN_LIST},
    {"removeprefix", str_removeprefix, IN_STRING, 1, {"prefix"}},
    {"removesuffix", str_removesuffix, IN_STRING, 1, {"suffix"}},
    {"replace", str_replace, IN_STRING, 2, {"old", "new", "count"}},
    {"reverse", NULL, IN_LIST},
    {"rfind", str_rfind, IN_STRING, FIND},
    {"rjust", str_rjust, IN_STRING, 1, {"width", "fillchar"}},
    {"rpartition", str_rpartition, IN_STRING, 1, {"sep"}},
    {"rsplit", str_rsplit, IN_STRING, 0, {"sep", "maxsplit"}},
    {"rstrip", str_rstrip, IN_STRING, 0, {"chars"}},
    {"setdefault", NULL, IN_DICT},
    {"sort", NULL, IN_LIST},
    {"split", str_split, IN_STRING, 0, {"sep", "maxsplit"}},
    {"splitlines", str_splitlines, IN_STRING, 0, {"keepends"}},
    {"startswith", str_startswith, IN_STRING, FIND},
    {"strip", str_strip, IN_STRING, 0, {"chars"}},
    {"swapcase", str_swapcase, IN_STRING},
    {"title", str_title, IN_STRING},
    {"update", NULL, IN_DICT},
    {"upper", str_upper, IN_STRING},
    {"values", dict_values, IN_DICT},
};

const struct native *jinja_find_method(enum kind self, struct str name)
{
    for (size_t i = 0; i < ARRAY_LEN(methods); i++)
        if ((methods[i].kinds & 1u << self) && str_eqs(name, methods[i].name))
            return &methods[i];
    return NULL;
}
