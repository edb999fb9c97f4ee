/* buf.h - a growing byte buffer.
 *
 * Invariant: data[len] is NUL whenever data is not NULL, so text can be used as a C string.
 * `{0}` is an empty buffer. Growth aborts when memory is gone: callers bound what they append.
 */
#pragma once

#include <stdarg.h>
#include <stddef.h>

struct buf {
    char *data;
    size_t len; /* bytes in use, without the NUL */
    size_t cap; /* bytes allocated */
};

void buf_release(struct buf *b); /* frees and returns to {0} */
void buf_clear(struct buf *b);   /* len = 0, keeps the memory */

/* Makes room for n more bytes (and the NUL) and returns where they go. */
char *buf_reserve(struct buf *b, size_t n);

void buf_add(struct buf *b, const void *p, size_t n);
void buf_adds(struct buf *b, const char *s);
void buf_addc(struct buf *b, char c);
void buf_addf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_addv(struct buf *b, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));

/* Drops the first n bytes. */
void buf_consume(struct buf *b, size_t n);

/* Hands the memory (NUL-terminated) to the caller, who frees it; b becomes {0}. Never NULL. */
char *buf_take(struct buf *b);

/* The text, or "" for an empty buffer. */
const char *buf_str(const struct buf *b);
