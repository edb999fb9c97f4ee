#include "chat/jinja.h"

#include <string.h>

#include "base/mem.h"

/* The precedences are Jinja's: from `or` down to the primary, `~` between + and *. */

static struct node *parse_unary(struct parser *p, bool with_filters);

static struct node *constant(struct parser *p, struct value v)
{
    struct node *n = jinja_node(p, N_CONST);
    n->value = v;
    return n;
}

static struct node *binary(struct parser *p, enum node_kind kind, enum op op, struct node *a,
                           struct node *b)
{
    struct node *n = jinja_node(p, kind);
    n->op = op;
    n->a = a;
    n->b = b;
    return n;
}

static struct node *parse_list(struct parser *p)
{
    struct node *n = jinja_node(p, N_LIST);
    while (!p->code && !jinja_skip_op(p, OP_RBRACKET)) {
        if (n->n)
            jinja_expect_op(p, OP_COMMA, "',' or ']'");
        if (jinja_skip_op(p, OP_RBRACKET))
            break;
        jinja_append(p, n, jinja_parse_expr(p));
    }
    return n;
}

static struct node *parse_dict(struct parser *p)
{
    struct node *n = jinja_node(p, N_DICT);
    while (!p->code && !jinja_skip_op(p, OP_RBRACE)) {
        if (n->n)
            jinja_expect_op(p, OP_COMMA, "',' or '}'");
        if (jinja_skip_op(p, OP_RBRACE))
            break;
        jinja_append(p, n, jinja_parse_expr(p));
        jinja_expect_op(p, OP_COLON, "':'");
        jinja_append(p, n, jinja_parse_expr(p));
    }
    return n;
}

/* "a" "b" is one string, as in Python. */
static struct node *parse_string(struct parser *p)
{
    struct str s = p->next++->text;
    while (p->next->kind == T_STRING) {
        struct str more = p->next++->text;
        char *both = arena_alloc(p->arena, s.n + more.n + 1);
        memcpy(both, s.p, s.n);
        memcpy(both + s.n, more.p, more.n);
        s = (struct str){both, s.n + more.n};
    }
    return constant(p, jinja_string((struct string){s.p, s.n, NULL, true}));
}

static struct node *parse_name(struct parser *p)
{
    static const struct {
        const char *name;
        struct value value;
    } constants[] = {
        {"true", {V_BOOL, true, {.b = true}}},   {"True", {V_BOOL, true, {.b = true}}},
        {"false", {V_BOOL, true, {.b = false}}}, {"False", {V_BOOL, true, {.b = false}}},
        {"none", {V_NONE, true, {.b = false}}},  {"None", {V_NONE, true, {.b = false}}},
    };
    for (size_t i = 0; i < ARRAY_LEN(constants); i++)
        if (jinja_skip_name(p, constants[i].name))
            return constant(p, constants[i].value);
    struct node *n = jinja_node(p, N_NAME);
    n->name = p->next++->text;
    return n;
}

static struct node *parse_primary(struct parser *p)
{
    struct token *t = p->next;
    if (t->kind == T_NAME)
        return parse_name(p);
    if (t->kind == T_STRING)
        return parse_string(p);
    if (t->kind == T_INT || t->kind == T_FLOAT) {
        p->next++;
        return constant(p, t->kind == T_INT ? jinja_int(t->i) : jinja_float(t->f));
    }
    if (jinja_skip_op(p, OP_LBRACKET))
        return parse_list(p);
    if (jinja_skip_op(p, OP_LBRACE))
        return parse_dict(p);
    if (jinja_skip_op(p, OP_LPAREN)) {
        if (jinja_skip_op(p, OP_RPAREN))
            return jinja_node(p, N_TUPLE);
        struct node *n = jinja_parse_tuple(p, jinja_parse_expr, NULL);
        jinja_expect_op(p, OP_RPAREN, "')'");
        return n;
    }
    jinja_syntax(p, "expected a value");
    return jinja_node(p, N_CONST);
}

/* After '(': the arguments, up to and with ')'. */
static void parse_args(struct parser *p, struct node *call)
{
    while (!p->code && !jinja_skip_op(p, OP_RPAREN)) {
        if (call->n)
            jinja_expect_op(p, OP_COMMA, "',' or ')'");
        if (jinja_skip_op(p, OP_RPAREN))
            return;
        if (jinja_at_op(p, OP_MUL) || jinja_at_op(p, OP_POW)) {
            struct node *spread = jinja_node(p, N_SPREAD);
            spread->op = p->next++->op;
            spread->a = jinja_parse_expr(p);
            jinja_append(p, call, spread);
            continue;
        }
        bool keyword =
            p->next->kind == T_NAME && p->next[1].kind == T_OP && p->next[1].op == OP_ASSIGN;
        if (keyword) {
            struct node *k = jinja_node(p, N_KEYWORD);
            k->name = p->next->text;
            p->next += 2;
            k->a = jinja_parse_expr(p);
            jinja_append(p, call, k);
        } else if (call->n && call->list[call->n - 1]->kind == N_KEYWORD) {
            jinja_syntax(p, "an argument without a name follows one with a name");
        } else {
            jinja_append(p, call, jinja_parse_expr(p));
        }
    }
}

static struct node *slice_part(struct parser *p)
{
    if (jinja_at_op(p, OP_COLON) || jinja_at_op(p, OP_RBRACKET))
        return NULL;
    return jinja_parse_expr(p);
}

/* After '[': an index or a slice. */
static struct node *parse_subscript(struct parser *p, struct node *of)
{
    struct node *first = slice_part(p);
    struct node *n = jinja_node(p, N_ITEM);
    n->a = of;
    n->b = first;
    if (jinja_skip_op(p, OP_COLON)) {
        n->kind = N_SLICE;
        n->c = slice_part(p);
        if (jinja_skip_op(p, OP_COLON))
            n->d = slice_part(p);
    } else if (!first) {
        jinja_syntax(p, "expected an index");
    } else if (jinja_at_op(p, OP_COMMA)) {
        n->b = jinja_node(p, N_TUPLE);
        jinja_append(p, n->b, first);
        while (!p->code && jinja_skip_op(p, OP_COMMA))
            if (!jinja_at_op(p, OP_RBRACKET))
                jinja_append(p, n->b, jinja_parse_expr(p));
    }
    jinja_expect_op(p, OP_RBRACKET, "']'");
    return n;
}

static struct node *parse_dot(struct parser *p, struct node *of)
{
    struct node *n = jinja_node(p, p->next->kind == T_INT ? N_ITEM : N_ATTRIBUTE);
    n->a = of;
    if (n->kind == N_ITEM) {
        n->b = constant(p, jinja_int(p->next->i));
        p->next++;
    } else {
        n->name = jinja_expect_name(p, "the name of an attribute");
    }
    return n;
}

static struct node *parse_call(struct parser *p, struct node *callee)
{
    struct node *n = jinja_node(p, N_CALL);
    n->a = callee;
    parse_args(p, n);
    return n;
}

static struct node *parse_postfix(struct parser *p, struct node *n)
{
    while (!p->code) {
        if (jinja_skip_op(p, OP_DOT))
            n = parse_dot(p, n);
        else if (jinja_skip_op(p, OP_LBRACKET))
            n = parse_subscript(p, n);
        else if (jinja_skip_op(p, OP_LPAREN))
            n = parse_call(p, n);
        else
            break;
    }
    return n;
}

/* name[.name]*, as one string */
static struct str dotted_name(struct parser *p, const char *what)
{
    struct str name = jinja_expect_name(p, what);
    while (jinja_skip_op(p, OP_DOT)) {
        struct str more = jinja_expect_name(p, what);
        const char *both =
            arena_printf(p->arena, "%.*s.%.*s", (int)name.n, name.p, (int)more.n, more.p);
        name = str_of(both);
    }
    return name;
}

static struct node *parse_filter(struct parser *p, struct node *over)
{
    struct node *n = jinja_node(p, N_FILTER);
    n->a = over;
    n->name = dotted_name(p, "the name of a filter");
    n->native = jinja_find_filter(n->name);
    if (jinja_skip_op(p, OP_LPAREN))
        parse_args(p, n);
    return n;
}

struct node *jinja_parse_filters(struct parser *p, struct node *over, bool first_without_pipe)
{
    struct node *n = over;
    if (first_without_pipe)
        n = parse_filter(p, n);
    while (jinja_skip_op(p, OP_PIPE))
        n = parse_filter(p, n);
    return n;
}

/* `x is divisibleby 3`: whether an argument without parentheses follows. */
static bool at_bare_argument(const struct parser *p)
{
    if (p->next->kind == T_NAME)
        return !jinja_at_name(p, "else") && !jinja_at_name(p, "or") && !jinja_at_name(p, "and");
    return p->next->kind == T_STRING || p->next->kind == T_INT || p->next->kind == T_FLOAT ||
           jinja_at_op(p, OP_LBRACKET) || jinja_at_op(p, OP_LBRACE);
}

static struct node *parse_test(struct parser *p, struct node *of)
{
    struct node *n = jinja_node(p, N_TEST);
    bool negated = jinja_skip_name(p, "not");
    n->a = of;
    n->name = dotted_name(p, "the name of a test");
    n->native = jinja_find_test(n->name);
    if (jinja_skip_op(p, OP_LPAREN)) {
        parse_args(p, n);
    } else if (at_bare_argument(p)) {
        if (jinja_at_name(p, "is"))
            jinja_syntax(p, "tests cannot be chained with `is`");
        else
            jinja_append(p, n, parse_postfix(p, parse_primary(p)));
    }
    return negated ? binary(p, N_NOT, OP_NONE, n, NULL) : n;
}

/* Filters, tests and calls, in any order, after a value. */
static struct node *parse_filter_expr(struct parser *p, struct node *n)
{
    while (!p->code) {
        if (jinja_skip_op(p, OP_PIPE))
            n = parse_filter(p, n);
        else if (jinja_skip_name(p, "is"))
            n = parse_test(p, n);
        else if (jinja_skip_op(p, OP_LPAREN))
            n = parse_call(p, n);
        else
            break;
    }
    return n;
}

static struct node *parse_unary(struct parser *p, bool with_filters)
{
    if (!jinja_enter(p))
        return jinja_node(p, N_CONST);
    struct node *n;
    if (jinja_skip_op(p, OP_SUB))
        n = binary(p, N_NEGATE, OP_NONE, parse_unary(p, false), NULL);
    else if (jinja_skip_op(p, OP_ADD))
        n = binary(p, N_PLUS, OP_NONE, parse_unary(p, false), NULL);
    else
        n = parse_primary(p);
    n = parse_postfix(p, n);
    if (with_filters)
        n = parse_filter_expr(p, n);
    p->depth--;
    return n;
}

static struct node *parse_pow(struct parser *p)
{
    struct node *n = parse_unary(p, true);
    while (jinja_skip_op(p, OP_POW))
        n = binary(p, N_BINARY, OP_POW, n, parse_unary(p, true));
    return n;
}

/* A level of binary operators that group to the left. */
static struct node *parse_level(struct parser *p, struct node *(*operand)(struct parser *),
                                const enum op *ops)
{
    struct node *n = operand(p);
    for (const enum op *op = ops; *op;) {
        if (jinja_skip_op(p, *op)) {
            n = binary(p, N_BINARY, *op, n, operand(p));
            op = ops;
        } else {
            op++;
        }
    }
    return n;
}

static struct node *parse_product(struct parser *p)
{
    static const enum op ops[] = {OP_MUL, OP_DIV, OP_FLOOR_DIV, OP_MOD, OP_NONE};
    return parse_level(p, parse_pow, ops);
}

static struct node *parse_concat(struct parser *p)
{
    static const enum op ops[] = {OP_CONCAT, OP_NONE};
    return parse_level(p, parse_product, ops);
}

static struct node *parse_sum(struct parser *p)
{
    static const enum op ops[] = {OP_ADD, OP_SUB, OP_NONE};
    return parse_level(p, parse_concat, ops);
}

static enum op skip_comparison(struct parser *p)
{
    static const enum op ops[] = {OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE};
    for (size_t i = 0; i < ARRAY_LEN(ops); i++)
        if (jinja_skip_op(p, ops[i]))
            return ops[i];
    if (jinja_skip_name(p, "in"))
        return OP_IN;
    if (jinja_at_name(p, "not") && p->next[1].kind == T_NAME && str_eqs(p->next[1].text, "in")) {
        p->next += 2;
        return OP_NOT_IN;
    }
    return OP_NONE;
}

/* a < b < c is one node: each operand is evaluated once. */
static struct node *parse_comparison(struct parser *p)
{
    struct node *first = parse_sum(p), *n = NULL;
    for (enum op op; (op = skip_comparison(p)) != OP_NONE;) {
        if (!n)
            n = binary(p, N_COMPARE, OP_NONE, first, NULL);
        jinja_append(p, n, binary(p, N_OPERAND, op, parse_sum(p), NULL));
    }
    return n ? n : first;
}

static struct node *parse_not(struct parser *p)
{
    if (!jinja_skip_name(p, "not"))
        return parse_comparison(p);
    if (!jinja_enter(p))
        return jinja_node(p, N_CONST);
    struct node *n = binary(p, N_NOT, OP_NONE, parse_not(p), NULL);
    p->depth--;
    return n;
}

static struct node *parse_and(struct parser *p)
{
    struct node *n = parse_not(p);
    while (jinja_skip_name(p, "and"))
        n = binary(p, N_AND, OP_NONE, n, parse_not(p));
    return n;
}

struct node *jinja_parse_or(struct parser *p)
{
    struct node *n = parse_and(p);
    while (jinja_skip_name(p, "or"))
        n = binary(p, N_OR, OP_NONE, n, parse_and(p));
    return n;
}

struct node *jinja_parse_expr(struct parser *p)
{
    struct node *n = jinja_parse_or(p);
    if (!jinja_at_name(p, "if") || !jinja_enter(p))
        return n;
    while (jinja_skip_name(p, "if")) {
        n = binary(p, N_CONDITION, OP_NONE, n, jinja_parse_or(p));
        if (jinja_skip_name(p, "else"))
            n->c = jinja_parse_expr(p);
    }
    p->depth--;
    return n;
}

static bool at_tuple_end(const struct parser *p, const char *stop)
{
    enum token_kind k = p->next->kind;
    return k == T_OUTPUT_END || k == T_BLOCK_END || k == T_END || jinja_at_op(p, OP_RPAREN) ||
           jinja_at_op(p, OP_ASSIGN) || (stop && jinja_at_name(p, stop));
}

struct node *jinja_parse_tuple(struct parser *p, struct node *(*item)(struct parser *),
                               const char *stop)
{
    struct node *first = item(p);
    if (!jinja_at_op(p, OP_COMMA))
        return first;
    struct node *n = jinja_node(p, N_TUPLE);
    jinja_append(p, n, first);
    while (!p->code && jinja_skip_op(p, OP_COMMA)) {
        if (at_tuple_end(p, stop))
            break;
        jinja_append(p, n, item(p));
    }
    return n;
}

static struct node *parse_target_item(struct parser *p)
{
    if (!jinja_enter(p))
        return jinja_node(p, N_NAME);
    struct node *n;
    if (jinja_skip_op(p, OP_LPAREN)) {
        n = jinja_parse_tuple(p, parse_target_item, "in");
        jinja_expect_op(p, OP_RPAREN, "')'");
    } else {
        n = jinja_node(p, N_NAME);
        n->name = jinja_expect_name(p, "a name to assign to");
        if (jinja_skip_op(p, OP_DOT)) {
            struct node *of = n;
            n = jinja_node(p, N_ATTRIBUTE);
            n->a = of;
            n->name = jinja_expect_name(p, "the name of an attribute");
        }
    }
    p->depth--;
    return n;
}

static void check_target(struct parser *p, const struct node *n, bool with_namespace)
{
    static const char *const reserved[] = {"true", "True", "false", "False", "none", "None"};
    for (size_t i = 0; i < n->n; i++)
        check_target(p, n->list[i], with_namespace);
    if (n->kind == N_ATTRIBUTE && !with_namespace)
        jinja_syntax(p, "an attribute cannot be assigned to here");
    for (size_t i = 0; i < ARRAY_LEN(reserved); i++)
        if (n->kind == N_NAME && str_eqs(n->name, reserved[i]))
            jinja_syntax(p, "cannot assign to %s", reserved[i]);
}

struct node *jinja_parse_target(struct parser *p, bool with_namespace)
{
    struct node *n = jinja_parse_tuple(p, parse_target_item, "in");
    check_target(p, n, with_namespace);
    return n;
}
