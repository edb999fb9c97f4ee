#include "api/adapter.h"

#include <string.h>

static void write_time(struct jw *w, const char *key, int64_t unix_s)
{
    if (unix_s)
        jw_kint(w, key, unix_s);
    else
        jw_knull(w, key);
}

/* How it stands now, and how it was used. */
static void write_state(struct jw *w, const struct adapter_card *c)
{
    jw_kstr(w, "state", c->state);
    jw_kstr(w, "error", c->error);
    jw_kbool(w, "pin", c->pinned);
    jw_kuint(w, "resident_bytes", c->resident_bytes);
    jw_kint(w, "running", c->running);
    jw_kint(w, "waiting", c->waiting);
    jw_kuint(w, "requests", c->requests);
    write_time(w, "last_used", c->last_used);
    jw_kint(w, "created", c->created);
}

void adapter_write_card(struct jw *w, const struct adapter_card *c)
{
    jw_obj(w);
    jw_kstr(w, "object", "adapter");
    jw_kint(w, "id", c->id);
    jw_kstr(w, "name", c->name);
    jw_kint(w, "version", c->version);
    jw_kstr(w, "base_model", c->base_model);
    write_state(w, c);
    jw_kstr(w, "path", c->path);
    jw_kstr(w, "format", c->format);
    jw_kstr(w, "trained_on", c->trained_on);
    jw_kstr(w, "digest", c->digest);
    jw_kint(w, "rank", c->rank);
    jw_kuint(w, "bytes", c->bytes);
    jw_kstr(w, "owner", c->owner);
    jw_key(w, "labels");
    const char *labels = c->labels && *c->labels ? c->labels : "{}";
    jw_raw(w, labels, strlen(labels));
    jw_key(w, "aliases");
    jw_arr(w);
    for (size_t i = 0; i < c->n_aliases; i++)
        jw_str(w, c->aliases[i]);
    jw_arr_end(w);
    jw_obj_end(w);
}

void adapter_write_model(struct jw *w, const struct adapter_card *c, int64_t max_model_len)
{
    jw_obj(w);
    jw_kstr(w, "id", c->name);
    jw_kstr(w, "object", "model");
    jw_kint(w, "created", c->created);
    jw_kstr(w, "owned_by", "terrace");
    jw_kstr(w, "root", c->path);
    jw_kstr(w, "parent", c->base_model);
    if (max_model_len)
        jw_kint(w, "max_model_len", max_model_len);
    jw_obj_end(w);
}

void adapter_write_vllm_error(struct buf *out, int status, const char *type, const char *message)
{
    struct jw w;
    jw_init(&w, out);
    jw_obj(&w);
    jw_key(&w, "error");
    jw_obj(&w);
    jw_kstr(&w, "message", message);
    jw_kstr(&w, "type", type);
    jw_knull(&w, "param");
    jw_kint(&w, "code", status);
    jw_obj_end(&w);
    jw_obj_end(&w);
    jw_done(&w);
}

void adapter_write_sglang(struct buf *out, const char *error, const char *const *loaded,
                          size_t n_pairs)
{
    struct jw w;
    jw_init(&w, out);
    jw_obj(&w);
    jw_kbool(&w, "success", !error);
    jw_kstr(&w, "error_message", error ? error : "");
    jw_key(&w, "loaded_adapters");
    jw_obj(&w);
    for (size_t i = 0; i < n_pairs; i++)
        jw_kstr(&w, loaded[2 * i], loaded[2 * i + 1]);
    jw_obj_end(&w);
    jw_obj_end(&w);
    jw_done(&w);
}
