#include "gateway/limits.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/map.h"
#include "base/mem.h"

enum {
    WINDOW_SLOTS = LIMIT_WINDOW_MS / LIMIT_SLOT_MS,
    PLACES_RETRY_MS = 1000,
    MAX_SUBJECTS = 1 << 17,
    DAY_S = 86400,
};

struct slot {
    int64_t at; /* time / LIMIT_SLOT_MS */
    int64_t requests, tokens;
};

/* Only slots in which something happened are there, oldest first. */
struct subject {
    struct slot *slots;
    size_t first, n, cap;     /* slots[first .. first + n) */
    int64_t requests, tokens; /* sums over the slots */
    int64_t running;
    int64_t day, day_tokens;
};

struct local {
    struct limits base;
    struct map subjects; /* name -> struct subject */
};

/* ---- one subject ---- */

/* A slot leaves when its last moment is a whole window ago. */
static int64_t leaves_ms(const struct slot *s)
{
    return (s->at + 1 + WINDOW_SLOTS) * LIMIT_SLOT_MS;
}

static void move_on(struct subject *s, struct limit_time at)
{
    while (s->n && leaves_ms(&s->slots[s->first]) <= at.now_ms) {
        s->requests -= s->slots[s->first].requests;
        s->tokens -= s->slots[s->first].tokens;
        s->first++;
        s->n--;
    }
    if (s->day != at.unix_s / DAY_S) {
        s->day = at.unix_s / DAY_S;
        s->day_tokens = 0;
    }
}

static void make_room(struct subject *s)
{
    if (s->first + s->n < s->cap)
        return;
    if (s->first > s->cap / 2) {
        memmove(s->slots, s->slots + s->first, s->n * sizeof *s->slots);
        s->first = 0;
        return;
    }
    s->cap = s->cap ? 2 * s->cap : 4;
    s->slots = xrealloc(s->slots, s->cap * sizeof *s->slots);
}

/* The slot for a time, made if it is not there. Only a restart asks for older ones than the last.
 */
static struct slot *slot_for(struct subject *s, int64_t at)
{
    size_t end = s->first + s->n;
    while (end > s->first && s->slots[end - 1].at > at)
        end--;
    if (end > s->first && s->slots[end - 1].at == at)
        return &s->slots[end - 1];
    size_t place = end - s->first;
    make_room(s);
    struct slot *new = &s->slots[s->first + place];
    memmove(new + 1, new, (s->n - place) * sizeof *new);
    s->n++;
    *new = (struct slot){.at = at};
    return new;
}

/* Adds to a slot, if it still counts; less than nothing never comes of it. */
static void add(struct subject *s, int64_t at, int64_t requests, int64_t tokens)
{
    bool gone = !s->n || at < s->slots[s->first].at;
    if (gone && (requests < 0 || tokens < 0))
        return;
    struct slot *slot = slot_for(s, at);
    slot->requests += requests;
    slot->tokens += tokens;
    s->requests += requests;
    s->tokens += tokens;
}

/* How long until `over` requests or tokens have left the window. */
static int64_t wait_ms(const struct subject *s, int64_t over, bool of_tokens, int64_t now_ms)
{
    for (size_t i = s->first; i < s->first + s->n; i++) {
        over -= of_tokens ? s->slots[i].tokens : s->slots[i].requests;
        if (over <= 0)
            return leaves_ms(&s->slots[i]) - now_ms;
    }
    return LIMIT_WINDOW_MS;
}

static int64_t ms_to_midnight(struct limit_time at)
{
    return (DAY_S - at.unix_s % DAY_S) * 1000;
}

/* ---- subjects ---- */

/* NULL: there are too many. */
static struct subject *subject_of(struct local *l, const char *name, struct limit_time at)
{
    struct subject *s = map_get(&l->subjects, str_of(name));
    if (!s) {
        if (l->subjects.n >= MAX_SUBJECTS)
            return NULL;
        s = xcalloc(1, sizeof *s);
        map_put(&l->subjects, str_of(name), s);
    }
    move_on(s, at);
    return s;
}

static void subject_free(struct subject *s)
{
    free(s->slots);
    free(s);
}

static void local_sweep(struct limits *base, struct limit_time at)
{
    struct local *l = (struct local *)base;
    struct map kept = {0};
    struct map_slot *m;
    for (size_t i = 0; (m = map_next(&l->subjects, &i));) {
        struct subject *s = m->value;
        move_on(s, at);
        if (s->n || s->running || s->day_tokens)
            map_put(&kept, (struct str){m->key, m->n}, s);
        else
            subject_free(s);
    }
    map_release(&l->subjects);
    l->subjects = kept;
}

/* ---- take ---- */

static bool refuse(struct limit_ask *ask, int subject, enum limit_kind kind, int64_t limit,
                   int64_t used, int64_t retry_ms)
{
    ask->refused = kind;
    ask->subject = subject;
    ask->limit = limit;
    ask->used = used;
    ask->retry_ms = retry_ms;
    return false;
}

static bool may_count(struct limit_ask *ask, int i, const struct subject *s)
{
    const struct quota *q = &ask->hold->subjects[i].quota;
    if (q->concurrency && s->running >= q->concurrency)
        return refuse(ask, i, LIMIT_PLACES, q->concurrency, s->running, PLACES_RETRY_MS);
    if (q->requests_per_minute && s->requests >= q->requests_per_minute)
        return refuse(ask, i, LIMIT_REQUESTS, q->requests_per_minute, s->requests,
                      wait_ms(s, s->requests + 1 - q->requests_per_minute, false, ask->at.now_ms));
    if (q->tokens_per_day && s->day_tokens >= q->tokens_per_day)
        return refuse(ask, i, LIMIT_DAY, q->tokens_per_day, s->day_tokens, ms_to_midnight(ask->at));
    return true;
}

static bool may_reserve(struct limit_ask *ask, int i, const struct subject *s)
{
    const struct quota *q = &ask->hold->subjects[i].quota;
    int64_t want = ask->tokens;
    if (q->tokens_per_minute && want > q->tokens_per_minute)
        return refuse(ask, i, LIMIT_TOKENS, q->tokens_per_minute, s->tokens, -1);
    if (q->tokens_per_day && want > q->tokens_per_day - s->day_tokens)
        return refuse(ask, i, LIMIT_DAY, q->tokens_per_day, s->day_tokens,
                      want > q->tokens_per_day ? -1 : ms_to_midnight(ask->at));
    if (q->tokens_per_minute && want > q->tokens_per_minute - s->tokens)
        return refuse(ask, i, LIMIT_TOKENS, q->tokens_per_minute, s->tokens,
                      wait_ms(s, s->tokens + want - q->tokens_per_minute, true, ask->at.now_ms));
    return true;
}

static void take_from(struct limit_ask *ask, struct subject *s)
{
    int64_t slot = ask->at.now_ms / LIMIT_SLOT_MS;
    if (ask->tokens) {
        add(s, slot, 0, ask->tokens);
        s->day_tokens += ask->tokens;
    } else {
        add(s, slot, 1, 0);
        s->running++;
    }
}

static void tell_room(struct limit_room *out, int64_t limit, int64_t used, const struct subject *s,
                      int64_t now_ms)
{
    int64_t left = used < limit ? limit - used : 0;
    if (!limit || (out->limit && out->remaining <= left))
        return;
    *out = (struct limit_room){
        limit, left, used && s->n ? leaves_ms(&s->slots[s->first + s->n - 1]) - now_ms : 0};
}

static void local_take(struct limits *base, struct limit_ask *ask)
{
    struct local *l = (struct local *)base;
    struct limit_hold *h = ask->hold;
    struct subject *all[LIMIT_MAX_SUBJECTS];
    for (int i = 0; i < h->n_subjects && !ask->refused; i++) {
        all[i] = subject_of(l, h->subjects[i].name, ask->at);
        if (!all[i])
            refuse(ask, i, LIMIT_PLACES, MAX_SUBJECTS, MAX_SUBJECTS, PLACES_RETRY_MS);
        else if (ask->tokens)
            may_reserve(ask, i, all[i]);
        else
            may_count(ask, i, all[i]);
    }
    int64_t slot = ask->at.now_ms / LIMIT_SLOT_MS;
    for (int i = 0; i < h->n_subjects; i++) {
        struct subject *s = subject_of(l, h->subjects[i].name, ask->at);
        const struct quota *q = &h->subjects[i].quota;
        if (!s)
            continue;
        if (!ask->refused)
            take_from(ask, s);
        tell_room(&ask->requests, q->requests_per_minute, s->requests, s, ask->at.now_ms);
        tell_room(&ask->tokens_room, q->tokens_per_minute, s->tokens, s, ask->at.now_ms);
    }
    if (!ask->refused && ask->tokens) {
        h->tokens = ask->tokens;
        h->tokens_slot = slot;
        h->day = ask->at.unix_s / DAY_S;
    } else if (!ask->refused) {
        h->counted = true;
        h->slot = slot;
    }
    ask->pending = false;
    ask->done(ask);
}

/* ---- the end of a request ---- */

static void give_back(struct local *l, struct limit_hold *h, int64_t tokens, bool count,
                      struct limit_time at)
{
    int64_t more = tokens - h->tokens, now_slot = at.now_ms / LIMIT_SLOT_MS;
    for (int i = 0; i < h->n_subjects; i++) {
        struct subject *s = subject_of(l, h->subjects[i].name, at);
        if (!s)
            continue;
        if (h->counted) {
            s->running--;
            if (!count)
                add(s, h->slot, -1, 0);
        }
        if (more)
            add(s, more > 0 ? now_slot : h->tokens_slot, 0, more);
        if (!h->tokens || h->day == s->day)
            s->day_tokens += more;
    }
    *h = (struct limit_hold){0};
}

static void local_settle(struct limits *base, struct limit_hold *h, int64_t tokens,
                         struct limit_time at)
{
    give_back((struct local *)base, h, tokens, true, at);
}

static void local_drop(struct limits *base, struct limit_hold *h, struct limit_time at)
{
    give_back((struct local *)base, h, 0, false, at);
}

static void local_restore(struct limits *base, const char *subject, int64_t age_ms, bool today,
                          int64_t requests, int64_t tokens, struct limit_time at)
{
    struct subject *s = subject_of((struct local *)base, subject, at);
    if (!s)
        return;
    if (today)
        s->day_tokens += tokens;
    int64_t slot = (at.now_ms - age_ms) / LIMIT_SLOT_MS;
    if ((requests || tokens) && age_ms >= 0 && age_ms < LIMIT_WINDOW_MS) {
        struct slot *to = slot_for(s, slot);
        to->requests += requests;
        to->tokens += tokens;
        s->requests += requests;
        s->tokens += tokens;
    }
}

/* It has answered before take returned. */
static void local_cancel(struct limits *base, struct limit_ask *ask)
{
}

static void local_free(struct limits *base)
{
    struct local *l = (struct local *)base;
    struct map_slot *m;
    for (size_t i = 0; (m = map_next(&l->subjects, &i));)
        subject_free(m->value);
    map_release(&l->subjects);
    free(l);
}

static const struct limit_ops local_ops = {
    .take = local_take,
    .cancel = local_cancel,
    .settle = local_settle,
    .drop = local_drop,
    .restore = local_restore,
    .sweep = local_sweep,
    .free = local_free,
};

struct limits *limits_new(void)
{
    struct local *l = xcalloc(1, sizeof *l);
    l->base.ops = &local_ops;
    return &l->base;
}

/* ---- what all stores share ---- */

void limits_free(struct limits *l)
{
    if (l)
        l->ops->free(l);
}

void limits_add_subject(struct limit_hold *h, const char *kind, const char *name,
                        const struct quota *q)
{
    BUG_ON(h->n_subjects == LIMIT_MAX_SUBJECTS || h->counted);
    if (!q->requests_per_minute && !q->tokens_per_minute && !q->concurrency && !q->tokens_per_day)
        return;
    struct limit_subject *s = &h->subjects[h->n_subjects++];
    snprintf(s->name, sizeof s->name, "%s:%s", kind, name);
    s->quota = *q;
}

void limits_take(struct limits *l, struct limit_ask *ask)
{
    ask->refused = LIMIT_NONE;
    ask->requests = ask->tokens_room = (struct limit_room){0};
    ask->pending = true;
    l->ops->take(l, ask);
}

void limits_cancel(struct limits *l, struct limit_ask *ask)
{
    if (ask->pending)
        l->ops->cancel(l, ask);
    ask->pending = false;
}

void limits_settle(struct limits *l, struct limit_hold *h, int64_t tokens, struct limit_time at)
{
    if (h->counted)
        l->ops->settle(l, h, tokens, at);
}

void limits_drop(struct limits *l, struct limit_hold *h, struct limit_time at)
{
    if (h->counted)
        l->ops->drop(l, h, at);
}

void limits_restore(struct limits *l, const char *subject, int64_t age_ms, bool today,
                    int64_t requests, int64_t tokens, struct limit_time at)
{
    l->ops->restore(l, subject, age_ms, today, requests, tokens, at);
}

void limits_sweep(struct limits *l, struct limit_time at)
{
    l->ops->sweep(l, at);
}

void limits_write_duration(struct buf *out, int64_t ms)
{
    if (ms < 1000)
        buf_addf(out, "%" PRId64 "ms", ms);
    else if (ms < 60000)
        buf_addf(out, "%.6gs", (double)ms / 1e3);
    else if (ms < 3600000)
        buf_addf(out, "%" PRId64 "m%" PRId64 "s", ms / 60000, ms % 60000 / 1000);
    else
        buf_addf(out, "%" PRId64 "h%" PRId64 "m%" PRId64 "s", ms / 3600000, ms % 3600000 / 60000,
                 ms % 60000 / 1000);
}

const char *limits_explain(const struct limit_ask *ask, struct err *e)
{
    static const char *const names[] = {
        [LIMIT_REQUESTS] = "requests per minute",
        [LIMIT_TOKENS] = "tokens per minute",
        [LIMIT_PLACES] = "requests at once",
        [LIMIT_DAY] = "tokens per day",
    };
    const char *subject = ask->hold->subjects[ask->subject].name;
    int kind_n = (int)strcspn(subject, ":");
    struct buf when = {0};
    if (ask->retry_ms < 0) {
        buf_addf(&when, "make the prompt shorter or 'max_tokens' smaller");
    } else {
        buf_addf(&when, "try again in ");
        limits_write_duration(&when, ask->retry_ms);
    }
    err_set(e, ERR_LIMIT,
            "the limit of this %.*s is reached: %s, limit %" PRId64 ", used %" PRId64
            ", requested %" PRId64 "; %s",
            kind_n, subject, names[ask->refused], ask->limit, ask->used,
            ask->tokens ? ask->tokens : 1, buf_str(&when));
    buf_release(&when);
    return ask->refused == LIMIT_DAY ? "insufficient_quota" : "rate_limit_exceeded";
}
