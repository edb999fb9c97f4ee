#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/internal.h"

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
    *out = kv;
    return 0;
}

void kv_mem_free(struct kv_mem *kv)
{
    if (!kv)
        return;
    mem_free_big(kv->memory, kv->bytes);
    free(kv);
}

void kv_mem_copy(struct kv_mem *kv, int32_t to, int32_t from, int n_tokens)
{
    BUG_ON(to < 0 || to >= kv->n_blocks || from < 0 || from >= kv->n_blocks);
    if (to == from || n_tokens <= 0)
        return;
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
    char *to = kv->memory + (size_t)block * kv->block_bytes;
    for (int i = 0; i < kv->n_layers; i++)
        memcpy(to + (size_t)i * kv->layer_bytes, (const char *)in + (size_t)i * kv->block_bytes,
               kv->block_bytes);
}
