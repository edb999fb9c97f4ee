#include "store/ledger.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/map.h"
#include "base/mem.h"
#include "store/db.h"

enum {
    RETRY_MS = 1000,
    COMPACT_EVERY_MS = 3600 * 1000,
    KEEP_SECONDS_S = 2 * 86400,
};

struct audit_entry {
    struct audit_entry *next;
    struct audit_row row; /* strings are owned */
};

struct errand {
    struct errand *next;
    ledger_fn *fn;
    void *arg;
};

/* What waits to be written. */
struct batch {
    struct map usage; /* what makes rows equal -> struct usage_row, strings owned */
    struct audit_entry *audit, **audit_tail;
    size_t n_audit;
    struct errand *errands, **errands_tail;
};

struct ledger {
    struct db *db;
    ledger_fn *changed;
    void *arg;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more;
    /* under lock */
    struct batch batch;
    struct ledger_stats stats;
    bool ending;
    /* the thread's own */
    int64_t version, compacted_ms;
};

/* ---- batches ---- */

static void batch_init(struct batch *b)
{
    *b = (struct batch){0};
    b->audit_tail = &b->audit;
    b->errands_tail = &b->errands;
}

static void free_usage(struct usage_row *r)
{
    free((char *)r->tenant);
    free((char *)r->model);
    free((char *)r->tier);
    free(r);
}

static void free_rows(struct batch *b)
{
    struct map_slot *slot;
    for (size_t i = 0; (slot = map_next(&b->usage, &i));)
        free_usage(slot->value);
    map_release(&b->usage);
    for (struct audit_entry *a = b->audit, *next; a; a = next) {
        next = a->next;
        free((char *)a->row.name);
        free((char *)a->row.address);
        free((char *)a->row.action);
        free(a);
    }
    b->audit = NULL;
    b->audit_tail = &b->audit;
    b->n_audit = 0;
}

/* False: there is no room. */
static bool add_usage(struct batch *b, const struct usage_row *r)
{
    struct buf name = {0};
    buf_addf(&name, "%" PRId64 " %" PRId64 " %d", r->at, r->key, r->status);
    buf_add(&name, "", 1);
    buf_add(&name, r->tenant, strlen(r->tenant) + 1);
    buf_add(&name, r->model, strlen(r->model) + 1);
    buf_adds(&name, r->tier);
    struct str key = {name.data, name.len};
    struct usage_row *sum = map_get(&b->usage, key);
    bool fits = sum || b->usage.n < LEDGER_MAX_ROWS;
    if (sum) {
        sum->requests += r->requests;
        sum->prompt_tokens += r->prompt_tokens;
        sum->cached_tokens += r->cached_tokens;
        sum->completion_tokens += r->completion_tokens;
        sum->charged_tokens += r->charged_tokens;
        sum->ms += r->ms;
    } else if (fits) {
        sum = xmalloc(sizeof *sum);
        *sum = *r;
        sum->tenant = xstrdup(r->tenant);
        sum->model = xstrdup(r->model);
        sum->tier = xstrdup(r->tier);
        map_put(&b->usage, key, sum);
    }
    buf_release(&name);
    return fits;
}

static bool batch_has_rows(const struct batch *b)
{
    return b->usage.n || b->audit;
}

static int write_rows(struct db *d, const struct batch *b, struct err *e)
{
    struct map_slot *slot;
    int rc = 0;
    for (size_t i = 0; !rc && (slot = map_next(&b->usage, &i));)
        rc = usage_add(d, slot->value, e);
    for (const struct audit_entry *a = b->audit; a && !rc; a = a->next)
        rc = audit_add(d, &a->row, e);
    return rc;
}

/* Puts rows that could not be written before those that came meanwhile. */
static uint64_t put_back(struct batch *to, struct batch *from)
{
    struct map_slot *slot;
    uint64_t lost = 0;
    for (size_t i = 0; (slot = map_next(&from->usage, &i));)
        lost += !add_usage(to, slot->value);
    if (from->audit) {
        *from->audit_tail = to->audit;
        if (!to->audit)
            to->audit_tail = from->audit_tail;
        to->audit = from->audit;
        to->n_audit += from->n_audit;
        from->audit = NULL;
        from->audit_tail = &from->audit;
    }
    return lost;
}

/* ---- the thread ---- */

/* Writes the rows of b; those that cannot be written go back. True: nothing is left of them. */
static bool commit(struct ledger *l, struct batch *b)
{
    struct err e = {0};
    size_t n = b->usage.n + b->n_audit;
    int rc = db_begin(l->db, DB_WRITE, &e);
    if (!rc)
        rc = db_end(l->db, write_rows(l->db, b, &e), &e);
    pthread_mutex_lock(&l->lock);
    if (rc) {
        l->stats.lost += put_back(&l->batch, b);
        l->stats.failures++;
    } else {
        l->stats.written += n;
        l->stats.commits++;
    }
    pthread_mutex_unlock(&l->lock);
    if (rc)
        log_error("store", "usage cannot be written, trying again: %s", e.msg);
    return rc == 0;
}

static void look_for_changes(struct ledger *l)
{
    int64_t version = db_version(l->db);
    if (version == l->version)
        return;
    l->version = version;
    l->changed(l->db, l->arg);
}

static void compact_at_times(struct ledger *l)
{
    struct err e = {0};
    if (clock_ms() - l->compacted_ms < COMPACT_EVERY_MS)
        return;
    l->compacted_ms = clock_ms();
    if (usage_compact(l->db, clock_unix_s() - KEEP_SECONDS_S, &e))
        log_warn("store", "old usage stays as it is: %s", e.msg);
}

/* Until something is there, `ms` at most. Under the lock. */
static void wait_for_more(struct ledger *l, int64_t ms, bool any)
{
    struct timespec until;
    int64_t at = clock_ns() + ms * 1000000;
    until.tv_sec = at / 1000000000;
    until.tv_nsec = at % 1000000000;
    int rc = 0;
    while (rc != ETIMEDOUT && !l->ending && !l->batch.errands &&
           !(any && batch_has_rows(&l->batch)))
        rc = pthread_cond_timedwait(&l->more, &l->lock, &until);
}

static void run_errands(struct ledger *l, struct batch *b)
{
    for (struct errand *x = b->errands, *next; x; x = next) {
        next = x->next;
        x->fn(l->db, x->arg);
        free(x);
    }
}

static void *run(void *arg)
{
    struct ledger *l = arg;
    bool wrote = true, ending = false;
    while (!ending) {
        struct batch b;
        pthread_mutex_lock(&l->lock);
        wait_for_more(l, wrote ? LEDGER_POLL_MS : RETRY_MS, wrote);
        if (wrote && batch_has_rows(&l->batch))
            wait_for_more(l, LEDGER_BATCH_MS, false); /* others may come along */
        ending = l->ending;
        b = l->batch;
        if (!b.audit)
            b.audit_tail = &b.audit;
        batch_init(&l->batch);
        pthread_mutex_unlock(&l->lock);
        wrote = !batch_has_rows(&b) || commit(l, &b);
        free_rows(&b);
        run_errands(l, &b);
        if (ending)
            break;
        look_for_changes(l);
        compact_at_times(l);
    }
    return NULL;
}

/* ---- what others call ---- */

struct ledger *ledger_new(struct db *d, ledger_fn *changed, void *arg)
{
    struct ledger *l = xcalloc(1, sizeof *l);
    pthread_condattr_t attr;
    l->db = d;
    l->changed = changed;
    l->arg = arg;
    l->version = -1;
    l->compacted_ms = clock_ms() - COMPACT_EVERY_MS;
    batch_init(&l->batch);
    pthread_mutex_init(&l->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&l->more, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&l->thread, NULL, run, l))
        BUG("no thread to write usage on");
    return l;
}

void ledger_free(struct ledger *l)
{
    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->ending = true;
    pthread_cond_signal(&l->more);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    if (batch_has_rows(&l->batch))
        log_error("store", "%zu rows of usage could not be written and are lost",
                  l->batch.usage.n + l->batch.n_audit);
    free_rows(&l->batch);
    pthread_cond_destroy(&l->more);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

void ledger_usage(struct ledger *l, const struct usage_row *r)
{
    pthread_mutex_lock(&l->lock);
    bool first = !batch_has_rows(&l->batch);
    l->stats.lost += !add_usage(&l->batch, r);
    if (first)
        pthread_cond_signal(&l->more);
    pthread_mutex_unlock(&l->lock);
}

void ledger_audit(struct ledger *l, const struct audit_row *r)
{
    struct audit_entry *a = xmalloc(sizeof *a);
    *a = (struct audit_entry){.row = *r};
    a->row.name = xstrdup(r->name);
    a->row.address = xstrdup(r->address);
    a->row.action = xstrdup(r->action);
    pthread_mutex_lock(&l->lock);
    bool first = !batch_has_rows(&l->batch);
    *l->batch.audit_tail = a;
    l->batch.audit_tail = &a->next;
    l->batch.n_audit++;
    if (first)
        pthread_cond_signal(&l->more);
    pthread_mutex_unlock(&l->lock);
}

void ledger_run(struct ledger *l, ledger_fn *fn, void *arg)
{
    struct errand *x = xmalloc(sizeof *x);
    *x = (struct errand){.fn = fn, .arg = arg};
    pthread_mutex_lock(&l->lock);
    *l->batch.errands_tail = x;
    l->batch.errands_tail = &x->next;
    pthread_cond_signal(&l->more);
    pthread_mutex_unlock(&l->lock);
}

struct ledger_stats ledger_stats(struct ledger *l)
{
    pthread_mutex_lock(&l->lock);
    struct ledger_stats s = l->stats;
    pthread_mutex_unlock(&l->lock);
    return s;
}
