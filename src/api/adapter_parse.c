#define _GNU_SOURCE
#include <math.h>
#include <string.h>

#include "api/adapter.h"
#include "api/openai_parse.h"
#include "base/mem.h"

/* ---- what a generation asks for ---- */

static const char ONE_NAME[] = "the name of an adapter, of 1 to 128 bytes";

static bool text_of(const json_t *v, size_t max, struct str *out)
{
    *out = (struct str){json_string_value(v), json_string_length(v)};
    return out->p && out->n > 0 && out->n <= max;
}

static int read_scale(struct adapter_choice *out, const char *field, const json_t *v, struct err *e)
{
    out->scale = json_is_number(v) ? json_number_value(v) : NAN;
    if (!(fabs(out->scale) <= API_MAX_SCALE))
        return openai_bad(e, field, "a number from -100 to 100", v);
    return 0;
}

/* "NAME" or "NAME:SCALE"; what follows the last ':' is a scale only if it is a number. */
static int read_name(struct arena *a, struct adapter_choice *out, const json_t *v, struct err *e)
{
    struct str text;
    if (!text_of(v, ADAPTER_NAME_BYTES, &text))
        return openai_bad(e, "adapter", ONE_NAME, v);
    const char *colon = memrchr(text.p, ':', text.n);
    size_t n = colon ? (size_t)(colon - text.p) : text.n;
    *out = (struct adapter_choice){.name = text.p, .id = -1, .scale = 1};
    if (!n || n == text.n || !str_to_double((struct str){colon + 1, text.n - n - 1}, &out->scale)) {
        out->scale = 1;
        return 0;
    }
    if (!(fabs(out->scale) <= API_MAX_SCALE))
        return openai_bad(e, "adapter", "NAME:SCALE with a scale from -100 to 100", v);
    out->name = arena_strdup(a, (struct str){text.p, n});
    return 0;
}

/* A name as above, or {"name": NAME, "scale": NUMBER}. */
static int read_choice(struct arena *a, struct adapter_choice *out, const json_t *v, struct err *e)
{
    if (!json_is_object(v))
        return read_name(a, out, v, e);
    struct str text;
    const json_t *scale = json_object_get(v, "scale"), *name = json_object_get(v, "name");
    if (!text_of(name, ADAPTER_NAME_BYTES, &text))
        return openai_bad(e, "adapter.name", ONE_NAME, name);
    *out = (struct adapter_choice){.name = text.p, .id = -1, .scale = 1};
    return scale && !json_is_null(scale) ? read_scale(out, "adapter.scale", scale, e) : 0;
}

/* {"id": N, "scale": NUMBER} as llama-server takes it. */
static int read_numbered(struct adapter_choice *out, const json_t *v, struct err *e)
{
    const json_t *id = json_object_get(v, "id");
    *out = (struct adapter_choice){0};
    if (!openai_int(id, 0, INT64_MAX, &out->id))
        return openai_bad(e, "lora.id", "the id of an adapter in /lora-adapters", id);
    return read_scale(out, "lora.scale", json_object_get(v, "scale"), e);
}

static bool same_adapter(const struct adapter_choice *a, const struct adapter_choice *b)
{
    return a->name && b->name ? strcmp(a->name, b->name) == 0 : a->id == b->id;
}

/* Adds c unless its scale is 0, which asks for nothing. */
static int add_choice(struct chat_request *r, const char *field, struct adapter_choice c,
                      struct err *e)
{
    if (c.scale == 0)
        return 0;
    for (size_t i = 0; i < r->n_adapters; i++)
        if (same_adapter(&r->adapters[i], &c))
            return err_param(e, ERR_INVALID, field, "'%s' holds the same adapter twice", field);
    if (r->n_adapters == API_MAX_ADAPTERS)
        return err_param(e, ERR_LIMIT, field, "'%s' takes at most %d adapters", field,
                         API_MAX_ADAPTERS);
    r->adapters[r->n_adapters++] = c;
    return 0;
}

/* One of `adapter` and `lora`. */
static int pick_once(struct chat_request *r, const char *field, struct err *e)
{
    if (r->picks_adapters)
        return err_param(e, ERR_INVALID, field, "give 'adapter' or 'lora', not both");
    r->picks_adapters = true;
    return 0;
}

int openai_read_adapter(struct chat_request *r, const struct openai_param *p, const json_t *v,
                        struct err *e)
{
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    int rc = pick_once(r, p->name, e);
    if (!rc && n > API_MAX_ADAPTERS)
        rc = err_param(e, ERR_LIMIT, p->name, "'adapter' takes at most %d adapters, got %zu",
                       API_MAX_ADAPTERS, n);
    for (size_t i = 0; i < n && !rc; i++) {
        struct adapter_choice c;
        rc = read_choice(&r->arena, &c, json_is_array(v) ? json_array_get(v, i) : v, e);
        if (!rc)
            rc = add_choice(r, p->name, c, e);
    }
    return rc;
}

int openai_read_lora(struct chat_request *r, const struct openai_param *p, const json_t *v,
                     struct err *e)
{
    int rc = pick_once(r, p->name, e);
    if (!rc && (!json_is_array(v) || json_array_size(v) > ADAPTER_MAX_SCALES))
        rc = openai_bad(e, p->name, "an array of objects with 'id' and 'scale'", v);
    for (size_t i = 0; !rc && i < json_array_size(v); i++) {
        struct adapter_choice c;
        rc = read_numbered(&c, json_array_get(v, i), e);
        if (!rc)
            rc = add_choice(r, p->name, c, e);
    }
    return rc;
}

/* ---- members of bodies ---- */

static const json_t *member(const json_t *root, const char *name)
{
    const json_t *v = json_object_get(root, name);
    return json_is_null(v) ? NULL : v;
}

static int read_text(const json_t *root, const char *name, size_t min, size_t max, const char **out,
                     struct err *e)
{
    char what[64];
    const json_t *v = member(root, name);
    *out = json_string_value(v);
    if (!v || (*out && json_string_length(v) >= min && json_string_length(v) <= max))
        return 0;
    snprintf(what, sizeof what, "a text of %zu to %zu bytes", min, max);
    return openai_bad(e, name, what, v);
}

static int read_bool(const json_t *root, const char *name, bool *has, bool *out, struct err *e)
{
    const json_t *v = member(root, name);
    *out = json_is_true(v);
    if (has)
        *has = v;
    return !v || json_is_boolean(v) ? 0 : openai_bad(e, name, "true or false", v);
}

/* An object; in our own dialect with known members only. */
static int read_root(json_t **out, const char *body, size_t n, const char *const *known,
                     struct err *e)
{
    const char *key;
    json_t *v;
    *out = jr_parse(body, n, e);
    if (!*out)
        return ERR_INVALID;
    if (!json_is_object(*out))
        return err_set(e, ERR_INVALID, "the body must be a JSON object");
    json_object_foreach(*out, key, v)
    {
        size_t i = 0;
        while (known && known[i] && strcmp(known[i], key))
            i++;
        if (known && !known[i])
            return err_param(e, ERR_INVALID, key, "the body may not hold '%.64s'", key);
    }
    return 0;
}

/* ---- bodies ---- */

int adapter_parse_load(struct adapter_load *out, const char *body, size_t n, struct err *e)
{
    bool pinned;
    *out = (struct adapter_load){.name = "", .path = ""};
    int rc = read_root(&out->root, body, n, NULL, e);
    if (!rc)
        rc = read_text(out->root, "lora_name", 0, ADAPTER_NAME_BYTES, &out->name, e);
    if (!rc)
        rc = read_text(out->root, "lora_path", 0, ADAPTER_PATH_BYTES, &out->path, e);
    if (!rc)
        rc = read_text(out->root, "base_model_name", 1, 512, &out->base_model, e);
    if (!rc)
        rc = read_bool(out->root, "load_inplace", NULL, &out->in_place, e);
    if (!rc)
        rc = read_bool(out->root, "pinned", NULL, &pinned, e);
    out->pin = !rc && pinned;
    out->name = out->name ? out->name : "";
    out->path = out->path ? out->path : "";
    return rc;
}

void adapter_load_release(struct adapter_load *l)
{
    json_decref(l->root);
    *l = (struct adapter_load){0};
}

static int read_labels(struct adapter_spec *out, struct err *e)
{
    const char *key;
    json_t *v;
    out->labels = member(out->root, "labels");
    if (!out->labels)
        return 0;
    if (!json_is_object(out->labels))
        return openai_bad(e, "labels", "an object of texts", out->labels);
    if (json_object_size(out->labels) > ADAPTER_MAX_LABELS)
        return err_param(e, ERR_LIMIT, "labels", "'labels' takes at most %d, got %zu",
                         ADAPTER_MAX_LABELS, json_object_size(out->labels));
    json_object_foreach((json_t *)out->labels, key, v)
    {
        if (!*key || strlen(key) > ADAPTER_NAME_BYTES)
            return err_param(e, ERR_INVALID, "labels", "a label's name takes 1 to %d bytes",
                             ADAPTER_NAME_BYTES);
        if (!json_is_string(v) || json_string_length(v) > ADAPTER_LABEL_BYTES)
            return openai_bad(e, "labels", "an object of texts of up to 256 bytes", v);
    }
    return 0;
}

int adapter_parse_spec(struct adapter_spec *out, bool change, const char *body, size_t n,
                       struct err *e)
{
    static const char *const all[] = {"name", "path", "base_model", "labels", "owner", "pin", NULL};
    static const char *const changes[] = {"labels", "owner", "pin", NULL};
    *out = (struct adapter_spec){0};
    int rc = read_root(&out->root, body, n, change ? changes : all, e);
    if (!rc)
        rc = read_text(out->root, "name", 1, ADAPTER_NAME_BYTES, &out->name, e);
    if (!rc)
        rc = read_text(out->root, "path", 1, ADAPTER_PATH_BYTES, &out->path, e);
    if (!rc && !change && (!out->name || !out->path))
        rc = err_param(e, ERR_INVALID, out->name ? "path" : "name", "'%s' is missing",
                       out->name ? "path" : "name");
    if (!rc)
        rc = read_text(out->root, "base_model", 1, 512, &out->base_model, e);
    if (!rc)
        rc = read_text(out->root, "owner", 0, ADAPTER_NAME_BYTES, &out->owner, e);
    if (!rc)
        rc = read_bool(out->root, "pin", &out->has_pin, &out->pin, e);
    return rc ? rc : read_labels(out, e);
}

void adapter_spec_release(struct adapter_spec *s)
{
    json_decref(s->root);
    *s = (struct adapter_spec){0};
}

int adapter_parse_target(struct adapter_target *out, bool named, const char *body, size_t n,
                         struct err *e)
{
    static const char *const all[] = {"adapter", "version", NULL};
    *out = (struct adapter_target){0};
    if (!n && !named)
        return 0;
    int rc = read_root(&out->root, body, n, named ? all : all + 1, e);
    if (!rc)
        rc = read_text(out->root, "adapter", 1, ADAPTER_NAME_BYTES, &out->adapter, e);
    if (!rc && named && !out->adapter)
        rc = err_param(e, ERR_INVALID, "adapter", "'adapter' is missing");
    const json_t *version = member(out->root, "version");
    if (!rc && version && !openai_int(version, 1, INT32_MAX, &out->version))
        rc = openai_bad(e, "version", "the number of a version", version);
    return rc;
}

void adapter_target_release(struct adapter_target *t)
{
    json_decref(t->root);
    *t = (struct adapter_target){0};
}

int adapter_parse_scales(struct adapter_scales *out, const char *body, size_t n, struct err *e)
{
    *out = (struct adapter_scales){0};
    json_t *root = jr_parse(body, n, e);
    if (!root)
        return ERR_INVALID;
    int rc = 0;
    size_t size = json_array_size(root);
    if (!json_is_array(root))
        rc = err_set(e, ERR_INVALID, "the body must be an array of objects with 'id' and 'scale'");
    else if (size > ADAPTER_MAX_SCALES)
        rc = err_set(e, ERR_LIMIT, "at most %d scales at once, got %zu", ADAPTER_MAX_SCALES, size);
    else
        out->all = arena_alloc(&out->arena, size * sizeof *out->all);
    for (size_t i = 0; !rc && i < size; i++) {
        rc = read_numbered(&out->all[i], json_array_get(root, i), e);
        out->n += !rc;
    }
    json_decref(root);
    return rc;
}

void adapter_scales_release(struct adapter_scales *s)
{
    arena_release(&s->arena);
    *s = (struct adapter_scales){0};
}
