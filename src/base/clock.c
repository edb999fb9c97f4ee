#include "base/clock.h"

#include <time.h>

static int64_t now(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t clock_ns(void)
{
    return now(CLOCK_MONOTONIC);
}

int64_t clock_ms(void)
{
    return clock_ns() / 1000000;
}

int64_t clock_unix_s(void)
{
    return clock_unix_ns() / 1000000000;
}

int64_t clock_unix_ns(void)
{
    return now(CLOCK_REALTIME);
}
