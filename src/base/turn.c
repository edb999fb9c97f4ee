#include "base/turn.h"

#include <stddef.h>

#include "base/err.h"

void turn_ask(struct turns *t, struct turn_user *u)
{
    struct turn_user **end = &t->waiting;
    while (*end)
        end = &(*end)->next;
    u->next = NULL;
    *end = u;
    if (u->used_ns < t->virtual_ns)
        u->used_ns = t->virtual_ns;
}

struct turn_user *turn_next(const struct turns *t, int64_t now_ns, int64_t *until_ns)
{
    struct turn_user *best = t->waiting;
    bool back = false;
    for (struct turn_user *u = t->waiting; u; u = u->next) {
        if (u->used_ns < best->used_ns)
            best = u;
        back = back || u == t->latest;
    }
    *until_ns = INT64_MAX;
    if (!best || back || !t->latest)
        return best;
    int64_t length = t->ended_ns - t->begun_ns;
    int64_t patience = length / 2 < TURN_PATIENCE_NS ? length / 2 : TURN_PATIENCE_NS;
    if (t->virtual_ns + 2 * length > best->used_ns || now_ns >= t->ended_ns + patience)
        return best;
    *until_ns = t->ended_ns + patience;
    return NULL;
}

void turn_begin(struct turns *t, struct turn_user *u, int64_t now_ns)
{
    struct turn_user **at = &t->waiting;
    while (*at && *at != u)
        at = &(*at)->next;
    BUG_ON(t->holder || !*at);
    *at = u->next;
    t->holder = u;
    t->latest = u;
    t->begun_ns = now_ns;
    t->virtual_ns = u->used_ns;
}

void turn_end(struct turns *t, int64_t now_ns)
{
    BUG_ON(!t->holder);
    t->holder->used_ns += now_ns - t->begun_ns;
    t->holder = NULL;
    t->ended_ns = now_ns;
}
