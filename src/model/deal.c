#include "model/deal.h"

static uint64_t pack(uint16_t phase, int begin, int end)
{
    return (uint64_t)phase << 48 | (uint64_t)begin << 24 | (uint64_t)end;
}

/* A helping of thread i's run, from its front or from its back. */
static bool take_of(const struct deal *d, int i, bool front, struct helping *out)
{
    _Atomic uint64_t *word = &d->runs[i].word;
    uint64_t seen = atomic_load_explicit(word, memory_order_relaxed), then;
    int first = d->cut(d->arg, i), last = d->cut(d->arg, i + 1);
    int most = (last - first + DEAL_HELPINGS - 1) / DEAL_HELPINGS;
    do {
        bool begun = seen >> 48 == d->phase;
        int begin = begun ? (int)(seen >> 24 & DEAL_MOST) : first;
        int end = begun ? (int)(seen & DEAL_MOST) : last;
        if (begin >= end)
            return false;
        int half = (end - begin + 1) / 2, n = half < most ? half : most;
        *out =
            front ? (struct helping){begin, begin + n, end} : (struct helping){end - n, end, end};
        then = front ? pack(d->phase, begin + n, end) : pack(d->phase, begin, end - n);
    } while (!atomic_compare_exchange_weak_explicit(word, &seen, then, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

bool deal_take(const struct deal *d, int ith, struct helping *out)
{
    if (take_of(d, ith, true, out))
        return true;
    for (int i = 1; i < d->n_threads; i++)
        if (take_of(d, (ith + i) % d->n_threads, false, out))
            return true;
    return false;
}
