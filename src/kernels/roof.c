#include "kernels/roof.h"

#include <stdint.h>

#include "base/clock.h"
#include "base/mem.h"

enum { RUNS = 12, DOT_ROUNDS = 500000 };
static const size_t read_bytes = (size_t)512 << 20;

struct measure {
    struct pool *pool;
    const struct kernels *k;
    const char *memory;
    int64_t macs;
};

static void dot_job(void *arg, int ith, int nth)
{
    struct measure *m = arg;
    int64_t macs = m->k->dot_rounds(DOT_ROUNDS);
    if (ith == 0)
        m->macs = macs * nth;
}

double roof_dot(struct pool *pool, const struct kernels *k)
{
    struct measure m = {.pool = pool, .k = k};
    double best = 0;
    for (int i = 0; i < RUNS; i++) {
        int64_t begin = clock_ns();
        pool_run(pool, dot_job, &m);
        double speed = (double)m.macs / (double)(clock_ns() - begin);
        best = speed > best ? speed : best;
    }
    return best;
}

static void read_job(void *arg, int ith, int nth)
{
    typedef uint64_t lanes __attribute__((vector_size(32), aligned(32)));
    struct measure *m = arg;
    size_t share = read_bytes / (size_t)nth / 256 * 256;
    const lanes *p = (const void *)(m->memory + share * (size_t)ith), *end = p + share / 32;
    lanes a = {0}, b = {0}, c = {0}, d = {0};
    for (; p < end; p += 8) {
        __builtin_prefetch(p + 128);
        __builtin_prefetch(p + 130);
        __builtin_prefetch(p + 132);
        __builtin_prefetch(p + 134);
        a ^= p[0] ^ p[1];
        b ^= p[2] ^ p[3];
        c ^= p[4] ^ p[5];
        d ^= p[6] ^ p[7];
    }
    a ^= b ^ c ^ d;
    __asm__ volatile("" ::"m"(a));
}

double roof_dram(struct pool *pool)
{
    char *memory = mem_alloc_big(read_bytes);
    if (!memory)
        return 0;
    for (size_t i = 0; i < read_bytes; i += 4096)
        memory[i] = (char)i; /* untouched pages would all be the same page of zeros */
    struct measure m = {.pool = pool, .memory = memory};
    double best = 0;
    for (int i = 0; i < RUNS; i++) {
        int64_t begin = clock_ns();
        pool_run(pool, read_job, &m);
        double speed = (double)read_bytes / (double)(clock_ns() - begin);
        best = speed > best ? speed : best;
    }
    mem_free_big(memory, read_bytes);
    return best;
}
