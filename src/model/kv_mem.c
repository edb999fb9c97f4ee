#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "model/internal.h"

/* --- memory before its first use ----------------------------------------------------------------
 * The system makes memory when it is first touched, and zeroes it: two blocks of Phi-3-mini, all
 * that a short request needs, took 60 ms of its 160. So a thread does it before: at once for some
 * blocks after the highest one in use (who hands out blocks takes low ones first), and for all
 * others, if that is wanted, in a quarter of its time while a step is computed. */

enum { AHEAD_BLOCKS = 32, STRIDE_BLOCKS = 8, PIECE = 2 << 20, REST = 3 };

static void rest(int64_t ns)
{
    struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    nanosleep(&t, NULL);
}

/* Makes [begin, end), a piece at a time, since other threads wait to change mappings; rests between
 * them while a step is computed, unless blocks from `block` on are wanted soon. False where the
 * system cannot, or at the end. */
static bool make(struct kv_mem *kv, const char *begin, const char *end, int block)
{
    uintptr_t from = (uintptr_t)begin & ~(uintptr_t)4095;
    while (from < (uintptr_t)end && !atomic_load(&kv->stop)) {
        uintptr_t to = (from & ~(uintptr_t)(PIECE - 1)) + PIECE;
        to = to < (uintptr_t)end ? to : (uintptr_t)end;
        int64_t at = clock_ns();
        if (madvise((void *)from, to - from, MADV_POPULATE_WRITE))
            return false;
        if (block >= atomic_load(&kv->wanted) && atomic_load(&kv->busy))
            rest(REST * (clock_ns() - at));
        from = to;
    }
    return !atomic_load(&kv->stop);
}

static void *make_ahead(void *arg)
{
    struct kv_mem *kv = arg;
    for (int made = 0; !atomic_load(&kv->stop);) {
        int end = atomic_load(&kv->all) ? kv->n_blocks : atomic_load(&kv->wanted);
        if (made >= end) {
            sem_wait(&kv->wake);
            continue;
        }
        int next = end - made < STRIDE_BLOCKS ? end : made + STRIDE_BLOCKS;
        for (int i = 0; i < kv->n_layers; i++) {
            const char *layer = kv->memory + (size_t)i * kv->layer_bytes;
            if (!make(kv, layer + (size_t)made * kv->block_bytes,
                      layer + (size_t)next * kv->block_bytes, made))
                return NULL;
        }
        made = next;
    }
    return NULL;
}

void kv_mem_reach(struct kv_mem *kv, int32_t block)
{
    int wanted = kv->n_blocks - block > AHEAD_BLOCKS ? block + 1 + AHEAD_BLOCKS : kv->n_blocks;
    if (wanted <= atomic_load_explicit(&kv->wanted, memory_order_relaxed))
        return;
    atomic_store(&kv->wanted, wanted);
    sem_post(&kv->wake);
}

void kv_mem_make_all(struct kv_mem *kv)
{
    atomic_store(&kv->all, true);
    sem_post(&kv->wake);
}

/* Without the thread, blocks are made when they are used. */
static void start_thread(struct kv_mem *kv)
{
    sem_init(&kv->wake, 0, 0);
    kv->has_thread = !pthread_create(&kv->thread, NULL, make_ahead, kv);
    if (kv->has_thread)
        pthread_setname_np(kv->thread, "kv-memory");
    kv_mem_reach(kv, 0);
}

static void end_thread(struct kv_mem *kv)
{
    atomic_store(&kv->stop, true);
    sem_post(&kv->wake);
    if (kv->has_thread)
        pthread_join(kv->thread, NULL);
    sem_destroy(&kv->wake);
}

/* --- the pool -----------------------------------------------------------------------------------
 */

int kv_mem_new(struct kv_mem **out, const struct model *m, int n_blocks, struct err *e)
{
    if (n_blocks < 1)
        return err_set(e, ERR_INVALID, "a KV cache needs at least one block, not %d", n_blocks);
    struct kv_mem *kv = xcalloc(1, sizeof *kv);
    kv->n_layers = m->hp.n_layers;
    kv->n_blocks = n_blocks;
    kv->block_bytes = kv_block_bytes(&m->kv);
    bool fits = size_mul(kv->block_bytes, (size_t)n_blocks, &kv->layer_bytes) &&
                size_mul(kv->layer_bytes, (size_t)kv->n_layers, &kv->bytes);
    kv->memory = fits ? mem_alloc_big(kv->bytes) : NULL;
    if (!kv->memory) {
        free(kv);
        return err_set(e, ERR_NOMEM, "out of memory: %d KV blocks need %zu MiB", n_blocks,
                       (m->info.kv_block_bytes >> 10) * (size_t)n_blocks >> 10);
    }
    start_thread(kv);
    *out = kv;
    return 0;
}

void kv_mem_free(struct kv_mem *kv)
{
    if (!kv)
        return;
    end_thread(kv);
    mem_free_big(kv->memory, kv->bytes);
    free(kv);
}

void kv_mem_copy(struct kv_mem *kv, int32_t to, int32_t from, int n_tokens)
{
    BUG_ON(to < 0 || to >= kv->n_blocks || from < 0 || from >= kv->n_blocks);
    if (to == from || n_tokens <= 0)
        return;
    kv_mem_reach(kv, to);
    for (int i = 0; i < kv->n_layers; i++) {
        char *layer = kv->memory + (size_t)i * kv->layer_bytes;
        memcpy(layer + (size_t)to * kv->block_bytes, layer + (size_t)from * kv->block_bytes,
               kv->block_bytes);
    }
}

void kv_mem_read(const struct kv_mem *kv, int32_t block, void *out)
{
    BUG_ON(block < 0 || block >= kv->n_blocks);
    const char *from = kv->memory + (size_t)block * kv->block_bytes;
    for (int i = 0; i < kv->n_layers; i++)
        memcpy((char *)out + (size_t)i * kv->block_bytes, from + (size_t)i * kv->layer_bytes,
               kv->block_bytes);
}

void kv_mem_write(struct kv_mem *kv, int32_t block, const void *in)
{
    BUG_ON(block < 0 || block >= kv->n_blocks);
    kv_mem_reach(kv, block);
    char *to = kv->memory + (size_t)block * kv->block_bytes;
    for (int i = 0; i < kv->n_layers; i++)
        memcpy(to + (size_t)i * kv->layer_bytes, (const char *)in + (size_t)i * kv->block_bytes,
               kv->block_bytes);
}
