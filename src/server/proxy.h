/* proxy.h - requests that a remote engine answers: the bytes go through, both ways.
 *
 * Where client and backend speak the same dialect, bytes stay bytes: of the request the model's
 * name is replaced if the backend knows it by another one, the answer is checked to be what it
 * claims (one JSON object; whole events ending with [DONE]) and passed on. Another dialect is
 * translated on its way (api/upstream.h) and then is like any other; a backend whose dialect has no
 * words for a request is passed over. What the client gets comes from one backend from the first
 * byte to the last:
 *
 *   pick -> ask -> first whole event, or whole answer -> client
 *     ^------ failure, 429, 5xx: another backend, within retries, budget and deadline
 *
 * After the first byte a failure ends the stream with an error event. A slow client pauses the
 * backend, a client that leaves cancels it. With hedging a second backend is asked when the first
 * is slow to begin; who begins first answers, the other is cancelled. Messages name the backend,
 * never its URL. The server's thread. */
#pragma once

#include "gateway/backends.h"
#include "server/job.h"

struct proxy;

/* One request for backends; all of it is copied but the body and its tree, which must stay until x
 * is closed. */
struct proxy_plan {
    enum openai_endpoint endpoint;
    const char *model;       /* as backends and clients know it */
    const char *const *only; /* names of backends in question, n_only 0: all that serve it */
    size_t n_only;
    struct str body;
    const json_t *tree; /* the body as openai_parse_any took it */
    json_t *messages;   /* put in the place of the body's (a persona was applied); NULL: not */
    const struct push_adapter *adapter; /* that it runs under, NULL: none */
    int64_t max_tokens;                 /* 0: unknown */
    int64_t deadline_ms;                /* 0: none */
};

/* Begins: x is answered from now on, or its job gets job_fail. Or the HTTP status, *code and e, and
 * nothing has happened. */
int proxy_start(struct exchange *x, const struct proxy_plan *plan, const char **code,
                struct err *e);

void proxy_cancel(struct exchange *x); /* nothing was sent: somebody else will answer */
void proxy_closed(struct exchange *x); /* x is over, by its end or because the client left */
void proxy_tick(struct exchange *x);   /* about once a second */

/* proxy_stage.c. The stage between route and model: a model that backends serve and this process
 * does not. */
enum job_step proxy_stage(struct job *j);

/* proxy_http.c */
route_fn handle_backends;
