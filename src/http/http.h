/* http.h - the HTTP/1 server: bytes of a socket to requests, responses to bytes of a socket.
 *
 * A server listens on a loop (loop.h) and calls its handler for each request. The handler answers
 * at once or later, in one piece (http_reply) or as a stream (http_begin, http_write, http_end).
 * All of it happens on the loop's thread; whoever works on another thread posts to the loop.
 *
 *   bytes -> head -> on_head() -> body -> on_request() -> http_reply | http_begin .. http_end
 *                                                          |
 *            next request of the connection <- on_closed() <
 *
 * Ownership: a request belongs to the server. It and all that it points to is valid until its
 * on_closed returns, which is called exactly once for each request that on_head or on_request has
 * seen: when the last byte of the response was given to the kernel, or when the client went away.
 * No function called by the handler calls back into it: callbacks come from the loop only.
 *
 * While a response runs nothing is read from the client, so pipelined bytes wait in the kernel, but
 * a closed or reset connection is noticed at once (if such bytes fill the kernel's buffer: with the
 * next write).
 *
 * Malformed requests, requests over a limit and requests that arrive too slowly are answered here
 * (400, 408, 413, 431, 501, 503, 505) and never reach the handler. Sources: RFC 9110, RFC 9112,
 * and for server-sent events the WHATWG HTML standard, section 9.2.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/str.h"

struct http_loop;
struct http_server;
struct http_req;

struct http_header {
    struct str name, value; /* as the client sent them, spaces around the value removed */
};

/* What the server calls. `arg` of http_server_opts comes back in every request as r->arg. */
struct http_handler {
    /* The whole request is here: answer now or later. With http_stream_body: the head is here and
     * the pieces of the body follow. Not called if on_head has answered. */
    void (*on_request)(struct http_req *r);

    /* NULL, or called when the head has arrived and the body has not: may refuse with http_reply
     * (the body is then not read), change the limit, or ask for the body in pieces. */
    void (*on_head)(struct http_req *r);
};

/* One request and its response. Fields are read-only for the handler but for the last group. */
struct http_req {
    struct str method; /* "GET": a method that llhttp knows, in upper case */
    struct str path;   /* before '?', not decoded, begins with '/' ("*" for OPTIONS *) */
    struct str query;  /* after '?', not decoded, "" if none */
    struct str body;   /* all of it; NUL-terminated for convenience; {"", 0} if none or streamed */
    const struct http_header *headers;
    size_t n_headers;
    int64_t content_length; /* as announced, -1 for a chunked body, 0 without a body */
    const char *peer;       /* "192.0.2.1" or "2001:db8::1", without the port */
    bool http10;            /* HTTP/1.0: no chunks, so a stream ends by closing */
    bool tls;
    struct arena arena; /* memory of this request, freed after on_closed */
    void *arg;          /* http_server_opts.arg */

    /* Set by the handler. */
    void *user;
    struct buf *copy; /* NULL, or what gets the bytes of the response's body too, without framing */
    /* The response is over and the request is about to be freed. `complete`: every byte of the
     * response went out; false: the client left, was too slow, or http_abort was called. Whoever
     * answers later than on_request must set it, as `r` dangles afterwards. */
    void (*on_closed)(struct http_req *r, bool complete);
    /* After http_write returned false: the queue has room again. */
    void (*on_drain)(struct http_req *r);
};

/* ---- server ---- */

/* Limits. Timeouts are absolute, not "since the last byte", so that a byte now and then does not
 * extend them. */
struct http_server_opts {
    const char
        *host; /* address or name to listen on; a name with several addresses takes them all */
    int port;  /* 0: any free port */
    int backlog;
    const char *cert_file, *key_file; /* PEM, certificate chain first; both or none (plain HTTP) */
    const char *name;                 /* for the Server header, NULL: none */

    size_t max_head_bytes;       /* request line and headers: 431 */
    size_t max_headers;          /* 431 */
    size_t max_body_bytes;       /* 413; http_set_body_limit changes it for one request */
    size_t max_body_total_bytes; /* of all bodies being held at once: 503 */
    size_t max_queue_bytes; /* response bytes waiting for the client, before http_write blocks */
    int max_connections;    /* 503 beyond */
    int max_per_peer;       /* connections from one IPv4 address or IPv6 /64: 429 beyond; 0: none */

    int64_t head_timeout_ms; /* TLS handshake, and then head: 408 */
    int64_t idle_timeout_ms; /* between two requests: closed */
    /* A body must arrive (408), and a response must be taken (closed), at min_bytes_per_s on
     * average, after rate_grace_ms. Time in which nothing waits to be sent does not count. */
    int64_t min_bytes_per_s;
    int64_t rate_grace_ms;
    int64_t ping_ms; /* comment on an event stream that was silent for so long; 0: none */

    /* A client that shuts down its sending side while it waits for the response counts as gone.
     * With allow_half_close only a closed or reset connection does, which is noticed later. */
    bool allow_half_close;

    struct http_handler handler;
    void *arg;
};

/* The defaults: 127.0.0.1, any port, 32 KiB head, 128 headers, 64 MiB body, 64 KiB queue ... */
struct http_server_opts http_server_defaults(void);

/* Listens and begins to accept. Call on the loop's thread, or before it runs. Strings are copied.
 * *port gets the bound port (may be NULL). ERR_IO (address in use ...), ERR_INVALID (certificate).
 */
int http_server_open(struct http_server **out, struct http_loop *l,
                     const struct http_server_opts *opts, int *port, struct err *e);

/* Stops accepting, lets running responses finish (with Connection: close), drops idle connections
 * now and the others after grace_ms. The server is freed, then done(arg) is called from the loop.
 * A second call may shorten the grace; its done is ignored. */
void http_server_close(struct http_server *s, int64_t grace_ms, void (*done)(void *arg), void *arg);

/* Reads certificate and key again, for new connections. On error the old ones stay. */
int http_server_reload_tls(struct http_server *s, struct err *e);

struct http_server_stats {
    int connections;   /* open now */
    int requests;      /* with the handler now */
    uint64_t accepted; /* connections since start */
    uint64_t served;   /* requests given to the handler since start */
    uint64_t refused;  /* answered here: malformed, too large, too slow, too many */
    size_t body_bytes; /* request bodies held now */
};
struct http_server_stats http_server_stats(const struct http_server *s);

/* ---- request ---- */

/* The value of the first header of that name (ASCII case ignored); p is NULL if there is none. */
struct str http_header(const struct http_req *r, const char *name);

/* Overwrites the value of every header of that name with zeros: a secret that was read and must not
 * stay in memory. */
void http_forget_header(struct http_req *r, const char *name);

/* The decoded value of a query parameter, in the request's arena; p is NULL if it is absent. */
struct str http_query(struct http_req *r, const char *name);

/* Decodes %XX; '+' becomes a space if plus_is_space. p is NULL for malformed escapes and for %00.
 */
struct str http_unescape(struct arena *a, struct str s, bool plus_is_space);

/* In on_head: this request may have a body of n bytes at most. */
void http_set_body_limit(struct http_req *r, size_t n);

/* In on_head: do not collect the body. on_request comes at once, and on_data gets the pieces from
 * then on, from the loop; n == 0 once at the end. Replying before the end closes the connection. */
void http_stream_body(struct http_req *r,
                      void (*on_data)(struct http_req *r, const char *p, size_t n));

/* Stops and restarts on_data for a streamed body; the time in between does not count as slow. */
void http_pause_body(struct http_req *r);
void http_resume_body(struct http_req *r);

/* Frees the body early, for a long response to a large request. r->body becomes empty. */
void http_drop_body(struct http_req *r);

/* ---- response ---- */

/* Adds a response header, before http_reply or http_begin. Copied. Control characters in the value
 * become spaces. Content-Length, Transfer-Encoding, Connection, Date and Server are the server's.
 */
void http_add_header(struct http_req *r, const char *name, const char *value);

/* The whole response. `type` is the Content-Type, NULL for none; the body is copied. */
void http_reply(struct http_req *r, int status, const char *type, const void *body, size_t n);

/* Begins a response in pieces. `length` is that of the body, or -1 if it is not known: then chunks,
 * or for HTTP/1.0 until the connection closes. The head leaves with the first piece or at the end
 * of the loop's turn, whichever comes first. */
void http_begin(struct http_req *r, int status, const char *type, int64_t length);

/* The same for an event stream (text/event-stream, never cached or buffered by proxies), with a
 * comment as ping whenever it was silent for ping_ms. */
void http_begin_events(struct http_req *r);

/* Appends to the response; the bytes are copied and always taken. Pieces of one turn of the loop go
 * out together. false: max_queue_bytes are waiting, stop until on_drain. Who goes on all the same
 * is cut off at 16 times as much. After http_abort, or for HEAD, the bytes are dropped. */
bool http_write(struct http_req *r, const void *p, size_t n);

/* One server-sent event: "event: NAME" unless name is NULL, then "data: " before each line of the
 * text. Returns as http_write. */
bool http_write_event(struct http_req *r, const char *name, const void *data, size_t n);

/* Ends the response. If fewer bytes than announced were written, the connection is cut off so that
 * the client sees it. */
void http_end(struct http_req *r);

/* Cuts the connection off: the client sees an incomplete response. */
void http_abort(struct http_req *r);

/* Response bytes that wait for the client. */
size_t http_queued(const struct http_req *r);
