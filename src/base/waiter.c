#include "base/waiter.h"

/* Lists are short, and a waiter may leave from anywhere: no pointer to the end is kept. */
static struct waiter **tail(struct waiters *l)
{
    struct waiter **at = &l->first;
    while (*at)
        at = &(*at)->next;
    return at;
}

void waiters_add(struct waiters *l, struct waiter *w)
{
    waiter_cancel(w);
    w->next = NULL;
    w->link = tail(l);
    *w->link = w;
}

void waiter_cancel(struct waiter *w)
{
    if (!w->link)
        return;
    *w->link = w->next;
    if (w->next)
        w->next->link = w->link;
    w->link = NULL;
    w->next = NULL;
}

void waiters_wake(struct waiters *l, const struct err *failed)
{
    struct waiters now = {l->first};
    if (now.first)
        now.first->link = &now.first;
    l->first = NULL;
    for (struct waiter *w; (w = now.first);) {
        waiter_cancel(w);
        w->wake(w, failed);
    }
}

void waiters_wake_first(struct waiters *l)
{
    struct waiter *w = l->first;
    if (!w)
        return;
    waiter_cancel(w);
    w->wake(w, NULL);
}
