/* persona_http.c - /v1/personas, and the reset of the prefix cache. */
#include "server/persona.h"

#include "server/adapter_http.h"

/* Whose personas the request is about: its key's tenant, or the one that an admin names. NULL: that
 * is no name, and it was answered. */
static const char *tenant_or_answer(struct exchange *x)
{
    bool admin = x->key && x->key->key.role == ROLE_ADMIN;
    const char *own = key_tenant(x->key), *other = admin ? http_query(x->http, "tenant").p : NULL;
    struct err e = {0};
    if (!other || !*other)
        return other ? other : own ? own : "";
    if (key_name_ok(other))
        return other;
    err_param(&e, ERR_INVALID, "tenant", "'tenant' is not the name of one");
    answer_err(x, &e);
    return NULL;
}

static void write_persona(struct jw *w, const struct server *s, const struct persona *p, bool whole)
{
    static const char *const states[] = {
        [PERSONA_WAITING] = "waiting",
        [PERSONA_COMPUTING] = "computing",
        [PERSONA_READY] = "ready",
        [PERSONA_FAILED] = "failed",
    };
    const struct served *m = served_find((struct server *)s, p->model);
    bool known = m && served_is_loaded(m) && m->model.info;
    uint64_t block_bytes = known ? m->model.info->kv_block_bytes : 0;
    uint64_t blocks = p->pinned_in ? (uint64_t)persona_blocks(p) : 0;
    jw_obj(w);
    jw_kstr(w, "object", "persona");
    jw_kstr(w, "name", p->name);
    jw_kstr(w, "model", p->model);
    if (p->adapter) {
        jw_key(w, "adapter");
        jw_tree(w, p->adapter);
    }
    jw_kint(w, "created", p->created_unix_s);
    jw_kstr(w, "status", states[p->state]);
    if (p->state == PERSONA_FAILED)
        jw_kstr(w, "error", p->err.msg);
    jw_kbool(w, "pin", p->pin);
    jw_kuint(w, "prompt_tokens", p->prompt.n);
    jw_kuint(w, "pinned_blocks", blocks);
    jw_kuint(w, "pinned_bytes", blocks * block_bytes);
    jw_kuint(w, "kept_bytes", p->kv_task ? 0 : p->kv_bytes);
    if (whole) {
        jw_key(w, "messages");
        jw_tree(w, p->messages);
    }
    jw_obj_end(w);
}

static void answer_persona(struct exchange *x, const struct persona *p)
{
    struct buf body = {0};
    struct jw w;
    jw_init(&w, &body);
    write_persona(&w, x->server, p, true);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}

void persona_answer(struct persona *p)
{
    struct exchange *x = p->x;
    if (!x)
        return;
    p->x = NULL;
    x->persona = NULL;
    if (p->state == PERSONA_FAILED)
        answer_err(x, &p->err);
    else
        answer_persona(x, p);
}

/* False: its key may not use the adapter, and it was answered. */
static bool may_use_or_answer(struct exchange *x, const char *adapter)
{
    struct err e = {0};
    if (adapter_visible(x, adapter))
        return true;
    err_param(&e, ERR_DENIED, "adapter", "this API key may not use the adapter `%.128s`", adapter);
    answer_error(x, 403, "not_allowed", &e);
    return false;
}

static bool may_use_all_or_answer(struct exchange *x, const struct persona_spec *spec)
{
    size_t i = 0;
    while (i < spec->n_adapters && may_use_or_answer(x, spec->adapters[i].name))
        i++;
    return i == spec->n_adapters;
}

void handle_persona_put(struct exchange *x)
{
    struct persona_spec spec = {0};
    struct err e = {0};
    struct str body = x->http->body;
    int rc = body.n > PERSONA_MAX_BYTES
                 ? err_set(&e, ERR_LIMIT, "a persona may have %d KiB", PERSONA_MAX_BYTES >> 10)
                 : persona_parse(&spec, body.p, body.n, &e);
    if (rc) {
        answer_err(x, &e);
    } else {
        struct served *m = served_or_wait(x, spec.model, NULL);
        const char *tenant = m ? tenant_or_answer(x) : NULL;
        rc = tenant && may_use_all_or_answer(x, &spec)
                 ? personas_put(x->server->personas, tenant, &spec, m, x, &e)
                 : 0;
        if (rc) /* what can be missing is an adapter */
            answer_error(x, openai_status(rc), rc == ERR_NOTFOUND ? "adapter_not_found" : NULL, &e);
    }
    persona_spec_release(&spec);
}

void handle_personas(struct exchange *x)
{
    const char *tenant = tenant_or_answer(x);
    if (!tenant)
        return;
    struct buf body = {0};
    struct jw w;
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kstr(&w, "object", "list");
    jw_key(&w, "data");
    jw_arr(&w);
    for (const struct persona *p = x->server->personas->first; p; p = p->next)
        if (strcmp(p->tenant, tenant) == 0)
            write_persona(&w, x->server, p, false);
    jw_arr_end(&w);
    jw_obj_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}

static struct persona *named_or_answer(struct exchange *x)
{
    struct err e = {0};
    char id[PERSONA_ID_BYTES + 1];
    const char *tenant = tenant_or_answer(x);
    if (!tenant)
        return NULL;
    persona_id(tenant, x->path_rest ? x->path_rest : "", id);
    struct persona *p = personas_find(x->server->personas, id);
    if (p && x->path_rest && strcmp(p->name, x->path_rest) == 0)
        return p;
    err_param(&e, ERR_NOTFOUND, "name", "The persona `%.128s` does not exist",
              x->path_rest ? x->path_rest : "");
    answer_error(x, 404, "persona_not_found", &e);
    return NULL;
}

void handle_persona(struct exchange *x)
{
    const struct persona *p = named_or_answer(x);
    if (p)
        answer_persona(x, p);
}

static void answer_deleted(struct exchange *x, const char *name, int n)
{
    struct buf body = {0};
    struct jw w;
    if (n)
        personas_save(x->server->personas);
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kstr(&w, "object", name ? "persona" : "list");
    if (name)
        jw_kstr(&w, "name", name);
    jw_kbool(&w, "deleted", true);
    jw_kint(&w, "count", n);
    jw_obj_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}

void handle_persona_delete(struct exchange *x)
{
    const struct persona *p = named_or_answer(x);
    if (!p)
        return;
    char tenant[KEY_NAME_BYTES + 1];
    snprintf(tenant, sizeof tenant, "%s", p->tenant);
    answer_deleted(x, x->path_rest,
                   personas_remove(x->server->personas, tenant, x->path_rest, NULL, NULL));
}

/* All of a tenant, or with ?model=NAME and ?adapter=NAME those of one model, or adapter. */
void handle_personas_delete(struct exchange *x)
{
    const char *model = http_query(x->http, "model").p, *tenant = tenant_or_answer(x);
    const char *adapter = http_query(x->http, "adapter").p;
    if (tenant && (!adapter || may_use_or_answer(x, adapter)))
        answer_deleted(x, NULL, personas_remove(x->server->personas, tenant, NULL, model, adapter));
}

/* As vLLM's: 200 and no body. Personas are computed again. */
void handle_reset_prefix_cache(struct exchange *x)
{
    for (struct served *m = served_first(x->server); m; m = served_next(m))
        if (served_is_loaded(m))
            engine_forget_all(m->model.engine);
    personas_lost(x->server->personas, NULL);
    answer(x, 200, NULL, NULL, 0);
}
