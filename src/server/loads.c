/* loads.c - bringing models in and letting them go: threads beside the server's own, and room.
 *
 *   server's thread                      a thread for each load
 *   load_start ------------------------> loader.load: fetch, open
 *   room_asked <-- server_load_room ---- how much it needs; waits
 *     rooms_advance: unload others
 *     grant -------------------------->  maps, packs, engine_new
 *   load_over <-------------------------
 *
 * The loads that have asked for room are placed one at a time, in order: what one is granted, the
 * next one cannot count on. */
#include "server/service.h"

#include <inttypes.h>
#include <malloc.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/persona.h"

enum {
    ROOM_MS = 60000,
    SLOW_MS = 5000,      /* a load that has not asked for room by then is a download */
    LOADS_MAX = WATCHES, /* at a time */
    RESERVE_SHARE = 16,  /* of the limit is left to adapters and caches if it can be */
    EVICTED_MS = 300000, /* for so long an evicted model counts as one that wants to be back */
};

/* A load or unload under way. Members up to `result` are the server's thread's. */
struct server_load {
    struct server *server;
    struct served *model;
    struct server_load *next; /* in rooms */
    pthread_t thread;
    struct server_watch *watch; /* the load's thread's */
    char what[160];
    int64_t start_ms;
    int64_t asked_ms; /* when it asked for room, 0: has not yet */
    int64_t turn_ms;  /* when it became the first of rooms, 0: has not yet */
    bool placed;      /* has been granted its room */
    uint64_t least, most;

    struct server_model result;
    int rc;
    struct err failure;

    _Atomic bool canceled;
    pthread_mutex_t lock; /* guards the answer */
    pthread_cond_t answered;
    bool has_answer;
    uint64_t granted;
    struct err refused;
};

/* ---- threads ---- */

static struct server_load *begin(struct served *m, enum served_state state)
{
    struct server_load *l = xcalloc(1, sizeof *l);
    l->server = m->server;
    l->model = m;
    l->start_ms = clock_ms();
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->answered, NULL);
    m->load = l;
    m->state = state;
    m->server->served.n_threads++;
    return l;
}

/* The thread has posted its last words. */
static void end(struct server_load *l)
{
    pthread_join(l->thread, NULL);
    l->server->served.n_threads--;
    l->model->load = NULL;
    pthread_cond_destroy(&l->answered);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

static void leave_rooms(struct server_load *l)
{
    struct server_load **at = &l->server->served.rooms;
    while (*at && *at != l)
        at = &(*at)->next;
    if (*at)
        *at = l->next;
}

/* Those that were to make room, but are still in use, need not. */
static void undrain(struct server *s)
{
    for (struct served *m = served_first(s); m; m = served_next(m))
        if (m->state == SERVED_DRAINING && !m->unwanted) {
            m->state = SERVED_READY;
            m->evicted = false;
            waiters_wake(&m->ready, NULL);
        }
}

/* ---- loading ---- */

/* A start that none of the named models has survived. */
static bool start_failed(struct server *s)
{
    bool named = false;
    for (const struct served *m = served_first(s); m; m = served_next(m)) {
        if (m->n_loads || (m->named && m->state != SERVED_FAILED))
            return false;
        named = named || m->named;
    }
    return named;
}

static void load_failed(struct served *m, const struct err *why)
{
    struct server *s = m->server;
    bool canceled = why->code == ERR_CANCELED;
    m->state = canceled ? SERVED_UNLOADED : SERVED_FAILED;
    m->failed_ms = clock_ms();
    if (!canceled)
        log_error("server", "%s cannot be loaded: %s", m->name, why->msg);
    struct err e = *why;
    if (e.code != ERR_NOTFOUND && e.code != ERR_LIMIT && e.code != ERR_BUSY) {
        e.code = ERR_BUSY; /* the server's trouble, not the client's */
        err_prefix(&e, ERR_BUSY, "%.128s cannot be loaded", m->name);
    }
    m->failure = e;
    waiters_wake(&m->ready, &e);
    waiters_wake(&m->gone, NULL);
    if (start_failed(s) && !s->draining) {
        s->served.failure = *why;
        server_stop(s);
    }
}

static void become_ready(struct served *m, const struct server_model *model)
{
    const struct server_loader *l = &m->server->opts.loader;
    served_become_ready(m, model);
    if (l->ready)
        l->ready(l->arg, &m->model);
}

static void load_over(void *arg)
{
    struct server_load *l = arg;
    struct served *m = l->model;
    struct server *s = l->server;
    int rc = l->rc;
    struct err why = l->failure;
    struct server_model result = l->result;
    bool canceled = atomic_load(&l->canceled);
    leave_rooms(l);
    end(l);
    if (rc)
        load_failed(m, &why);
    else
        become_ready(m, &result);
    if (!rc && canceled && !s->draining) /* too late to stop it */
        served_unload(m, NULL);
    undrain(s);
    rooms_advance(s);
}

static void *load_thread(void *arg)
{
    struct server_load *l = arg;
    const struct server_loader *loader = &l->server->opts.loader;
    l->rc = loader->load(loader->arg, l->model->name, l, &l->result, &l->failure);
    server_watch_end(l->watch, NULL);
    http_loop_post(l->server->loop, load_over, l);
    return NULL;
}

int load_start(struct served *m, struct err *e)
{
    if (m->server->served.n_threads >= LOADS_MAX)
        return err_set(e, ERR_BUSY, "too many models are being loaded, try again");
    struct server_load *l = begin(m, SERVED_LOADING);
    if (pthread_create(&l->thread, NULL, load_thread, l))
        BUG("no thread to load %s on", m->name);
    return 0;
}

bool load_is_slow(const struct served *m)
{
    const struct server_load *l = m->load;
    return m->state == SERVED_LOADING && !l->asked_ms && clock_ms() - l->start_ms > SLOW_MS;
}

bool server_load_progress(struct server_load *l, const char *what, uint64_t done, uint64_t total)
{
    if (strcmp(l->what, what) != 0) {
        server_watch_end(l->watch, NULL);
        snprintf(l->what, sizeof l->what, "%s", what);
        l->watch = server_watch_begin(l->server, what, l->server->opts.load_stall_ms);
    }
    server_watch_progress(l->watch, done, total);
    return !atomic_load(&l->canceled);
}

/* ---- unloading ---- */

static void unload_over(void *arg)
{
    struct server_load *l = arg;
    struct served *m = l->model;
    struct server *s = l->server;
    end(l);
    served_forget_model(m);
    m->state = SERVED_UNLOADED;
    m->unwanted = false;
    log_info("server", "unloaded %s", m->name);
    waiters_wake(&m->gone, NULL);
    rooms_advance(s); /* who waited for the room comes first */
    struct err e = {0};
    if (m->ready.first && m->state == SERVED_UNLOADED && load_start(m, &e))
        waiters_wake(&m->ready, &e);
}

static void *unload_thread(void *arg)
{
    struct server_load *l = arg;
    const struct server_loader *loader = &l->server->opts.loader;
    engine_free(l->result.engine);
    loader->unload(loader->arg, &l->result);
    malloc_trim(0); /* the vocabulary's thousands of small pieces */
    http_loop_post(l->server->loop, unload_over, l);
    return NULL;
}

void unload_start(struct served *m)
{
    BUG_ON(m->users || !served_is_loaded(m) || !m->model.owner);
    struct server *s = m->server;
    struct server_load *l = begin(m, SERVED_UNLOADING);
    m->n_evictions += m->evicted;
    for (int i = 0; i < s->served.n_hooks; i++)
        s->served.hooks[i].fn(s->served.hooks[i].arg, m, false);
    personas_lost(s->personas, m);
    l->result = m->model;
    m->model.owner = NULL; /* the thread's now */
    if (pthread_create(&l->thread, NULL, unload_thread, l))
        BUG("no thread to unload %s on", m->name);
}

/* ---- room ---- */

static void settle(struct server_load *l, uint64_t granted, const struct err *refused)
{
    pthread_mutex_lock(&l->lock);
    l->has_answer = true;
    l->granted = granted;
    if (refused)
        l->refused = *refused;
    pthread_cond_signal(&l->answered);
    pthread_mutex_unlock(&l->lock);
}

/* Bytes that models can have at most. */
static uint64_t pool_bytes(struct server *s)
{
    struct budget_sums sums = budget_sums(s->opts.budget, NULL);
    return budget_limit(s->opts.budget) - sums.bytes[BUDGET_PROCESS] - sums.bytes[BUDGET_CACHE];
}

static bool wants_memory(const struct served *m, int64_t now)
{
    if (m->state == SERVED_UNLOADED || m->state == SERVED_FAILED)
        return m->state == SERVED_UNLOADED && m->evicted &&
               (m->named || now - m->used_ms < EVICTED_MS);
    return m->state != SERVED_UNLOADING || m->evicted || m->ready.first;
}

/* How much of what is left the model of l gets. */
static uint64_t share_of(const struct server_load *l, uint64_t left)
{
    struct server *s = l->server;
    int64_t now = clock_ms();
    uint64_t crowd = 0, limit = budget_limit(s->opts.budget);
    for (const struct served *m = served_first(s); m; m = served_next(m))
        crowd += wants_memory(m, now);
    uint64_t share = pool_bytes(s) / (crowd ? crowd : 1);
    struct budget_sums sums = budget_sums(s->opts.budget, NULL);
    uint64_t others = sums.bytes[BUDGET_ADAPTERS] + sums.bytes[BUDGET_CACHE];
    uint64_t reserve = limit / RESERVE_SHARE > others ? limit / RESERVE_SHARE - others : 0;
    uint64_t room = left > reserve ? left - reserve : 0;
    share = share < l->most ? share : l->most;
    share = share < room ? share : room;
    return share > l->least ? share : l->least;
}

/* Whom to unload for others: rather one that nobody named at the start, one that is idle, the least
 * recently used. */
static struct served *victim(struct server *s, bool idle)
{
    struct served *best = NULL;
    for (struct served *m = served_first(s); m; m = served_next(m)) {
        if (m->state != SERVED_READY || !m->model.owner || (idle ? m->users > 0 : m->named))
            continue;
        if (!best || best->named > m->named ||
            (best->named == m->named && m->used_ms < best->used_ms))
            best = m;
    }
    return best;
}

static bool any_leaving(struct server *s)
{
    for (const struct served *m = served_first(s); m; m = served_next(m))
        if (m->state == SERVED_UNLOADING || m->state == SERVED_DRAINING)
            return true;
    return false;
}

static void refuse(struct server_load *l, int code, const char *why)
{
    struct buf plan = {0};
    struct err e = {0};
    budget_print(l->server->opts.budget, &plan);
    err_param(&e, code, "memory-limit", "%.100s needs %" PRIu64 " MiB, %s: of %.250s",
              l->model->name, (l->least + (1 << 20) - 1) >> 20, why, buf_str(&plan));
    buf_release(&plan);
    leave_rooms(l);
    l->asked_ms = 0;
    l->start_ms = clock_ms();
    settle(l, 0, &e);
}

/* Sends away what must go for the first of the queue. Runs again whenever something has left. */
static bool make_room(struct server_load *l)
{
    struct server *s = l->server;
    uint64_t left = budget_left(s->opts.budget);
    if (!l->turn_ms)
        l->turn_ms = clock_ms();
    if (left >= l->least) {
        l->placed = true;
        settle(l, share_of(l, left), NULL);
        undrain(s);
        return true;
    }
    if (l->least > pool_bytes(s)) {
        refuse(l, ERR_LIMIT, "more than there is");
        return true;
    }
    if (any_leaving(s))
        return false;
    struct served *m = victim(s, true);
    if (m) {
        log_info("server", "unloading %s to make room for %s", m->name, l->model->name);
        m->evicted = true;
        unload_start(m);
    } else if ((m = victim(s, false))) {
        m->evicted = true;
        m->state = SERVED_DRAINING;
    }
    return false;
}

void rooms_advance(struct server *s)
{
    for (struct server_load *l; (l = s->served.rooms) && !l->placed;)
        if (!make_room(l))
            break;
}

void rooms_tick(struct server *s)
{
    struct server_load *l = s->served.rooms;
    int64_t patience = s->opts.room_ms ? s->opts.room_ms : ROOM_MS;
    if (l && !l->placed && l->turn_ms && clock_ms() - l->turn_ms >= patience) {
        refuse(l, ERR_BUSY, "and the models that are in use leave no room for it");
        undrain(s);
    }
    rooms_advance(s);
}

static void room_asked(void *arg)
{
    struct server_load *l = arg;
    struct server *s = l->server;
    l->asked_ms = clock_ms();
    if (!l->asked_ms)
        l->asked_ms = 1;
    if (atomic_load(&l->canceled)) {
        struct err e = {0};
        err_set(&e, ERR_CANCELED, "loading %s was canceled", l->model->name);
        settle(l, 0, &e);
        return;
    }
    if (!s->opts.budget) {
        settle(l, l->most, NULL);
        return;
    }
    leave_rooms(l);
    l->placed = false;
    l->turn_ms = 0;
    l->next = NULL;
    struct server_load **end = &s->served.rooms;
    while (*end)
        end = &(*end)->next;
    *end = l;
    rooms_advance(s);
}

int server_load_room(struct server_load *l, uint64_t least, uint64_t most, uint64_t *granted,
                     struct err *e)
{
    l->least = least;
    l->most = most;
    l->has_answer = false;
    l->refused = (struct err){0};
    http_loop_post(l->server->loop, room_asked, l);
    pthread_mutex_lock(&l->lock);
    while (!l->has_answer)
        pthread_cond_wait(&l->answered, &l->lock);
    pthread_mutex_unlock(&l->lock);
    *granted = l->granted;
    if (l->refused.code && e)
        *e = l->refused;
    return l->refused.code;
}

void load_cancel(struct served *m)
{
    struct server_load *l = m->load;
    struct err e = {0};
    atomic_store(&l->canceled, true);
    if (!l->asked_ms || l->placed)
        return;
    err_set(&e, ERR_CANCELED, "loading %s was canceled", m->name);
    leave_rooms(l);
    l->placed = true;
    settle(l, 0, &e);
}
