/* answer_marks.h - where an OpenAI answer that goes by as bytes has its id and its time.
 *
 * They are members of the top level, `id` and `created`, of the JSON or of each event; ids of tool
 * calls lie deeper. Whoever gets the answer again can so be given others, without a tree. */
#pragma once

#include <stdint.h>

#include "base/buf.h"
#include "base/str.h"

enum answer_mark_kind { MARK_ID, MARK_TIME };

/* So many bytes of the text: an id without its quotes, or the digits of a time. */
struct answer_mark {
    int32_t kind, at, n;
};

/* Adds to *out (an array of struct answer_mark) those of the next whole events of a stream
 * (event_pass.h), or of all of a JSON document, in the order of the text. What is not well formed,
 * or has one of the two twice, has none. */
void answer_marks_find(struct str text, struct buf *out);

/* The text with its n marks replaced by these. */
void answer_marks_replace(struct str text, const struct answer_mark *marks, size_t n, struct str id,
                          int64_t unix_s, struct buf *out);
