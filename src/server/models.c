/* models.c - /v1/models: what is loaded and what could be; loading and unloading by hand. */
#include <stdlib.h>

#include "base/mem.h"
#include "gateway/backends.h"
#include "server/adapter_http.h"

/* ---- one model as JSON ---- */

static const char *state_name(const struct served *m)
{
    static const char *const names[] = {
        [SERVED_UNLOADED] = "unloaded",   [SERVED_LOADING] = "loading",
        [SERVED_READY] = "loaded",        [SERVED_DRAINING] = "unloading",
        [SERVED_UNLOADING] = "unloading", [SERVED_FAILED] = "failed",
    };
    return names[m->state];
}

/* llama-server's router has `status.value`, and `failed`. */
static void write_status(struct jw *w, const struct served *m)
{
    struct server *s = m->server;
    jw_key(w, "status");
    jw_obj(w);
    jw_kstr(w, "value", state_name(m));
    if (m->state == SERVED_FAILED) {
        jw_kbool(w, "failed", true);
        jw_kstr(w, "error", m->failure.msg);
    }
    if (served_is_loaded(m)) {
        struct budget_sums sums = {{0}};
        uint64_t all = 0;
        if (s->opts.budget)
            sums = budget_sums(s->opts.budget, m->name);
        for (int i = 0; i < BUDGET_USES; i++)
            all += sums.bytes[i];
        bool stays = m->named || m->keep_ms == KEEP_FOREVER;
        jw_kuint(w, "bytes", all);
        jw_kuint(w, "weights_bytes", sums.bytes[BUDGET_WEIGHTS]);
        jw_kuint(w, "kv_bytes", sums.bytes[BUDGET_KV]);
        jw_kint(w, "requests", m->users);
        jw_kbool(w, "named", m->named);
        jw_key(w, "expires_at");
        if (stays)
            jw_null(w);
        else
            jw_int(w, clock_unix_s() +
                          (m->users ? m->keep_ms : m->used_ms + m->keep_ms - clock_ms()) / 1000);
    }
    jw_obj_end(w);
}

/* OpenAI's four members, and those that vLLM and llama-server add. */
static void write_head(struct jw *w, const char *name, int64_t created)
{
    jw_kstr(w, "id", name);
    jw_kstr(w, "object", "model");
    jw_kint(w, "created", created);
    jw_kstr(w, "owned_by", "terrace");
    jw_kstr(w, "root", name);
    jw_knull(w, "parent");
}

static void write_meta(struct jw *w, const struct model_info *info)
{
    jw_key(w, "meta");
    jw_obj(w);
    jw_kstr(w, "arch", info->arch);
    jw_kstr(w, "quantization", info->quant);
    jw_kint(w, "n_vocab", info->n_vocab);
    jw_kint(w, "n_ctx_train", info->n_ctx_train);
    jw_kint(w, "n_embd", info->n_embd);
    jw_kuint(w, "n_params", info->n_params);
    jw_kuint(w, "size", info->weight_bytes);
    jw_obj_end(w);
}

static void write_model(struct jw *w, const struct served *m)
{
    int64_t created = m->candidate ? m->candidate->modified_unix_s : 0;
    bool loaded = served_is_loaded(m);
    jw_obj(w);
    write_head(w, m->name, loaded ? m->model.created_unix_s : created);
    if (loaded)
        jw_kint(w, "max_model_len", m->model.n_ctx);
    if (loaded && m->model.info)
        write_meta(w, m->model.info);
    write_status(w, m);
    jw_obj_end(w);
}

/* ---- lists ---- */

struct listing {
    struct exchange *x;
    struct server *server;
    struct jw *w;
};

/* What is on the disk and nobody has asked for. */
static void write_candidate(void *to, const struct server_candidate *c)
{
    struct listing *l = to;
    if (served_find(l->server, c->name) || !gate_allows_model(l->x, c->name))
        return;
    jw_obj(l->w);
    write_head(l->w, c->name, c->modified_unix_s);
    jw_key(l->w, "status");
    jw_obj(l->w);
    jw_kstr(l->w, "value", "unloaded");
    jw_obj_end(l->w);
    jw_obj_end(l->w);
}

/* What only backends serve. */
static void write_remote(void *to, const char *model, const struct backend *b)
{
    struct listing *l = to;
    if (served_find(l->server, model) || !gate_allows_model(l->x, model))
        return;
    jw_obj(l->w);
    write_head(l->w, model, 0);
    jw_kstr(l->w, "backend", b->config.name);
    jw_key(l->w, "status");
    jw_obj(l->w);
    jw_kstr(l->w, "value", "remote");
    jw_obj_end(l->w);
    jw_obj_end(l->w);
}

/* The adapters, below their base models; with a name, that one. Returns how many. */
static int write_adapters(struct jw *w, const struct exchange *x, const char *name)
{
    struct server *s = x->server;
    struct registry_list all;
    int n = 0;
    registry_list(adapters_registry(s->adapters), &all);
    for (size_t i = 0; i < all.n; i++) {
        const struct registry_entry *a = &all.entries[i];
        const struct registry_version *v = registry_version_of(a, 0);
        const struct served *m = served_find(s, a->base);
        if (!v || (name && strcmp(name, a->name)) || !gate_allows_adapter(x, a->name) ||
            !gate_allows_model(x, a->base))
            continue;
        struct adapter_card c = {.name = a->name,
                                 .base_model = a->base,
                                 .path = v->source,
                                 .created = v->created_unix_s};
        adapter_write_model(w, &c, m && served_is_loaded(m) ? m->model.n_ctx : 0);
        n++;
    }
    registry_list_release(&all);
    return n;
}

/* Somebody has used it once, and its file was removed since. */
static bool is_gone(const struct served *m)
{
    const struct server_loader *l = &m->server->opts.loader;
    struct server_candidate c;
    bool idle = m->state == SERVED_UNLOADED || m->state == SERVED_FAILED;
    return idle && !m->named && l->find && l->find(l->arg, m->name, &c, NULL);
}

void handle_models(struct exchange *x)
{
    struct buf body = {0};
    struct jw w;
    struct listing l = {x, x->server, &w};
    const struct server_loader *loader = &x->server->opts.loader;
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kstr(&w, "object", "list");
    jw_key(&w, "data");
    jw_arr(&w);
    for (const struct served *m = served_first(x->server); m; m = served_next(m))
        if (gate_allows_model(x, m->name) && !is_gone(m))
            write_model(&w, m);
    if (loader->list)
        loader->list(loader->arg, write_candidate, &l);
    backends_each_model(x->server->backends, write_remote, &l);
    write_adapters(&w, x, NULL);
    jw_arr_end(&w);
    jw_obj_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}

static void answer_no_model(struct exchange *x, const char *name)
{
    struct err e = {0};
    err_param(&e, ERR_NOTFOUND, "model", "The model `%.128s` does not exist", name);
    answer_error(x, 404, "model_not_found", &e);
}

struct search {
    struct listing listing;
    const char *name;
};

static void write_if_named(void *to, const char *model, const struct backend *b)
{
    struct search *s = to;
    if (strcmp(model, s->name) == 0)
        write_remote(&s->listing, model, b);
}

void handle_model(struct exchange *x)
{
    const char *name = x->path_rest ? x->path_rest : "";
    const struct served *m = served_discover(x->server, name);
    struct buf body = {0};
    struct jw w;
    struct search s = {{x, x->server, &w}, name};
    jw_init(&w, &body);
    if (m && gate_allows_model(x, m->name))
        write_model(&w, m);
    else
        backends_each_model(x->server->backends, write_if_named, &s);
    if (body.len || write_adapters(&w, x, name))
        answer_json(x, 200, &body);
    else
        answer_no_model(x, name);
    buf_release(&body);
}

/* ---- by hand ---- */

/* {"model": NAME, "keep_alive": ...}; the name is in the exchange's arena. NULL: answered. */
static const char *read_body(struct exchange *x, struct keep_alive *keep)
{
    struct err e = {0};
    json_t *root = jr_parse(x->http->body.p, x->http->body.n, &e);
    const json_t *model = json_object_get(root, "model"), *k = json_object_get(root, "keep_alive");
    const char *name = NULL;
    if (root && (!json_is_string(model) || !json_string_length(model)))
        err_param(&e, ERR_INVALID, "model", "'model' must be the name of a model");
    else if (k && !json_is_null(k) && !keep_alive_parse(k, keep))
        err_param(&e, ERR_INVALID, "keep_alive",
                  "'keep_alive' must be a number of seconds or a duration such as \"5m\"");
    else if (root)
        name = arena_strdup(&x->http->arena, str_of(json_string_value(model)));
    json_decref(root);
    if (!name)
        answer_err(x, &e);
    return name;
}

static void answer_success(struct exchange *x)
{
    static const char text[] = "{\"success\":true}";
    answer(x, 200, "application/json", text, strlen(text));
}

/* Answers when the model is here. */
void handle_model_load(struct exchange *x)
{
    struct keep_alive keep = {0};
    const char *name = read_body(x, &keep);
    struct served *m = name ? served_or_wait(x, name, &keep) : NULL;
    if (m)
        answer_success(x);
}

static void model_is_gone(struct waiter *w, const struct err *failed)
{
    answer_success((struct exchange *)((char *)w - offsetof(struct exchange, waiter)));
}

/* Answers when nobody uses it any more and its memory is free. */
void handle_model_unload(struct exchange *x)
{
    struct keep_alive keep = {0};
    const char *name = read_body(x, &keep);
    if (!name)
        return;
    struct served *m = served_discover(x->server, name);
    x->waiter.wake = model_is_gone;
    if (!m)
        answer_no_model(x, name);
    else if (!served_unload(m, &x->waiter))
        answer_success(x);
}
