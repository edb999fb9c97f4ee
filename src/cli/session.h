/* session.h - one conversation with a loaded model, for the terminal. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "base/err.h"
#include "cli/load.h"

struct session;

struct session_opts {
    double temperature, top_p;
    int64_t top_k, max_tokens; /* 0: off; 0: what the context leaves */
    bool has_seed;
    uint64_t seed;
    const char *system; /* first message, or NULL */
};

/* Starts an engine on l, which outlives the session. */
int session_new(struct session **out, const struct loaded *l, const struct load_options *lo,
                const struct session_opts *o, struct err *e);
void session_free(struct session *s);

/* Forgets the conversation; `system` becomes its first message (NULL: none). */
void session_reset(struct session *s, const char *system);

/* Adds the user's text, calls `print` with each piece of the answer on this thread, and adds the
 * answer to the conversation. session_interrupt ends the answer early. */
int session_say(struct session *s, const char *text, void (*print)(const char *text, size_t n),
                struct err *e);

/* From a signal handler or another thread: stop the answer that is being written. */
void session_interrupt(struct session *s);

/* Tokens, times and rates of the last answer, in words. */
void session_stats(const struct session *s, char *out, size_t size);
