/* response_rendered.c - answers as bytes, by the bytes of the request: a repeated request is
 * answered without being parsed, rendered and tokenized again. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "gateway/response_private.h"

enum {
    MOST_PER_ENTRY = 8,   /* one answer, asked for in so many spellings */
    OVERHEAD_BYTES = 128, /* of a slot of the map and the allocator */
};

struct rendered {
    struct rendered *next; /* of the same entry */
    struct response_entry *entry;
    struct response_key request;
    uint64_t generation;
    struct response_rendered value;
};

void response_rendered_release(struct response_rendered *v)
{
    free(v->body);
    free(v->id_at);
    free(v->time_at);
    free(v->route);
    free(v->backend);
    *v = (struct response_rendered){0};
}

static void rendered_free(struct rendered *r)
{
    struct response_cache *c = r->entry->cache;
    if (map_get(&c->rendered, response_key_str(&r->request)) == r)
        map_del(&c->rendered, response_key_str(&r->request));
    response_rendered_release(&r->value);
    free(r);
}

void response_rendered_drop(struct response_entry *e)
{
    while (e->rendered) {
        struct rendered *r = e->rendered;
        e->rendered = r->next;
        rendered_free(r);
    }
}

static size_t value_bytes(const struct response_rendered *v)
{
    return sizeof(struct rendered) + OVERHEAD_BYTES + v->n_body + strlen(v->route) +
           strlen(v->backend) + (v->n_ids + v->n_times) * sizeof *v->id_at;
}

struct response_rendered *response_rendered_find(struct response_cache *c,
                                                 const struct response_key *request)
{
    struct rendered *r = map_get(&c->rendered, response_key_str(request));
    if (!r || r->generation != c->generation || response_too_old(c, r->entry))
        return NULL;
    c->stats.hits++;
    response_used(r->entry);
    return &r->value;
}

static void rendered_remove(struct rendered *r)
{
    struct rendered **link = &r->entry->rendered;
    while (*link != r)
        link = &(*link)->next;
    *link = r->next;
    response_count(r->entry, r->entry->bytes - value_bytes(&r->value));
    rendered_free(r);
}

void response_rendered_add(struct response_cache *c, const struct response_reader *reader,
                           const struct response_key *request, struct response_rendered *v)
{
    struct response_entry *e = reader->entry;
    struct rendered *old = map_get(&c->rendered, response_key_str(request));
    if (old && old->generation != c->generation) {
        rendered_remove(old);
        old = NULL;
    }
    size_t n = 0;
    for (struct rendered *r = e ? e->rendered : NULL; r; r = r->next)
        n++;
    if (old || !e || !e->counted || n >= MOST_PER_ENTRY) {
        response_rendered_release(v);
        return;
    }
    struct rendered *r = xmalloc(sizeof *r);
    *r = (struct rendered){.next = e->rendered,
                           .entry = e,
                           .request = *request,
                           .generation = c->generation,
                           .value = *v};
    e->rendered = r;
    map_put(&c->rendered, response_key_str(request), r);
    response_count(e, e->bytes + value_bytes(v)); /* may evict e, and r with it */
    *v = (struct response_rendered){0};
}

const char *response_rendered_model(const struct response_rendered *v)
{
    const struct rendered *r =
        (const struct rendered *)((const char *)v - offsetof(struct rendered, value));
    return r->entry->model;
}

uint64_t response_generation(const struct response_cache *c)
{
    return c->generation;
}

void response_rendered_forget(struct response_cache *c)
{
    c->generation++;
}
