/* openai_messages.c - messages and tools: checked, and rewritten into what chat templates expect.
 */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>

#include "api/openai_parse.h"
#include "base/json.h"

/* Where in the body we are, for messages such as "messages[3].content[0].type". */
struct place {
    char text[64];
};

__attribute__((format(printf, 1, 2))) static struct place at(const char *fmt, ...)
{
    struct place p;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(p.text, sizeof p.text, fmt, ap);
    va_end(ap);
    return p;
}

struct role {
    const char *name;
    const char *template_name; /* what templates know it as */
    bool content_optional;     /* null or absent is fine (then tool_calls must speak) */
};

static const struct role roles[] = {
    {"system", "system", false}, {"developer", "system", false}, /* OpenAI's newer word for it */
    {"user", "user", false},     {"assistant", "assistant", true}, {"tool", "tool", false},
};

static const struct role *role_find(const json_t *v)
{
    for (size_t i = 0; json_is_string(v) && i < sizeof roles / sizeof *roles; i++)
        if (strcmp(json_string_value(v), roles[i].name) == 0)
            return &roles[i];
    return NULL;
}

/* Adds the text of one content part; of another kind there is none. */
static int add_part(struct chat_request *r, struct buf *out, const json_t *part, size_t message,
                    size_t i, struct err *e)
{
    const json_t *type = json_object_get(part, "type");
    if (!json_is_string(type))
        return openai_bad(e, at("messages[%zu].content[%zu].type", message, i).text, "\"text\"",
                          type);
    if (strcmp(json_string_value(type), "text") != 0) {
        struct place where = at("messages[%zu].content[%zu]", message, i);
        return openai_refuse(r, where.text,
                             "'%s' has the type '%.40s': this model reads text parts only",
                             where.text, json_string_value(type));
    }
    const json_t *text = json_object_get(part, "text");
    if (!json_is_string(text))
        return openai_bad(e, at("messages[%zu].content[%zu].text", message, i).text, "a string",
                          text);
    if (i)
        buf_addc(out, '\n');
    buf_add(out, json_string_value(text), json_string_length(text));
    return 0;
}

/* Content as one new string: parts are joined by newlines, as vLLM does. NULL after filling in e.
 */
static json_t *content_text(struct chat_request *r, const json_t *v, size_t message, bool optional,
                            struct err *e)
{
    if (json_is_string(v))
        return json_incref((json_t *)v);
    if (optional && (!v || json_is_null(v)))
        return json_string("");
    if (!json_is_array(v)) {
        openai_bad(e, at("messages[%zu].content", message).text,
                   "a string or an array of text parts", v);
        return NULL;
    }
    struct buf text = {0};
    for (size_t i = 0; i < json_array_size(v); i++) {
        if (add_part(r, &text, json_array_get(v, i), message, i, e)) {
            buf_release(&text);
            return NULL;
        }
    }
    json_t *out = json_stringn(buf_str(&text), text.len);
    buf_release(&text);
    return out;
}

/* The arguments of a call as an object: clients send them as JSON text, templates want the value.
 */
static json_t *call_arguments(const json_t *v)
{
    if (!v || json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0))
        return json_object();
    if (json_is_object(v))
        return json_incref((json_t *)v);
    json_t *parsed =
        json_is_string(v) ? jr_parse(json_string_value(v), json_string_length(v), NULL) : NULL;
    if (json_is_object(parsed))
        return parsed;
    json_decref(parsed);
    return NULL;
}

static json_t *tool_call(const json_t *call, size_t message, struct err *e)
{
    struct place where = at("messages[%zu].tool_calls", message);
    const json_t *function = json_object_get(call, "function");
    const json_t *name = json_object_get(function, "name");
    const json_t *id = json_object_get(call, "id");
    if (!json_is_string(name) || (id && !json_is_string(id) && !json_is_null(id))) {
        openai_bad(e, where.text, "calls of the form {id, type, function: {name, arguments}}",
                   call);
        return NULL;
    }
    json_t *arguments = call_arguments(json_object_get(function, "arguments"));
    if (!arguments) {
        openai_bad(e, where.text, "calls whose arguments are a JSON object as text",
                   json_object_get(function, "arguments"));
        return NULL;
    }
    json_t *out = json_pack("{s:s, s:{s:O, s:o}}", "type", "function", "function", "name", name,
                            "arguments", arguments);
    if (json_is_string(id))
        json_object_set(out, "id", (json_t *)id);
    return out;
}

static int tool_calls(json_t *out, const json_t *v, size_t message, struct err *e)
{
    if (!json_is_array(v))
        return openai_bad(e, at("messages[%zu].tool_calls", message).text, "an array", v);
    json_t *calls = json_array();
    for (size_t i = 0; i < json_array_size(v); i++) {
        json_t *call = tool_call(json_array_get(v, i), message, e);
        if (!call) {
            json_decref(calls);
            return ERR_INVALID;
        }
        json_array_append_new(calls, call);
    }
    if (json_array_size(calls))
        json_object_set(out, "tool_calls", calls);
    json_decref(calls);
    return 0;
}

/* String members that templates may look at are handed on as they are. */
static int pass_strings(json_t *out, const json_t *v, size_t message, struct err *e)
{
    static const char *const names[] = {"name", "tool_call_id", "reasoning_content"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const json_t *s = json_object_get(v, names[i]);
        if (!s || json_is_null(s))
            continue;
        if (!json_is_string(s))
            return openai_bad(e, at("messages[%zu].%s", message, names[i]).text, "a string", s);
        json_object_set(out, names[i], (json_t *)s);
    }
    return 0;
}

static json_t *message(struct chat_request *r, const json_t *v, size_t i, struct err *e)
{
    if (!json_is_object(v)) {
        openai_bad(e, at("messages[%zu]", i).text, "an object with role and content", v);
        return NULL;
    }
    const struct role *role = role_find(json_object_get(v, "role"));
    if (!role) {
        openai_bad(e, at("messages[%zu].role", i).text,
                   "one of system, developer, user, assistant, tool", json_object_get(v, "role"));
        return NULL;
    }
    const json_t *calls = json_object_get(v, "tool_calls");
    if (json_is_null(calls))
        calls = NULL;
    json_t *content =
        content_text(r, json_object_get(v, "content"), i, role->content_optional && calls, e);
    if (!content)
        return NULL;
    json_t *out = json_pack("{s:s, s:o}", "role", role->template_name, "content", content);
    if ((calls && tool_calls(out, calls, i, e)) || pass_strings(out, v, i, e)) {
        json_decref(out);
        return NULL;
    }
    return out;
}

int openai_read_messages(struct chat_request *r, const struct openai_param *p, const json_t *v,
                         struct err *e)
{
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n == 0)
        return openai_bad(e, p->name, "an array of at least one message", v);
    if (n > API_MAX_MESSAGES)
        return err_param(e, ERR_LIMIT, p->name, "'messages' takes at most %d messages, got %zu",
                         API_MAX_MESSAGES, n);
    r->messages = json_array();
    for (size_t i = 0; i < n; i++) {
        struct err why = {0};
        json_t *m = message(r, json_array_get(v, i), i, &why);
        if (!m)
            return err_param(e, why.code, why.param, "%s", why.msg);
        json_array_append_new(r->messages, m);
    }
    return 0;
}

/* What models are trained to spell: letters, digits and _ - . : / */
static bool is_function_name(const json_t *v)
{
    const char *name = json_string_value(v);
    size_t n = json_string_length(v);
    bool fine = n > 0 && n <= API_MAX_FUNCTION_NAME;
    for (size_t i = 0; fine && i < n; i++)
        fine = isalnum((unsigned char)name[i]) || (name[i] && strchr("_-.:/", name[i]));
    return fine;
}

static bool is_absent(const json_t *v)
{
    return !v || json_is_null(v);
}

static int check_tool(const json_t *tool, size_t i, struct err *e)
{
    const char *type = json_string_value(json_object_get(tool, "type"));
    const json_t *function = json_object_get(tool, "function");
    const json_t *name = json_object_get(function, "name");
    const json_t *description = json_object_get(function, "description");
    const json_t *parameters = json_object_get(function, "parameters");
    const json_t *strict = json_object_get(function, "strict");
    if (!type || strcmp(type, "function") != 0)
        return openai_bad(e, at("tools[%zu].type", i).text, "\"function\"",
                          json_object_get(tool, "type"));
    if (!is_function_name(name))
        return openai_bad(e, at("tools[%zu].function.name", i).text,
                          "1 to 128 letters, digits and _ - . : /", name);
    if (!is_absent(description) && !json_is_string(description))
        return openai_bad(e, at("tools[%zu].function.description", i).text, "a string",
                          description);
    if (!is_absent(parameters) && !json_is_object(parameters))
        return openai_bad(e, at("tools[%zu].function.parameters", i).text, "a JSON schema",
                          parameters);
    if (!is_absent(strict) && !json_is_boolean(strict))
        return openai_bad(e, at("tools[%zu].function.strict", i).text, "true or false", strict);
    return 0;
}

int openai_read_tools(struct chat_request *r, const struct openai_param *p, const json_t *v,
                      struct err *e)
{
    size_t n = json_array_size(v);
    if (!json_is_array(v))
        return openai_bad(e, p->name, "an array of functions", v);
    if (n > API_MAX_TOOLS)
        return err_param(e, ERR_LIMIT, p->name, "'tools' takes at most %d functions, got %zu",
                         API_MAX_TOOLS, n);
    for (size_t i = 0; i < n; i++) {
        int rc = check_tool(json_array_get(v, i), i, e);
        if (rc)
            return rc;
    }
    r->tools = n ? json_incref((json_t *)v) : NULL;
    return 0;
}

/* "none" keeps the tools from the model. A call can be recognised but not forced. */
int openai_read_tool_choice(struct chat_request *r, const struct openai_param *p, const json_t *v,
                            struct err *e)
{
    const char *s = json_string_value(v);
    if (s && strcmp(s, "auto") == 0)
        return 0;
    if (s && strcmp(s, "none") == 0) {
        json_decref(r->tools);
        r->tools = NULL;
        return 0;
    }
    if (!json_is_object(v) && !(s && strcmp(s, "required") == 0))
        return openai_bad(e, p->name, "\"none\" or \"auto\"", v);
    return openai_refuse(r, p->name,
                         "'tool_choice' cannot force a call on this server: use \"auto\" or "
                         "\"none\"");
}
