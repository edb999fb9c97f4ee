/* progress.h - a progress bar for people.
 *
 * On a terminal one line is redrawn ten times a second at most, with rate and time left; elsewhere
 * a plain line is written every tenth of the way, so that logs stay readable. What is over within
 * half a second is not shown at all. One thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct progress {
    const char *label; /* "smollm2:135m from PyPI" */
    uint64_t total;    /* bytes, 0: not known */
    int64_t start_ms, drawn_ms;
    uint64_t first; /* bytes that were there at the start, not counted in the rate */
    int tenths;     /* of the way, last written as a plain line */
    bool terminal, begun;
};

void progress_start(struct progress *p, const char *label);
void progress_update(struct progress *p, uint64_t done, uint64_t total);
void progress_end(struct progress *p); /* leaves the last state on its line */

/* "93 MB", "1.4 GB": decimal units as download pages show them. Returns out. */
char *progress_bytes(uint64_t n, char *out, size_t size);
