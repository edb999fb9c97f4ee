#include "chat/jinja.h"

#include <string.h>

static void exec_text(struct run *r, const struct node *n)
{
    jinja_add(r->out, n->value.s);
    if (r->out->n > JINJA_OUTPUT_BYTES)
        jinja_fail(r, ERR_LIMIT, "the prompt is longer than %d MiB", JINJA_OUTPUT_BYTES >> 20);
}

static void exec_output(struct run *r, struct scope *s, const struct node *n)
{
    jinja_print(r->out, jinja_eval(r, s, n->a));
    if (r->out->n > JINJA_OUTPUT_BYTES)
        jinja_fail(r, ERR_LIMIT, "the prompt is longer than %d MiB", JINJA_OUTPUT_BYTES >> 20);
}

static enum flow exec_body(struct run *r, struct scope *s, const struct node *n)
{
    enum flow flow = FLOW_NEXT;
    for (size_t i = 0; i < n->n && !r->code && flow == FLOW_NEXT; i++)
        flow = jinja_exec(r, s, n->list[i]);
    return flow;
}

static enum flow exec_if(struct run *r, struct scope *s, const struct node *n)
{
    for (size_t i = 0; i < n->n && !r->code; i++)
        if (jinja_truth(jinja_eval(r, s, n->list[i]->a)))
            return r->code ? FLOW_NEXT : jinja_exec(r, s, n->list[i]->b);
    return n->c && !r->code ? jinja_exec(r, s, n->c) : FLOW_NEXT;
}

static void assign(struct run *r, struct scope *s, const struct node *target, struct value v);

static void assign_tuple(struct run *r, struct scope *s, const struct node *target, struct value v)
{
    struct value items = jinja_list_of(r, v, V_LIST);
    if (!r->code && items.seq->n != target->n)
        jinja_fail(r, ERR_FORMAT, "cannot unpack %zu values into %zu names", items.seq->n,
                   target->n);
    for (size_t i = 0; i < target->n && !r->code; i++)
        assign(r, s, target->list[i], items.seq->items[i]);
}

static void assign(struct run *r, struct scope *s, const struct node *target, struct value v)
{
    if (r->code)
        return;
    if (target->kind == N_NAME) {
        jinja_bind(r, s, target->name, v);
        return;
    }
    if (target->kind == N_TUPLE) {
        assign_tuple(r, s, target, v);
        return;
    }
    struct value *of = jinja_lookup(s, target->a->name);
    if (!of || of->kind != V_NAMESPACE) {
        jinja_fail(r, ERR_FORMAT, "cannot set an attribute of '%.*s': it is no namespace",
                   (int)target->a->name.n, target->a->name.p);
        return;
    }
    if (target->name.p[0] == '_') {
        jinja_fail(r, ERR_FORMAT, "attributes of a namespace cannot begin with an underscore");
        return;
    }
    struct string name = {target->name.p, target->name.n, NULL, true};
    jinja_put(r, of->dict, jinja_string(name), v);
}

/* ---- for ---- */

/* What is looped over, as items that `loop` can look around in; those that fail the `if` are left
 * out before the loop begins to count. */
static struct value loop_items(struct run *r, struct scope *s, const struct node *n,
                               struct value over)
{
    struct value item;
    if (r->code || !n->d)
        return jinja_list_of(r, over, V_LIST);
    struct value kept = jinja_seq(r, V_LIST);
    for (struct iter it = jinja_iter(r, over); jinja_next(&it, &item);) {
        struct scope *inner = jinja_scope(r, s);
        assign(r, inner, n->a, item);
        if (jinja_truth(jinja_eval(r, inner, n->d)))
            jinja_push(r, kept, item);
    }
    return kept;
}

static void run_loop(struct run *r, struct scope *s, const struct node *n, struct value over,
                     int64_t depth)
{
    struct value items = loop_items(r, s, n, over);
    if (r->code)
        return;
    struct loop *loop = jinja_new(r, sizeof *loop);
    *loop = (struct loop){
        .node = n, .scope = s, .items = items.seq->items, .n = items.seq->n, .depth = depth};
    enum flow flow = FLOW_NEXT;
    for (; loop->i < loop->n && flow != FLOW_BREAK && jinja_charge(r, 1); loop->i++) {
        struct scope *inner = jinja_scope(r, s);
        assign(r, inner, n->a, loop->items[loop->i]);
        jinja_bind(r, inner, STR("loop"), (struct value){.kind = V_LOOP, .loop = loop});
        flow = jinja_exec(r, inner, n->c);
    }
    if (n->e && loop->n == 0)
        jinja_exec(r, jinja_scope(r, s), n->e);
}

/* loop(items) in a recursive loop: the same body over other items, as text. */
struct value jinja_call_loop(struct run *r, struct loop *l, struct args *a)
{
    struct builder text = {.run = r}, *outer = r->out;
    if (l->node->op != OP_RECURSIVE || a->n != 1)
        jinja_fail(r, ERR_FORMAT, "loop() needs one argument, in a loop marked `recursive`");
    if (!jinja_descend(r))
        return jinja_none();
    r->out = &text;
    run_loop(r, l->scope, l->node, a->pos[0], l->depth + 1);
    r->out = outer;
    r->depth--;
    return jinja_string(jinja_built(&text));
}

/* ---- blocks whose text is captured ---- */

static struct string capture(struct run *r, struct scope *s, const struct node *body,
                             enum flow *flow)
{
    struct builder text = {.run = r}, *outer = r->out;
    r->out = &text;
    *flow = jinja_exec(r, s, body);
    r->out = outer;
    return jinja_built(&text);
}

/* The text of n->c through the filters n->b. break and continue inside leave the block. */
static struct value filtered(struct run *r, struct scope *s, const struct node *n, enum flow *flow)
{
    struct string text = capture(r, jinja_scope(r, s), n->c, flow);
    r->captured = jinja_string(text);
    return jinja_eval(r, s, n->b);
}

static struct value bound_param(struct run *r, struct scope *s, const struct node *param)
{
    return param->a ? jinja_eval(r, s, param->a) : jinja_undefined(param->name.p, param->name.n);
}

/* Arguments to parameters. The keyword `caller` is there for the body of a call block. */
static void bind_params(struct run *r, struct scope *s, const struct node *n, struct args *a)
{
    if (a->n > n->n) {
        jinja_fail(r, ERR_FORMAT, "macro '%.*s' takes at most %zu arguments", (int)n->name.n,
                   n->name.p, n->n);
        return;
    }
    for (size_t i = 0; i < a->n; i++)
        jinja_bind(r, s, n->list[i]->name, a->pos[i]);
    for (size_t k = 0; k < a->n_keywords; k++) {
        struct str name = a->keywords[k].name;
        size_t i = 0;
        while (i < n->n && !str_eq(n->list[i]->name, name))
            i++;
        if ((i == n->n || i < a->n) && !str_eqs(name, "caller"))
            jinja_fail(r, ERR_FORMAT, "macro '%.*s' has no argument '%.*s', or has it twice",
                       (int)n->name.n, n->name.p, (int)name.n, name.p);
        jinja_bind(r, s, name, a->keywords[k].value);
    }
    for (size_t i = a->n; i < n->n && !r->code; i++) {
        bool given = false;
        for (size_t k = 0; k < a->n_keywords; k++)
            given |= str_eq(a->keywords[k].name, n->list[i]->name);
        if (!given)
            jinja_bind(r, s, n->list[i]->name, bound_param(r, s, n->list[i]));
    }
}

struct value jinja_call_macro(struct run *r, struct macro *m, struct args *a)
{
    enum flow flow;
    if (!jinja_descend(r))
        return jinja_none();
    struct scope *s = jinja_scope(r, m->scope);
    bind_params(r, s, m->node, a);
    struct string text = jinja_trusted("");
    if (!r->code)
        text = capture(r, s, m->node->c, &flow);
    r->depth--;
    return jinja_string(text);
}

static struct value make_macro(struct run *r, struct scope *s, const struct node *n)
{
    struct value v = {.kind = V_MACRO, .macro = jinja_new(r, sizeof(struct macro))};
    *v.macro = (struct macro){.node = n, .scope = s};
    return v;
}

/* The call with the block as one more argument, `caller`. */
static void exec_call_block(struct run *r, struct scope *s, const struct node *n)
{
    struct node keyword = {.kind = N_KEYWORD, .line = n->line, .name = STR("caller")};
    struct node block = {.kind = N_CONST, .line = n->line, .value = make_macro(r, s, n)};
    struct node call = *n->a;
    keyword.a = &block;
    call.list = jinja_alloc(r, (call.n + 1) * sizeof *call.list);
    if (!call.list)
        return;
    if (call.n)
        memcpy(call.list, n->a->list, call.n * sizeof *call.list);
    call.list[call.n++] = &keyword;
    jinja_print(r->out, jinja_eval(r, s, &call));
}

static enum flow exec_with(struct run *r, struct scope *s, const struct node *n)
{
    struct scope *inner = jinja_scope(r, s);
    for (size_t i = 0; i < n->n && !r->code; i++)
        assign(r, inner, n->list[i]->a, jinja_eval(r, s, n->list[i]->b));
    return r->code ? FLOW_NEXT : jinja_exec(r, inner, n->c);
}

static enum flow exec_kind(struct run *r, struct scope *s, const struct node *n)
{
    enum flow flow = FLOW_NEXT;
    switch (n->kind) {
    case N_TEXT:
        exec_text(r, n);
        break;
    case N_OUTPUT:
        exec_output(r, s, n);
        break;
    case N_BODY:
        return exec_body(r, s, n);
    case N_IF:
        return exec_if(r, s, n);
    case N_FOR:
        run_loop(r, s, n, jinja_eval(r, s, n->b), 1);
        break;
    case N_SET:
        assign(r, s, n->a, jinja_eval(r, s, n->b));
        break;
    case N_SET_BLOCK:
        assign(r, s, n->a, filtered(r, s, n, &flow));
        break;
    case N_FILTER_BLOCK:
        jinja_print(r->out, filtered(r, s, n, &flow));
        break;
    case N_MACRO:
        jinja_bind(r, s, n->name, make_macro(r, s, n));
        break;
    case N_CALL_BLOCK:
        exec_call_block(r, s, n);
        break;
    case N_WITH:
        return exec_with(r, s, n);
    case N_BREAK:
        return FLOW_BREAK;
    case N_CONTINUE:
        return FLOW_CONTINUE;
    default:
        BUG("node kind %d is no statement", n->kind);
    }
    return flow;
}

enum flow jinja_exec(struct run *r, struct scope *s, const struct node *n)
{
    if (!jinja_descend(r))
        return FLOW_NEXT;
    r->line = n->line;
    enum flow flow = exec_kind(r, s, n);
    r->depth--;
    return flow;
}
