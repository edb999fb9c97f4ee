#include "api/persona.h"

#include <ctype.h>
#include <string.h>

#include "api/openai_parse.h"
#include "base/json.h"

bool persona_name_ok(struct str name)
{
    bool ok = name.n > 0 && name.n <= PERSONA_NAME_BYTES && isalnum((unsigned char)name.p[0]);
    for (size_t i = 0; ok && i < name.n; i++)
        ok = isalnum((unsigned char)name.p[i]) || strchr("._-", name.p[i]);
    return ok;
}

void persona_spec_release(struct persona_spec *s)
{
    json_decref(s->messages);
    json_decref(s->root);
    arena_release(&s->arena);
    *s = (struct persona_spec){0};
}

static const json_t *field(const struct persona_spec *s, const char *name)
{
    const json_t *v = json_object_get(s->root, name);
    return json_is_null(v) ? NULL : v;
}

static int read_name(struct persona_spec *out, struct err *e)
{
    const json_t *v = field(out, "name");
    out->name = json_string_value(v);
    if (!out->name || !persona_name_ok((struct str){out->name, json_string_length(v)}))
        return openai_bad(e, "name",
                          "1 to 64 letters, digits, '.', '_' or '-', a letter or digit first", v);
    v = field(out, "model");
    out->model = json_string_value(v);
    if (v && (!json_string_length(v) || json_string_length(v) > 512))
        return openai_bad(e, "model", "the name of a model", v);
    v = field(out, "pin");
    out->pin = !json_is_false(v);
    if (v && !json_is_boolean(v))
        return openai_bad(e, "pin", "true or false", v);
    return 0;
}

static int read_messages(struct persona_spec *out, struct err *e)
{
    static const struct openai_param param = {.name = "messages"};
    const json_t *system = field(out, "system"), *messages = field(out, "messages");
    if (!system == !messages)
        return err_param(e, ERR_INVALID, "messages", "give exactly one of 'system' and 'messages'");
    if (system && !json_string_length(system))
        return openai_bad(e, "system", "a text", system);
    json_t *list = system ? json_pack("[{s:s, s:O}]", "role", "system", "content", system)
                          : json_incref((json_t *)messages);
    struct chat_request r = {0};
    int rc = openai_read_messages(&r, &param, list, e);
    if (!rc)
        rc = openai_served_here(&r, e);
    if (!rc)
        out->messages = json_incref(r.messages);
    chat_request_release(&r);
    json_decref(list);
    return rc;
}

static int read_adapter(struct persona_spec *out, struct err *e)
{
    static const struct openai_param param = {.name = "adapter"};
    const json_t *v = field(out, "adapter");
    struct chat_request r = {0};
    int rc = v ? openai_read_adapter(&r, &param, v, e) : 0;
    out->arena = r.arena;
    memcpy(out->adapters, r.adapters, sizeof r.adapters);
    out->n_adapters = r.n_adapters;
    out->adapter = r.n_adapters ? v : NULL;
    return rc;
}

int persona_parse_tree(struct persona_spec *out, json_t *root, struct err *e)
{
    *out = (struct persona_spec){.root = json_incref(root)};
    if (!json_is_object(root))
        return err_set(e, ERR_INVALID, "a persona must be a JSON object");
    int rc = read_name(out, e);
    if (!rc)
        rc = read_adapter(out, e);
    return rc ? rc : read_messages(out, e);
}

int persona_parse(struct persona_spec *out, const char *body, size_t n, struct err *e)
{
    *out = (struct persona_spec){0};
    json_t *root = jr_parse(body, n, e);
    if (!root)
        return ERR_INVALID;
    int rc = persona_parse_tree(out, root, e);
    json_decref(root);
    return rc;
}
