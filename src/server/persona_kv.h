/* persona_kv.h - the computed prompts of personas in files, so that a restart need not compute them
 * again: STATE_DIR/personas/ID.kv (engine/spill.h).
 *
 * One thread of its own reads and writes, one file at a time, in the order of asking; what it has
 * done is told on the server's thread. A model is held while its blocks go in or out. All
 * functions: the server's thread. */
#pragma once

#include "server/persona.h"

struct persona_kv;

/* NULL when the folder cannot be made (which is logged). At most budget_bytes of files. */
struct persona_kv *persona_kv_new(struct personas *all, const char *dir, uint64_t budget_bytes);

/* Nothing may be under way. NULL is fine. */
void persona_kv_free(struct persona_kv *k);

/* What a prompt is computed with: a model, and on it n adapters. */
struct persona_with {
    struct served *model;
    struct adapter_use adapters[MODEL_MAX_ADAPTERS];
    int n;
};

/* Brings p's prompt back; then p is READY, or WAITING again to be computed. False: there is nothing
 * to try. */
bool persona_kv_read(struct persona_kv *k, struct persona *p, const struct persona_with *with);

/* Keeps what was computed and pinned for p. What goes wrong is logged. */
void persona_kv_write(struct persona_kv *k, struct persona *p, const struct persona_with *with);

/* Nobody waits any more for what is under way for p. */
void persona_kv_give_up(struct persona *p);

void persona_kv_remove(struct persona_kv *k, const char *id);

/* Removes the files that belong to no persona. */
void persona_kv_sweep(struct persona_kv *k);

/* The server is ending: reads end soon; with `all`, everything does. */
void persona_kv_stop(struct persona_kv *k, bool all);
bool persona_kv_busy(const struct persona_kv *k);
