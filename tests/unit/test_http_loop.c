#include "unit.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/mem.h"
#include "http/loop.h"

/* ---- posts: each runs once, in the order of its thread ---- */

enum { PRODUCERS = 4, POSTS = 20000 };

struct producer {
    struct http_loop *loop;
    pthread_t thread;
    int next;  /* expected on the loop's thread */
    int *left; /* of all producers, the loop's thread only */
};

struct post {
    struct producer *from;
    int n;
};

static void run_post(void *arg)
{
    struct post *p = arg;
    assert_int_equal(p->n, p->from->next++);
    if (--*p->from->left == 0)
        http_loop_stop(p->from->loop);
    free(p);
}

static void *produce(void *arg)
{
    struct producer *me = arg;
    for (int i = 0; i < POSTS; i++) {
        struct post *p = xmalloc(sizeof *p);
        *p = (struct post){me, i};
        http_loop_post(me->loop, run_post, p);
    }
    return NULL;
}

static void test_posts(void **state)
{
    struct http_loop *l;
    struct producer producers[PRODUCERS];
    int left = PRODUCERS * POSTS;
    assert_int_equal(http_loop_new(&l, NULL), 0);
    for (int i = 0; i < PRODUCERS; i++) {
        producers[i] = (struct producer){.loop = l, .left = &left};
        assert_int_equal(pthread_create(&producers[i].thread, NULL, produce, &producers[i]), 0);
    }
    http_loop_run(l);
    for (int i = 0; i < PRODUCERS; i++)
        pthread_join(producers[i].thread, NULL);
    assert_int_equal(left, 0);
    http_loop_free(l);
}

/* ---- posts before the run, from a post, and after the run ---- */

struct chain {
    struct http_loop *loop;
    int runs, left;
};

static void run_chain(void *arg)
{
    struct chain *c = arg;
    c->runs++;
    if (--c->left > 0)
        http_loop_post(c->loop, run_chain, c);
    else if (c->left == 0)
        http_loop_stop(c->loop);
}

static void test_chain(void **state)
{
    struct chain c = {.left = 1000};
    assert_int_equal(http_loop_new(&c.loop, NULL), 0);
    http_loop_post(c.loop, run_chain, &c);
    http_loop_run(c.loop);
    assert_int_equal(c.runs, 1000);
    http_loop_stop(c.loop); /* before the run: it returns at once, and works again after */
    http_loop_run(c.loop);
    c.left = 5;
    http_loop_post(c.loop, run_chain, &c);
    http_loop_free(c.loop); /* runs what is left, and what that posts */
    assert_int_equal(c.runs, 1005);
}

/* ---- timers ---- */

struct ticks {
    struct http_loop *loop;
    struct http_timer *timer, *never;
    int n;
    int64_t start_ms, at_ms[4];
};

static void tick(void *arg)
{
    struct ticks *t = arg;
    t->at_ms[t->n++] = http_loop_now_ms(t->loop) - t->start_ms;
    if (t->n == 3) {
        http_timer_start(t->timer, 20, 0);
    } else if (t->n == 4) {
        http_timer_free(t->timer);
        http_loop_stop(t->loop);
    }
}

static void test_timers(void **state)
{
    struct ticks t = {0};
    assert_int_equal(http_loop_new(&t.loop, NULL), 0);
    t.timer = http_timer_new(t.loop, tick, &t);
    t.never = http_timer_new(t.loop, tick, &t);
    t.start_ms = http_loop_now_ms(t.loop);
    http_timer_start(t.timer, 5, 3);
    http_timer_start(t.never, 6, 0);
    http_timer_stop(t.never);
    http_loop_run(t.loop);
    http_timer_free(t.never);
    http_timer_free(NULL);
    http_loop_free(t.loop);
    assert_int_equal(t.n, 4);
    assert_true(t.at_ms[0] >= 5 && t.at_ms[1] >= 8 && t.at_ms[2] >= 11);
    assert_true(t.at_ms[3] >= t.at_ms[2] + 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_posts),
        cmocka_unit_test(test_chain),
        cmocka_unit_test(test_timers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
