#include "tokenizer/special.h"

#include <stdlib.h>

#include "base/mem.h"

static int by_text(const void *a, const void *b)
{
    const struct special *x = a;
    const struct special *y = b;
    size_t n = x->text.n < y->text.n ? x->text.n : y->text.n;
    int order = memcmp(x->text.p, y->text.p, n);
    if (order)
        return order;
    if (x->text.n != y->text.n)
        return x->text.n < y->text.n ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* What to look for in a text, or an empty slice. */
static struct str search_text(const struct vocab *v, int32_t id)
{
    uint8_t type = v->type[id];
    if (type != TOKEN_CONTROL && type != TOKEN_UNKNOWN && type != TOKEN_USER)
        return (struct str){0};
    struct str s = vocab_is_blank(v, id) ? v->raw[id] : v->spelled[id];
    return s.n <= SPECIAL_MAX_BYTES ? s : (struct str){0};
}

int special_load(struct special_set *s, const struct vocab *v, struct err *e)
{
    size_t n = 0;
    for (int32_t id = 0; id < v->n; id++)
        n += search_text(v, id).n > 0;
    s->list = try_calloc(n, sizeof *s->list);
    if (!s->list)
        return err_set(e, ERR_NOMEM, "out of memory for %zu special tokens", n);
    n = 0;
    for (int32_t id = 0; id < v->n; id++) {
        struct str text = search_text(v, id);
        if (text.n)
            s->list[n++] = (struct special){text, id, vocab_is_blank(v, id)};
    }
    qsort(s->list, n, sizeof *s->list, by_text);

    size_t i = 0;
    for (unsigned c = 0; c <= 256; c++) {
        while (i < n && (unsigned char)s->list[i].text.p[0] < c)
            i++;
        s->first[c] = (uint32_t)i;
    }
    return 0;
}

void special_release(struct special_set *s)
{
    free(s->list);
    *s = (struct special_set){0};
}

/* The first of list[lo..hi) whose byte at `depth` is at least c; all are longer than depth. */
static size_t lower_bound(const struct special *list, size_t lo, size_t hi, size_t depth,
                          unsigned c)
{
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if ((unsigned char)list[mid].text.p[depth] < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

const struct special *special_match(const struct special_set *s, const char *p, size_t n,
                                    size_t n_trusted)
{
    size_t lo = s->first[(unsigned char)p[0]];
    size_t hi = s->first[(unsigned char)p[0] + 1];
    const struct special *best = NULL;

    /* list[lo..hi) begin with p[0..depth): those that end here come first. */
    for (size_t depth = 1; lo < hi; depth++) {
        bool seen = false;
        for (; lo < hi && s->list[lo].text.n == depth; lo++) {
            if (!seen && (s->list[lo].anywhere || depth <= n_trusted)) {
                best = &s->list[lo];
                seen = true; /* of equal spellings the lowest id */
            }
        }
        if (depth == n)
            break;
        unsigned c = (unsigned char)p[depth];
        lo = lower_bound(s->list, lo, hi, depth, c);
        hi = lower_bound(s->list, lo, hi, depth, c + 1);
    }
    return best;
}
