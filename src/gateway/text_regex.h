/* text_regex.h - patterns of the configuration, matched against text of strangers: bounded in time
 * and memory whatever both are (PCRE2 with match and depth limits; a match that reaches them is
 * none). Case counts unless the pattern says (?i). Any thread may match. */
#pragma once

#include <stdbool.h>

#include "base/err.h"
#include "base/str.h"

struct text_regex;

enum { TEXT_REGEX_MAX_BYTES = 4096 }; /* of a pattern */

/* ERR_INVALID with the reason and the place in the pattern. */
int text_regex_new(struct text_regex **out, struct str pattern, struct err *e);
void text_regex_free(struct text_regex *r);
bool text_regex_matches(const struct text_regex *r, struct str text);
