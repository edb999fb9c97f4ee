/* keep_alive.h - how long a model stays loaded after its last use, as Ollama's clients say it. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"

enum { KEEP_FOREVER = -1 };

struct keep_alive {
    bool given;
    int64_t ms; /* 0: not at all, or KEEP_FOREVER */
};

/* A number of seconds, or text as below. False: neither. */
bool keep_alive_parse(const json_t *v, struct keep_alive *out);

/* "5m", "1h30m", "1.5h", "250ms", "0", "300" (seconds); anything negative and "forever" is for
 * good. */
bool keep_alive_text(struct str text, struct keep_alive *out);
