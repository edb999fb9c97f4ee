/* rng.h - random numbers.
 *
 * struct rng is xoshiro256** (Blackman and Vigna, 2018), seeded by splitmix64: fast, repeatable,
 * not for secrets. rng_secret asks the kernel: ids and keys. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct rng {
    uint64_t s[4];
};

void rng_seed(struct rng *r, uint64_t seed);
uint64_t rng_u64(struct rng *r);
double rng_double(struct rng *r);              /* [0, 1), 53 bits */
uint64_t rng_below(struct rng *r, uint64_t n); /* [0, n), n > 0, unbiased */
float rng_normal(struct rng *r);               /* mean 0, variance 1 */

void rng_secret(void *out, size_t n);
