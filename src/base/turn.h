/* turn.h - who goes next, of several who use the same thing one at a time, each for a while of its
 * own length.
 *
 * Start-time fair queueing (Goyal et al., 1996) by the time used: who has used least goes first,
 * and who comes back after a pause has saved nothing up. So one with turns of 10 ms gets ten of
 * them for each of 100 ms of another.
 *
 * Who has just ended a turn is not waiting at that moment, but may be back at once for its next
 * one. If it would still not have used more than the best of those who wait, they let it come back
 * for half the length of its turn, at most TURN_PATIENCE_NS (anticipatory scheduling, Iyer and
 * Druschel, 2001).
 *
 * Knows no clock and no threads: pool.h has the lock. Times are in ns, of any clock that does not
 * go backwards. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { TURN_PATIENCE_NS = 5000000 };

/* One who takes turns, {0} at first. It may be gone when it neither waits nor holds. */
struct turn_user {
    struct turn_user *next; /* that waits */
    int64_t used_ns;        /* virtual time: what it used, or what it did not while it was away */
    int64_t away_ns;        /* that it waited within its turns (pool_yield) */
};

/* {0} at first. */
struct turns {
    struct turn_user *waiting; /* in the order of asking */
    struct turn_user *holder;
    int64_t begun_ns, ended_ns;     /* the latest turn */
    int64_t virtual_ns;             /* used_ns of its user when it began */
    const struct turn_user *latest; /* who had it; only compared, as it may be gone */
};

/* u, which neither waits nor holds, waits from now on. */
void turn_ask(struct turns *t, struct turn_user *u);

/* While nobody holds: the one of those who wait whose turn it is, or NULL: nobody waits, or they
 * let the latest one come back until *until_ns. */
struct turn_user *turn_next(const struct turns *t, int64_t now_ns, int64_t *until_ns);

/* turn_next has named u: it holds. */
void turn_begin(struct turns *t, struct turn_user *u, int64_t now_ns);
void turn_end(struct turns *t, int64_t now_ns);
