/* budget.h - the bytes that a process may use, and who holds them.
 *
 * Whoever is about to use much memory takes a share first and gives it back when the memory is
 * free again, so that the sum of all shares never exceeds the limit. The budget counts; it
 * allocates nothing and evicts nobody: who is refused decides what to do without, and tries again.
 *
 *     struct budget_share *share;
 *     if (budget_take(b, BUDGET_ADAPTERS, "support-de", bytes, &share, e)) ...
 *     budget_give(share);
 *
 * Any thread. */
#pragma once

#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

struct budget;
struct budget_share;

enum budget_use {
    BUDGET_PROCESS, /* code, stacks, connections, requests */
    BUDGET_WEIGHTS,
    BUDGET_SCRATCH, /* what a step of a model works in */
    BUDGET_KV,
    BUDGET_ADAPTERS,
    BUDGET_CACHE, /* answers and files kept in memory */
    BUDGET_USES
};

const char *budget_use_name(enum budget_use use); /* "weights" */

struct budget *budget_new(uint64_t limit_bytes);
void budget_free(struct budget *b); /* when every share has been given back */

/* A share of `bytes` for `owner` (copied, cut to 79 bytes). ERR_LIMIT, with who holds how much, if
 * less is left. */
int budget_take(struct budget *b, enum budget_use use, const char *owner, uint64_t bytes,
                struct budget_share **out, struct err *e);

/* Makes a share larger or smaller. ERR_LIMIT leaves it as it was. */
int budget_resize(struct budget_share *share, uint64_t bytes, struct err *e);

void budget_give(struct budget_share *share); /* accepts NULL */

uint64_t budget_limit(const struct budget *b);
uint64_t budget_left(struct budget *b);

struct budget_sums {
    uint64_t bytes[BUDGET_USES];
};
/* Of one owner, or of all (NULL). */
struct budget_sums budget_sums(struct budget *b, const char *owner);

/* "8192 MiB: process 192, smollm2:135m 1630 (weights 92, scratch 38, kv 1500), left 6370". */
void budget_print(struct budget *b, struct buf *out);
