#include "api/openai.h"
#include "base/json.h"

int openai_status(int err_code)
{
    static const struct {
        int code, status;
    } table[] = {
        {ERR_INVALID, 400},  {ERR_UNSUPPORTED, 400}, {ERR_LIMIT, 400},  {ERR_DENIED, 403},
        {ERR_NOTFOUND, 404}, {ERR_EXISTS, 409},      {ERR_BUSY, 503},   {ERR_CANCELED, 503},
        {ERR_NOMEM, 503},    {ERR_TIMEOUT, 504},     {ERR_FORMAT, 500}, {ERR_IO, 500},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].code == err_code)
            return table[i].status;
    return 500;
}

static const char *error_type(int status)
{
    static const struct {
        int status;
        const char *type;
    } table[] = {
        {401, "authentication_error"}, {403, "permission_error"},          {408, "timeout_error"},
        {429, "rate_limit_error"},     {503, "service_unavailable_error"}, {504, "timeout_error"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].status == status)
            return table[i].type;
    return status < 500 ? "invalid_request_error" : "server_error";
}

void openai_write_error(struct buf *out, int status, const char *code, const struct err *e)
{
    struct jw w;
    jw_init(&w, out);
    jw_obj(&w);
    jw_key(&w, "error");
    jw_obj(&w);
    jw_kstr(&w, "message", e->msg);
    jw_kstr(&w, "type", error_type(status));
    jw_kstr(&w, "param", e->param[0] ? e->param : NULL);
    jw_kstr(&w, "code", code);
    jw_obj_end(&w);
    jw_obj_end(&w);
    jw_done(&w);
}

static void write_usage(struct jw *w, const struct openai_usage *u)
{
    jw_key(w, "usage");
    jw_obj(w);
    jw_kint(w, "prompt_tokens", u->prompt_tokens);
    jw_kint(w, "completion_tokens", u->completion_tokens);
    jw_kint(w, "total_tokens", (int64_t)u->prompt_tokens + u->completion_tokens);
    jw_key(w, "prompt_tokens_details");
    jw_obj(w);
    jw_kint(w, "cached_tokens", u->cached_tokens);
    jw_obj_end(w);
    jw_obj_end(w);
}

/* ---- logprobs ---- */

static void write_token(struct jw *w, const struct openai_token *t)
{
    jw_kstrn(w, "token", t->text.p, t->text.n);
    jw_knum(w, "logprob", t->logprob);
    jw_key(w, "bytes");
    jw_arr(w);
    for (size_t i = 0; i < t->text.n; i++)
        jw_int(w, (unsigned char)t->text.p[i]);
    jw_arr_end(w);
}

static void write_chat_logprobs(struct jw *w, const struct openai_logprobs *l)
{
    jw_obj(w);
    jw_key(w, "content");
    jw_arr(w);
    for (size_t i = 0; i < l->n_tokens; i++) {
        const struct openai_token *row = l->tokens + i * (size_t)(1 + l->n_top);
        jw_obj(w);
        write_token(w, row);
        jw_key(w, "top_logprobs");
        jw_arr(w);
        for (int k = 1; k <= l->n_top; k++) {
            jw_obj(w);
            write_token(w, row + k);
            jw_obj_end(w);
        }
        jw_arr_end(w);
        jw_obj_end(w);
    }
    jw_arr_end(w);
    jw_knull(w, "refusal");
    jw_obj_end(w);
}

static size_t characters(struct str s)
{
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++)
        n += (s.p[i] & 0xc0) != 0x80;
    return n;
}

/* A key may come once in an object: alternatives whose bytes read the same keep the likelier. */
static bool seen_before(const struct openai_token *row, int k)
{
    for (int i = 1; i < k; i++)
        if (str_eq(row[i].text, row[k].text))
            return true;
    return false;
}

static void write_top_logprobs(struct jw *w, const struct openai_logprobs *l)
{
    for (size_t i = 0; i < l->n_tokens; i++) {
        const struct openai_token *row = l->tokens + i * (size_t)(1 + l->n_top);
        jw_obj(w);
        for (int k = 1; k <= l->n_top; k++) {
            if (seen_before(row, k))
                continue;
            struct buf key = {0}; /* a piece may hold any byte, a key is a C string */
            buf_add(&key, row[k].text.p, row[k].text.n);
            jw_key(w, buf_str(&key));
            buf_release(&key);
            jw_num(w, row[k].logprob);
        }
        jw_obj_end(w);
    }
}

/* The older form: parallel arrays. */
static void write_completion_logprobs(struct jw *w, const struct openai_logprobs *l)
{
    size_t stride = (size_t)(1 + l->n_top), offset = l->text_offset;
    jw_obj(w);
    jw_key(w, "tokens");
    jw_arr(w);
    for (size_t i = 0; i < l->n_tokens; i++)
        jw_strn(w, l->tokens[i * stride].text.p, l->tokens[i * stride].text.n);
    jw_arr_end(w);
    jw_key(w, "token_logprobs");
    jw_arr(w);
    for (size_t i = 0; i < l->n_tokens; i++)
        jw_num(w, l->tokens[i * stride].logprob);
    jw_arr_end(w);
    jw_key(w, "top_logprobs");
    jw_arr(w);
    write_top_logprobs(w, l);
    jw_arr_end(w);
    jw_key(w, "text_offset");
    jw_arr(w);
    for (size_t i = 0; i < l->n_tokens; i++) {
        jw_uint(w, offset);
        offset += characters(l->tokens[i * stride].text);
    }
    jw_arr_end(w);
    jw_obj_end(w);
}

static void write_logprobs(struct jw *w, const struct openai_head *h,
                           const struct openai_logprobs *l)
{
    jw_key(w, "logprobs");
    if (!l)
        jw_null(w);
    else if (h->endpoint == OPENAI_CHAT)
        write_chat_logprobs(w, l);
    else
        write_completion_logprobs(w, l);
}

/* ---- choices ---- */

static void write_head(struct jw *w, const struct openai_head *h, const char *object)
{
    jw_kstr(w, "id", h->id);
    jw_kstr(w, "object", object);
    jw_kint(w, "created", h->created);
    jw_kstr(w, "model", h->model);
    jw_kstr(w, "system_fingerprint", h->fingerprint);
}

/* vLLM's extra, only when there is something to say. */
static void write_stop_reason(struct jw *w, const struct openai_choice *c)
{
    if (c->stop_text.p)
        jw_kstrn(w, "stop_reason", c->stop_text.p, c->stop_text.n);
    else if (c->stop_id >= 0)
        jw_kint(w, "stop_reason", c->stop_id);
}

/* Only chunks have the index. */
static void write_calls(struct jw *w, const struct openai_choice *c, bool with_index)
{
    jw_key(w, "tool_calls");
    jw_arr(w);
    for (size_t i = 0; i < c->n_calls; i++) {
        const struct openai_call *call = &c->calls[i];
        jw_obj(w);
        if (with_index)
            jw_kint(w, "index", call->index);
        jw_kstr(w, "id", call->id);
        jw_kstr(w, "type", "function");
        jw_key(w, "function");
        jw_obj(w);
        jw_kstr(w, "name", call->name);
        jw_kstr(w, "arguments", call->arguments);
        jw_obj_end(w);
        jw_obj_end(w);
    }
    jw_arr_end(w);
}

static void write_message(struct jw *w, const struct openai_choice *c)
{
    jw_key(w, "message");
    jw_obj(w);
    jw_kstr(w, "role", "assistant");
    if (c->n_calls && !c->text.n)
        jw_knull(w, "content");
    else
        jw_kstrn(w, "content", c->text.p, c->text.n);
    if (c->reasoning.n)
        jw_kstrn(w, "reasoning_content", c->reasoning.p, c->reasoning.n);
    jw_knull(w, "refusal");
    if (c->n_calls)
        write_calls(w, c, false);
    jw_obj_end(w);
}

static void write_choice(struct jw *w, const struct openai_head *h, const struct openai_choice *c)
{
    jw_obj(w);
    jw_kint(w, "index", c->index);
    if (h->endpoint == OPENAI_CHAT) {
        write_message(w, c);
    } else {
        jw_kstrn(w, "text", c->text.p, c->text.n);
    }
    write_logprobs(w, h, c->logprobs);
    jw_kstr(w, "finish_reason", c->finish);
    write_stop_reason(w, c);
    jw_obj_end(w);
}

void openai_write_response(struct buf *out, const struct openai_head *h,
                           const struct openai_choice *choices, size_t n,
                           const struct openai_usage *usage)
{
    struct jw w;
    jw_init(&w, out);
    jw_obj(&w);
    write_head(&w, h, h->endpoint == OPENAI_CHAT ? "chat.completion" : "text_completion");
    jw_key(&w, "choices");
    jw_arr(&w);
    for (size_t i = 0; i < n; i++)
        write_choice(&w, h, &choices[i]);
    jw_arr_end(&w);
    write_usage(&w, usage);
    jw_obj_end(&w);
    jw_done(&w);
}

/* ---- chunks ---- */

static void chunk_begin(struct jw *w, struct buf *out, const struct openai_head *h)
{
    jw_init(w, out);
    jw_obj(w);
    write_head(w, h, h->endpoint == OPENAI_CHAT ? "chat.completion.chunk" : "text_completion");
    jw_key(w, "choices");
    jw_arr(w);
}

static void chunk_end(struct jw *w, const struct openai_head *h, const struct openai_usage *usage)
{
    jw_arr_end(w);
    if (usage)
        write_usage(w, usage);
    else if (h->usage_null)
        jw_knull(w, "usage");
    jw_obj_end(w);
    jw_done(w);
}

void openai_write_role(struct buf *out, const struct openai_head *h, int index)
{
    struct jw w;
    chunk_begin(&w, out, h);
    jw_obj(&w);
    jw_kint(&w, "index", index);
    jw_key(&w, "delta");
    jw_obj(&w);
    jw_kstr(&w, "role", "assistant");
    jw_kstr(&w, "content", "");
    jw_obj_end(&w);
    jw_knull(&w, "finish_reason");
    jw_obj_end(&w);
    chunk_end(&w, h, NULL);
}

static void write_delta(struct jw *w, const struct openai_head *h, const struct openai_choice *c,
                        bool final)
{
    jw_obj(w);
    jw_kint(w, "index", c->index);
    if (h->endpoint == OPENAI_CHAT) {
        jw_key(w, "delta");
        jw_obj(w);
        if (!final && (c->text.n || (!c->n_calls && !c->reasoning.n)))
            jw_kstrn(w, "content", c->text.p, c->text.n);
        if (c->reasoning.n)
            jw_kstrn(w, "reasoning_content", c->reasoning.p, c->reasoning.n);
        if (c->n_calls)
            write_calls(w, c, true);
        jw_obj_end(w);
    } else {
        jw_kstrn(w, "text", c->text.p, final ? 0 : c->text.n);
    }
    if (c->logprobs && !final)
        write_logprobs(w, h, c->logprobs);
    jw_kstr(w, "finish_reason", final ? c->finish : NULL);
    if (final)
        write_stop_reason(w, c);
    jw_obj_end(w);
}

void openai_write_text(struct buf *out, const struct openai_head *h, const struct openai_choice *c,
                       const struct openai_usage *usage)
{
    struct jw w;
    chunk_begin(&w, out, h);
    write_delta(&w, h, c, false);
    chunk_end(&w, h, usage);
}

void openai_write_finish(struct buf *out, const struct openai_head *h,
                         const struct openai_choice *c, const struct openai_usage *usage)
{
    struct jw w;
    chunk_begin(&w, out, h);
    write_delta(&w, h, c, true);
    chunk_end(&w, h, usage);
}

void openai_write_usage(struct buf *out, const struct openai_head *h,
                        const struct openai_usage *usage)
{
    struct jw w;
    chunk_begin(&w, out, h);
    chunk_end(&w, h, usage);
}
