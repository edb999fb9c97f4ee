/* merge.h - byte-pair merging: the best pair of neighbours first, of equal ones the leftmost, until
 * no pair is in the table. A heap over a linked list: O(n log n). Private to src/tokenizer. */
#pragma once

#include "base/err.h"
#include "base/str.h"

struct symbol {
    int32_t prev, next; /* neighbours, -1 at the ends */
    uint32_t at, len;   /* the bytes it covers; len 0: became part of the one before */
    int32_t id;
};

struct merge_pair;

/* Working memory, grown as needed; {0} is empty. */
struct merger {
    struct symbol *symbols; /* after merger_run follow `next` from 0 */
    size_t n, cap;
    struct merge_pair *heap;
    size_t n_heap;
};

/* Makes room for n symbols and empties the list. ERR_NOMEM, or ERR_LIMIT over 2^30. */
int merger_begin(struct merger *m, size_t n, struct err *e);
void merger_add(struct merger *m, uint32_t at, uint32_t len, int32_t id);

/* Can a and its right neighbour b become one? Then the order (least first) and the id of the
 * result. Must depend on the two alone. */
typedef bool merge_find(const void *ctx, const struct symbol *a, const struct symbol *b,
                        uint32_t *order, int32_t *id);
void merger_run(struct merger *m, merge_find *find, const void *ctx);
void merger_release(struct merger *m);
