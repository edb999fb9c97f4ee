/* client.h - asynchronous HTTP/1.1 requests to other servers, on the loop that serves our own.
 *
 *   http_call_start -> on_head -> on_data ... -> on_end
 *                          \------------------------^   at any failure or deadline
 *
 * A call belongs to the client from http_call_start until its on_end returns, or until
 * http_call_cancel. on_end is the last callback and comes exactly once, unless the call is
 * cancelled: then none comes any more. Callbacks run on the loop's thread and never inside of
 * http_call_start; only http_call_resume may deliver data before it returns. Any callback may
 * start, pause, resume or cancel any call, its own included.
 *
 * on_data gets what one turn of the loop has brought, in one piece.
 *
 * Connections are kept and used again; a request that meets a kept connection which its server has
 * closed meanwhile goes over a fresh one. TLS is 1.2 or newer, and certificates are verified.
 * Redirects are not followed and proxies of the environment are not used, since a request may carry
 * a key. What answers with anything but HTTP/1.x is an error. Over libcurl,
 * but for http:// to a numeric address, where llhttp on the socket costs a third.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "http/http.h"
#include "http/loop.h"

struct http_client;
struct http_call;

struct http_client_opts {
    int max_idle;           /* connections kept for later, 0: 256 */
    const char *user_agent; /* copied, NULL: none */
    size_t max_head_bytes;  /* of a response, 0: 64 KiB */
};

int http_client_open(struct http_client **out, struct http_loop *l,
                     const struct http_client_opts *o, struct err *e);

/* Cancels what still runs; not from a callback of a call. The memory goes when the loop has let go
 * of the handles. NULL is fine.
 */
void http_client_close(struct http_client *c);

/* The head of a response; everything is valid until on_end has returned. */
struct http_head {
    int status;
    const struct http_header *headers;
    size_t n_headers;
};

/* One request. Strings are copied, the body is not: it must stay until on_end or cancel. */
struct http_call_opts {
    const char *method;         /* NULL: GET, or POST with a body */
    const char *url;            /* http:// or https:// */
    const char *const *headers; /* "Name: value", ends with NULL; NULL: none */
    const void *body;
    size_t n_body;
    const char *ca_file; /* PEM bundle to verify with, NULL: the system's */

    /* 0: no limit. Time in which the call is paused does not count as idle. */
    int64_t connect_ms;    /* name, connection and TLS */
    int64_t first_byte_ms; /* from the start to the head of the response */
    int64_t idle_ms;       /* between two pieces of the response */
    int64_t deadline_ms;   /* clock_ms() at which it ends whatever happens */

    void *arg;
    void (*on_head)(struct http_call *call, const struct http_head *head); /* may be NULL */
    void (*on_data)(struct http_call *call, const char *p, size_t n);      /* may be NULL */
    /* NULL: the whole response has come. ERR_IO (connection, TLS), ERR_TIMEOUT, ERR_FORMAT (not
     * HTTP, or cut short), ERR_INVALID (URL): the message names neither host nor URL, so that it
     * may be shown to anybody. */
    void (*on_end)(struct http_call *call, const struct err *e);
};

struct http_call *http_call_start(struct http_client *c, const struct http_call_opts *o);
void http_call_cancel(struct http_call *call); /* the connection is closed; the call is gone */

/* The caller has all that it wants: no callback comes any more, and the body may go. The end of the
 * response is waited for for a moment, so that the connection can be kept. */
void http_call_abandon(struct http_call *call);

/* Stops and restarts on_data; meanwhile the kernel's buffers fill and the server waits. What was
 * read already may still come once after http_call_pause. */
void http_call_pause(struct http_call *call);
void http_call_resume(struct http_call *call);

void *http_call_arg(const struct http_call *call);
bool http_call_reused(const struct http_call *call); /* in on_end: over a kept connection */

/* The first header of that name, p NULL if there is none. */
struct str http_head_get(const struct http_head *h, const char *name);
