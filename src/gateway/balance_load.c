/* balance_load.c - by what the candidates have under way. */
#include "gateway/balance.h"

/* Fewer tokens for the weight; of equal ones fewer requests, so that idle ones that differ only in
 * what cannot be estimated are used evenly. */
static bool less_loaded(const struct balance_candidate *a, const struct balance_candidate *b)
{
    double x = (double)a->tokens / a->weight, y = (double)b->tokens / b->weight;
    if (x != y)
        return x < y;
    return a->requests / a->weight < b->requests / b->weight;
}

/* Begins at another one each time, so that ties go around. */
size_t balance_least_tokens(struct balance *b, const struct balance_candidate *c, size_t n,
                            const struct balance_request *r)
{
    size_t first = b->turn++ % n, best = first;
    for (size_t k = 1; k < n; k++) {
        size_t i = (first + k) % n;
        if (less_loaded(&c[i], &c[best]))
            best = i;
    }
    return best;
}

size_t balance_power_of_two(struct balance *b, const struct balance_candidate *c, size_t n,
                            const struct balance_request *r)
{
    size_t i = rng_below(&b->rng, n), k = rng_below(&b->rng, n - 1);
    k += k >= i; /* two different ones */
    return less_loaded(&c[k], &c[i]) ? k : i;
}
