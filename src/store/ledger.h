/* ledger.h - the thread that writes the books, so that nobody else waits for the disk.
 *
 * Rows are given to it at any time and cost a lock and a copy; equal ones are added up. Everything
 * that has come within LEDGER_BATCH_MS is written in one transaction. A row is acknowledged when
 * that transaction is durable; only such rows are ever shown (usage.h), so what somebody has seen
 * outlives kill -9. If the disk refuses, rows are kept and written when it takes them again, up to
 * LEDGER_MAX_ROWS; what is beyond is lost, and the log says so.
 *
 * Any thread may call. Functions given to ledger_run are called on the ledger's thread. */
#pragma once

#include <stdint.h>

#include "store/usage.h"

struct ledger;

enum {
    LEDGER_BATCH_MS = 50,
    LEDGER_POLL_MS = 1000, /* how often it looks whether another process changed the database */
    LEDGER_MAX_ROWS = 100000,
};

typedef void ledger_fn(struct db *d, void *arg);

/* d outlives the ledger. `changed` is called once at first and whenever another process has changed
 * the database, on the ledger's thread. */
struct ledger *ledger_new(struct db *d, ledger_fn *changed, void *arg);

/* Writes what it has, and ends the thread. NULL is fine. */
void ledger_free(struct ledger *l);

void ledger_usage(struct ledger *l, const struct usage_row *r);
void ledger_audit(struct ledger *l, const struct audit_row *r);

/* Runs fn after all rows given so far are written, or could not be. */
void ledger_run(struct ledger *l, ledger_fn *fn, void *arg);

struct ledger_stats {
    uint64_t written, lost; /* rows */
    uint64_t commits, failures;
};
struct ledger_stats ledger_stats(struct ledger *l);
