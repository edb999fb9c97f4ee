#include "server/persona.h"

#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/persona_kv.h"
#include "server/terms.h"

/* A computation: until its adapters are there, until its file is read, or in the engine. Then it
 * outlives its persona if that is removed meanwhile. */
struct persona_run {
    struct engine_user user;
    struct personas *all;
    struct persona *p;        /* NULL: nobody waits for it */
    struct persona_with with; /* the model is held */
    struct adapter_lease lease;
    struct waiter waiter; /* for the lease */
    uint64_t id;          /* 0: it is not in the engine */
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

static void copy_choices(struct adapter_choice *to, const struct adapter_choice *from, size_t n,
                         struct arena *arena)
{
    for (size_t i = 0; i < n; i++) {
        to[i] = from[i];
        to[i].name = arena_strdup(arena, str_of(from[i].name));
    }
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
    p->adapter = spec->adapter ? json_deep_copy(spec->adapter) : NULL;
    p->n_adapters = spec->n_adapters;
    copy_choices(p->adapters, spec->adapters, spec->n_adapters, &p->arena);
    p->pin = spec->pin;
    p->created_unix_s = clock_unix_s();
    return p;
}

static void persona_free(struct persona *p)
{
    free(p->model);
    json_decref(p->messages);
    json_decref(p->adapter);
    arena_release(&p->arena);
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

/* ---- adapters ---- */

static int take_adapters(struct personas *all, const struct persona *p, struct served *m,
                         struct adapter_lease *lease, struct err *e)
{
    struct adapter_pick picks[API_MAX_ADAPTERS];
    for (size_t i = 0; i < p->n_adapters; i++)
        picks[i] = (struct adapter_pick){p->adapters[i].name, p->adapters[i].scale};
    return adapters_take(all->server->adapters, lease, m, picks, (int)p->n_adapters, NULL, e);
}

static int check_adapters(struct personas *all, const struct persona *p, struct served *m,
                          struct err *e)
{
    struct adapter_lease lease = {0};
    int rc = take_adapters(all, p, m, &lease, e);
    adapters_release(&lease);
    return rc;
}

static void note_digests(struct persona *p, const struct adapter_lease *l)
{
    memset(p->digests, 0, sizeof p->digests);
    for (int i = 0; i < l->n; i++)
        memcpy(p->digests[i], adapters_digest(l, i), sizeof p->digests[i]);
}

/* What p's adapters compute with now. False: there is one that it cannot have. */
static bool find_digests(const struct personas *all, const struct persona *p,
                         uint8_t out[API_MAX_ADAPTERS][REGISTRY_DIGEST_BYTES])
{
    struct registry *registry = adapters_registry(all->server->adapters);
    bool there = true;
    for (size_t i = 0; i < p->n_adapters && there; i++) {
        struct registry_ref ref = {0};
        there = registry_resolve(registry, p->adapters[i].name, &ref, NULL) == 0 &&
                strcmp(ref.base, p->model) == 0;
        memcpy(out[i], ref.digest, sizeof ref.digest);
        registry_ref_release(&ref);
    }
    return there;
}

/* By the name that p says, or by the one that it leads to. */
static bool has_adapter(const struct personas *all, const struct persona *p, const char *name)
{
    struct registry *registry = adapters_registry(all->server->adapters);
    bool has = false;
    for (size_t i = 0; i < p->n_adapters && !has; i++) {
        struct registry_ref ref = {0};
        has = strcmp(p->adapters[i].name, name) == 0 ||
              (registry_resolve(registry, p->adapters[i].name, &ref, NULL) == 0 &&
               strcmp(ref.name, name) == 0);
        registry_ref_release(&ref);
    }
    return has;
}

/* ---- computing ---- */

/* Accepts one that the engine knows nothing of, or not any more. */
static void run_free(struct persona_run *run)
{
    struct served *m = run->with.model;
    waiter_cancel(&run->waiter);
    adapters_release(&run->lease);
    free(run);
    served_put(m);
}

/* Gives back what is held for p, computed or on its way. */
static void let_go(struct personas *all, struct persona *p)
{
    struct persona_run *run = p->run;
    persona_kv_give_up(p);
    if (p->pinned_in)
        engine_unpin(p->pinned_in->model.engine, p->pin_id);
    p->pinned_in = NULL;
    p->run = NULL;
    p->state = PERSONA_WAITING;
    if (!run)
        return;
    all->computing = false;
    if (!run->id) {
        run_free(run);
        return;
    }
    struct engine *g = run->with.model->model.engine;
    engine_cancel(g, run->id);
    engine_unpin(g, run->id);
    run->p = NULL; /* its last event frees it */
}

static void settle(struct persona *p, enum persona_state state)
{
    p->state = state;
    if (state == PERSONA_WAITING)
        return;
    if (state == PERSONA_FAILED)
        log_warn("server", "persona %s: %s", p->id, p->err.msg);
    persona_answer(p);
}

/* p's run has come to something, or p has to wait. */
static void run_over(struct persona_run *run, enum persona_state state)
{
    run->all->computing = false;
    run->p->run = NULL;
    settle(run->p, state);
    run_free(run); /* last: if others want the memory of the model, this unloads it */
}

static void run_event(struct engine_user *user, const struct engine_event *ev)
{
    struct persona_run *run = (struct persona_run *)user;
    struct personas *all = run->all;
    struct persona *p = run->p;
    if (!ev->finish)
        return;
    if (!p) {
        run_free(run);
    } else if (ev->finish == FINISH_STOP || ev->finish == FINISH_LENGTH) {
        p->pinned_in = p->pin ? run->with.model : NULL;
        p->pin_id = run->id;
        if (p->pinned_in)
            persona_kv_write(all->kv, p, &run->with);
        run_over(run, PERSONA_READY);
    } else if (ev->finish == FINISH_CANCEL) { /* the engine is closing */
        run_over(run, PERSONA_WAITING);
    } else {
        p->err = ev->err;
        p->err.code = ERR_IO; /* ours, not the client's */
        run_over(run, PERSONA_FAILED);
    }
    if (ev->finish != FINISH_CANCEL)
        personas_advance(all);
}

static void submit(struct persona_run *run)
{
    struct persona *p = run->p;
    char salt[PERSONA_SALT_BYTES];
    struct engine_request r = {
        .cache_salt = persona_salt(p, salt),
        .prompt = p->prompt.ids,
        .n_prompt = (int)p->prompt.n,
        .max_tokens = 1,
        .adapters = run->with.adapters,
        .n_adapters = run->with.n,
        .tenant = "personas",
        .pin = p->pin,
        .user = &run->user,
    };
    struct err e = {0};
    sampling_default(&r.sampling);
    r.sampling.temperature = 0;
    int rc = engine_submit(run->with.model->model.engine, &r, &run->id, &e);
    if (!rc)
        return;
    run->id = 0;
    p->err = e;
    /* ERR_LIMIT: the budget was checked, so a pin that was let go is still on its way out */
    run_over(run, rc == ERR_BUSY || rc == ERR_LIMIT ? PERSONA_WAITING : PERSONA_FAILED);
}

/* Its file, if there may be one. */
static bool read_back(struct persona_run *run)
{
    struct persona *p = run->p;
    bool tried = p->kv_tried;
    p->kv_tried = true;
    return !tried && p->pin && persona_kv_read(run->all->kv, p, &run->with);
}

void personas_read_back(struct persona *p, struct served *m, uint64_t id)
{
    p->pinned_in = m;
    p->pin_id = id;
    run_over(p->run, m ? PERSONA_READY : PERSONA_WAITING);
}

/* With its adapters, once they are there. */
static void go_on(struct persona_run *run)
{
    struct persona *p = run->p;
    int rc = adapters_get(&run->lease, &run->waiter, run->with.adapters, &p->err);
    if (rc == 0)
        return;
    if (rc < 0) {
        p->lacks_adapter = true;
        run_over(run, PERSONA_FAILED);
        return;
    }
    run->with.n = run->lease.n;
    note_digests(p, &run->lease);
    if (!read_back(run))
        submit(run);
}

static void adapters_are_there(struct waiter *w, const struct err *failed)
{
    struct persona_run *run =
        (struct persona_run *)((char *)w - offsetof(struct persona_run, waiter));
    struct personas *all = run->all;
    if (all->server->draining) /* engines may be gone */
        run_over(run, PERSONA_WAITING);
    else
        go_on(run); /* says what failed, too */
    personas_advance(all);
}

static void compute(struct personas *all, struct persona *p, struct served *m)
{
    struct persona_run *run = xcalloc(1, sizeof *run);
    *run = (struct persona_run){.user = {run_event},
                                .all = all,
                                .p = p,
                                .with = {.model = m},
                                .waiter = {.wake = adapters_are_there}};
    served_hold(m);
    all->computing = true; /* from here on: taking adapters may wake others */
    int rc = take_adapters(all, p, m, &run->lease, &p->err);
    p->run = run;
    p->state = PERSONA_COMPUTING;
    if (rc) {
        p->lacks_adapter = true;
        run_over(run, PERSONA_FAILED);
        return;
    }
    note_digests(p, &run->lease);
    go_on(run);
}

static void start(struct personas *all, struct persona *p)
{
    struct served *m = served_find(all->server, p->model);
    if (!m || m->state != SERVED_READY)
        return;
    p->lacks_adapter = false;
    int rc = p->prompt.n ? 0 : make_prompt(m, p, &p->err);
    if (!rc)
        rc = check_budget(all, m, p, NULL, &p->err);
    if (rc)
        settle(p, PERSONA_FAILED);
    else if (!p->prompt.n)
        settle(p, PERSONA_READY);
    else
        compute(all, p, m);
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
        token_list_release(&p->prompt);
        p->kv_tried = m == NULL; /* a model that was unloaded can have its prompts back */
        let_go(all, p);          /* last: what it wakes may start p again */
    }
    personas_advance(all);
}

static void advance(void *all)
{
    personas_advance(all);
}

void personas_adapters_changed(struct personas *all)
{
    bool any = false;
    for (struct persona *p = all->first; p; p = p->next) {
        uint8_t now[API_MAX_ADAPTERS][REGISTRY_DIGEST_BYTES] = {{0}};
        if (!p->n_adapters || !p->prompt.n || p->state == PERSONA_WAITING)
            continue;
        bool there = find_digests(all, p, now);
        if (p->state == PERSONA_FAILED && p->lacks_adapter && there)
            p->state = PERSONA_WAITING;
        else if (p->state != PERSONA_FAILED && (!there || memcmp(now, p->digests, sizeof now) != 0))
            let_go(all, p);
        any = any || p->state == PERSONA_WAITING;
    }
    if (any) /* later: the change may be told to somebody who is starting p, or letting it go */
        http_loop_post(all->server->loop, advance, all);
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
        if (p->n_adapters && !r->picks_adapters) {
            copy_choices(r->adapters, p->adapters, p->n_adapters, &r->arena);
            r->n_adapters = p->n_adapters;
            r->picks_adapters = true;
            r->adapters_of = arena_strdup(&r->arena, str_of(p->model));
        }
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
    if (!rc)
        rc = check_adapters(all, p, m, e);
    if (rc) {
        persona_free(p);
        return rc;
    }
    personas_remove(all, tenant, spec->name, NULL, NULL);
    append(all, p);
    personas_save(all);
    p->x = x;
    x->persona = p;
    personas_advance(all);
    return 0;
}

int personas_remove(struct personas *all, const char *tenant, const char *name, const char *model,
                    const char *adapter)
{
    int n = 0;
    server_changed(all->server);
    for (struct persona *p = all->first, *next; p; p = next) {
        next = p->next;
        if (strcmp(p->tenant, tenant) != 0 || (name && strcmp(p->name, name) != 0) ||
            (model && strcmp(p->model, model) != 0) || (adapter && !has_adapter(all, p, adapter)))
            continue;
        take_out(all, p); /* first: what is let go may wake who looks through the list */
        let_go(all, p);
        persona_kv_remove(all->kv, p->id);
        err_set(&p->err, ERR_EXISTS, "the persona was deleted or replaced meanwhile");
        p->state = PERSONA_FAILED;
        persona_answer(p);
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
