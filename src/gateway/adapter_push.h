/* adapter_push.h - adapters of ours on backends that load them by name: vLLM's
 * POST /v1/load_lora_adapter and /v1/unload_lora_adapter.
 *
 * A copy is one version of an adapter on one backend:
 *
 *     (none) --first use--> LOADING --> LOADED --unwanted, or least recently used--> UNLOADING
 *        ^                     |           |                                            |
 *        |                     v           `--- the backend has restarted, lost --------|
 *        |<--a minute later-- REFUSED                                                   |
 *        `------------------------------------------------------------------------------'
 *
 * The name that the backend gets holds the version's digest, so that a new version is another
 * adapter there and a stale one is never asked. However many requests want a copy, it is loaded
 * once. A backend that was ejected or started since a load may have forgotten it: it is loaded
 * again, and "already loaded" is as good. Copies in use stay, so a backend may for a while hold
 * more than max_adapters. All of it on the loop's thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/json.h"
#include "base/waiter.h"

struct backend;
struct backends;
struct adapter_copy;

enum { PUSH_NAME_BYTES = 192 };

/* What a request wants; strings are its own. */
struct push_adapter {
    const char *name; /* in the registry */
    int version;
    char as[PUSH_NAME_BYTES]; /* that backends know it by: push_name */
    const char *path;         /* of the PEFT directory */
    const char *root;         /* that paths are below, for backends with an adapter_root */
    bool in_body; /* the request's body names it, which another gateway understands as well */
};

/* "NAME@3-0123456789ab", of the version and its digest. */
void push_name(char out[PUSH_NAME_BYTES], const char *name, int version, const uint8_t *digest);

/* Is it such a name? Then it is no model for clients to ask for, whoever has loaded it there. */
bool push_is_name(const char *name);

/* May b serve a? NULL, or why not: "takes no adapters". */
const char *push_obstacle(const struct backend *b, const struct push_adapter *a);

/* Does b have it already, or soon? */
bool push_has(const struct backend *b, const struct push_adapter *a);

/* One request's hold on a copy; {0} holds nothing. Lives in its owner's struct. */
struct push_use {
    struct adapter_copy *copy;
    struct waiter waiter; /* the owner sets wake */
};

/* 1: b has it, until push_release, and *as is the name to ask for. 0: it is being loaded, and the
 * waiter will be woken: ask again, or it was refused. ERR_*: it cannot be loaded there. Backends
 * that are no vLLM get no copies: they have whatever the body says, and *as stays as it is. */
int push_take(struct backend *b, const struct push_adapter *a, struct push_use *u, const char **as,
              struct err *e);
void push_release(struct push_use *u);

/* The backend says that it does not know it: to be loaded again. */
void push_lost(struct push_use *u);

/* Unloads the copies of `name` that the caller does not want any more, once no request uses them.
 */
void push_settle(struct backends *all, const char *name,
                 bool (*wanted)(void *arg, const char *name, int version), void *arg);

/* ["NAME@3-...", ...]: those that are loaded. */
void push_write(const struct backend *b, struct jw *w);
int push_count(const struct backend *b);

/* Cancels what is under way and forgets all. No request holds any. */
void push_free(struct backend *b);
