/* balance.h - which of several equal backends gets a request: small policies behind one call.
 *
 * Pure: the caller says what the candidates are doing now, a policy points at one. What it must
 * remember lies in struct balance and in the candidates' `credit`. One thread.
 *
 *   round-robin      in turn
 *   weighted         in turn, each as often as its weight says, evenly spread
 *                    (nginx's smooth weighted round robin)
 *   least-tokens     the one with the fewest tokens under way for its weight
 *   power-of-two     the less loaded of two drawn at random (Mitzenmacher 2001): nearly as even,
 *                    without everybody running to the same idle one
 *   prefix-affinity  requests that begin alike go to the same one, which then has the beginning in
 *                    its prefix cache, unless it has more than load_factor times its share of the
 *                    running requests: then to the next. Weighted rendezvous hashing (Thaler and
 *                    Ravishankar 1998) with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018):
 *                    a backend that leaves moves only the prefixes that it had
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/rng.h"

struct balance_candidate {
    uint64_t id;    /* stable, different for each: a hash of the name */
    double weight;  /* > 0 */
    int requests;   /* under way */
    int64_t tokens; /* of them, by estimate */
    double *credit; /* kept for the candidate between calls, 0 at first */
};

struct balance_request {
    bool has_prefix;
    uint64_t prefix; /* hash of how it begins */
};

enum balance_kind {
    BALANCE_ROUND_ROBIN,
    BALANCE_WEIGHTED,
    BALANCE_LEAST_TOKENS,
    BALANCE_POWER_OF_TWO,
    BALANCE_PREFIX_AFFINITY,
};

extern const char *const balance_names[]; /* by kind, ends with NULL */

struct balance {
    enum balance_kind kind;
    double load_factor; /* > 1 */
    uint64_t turn;
    struct rng rng;
};

void balance_init(struct balance *b, enum balance_kind kind, double load_factor, uint64_t seed);

/* Index of the chosen one; n > 0. */
size_t balance_pick(struct balance *b, const struct balance_candidate *c, size_t n,
                    const struct balance_request *r);

/* ---- the policies, for balance.c ---- */

typedef size_t balance_fn(struct balance *b, const struct balance_candidate *c, size_t n,
                          const struct balance_request *r);
balance_fn balance_round_robin, balance_weighted;      /* balance_turn.c */
balance_fn balance_least_tokens, balance_power_of_two; /* balance_load.c */
balance_fn balance_prefix_affinity;                    /* balance_affinity.c */
