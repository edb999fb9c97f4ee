/* tokenizer.h - text to token ids and back, as the model file says.
 *
 * Models: "llama" (SentencePiece-BPE: score merges, byte fallback) and "gpt2" (byte-level BPE with
 * a pre-tokenizer pattern). Immutable after tokenizer_new: any number of threads.
 *
 * Special tokens (control, unknown and user-defined) are found in the text only in trusted spans:
 * what a user wrote can never become one. The exception are user-defined tokens of nothing but
 * white space, such as Gemma's runs of newlines: they are text like any other. */
#pragma once

#include "base/err.h"
#include "base/str.h"
#include "gguf/gguf.h"

struct tokenizer;

/* Reads the tokenizer of a model file; needs g only during the call. ERR_FORMAT names the key that
 * is wrong, ERR_NOTFOUND the one that is missing, ERR_UNSUPPORTED the tokenizer.ggml.model that is
 * not known. An unknown tokenizer.ggml.pre is taken as "gpt-2", with a warning in the log. */
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

/* Appends the ids of the spans, taken as ONE text: merges may cross a border between spans, a
 * special token lies wholly inside one trusted span; at the leftmost place the longest one is
 * taken. The text must be valid UTF-8 (ERR_INVALID naming the byte otherwise). On an error nothing
 * is appended. Time is O(n log n) in the worst case.
 *
 * Gives what the reference gives: https://github.com/google/sentencepiece for "llama",
 * https://github.com/huggingface/tokenizers for "gpt2" and for what happens around special tokens
 * (after one, and at the beginning, "llama" puts a space if add_space_prefix says so). */
int tokenizer_encode(const struct tokenizer *t, const struct tok_span *spans, size_t n_spans,
                     unsigned flags, struct token_list *out, struct err *e);

/* Raw bytes of a token as they are in a text (SentencePiece's U+2581 as a space, byte tokens as one
 * byte): may be a part of a UTF-8 character. Control tokens give "" unless `special`. Points into
 * the tokenizer. Ids out of range give "". */
struct str tokenizer_piece(const struct tokenizer *t, int32_t id, bool special);

/* The token as the vocabulary spells it. */
struct str tokenizer_vocab(const struct tokenizer *t, int32_t id);

/* Appends the text of ids: what decode() of the reference implementation gives, the leading space
 * of SentencePiece removed where the file says so. Always valid UTF-8: what is none becomes U+FFFD.
 */
struct buf;
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool special,
                      struct buf *out);

/* Incremental decoding of one generated stream: bytes come out as soon as, and only when, they form
 * whole UTF-8 characters; bytes that can never become one come out as U+FFFD. {0} begins a text,
 * and all that comes out together is what tokenizer_decode gives. {.in_text = true} goes on with a
 * text that ends in an ordinary token: a leading space stays. */
struct tok_stream {
    char held[4];
    uint8_t n_held;
    bool in_text;
};
void tok_stream_add(struct tok_stream *s, const struct tokenizer *t, int32_t id, bool special,
                    struct buf *out);
void tok_stream_end(struct tok_stream *s, struct buf *out); /* a cut character becomes U+FFFD */

int tokenizer_n_vocab(const struct tokenizer *t);
int32_t tokenizer_bos(const struct tokenizer *t);                 /* -1 if none */
int32_t tokenizer_eos(const struct tokenizer *t);                 /* -1 if none */
bool tokenizer_is_special(const struct tokenizer *t, int32_t id); /* control token */

/* Does the token end a generation: EOS, EOT, EOM of the file, or one known by its name? */
bool tokenizer_is_eog(const struct tokenizer *t, int32_t id);

/* The id of an exact spelling, the lowest of several; -1 if there is none. */
int32_t tokenizer_find(const struct tokenizer *t, struct str spelled);
