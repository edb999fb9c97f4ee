/* arena.h - memory of one request, freed at once.
 *
 * Pointers stay valid until arena_release. Nothing is freed one by one. One thread at a time.
 */
#pragma once

#include <stddef.h>

#include "base/str.h"

struct arena_chunk;

struct arena {
    struct arena_chunk *head; /* newest first; {0} is an empty arena */
    size_t used_bytes;        /* handed out so far, for limits */
};

void arena_release(struct arena *a);

void *arena_alloc(struct arena *a, size_t n); /* zeroed, 16-byte aligned, never NULL */
char *arena_strdup(struct arena *a, struct str s);
char *arena_printf(struct arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
