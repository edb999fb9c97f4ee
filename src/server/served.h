/* served.h - the models of a server: which there are, which are loaded, and who uses them.
 *
 *                 acquire                      it is here
 *   UNLOADED, FAILED ------> LOADING ---------------------------> READY <----,
 *        ^                      '--> FAILED: why                  |  |       | others made room
 *        |                                          idle too long |  | room  |
 *        '------------------ UNLOADING <--------------------------'  '-> DRAINING
 *                                ^------------- its last user has left ----'
 *
 * Who uses a model holds it (served_acquire, served_put); only what nobody holds is unloaded. A
 * model is unloaded when it has been idle for its keep-alive, when somebody asks, or when another
 * needs its memory: then the least recently used one goes first, and those named at the start last.
 * If all are in use, one that was not named at the start takes no new requests until it is empty:
 * they wait, and it is loaded again for them afterwards.
 *
 * Memory: each model gets an equal part of the limit among those that want to be loaded (`crowd`),
 * at least what it needs for one context, at most 32 of them, and never what others hold. A model
 * keeps what it got: when others come, they evict, and it gets its smaller part when it is back.
 *
 * An entry lives to the end of the server, so any thread may walk the list and read the name. What
 * it consists of (`model` and above) may be read by any thread while the model is held; all else
 * belongs to the server's thread. */
#pragma once

#include <stdatomic.h>

#include "api/keep_alive.h"
#include "base/budget.h"
#include "base/waiter.h"
#include "chat/tool_parse.h"
#include "server/metrics.h"
#include "server/server.h"

enum served_state {
    SERVED_UNLOADED,
    SERVED_LOADING,
    SERVED_READY,
    SERVED_DRAINING,
    SERVED_UNLOADING,
    SERVED_FAILED,
};

struct served {
    _Atomic(struct served *) next;
    char *name;

    /* while it is held */
    char *fingerprint; /* "fp_...": same model and program, same fingerprint */
    char *bos, *eos;   /* as the vocabulary spells them, "" if none */
    struct server_model model;
    uint64_t serial;  /* of this load: another model, or another load of it, never has it */
    bool tells_time;  /* the chat template does: equal requests make different prompts */
    bool knows_tools; /* the chat template does */
    enum tool_format tool_format;

    struct model_metrics metrics; /* of all its loads */
    struct server *server;
    enum served_state state;
    bool named;    /* at the start, or attached: goes last, and no client's keep_alive counts */
    bool evicted;  /* for another's sake: it would like to come back */
    bool unwanted; /* DRAINING because somebody asked */
    int users;
    int64_t keep_ms;                    /* after the last use, or KEEP_FOREVER */
    int64_t used_ms;                    /* clock_ms() of the latest acquire or put */
    struct err failure;                 /* FAILED: why, */
    int64_t failed_ms;                  /* and when */
    struct waiters ready, gone;         /* until it is loaded, until it is unloaded */
    struct server_load *load;           /* LOADING, UNLOADING: the thread that does it */
    uint64_t n_loads, n_evictions;      /* evictions: unloaded to make room */
    struct server_candidate *candidate; /* file facts, NULL: unknown */
};

struct served *served_find(struct server *s, const char *name); /* any thread; NULL: default */
struct served *served_first(struct server *s);                  /* any thread */
struct served *served_next(const struct served *m);             /* any thread */

/* The entry of that name, made if clients may name the model and it is on the disk; NULL: there is
 * no such model. */
struct served *served_discover(struct server *s, const char *name);

/* It has an engine: READY or DRAINING. */
bool served_is_loaded(const struct served *m);

enum { SERVED_WAIT = 1 };

/* The model of that name (NULL: the default) for a user; `keep` may be NULL. 0 and *out, which the
 * caller gives back with served_put; SERVED_WAIT: w will be woken when it is loaded (then ask
 * again) or cannot be; else an HTTP status, *code and e. */
int served_acquire(struct server *s, const char *name, const struct keep_alive *keep,
                   struct waiter *w, struct served **out, const char **code, struct err *e);

/* One more user of a model that is READY, or DRAINING with users. */
void served_hold(struct served *m);
void served_put(struct served *m); /* accepts NULL */

/* Unloads m as soon as nobody uses it; then w is woken. False: it is not loaded, w does not wait.
 */
bool served_unload(struct served *m, struct waiter *w);

/* Called when a model has become ready, before its first request, and when nobody uses it any more
 * and it is about to be freed. */
typedef void served_hook_fn(void *arg, struct served *m, bool ready);
void served_watch(struct server *s, served_hook_fn *fn, void *arg);

/* ---- the server's own ---- */

enum { SERVED_HOOKS = 8 };

struct served_list {
    _Atomic(struct served *) first;
    struct {
        served_hook_fn *fn;
        void *arg;
    } hooks[SERVED_HOOKS];
    int n_hooks;
    struct server_load *rooms; /* in the order of asking; the first one is placing its model */
    int n_threads;             /* that load or unload */
    struct err failure;        /* why a server without any model had to end */
};

struct served *served_add(struct server *s, const char *name, bool named);
void served_become_ready(struct served *m, const struct server_model *model);
void served_forget_model(struct served *m); /* frees what become_ready made */
void served_start(struct server *s);        /* loads what was named */
void served_tick(struct server *s);
void served_stop(struct server *s); /* gives up what is being loaded */
void served_free_engines(struct server *s);
void served_free_all(struct server *s);

/* loads.c */
int load_start(struct served *m, struct err *e); /* ERR_BUSY: too many at once */
void unload_start(struct served *m);             /* nobody uses it */
void rooms_advance(struct server *s);
void rooms_tick(struct server *s);
void load_cancel(struct served *m);        /* LOADING: it fails soon with ERR_CANCELED */
bool load_is_slow(const struct served *m); /* it is being downloaded, or stuck before its start */
