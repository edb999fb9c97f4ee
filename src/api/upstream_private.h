/* upstream_private.h - what the dialects of upstream.h are made of. */
#pragma once

#include "api/upstream.h"
#include "base/json.h"

enum { UPSTREAM_LINE_BYTES = 4 << 20 };

/* ---- requests: upstream_ask.c ---- */

/* A request being written: `out` is the backend's body. */
struct upstream_asking {
    const struct upstream_request *q;
    json_t *out;
};

struct upstream_field;

/* Reads one field that is present and not null. */
typedef int upstream_field_fn(struct upstream_asking *a, const struct upstream_field *f,
                              const json_t *v, struct err *e);

/* A field that the dialect expresses. */
struct upstream_field {
    const char *name;
    upstream_field_fn *fn;
    const char *to; /* for fn: where it goes */
};

/* Reads the body's fields by the table. Those that are not in it must be read elsewhere (messages,
 * limits, stream), or ask for nothing. */
int upstream_read_fields(struct upstream_asking *a, const struct upstream_field *fields, size_t n,
                         struct err *e);

/* ERR_UNSUPPORTED: the dialect cannot say it. */
int upstream_cannot(const struct upstream_asking *a, const char *name, struct err *e);

upstream_field_fn upstream_copy; /* the value as it is, to out's member `to` */

const json_t *upstream_max_tokens(const struct upstream_asking *a); /* NULL: not given */
const json_t *upstream_messages(const struct upstream_asking *a);
json_t *upstream_stops(const json_t *v);             /* one stop string or several: an array */
const json_t *upstream_schema(const json_t *format); /* of response_format, NULL: it has none */
bool upstream_is(const json_t *v, const char *text); /* a string that is `text` */

/* The arguments of a call as a new object, NULL: they are none, which upstream_bad_call says. */
json_t *upstream_arguments(const json_t *call);
int upstream_bad_call(size_t message, struct err *e);

/* A part of a message's content: text, or an image by its URL. */
struct upstream_part {
    char where[64];        /* "messages[0].content[1]" */
    const json_t *whole;   /* as it was sent, NULL: the content is one string */
    const json_t *text;    /* a string; NULL: this is an image */
    const json_t *url;     /* of the image */
    struct str type, data; /* its media type and base64 text (UTF-8, as it is of a parsed string);
                              p NULL: the URL leads to it */
};
typedef int upstream_part_fn(void *arg, const struct upstream_part *part, struct err *e);

/* Calls fn for each part of messages[i]; content that is one string is one part. */
int upstream_each_part(const struct upstream_asking *a, const json_t *message, size_t i,
                       upstream_part_fn *fn, void *arg, struct err *e);

/* ---- answers: upstream.c ---- */

/* What a dialect says of an answer, in the order in which it happens. Text and reasoning that are
 * no strings are nothing. A call without an id gets one; its arguments are JSON text, in pieces. */
void upstream_text(struct upstream *u, const json_t *text);
void upstream_reasoning(struct upstream *u, const json_t *text);
void upstream_call_begin(struct upstream *u, const char *id, const char *name);
void upstream_call_add(struct upstream *u, struct str arguments);
void upstream_call_add_tree(struct upstream *u, const json_t *arguments); /* all of them */
void upstream_call_end(struct upstream *u);                               /* if there is one */
void upstream_usage_is(struct upstream *u, int64_t prompt, int64_t cached, int64_t completion);
void upstream_end(struct upstream *u, const char *finish, const char *stop_text); /* may be NULL */

/* Wrong form: "'WHERE' is not WHAT" with ERR_FORMAT. */
int upstream_garbled(struct err *e, const char *where, const char *what);

struct upstream_dialect {
    bool events; /* a stream is server-sent events, else one JSON object a line */
    int (*ask)(struct upstream_asking *a, struct err *e);
    /* One object of a stream, and a whole answer. ERR_FORMAT, ERR_IO as upstream_take. */
    int (*take)(struct upstream *u, const json_t *event, struct err *e);
    int (*answer)(struct upstream *u, const json_t *answer, struct err *e);
    /* The text of an error, NULL: it is none. */
    const char *(*error)(const json_t *answer);
};
extern const struct upstream_dialect upstream_ollama, upstream_anthropic;
