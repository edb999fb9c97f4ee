#include "base/map.h"

#include <stdlib.h>
#include <xxhash.h>

#include "base/err.h"
#include "base/mem.h"

void map_release(struct map *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->cap; i++)
        free(m->slots[i].key);
    free(m->slots);
    *m = (struct map){0};
}

/* The slot that holds key, or the empty one where it would go. */
static struct map_slot *find(const struct map *m, struct str key, uint64_t hash)
{
    for (size_t i = hash & (m->cap - 1);; i = (i + 1) & (m->cap - 1)) {
        struct map_slot *s = &m->slots[i];
        if (!s->key || (s->hash == hash && s->n == key.n && memcmp(s->key, key.p, key.n) == 0))
            return s;
    }
}

void *map_get(const struct map *m, struct str key)
{
    return m->n ? find(m, key, XXH3_64bits(key.p, key.n))->value : NULL;
}

static void grow(struct map *m)
{
    struct map old = *m;
    m->cap = old.cap ? old.cap * 2 : 16;
    m->slots = xcalloc(m->cap, sizeof *m->slots);
    for (size_t i = 0; i < old.cap; i++) {
        struct map_slot *s = &old.slots[i];
        if (s->key)
            *find(m, (struct str){s->key, s->n}, s->hash) = *s;
    }
    free(old.slots);
}

void *map_put(struct map *m, struct str key, void *value)
{
    BUG_ON(!value);
    if (m->n * 4 >= m->cap * 3)
        grow(m);
    uint64_t hash = XXH3_64bits(key.p, key.n);
    struct map_slot *s = find(m, key, hash);
    void *old = s->value;
    if (!s->key) {
        *s = (struct map_slot){.key = xstrndup(key.p, key.n), .n = key.n, .hash = hash};
        m->n++;
    }
    s->value = value;
    return old;
}

void *map_del(struct map *m, struct str key)
{
    if (!m->n)
        return NULL;
    struct map_slot *s = find(m, key, XXH3_64bits(key.p, key.n));
    if (!s->key)
        return NULL;
    void *value = s->value;
    free(s->key);
    *s = (struct map_slot){0};
    m->n--;
    /* close the gap: move every later entry of the run that may not skip it */
    size_t mask = m->cap - 1, gap = (size_t)(s - m->slots);
    for (size_t i = (gap + 1) & mask; m->slots[i].key; i = (i + 1) & mask) {
        size_t home = m->slots[i].hash & mask;
        if (((i - home) & mask) >= ((i - gap) & mask)) {
            m->slots[gap] = m->slots[i];
            m->slots[i] = (struct map_slot){0};
            gap = i;
        }
    }
    return value;
}

struct map_slot *map_next(const struct map *m, size_t *i)
{
    while (*i < m->cap) {
        struct map_slot *s = &m->slots[(*i)++];
        if (s->key)
            return s;
    }
    return NULL;
}
