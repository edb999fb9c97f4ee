/* gguf_build.h - GGUF files in memory, well formed or not, for tests. Metadata only. */
#pragma once

#include "base/buf.h"
#include "gguf/gguf.h"

struct gguf_build {
    struct buf keys; /* {0} has none */
    uint64_t n_keys;
    struct buf file; /* after gguf_build_open; must outlive the reader */
};

static inline void gguf_build_raw_str(struct buf *b, struct str s)
{
    uint64_t n = s.n;
    buf_add(b, &n, sizeof n);
    buf_add(b, s.p, s.n);
}

/* On disk the kinds are numbered as in enum gguf_kind. */
static inline void gguf_build_key(struct gguf_build *b, struct str key, enum gguf_kind kind)
{
    uint32_t k = kind;
    gguf_build_raw_str(&b->keys, key);
    buf_add(&b->keys, &k, sizeof k);
    b->n_keys++;
}

static inline void gguf_build_str(struct gguf_build *b, const char *key, const char *value)
{
    gguf_build_key(b, str_of(key), GGUF_STRING);
    gguf_build_raw_str(&b->keys, str_of(value));
}

static inline void gguf_build_u32(struct gguf_build *b, const char *key, uint32_t value)
{
    gguf_build_key(b, str_of(key), GGUF_U32);
    buf_add(&b->keys, &value, sizeof value);
}

static inline void gguf_build_bool(struct gguf_build *b, const char *key, bool value)
{
    gguf_build_key(b, str_of(key), GGUF_BOOL);
    buf_addc(&b->keys, value);
}

static inline void gguf_build_arr_head(struct gguf_build *b, const char *key, enum gguf_kind kind,
                                       uint64_t n)
{
    uint32_t k = kind;
    gguf_build_key(b, str_of(key), GGUF_ARRAY);
    buf_add(&b->keys, &k, sizeof k);
    buf_add(&b->keys, &n, sizeof n);
}

static inline void gguf_build_strs(struct gguf_build *b, const char *key, const struct str *strs,
                                   size_t n)
{
    gguf_build_arr_head(b, key, GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        gguf_build_raw_str(&b->keys, strs[i]);
}

/* Elements of 4 bytes: I32, U32, F32. */
static inline void gguf_build_words(struct gguf_build *b, const char *key, enum gguf_kind kind,
                                    const void *words, size_t n)
{
    gguf_build_arr_head(b, key, kind, n);
    buf_add(&b->keys, words, n * 4);
}

/* Everything in g but the keys named in `but`, a list ended by NULL. Strings, u32, bool, and arrays
 * of strings and of 4 bytes. */
static inline void gguf_build_copy(struct gguf_build *b, const struct gguf *g,
                                   const char *const *but)
{
    for (size_t i = 0; i < gguf_n_keys(g); i++) {
        char key[128];
        struct str name = gguf_key(g, i);
        struct gguf_arr a;
        bool skip = false;
        memcpy(key, name.p, name.n);
        key[name.n] = 0;
        for (const char *const *k = but; k && *k; k++)
            skip = skip || str_eqs(name, *k);
        if (skip)
            continue;
        enum gguf_kind kind = gguf_key_kind(g, i);
        if (kind == GGUF_U32)
            gguf_build_u32(b, key, gguf_u32(g, key, 0));
        else if (kind == GGUF_BOOL)
            gguf_build_bool(b, key, gguf_bool(g, key, false));
        else if (kind == GGUF_STRING) {
            gguf_build_key(b, name, GGUF_STRING);
            gguf_build_raw_str(&b->keys, gguf_str(g, key, ""));
        } else if (!gguf_get_arr(g, key, GGUF_STRING, &a, NULL))
            gguf_build_strs(b, key, a.strs, a.n);
        else if (!gguf_get_arr(g, key, GGUF_I32, &a, NULL) ||
                 !gguf_get_arr(g, key, GGUF_F32, &a, NULL))
            gguf_build_words(b, key, a.kind, a.data, a.n);
        else
            BUG("no copy of %s", key);
    }
}

/* NULL and e when the reader refuses the file. */
static inline struct gguf *gguf_build_open(struct gguf_build *b, struct err *e)
{
    uint32_t version = 3;
    uint64_t n_tensors = 0;
    buf_clear(&b->file);
    buf_add(&b->file, "GGUF", 4);
    buf_add(&b->file, &version, sizeof version);
    buf_add(&b->file, &n_tensors, sizeof n_tensors);
    buf_add(&b->file, &b->n_keys, sizeof b->n_keys);
    buf_add(&b->file, b->keys.data, b->keys.len);
    struct gguf *g = NULL;
    return gguf_open_mem(&g, b->file.data, b->file.len, e) ? NULL : g;
}

static inline void gguf_build_release(struct gguf_build *b)
{
    buf_release(&b->keys);
    buf_release(&b->file);
    *b = (struct gguf_build){0};
}
