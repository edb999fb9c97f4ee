#include "chat/jinja.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- the run: limits and errors ---- */

void jinja_fail(struct run *r, int code, const char *fmt, ...)
{
    char what[300];
    va_list ap;
    if (r->code)
        return;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    r->code = err_set(r->err, code, "chat template, line %d: %s", r->line, what);
}

bool jinja_charge(struct run *r, size_t steps)
{
    r->steps += steps;
    if (r->steps > JINJA_STEPS)
        jinja_fail(r, ERR_LIMIT, "rendering takes more than %d steps", JINJA_STEPS);
    return !r->code;
}

bool jinja_descend(struct run *r)
{
    if (r->depth >= JINJA_EVAL_DEPTH)
        jinja_fail(r, ERR_LIMIT, "nested deeper than %d levels", JINJA_EVAL_DEPTH);
    if (!jinja_charge(r, 1))
        return false;
    r->depth++;
    return true;
}

static bool fits(struct run *r, size_t n)
{
    bool fit = n <= JINJA_MEMORY_BYTES && r->arena.used_bytes <= JINJA_MEMORY_BYTES - n;
    if (!fit)
        jinja_fail(r, ERR_LIMIT, "rendering takes more than %d MiB of memory",
                   JINJA_MEMORY_BYTES >> 20);
    return fit;
}

void *jinja_new(struct run *r, size_t n)
{
    fits(r, n);
    return arena_alloc(&r->arena, n);
}

void *jinja_alloc(struct run *r, size_t n)
{
    return fits(r, n) && !r->code ? arena_alloc(&r->arena, n) : NULL;
}

/* ---- variables ---- */

struct scope *jinja_scope(struct run *r, struct scope *parent)
{
    struct scope *s = jinja_new(r, sizeof *s);
    s->parent = parent;
    return s;
}

struct value *jinja_lookup(struct scope *s, struct str name)
{
    for (; s; s = s->parent)
        for (size_t i = 0; i < s->n; i++)
            if (str_eq(s->vars[i].name, name))
                return &s->vars[i].value;
    return NULL;
}

void jinja_bind(struct run *r, struct scope *s, struct str name, struct value v)
{
    for (size_t i = 0; i < s->n; i++)
        if (str_eq(s->vars[i].name, name)) {
            s->vars[i].value = v;
            return;
        }
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 4;
        struct binding *vars = jinja_alloc(r, cap * sizeof *vars);
        if (!vars)
            return;
        if (s->n)
            memcpy(vars, s->vars, s->n * sizeof *vars);
        s->vars = vars;
        s->cap = cap;
    }
    s->vars[s->n++] = (struct binding){name, v};
}

/* ---- v.name and v[key] ---- */

static struct value undefined_error(struct run *r, struct value v)
{
    jinja_fail(r, ERR_FORMAT, "'%.*s' is undefined", v.s.n > 200 ? 200 : (int)v.s.n, v.s.p);
    return jinja_none();
}

static struct value loop_attribute(struct value v, struct str name)
{
    const struct loop *l = v.loop;
    int64_t i = (int64_t)l->i, n = (int64_t)l->n;
    const struct {
        const char *name;
        struct value value;
    } attributes[] = {
        {"index", jinja_int(i + 1)},
        {"index0", jinja_int(i)},
        {"revindex", jinja_int(n - i)},
        {"revindex0", jinja_int(n - i - 1)},
        {"first", jinja_bool(i == 0)},
        {"last", jinja_bool(i == n - 1)},
        {"length", jinja_int(n)},
        {"depth", jinja_int(l->depth)},
        {"depth0", jinja_int(l->depth - 1)},
    };
    for (size_t k = 0; k < sizeof attributes / sizeof *attributes; k++)
        if (str_eqs(name, attributes[k].name))
            return attributes[k].value;
    if (str_eqs(name, "previtem") && i > 0)
        return l->items[i - 1];
    if (str_eqs(name, "nextitem") && i + 1 < n)
        return l->items[i + 1];
    return jinja_undefined(name.p, name.n);
}

/* The method of that name, hidden ones as undefined; ABSENT if the kind has none. */
static struct value find_method(struct run *r, struct value v, struct str name)
{
    const struct native *native = jinja_find_method(v.kind, name);
    if (!native)
        return (struct value){.kind = V_ABSENT};
    if (!native->fn)
        return jinja_undefined(name.p, name.n);
    struct value m = {.kind = V_METHOD, .method = jinja_new(r, sizeof(struct method))};
    *m.method = (struct method){v, native};
    return m;
}

struct value jinja_attribute(struct run *r, struct value v, struct str name)
{
    if (v.kind == V_UNDEFINED)
        return undefined_error(r, v);
    if (v.kind == V_NAMESPACE || v.kind == V_DICT) {
        struct value m = find_method(r, v, name);
        if (m.kind != V_ABSENT)
            return m;
        const struct value *found = jinja_get_name(v.dict, name);
        jinja_charge(r, v.dict->n / 32);
        return found ? *found : jinja_undefined(name.p, name.n);
    }
    if (v.kind == V_LOOP) {
        struct value found = loop_attribute(v, name);
        if (found.kind != V_UNDEFINED)
            return found;
    }
    if (v.kind == V_MACRO && str_eqs(name, "name"))
        return jinja_string(
            (struct string){v.macro->node->name.p, v.macro->node->name.n, NULL, true});
    struct value m = find_method(r, v, name);
    return m.kind == V_ABSENT ? jinja_undefined(name.p, name.n) : m;
}

static struct value index_of(struct run *r, struct value v, struct value key)
{
    int64_t i;
    size_t n = 0;
    if (!jinja_integer(key, &i) || v.kind == V_VIEW || v.kind == V_GENERATOR ||
        (v.kind != V_STRING && !jinja_is_seq(v)))
        return jinja_undefined("item", 4);
    jinja_length(v, &n, r);
    if (i < 0)
        i += (int64_t)n;
    if (i < 0 || (size_t)i >= n)
        return jinja_undefined("item out of range", 17);
    if (v.kind == V_STRING)
        return jinja_string(jinja_slice(r, v.s, i, 1, 1));
    return jinja_at(v, (size_t)i);
}

struct value jinja_item(struct run *r, struct value v, struct value key)
{
    if (v.kind == V_UNDEFINED)
        return undefined_error(r, v);
    if (v.kind == V_DICT || v.kind == V_NAMESPACE) {
        const struct value *found = jinja_get(r, v.dict, key);
        if (found)
            return *found;
    }
    if (key.kind == V_STRING) {
        struct str name = {key.s.p, key.s.n};
        return v.kind == V_DICT && !jinja_find_method(v.kind, name)
                   ? jinja_undefined(name.p, name.n)
                   : jinja_attribute(r, v, name);
    }
    return index_of(r, v, key);
}

static struct value eval_slice(struct run *r, struct scope *s, const struct node *n)
{
    struct value of = jinja_eval(r, s, n->a), parts[3];
    const struct node *const bounds[] = {n->b, n->c, n->d};
    for (int k = 0; k < 3; k++)
        parts[k] = bounds[k] ? jinja_eval(r, s, bounds[k]) : jinja_none();
    int64_t first = 0, stride = 1;
    size_t count = 0, len = 0;
    if (r->code)
        return jinja_none();
    if (of.kind == V_UNDEFINED)
        return undefined_error(r, of);
    if (of.kind != V_STRING && of.kind != V_LIST && of.kind != V_TUPLE && of.kind != V_RANGE) {
        jinja_fail(r, ERR_FORMAT, "a %s cannot be sliced", jinja_kind_name(of.kind));
        return jinja_none();
    }
    jinja_length(of, &len, r);
    if (!jinja_slice_bounds(r, len, &parts[0], &parts[1], &parts[2], &first, &stride, &count))
        return jinja_none();
    if (of.kind == V_STRING)
        return jinja_string(jinja_slice(r, of.s, first, stride, count));
    if (of.kind == V_RANGE) { /* stays a range */
        struct value v = jinja_seq(r, V_RANGE);
        v.seq->n = count;
        v.seq->start = of.seq->start + first * of.seq->step;
        v.seq->step = of.seq->step * (count > 1 ? stride : 1);
        v.seq->stop = (int64_t)((uint64_t)v.seq->start + count * (uint64_t)v.seq->step);
        return v;
    }
    struct value list = jinja_seq(r, of.kind);
    for (size_t k = 0; k < count && jinja_charge(r, 1); k++)
        jinja_push(r, list, of.seq->items[first + (int64_t)k * stride]);
    return list;
}

/* ---- calls ---- */

/* Room for more keywords; `cap` is how many there is room for. */
static void add_keyword(struct run *r, struct args *a, size_t *cap, struct str name, struct value v)
{
    if (a->n_keywords == *cap) {
        *cap = *cap ? 2 * *cap : 4;
        struct keyword *more = jinja_alloc(r, *cap * sizeof *more);
        if (!more)
            return;
        if (a->n_keywords)
            memcpy(more, a->keywords, a->n_keywords * sizeof *more);
        a->keywords = more;
    }
    a->keywords[a->n_keywords++] = (struct keyword){name, v};
}

/* *list and **dict */
static void spread(struct run *r, struct args *a, struct value pos, size_t *cap, enum op op,
                   struct value of)
{
    struct value item;
    if (op != OP_POW) {
        for (struct iter it = jinja_iter(r, of); jinja_next(&it, &item);)
            jinja_push(r, pos, item);
        return;
    }
    if (of.kind != V_DICT)
        jinja_fail(r, ERR_FORMAT, "** needs a dict, not %s", jinja_kind_name(of.kind));
    for (size_t i = 0; of.kind == V_DICT && i < of.dict->n && jinja_charge(r, 1); i++) {
        const struct entry *e = &of.dict->entries[i];
        if (e->key.kind == V_STRING)
            add_keyword(r, a, cap, (struct str){e->key.s.p, e->key.s.n}, e->value);
        else
            jinja_fail(r, ERR_FORMAT, "** needs keys that are strings");
    }
}

static void eval_args(struct run *r, struct scope *s, const struct node *n, struct args *a)
{
    struct value pos = jinja_seq(r, V_LIST);
    size_t cap = 0;
    *a = (struct args){0};
    for (size_t i = 0; i < n->n && !r->code; i++) {
        const struct node *arg = n->list[i];
        if (arg->kind == N_KEYWORD)
            add_keyword(r, a, &cap, arg->name, jinja_eval(r, s, arg->a));
        else if (arg->kind == N_SPREAD)
            spread(r, a, pos, &cap, arg->op, jinja_eval(r, s, arg->a));
        else
            jinja_push(r, pos, jinja_eval(r, s, arg));
    }
    a->pos = pos.seq->items;
    a->n = pos.seq->n;
}

/* One value for each parameter, ABSENT where nothing was given. */
static bool bind_native(struct run *r, const struct native *f, const struct args *a,
                        struct value *bound)
{
    size_t n_params = 0;
    while (n_params < JINJA_MAX_PARAMS && f->params[n_params])
        n_params++;
    if (a->n > n_params) {
        jinja_fail(r, ERR_FORMAT, "%s() takes at most %zu arguments", f->name, n_params);
        return false;
    }
    for (size_t i = 0; i < JINJA_MAX_PARAMS; i++)
        bound[i] = i < a->n ? a->pos[i] : (struct value){.kind = V_ABSENT};
    for (size_t k = 0; k < a->n_keywords; k++) {
        size_t i = 0;
        while (i < n_params && !str_eqs(a->keywords[k].name, f->params[i]))
            i++;
        if (i == n_params || bound[i].kind != V_ABSENT) {
            jinja_fail(r, ERR_FORMAT, "%s() has no argument '%.*s', or has it twice", f->name,
                       (int)a->keywords[k].name.n, a->keywords[k].name.p);
            return false;
        }
        bound[i] = a->keywords[k].value;
    }
    for (int i = 0; i < f->required; i++)
        if (bound[i].kind == V_ABSENT) {
            jinja_fail(r, ERR_FORMAT, "%s() needs the argument '%s'", f->name, f->params[i]);
            return false;
        }
    return true;
}

struct value jinja_call_native(struct run *r, const struct native *f, struct value self,
                               struct args *a)
{
    struct value bound[JINJA_MAX_PARAMS];
    struct args as_bound = {.pos = bound, .n = JINJA_MAX_PARAMS};
    if (r->code)
        return jinja_none();
    if (f->variadic)
        return f->fn(r, self, a);
    if (!bind_native(r, f, a, bound))
        return jinja_none();
    return f->fn(r, self, &as_bound);
}

struct value jinja_call(struct run *r, struct value callee, struct args *a)
{
    if (r->code)
        return jinja_none();
    switch (callee.kind) {
    case V_METHOD:
        return jinja_call_native(r, callee.method->native, callee.method->self, a);
    case V_FUNCTION:
        return jinja_call_native(r, callee.function, jinja_none(), a);
    case V_MACRO:
        return jinja_call_macro(r, callee.macro, a);
    case V_LOOP:
        return jinja_call_loop(r, callee.loop, a);
    case V_UNDEFINED:
        return undefined_error(r, callee);
    default:
        jinja_fail(r, ERR_FORMAT, "a %s cannot be called", jinja_kind_name(callee.kind));
        return jinja_none();
    }
}

static struct value eval_call(struct run *r, struct scope *s, const struct node *n)
{
    struct args a;
    struct value callee = jinja_eval(r, s, n->a);
    eval_args(r, s, n, &a);
    r->line = n->line;
    return jinja_call(r, callee, &a);
}

static struct value eval_filter_or_test(struct run *r, struct scope *s, const struct node *n)
{
    struct args a;
    struct value self = jinja_eval(r, s, n->a);
    if (!n->native)
        jinja_fail(r, ERR_FORMAT, "there is no %s '%.*s'", n->kind == N_TEST ? "test" : "filter",
                   (int)n->name.n, n->name.p);
    eval_args(r, s, n, &a);
    r->line = n->line;
    return r->code ? jinja_none() : jinja_call_native(r, n->native, self, &a);
}

/* ---- the other kinds of expression ---- */

static struct value eval_name(struct run *r, struct scope *s, const struct node *n)
{
    const struct value *v = jinja_lookup(s, n->name);
    if (v)
        return *v;
    const struct native *f = jinja_find_global(n->name);
    if (f)
        return (struct value){.kind = V_FUNCTION, .function = f};
    return jinja_undefined(n->name.p, n->name.n);
}

static struct value eval_dict(struct run *r, struct scope *s, const struct node *n)
{
    struct value d = jinja_dict(r, V_DICT);
    for (size_t i = 0; i + 1 < n->n && !r->code; i += 2) {
        struct value key = jinja_eval(r, s, n->list[i]);
        jinja_put(r, d.dict, key, jinja_eval(r, s, n->list[i + 1]));
    }
    return d;
}

static struct value eval_compare(struct run *r, struct scope *s, const struct node *n)
{
    struct value left = jinja_eval(r, s, n->a);
    bool holds = true;
    for (size_t i = 0; i < n->n && holds && !r->code; i++) {
        struct value right = jinja_eval(r, s, n->list[i]->a);
        holds = jinja_compare(r, n->list[i]->op, left, right);
        left = right;
    }
    return jinja_bool(holds);
}

static struct value eval_sign(struct run *r, struct value v, bool negative)
{
    struct value zero = jinja_int(0);
    zero.trusted = v.trusted;
    if (v.kind == V_UNDEFINED)
        return undefined_error(r, v);
    if (v.kind == V_FLOAT) {
        v.f = negative ? -v.f : v.f;
        return v;
    }
    return jinja_binary(r, negative ? OP_SUB : OP_ADD, zero, v);
}

static struct value eval_kind(struct run *r, struct scope *s, const struct node *n)
{
    struct value v, seq;
    switch (n->kind) {
    case N_CONST:
        return n->value;
    case N_NAME:
        return eval_name(r, s, n);
    case N_LIST:
    case N_TUPLE:
        seq = jinja_seq(r, n->kind == N_LIST ? V_LIST : V_TUPLE);
        for (size_t i = 0; i < n->n && !r->code; i++)
            jinja_push(r, seq, jinja_eval(r, s, n->list[i]));
        return seq;
    case N_DICT:
        return eval_dict(r, s, n);
    case N_NEGATE:
    case N_PLUS:
        return eval_sign(r, jinja_eval(r, s, n->a), n->kind == N_NEGATE);
    case N_NOT:
        return jinja_bool(!jinja_truth(jinja_eval(r, s, n->a)));
    case N_AND:
    case N_OR:
        v = jinja_eval(r, s, n->a);
        return jinja_truth(v) == (n->kind == N_OR) ? v : jinja_eval(r, s, n->b);
    case N_BINARY:
        v = jinja_eval(r, s, n->a);
        return jinja_binary(r, n->op, v, jinja_eval(r, s, n->b));
    case N_COMPARE:
        return eval_compare(r, s, n);
    case N_CONDITION:
        if (jinja_truth(jinja_eval(r, s, n->b)))
            return jinja_eval(r, s, n->a);
        return n->c ? jinja_eval(r, s, n->c) : jinja_undefined("the inline if", 13);
    case N_ATTRIBUTE:
        return jinja_attribute(r, jinja_eval(r, s, n->a), n->name);
    case N_ITEM:
        v = jinja_eval(r, s, n->a);
        return jinja_item(r, v, jinja_eval(r, s, n->b));
    case N_SLICE:
        return eval_slice(r, s, n);
    case N_CALL:
        return eval_call(r, s, n);
    case N_FILTER:
    case N_TEST:
        return eval_filter_or_test(r, s, n);
    case N_CAPTURED:
        return r->captured;
    default:
        BUG("node kind %d is no expression", n->kind);
    }
}

struct value jinja_eval(struct run *r, struct scope *s, const struct node *n)
{
    if (!jinja_descend(r))
        return jinja_none();
    r->line = n->line;
    struct value v = eval_kind(r, s, n);
    r->depth--;
    return r->code ? jinja_none() : v;
}
