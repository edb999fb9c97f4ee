/* adapters_life.c - beginning, end, and what there is to see. */
#define _GNU_SOURCE /* realpath */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/adapters_private.h"
#include "store/db.h"

enum { SAVE_TICKS = 30 }; /* seconds between savings of the counts of uses */

/* ---- looking ---- */

const char *adapter_state_name(enum adapter_state s)
{
    static const char *const names[ADAPTER_STATES] = {"registered", "loading", "resident",
                                                      "draining", "failed"};
    return names[s];
}

static enum adapter_state state_of(const struct adapter_slot *s)
{
    if (s->adapter)
        return s->leaving || s->unwanted ? ADAPTER_DRAINING : ADAPTER_RESIDENT;
    if (s->loading)
        return ADAPTER_LOADING;
    return s->failed.code ? ADAPTER_FAILED : ADAPTER_REGISTERED;
}

void adapters_status(struct adapters *all, const char *name, int version,
                     struct adapter_status *out)
{
    struct registry_entry x = {0};
    *out = (struct adapter_status){0};
    if (registry_find(all->registry, name, &x, NULL) == 0) {
        const struct served *m = served_find(all->server, x.base);
        const struct adapter_slot *s =
            m ? slot_find(all, m, name, version ? version : x.current) : NULL;
        if (s) {
            out->state = state_of(s);
            out->bytes = s->adapter || s->loading ? s->bytes : 0;
            out->running = s->running;
            out->waiting = s->waiting;
            snprintf(out->why, sizeof out->why, "%s", s->failed.code ? s->failed.msg : "");
        }
    }
    registry_entry_release(&x);
}

struct registry *adapters_registry(struct adapters *all)
{
    return all->registry;
}

const char *adapters_root(const struct adapters *all)
{
    return all->root;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void join(const char **names, size_t n, struct buf *out)
{
    if (n)
        qsort(names, n, sizeof *names, by_name);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(names[i], names[i - 1]) != 0)
            buf_addf(out, "%s%s", i ? "," : "", names[i]);
}

void adapters_in_use(struct adapters *all, struct buf *running, struct buf *waiting)
{
    size_t n = 0, n_running = 0, n_waiting = 0;
    for (const struct adapter_slot *s = all->slots; s; s = s->next)
        n++;
    const char **names = xcalloc(2 * n + 1, sizeof *names);
    for (const struct adapter_slot *s = all->slots; s; s = s->next) {
        if (s->running)
            names[n_running++] = s->name;
        if (s->waiting)
            names[n + n_waiting++] = s->name;
    }
    join(names, n_running, running);
    join(names + n, n_waiting, waiting);
    free(names);
}

void adapters_counts(struct adapters *all, struct adapters_counts *out)
{
    *out = all->counts;
    out->registered = registry_count(all->registry);
    out->bytes = all->bytes;
    out->budget = all->budget;
    size_t current = 0;
    for (const struct adapter_slot *s = all->slots; s; s = s->next) {
        enum adapter_state state = state_of(s);
        if (state == ADAPTER_REGISTERED)
            continue;
        out->states[state]++;
        current += registry_reaches(all->registry, s->name, s->version);
    }
    out->states[ADAPTER_REGISTERED] = out->registered > current ? out->registered - current : 0;
}

/* ---- models come and go ---- */

static void add_modules(struct adapters *all, const struct served *m)
{
    const struct served *first = served_first(all->server);
    for (size_t i = 0; i < all->n_modules; i++) {
        struct adapters_module *a = &all->modules[i];
        if (a->begun || strcmp(a->base ? a->base : first->name, m->name) != 0)
            continue;
        a->begun = true;
        struct adapters_op op = {.verb = ADAPTERS_ADD,
                                 .name = a->name,
                                 .path = a->path,
                                 .base = m->name,
                                 .pin = -1,
                                 .replace = true,
                                 .any_place = true};
        adapters_do(all, &op, NULL, NULL);
    }
}

static void load_pinned(struct adapters *all, const struct served *m)
{
    struct registry_list list;
    registry_list(all->registry, &list);
    for (size_t i = 0; i < list.n; i++) {
        struct adapters_op op = {.verb = ADAPTERS_LOAD, .name = list.entries[i].name, .pin = -1};
        if (list.entries[i].pinned && strcmp(list.entries[i].base, m->name) == 0)
            adapters_do(all, &op, NULL, NULL);
    }
    registry_list_release(&list);
}

static void model_changed(void *arg, struct served *m, bool ready)
{
    struct adapters *all = arg;
    if (!ready) {
        slots_forget(all, m);
        return;
    }
    if (!m->model.weights || all->stopping)
        return;
    add_modules(all, m);
    load_pinned(all, m);
}

/* ---- counts of uses ---- */

struct saving {
    struct adapter_task task;
    struct adapters *all;
};

static void save(struct adapters *all)
{
    struct err e = {0};
    if (registry_save(all->registry, &e))
        log_warn("server", "counts of adapters are not saved: %s", e.msg);
}

static void save_run(struct adapter_task *t)
{
    save(((struct saving *)t)->all);
}

static void save_done(struct adapter_task *t)
{
    ((struct saving *)t)->all->saving = false;
    free(t);
}

void adapters_tick(struct adapters *all)
{
    slots_stalled(all);
    if (++all->ticks % SAVE_TICKS || all->saving || all->stopping)
        return;
    struct saving *s = xcalloc(1, sizeof *s);
    *s = (struct saving){.task = {.server = all->server,
                                  .run = save_run,
                                  .done = save_done,
                                  .what = "saving counts of",
                                  .name = "adapters"},
                         .all = all};
    all->saving = true;
    worker_add(&all->changes, &s->task);
}

/* ---- life ---- */

static int module_of(struct adapters_module *out, const char *text, struct err *e)
{
    const char *equals = strchr(text, '=');
    if (text[0] != '{') {
        if (!equals || equals == text || !equals[1])
            return err_param(e, ERR_INVALID, "lora-modules",
                             "'%.200s' is not NAME=PATH, nor {\"name\": ..., \"path\": ...}", text);
        out->name = xstrndup(text, (size_t)(equals - text));
        out->path = xstrdup(equals + 1);
        return 0;
    }
    json_t *v = jr_parse(text, strlen(text), e);
    if (!v)
        return err_prefix(e, ERR_INVALID, "lora-modules");
    const char *name = json_string_value(json_object_get(v, "name"));
    const char *path = json_string_value(json_object_get(v, "path"));
    const char *base = json_string_value(json_object_get(v, "base_model_name"));
    if (name && path)
        *out = (struct adapters_module){xstrdup(name), xstrdup(path), base ? xstrdup(base) : NULL,
                                        false};
    json_decref(v);
    return name && path ? 0
                        : err_param(e, ERR_INVALID, "lora-modules",
                                    "'%.200s' must have \"name\" and \"path\"", text);
}

static int take_modules(struct adapters *all, const struct adapters_opts *o, struct err *e)
{
    all->modules = xcalloc(o->n_modules + 1, sizeof *all->modules);
    for (size_t i = 0; i < o->n_modules; i++) {
        int rc = module_of(&all->modules[all->n_modules++], o->modules[i], e);
        if (!rc)
            rc = registry_check_name(all->modules[i].name, false, e);
        if (rc)
            return rc;
    }
    return 0;
}

static int find_root(struct adapters *all, const char *root, struct err *e)
{
    char real[PATH_MAX];
    if (!root) {
        all->root = xstrdup("");
        return 0;
    }
    if (!realpath(root, real))
        return err_param(e, ERR_NOTFOUND, "adapter-root", "--adapter-root %.300s: %s", root,
                         strerror(errno));
    all->root = xstrdup(real);
    return 0;
}

/* The share of the server's memory. */
static int take_share(struct adapters *all, bool reserve, struct err *e)
{
    struct budget *b = all->server->opts.budget;
    all->reserved = reserve ? all->budget : 0;
    if (!b || !all->budget)
        return 0;
    return budget_take(b, BUDGET_ADAPTERS, "adapters", all->reserved, &all->share, e);
}

int adapters_new(struct adapters **out, struct server *s, const struct adapters_opts *o,
                 struct err *e)
{
    struct adapters *all = xcalloc(1, sizeof *all);
    all->server = s;
    all->budget = o->budget;
    all->load_stall_ms = o->load_stall_ms;
    all->tail = &all->first;
    worker_start(&all->loads);
    worker_start(&all->changes);
    int rc = find_root(all, o->root, e);
    if (!rc)
        rc = take_modules(all, o, e);
    if (!rc && !s->opts.db)
        rc = db_open(&all->own_db, NULL, false, e);
    if (!rc)
        rc = registry_open(&all->registry, s->opts.db ? s->opts.db : all->own_db, e);
    if (!rc)
        rc = take_share(all, o->reserve, e);
    if (rc) {
        adapters_stop(all);
        adapters_free(all);
        return rc;
    }
    served_watch(s, model_changed, all);
    if (registry_count(all->registry))
        log_info("server", "%zu adapters are registered", registry_count(all->registry));
    *out = all;
    return 0;
}

void adapters_stop(struct adapters *all)
{
    struct err e = {0};
    if (!all)
        return;
    all->stopping = true;
    changes_stop(all);
    worker_stop(&all->loads);
    worker_stop(&all->changes);
    err_set(&e, ERR_CANCELED, "the server is ending");
    while (all->waiting)
        lease_settle(all->waiting, &e);
}

void adapters_free(struct adapters *all)
{
    if (!all)
        return;
    if (all->registry)
        save(all);
    for (struct adapter_slot *s = all->slots, *next; s; s = next) {
        next = s->next;
        adapter_unref(s->adapter);
        free(s->source);
        free(s);
    }
    for (size_t i = 0; i < all->n_modules; i++) {
        free(all->modules[i].name);
        free(all->modules[i].path);
        free(all->modules[i].base);
    }
    free(all->modules);
    registry_close(all->registry);
    db_close(all->own_db);
    budget_give(all->share);
    free(all->root);
    free(all->base);
    free(all);
}
