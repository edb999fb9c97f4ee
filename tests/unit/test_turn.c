#include "unit.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "base/mem.h"
#include "base/pool.h"
#include "base/rng.h"
#include "base/turn.h"

/* ---- whose turn it is, in a time of its own ---- */

#define MS INT64_C(1000000)

enum { USERS_MAX = 4 };

/* One who computes for `length`, pauses for `pause`, and comes back until `until`. */
struct actor {
    struct turn_user u;
    int64_t length, pause, until;
    int64_t ready; /* when it asks next */
    bool asks;
    int64_t asked, had, longest_wait;
    int n_turns;
};

struct play {
    struct turns t;
    struct actor actors[USERS_MAX];
    int n;
    int64_t now, idle;
};

static void ask_all(struct play *p)
{
    for (int i = 0; i < p->n; i++) {
        struct actor *a = &p->actors[i];
        if (a->asks || a->ready > p->now || p->now >= a->until)
            continue;
        turn_ask(&p->t, &a->u);
        a->asks = true;
        a->asked = p->now;
    }
}

static int64_t next_ready(const struct play *p)
{
    int64_t next = INT64_MAX;
    for (int i = 0; i < p->n; i++)
        if (!p->actors[i].asks && p->actors[i].ready < p->actors[i].until &&
            p->actors[i].ready < next)
            next = p->actors[i].ready;
    return next;
}

static void have_turn(struct play *p, struct actor *a)
{
    int64_t wait = p->now - a->asked;
    a->longest_wait = wait > a->longest_wait ? wait : a->longest_wait;
    turn_begin(&p->t, &a->u, p->now);
    for (int64_t end = p->now + a->length, at; p->now < end;) { /* others ask meanwhile */
        at = next_ready(p);
        p->now = at < end ? at : end;
        ask_all(p);
    }
    turn_end(&p->t, p->now);
    a->had += a->length;
    a->n_turns++;
    a->asks = false;
    a->ready = p->now + a->pause;
}

static void play(struct play *p, int64_t end)
{
    while (p->now < end) {
        int64_t until;
        ask_all(p);
        struct actor *a = (struct actor *)turn_next(&p->t, p->now, &until);
        if (a) {
            have_turn(p, a);
            continue;
        }
        int64_t next = next_ready(p);
        next = next < until ? next : until;
        next = next < end ? next : end;
        assert_true(next > p->now);
        p->idle += next - p->now;
        p->now = next;
    }
}

static void open_play(struct play *p, int n, const int64_t *lengths, int64_t pause)
{
    *p = (struct play){.n = n};
    for (int i = 0; i < n; i++)
        p->actors[i] = (struct actor){.length = lengths[i], .pause = pause, .until = INT64_MAX};
}

static void test_one_alone(void **state)
{
    struct play p;
    open_play(&p, 1, (int64_t[]){10 * MS}, 0);
    play(&p, 1000 * MS);
    assert_int_equal(p.actors[0].n_turns, 100);
    assert_int_equal(p.idle, 0);
}

static void test_equals_alternate(void **state)
{
    struct play p;
    open_play(&p, 2, (int64_t[]){10 * MS, 10 * MS}, MS / 2);
    play(&p, 10000 * MS);
    assert_int_equal(p.actors[0].n_turns, 500);
    assert_int_equal(p.actors[1].n_turns, 500);
    assert_in_range(p.actors[0].longest_wait, 0, 10 * MS);
    assert_in_range(p.actors[1].longest_wait, 0, 10 * MS);
    assert_int_equal(p.idle, 0);
}

/* Equal time, whatever the lengths; nobody waits for more than one long turn and what the others
 * may have before their next. */
static void test_equal_time(void **state)
{
    static const int64_t lengths[][3] = {{100 * MS, 10 * MS}, {100 * MS, 30 * MS, 4 * MS}};
    for (int n = 2; n <= 3; n++) {
        struct play p;
        open_play(&p, n, lengths[n - 2], MS / 2);
        play(&p, 60000 * MS);
        for (int i = 0; i < n; i++) {
            assert_in_range(p.actors[i].had, p.now / n * 90 / 100, p.now / n * 110 / 100);
            int64_t most = 100 * MS * (n - 1) + (i ? 0 : 100 * MS);
            assert_in_range(p.actors[i].longest_wait, 0, most + 20 * MS);
        }
        assert_in_range(p.idle, 0, p.now / 10); /* the pauses of the short ones */
    }
}

/* Who was away has nothing saved up: after its return it gets half, not all. */
static void test_pauses_save_nothing(void **state)
{
    struct play p;
    open_play(&p, 2, (int64_t[]){10 * MS, 10 * MS}, 0);
    p.actors[1].ready = 5000 * MS;
    play(&p, 5000 * MS);
    assert_int_equal(p.actors[0].n_turns, 500);
    assert_int_equal(p.idle, 0);
    play(&p, 6000 * MS);
    assert_int_equal(p.actors[0].n_turns, 550);
    assert_int_equal(p.actors[1].n_turns, 50);
}

/* One that may come back is waited for, but not for long, and not again and again. */
static void test_patience_ends(void **state)
{
    struct play p;
    open_play(&p, 2, (int64_t[]){100 * MS, 10 * MS}, 0);
    p.actors[1].until = 250 * MS;
    play(&p, 5000 * MS);
    assert_in_range(p.idle, 1, TURN_PATIENCE_NS);
    open_play(&p, 2, (int64_t[]){100 * MS, 10 * MS}, 0);
    p.actors[1].pause = 6 * MS; /* comes back too late each time */
    play(&p, 10600 * MS);
    assert_in_range(p.actors[0].n_turns, 90, 100);
    assert_in_range(p.idle, 0, p.now / 20);
}

/* Any lengths and pauses: somebody always goes on, and who always wants its turn gets its share of
 * the time. */
static void test_random(void **state)
{
    struct rng rng;
    rng_seed(&rng, 3);
    for (int round = 0; round < 300; round++) {
        struct play p;
        int64_t lengths[USERS_MAX], longest = 0;
        int n = 2 + (int)rng_below(&rng, USERS_MAX - 1);
        for (int i = 0; i < n; i++) {
            lengths[i] = MS + (int64_t)rng_below(&rng, 200 * MS);
            longest = lengths[i] > longest ? lengths[i] : longest;
        }
        open_play(&p, n, lengths, 0);
        for (int i = 1; i < n; i++)
            p.actors[i].pause = (int64_t)rng_below(&rng, 50 * MS);
        play(&p, 20000 * MS);
        assert_true(p.actors[0].had + 2 * longest * n >= p.now / n);
        for (int i = 0; i < n; i++)
            assert_in_range(p.actors[i].longest_wait, 0, 2 * longest * n);
        assert_in_range(p.idle, 0, p.now / 3);
    }
}

/* ---- the lock ---- */

enum { THREADS = 4, TURNS = 400 };

struct sharing {
    struct pool *pool;
    int holders, jobs; /* only changed by who has the turn */
};

static void count_job(void *arg, int ith, int nth)
{
    struct sharing *s = arg;
    if (ith == 0)
        s->jobs++;
    pool_barrier(s->pool, ith);
}

static void *take_turns(void *arg)
{
    struct sharing *s = arg;
    struct turn_user u = {0};
    for (int i = 0; i < TURNS; i++) {
        pool_enter(s->pool, &u);
        assert_int_equal(++s->holders, 1);
        pool_run(s->pool, count_job, s);
        s->holders--;
        if (pool_wanted(s->pool))
            pool_yield(s->pool);
        assert_int_equal(++s->holders, 1);
        pool_run(s->pool, count_job, s);
        s->holders--;
        pool_leave(s->pool);
    }
    return NULL;
}

static void test_threads(void **state)
{
    for (int64_t slice = 0; slice <= POOL_SLICE_NS; slice += POOL_SLICE_NS) {
        struct sharing s = {0};
        pthread_t threads[THREADS];
        assert_int_equal(pool_new(&s.pool, 2, NULL), 0);
        pool_set_slice(s.pool, slice);
        for (int i = 0; i < THREADS; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, take_turns, &s), 0);
        for (int i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
        assert_int_equal(s.jobs, 2 * THREADS * TURNS);
        assert_false(pool_wanted(s.pool));
        pool_yield(s.pool); /* of nobody's turn: nothing */
        pool_free(s.pool);
    }
}

static void *have_a_turn(void *arg)
{
    struct sharing *s = arg;
    struct turn_user u = {0};
    pool_enter(s->pool, &u);
    s->jobs++;
    pool_leave(s->pool);
    return NULL;
}

/* A turn that has been long enough is given up to one who has used less; the time is counted. */
static void test_yield(void **state)
{
    struct sharing s = {0};
    struct turn_user u = {0};
    pthread_t other;
    assert_int_equal(pool_new(&s.pool, 1, NULL), 0);
    pool_enter(s.pool, &u);
    assert_false(pool_wanted(s.pool));
    assert_int_equal(pthread_create(&other, NULL, have_a_turn, &s), 0);
    while (!pool_wanted(s.pool))
        sched_yield();
    assert_int_equal(s.jobs, 0);
    assert_int_equal(u.away_ns, 0);
    pool_yield(s.pool);
    assert_int_equal(s.jobs, 1);
    assert_true(u.away_ns > 0 && u.used_ns >= POOL_SLICE_NS);
    pool_leave(s.pool);
    pthread_join(other, NULL);
    pool_free(s.pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_alone),  cmocka_unit_test(test_equals_alternate),
        cmocka_unit_test(test_equal_time), cmocka_unit_test(test_pauses_save_nothing),
        cmocka_unit_test(test_random),     cmocka_unit_test(test_patience_ends),
        cmocka_unit_test(test_threads),    cmocka_unit_test(test_yield),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
