/* backends.h - all remote engines: probes them, and says which one gets a request.
 *
 * Lives on the server's loop. Nothing here blocks; probes and processes report by callbacks. */
#pragma once

#include "base/json.h"
#include "base/waiter.h"
#include "gateway/adapter_push.h"
#include "gateway/backend.h"
#include "gateway/response_key.h"
#include "http/client.h"

enum {
    BACKENDS_MAX_WAITING = 4096, /* requests that wait for a backend */
    BACKENDS_MAX_TRIES = 16,     /* of one request */
};

/* Who is told of operations of managed programs that may hang: begin returns a watch for end, or
 * NULL, and reports the operation once it takes longer than stall_ms. {0}: nobody. */
struct backends_watch {
    void *arg;
    void *(*begin)(void *arg, const char *what, int64_t stall_ms);
    void (*end)(void *watch);
};

struct backends {
    struct http_loop *loop;
    struct backends_watch watch;
    struct http_client *client;
    struct backend *list[BACKENDS_MAX];
    size_t n;
    struct backend **leaving; /* removed by a reload, with requests under way */
    size_t n_leaving, cap_leaving;
    struct balance_config config;
    struct balance balance;
    struct retry_budget retries;
    struct http_timer *timer; /* the next probe, or the next look at a process */
    int64_t due_ms;           /* of the running timer, 0: idle */
    struct waiters ready;     /* woken when a backend may take a request that could not before */
    int n_waiting;
    uint64_t n_requests, n_retries, n_hedges, n_budget_empty;
    bool closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

int backends_open(struct backends **out, struct http_loop *l, struct err *e);

/* Puts a configuration in force and leaves *c empty. Backends whose lines have not changed stay as
 * they are; the others finish what they have. Requests under way notice nothing. */
void backends_apply(struct backends *all, struct gateway_config *c);

/* Ends probes and processes, then calls closed(arg) from the loop. Requests must be over. */
void backends_close(struct backends *all, void (*closed)(void *arg), void *arg);
void backends_free(struct backends *all); /* after closed was called, or before the loop ran */

/* Is there a backend, in whatever state, that serves the model? */
bool backends_know(const struct backends *all, const char *model);

struct backend_query {
    const char *model;
    const char *const *only; /* names of backends that may be taken; n_only 0: any */
    size_t n_only;
    struct backend *const *tried; /* not these */
    size_t n_tried;
    const struct push_adapter *adapter; /* that it runs under, NULL: none */
    struct balance_request balance;
};

enum backend_answer {
    BACKENDS_HERE, /* *out may take it; call backend_begin */
    BACKENDS_WAIT, /* all that could are full, starting or on trial: wait on all->ready */
    BACKENDS_NONE, /* nobody can: `why` gets the reasons, without URLs */
};
enum backend_answer backends_pick(struct backends *all, const struct backend_query *q,
                                  struct backend **out, const char **as, struct buf *why);

/* What an answer depends on: which backends may give it, whatever their state, and what the
 * model is called there. */
void backends_hash(const struct backends *all, const struct backend_query *q,
                   struct response_hash *h);

/* A request has ended at b: backend_end, and whatever follows from it. */
void backends_end(struct backends *all, struct backend *b, int64_t tokens, enum backend_outcome o,
                  const char *why);

void backends_poke(struct backends *all);      /* a state or due time has changed */
void backends_cancel_probe(struct backend *b); /* if one is under way: it would say what was */

/* How much of what is configured gets requests, for /health. */
enum backends_health {
    BACKENDS_SERVE, /* at least one does, or will as soon as somebody asks; or there are none */
    BACKENDS_START, /* none yet, but programs of ours are being started */
    BACKENDS_DOWN,
};
enum backends_health backends_health(const struct backends *all, struct buf *why);

/* The member "backends": [{"name", "state", "seconds", "restarts", "last_exit"}] of an object, if
 * any are managed. */
void backends_write_managed(const struct backends *all, struct jw *w);

/* [{"name", "kind", "state", ...}], without keys; URLs only if asked. */
void backends_write(const struct backends *all, struct jw *w, bool urls);
void backends_metrics(const struct backends *all, struct buf *out); /* Prometheus text */

/* For each model that some backend serves, once: name, and the backend's. */
void backends_each_model(const struct backends *all,
                         void (*fn)(void *arg, const char *model, const struct backend *b),
                         void *arg);
