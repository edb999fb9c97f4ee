#include "gateway/balance.h"

#include "base/err.h"

const char *const balance_names[] = {"round-robin",  "weighted",        "least-tokens",
                                     "power-of-two", "prefix-affinity", NULL};

static balance_fn *const policies[] = {
    [BALANCE_ROUND_ROBIN] = balance_round_robin,
    [BALANCE_WEIGHTED] = balance_weighted,
    [BALANCE_LEAST_TOKENS] = balance_least_tokens,
    [BALANCE_POWER_OF_TWO] = balance_power_of_two,
    [BALANCE_PREFIX_AFFINITY] = balance_prefix_affinity,
};

void balance_init(struct balance *b, enum balance_kind kind, double load_factor, uint64_t seed)
{
    *b = (struct balance){.kind = kind, .load_factor = load_factor};
    rng_seed(&b->rng, seed);
}

size_t balance_pick(struct balance *b, const struct balance_candidate *c, size_t n,
                    const struct balance_request *r)
{
    BUG_ON(n == 0);
    return n == 1 ? 0 : policies[b->kind](b, c, n, r);
}
