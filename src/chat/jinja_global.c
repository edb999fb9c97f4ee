#include "chat/jinja.h"

#include <string.h>
#include <time.h>

#include "base/mem.h"

static struct value global_range(struct run *r, struct value self, struct args *a)
{
    int64_t bounds[3] = {0, 0, 1};
    size_t n = 0;
    for (; n < 3 && jinja_given(a, n); n++)
        if (!jinja_integer(a->pos[n], &bounds[n]))
            jinja_fail(r, ERR_FORMAT, "range() needs integers, not %s",
                       jinja_kind_name(a->pos[n].kind));
    if (n == 1) {
        bounds[1] = bounds[0];
        bounds[0] = 0;
    }
    int64_t start = bounds[0], stop = bounds[1], step = bounds[2];
    if (step == 0)
        jinja_fail(r, ERR_FORMAT, "range() needs a step that is not zero");
    if (r->code)
        return jinja_none();
    struct value v = jinja_seq(r, V_RANGE);
    *v.seq = (struct seq){.start = start, .stop = stop, .step = step};
    if (step > 0 ? start < stop : start > stop) {
        uint64_t span =
            step > 0 ? (uint64_t)stop - (uint64_t)start : (uint64_t)start - (uint64_t)stop;
        uint64_t stride = step > 0 ? (uint64_t)step : 0 - (uint64_t)step;
        v.seq->n = (size_t)((span - 1) / stride + 1);
    }
    if (v.seq->n > JINJA_RANGE_ITEMS)
        jinja_fail(r, ERR_LIMIT, "range() of more than %d numbers", JINJA_RANGE_ITEMS);
    return r->code ? jinja_none() : v;
}

/* dict(pairs or dict, name=value ...) */
static void fill(struct run *r, struct value d, const struct args *a)
{
    struct value pair;
    if (a->n > 1)
        jinja_fail(r, ERR_FORMAT, "dict() and namespace() take one argument without a name");
    if (a->n && a->pos[0].kind == V_UNDEFINED)
        jinja_fail(r, ERR_FORMAT, "'%.*s' is undefined", (int)a->pos[0].s.n, a->pos[0].s.p);
    if (a->n && a->pos[0].kind == V_DICT) {
        const struct dict *from = a->pos[0].dict;
        for (size_t i = 0; i < from->n && jinja_charge(r, 1); i++)
            jinja_put(r, d.dict, from->entries[i].key, from->entries[i].value);
    } else if (a->n) {
        for (struct iter it = jinja_iter(r, a->pos[0]); jinja_next(&it, &pair);) {
            struct value two = jinja_list_of(r, pair, V_LIST);
            if (r->code || two.seq->n != 2)
                jinja_fail(r, ERR_FORMAT, "dict() needs pairs of a key and a value");
            else
                jinja_put(r, d.dict, two.seq->items[0], two.seq->items[1]);
        }
    }
    for (size_t k = 0; k < a->n_keywords; k++) {
        struct string name = {a->keywords[k].name.p, a->keywords[k].name.n, NULL, true};
        jinja_put(r, d.dict, jinja_string(name), a->keywords[k].value);
    }
}

static struct value global_dict(struct run *r, struct value self, struct args *a)
{
    struct value d = jinja_dict(r, V_DICT);
    fill(r, d, a);
    return d;
}

static struct value global_namespace(struct run *r, struct value self, struct args *a)
{
    struct value d = jinja_dict(r, V_NAMESPACE);
    fill(r, d, a);
    for (size_t i = 0; i < d.dict->n; i++) {
        const struct value *key = &d.dict->entries[i].key;
        if (key->kind == V_STRING && key->s.n && key->s.p[0] == '_')
            jinja_fail(r, ERR_FORMAT, "attributes of a namespace cannot begin with an underscore");
    }
    return d;
}

/* The way a template refuses its input, so this one is the user's mistake. */
static struct value global_raise_exception(struct run *r, struct value self, struct args *a)
{
    struct string s = jinja_text(r, a->pos[0]);
    if (r->code)
        return jinja_none();
    char what[300];
    size_t n = s.n < sizeof what - 1 ? s.n : sizeof what - 1;
    n -= n < s.n ? utf8_cut(s.p, n) : 0;
    for (size_t i = 0; i < n; i++)
        what[i] = (unsigned char)s.p[i] < 0x20 ? ' ' : s.p[i]; /* one line */
    r->code = err_set(r->err, ERR_INVALID, "%.*s (the chat template refuses this, line %d)", (int)n,
                      what, r->line);
    return jinja_none();
}

/* Times are UTC: the prompt does not depend on where the server stands. */
static struct value global_strftime_now(struct run *r, struct value self, struct args *a)
{
    struct string format = jinja_text(r, a->pos[0]);
    char f[256], out[1024];
    struct tm tm;
    time_t now = (time_t)r->now_unix_s;
    if (r->code || format.n == 0)
        return jinja_string(jinja_trusted(""));
    if (format.n >= sizeof f || memchr(format.p, 0, format.n)) {
        jinja_fail(r, ERR_LIMIT, "strftime_now() has a format longer than %zu bytes", sizeof f);
        return jinja_none();
    }
    memcpy(f, format.p, format.n);
    f[format.n] = 0;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* no printf: strftime only reads `tm` */
    size_t n = gmtime_r(&now, &tm) ? strftime(out, sizeof out, f, &tm) : 0;
#pragma GCC diagnostic pop
    if (!n || !utf8_valid(out, n)) {
        jinja_fail(r, ERR_FORMAT, "strftime_now() cannot do this format");
        return jinja_none();
    }
    struct builder b = {.run = r};
    jinja_add_bytes(&b, out, n, jinja_is_trusted(format));
    return jinja_string(jinja_built(&b));
}

static const struct native globals[] = {
    {"dict", global_dict, .variadic = true},
    {"namespace", global_namespace, .variadic = true},
    {"raise_exception", global_raise_exception, .required = 1, .params = {"message"}},
    {"range", global_range, .required = 1, .params = {"start", "stop", "step"}},
    {"strftime_now", global_strftime_now, .required = 1, .params = {"format"}},
};

const struct native *jinja_find_global(struct str name)
{
    for (size_t i = 0; i < ARRAY_LEN(globals); i++)
        if (str_eqs(name, globals[i].name))
            return &globals[i];
    return NULL;
}
