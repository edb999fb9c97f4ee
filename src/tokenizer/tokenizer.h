/* tokenizer.h - text to token ids and back, as the model file says.
 *
 * Models: "llama" (SentencePiece-BPE: score merges, byte fallback) and "gpt2" (byte-level BPE with
 * a pre-tokenizer pattern). Immutable after tokenizer_new: any number of threads.
 *
 * Special tokens (control and user-defined) are found in the text only in trusted spans: what a
 * user wrote can never become one. */
#pragma once

#include "base/err.h"
#include "base/str.h"
#include "gguf/gguf.h"

struct tokenizer;

/* Reads the tokenizer of a model file; needs g only during the call. */
int tokenizer_new(struct tokenizer **out, const struct gguf *g, struct err *e);
void tokenizer_free(struct tokenizer *t);

struct token_list {
    int32_t *ids; /* {0} is empty; free with token_list_release */
    size_t n, cap;
};
void token_list_add(struct token_list *l, int32_t id);
void token_list_release(struct token_list *l);

/* A stretch of text and whether special tokens may be recognised in it. */
struct tok_span {
    struct str text;
    bool trusted;
};

enum tok_flags {
    TOK_ADD_SPECIAL = 1, /* BOS and EOS as the file asks (add_bos_token, add_eos_token) */
};

/* Appends the ids of the spans, taken as ONE text: merges may cross a border between spans, special
 * tokens lie wholly inside trusted ones. Text must be valid UTF-8 (ERR_INVALID otherwise). Time is
 * O(n log n) in the worst case. */
int tokenizer_encode(const struct tokenizer *t, const struct tok_span *spans, size_t n_spans,
                     unsigned flags, struct token_list *out, struct err *e);

/* Raw bytes of a token as they are in a text (SentencePiece's U+2581 as a space, byte tokens as one
 * byte): may be a part of a UTF-8 character. Control tokens give "" unless `special`. Points into
 * the tokenizer. Ids out of range give "". */
struct str tokenizer_piece(const struct tokenizer *t, int32_t id, bool special);

/* The token as the vocabulary spells it. */
struct str tokenizer_vocab(const struct tokenizer *t, int32_t id);

/* Appends the text of ids: what decode() of the reference implementation gives, the leading space
 * of SentencePiece removed where the file says so. */
struct buf;
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool special,
                      struct buf *out);

/* Incremental decoding of one generated stream: bytes come out as soon as, and only when, they form
 * whole UTF-8 characters; bytes that can never become one come out as U+FFFD. {0} begins a stream.
 */
struct tok_stream {
    char held[4];
    uint8_t n_held;
};
void tok_stream_add(struct tok_stream *s, const struct tokenizer *t, int32_t id, bool special,
                    struct buf *out);
void tok_stream_end(struct tok_stream *s, struct buf *out); /* flushes what is held */

int tokenizer_n_vocab(const struct tokenizer *t);
int32_t tokenizer_bos(const struct tokenizer *t);                 /* -1 if none */
int32_t tokenizer_eos(const struct tokenizer *t);                 /* -1 if none */
bool tokenizer_is_special(const struct tokenizer *t, int32_t id); /* control token */
bool tokenizer_is_eog(const struct tokenizer *t,
                      int32_t id); /* ends a generation: EOS, EOT, EOM ... */
int32_t tokenizer_find(const struct tokenizer *t,
                       struct str piece); /* exact vocabulary entry or -1 */
