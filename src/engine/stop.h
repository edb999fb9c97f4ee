/* stop.h - stop strings in a stream of text.
 *
 * The text comes in pieces of any size; a stop string may lie across pieces. What comes out does
 * not depend on where the pieces end: a match is the stop string whose last byte comes first in the
 * text (of several with the same last byte the longest), and text is held back only while it is the
 * beginning of a stop string that may still complete.
 *
 * Each string is followed by its own Knuth-Morris-Pratt automaton. */
#pragma once

#include <stddef.h>

#include "base/buf.h"
#include "base/str.h"

struct stop_string;

struct stop {
    struct stop_string *strings; /* {0}: no stop strings */
    int n;
    struct buf held; /* text not given out yet: the longest unfinished match */
};

/* Copies the strings; none may be empty. */
void stop_init(struct stop *s, const char *const *strings, int n);
void stop_release(struct stop *s);

/* Takes text in and appends to out what is certain to be no part of a stop string. Returns the
 * index of the string that matched, or -1. At a match the text before it is in out, neither the
 * string nor what follows; feed no more then. */
int stop_feed(struct stop *s, struct str text, struct buf *out);

/* The text is over: appends what is still held. */
void stop_flush(struct stop *s, struct buf *out);

struct str stop_string(const struct stop *s, int i);
