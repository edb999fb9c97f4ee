/* Adapters while serving: leases, loads, evictions, changes and what they refuse, on a tiny model
 * of random weights and adapters that differ in one number. All on this thread, which runs the
 * server's loop as far as each test wants. */
#include "unit.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapter_rig.h"
#include "base/budget.h"
#include "base/mem.h"
#include "base/rng.h"
#include "server/adapters.h"
#include "server/service.h"
#include "server_rig.h"
#include "store/db.h"

enum { N_FILES = 10, MOST_LEASES = 8 };

struct fixture {
    struct adapter_rig files;
    struct db *db;
    struct budget *budget; /* of the process, NULL: memory is not counted */
    int64_t stall_ms;
    struct rig rig;
    struct served *served;
    uint64_t bytes; /* of one adapter */
    int rc, version, n_done;
    struct err err;
};

/* ---- files ---- */

static void path_of(const struct fixture *f, int i, char out[PATH_MAX])
{
    snprintf(out, PATH_MAX, "%s/a%d", f->files.root, i);
}

/* ---- the server ---- */

static void stop_loop(void *arg)
{
    http_loop_stop(((struct server *)arg)->loop);
}

/* One turn of the server's loop. */
static void turn(struct fixture *f)
{
    http_loop_post(f->rig.server->loop, stop_loop, f->rig.server);
    http_loop_run(f->rig.server->loop);
}

static void open_server(struct fixture *f, int budget_adapters, const char *const *modules,
                        size_t n_modules)
{
    struct rig_opts o = {.budget = f->budget,
                         .not_running = true,
                         .weights = f->files.model,
                         .db = f->db,
                         .adapters = {.root = f->files.root,
                                      .budget = f->bytes * (uint64_t)budget_adapters,
                                      .load_stall_ms = f->stall_ms,
                                      .modules = modules,
                                      .n_modules = n_modules}};
    rig_open(&f->rig, &o);
    while (!(f->served = served_first(f->rig.server)) || f->served->state != SERVED_READY)
        turn(f);
}

static struct adapters *all_of(struct fixture *f)
{
    return f->rig.server->adapters;
}

static void open_db(struct fixture *f)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/terrace.db", f->files.folder);
    assert_int_equal(db_open(&f->db, path, true, &f->err), 0);
}

static int set_up(void **state)
{
    struct fixture *f = xcalloc(1, sizeof *f);
    struct err e = {0};
    struct adapter *a;
    adapter_rig_open(&f->files, N_FILES);
    if (adapter_open(&a, f->files.model, VECTORS "/adapter/llama_qv", &e))
        fail_msg("%s", e.msg);
    f->bytes = adapter_info(a)->bytes;
    adapter_unref(a);
    open_db(f);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    rig_close(&f->rig);
    db_close(f->db);
    budget_free(f->budget);
    adapter_rig_close(&f->files);
    free(f);
    return 0;
}

static void restart(struct fixture *f, int budget_adapters)
{
    rig_close(&f->rig);
    db_close(f->db);
    open_db(f);
    open_server(f, budget_adapters, NULL, 0);
}

/* ---- changes ---- */

static void change_done(void *arg, int rc, const struct err *e, int version)
{
    struct fixture *f = arg;
    f->rc = rc;
    f->version = version;
    f->err = e ? *e : (struct err){0};
    f->n_done++;
}

static int change(struct fixture *f, struct adapters_op op)
{
    int due = f->n_done + 1;
    if (!op.pin && op.verb != ADAPTERS_CHANGE)
        op.pin = -1;
    adapters_do(all_of(f), &op, change_done, f);
    while (f->n_done < due)
        turn(f);
    return f->rc;
}

#define CHANGE(f, v, ...) change(f, (struct adapters_op){.verb = v, __VA_ARGS__})

static void must_add(struct fixture *f, int i, bool replace)
{
    char name[16], path[16];
    snprintf(name, sizeof name, "n%d", i);
    snprintf(path, sizeof path, "a%d", i); /* below the root */
    if (CHANGE(f, ADAPTERS_ADD, .name = name, .path = path, .replace = replace))
        fail_msg("%s", f->err.msg);
}

/* ---- requests ---- */

struct client {
    struct adapter_lease lease;
    struct waiter waiter;
    bool woken;
    struct err failed;
};

static void woken(struct waiter *w, const struct err *failed)
{
    struct client *c = (struct client *)((char *)w - offsetof(struct client, waiter));
    c->woken = true;
    if (failed)
        c->failed = *failed;
}

static int take(struct fixture *f, struct client *c, const char *name, struct err *e)
{
    struct adapter_pick pick = {name, 1};
    *c = (struct client){.waiter = {.wake = woken}};
    return adapters_take(all_of(f), &c->lease, f->served, &pick, 1, NULL, e);
}

/* Takes, and waits until it is granted (or fails with what is returned). */
static int take_now(struct fixture *f, struct client *c, const char *name, struct err *e)
{
    struct adapter_use use[MODEL_MAX_ADAPTERS];
    int rc = take(f, c, name, e);
    while (!rc && (rc = adapters_get(&c->lease, &c->waiter, use, e)) == 0)
        turn(f);
    return rc > 0 ? 0 : rc;
}

static const struct adapter_info *info_of(struct client *c)
{
    struct adapter_use use[MODEL_MAX_ADAPTERS];
    assert_int_equal(adapters_get(&c->lease, &c->waiter, use, NULL), 1);
    return adapter_info(use[0].adapter);
}

static enum adapter_state state_of(struct fixture *f, const char *name, int version)
{
    struct adapter_status s;
    adapters_status(all_of(f), name, version, &s);
    return s.state;
}

static struct adapters_counts counts(struct fixture *f)
{
    struct adapters_counts c;
    adapters_counts(all_of(f), &c);
    return c;
}

/* ---- tests ---- */

static void test_first_use_loads(void **state)
{
    struct fixture *f = *state;
    struct client a = {0}, b = {0};
    struct err e = {0};
    open_server(f, 4, NULL, 0);
    must_add(f, 1, false);
    assert_int_equal(f->version, 1);
    assert_int_equal(state_of(f, "n1", 0), ADAPTER_RESIDENT); /* as it was opened anyway */
    assert_int_equal(CHANGE(f, ADAPTERS_UNLOAD, .name = "n1"), 0);
    assert_int_equal(state_of(f, "n1", 0), ADAPTER_REGISTERED);
    assert_int_equal(counts(f).bytes, 0);

    assert_int_equal(take(f, &a, "n1", &e), 0);
    assert_int_equal(state_of(f, "n1", 0), ADAPTER_LOADING);
    assert_int_equal(f->served->users, 2); /* the lease, and the load */
    struct adapter_use use;
    assert_int_equal(adapters_get(&a.lease, &a.waiter, &use, &e), 0);
    while (!a.woken)
        turn(f);
    assert_int_equal(adapters_get(&a.lease, &a.waiter, &use, &e), 1);
    assert_true(use.scale == 1);
    assert_memory_equal(adapter_info(use.adapter)->digest, adapters_digest(&a.lease, 0), 32);
    assert_int_equal(take_now(f, &b, "alphabet:n1@1", &e), 0); /* at once */
    assert_int_equal(counts(f).hits, 1);
    assert_int_equal(counts(f).misses, 1);
    struct buf running = {0}, waiting = {0};
    adapters_in_use(all_of(f), &running, &waiting);
    assert_string_equal(buf_str(&running), "n1");
    assert_string_equal(buf_str(&waiting), "");
    buf_release(&running);
    buf_release(&waiting);
    adapters_release(&a.lease);
    adapters_release(&b.lease);
    adapters_release(&b.lease); /* nothing any more */
    assert_int_equal(f->served->users, 0);
    assert_int_equal(counts(f).bytes, f->bytes);
    assert_int_equal(counts(f).states[ADAPTER_RESIDENT], 1);
}

static void test_what_requests_may_not(void **state)
{
    struct fixture *f = *state;
    struct client c = {0};
    struct err e = {0};
    char *base, *adapter;
    open_server(f, 2, NULL, 0);
    for (int i = 0; i < 3; i++)
        must_add(f, i, false);
    assert_int_equal(take(f, &c, "nobody", &e), ERR_NOTFOUND);
    assert_int_equal(take(f, &c, "other:n1", &e), ERR_NOTFOUND);
    struct adapter_pick picks[5] = {{"n0", 1}, {"n1", 1}, {"n2", 1}, {"n0", 1}, {"n1", 1}};
    assert_int_equal(adapters_take(all_of(f), &c.lease, f->served, picks, 5, NULL, &e),
                     ERR_INVALID);
    assert_int_equal(adapters_take(all_of(f), &c.lease, f->served, picks, 3, NULL, &e), ERR_LIMIT);
    assert_non_null(strstr(e.msg, "--adapter-budget"));
    picks[0].scale = 1 / 0.0;
    assert_int_equal(adapters_take(all_of(f), &c.lease, f->served, picks, 1, NULL, &e),
                     ERR_INVALID);
    assert_int_equal(adapters_take(all_of(f), &c.lease, f->served, picks, 0, NULL, &e), 0);
    adapters_release(&c.lease);
    assert_int_equal(f->served->users, 0);
    assert_true(adapters_find_model(all_of(f), "alphabet:n1", &base, &adapter));
    assert_string_equal(base, "alphabet");
    assert_string_equal(adapter, "alphabet:n1");
    assert_false(adapters_find_model(all_of(f), "alphabet", &base, &adapter));
}

static void test_places(void **state)
{
    struct fixture *f = *state;
    char outside[PATH_MAX], link[PATH_MAX], inner[PATH_MAX];
    open_server(f, 4, NULL, 0);
    snprintf(outside, sizeof outside, "%s/outside", f->files.folder);
    adapter_rig_write(outside, 3);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "x", .path = outside), ERR_DENIED);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "x", .path = "../outside"), ERR_DENIED);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "x", .path = "nowhere"), ERR_NOTFOUND);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "x", .path = "/etc"), ERR_DENIED);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "x", .path = "."), ERR_NOTFOUND);
    snprintf(link, sizeof link, "%s/link", f->files.root);
    assert_int_equal(symlink(outside, link), 0);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "x", .path = "link"), ERR_DENIED);
    /* a folder inside whose file is a link to one outside */
    snprintf(inner, sizeof inner, "%s/a0/adapter_model.safetensors", f->files.root);
    unlink(inner);
    strcat(outside, "/adapter_model.safetensors");
    assert_int_equal(symlink(outside, inner), 0);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "x", .path = "a0"), ERR_DENIED);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "x", .path = "a0", .any_place = true), 0);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "alphabet", .path = "a1"), ERR_EXISTS);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "../x", .path = "a1"), ERR_INVALID);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "y", .path = "a1", .base = "no"),
                     ERR_NOTFOUND);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "y", .path = "a1", .labels = "[]"),
                     ERR_INVALID);
    assert_int_equal(registry_count(adapters_registry(all_of(f))), 1);
}

/* A running request keeps its version, a new one gets the new, and memory goes with the last user.
 */
static void test_replaced_in_use(void **state)
{
    struct fixture *f = *state;
    struct client old = {0}, new = {0}, again = {0};
    struct err e = {0};
    uint8_t before[32];
    open_server(f, 4, NULL, 0);
    must_add(f, 1, false);
    assert_int_equal(take_now(f, &old, "n1", &e), 0);
    memcpy(before, info_of(&old)->digest, 32);
    char path[PATH_MAX];
    path_of(f, 1, path);
    adapter_rig_write(path, 77);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "n1", .path = "a1"), ERR_EXISTS);
    must_add(f, 1, true);
    assert_int_equal(f->version, 2);
    must_add(f, 1, true); /* the same content: nothing changes */
    assert_int_equal(f->version, 2);
    assert_int_equal(state_of(f, "n1", 1), ADAPTER_DRAINING);
    assert_int_equal(take_now(f, &new, "n1", &e), 0);
    assert_memory_not_equal(info_of(&new)->digest, before, 32);
    assert_memory_equal(info_of(&old)->digest, before, 32);
    assert_int_equal(counts(f).bytes, 2 * f->bytes);
    adapters_release(&old.lease);
    assert_int_equal(counts(f).bytes, f->bytes);
    /* the old content is nowhere any more */
    assert_int_equal(take_now(f, &again, "n1@1", &e), ERR_FORMAT);
    assert_non_null(strstr(e.msg, "has changed"));
    adapters_release(&again.lease);
    assert_int_equal(CHANGE(f, ADAPTERS_ROLLBACK, .name = "n1"), ERR_FORMAT);
    adapter_rig_write(path, 1);
    assert_int_equal(CHANGE(f, ADAPTERS_ROLLBACK, .name = "n1"), 0);
    assert_int_equal(f->version, 1);
    assert_int_equal(take_now(f, &again, "n1", &e), 0);
    assert_memory_equal(info_of(&again)->digest, before, 32);
    adapters_release(&again.lease);
    adapters_release(&new.lease);
    assert_int_equal(counts(f).bytes, f->bytes);
    assert_int_equal(counts(f).evictions, 0);
}

/* The files are overwritten between the registration and the load of one that waits. */
static void test_replaced_while_waiting(void **state)
{
    struct fixture *f = *state;
    struct client c[2] = {{{0}}};
    struct err e = {0};
    char path[PATH_MAX];
    open_server(f, 1, NULL, 0);
    must_add(f, 0, false);
    must_add(f, 1, false);
    assert_int_equal(take_now(f, &c[0], "n0", &e), 0); /* all the room */
    assert_int_equal(take(f, &c[1], "n1", &e), 0);     /* version 1 */
    path_of(f, 1, path);
    adapter_rig_write(path, 50);
    must_add(f, 1, true);
    assert_int_equal(f->version, 2);
    struct adapter_use use;
    assert_int_equal(adapters_get(&c[1].lease, &c[1].waiter, &use, &e), 0);
    adapters_release(&c[0].lease);
    while (!c[1].woken)
        turn(f);
    assert_int_equal(c[1].failed.code, 0);
    struct registry_ref ref;
    assert_int_equal(registry_resolve(adapters_registry(all_of(f)), "n1", &ref, NULL), 0);
    assert_memory_equal(info_of(&c[1])->digest, ref.digest, 32);
    registry_ref_release(&ref);
    adapters_release(&c[1].lease);
}

/* What was to replace it is none: who waits is told, and nobody else notices. */
static void test_not_replaced_while_waiting(void **state)
{
    struct fixture *f = *state;
    struct client c = {{0}};
    struct err e = {0};
    char path[PATH_MAX];
    open_server(f, 2, NULL, 0);
    must_add(f, 1, false);
    assert_int_equal(CHANGE(f, ADAPTERS_UNLOAD, .name = "n1"), 0);
    path_of(f, 1, path);
    strcat(path, "/adapter_model.safetensors");
    assert_int_equal(truncate(path, 5000), 0);
    assert_int_equal(take(f, &c, "n1", &e), 0);
    struct adapter_use use;
    assert_int_equal(adapters_get(&c.lease, &c.waiter, &use, &e), 0);
    int rc = CHANGE(f, ADAPTERS_ADD, .name = "n1", .path = "a1", .replace = true);
    assert_int_equal(rc, ERR_FORMAT);
    while (!c.woken)
        turn(f);
    assert_int_equal(c.failed.code, ERR_FORMAT);
    adapters_release(&c.lease);
    assert_int_equal(f->served->users, 0);
}

static void test_removed_in_use(void **state)
{
    struct fixture *f = *state;
    struct client c = {0}, d = {0};
    struct err e = {0};
    open_server(f, 4, NULL, 0);
    must_add(f, 1, false);
    assert_int_equal(CHANGE(f, ADAPTERS_ALIAS, .alias = "best", .name = "n1"), 0);
    assert_int_equal(CHANGE(f, ADAPTERS_GIVE, .user = "ana", .name = "n1"), 0);
    assert_int_equal(adapters_take(all_of(f), &c.lease, f->served, NULL, 0, "bob", &e), 0);
    assert_int_equal(c.lease.n, 0);
    assert_int_equal(adapters_take(all_of(f), &c.lease, f->served, NULL, 0, "ana", &e), 0);
    assert_int_equal(c.lease.n, 1);
    assert_int_equal(take_now(f, &d, "best", &e), 0);
    assert_int_equal(CHANGE(f, ADAPTERS_REMOVE, .name = "n1"), 0);
    assert_int_equal(CHANGE(f, ADAPTERS_REMOVE, .name = "n1"), ERR_NOTFOUND);
    assert_int_equal(counts(f).bytes, f->bytes);
    assert_non_null(info_of(&c));
    must_add(f, 1, false); /* version 1 again, beside the one that drains: the same content */
    adapters_release(&c.lease);
    adapters_release(&d.lease);
    assert_int_equal(adapters_take(all_of(f), &c.lease, f->served, NULL, 0, "ana", &e), 0);
    assert_int_equal(c.lease.n, 0);
    assert_int_equal(take_now(f, &d, "n1", &e), 0);
    adapters_release(&d.lease);
    assert_int_equal(CHANGE(f, ADAPTERS_REMOVE, .name = "n1"), 0);
    assert_int_equal(counts(f).bytes, 0);
}

static void test_least_recent_goes(void **state)
{
    struct fixture *f = *state;
    struct client c[4] = {{{0}}};
    struct err e = {0};
    open_server(f, 2, NULL, 0);
    for (int i = 0; i < 3; i++)
        must_add(f, i, false);
    static const struct {
        const char *use, *gone;
    } steps[] = {{"n0", "n2"}, {"n1", "n2"}, {"n0", "n2"}, {"n2", "n1"}, {"n1", "n0"}};
    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        assert_int_equal(take_now(f, &c[0], steps[i].use, &e), 0);
        adapters_release(&c[0].lease);
        if (i)
            assert_int_equal(state_of(f, steps[i].gone, 0), ADAPTER_REGISTERED);
    }
    /* in use: the next one waits for it, and others of the resident for that one */
    assert_int_equal(take_now(f, &c[0], "n2", &e), 0);
    assert_int_equal(take_now(f, &c[1], "n1", &e), 0);
    assert_int_equal(take(f, &c[2], "n0", &e), 0);
    assert_int_equal(state_of(f, "n2", 0), ADAPTER_DRAINING);
    assert_int_equal(take(f, &c[3], "n2", &e), 0);
    turn(f);
    assert_false(c[2].lease.holds || c[3].lease.holds);
    adapters_release(&c[0].lease);
    while (!c[2].lease.holds)
        turn(f);
    assert_false(c[3].lease.holds);
    adapters_release(&c[1].lease);
    while (!c[3].lease.holds)
        turn(f);
    assert_int_equal(counts(f).bytes, 2 * f->bytes);
    /* who gives up stops draining others */
    assert_int_equal(take(f, &c[0], "n1", &e), 0);
    assert_int_equal(counts(f).states[ADAPTER_DRAINING], 1);
    adapters_release(&c[0].lease);
    assert_int_equal(counts(f).states[ADAPTER_DRAINING], 0);
    adapters_release(&c[2].lease);
    adapters_release(&c[3].lease);
}

static void test_pins(void **state)
{
    struct fixture *f = *state;
    struct client c = {0};
    struct err e = {0};
    open_server(f, 2, NULL, 0);
    for (int i = 0; i < 4; i++)
        must_add(f, i, false);
    assert_int_equal(CHANGE(f, ADAPTERS_CHANGE, .name = "n0", .pin = 1), 0);
    assert_int_equal(state_of(f, "n0", 0), ADAPTER_RESIDENT);
    for (int i = 1; i < 4; i++) {
        char name[16];
        snprintf(name, sizeof name, "n%d", i);
        assert_int_equal(take_now(f, &c, name, &e), 0);
        adapters_release(&c.lease);
        assert_int_equal(state_of(f, "n0", 0), ADAPTER_RESIDENT);
    }
    assert_int_equal(CHANGE(f, ADAPTERS_UNLOAD, .name = "n0"), ERR_INVALID);
    assert_int_equal(CHANGE(f, ADAPTERS_CHANGE, .name = "n1", .pin = 1), 0);
    assert_int_equal(CHANGE(f, ADAPTERS_CHANGE, .name = "n2", .pin = 1), ERR_LIMIT);
    assert_int_equal(CHANGE(f, ADAPTERS_ADD, .name = "p", .path = "a5", .pin = 1), ERR_LIMIT);
    assert_int_equal(take_now(f, &c, "n2", &e), ERR_LIMIT);
    adapters_release(&c.lease);
    assert_int_equal(CHANGE(f, ADAPTERS_CHANGE, .name = "n1", .pin = 0), 0);
    assert_int_equal(take_now(f, &c, "n2", &e), 0);
    adapters_release(&c.lease);

    restart(f, 2);
    while (state_of(f, "n0", 0) != ADAPTER_RESIDENT)
        turn(f);
    assert_int_equal(state_of(f, "n2", 0), ADAPTER_REGISTERED);
    assert_int_equal(counts(f).registered, 4);
}

static void test_failed_loads(void **state)
{
    struct fixture *f = *state;
    struct client c = {0};
    struct err e = {0};
    char path[PATH_MAX];
    open_server(f, 2, NULL, 0);
    must_add(f, 1, false);
    assert_int_equal(CHANGE(f, ADAPTERS_UNLOAD, .name = "n1"), 0);
    path_of(f, 1, path);
    strcat(path, "/adapter_model.safetensors");
    assert_int_equal(truncate(path, 5000), 0);
    assert_int_equal(take_now(f, &c, "n1", &e), ERR_FORMAT);
    adapters_release(&c.lease);
    struct adapter_status s;
    adapters_status(all_of(f), "n1", 0, &s);
    assert_int_equal(s.state, ADAPTER_FAILED);
    assert_int_not_equal(s.why[0], 0);
    assert_int_equal(CHANGE(f, ADAPTERS_LOAD, .name = "n1"), ERR_FORMAT); /* not tried again */
    assert_int_equal(counts(f).loads, 1);
    assert_int_equal(counts(f).load_failures, 1);
    assert_int_equal(counts(f).bytes, 0);
    path_of(f, 1, path);
    adapter_rig_write(path, 1);
    must_add(f, 1, true);
    assert_int_equal(f->version, 1);
    assert_int_equal(take_now(f, &c, "n1", &e), 0);
    adapters_release(&c.lease);
}

static void test_modules(void **state)
{
    struct fixture *f = *state;
    char path[PATH_MAX], equals[PATH_MAX + 8], json[PATH_MAX + 64];
    path_of(f, 1, path);
    snprintf(equals, sizeof equals, "one=%s", path);
    path_of(f, 2, path);
    snprintf(json, sizeof json,
             "{\"name\": \"two\", \"path\": \"%s\", \"base_model_name\": \"alphabet\"}", path);
    const char *const modules[] = {equals, json};
    open_server(f, 4, modules, 2);
    while (state_of(f, "one", 0) != ADAPTER_RESIDENT || state_of(f, "two", 0) != ADAPTER_RESIDENT)
        turn(f);
    struct err e = {0};
    struct adapters *none;
    const char *const wrong[] = {"=x"};
    struct adapters_opts o = {.modules = wrong, .n_modules = 1};
    assert_int_equal(adapters_new(&none, f->rig.server, &o, &e), ERR_INVALID);
    o = (struct adapters_opts){.root = "/nowhere"};
    assert_int_equal(adapters_new(&none, f->rig.server, &o, &e), ERR_NOTFOUND);
}

/* The loop does not turn, so that the load does not end for whoever waits. */
static void test_stalled_load(void **state)
{
    struct fixture *f = *state;
    struct client c = {0};
    struct err e = {0};
    f->stall_ms = 1;
    open_server(f, 2, NULL, 0);
    must_add(f, 1, false);
    assert_int_equal(CHANGE(f, ADAPTERS_UNLOAD, .name = "n1"), 0);
    assert_int_equal(take(f, &c, "n1", &e), 0);
    struct adapter_use use;
    assert_int_equal(adapters_get(&c.lease, &c.waiter, &use, &e), 0);
    while (!c.woken)
        adapters_tick(all_of(f));
    assert_int_equal(c.failed.code, ERR_BUSY);
    assert_non_null(strstr(c.failed.msg, "disk"));
    adapters_release(&c.lease);
    while (f->served->users)
        turn(f);
    assert_int_equal(state_of(f, "n1", 0), ADAPTER_RESIDENT); /* late, but here */
    assert_int_equal(take_now(f, &c, "n1", &e), 0);
    adapters_release(&c.lease);
}

/* What models hold is not there for adapters, unless it was reserved. */
static void test_shared_budget(void **state)
{
    struct fixture *f = *state;
    struct client c[2] = {{{0}}};
    struct err e = {0};
    struct budget_share *model;
    f->budget = budget_new(f->bytes * 10);
    open_server(f, 4, NULL, 0);
    for (int i = 0; i < 3; i++)
        must_add(f, i, false);
    assert_int_equal(CHANGE(f, ADAPTERS_UNLOAD, .name = "n2"), 0);
    assert_int_equal(budget_sums(f->budget, "adapters").bytes[BUDGET_ADAPTERS], 2 * f->bytes);
    assert_int_equal(budget_take(f->budget, BUDGET_WEIGHTS, "m", f->bytes * 8, &model, &e), 0);
    assert_int_equal(take_now(f, &c[0], "n2", &e), 0); /* in place of another */
    assert_int_equal(counts(f).bytes, 2 * f->bytes);
    struct adapter_pick picks[3] = {{"n0", 1}, {"n1", 1}, {"n2", 1}};
    assert_int_equal(adapters_take(all_of(f), &c[1].lease, f->served, picks, 3, NULL, &e),
                     ERR_LIMIT);
    budget_give(model);
    assert_int_equal(take_now(f, &c[1], "n0", &e), 0);
    adapters_release(&c[0].lease);
    adapters_release(&c[1].lease);
}

/* ---- random requests and changes ---- */

/* What must hold at every moment. */
static void check(struct fixture *f, const struct client *c)
{
    struct adapters_counts n = counts(f);
    assert_true(n.bytes <= n.budget);
    for (int i = 0; i < MOST_LEASES; i++) {
        const struct adapter_lease *l = &c[i].lease;
        struct adapter_use use[MODEL_MAX_ADAPTERS];
        if (!l->holds)
            continue;
        assert_int_equal(adapters_get((struct adapter_lease *)l, NULL, use, NULL), 1);
        for (int k = 0; k < l->n; k++)
            assert_memory_equal(adapter_info(use[k].adapter)->digest, adapters_digest(l, k), 32);
    }
}

static void take_some(struct fixture *f, struct client *c, struct rng *r)
{
    struct adapter_pick picks[2];
    char names[2][16];
    struct err e = {0};
    int n = 1 + (rng_below(r, 4) == 0);
    for (int i = 0; i < n; i++) {
        /* some are wanted far more often than others */
        int which = (int)(rng_below(r, N_FILES) * rng_below(r, N_FILES) / N_FILES);
        snprintf(names[i], sizeof names[i], "n%d", which);
        picks[i] = (struct adapter_pick){names[i], 1};
    }
    *c = (struct client){.waiter = {.wake = woken}};
    struct adapter_use use[MODEL_MAX_ADAPTERS];
    assert_int_equal(adapters_take(all_of(f), &c->lease, f->served, picks, n, NULL, &e), 0);
    int rc = adapters_get(&c->lease, &c->waiter, use, &e);
    assert_true(rc >= 0);
    c->woken = rc == 1;
}

static void change_some(struct fixture *f, struct rng *r)
{
    char name[16], path[PATH_MAX];
    int i = (int)rng_below(r, N_FILES);
    snprintf(name, sizeof name, "n%d", i);
    if (rng_below(r, 2)) {
        path_of(f, i, path);
        adapter_rig_write(path, (float)rng_below(r, 1000));
        must_add(f, i, true);
    } else {
        assert_int_equal(CHANGE(f, ADAPTERS_UNLOAD, .name = name), 0);
    }
}

static void test_random(void **state)
{
    struct fixture *f = *state;
    struct client *c = xcalloc(MOST_LEASES, sizeof *c);
    struct rng r;
    int n_granted = 0;
    rng_seed(&r, 3);
    open_server(f, 3, NULL, 0);
    for (int i = 0; i < N_FILES; i++)
        must_add(f, i, false);
    for (int step = 0; step < 3000 || n_granted < 300; step++) {
        struct client *x = &c[rng_below(&r, MOST_LEASES)];
        uint64_t what = rng_below(&r, 40);
        if (!x->lease.all)
            take_some(f, x, &r);
        else if (x->lease.holds || what == 0) { /* over, or gives up */
            n_granted += x->lease.holds;
            waiter_cancel(&x->waiter);
            adapters_release(&x->lease);
        } else if (what == 1)
            change_some(f, &r);
        else
            turn(f);
        assert_int_equal(x->failed.code, 0);
        check(f, c);
    }
    /* nobody is forgotten */
    for (bool any = true; any;) {
        any = false;
        for (int i = 0; i < MOST_LEASES; i++) {
            assert_int_equal(c[i].failed.code, 0);
            if (c[i].lease.holds)
                adapters_release(&c[i].lease);
            any = any || c[i].lease.all;
        }
        turn(f);
    }
    struct adapters_counts n = counts(f);
    print_message("%d requests, %d hits, %d misses, %d loads, %d evictions\n", n_granted,
                  (int)n.hits, (int)n.misses, (int)n.loads, (int)n.evictions);
    assert_true(n.evictions > 50 && n.hits > 20);
    assert_int_equal(f->served->users, 0);
    free(c);
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_first_use_loads),
        TEST(test_what_requests_may_not),
        TEST(test_places),
        TEST(test_replaced_in_use),
        TEST(test_replaced_while_waiting),
        TEST(test_not_replaced_while_waiting),
        TEST(test_removed_in_use),
        TEST(test_least_recent_goes),
        TEST(test_pins),
        TEST(test_failed_loads),
        TEST(test_modules),
        TEST(test_stalled_load),
        TEST(test_shared_budget),
        TEST(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
