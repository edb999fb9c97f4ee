/* persona.h - the body of POST /v1/personas: a named beginning of chats.
 *
 *   {"name": "teacher", "system": "You are ..." | "messages": [...], "model": ..., "pin": true,
 *    "adapter": as in a chat}
 *
 * Pure functions, any thread. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "api/request.h"
#include "base/err.h"
#include "base/str.h"

enum { PERSONA_NAME_BYTES = 64 };

struct persona_spec {
    json_t *root;
    const char *name;  /* lives in root */
    const char *model; /* NULL: the default model; lives in root */
    bool pin;          /* keep the computed prompt; else it may be evicted */
    json_t *messages;  /* owned, in the form that chat templates expect */
    /* that chats run under; names live in root and arena */
    struct adapter_choice adapters[API_MAX_ADAPTERS];
    size_t n_adapters;
    const json_t *adapter; /* as it was written; NULL: none; lives in root */
    struct arena arena;
};

/* Letters, digits, '.', '_' and '-', a letter or digit first, 1 to PERSONA_NAME_BYTES. */
bool persona_name_ok(struct str name);

/* Fills *out; release it also after an error. ERR_INVALID with the field in e->param. */
int persona_parse(struct persona_spec *out, const char *body, size_t n, struct err *e);
int persona_parse_tree(struct persona_spec *out, json_t *root, struct err *e);
void persona_spec_release(struct persona_spec *s); /* accepts {0} */
