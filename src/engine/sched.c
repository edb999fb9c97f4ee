#include "engine/sched.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"

struct sched_tenant {
    char *name;
    size_t n_name;
    double vtime; /* tokens computed for it, never behind the common time when it comes back */
    int n_running, n_waiting;
    int64_t held; /* n_tokens of its running sequences, as of the last count */
};

enum { SWEEP_STEPS = 256, ALONE_MS = 2000 };

void sched_init(struct sched *s, const struct sched_ops *ops, void *ctx, int max_running,
                int max_batch_tokens, double step_ms)
{
    BUG_ON(max_running < 1 || max_batch_tokens < max_running);
    *s = (struct sched){.ops = ops,
                        .ctx = ctx,
                        .max_running = max_running,
                        .max_batch_tokens = max_batch_tokens,
                        .step_ms = step_ms};
    s->plan = xcalloc((size_t)max_running, sizeof *s->plan);
    cost_init(&s->cost);
}

void sched_release(struct sched *s)
{
    struct map_slot *slot;
    for (size_t i = 0; (slot = map_next(&s->tenants, &i));) {
        free(((struct sched_tenant *)slot->value)->name);
        free(slot->value);
    }
    map_release(&s->tenants);
    free(s->plan);
    *s = (struct sched){0};
}

/* Lists. */

static void list_insert_before(struct sched_list *l, struct sched_item *at, struct sched_item *item)
{
    item->next = at;
    item->prev = at ? at->prev : l->last;
    *(item->prev ? &item->prev->next : &l->first) = item;
    *(at ? &at->prev : &l->last) = item;
    l->n++;
}

static void list_del(struct sched_list *l, struct sched_item *item)
{
    *(item->prev ? &item->prev->next : &l->first) = item->next;
    *(item->next ? &item->next->prev : &l->last) = item->prev;
    item->prev = item->next = NULL;
    l->n--;
}

static bool runs_before(const struct sched_item *a, const struct sched_item *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->arrival < b->arrival;
}

static void enter_waiting(struct sched *s, struct sched_item *item)
{
    struct sched_item *at = s->waiting.last; /* from the end: new ones belong there */
    while (at && at->arrival > item->arrival)
        at = at->prev;
    list_insert_before(&s->waiting, at ? at->next : s->waiting.first, item);
    item->state = SCHED_WAITING;
    item->tenant->n_waiting++;
}

static void enter_running(struct sched *s, struct sched_item *item)
{
    struct sched_item *at = s->running.first;
    while (at && runs_before(at, item))
        at = at->next;
    list_insert_before(&s->running, at, item);
    item->state = SCHED_RUNNING;
    item->tenant->n_running++;
}

static void leave(struct sched *s, struct sched_item *item)
{
    if (item->state == SCHED_WAITING) {
        list_del(&s->waiting, item);
        item->tenant->n_waiting--;
    } else if (item->state == SCHED_RUNNING) {
        list_del(&s->running, item);
        item->tenant->n_running--;
    }
    item->state = SCHED_NONE;
}

/* Tenants. */

static bool is_active(const struct sched_tenant *t)
{
    return t->n_running + t->n_waiting > 0;
}

static struct sched_tenant *tenant_of(struct sched *s, struct str name)
{
    struct sched_tenant *t = map_get(&s->tenants, name);
    if (!t) {
        t = xcalloc(1, sizeof *t);
        t->name = xstrndup(name.p, name.n);
        t->n_name = name.n;
        map_put(&s->tenants, name, t);
    }
    return t;
}

/* The common time is that of the least served tenant that has work. */
static void advance_vtime(struct sched *s)
{
    struct map_slot *slot;
    double least = -1;
    for (size_t i = 0; (slot = map_next(&s->tenants, &i));) {
        const struct sched_tenant *t = slot->value;
        if (is_active(t) && (least < 0 || t->vtime < least))
            least = t->vtime;
    }
    if (least > s->vtime)
        s->vtime = least;
}

/* Forgets idle tenants that would come back at the common time anyway. */
static void sweep_tenants(struct sched *s)
{
    struct map_slot *slot;
    struct sched_tenant **idle = xmalloc((s->tenants.n + 1) * sizeof(struct sched_tenant *));
    size_t n = 0;
    for (size_t i = 0; (slot = map_next(&s->tenants, &i));) {
        struct sched_tenant *t = slot->value;
        if (!is_active(t) && t->vtime <= s->vtime)
            idle[n++] = t;
    }
    for (size_t i = 0; i < n; i++) {
        map_del(&s->tenants, (struct str){idle[i]->name, idle[i]->n_name});
        free(idle[i]->name);
        free(idle[i]);
    }
    free(idle);
}

void sched_add(struct sched *s, struct sched_item *item, struct str tenant, int priority)
{
    int limit = SCHED_PRIORITY_MAX;
    item->priority = priority < -limit ? -limit : priority > limit ? limit : priority;
    item->tenant = tenant_of(s, tenant);
    item->arrival = ++s->n_arrivals;
    item->born = s->served;
    if (!is_active(item->tenant) && item->tenant->vtime < s->vtime)
        item->tenant->vtime = s->vtime;
    enter_waiting(s, item);
}

void sched_remove(struct sched *s, struct sched_item *item)
{
    if (s->starved == item)
        s->starved = NULL;
    if (s->stuck == item)
        s->stuck = NULL;
    leave(s, item);
}

/* Preemption. */

static void preempt(struct sched *s, struct sched_item *item)
{
    s->ops->drop(s->ctx, item);
    leave(s, item);
    enter_waiting(s, item);
    s->n_preemptions++;
}

static struct sched_item *last_paused(const struct sched *s)
{
    struct sched_item *it = s->running.last;
    while (it && !it->paused)
        it = it->prev;
    return it;
}

/* The one to give way to a decode: a paused one, or the last that is not planned yet. */
static struct sched_item *victim(const struct sched *s)
{
    struct sched_item *it = last_paused(s);
    if (it)
        return it;
    for (it = s->running.last; it && it->n_planned;)
        it = it->prev;
    return it;
}

/* The first in order found no place in the last step. When another tenant holds so much more that
 * it would still hold no less after giving one sequence up, it gives up its newest. */
static void make_way(struct sched *s)
{
    struct sched_item *c = s->starved, *it;
    bool blocks = s->starved_of_blocks;
    s->starved = NULL;
    if (!c || c->state != SCHED_WAITING || c->paused)
        return;
    for (it = s->running.first; it; it = it->next)
        it->tenant->held = 0;
    c->tenant->held = 0;
    for (it = s->running.first; it; it = it->next)
        it->tenant->held += blocks ? it->n_tokens : 1;
    int64_t mine = c->tenant->held + (blocks ? c->n_tokens : 1);
    struct sched_item *worst = NULL;
    for (it = s->running.last; it; it = it->prev) {
        int64_t left = it->tenant->held - (blocks ? it->n_tokens : 1);
        if (it->tenant != c->tenant && left >= mine &&
            (!worst || it->tenant->held > worst->tenant->held))
            worst = it;
    }
    if (worst)
        preempt(s, worst);
}

/* Planning. */

static void plan_item(struct sched *s, struct sched_item *item, int n)
{
    item->n_planned = n;
    s->plan[s->n_plan++] = item;
    s->n_plan_tokens += n;
    s->plan_attention += cost_attention(item->n_computed, n);
    item->tenant->vtime += n;
    s->served += (uint64_t)n;
}

static bool is_decode(const struct sched_item *item)
{
    return item->n_tokens - item->n_computed == 1;
}

/* Every decode runs. The list goes from best to worst and victims come from its end, so whoever is
 * planned stays. */
static void plan_decodes(struct sched *s)
{
    for (struct sched_item *it = s->running.first, *next; it; it = next) {
        next = it->next;
        if (it->paused || !is_decode(it))
            continue;
        bool room;
        while (!(room = s->ops->grow(s->ctx, it, it->n_tokens))) {
            struct sched_item *v = victim(s);
            if (v == next)
                next = next->next;
            preempt(s, v);
            if (v == it)
                break;
        }
        if (room)
            plan_item(s, it, 1);
    }
}

/* Waiting makes a priority better, but never better than the best there is: among equals it is the
 * tenants' shares that count, not who waits longest. */
static int64_t aged_priority(const struct sched *s, const struct sched_item *item)
{
    int64_t aged = item->priority - (int64_t)((s->served - item->born) / SCHED_AGE);
    return aged > s->best_priority ? aged : s->best_priority;
}

static int best_priority(const struct sched *s)
{
    int best = SCHED_PRIORITY_MAX;
    for (const struct sched_item *it = s->waiting.first; it; it = it->next)
        best = it->priority < best ? it->priority : best;
    for (const struct sched_item *it = s->running.first; it; it = it->next)
        best = it->priority < best ? it->priority : best;
    return best;
}

static bool chosen_before(const struct sched *s, const struct sched_item *a,
                          const struct sched_item *b)
{
    int64_t pa = aged_priority(s, a), pb = aged_priority(s, b);
    if (pa != pb)
        return pa < pb;
    if (a->tenant->vtime != b->tenant->vtime)
        return a->tenant->vtime < b->tenant->vtime;
    return a->arrival < b->arrival;
}

static struct sched_item *best_of(const struct sched *s, const struct sched_list *l,
                                  struct sched_item *best)
{
    for (struct sched_item *it = l->first; it; it = it->next)
        if (!it->paused && !it->n_planned && it->skip_step != s->step &&
            (!best || chosen_before(s, it, best)))
            best = it;
    return best;
}

/* Moves a waiting item to the running ones if there is a place and blocks. Paused sequences give up
 * theirs to somebody who can run. */
static enum sched_answer admit(struct sched *s, struct sched_item *item)
{
    for (;;) {
        bool place = s->running.n < s->max_running;
        enum sched_answer answer = SCHED_FULL;
        if (place)
            answer = s->ops->admit(s->ctx, item, s->running.n);
        struct sched_item *paused = answer == SCHED_FULL ? last_paused(s) : NULL;
        if (paused) {
            preempt(s, paused);
            continue;
        }
        if (answer == SCHED_OK) {
            leave(s, item);
            enter_running(s, item);
        } else if (answer == SCHED_WAIT) {
            item->skip_step = s->step;
        } else {
            s->starved = item;
            s->starved_of_blocks = place;
            s->stuck = s->running.n == 0 ? item : NULL;
        }
        return answer;
    }
}

/* How long the step may take. Streams feel it against the step they would have without a prompt: so
 * many times that, where a third of step_ms is short enough for anybody. Without decodes nobody
 * waits for the end of the step but those who come meanwhile; long chunks of a prompt are cheaper.
 * One that has been alone for a while is likely to stay so, and one that others wait for, as its
 * beginning is theirs, is the way to their first tokens too. */
static const double stretch = 2.2, long_steps = 1.5, alone_steps = 4;

/* However long the decodes take, prompts get a fifth of the time: answers end only if others begin.
 */
static const double least_stretch = 1.25;

/* Somebody waited in the last step for what another was computing. */
static bool is_awaited(const struct sched *s)
{
    for (const struct sched_item *it = s->waiting.first; it; it = it->next)
        if (it->skip_step && it->skip_step + 1 == s->step)
            return true;
    return false;
}

static double step_target(const struct sched *s)
{
    if (!s->n_plan)
        return s->step_ms * (s->alone_ms < ALONE_MS && !is_awaited(s) ? long_steps : alone_steps);
    double decodes = cost_predict(&s->cost, s->n_plan_tokens, s->plan_attention);
    double target = fmax(stretch * decodes, s->step_ms / 3);
    return fmax(fmin(target, s->step_ms), least_stretch * decodes);
}

/* How many of `need` tokens of a sequence that has `from` fit into the step. Of all prompts
 * together never fewer than SCHED_MIN_PREFILL: they must get on however slow the decodes are. A
 * rest of half as much goes along: in a step of its own it would cost what a whole one does. */
static int prefill_room(const struct sched *s, double target, int from, int need)
{
    int most = s->max_batch_tokens - s->n_plan_tokens;
    if (need > most)
        need = most;
    int room = cost_room(&s->cost, target, s->n_plan_tokens, s->plan_attention, from, need);
    int least = SCHED_MIN_PREFILL - s->n_prefill_tokens;
    int n = room > least ? room : need < least ? need : least > 0 ? least : 0;
    return need - n <= n / 2 ? need : n;
}

/* Admits it, or finds out what others have computed of it meanwhile. */
static enum sched_answer prepare(struct sched *s, struct sched_item *item)
{
    if (item->state == SCHED_WAITING)
        return admit(s, item);
    enum sched_answer answer = s->ops->catch_up(s->ctx, item);
    if (answer == SCHED_WAIT)
        item->skip_step = s->step;
    return answer;
}

static void plan_prefill(struct sched *s)
{
    double target = step_target(s);
    bool closed = false; /* nobody else is admitted: the first in order goes first */
    s->n_prefill_tokens = 0;
    while (s->n_plan < s->max_running && prefill_room(s, target, 0, 1)) {
        struct sched_item *c = best_of(s, &s->running, NULL);
        if (!closed)
            c = best_of(s, &s->waiting, c);
        if (!c)
            return;
        enum sched_answer answer = prepare(s, c);
        closed |= answer == SCHED_FULL;
        if (answer != SCHED_OK)
            continue;
        int need = c->n_tokens - c->n_computed;
        int n = prefill_room(s, target, c->n_computed, need);
        if (!n)
            return;
        plan_item(s, c, n);
        s->n_prefill_tokens += n;
        if (n == need && target > s->step_ms)
            target = s->step_ms; /* somebody's first token comes at the end of this step */
    }
}

/* Fills a small step of decodes with guesses, as evenly as they are wanted. A guess may evict
 * cached blocks, but never preempts. */
static void plan_drafts(struct sched *s)
{
    if (s->n_plan_tokens != s->n_plan)
        return; /* a prefill chunk uses the time better */
    for (int i = 0; i < s->n_plan; i++) {
        struct sched_item *it = s->plan[i];
        int n = (s->spec_tokens - s->n_plan_tokens) / (s->n_plan - i);
        n = n < it->n_draft ? n : it->n_draft;
        if (n < 1 || !is_decode(it) || !s->ops->grow(s->ctx, it, it->n_tokens + n))
            continue;
        it->n_planned += n;
        s->n_plan_tokens += n;
        s->plan_attention += cost_attention(it->n_tokens, n) - COST_READ * it->n_tokens;
    }
}

int sched_plan(struct sched *s)
{
    s->step++;
    for (struct sched_item *it = s->running.first; it; it = it->next)
        it->n_planned = 0;
    s->n_plan = s->n_plan_tokens = 0;
    s->plan_attention = 0;
    s->stuck = NULL;
    s->best_priority = best_priority(s);
    advance_vtime(s);
    if (s->step % SWEEP_STEPS == 0)
        sweep_tenants(s);
    make_way(s);
    plan_decodes(s);
    plan_prefill(s);
    plan_drafts(s);
    return s->n_plan;
}

void sched_measured(struct sched *s, double ms)
{
    cost_learn(&s->cost, s->n_plan_tokens, s->plan_attention, ms);
    s->alone_ms = s->waiting.n + s->running.n > 1 ? 0 : s->alone_ms + ms;
}

int sched_n_deferred(const struct sched *s)
{
    int n = 0;
    for (const struct sched_item *it = s->waiting.first; it; it = it->next)
        n += it->skip_step == s->step;
    return n;
}

/* Checks. */

static int check_list(const struct sched_list *l, enum sched_state state, struct err *e)
{
    int n = 0;
    for (const struct sched_item *it = l->first, *before = NULL; it; before = it, it = it->next) {
        n++;
        if (it->prev != before || it->state != state)
            return err_set(e, ERR_INVALID, "item %d is in the wrong list", (int)it->arrival);
        if (before &&
            (state == SCHED_RUNNING ? runs_before(it, before) : it->arrival < before->arrival))
            return err_set(e, ERR_INVALID, "item %d is out of order", (int)it->arrival);
        if (state == SCHED_WAITING && it->n_computed)
            return err_set(e, ERR_INVALID, "item %d waits with blocks", (int)it->arrival);
        if (it->n_computed >= it->n_tokens)
            return err_set(e, ERR_INVALID, "item %d has nothing to compute", (int)it->arrival);
    }
    return n == l->n ? 0 : err_set(e, ERR_INVALID, "a list of %d is counted as %d", n, l->n);
}

bool sched_check(const struct sched *s, struct err *e)
{
    int n_running = 0, n_waiting = 0;
    struct map_slot *slot;
    for (size_t i = 0; (slot = map_next(&s->tenants, &i));) {
        const struct sched_tenant *t = slot->value;
        n_running += t->n_running;
        n_waiting += t->n_waiting;
    }
    if (n_running != s->running.n || n_waiting != s->waiting.n)
        return err_set(e, ERR_INVALID, "tenants count %d running and %d waiting, lists %d and %d",
                       n_running, n_waiting, s->running.n, s->waiting.n) == 0;
    if (s->running.n > s->max_running)
        return err_set(e, ERR_INVALID, "%d run, at most %d may", s->running.n, s->max_running) == 0;
    return !check_list(&s->running, SCHED_RUNNING, e) && !check_list(&s->waiting, SCHED_WAITING, e);
}
