/* usage.h - the books: what each key used, and what admins did.
 *
 * A row of usage counts requests of one second by key, tenant, model, tier and status; rows that
 * are older than two days become one for each hour. The functions here work on the database; who
 * must not wait for the disk gives rows to a ledger (ledger.h). */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct db;

/* Counted when the request is over, under the second in which it began. */
struct usage_row {
    int64_t at;  /* Unix seconds */
    int64_t key; /* 0: there were no keys */
    const char *tenant, *model, *tier;
    int status; /* of HTTP; 499: the client left */
    int64_t requests, prompt_tokens, cached_tokens, completion_tokens;
    int64_t charged_tokens; /* of them, what limits counted: answers from a cache cost nothing */
    int64_t ms;             /* from arrival to end, summed */
};

struct audit_row {
    int64_t at, key;
    const char *name, *address; /* of the key, of the peer; "cli" for the command line */
    const char *action;         /* "DELETE /v1/personas/x" */
    int status;
};

enum {
    USAGE_BY_TIME = 1,
    USAGE_BY_KEY = 2,
    USAGE_BY_TENANT = 4,
    USAGE_BY_MODEL = 8,
    USAGE_BY_TIER = 16,
    USAGE_BY_STATUS = 32,
    USAGE_MAX_ROWS = 10000,
};

struct usage_query {
    int64_t from, to;   /* from <= at < to */
    unsigned by;        /* what the sums are grouped by */
    int64_t step_s;     /* with USAGE_BY_TIME */
    const char *tenant; /* NULL: all */
};

/* Adds to what is there. Within a transaction of the caller. */
int usage_add(struct db *d, const struct usage_row *r, struct err *e);
int audit_add(struct db *d, const struct audit_row *r, struct err *e);

/* Calls fn for each sum in order; what the query does not group by is 0 or "". The strings are good
 * during the call. ERR_LIMIT: more than USAGE_MAX_ROWS. */
typedef void usage_fn(void *arg, const struct usage_row *r, const char *key_name);
int usage_sum(struct db *d, const struct usage_query *u, usage_fn *fn, void *arg, struct err *e);

/* The latest `limit` rows of from <= at < to, newest first. */
typedef void audit_fn(void *arg, const struct audit_row *r);
int audit_list(struct db *d, int64_t from, int64_t to, int64_t limit, audit_fn *fn, void *arg,
               struct err *e);

/* Makes hours of the seconds before `before`. */
int usage_compact(struct db *d, int64_t before, struct err *e);
