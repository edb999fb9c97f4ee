#include "engine/kv.h"

#include <stdlib.h>

#include "base/mem.h"

void kv_init(struct kv *kv, int n_blocks, int block_tokens)
{
    BUG_ON(n_blocks < 1 || block_tokens < 1);
    size_t n = (size_t)n_blocks;
    *kv = (struct kv){.n_blocks = n_blocks, .block_tokens = block_tokens, .n_free = n_blocks};
    kv->ref = xcalloc(n, sizeof *kv->ref);
    kv->kept = xcalloc(n, sizeof *kv->kept);
    kv->stack = xcalloc(n, sizeof *kv->stack);
    for (int i = 0; i < n_blocks; i++)
        kv->stack[i] = n_blocks - 1 - i; /* low ids first: easier to read in a trace */
}

void kv_release(struct kv *kv)
{
    free(kv->ref);
    free(kv->kept);
    free(kv->stack);
    *kv = (struct kv){0};
}

int32_t kv_take(struct kv *kv)
{
    if (!kv->n_free)
        return -1;
    int32_t block = kv->stack[--kv->n_free];
    kv->ref[block] = 1;
    return block;
}

void kv_ref(struct kv *kv, int32_t block)
{
    BUG_ON(kv->ref[block] == 0 && !kv->kept[block]);
    if (kv->ref[block]++ == 0)
        kv->n_cached--;
}

void kv_unref(struct kv *kv, int32_t block)
{
    BUG_ON(kv->ref[block] <= 0);
    if (--kv->ref[block])
        return;
    if (kv->kept[block])
        kv->n_cached++;
    else
        kv->stack[kv->n_free++] = block;
}

void kv_keep(struct kv *kv, int32_t block, bool keep)
{
    BUG_ON(kv->ref[block] == 0 && !kv->kept[block]);
    if (kv->kept[block] && !keep && kv->ref[block] == 0) {
        kv->n_cached--;
        kv->stack[kv->n_free++] = block;
    }
    kv->kept[block] = keep;
}

int kv_blocks_for(const struct kv *kv, int n_positions)
{
    return n_positions / kv->block_tokens + (n_positions % kv->block_tokens != 0);
}

void kv_table_add(struct kv_table *t, int32_t block)
{
    if (t->n == t->cap) {
        t->cap = t->cap ? t->cap * 2 : 8;
        t->blocks = xrealloc(t->blocks, (size_t)t->cap * sizeof *t->blocks);
    }
    t->blocks[t->n++] = block;
}

void kv_table_release(struct kv_table *t)
{
    free(t->blocks);
    *t = (struct kv_table){0};
}

bool kv_check(const struct kv *kv, const int32_t *refs, struct err *e)
{
    bool *is_free = xcalloc((size_t)kv->n_blocks, sizeof *is_free);
    int rc = 0, n_cached = 0;
    for (int i = 0; i < kv->n_free && !rc; i++) {
        int32_t b = kv->stack[i];
        if (b < 0 || b >= kv->n_blocks || is_free[b])
            rc = err_set(e, ERR_INVALID, "block %d is on the free stack twice or not a block", b);
        else
            is_free[b] = true;
    }
    for (int b = 0; b < kv->n_blocks && !rc; b++) {
        n_cached += kv->ref[b] == 0 && kv->kept[b];
        if (kv->ref[b] < 0)
            rc = err_set(e, ERR_INVALID, "block %d has %d references", b, kv->ref[b]);
        else if (is_free[b] != (kv->ref[b] == 0 && !kv->kept[b]))
            rc = err_set(e, ERR_INVALID,
                         "block %d: free stack and counts disagree (ref %d, kept %d)", b,
                         kv->ref[b], kv->kept[b]);
        else if (refs && refs[b] != kv->ref[b])
            rc = err_set(e, ERR_INVALID, "block %d has %d references, %d are in tables", b,
                         kv->ref[b], refs[b]);
    }
    if (!rc && n_cached != kv->n_cached)
        rc = err_set(e, ERR_INVALID, "%d blocks are cached, counted %d", n_cached, kv->n_cached);
    free(is_free);
    return rc == 0;
}
