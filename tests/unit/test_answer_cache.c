/* Answers that are given again, over HTTP, with a model whose answers are known. */
#define _GNU_SOURCE /* strcasestr */
#include "server_rig.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"

#define CHAT  "/v1/chat/completions"
#define TEXT  "/v1/completions"
#define MSG   "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define HI    MSG ",\"temperature\":0"
#define TOOLS ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"sum\"}}]"

static const struct rig_opts with_cache = {.response_cache = 1 << 20};

static void send_with(const struct rig *r, const char *path, const char *headers, const char *body,
                      struct response *out)
{
    int fd = client_open(r);
    assert_true(fd >= 0);
    client_send(fd, "POST", path, headers, body, strlen(body));
    client_read(fd, out);
}

/* The header x-terrace-cache, "" if there is none. */
static const char *said(const struct response *a)
{
    static const char *const words[] = {"hit", "miss", "bypass", "coalesced"};
    const char *p = a->head.len ? strcasestr(a->head.data, "x-terrace-cache: ") : NULL;
    for (size_t i = 0; p && i < ARRAY_LEN(words); i++)
        if (strncmp(p + 17, words[i], strlen(words[i])) == 0)
            return words[i];
    return "";
}

static void expect(const struct rig *r, const char *path, const char *headers, const char *body,
                   const char *want)
{
    struct response a;
    send_with(r, path, headers, body, &a);
    if (a.status != 200)
        fail_msg("%s: %d %s", body, a.status, buf_str(&a.body));
    assert_true(a.complete);
    if (strcmp(said(&a), want) != 0)
        fail_msg("%s, %s: %s instead of %s", headers, body, said(&a), want);
    response_release(&a);
}

static int64_t stat_of(const struct rig *r, const char *name)
{
    struct response a;
    request(r, "GET", "/v1/cache", NULL, &a);
    json_t *v = jr_parse(buf_str(&a.body), a.body.len, NULL);
    const json_t *n = json_object_get(v, name);
    assert_true(json_is_integer(n));
    int64_t value = json_integer_value(n);
    json_decref(v);
    response_release(&a);
    return value;
}

/* ---- what is replayed ---- */

static const char hermes[] = "{% if tools %}<tool_call>{{ tools|tojson }}{% endif %}"
                             "{% for m in messages %}{{ m.content }}{% endfor %}";

static const struct {
    const char *path, *body, *chat_template, *script;
    int n; /* choices, 0: one */
} replays[] = {
    {CHAT, "{" HI "}"},
    {CHAT, "{" HI ",\"max_tokens\":5}"},
    {CHAT, "{" HI ",\"stop\":[\"fgh\"]}"},
    {CHAT, "{" HI ",\"stop_token_ids\":[265],\"include_stop_str_in_output\":true}"},
    {CHAT, "{" HI ",\"n\":3}", .n = 3},
    {CHAT, "{" HI ",\"logprobs\":true,\"top_logprobs\":2,\"max_tokens\":3}"},
    {CHAT, "{" HI TOOLS "}", hermes,
     "Well. <tool_call>{\"name\":\"sum\",\"arguments\":{\"a\":1}}</tool_call>"},
    {CHAT, "{" HI TOOLS ",\"tool_choice\":\"none\"}", hermes, "<tool_call>{}</tool_call>"},
    {TEXT, "{\"prompt\":\"x\",\"temperature\":0}"},
    {TEXT, "{\"prompt\":[\"a\",\"p\"],\"n\":2,\"temperature\":0,\"max_tokens\":40}", .n = 4},
    {TEXT, "{\"prompt\":\"a\",\"echo\":true,\"temperature\":0}"},
    {TEXT, "{\"prompt\":\"a\",\"logprobs\":1,\"temperature\":0,\"max_tokens\":3}"},
    {TEXT, "{\"prompt\":[282],\"temperature\":1.5,\"seed\":3,\"max_tokens\":9}"},
};

static void with_stream(size_t i, bool stream, char *out, size_t n)
{
    snprintf(out, n, "%.*s%s}", (int)strlen(replays[i].body) - 1, replays[i].body,
             stream ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
}

static void run_dry(struct rig *r)
{
    while (engine_step(r->engine))
        ;
}

/* A request that the engine answers, step by step: so that choices come in a known order. */
static void ask(struct rig *r, size_t i, const char *body, struct response *out)
{
    int fd = client_open(r);
    client_send(fd, "POST", replays[i].path, "", body, strlen(body));
    rig_wait_running(r, replays[i].n ? replays[i].n : 1);
    run_dry(r);
    client_read(fd, out);
    assert_int_equal(out->status, 200);
}

/* The same body from a server that has never seen any. */
static void ask_fresh(size_t i, bool stream, struct response *out)
{
    struct rig r;
    char body[512];
    rig_open(&r, &(struct rig_opts){.chat_template = replays[i].chat_template,
                                    .script = replays[i].script,
                                    .manual = true});
    with_stream(i, stream, body, sizeof body);
    ask(&r, i, body, out);
    mask(&out->body);
    assert_string_equal(said(out), "");
    rig_close(&r);
}

/* Whatever form the first request had, whole or streamed: each later one gets what a miss in its
 * own form would have got, byte for byte but for ids and times. */
static void test_replay(void **state)
{
    static const char *const want[] = {"miss", "hit", "hit", "hit", "hit", "hit"};
    for (size_t i = 0; i < ARRAY_LEN(replays); i++)
        for (int first = 0; first < 2; first++) {
            struct rig r;
            struct rig_opts o = with_cache;
            struct response fresh[2], a;
            char body[512];
            o.chat_template = replays[i].chat_template;
            o.script = replays[i].script;
            o.manual = true;
            ask_fresh(i, false, &fresh[0]);
            ask_fresh(i, true, &fresh[1]);
            rig_open(&r, &o);
            for (size_t k = 0; k < ARRAY_LEN(want); k++) {
                bool stream = (k + (size_t)first) % 2;
                with_stream(i, stream, body, sizeof body);
                if (k == 0)
                    ask(&r, i, body, &a);
                else
                    request(&r, "POST", replays[i].path, body, &a);
                assert_int_equal(a.status, 200);
                assert_true(a.complete);
                assert_string_equal(said(&a), want[k]);
                mask(&a.body);
                assert_string_equal(buf_str(&a.body), buf_str(&fresh[stream].body));
                response_release(&a);
            }
            struct engine_stats s = rig_stats(&r);
            int64_t hits = stat_of(&r, "hits");
            rig_close(&r);
            assert_int_equal(hits, 5);
            assert_true(s.requests_done > 0 && s.requests_done <= 4);
            response_release(&fresh[0]);
            response_release(&fresh[1]);
        }
}

static void id_of(const struct response *a, char id[64])
{
    const char *p = strstr(buf_str(&a->body), "\"id\":\"");
    assert_non_null(p);
    snprintf(id, 64, "%.*s", (int)strcspn(p + 6, "\""), p + 6);
}

/* Ids are new in each answer, and one throughout a stream. */
static void test_ids(void **state)
{
    struct rig r;
    struct response a;
    char ids[8][64];
    rig_open(&r, &with_cache);
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        request(&r, "POST", CHAT, i % 2 ? "{" HI ",\"stream\":true}" : "{" HI "}", &a);
        id_of(&a, ids[i]);
        int same = 0, all = 0;
        for (const char *p = a.body.data; (p = strstr(p, "chatcmpl-")); p++, all++)
            same += strncmp(p, ids[i], strlen(ids[i])) == 0;
        assert_int_equal(same, all);
        assert_true(i % 2 ? all > 20 : all == 1);
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(ids[k], ids[i]);
        response_release(&a);
    }
    assert_int_equal(stat_of(&r, "rendered"), 2);
    rig_close(&r);
}

/* ---- who gets what ---- */

static void test_who(void **state)
{
    static const struct {
        const char *headers, *body, *want;
    } steps[] = {
        {"", "{" HI "}", "miss"},
        {"", "{" HI ",\"max_tokens\":2000}", "miss"},
        {"", "{" HI ",\"speculate\":false,\"priority\":3,\"timeout\":30}", "hit"},
        {"X-Terrace-Tenant: a\r\n", "{" HI "}", "miss"},
        {"X-Terrace-Tenant: a\r\n", "{" HI "}", "hit"},
        {"X-Terrace-Tenant: b\r\n", "{" HI "}", "miss"},
        {"", "{" HI ",\"user\":\"a\"}", "miss"},
        {"", "{" HI ",\"user\":\"a\"}", "hit"},
        {"", "{" HI ",\"user\":\"b\"}", "miss"},
        {"", "{" HI ",\"cache_salt\":\"a\"}", "miss"},
        {"", "{" HI ",\"cache_salt\":\"a\"}", "hit"},
        {"", "{" HI ",\"cache\":{\"namespace\":\"a\"}}", "miss"},
        {"", "{" HI ",\"cache\":{\"namespace\":\"a\"}}", "hit"},
        {"", "{" HI ",\"seed\":1}", "hit"}, /* greedy: nothing is drawn */
        /* what is drawn */
        {"", "{" MSG ",\"temperature\":0.5,\"seed\":1}", "miss"},
        {"", "{" MSG ",\"temperature\":0.5,\"seed\":1}", "hit"},
        {"", "{" MSG ",\"temperature\":0.5,\"seed\":2}", "miss"},
        {"", "{" MSG ",\"temperature\":0.5}", "bypass"},
        {"", "{" MSG ",\"temperature\":0.5}", "bypass"},
        {"", "{" MSG ",\"temperature\":0.5,\"cache\":{\"use-cache\":true}}", "miss"},
        {"", "{" MSG ",\"temperature\":0.5,\"cache\":{\"use-cache\":true}}", "hit"},
        {"", "{" MSG ",\"temperature\":0.5,\"cache\":{\"ttl\":60}}", "hit"},
        /* controls */
        {"", "{" HI ",\"cache\":{\"no-cache\":true}}", "bypass"},
        {"Cache-Control: no-cache\r\n", "{" HI "}", "bypass"},
        {"Cache-Control: no-cache, no-store\r\n", "{" HI "}", "bypass"},
        {"Cache-Control: max-age=0\r\n", "{" HI "}", "bypass"},
        {"Cache-Control: max-age=1000\r\n", "{" HI "}", "hit"},
        {"Cache-Control: no-transform,no-cached\r\n", "{" HI "}", "hit"},
        {"", "{" HI ",\"cache\":{\"s-maxage\":1000}}", "hit"},
        {"", "{" HI ",\"max_tokens\":4,\"cache\":{\"no-store\":true}}", "miss"},
        {"Cache-Control: no-store\r\n", "{" HI ",\"max_tokens\":4}", "miss"},
        {"Cache-Control: no-store\r\n", "{" HI "}", "hit"},
        {"", "{" HI ",\"max_tokens\":4}", "miss"},
        {"X-Unheard-Of: 1\r\n", "{" HI "}", "hit"},
    };
    struct rig r;
    rig_open(&r, &with_cache);
    for (size_t i = 0; i < ARRAY_LEN(steps); i++)
        expect(&r, CHAT, steps[i].headers, steps[i].body, steps[i].want);
    rig_close(&r);
}

static void test_bad_controls(void **state)
{
    static const struct {
        const char *cache, *param;
    } cases[] = {
        {"true", "cache"},
        {"{\"ttl\":0}", "cache.ttl"},
        {"{\"ttl\":\"1h\"}", "cache.ttl"},
        {"{\"s-maxage\":-1}", "cache.s-maxage"},
        {"{\"ttl\":1e300}", "cache.ttl"},
        {"{\"no-cache\":1}", "cache.no-cache"},
        {"{\"namespace\":1}", "cache.namespace"},
    };
    struct rig r;
    rig_open(&r, &with_cache);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char body[256], want[64];
        struct response a;
        snprintf(body, sizeof body, "{" HI ",\"cache\":%s}", cases[i].cache);
        snprintf(want, sizeof want, "\"param\":\"%s\"", cases[i].param);
        request(&r, "POST", CHAT, body, &a);
        assert_int_equal(a.status, 400);
        assert_non_null(strstr(a.body.data, want));
        response_release(&a);
    }
    rig_close(&r);
}

static void test_age(void **state)
{
    static const char shortly[] = "{" HI ",\"cache\":{\"ttl\":0.001}}";
    struct rig r;
    struct response a = {0};
    rig_open(&r, &with_cache);
    expect(&r, CHAT, "", shortly, "miss");
    int64_t made_ms = clock_ms();
    for (const char *word = "hit"; strcmp(word, "miss") != 0; word = said(&a)) {
        response_release(&a);
        assert_true(clock_ms() < made_ms + 60000);
        request(&r, "POST", CHAT, shortly, &a);
    }
    response_release(&a);
    rig_close(&r);
}

static void drop(const struct rig *r, const char *path, int want)
{
    struct response a;
    char body[32];
    request(r, "DELETE", path, NULL, &a);
    snprintf(body, sizeof body, "{\"dropped\":%d}", want);
    assert_string_equal(buf_str(&a.body), body);
    response_release(&a);
}

static void test_drop(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &with_cache);
    for (int round = 0; round < 2; round++) {
        expect(&r, CHAT, "X-Terrace-Tenant: a\r\n", "{" HI "}", round ? "hit" : "miss");
        expect(&r, CHAT, "X-Terrace-Tenant: b\r\n", "{" HI "}", round ? "hit" : "miss");
    }
    drop(&r, "/v1/cache?model=other", 0);
    drop(&r, "/v1/cache?adapter=other", 0);
    drop(&r, "/v1/cache?tenant=tenant%3Aa", 1);
    expect(&r, CHAT, "X-Terrace-Tenant: a\r\n", "{" HI "}", "miss");
    expect(&r, CHAT, "X-Terrace-Tenant: b\r\n", "{" HI "}", "hit");
    drop(&r, "/v1/cache?model=alphabet", 2);
    expect(&r, CHAT, "X-Terrace-Tenant: b\r\n", "{" HI "}", "miss");
    drop(&r, "/v1/cache", 1);
    assert_int_equal(stat_of(&r, "entries"), 0);
    assert_int_equal(stat_of(&r, "bytes"), 0);
    request(&r, "GET", "/metrics", NULL, &a);
    assert_non_null(strstr(a.body.data, "terrace_cache_requests_total{result=\"hit\"} 3\n"));
    assert_non_null(strstr(a.body.data, "terrace_cache_removed_total{reason=\"dropped\"} 4\n"));
    response_release(&a);
    rig_close(&r);
    rig_open(&r, &(struct rig_opts){0});
    request(&r, "GET", "/v1/cache", NULL, &a);
    assert_int_equal(a.status, 404);
    response_release(&a);
    rig_close(&r);
}

static int prompt_tokens(const struct rig *r, const char *body)
{
    struct response a;
    request(r, "POST", CHAT, body, &a);
    json_t *v = jr_parse(buf_str(&a.body), a.body.len, NULL);
    int n = (int)json_integer_value(json_object_get(json_object_get(v, "usage"), "prompt_tokens"));
    assert_true(n > 0);
    json_decref(v);
    response_release(&a);
    return n;
}

/* The bytes of a request mean what the persona of that name says now. */
static void test_persona_changes(void **state)
{
    static const char body[] = "{" HI ",\"persona\":\"p\"}";
    struct rig r;
    struct response a;
    rig_open(&r, &with_cache);
    for (int n = 1; n <= 3; n++) {
        char persona[128];
        snprintf(persona, sizeof persona, "{\"name\":\"p\",\"pin\":false,\"system\":\"%.*s\"}", n,
                 "xxx");
        request(&r, "POST", "/v1/personas", persona, &a);
        assert_int_equal(a.status, 200);
        response_release(&a);
        int first = prompt_tokens(&r, body);
        static int before;
        if (n > 1)
            assert_int_equal(first, before + 1);
        before = first;
        for (int i = 0; i < 3; i++)
            assert_int_equal(prompt_tokens(&r, body), first);
    }
    rig_close(&r);
}

/* Each tier's answer is kept, also one that fails its check: the way is gone again, without the
 * engine. */
static void test_tiers(void **state)
{
    static const char config[] = "tiers:\n"
                                 "  - {name: gone, models: [nosuch], fallback: [strict, works]}\n"
                                 "  - {name: strict, models: [alphabet], check: {min_chars: 100},"
                                 " fallback: [other]}\n"
                                 "  - {name: works, models: [alphabet], concurrency: 1}\n"
                                 "  - {name: other, models: [alphabet]}\n";
    static const char *const models[] = {"gone", "strict", "works", "gone", "strict", "works"};
    struct rig r;
    struct rig_opts o = with_cache;
    o.config = config;
    rig_open(&r, &o);
    for (size_t i = 0; i < ARRAY_LEN(models); i++)
        for (int stream = 0; stream < 2; stream++) {
            char body[256];
            snprintf(body, sizeof body, "{" HI ",\"model\":\"%s\",\"max_tokens\":5%s}", models[i],
                     stream ? ",\"stream\":true" : "");
            expect(&r, CHAT, "", body, "hit");
        }
    assert_int_equal(rig_stats(&r).requests_done, 1);
    assert_int_equal(stat_of(&r, "misses"), 1);
    assert_int_equal(stat_of(&r, "rendered"), 0);
    rig_close(&r);
}

/* ---- one run for many ---- */

static int begin_with(const struct rig *r, const char *headers, const char *body)
{
    int fd = client_open(r);
    assert_true(fd >= 0);
    client_send(fd, "POST", CHAT, headers, body, strlen(body));
    return fd;
}

static int begin(const struct rig *r, const char *body)
{
    return begin_with(r, "", body);
}

static void wait_for(const struct rig *r, const char *name, int64_t want)
{
    int64_t until = clock_ms() + 60000;
    while (stat_of(r, name) != want)
        assert_true(clock_ms() < until);
}

static void test_coalesced(void **state)
{
    enum { FOLLOWERS = 20 };
    struct rig r;
    struct rig_opts o = with_cache;
    struct response a, first;
    int fds[FOLLOWERS];
    o.manual = true;
    rig_open(&r, &o);
    int lead = begin(&r, "{" HI "}");
    rig_wait_running(&r, 1);
    for (int i = 0; i < FOLLOWERS; i++) {
        if (i % 5 == 4)
            for (int k = 0; k < 4; k++)
                engine_step(r.engine);
        fds[i] = begin(&r, i % 2 ? "{" HI ",\"stream\":true}" : "{" HI "}");
        wait_for(&r, "coalesced", i + 1);
    }
    assert_int_equal(stat_of(&r, "in_flight"), 1);
    run_dry(&r);
    client_read(lead, &first);
    assert_string_equal(said(&first), "miss");
    mask(&first.body);
    for (int i = 0; i < FOLLOWERS; i++) {
        client_read(fds[i], &a);
        assert_true(a.complete);
        assert_string_equal(said(&a), "coalesced");
        mask(&a.body);
        if (i % 2)
            assert_non_null(strstr(a.body.data, "[DONE]"));
        else
            assert_string_equal(buf_str(&a.body), buf_str(&first.body));
        response_release(&a);
    }
    response_release(&first);
    assert_int_equal(rig_stats(&r).requests_done, 1);
    expect(&r, CHAT, "", "{" HI "}", "hit");
    rig_close(&r);
}

/* The run outlives who began it, and not the last who wants it. */
static void test_leavers(void **state)
{
    struct rig r;
    struct rig_opts o = with_cache;
    struct response a;
    o.manual = true;
    rig_open(&r, &o);
    int lead = begin(&r, "{" HI ",\"stream\":true}");
    rig_wait_running(&r, 1);
    int follower = begin(&r, "{" HI "}");
    wait_for(&r, "coalesced", 1);
    for (int i = 0; i < 5; i++)
        engine_step(r.engine);
    close(lead);
    int other = begin(&r, "{" HI "}"); /* the server has seen the close once this is counted */
    wait_for(&r, "coalesced", 2);
    close(other);
    run_dry(&r);
    client_read(follower, &a);
    assert_true(a.complete);
    assert_non_null(strstr(a.body.data, "abcdefghijklmnopqrstuvwxyz"));
    response_release(&a);
    assert_int_equal(rig_stats(&r).requests_done, 1);

    lead = begin(&r, "{" HI ",\"max_tokens\":9}");
    rig_wait_running(&r, 1);
    follower = begin(&r, "{" HI ",\"max_tokens\":9}");
    wait_for(&r, "coalesced", 3);
    close(lead);
    close(follower);
    wait_for(&r, "in_flight", 0);
    run_dry(&r);
    assert_int_equal(rig_stats(&r).running + rig_stats(&r).waiting, 0);
    assert_int_equal(stat_of(&r, "entries"), 1);
    rig_close(&r);
}

/* The first one that fails is told; the others run again, once. */
static void test_failure(void **state)
{
    static const char bad[] = "{\"prompt\":\"ab#\",\"temperature\":0}";
    enum { CLIENTS = 5 };
    struct rig r;
    struct rig_opts o = with_cache;
    int fds[CLIENTS];
    o.manual = true;
    rig_open(&r, &o);
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = client_open(&r);
        client_send(fds[i], "POST", TEXT, "", bad, strlen(bad));
        wait_for(&r, i ? "coalesced" : "misses", i ? i : 1);
    }
    rig_wait_running(&r, 1);
    int64_t until = clock_ms() + 60000;
    while (stat_of(&r, "in_flight") || stat_of(&r, "reruns") != CLIENTS - 1) {
        engine_step(r.engine);
        assert_true(clock_ms() < until);
    }
    for (int i = 0; i < CLIENTS; i++) {
        struct response a;
        client_read(fds[i], &a);
        assert_int_equal(a.status, 500);
        response_release(&a);
    }
    assert_int_equal(stat_of(&r, "entries"), 0);
    assert_int_equal(rig_stats(&r).requests_done, 2);
    rig_close(&r);
}

/* Each has its own deadline, whoever leads. */
static void test_deadlines(void **state)
{
    struct rig r;
    struct rig_opts o = with_cache;
    struct response a;
    o.manual = true;
    rig_open(&r, &o);
    int lead = begin(&r, "{" HI "}");
    rig_wait_running(&r, 1);
    int hasty = begin_with(&r, "X-Request-Timeout: 0.02\r\n", "{" HI "}");
    client_read(hasty, &a); /* without a step of the engine */
    assert_int_equal(a.status, 504);
    response_release(&a);
    run_dry(&r);
    client_read(lead, &a);
    assert_int_equal(a.status, 200);
    response_release(&a);

    /* a leader past its deadline: who has seen a part of the answer gets the rest of it */
    hasty = begin(&r, "{" HI ",\"max_tokens\":20,\"timeout\":0.2}");
    rig_wait_running(&r, 1);
    int patient = begin(&r, "{" HI ",\"max_tokens\":20,\"stream\":true}");
    wait_for(&r, "coalesced", 2);
    for (int i = 0; i < 6; i++)
        engine_step(r.engine);
    int64_t until = clock_ms() + 210;
    while (clock_ms() < until)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    engine_step(r.engine);
    client_read(hasty, &a);
    assert_int_equal(a.status, 504);
    response_release(&a);
    wait_for(&r, "reruns", 1);
    rig_wait_running(&r, 1);
    run_dry(&r);
    client_read(patient, &a);
    assert_true(a.complete);
    struct buf text = {0};
    for (const char *p = a.body.data; (p = strstr(p, "\"content\":\"")); p++)
        buf_add(&text, p + 11, strcspn(p + 11, "\""));
    assert_string_equal(buf_str(&text), "abcdefghijklmnopqrst");
    buf_release(&text);
    response_release(&a);
    rig_close(&r);
}

struct stepper {
    struct rig *rig;
    atomic_bool enough;
};

static void *step_on(void *arg)
{
    struct stepper *s = arg;
    while (!s->enough) /* a step may find nothing to do: the fast reader is a little late */
        engine_step(s->rig->engine);
    return NULL;
}

/* A follower that does not read neither stops the others nor loses anything. */
static void test_slow_follower(void **state)
{
    enum { TOKENS = 10000 };
    char body[192];
    struct rig r;
    struct response fast, slow;
    rig_open(&r, &(struct rig_opts){.n_ctx = 65536, .response_cache = 64 << 20, .manual = true});
    snprintf(body, sizeof body, "{" HI ",\"ignore_eos\":true,\"max_tokens\":%d,\"stream\":true}",
             TOKENS);
    int lead = begin(&r, body);
    rig_wait_running(&r, 1);
    int follower = begin(&r, body);
    wait_for(&r, "coalesced", 1);
    pthread_t engine;
    struct stepper stepper = {.rig = &r};
    assert_int_equal(pthread_create(&engine, NULL, step_on, &stepper), 0);
    client_read(lead, &fast);
    assert_true(fast.complete);
    stepper.enough = true;
    pthread_join(engine, NULL);
    client_read(follower, &slow);
    assert_true(slow.complete);
    mask(&fast.body);
    mask(&slow.body);
    assert_int_equal(fast.body.len, slow.body.len);
    assert_memory_equal(fast.body.data, slow.body.data, fast.body.len);
    response_release(&fast);
    response_release(&slow);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replay),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_who),
        cmocka_unit_test(test_bad_controls),
        cmocka_unit_test(test_age),
        cmocka_unit_test(test_drop),
        cmocka_unit_test(test_persona_changes),
        cmocka_unit_test(test_coalesced),
        cmocka_unit_test(test_leavers),
        cmocka_unit_test(test_failure),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_slow_follower),
        cmocka_unit_test(test_tiers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
