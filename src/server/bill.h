/* bill.h - what one request costs: limits are asked when it comes, tokens are reserved when its
 * prompt is known, and when it is over the true counts settle the limits and go into the books.
 *
 *   gate_pass --bill_open--> limits (request, place) --> handler --> stage_admit (tokens) -->
 * engine
 *                                                                                              |
 *                       books <-- limits (true tokens) <-- bill_close <------- job_free <------+
 *
 * The bill of a request without a job is closed with its exchange. The server's thread. */
#pragma once

#include "base/waiter.h"
#include "gateway/limits.h"
#include "server/service.h"

struct bill_counts {
    const char *model, *tier; /* "" if unknown */
    int64_t prompt_tokens, cached_tokens, completion_tokens;
};

struct bill {
    struct server *server;
    struct exchange *x;   /* NULL: it is over */
    struct auth_key *key; /* a reference, or NULL */
    struct limit_hold hold;
    struct limit_ask ask;
    bool admitted;          /* its tokens were asked for: it runs, and no cache answers it */
    bool answered;          /* ask was, and the one who asked has not looked yet */
    struct waiters waiting; /* the job whose tokens are asked for */
    int64_t at_unix_s, start_ns;
    struct bill_counts counts; /* of an exchange without a job */
    int status; /* of the response, 499: the client left before its end; 0: not known yet */
};

/* Asks the limits for a place; then the handler runs, or the client is told when to come again. */
void bill_open(struct exchange *x);

/* The exchange is over. Without a job, so is the bill. */
void bill_exchange_closed(struct bill *b, int status, bool complete, bool has_job);

/* Adds x-ratelimit-* as the limits have just answered. */
void bill_tell_room(struct bill *b);

/* What an exchange without a job comes to: an answer from the cache. The strings outlive it. */
void bill_note(struct bill *b, const struct bill_counts *c); /* NULL is fine */

/* Settles, writes the books and frees. NULL is fine. An answer for which no tokens were reserved
 * came from the cache: it is in the books, and costs none of the limit. */
void bill_close(struct bill *b, const struct bill_counts *c);

/* Once a second. */
void bills_tick(struct server *s);

/* What the rows of the last day say was used. Before the server runs. */
int bills_restore(struct server *s, struct err *e);
