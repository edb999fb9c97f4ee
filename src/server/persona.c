#include "server/persona.h"

#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/persona_kv.h"
#include "server/terms.h"

/* A computation in the engine. Outlives its persona if that is removed meanwhile. */
struct persona_run {
    struct engine_user user;
    struct personas *all;
    struct persona *p; /* NULL: nobody waits for it */
    struct served *model;
    uint64_t id;
};

/* ---- the list ---- */

void persona_id(const char *tenant, const char *name, char out[PERSONA_ID_BYTES + 1])
{
    snprintf(out, PERSONA_ID_BYTES + 1, "%.*s%s%s", PERSONA_NAME_BYTES + 1, name,
             *tenant ? "@" : "", tenant);
}

const char *persona_salt(const struct persona *p, char room[PERSONA_SALT_BYTES])
{
    struct chat_request none = {0};
    const struct server_opts *o = &p->all->server->opts;
    const char *salt = request_salt(&none, *p->tenant && !o->share_prefixes ? p->tenant : NULL);
    if (salt)
        snprintf(room, PERSONA_SALT_BYTES, "%s", salt);
    chat_request_release(&none);
    return salt ? room : NULL;
}

struct persona *personas_find(const struct personas *all, const char *id)
{
    struct persona *p = all->first;
    while (p && strcmp(p->id, id) != 0)
        p = p->next;
    return p;
}

int persona_blocks(const struct persona *p)
{
    return p->pin ? ((int)p->prompt.n + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS : 0;
}

static struct persona *persona_new(struct personas *all, const char *tenant,
                                   const struct persona_spec *spec, const char *model)
{
    struct persona *p = xcalloc(1, sizeof *p);
    p->all = all;
    snprintf(p->tenant, sizeof p->tenant, "%s", tenant);
    persona_id(tenant, spec->name, p->id);
    snprintf(p->name, sizeof p->name, "%s", spec->name);
    p->model = xstrdup(model);
    p->messages = json_deep_copy(spec->messages);
    p->pin = spec->pin;
    p->created_unix_s = clock_unix_s();
    return p;
}

static void persona_free(struct persona *p)
{
    free(p->model);
    json_decref(p->messages);
    token_list_release(&p->prompt);
    free(p);
}

static void append(struct personas *all, struct persona *p)
{
    pthread_mutex_lock(&all->lock);
    struct persona **end = &all->first;
    while (*end)
        end = &(*end)->next;
    *end = p;
    all->n++;
    pthread_mutex_unlock(&all->lock);
}

static void take_out(struct personas *all, struct persona *p)
{
    pthread_mutex_lock(&all->lock);
    struct persona **at = &all->first;
    while (*at != p)
        at = &(*at)->next;
    *at = p->next;
    all->n--;
    pthread_mutex_unlock(&all->lock);
}

/* ---- prompts ---- */

static int probe(const struct served *m, const struct persona *p, const char *text,
                 struct token_list *out, struct err *e)
{
    struct chat_request r = {.messages = json_copy(p->messages)};
    json_array_append_new(r.messages, json_pack("{s:s, s:s}", "role", "user", "content", text));
    int rc = prompt_from_messages(m, &r, out, e);
    chat_request_release(&r);
    return rc;
}

/* What chats have in common that begin with p's messages: how templates place a system message, or
 * merge it with the user's, shows only in whole chats, so two that differ in the user's first
 * letter are compared. */
static int make_prompt(const struct served *m, struct persona *p, struct err *e)
{
    struct token_list a = {0}, b = {0};
    size_t n = 0;
    int rc = probe(m, p, "a", &a, e);
    if (!rc)
        rc = probe(m, p, "Z", &b, e);
    while (!rc && n < a.n && n < b.n && a.ids[n] == b.ids[n])
        token_list_add(&p->prompt, a.ids[n++]);
    if (!rc && p->prompt.n >= (size_t)m->model.n_ctx)
        rc = err_param(e, ERR_LIMIT, "messages",
                       "the persona takes %zu tokens, and the context of %s is %d: shorten it",
                       p->prompt.n, m->name, m->model.n_ctx);
    token_list_release(&a);
    token_list_release(&b);
    return rc;
}

/* Whether p's pin fits beside those of the others, `instead` left out. */
static int check_budget(const struct personas *all, const struct served *m, const struct persona *p,
                        const struct persona *instead, struct err *e)
{
    struct engine_stats stats;
    int used = 0, wanted = persona_blocks(p);
    engine_get_stats(m->model.engine, &stats);
    for (const struct persona *q = all->first; q; q = q->next)
        if (q != p && q != instead && q->state != PERSONA_FAILED && strcmp(q->model, m->name) == 0)
            used += persona_blocks(q);
    if (wanted <= stats.blocks_pin_limit - used)
        return 0;
    return err_param(e, ERR_LIMIT, "messages",
                     "the persona needs %d KV blocks of %d tokens, and of %d for personas %d are "
                     "in use: delete some, shorten it, raise --persona-budget, or say 'pin': false",
                     wanted, KV_BLOCK_TOKENS, stats.blocks_pin_limit, used);
}

/* ---- computing ---- */

/* Gives back what the engine holds for p, computed or on its way. */
static void let_go(struct personas *all, struct persona *p)
{
    if (p->kv_task && p->state == PERSONA_COMPUTING)
        all->computing = false;
    persona_kv_give_up(p);
    if (p->run) {
        struct engine *g = p->run->model->model.engine;
        engine_cancel(g, p->run->id);
        engine_unpin(g, p->run->id);
        p->run->p = NULL;
        all->computing = false;
        p->run = NULL;
    }
    if (p->pinned_in)
        engine_unpin(p->pinned_in->model.engine, p->pin_id);
    p->pinned_in = NULL;
    p->state = PERSONA_WAITING;
}

static void settle(struct persona *p, enum persona_state state)
{
    p->state = state;
    if (state == PERSONA_FAILED)
        log_warn("server", "persona %s: %s", p->id, p->err.msg);
    persona_answer(p);
}

static void run_event(struct engine_user *user, const struct engine_event *ev)
{
    struct persona_run *run = (struct persona_run *)user;
    struct personas *all = run->all;
    struct persona *p = run->p;
    if (!ev->finish)
        return;
    if (p) {
        all->computing = false;
        p->run = NULL;
        if (ev->finish == FINISH_STOP || ev->finish == FINISH_LENGTH) {
            p->pinned_in = p->pin ? run->model : NULL;
            p->pin_id = run->id;
            settle(p, PERSONA_READY);
            if (p->pinned_in)
                persona_kv_write(all->kv, p, run->model);
        } else if (ev->finish == FINISH_CANCEL) { /* the engine is closing */
            p->state = PERSONA_WAITING;
        } else {
            p->err = ev->err;
            p->err.code = ERR_IO; /* ours, not the client's */
            settle(p, PERSONA_FAILED);
        }
    }
    served_put(run->model);
    free(run);
    if (ev->finish != FINISH_CANCEL)
        personas_advance(all);
}

/* Hands p to the engine. False: it has to wait. */
static bool submit(struct personas *all, struct persona *p, struct served *m)
{
    struct persona_run *run = xcalloc(1, sizeof *run);
    *run = (struct persona_run){.user = {run_event}, .all = all, .p = p, .model = m};
    char salt[PERSONA_SALT_BYTES];
    struct engine_request r = {
        .cache_salt = persona_salt(p, salt),
        .prompt = p->prompt.ids,
        .n_prompt = (int)p->prompt.n,
        .max_tokens = 1,
        .tenant = "personas",
        .pin = p->pin,
        .user = &run->user,
    };
    struct err e = {0};
    sampling_default(&r.sampling);
    r.sampling.temperature = 0;
    int rc = engine_submit(m->model.engine, &r, &run->id, &e);
    if (!rc) {
        served_hold(m);
        p->run = run;
        p->state = PERSONA_COMPUTING;
        all->computing = true;
        return true;
    }
    free(run);
    /* ERR_LIMIT: the budget was checked, so a pin that was let go is still on its way out */
    if (rc == ERR_BUSY || rc == ERR_LIMIT)
        return false;
    p->err = e;
    settle(p, PERSONA_FAILED);
    return true;
}

/* Its file, if there may be one. */
static bool read_back(struct personas *all, struct persona *p, struct served *m)
{
    bool tried = p->kv_tried;
    p->kv_tried = true;
    if (tried || !p->pin || !persona_kv_read(all->kv, p, m))
        return false;
    p->state = PERSONA_COMPUTING;
    all->computing = true;
    return true;
}

void personas_read_back(struct personas *all, struct persona *p, struct served *m, uint64_t id)
{
    all->computing = false;
    p->state = PERSONA_WAITING;
    if (!m)
        return;
    p->pinned_in = m;
    p->pin_id = id;
    settle(p, PERSONA_READY);
}

/* False: it has to wait. */
static bool start(struct personas *all, struct persona *p)
{
    struct served *m = served_find(all->server, p->model);
    if (!m || m->state != SERVED_READY)
        return false;
    int rc = p->prompt.n ? 0 : make_prompt(m, p, &p->err);
    if (!rc)
        rc = check_budget(all, m, p, NULL, &p->err);
    if (rc)
        settle(p, PERSONA_FAILED);
    else if (!p->prompt.n)
        settle(p, PERSONA_READY);
    else
        return read_back(all, p, m) || submit(all, p, m);
    return true;
}

void personas_advance(struct personas *all)
{
    if (all->server->draining) /* engines may be gone */
        return;
    for (struct persona *p = all->first; p && !all->computing; p = p->next)
        if (p->state == PERSONA_WAITING)
            start(all, p);
}

void personas_lost(struct personas *all, const struct served *m)
{
    for (struct persona *p = all->first; p; p = p->next) {
        if (m && strcmp(p->model, m->name) != 0)
            continue;
        let_go(all, p);
        token_list_release(&p->prompt);
        p->kv_tried = m == NULL; /* a model that was unloaded can have its prompts back */
    }
    personas_advance(all);
}

/* ---- what clients do ---- */

int personas_apply(struct personas *all, const char *tenant, struct chat_request *r, struct err *e)
{
    char id[PERSONA_ID_BYTES + 1];
    json_t *messages = NULL;
    pthread_mutex_lock(&all->lock);
    persona_id(tenant, r->persona, id);
    const struct persona *p = personas_find(all, id);
    if (p) {
        /* a copy: its counts of references are then this thread's alone */
        messages = json_deep_copy(p->messages);
        if (!r->model && served_find(all->server, p->model))
            r->model = arena_strdup(&r->arena, str_of(p->model));
    }
    pthread_mutex_unlock(&all->lock);
    if (!messages)
        return err_param(e, ERR_NOTFOUND, "persona",
                         "The persona `%s` does not exist: POST /v1/personas makes it", r->persona);
    json_array_extend(messages, r->messages);
    json_decref(r->messages);
    r->messages = messages;
    return 0;
}

int personas_put(struct personas *all, const char *tenant, const struct persona_spec *spec,
                 struct served *m, struct exchange *x, struct err *e)
{
    char id[PERSONA_ID_BYTES + 1];
    persona_id(tenant, spec->name, id);
    struct persona *old = personas_find(all, id);
    if (!old && all->n >= PERSONA_MAX)
        return err_set(e, ERR_LIMIT, "there are %zu personas already, the most there may be",
                       all->n);
    struct persona *p = persona_new(all, tenant, spec, m->name);
    p->kv_tried = true;
    int rc = make_prompt(m, p, e);
    if (!rc)
        rc = check_budget(all, m, p, old, e);
    if (rc) {
        persona_free(p);
        return rc;
    }
    personas_remove(all, tenant, spec->name, NULL);
    append(all, p);
    personas_save(all);
    p->x = x;
    x->persona = p;
    personas_advance(all);
    return 0;
}

int personas_remove(struct personas *all, const char *tenant, const char *name, const char *model)
{
    int n = 0;
    server_changed(all->server);
    for (struct persona *p = all->first, *next; p; p = next) {
        next = p->next;
        if (strcmp(p->tenant, tenant) != 0 || (name && strcmp(p->name, name) != 0) ||
            (model && strcmp(p->model, model) != 0))
            continue;
        let_go(all, p);
        persona_kv_remove(all->kv, p->id);
        err_set(&p->err, ERR_EXISTS, "the persona was deleted or replaced meanwhile");
        p->state = PERSONA_FAILED;
        persona_answer(p);
        take_out(all, p);
        persona_free(p);
        n++;
    }
    return n;
}

void personas_client_gone(struct persona *p)
{
    p->x = NULL;
}

/* ---- life ---- */

struct personas *personas_new(struct server *s, const char *state_dir, uint64_t spill_bytes)
{
    struct personas *all = xcalloc(1, sizeof *all);
    all->server = s;
    pthread_mutex_init(&all->lock, NULL);
    if (state_dir) {
        struct buf path = {0};
        buf_addf(&path, "%s/personas.json", state_dir);
        all->path = buf_take(&path);
        personas_load(all);
        all->kv = spill_bytes ? persona_kv_new(all, state_dir, spill_bytes) : NULL;
        if (all->path) /* else the list was not understood */
            persona_kv_sweep(all->kv);
    }
    return all;
}

void personas_free(struct personas *all)
{
    if (!all)
        return;
    persona_kv_free(all->kv);
    for (struct persona *p = all->first, *next; p; p = next) {
        next = p->next;
        persona_free(p);
    }
    pthread_mutex_destroy(&all->lock);
    free(all->path);
    free(all);
}

void personas_stop(struct personas *all, bool now)
{
    persona_kv_stop(all->kv, now);
}

bool personas_busy(const struct personas *all)
{
    return persona_kv_busy(all->kv);
}

void personas_restore(struct personas *all, const char *tenant, const struct persona_spec *spec,
                      int64_t created)
{
    struct persona *p = persona_new(all, tenant, spec, spec->model);
    p->created_unix_s = created;
    append(all, p);
}
