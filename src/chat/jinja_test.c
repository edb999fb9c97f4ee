#include "chat/jinja.h"

#include "base/mem.h"

/* The right side of `x is NAME ...`. */

static struct value test_defined(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind != V_UNDEFINED);
}

static struct value test_undefined(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_UNDEFINED);
}

static struct value test_none(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_NONE);
}

static struct value test_string(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_STRING);
}

static struct value test_number(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_BOOL || v.kind == V_INT || v.kind == V_FLOAT);
}

static struct value test_integer(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_INT);
}

static struct value test_float(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_FLOAT);
}

static struct value test_boolean(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_BOOL);
}

static struct value test_true(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_BOOL && v.b);
}

static struct value test_false(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_BOOL && !v.b);
}

static struct value test_mapping(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_DICT);
}

/* Has a length and can be indexed. Undefined pretends to, in Jinja as here. */
static struct value test_sequence(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_STRING || v.kind == V_LIST || v.kind == V_TUPLE ||
                      v.kind == V_RANGE || v.kind == V_DICT || v.kind == V_UNDEFINED);
}

static struct value test_iterable(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_STRING || jinja_is_seq(v) || v.kind == V_DICT ||
                      v.kind == V_UNDEFINED || v.kind == V_LOOP);
}

static struct value test_callable(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_METHOD || v.kind == V_FUNCTION || v.kind == V_MACRO ||
                      v.kind == V_UNDEFINED || v.kind == V_LOOP);
}

/* v % by == rest */
static struct value has_rest(struct run *r, struct value v, struct value by, int64_t rest)
{
    return jinja_bool(jinja_equal(r, jinja_binary(r, OP_MOD, v, by), jinja_int(rest)));
}

static struct value test_odd(struct run *r, struct value v, struct args *a)
{
    return has_rest(r, v, jinja_int(2), 1);
}

static struct value test_even(struct run *r, struct value v, struct args *a)
{
    return has_rest(r, v, jinja_int(2), 0);
}

static struct value test_divisible_by(struct run *r, struct value v, struct args *a)
{
    return has_rest(r, v, a->pos[0], 0);
}

static struct value test_lower(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(jinja_is_cased(r, jinja_text(r, v), false));
}

static struct value test_upper(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(jinja_is_cased(r, jinja_text(r, v), true));
}

/* The same object, for the kinds where a template can tell. */
static struct value test_same_as(struct run *r, struct value v, struct args *a)
{
    struct value b = a->pos[0];
    bool same = v.kind == b.kind;
    if (same && jinja_is_seq(v))
        same = v.seq == b.seq;
    else if (same && (v.kind == V_DICT || v.kind == V_NAMESPACE))
        same = v.dict == b.dict;
    else if (same)
        same = jinja_equal(r, v, b);
    return jinja_bool(same);
}

static struct value test_filter(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_STRING && jinja_find_filter((struct str){v.s.p, v.s.n}));
}

static struct value test_test(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(v.kind == V_STRING && jinja_find_test((struct str){v.s.p, v.s.n}));
}

static struct value test_escaped(struct run *r, struct value v, struct args *a)
{
    return jinja_bool(false);
}

#define COMPARISON(name, op)                                                                       \
    static struct value name(struct run *r, struct value v, struct args *a)                        \
    {                                                                                              \
        return jinja_bool(jinja_compare(r, op, v, a->pos[0]));                                     \
    }
COMPARISON(test_eq, OP_EQ)
COMPARISON(test_ne, OP_NE)
COMPARISON(test_lt, OP_LT)
COMPARISON(test_le, OP_LE)
COMPARISON(test_gt, OP_GT)
COMPARISON(test_ge, OP_GE)
COMPARISON(test_in, OP_IN)

#define ONE .required = 1, .params = {"other"}

static const struct native tests[] = {
    {"!=", test_ne, ONE},
    {"<", test_lt, ONE},
    {"<=", test_le, ONE},
    {"==", test_eq, ONE},
    {">", test_gt, ONE},
    {">=", test_ge, ONE},
    {"boolean", test_boolean},
    {"callable", test_callable},
    {"defined", test_defined},
    {"divisibleby", test_divisible_by, .required = 1, .params = {"num"}},
    {"eq", test_eq, ONE},
    {"equalto", test_eq, ONE},
    {"escaped", test_escaped},
    {"even", test_even},
    {"false", test_false},
    {"filter", test_filter},
    {"float", test_float},
    {"ge", test_ge, ONE},
    {"greaterthan", test_gt, ONE},
    {"gt", test_gt, ONE},
    {"in", test_in, .required = 1, .params = {"seq"}},
    {"integer", test_integer},
    {"iterable", test_iterable},
    {"le", test_le, ONE},
    {"lessthan", test_lt, ONE},
    {"lower", test_lower},
    {"lt", test_lt, ONE},
    {"mapping", test_mapping},
    {"ne", test_ne, ONE},
    {"none", test_none},
    {"number", test_number},
    {"odd", test_odd},
    {"sameas", test_same_as, ONE},
    {"sequence", test_sequence},
    {"string", test_string},
    {"test", test_test},
    {"true", test_true},
    {"undefined", test_undefined},
    {"upper", test_upper},
};

const struct native *jinja_find_test(struct str name)
{
    for (size_t i = 0; i < ARRAY_LEN(tests); i++)
        if (str_eqs(name, tests[i].name))
            return &tests[i];
    return NULL;
}
