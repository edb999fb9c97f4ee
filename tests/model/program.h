/* program.h - operation programs: random operations on a module and on a naive twin of it.
 *
 * A program returns NULL, or what differed first. The same seed gives the same program. Each has a
 * planted bug that can be switched on, to show that the test is able to fail. */
#pragma once

#include <stdio.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { PROGRAM_SCALE = 5 };
#else
enum { PROGRAM_SCALE = 1 };
#endif

/* Says what differs and leaves the function. `why` is the program's char[256]. */
#define DIFFER(why, ...)                                                                           \
    do {                                                                                           \
        snprintf(why, 256, __VA_ARGS__);                                                           \
        return why;                                                                                \
    } while (0)
