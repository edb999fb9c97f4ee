/* upstream_ask.c - requests: what all dialects read alike. */
#include <stdio.h>
#include <string.h>

#include "api/openai_parse.h"
#include "api/upstream_private.h"

/* Read by the dialects apart from the others, acted on by Terrace itself, or notes. */
static const char *const elsewhere[] = {
    "model",
    "messages",
    "prompt",
    "stream",
    "max_tokens",
    "persona",
    "max_completion_tokens",
    "cache",
    "cache_salt",
    "timeout",
    "priority",
    "speculate",
    "keep_alive",
    "user",
    "safety_identifier",
    "continue_final_message",
};

int upstream_cannot(const struct upstream_asking *a, const char *name, struct err *e)
{
    return err_param(
        e, ERR_UNSUPPORTED, name,
        "'%.64s' with this value cannot be expressed in the API of the model's backend "
        "(%s): leave it out",
        name, upstream_wires[a->q->api].name);
}

/* include_usage is the business of the answer; counts in between are not known everywhere. */
static int read_stream_options(struct upstream_asking *a, const struct upstream_field *f,
                               const json_t *v, struct err *e)
{
    bool running = json_is_true(json_object_get(v, "continuous_usage_stats"));
    return running ? upstream_cannot(a, "stream_options.continuous_usage_stats", e) : 0;
}

/* A last message of the assistant's is continued there as a matter of course, and any other is not.
 */
static int read_generation_prompt(struct upstream_asking *a, const struct upstream_field *f,
                                  const json_t *v, struct err *e)
{
    bool continues = json_is_true(json_object_get(a->q->body, "continue_final_message"));
    return json_is_true(v) || continues ? 0 : upstream_cannot(a, f->name, e);
}

static const struct upstream_field common[] = {
    {"stream_options", read_stream_options, NULL},
    {"add_generation_prompt", read_generation_prompt, NULL},
};

static const struct upstream_field *find(const struct upstream_field *fields, size_t n,
                                         const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(fields[i].name, name) == 0)
            return &fields[i];
    return NULL;
}

static bool is_elsewhere(const char *name)
{
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
        if (strcmp(elsewhere[i], name) == 0)
            return true;
    return false;
}

int upstream_read_fields(struct upstream_asking *a, const struct upstream_field *fields, size_t n,
                         struct err *e)
{
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)a->q->body, name, v)
    {
        int rc = 0;
        if (json_is_null(v))
            continue;
        const struct upstream_field *f = find(fields, n, name);
        if (!f)
            f = find(common, sizeof common / sizeof *common, name);
        if (f)
            rc = f->fn(a, f, v, e);
        else if (!is_elsewhere(name) && !openai_asks_nothing(a->q->endpoint, name, v))
            rc = upstream_cannot(a, name, e);
        if (rc)
            return rc;
    }
    return 0;
}

int upstream_copy(struct upstream_asking *a, const struct upstream_field *f, const json_t *v,
                  struct err *e)
{
    json_object_set(a->out, f->to, (json_t *)v);
    return 0;
}

static const json_t *given(const struct upstream_asking *a, const char *name)
{
    const json_t *v = json_object_get(a->q->body, name);
    return json_is_null(v) ? NULL : v;
}

const json_t *upstream_max_tokens(const struct upstream_asking *a)
{
    const json_t *v = given(a, "max_completion_tokens");
    return v ? v : given(a, "max_tokens");
}

const json_t *upstream_messages(const struct upstream_asking *a)
{
    return a->q->messages ? a->q->messages : json_object_get(a->q->body, "messages");
}

json_t *upstream_stops(const json_t *v)
{
    return json_is_array(v) ? json_incref((json_t *)v) : json_pack("[O]", v);
}

const json_t *upstream_schema(const json_t *format)
{
    const json_t *schema = json_object_get(json_object_get(format, "json_schema"), "schema");
    return schema ? schema : json_object_get(format, "schema"); /* llama-server's form */
}

bool upstream_is(const json_t *v, const char *text)
{
    return json_is_string(v) && strcmp(json_string_value(v), text) == 0;
}

/* ---- messages ---- */

json_t *upstream_arguments(const json_t *call)
{
    const json_t *v = json_object_get(json_object_get(call, "function"), "arguments");
    if (!v || json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0))
        return json_object();
    json_t *out = json_is_string(v) ? jr_parse(json_string_value(v), json_string_length(v), NULL)
                                    : json_incref((json_t *)v);
    if (json_is_object(out))
        return out;
    json_decref(out);
    return NULL;
}

int upstream_bad_call(size_t message, struct err *e)
{
    char where[64];
    snprintf(where, sizeof where, "messages[%zu].tool_calls", message);
    return err_param(e, ERR_INVALID, where, "'%s' must be calls whose arguments are a JSON object",
                     where);
}

static bool read_data_url(struct str url, struct upstream_part *out)
{
    static const char mark[] = ";base64,";
    const char *comma = url.p ? memchr(url.p, ',', url.n) : NULL;
    size_t head = comma ? (size_t)(comma + 1 - url.p) : 0, n = sizeof mark - 1;
    if (!str_starts(url, "data:") || head < 5 + n || memcmp(comma + 1 - n, mark, n) != 0)
        return false;
    out->type = (struct str){url.p + 5, head - 5 - n};
    out->data = (struct str){comma + 1, url.n - head};
    return true;
}

/* Fills in all but `where`. */
static int read_part(const struct upstream_asking *a, const json_t *v, struct upstream_part *out,
                     struct err *e)
{
    const json_t *type = json_object_get(v, "type"), *image = json_object_get(v, "image_url");
    out->whole = v;
    out->text = upstream_is(type, "text") ? json_object_get(v, "text") : NULL;
    if (json_is_string(out->text))
        return 0;
    if (!upstream_is(type, "image_url"))
        return upstream_cannot(a, out->where, e);
    out->url = json_is_string(image) ? image : json_object_get(image, "url");
    struct str url = {json_string_value(out->url), json_string_length(out->url)};
    if (read_data_url(url, out) || str_starts(url, "https://") || str_starts(url, "http://"))
        return 0;
    return err_param(e, ERR_INVALID, out->where,
                     "'%s' must have an image_url of the form data:image/png;base64,... or "
                     "https://...",
                     out->where);
}

int upstream_each_part(const struct upstream_asking *a, const json_t *message, size_t i,
                       upstream_part_fn *fn, void *arg, struct err *e)
{
    const json_t *content = json_object_get(message, "content");
    int rc = 0;
    if (json_is_string(content)) {
        struct upstream_part whole = {.text = content};
        return fn(arg, &whole, e);
    }
    for (size_t k = 0; k < json_array_size(content) && !rc; k++) {
        struct upstream_part part = {0};
        snprintf(part.where, sizeof part.where, "messages[%zu].content[%zu]", i, k);
        rc = read_part(a, json_array_get(content, k), &part, e);
        if (!rc)
            rc = fn(arg, &part, e);
    }
    return rc;
}
