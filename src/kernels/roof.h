/* roof.h - what the machine could do at best, measured now: the roofs that speeds are shares of.
 *
 * Both take the best of several short runs on all threads of the pool, about a quarter of a second
 * each; other work on the machine makes them too low, never too high. */
#pragma once

#include "base/pool.h"
#include "kernels/kernels.h"

/* Products of 8-bit numbers by the widest instruction that k uses, nothing else in the loop:
 * 1e9 multiply-adds a second. */
double roof_dot(struct pool *pool, const struct kernels *k);

/* Reading memory far larger than the caches: 1e9 bytes a second. 0 when there is no memory for it.
 */
double roof_dram(struct pool *pool);
