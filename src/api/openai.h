/* openai.h - the OpenAI dialect, with the extra fields of vLLM and llama-server: bytes to
 * struct chat_request, and what was generated back to bytes. Pure functions: no I/O, no clock, any
 * thread.
 *
 * Source of the format: the OpenAI API reference (chat completions, completions, models, errors),
 * and for the extra fields the request models of vLLM and llama-server's README.
 *
 * Fields. One table (openai_param.c) says for every field its type, range, default and where it
 * goes. A field that is known but cannot be served is refused by name unless it holds a value that
 * asks for nothing; an unknown field is ignored and counted; null is the default everywhere. */
#pragma once

#include "api/request.h"
#include "base/buf.h"

enum openai_endpoint {                        /* bits, so that a table row can name several */
                       OPENAI_CHAT = 1,       /* /v1/chat/completions */
                       OPENAI_COMPLETION = 2, /* /v1/completions */
                       OPENAI_TOKENIZE = 4,   /* /tokenize, in vLLM's form or llama-server's */
};

/* Parses a body into *r ({0} before; release it also after an error). ERR_INVALID or
 * ERR_UNSUPPORTED with the field in e->param, as in "messages[2].content"; ERR_LIMIT for counts
 * past the limits of request.h. */
int openai_parse(struct chat_request *r, enum openai_endpoint endpoint, const char *body, size_t n,
                 struct err *e);

/* The same for a request that may go elsewhere: what is well formed and only not served here
 * (images, response_format) is no error, but left in r->refused. */
int openai_parse_any(struct chat_request *r, enum openai_endpoint endpoint, const char *body,
                     size_t n, struct err *e);
int openai_served_here(const struct chat_request *r, struct err *e); /* 0, or r->refused in e */

/* Calls fn for every field of the table: for documentation and tests. `refused`: known, not served.
 */
typedef void openai_field_fn(void *arg, const char *name, unsigned endpoints, bool refused);
void openai_each_field(openai_field_fn *fn, void *arg);

/* What all chunks of one response share. */
struct openai_head {
    enum openai_endpoint endpoint; /* OPENAI_CHAT or OPENAI_COMPLETION */
    const char *id;                /* "chatcmpl-..." or "cmpl-..." */
    const char *model;             /* as the client will see it */
    const char *fingerprint;
    int64_t created; /* Unix time, s */
    bool usage_null; /* chunks carry "usage":null (include_usage was asked) */
};

struct openai_usage {
    int prompt_tokens, cached_tokens, completion_tokens;
};

/* One token and what the model thought of it; text points to bytes, not always whole characters. */
struct openai_token {
    struct str text;
    float logprob;
};

/* n_tokens rows of 1 + n_top tokens each: the chosen one, then alternatives, best first. */
struct openai_logprobs {
    const struct openai_token *tokens;
    size_t n_tokens;
    int n_top;
    size_t text_offset; /* characters of the text before the first token (completions) */
};

struct openai_call {
    int index; /* within the choice */
    const char *id, *name;
    const char *arguments; /* JSON text */
};

/* One choice or one piece of it. A chunk holds text, reasoning or calls. */
struct openai_choice {
    int index;
    struct str text;
    struct str reasoning;            /* chat only: `reasoning_content`, n 0: none */
    const struct openai_call *calls; /* chat only */
    size_t n_calls;
    const struct openai_logprobs *logprobs; /* NULL: not asked */
    const char *finish;                     /* "stop", "length", "tool_calls"; NULL while running */
    struct str stop_text;                   /* the stop string that matched, {0}: none */
    int32_t stop_id;                        /* the stop token that matched, -1: none */
};

/* A whole response. */
void openai_write_response(struct buf *out, const struct openai_head *h,
                           const struct openai_choice *choices, size_t n,
                           const struct openai_usage *usage);

/* Each of these appends the data of one event of a stream, in the order in which they must be sent:
 * for each choice a role chunk (chat only), text chunks, a finish chunk; then the usage chunk if it
 * was asked; then the event OPENAI_DONE. `usage` in text and finish chunks is NULL unless
 * continuous_usage was asked. */
void openai_write_role(struct buf *out, const struct openai_head *h, int index);
void openai_write_text(struct buf *out, const struct openai_head *h, const struct openai_choice *c,
                       const struct openai_usage *usage);
void openai_write_finish(struct buf *out, const struct openai_head *h,
                         const struct openai_choice *c, const struct openai_usage *usage);
void openai_write_usage(struct buf *out, const struct openai_head *h,
                        const struct openai_usage *usage);
#define OPENAI_DONE "[DONE]"

/* The HTTP status that answers an ERR_* code. */
int openai_status(int err_code);

/* {"error":{"message","type","param","code"}}: a response, or the data of an event in a stream
 * whose status is sent already (OPENAI_DONE follows). The type follows from the status; `code` may
 * be NULL. */
void openai_write_error(struct buf *out, int status, const char *code, const struct err *e);
