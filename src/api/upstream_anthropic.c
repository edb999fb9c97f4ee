/* upstream_anthropic.c - Anthropic's Messages API: POST /v1/messages, typed events.
 *
 * System messages before the first other one become `system`, later ones keep their place as
 * messages of the role "system", which servers that do not know it refuse. Neighbours of one role
 * become one message, results of calls are blocks of a user's. Reasoning of earlier turns is left
 * out: it is signed there, and its signature is not in OpenAI's form. */
#include "api/upstream_private.h"

enum { DEFAULT_MAX_TOKENS = 4096 }; /* required there; every model of theirs can give so many */

/* ---- fields ---- */

/* Marks of what to keep in a cache there, as clients of Anthropic's set them. */
static void copy_cache_control(json_t *to, const json_t *from)
{
    json_t *mark = json_object_get(from, "cache_control");
    if (json_is_object(mark))
        json_object_set(to, "cache_control", mark);
}

static json_t *member_of(struct upstream_asking *a, const char *name)
{
    json_t *v = json_object_get(a->out, name);
    if (!v) {
        v = json_object();
        json_object_set_new(a->out, name, v);
    }
    return v;
}

static int read_temperature(struct upstream_asking *a, const struct upstream_field *f,
                            const json_t *v, struct err *e)
{
    if (json_number_value(v) > 1)
        return err_param(e, ERR_UNSUPPORTED, f->name,
                         "'temperature' goes from 0 to 1 for the model's backend (anthropic)");
    return upstream_copy(a, f, v, e);
}

static int read_top_k(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                      struct err *e)
{
    return json_number_value(v) > 0 ? upstream_copy(a, f, v, e) : 0; /* else it is off */
}

static int read_stop(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                     struct err *e)
{
    json_object_set_new(a->out, f->to, upstream_stops(v));
    return 0;
}

/* `user` wins over `safety_identifier`, as where the engine is ours. */
static int read_user(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                     struct err *e)
{
    json_t *metadata = member_of(a, "metadata");
    if (strcmp(f->name, "user") == 0 || !json_object_get(metadata, f->to))
        json_object_set(metadata, f->to, (json_t *)v);
    return 0;
}

static int read_format(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                       struct err *e)
{
    json_t *schema = (json_t *)upstream_schema(v);
    if (upstream_is(json_object_get(v, "type"), "text"))
        return 0;
    if (!json_is_object(schema))
        return upstream_cannot(a, f->name, e);
    json_object_set_new(member_of(a, "output_config"), f->to,
                        json_pack("{s:s, s:O}", "type", "json_schema", "schema", schema));
    return 0;
}

/* `thinking` itself, if it is given too, wins. */
static int read_effort(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                       struct err *e)
{
    bool none = upstream_is(v, "none");
    if (!none && upstream_is(v, "minimal"))
        json_object_set_new(member_of(a, "output_config"), f->to, json_string("low"));
    else if (!none)
        json_object_set(member_of(a, "output_config"), f->to, (json_t *)v);
    if (!json_object_get(a->out, "thinking"))
        json_object_set_new(a->out, "thinking",
                            json_pack("{s:s}", "type", none ? "disabled" : "adaptive"));
    return 0;
}

static int read_tools(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                      struct err *e)
{
    json_t *list = json_array();
    for (size_t i = 0; i < json_array_size(v); i++) {
        json_t *function = json_object_get(json_array_get(v, i), "function");
        json_t *schema = json_object_get(function, "parameters");
        json_t *strict = json_object_get(function, "strict");
        json_t *tool = json_object();
        json_t *description = json_object_get(function, "description");
        json_object_set(tool, "name", json_object_get(function, "name"));
        if (json_is_string(description))
            json_object_set(tool, "description", description);
        if (json_is_object(schema))
            json_object_set(tool, "input_schema", schema);
        else
            json_object_set_new(tool, "input_schema", json_pack("{s:s}", "type", "object"));
        if (json_is_true(strict))
            json_object_set(tool, "strict", strict);
        copy_cache_control(tool, json_array_get(v, i));
        json_array_append_new(list, tool);
    }
    if (json_array_size(list))
        json_object_set(a->out, f->to, list);
    json_decref(list);
    return 0;
}

static int read_tool_choice(struct upstream_asking *a, const struct upstream_field *f,
                            const json_t *v, struct err *e)
{
    static const struct {
        const char *openai, *here;
    } words[] = {{"auto", "auto"}, {"required", "any"}, {"none", "none"}};
    json_t *name = json_object_get(json_object_get(v, "function"), "name");
    json_t *choice = member_of(a, f->to);
    if (json_is_string(name)) {
        json_object_set_new(choice, "type", json_string("tool"));
        json_object_set(choice, "name", name);
        return 0;
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (upstream_is(v, words[i].openai))
            json_object_set_new(choice, "type", json_string(words[i].here));
    return json_object_get(choice, "type") ? 0 : upstream_cannot(a, f->name, e);
}

static int read_parallel(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                         struct err *e)
{
    if (json_is_false(v))
        json_object_set_new(member_of(a, f->to), "disable_parallel_tool_use", json_true());
    return 0;
}

static const struct upstream_field fields[] = {
    {"temperature", read_temperature, "temperature"},
    {"top_p", upstream_copy, "top_p"},
    {"top_k", read_top_k, "top_k"},
    {"stop", read_stop, "stop_sequences"},
    {"safety_identifier", read_user, "user_id"},
    {"user", read_user, "user_id"},
    {"response_format", read_format, "format"},
    {"thinking", upstream_copy, "thinking"},
    {"reasoning_effort", read_effort, "effort"},
    {"tools", read_tools, "tools"},
    {"tool_choice", read_tool_choice, "tool_choice"},
    {"parallel_tool_calls", read_parallel, "tool_choice"},
};

/* A choice needs tools, and a type; "none" has nothing to say of parallel calls. */
static void settle_tool_choice(struct upstream_asking *a)
{
    json_t *choice = json_object_get(a->out, "tool_choice");
    if (!json_object_get(a->out, "tools"))
        json_object_del(a->out, "tool_choice");
    else if (choice && !json_object_get(choice, "type"))
        json_object_set_new(choice, "type", json_string("auto"));
    else if (choice && upstream_is(json_object_get(choice, "type"), "none"))
        json_object_del(choice, "disable_parallel_tool_use");
}

/* ---- messages ---- */

/* The blocks of the last message, which is of this role: a new one if the last is not. */
static json_t *blocks_of(json_t *messages, const char *role)
{
    json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    if (!upstream_is(json_object_get(last, "role"), role)) {
        last = json_pack("{s:s, s:[]}", "role", role, "content");
        json_array_append_new(messages, last);
    }
    return json_object_get(last, "content");
}

static json_t *image_block(const struct upstream_part *part)
{
    if (!part->data.p)
        return json_pack("{s:s, s:{s:s, s:O}}", "type", "image", "source", "type", "url", "url",
                         part->url);
    json_t *data = json_stringn_nocheck(part->data.p, part->data.n);
    return json_pack("{s:s, s:{s:s, s:s%, s:o}}", "type", "image", "source", "type", "base64",
                     "media_type", part->type.p, part->type.n, "data", data);
}

/* Empty texts are refused there, and say nothing. */
static int add_part(void *arg, const struct upstream_part *part, struct err *e)
{
    if (part->text && !json_string_length(part->text))
        return 0;
    json_t *block = part->text ? json_pack("{s:s, s:O}", "type", "text", "text", part->text)
                               : image_block(part);
    copy_cache_control(block, part->whole);
    json_array_append_new(arg, block);
    return 0;
}

static int add_calls(json_t *blocks, const json_t *calls, size_t message, struct err *e)
{
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *call = json_array_get(calls, i);
        json_t *name = json_object_get(json_object_get(call, "function"), "name");
        json_t *id = json_object_get(call, "id"), *input = upstream_arguments(call);
        if (!input || !json_is_string(name) || !json_is_string(id)) {
            json_decref(input);
            return upstream_bad_call(message, e);
        }
        json_array_append_new(blocks, json_pack("{s:s, s:O, s:O, s:o}", "type", "tool_use", "id",
                                                id, "name", name, "input", input));
    }
    return 0;
}

static int add_result(const struct upstream_asking *a, json_t *blocks, const json_t *m, size_t i,
                      struct err *e)
{
    json_t *id = json_object_get(m, "tool_call_id");
    if (!json_is_string(id))
        return err_param(
            e, ERR_INVALID, "messages",
            "'messages[%zu].tool_call_id' must name the call that this is the result of", i);
    json_t *content = json_array();
    json_array_append_new(blocks, json_pack("{s:s, s:O, s:o}", "type", "tool_result", "tool_use_id",
                                            id, "content", content));
    return upstream_each_part(a, m, i, add_part, content, e);
}

static int add_message(struct upstream_asking *a, json_t *list, const json_t *m, size_t i,
                       struct err *e)
{
    const json_t *role = json_object_get(m, "role");
    bool system = upstream_is(role, "system") || upstream_is(role, "developer");
    if (upstream_is(role, "tool"))
        return add_result(a, blocks_of(list, "user"), m, i, e);
    json_t *blocks = NULL;
    if (!system)
        blocks = blocks_of(list, json_string_value(role));
    else if (json_array_size(list))
        blocks = blocks_of(list, "system");
    else
        blocks = json_object_get(a->out, "system");
    int rc = upstream_each_part(a, m, i, add_part, blocks, e);
    return rc ? rc : add_calls(blocks, json_object_get(m, "tool_calls"), i, e);
}

/* They are refused there, too. */
static void drop_empty(json_t *messages)
{
    for (size_t i = json_array_size(messages); i-- > 0;)
        if (json_array_size(json_object_get(json_array_get(messages, i), "content")) == 0)
            json_array_remove(messages, i);
}

static int ask(struct upstream_asking *a, struct err *e)
{
    const json_t *messages = upstream_messages(a), *max = upstream_max_tokens(a);
    if (a->q->endpoint != OPENAI_CHAT)
        return err_param(e, ERR_UNSUPPORTED, "prompt",
                         "the model's backend (anthropic) has no completions of raw prompts: use "
                         "/v1/chat/completions");
    json_object_set_new(a->out, "max_tokens",
                        max ? json_incref((json_t *)max) : json_integer(DEFAULT_MAX_TOKENS));
    json_object_set_new(a->out, "stream",
                        json_boolean(json_is_true(json_object_get(a->q->body, "stream"))));
    int rc = upstream_read_fields(a, fields, sizeof fields / sizeof *fields, e);
    settle_tool_choice(a);
    json_t *list = json_array();
    json_object_set_new(a->out, "messages", list);
    json_object_set_new(a->out, "system", json_array());
    for (size_t i = 0; i < json_array_size(messages) && !rc; i++)
        rc = add_message(a, list, json_array_get(messages, i), i, e);
    if (json_array_size(json_object_get(a->out, "system")) == 0)
        json_object_del(a->out, "system");
    drop_empty(list);
    return rc;
}

/* ---- answers ---- */

static int64_t number(const json_t *usage, const char *name, int64_t otherwise)
{
    const json_t *v = json_object_get(usage, name);
    return json_is_integer(v) ? json_integer_value(v) : otherwise;
}

static int64_t bounded(int64_t n)
{
    return n < 0 ? 0 : n > INT32_MAX ? INT32_MAX : n;
}

/* Counts are of the whole answer so far; input_tokens leaves out what came from a cache or went to
 * one. The last event may leave out what has not changed. */
static void take_usage(struct upstream *u, const json_t *usage)
{
    struct openai_usage was = upstream_usage(u);
    int64_t cached = bounded(number(usage, "cache_read_input_tokens", was.cached_tokens));
    int64_t input = number(usage, "input_tokens", -1);
    int64_t prompt = was.prompt_tokens;
    if (input >= 0)
        prompt = bounded(input) + cached + bounded(number(usage, "cache_creation_input_tokens", 0));
    upstream_usage_is(u, prompt, cached, number(usage, "output_tokens", was.completion_tokens));
}

static int begin_block(struct upstream *u, const json_t *block, struct err *e)
{
    const json_t *type = json_object_get(block, "type");
    if (upstream_is(type, "tool_use")) {
        const char *name = json_string_value(json_object_get(block, "name"));
        if (!name)
            return upstream_garbled(e, "content_block.name", "a string");
        upstream_call_begin(u, json_string_value(json_object_get(block, "id")), name);
        return 0;
    }
    if (!json_is_string(type))
        return upstream_garbled(e, "content_block.type", "a string");
    upstream_text(u, json_object_get(block, "text"));
    upstream_reasoning(u, json_object_get(block, "thinking"));
    return 0;
}

/* A block of a whole answer is there at once; in a stream `input` is {} and comes later. */
static int take_block(struct upstream *u, const json_t *block, struct err *e)
{
    const json_t *input = json_object_get(block, "input");
    int rc = begin_block(u, block, e);
    if (rc)
        return rc;
    if (input)
        upstream_call_add_tree(u, input);
    upstream_call_end(u);
    return 0;
}

/* Signatures and citations have no place in OpenAI's form. */
static void take_delta(struct upstream *u, const json_t *delta)
{
    const json_t *json = json_object_get(delta, "partial_json");
    upstream_text(u, json_object_get(delta, "text"));
    upstream_reasoning(u, json_object_get(delta, "thinking"));
    if (json_is_string(json))
        upstream_call_add(u, (struct str){json_string_value(json), json_string_length(json)});
}

static const char *finish_of(const json_t *reason)
{
    static const struct {
        const char *here, *openai;
    } reasons[] = {
        {"max_tokens", "length"},
        {"model_context_window_exceeded", "length"},
        {"tool_use", "tool_calls"},
        {"refusal", "content_filter"},
    };
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (upstream_is(reason, reasons[i].here))
            return reasons[i].openai;
    return "stop";
}

static const char *stop_text_of(const json_t *answer)
{
    return json_string_value(json_object_get(answer, "stop_sequence"));
}

static int on_message_start(struct upstream *u, const json_t *event, struct err *e)
{
    take_usage(u, json_object_get(json_object_get(event, "message"), "usage"));
    return 0;
}

static int on_block_start(struct upstream *u, const json_t *event, struct err *e)
{
    return begin_block(u, json_object_get(event, "content_block"), e);
}

static int on_block_delta(struct upstream *u, const json_t *event, struct err *e)
{
    take_delta(u, json_object_get(event, "delta"));
    return 0;
}

static int on_block_stop(struct upstream *u, const json_t *event, struct err *e)
{
    upstream_call_end(u);
    return 0;
}

static int on_message_delta(struct upstream *u, const json_t *event, struct err *e)
{
    const json_t *delta = json_object_get(event, "delta");
    const json_t *reason = json_object_get(delta, "stop_reason");
    take_usage(u, json_object_get(event, "usage"));
    if (json_is_string(reason))
        upstream_end(u, finish_of(reason), stop_text_of(delta));
    return 0;
}

static int on_message_stop(struct upstream *u, const json_t *event, struct err *e)
{
    return upstream_garbled(e, "stop_reason", "there before message_stop");
}

/* `ping`, and what later versions may add, say nothing: "handle unknown event types gracefully". */
static int take(struct upstream *u, const json_t *event, struct err *e)
{
    static const struct {
        const char *type;
        int (*take)(struct upstream *u, const json_t *event, struct err *e);
    } types[] = {
        {"message_start", on_message_start},     {"content_block_start", on_block_start},
        {"content_block_delta", on_block_delta}, {"content_block_stop", on_block_stop},
        {"message_delta", on_message_delta},     {"message_stop", on_message_stop},
    };
    const json_t *type = json_object_get(event, "type");
    if (!json_is_string(type))
        return upstream_garbled(e, "type", "a string");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (upstream_is(type, types[i].type))
            return types[i].take(u, event, e);
    return 0;
}

static int answer(struct upstream *u, const json_t *answer, struct err *e)
{
    const json_t *blocks = json_object_get(answer, "content");
    const json_t *reason = json_object_get(answer, "stop_reason");
    if (!json_is_array(blocks) || !json_is_string(reason))
        return upstream_garbled(e, "content", "a list of blocks with a stop_reason");
    for (size_t i = 0; i < json_array_size(blocks); i++) {
        int rc = take_block(u, json_array_get(blocks, i), e);
        if (rc)
            return rc;
    }
    take_usage(u, json_object_get(answer, "usage"));
    upstream_end(u, finish_of(reason), stop_text_of(answer));
    return 0;
}

static const char *error_of(const json_t *answer)
{
    const json_t *type = json_object_get(answer, "type");
    const json_t *error = json_object_get(answer, "error");
    return upstream_is(type, "error") ? json_string_value(json_object_get(error, "message")) : NULL;
}

const struct upstream_dialect upstream_anthropic = {
    .events = true,
    .ask = ask,
    .take = take,
    .answer = answer,
    .error = error_of,
};
