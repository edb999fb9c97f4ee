/* link.h - intrusive doubly linked lists: the list and its members are the same kind of link. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct link {
    struct link *prev, *next;
};

static inline void link_init(struct link *l)
{
    l->prev = l->next = l;
}

/* An empty list, or a member of none. */
static inline bool link_alone(const struct link *l)
{
    return l->next == l;
}

static inline void link_del(struct link *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
    link_init(l);
}

static inline void link_add(struct link *head, struct link *l) /* at the end */
{
    l->prev = head->prev;
    l->next = head;
    head->prev->next = l;
    head->prev = l;
}

#define CONTAINER_OF(p, type, member) ((type *)((char *)(p)-offsetof(type, member)))
