/* map.h - a hash table from byte strings to pointers. Keys are copied. One thread at a time. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/str.h"

struct map_slot {
    char *key; /* NULL: empty */
    size_t n;
    uint64_t hash;
    void *value;
};

struct map {
    struct map_slot *slots; /* {0} is an empty map */
    size_t n, cap;          /* entries; slots, a power of two */
};

void map_release(struct map *m); /* frees keys, not values */

void *map_get(const struct map *m, struct str key); /* NULL if absent */

/* Sets key to value (not NULL) and returns the value it replaces, or NULL. */
void *map_put(struct map *m, struct str key, void *value);

/* Removes key and returns its value, or NULL. */
void *map_del(struct map *m, struct str key);

/* for (size_t i = 0; (s = map_next(m, &i));) visits every entry; no put or del meanwhile. */
struct map_slot *map_next(const struct map *m, size_t *i);
