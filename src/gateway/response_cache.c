#include "gateway/response_cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/mem.h"
#include "gateway/response_private.h"

enum {
    LARGEST_SHARE = 8,    /* one answer may take budget / LARGEST_SHARE */
    OVERHEAD_BYTES = 160, /* of an entry in the map and the allocator */
};

/* ---- keeping ---- */

int64_t response_now(const struct response_cache *c)
{
    return c->opts.now_ms ? c->opts.now_ms(c->opts.now_arg) : clock_ms();
}

bool response_too_old(const struct response_cache *c, const struct response_entry *e)
{
    return e->state == RESPONSE_WHOLE && response_now(c) - e->made_ms >= e->ttl_ms;
}

static void list_add(struct response_entry *e)
{
    struct response_cache *c = e->cache;
    e->newer = NULL;
    e->older = c->newest;
    *(c->newest ? &c->newest->newer : &c->oldest) = e;
    c->newest = e;
}

static void list_del(struct response_entry *e)
{
    struct response_cache *c = e->cache;
    *(e->newer ? &e->newer->older : &c->newest) = e->older;
    *(e->older ? &e->older->newer : &c->oldest) = e->newer;
}

void response_used(struct response_entry *e)
{
    if (e->counted && e->newer) {
        list_del(e);
        list_add(e);
    }
}

static void entry_put(struct response_entry *e)
{
    if (e->indexed || e->readers || e->leader || e->busy)
        return;
    response_record_release(&e->record);
    free(e);
}

void response_unindex(struct response_entry *e)
{
    struct response_cache *c = e->cache;
    if (!e->indexed)
        return;
    map_del(&c->entries, response_key_str(&e->key));
    e->indexed = false;
    response_rendered_drop(e);
    if (e->counted) {
        e->counted = false;
        list_del(e);
        c->stats.bytes -= e->bytes;
        c->stats.entries--;
    }
    entry_put(e);
}

void response_count(struct response_entry *e, size_t n)
{
    struct response_cache *c = e->cache;
    c->stats.bytes += n - e->bytes;
    e->bytes = n;
    while (c->stats.bytes > c->opts.budget_bytes) {
        c->stats.evictions++;
        response_unindex(c->oldest);
    }
}

static size_t entry_bytes(const struct response_entry *e)
{
    size_t names = strlen(e->adapters) + strlen(e->tenant) + strlen(e->model) + 3;
    return sizeof *e + OVERHEAD_BYTES + names + response_record_bytes(&e->record);
}

static size_t largest(const struct response_cache *c)
{
    return c->opts.budget_bytes / LARGEST_SHARE;
}

static bool too_large(const struct response_entry *e)
{
    return entry_bytes(e) > largest(e->cache);
}

/* The last choice is over: from now on others find it, if it may be kept. */
static void keep(struct response_entry *e)
{
    struct response_cache *c = e->cache;
    e->state = RESPONSE_WHOLE;
    e->made_ms = response_now(c);
    c->stats.in_flight--;
    response_record_trim(&e->record);
    c->stats.too_large += e->loose || too_large(e);
    if (e->no_keep || e->loose || too_large(e) || (!e->indexed && e->drops != c->drops)) {
        response_unindex(e);
        return;
    }
    if (!e->indexed) { /* made afresh beside an older one */
        struct response_entry *old = map_get(&c->entries, response_key_str(&e->key));
        if (old && old->state == RESPONSE_FILLING)
            return; /* which others follow */
        if (old)
            response_unindex(old);
        map_put(&c->entries, response_key_str(&e->key), e);
        e->indexed = true;
    }
    e->counted = true;
    c->stats.entries++;
    list_add(e);
    response_count(e, entry_bytes(e));
}

/* ---- readers ---- */

static void attach(struct response_entry *e, struct response_reader *r)
{
    if (!r->seen) {
        r->seen = xcalloc(2 * (size_t)e->n_choices, sizeof *r->seen);
        r->passed = r->seen + e->n_choices;
        r->n_choices = e->n_choices;
    }
    BUG_ON(r->entry || r->n_choices != e->n_choices);
    memset(r->passed, 0, (size_t)e->n_choices * sizeof *r->passed);
    r->entry = e;
    r->at = 0;
    r->next = NULL;
    r->prev = e->last;
    *(e->last ? &e->last->next : &e->readers) = r;
    e->last = r;
    e->n_readers++;
    e->n_paused += r->paused;
}

static void detach(struct response_reader *r)
{
    struct response_entry *e = r->entry;
    *(r->prev ? &r->prev->next : &e->readers) = r->next;
    *(r->next ? &r->next->prev : &e->last) = r->prev;
    r->entry = NULL;
    e->n_readers--;
    e->n_paused -= r->paused;
}

/* The leader rests while nobody can take more, and, once only readers need the record, while one
 * of them is too far behind. */
static void update_hold(struct response_entry *e)
{
    bool behind = e->loose && e->record.bytes.len > largest(e->cache);
    bool hold = e->n_readers && (e->n_paused == e->n_readers || (behind && e->n_paused));
    if (e->state != RESPONSE_FILLING || !e->leader || e->held == hold)
        return;
    e->held = hold;
    e->leader->hold(e->leader, hold);
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* An answer that outgrows what may be kept is recorded only as far as somebody has yet to read it:
 * else one long answer could take any amount of memory. */
static void shorten(struct response_entry *e)
{
    size_t read = e->record.bytes.len;
    if (!e->loose && e->state == RESPONSE_FILLING && too_large(e)) {
        e->loose = true;
        response_unindex(e);
    }
    if (!e->loose)
        return;
    for (struct response_reader *r = e->readers; r; r = r->next)
        read = least(read, r->at);
    if (read >= e->record.bytes.len - read) { /* at least half: what is moved was added once */
        response_record_drop(&e->record, read);
        for (struct response_reader *r = e->readers; r; r = r->next)
            r->at -= read;
    }
    update_hold(e);
}

/* Gives r what it has not seen of an event. Runs of a repeatable request differ in where events
 * begin and end, not in what they hold. */
static void give(struct response_reader *r, int choice, const struct engine_event *whole)
{
    struct response_seen *seen = &r->seen[choice], *passed = &r->passed[choice];
    struct engine_event ev = *whole;
    size_t ids = least(seen->ids - passed->ids, (size_t)ev.n_ids);
    size_t text = least(seen->text - passed->text, ev.n_text);
    passed->ids += (uint32_t)ev.n_ids;
    passed->text += (uint32_t)ev.n_text;
    ev.ids += ids;
    ev.n_ids -= (int)ids;
    if (ev.logprobs)
        ev.logprobs += ids * (size_t)(1 + ev.n_logprobs);
    ev.text += text;
    ev.n_text -= text;
    if (seen->over || (!ev.n_ids && !ev.n_text && !ev.finish && (ids || text)))
        return;
    seen->ids += (uint32_t)ev.n_ids;
    seen->text += (uint32_t)ev.n_text;
    seen->over = ev.finish != FINISH_NONE;
    r->take(r, choice, &ev);
}

void response_pump(struct response_reader *r)
{
    struct response_entry *e = r->entry;
    struct engine_event ev;
    int choice = 0;
    size_t next;
    if (!e)
        return;
    e->busy++;
    while (r->entry == e && !r->paused &&
           (next = response_record_read(&e->record, r->at, &choice, &ev))) {
        r->at = next;
        give(r, choice, &ev);
    }
    if (e->busy == 1) /* nobody else is reading an event of it */
        shorten(e);
    e->busy--;
    entry_put(e);
}

void response_pause(struct response_reader *r, bool paused)
{
    if (r->paused == paused)
        return;
    r->paused = paused;
    if (!r->entry)
        return;
    r->entry->n_paused += paused ? 1 : -1;
    update_hold(r->entry);
    if (!paused)
        response_pump(r);
}

static void give_up(struct response_entry *e)
{
    e->state = RESPONSE_FAILED;
    e->cache->stats.in_flight--;
    response_unindex(e);
}

void response_close(struct response_reader *r)
{
    struct response_entry *e = r->entry;
    if (!e)
        return;
    e->busy++;
    detach(r);
    if (!e->readers && e->state == RESPONSE_FILLING) {
        give_up(e);
        if (e->leader)
            e->leader->stop(e->leader);
    } else {
        update_hold(e);
    }
    e->busy--;
    entry_put(e);
}

void response_reader_release(struct response_reader *r)
{
    response_close(r);
    free(r->seen);
    r->seen = r->passed = NULL;
}

/* ---- opening ---- */

static struct response_entry *entry_new(struct response_cache *c, const struct response_terms *t)
{
    const char *names[] = {t->adapters ? t->adapters : "", t->tenant, t->model};
    size_t n[] = {strlen(names[0]) + 1, strlen(names[1]) + 1, strlen(names[2]) + 1};
    struct response_entry *e = xcalloc(1, sizeof *e + n[0] + n[1] + n[2]);
    e->cache = c;
    e->drops = c->drops;
    e->key = t->key;
    e->n_choices = t->n_choices;
    e->repeatable = t->repeatable;
    e->ttl_ms = t->ttl_ms ? t->ttl_ms : c->opts.ttl_ms;
    e->adapters = memcpy(e->names, names[0], n[0]);
    e->tenant = memcpy(e->adapters + n[0], names[1], n[1]);
    e->model = memcpy(e->tenant + n[1], names[2], n[2]);
    c->stats.in_flight++;
    return e;
}

/* The entry that would serve t, or NULL. */
static struct response_entry *lookup(const struct response_cache *c, const struct response_terms *t)
{
    struct response_entry *e = t->fresh ? NULL : map_get(&c->entries, response_key_str(&t->key));
    if (!e || response_too_old(c, e))
        return NULL;
    if (e->state == RESPONSE_WHOLE && t->max_age_ms && response_now(c) - e->made_ms > t->max_age_ms)
        return NULL;
    return e;
}

static enum response_found join(struct response_entry *e, struct response_reader *r)
{
    struct response_stats *s = &e->cache->stats;
    attach(e, r);
    if (e->state == RESPONSE_WHOLE) {
        s->hits++;
        response_used(e);
        return RESPONSE_HIT;
    }
    s->coalesced++;
    update_hold(e);
    return RESPONSE_COALESCED;
}

enum response_found response_open(struct response_cache *c, struct response_reader *r,
                                  const struct response_terms *t)
{
    struct response_entry *e = lookup(c, t);
    if (e)
        return join(e, r);
    c->stats.misses++;
    if (t->no_store)
        return RESPONSE_NONE;
    e = entry_new(c, t);
    e->leader = r;
    r->made = e;
    attach(e, r);
    struct response_entry *old = map_get(&c->entries, response_key_str(&t->key));
    if (old && response_too_old(c, old)) {
        c->stats.expired++;
        response_unindex(old);
        old = NULL;
    }
    if (!old) { /* else it is put there once it is whole */
        map_put(&c->entries, response_key_str(&e->key), e);
        e->indexed = true;
    }
    return RESPONSE_LEAD;
}

void response_bypass(struct response_cache *c)
{
    c->stats.bypassed++;
}

/* ---- the leader ---- */

static bool may_rerun(const struct response_reader *r, const struct response_entry *e)
{
    bool clean = true;
    for (int i = 0; i < r->n_choices; i++)
        clean = clean && !r->seen[i].ids && !r->seen[i].text && !r->seen[i].over;
    return clean || e->repeatable;
}

/* Ends the run for all readers: each runs again or hears why. `ev` NULL: the leader left before
 * the run began, which is nobody's failure. */
static void fail(struct response_entry *e, int choice, const struct engine_event *ev)
{
    struct engine_event lost = {.text = (char[]){""}, .finish = FINISH_ERROR, .stop_id = -1};
    bool again = !ev || ev->finish == FINISH_ERROR || ev->finish == FINISH_TIMEOUT;
    err_set(&lost.err, ERR_IO, "the run that this request shared was given up: try again");
    give_up(e);
    for (struct response_reader *r; (r = e->readers);) {
        bool leads = r == e->leader;
        detach(r);
        if (leads && !ev)
            continue;
        if (leads || !again || (ev && r->reran) || !may_rerun(r, e)) {
            r->take(r, choice, ev ? ev : &lost);
            continue;
        }
        r->reran = r->reran || ev;
        e->cache->stats.reruns++;
        r->rerun(r);
    }
}

static void spread(struct response_entry *e)
{
    for (struct response_reader *r = e->readers, *next; r; r = next) {
        next = r->next;
        response_pump(r);
    }
}

void response_add(struct response_reader *leader, int choice, const struct engine_event *ev)
{
    struct response_entry *e = leader->made;
    if (e->state != RESPONSE_FILLING)
        return;
    e->busy++;
    if (ev->finish > FINISH_LENGTH) {
        fail(e, choice, ev);
    } else {
        response_record_add(&e->record, choice, ev);
        e->n_over += ev->finish != FINISH_NONE;
        if (e->n_over == e->n_choices)
            keep(e);
        spread(e);
        shorten(e);
    }
    e->busy--;
    entry_put(e);
}

void response_spoil(struct response_reader *leader)
{
    leader->made->no_keep = true;
    response_unindex(leader->made);
}

void response_unlead(struct response_reader *leader)
{
    struct response_entry *e = leader->made;
    leader->made = NULL;
    e->busy++;
    if (e->state == RESPONSE_FILLING)
        fail(e, 0, NULL);
    e->leader = NULL;
    e->busy--;
    entry_put(e);
}

/* ---- control ---- */

static bool names_adapter(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *end; (end = strchr(list, '\n')); list = end + 1)
        if ((size_t)(end - list) == n && memcmp(list, name, n) == 0)
            return true;
    return false;
}

static bool matches(const struct response_entry *e, const char *tenant, const char *model,
                    const char *adapter)
{
    return (!tenant || strcmp(e->tenant, tenant) == 0) &&
           (!model || strcmp(e->model, model) == 0) &&
           (!adapter || names_adapter(e->adapters, adapter));
}

/* All entries of the index, in a list of their own: dropping changes the index. */
static struct response_entry **snapshot(const struct response_cache *c, size_t *n)
{
    struct response_entry **all = xcalloc(c->entries.n + 1, sizeof *all);
    size_t at = 0;
    *n = 0;
    for (struct map_slot *s; (s = map_next(&c->entries, &at));)
        all[(*n)++] = s->value;
    return all;
}

size_t response_drop(struct response_cache *c, const char *tenant, const char *model,
                     const char *adapter)
{
    size_t n, dropped = 0;
    struct response_entry **all = snapshot(c, &n);
    c->drops++;
    for (size_t i = 0; i < n; i++) {
        if (!matches(all[i], tenant, model, adapter))
            continue;
        all[i]->no_keep = true;
        dropped += all[i]->counted;
        response_unindex(all[i]);
    }
    free(all);
    c->stats.dropped += dropped;
    return dropped;
}

void response_sweep(struct response_cache *c)
{
    size_t n;
    struct response_entry **all = snapshot(c, &n);
    for (size_t i = 0; i < n; i++)
        if (response_too_old(c, all[i])) {
            c->stats.expired++;
            response_unindex(all[i]);
        }
    free(all);
}

struct response_stats response_stats(const struct response_cache *c)
{
    struct response_stats s = c->stats;
    s.budget_bytes = c->opts.budget_bytes;
    s.rendered = c->rendered.n;
    return s;
}

struct response_cache *response_cache_new(const struct response_cache_opts *o)
{
    struct response_cache *c = xcalloc(1, sizeof *c);
    c->opts = *o;
    return c;
}

void response_cache_free(struct response_cache *c)
{
    if (!c)
        return;
    response_drop(c, NULL, NULL, NULL);
    map_release(&c->entries);
    map_release(&c->rendered);
    free(c);
}
