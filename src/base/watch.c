#include "base/watch.h"

#include "base/clock.h"

void watch_start(struct watch *w, int64_t limit_ms)
{
    w->limit_ms = limit_ms;
    watch_beat(w);
}

void watch_beat(struct watch *w)
{
    atomic_store_explicit(&w->last_sign_ms, clock_ms(), memory_order_release);
}

void watch_stop(struct watch *w)
{
    atomic_store_explicit(&w->last_sign_ms, 0, memory_order_release);
}

bool watch_late(const struct watch *w, int64_t *silent_ms)
{
    int64_t last = atomic_load_explicit(&w->last_sign_ms, memory_order_acquire);
    if (!last)
        return false;
    *silent_ms = clock_ms() - last;
    return *silent_ms > w->limit_ms;
}
