/* terms.h - for whom a request runs, and until when. The server's thread. */
#pragma once

#include "api/request.h"
#include "http/http.h"

/* The key of fairness between clients, in r's arena: the header x-terrace-tenant from a peer on
 * this machine (a proxy that knows its users), else `user` or `safety_identifier` of the request,
 * else the peer's address. Nobody proves any of these, so it decides who waits for whom and nothing
 * more: what is cached is kept apart by cache_salt. */
const char *request_tenant(struct http_req *http, struct chat_request *r);

/* clock_ms() at which the request ends unanswered, 0: never. From `timeout` of the body and the
 * header x-request-timeout, both in seconds after start_ns, whichever is sooner. ERR_INVALID for a
 * header that is no such number. */
int request_deadline(struct http_req *http, const struct chat_request *r, int64_t start_ns,
                     int64_t *out_ms, struct err *e);
