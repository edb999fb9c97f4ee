/* mem.h - allocation and sizes.
 *
 * x*: for sizes that our own code chose; they abort when the system has nothing left.
 * try_*: for sizes that came from input; they return NULL and the caller answers with ERR_NOMEM.
 * size_*: arithmetic on sizes that came from input; false on overflow.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

void *xmalloc(size_t n);
void *xcalloc(size_t n, size_t size); /* zeroed */
void *xrealloc(void *p, size_t n);
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t n); /* copies n bytes and adds a NUL */

void *try_alloc(size_t n);               /* zeroed, NULL when it does not fit */
void *try_calloc(size_t n, size_t size); /* zeroed, NULL on overflow or when it does not fit */

/* Zeroed memory on a 64-byte boundary, huge pages asked for from 4 MiB up. Free with mem_free_big
 * and the same size. NULL when it does not fit. */
void *mem_alloc_big(size_t n);
void mem_free_big(void *p, size_t n);

/* Waits until p[0..n), part of a mapping, is in memory, so that threads which must not wait for the
 * disk can read it. */
void mem_page_in(const void *p, size_t n);

static inline bool size_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline bool size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

#define ARRAY_LEN(a) (sizeof(a) / sizeof *(a))
