/* upstream.h - backends that speak another dialect than OpenAI's: a client's request becomes
 * theirs, their answer becomes OpenAI's. Pure functions: no I/O, no clock, any thread.
 *
 *   client's chat or completion --upstream_ask--> body for the backend
 *   its event stream --upstream_take--> whole OpenAI events, the last one [DONE]
 *   its whole answer --upstream_answer--> an OpenAI answer
 *   its error        --upstream_error-->  an OpenAI error
 *
 * Nothing that a client asks for is lost silently: a field that the other side cannot express is
 * refused by name, unless it holds a value that asks for nothing. Left out are what Terrace itself
 * acts on (timeout, cache, priority), notes (metadata), the names of participants, and reasoning of
 * earlier turns where the other side has no place for it.
 *
 * A dialect is one file, upstream_*.c, and one row of the table. Sources of the formats: Ollama's
 * docs/api.md and api/types.go (0.12), Anthropic's Messages API, version 2023-06-01. */
#pragma once

#include "api/openai.h"

enum upstream_api { UPSTREAM_OPENAI, UPSTREAM_OLLAMA, UPSTREAM_ANTHROPIC, UPSTREAM_APIS };

/* How a dialect looks from outside. */
struct upstream_wire {
    const char *name;       /* as in a configuration */
    const char *chat;       /* path */
    const char *completion; /* path, NULL: it has none */
    const char *stream;     /* content type of its streams */
    const char *key;        /* header that a key follows */
    const char *header;     /* one more that it wants, NULL: none */
};
extern const struct upstream_wire upstream_wires[UPSTREAM_APIS];

/* A request on its way to one backend. Nothing is copied. */
struct upstream_request {
    enum upstream_api api; /* not UPSTREAM_OPENAI: those bytes need no translation */
    enum openai_endpoint endpoint;
    const json_t *body;     /* the client's, as openai_parse_any took it */
    const json_t *messages; /* in the place of the body's, NULL: those */
    const char *model;      /* as the backend knows it */
};

/* Appends the backend's body. ERR_UNSUPPORTED or ERR_INVALID naming the field in e->param. */
int upstream_ask(struct buf *out, const struct upstream_request *q, struct err *e);

/* One answer in translation. */
struct upstream;

/* `head` and its strings must outlive it; what the client asked of the form of its answer is taken
 * from the request, which need not stay. */
struct upstream *upstream_new(const struct upstream_request *q, const struct openai_head *head);
void upstream_free(struct upstream *u);

/* Takes the next bytes of a stream and appends the events that they complete. Bytes behind the end
 * are ignored. ERR_FORMAT: this is no stream of the dialect; ERR_IO: the backend reports an error,
 * which is the message. Nothing may be taken after an error. */
int upstream_take(struct upstream *u, const char *data, size_t n, struct buf *out, struct err *e);

/* The same for a whole answer with status 200. */
int upstream_answer(struct upstream *u, struct str body, struct buf *out, struct err *e);

/* An answer with another status. false: it is not an error of this dialect. */
bool upstream_error(enum upstream_api api, int status, struct str body, struct buf *out);

/* What was counted so far. */
struct openai_usage upstream_usage(const struct upstream *u);
