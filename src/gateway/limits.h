/* limits.h - how much a key, a tenant and an address may use.
 *
 * A request takes from every subject that it belongs to, or from none: requests and a place among
 * those that run when it arrives, tokens when its prompt is known. What it took is in its hold.
 * Tokens are reserved before it runs (prompt and the most it may answer) and settled from the true
 * counts when it is over, however it ended, so what was reserved and not used is there for others
 * at once.
 *
 *     take(requests, place) -> take(tokens) -> runs -> settle(true tokens) | drop
 *
 * Minutes are sliding windows: in any 60 s no more is admitted than the limit, and under pressure
 * no less than 1 % under it, as the window moves in steps of LIMIT_SLOT_MS and never early. A day
 * is one of UTC. Tokens count from the moment they were reserved; what a request used beyond its
 * reservation counts from its end.
 *
 * A store decides; the one here is memory of this process. Another (shared by several processes)
 * may answer later than take returns. Everything belongs to one thread. Times come from the caller,
 * so a test can have its own. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "store/keys.h"

enum {
    LIMIT_WINDOW_MS = 60000,
    LIMIT_SLOT_MS = 250,
    LIMIT_MAX_SUBJECTS = 3,
    LIMIT_NAME_BYTES = 96,
};

/* Who: "key:7", "tenant:acme", "address:192.0.2.1". */
struct limit_subject {
    char name[LIMIT_NAME_BYTES];
    struct quota quota; /* in force; it may differ from that of the last request */
};

/* What one request has taken. {0} has nothing and is not subject to anything. */
struct limit_hold {
    struct limit_subject subjects[LIMIT_MAX_SUBJECTS];
    int n_subjects;
    bool counted;   /* one request and one place are taken */
    int64_t tokens; /* reserved */
    int64_t slot;   /* of the windows in which the request counts */
    int64_t tokens_slot, day;
};

enum limit_kind { LIMIT_NONE, LIMIT_REQUESTS, LIMIT_TOKENS, LIMIT_PLACES, LIMIT_DAY };

/* What is left of one limit, of the subject that has the least. */
struct limit_room {
    int64_t limit; /* 0: there is none */
    int64_t remaining;
    int64_t reset_ms; /* until all of it is there again if nobody takes */
};

struct limit_time {
    int64_t now_ms; /* monotonic */
    int64_t unix_s;
};

/* A question, kept by the caller until it is answered. */
struct limit_ask {
    struct limit_hold *hold;
    struct limit_time at;
    int64_t tokens; /* > 0: reserve so many; 0: count the request and take a place */
    void (*done)(struct limit_ask *ask); /* called once, before limits_take returns or later */
    bool pending;

    /* the answer */
    enum limit_kind refused; /* LIMIT_NONE: granted */
    int subject;             /* that refused */
    int64_t limit, used;     /* of the limit that refused */
    int64_t retry_ms;        /* not before; -1: never, the request is larger than the limit */
    struct limit_room requests, tokens_room;
};

struct limits;

/* What a store does; see the functions below. */
struct limit_ops {
    void (*take)(struct limits *l, struct limit_ask *ask);
    void (*cancel)(struct limits *l, struct limit_ask *ask);
    void (*settle)(struct limits *l, struct limit_hold *h, int64_t tokens, struct limit_time at);
    void (*drop)(struct limits *l, struct limit_hold *h, struct limit_time at);
    void (*restore)(struct limits *l, const char *subject, int64_t age_ms, bool today,
                    int64_t requests, int64_t tokens, struct limit_time at);
    void (*sweep)(struct limits *l, struct limit_time at);
    void (*free)(struct limits *l);
};

struct limits {
    const struct limit_ops *ops;
};

/* The store in memory of this process. */
struct limits *limits_new(void);
void limits_free(struct limits *l);

/* Adds a subject to a hold that has taken nothing yet; one without any limit is left out. */
void limits_add_subject(struct limit_hold *h, const char *kind, const char *name,
                        const struct quota *q);

/* Takes or refuses; nothing changes when it refuses. A reservation that is larger than a limit
 * alone is refused for good (retry_ms -1). */
void limits_take(struct limits *l, struct limit_ask *ask);

/* Nobody waits for the answer any more: done will not be called. */
void limits_cancel(struct limits *l, struct limit_ask *ask);

/* The request is over and has used so many tokens; the hold is {0} afterwards. */
void limits_settle(struct limits *l, struct limit_hold *h, int64_t tokens, struct limit_time at);

/* The request never ran, and counts as if it had never come. */
void limits_drop(struct limits *l, struct limit_hold *h, struct limit_time at);

/* After a restart: so much was used age_ms ago. `today`: within the current day of UTC. */
void limits_restore(struct limits *l, const char *subject, int64_t age_ms, bool today,
                    int64_t requests, int64_t tokens, struct limit_time at);

/* About once a minute: forgets who has not been here for so long that nothing counts. */
void limits_sweep(struct limits *l, struct limit_time at);

/* What to tell a client that was refused. Returns "rate_limit_exceeded" or "insufficient_quota". */
const char *limits_explain(const struct limit_ask *ask, struct err *e);

/* A duration as the headers x-ratelimit-reset-* have it: "20ms", "1.5s", "6m0s". */
void limits_write_duration(struct buf *out, int64_t ms);
