/* deal.h - who computes which of n things: each thread its own, then what others have not begun.
 *
 * Threads are never equally fast for long: a connection thread, another process or the host takes a
 * processor away for a moment. So each thread has a run of things that is cut in advance, which
 * keeps its reads of memory in one piece, and takes helpings from the front of it; one that has
 * none left takes helpings from the back of another's. Helpings are small towards the end of a run,
 * so that all end together.
 *
 * A run is one word, and everybody can begin it, so nobody waits for a thread that is late:
 *
 *     63      48 47          24 23           0
 *     |  phase  |    begin     |     end     |    of an older phase: not begun
 *
 * Threads meet at a barrier between phases. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { DEAL_MOST = (1 << 24) - 1, DEAL_HELPINGS = 8 };

struct deal_run {
    _Alignas(64) _Atomic uint64_t word;
};

/* One phase. Thread i's run is [cut(arg, i), cut(arg, i + 1)). */
struct deal {
    struct deal_run *runs; /* [n_threads], words 0 before the first phase */
    int n_threads;
    uint16_t phase; /* from 1, another one than before */
    int (*cut)(const void *arg, int i);
    const void *arg;
};

/* [begin, end) is to be done now; what follows up to next_end probably comes next. */
struct helping {
    int begin, end, next_end;
};

/* The next helping of thread ith; false: nothing is left. */
bool deal_take(const struct deal *d, int ith, struct helping *out);
