/* json_scan.h - where the members of a JSON object lie in its text, without making a tree.
 *
 * For text that is passed on as it is: one pass over the bytes, no memory. The structure is checked
 * (brackets, quotes, commas, colons, depth up to JSON_MAX_DEPTH), so that nothing can hide from the
 * scan that a parser would find; numbers, escapes and UTF-8 are the business of whoever parses it.
 */
#pragma once

#include <stdbool.h>

#include "base/str.h"

enum { JSON_SCAN_KEYS = 16 };

/* values[i] gets the text of the top level's member keys[i], quotes and brackets included, or p ==
 * NULL if it is absent. false, and nothing to rely on: the text is not one object, a wanted key is
 * there twice, or a key of the top level is written with escapes. n <= JSON_SCAN_KEYS. */
bool json_scan(struct str text, const char *const *keys, struct str *values, size_t n);

/* The same for an array: the text of its first element. false if it is none, or is empty. */
bool json_scan_first(struct str text, struct str *first);

/* The contents of a string as json_scan gives it. false: another kind of value, or it has escapes.
 */
bool json_scan_string(struct str value, struct str *out);

/* A number that is whole and not negative; false for anything else. */
bool json_scan_uint(struct str value, uint64_t *out);
