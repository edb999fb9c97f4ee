/* Limits against a naive twin that keeps every event, in virtual time; and what the twin cannot
 * tell: that no minute of it holds more than the limit, and none under pressure much less. */
#include "unit.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "gateway/limits.h"

enum { N_SUBJECTS = 5, MAX_RUNNING = 400 };

static void answered(struct limit_ask *ask)
{
    assert_false(ask->pending);
}

/* ---- the twin ---- */

struct event {
    int64_t slot, requests, tokens;
};

struct twin {
    struct event *events;
    size_t n, cap;
    int64_t running, day, day_tokens;
};

static void twin_add(struct twin *t, int64_t slot, int64_t requests, int64_t tokens)
{
    if (t->n == t->cap) {
        t->cap = 2 * t->cap + 16;
        t->events = xrealloc(t->events, t->cap * sizeof *t->events);
    }
    t->events[t->n++] = (struct event){slot, requests, tokens};
}

static void twin_sums(const struct twin *t, int64_t now_ms, int64_t *requests, int64_t *tokens)
{
    *requests = *tokens = 0;
    for (size_t i = 0; i < t->n; i++)
        if ((t->events[i].slot + 1) * LIMIT_SLOT_MS + LIMIT_WINDOW_MS > now_ms) {
            *requests += t->events[i].requests;
            *tokens += t->events[i].tokens;
        }
}

static void twin_day(struct twin *t, int64_t unix_s)
{
    if (t->day != unix_s / 86400)
        t->day_tokens = 0;
    t->day = unix_s / 86400;
}

static bool twin_allows(const struct twin *t, const struct quota *q, int64_t now_ms, int64_t tokens)
{
    int64_t r, k;
    twin_sums(t, now_ms, &r, &k);
    if (!tokens)
        return !(q->concurrency && t->running >= q->concurrency) &&
               !(q->requests_per_minute && r >= q->requests_per_minute) &&
               !(q->tokens_per_day && t->day_tokens >= q->tokens_per_day);
    return !(q->tokens_per_minute && k + tokens > q->tokens_per_minute) &&
           !(q->tokens_per_day && t->day_tokens + tokens > q->tokens_per_day);
}

/* ---- the program ---- */

struct request {
    struct limit_hold hold;
    int who[LIMIT_MAX_SUBJECTS];
    int n;
    int64_t slot, tokens_slot, tokens, day;
};

struct world {
    struct limits *l;
    struct twin twins[N_SUBJECTS];
    struct quota quotas[N_SUBJECTS];
    struct request running[MAX_RUNNING];
    int n_running;
    struct limit_time at;
    struct rng rng;
    int admitted, refused;
};

static const char *name_of(int i)
{
    static const char *const names[N_SUBJECTS] = {"a", "b", "c", "d", "e"};
    return names[i];
}

static bool ask(struct world *w, struct request *r, int64_t tokens)
{
    struct limit_ask q = {.hold = &r->hold, .at = w->at, .tokens = tokens, .done = answered};
    bool want = true;
    for (int i = 0; i < r->n; i++) {
        twin_day(&w->twins[r->who[i]], w->at.unix_s);
        want =
            want && twin_allows(&w->twins[r->who[i]], &w->quotas[r->who[i]], w->at.now_ms, tokens);
    }
    limits_take(w->l, &q);
    assert_int_equal(q.refused == LIMIT_NONE, want);
    if (!want && q.retry_ms > 0 && q.refused != LIMIT_DAY && q.refused != LIMIT_PLACES) {
        /* not a moment earlier, and then at once: this limit of this subject would let it in */
        const struct twin *t = &w->twins[r->who[q.subject]];
        struct quota one = w->quotas[r->who[q.subject]];
        one.concurrency = one.tokens_per_day = 0;
        assert_false(twin_allows(t, &one, w->at.now_ms + q.retry_ms - 1, tokens));
        if (tokens)
            one.requests_per_minute = 0;
        assert_true(twin_allows(t, &one, w->at.now_ms + q.retry_ms, tokens));
    }
    return want;
}

static void begin(struct world *w)
{
    static const struct quota none;
    if (w->n_running == MAX_RUNNING)
        return;
    struct request *r = &w->running[w->n_running];
    *r = (struct request){.slot = w->at.now_ms / LIMIT_SLOT_MS};
    for (int i = 0; i < N_SUBJECTS && r->n < LIMIT_MAX_SUBJECTS; i++)
        if (rng_below(&w->rng, 2) && memcmp(&w->quotas[i], &none, sizeof none)) {
            limits_add_subject(&r->hold, "key", name_of(i), &w->quotas[i]);
            r->who[r->n++] = i;
        }
    if (!ask(w, r, 0)) {
        w->refused++;
        return;
    }
    for (int i = 0; i < r->n; i++) {
        twin_add(&w->twins[r->who[i]], r->slot, 1, 0);
        w->twins[r->who[i]].running++;
    }
    w->admitted++;
    w->n_running++;
}

static void reserve(struct world *w)
{
    struct request *r = &w->running[rng_below(&w->rng, (uint64_t)w->n_running)];
    int64_t tokens = 1 + (int64_t)rng_below(&w->rng, 300);
    if (r->tokens || !ask(w, r, tokens))
        return;
    r->tokens = tokens;
    r->tokens_slot = w->at.now_ms / LIMIT_SLOT_MS;
    r->day = w->at.unix_s / 86400;
    for (int i = 0; i < r->n; i++) {
        twin_add(&w->twins[r->who[i]], r->tokens_slot, 0, tokens);
        w->twins[r->who[i]].day_tokens += tokens;
    }
}

static void end(struct world *w, bool drop)
{
    int at = (int)rng_below(&w->rng, (uint64_t)w->n_running);
    struct request *r = &w->running[at];
    int64_t used = drop ? 0 : (int64_t)rng_below(&w->rng, (uint64_t)r->tokens + 20);
    int64_t more = used - r->tokens;
    for (int i = 0; i < r->n; i++) {
        struct twin *t = &w->twins[r->who[i]];
        twin_day(t, w->at.unix_s);
        t->running--;
        if (drop)
            twin_add(t, r->slot, -1, 0);
        if (more)
            twin_add(t, more > 0 ? w->at.now_ms / LIMIT_SLOT_MS : r->tokens_slot, 0, more);
        if (!r->tokens || r->day == t->day)
            t->day_tokens += more;
    }
    if (drop)
        limits_drop(w->l, &r->hold, w->at);
    else
        limits_settle(w->l, &r->hold, used, w->at);
    assert_false(r->hold.counted);
    *r = w->running[--w->n_running];
}

static void test_twin(void **state)
{
    for (uint64_t seed = 1; seed <= 30; seed++) {
        struct world w = {.l = limits_new(), .at = {1000000, 1700000000}};
        rng_seed(&w.rng, seed);
        for (int i = 0; i < N_SUBJECTS; i++)
            w.quotas[i] =
                (struct quota){rng_below(&w.rng, 2) ? 5 + (int64_t)rng_below(&w.rng, 60) : 0,
                               rng_below(&w.rng, 2) ? 500 + (int64_t)rng_below(&w.rng, 9000) : 0,
                               rng_below(&w.rng, 2) ? 1 + (int64_t)rng_below(&w.rng, 20) : 0,
                               rng_below(&w.rng, 3) ? 0 : 100000};
        for (int step = 0; step < 4000; step++) {
            uint64_t what = rng_below(&w.rng, 100);
            if (what < 40)
                begin(&w);
            else if (what < 60 && w.n_running)
                reserve(&w);
            else if (what < 85 && w.n_running)
                end(&w, rng_below(&w.rng, 8) == 0);
            else if (what == 99 && rng_below(&w.rng, 20) == 0)
                limits_sweep(w.l, w.at);
            int64_t ms = (int64_t)rng_below(&w.rng, rng_below(&w.rng, 50) ? 400 : 100000);
            w.at.now_ms += ms;
            w.at.unix_s += ms / 100; /* days pass */
        }
        assert_true(w.admitted > 100);
        while (w.n_running)
            end(&w, false);
        limits_free(w.l);
        for (int i = 0; i < N_SUBJECTS; i++)
            free(w.twins[i].events);
    }
}

/* Fifty clients that never stop asking, for ten minutes: in each minute that slides over it the
 * limit holds, and from the first admission to the last the mean is within 1 % of it. */
static void test_pressure(void **state)
{
    enum { CLIENTS = 50, RPM = 600, STEP_MS = 7 };
    struct limits *l = limits_new();
    struct limit_time at = {5000, 1700000000};
    struct quota q = {.requests_per_minute = RPM};
    int64_t *times = xcalloc(RPM * 20, sizeof *times);
    size_t n = 0;
    for (; at.now_ms < 5000 + 10 * 60000 + 4000; at.now_ms += STEP_MS)
        for (int c = 0; c < CLIENTS; c++) {
            struct limit_hold h = {0};
            struct limit_ask ask = {.hold = &h, .at = at, .done = answered};
            limits_add_subject(&h, "key", "1", &q);
            limits_take(l, &ask);
            if (ask.refused)
                break;
            times[n++] = at.now_ms;
            limits_settle(l, &h, 0, at);
        }
    for (size_t i = RPM; i < n; i++)
        assert_true(times[i] - times[i - RPM] >= 60000);
    double expected = RPM * 11; /* the first burst, and ten refills */
    assert_true((double)n >= 0.99 * expected && (double)n <= expected);
    free(times);
    limits_free(l);
}

/* Streams that run for a while. Whoever is refused finds less left than it asks for, so nothing
 * lies idle but what running requests have reserved; and if they use all of that, what was used is
 * within 1 % of the limit. */
static void tokens_under_pressure(bool use_all)
{
    enum { CLIENTS = 50, TPM = 60000, RESERVE = 600 };
    struct limits *l = limits_new();
    struct limit_time at = {0, 1700000000};
    struct quota q = {.tokens_per_minute = TPM};
    struct limit_hold holds[CLIENTS] = {0};
    int64_t until[CLIENTS] = {0}, used[CLIENTS];
    double total = 0;
    struct rng rng;
    rng_seed(&rng, 3);
    for (; at.now_ms < 10 * 60000 + 40000; at.now_ms += 5)
        for (int c = 0; c < CLIENTS; c++) {
            if (holds[c].counted && at.now_ms >= until[c])
                limits_settle(l, &holds[c], used[c], at);
            if (holds[c].counted)
                continue;
            struct limit_ask ask = {.hold = &holds[c], .at = at, .done = answered};
            limits_add_subject(&holds[c], "key", "1", &q);
            limits_take(l, &ask);
            ask.tokens = RESERVE;
            limits_take(l, &ask);
            if (ask.refused) {
                assert_true(ask.tokens_room.remaining < RESERVE);
                limits_drop(l, &holds[c], at);
                continue;
            }
            used[c] = use_all ? RESERVE : 50 + (int64_t)rng_below(&rng, RESERVE - 50);
            until[c] = at.now_ms + 100 + (int64_t)rng_below(&rng, 3000);
            total += (double)used[c];
        }
    double expected = TPM * 11.0; /* the first burst, and ten refills */
    assert_true(total <= expected);
    if (use_all)
        assert_true(total >= 0.99 * expected);
    limits_free(l);
}

static void test_tokens_under_pressure(void **state)
{
    tokens_under_pressure(true);
    tokens_under_pressure(false);
}

static void test_restore(void **state)
{
    struct limits *l = limits_new();
    struct limit_time at = {100000, 1700000000};
    struct quota q = {.requests_per_minute = 5, .tokens_per_minute = 100, .tokens_per_day = 1000};
    limits_restore(l, "key:1", 70000, true, 3, 500, at); /* of the minute nothing, of the day all */
    limits_restore(l, "key:1", 30000, true, 4, 90, at);
    limits_restore(l, "key:1", 90000000, false, 9, 9999, at);
    struct limit_hold h = {0}, h2 = {0};
    limits_add_subject(&h, "key", "1", &q);
    limits_add_subject(&h2, "key", "1", &q);
    struct limit_ask ask = {.hold = &h, .at = at, .done = answered};
    limits_take(l, &ask);
    assert_int_equal(ask.refused, LIMIT_NONE);
    assert_int_equal(ask.requests.limit, 5);
    assert_int_equal(ask.requests.remaining, 0);
    assert_int_equal(ask.tokens_room.remaining, 10);
    ask.tokens = 11;
    limits_take(l, &ask);
    assert_int_equal(ask.refused, LIMIT_TOKENS);
    assert_true(ask.retry_ms > 29000 && ask.retry_ms <= 30250);
    ask.tokens = 101;
    limits_take(l, &ask);
    assert_int_equal(ask.retry_ms, -1);
    struct err e = {0};
    assert_string_equal(limits_explain(&ask, &e), "rate_limit_exceeded");
    assert_non_null(strstr(e.msg, "tokens per minute, limit 100, used 90, requested 101"));
    struct limit_ask second = {.hold = &h2, .at = at, .done = answered};
    limits_take(l, &second);
    assert_int_equal(second.refused, LIMIT_REQUESTS);
    limits_settle(l, &h, 410, at);
    at.now_ms += 120000;
    second.at = at;
    limits_take(l, &second);
    assert_int_equal(second.refused, LIMIT_DAY);
    assert_string_equal(limits_explain(&second, &e), "insufficient_quota");
    limits_free(l);
}

static void test_nobody(void **state)
{
    struct limits *l = limits_new();
    struct limit_hold h = {0};
    struct limit_ask ask = {.hold = &h, .done = answered};
    limits_add_subject(&h, "key", "1", &(struct quota){0});
    assert_int_equal(h.n_subjects, 0);
    limits_take(l, &ask);
    assert_int_equal(ask.refused, LIMIT_NONE);
    assert_int_equal(ask.requests.limit, 0);
    limits_settle(l, &h, 5, ask.at);
    limits_free(l);
}

static void test_durations(void **state)
{
    static const struct {
        int64_t ms;
        const char *want;
    } cases[] = {{0, "0ms"},         {20, "20ms"},    {1000, "1s"},        {1500, "1.5s"},
                 {59999, "59.999s"}, {60000, "1m0s"}, {3599999, "59m59s"}, {86400000, "24h0m0s"}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct buf b = {0};
        limits_write_duration(&b, cases[i].ms);
        assert_string_equal(b.data, cases[i].want);
        buf_release(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_twin),
        cmocka_unit_test(test_pressure),
        cmocka_unit_test(test_tokens_under_pressure),
        cmocka_unit_test(test_restore),
        cmocka_unit_test(test_nobody),
        cmocka_unit_test(test_durations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
