/* conn.h - inside of the server: one connection, and what its files share.
 *
 *   server.c  listens, accepts, counts, closes down
 *   conn.c    the state machine of a connection: read, hand over, finish, deadlines
 *   conn_io.c socket or TLS, the output queue, which events to wait for
 *   reply.c   what the handler calls to answer
 *   request.c what the handler calls to look things up
 *
 * States. Only HEAD, BODY and LINGER read from the client:
 *
 *   HEAD --head--> BODY --whole body--> BUSY --response out--> HEAD (keep-alive)
 *     |              |                    ^ \--> LINGER --> CLOSED
 *     \-- malformed, too large, too slow -/
 *
 * Work that a callback of the loop leaves behind (bytes to send, a finished response, a change of
 * what to wait for) is done once a turn: conn_dirty() puts the connection on the server's list,
 * which conn_settle() works off right before the loop sleeps. So pieces of one turn leave in one
 * system call, and nothing that the handler calls can call it back.
 */
#pragma once

#include <netinet/in.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

#include "base/buf.h"
#include "base/map.h"
#include "http/http.h"
#include "http/http_parse.h"
#include "http/link.h"

enum {
    HTTP_READ_BYTES = 64 << 10,
    HTTP_READS_PER_TURN = 4, /* of one connection, so that one upload leaves room for others */
    HTTP_MAX_LISTENERS = 4,  /* addresses of one host name */
    HTTP_OVERFLOW = 64,      /* connections beyond the limit that are taken to be told so */
    HTTP_LINGER_MS = 2000,   /* for the client to read the response before a reset can destroy it */
    HTTP_QUEUE_CUT = 16,     /* times max_queue_bytes */
};

/* ---- server ---- */

struct http_conn;

struct http_listener {
    uv_poll_t poll;
    int fd;
    struct http_server *server;
};

struct http_server {
    struct http_server_opts opts; /* strings are copies */
    uv_loop_t *uv;
    struct http_listener listeners[HTTP_MAX_LISTENERS];
    int n_listeners;
    int spare_fd; /* given up for a moment to accept and close when descriptors run out */
    SSL_CTX *tls; /* NULL: plain */

    uv_timer_t accept_again; /* runs while accepting is paused */
    uv_prepare_t settle;     /* works off the dirty list */
    uv_idle_t again;  /* active while that list is not empty, so that the loop doesn't sleep */
    uv_timer_t grace; /* of http_server_close */
    int n_handles;    /* uv handles not closed yet, the connections' included */

    struct link conns, dirty;
    struct map peers; /* address bytes -> number of connections as a pointer */
    char *read_buf;   /* HTTP_READ_BYTES, used by one connection at a time */
    struct buf date;  /* see server_date */
    int64_t date_s;
    struct http_server_stats stats;

    bool closing;
    void (*done)(void *arg);
    void *done_arg;
};

/* A handle of the server was closed: frees the server when it was the last. */
void server_handle_closed(struct http_server *s);

/* Into and out of the lists and counts. A connection over a limit gets a status to refuse its first
 * request with; false: far over the limit, close it. */
bool server_remember(struct http_conn *c);
void server_forget(struct http_conn *c);

/* "Date: ...\r\nServer: ...\r\n" of this second. */
const char *server_date(struct http_server *s);

/* ---- rates ---- */

/* A deadline that moves with the bytes: `bytes` buy bytes / rate seconds, up to the grace. Who
 * keeps the rate never meets it, who stops meets it after the grace, who drips meets it a little
 * later. */
struct pace {
    int64_t deadline_us; /* of the loop's clock; 0: nothing is due */
};

/* ---- connection ---- */

enum conn_state { CONN_HEAD, CONN_BODY, CONN_BUSY, CONN_LINGER, CONN_CLOSED };

struct http_conn {
    struct http_req req; /* first: a request is its connection */
    struct http_server *server;
    struct link all, dirty;
    int fd;
    SSL *ssl; /* NULL: plain */
    uv_poll_t poll;
    uv_timer_t timer;
    int waiting_for;      /* what the poll handle was started with */
    int64_t timer_due_ms; /* of a running timer */
    int n_handles;        /* of poll and timer */
    unsigned char peer_key[16];
    char peer[INET6_ADDRSTRLEN];

    enum conn_state state;
    int refuse_with;      /* 429 or 503 for the first request: one connection too many */
    bool fresh;           /* no request yet */
    bool ssl_wants_other; /* a TLS read waits to write or the other way around */
    bool aborted;         /* close on settling, whatever else is to be done */
    int64_t since_ms;     /* when the state was entered, or the head's first byte came */
    bool head_begun;

    /* request */
    struct http_parse parse;
    struct buf in; /* read but not parsed: pipelined, or while a streamed body is paused */
    size_t in_pos;
    struct buf body;
    struct pace body_pace;
    bool seen;   /* the handler knows the request, so on_closed is owed */
    bool paused; /* a streamed body */
    void (*on_data)(struct http_req *r, const char *p, size_t n);
    bool streamed;

    /* response */
    struct buf headers; /* from http_add_header */
    struct buf out;
    size_t out_pos;
    struct pace out_pace;
    bool begun, ended;
    bool keep_alive; /* after this response */
    bool no_body;    /* HEAD, 204, 304 */
    bool chunked;
    bool events;         /* an event stream that wants pings */
    bool blocked;        /* http_write has returned false */
    int64_t length_left; /* of a response with a length; -1: none */
    int64_t written_ms;  /* last http_write */
};

static inline struct http_conn *conn_of(struct http_req *r)
{
    return (struct http_conn *)r;
}

static inline size_t conn_queued(const struct http_conn *c)
{
    return c->out.len - c->out_pos;
}

static inline int64_t conn_now_ms(const struct http_conn *c)
{
    return (int64_t)uv_now(c->server->uv);
}

/* conn.c */
bool conn_open(struct http_server *s, int fd,
               const struct sockaddr *peer);            /* false: fd not taken */
void conn_queue(struct http_conn *c, struct str bytes); /* to be sent, whatever they are */
void conn_dirty(struct http_conn *c);
void conn_settle(struct http_conn *c);
void conn_close(struct http_conn *c);         /* at once; tells the handler */
bool conn_is_idle(const struct http_conn *c); /* between requests */
bool conn_reads(const struct http_conn *c);
void conn_release_body(struct http_conn *c);
void conn_event(uv_poll_t *poll, int status, int events);
void pace_start(struct pace *p, const struct http_conn *c);
void pace_progress(struct pace *p, const struct http_conn *c, size_t bytes);

/* conn_io.c */
enum { IO_AGAIN = -1, IO_GONE = -2 };
int io_open(struct http_conn *c); /* TLS state if the server has TLS; 0 or ERR_NOMEM */
ssize_t io_read(struct http_conn *c, char *to, size_t n); /* bytes, 0 at the end, IO_* */
bool io_flush(struct http_conn *c);                       /* false: the client has gone */
void io_finish(struct http_conn *c);                      /* no more bytes from us */
bool io_unread(const struct http_conn *c);  /* bytes of the client wait in the kernel */
bool io_hung_up(const struct http_conn *c); /* closed both ways, or reset */
void io_watch(struct http_conn *c);         /* waits for what the state needs */
void io_close(struct http_conn *c);

/* reply.c */
void reply_error(struct http_conn *c, int status, const char *reason); /* and close */
void reply_reset(struct http_conn *c);
void reply_ping(struct http_conn *c);

/* tls.c: a context from PEM files, ERR_INVALID naming the file and the reason */
int tls_open(SSL_CTX **out, const char *cert_file, const char *key_file, struct err *e);
