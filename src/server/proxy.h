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
 * backend, a client that leaves cancels it, unless others want the same answer (remote_answer.c).
 * With hedging a second backend is asked when the first is slow to begin; who begins first answers,
 * the other is cancelled. Messages name the backend, never its URL. The server's thread. */
#pragma once

#include "gateway/backends.h"
#include "server/job.h"

struct proxy;

/* proxy_stage.c. The stage between route and model: is it a model that backends serve and this
 * process does not? Then j->proxied is set, and the stages of this process's own engine are left
 * out. */
enum job_step proxy_stage(struct job *j);
struct backend_query proxy_query(const struct job *j); /* the backends in question */

/* The last stage of such a job: asks a backend. Its answer goes to remote_begin and what follows,
 * or remote_fail; until then j->proxy is set, and n_running is 1. */
enum job_step proxy_submit(struct job *j);

void proxy_cancel(struct job *j); /* nobody wants the answer; without a proxy nothing happens */
void proxy_hold(struct job *j, bool hold); /* the clients are slow, or no longer */
void proxy_tick(struct job *j);            /* about once a second; j may be gone then */

/* proxy_http.c */
route_fn handle_backends;
