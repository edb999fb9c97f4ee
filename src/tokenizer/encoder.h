/* encoder.h - what the parts of the tokenizer share: its data and the state of one encoding.
 * Private to src/tokenizer. */
#pragma once

#include "base/buf.h"
#include "tokenizer/merge.h"
#include "tokenizer/special.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab.h"

struct pretok;
struct merge_table;

enum token_mark {
    MARK_EOG = 1,         /* ends a generation */
    MARK_STRIP_RIGHT = 2, /* swallows the white space that follows it */
};

struct tokenizer {
    struct vocab vocab;
    struct special_set specials;
    uint8_t *marks; /* [vocab.n] enum token_mark */
    int32_t bos, eos, unk;
    bool add_bos, add_eos;

    /* VOCAB_SPM */
    bool add_space_prefix, remove_extra_spaces;

    /* VOCAB_BPE */
    struct pretok *pretok;
    struct merge_table *merges;
    bool ignore_merges, nfc;
};

/* One call of tokenizer_encode. */
struct encoder {
    const struct tokenizer *t;
    struct token_list *out;
    struct merger merger;
    struct buf scratch;
};

/* Encode text without special tokens. after_special: it stands at the beginning or right after
 * markup, where SentencePiece puts a space. */
int spm_encode(struct encoder *c, struct str text, bool after_special, struct err *e);
int bpe_encode(struct encoder *c, struct str text, struct err *e);

/* Reads the merges of a VOCAB_BPE; t->vocab is loaded. ERR_FORMAT when there are none. */
int merge_table_new(struct merge_table **out, const struct vocab *v, const struct gguf *g,
                    struct err *e);
void merge_table_free(struct merge_table *m);
