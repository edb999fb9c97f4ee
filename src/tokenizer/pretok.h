/* pretok.h - cuts a text into the words within which byte-level BPE merges, by the patterns that
 * the makers of a model published. Private to src/tokenizer. Immutable after pretok_new. */
#pragma once

#include "base/err.h"
#include "base/str.h"

/* What the name in tokenizer.ggml.pre tells. */
struct pretok_family {
    const char *name;
    uint8_t patterns;   /* index into the table of patterns */
    bool ignore_merges; /* a word that is a token is taken as it is */
    bool add_bos;       /* where the file does not say */
    bool nfc;           /* text is brought into Unicode normal form C first */
};

/* The family of that name, NULL if unknown. The first in the table is "gpt-2". */
const struct pretok_family *pretok_find(struct str name);

struct pretok;

int pretok_new(struct pretok **out, const struct pretok_family *family, struct err *e);
void pretok_free(struct pretok *p);

typedef int pretok_word(void *arg, struct str word, struct err *e);

/* Calls `word` for the words of text, in order; together they are the text. The text must be valid
 * UTF-8. Stops at, and returns, the first result that is not 0. Any number of threads. */
int pretok_split(const struct pretok *p, struct str text, pretok_word *word, void *arg,
                 struct err *e);
