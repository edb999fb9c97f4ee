/* tokenize.c - /tokenize and /detokenize, which vLLM and llama-server both have with other fields:
 * the field that is there decides the form. */
#include "server/service.h"

/* llama-server's piece: text, or the bytes when they are no whole characters. */
static void write_piece(struct jw *w, struct str piece)
{
    jw_key(w, "piece");
    if (utf8_valid(piece.p, piece.n)) {
        jw_strn(w, piece.p, piece.n);
        return;
    }
    jw_arr(w);
    for (size_t i = 0; i < piece.n; i++)
        jw_int(w, (unsigned char)piece.p[i]);
    jw_arr_end(w);
}

static void write_ids(struct jw *w, const struct served *m, const struct token_list *l,
                      bool with_pieces)
{
    jw_key(w, "tokens");
    jw_arr(w);
    for (size_t i = 0; i < l->n; i++) {
        if (!with_pieces) {
            jw_int(w, l->ids[i]);
            continue;
        }
        jw_obj(w);
        jw_kint(w, "id", l->ids[i]);
        write_piece(w, tokenizer_piece(m->model.tokenizer, l->ids[i], true));
        jw_obj_end(w);
    }
    jw_arr_end(w);
}

static void write_tokens(struct buf *out, const struct served *m, const struct chat_request *r,
                         const struct token_list *l)
{
    struct jw w;
    jw_init(&w, out);
    jw_obj(&w);
    if (!r->content_form) {
        jw_kuint(&w, "count", l->n);
        jw_kint(&w, "max_model_len", m->model.n_ctx);
    }
    write_ids(&w, m, l, r->with_pieces);
    if (r->return_token_strs) {
        jw_key(&w, "token_strs");
        jw_arr(&w);
        for (size_t i = 0; i < l->n; i++) {
            struct str s = tokenizer_vocab(m->model.tokenizer, l->ids[i]);
            jw_strn(&w, s.p, s.n);
        }
        jw_arr_end(&w);
    }
    jw_obj_end(&w);
    jw_done(&w);
}

void handle_tokenize(struct exchange *x)
{
    struct chat_request r = {0};
    struct token_list ids = {0};
    struct buf body = {0};
    struct err e = {0};
    const struct served *m;
    if (openai_parse(&r, OPENAI_TOKENIZE, x->http->body.p, x->http->body.n, &e)) {
        answer_err(x, &e);
    } else if ((m = served_or_wait(x, r.model, NULL))) {
        int rc = r.messages ? prompt_from_messages(m, &r, &ids, &e)
                            : prompt_from_raw(m, &r, &r.prompts[0], &ids, &e);
        if (rc) {
            answer_err(x, &e);
        } else {
            write_tokens(&body, m, &r, &ids);
            answer_json(x, 200, &body);
        }
    }
    buf_release(&body);
    token_list_release(&ids);
    chat_request_release(&r);
}

static int read_ids(const json_t *v, int n_vocab, struct token_list *out, struct err *e)
{
    if (!json_is_array(v))
        return err_param(e, ERR_INVALID, "tokens", "'tokens' must be an array of token ids");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *id = json_array_get(v, i);
        json_int_t n = json_integer_value(id);
        if (!json_is_integer(id) || n < 0 || n >= n_vocab)
            return err_param(e, ERR_INVALID, "tokens",
                             "'tokens' must hold token ids from 0 to %d, element %zu does not",
                             n_vocab - 1, i);
        token_list_add(out, (int32_t)n);
    }
    return 0;
}

/* Both answers in one: `prompt` is vLLM's, `content` llama-server's. */
static void answer_text(struct exchange *x, const struct served *m, const struct token_list *ids)
{
    struct buf text = {0}, body = {0};
    struct jw w;
    tokenizer_decode(m->model.tokenizer, ids->ids, ids->n, true, &text);
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kstrn(&w, "prompt", buf_str(&text), text.len);
    jw_kstrn(&w, "content", buf_str(&text), text.len);
    jw_obj_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
    buf_release(&text);
}

void handle_detokenize(struct exchange *x)
{
    struct err e = {0};
    struct token_list ids = {0};
    json_t *root = jr_parse(x->http->body.p, x->http->body.n, &e);
    if (root && !json_is_object(root))
        err_set(&e, ERR_INVALID, "the body must be a JSON object");
    const struct served *m =
        e.code ? NULL : served_or_wait(x, json_string_value(json_object_get(root, "model")), NULL);
    if (e.code || (m && read_ids(json_object_get(root, "tokens"),
                                 tokenizer_n_vocab(m->model.tokenizer), &ids, &e)))
        answer_err(x, &e);
    else if (m)
        answer_text(x, m, &ids);
    token_list_release(&ids);
    json_decref(root);
}
