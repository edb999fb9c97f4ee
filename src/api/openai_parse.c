#include "api/openai_parse.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/json.h"

void chat_request_release(struct chat_request *r)
{
    if (!r)
        return;
    json_decref(r->messages);
    json_decref(r->tools);
    json_decref(r->documents);
    json_decref(r->kwargs);
    json_decref(r->root);
    arena_release(&r->arena);
    *r = (struct chat_request){0};
}

/* The first characters of a string that is not what it should be. */
static void show_string(char *out, size_t room, const char *s, size_t n)
{
    size_t shown = n < 32 ? n : 32;
    shown -= utf8_cut(s, shown);
    snprintf(out, room, "\"%.*s%s\"", (int)shown, s, shown < n ? "..." : "");
}

int openai_bad(struct err *e, const char *name, const char *what, const json_t *got)
{
    static const char *const kinds[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};
    char shown[48] = "nothing";
    if (json_is_integer(got))
        snprintf(shown, sizeof shown, "%lld", (long long)json_integer_value(got));
    else if (json_is_real(got))
        snprintf(shown, sizeof shown, "%g", json_real_value(got));
    else if (json_is_string(got))
        show_string(shown, sizeof shown, json_string_value(got), json_string_length(got));
    else if (got)
        snprintf(shown, sizeof shown, "%s", kinds[json_typeof(got)]);
    return err_param(e, ERR_INVALID, name, "'%s' must be %s, got %s", name, what, shown);
}

int openai_refuse(struct chat_request *r, const char *param, const char *fmt, ...)
{
    char why[sizeof r->refused.msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    if (!r->refused.code)
        err_param(&r->refused, ERR_UNSUPPORTED, param, "%s", why);
    return 0;
}

bool openai_int(const json_t *v, int64_t lo, int64_t hi, int64_t *out)
{
    int64_t i;
    if (json_is_integer(v)) {
        i = json_integer_value(v);
    } else if (json_is_real(v)) {
        double d = json_real_value(v);
        if (!(fabs(d) < 9e15) || d != floor(d))
            return false;
        i = (int64_t)d;
    } else {
        return false;
    }
    if (i < lo || i > hi)
        return false;
    *out = i;
    return true;
}

static void *member(struct chat_request *r, const struct openai_param *p)
{
    return (char *)r + p->offset;
}

static void set_default(struct chat_request *r, const struct openai_param *p)
{
    if (p->type == PARAM_INT)
        *(int64_t *)member(r, p) = (int64_t)p->def;
    else if (p->type == PARAM_NUM)
        *(double *)member(r, p) = p->def;
    else if (p->type == PARAM_BOOL)
        *(bool *)member(r, p) = p->def != 0;
}

static int read_int(struct chat_request *r, const struct openai_param *p, const json_t *v,
                    struct err *e)
{
    char what[80];
    if (openai_int(v, (int64_t)p->lo, (int64_t)p->hi, member(r, p)))
        return 0;
    snprintf(what, sizeof what, "an integer from %.0f to %.0f", p->lo, p->hi);
    return openai_bad(e, p->name, what, v);
}

static int read_num(struct chat_request *r, const struct openai_param *p, const json_t *v,
                    struct err *e)
{
    char what[80];
    double d = json_number_value(v);
    if (json_is_number(v) && d >= p->lo && d <= p->hi && !(p->open && d == p->lo)) {
        *(double *)member(r, p) = d;
        return 0;
    }
    snprintf(what, sizeof what, "a number %s %g to %g", p->open ? "above" : "from", p->lo, p->hi);
    return openai_bad(e, p->name, what, v);
}

static bool is_accepted(const struct openai_param *p, const json_t *v)
{
    json_t *accept = jr_parse(p->accept, strlen(p->accept), NULL);
    bool harmless = false;
    for (size_t i = 0; i < json_array_size(accept); i++)
        harmless = harmless || json_equal(json_array_get(accept, i), v);
    json_decref(accept);
    return harmless;
}

static bool asks_nothing(const struct openai_param *p, const json_t *v)
{
    switch (p->type) {
    case PARAM_INT:
    case PARAM_NUM:
        return json_is_number(v) && json_number_value(v) == p->def;
    case PARAM_BOOL:
        return json_is_boolean(v) && json_is_true(v) == (p->def != 0);
    case PARAM_CUSTOM:
        return json_is_false(v) || (json_is_array(v) && json_array_size(v) == 0) ||
               (json_is_object(v) && json_object_size(v) == 0);
    case PARAM_REFUSED:
        return is_accepted(p, v);
    case PARAM_IGNORED:
        return true;
    }
    BUG("parameter %s has the type %d", p->name, p->type);
}

bool openai_asks_nothing(enum openai_endpoint endpoint, const char *name, const json_t *v)
{
    for (size_t i = 0; i < openai_n_params; i++)
        if ((openai_params[i].endpoints & endpoint) && strcmp(openai_params[i].name, name) == 0)
            return json_is_null(v) || asks_nothing(&openai_params[i], v);
    return json_is_null(v);
}

static int read_refused(struct chat_request *r, const struct openai_param *p, const json_t *v)
{
    if (is_accepted(p, v))
        return 0;
    return openai_refuse(
        r, p->name, "'%s' is not supported by this server with this value: leave it out", p->name);
}

static int read_field(struct chat_request *r, const struct openai_param *p, const json_t *v,
                      struct err *e)
{
    switch (p->type) {
    case PARAM_INT:
        return read_int(r, p, v, e);
    case PARAM_NUM:
        return read_num(r, p, v, e);
    case PARAM_BOOL:
        if (!json_is_boolean(v))
            return openai_bad(e, p->name, "true or false", v);
        *(bool *)member(r, p) = json_is_true(v);
        return 0;
    case PARAM_CUSTOM:
        return p->fn(r, p, v, e);
    case PARAM_REFUSED:
        return read_refused(r, p, v);
    case PARAM_IGNORED:
        return 0;
    }
    BUG("parameter %s has the type %d", p->name, p->type);
}

static bool given(const struct chat_request *r, const char *name)
{
    const json_t *v = json_object_get(r->root, name);
    return v && !json_is_null(v);
}

static void note_unknown(struct chat_request *r, enum openai_endpoint endpoint)
{
    const char *key;
    json_t *v;
    json_object_foreach(r->root, key, v)
    {
        size_t i = 0;
        while (i < openai_n_params && (!(openai_params[i].endpoints & endpoint) ||
                                       strcmp(openai_params[i].name, key) != 0))
            i++;
        if (i < openai_n_params)
            continue;
        if (r->n_unknown < API_MAX_UNKNOWN)
            r->unknown[r->n_unknown] = key;
        r->n_unknown++;
    }
}

/* What no single field can tell. */
static int check_chat(struct chat_request *r, struct err *e)
{
    if (!r->messages)
        return err_param(e, ERR_INVALID, "messages", "'messages' is missing");
    if (!r->continue_final)
        return 0;
    if (given(r, "add_generation_prompt") && r->add_generation_prompt)
        return err_param(e, ERR_INVALID, "continue_final_message",
                         "'continue_final_message' and 'add_generation_prompt' exclude each other");
    r->add_generation_prompt = false;
    const json_t *last = json_array_get(r->messages, json_array_size(r->messages) - 1);
    if (json_string_length(json_object_get(last, "content")) == 0)
        return err_param(e, ERR_INVALID, "continue_final_message",
                         "'continue_final_message' needs a last message with content");
    return 0;
}

static int check_completion(struct chat_request *r, struct err *e)
{
    if (!r->n_prompts)
        return err_param(e, ERR_INVALID, "prompt", "'prompt' is missing");
    if (r->echo && r->gen.n_logprobs >= 0)
        return openai_refuse(r, "logprobs",
                             "'logprobs' together with 'echo' is not supported: leave one out");
    return 0;
}

static int check_tokenize(struct chat_request *r, struct err *e)
{
    if (!!r->messages + given(r, "prompt") + given(r, "content") != 1)
        return err_param(e, ERR_INVALID, "prompt",
                         "give exactly one of 'prompt', 'messages' and 'content'");
    if (r->n_prompts > 1 || (r->n_prompts == 1 && r->prompts[0].ids))
        return err_param(e, ERR_INVALID, "prompt", "'prompt' must be one string");
    /* vLLM adds BOS to raw prompts only, llama-server not unless asked */
    if (!given(r, "add_special_tokens") && !given(r, "add_special"))
        r->add_special = given(r, "prompt");
    return r->messages ? check_chat(r, e) : 0;
}

static int check(struct chat_request *r, enum openai_endpoint endpoint, struct err *e)
{
    const struct gen_params *g = &r->gen;
    if (g->max_tokens && g->min_tokens > g->max_tokens)
        return err_param(e, ERR_INVALID, "min_tokens", "'min_tokens' is larger than 'max_tokens'");
    switch (endpoint) {
    case OPENAI_CHAT:
        return check_chat(r, e);
    case OPENAI_COMPLETION:
        return check_completion(r, e);
    case OPENAI_TOKENIZE:
        return check_tokenize(r, e);
    }
    BUG("endpoint %d", endpoint);
}

int openai_parse_any(struct chat_request *r, enum openai_endpoint endpoint, const char *body,
                     size_t n, struct err *e)
{
    r->root = jr_parse(body, n, e);
    if (!r->root)
        return ERR_INVALID;
    if (!json_is_object(r->root))
        return err_set(e, ERR_INVALID, "the body must be a JSON object");
    r->gen.n_logprobs = -1; /* chat has no row that could say so */
    for (size_t i = 0; i < openai_n_params; i++)
        if (openai_params[i].endpoints & endpoint)
            set_default(r, &openai_params[i]);
    for (size_t i = 0; i < openai_n_params; i++) {
        const struct openai_param *p = &openai_params[i];
        const json_t *v = p->endpoints & endpoint ? json_object_get(r->root, p->name) : NULL;
        if (!v || json_is_null(v))
            continue;
        int rc = read_field(r, p, v, e);
        if (rc)
            return rc;
    }
    note_unknown(r, endpoint);
    return check(r, endpoint, e);
}

int openai_parse(struct chat_request *r, enum openai_endpoint endpoint, const char *body, size_t n,
                 struct err *e)
{
    int rc = openai_parse_any(r, endpoint, body, n, e);
    return rc ? rc : openai_served_here(r, e);
}

int openai_served_here(const struct chat_request *r, struct err *e)
{
    const struct err *why = &r->refused;
    return why->code ? err_param(e, why->code, why->param, "%s", why->msg) : 0;
}
