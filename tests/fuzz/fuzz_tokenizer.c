/* Arbitrary text, cut into spans, through small vocabularies. The first byte picks the vocabulary,
 * the second how long the spans are and which of them are trusted. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "base/buf.h"
#include "base/mem.h"
#include "tokenizer/tokenizer.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static struct tokenizer *tokenizers[4];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const char *const names[] = {"bpe", "spm-gemma", "spm-phi", "spm-plain"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        struct buf path = {0};
        struct gguf *g;
        buf_addf(&path, "%s/tokenizer/%s.gguf", VECTORS, names[i]);
        if (gguf_open(&g, buf_str(&path), NULL) || tokenizer_new(&tokenizers[i], g, NULL))
            abort();
        gguf_close(g);
        buf_release(&path);
    }
    return 0;
}

/* Plain text gives no control token, the same ids however it is cut, and where the vocabulary loses
 * nothing it comes back. */
static void check_plain(const struct tokenizer *t, struct str text, bool lossless)
{
    struct tok_span cut[] = {{{text.p, text.n / 2}, false},
                             {{text.p + text.n / 2, text.n - text.n / 2}, false}};
    struct tok_span whole = {text, false};
    struct token_list a = {0};
    struct token_list b = {0};
    struct buf back = {0};
    if (tokenizer_encode(t, &whole, 1, 0, &a, NULL) || tokenizer_encode(t, cut, 2, 0, &b, NULL))
        abort();
    if (a.n != b.n || (a.n && memcmp(a.ids, b.ids, a.n * sizeof *a.ids) != 0))
        abort();
    for (size_t i = 0; i < a.n; i++) {
        if (tokenizer_is_special(t, a.ids[i]))
            abort();
    }
    tokenizer_decode(t, a.ids, a.n, false, &back);
    if (!utf8_valid(back.data, back.len))
        abort();
    if (lossless && !str_eq(text, (struct str){back.data, back.len}))
        abort();
    buf_release(&back);
    token_list_release(&a);
    token_list_release(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 2)
        return 0;
    unsigned which = data[0] % ARRAY_LEN(tokenizers);
    const struct tokenizer *t = tokenizers[which];
    struct str text = {(const char *)data + 2, n - 2};
    struct tok_span spans[64];
    size_t n_spans = 0;
    size_t step = (data[1] & 15u) + text.n / 60 + 1;
    for (size_t at = 0; at < text.n; at += step) {
        size_t len = text.n - at < step ? text.n - at : step;
        spans[n_spans] = (struct tok_span){{text.p + at, len}, data[1] >> (4 + n_spans % 4) & 1};
        n_spans++;
    }
    struct token_list ids = {0};
    int rc = tokenizer_encode(t, spans, n_spans, TOK_ADD_SPECIAL, &ids, NULL);
    if ((rc != 0) == utf8_valid(text.p, text.n))
        abort();
    if (rc == 0) {
        bool marks = memmem(text.p, text.n, "\xe2\x96\x81", 3);
        check_plain(t, text, which == 0 || (which == 1 && !marks));
    }
    token_list_release(&ids);
    return 0;
}
