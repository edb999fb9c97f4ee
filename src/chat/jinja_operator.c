#include "chat/jinja.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const spellings[] = {
    [OP_ADD] = "+",        [OP_SUB] = "-", [OP_MUL] = "*",  [OP_DIV] = "/",
    [OP_FLOOR_DIV] = "//", [OP_MOD] = "%", [OP_POW] = "**", [OP_CONCAT] = "~",
};

static struct value no_operator(struct run *r, enum op op, struct value a, struct value b)
{
    const struct value *u = a.kind == V_UNDEFINED ? &a : b.kind == V_UNDEFINED ? &b : NULL;
    if (u)
        jinja_fail(r, ERR_FORMAT, "'%.*s' is undefined", (int)u->s.n, u->s.p);
    else
        jinja_fail(r, ERR_FORMAT, "%s %s %s is not possible", jinja_kind_name(a.kind),
                   spellings[op], jinja_kind_name(b.kind));
    return jinja_none();
}

static int64_t floor_div(int64_t a, int64_t b)
{
    int64_t q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}

/* a ** b for b >= 0; true on overflow. */
static bool power_overflows(int64_t a, int64_t b, int64_t *out)
{
    *out = 1;
    if (a >= -1 && a <= 1) {
        *out = a == 1 || b % 2 == 0 ? 1 : a;
        if (a == 0)
            *out = b == 0;
        return false;
    }
    for (; b > 0; b--)
        if (__builtin_mul_overflow(*out, a, out))
            return true;
    return false;
}

static struct value integer_binary(struct run *r, enum op op, int64_t a, int64_t b)
{
    int64_t v = 0;
    bool overflow = false;
    if (b == 0 && (op == OP_DIV || op == OP_FLOOR_DIV || op == OP_MOD)) {
        jinja_fail(r, ERR_FORMAT, "division by zero");
        return jinja_none();
    }
    switch (op) {
    case OP_ADD:
        overflow = __builtin_add_overflow(a, b, &v);
        break;
    case OP_SUB:
        overflow = __builtin_sub_overflow(a, b, &v);
        break;
    case OP_MUL:
        overflow = __builtin_mul_overflow(a, b, &v);
        break;
    case OP_DIV:
        return jinja_float((double)a / (double)b);
    case OP_FLOOR_DIV:
        overflow = a == INT64_MIN && b == -1;
        v = overflow ? 0 : floor_div(a, b);
        break;
    case OP_MOD:
        v = b == -1 ? 0 : a - floor_div(a, b) * b;
        break;
    default:
        overflow = power_overflows(a, b, &v);
    }
    if (overflow)
        jinja_fail(r, ERR_LIMIT, "an integer does not fit 64 bits");
    return jinja_int(v);
}

static struct value float_binary(struct run *r, enum op op, double a, double b)
{
    if (b == 0 && (op == OP_DIV || op == OP_FLOOR_DIV || op == OP_MOD)) {
        jinja_fail(r, ERR_FORMAT, "division by zero");
        return jinja_none();
    }
    double m;
    switch (op) {
    case OP_ADD:
        return jinja_float(a + b);
    case OP_SUB:
        return jinja_float(a - b);
    case OP_MUL:
        return jinja_float(a * b);
    case OP_DIV:
        return jinja_float(a / b);
    case OP_POW:
        if ((a == 0 && b < 0) || (a < 0 && b != floor(b)))
            jinja_fail(r, ERR_FORMAT, "the power is no real number");
        return jinja_float(pow(a, b));
    default:
        m = fmod(a, b);
        if (m == 0)
            m = copysign(0, b);
        else if ((b < 0) != (m < 0))
            m += b;
        return jinja_float(op == OP_MOD ? m : floor((a - m) / b + 0.5));
    }
}

static struct value repeat(struct run *r, struct value v, int64_t times)
{
    if (v.kind == V_STRING) {
        struct builder b = {.run = r};
        for (int64_t i = 0; i < times && v.s.n && jinja_charge(r, 1); i++)
            jinja_add(&b, v.s);
        return jinja_string(jinja_built(&b));
    }
    struct value list = jinja_seq(r, v.kind);
    for (int64_t i = 0; i < times && v.seq->n; i++)
        for (size_t k = 0; k < v.seq->n && jinja_charge(r, 1); k++)
            jinja_push(r, list, v.seq->items[k]);
    return list;
}

static struct value join_two(struct run *r, struct value a, struct value b)
{
    if (a.kind == V_STRING) {
        struct builder out = {.run = r};
        jinja_add(&out, a.s);
        jinja_add(&out, b.s);
        return jinja_string(jinja_built(&out));
    }
    struct value list = jinja_list_of(r, a, a.kind), item;
    for (struct iter it = jinja_iter(r, b); jinja_next(&it, &item);)
        jinja_push(r, list, item);
    return list;
}

static bool repeats(struct value v)
{
    return v.kind == V_STRING || v.kind == V_LIST || v.kind == V_TUPLE;
}

static struct value concat(struct run *r, struct value a, struct value b)
{
    struct builder out = {.run = r};
    jinja_print(&out, a);
    jinja_print(&out, b);
    return jinja_string(jinja_built(&out));
}

struct value jinja_binary(struct run *r, enum op op, struct value a, struct value b)
{
    int64_t i, k;
    double x, y;
    struct value v;
    if (r->code)
        return jinja_none();
    if (op == OP_CONCAT)
        return concat(r, a, b);
    if (jinja_integer(a, &i) && jinja_integer(b, &k) && !(op == OP_POW && k < 0))
        v = integer_binary(r, op, i, k);
    else if (jinja_number(a, &x) && jinja_number(b, &y))
        v = float_binary(r, op, x, y);
    else if (op == OP_ADD && a.kind == b.kind && repeats(a))
        return join_two(r, a, b);
    else if (op == OP_MUL && repeats(a) && jinja_integer(b, &k))
        return repeat(r, a, k);
    else if (op == OP_MUL && repeats(b) && jinja_integer(a, &i))
        return repeat(r, b, i);
    else if (op == OP_MOD && a.kind == V_STRING)
        return jinja_format(r, a.s, b);
    else
        return no_operator(r, op, a, b);
    v.trusted = a.trusted && b.trusted;
    return v;
}

bool jinja_compare(struct run *r, enum op op, struct value a, struct value b)
{
    double x, y;
    if (r->code)
        return false;
    if (jinja_number(a, &x) && jinja_number(b, &y) && (isnan(x) || isnan(y)))
        return op == OP_NE;
    switch (op) {
    case OP_EQ:
        return jinja_equal(r, a, b);
    case OP_NE:
        return !jinja_equal(r, a, b);
    case OP_LT:
        return jinja_order(r, a, b) < 0;
    case OP_LE:
        return jinja_order(r, a, b) <= 0;
    case OP_GT:
        return jinja_order(r, a, b) > 0;
    case OP_GE:
        return jinja_order(r, a, b) >= 0;
    case OP_NOT_IN:
        return !jinja_contains(r, b, a);
    default:
        return jinja_contains(r, b, a);
    }
}

/* ---- "%s and %d" % (a, b) ---- */

static void pad(struct builder *b, struct string s, int width, bool left)
{
    size_t n = jinja_count(b->run, s);
    size_t fill = width > 0 && (size_t)width > n ? (size_t)width - n : 0;
    if (left)
        jinja_add(b, s);
    for (size_t i = 0; i < fill; i++)
        jinja_adds(b, " ", true);
    if (!left)
        jinja_add(b, s);
}

struct conversion {
    bool left, zero;
    int width, precision; /* -1: not given */
    char type;
};

static struct string converted(struct run *r, const struct conversion *c, struct value v)
{
    char text[512];
    double x = 0;
    struct builder b = {.run = r};
    if (c->type == 's' || c->type == 'r') {
        if (c->type == 's')
            jinja_print(&b, v);
        else
            jinja_repr(&b, v);
        struct string s = jinja_built(&b);
        if (c->precision >= 0 && jinja_count(r, s) > (size_t)c->precision)
            s = jinja_slice(r, s, 0, 1, (size_t)c->precision);
        return s;
    }
    if (!jinja_number(v, &x))
        jinja_fail(r, ERR_FORMAT, "%%%c needs a number, not %s", c->type, jinja_kind_name(v.kind));
    int width = c->zero ? c->width : 0, precision = c->precision < 0 ? 6 : c->precision;
    if (c->type == 'f')
        snprintf(text, sizeof text, "%0*.*f", width, precision, x);
    else if (c->type == 'd' && v.kind == V_FLOAT && fabs(x) < 9e18)
        snprintf(text, sizeof text, "%0*" PRId64, width, (int64_t)x);
    else if (c->type == 'd' && v.kind != V_FLOAT)
        snprintf(text, sizeof text, "%0*" PRId64, width, v.kind == V_BOOL ? v.b : v.i);
    else
        jinja_fail(r, ERR_UNSUPPORTED, "%%%c is not supported in a format for %s", c->type,
                   jinja_kind_name(v.kind));
    if (!r->code)
        jinja_adds(&b, text, v.trusted);
    return jinja_built(&b);
}

/* Reads what follows a '%' at *i. Widths over 100 are cut to it: no template needs more. */
static struct conversion read_conversion(struct string f, size_t *i)
{
    struct conversion c = {.precision = -1};
    for (; *i < f.n && strchr("-0+ #", f.p[*i]) && f.p[*i]; ++*i) {
        c.left |= f.p[*i] == '-';
        c.zero |= f.p[*i] == '0';
    }
    for (; *i < f.n && f.p[*i] >= '0' && f.p[*i] <= '9'; ++*i)
        c.width = c.width > 10 ? 100 : c.width * 10 + (f.p[*i] - '0');
    if (*i < f.n && f.p[*i] == '.')
        for (c.precision = 0, ++*i; *i < f.n && f.p[*i] >= '0' && f.p[*i] <= '9'; ++*i)
            c.precision = c.precision > 10 ? 100 : c.precision * 10 + (f.p[*i] - '0');
    c.type = *i < f.n ? f.p[(*i)++] : 0;
    return c;
}

struct value jinja_format(struct run *r, struct string f, struct value args)
{
    struct builder b = {.run = r};
    size_t used = 0, n = args.kind == V_TUPLE ? args.seq->n : 1;
    for (size_t i = 0; i < f.n && jinja_charge(r, 1);) {
        size_t from = i;
        while (i < f.n && f.p[i] != '%')
            i++;
        jinja_add(&b, jinja_cut(f, from, i));
        if (i++ == f.n)
            break;
        struct conversion c = read_conversion(f, &i);
        if (c.type == '%') {
            jinja_adds(&b, "%", true);
        } else if (!c.type || !strchr("srdf", c.type)) {
            jinja_fail(r, ERR_UNSUPPORTED, "the format may only use %%s %%r %%d %%f and %%%%");
        } else if (used >= n) {
            jinja_fail(r, ERR_FORMAT, "not enough arguments for the format");
        } else {
            struct value v = args.kind == V_TUPLE ? args.seq->items[used] : args;
            used++;
            pad(&b, converted(r, &c, v), c.width, c.left);
        }
    }
    if (used < n && args.kind != V_DICT)
        jinja_fail(r, ERR_FORMAT, "not all arguments were used by the format");
    return jinja_string(jinja_built(&b));
}
