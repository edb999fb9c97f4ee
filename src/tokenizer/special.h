/* special.h - finds the special tokens in a text: at the leftmost place the longest one. Private to
 * src/tokenizer. Immutable after special_load. */
#pragma once

#include "tokenizer/vocab.h"

struct special {
    struct str text; /* points into the vocabulary */
    int32_t id;
    bool anywhere; /* white space: found in untrusted text too */
};

struct special_set {
    struct special *list;    /* sorted by bytes */
    uint32_t first[256 + 1]; /* list[first[c] .. first[c + 1]) begin with byte c */
};

/* Longer ones are never found: the time to look at one place of a text is bounded by it. */
enum { SPECIAL_MAX_BYTES = 256 };

int special_load(struct special_set *s, const struct vocab *v, struct err *e);
void special_release(struct special_set *s);

/* The longest token at the start of p[0..n), n > 0, or NULL. Of p only the first n_trusted bytes
 * may hold a token that is not white space. */
const struct special *special_match(const struct special_set *s, const char *p, size_t n,
                                    size_t n_trusted);
