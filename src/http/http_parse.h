/* http_parse.h - the bytes of one request to events. Pure: no sockets, no clock.
 *
 * llhttp does the work, behind two guards. Before it, a filter over the raw head and trailers lets
 * only lines through that end in CRLF, hold no control characters and don't begin with a space, so
 * that no reading of line ends differs between us and a proxy in front (CVE-2023-30589,
 * CVE-2024-27982, CVE-2025-23167). After it, checks on the headers that decide where a message
 * ends: one Host on HTTP/1.1, one Content-Length or one "Transfer-Encoding: chunked" and never
 * both, version 1.0 or 1.1.
 *
 * Invariant: the events depend on the bytes only, not on how they were cut into calls (the pieces
 * of HTTP_PARSE_DATA are the same bytes when put together). Sources: RFC 9110, RFC 9112.
 */
#pragma once

#include <llhttp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/str.h"
#include "http/http.h"

enum http_parse_event {
    HTTP_PARSE_MORE,  /* all bytes taken, more needed */
    HTTP_PARSE_HEAD,  /* the fields "of the head" are set; comes once */
    HTTP_PARSE_DATA,  /* p->data is the next piece of the decoded body */
    HTTP_PARSE_END,   /* the message is complete; stays until http_parse_reset */
    HTTP_PARSE_ERROR, /* p->status and p->reason say why; stays until http_parse_reset */
};

enum http_parse_phase { PHASE_HEAD, PHASE_BODY, PHASE_TRAILER, PHASE_END, PHASE_ERROR };

/* Where in a line the filter is. */
enum http_parse_line {
    LINE_FIRST,
    LINE_FIRST_CR,
    LINE_REQUEST,
    LINE_START,
    LINE_IN,
    LINE_CR,
    LINE_END_CR
};

struct http_parse {
    /* of the head; the text lies in `head`, the array in the arena */
    struct str method, path, query;
    struct http_header *headers;
    size_t n_headers;
    int64_t content_length; /* -1: chunked, 0: no body */
    bool http10, keep_alive;
    bool expect_continue; /* the client waits for 100 Continue */

    struct str data;    /* of HTTP_PARSE_DATA, in the caller's bytes */
    int status;         /* of HTTP_PARSE_ERROR: 400, 413, 417, 431, 501, 505 */
    const char *reason; /* static text, a sentence without a period */

    /* private */
    enum http_parse_phase phase;
    enum http_parse_line line;
    size_t max_head_bytes, max_headers;
    uint64_t max_body_bytes, body_bytes, extension_bytes;
    size_t n_lines, trailer_bytes;
    bool head_done;
    struct buf head;
    struct str target;
    struct arena *arena;
    llhttp_t llhttp;
};

/* Both limits are inclusive. The arena gets the header array and outlives the use of it. */
void http_parse_init(struct http_parse *p, size_t max_head_bytes, size_t max_headers,
                     struct arena *arena);
void http_parse_release(struct http_parse *p);

/* Ready for the next request of the connection. The slices of the last one dangle. */
void http_parse_reset(struct http_parse *p);

/* Takes bytes from data[0..n), returns how many, and sets *ev. To be called again, with the rest of
 * the bytes and even if none are left, until *ev is MORE, END or ERROR. */
size_t http_parse(struct http_parse *p, const char *data, size_t n, enum http_parse_event *ev);

/* After HEAD: the body may have n bytes. false if it has announced more. Unlimited if not called.
 */
bool http_parse_limit_body(struct http_parse *p, uint64_t n);

/* Has any byte of a request line arrived? Is all of the message parsed? */
bool http_parse_begun(const struct http_parse *p);
bool http_parse_ended(const struct http_parse *p);
