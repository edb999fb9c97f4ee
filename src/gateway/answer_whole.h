/* answer_whole.h - whether an OpenAI answer that goes by as bytes is whole and good.
 *
 * A backend may say with status 200 that it has failed: by an error event in a stream, or by a
 * finish reason such as vLLM's "abort". An answer is taken for whole only if it says so: each
 * choice ends with a reason that is known to be an end, and nothing in it is an error. It is the
 * text that is looked at, without a tree: inside of a JSON string each quote is escaped, so a
 * quoted name with a colon behind it is a member, at whatever depth. */
#pragma once

#include <stdbool.h>

#include "base/str.h"

/* {0} is the start of an answer. */
struct answer_whole {
    int finished; /* choices with a good finish reason */
    bool failed;
};

/* The next whole events of a stream (event_pass.h), or all of a JSON document. */
void answer_whole_add(struct answer_whole *w, struct str text);

bool answer_is_whole(const struct answer_whole *w, int n_choices);
