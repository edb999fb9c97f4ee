/* terms.h - for whom a request runs, and until when. The server's thread. */
#pragma once

#include "api/request.h"
#include "http/http.h"

/* Whose request it is, in r's arena. With a key: its tenant, "key:acme", which is proven. Without
 * keys: the header x-terrace-tenant from a peer on this machine (a proxy that knows its users),
 * else `user` or `safety_identifier` of the request, else the peer's address; nobody proves any of
 * these, so they decide who waits for whom and nothing more. `key_tenant` NULL: there was no key.
 */
const char *request_tenant(struct http_req *http, struct chat_request *r, const char *key_tenant);

/* A user as the registry of adapters knows them: within the tenant of the key, so that naming
 * somebody else's user leads nowhere. In the arena if it is not `user` itself. */
const char *tenant_user(struct arena *a, const char *user, const char *key_tenant);

/* The user without the tenant, for answers. */
const char *tenant_user_name(const char *user);

/* What keeps the request's KV apart from that of others: with a key its tenant, and within that the
 * request's own cache_salt; NULL: nothing does. In r's arena. */
const char *request_salt(struct chat_request *r, const char *key_tenant);

/* clock_ms() at which the request ends unanswered, 0: never. From `timeout` of the body and the
 * header x-request-timeout, both in seconds after start_ns, whichever is sooner. ERR_INVALID for a
 * header that is no such number. */
int request_deadline(struct http_req *http, const struct chat_request *r, int64_t start_ns,
                     int64_t *out_ms, struct err *e);
