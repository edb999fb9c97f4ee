/* response_record.h - an answer as the engine gave it: its events, one after the other, as bytes.
 *
 *   [head | ids | logprobs | text NUL | stop text NUL | pad to 8] [head | ...] ...
 *
 * What is read points into the record and is valid until the next add. Only what a reader of an
 * answer may see is kept: an event that ends in an error is not written. */
#pragma once

#include "base/buf.h"
#include "engine/engine.h"

struct response_record {
    struct buf bytes; /* {0} is an empty record */
};

void response_record_add(struct response_record *r, int choice, const struct engine_event *ev);

/* The event at offset `at` (0: the first) into *ev, whose choice into *choice. Returns the offset
 * of the next one; at the end of the record 0, and *ev is not written. */
size_t response_record_read(const struct response_record *r, size_t at, int *choice,
                            struct engine_event *ev);

/* Forgets the first n bytes, which end with an event: offsets are n less from now on. */
void response_record_drop(struct response_record *r, size_t n);

size_t response_record_bytes(const struct response_record *r); /* of memory */
void response_record_trim(struct response_record *r);          /* gives spare memory back */
void response_record_release(struct response_record *r);
