/* client_private.h - what the files of the client share.
 *
 *   client.c        calls, their limits, what callers use
 *   client_curl.c   calls over libcurl: https, and hosts that have a name
 *   client_direct.c calls to http://ADDRESS:PORT over llhttp: engines in the same network, for
 * which a gateway must cost next to nothing
 */
#pragma once

#include <curl/curl.h>
#include <uv.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/map.h"
#include "http/client.h"
#include "http/link.h"

enum {
    CLIENT_MAX_IDLE = 256,
    CLIENT_MAX_HEAD_BYTES = 64 << 10,
    CLIENT_MAX_SPARE = 256, /* easy handles kept for later */
    CLIENT_READ_BYTES = 64 << 10,
};

struct sock;
struct direct;
struct host;

struct http_client {
    struct http_client_opts opts;
    uv_loop_t *uv;
    uv_timer_t due;    /* the earliest limit of a call */
    int64_t due_ms;    /* of the running timer, 0: it is idle */
    struct link calls; /* under way */
    int n_handles;     /* of libuv, not closed yet */

    /* client_curl.c */
    CURLM *multi;
    uv_timer_t timer;    /* libcurl's */
    int depth;           /* > 0: libcurl is on the stack, where handles cannot come and go */
    struct link fresh;   /* started while libcurl was on the stack */
    struct link dead;    /* cancelled while libcurl was on the stack */
    struct link fed;     /* have data for on_data */
    struct buf room;     /* memory for it that is used again */
    struct sock **socks; /* by descriptor, NULL: not ours */
    size_t n_socks;
    CURL *spare[CLIENT_MAX_SPARE];
    int n_spare;

    /* client_direct.c */
    struct map hosts;    /* "address port" -> struct host */
    struct link directs; /* all connections */
    struct link broken;  /* calls whose start has failed: `kick` tells them */
    uv_timer_t kick;
    int n_idle;
    char *read_buf;
};

enum call_state { CALL_FRESH, CALL_RUNS, CALL_ENDS, CALL_DEAD };

struct http_call {
    struct http_client *client;
    struct link link, fed;
    struct buf data;            /* pieces of this turn */
    struct http_call_opts opts; /* strings are not kept */
    enum call_state state;
    struct arena arena;
    struct http_header *headers;
    size_t n_headers, cap_headers, head_bytes;
    int status;
    bool head_seen, paused, too_large, reused;
    int64_t start_ms, last_ms;

    CURL *easy; /* NULL: a direct call */
    struct curl_slist *lines;

    struct host *host;
    struct direct *direct; /* its connection, NULL: broken before it had one */
    struct buf request;    /* head, for a second try */
    struct link broken;
    bool retried, is_head;
};

static inline int64_t client_now_ms(const struct http_client *c)
{
    return (int64_t)uv_now(c->uv);
}

/* client.c */
void client_handle_closed(struct http_client *c); /* frees the client with the last one */
void call_add_header(struct http_call *call, struct str name, struct str value);
bool call_head_is_here(struct http_call *call); /* tells the caller; false: it has cancelled */
void call_end(struct http_call *call, const struct err *e); /* the last callback, then free */
void call_free(struct http_call *call);
void call_watch_due(struct http_call *call);

/* client_curl.c */
int curl_part_open(struct http_client *c, struct err *e);
void curl_part_close(struct http_client *c);
void curl_call_start(struct http_call *call, const struct http_call_opts *o);
void curl_call_cancel(struct http_call *call);
void curl_call_drop(struct http_call *call); /* a limit was met: no more callbacks */
void curl_call_pause(struct http_call *call, bool pause);
void curl_call_release(struct http_call *call);

/* client_direct.c */
void direct_part_open(struct http_client *c);
void direct_part_close(struct http_client *c);
/* false: not a URL for it */
bool direct_call_start(struct http_call *call, const struct http_call_opts *o);
void direct_call_drop(struct http_call *call);
void direct_call_pause(struct http_call *call, bool pause);
bool direct_call_is_sent(const struct http_call *call);
bool direct_is_connecting(const struct http_call *call);
bool direct_serves(const struct direct *d, const struct http_call *call); /* still */
