/* tokenizer_help.h - what the tests of the tokenizer share. Include unit.h first. */
#pragma once

#include <stdlib.h>

#include "gguf_build.h"
#include "tokenizer/tokenizer.h"

static inline struct tokenizer *tokenizer_of(const struct gguf *g)
{
    struct tokenizer *t = NULL;
    struct err e = {0};
    if (tokenizer_new(&t, g, &e))
        fail_msg("%s", e.msg);
    return t;
}

static inline struct tokenizer *open_tokenizer(const char *path)
{
    struct gguf *g = NULL;
    struct err e = {0};
    if (gguf_open(&g, path, &e))
        fail_msg("%s: %s", path, e.msg);
    struct tokenizer *t = tokenizer_of(g);
    gguf_close(g);
    return t;
}

/* The small byte-level vocabulary with the given tokenizer.ggml.pre. */
static inline struct tokenizer *open_bpe(const char *pre)
{
    struct gguf *g = NULL;
    struct err e = {0};
    if (gguf_open(&g, VECTORS "/tokenizer/bpe.gguf", &e))
        fail_msg("%s", e.msg);
    struct gguf_build b = {0};
    gguf_build_copy(&b, g, (const char *[]){"tokenizer.ggml.pre", NULL});
    gguf_build_str(&b, "tokenizer.ggml.pre", pre);
    gguf_close(g);
    g = gguf_build_open(&b, &e);
    if (!g)
        fail_msg("%s", e.msg);
    struct tokenizer *t = tokenizer_of(g);
    gguf_close(g);
    gguf_build_release(&b);
    return t;
}

/* "7 8*3" is 7 8 8 8. */
static inline void unpack(const char *s, struct token_list *out)
{
    while (*s) {
        char *end;
        long id = strtol(s, &end, 10);
        long times = *end == '*' ? strtol(end + 1, &end, 10) : 1;
        while (times-- > 0)
            token_list_add(out, (int32_t)id);
        s = *end ? end + 1 : end;
    }
}

static inline void expect_ids(const char *what, const struct token_list *got,
                              const struct token_list *want)
{
    size_t i = 0;
    while (i < got->n && i < want->n && got->ids[i] == want->ids[i])
        i++;
    if (i < got->n || i < want->n)
        fail_msg("%.80s: %zu ids, %zu expected; at %zu: %d, expected %d", what, got->n, want->n, i,
                 i < got->n ? got->ids[i] : -1, i < want->n ? want->ids[i] : -1);
}

static inline void encode(const struct tokenizer *t, const struct tok_span *spans, size_t n,
                          struct token_list *out)
{
    struct err e = {0};
    if (tokenizer_encode(t, spans, n, 0, out, &e))
        fail_msg("%s", e.msg);
}
