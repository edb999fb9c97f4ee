/* openai_param.c - the table of request fields, and the readers that need more than a range. */
#include <math.h>

#include "api/openai_parse.h"
#include "api/persona.h"

#define REQ(member) offsetof(struct chat_request, member)
#define GEN(member) offsetof(struct chat_request, gen.member)

enum {
    CHAT = OPENAI_CHAT,
    TEXT = OPENAI_COMPLETION,
    TOKENIZE = OPENAI_TOKENIZE,
    BOTH = CHAT | TEXT,
    ALL = BOTH | TOKENIZE,
};

enum { MAX_CACHE_S = 366 * 86400, MAX_CACHE_SPACE = 128 };

static const double MAX_TOKENS = 1
                                 << 24; /* far over any context; the engine cuts to what is left */
static const double MAX_ID = INT32_MAX;

static int read_model(struct chat_request *r, const struct openai_param *p, const json_t *v,
                      struct err *e)
{
    if (!json_is_string(v) || !json_string_length(v) || json_string_length(v) > 512)
        return openai_bad(e, p->name, "the name of a model", v);
    r->model = json_string_value(v);
    return 0;
}

static int read_keep_alive(struct chat_request *r, const struct openai_param *p, const json_t *v,
                           struct err *e)
{
    if (keep_alive_parse(v, &r->keep_alive))
        return 0;
    return openai_bad(e, p->name, "a number of seconds or a duration such as \"5m\"", v);
}

static int read_seed(struct chat_request *r, const struct openai_param *p, const json_t *v,
                     struct err *e)
{
    if (!openai_int(v, INT64_MIN, INT64_MAX, &r->gen.seed))
        return openai_bad(e, p->name, "an integer", v);
    r->gen.has_seed = true;
    return 0;
}

static int read_stop(struct chat_request *r, const struct openai_param *p, const json_t *v,
                     struct err *e)
{
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > API_MAX_STOPS)
        return err_param(e, ERR_LIMIT, p->name, "'stop' takes at most %d strings, got %zu",
                         API_MAX_STOPS, n);
    r->gen.stop = arena_alloc(&r->arena, n * sizeof *r->gen.stop);
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_is_array(v) ? json_array_get(v, i) : v;
        size_t len = json_string_length(s);
        if (!json_is_string(s) || len == 0 || len > API_MAX_STOP_BYTES)
            return openai_bad(e, p->name, "a string or an array of strings of 1 to 1024 bytes", s);
        r->gen.stop[r->gen.n_stop++] = json_string_value(s);
    }
    return 0;
}

static int read_stop_ids(struct chat_request *r, const struct openai_param *p, const json_t *v,
                         struct err *e)
{
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n > API_MAX_STOP_IDS)
        return openai_bad(e, p->name, "an array of at most 64 token ids", v);
    r->gen.stop_ids = arena_alloc(&r->arena, n * sizeof *r->gen.stop_ids);
    for (size_t i = 0; i < n; i++) {
        int64_t id;
        if (!openai_int(json_array_get(v, i), 0, INT32_MAX, &id))
            return openai_bad(e, p->name, "an array of token ids", json_array_get(v, i));
        r->gen.stop_ids[r->gen.n_stop_ids++] = (int32_t)id;
    }
    return 0;
}

static int read_logit_bias(struct chat_request *r, const struct openai_param *p, const json_t *v,
                           struct err *e)
{
    if (!json_is_object(v))
        return openai_bad(e, p->name, "an object from token ids to biases", v);
    if (json_object_size(v) > API_MAX_BIAS)
        return err_param(e, ERR_LIMIT, p->name, "'logit_bias' takes at most %d tokens, got %zu",
                         API_MAX_BIAS, json_object_size(v));
    r->gen.bias = arena_alloc(&r->arena, json_object_size(v) * sizeof *r->gen.bias);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)v, key, value)
    {
        int64_t id;
        double bias = json_number_value(value);
        if (!str_to_i64(str_of(key), &id) || id < 0 || id > INT32_MAX)
            return err_param(e, ERR_INVALID, p->name,
                             "'logit_bias' has the key '%.32s': keys are "
                             "token ids",
                             key);
        if (!json_is_number(value) || !(bias >= -100 && bias <= 100))
            return openai_bad(e, p->name, "an object with numbers from -100 to 100", value);
        r->gen.bias[r->gen.n_bias++] = (struct gen_bias){(int32_t)id, (float)bias};
    }
    return 0;
}

static int read_chat_logprobs(struct chat_request *r, const struct openai_param *p, const json_t *v,
                              struct err *e)
{
    if (!json_is_boolean(v))
        return openai_bad(e, p->name, "true or false", v);
    if (json_is_true(v))
        r->gen.n_logprobs = 0;
    return 0;
}

/* Comes after logprobs in the table. */
static int read_top_logprobs(struct chat_request *r, const struct openai_param *p, const json_t *v,
                             struct err *e)
{
    int64_t n;
    if (!openai_int(v, 0, API_MAX_LOGPROBS, &n))
        return openai_bad(e, p->name, "an integer from 0 to 20", v);
    if (n > 0 && r->gen.n_logprobs < 0)
        return err_param(e, ERR_INVALID, p->name, "'top_logprobs' needs 'logprobs': true");
    if (r->gen.n_logprobs >= 0)
        r->gen.n_logprobs = n;
    return 0;
}

/* Comes after stream in the table. */
static int read_stream_options(struct chat_request *r, const struct openai_param *p,
                               const json_t *v, struct err *e)
{
    static const struct {
        const char *key, *full;
        size_t offset;
    } options[] = {
        {"include_usage", "stream_options.include_usage", REQ(include_usage)},
        {"continuous_usage_stats", "stream_options.continuous_usage_stats", REQ(continuous_usage)},
    };
    if (!json_is_object(v))
        return openai_bad(e, p->name, "an object", v);
    if (!r->stream)
        return err_param(e, ERR_INVALID, p->name, "'stream_options' needs 'stream': true");
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        const json_t *o = json_object_get(v, options[i].key);
        if (o && !json_is_boolean(o) && !json_is_null(o))
            return openai_bad(e, options[i].full, "true or false", o);
        *(bool *)((char *)r + options[i].offset) = json_is_true(o);
    }
    return 0;
}

static int read_cache_salt(struct chat_request *r, const struct openai_param *p, const json_t *v,
                           struct err *e)
{
    const char *s = json_string_value(v);
    size_t n = json_string_length(v);
    if (!s || n == 0 || n > 128 || strpbrk(s, "@/\\"))
        return openai_bad(e, p->name, "a string of 1 to 128 characters without @ / \\", v);
    r->gen.cache_salt = s;
    return 0;
}

static int read_seconds(const char *name, const json_t *v, double *out, struct err *e)
{
    double s = json_number_value(v);
    if (!json_is_number(v) || !(s > 0) || s > MAX_CACHE_S)
        return openai_bad(e, name, "a number of seconds above 0, at most a year", v);
    *out = s;
    return 0;
}

/* LiteLLM's controls of its cache. A request that names where or for how long its answer is kept
 * wants it kept. */
static int read_cache(struct chat_request *r, const struct openai_param *p, const json_t *v,
                      struct err *e)
{
    struct cache_wish *w = &r->cache;
    const struct {
        const char *key, *full;
        bool *flag;
        double *seconds;
    } members[] = {
        {"no-cache", "cache.no-cache", &w->no_cache, NULL},
        {"no-store", "cache.no-store", &w->no_store, NULL},
        {"use-cache", "cache.use-cache", &w->opt_in, NULL},
        {"ttl", "cache.ttl", NULL, &w->ttl_s},
        {"s-maxage", "cache.s-maxage", NULL, &w->max_age_s},
    };
    if (!json_is_object(v))
        return openai_bad(e, p->name, "an object", v);
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        const json_t *m = json_object_get(v, members[i].key);
        if (!m || json_is_null(m))
            continue;
        if (members[i].flag && !json_is_boolean(m))
            return openai_bad(e, members[i].full, "true or false", m);
        if (members[i].flag)
            *members[i].flag = json_is_true(m);
        else if (read_seconds(members[i].full, m, members[i].seconds, e))
            return ERR_INVALID;
    }
    const json_t *space = json_object_get(v, "namespace");
    if (space && !json_is_null(space) &&
        (!json_is_string(space) || json_string_length(space) > MAX_CACHE_SPACE))
        return openai_bad(e, "cache.namespace", "a string of at most 128 bytes", space);
    w->space = json_string_value(space);
    w->opt_in = w->opt_in || w->space || w->ttl_s || w->max_age_s;
    return 0;
}

static int read_user(struct chat_request *r, const struct openai_param *p, const json_t *v,
                     struct err *e)
{
    if (!json_is_string(v) || json_string_length(v) > API_MAX_USER_BYTES)
        return openai_bad(e, p->name, "a string of at most 512 bytes", v);
    if (json_string_length(v))
        r->user = json_string_value(v);
    return 0;
}

static int read_persona(struct chat_request *r, const struct openai_param *p, const json_t *v,
                        struct err *e)
{
    if (!json_is_string(v) ||
        !persona_name_ok((struct str){json_string_value(v), json_string_length(v)}))
        return openai_bad(e, p->name, "the name of a persona", v);
    r->persona = json_string_value(v);
    return 0;
}

static int read_documents(struct chat_request *r, const struct openai_param *p, const json_t *v,
                          struct err *e)
{
    if (!json_is_array(v) || json_array_size(v) > API_MAX_DOCUMENTS)
        return openai_bad(e, p->name, "an array of at most 1024 objects", v);
    for (size_t i = 0; i < json_array_size(v); i++)
        if (!json_is_object(json_array_get(v, i)))
            return openai_bad(e, p->name, "an array of objects", json_array_get(v, i));
    r->documents = json_array_size(v) ? json_incref((json_t *)v) : NULL;
    return 0;
}

static int read_kwargs(struct chat_request *r, const struct openai_param *p, const json_t *v,
                       struct err *e)
{
    static const char *const own[] = {"messages", "tools", "documents", "chat_template",
                                      "conversation"};
    if (!json_is_object(v) || json_object_size(v) > API_MAX_TEMPLATE_VARIABLES)
        return openai_bad(e, p->name, "an object with at most 64 members", v);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (json_object_get(v, own[i]))
            return err_param(e, ERR_INVALID, p->name, "'%s' may not hold '%s': the request sets it",
                             p->name, own[i]);
    if (!r->kwargs)
        r->kwargs = json_object();
    json_object_update(r->kwargs, (json_t *)v);
    return 0;
}

/* Templates of reasoning models read it as a variable, as with vLLM; others never look. */
static int read_reasoning_effort(struct chat_request *r, const struct openai_param *p,
                                 const json_t *v, struct err *e)
{
    static const char *const levels[] = {"none", "minimal", "low", "medium",
                                         "high", "xhigh",   "max"};
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        if (json_is_string(v) && strcmp(json_string_value(v), levels[i]) == 0) {
            if (!r->kwargs)
                r->kwargs = json_object();
            json_object_set(r->kwargs, p->name, (json_t *)v);
            return 0;
        }
    }
    return openai_bad(e, p->name, "one of none, minimal, low, medium, high, xhigh, max", v);
}

static int read_ids(struct chat_request *r, const json_t *v, struct gen_prompt *out, struct err *e)
{
    size_t n = json_array_size(v);
    int32_t *ids = arena_alloc(&r->arena, n * sizeof *ids);
    for (size_t i = 0; i < n; i++) {
        int64_t id;
        if (!openai_int(json_array_get(v, i), 0, INT32_MAX, &id))
            return openai_bad(e, "prompt", "text, or arrays of token ids", json_array_get(v, i));
        ids[i] = (int32_t)id;
    }
    out->ids = ids;
    out->n_ids = n;
    return 0;
}

/* One string, one array of ids, or an array of either. */
static int read_prompt(struct chat_request *r, const struct openai_param *p, const json_t *v,
                       struct err *e)
{
    bool many = json_is_array(v) && !json_is_integer(json_array_get(v, 0));
    size_t n = many ? json_array_size(v) : 1;
    if (!json_is_string(v) && !json_is_array(v))
        return openai_bad(e, p->name, "a string, an array of strings or arrays of token ids", v);
    if (n == 0 || n > API_MAX_PROMPTS)
        return err_param(e, ERR_LIMIT, p->name, "'prompt' takes 1 to %d prompts, got %zu",
                         API_MAX_PROMPTS, n);
    r->prompts = arena_alloc(&r->arena, n * sizeof *r->prompts);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = many ? json_array_get(v, i) : v;
        struct gen_prompt *out = &r->prompts[r->n_prompts++];
        if (json_is_string(one)) {
            out->text = (struct str){json_string_value(one), json_string_length(one)};
        } else if (json_is_array(one)) {
            int rc = read_ids(r, one, out, e);
            if (rc)
                return rc;
        } else {
            return openai_bad(e, p->name, "a string, an array of strings or arrays of token ids",
                              one);
        }
    }
    return 0;
}

static int read_content(struct chat_request *r, const struct openai_param *p, const json_t *v,
                        struct err *e)
{
    if (!json_is_string(v))
        return openai_bad(e, p->name, "a string", v);
    r->content_form = true;
    r->prompts = arena_alloc(&r->arena, sizeof *r->prompts);
    r->prompts[0].text = (struct str){json_string_value(v), json_string_length(v)};
    r->n_prompts = 1;
    return 0;
}

/* Rows are read in this order, so a row may rely on the ones above it. */
const struct openai_param openai_params[] = {
    {"model", ALL, PARAM_CUSTOM, .fn = read_model},
    {"adapter", BOTH, PARAM_CUSTOM, .fn = openai_read_adapter},
    {"lora", BOTH, PARAM_CUSTOM, .fn = openai_read_lora},
    {"persona", CHAT, PARAM_CUSTOM, .fn = read_persona},
    {"messages", CHAT | TOKENIZE, PARAM_CUSTOM, .fn = openai_read_messages},
    {"prompt", TEXT | TOKENIZE, PARAM_CUSTOM, .fn = read_prompt},
    {"content", TOKENIZE, PARAM_CUSTOM, .fn = read_content},

    {"stream", BOTH, PARAM_BOOL, REQ(stream)},
    {"stream_options", BOTH, PARAM_CUSTOM, .fn = read_stream_options},
    {"n", BOTH, PARAM_INT, GEN(n), 1, API_MAX_CHOICES, 1},
    {"max_tokens", CHAT, PARAM_INT, GEN(max_tokens), 1, MAX_TOKENS, 0},
    {"max_tokens", TEXT, PARAM_INT, GEN(max_tokens), 1, MAX_TOKENS, 16},
    {"max_completion_tokens", CHAT, PARAM_INT, GEN(max_tokens), 1, MAX_TOKENS, 0},
    {"min_tokens", BOTH, PARAM_INT, GEN(min_tokens), 0, MAX_TOKENS, 0},
    {"stop", BOTH, PARAM_CUSTOM, .fn = read_stop},
    {"stop_token_ids", BOTH, PARAM_CUSTOM, .fn = read_stop_ids},
    {"include_stop_str_in_output", BOTH, PARAM_BOOL, GEN(include_stop)},
    {"ignore_eos", BOTH, PARAM_BOOL, GEN(ignore_eos)},
    {"speculate", BOTH, PARAM_BOOL, GEN(speculate), .def = 1},
    {"skip_special_tokens", BOTH, PARAM_BOOL, GEN(skip_special), .def = 1},

    {"temperature", BOTH, PARAM_NUM, GEN(temperature), 0, 2, 1},
    {"top_p", BOTH, PARAM_NUM, GEN(top_p), 0, 1, 1, .open = true},
    {"top_k", BOTH, PARAM_INT, GEN(top_k), -1, MAX_ID, 0},
    {"min_p", BOTH, PARAM_NUM, GEN(min_p), 0, 1, 0},
    {"typical_p", BOTH, PARAM_NUM, GEN(typical_p), 0, 1, 1, .open = true},
    {"repetition_penalty", BOTH, PARAM_NUM, GEN(repetition_penalty), 0, 10, 1, .open = true},
    {"repeat_penalty", BOTH, PARAM_NUM, GEN(repetition_penalty), 0, 10, 1, .open = true},
    {"repeat_last_n", BOTH, PARAM_INT, GEN(repeat_last_n), -1, MAX_TOKENS, -1},
    {"frequency_penalty", BOTH, PARAM_NUM, GEN(frequency_penalty), -2, 2, 0},
    {"presence_penalty", BOTH, PARAM_NUM, GEN(presence_penalty), -2, 2, 0},
    {"seed", BOTH, PARAM_CUSTOM, .fn = read_seed},
    {"logit_bias", BOTH, PARAM_CUSTOM, .fn = read_logit_bias},
    {"logprobs", CHAT, PARAM_CUSTOM, .fn = read_chat_logprobs},
    {"top_logprobs", CHAT, PARAM_CUSTOM, .fn = read_top_logprobs},
    {"logprobs", TEXT, PARAM_INT, GEN(n_logprobs), 0, API_MAX_LOGPROBS, -1},
    {"priority", BOTH, PARAM_INT, GEN(priority), -1000000, 1000000, 0},
    {"cache_salt", BOTH, PARAM_CUSTOM, .fn = read_cache_salt},
    {"cache", BOTH, PARAM_CUSTOM, .fn = read_cache},
    {"safety_identifier", BOTH, PARAM_CUSTOM, .fn = read_user},
    {"user", BOTH, PARAM_CUSTOM, .fn = read_user}, /* wins over safety_identifier */
    {"keep_alive", BOTH, PARAM_CUSTOM, .fn = read_keep_alive},
    {"timeout", BOTH, PARAM_NUM, REQ(timeout_s), 0, API_MAX_TIMEOUT_S, 0, .open = true},

    {"tools", CHAT | TOKENIZE, PARAM_CUSTOM, .fn = openai_read_tools},
    {"tool_choice", CHAT, PARAM_CUSTOM, .fn = openai_read_tool_choice},
    {"parallel_tool_calls", CHAT, PARAM_BOOL, REQ(parallel_calls), .def = 1},
    {"documents", CHAT, PARAM_CUSTOM, .fn = read_documents},
    {"chat_template_kwargs", CHAT | TOKENIZE, PARAM_CUSTOM, .fn = read_kwargs},
    {"reasoning_effort", CHAT, PARAM_CUSTOM, .fn = read_reasoning_effort},
    {"add_generation_prompt", CHAT | TOKENIZE, PARAM_BOOL, REQ(add_generation_prompt), .def = 1},
    {"continue_final_message", CHAT | TOKENIZE, PARAM_BOOL, REQ(continue_final)},
    {"add_special_tokens", CHAT, PARAM_BOOL, REQ(add_special), .def = 0},
    {"add_special_tokens", TEXT, PARAM_BOOL, REQ(add_special), .def = 1},
    {"add_special_tokens", TOKENIZE, PARAM_BOOL, REQ(add_special), .def = 1},
    {"add_special", TOKENIZE, PARAM_BOOL, REQ(add_special), .def = 1},
    {"parse_special", TEXT | TOKENIZE, PARAM_BOOL, REQ(parse_special), .def = 1},
    {"return_token_strs", TOKENIZE, PARAM_BOOL, REQ(return_token_strs)},
    {"with_pieces", TOKENIZE, PARAM_BOOL, REQ(with_pieces)},
    {"echo", TEXT, PARAM_BOOL, REQ(echo)},

    {"metadata", BOTH, PARAM_IGNORED},
    {"prompt_cache_key", BOTH, PARAM_IGNORED},
    {"prompt_cache_retention", BOTH, PARAM_IGNORED},
    {"cache_prompt", BOTH, PARAM_IGNORED},
    {"request_id", BOTH, PARAM_IGNORED},
    {"session_id", BOTH, PARAM_IGNORED},
    {"spaces_between_special_tokens", BOTH, PARAM_IGNORED},

    {"response_format", BOTH, PARAM_REFUSED, .accept = "[{\"type\":\"text\"}]"},
    {"structured_outputs", BOTH, PARAM_REFUSED, .accept = "[]"},
    {"guided_json", BOTH, PARAM_REFUSED, .accept = "[]"},
    {"guided_regex", BOTH, PARAM_REFUSED, .accept = "[]"},
    {"guided_choice", BOTH, PARAM_REFUSED, .accept = "[]"},
    {"guided_grammar", BOTH, PARAM_REFUSED, .accept = "[]"},
    {"grammar", BOTH, PARAM_REFUSED, .accept = "[\"\"]"},
    {"json_schema", BOTH, PARAM_REFUSED, .accept = "[]"},
    {"functions", CHAT, PARAM_REFUSED, .accept = "[[]]"},
    {"function_call", CHAT, PARAM_REFUSED, .accept = "[\"none\",\"auto\"]"},
    {"modalities", CHAT, PARAM_REFUSED, .accept = "[[\"text\"]]"},
    {"audio", CHAT, PARAM_REFUSED, .accept = "[]"},
    {"prediction", CHAT, PARAM_REFUSED, .accept = "[]"},
    {"web_search_options", CHAT, PARAM_REFUSED, .accept = "[]"},
    {"store", CHAT, PARAM_REFUSED, .accept = "[false]"},
    {"service_tier", CHAT, PARAM_REFUSED, .accept = "[\"auto\",\"default\"]"},
    {"verbosity", CHAT, PARAM_REFUSED, .accept = "[\"medium\"]"},
    {"chat_template", CHAT | TOKENIZE, PARAM_REFUSED, .accept = "[]"},
    {"echo", CHAT, PARAM_REFUSED, .accept = "[false]"},
    {"suffix", TEXT, PARAM_REFUSED, .accept = "[\"\"]"},
    {"best_of", TEXT, PARAM_REFUSED, .accept = "[1]"},
    {"use_beam_search", BOTH, PARAM_REFUSED, .accept = "[false]"},
    {"length_penalty", BOTH, PARAM_REFUSED, .accept = "[1,1.0]"},
    {"truncate_prompt_tokens", BOTH, PARAM_REFUSED, .accept = "[]"},
    {"prompt_logprobs", BOTH, PARAM_REFUSED, .accept = "[]"},
    {"allowed_token_ids", BOTH, PARAM_REFUSED, .accept = "[]"},
    {"bad_words", BOTH, PARAM_REFUSED, .accept = "[[]]"},
    {"logits_processors", BOTH, PARAM_REFUSED, .accept = "[[]]"},
    {"mm_processor_kwargs", CHAT, PARAM_REFUSED, .accept = "[{}]"},
    {"return_tokens_as_token_ids", BOTH, PARAM_REFUSED, .accept = "[false]"},
    {"return_token_ids", BOTH, PARAM_REFUSED, .accept = "[false]"},
    {"prompt_embeds", TEXT, PARAM_REFUSED, .accept = "[]"},
    {"n_probs", BOTH, PARAM_REFUSED, .accept = "[0]"},
    {"samplers", BOTH, PARAM_REFUSED, .accept = "[]"},
    {"mirostat", BOTH, PARAM_REFUSED, .accept = "[0]"},
    {"dry_multiplier", BOTH, PARAM_REFUSED, .accept = "[0,0.0]"},
    {"xtc_probability", BOTH, PARAM_REFUSED, .accept = "[0,0.0]"},
    {"dynatemp_range", BOTH, PARAM_REFUSED, .accept = "[0,0.0]"},
};
const size_t openai_n_params = sizeof openai_params / sizeof *openai_params;

void openai_each_field(openai_field_fn *fn, void *arg)
{
    for (size_t i = 0; i < openai_n_params; i++)
        fn(arg, openai_params[i].name, openai_params[i].endpoints,
           openai_params[i].type == PARAM_REFUSED);
}
