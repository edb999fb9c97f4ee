#include "tokenizer/merge.h"

#include <stdlib.h>

#include "base/mem.h"

struct merge_pair {
    uint64_t key; /* order << 32 | left symbol: least first */
    uint32_t len; /* of both: another length means that one of them has changed since */
    int32_t id;   /* of the result */
};

enum { MAX_SYMBOLS = 1 << 30 };

/* The heap holds at most n - 1 pairs at first, and each of the n - 1 merges takes one out and puts
 * at most two in. */
int merger_begin(struct merger *m, size_t n, struct err *e)
{
    m->n = m->n_heap = 0;
    if (n <= m->cap)
        return 0;
    if (n > MAX_SYMBOLS)
        return err_set(e, ERR_LIMIT, "a text of %zu characters is too long", n);
    size_t cap = n < 64 ? 64 : n;
    if (cap < m->cap * 2)
        cap = m->cap * 2;
    merger_release(m);
    m->symbols = try_calloc(cap, sizeof *m->symbols);
    m->heap = try_calloc(cap, 2 * sizeof *m->heap);
    if (!m->symbols || !m->heap) {
        merger_release(m);
        return err_set(e, ERR_NOMEM, "out of memory for a text of %zu characters", n);
    }
    m->cap = cap;
    return 0;
}

void merger_add(struct merger *m, uint32_t at, uint32_t len, int32_t id)
{
    BUG_ON(m->n == m->cap);
    int32_t i = (int32_t)m->n++;
    m->symbols[i] = (struct symbol){.prev = i - 1, .next = -1, .at = at, .len = len, .id = id};
    if (i)
        m->symbols[i - 1].next = i;
}

static void sift_down(struct merge_pair *heap, size_t n, size_t i)
{
    struct merge_pair moving = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1].key < heap[child].key)
            child++;
        if (moving.key <= heap[child].key)
            break;
        heap[i] = heap[child];
    }
    heap[i] = moving;
}

static void sift_up(struct merge_pair *heap, size_t i)
{
    struct merge_pair moving = heap[i];
    while (i && heap[(i - 1) / 2].key > moving.key) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = moving;
}

/* Puts symbol i and its right neighbour at the end of the heap if they can merge. */
static bool append_pair(struct merger *m, int32_t i, merge_find *find, const void *ctx)
{
    const struct symbol *a = &m->symbols[i];
    if (a->next < 0)
        return false;
    const struct symbol *b = &m->symbols[a->next];
    uint32_t order;
    int32_t id;
    if (!find(ctx, a, b, &order, &id))
        return false;
    m->heap[m->n_heap++] =
        (struct merge_pair){(uint64_t)order << 32 | (uint32_t)i, a->len + b->len, id};
    return true;
}

static struct merge_pair pop(struct merger *m)
{
    struct merge_pair top = m->heap[0];
    m->heap[0] = m->heap[--m->n_heap];
    if (m->n_heap)
        sift_down(m->heap, m->n_heap, 0);
    return top;
}

void merger_run(struct merger *m, merge_find *find, const void *ctx)
{
    for (size_t i = 0; i < m->n; i++)
        append_pair(m, (int32_t)i, find, ctx);
    for (size_t i = m->n_heap / 2; i-- > 0;)
        sift_down(m->heap, m->n_heap, i);

    while (m->n_heap) {
        struct merge_pair best = pop(m);
        int32_t left = (int32_t)(uint32_t)best.key;
        struct symbol *a = &m->symbols[left];
        if (!a->len || a->next < 0)
            continue;
        struct symbol *b = &m->symbols[a->next];
        if (a->len + b->len != best.len)
            continue;

        a->len = best.len;
        a->id = best.id;
        a->next = b->next;
        b->len = 0;
        if (a->next >= 0)
            m->symbols[a->next].prev = left;
        if (append_pair(m, left, find, ctx))
            sift_up(m->heap, m->n_heap - 1);
        if (a->prev >= 0 && append_pair(m, a->prev, find, ctx))
            sift_up(m->heap, m->n_heap - 1);
    }
}

void merger_release(struct merger *m)
{
    free(m->symbols);
    free(m->heap);
    *m = (struct merger){0};
}
