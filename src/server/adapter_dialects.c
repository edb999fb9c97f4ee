/* adapter_dialects.c - adapters as clients of vLLM, SGLang and llama-server manage them.
 *
 * In the first two, load registers a name and unload forgets it, so that it can be loaded again and
 * is not listed any more; POST /v1/adapters/NAME/unload only frees the memory. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/adapter_http.h"

static struct registry *registry_of(const struct exchange *x)
{
    return adapters_registry(x->server->adapters);
}

static void answer_text(struct exchange *x, const char *text)
{
    answer(x, 200, "text/plain; charset=utf-8", text, strlen(text));
}

/* ---- vLLM ---- */

static void vllm_error(struct exchange *x, int status, const char *type, const char *message)
{
    struct buf body = {0};
    adapter_write_vllm_error(&body, status, type, message);
    if (status == 503)
        http_add_header(x->http, "Retry-After", "1");
    answer_json(x, status, &body);
    buf_release(&body);
}

static void vllm_err(struct exchange *x, const struct err *e)
{
    static const struct {
        int status;
        const char *type;
    } types[] = {
        {400, "BadRequestError"},  {403, "PermissionDeniedError"},   {404, "NotFoundError"},
        {409, "InvalidUserInput"}, {503, "ServiceUnavailableError"},
    };
    int status = adapter_error_status(e->code);
    const char *type = "InternalServerError";
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        if (types[i].status == status)
            type = types[i].type;
    vllm_error(x, status == 409 ? 400 : status, type, e->msg);
}

static void vllm_loaded(struct adapter_call *c, int rc, const struct err *e)
{
    if (rc)
        vllm_err(c->x, e);
    else
        answer_text(c->x, arena_printf(&c->x->http->arena,
                                       "Success: LoRA adapter '%s' added successfully.", c->name));
}

static void vllm_unloaded(struct adapter_call *c, int rc, const struct err *e)
{
    if (rc)
        vllm_err(c->x, e);
    else
        answer_text(c->x,
                    arena_printf(&c->x->http->arena,
                                 "Success: LoRA adapter '%s' removed successfully.", c->name));
}

/* ---- SGLang ---- */

static void sglang_answer(struct exchange *x, const char *error)
{
    struct buf body = {0};
    struct registry_list all;
    registry_list(registry_of(x), &all);
    const char **loaded = xcalloc(2 * all.n + 1, sizeof *loaded);
    for (size_t i = 0; i < all.n; i++) {
        const struct registry_version *v = registry_version_of(&all.entries[i], 0);
        loaded[2 * i] = all.entries[i].name;
        loaded[2 * i + 1] = v ? v->source : "";
    }
    adapter_write_sglang(&body, error, loaded, all.n);
    answer_json(x, error ? 400 : 200, &body);
    free(loaded);
    registry_list_release(&all);
    buf_release(&body);
}

static void sglang_over(struct adapter_call *c, int rc, const struct err *e)
{
    sglang_answer(c->x, rc ? e->msg : NULL);
}

/* ---- load and unload ---- */

static bool is_known(struct exchange *x, const char *name)
{
    struct registry_entry entry = {0};
    bool yes = registry_find(registry_of(x), name, &entry, NULL) == 0;
    registry_entry_release(&entry);
    return yes;
}

static void begin_load(struct exchange *x, const struct adapter_load *l,
                       void (*over)(struct adapter_call *c, int rc, const struct err *e))
{
    struct adapter_call *c = adapter_call_new(x, l->name, over);
    c->fresh = !is_known(x, l->name);
    c->then_load = true;
    adapter_call_do(c, &(struct adapters_op){.verb = ADAPTERS_ADD,
                                             .name = l->name,
                                             .path = l->path,
                                             .base = l->base_model,
                                             .pin = l->pin ? 1 : -1,
                                             .replace = l->in_place});
}

void handle_vllm_load(struct exchange *x)
{
    struct adapter_load l;
    struct err e = {0};
    if (adapter_parse_load(&l, x->http->body.p, x->http->body.n, &e))
        vllm_err(x, &e);
    else if (!*l.name || !*l.path)
        vllm_error(x, 400, "InvalidUserInput",
                   "Both 'lora_name' and 'lora_path' must be provided.");
    else if (!l.in_place && is_known(x, l.name))
        vllm_error(x, 400, "InvalidUserInput",
                   arena_printf(&x->http->arena,
                                "The lora adapter '%s' has already been loaded. If you want to "
                                "load the adapter in place, set 'load_inplace' to True.",
                                l.name));
    else
        begin_load(x, &l, vllm_loaded);
    adapter_load_release(&l);
}

void handle_sglang_load(struct exchange *x)
{
    struct adapter_load l;
    struct err e = {0};
    if (adapter_parse_load(&l, x->http->body.p, x->http->body.n, &e))
        sglang_answer(x, e.msg);
    else if (!*l.name || !*l.path)
        sglang_answer(x, "lora_name and lora_path must be provided.");
    else
        begin_load(x, &l, sglang_over);
    adapter_load_release(&l);
}

/* What aliases or users rely on is not forgotten by a client that knows nothing of them. */
static int check_unused(struct exchange *x, const char *name, struct err *e)
{
    struct registry_links aliases, users;
    registry_aliases(registry_of(x), name, &aliases);
    registry_users(registry_of(x), NULL, &users);
    int rc = 0;
    if (aliases.n)
        rc = err_param(e, ERR_INVALID, "lora_name",
                       "The alias '%.128s' points to the lora adapter '%.128s': take the alias "
                       "back, or use DELETE /v1/adapters",
                       aliases.links[0].from, name);
    for (size_t i = 0; i < users.n && !rc; i++)
        if (strcmp(users.links[i].name, name) == 0)
            rc = err_param(e, ERR_INVALID, "lora_name",
                           "The lora adapter '%.128s' is the own one of the user '%.128s': take it "
                           "back, or use DELETE /v1/adapters",
                           name, users.links[i].from);
    registry_links_release(&aliases);
    registry_links_release(&users);
    return rc;
}

static void begin_unload(struct exchange *x, const char *name,
                         void (*over)(struct adapter_call *c, int rc, const struct err *e))
{
    struct adapters_op op = {.verb = ADAPTERS_REMOVE, .name = name, .pin = -1};
    adapter_call_do(adapter_call_new(x, name, over), &op);
}

void handle_vllm_unload(struct exchange *x)
{
    struct adapter_load l;
    struct err e = {0};
    if (adapter_parse_load(&l, x->http->body.p, x->http->body.n, &e))
        vllm_err(x, &e);
    else if (!*l.name)
        vllm_error(x, 400, "InvalidUserInput",
                   "'lora_name' needs to be provided to unload a LoRA adapter.");
    else if (!is_known(x, l.name))
        vllm_error(x, 404, "NotFoundError",
                   arena_printf(&x->http->arena, "The lora adapter '%s' cannot be found.", l.name));
    else if (check_unused(x, l.name, &e))
        vllm_err(x, &e);
    else
        begin_unload(x, l.name, vllm_unloaded);
    adapter_load_release(&l);
}

void handle_sglang_unload(struct exchange *x)
{
    struct adapter_load l;
    struct err e = {0};
    if (adapter_parse_load(&l, x->http->body.p, x->http->body.n, &e) || check_unused(x, l.name, &e))
        sglang_answer(x, e.msg);
    else if (!*l.name)
        sglang_answer(x, "lora_name must be provided.");
    else
        begin_unload(x, l.name, sglang_over);
    adapter_load_release(&l);
}

/* ---- llama-server ---- */

void handle_lora_adapters(struct exchange *x)
{
    struct buf body = {0};
    struct jw w;
    struct registry_list all;
    registry_list(registry_of(x), &all);
    jw_init(&w, &body);
    jw_arr(&w);
    for (size_t i = 0; i < all.n; i++) {
        const struct registry_version *v = registry_version_of(&all.entries[i], 0);
        int64_t id = lora_table_number(&x->server->lora, all.entries[i].name);
        if (!adapter_visible(x, all.entries[i].name))
            continue;
        jw_obj(&w);
        jw_kint(&w, "id", id);
        jw_kstr(&w, "path", v ? v->source : "");
        jw_knum(&w, "scale", x->server->lora.rows[id].scale);
        jw_kstr(&w, "name", all.entries[i].name);
        jw_obj_end(&w);
    }
    jw_arr_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    registry_list_release(&all);
    buf_release(&body);
}

/* At most as many at once as a request may have. */
static int check_scales(const struct lora_table *t, const struct adapter_scales *s, struct err *e)
{
    int n = 0;
    for (size_t i = 0; i < s->n; i++) {
        if (!lora_table_name(t, s->all[i].id))
            return err_param(e, ERR_INVALID, "id", "no adapter has the id %lld",
                             (long long)s->all[i].id);
        n += s->all[i].scale != 0;
    }
    return n <= API_MAX_ADAPTERS
               ? 0
               : err_param(e, ERR_LIMIT, "scale", "at most %d adapters may have a scale at once",
                           API_MAX_ADAPTERS);
}

/* What is not in the list gets the scale 0. */
void handle_lora_adapters_post(struct exchange *x)
{
    struct lora_table *t = &x->server->lora;
    struct adapter_scales s;
    struct err e = {0};
    if (adapter_parse_scales(&s, x->http->body.p, x->http->body.n, &e) || check_scales(t, &s, &e)) {
        answer_err(x, &e);
    } else {
        struct buf body = {0};
        lora_table_clear_scales(t);
        for (size_t i = 0; i < s.n; i++)
            lora_table_set_scale(t, s.all[i].id, s.all[i].scale);
        server_changed(x->server);
        buf_adds(&body, "{\"success\":true}");
        answer_json(x, 200, &body);
        buf_release(&body);
    }
    adapter_scales_release(&s);
}
