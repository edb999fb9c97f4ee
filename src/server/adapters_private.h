/* adapters_private.h - what the files of server/adapters share. All of it belongs to the server's
 * thread, but for what a task's `run` touches. */
#pragma once

#include <pthread.h>

#include "base/budget.h"
#include "server/adapters.h"
#include "server/service.h"

/* ---- adapters_work.c: threads that run one task after the other ---- */

struct adapter_task {
    struct adapter_task *next;
    struct server *server;
    void (*run)(struct adapter_task *t);  /* on the worker's thread */
    void (*done)(struct adapter_task *t); /* on the server's; frees it */
    const char *what;                     /* for /health: "loading the adapter" */
    const char *name;
    int64_t stall_ms;
    bool canceled; /* the worker ended before it began */
};

struct adapter_worker {
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t more;
    struct adapter_task *first, **tail;
    bool stop;
};

void worker_start(struct adapter_worker *w);
void worker_add(struct adapter_worker *w, struct adapter_task *t);
void worker_stop(struct adapter_worker *w); /* each task that was added gets its `done` */

/* ---- adapters.c: versions in memory ---- */

/* One version of an adapter: in memory, on its way, or wanted by a lease. */
struct adapter_slot {
    struct adapter_slot *next;
    struct served *model;
    char name[REGISTRY_NAME_BYTES + 1];
    int version;
    char *source;
    uint8_t digest[REGISTRY_DIGEST_BYTES];
    uint64_t bytes;
    struct adapter *adapter; /* NULL: not in memory */
    bool loading;
    int64_t loading_ms; /* since when */
    bool leaving;      /* to make room: no new leases until it is gone, or the room is not wanted */
    bool unwanted;     /* replaced or unloaded: goes when no lease is on it */
    bool pinned;       /* never makes room */
    int running;       /* leases that were granted */
    int waiting;       /* leases that were not */
    uint64_t used;     /* tick of the latest lease */
    uint64_t claimed;  /* by a lease in this walk through the queue */
    struct err failed; /* code 0: did not */
    int64_t failed_ms;
};

struct adapters_change; /* adapters_change.c */

struct adapters {
    struct server *server;
    struct db *own_db; /* in memory, where there is no other */
    struct registry *registry;
    char *root; /* resolved, "" if there is none */
    char *base; /* of the latest adapters_find_model */
    uint64_t budget, reserved;
    struct budget_share *share; /* of the server's budget, NULL: memory is not counted */
    uint64_t bytes;             /* of slots in memory and on their way */
    int64_t load_stall_ms;
    struct adapter_slot *slots;
    struct adapter_lease *waiting; /* in order */
    uint64_t tick, walk;
    bool advancing, again;
    struct adapter_worker loads, changes;
    struct adapters_change *first, **tail;
    bool changing; /* the first one is under way */
    struct adapters_module {
        char *name, *path, *base; /* base NULL: the default model */
        bool begun;
    } * modules;
    size_t n_modules;
    bool stopping, saving;
    int ticks;
    struct adapters_counts counts;
};

/* The slot of a version, or NULL. */
struct adapter_slot *slot_find(struct adapters *all, const struct served *m, const char *name,
                               int version);
/* The same, made if it is not there. */
struct adapter_slot *slot_get(struct adapters *all, struct served *m,
                              const struct registry_ref *ref);

/* Puts an adapter that was opened already (a reference of the caller's) into a slot, if idle ones
 * can make room for it; it is loaded when it is used, if not. */
void slot_adopt(struct adapters *all, struct adapter_slot *s, struct adapter *a);

/* The registry says something else about `name`: who is pinned, and what nothing leads to. */
void slots_settle(struct adapters *all, const char *name);

/* m is being unloaded and nobody uses it: nor do its adapters stay. */
void slots_forget(struct adapters *all, const struct served *m);

/* Who waits for a load that takes longer than load_stall_ms is told so. */
void slots_stalled(struct adapters *all);

/* Goes through those that wait: grants, loads, makes room. */
void adapters_advance(struct adapters *all);

/* Takes a lease out of the queue: it is granted, or failed says why not. */
void lease_settle(struct adapter_lease *l, const struct err *failed);

/* Opens the adapter at path and compares it with the digest (NULL: any). Any thread. */
int adapter_open_checked(struct adapter **out, const struct model *m, const char *path,
                         const uint8_t *digest, struct err *e);

/* ---- adapters_change.c ---- */

/* A new version of `name` is about to be registered: its files may have been replaced already. */
bool changes_await(const struct adapters *all, const char *name);

void changes_stop(struct adapters *all); /* those that have not begun end with ERR_CANCELED */
