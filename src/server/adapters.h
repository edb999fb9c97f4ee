/* adapters.h - adapters while serving: which are in memory, and how they change under load.
 *
 * The registry (store/registry.h) says which adapters exist; here is what a request gets of them.
 * One version of an adapter is, in memory,
 *
 *     REGISTERED --first use, load--> LOADING --> RESIDENT --room wanted, replaced--> DRAINING
 *         ^                              |           ^------- not wanted any more -------|
 *         |                              v                                               |
 *         |<------- next use ------- FAILED (why)                                        |
 *         +<--------------- the last request that uses it is over -----------------------+
 *
 * A request takes a lease: which versions it runs under is fixed from then on, and loads begin, so
 * that tokenizing and loading overlap. When all are resident the lease is granted; its adapters
 * stay, whatever happens to their names, until it is released. Waiting leases are served in order:
 * while the first of them lacks room, the least recently used adapters that it can do without take
 * no new requests and go with their last one, and nobody behind it begins a load.
 *
 * Everything here belongs to the server's thread. Files are read on threads of their own, and what
 * changes the registry runs on another, one change after the other. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/waiter.h"
#include "model/adapter.h"
#include "model/model.h"
#include "store/registry.h"

struct adapters;
struct adapter_slot;
struct served;
struct server;

/* ---- requests ---- */

/* An adapter as a request names it: any reference that the registry resolves. */
struct adapter_pick {
    const char *name;
    double scale; /* 1: as it was trained */
};

/* What one request holds; {0} holds nothing. Lives in its owner's struct, which must not move. */
struct adapter_lease {
    struct adapters *all;
    struct adapter_lease *next, **link; /* among those that wait; link NULL: it does not */
    struct waiters granted;             /* its owner, while it waits */
    struct served *model;               /* held */
    struct {
        struct adapter_slot *slot;
        float scale;
        bool fixed; /* the reference said which version */
    } uses[MODEL_MAX_ADAPTERS];
    int n;
    bool holds; /* granted */
    struct err failed;
};

/* If `name` (the "model" of a request) is an adapter's, an alias or BASE:ADAPTER: the base model,
 * and the reference for a pick; false if it is none of these. The strings are good until the next
 * call, and while `name` is. */
bool adapters_find_model(struct adapters *all, const char *name, char **base, char **adapter);

/* Resolves the picks for a request on model m, which it holds until adapters_release, and begins
 * the loads. With n == 0 and a user: the adapter that is theirs on this model, if they have one.
 * ERR_NOTFOUND (no such adapter: 404), ERR_INVALID (another base, too many, a scale that is not
 * finite), ERR_LIMIT (they never fit together). */
int adapters_take(struct adapters *all, struct adapter_lease *l, struct served *m,
                  const struct adapter_pick *picks, int n, const char *user, struct err *e);

/* 1: granted, and uses[0 .. l->n) say what to run under (pointers are the lease's, no references).
 * 0: w waits, and is woken when asking again makes sense. Else an error: a load failed. */
int adapters_get(struct adapter_lease *l, struct waiter *w, struct adapter_use *uses,
                 struct err *e);

/* What the i-th adapter of a lease computes with, known before it is granted: for keys of what is
 * computed under it. */
const uint8_t *adapters_digest(const struct adapter_lease *l, int i);
const char *adapters_name(const struct adapter_lease *l, int i);

/* Appends "NAME@VERSION" of each, with ":SCALE" where that is not 1, and commas between. */
void adapters_describe(const struct adapter_lease *l, struct buf *out);

/* The request is over, or gives up. Accepts what holds nothing. */
void adapters_release(struct adapter_lease *l);

/* ---- changes ---- */

enum adapters_verb {
    ADAPTERS_ADD,      /* name, path, and if set: base, owner, labels, pin, replace */
    ADAPTERS_REMOVE,   /* name; with its versions, aliases and users */
    ADAPTERS_LOAD,     /* name: any reference; done when it is resident */
    ADAPTERS_UNLOAD,   /* name: any reference; out of memory with its last request */
    ADAPTERS_CHANGE,   /* name, and if set: owner, labels, pin */
    ADAPTERS_ROLLBACK, /* name, version (0: the one before); done when that one is resident */
    ADAPTERS_ALIAS,    /* alias, name, version (0: the current one, whichever it is) */
    ADAPTERS_UNALIAS,  /* alias */
    ADAPTERS_GIVE,     /* user, name */
    ADAPTERS_TAKE_BACK /* user, base (NULL: of all models) */
};

/* Strings are copied. */
struct adapters_op {
    enum adapters_verb verb;
    const char *name, *path, *base, *owner, *labels, *alias, *user;
    int version;
    int pin;        /* -1: as it is */
    bool replace;   /* ADD: a new version of a name that is there */
    bool any_place; /* ADD: the path may be outside the root, as the operator's own may */
};

/* How it went: rc 0, or ERR_* and e. `version`: of ADD and ROLLBACK, the one that is current now.
 * Runs on the server's thread, exactly once for each adapters_do, at the latest in adapters_free
 * (ERR_CANCELED). */
typedef void adapters_done_fn(void *arg, int rc, const struct err *e, int version);

/* Begins a change; changes are made in the order of the calls. done may be NULL. What can fail:
 * ADD: ERR_NOTFOUND (nothing at the path), ERR_DENIED (outside the root), ERR_EXISTS (the name is
 * taken, and no `replace`; also by a model), ERR_INVALID (a name or labels that are none; another
 * base than before; no such base model), ERR_BUSY (the base model is not loaded), and what
 * adapter_open says. The others: ERR_NOTFOUND, ERR_EXISTS, ERR_INVALID, ERR_LIMIT (pinned adapters
 * exceed the budget), ERR_IO (the database). */
void adapters_do(struct adapters *all, const struct adapters_op *op, adapters_done_fn *done,
                 void *arg);

/* ---- looking ---- */

enum adapter_state {
    ADAPTER_REGISTERED,
    ADAPTER_LOADING,
    ADAPTER_RESIDENT,
    ADAPTER_DRAINING,
    ADAPTER_FAILED,
    ADAPTER_STATES
};
const char *adapter_state_name(enum adapter_state s); /* "registered" */

struct adapter_status {
    enum adapter_state state;
    uint64_t bytes; /* in memory, or taken for a load */
    int running;    /* requests that use it */
    int waiting;    /* requests that wait for it */
    char why[440];  /* FAILED */
};
/* Of one version; 0: the current one. */
void adapters_status(struct adapters *all, const char *name, int version,
                     struct adapter_status *out);

/* For listings, aliases, users. Its functions that change things are not for handlers: adapters_do
 * is. */
struct registry *adapters_registry(struct adapters *all);
const char *adapters_root(const struct adapters *all); /* "" if there is none */

/* Names of the adapters that running requests use, and that waiting ones wait for, each once, by
 * name, with commas: for vllm:lora_requests_info. */
void adapters_in_use(struct adapters *all, struct buf *running, struct buf *waiting);

struct adapters_counts {
    size_t registered;             /* names */
    size_t states[ADAPTER_STATES]; /* versions; REGISTERED: of the current ones */
    uint64_t bytes, budget;
    uint64_t hits;   /* adapters that were resident when a request took them */
    uint64_t misses; /* that had to be loaded first, or were being loaded */
    uint64_t loads, load_failures, evictions;
};
void adapters_counts(struct adapters *all, struct adapters_counts *out);

/* ---- life ---- */

struct adapters_opts {
    const char *root; /* folder below which paths must be, NULL: nothing can be added by path */
    uint64_t budget;  /* bytes of resident adapters, 0: none are taken */
    bool reserve;     /* keeps the budget free for them from the start; else they get of it what
                         models leave */
    int64_t load_stall_ms; /* a load that takes longer makes /health unhealthy, 0: 60000 */
    /* Registered (again) when their model is ready: "NAME=PATH", for the default model, or as JSON
     * {"name", "path", "base_model_name"}. Any place. Copied. */
    const char *const *modules;
    size_t n_modules;
};

/* ERR_* of the database; ERR_NOTFOUND: there is no such root; ERR_INVALID: a module that is none.
 */
int adapters_new(struct adapters **out, struct server *s, const struct adapters_opts *o,
                 struct err *e);
void adapters_stop(struct adapters *all); /* ends its threads; before the loop is freed */
void adapters_free(struct adapters *all);

void adapters_tick(struct adapters *all); /* about once a second */
