#include "chat/jinja.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* Filters that look into the items of a sequence: by attribute, by test, by order. */

/* ---- an attribute of an item: "a.b.0" ---- */

static struct value attribute_path(struct run *r, struct value item, struct value path)
{
    if (path.kind != V_STRING)
        return jinja_item(r, item, path);
    struct string s = path.s;
    for (size_t from = 0; from <= s.n && !r->code;) {
        size_t dot = jinja_find(r, s, STR("."), from);
        size_t to = dot == JINJA_NOT_FOUND ? s.n : dot;
        struct string part = jinja_cut(s, from, to);
        int64_t i;
        bool index = part.n && part.p[0] != '-' && part.p[0] != '+' &&
                     str_to_i64((struct str){part.p, part.n}, &i);
        item = jinja_item(r, item, index ? jinja_int(i) : jinja_string(part));
        from = to + 1;
    }
    return item;
}

/* What an item is sorted or compared by: itself or its attribute, small letters unless told. */
static struct value sort_key(struct run *r, struct value item, const struct value *attribute,
                             bool case_sensitive)
{
    if (attribute && attribute->kind != V_NONE && attribute->kind != V_ABSENT)
        item = attribute_path(r, item, *attribute);
    if (item.kind == V_STRING && !case_sensitive)
        item = jinja_string(jinja_case(r, item.s, CASE_LOWER));
    return item;
}

/* ---- map, select, reject ---- */

/* The arguments behind the first, for the filter or test that the first one names. */
static struct args rest(const struct args *a, size_t used)
{
    used = a->n < used ? a->n : used;
    return (struct args){used ? a->pos + used : a->pos, a->n - used, a->keywords, a->n_keywords};
}

static const struct value *keyword(const struct args *a, const char *name)
{
    for (size_t k = 0; k < a->n_keywords; k++)
        if (str_eqs(a->keywords[k].name, name))
            return &a->keywords[k].value;
    return NULL;
}

static struct value filter_map(struct run *r, struct value self, struct args *a)
{
    const struct value *attribute = keyword(a, "attribute"), *absent = keyword(a, "default");
    const struct native *f = NULL;
    if (a->n && a->pos[0].kind == V_STRING) {
        struct str name = {a->pos[0].s.p, a->pos[0].s.n};
        f = jinja_find_filter(name);
        attribute = NULL;
    }
    struct value out = jinja_seq(r, V_GENERATOR), item;
    if (!jinja_truth(self)) /* none, too */
        return out;
    if (!attribute && !f) {
        jinja_fail(r, ERR_FORMAT, "map: needs the name of a filter, or attribute=...");
        return jinja_none();
    }
    for (struct iter it = jinja_iter(r, self); jinja_next(&it, &item);) {
        struct args more = rest(a, 1);
        item =
            attribute ? attribute_path(r, item, *attribute) : jinja_call_native(r, f, item, &more);
        if (attribute && absent && item.kind == V_UNDEFINED)
            item = *absent;
        jinja_push(r, out, item);
    }
    return out;
}

/* Keeps the items for which the test (of their attribute, if by_attribute) gives `wanted`; without
 * a test, truth is asked. */
static struct value select_items(struct run *r, struct value self, struct args *a,
                                 bool by_attribute, bool wanted)
{
    size_t used = by_attribute;
    const struct native *test = NULL;
    struct value out = jinja_seq(r, V_GENERATOR), item;
    if (!jinja_truth(self)) /* none, too */
        return out;
    if (a->n < used) {
        jinja_fail(r, ERR_FORMAT, "selectattr and rejectattr need the name of an attribute");
        return out;
    }
    if (a->n > used) {
        struct string name = jinja_text(r, a->pos[used]);
        test = jinja_find_test((struct str){name.p, name.n});
        if (!test) {
            jinja_fail(r, ERR_FORMAT, "there is no test '%.*s'", (int)name.n, name.p);
            return out;
        }
    }
    for (struct iter it = jinja_iter(r, self); jinja_next(&it, &item);) {
        struct args more = rest(a, used + 1);
        struct value of = by_attribute ? attribute_path(r, item, a->pos[0]) : item;
        bool holds = jinja_truth(test ? jinja_call_native(r, test, of, &more) : of);
        if (holds == wanted)
            jinja_push(r, out, item);
    }
    return out;
}

static struct value filter_select(struct run *r, struct value self, struct args *a)
{
    return select_items(r, self, a, false, true);
}

static struct value filter_reject(struct run *r, struct value self, struct args *a)
{
    return select_items(r, self, a, false, false);
}

static struct value filter_selectattr(struct run *r, struct value self, struct args *a)
{
    return select_items(r, self, a, true, true);
}

static struct value filter_rejectattr(struct run *r, struct value self, struct args *a)
{
    return select_items(r, self, a, true, false);
}

/* ---- join, sum, min, max ---- */

static struct value filter_join(struct run *r, struct value self, struct args *a)
{
    struct string between = jinja_given(a, 0) ? jinja_text(r, a->pos[0]) : jinja_trusted("");
    bool attribute = jinja_given(a, 1) && a->pos[1].kind != V_NONE, first = true;
    struct builder b = {.run = r};
    struct value item;
    for (struct iter it = jinja_iter(r, self); jinja_next(&it, &item); first = false) {
        if (!first)
            jinja_add(&b, between);
        jinja_print(&b, attribute ? attribute_path(r, item, a->pos[1]) : item);
    }
    return jinja_string(jinja_built(&b));
}

static struct value filter_sum(struct run *r, struct value self, struct args *a)
{
    bool attribute = jinja_given(a, 0) && a->pos[0].kind != V_NONE;
    struct value sum = jinja_given(a, 1) ? a->pos[1] : jinja_int(0), item;
    for (struct iter it = jinja_iter(r, self); jinja_next(&it, &item);)
        sum = jinja_binary(r, OP_ADD, sum, attribute ? attribute_path(r, item, a->pos[0]) : item);
    return sum;
}

static struct value extreme(struct run *r, struct value self, struct args *a, int sign)
{
    bool case_sensitive = jinja_given(a, 0) && jinja_truth(a->pos[0]), any = false;
    struct value best = jinja_undefined("the empty sequence", 18), best_key = best, item;
    for (struct iter it = jinja_iter(r, self); jinja_next(&it, &item);) {
        struct value key = sort_key(r, item, &a->pos[1], case_sensitive);
        if (!any || jinja_order(r, key, best_key) * sign > 0) {
            best = item;
            best_key = key;
        }
        any = true;
    }
    return best;
}

static struct value filter_min(struct run *r, struct value self, struct args *a)
{
    return extreme(r, self, a, -1);
}

static struct value filter_max(struct run *r, struct value self, struct args *a)
{
    return extreme(r, self, a, 1);
}

/* ---- order ---- */

struct keyed {
    struct value key, item;
};

/* Merge sort: stable, and it ends whatever the order says. sign -1 sorts downwards. */
static void merge_sort(struct run *r, struct keyed *v, struct keyed *spare, size_t n, int sign)
{
    if (n < 2 || r->code)
        return;
    size_t half = n / 2;
    merge_sort(r, v, spare, half, sign);
    merge_sort(r, v + half, spare, n - half, sign);
    for (size_t i = 0, a = 0, b = half; i < n; i++) {
        bool left = b == n || (a < half && jinja_order(r, v[a].key, v[b].key) * sign <= 0);
        spare[i] = left ? v[a++] : v[b++];
        jinja_charge(r, 1);
    }
    memcpy(v, spare, n * sizeof *v);
}

/* `items`, a list of our own, in the order of `keys`. */
static void sort_list(struct run *r, struct value items, struct value keys, bool reverse)
{
    size_t n = items.seq->n;
    struct keyed *v = jinja_alloc(r, (n + 1) * sizeof *v);
    struct keyed *spare = jinja_alloc(r, (n + 1) * sizeof *spare);
    if (r->code || keys.seq->n != n)
        return;
    for (size_t i = 0; i < n; i++)
        v[i] = (struct keyed){keys.seq->items[i], items.seq->items[i]};
    merge_sort(r, v, spare, n, reverse ? -1 : 1);
    for (size_t i = 0; i < n; i++)
        items.seq->items[i] = v[i].item;
}

/* What `sort` compares: a list, even of one, so that equal items need no order. "a,b" names two
 * attributes. */
static struct value sort_keys(struct run *r, struct value item, const struct value *attribute,
                              bool case_sensitive)
{
    struct value keys = jinja_seq(r, V_LIST);
    if (attribute->kind != V_STRING) {
        jinja_push(r, keys, sort_key(r, item, attribute, case_sensitive));
        return keys;
    }
    struct string names = attribute->s;
    for (size_t from = 0; from <= names.n && !r->code;) {
        size_t comma = jinja_find(r, names, STR(","), from);
        size_t to = comma == JINJA_NOT_FOUND ? names.n : comma;
        struct value name = jinja_string(jinja_cut(names, from, to));
        jinja_push(r, keys, sort_key(r, item, &name, case_sensitive));
        from = to + 1;
    }
    return keys;
}

static struct value filter_sort(struct run *r, struct value self, struct args *a)
{
    struct value list = jinja_list_of(r, self, V_LIST), keys = jinja_seq(r, V_LIST);
    bool case_sensitive = jinja_given(a, 1) && jinja_truth(a->pos[1]);
    for (size_t i = 0; i < list.seq->n && !r->code; i++)
        jinja_push(r, keys, sort_keys(r, list.seq->items[i], &a->pos[2], case_sensitive));
    sort_list(r, list, keys, jinja_given(a, 0) && jinja_truth(a->pos[0]));
    return list;
}

static struct value filter_dictsort(struct run *r, struct value self, struct args *a)
{
    struct value list = jinja_seq(r, V_LIST), keys = jinja_seq(r, V_LIST);
    bool case_sensitive = jinja_given(a, 0) && jinja_truth(a->pos[0]);
    struct string by = jinja_given(a, 1) ? jinja_text(r, a->pos[1]) : jinja_trusted("key");
    bool by_value = str_eqs((struct str){by.p, by.n}, "value");
    if (!by_value && !str_eqs((struct str){by.p, by.n}, "key"))
        jinja_fail(r, ERR_FORMAT, "dictsort: by must be 'key' or 'value'");
    if (self.kind != V_DICT) {
        jinja_fail(r, ERR_FORMAT, "dictsort: a %s is no dict", jinja_kind_name(self.kind));
        return list;
    }
    for (size_t i = 0; i < self.dict->n && !r->code; i++) {
        struct entry *e = &self.dict->entries[i];
        struct value pair = jinja_seq(r, V_TUPLE);
        jinja_push(r, pair, e->key);
        jinja_push(r, pair, e->value);
        jinja_push(r, list, pair);
        jinja_push(r, keys, sort_key(r, by_value ? e->value : e->key, NULL, case_sensitive));
    }
    sort_list(r, list, keys, jinja_given(a, 2) && jinja_truth(a->pos[2]));
    return list;
}

static struct value filter_unique(struct run *r, struct value self, struct args *a)
{
    bool case_sensitive = jinja_given(a, 0) && jinja_truth(a->pos[0]);
    struct value out = jinja_seq(r, V_GENERATOR), seen = jinja_seq(r, V_LIST), item;
    for (struct iter it = jinja_iter(r, self); jinja_next(&it, &item);) {
        struct value key = sort_key(r, item, &a->pos[1], case_sensitive);
        if (jinja_contains(r, seen, key))
            continue;
        jinja_push(r, seen, key);
        jinja_push(r, out, item);
    }
    return out;
}

/* Tuples (key, items), in the order of the keys. */
static struct value filter_groupby(struct run *r, struct value self, struct args *a)
{
    struct value list = jinja_list_of(r, self, V_LIST), keys = jinja_seq(r, V_LIST);
    struct value out = jinja_seq(r, V_LIST), group = {0}, last = jinja_none();
    bool case_sensitive = jinja_given(a, 2) && jinja_truth(a->pos[2]);
    for (size_t i = 0; i < list.seq->n && !r->code; i++) {
        struct value key = attribute_path(r, list.seq->items[i], a->pos[0]);
        if (key.kind == V_UNDEFINED && jinja_given(a, 1))
            key = a->pos[1];
        jinja_push(r, keys, sort_key(r, key, NULL, case_sensitive));
    }
    sort_list(r, list, keys, false);
    for (size_t i = 0; i < list.seq->n && jinja_charge(r, 1); i++) {
        struct value name = attribute_path(r, list.seq->items[i], a->pos[0]);
        if (name.kind == V_UNDEFINED && jinja_given(a, 1))
            name = a->pos[1];
        struct value key = sort_key(r, name, NULL, case_sensitive);
        if (!group.seq || !jinja_equal(r, key, last)) {
            struct value pair = jinja_seq(r, V_TUPLE);
            group = jinja_seq(r, V_LIST);
            jinja_push(r, pair, name);
            jinja_push(r, pair, group);
            jinja_push(r, out, pair);
            last = key;
        }
        jinja_push(r, group, list.seq->items[i]);
    }
    return out;
}

static struct value filter_attr(struct run *r, struct value self, struct args *a)
{
    struct string name = jinja_text(r, a->pos[0]);
    struct str n = {name.p, name.n};
    if (self.kind == V_DICT && !jinja_find_method(V_DICT, n))
        return jinja_undefined(name.p, name.n); /* attributes only, never items */
    return jinja_attribute(r, self, n);
}

static const struct native select_filters[] = {
    {"attr", filter_attr, .required = 1, .params = {"name"}},
    {"dictsort", filter_dictsort, .params = {"case_sensitive", "by", "reverse"}},
    {"groupby", filter_groupby, .required = 1,
     .params = {"attribute", "default", "case_sensitive"}},
    {"join", filter_join, .params = {"d", "attribute"}},
    {"map", filter_map, .variadic = true},
    {"max", filter_max, .params = {"case_sensitive", "attribute"}},
    {"min", filter_min, .params = {"case_sensitive", "attribute"}},
    {"reject", filter_reject, .variadic = true},
    {"rejectattr", filter_rejectattr, .variadic = true},
    {"select", filter_select, .variadic = true},
    {"selectattr", filter_selectattr, .variadic = true},
    {"sort", filter_sort, .params = {"reverse", "case_sensitive", "attribute"}},
    {"sum", filter_sum, .params = {"attribute", "start"}},
    {"unique", filter_unique, .params = {"case_sensitive", "attribute"}},
};

const struct native *jinja_find_select_filter(struct str name)
{
    for (size_t i = 0; i < ARRAY_LEN(select_filters); i++)
        if (str_eqs(name, select_filters[i].name))
            return &select_filters[i];
    return NULL;
}
