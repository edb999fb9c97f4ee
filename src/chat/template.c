#define _GNU_SOURCE /* newlocale */
#include "chat/template.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "chat/jinja.h"

struct template
{
    struct arena arena; /* source and tree */
    struct str source;
    struct node *body;
    locale_t locale; /* for the case of letters beyond ASCII */
};

int template_new(struct template **out, const char *source, size_t n, struct err *e)
{
    struct template *t = xcalloc(1, sizeof *t);
    struct tokens tokens;
    t->source = (struct str){arena_strdup(&t->arena, (struct str){source, n}), n};
    int rc = jinja_lex(&t->arena, (struct str){source, n}, &tokens, e);
    if (!rc)
        rc = jinja_parse(&t->arena, &tokens, &t->body, e);
    if (rc) {
        template_free(t);
        return rc;
    }
    t->locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    *out = t;
    return 0;
}

struct str template_source(const struct template *t)
{
    return t->source;
}

void template_free(struct template *t)
{
    if (!t)
        return;
    if (t->locale)
        freelocale(t->locale);
    arena_release(&t->arena);
    free(t);
}

void template_output_release(struct template_output *o)
{
    if (!o)
        return;
    buf_release(&o->text);
    free(o->spans);
    *o = (struct template_output){0};
}

static void bind_json(struct run *r, struct scope *s, const char *name, const json_t *j)
{
    jinja_bind(r, s, str_of(name), j ? jinja_from_json(r, j, false) : jinja_none());
}

/* As apply_chat_template does: special tokens, then what the caller adds, then the conversation,
 * which nothing can replace. */
static void bind_vars(struct run *r, struct scope *s, const struct template_vars *v)
{
    const char *key;
    json_t *value;
    if (v->bos_token)
        jinja_bind(r, s, STR("bos_token"), jinja_string(jinja_trusted(v->bos_token)));
    if (v->eos_token)
        jinja_bind(r, s, STR("eos_token"), jinja_string(jinja_trusted(v->eos_token)));
    json_object_foreach((json_t *)v->kwargs, key, value) bind_json(r, s, key, value);
    bind_json(r, s, "messages", v->messages);
    bind_json(r, s, "tools", v->tools);
    bind_json(r, s, "documents", v->documents);
    jinja_bind(r, s, STR("add_generation_prompt"), jinja_bool(v->add_generation_prompt));
}

static void make_spans(const struct builder *b, struct template_output *out)
{
    size_t n = 0;
    for (size_t i = 0; i < b->n; i++)
        n += i == 0 || b->marks[i] != b->marks[i - 1];
    out->spans = xcalloc(n ? n : 1, sizeof *out->spans);
    for (size_t i = 0; i < b->n; i++) {
        if (i == 0 || b->marks[i] != b->marks[i - 1])
            out->spans[out->n_spans++].trusted = b->marks[i];
        out->spans[out->n_spans - 1].end = i + 1;
    }
}

int template_render(const struct template *t, const struct template_vars *v,
                    struct template_output *out, struct err *e)
{
    struct run r = {.err = e, .locale = t->locale, .now_unix_s = v->now_unix_s, .line = 1};
    struct builder text = {.run = &r};
    r.out = &text;
    r.captured = jinja_none();
    struct scope *globals = jinja_scope(&r, NULL);
    bind_vars(&r, globals, v);
    if (!r.code)
        jinja_exec(&r, globals, t->body);
    if (!r.code) {
        *out = (struct template_output){0};
        buf_add(&out->text, text.p, text.n);
        make_spans(&text, out);
    }
    arena_release(&r.arena);
    return r.code;
}
