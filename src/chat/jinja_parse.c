#include "chat/jinja.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

__attribute__((format(printf, 3, 0))) static void refuse(struct parser *p, int code,
                                                         const char *fmt, va_list ap)
{
    char what[200];
    vsnprintf(what, sizeof what, fmt, ap);
    if (!p->code)
        p->code = err_set(p->err, code, "chat template, line %d, column %d: %s", p->next->line,
                          p->next->column, what);
    p->next = p->end; /* nothing more to read: every loop ends */
}

void jinja_syntax(struct parser *p, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    refuse(p, ERR_FORMAT, fmt, ap);
    va_end(ap);
}

void jinja_refuse(struct parser *p, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    refuse(p, code, fmt, ap);
    va_end(ap);
}

struct node *jinja_node(struct parser *p, enum node_kind kind)
{
    struct node *n = arena_alloc(p->arena, sizeof *n);
    n->kind = kind;
    n->line = p->next->line;
    return n;
}

void jinja_append(struct parser *p, struct node *to, struct node *item)
{
    if (to->n == to->cap) {
        to->cap = to->cap ? 2 * to->cap : 4;
        struct node **list = arena_alloc(p->arena, to->cap * sizeof *list);
        if (to->n)
            memcpy(list, to->list, to->n * sizeof *list);
        to->list = list;
    }
    to->list[to->n++] = item;
}

bool jinja_at_name(const struct parser *p, const char *name)
{
    return p->next->kind == T_NAME && str_eqs(p->next->text, name);
}

bool jinja_skip_name(struct parser *p, const char *name)
{
    bool there = jinja_at_name(p, name);
    p->next += there;
    return there;
}

bool jinja_at_op(const struct parser *p, enum op op)
{
    return p->next->kind == T_OP && p->next->op == op;
}

bool jinja_skip_op(struct parser *p, enum op op)
{
    bool there = jinja_at_op(p, op);
    p->next += there;
    return there;
}

static void unexpected(struct parser *p, const char *wanted)
{
    struct str t = p->next->text;
    if (p->next == p->end)
        jinja_syntax(p, "expected %s, but the template ends here", wanted);
    else
        jinja_syntax(p, "expected %s, not '%.*s'", wanted, t.n > 40 ? 40 : (int)t.n, t.p);
}

void jinja_expect_op(struct parser *p, enum op op, const char *spelling)
{
    if (!jinja_skip_op(p, op))
        unexpected(p, spelling);
}

struct str jinja_expect_name(struct parser *p, const char *what)
{
    if (p->next->kind != T_NAME) {
        unexpected(p, what);
        return (struct str){"", 0};
    }
    return p->next++->text;
}

bool jinja_enter(struct parser *p)
{
    if (p->depth >= JINJA_PARSE_DEPTH)
        jinja_refuse(p, ERR_LIMIT, "nested deeper than %d levels", JINJA_PARSE_DEPTH);
    if (p->code)
        return false;
    p->depth++;
    return true;
}

static void expect_block_end(struct parser *p)
{
    if (p->next->kind == T_BLOCK_END)
        p->next++;
    else
        unexpected(p, "the end of the tag");
}

static struct node *parse_body(struct parser *p, const char *const *ends, const char **end);

/* A body that ends with {% end %}; behind that tag. */
static struct node *body_until(struct parser *p, const char *end)
{
    const char *const ends[] = {end, NULL};
    const char *found;
    struct node *body = parse_body(p, ends, &found);
    expect_block_end(p);
    return body;
}

static struct node *parse_if(struct parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct node *n = jinja_node(p, N_IF);
    const char *end = "elif";
    while (!p->code && strcmp(end, "elif") == 0) {
        struct node *branch = jinja_node(p, N_BRANCH);
        branch->a = jinja_parse_tuple(p, jinja_parse_or, NULL);
        expect_block_end(p);
        branch->b = parse_body(p, ends, &end);
        jinja_append(p, n, branch);
    }
    if (strcmp(end, "else") == 0) {
        expect_block_end(p);
        n->c = body_until(p, "endif");
    } else {
        expect_block_end(p);
    }
    return n;
}

static struct node *parse_for(struct parser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    struct node *n = jinja_node(p, N_FOR);
    const char *end = "";
    n->a = jinja_parse_target(p, false);
    if (n->a->kind == N_NAME && str_eqs(n->a->name, "loop"))
        jinja_syntax(p, "the name `loop` is taken in a loop");
    if (!jinja_skip_name(p, "in"))
        unexpected(p, "'in'");
    n->b = jinja_parse_tuple(p, jinja_parse_or, "recursive");
    if (jinja_skip_name(p, "if"))
        n->d = jinja_parse_expr(p);
    if (jinja_skip_name(p, "recursive"))
        n->op = OP_RECURSIVE;
    expect_block_end(p);
    p->loops++;
    n->c = parse_body(p, ends, &end);
    p->loops--;
    expect_block_end(p);
    if (strcmp(end, "else") == 0)
        n->e = body_until(p, "endfor");
    return n;
}

static struct node *parse_set(struct parser *p)
{
    struct node *n = jinja_node(p, N_SET);
    n->a = jinja_parse_target(p, true);
    if (jinja_skip_op(p, OP_ASSIGN)) {
        n->b = jinja_parse_tuple(p, jinja_parse_expr, NULL);
        expect_block_end(p);
        return n;
    }
    n->kind = N_SET_BLOCK;
    n->b = jinja_parse_filters(p, jinja_node(p, N_CAPTURED), false);
    expect_block_end(p);
    n->c = body_until(p, "endset");
    return n;
}

/* (a, b=1): N_PARAM nodes appended to n. */
static void parse_params(struct parser *p, struct node *n)
{
    jinja_expect_op(p, OP_LPAREN, "'('");
    while (!p->code && !jinja_skip_op(p, OP_RPAREN)) {
        if (n->n)
            jinja_expect_op(p, OP_COMMA, "',' or ')'");
        struct node *param = jinja_node(p, N_PARAM);
        param->name = jinja_expect_name(p, "the name of a parameter");
        if (jinja_skip_op(p, OP_ASSIGN))
            param->a = jinja_parse_expr(p);
        else if (n->n && n->list[n->n - 1]->a)
            jinja_syntax(p, "a parameter without a default follows one with a default");
        jinja_append(p, n, param);
    }
}

/* break and continue do not reach out of the bodies of macros. */
static struct node *separate_body(struct parser *p, const char *end)
{
    int loops = p->loops;
    p->loops = 0;
    struct node *body = body_until(p, end);
    p->loops = loops;
    return body;
}

static struct node *parse_macro(struct parser *p)
{
    struct node *n = jinja_node(p, N_MACRO);
    n->name = jinja_expect_name(p, "the name of the macro");
    parse_params(p, n);
    expect_block_end(p);
    n->c = separate_body(p, "endmacro");
    return n;
}

static struct node *parse_call(struct parser *p)
{
    struct node *n = jinja_node(p, N_CALL_BLOCK);
    n->name = (struct str){"caller", 6};
    if (jinja_at_op(p, OP_LPAREN))
        parse_params(p, n);
    n->a = jinja_parse_expr(p);
    if (n->a->kind != N_CALL)
        jinja_syntax(p, "expected the call of a macro");
    expect_block_end(p);
    n->c = separate_body(p, "endcall");
    return n;
}

static struct node *parse_filter_block(struct parser *p)
{
    struct node *n = jinja_node(p, N_FILTER_BLOCK);
    n->b = jinja_parse_filters(p, jinja_node(p, N_CAPTURED), true);
    expect_block_end(p);
    n->c = body_until(p, "endfilter");
    return n;
}

static struct node *parse_with(struct parser *p)
{
    struct node *n = jinja_node(p, N_WITH);
    while (!p->code && p->next->kind != T_BLOCK_END) {
        if (n->n)
            jinja_expect_op(p, OP_COMMA, "','");
        struct node *set = jinja_node(p, N_SET);
        set->a = jinja_parse_target(p, false);
        jinja_expect_op(p, OP_ASSIGN, "'='");
        set->b = jinja_parse_expr(p);
        jinja_append(p, n, set);
    }
    expect_block_end(p);
    n->c = body_until(p, "endwith");
    return n;
}

static struct node *parse_print(struct parser *p)
{
    struct node *n = jinja_node(p, N_BODY);
    while (!p->code && p->next->kind != T_BLOCK_END) {
        if (n->n)
            jinja_expect_op(p, OP_COMMA, "','");
        struct node *output = jinja_node(p, N_OUTPUT);
        output->a = jinja_parse_expr(p);
        jinja_append(p, n, output);
    }
    expect_block_end(p);
    return n;
}

/* Marks for training which text the assistant wrote; nothing to do when rendering. The body is a
 * call block in Transformers, so it has a scope of its own. */
static struct node *parse_generation(struct parser *p)
{
    struct node *n = jinja_node(p, N_WITH);
    expect_block_end(p);
    n->c = separate_body(p, "endgeneration");
    return n;
}

/* Nothing can be inherited from, so a block is its text. */
static struct node *parse_block(struct parser *p)
{
    struct node *n = jinja_node(p, N_WITH);
    jinja_expect_name(p, "the name of the block");
    jinja_skip_name(p, "scoped");
    expect_block_end(p);
    static const char *const ends[] = {"endblock", NULL};
    const char *end;
    int loops = p->loops;
    p->loops = 0;
    n->c = parse_body(p, ends, &end);
    p->loops = loops;
    if (p->next->kind == T_NAME)
        p->next++; /* the name again */
    expect_block_end(p);
    return n;
}

/* Tags of Jinja that need other templates or HTML. */
static struct node *parse_unsupported(struct parser *p)
{
    jinja_refuse(p, ERR_UNSUPPORTED,
                 "include, import, from, extends and autoescape are not for chat templates");
    return jinja_node(p, N_BODY);
}

static struct node *parse_jump(struct parser *p, enum node_kind kind)
{
    struct node *n = jinja_node(p, kind);
    if (!p->loops)
        jinja_syntax(p, "break and continue are for loops only");
    expect_block_end(p);
    return n;
}

static struct node *parse_break(struct parser *p)
{
    return parse_jump(p, N_BREAK);
}

static struct node *parse_continue(struct parser *p)
{
    return parse_jump(p, N_CONTINUE);
}

static const struct {
    const char *name;
    struct node *(*parse)(struct parser *p);
} statements[] = {
    {"if", parse_if},
    {"for", parse_for},
    {"set", parse_set},
    {"macro", parse_macro},
    {"call", parse_call},
    {"filter", parse_filter_block},
    {"with", parse_with},
    {"print", parse_print},
    {"break", parse_break},
    {"continue", parse_continue},
    {"generation", parse_generation},
    {"block", parse_block},
    {"include", parse_unsupported},
    {"import", parse_unsupported},
    {"from", parse_unsupported},
    {"extends", parse_unsupported},
    {"autoescape", parse_unsupported},
};

static struct node *parse_statement(struct parser *p)
{
    for (size_t i = 0; i < ARRAY_LEN(statements); i++)
        if (jinja_skip_name(p, statements[i].name))
            return statements[i].parse(p);
    if (p->next->kind == T_NAME)
        jinja_syntax(p, "the tag '%.*s' is unknown or not open here",
                     p->next->text.n > 40 ? 40 : (int)p->next->text.n, p->next->text.p);
    else
        unexpected(p, "the name of a tag");
    return jinja_node(p, N_BODY);
}

/* The end tag of the body, if it is one of `ends`: its name is taken, its T_BLOCK_END is not. */
static const char *skip_end(struct parser *p, const char *const *ends)
{
    for (; *ends; ends++)
        if (jinja_skip_name(p, *ends))
            return *ends;
    return NULL;
}

/* Statements up to a tag named in `ends` (which may be empty: up to the end of the template). */
static struct node *parse_body(struct parser *p, const char *const *ends, const char **end)
{
    struct node *body = jinja_node(p, N_BODY);
    *end = "";
    if (!jinja_enter(p))
        return body;
    while (!p->code && p->next->kind != T_END) {
        struct token *t = p->next++;
        struct node *n;
        if (t->kind == T_TEXT) {
            n = jinja_node(p, N_TEXT);
            n->value = jinja_string((struct string){t->text.p, t->text.n, NULL, true});
        } else if (t->kind == T_OUTPUT_BEGIN) {
            n = jinja_node(p, N_OUTPUT);
            n->a = jinja_parse_tuple(p, jinja_parse_expr, NULL);
            if (p->next->kind == T_OUTPUT_END)
                p->next++;
            else
                unexpected(p, "'}}'");
        } else {
            const char *found = skip_end(p, ends);
            if (found) {
                *end = found;
                p->depth--;
                return body;
            }
            n = parse_statement(p);
        }
        jinja_append(p, body, n);
    }
    if (ends[0] && !p->code)
        jinja_syntax(p, "the template ends, but {%% %s %%} is missing", ends[0]);
    p->depth--;
    return body;
}

int jinja_parse(struct arena *a, struct tokens *tokens, struct node **out, struct err *e)
{
    static const char *const none[] = {NULL};
    struct parser p = {
        .arena = a, .next = tokens->items, .end = tokens->items + tokens->n - 1, .err = e};
    const char *end;
    *out = parse_body(&p, none, &end);
    return p.code;
}
