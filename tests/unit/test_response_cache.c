/* The response cache on plain events, without an engine or a server. */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "gateway/answer_marks.h"
#include "gateway/answer_whole.h"
#include "gateway/response_cache.h"
#include "gateway/response_record.h"

enum { CHOICES = 2 };

/* A client: the answer as far as it has come, and what the cache asked of it. */
struct client {
    struct response_reader reader; /* first */
    struct buf text[CHOICES];
    int n_ids[CHOICES];
    enum finish_reason finish[CHOICES];
    int reruns, stops;
    bool held;
    int pause_after; /* events, 0: never */
    int n_events;
    struct rig *rig;
};

struct rig {
    struct response_cache *cache;
    int64_t now_ms;
    struct response_terms terms; /* of a rerun */
};

static int64_t now(void *arg)
{
    return ((struct rig *)arg)->now_ms;
}

static void take(struct response_reader *r, int choice, const struct engine_event *ev)
{
    struct client *c = (struct client *)r;
    buf_add(&c->text[choice], ev->text, ev->n_text);
    for (int i = 0; i < ev->n_ids; i++)
        assert_int_equal(ev->ids[i], 100 * choice + c->n_ids[choice]++);
    c->finish[choice] = ev->finish;
    if (++c->n_events == c->pause_after)
        response_pause(r, true);
}

static void rerun(struct response_reader *r)
{
    struct client *c = (struct client *)r;
    c->reruns++;
    response_open(c->rig->cache, r, &c->rig->terms);
    response_pump(r);
}

static void hold(struct response_reader *r, bool on)
{
    ((struct client *)r)->held = on;
}

static void stop(struct response_reader *r)
{
    ((struct client *)r)->stops++;
}

static void rig_open(struct rig *r, size_t budget)
{
    *r = (struct rig){.now_ms = 1000};
    struct response_cache_opts o = {
        .budget_bytes = budget, .ttl_ms = 60000, .now_ms = now, .now_arg = r};
    r->cache = response_cache_new(&o);
}

static void client_release(struct client *c)
{
    for (int i = 0; i < CHOICES; i++)
        buf_release(&c->text[i]);
    response_reader_release(&c->reader);
}

static struct response_terms terms_of(const char *name)
{
    struct response_terms t = {
        .tenant = "t", .model = "m", .n_choices = CHOICES, .repeatable = true};
    struct response_hash h = {0};
    response_hash_begin(&h);
    response_hash_str(&h, str_of(name));
    t.key = response_hash_end(&h);
    response_hash_release(&h);
    return t;
}

static enum response_found open_with(struct rig *r, struct client *c,
                                     const struct response_terms *t)
{
    *c = (struct client){.reader = {.take = take, .rerun = rerun, .hold = hold, .stop = stop},
                         .rig = r};
    enum response_found found = response_open(r->cache, &c->reader, t);
    response_pump(&c->reader);
    return found;
}

static enum response_found open_client(struct rig *r, struct client *c, const char *name)
{
    struct response_terms t = terms_of(name);
    return open_with(r, c, &t);
}

/* `n` tokens from number `from` on of choice k: token i reads "<k>i " */
static void add(struct client *leader, int choice, int from, int n, enum finish_reason finish)
{
    struct buf text = {0};
    int32_t ids[16];
    struct token_logprob logprobs[16];
    for (int i = 0; i < n; i++) {
        ids[i] = 100 * choice + from + i;
        logprobs[i] = (struct token_logprob){ids[i], -1};
        buf_addf(&text, "%d.%d ", choice, from + i);
    }
    struct engine_event ev = {.text = text.data ? text.data : (char[]){""},
                              .n_text = text.len,
                              .ids = ids,
                              .n_ids = n,
                              .logprobs = logprobs,
                              .finish = finish,
                              .stop_id = -1,
                              .usage = {.prompt_tokens = 7, .completion_tokens = from + n}};
    response_add(&leader->reader, choice, &ev);
    buf_release(&text);
}

/* 4 tokens each, choices in turn, pieces of `step` */
static void run_all(struct client *leader, int step)
{
    for (int at = 0; at < 4; at += step)
        for (int k = 0; k < CHOICES; k++)
            add(leader, k, at, step, at + step == 4 ? FINISH_STOP : FINISH_NONE);
    response_unlead(&leader->reader);
}

static void expect_whole(struct client *c)
{
    assert_string_equal(buf_str(&c->text[0]), "0.0 0.1 0.2 0.3 ");
    assert_string_equal(buf_str(&c->text[1]), "1.0 1.1 1.2 1.3 ");
    assert_int_equal(c->n_ids[0], 4);
    assert_int_equal(c->n_ids[1], 4);
    assert_int_equal(c->finish[0], FINISH_STOP);
    assert_int_equal(c->finish[1], FINISH_STOP);
}

/* One answer goes into the cache. */
static void store(struct rig *r, const char *name)
{
    struct client c;
    assert_int_equal(open_client(r, &c, name), RESPONSE_LEAD);
    run_all(&c, 1);
    expect_whole(&c);
    client_release(&c);
}

static void expect_found(struct rig *r, const char *name, enum response_found want)
{
    struct client c;
    enum response_found found = open_client(r, &c, name);
    assert_int_equal(found, want);
    if (found == RESPONSE_HIT)
        expect_whole(&c);
    if (found == RESPONSE_LEAD)
        response_unlead(&c.reader);
    client_release(&c);
}

/* ---- tests ---- */

static void test_record(void **state)
{
    struct response_record r = {0};
    int32_t ids[] = {1, 2, 3};
    struct token_logprob l[] = {{1, -1}, {9, -2}, {2, -3}, {8, -4}, {3, -5}, {7, -6}};
    struct engine_event in[] = {
        {.text = (char[]){"abc"}, .n_text = 3, .ids = ids, .n_ids = 3, .stop_id = -1},
        {.text = (char[]){""}, .ids = ids, .n_ids = 1, .stop_id = -1},
        {.text = (char[]){"x"},
         .n_text = 1,
         .ids = ids,
         .n_ids = 3,
         .logprobs = l,
         .n_logprobs = 1,
         .stop_id = -1},
        {.text = (char[]){"tail"},
         .n_text = 4,
         .finish = FINISH_LENGTH,
         .stop_id = 5,
         .stop_text = (char[]){"END"},
         .usage = {.prompt_tokens = 3, .decode_ms = 1LL << 40}},
    };
    for (size_t i = 0; i < ARRAY_LEN(in); i++)
        response_record_add(&r, (int)i, &in[i]);
    response_record_trim(&r);
    size_t at = 0;
    for (size_t i = 0; i < ARRAY_LEN(in); i++) {
        struct engine_event ev;
        int choice;
        at = response_record_read(&r, at, &choice, &ev);
        assert_true(at > 0);
        assert_int_equal(choice, i);
        assert_string_equal(ev.text, in[i].text);
        assert_int_equal(ev.n_text, in[i].n_text);
        assert_int_equal(ev.n_ids, in[i].n_ids);
        assert_memory_equal(ev.ids, ids, (size_t)in[i].n_ids * sizeof *ids);
        assert_int_equal(ev.finish, in[i].finish);
        assert_int_equal(ev.stop_id, in[i].stop_id);
        assert_int_equal(ev.usage.decode_ms, in[i].usage.decode_ms);
        assert_int_equal(ev.logprobs != NULL, in[i].logprobs != NULL);
        if (ev.logprobs)
            assert_memory_equal(ev.logprobs, l, sizeof l);
        assert_string_equal(ev.stop_text ? ev.stop_text : "", i == 3 ? "END" : "");
    }
    struct engine_event ev;
    int choice;
    assert_int_equal(response_record_read(&r, at, &choice, &ev), 0);
    response_record_release(&r);
}

static void test_hit(void **state)
{
    struct rig r;
    rig_open(&r, 1 << 20);
    store(&r, "a");
    expect_found(&r, "a", RESPONSE_HIT);
    expect_found(&r, "a", RESPONSE_HIT);
    expect_found(&r, "b", RESPONSE_LEAD);
    struct response_stats s = response_stats(r.cache);
    assert_int_equal(s.hits, 2);
    assert_int_equal(s.misses, 2);
    assert_int_equal(s.entries, 1);
    assert_int_equal(s.in_flight, 0);
    response_cache_free(r.cache);
}

static void test_coalesced(void **state)
{
    struct rig r;
    struct client lead, early, late, slow;
    rig_open(&r, 1 << 20);
    assert_int_equal(open_client(&r, &lead, "a"), RESPONSE_LEAD);
    assert_int_equal(open_client(&r, &early, "a"), RESPONSE_COALESCED);
    assert_int_equal(open_client(&r, &slow, "a"), RESPONSE_COALESCED);
    slow.pause_after = 1;
    add(&lead, 0, 0, 2, FINISH_NONE);
    assert_int_equal(open_client(&r, &late, "a"), RESPONSE_COALESCED);
    assert_string_equal(buf_str(&late.text[0]), "0.0 0.1 ");
    add(&lead, 1, 0, 2, FINISH_NONE);
    add(&lead, 1, 2, 2, FINISH_STOP);
    add(&lead, 0, 2, 2, FINISH_STOP);
    response_unlead(&lead.reader);
    expect_whole(&lead);
    expect_whole(&early);
    expect_whole(&late);
    assert_int_equal(slow.n_events, 1);
    assert_false(lead.held);
    assert_int_equal(response_drop(r.cache, NULL, NULL, NULL), 1);
    response_pause(&slow.reader, false); /* its entry is out of the cache and still whole */
    expect_whole(&slow);
    client_release(&lead);
    client_release(&early);
    client_release(&late);
    client_release(&slow);
    assert_int_equal(response_stats(r.cache).coalesced, 3);
    response_cache_free(r.cache);
}

static void test_leader_leaves(void **state)
{
    struct rig r;
    struct client lead, follower;
    rig_open(&r, 1 << 20);
    open_client(&r, &lead, "a");
    open_client(&r, &follower, "a");
    add(&lead, 0, 0, 1, FINISH_NONE);
    response_close(&lead.reader);
    assert_int_equal(lead.stops, 0);
    add(&lead, 0, 1, 3, FINISH_STOP);
    add(&lead, 1, 0, 4, FINISH_STOP);
    response_unlead(&lead.reader);
    expect_whole(&follower);
    client_release(&lead);
    client_release(&follower);
    expect_found(&r, "a", RESPONSE_HIT);

    open_client(&r, &lead, "b"); /* the last one stops the run, and nothing is kept */
    open_client(&r, &follower, "b");
    add(&lead, 0, 0, 1, FINISH_NONE);
    response_close(&lead.reader);
    response_close(&follower.reader);
    assert_int_equal(lead.stops, 1);
    add(&lead, 0, 1, 1, FINISH_CANCEL);
    response_unlead(&lead.reader);
    client_release(&lead);
    client_release(&follower);
    expect_found(&r, "b", RESPONSE_LEAD);
    assert_int_equal(response_stats(r.cache).entries, 1);
    response_cache_free(r.cache);
}

static void test_leader_never_begins(void **state)
{
    struct rig r;
    struct client lead, a, b;
    rig_open(&r, 1 << 20);
    r.terms = terms_of("a");
    open_client(&r, &lead, "a");
    open_client(&r, &a, "a");
    open_client(&r, &b, "a");
    response_close(&lead.reader); /* others still wait for it */
    response_unlead(&lead.reader);
    assert_int_equal(a.reruns, 1);
    assert_int_equal(b.reruns, 1);
    assert_non_null(a.reader.made);
    assert_null(b.reader.made);
    run_all(&a, 2);
    expect_whole(&a);
    expect_whole(&b);
    client_release(&lead);
    client_release(&a);
    client_release(&b);
    response_cache_free(r.cache);
}

/* The second run cuts its events elsewhere: who has seen a part gets the rest, no more, no less. */
static void test_leader_fails(void **state)
{
    struct rig r;
    struct client lead, a, b;
    for (int step = 1; step <= 4; step *= 2)
        for (int failures = 1; failures <= 2; failures++) {
            rig_open(&r, 1 << 20);
            r.terms = terms_of("a");
            open_client(&r, &lead, "a");
            open_client(&r, &a, "a");
            add(&lead, 0, 0, 3, FINISH_NONE);
            add(&lead, 1, 0, 1, FINISH_NONE);
            open_client(&r, &b, "a");
            add(&lead, 0, 3, 0, FINISH_ERROR);
            response_unlead(&lead.reader);
            assert_int_equal(lead.finish[0], FINISH_ERROR);
            assert_int_equal(a.reruns, 1);
            assert_non_null(a.reader.made);
            if (failures == 1) {
                run_all(&a, step);
                expect_whole(&a);
                expect_whole(&b);
            } else {
                add(&a, 0, 0, 0, FINISH_ERROR);
                response_unlead(&a.reader);
                assert_int_equal(a.finish[0], FINISH_ERROR);
                assert_int_equal(b.finish[0], FINISH_ERROR);
            }
            client_release(&lead);
            client_release(&a);
            client_release(&b);
            expect_found(&r, "a", failures == 1 ? RESPONSE_HIT : RESPONSE_LEAD);
            response_cache_free(r.cache);
        }
}

static void test_unrepeatable(void **state)
{
    struct rig r;
    struct client lead, seen, unseen;
    rig_open(&r, 1 << 20);
    r.terms = terms_of("a");
    r.terms.repeatable = false;
    open_with(&r, &lead, &r.terms);
    open_with(&r, &unseen, &r.terms);
    response_pause(&unseen.reader, true);
    open_with(&r, &seen, &r.terms);
    add(&lead, 0, 0, 1, FINISH_NONE);
    add(&lead, 0, 1, 0, FINISH_ERROR);
    response_unlead(&lead.reader);
    assert_int_equal(seen.finish[0], FINISH_ERROR);
    assert_int_equal(seen.reruns, 0);
    assert_int_equal(unseen.reruns, 1);
    response_pause(&unseen.reader, false);
    run_all(&unseen, 1);
    expect_whole(&unseen);
    client_release(&lead);
    client_release(&seen);
    client_release(&unseen);
    response_cache_free(r.cache);
}

static void test_hold(void **state)
{
    struct rig r;
    struct client lead, a;
    rig_open(&r, 1 << 20);
    open_client(&r, &lead, "a");
    response_pause(&lead.reader, true);
    assert_true(lead.held);
    open_client(&r, &a, "a"); /* it reads */
    assert_false(lead.held);
    response_pause(&a.reader, true);
    assert_true(lead.held);
    response_pause(&lead.reader, false);
    assert_false(lead.held);
    response_close(&lead.reader); /* only the slow one is left */
    assert_true(lead.held);
    response_pause(&a.reader, false);
    assert_false(lead.held);
    run_all(&lead, 1);
    expect_whole(&a);
    client_release(&lead);
    client_release(&a);
    response_cache_free(r.cache);
}

static void test_age(void **state)
{
    struct rig r;
    struct client c;
    rig_open(&r, 1 << 20);
    store(&r, "a");
    r.now_ms += 59999;
    expect_found(&r, "a", RESPONSE_HIT);
    struct response_terms t = terms_of("a");
    t.max_age_ms = 59998;
    assert_int_equal(open_with(&r, &c, &t), RESPONSE_LEAD); /* made anew beside the old one */
    run_all(&c, 1);
    client_release(&c);
    r.now_ms += 59999; /* which it has replaced */
    expect_found(&r, "a", RESPONSE_HIT);
    assert_int_equal(response_stats(r.cache).entries, 1);
    r.now_ms += 1;
    expect_found(&r, "a", RESPONSE_LEAD);

    t = terms_of("b");
    t.ttl_ms = 5;
    open_with(&r, &c, &t);
    run_all(&c, 1);
    client_release(&c);
    r.now_ms += 5;
    assert_int_equal(response_stats(r.cache).entries, 1);
    response_sweep(r.cache);
    struct response_stats s = response_stats(r.cache);
    assert_int_equal(s.entries, 0);
    assert_int_equal(s.bytes, 0);
    assert_int_equal(s.expired, 2);
    response_cache_free(r.cache);
}

static void test_controls(void **state)
{
    struct rig r;
    struct client lead, fresh, c;
    rig_open(&r, 1 << 20);
    struct response_terms t = terms_of("a");
    t.no_store = true;
    assert_int_equal(open_with(&r, &c, &t), RESPONSE_NONE);
    client_release(&c);
    assert_int_equal(open_client(&r, &lead, "a"), RESPONSE_LEAD);
    assert_int_equal(open_with(&r, &c, &t), RESPONSE_COALESCED); /* others' answers will do */
    t = terms_of("a");
    t.fresh = true;
    assert_int_equal(open_with(&r, &fresh, &t), RESPONSE_LEAD);
    run_all(&fresh, 1); /* is over first, and does not disturb those who follow the other run */
    expect_whole(&fresh);
    run_all(&lead, 1);
    expect_whole(&c);
    client_release(&lead);
    client_release(&fresh);
    client_release(&c);
    assert_int_equal(response_stats(r.cache).entries, 1);
    response_cache_free(r.cache);
}

static void test_eviction(void **state)
{
    struct rig r;
    char name[8];
    rig_open(&r, 16 << 10);
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "%d", i);
        store(&r, name);
        assert_true(response_stats(r.cache).bytes <= 16 << 10);
        if (i)
            expect_found(&r, "0", RESPONSE_HIT); /* in use, so it stays */
    }
    struct response_stats s = response_stats(r.cache);
    assert_int_equal(s.evictions + s.entries, 100);
    assert_true(s.entries > 5);
    expect_found(&r, "99", RESPONSE_HIT);
    expect_found(&r, "1", RESPONSE_LEAD);
    response_cache_free(r.cache);
}

/* Its one reader has all of it, although the record was given up on the way. */
static void test_too_large(void **state)
{
    struct rig r;
    struct client c;
    for (int readers = 1; readers <= 2; readers++) {
        struct client other;
        rig_open(&r, 8 << 10);
        open_client(&r, &c, "a");
        if (readers == 2)
            open_client(&r, &other, "a");
        for (int i = 0; i < 90; i++)
            add(&c, 0, i, 1, FINISH_NONE);
        add(&c, 0, 90, 1, FINISH_LENGTH);
        add(&c, 1, 0, 1, FINISH_LENGTH);
        response_unlead(&c.reader);
        assert_int_equal(c.n_ids[0], 91);
        assert_int_equal(c.finish[0], FINISH_LENGTH);
        assert_int_equal(c.finish[1], FINISH_LENGTH);
        if (readers == 2) {
            assert_string_equal(buf_str(&c.text[0]), buf_str(&other.text[0]));
            client_release(&other);
        }
        client_release(&c);
        expect_found(&r, "a", RESPONSE_LEAD);
        assert_int_equal(response_stats(r.cache).too_large, 1);
        assert_int_equal(response_stats(r.cache).bytes, 0);
        response_cache_free(r.cache);
    }
}

/* Of an answer that is too large to keep, only what a slow reader has yet to read takes memory, and
 * that is bounded. */
static void test_far_behind(void **state)
{
    enum { BUDGET = 64 << 10, EVENT_BYTES = 32 }; /* and more */
    struct rig r;
    struct client lead, slow;
    int n = 0;
    rig_open(&r, BUDGET);
    open_client(&r, &lead, "a");
    open_client(&r, &slow, "a");
    for (int round = 0; round < 20; round++) {
        slow.pause_after = slow.n_events + 10;
        int from = n;
        while (!lead.held) {
            add(&lead, 0, n++, 1, FINISH_NONE);
            assert_true(n - from < BUDGET / 4 / EVENT_BYTES);
        }
        assert_int_equal(lead.n_ids[0], n); /* the other one never waits */
        assert_int_equal(slow.n_ids[0], from + 10);
        slow.pause_after = 0;
        response_pause(&slow.reader, false);
        assert_int_equal(slow.n_ids[0], n);
        assert_false(lead.held);
    }
    add(&lead, 0, n, 1, FINISH_STOP);
    add(&lead, 1, 0, 1, FINISH_STOP);
    response_unlead(&lead.reader);
    assert_string_equal(buf_str(&lead.text[0]), buf_str(&slow.text[0]));
    assert_int_equal(slow.finish[1], FINISH_STOP);
    client_release(&lead);
    client_release(&slow);
    expect_found(&r, "a", RESPONSE_LEAD);
    response_cache_free(r.cache);
}

static void test_drop(void **state)
{
    static const struct {
        const char *name, *tenant, *model, *adapters;
    } rows[] = {{"0", "t1", "m1", ""},
                {"1", "t1", "m2", "pirate\n"},
                {"2", "t2", "m1", "pirate\nking\n"},
                {"3", "t2", "m2", "pirateking\n"}};
    static const struct {
        const char *tenant, *model, *adapter, *left;
    } cases[] = {{NULL, NULL, NULL, ""},      {"t1", NULL, NULL, "23"},
                 {NULL, "m2", NULL, "02"},    {NULL, NULL, "pirate", "03"},
                 {NULL, NULL, "king", "013"}, {"t2", "m2", NULL, "012"},
                 {"t3", NULL, NULL, "0123"},  {NULL, NULL, "", "0123"}};
    for (size_t k = 0; k < ARRAY_LEN(cases); k++) {
        struct rig r;
        struct client c, running;
        rig_open(&r, 1 << 20);
        for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
            struct response_terms t = terms_of(rows[i].name);
            t.tenant = rows[i].tenant;
            t.model = rows[i].model;
            t.adapters = rows[i].adapters;
            open_with(&r, &c, &t);
            run_all(&c, 1);
            client_release(&c);
        }
        struct response_terms t = terms_of("running");
        t.tenant = "t1";
        open_with(&r, &running, &t);
        size_t left = strlen(cases[k].left);
        assert_int_equal(response_drop(r.cache, cases[k].tenant, cases[k].model, cases[k].adapter),
                         4 - left);
        run_all(&running, 1);
        expect_whole(&running);
        client_release(&running);
        for (size_t i = 0; i < left; i++)
            expect_found(&r, (char[]){cases[k].left[i], 0}, RESPONSE_HIT);
        bool hit_by_drop = k == 0 || k == 1;
        assert_int_equal(response_stats(r.cache).entries, left + !hit_by_drop);
        response_cache_free(r.cache);
    }
}

static struct response_rendered rendered(const char *body)
{
    return (struct response_rendered){.body = xstrdup(body),
                                      .n_body = strlen(body),
                                      .route = xstrdup(""),
                                      .backend = xstrdup("")};
}

static void test_rendered(void **state)
{
    struct rig r;
    struct client c;
    struct response_key q = terms_of("bytes").key;
    rig_open(&r, 1 << 20);
    store(&r, "a");
    open_client(&r, &c, "a");
    size_t before = response_stats(r.cache).bytes;
    assert_null(response_rendered_find(r.cache, &q));
    struct response_rendered v = rendered("one");
    response_rendered_add(r.cache, &c.reader, &q, &v);
    assert_null(v.body);
    assert_true(response_stats(r.cache).bytes > before);
    struct response_rendered *found = response_rendered_find(r.cache, &q);
    assert_non_null(found);
    assert_string_equal(found->body, "one");

    response_rendered_forget(r.cache);
    assert_null(response_rendered_find(r.cache, &q));
    v = rendered("two");
    response_rendered_add(r.cache, &c.reader, &q, &v);
    assert_string_equal(response_rendered_find(r.cache, &q)->body, "two");
    assert_int_equal(response_stats(r.cache).rendered, 1);

    r.now_ms += 60000; /* too old, like what it was made of */
    assert_null(response_rendered_find(r.cache, &q));
    response_sweep(r.cache);
    v = rendered("three");
    response_rendered_add(r.cache, &c.reader, &q, &v); /* too late */
    assert_null(response_rendered_find(r.cache, &q));
    client_release(&c);
    assert_int_equal(response_stats(r.cache).rendered, 0);
    assert_int_equal(response_stats(r.cache).bytes, 0);
    response_cache_free(r.cache);
}

static void test_key(void **state)
{
    int32_t prompt[] = {1, 2, 3}, stop_ids[] = {4};
    const char *stops[] = {"ab", "c"}, *other_stops[] = {"a", "bc"};
    struct logit_bias bias[] = {{1, 2}};
    struct engine_request base = {
        .prompt = prompt, .n_prompt = 3, .max_tokens = 5, .stop = stops, .n_stop = 2};
    sampling_default(&base.sampling);
    struct engine_request v[16];
    int n = 0;
    v[n] = base, v[n++].n_prompt = 2;
    v[n] = base, v[n++].max_tokens = 6;
    v[n] = base, v[n++].min_tokens = 1;
    v[n] = base, v[n++].ignore_eos = true;
    v[n] = base, v[n++].include_stop = true;
    v[n] = base, v[n++].special = true;
    v[n] = base, v[n++].stop = other_stops;
    v[n] = base, v[n].stop_ids = stop_ids, v[n++].n_stop_ids = 1;
    v[n] = base, v[n++].sampling.temperature = 0.5F;
    v[n] = base, v[n++].sampling.top_k = 3;
    v[n] = base, v[n++].sampling.has_seed = true;
    v[n] = base, v[n].sampling.has_seed = true, v[n++].sampling.seed = 1;
    v[n] = base, v[n++].sampling.n_logprobs = 0;
    v[n] = base, v[n].sampling.bias = bias, v[n++].sampling.n_bias = 1;
    v[n] = base, v[n++].sampling.temperature = 0;
    v[n++] = base;
    struct response_hash h = {0};
    struct response_key keys[ARRAY_LEN(v)];
    for (int i = 0; i < n; i++) {
        response_hash_begin(&h);
        response_hash_request(&h, &v[i]);
        keys[i] = response_hash_end(&h);
        for (int k = 0; k < i; k++)
            assert_memory_not_equal(&keys[i], &keys[k], sizeof keys[i]);
    }
    struct engine_request same = v[n - 2]; /* greedy: the draw does not matter */
    same.sampling.top_k = 9;
    same.sampling.seed = 9;
    same.sampling.has_seed = true;
    same.priority = 3;
    same.tenant = "x";
    same.speculate = true;
    response_hash_begin(&h);
    response_hash_request(&h, &same);
    struct response_key key = response_hash_end(&h);
    assert_memory_equal(&key, &keys[n - 2], sizeof key);
    response_hash_release(&h);
}

/* Backends say in many ways that an answer is none. */
static void test_whole(void **state)
{
#define STOP "\"finish_reason\":\"stop\""
    static const struct {
        const char *text;
        int n_choices;
        bool whole;
    } rows[] = {
        {"data: {\"choices\":[{" STOP "}]}\n\ndata: [DONE]\n\n", 1, true},
        {"{\"choices\":[{\"finish_reason\" :\n \"content_filter\"}],\"error\":null}", 1, true},
        {"data: {\"finish_reason\":null}\n\n: ping\n\ndata:{\"finish_reason\":\"tool_calls\"}\n\n",
         1, true},
        {"data: {" STOP ",\"text\":\"error\"}\n\n", 1, true},
        {"{" STOP ",\"text\":\"\\\"finish_reason\\\":1,\\\"error\\\":1\"}", 1, true},
        {"data: {" STOP "}\r\n\r\ndata: {" STOP "}\r\n\r\n", 2, true},
        {"data: {" STOP "}\n\n", 2, false},
        {"data: {\"finish_reason\":\"abort\"}\n\n", 1, false},
        {"data: {\"finish_reason\":\"abort\"}\n\ndata: {" STOP "}\n\n", 1, false},
        {"data: {" STOP "}\n\ndata: {\"error\":{}}\n\n", 1, false},
        {"data: {\"error\" : \"x\"}\r\n\r\ndata: {" STOP "}\n\n", 1, false},
        {"{\"choices\":[{\"error\":1," STOP "}]}", 1, false},
        {"{\"choices\":[{\"text\":\"finish_reason\"}]}", 1, false},
        {"{\"choices\":[]}", 1, false},
        {"data: {\"finish_reason\"", 1, false},
        {"data: {\"finish_reason\":", 1, false},
        {"", 1, false},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct answer_whole w = {0};
        answer_whole_add(&w, str_of(rows[i].text));
        if (answer_is_whole(&w, rows[i].n_choices) != rows[i].whole)
            fail_msg("%s", rows[i].text);
    }
}

/* Of the top level only, in whatever order, in whole events or a document. */
static void test_marks(void **state)
{
#define CALL "\"calls\":[{\"id\":\"c\",\"created\":3}]"
    static const struct {
        const char *text, *want;
    } rows[] = {
        {"{\"id\":\"chatcmpl-a\",\"created\":17," CALL "}",
         "{\"id\":\"new\",\"created\":1800000000," CALL "}"},
        {"{" CALL ",\"created\" : 17 ,\n \"id\" : \"a\"}\n",
         "{" CALL ",\"created\" : 1800000000 ,\n \"id\" : \"new\"}\n"},
        {"data: {\"id\":\"a\"," CALL "}\r\n\r\n: \"id\":\"a\"\n\ndata:{\"created\":1}\n\ndata: "
         "[DONE]\n\n",
         "data: {\"id\":\"new\"," CALL
         "}\r\n\r\n: \"id\":\"a\"\n\ndata:{\"created\":1800000000}\n\ndata: [DONE]\n\n"},
        {"{\"text\":\"\\\"id\\\":\\\"a\\\",\\\"created\\\":1\"}", NULL},
        {"{\"id\":\"a\",\"id\":\"b\"}", NULL},
        {"{\"id\":\"\\u0061\",\"created\":\"1\"}", NULL},
        {"{\"id\":7,\"created\":1.5}", NULL},
        {"{\"id\":\"\",\"created\":null}", NULL},
        {"{\"id\":\"a\",", NULL},
        {"data: {\"id\":\"a\"}", NULL},
        {"", NULL},
    };
#undef CALL
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct buf all = {0}, out = {0};
        struct str text = str_of(rows[i].text);
        answer_marks_find(text, &all);
        answer_marks_replace(text, (const void *)all.data, all.len / sizeof(struct answer_mark),
                             STR("new"), 1800000000, &out);
        assert_string_equal(buf_str(&out), rows[i].want ? rows[i].want : rows[i].text);
        buf_release(&all);
        buf_release(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_record),       cmocka_unit_test(test_hit),
        cmocka_unit_test(test_coalesced),    cmocka_unit_test(test_leader_leaves),
        cmocka_unit_test(test_leader_fails), cmocka_unit_test(test_leader_never_begins),
        cmocka_unit_test(test_unrepeatable), cmocka_unit_test(test_hold),
        cmocka_unit_test(test_age),          cmocka_unit_test(test_controls),
        cmocka_unit_test(test_eviction),     cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_drop),         cmocka_unit_test(test_rendered),
        cmocka_unit_test(test_key),          cmocka_unit_test(test_whole),
        cmocka_unit_test(test_marks),        cmocka_unit_test(test_far_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
