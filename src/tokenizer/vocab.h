/* vocab.h - the vocabulary of a model file: how tokens are spelled, what they stand for, and the
 * way back from a spelling to its id. Private to src/tokenizer. Immutable after vocab_load. */
#pragma once

#include "base/err.h"
#include "base/str.h"
#include "gguf/gguf.h"

#define SPACE_MARK "\xe2\x96\x81" /* U+2581, SentencePiece's space */

/* Numbers as in tokenizer.ggml.token_type. */
enum token_type {
    TOKEN_UNDEFINED = 0,
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

enum vocab_kind {
    VOCAB_SPM, /* spelled with U+2581 for a space and <0xNN> for a byte */
    VOCAB_BPE, /* spelled with one character for each byte, as GPT-2 does */
};

struct vocab {
    enum vocab_kind kind;
    int32_t n;
    struct str *spelled;   /* [n] as the file has it */
    struct str *raw;       /* [n] the bytes it stands for in a text */
    uint8_t *type;         /* [n] enum token_type */
    float *score;          /* [n], NULL if the file has none */
    char *pool;            /* what spelled and raw point into */
    uint32_t *slots;       /* hash index: id + 1, 0 for empty */
    size_t n_slots;        /* a power of two */
    size_t longest;        /* bytes of the longest spelling */
    int32_t byte_ids[256]; /* the token of a single byte, -1 if there is none */
    bool spaces_lead;      /* VOCAB_SPM: no token has U+2581 after another character */
};

/* Reads tokenizer.ggml.tokens, .scores and .token_type. Answers ERR_FORMAT naming the key when a
 * length does not fit, a score is not a number, or there are no tokens. Tolerated: of equal
 * spellings the lowest id is found; empty tokens are never found and stand for nothing; bytes that
 * are no UTF-8 stand for themselves. */
int vocab_load(struct vocab *v, const struct gguf *g, enum vocab_kind kind, struct err *e);
void vocab_release(struct vocab *v);

int32_t vocab_find(const struct vocab *v, struct str spelled); /* -1 if absent */

/* May plain text become this token? Not the markup of a model, nor what it marks as unused. */
bool vocab_is_text(const struct vocab *v, int32_t id);

/* A user-defined token of nothing but white space (Gemma's runs of newlines, the runs of spaces of
 * Phi-2) has no authority: it is text, wherever it is written. */
bool vocab_is_blank(const struct vocab *v, int32_t id);

/* Where the first space mark of s stands that follows another character; s.n if there is none. */
size_t vocab_inner_space(struct str s);

/* Appends the GPT-2 character of every byte. out has room for 2 * n bytes; returns the length. */
size_t vocab_spell_bytes(const char *p, size_t n, char *out);
