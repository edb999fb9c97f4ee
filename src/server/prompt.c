/* prompt.c - what a request says, as the tokens that the model reads. Any thread. */
#include <string.h>

#include "base/mem.h"
#include "server/service.h"

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static struct str trim(struct str s)
{
    while (s.n && is_space(s.p[0]))
        s = (struct str){s.p + 1, s.n - 1};
    while (s.n && is_space(s.p[s.n - 1]))
        s.n--;
    return s;
}

/* The last occurrence of needle in text, or SIZE_MAX. */
static size_t find_last(const struct buf *text, struct str needle)
{
    for (size_t i = text->len - needle.n + 1; needle.n <= text->len && i-- > 0;)
        if (memcmp(text->data + i, needle.p, needle.n) == 0)
            return i;
    return SIZE_MAX;
}

/* continue_final_message: the prompt ends where the last message ends, as in Transformers'
 * apply_chat_template. */
static int cut_after_last_message(const struct chat_request *r, const struct buf *text, size_t *end,
                                  struct err *e)
{
    const json_t *last = json_array_get(r->messages, json_array_size(r->messages) - 1);
    const json_t *content = json_object_get(last, "content");
    struct str whole = {json_string_value(content), json_string_length(content)};
    struct str bare = trim(whole);
    size_t at = bare.n ? find_last(text, bare) : SIZE_MAX;
    if (at == SIZE_MAX)
        return err_param(e, ERR_INVALID, "continue_final_message",
                         "'continue_final_message' cannot be used: the model's template changes or "
                         "drops the last message");
    /* trailing space counts if the template kept it */
    size_t n_left = (size_t)(whole.p + whole.n - bare.p);
    bool kept = text->len - at >= n_left && memcmp(text->data + at, bare.p, n_left) == 0;
    *end = at + (kept ? n_left : bare.n);
    return 0;
}

static int encode_spans(const struct served *m, const struct chat_request *r,
                        const struct template_output *o, size_t end, struct token_list *out,
                        struct err *e)
{
    struct tok_span *spans = xcalloc(o->n_spans + 1, sizeof *spans);
    size_t n = 0, begin = 0;
    for (size_t i = 0; i < o->n_spans && begin < end; i++) {
        size_t to = o->spans[i].end < end ? o->spans[i].end : end;
        spans[n++] = (struct tok_span){{o->text.data + begin, to - begin}, o->spans[i].trusted};
        begin = to;
    }
    int rc = tokenizer_encode(m->model.tokenizer, spans, n, r->add_special ? TOK_ADD_SPECIAL : 0,
                              out, e);
    free(spans);
    return rc;
}

int prompt_from_messages(const struct served *m, const struct chat_request *r,
                         struct token_list *out, struct err *e)
{
    if (!m->model.chat_template)
        return err_param(e, ERR_UNSUPPORTED, "model",
                         "the model %s has no chat template: use /v1/completions", m->name);
    if (r->tools && !m->knows_tools)
        return err_param(
            e, ERR_UNSUPPORTED, "tools",
            "the chat template of %s has no place for tools: leave 'tools' out, or use "
            "a model that was made for them",
            m->name);
    struct template_vars vars = {
        .messages = r->messages,
        .tools = r->tools,
        .documents = r->documents,
        .kwargs = r->kwargs,
        .bos_token = m->bos,
        .eos_token = m->eos,
        .add_generation_prompt = r->add_generation_prompt,
        .now_unix_s = clock_unix_s(),
    };
    struct template_output o = {0};
    struct err why = {0};
    int rc = template_render(m->model.chat_template, &vars, &o, &why);
    if (rc)
        rc = err_param(e, rc, "messages", "the chat template of %s refused the messages: %.300s",
                       m->name, why.msg);
    size_t end = o.text.len;
    if (!rc && r->continue_final)
        rc = cut_after_last_message(r, &o.text, &end, e);
    if (!rc)
        rc = encode_spans(m, r, &o, end, out, e);
    template_output_release(&o);
    return rc;
}

int prompt_from_raw(const struct served *m, const struct chat_request *r,
                    const struct gen_prompt *p, struct token_list *out, struct err *e)
{
    if (p->ids) {
        int32_t n_vocab = tokenizer_n_vocab(m->model.tokenizer);
        for (size_t i = 0; i < p->n_ids; i++) {
            if (p->ids[i] >= n_vocab)
                return err_param(e, ERR_INVALID, "prompt",
                                 "token id %d is not in the vocabulary of %d", p->ids[i], n_vocab);
            token_list_add(out, p->ids[i]);
        }
        return 0;
    }
    struct tok_span span = {p->text, r->parse_special};
    return tokenizer_encode(m->model.tokenizer, &span, 1, r->add_special ? TOK_ADD_SPECIAL : 0, out,
                            e);
}
