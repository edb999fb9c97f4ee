/* clock.h - time. Monotonic for durations, wall for stamps. */
#pragma once

#include <stdint.h>

int64_t clock_ns(void);      /* monotonic */
int64_t clock_ms(void);      /* monotonic */
int64_t clock_unix_s(void);  /* wall */
int64_t clock_unix_ns(void); /* wall */
