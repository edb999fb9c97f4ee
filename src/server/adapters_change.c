/* adapters_change.c - what changes the registry, one change after the other:
 *
 *   adapters_do -> queue -> hold the base model -> [thread] files, database -> settle -> load ->
 * done
 *
 * Each verb has some of these steps. A change that waits for an adapter to be loaded has left the
 * queue: the next one begins. */
#define _GNU_SOURCE /* realpath */
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "gateway/backends.h"
#include "server/adapters_private.h"
#include "server/persona.h"

struct adapters_change {
    struct adapter_task task;
    struct adapters_change *next;
    struct adapters *all;
    struct arena arena;
    struct adapters_op op; /* strings are the arena's */
    adapters_done_fn *done;
    void *arg;
    struct served *model; /* held, or NULL */
    const char *remote;   /* instead: the model's name, as backends serve it */
    struct waiter waiter; /* for the model, then for the lease */
    struct adapter_lease lease;
    struct adapter *adapter; /* opened by the thread */
    int version;
    int rc;
    struct err err;
};

/* ---- files: on the worker's thread ---- */

static bool is_below(const char *path, const char *root)
{
    size_t n = strlen(root);
    return n && strncmp(path, root, n) == 0 && (path[n] == '/' || path[n] == 0 || n == 1);
}

/* The file is there, and what it stands for lies below the root. */
static int check_place(const struct adapters *all, const char *path, struct err *e)
{
    char real[PATH_MAX];
    if (!realpath(path, real))
        return err_param(e, ERR_NOTFOUND, "path", "there is no adapter at %.200s", path);
    if (is_below(real, all->root))
        return 0;
    if (!*all->root)
        return err_param(e, ERR_DENIED, "path",
                         "adapters are read from --adapter-root only, and none is set");
    return err_param(e, ERR_DENIED, "path", "%.200s is outside of --adapter-root", path);
}

/* The resolved path in c->arena. */
static int find_place(struct adapters_change *c, const char **out, struct err *e)
{
    const struct adapters *all = c->all;
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors"};
    const char *path = c->op.path;
    char real[PATH_MAX];
    struct stat st;
    if (path[0] != '/')
        path = arena_printf(&c->arena, "%s/%s", *all->root ? all->root : ".", path);
    int rc = c->op.any_place ? 0 : check_place(all, path, e);
    if (rc)
        return rc;
    if (!realpath(path, real) || stat(real, &st))
        return err_param(e, ERR_NOTFOUND, "path", "there is no adapter at %.200s", path);
    for (size_t i = 0; i < ARRAY_LEN(files) && S_ISDIR(st.st_mode); i++) {
        const char *file = arena_printf(&c->arena, "%s/%s", real, files[i]);
        if (access(file, F_OK))
            return err_param(e, ERR_NOTFOUND, "path", "there is no adapter at %.200s: no %s", path,
                             files[i]);
        rc = c->op.any_place ? 0 : check_place(all, file, e);
        if (rc)
            return rc;
    }
    *out = arena_strdup(&c->arena, str_of(real));
    return 0;
}

static int check_size(const struct adapters *all, uint64_t bytes, struct err *e)
{
    if (bytes <= all->budget)
        return 0;
    return err_param(e, ERR_LIMIT, "path",
                     "the adapter takes %" PRIu64 " KiB, and adapters may have %" PRIu64
                     ": raise --adapter-budget",
                     bytes >> 10, all->budget >> 10);
}

/* What is pinned must leave nothing to wish: with `name` at so many bytes it fits the budget. */
static int check_pins(struct adapters *all, const char *name, uint64_t bytes, struct err *e)
{
    struct registry_list list;
    uint64_t sum = bytes;
    registry_list(all->registry, &list);
    for (size_t i = 0; i < list.n; i++) {
        const struct registry_version *v = registry_version_of(&list.entries[i], 0);
        if (list.entries[i].pinned && v && strcmp(list.entries[i].name, name) != 0)
            sum += v->bytes;
    }
    registry_list_release(&list);
    if (sum <= all->budget)
        return 0;
    return err_param(e, ERR_LIMIT, "pin",
                     "pinned adapters would take %" PRIu64 " KiB of %" PRIu64
                     ": unpin some, or raise --adapter-budget",
                     sum >> 10, all->budget >> 10);
}

/* ---- what verbs do on the thread ---- */

static bool will_be_pinned(const struct adapters_change *c)
{
    struct registry_entry x = {0};
    bool pinned = c->op.pin > 0;
    if (c->op.pin < 0 && registry_find(c->all->registry, c->op.name, &x, NULL) == 0)
        pinned = x.pinned;
    registry_entry_release(&x);
    return pinned;
}

/* What backends load takes none of our memory. */
static int inspect(struct adapters_change *c, const char *path, struct adapter_info *info,
                   struct err *e)
{
    if (c->remote)
        return adapter_inspect(path, info, e);
    int rc = adapter_open(&c->adapter, c->model->model.weights, path, e);
    if (rc)
        return rc;
    *info = *adapter_info(c->adapter);
    rc = check_size(c->all, info->bytes, e);
    return !rc && will_be_pinned(c) ? check_pins(c->all, c->op.name, info->bytes, e) : rc;
}

static int run_add(struct adapters_change *c, struct err *e)
{
    const char *path = NULL;
    struct adapter_info info;
    int rc = registry_check_name(c->op.name, false, e);
    if (!rc)
        rc = find_place(c, &path, e);
    if (!rc)
        rc = inspect(c, path, &info, e);
    if (rc)
        return rc;
    struct registry_spec spec = {.name = c->op.name,
                                 .base = c->remote ? c->remote : c->model->name,
                                 .source = path,
                                 .format = info.format,
                                 .trained_on = info.base_model,
                                 .owner = c->op.owner,
                                 .labels = c->op.labels,
                                 .pinned = c->op.pin,
                                 .rank = info.max_rank,
                                 .bytes = info.bytes,
                                 .digest = info.digest,
                                 .replace = c->op.replace};
    return registry_add(c->all->registry, &spec, &c->version, e);
}

/* The version to roll back to must still be what it was, before anybody is sent there. */
static int run_rollback(struct adapters_change *c, struct err *e)
{
    struct registry_entry x = {0};
    const struct registry_version *to = NULL;
    int rc = registry_find(c->all->registry, c->op.name, &x, e);
    if (rc)
        return rc;
    for (size_t i = 0; i < x.n_versions; i++)
        if (c->op.version ? x.versions[i].version == c->op.version
                          : x.versions[i].version < x.current)
            to = &x.versions[i];
    if (to && !c->remote) /* else the registry, or the backend, says what is wrong */
        rc = adapter_open_checked(&c->adapter, c->model->model.weights, to->source, to->digest, e);
    if (!rc && to && x.pinned)
        rc = check_pins(c->all, c->op.name, to->bytes, e);
    if (!rc)
        rc = registry_rollback(c->all->registry, c->op.name, to ? to->version : c->op.version,
                               &c->version, e);
    registry_entry_release(&x);
    return rc;
}

static int run_change(struct adapters_change *c, struct err *e)
{
    struct registry_entry x = {0};
    int rc = registry_find(c->all->registry, c->op.name, &x, e);
    const struct registry_version *v = rc ? NULL : registry_version_of(&x, 0);
    if (v && c->op.pin > 0)
        rc = check_pins(c->all, c->op.name, v->bytes, e);
    registry_entry_release(&x);
    return rc ? rc
              : registry_change(c->all->registry, c->op.name, c->op.owner, c->op.labels, c->op.pin,
                                e);
}

static int run_remove(struct adapters_change *c, struct err *e)
{
    return registry_remove(c->all->registry, c->op.name, e);
}

static int run_alias(struct adapters_change *c, struct err *e)
{
    return registry_alias(c->all->registry, c->op.alias, c->op.name, c->op.version, e);
}

static int run_unalias(struct adapters_change *c, struct err *e)
{
    return registry_unalias(c->all->registry, c->op.alias, e);
}

static int run_give(struct adapters_change *c, struct err *e)
{
    return registry_give(c->all->registry, c->op.user, c->op.name, e);
}

static int run_take_back(struct adapters_change *c, struct err *e)
{
    return registry_take(c->all->registry, c->op.user, c->op.base, e);
}

/* ---- the verbs ---- */

static const struct verb {
    int (*run)(struct adapters_change *c, struct err *e); /* on the worker's thread, may be NULL */
    bool model;                                           /* needs the base model */
    bool adopts; /* what the thread has opened may be of use */
    bool loads;  /* done when it is resident (of CHANGE: if it is pinned now) */
} verbs[] = {
    [ADAPTERS_ADD] = {run_add, true, true, false},
    [ADAPTERS_REMOVE] = {run_remove, false, false, false},
    [ADAPTERS_LOAD] = {NULL, true, false, true},
    [ADAPTERS_UNLOAD] = {NULL, false, false, false},
    [ADAPTERS_CHANGE] = {run_change, true, false, true},
    [ADAPTERS_ROLLBACK] = {run_rollback, true, true, true},
    [ADAPTERS_ALIAS] = {run_alias, false, false, false},
    [ADAPTERS_UNALIAS] = {run_unalias, false, false, false},
    [ADAPTERS_GIVE] = {run_give, false, false, false},
    [ADAPTERS_TAKE_BACK] = {run_take_back, false, false, false},
};

static void begin_next(struct adapters *all);

static void finish(struct adapters_change *c)
{
    server_changed(c->all->server);
    personas_adapters_changed(c->all->server->personas);
    adapters_release(&c->lease);
    waiter_cancel(&c->waiter);
    if (c->done)
        c->done(c->arg, c->rc, c->rc ? &c->err : NULL, c->version);
    else if (c->rc && c->rc != ERR_CANCELED)
        log_error("server", "adapter %s: %s", c->op.name, c->err.msg);
    adapter_unref(c->adapter);
    served_put(c->model);
    arena_release(&c->arena);
    free(c);
}

/* The change is made, or has failed: nobody has to await it (changes_await). */
static void leave_queue(struct adapters_change *c)
{
    struct adapters *all = c->all;
    all->first = c->next;
    if (!all->first)
        all->tail = &all->first;
    all->changing = false;
    adapters_advance(all);
}

static void fail(struct adapters_change *c, int rc)
{
    struct adapters *all = c->all;
    c->rc = rc;
    leave_queue(c);
    finish(c);
    begin_next(all);
}

/* ---- loading ---- */

static void lease_woken(struct waiter *w, const struct err *failed)
{
    struct adapters_change *c =
        (struct adapters_change *)((char *)w - offsetof(struct adapters_change, waiter));
    if (failed) {
        c->err = *failed;
        c->rc = failed->code;
    }
    finish(c);
}

static void load(struct adapters_change *c)
{
    struct adapter_use uses[MODEL_MAX_ADAPTERS];
    struct adapter_pick pick = {c->op.name, 1};
    c->waiter = (struct waiter){.wake = lease_woken};
    c->rc = adapters_take(c->all, &c->lease, c->model, &pick, 1, NULL, &c->err);
    if (!c->rc) {
        int got = adapters_get(&c->lease, &c->waiter, uses, &c->err);
        if (got == 0)
            return;
        c->rc = got < 0 ? got : 0;
    }
    finish(c);
}

/* ---- after the thread ---- */

static void adopt(struct adapters_change *c)
{
    struct registry_ref ref;
    if (!c->adapter || registry_resolve(c->all->registry, c->op.name, &ref, NULL))
        return;
    if (ref.version == c->version) {
        slot_adopt(c->all, slot_get(c->all, c->model, &ref), c->adapter);
        c->adapter = NULL;
    }
    registry_ref_release(&ref);
}

static void unload(struct adapters_change *c)
{
    struct registry_ref ref;
    c->rc = registry_resolve(c->all->registry, c->op.name, &ref, &c->err);
    if (c->rc)
        return;
    struct served *m = served_find(c->all->server, ref.base);
    struct adapter_slot *s = m ? slot_find(c->all, m, ref.name, ref.version) : NULL;
    if (s && s->pinned)
        c->rc = err_param(&c->err, ERR_INVALID, "name", "the adapter %s is pinned: unpin it first",
                          ref.name);
    else if (s)
        s->unwanted = true;
    registry_ref_release(&ref);
}

static void apply(struct adapters_change *c)
{
    const struct verb *v = &verbs[c->op.verb];
    struct adapters *all = c->all;
    if (!c->rc && c->op.verb == ADAPTERS_UNLOAD)
        unload(c);
    else if (!c->rc && c->op.verb != ADAPTERS_LOAD && c->op.name)
        slots_settle(all, c->op.name);
    if (!c->rc && v->adopts)
        adopt(c);
    bool loads =
        !c->rc && v->loads && !c->remote && (c->op.verb != ADAPTERS_CHANGE || c->op.pin > 0);
    leave_queue(c);
    if (loads)
        load(c);
    else
        finish(c);
    begin_next(all);
}

static void task_run(struct adapter_task *t)
{
    struct adapters_change *c = (struct adapters_change *)t;
    c->rc = verbs[c->op.verb].run(c, &c->err);
}

static void task_done(struct adapter_task *t)
{
    struct adapters_change *c = (struct adapters_change *)t;
    if (t->canceled)
        c->rc = err_set(&c->err, ERR_CANCELED, "the server is ending");
    apply(c);
}

/* ---- before the thread ---- */

static void run_task(struct adapters_change *c)
{
    if (!verbs[c->op.verb].run) {
        apply(c);
        return;
    }
    c->task = (struct adapter_task){.server = c->all->server,
                                    .run = task_run,
                                    .done = task_done,
                                    .what = "registering the adapter",
                                    .name = c->op.name ? c->op.name : "",
                                    .stall_ms = c->all->load_stall_ms};
    worker_add(&c->all->changes, &c->task);
}

/* The name of the model that the change is about, in c->arena. */
static int base_of(struct adapters_change *c, const char **out)
{
    *out = c->op.base; /* NULL: the default */
    if (c->op.verb == ADAPTERS_ADD) {
        if (served_find(c->all->server, c->op.name))
            return err_param(&c->err, ERR_EXISTS, "name", "'%.128s' is the name of a model",
                             c->op.name);
        return 0;
    }
    struct registry_ref ref;
    int rc = registry_resolve(c->all->registry, c->op.name, &ref, &c->err);
    if (rc)
        return rc;
    *out = arena_strdup(&c->arena, str_of(ref.base));
    registry_ref_release(&ref);
    return 0;
}

static void hold_model(struct adapters_change *c);

static void model_woken(struct waiter *w, const struct err *failed)
{
    struct adapters_change *c =
        (struct adapters_change *)((char *)w - offsetof(struct adapters_change, waiter));
    if (!failed) {
        hold_model(c);
        return;
    }
    c->err = *failed;
    fail(c, failed->code);
}

/* The model is not ours: what is to be done with it is done without. */
static void go_remote(struct adapters_change *c, const char *base)
{
    c->remote = arena_strdup(&c->arena, str_of(base));
    if (c->op.pin > 0)
        fail(c, err_param(&c->err, ERR_UNSUPPORTED, "pin",
                          "'%.128s' is served by backends: its adapters cannot be pinned here",
                          c->remote));
    else
        run_task(c);
}

static void hold_model(struct adapters_change *c)
{
    const char *base, *code;
    c->waiter = (struct waiter){.wake = model_woken};
    int rc = base_of(c, &base);
    if (rc) {
        fail(c, rc);
        return;
    }
    if (base && !served_find(c->all->server, base) &&
        backends_know(c->all->server->backends, base)) {
        go_remote(c, base);
        return;
    }
    int status = served_acquire(c->all->server, base, NULL, &c->waiter, &c->model, &code, &c->err);
    if (status == SERVED_WAIT)
        return;
    if (!status && !c->model->model.weights)
        err_param(&c->err, ERR_UNSUPPORTED, "base_model", "the model %.128s takes no adapters",
                  c->model->name);
    if (status || c->err.code)
        fail(c, c->err.code ? c->err.code : ERR_BUSY);
    else
        run_task(c);
}

static void begin(struct adapters_change *c)
{
    if (!c->all->budget)
        fail(c, err_set(&c->err, ERR_UNSUPPORTED,
                        "the server takes no adapters: --adapter-budget is 0"));
    else if (verbs[c->op.verb].model && (c->op.verb != ADAPTERS_CHANGE || c->op.pin > 0))
        hold_model(c);
    else
        run_task(c);
}

static void begin_next(struct adapters *all)
{
    struct adapters_change *c = all->first;
    if (!c || all->changing)
        return;
    all->changing = true;
    if (all->stopping)
        fail(c, err_set(&c->err, ERR_CANCELED, "the server is ending"));
    else
        begin(c);
}

static const char *copy(struct adapters_change *c, const char *s)
{
    return s ? arena_strdup(&c->arena, str_of(s)) : NULL;
}

void adapters_do(struct adapters *all, const struct adapters_op *op, adapters_done_fn *done,
                 void *arg)
{
    struct adapters_change *c = xcalloc(1, sizeof *c);
    c->all = all;
    c->done = done;
    c->arg = arg;
    c->op = *op;
    c->op.name = copy(c, op->name);
    c->op.path = copy(c, op->path);
    c->op.base = copy(c, op->base);
    c->op.owner = copy(c, op->owner);
    c->op.labels = copy(c, op->labels);
    c->op.alias = copy(c, op->alias);
    c->op.user = copy(c, op->user);
    *all->tail = c;
    all->tail = &c->next;
    begin_next(all);
}

bool changes_await(const struct adapters *all, const char *name)
{
    const struct adapters_change *c = all->first;
    while (c && (c->op.verb != ADAPTERS_ADD || strcmp(c->op.name, name) != 0))
        c = c->next;
    return c != NULL;
}

void changes_stop(struct adapters *all)
{
    struct adapters_change *c = all->first;
    /* one that the thread has, or had, ends by its task; one that waits for a model does not */
    if (c && waiter_waits(&c->waiter)) {
        waiter_cancel(&c->waiter);
        fail(c, err_set(&c->err, ERR_CANCELED, "the server is ending"));
    }
}
