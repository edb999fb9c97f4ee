/* waiter.h - waiting without a thread: who wants something that is not there yet leaves a waiter on
 * the list of whoever brings it, and is called when it comes, fails, or never if it gives up first.
 *
 * A waiter is on one list at most and lives in its owner's struct; {0} is one that does not wait.
 * One thread only: that of both owners. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct waiter {
    struct waiter *next, **link; /* link NULL: does not wait */
    /* It is here (failed NULL), or will not come. The waiter is off the list already, and its owner
     * may go away. */
    void (*wake)(struct waiter *w, const struct err *failed);
};

struct waiters {
    struct waiter *first; /* in the order of arrival; {0} is empty; not to be moved */
};

void waiters_add(struct waiters *l, struct waiter *w);

/* Takes w off its list, if it is on one. */
void waiter_cancel(struct waiter *w);

/* Wakes all that wait now, in order. What is called may cancel others of the list, and may wait
 * again: that is not woken by this call. */
void waiters_wake(struct waiters *l, const struct err *failed);

/* Wakes the one that waits longest, if any. */
void waiters_wake_first(struct waiters *l);

static inline bool waiter_waits(const struct waiter *w)
{
    return w->link != NULL;
}
