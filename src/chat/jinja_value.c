#include "chat/jinja.h"

#include <string.h>

#include "base/mem.h"

/* ---- making values ---- */

struct value jinja_undefined(const char *name, size_t n)
{
    return (struct value){.kind = V_UNDEFINED, .s = {name, n, NULL, true}};
}

struct value jinja_none(void)
{
    return (struct value){.kind = V_NONE, .trusted = true};
}

struct value jinja_bool(bool b)
{
    return (struct value){.kind = V_BOOL, .trusted = true, .b = b};
}

struct value jinja_int(int64_t i)
{
    return (struct value){.kind = V_INT, .trusted = true, .i = i};
}

struct value jinja_float(double f)
{
    return (struct value){.kind = V_FLOAT, .trusted = true, .f = f};
}

struct value jinja_string(struct string s)
{
    return (struct value){.kind = V_STRING, .s = s};
}

struct value jinja_seq(struct run *r, enum kind kind)
{
    return (struct value){.kind = kind, .seq = jinja_new(r, sizeof(struct seq))};
}

struct value jinja_dict(struct run *r, enum kind kind)
{
    return (struct value){.kind = kind, .dict = jinja_new(r, sizeof(struct dict))};
}

/* A bigger array in the arena with the old contents, or NULL past the limit. */
static void *grow(struct run *r, void *items, size_t n, size_t *cap, size_t size)
{
    size_t bigger = *cap ? 2 * *cap : 4;
    void *p = jinja_alloc(r, bigger * size);
    if (!p)
        return NULL;
    if (n)
        memcpy(p, items, n * size);
    *cap = bigger;
    return p;
}

void jinja_push(struct run *r, struct value seq, struct value item)
{
    struct seq *q = seq.seq;
    if (r->code)
        return;
    if (q->n == q->cap) {
        void *items = grow(r, q->items, q->n, &q->cap, sizeof *q->items);
        if (!items)
            return;
        q->items = items;
    }
    q->items[q->n++] = item;
}

struct value jinja_at(struct value seq, size_t i)
{
    const struct seq *q = seq.seq;
    return seq.kind == V_RANGE ? jinja_int(q->start + (int64_t)i * q->step) : q->items[i];
}

struct value jinja_from_json(struct run *r, const json_t *j, bool trusted)
{
    struct value v = jinja_none(), item;
    const char *key;
    json_t *child;
    size_t i;
    if (!jinja_descend(r))
        return v;
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        v = jinja_dict(r, V_DICT);
        json_object_foreach((json_t *)j, key, child)
        {
            struct string name = {key, strlen(key), NULL, trusted};
            struct dict *d = v.dict;
            item = jinja_from_json(r, child, trusted);
            /* keys of an object are unique: no search as in jinja_put */
            void *entries =
                d->n < d->cap ? d->entries : grow(r, d->entries, d->n, &d->cap, sizeof *d->entries);
            if (!entries)
                break;
            d->entries = entries;
            d->entries[d->n++] = (struct entry){jinja_string(name), item};
        }
        break;
    case JSON_ARRAY:
        v = jinja_seq(r, V_LIST);
        json_array_foreach(j, i, child) jinja_push(r, v, jinja_from_json(r, child, trusted));
        break;
    case JSON_STRING:
        v = jinja_string(
            (struct string){json_string_value(j), json_string_length(j), NULL, trusted});
        break;
    case JSON_INTEGER:
        v = jinja_int(json_integer_value(j));
        break;
    case JSON_REAL:
        v = jinja_float(json_real_value(j));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        v = jinja_bool(json_is_true(j));
        break;
    case JSON_NULL:
        break;
    }
    v.trusted = trusted;
    r->depth--;
    return v;
}

/* ---- what kind ---- */

const char *jinja_kind_name(enum kind kind)
{
    static const char *const names[] = {
        [V_ABSENT] = "nothing", [V_UNDEFINED] = "undefined",
        [V_NONE] = "none",      [V_BOOL] = "bool",
        [V_INT] = "int",        [V_FLOAT] = "float",
        [V_STRING] = "str",     [V_LIST] = "list",
        [V_TUPLE] = "tuple",    [V_RANGE] = "range",
        [V_VIEW] = "dict view", [V_GENERATOR] = "generator",
        [V_DICT] = "dict",      [V_NAMESPACE] = "namespace",
        [V_METHOD] = "method",  [V_FUNCTION] = "function",
        [V_MACRO] = "macro",    [V_LOOP] = "loop",
    };
    return names[kind];
}

bool jinja_is_seq(struct value v)
{
    return v.kind >= V_LIST && v.kind <= V_GENERATOR;
}

bool jinja_integer(struct value v, int64_t *out)
{
    *out = v.kind == V_BOOL ? v.b : v.kind == V_INT ? v.i : 0;
    return v.kind == V_BOOL || v.kind == V_INT;
}

bool jinja_number(struct value v, double *out)
{
    int64_t i;
    bool integer = jinja_integer(v, &i);
    *out = integer ? (double)i : v.kind == V_FLOAT ? v.f : 0;
    return integer || v.kind == V_FLOAT;
}

bool jinja_truth(struct value v)
{
    switch (v.kind) {
    case V_ABSENT:
    case V_UNDEFINED:
    case V_NONE:
        return false;
    case V_BOOL:
        return v.b;
    case V_INT:
        return v.i != 0;
    case V_FLOAT:
        return v.f != 0;
    case V_STRING:
        return v.s.n != 0;
    case V_LIST:
    case V_TUPLE:
    case V_RANGE:
    case V_VIEW:
        return v.seq->n != 0;
    case V_DICT:
        return v.dict->n != 0;
    default:
        return true;
    }
}

bool jinja_length(struct value v, size_t *out, struct run *r)
{
    *out = 0;
    if (v.kind == V_STRING)
        *out = jinja_count(r, v.s);
    else if (v.kind == V_DICT)
        *out = v.dict->n;
    else if (jinja_is_seq(v) && v.kind != V_GENERATOR)
        *out = v.seq->n;
    else if (v.kind == V_LOOP)
        *out = v.loop->n;
    else
        return v.kind == V_UNDEFINED;
    return true;
}

/* ---- dict ---- */

struct value *jinja_get(struct run *r, const struct dict *d, struct value key)
{
    jinja_charge(r, d->n / 32);
    for (size_t i = 0; i < d->n; i++) {
        const struct value *k = &d->entries[i].key;
        bool same = k->kind == V_STRING && key.kind == V_STRING
                        ? k->s.n == key.s.n && (!key.s.n || memcmp(k->s.p, key.s.p, key.s.n) == 0)
                        : k->kind != V_STRING && key.kind != V_STRING && jinja_equal(r, *k, key);
        if (same)
            return &d->entries[i].value;
    }
    return NULL;
}

struct value *jinja_get_name(const struct dict *d, struct str key)
{
    for (size_t i = 0; i < d->n; i++) {
        const struct value *k = &d->entries[i].key;
        if (k->kind == V_STRING && str_eq((struct str){k->s.p, k->s.n}, key))
            return &d->entries[i].value;
    }
    return NULL;
}

static bool hashable(struct value v)
{
    if (v.kind == V_TUPLE)
        for (size_t i = 0; i < v.seq->n; i++)
            if (!hashable(v.seq->items[i]))
                return false;
    return v.kind != V_LIST && v.kind != V_DICT && v.kind != V_VIEW;
}

void jinja_put(struct run *r, struct dict *d, struct value key, struct value v)
{
    /* tuples are as deep as the expression that made them: hashable() ends */
    if (key.kind != V_TUPLE && !hashable(key)) {
        jinja_fail(r, ERR_FORMAT, "a %s cannot be the key of a dict", jinja_kind_name(key.kind));
        return;
    }
    if (key.kind == V_TUPLE) {
        jinja_fail(r, ERR_UNSUPPORTED, "tuples as keys of a dict are not supported");
        return;
    }
    struct value *old = jinja_get(r, d, key);
    if (r->code)
        return;
    if (old) {
        *old = v;
        return;
    }
    if (d->n == d->cap) {
        void *entries = grow(r, d->entries, d->n, &d->cap, sizeof *d->entries);
        if (!entries)
            return;
        d->entries = entries;
    }
    d->entries[d->n++] = (struct entry){key, v};
}

/* ---- equality and order, as Python's ---- */

static bool same_text(struct string a, struct string b)
{
    return a.n == b.n && (!a.n || memcmp(a.p, b.p, a.n) == 0);
}

static bool equal_seqs(struct run *r, struct value a, struct value b)
{
    if (a.kind != b.kind || a.seq->n != b.seq->n || a.kind == V_GENERATOR)
        return a.seq == b.seq;
    bool same = true;
    for (size_t i = 0; same && i < a.seq->n && jinja_charge(r, 1); i++)
        same = jinja_equal(r, jinja_at(a, i), jinja_at(b, i));
    return same;
}

static bool equal_dicts(struct run *r, struct value a, struct value b)
{
    if (a.kind != b.kind || a.kind == V_NAMESPACE || a.dict->n != b.dict->n)
        return a.dict == b.dict;
    for (size_t i = 0; i < a.dict->n && jinja_charge(r, 1); i++) {
        const struct value *other = jinja_get(r, b.dict, a.dict->entries[i].key);
        if (!other || !jinja_equal(r, a.dict->entries[i].value, *other))
            return false;
    }
    return true;
}

bool jinja_equal(struct run *r, struct value a, struct value b)
{
    double x, y;
    bool same = false;
    if (!jinja_descend(r))
        return false;
    if (a.kind == V_STRING && b.kind == V_STRING)
        same = same_text(a.s, b.s);
    else if ((a.kind == V_INT || a.kind == V_BOOL) && (b.kind == V_INT || b.kind == V_BOOL))
        same = (a.kind == V_INT ? a.i : a.b) == (b.kind == V_INT ? b.i : b.b);
    else if (jinja_number(a, &x) && jinja_number(b, &y))
        same = x == y;
    else if (jinja_is_seq(a) && jinja_is_seq(b))
        same = equal_seqs(r, a, b);
    else if ((a.kind == V_DICT || a.kind == V_NAMESPACE) &&
             (b.kind == V_DICT || b.kind == V_NAMESPACE))
        same = equal_dicts(r, a, b);
    else if (a.kind == b.kind)
        same = a.kind == V_NONE || a.kind == V_UNDEFINED ||
               (a.kind == V_FUNCTION && a.function == b.function) ||
               (a.kind == V_MACRO && a.macro == b.macro) || (a.kind == V_LOOP && a.loop == b.loop);
    r->depth--;
    return same;
}

static int order_text(struct string a, struct string b)
{
    size_t n = a.n < b.n ? a.n : b.n;
    int c = n ? memcmp(a.p, b.p, n) : 0; /* the order of UTF-8 is the order of code points */
    return c ? c : (a.n > b.n) - (a.n < b.n);
}

int jinja_order(struct run *r, struct value a, struct value b)
{
    double x, y;
    int order = 0;
    if (!jinja_descend(r))
        return 0;
    if (a.kind == V_INT && b.kind == V_INT) {
        order = (a.i > b.i) - (a.i < b.i);
    } else if (jinja_number(a, &x) && jinja_number(b, &y)) {
        order = (x > y) - (x < y);
    } else if (a.kind == V_STRING && b.kind == V_STRING) {
        jinja_charge(r, (a.s.n < b.s.n ? a.s.n : b.s.n) / 256);
        order = order_text(a.s, b.s);
    } else if ((a.kind == V_LIST || a.kind == V_TUPLE) && a.kind == b.kind) {
        size_t i = 0;
        while (i < a.seq->n && i < b.seq->n && jinja_charge(r, 1) &&
               jinja_equal(r, a.seq->items[i], b.seq->items[i]))
            i++;
        if (i < a.seq->n && i < b.seq->n)
            order = jinja_order(r, a.seq->items[i], b.seq->items[i]);
        else
            order = (a.seq->n > b.seq->n) - (a.seq->n < b.seq->n);
    } else {
        jinja_fail(r, ERR_FORMAT, "a %s and a %s have no order", jinja_kind_name(a.kind),
                   jinja_kind_name(b.kind));
    }
    r->depth--;
    return order;
}

bool jinja_contains(struct run *r, struct value in, struct value item)
{
    struct value v;
    if (in.kind == V_STRING) {
        if (item.kind != V_STRING) {
            jinja_fail(r, ERR_FORMAT, "'in <str>' needs a str on its left, not %s",
                       jinja_kind_name(item.kind));
            return false;
        }
        return jinja_find(r, in.s, (struct str){item.s.p, item.s.n}, 0) != JINJA_NOT_FOUND;
    }
    if (in.kind == V_DICT) {
        if (!hashable(item) && item.kind != V_TUPLE)
            jinja_fail(r, ERR_FORMAT, "a %s cannot be the key of a dict",
                       jinja_kind_name(item.kind));
        return jinja_get(r, in.dict, item) != NULL;
    }
    for (struct iter it = jinja_iter(r, in); jinja_next(&it, &v);)
        if (jinja_equal(r, v, item))
            return true;
    return false;
}

/* ---- iteration ---- */

struct iter jinja_iter(struct run *r, struct value v)
{
    if (!jinja_is_seq(v) && v.kind != V_STRING && v.kind != V_DICT && v.kind != V_UNDEFINED)
        jinja_fail(r, ERR_FORMAT, "a %s cannot be iterated", jinja_kind_name(v.kind));
    return (struct iter){.run = r, .over = v};
}

bool jinja_next(struct iter *it, struct value *out)
{
    struct value v = it->over;
    if (!jinja_charge(it->run, 1))
        return false;
    if (v.kind == V_STRING && it->i < v.s.n) {
        uint32_t cp;
        size_t n = jinja_code_point(v.s.p + it->i, v.s.n - it->i, &cp);
        *out = jinja_string(jinja_cut(v.s, it->i, it->i + n));
        it->i += n;
        return true;
    }
    if (v.kind == V_DICT && it->i < v.dict->n) {
        *out = v.dict->entries[it->i++].key;
        return true;
    }
    if (v.kind == V_GENERATOR && v.seq->taken < v.seq->n) {
        *out = v.seq->items[v.seq->taken++];
        return true;
    }
    if (jinja_is_seq(v) && v.kind != V_GENERATOR && it->i < v.seq->n) {
        *out = jinja_at(v, it->i++);
        return true;
    }
    return false;
}

struct value jinja_list_of(struct run *r, struct value v, enum kind kind)
{
    struct value list = jinja_seq(r, kind), item;
    for (struct iter it = jinja_iter(r, v); jinja_next(&it, &item);)
        jinja_push(r, list, item);
    return list;
}
