/* adapters.c - leases and the versions in memory. */
#include "server/adapters.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "gateway/adapter_push.h"
#include "server/adapters_private.h"

enum {
    RETRY_MS = 2000, /* a load that failed is not tried again sooner */
    STALL_MS = 60000,
};

/* ---- slots ---- */

struct adapter_slot *slot_find(struct adapters *all, const struct served *m, const char *name,
                               int version)
{
    struct adapter_slot *s = all->slots;
    while (s && (s->version != version || s->model != m || strcmp(s->name, name) != 0))
        s = s->next;
    return s;
}

struct adapter_slot *slot_get(struct adapters *all, struct served *m,
                              const struct registry_ref *ref)
{
    struct adapter_slot *s = slot_find(all, m, ref->name, ref->version);
    /* the name was removed and given out again meanwhile */
    if (s && memcmp(s->digest, ref->digest, sizeof s->digest) != 0) {
        s->version = -1;
        s->unwanted = true;
        s = NULL;
    }
    if (!s) {
        s = xcalloc(1, sizeof *s);
        s->model = m;
        snprintf(s->name, sizeof s->name, "%s", ref->name);
        s->version = ref->version;
        memcpy(s->digest, ref->digest, sizeof s->digest);
        s->next = all->slots;
        all->slots = s;
    }
    free(s->source);
    s->source = xstrdup(ref->source);
    s->bytes = s->adapter || s->loading ? s->bytes : ref->bytes;
    s->pinned = ref->pinned;
    return s;
}

static bool slot_idle(const struct adapter_slot *s)
{
    return !s->running && !s->waiting && !s->loading;
}

/* The memory that adapters may have as things are: models may hold what is not reserved. */
static uint64_t limit(const struct adapters *all)
{
    if (!all->share)
        return all->budget;
    uint64_t have = all->bytes > all->reserved ? all->bytes : all->reserved;
    uint64_t most = have + budget_left(all->server->opts.budget);
    return most < all->budget ? most : all->budget;
}

static uint64_t room(const struct adapters *all)
{
    uint64_t most = limit(all);
    return most > all->bytes ? most - all->bytes : 0;
}

/* Counts bytes in or out. False: somebody else has taken the room since room() was asked. */
static bool count(struct adapters *all, uint64_t bytes, bool in)
{
    uint64_t now = in ? all->bytes + bytes : all->bytes - bytes;
    if (all->share && budget_resize(all->share, now > all->reserved ? now : all->reserved, NULL))
        return false;
    all->bytes = now;
    return true;
}

static void drop(struct adapters *all, struct adapter_slot *s)
{
    adapter_unref(s->adapter);
    s->adapter = NULL;
    s->leaving = false;
    count(all, s->bytes, false);
    if (!s->unwanted)
        all->counts.evictions++;
    log_debug("server", "adapter %s@%d has left memory", s->name, s->version);
}

/* Frees what nobody needs to know about any more. */
static void sweep(struct adapters *all)
{
    for (struct adapter_slot **at = &all->slots, *s; (s = *at);) {
        if (s->adapter && !s->running && (s->leaving || (s->unwanted && !s->waiting)))
            drop(all, s);
        if (s->adapter || !slot_idle(s) || (s->failed.code && !s->unwanted)) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        free(s->source);
        free(s);
    }
}

/* ---- room ---- */

/* The least recently used slot that may go, or NULL. */
static struct adapter_slot *victim(struct adapters *all, bool busy)
{
    struct adapter_slot *best = NULL;
    for (struct adapter_slot *s = all->slots; s; s = s->next) {
        if (!s->adapter || s->pinned || s->claimed == all->walk || (s->running > 0) != busy)
            continue;
        if (busy && s->leaving)
            continue;
        if (!best || s->used < best->used)
            best = s;
    }
    return best;
}

/* Lets idle slots go until `need` fits. */
static bool make_room(struct adapters *all, uint64_t need)
{
    while (room(all) < need) {
        struct adapter_slot *s = victim(all, false);
        if (!s)
            return false;
        drop(all, s);
    }
    return true;
}

/* The first that waits cannot go on: the least recently used slots take no new leases until there
 * is room for it. */
static void drain_for(struct adapters *all, uint64_t need)
{
    uint64_t coming = room(all);
    for (const struct adapter_slot *s = all->slots; s; s = s->next)
        coming += s->adapter && s->leaving ? s->bytes : 0;
    for (struct adapter_slot *s; coming < need && (s = victim(all, true));) {
        s->leaving = true;
        coming += s->bytes;
    }
}

static uint64_t pinned_bytes(const struct adapters *all)
{
    uint64_t sum = 0;
    for (const struct adapter_slot *s = all->slots; s; s = s->next)
        sum += s->pinned && (s->adapter || s->loading) ? s->bytes : 0;
    return sum;
}

/* ---- loads ---- */

struct load {
    struct adapter_task task;
    struct adapters *all;
    struct adapter_slot *slot;
    char name[REGISTRY_NAME_BYTES + 1];
    char *source;
    uint8_t digest[REGISTRY_DIGEST_BYTES];
    const struct model *model;
    struct adapter *adapter;
    int rc;
    struct err why;
};

int adapter_open_checked(struct adapter **out, const struct model *m, const char *path,
                         const uint8_t *digest, struct err *e)
{
    int rc = adapter_open(out, m, path, e);
    if (rc || !digest || memcmp(adapter_info(*out)->digest, digest, REGISTRY_DIGEST_BYTES) == 0)
        return rc;
    adapter_unref(*out);
    *out = NULL;
    return err_set(e, ERR_FORMAT, "%.200s has changed since it was registered: register it again",
                   path);
}

static void load_run(struct adapter_task *t)
{
    struct load *l = (struct load *)t;
    l->rc = adapter_open_checked(&l->adapter, l->model, l->source, l->digest, &l->why);
}

static void load_done(struct adapter_task *t)
{
    struct load *l = (struct load *)t;
    struct adapters *all = l->all;
    struct adapter_slot *s = l->slot;
    s->loading = false;
    all->counts.loads++;
    if (t->canceled)
        l->rc = err_set(&l->why, ERR_CANCELED, "the server is ending");
    if (l->rc) {
        count(all, s->bytes, false);
        all->counts.load_failures += !t->canceled;
        s->failed = l->why;
        s->failed_ms = clock_ms();
        if (!t->canceled)
            log_warn("server", "adapter %s@%d cannot be loaded: %s", s->name, s->version,
                     l->why.msg);
    } else {
        s->failed.code = 0; /* it may have stalled */
        s->adapter = l->adapter;
        log_info("server", "adapter %s@%d is in memory, %zu bytes", s->name, s->version,
                 adapter_info(s->adapter)->bytes);
    }
    struct served *m = s->model;
    free(l->source);
    free(l);
    adapters_advance(all);
    served_put(m);
}

static bool begin_load(struct adapters *all, struct adapter_slot *s)
{
    if (!count(all, s->bytes, true))
        return false;
    struct load *l = xcalloc(1, sizeof *l);
    *l = (struct load){.task = {.server = all->server,
                                .run = load_run,
                                .done = load_done,
                                .what = "loading the adapter",
                                .stall_ms = all->load_stall_ms},
                       .all = all,
                       .slot = s,
                       .source = xstrdup(s->source),
                       .model = s->model->model.weights};
    snprintf(l->name, sizeof l->name, "%s", s->name);
    l->task.name = l->name;
    memcpy(l->digest, s->digest, sizeof l->digest);
    served_hold(s->model);
    s->loading = true;
    s->loading_ms = clock_ms();
    s->failed.code = 0;
    worker_add(&all->loads, &l->task);
    return true;
}

static bool reaches(void *registry, const char *name, int version)
{
    return registry_reaches(registry, name, version);
}

void slots_settle(struct adapters *all, const char *name)
{
    struct registry_entry x = {0};
    bool there = registry_find(all->registry, name, &x, NULL) == 0;
    for (struct adapter_slot *s = all->slots; s; s = s->next) {
        if (strcmp(s->name, name) != 0 || s->version < 0)
            continue;
        s->pinned = there && x.pinned && s->version == x.current;
        s->unwanted = !there || !registry_reaches(all->registry, name, s->version);
        if (there)
            s->failed.code = 0; /* what was wrong may have been put right */
    }
    registry_entry_release(&x);
    push_settle(all->server->backends, name, reaches, all->registry);
}

void slots_forget(struct adapters *all, const struct served *m)
{
    for (struct adapter_slot *s = all->slots; s; s = s->next)
        s->unwanted = s->unwanted || s->model == m;
    sweep(all);
}

void slots_stalled(struct adapters *all)
{
    int64_t now = clock_ms(), most = all->load_stall_ms ? all->load_stall_ms : STALL_MS;
    bool any = false;
    for (struct adapter_slot *s = all->slots; s; s = s->next) {
        if (!s->loading || now - s->loading_ms < most || s->failed.code)
            continue;
        s->failed_ms = now;
        any = true;
        err_set(&s->failed, ERR_BUSY,
                "the adapter %s has been loading for %d seconds: is the disk "
                "that holds %.200s there?",
                s->name, (int)((now - s->loading_ms) / 1000), s->source);
        log_error("server", "%s", s->failed.msg);
    }
    if (any)
        adapters_advance(all);
}

void slot_adopt(struct adapters *all, struct adapter_slot *s, struct adapter *a)
{
    all->walk++;
    s->claimed = all->walk;
    if (s->adapter || s->loading || !make_room(all, s->bytes) || !count(all, s->bytes, true)) {
        adapter_unref(a);
        return;
    }
    s->adapter = a;
    s->failed.code = 0;
    s->used = ++all->tick;
}

/* ---- leases ---- */

static void enqueue(struct adapters *all, struct adapter_lease *l)
{
    struct adapter_lease **at = &all->waiting;
    while (*at)
        at = &(*at)->next;
    l->next = NULL;
    l->link = at;
    *at = l;
}

static void dequeue(struct adapter_lease *l)
{
    *l->link = l->next;
    if (l->next)
        l->next->link = l->link;
    l->link = NULL;
    l->next = NULL;
}

void lease_settle(struct adapter_lease *l, const struct err *failed)
{
    dequeue(l);
    for (int i = 0; i < l->n; i++) {
        struct adapter_slot *s = l->uses[i].slot;
        s->waiting--;
        s->running += !failed;
        if (!failed)
            registry_used(l->all->registry, s->name);
    }
    l->holds = !failed;
    if (failed)
        l->failed = *failed;
    waiters_wake(&l->granted, failed);
}

/* The slot could not be loaded. If its name stands for another version by now, that one takes its
 * place. */
static bool take_newer(struct adapters *all, struct adapter_lease *l, int i)
{
    struct adapter_slot *s = l->uses[i].slot;
    struct registry_ref ref;
    if (l->uses[i].fixed || registry_resolve(all->registry, s->name, &ref, NULL))
        return false;
    bool newer = (ref.version != s->version || memcmp(ref.digest, s->digest, sizeof s->digest)) &&
                 strcmp(ref.base, s->model->name) == 0;
    if (newer) {
        s->waiting--;
        l->uses[i].slot = slot_get(all, s->model, &ref);
        l->uses[i].slot->waiting++;
    }
    registry_ref_release(&ref);
    return newer;
}

static int too_large(struct adapters *all, const struct adapter_lease *l, struct err *e)
{
    uint64_t need = 0, pinned = pinned_bytes(all);
    for (int i = 0; i < l->n; i++)
        if (!l->uses[i].slot->pinned)
            need += l->uses[i].slot->bytes;
    if (need + pinned <= limit(all))
        return 0;
    return err_param(e, ERR_LIMIT, "adapter",
                     "%d adapters of %" PRIu64 " KiB together do not fit: of %" PRIu64
                     " KiB for adapters (--adapter-budget %" PRIu64
                     " KiB, and what models leave) %" PRIu64 " are pinned",
                     l->n, need >> 10, limit(all) >> 10, all->budget >> 10, pinned >> 10);
}

/* Begins what l lacks. False: there is no room for it yet. */
static bool fetch(struct adapters *all, struct adapter_lease *l, bool first)
{
    for (int i = 0; i < l->n; i++) {
        struct adapter_slot *s = l->uses[i].slot;
        if (s->adapter || s->loading)
            continue;
        if (make_room(all, s->bytes) && begin_load(all, s))
            continue;
        if (first)
            drain_for(all, s->bytes);
        return false;
    }
    return true;
}

enum outlook { GRANTED, COMING, LACKING, HOPELESS };

/* `behind`: one before it in the queue lacks room. */
static enum outlook examine(struct adapters *all, struct adapter_lease *l, bool behind,
                            struct err *why)
{
    bool lacks = false, waits = false;
    for (int i = 0; i < l->n; i++) {
        if (l->uses[i].slot->failed.code && !take_newer(all, l, i)) {
            if (changes_await(all, l->uses[i].slot->name))
                return COMING;
            *why = l->uses[i].slot->failed;
            return HOPELESS;
        }
        struct adapter_slot *s = l->uses[i].slot;
        s->claimed = all->walk;
        if (!behind)
            s->leaving = false;
        lacks = lacks || (!s->adapter && !s->loading);
        waits = waits || !s->adapter || s->leaving;
    }
    if (!waits)
        return GRANTED;
    if (!lacks)
        return COMING;
    return too_large(all, l, why) ? HOPELESS : LACKING;
}

/* Nobody lacks room: what was to make some may stay. True: there was something. */
static bool undrain(struct adapters *all)
{
    bool any = false;
    for (struct adapter_slot *s = all->slots; s; s = s->next) {
        any = any || s->leaving;
        s->leaving = false;
    }
    return any;
}

/* One walk through the queue. True: something has changed, walk again. */
static bool walk(struct adapters *all)
{
    bool blocked = false;
    all->walk++;
    for (struct adapter_lease *l = all->waiting; l; l = l->next) {
        struct err why = {0};
        enum outlook is = examine(all, l, blocked, &why);
        if (is == GRANTED || is == HOPELESS) {
            lease_settle(l, is == GRANTED ? NULL : &why);
            return true;
        }
        if (is == LACKING && (blocked || !fetch(all, l, !blocked)))
            blocked = true;
    }
    return !blocked && undrain(all);
}

void adapters_advance(struct adapters *all)
{
    all->again = true;
    if (all->advancing || all->stopping)
        return;
    all->advancing = true;
    while (all->again) {
        all->again = false;
        sweep(all);
        while (walk(all))
            ;
        sweep(all);
    }
    all->advancing = false;
}

bool adapters_find_model(struct adapters *all, const char *name, char **base, char **adapter)
{
    struct registry_ref ref;
    if (registry_resolve(all->registry, name, &ref, NULL))
        return false;
    free(all->base);
    *base = all->base = ref.base;
    *adapter = (char *)name;
    ref.base = NULL;
    registry_ref_release(&ref);
    return true;
}

static int add_use(struct adapters *all, struct adapter_lease *l, struct served *m,
                   const struct adapter_pick *p, struct err *e)
{
    struct registry_ref ref;
    if (!isfinite(p->scale))
        return err_param(e, ERR_INVALID, "adapter", "the scale of %.128s is not finite", p->name);
    int rc = registry_resolve(all->registry, p->name, &ref, e);
    if (rc)
        return rc;
    if (strcmp(ref.base, m->name) != 0) {
        rc = err_param(e, ERR_INVALID, "adapter",
                       "the adapter %.128s is for the model %.128s, "
                       "and the request for %.128s",
                       p->name, ref.base, m->name);
    } else {
        struct adapter_slot *s = slot_get(all, m, &ref);
        if (s->failed.code && clock_ms() - s->failed_ms >= RETRY_MS)
            s->failed.code = 0;
        s->unwanted = false;
        s->used = ++all->tick;
        s->waiting++;
        bool hit = s->adapter && !s->leaving;
        all->counts.hits += hit;
        all->counts.misses += !hit;
        l->uses[l->n].slot = s;
        l->uses[l->n].scale = (float)p->scale;
        l->uses[l->n++].fixed = ref.fixed;
    }
    registry_ref_release(&ref);
    return rc;
}

int adapters_take(struct adapters *all, struct adapter_lease *l, struct served *m,
                  const struct adapter_pick *picks, int n, const char *user, struct err *e)
{
    char own[REGISTRY_NAME_BYTES + 1];
    struct adapter_pick personal = {own, 1};
    int rc = 0;
    BUG_ON(l->all);
    if (n == 0 && user && registry_user_adapter(all->registry, user, m->name, own)) {
        picks = &personal;
        n = 1;
    }
    if (n == 0)
        return 0;
    if (n > MODEL_MAX_ADAPTERS)
        return err_param(e, ERR_INVALID, "adapter", "%d adapters, and at most %d can be combined",
                         n, MODEL_MAX_ADAPTERS);
    if (!m->model.weights)
        return err_param(e, ERR_UNSUPPORTED, "adapter", "the model %.128s takes no adapters",
                         m->name);
    *l = (struct adapter_lease){.all = all, .model = m};
    served_hold(m);
    enqueue(all, l);
    for (int i = 0; i < n && !rc; i++)
        rc = add_use(all, l, m, &picks[i], e);
    if (!rc)
        rc = too_large(all, l, e);
    if (rc)
        adapters_release(l);
    else
        adapters_advance(all);
    return rc;
}

int adapters_get(struct adapter_lease *l, struct waiter *w, struct adapter_use *uses, struct err *e)
{
    if (l->failed.code)
        return err_set(e, l->failed.code, "%s", l->failed.msg);
    if (l->all && !l->holds) {
        waiters_add(&l->granted, w);
        return 0;
    }
    for (int i = 0; i < l->n; i++)
        uses[i] = (struct adapter_use){l->uses[i].slot->adapter, l->uses[i].scale};
    return 1;
}

const char *adapters_name(const struct adapter_lease *l, int i)
{
    return l->uses[i].slot->name;
}

const uint8_t *adapters_digest(const struct adapter_lease *l, int i)
{
    return l->uses[i].slot->digest;
}

void adapters_describe(const struct adapter_lease *l, struct buf *out)
{
    for (int i = 0; l->all && i < l->n; i++) {
        const struct adapter_slot *s = l->uses[i].slot;
        buf_addf(out, "%s%s@%d", i ? "," : "", s->name, s->version);
        if (l->uses[i].scale != 1)
            buf_addf(out, ":%g", (double)l->uses[i].scale);
    }
}

void adapters_release(struct adapter_lease *l)
{
    struct adapters *all = l->all;
    if (!all)
        return;
    struct served *m = l->model;
    bool waits = l->link != NULL;
    if (waits)
        dequeue(l);
    for (int i = 0; i < l->n && (waits || l->holds); i++) {
        struct adapter_slot *s = l->uses[i].slot;
        s->waiting -= waits;
        s->running -= l->holds;
    }
    *l = (struct adapter_lease){0};
    adapters_advance(all);
    served_put(m);
}
