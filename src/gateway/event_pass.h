/* event_pass.h - an event stream on its way through: only whole, well-formed events go on.
 *
 * What a backend sends is passed on byte by byte, but cut at the ends of events, so that when it
 * dies, or turns out to send something else, the client's stream can still end with an error event
 * of ours. Each data line must be a JSON object on one line (its braces are looked at, no more) or
 * [DONE], as all OpenAI-like servers send them. Source of the format: WHATWG HTML, 9.2. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/str.h"

enum { EVENT_MAX_BYTES = 4 << 20 };

/* {0} is the start of a stream. */
struct event_pass {
    struct buf held;                          /* the beginning of an event */
    size_t passed;                            /* of held, handed out by the last call */
    size_t scanned;                           /* of the rest, lines that were looked at */
    struct str last;                          /* data line of the current piece */
    struct buf kept;                          /* copy of the one of an earlier piece */
    bool done;                                /* [DONE] went by: nothing may follow */
    uint64_t n_data;                          /* data lines, [DONE] left out */
    int64_t prompt_tokens, completion_tokens; /* of the last usage that went by, 0: none */
};

/* Takes the next bytes. *out gets the events that they complete, valid until the next call or until
 * `data` is; n == 0: none. false: this is no event stream; nothing of it may go on. */
bool event_pass_add(struct event_pass *p, const char *data, size_t n, struct str *out);

void event_pass_release(struct event_pass *p);

/* The token counts of an OpenAI answer or chunk; false if it has none. */
bool event_usage(struct str json, int64_t *prompt, int64_t *completion);
