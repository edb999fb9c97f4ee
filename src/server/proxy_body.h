/* proxy_body.h - what a backend is asked: the client's bytes, with edits if need be, where it
 * speaks the client's dialect, and a translation where it does not. */
#pragma once

#include "api/upstream.h"

/* A request for backends; nothing is copied. The values lie in the bytes, p NULL: absent. */
struct proxy_body {
    enum openai_endpoint endpoint;
    struct str bytes;
    const json_t *tree; /* the same, parsed */
    json_t *messages;   /* put in the place of the body's (a persona was applied); NULL: not */
    struct str model_at, persona_at, messages_at, prompt_at;
};

/* Finds the values. false: the bytes are not one JSON object, or hide a key behind escapes. */
bool proxy_body_read(struct proxy_body *b);

/* What a chat begins with: the first message, or the first part of the prompt. p NULL: nothing. */
struct str proxy_body_prefix(const struct proxy_body *b);

/* The request in a backend's dialect, its model under the name that the backend knows. */
struct upstream_request proxy_body_for(const struct proxy_body *b, enum upstream_api api,
                                       const char *model);

/* Writes it. *out stays empty if the client's bytes are right as they are. Errors as upstream_ask.
 */
int proxy_body_write(const struct proxy_body *b, const struct upstream_request *q, struct buf *out,
                     struct err *e);
