/* balance_turn.c - in turn, whatever the load. */
#include "gateway/balance.h"

size_t balance_round_robin(struct balance *b, const struct balance_candidate *c, size_t n,
                           const struct balance_request *r)
{
    return b->turn++ % n;
}

/* Each earns its weight a turn, the richest is chosen and pays what all have earned. */
size_t balance_weighted(struct balance *b, const struct balance_candidate *c, size_t n,
                        const struct balance_request *r)
{
    double sum = 0;
    size_t best = 0;
    for (size_t i = 0; i < n; i++) {
        sum += c[i].weight;
        *c[i].credit += c[i].weight;
        if (*c[i].credit > *c[best].credit)
            best = i;
    }
    *c[best].credit -= sum;
    return best;
}
