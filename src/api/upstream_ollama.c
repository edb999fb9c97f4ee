/* upstream_ollama.c - Ollama's own API: POST /api/chat and /api/generate, one JSON object a line.
 *
 * What a request leaves out is the model's own choice there (its Modelfile's parameters). A
 * completion is raw text, as in OpenAI's API, unless it has a suffix: only the model's template
 * knows where that goes. Options under Ollama's names (`options`, `num_ctx`, `think`) pass. */
#include "api/upstream_private.h"

enum { COMPLETION_TOKENS = 16 }; /* OpenAI's default */

/* ---- fields ---- */

static json_t *options_of(struct upstream_asking *a)
{
    json_t *options = json_object_get(a->out, "options");
    if (!options) {
        options = json_object();
        json_object_set_new(a->out, "options", options);
    }
    return options;
}

static int read_option(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                       struct err *e)
{
    json_object_set(options_of(a), f->to, (json_t *)v);
    return 0;
}

/* Off is -1 or 0 for OpenAI's servers, and 0 here. */
static int read_top_k(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                      struct err *e)
{
    double k = json_number_value(v);
    json_object_set_new(options_of(a), f->to, json_integer(k > 0 ? (json_int_t)k : 0));
    return 0;
}

static int read_stop(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                     struct err *e)
{
    json_object_set_new(options_of(a), f->to, upstream_stops(v));
    return 0;
}

/* OpenAI's names win over the same option in here. */
static int read_options(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                        struct err *e)
{
    if (!json_is_object(v))
        return err_param(e, ERR_INVALID, f->name, "'%s' must be an object", f->name);
    json_object_update_missing(options_of(a), (json_t *)v);
    return 0;
}

static int read_format(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                       struct err *e)
{
    const json_t *type = json_object_get(v, "type"), *schema = upstream_schema(v);
    if (upstream_is(type, "text"))
        return 0;
    if (json_is_object(schema))
        json_object_set(a->out, f->to, (json_t *)schema);
    else if (upstream_is(type, "json_object"))
        json_object_set_new(a->out, f->to, json_string("json"));
    else
        return upstream_cannot(a, f->name, e);
    return 0;
}

/* `think` itself, if it is given too, wins. */
static int read_effort(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                       struct err *e)
{
    static const struct {
        const char *effort, *think;
    } levels[] = {{"minimal", "low"}, {"low", "low"},    {"medium", "medium"},
                  {"high", "high"},   {"xhigh", "high"}, {"max", "high"}};
    if (json_object_get(a->out, f->to))
        return 0;
    if (upstream_is(v, "none"))
        json_object_set_new(a->out, f->to, json_false());
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        if (upstream_is(v, levels[i].effort))
            json_object_set_new(a->out, f->to, json_string(levels[i].think));
    return json_object_get(a->out, f->to) ? 0 : upstream_cannot(a, f->name, e);
}

static int read_tools(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                      struct err *e)
{
    if (json_array_size(v) && !upstream_is(json_object_get(a->q->body, "tool_choice"), "none"))
        json_object_set(a->out, f->to, (json_t *)v);
    return 0;
}

static int read_tool_choice(struct upstream_asking *a, const struct upstream_field *f,
                            const json_t *v, struct err *e)
{
    bool fine = upstream_is(v, "auto") || upstream_is(v, "none");
    return fine ? 0 : upstream_cannot(a, f->name, e);
}

static int read_suffix(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                       struct err *e)
{
    if (json_string_length(v))
        json_object_set(a->out, f->to, (json_t *)v);
    return 0;
}

static const struct upstream_field fields[] = {
    {"options", read_options, NULL},
    {"temperature", read_option, "temperature"},
    {"top_p", read_option, "top_p"},
    {"top_k", read_top_k, "top_k"},
    {"min_p", read_option, "min_p"},
    {"typical_p", read_option, "typical_p"},
    {"repetition_penalty", read_option, "repeat_penalty"},
    {"repeat_penalty", read_option, "repeat_penalty"},
    {"repeat_last_n", read_option, "repeat_last_n"},
    {"frequency_penalty", read_option, "frequency_penalty"},
    {"presence_penalty", read_option, "presence_penalty"},
    {"seed", read_option, "seed"},
    {"num_ctx", read_option, "num_ctx"},
    {"stop", read_stop, "stop"},
    {"response_format", read_format, "format"},
    {"think", upstream_copy, "think"},
    {"reasoning_effort", read_effort, "think"},
    {"keep_alive", upstream_copy, "keep_alive"},
    {"tools", read_tools, "tools"},
    {"tool_choice", read_tool_choice, NULL},
    {"suffix", read_suffix, "suffix"},
};

/* ---- messages ---- */

/* One message's content: texts in lines, as where the engine is ours, and images beside them. */
struct content {
    struct buf text;
    json_t *images;
};

static int add_part(void *arg, const struct upstream_part *part, struct err *e)
{
    struct content *c = arg;
    if (part->text) {
        if (c->text.len)
            buf_addc(&c->text, '\n');
        buf_add(&c->text, json_string_value(part->text), json_string_length(part->text));
        return 0;
    }
    if (!part->data.p)
        return err_param(e, ERR_UNSUPPORTED, part->where,
                         "'%s' is an image by its address: the model's backend (ollama) takes "
                         "images only as data:image/png;base64,...",
                         part->where);
    if (!c->images)
        c->images = json_array();
    json_array_append_new(c->images, json_stringn_nocheck(part->data.p, part->data.n));
    return 0;
}

static int set_content(const struct upstream_asking *a, json_t *out, const json_t *m, size_t i,
                       struct err *e)
{
    struct content c = {0};
    int rc = upstream_each_part(a, m, i, add_part, &c, e);
    json_object_set_new(out, "content", json_stringn(buf_str(&c.text), c.text.len));
    if (c.images)
        json_object_set_new(out, "images", c.images);
    buf_release(&c.text);
    return rc;
}

/* The names of calls, by their ids, go to `names`: results tell only the id. */
static int set_calls(json_t *out, const json_t *calls, size_t i, json_t *names, struct err *e)
{
    json_t *list = json_array();
    json_object_set_new(out, "tool_calls", list);
    for (size_t k = 0; k < json_array_size(calls); k++) {
        const json_t *call = json_array_get(calls, k);
        json_t *name = json_object_get(json_object_get(call, "function"), "name");
        json_t *id = json_object_get(call, "id"), *arguments = upstream_arguments(call);
        if (!arguments || !json_is_string(name)) {
            json_decref(arguments);
            return upstream_bad_call(i, e);
        }
        json_t *said =
            json_pack("{s:{s:O, s:o}}", "function", "name", name, "arguments", arguments);
        if (json_is_string(id)) {
            json_object_set(said, "id", id);
            json_object_set(names, json_string_value(id), name);
        }
        json_array_append_new(list, said);
    }
    return 0;
}

static void set_result_of(json_t *out, const json_t *m, const json_t *names)
{
    json_t *id = json_object_get(m, "tool_call_id"), *name = json_object_get(m, "name");
    if (json_is_string(id)) {
        json_object_set(out, "tool_call_id", id);
        if (!json_is_string(name))
            name = json_object_get(names, json_string_value(id));
    }
    if (json_is_string(name))
        json_object_set(out, "tool_name", name);
}

static int add_message(const struct upstream_asking *a, json_t *list, const json_t *m, size_t i,
                       json_t *names, struct err *e)
{
    json_t *role = json_object_get(m, "role"), *calls = json_object_get(m, "tool_calls");
    json_t *reasoning = json_object_get(m, "reasoning_content");
    json_t *out = json_object();
    json_array_append_new(list, out);
    if (upstream_is(role, "developer"))
        json_object_set_new(out, "role", json_string("system"));
    else
        json_object_set(out, "role", role);
    int rc = set_content(a, out, m, i, e);
    if (json_string_length(reasoning))
        json_object_set(out, "thinking", reasoning);
    if (upstream_is(role, "tool"))
        set_result_of(out, m, names);
    return rc || !json_array_size(calls) ? rc : set_calls(out, calls, i, names, e);
}

static int ask_chat(struct upstream_asking *a, struct err *e)
{
    const json_t *messages = upstream_messages(a);
    json_t *list = json_array(), *names = json_object();
    int rc = 0;
    json_object_set_new(a->out, "messages", list);
    for (size_t i = 0; i < json_array_size(messages) && !rc; i++)
        rc = add_message(a, list, json_array_get(messages, i), i, names, e);
    json_decref(names);
    return rc;
}

static int ask_completion(struct upstream_asking *a, struct err *e)
{
    json_t *prompt = json_object_get(a->q->body, "prompt");
    if (json_array_size(prompt) == 1)
        prompt = json_array_get(prompt, 0);
    if (!json_is_string(prompt))
        return err_param(e, ERR_UNSUPPORTED, "prompt",
                         "'prompt' must be one string for the model's backend (ollama)");
    json_object_set(a->out, "prompt", prompt);
    if (!json_object_get(a->out, "suffix"))
        json_object_set_new(a->out, "raw", json_true());
    return 0;
}

static int ask(struct upstream_asking *a, struct err *e)
{
    const json_t *max = upstream_max_tokens(a);
    bool chat = a->q->endpoint == OPENAI_CHAT;
    json_object_set_new(a->out, "stream",
                        json_boolean(json_is_true(json_object_get(a->q->body, "stream"))));
    int rc = upstream_read_fields(a, fields, sizeof fields / sizeof *fields, e);
    if (max)
        json_object_set(options_of(a), "num_predict", (json_t *)max);
    else if (!chat)
        json_object_set_new(options_of(a), "num_predict", json_integer(COMPLETION_TOKENS));
    return rc ? rc : chat ? ask_chat(a, e) : ask_completion(a, e);
}

/* ---- answers ---- */

static int take_calls(struct upstream *u, const json_t *calls, struct err *e)
{
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *call = json_array_get(calls, i);
        const json_t *function = json_object_get(call, "function");
        const char *name = json_string_value(json_object_get(function, "name"));
        const json_t *arguments = json_object_get(function, "arguments");
        if (!name || !json_is_object(arguments))
            return upstream_garbled(e, "tool_calls", "a list of names with objects as arguments");
        upstream_call_begin(u, json_string_value(json_object_get(call, "id")), name);
        upstream_call_add_tree(u, arguments);
        upstream_call_end(u);
    }
    return 0;
}

/* A line of a stream and a whole answer have the same form; `done` marks the last one. */
static int take(struct upstream *u, const json_t *event, struct err *e)
{
    const json_t *done = json_object_get(event, "done");
    const json_t *message = json_object_get(event, "message");
    const json_t *text =
        json_object_get(message ? message : event, message ? "content" : "response");
    if (!json_is_boolean(done))
        return upstream_garbled(e, "done", "true or false");
    if (message ? !json_is_object(message) : !json_is_string(text))
        return upstream_garbled(e, "message", "an object");
    upstream_reasoning(u, json_object_get(message, "thinking"));
    upstream_text(u, text);
    int rc = take_calls(u, json_object_get(message, "tool_calls"), e);
    if (rc || json_is_false(done))
        return rc;
    upstream_usage_is(u, json_integer_value(json_object_get(event, "prompt_eval_count")), 0,
                      json_integer_value(json_object_get(event, "eval_count")));
    bool cut = upstream_is(json_object_get(event, "done_reason"), "length");
    upstream_end(u, cut ? "length" : "stop", NULL);
    return 0;
}

static const char *error_of(const json_t *answer)
{
    return json_string_value(json_object_get(answer, "error"));
}

const struct upstream_dialect upstream_ollama = {
    .ask = ask,
    .take = take,
    .answer = take,
    .error = error_of,
};
