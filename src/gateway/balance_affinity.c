/* balance_affinity.c - requests that begin alike go to the same backend, within a bound. */
#include <math.h>

#include "gateway/balance.h"

/* The finalizer of splitmix64: every bit of the input changes every bit of the output. */
static uint64_t mix(uint64_t v)
{
    v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9u;
    v = (v ^ (v >> 27)) * 0x94d049bb133111ebu;
    return v ^ (v >> 31);
}

/* Of candidates with these scores the highest wins with a probability in proportion to its weight,
 * and a score depends on nobody else. */
static double score(const struct balance_candidate *c, uint64_t prefix)
{
    double u = ((double)(mix(c->id ^ mix(prefix)) >> 11) + 0.5) * 0x1p-53;
    return c->weight / -log(u);
}

size_t balance_prefix_affinity(struct balance *b, const struct balance_candidate *c, size_t n,
                               const struct balance_request *r)
{
    if (!r->has_prefix)
        return balance_power_of_two(b, c, n, r);
    double weights = 0, requests = 1, best_score = -1;
    for (size_t i = 0; i < n; i++) {
        weights += c[i].weight;
        requests += c[i].requests;
    }
    size_t best = n;
    for (size_t i = 0; i < n; i++) {
        double most = ceil(b->load_factor * requests * c[i].weight / weights);
        double s = score(&c[i], r->prefix);
        if (c[i].requests + 1 <= most && s > best_score) {
            best = i;
            best_score = s;
        }
    }
    return best < n ? best : balance_least_tokens(b, c, n, r); /* rounding may leave nobody */
}
