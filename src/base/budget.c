#include "base/budget.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

struct budget_share {
    struct budget *budget;
    struct budget_share *next, **link; /* in the order of taking */
    enum budget_use use;
    char owner[80];
    uint64_t bytes;
};

struct budget {
    pthread_mutex_t lock;
    uint64_t limit, used;
    struct budget_share *first, **end;
};

static const char *const use_names[BUDGET_USES] = {
    [BUDGET_PROCESS] = "process", [BUDGET_WEIGHTS] = "weights",   [BUDGET_SCRATCH] = "scratch",
    [BUDGET_KV] = "kv",           [BUDGET_ADAPTERS] = "adapters", [BUDGET_CACHE] = "cache",
};

const char *budget_use_name(enum budget_use use)
{
    return use_names[use];
}

struct budget *budget_new(uint64_t limit_bytes)
{
    struct budget *b = xcalloc(1, sizeof *b);
    pthread_mutex_init(&b->lock, NULL);
    b->limit = limit_bytes;
    b->end = &b->first;
    return b;
}

void budget_free(struct budget *b)
{
    if (!b)
        return;
    if (b->first)
        BUG("the budget ends, and %s still holds %" PRIu64 " bytes", b->first->owner,
            b->first->bytes);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

static uint64_t mib(uint64_t bytes)
{
    return (bytes + (1 << 19)) >> 20;
}

/* ---- who holds what; under the lock ---- */

static struct budget_sums sums_of(const struct budget *b, const char *owner)
{
    struct budget_sums out = {{0}};
    for (const struct budget_share *s = b->first; s; s = s->next)
        if (!owner || strcmp(s->owner, owner) == 0)
            out.bytes[s->use] += s->bytes;
    return out;
}

static bool is_first_of_owner(const struct budget *b, const struct budget_share *share)
{
    const struct budget_share *s = b->first;
    while (strcmp(s->owner, share->owner) != 0)
        s = s->next;
    return s == share;
}

static void print_owner(const struct budget *b, const char *owner, struct buf *out)
{
    struct budget_sums sums = sums_of(b, owner);
    uint64_t all = 0;
    int n_uses = 0;
    for (int i = 0; i < BUDGET_USES; i++) {
        all += sums.bytes[i];
        n_uses += sums.bytes[i] > 0;
    }
    buf_addf(out, "%s %" PRIu64, owner, mib(all));
    const char *before = " (";
    for (int i = 0; i < BUDGET_USES && n_uses > 1; i++) {
        if (!sums.bytes[i])
            continue;
        buf_addf(out, "%s%s %" PRIu64, before, use_names[i], mib(sums.bytes[i]));
        before = ", ";
    }
    if (n_uses > 1)
        buf_addc(out, ')');
}

static void print(const struct budget *b, struct buf *out)
{
    buf_addf(out, "%" PRIu64 " MiB: ", mib(b->limit));
    for (const struct budget_share *s = b->first; s; s = s->next) {
        if (!is_first_of_owner(b, s))
            continue;
        print_owner(b, s->owner, out);
        buf_adds(out, ", ");
    }
    buf_addf(out, "left %" PRIu64, mib(b->limit - b->used));
}

static int refuse(const struct budget *b, const char *owner, enum budget_use use, uint64_t bytes,
                  struct err *e)
{
    struct buf who = {0};
    print(b, &who);
    err_set(e, ERR_LIMIT, "%s of %.80s needs %" PRIu64 " MiB more, of %.300s", use_names[use],
            owner, mib(bytes), buf_str(&who));
    buf_release(&who);
    return ERR_LIMIT;
}

/* ---- shares ---- */

int budget_take(struct budget *b, enum budget_use use, const char *owner, uint64_t bytes,
                struct budget_share **out, struct err *e)
{
    pthread_mutex_lock(&b->lock);
    if (bytes > b->limit - b->used) {
        int rc = refuse(b, owner, use, bytes, e);
        pthread_mutex_unlock(&b->lock);
        return rc;
    }
    struct budget_share *s = xcalloc(1, sizeof *s);
    *s = (struct budget_share){.budget = b, .link = b->end, .use = use, .bytes = bytes};
    size_t n = strnlen(owner, sizeof s->owner - 1);
    memcpy(s->owner, owner, n);
    *b->end = s;
    b->end = &s->next;
    b->used += bytes;
    pthread_mutex_unlock(&b->lock);
    *out = s;
    return 0;
}

int budget_resize(struct budget_share *s, uint64_t bytes, struct err *e)
{
    struct budget *b = s->budget;
    int rc = 0;
    pthread_mutex_lock(&b->lock);
    if (bytes > s->bytes && bytes - s->bytes > b->limit - b->used) {
        rc = refuse(b, s->owner, s->use, bytes - s->bytes, e);
    } else {
        b->used += bytes - s->bytes;
        s->bytes = bytes;
    }
    pthread_mutex_unlock(&b->lock);
    return rc;
}

void budget_give(struct budget_share *s)
{
    if (!s)
        return;
    struct budget *b = s->budget;
    pthread_mutex_lock(&b->lock);
    b->used -= s->bytes;
    *s->link = s->next;
    if (s->next)
        s->next->link = s->link;
    else
        b->end = s->link;
    pthread_mutex_unlock(&b->lock);
    free(s);
}

uint64_t budget_limit(const struct budget *b)
{
    return b->limit;
}

uint64_t budget_left(struct budget *b)
{
    pthread_mutex_lock(&b->lock);
    uint64_t left = b->limit - b->used;
    pthread_mutex_unlock(&b->lock);
    return left;
}

struct budget_sums budget_sums(struct budget *b, const char *owner)
{
    pthread_mutex_lock(&b->lock);
    struct budget_sums out = sums_of(b, owner);
    pthread_mutex_unlock(&b->lock);
    return out;
}

void budget_print(struct budget *b, struct buf *out)
{
    pthread_mutex_lock(&b->lock);
    print(b, out);
    pthread_mutex_unlock(&b->lock);
}
