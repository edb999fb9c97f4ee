#define _DEFAULT_SOURCE
#include "base/mem.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/fault.h"

static void *must(void *p, size_t n)
{
    if (!p && n)
        BUG("out of memory allocating %zu bytes", n);
    return p;
}

void *xmalloc(size_t n)
{
    return must(malloc(n), n);
}

void *xcalloc(size_t n, size_t size)
{
    return must(calloc(n, size), n && size);
}

void *xrealloc(void *p, size_t n)
{
    return must(realloc(p, n), n);
}

char *xstrdup(const char *s)
{
    return xstrndup(s, strlen(s));
}

char *xstrndup(const char *s, size_t n)
{
    char *p = xmalloc(n + 1);
    if (n)
        memcpy(p, s, n);
    p[n] = 0;
    return p;
}

void *try_alloc(size_t n)
{
    return try_calloc(1, n);
}

void *try_calloc(size_t n, size_t size)
{
    if (fault(FAULT_ALLOC))
        return NULL;
    return calloc(n ? n : 1, size ? size : 1);
}

void *mem_alloc_big(size_t n)
{
    if (fault(FAULT_ALLOC))
        return NULL;
    void *p = mmap(NULL, n ? n : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (n >= (size_t)4 << 20)
        madvise(p, n, MADV_HUGEPAGE);
    return p;
}

void mem_free_big(void *p, size_t n)
{
    if (p)
        munmap(p, n ? n : 1);
}

void mem_page_in(const void *p, size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), before = (uintptr_t)p % page;
    const char *begin = (const char *)p - before;
    n += before;
    if (!madvise((void *)begin, n, MADV_POPULATE_READ))
        return;
    for (size_t i = 0; i < n; i += page) /* a kernel before 5.14 */
        (void)*(const volatile char *)(begin + i);
}
