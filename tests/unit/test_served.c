/* Models that come and go: a loader whose models load, fail and wait as the test says. */
#include "server_rig.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/budget.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"

#define CHAT   "/v1/chat/completions"
#define MODELS "/v1/models"
#define HI     "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":3"

enum { MAX_MODELS = 8, LIMIT = 100 };

/* A model on the shop's shelf. */
struct ware {
    const char *name;
    uint64_t least, most; /* bytes; 0: 10 and 10 */
    int fails;            /* ERR_*, 0: it loads */
    bool gated;           /* its steps wait for the gate, which is closed at first */
    struct rig_gate gate;
    bool closed; /* loading waits until the test opens it; guarded by lock */
    uint64_t granted;
    atomic_int loads, unloads;
};

struct shop {
    struct rig rig;
    struct rig_opts o;
    struct ware wares[MAX_MODELS];
    struct budget *budget;
    pthread_mutex_t lock;
    pthread_cond_t opened;
};

struct purchase {
    struct ware *ware;
    struct budget_share *share;
};

static struct ware *ware_of(struct shop *s, const char *name)
{
    for (int i = 0; i < MAX_MODELS && s->wares[i].name; i++)
        if (strcmp(s->wares[i].name, name) == 0)
            return &s->wares[i];
    return NULL;
}

static int shop_find(void *arg, const char *name, struct server_candidate *out, struct err *e)
{
    if (!ware_of(arg, name))
        return err_set(e, ERR_NOTFOUND, "not in this shop");
    snprintf(out->name, sizeof out->name, "%s", name);
    out->modified_unix_s = 1234;
    return 0;
}

static void shop_list(void *arg, void (*each)(void *to, const struct server_candidate *c), void *to)
{
    struct shop *s = arg;
    for (int i = 0; i < MAX_MODELS && s->wares[i].name; i++) {
        struct server_candidate c = {.modified_unix_s = 1234};
        snprintf(c.name, sizeof c.name, "%s", s->wares[i].name);
        each(to, &c);
    }
}

/* Behind the closed door until it is opened, or the load is given up. */
static bool pass_door(struct shop *s, struct ware *w, struct server_load *l)
{
    bool go_on = true;
    pthread_mutex_lock(&s->lock);
    while (w->closed && (go_on = server_load_progress(l, w->name, 1, 2))) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 5000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&s->opened, &s->lock, &until);
    }
    pthread_mutex_unlock(&s->lock);
    return go_on;
}

static int shop_load(void *arg, const char *name, struct server_load *l, struct server_model *out,
                     struct err *e)
{
    struct shop *s = arg;
    struct ware *w = ware_of(s, name);
    BUG_ON(!w);
    w->loads++;
    if (w->fails)
        return err_set(e, w->fails, "%s is broken", name);
    int rc = server_load_room(l, w->least ? w->least : 10, w->most ? w->most : 10, &w->granted, e);
    if (rc)
        return rc;
    if (!pass_door(s, w, l))
        return err_set(e, ERR_CANCELED, "given up");
    struct purchase *p = xcalloc(1, sizeof *p);
    p->ware = w;
    assert_int_equal(budget_take(s->budget, BUDGET_KV, name, w->granted, &p->share, e), 0);
    struct rig_opts o = s->o;
    o.gate = w->gated ? &w->gate : NULL;
    rig_model_new(&s->rig, &o, out);
    out->name = name;
    out->owner = p;
    return 0;
}

static void shop_unload(void *arg, struct server_model *m)
{
    struct purchase *p = m->owner;
    budget_give(p->share);
    rig_model_free(m);
    p->ware->unloads++;
    free(p);
}

/* `named` models are loaded at the start. s->wares and s->o may be set before. */
static void shop_open(struct shop *s, const char *const *named, size_t n_named)
{
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->opened, NULL);
    for (int i = 0; i < MAX_MODELS; i++) {
        pthread_mutex_init(&s->wares[i].gate.lock, NULL);
        pthread_cond_init(&s->wares[i].gate.opened, NULL);
    }
    s->budget = budget_new(LIMIT);
    s->o.unattached = true;
    s->o.models = named;
    s->o.n_models = n_named;
    s->o.budget = s->budget;
    if (!s->o.keep_alive_ms)
        s->o.keep_alive_ms = -1;
    s->o.loader = (struct server_loader){
        .arg = s, .find = shop_find, .list = shop_list, .load = shop_load, .unload = shop_unload};
    rig_open(&s->rig, &s->o);
}

static void shop_close(struct shop *s)
{
    rig_close(&s->rig);
    assert_int_equal(budget_left(s->budget), LIMIT); /* all was given back */
    budget_free(s->budget);
    pthread_cond_destroy(&s->opened);
    pthread_mutex_destroy(&s->lock);
}

static void door(struct shop *s, const char *name, bool closed)
{
    pthread_mutex_lock(&s->lock);
    ware_of(s, name)->closed = closed;
    pthread_cond_broadcast(&s->opened);
    pthread_mutex_unlock(&s->lock);
}

/* ---- what tests do ---- */

static int send_chat(struct shop *s, const char *model, const char *headers, const char *more)
{
    char body[256];
    int fd = client_open(&s->rig);
    snprintf(body, sizeof body, "{\"model\":\"%s\"," HI "%s}", model, more);
    client_send(fd, "POST", CHAT, headers, body, strlen(body));
    return fd;
}

static void expect_answer(int fd)
{
    struct response a;
    client_read(fd, &a);
    if (a.status != 200 || !strstr(a.body.data, "\"content\":\"abc\""))
        fail_msg("%d %s", a.status, buf_str(&a.body));
    response_release(&a);
}

static void expect_failure(int fd, int status, const char *says)
{
    struct response a;
    client_read(fd, &a);
    if (a.status != status || !strstr(a.body.data, says))
        fail_msg("%d instead of %d \"%s\": %s", a.status, status, says, buf_str(&a.body));
    if (status == 503)
        assert_non_null(strstr(a.head.data, "Retry-After"));
    response_release(&a);
}

static void chat(struct shop *s, const char *model)
{
    expect_answer(send_chat(s, model, "", ""));
}

/* "a loaded, b unloaded ..." as /v1/models tells it. */
static void states(struct shop *s, char *out, size_t size)
{
    struct response a;
    request(&s->rig, "GET", MODELS, NULL, &a);
    json_t *root = jr_parse(a.body.data, a.body.len, NULL), *m;
    size_t i, n = 0;
    out[0] = 0;
    json_array_foreach(json_object_get(root, "data"), i, m)
    {
        const json_t *status = json_object_get(m, "status");
        n += (size_t)snprintf(out + n, size - n, "%s%s %s", i ? ", " : "",
                              json_string_value(json_object_get(m, "id")),
                              json_string_value(json_object_get(status, "value")));
    }
    json_decref(root);
    response_release(&a);
}

/* Waits until /v1/models tells so. */
static void wait_states(struct shop *s, const char *expected)
{
    char now[256];
    int64_t until = clock_ms() + 60000;
    for (states(s, now, sizeof now); strcmp(now, expected) != 0; states(s, now, sizeof now)) {
        if (clock_ms() > until)
            fail_msg("%s, not %s", now, expected);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

static void post(struct shop *s, const char *path, const char *body, int status, const char *says)
{
    struct response a;
    request(&s->rig, "POST", path, body, &a);
    if (a.status != status || !strstr(buf_str(&a.body), says))
        fail_msg("%s %s: %d %s", path, body, a.status, buf_str(&a.body));
    response_release(&a);
}

/* Waits until so many requests use a model. */
static void wait_requests(struct shop *s, const char *model, int n)
{
    char path[64], text[32];
    int64_t until = clock_ms() + 60000;
    snprintf(path, sizeof path, MODELS "/%s", model);
    snprintf(text, sizeof text, "\"requests\":%d,", n);
    for (bool seen = false; !seen;) {
        struct response a;
        assert_true(clock_ms() < until);
        request(&s->rig, "GET", path, NULL, &a);
        seen = strstr(a.body.data, text);
        response_release(&a);
    }
}

#define NAMED(...) (const char *const[]){__VA_ARGS__}, sizeof((const char *[]){__VA_ARGS__}) / 8

/* ---- tests ---- */

static void test_on_demand(void **state)
{
    struct shop s = {.wares = {{"a"}, {"b"}, {"c"}}};
    shop_open(&s, NAMED("a"));
    wait_states(&s, "a loaded, b unloaded, c unloaded");
    chat(&s, "b");
    wait_states(&s, "a loaded, b loaded, c unloaded");
    chat(&s, "b");
    chat(&s, "a");
    assert_int_equal(ware_of(&s, "b")->loads, 1);
    expect_failure(send_chat(&s, "d", "", ""), 404, "model_not_found");
    struct response a;
    request(&s.rig, "POST", CHAT, "{" HI "}", &a); /* the default is the first */
    assert_non_null(strstr(a.body.data, "\"model\":\"a\""));
    response_release(&a);
    request(&s.rig, "POST", "/tokenize", "{\"model\":\"c\",\"prompt\":\"hi\"}", &a);
    assert_int_equal(a.status, 200);
    response_release(&a);
    wait_states(&s, "a loaded, b loaded, c loaded");
    request(&s.rig, "GET", MODELS "/b", NULL, &a);
    assert_non_null(strstr(a.body.data, "\"bytes\":10,"));
    response_release(&a);
    request(&s.rig, "GET", MODELS "/d", NULL, &a);
    assert_int_equal(a.status, 404);
    response_release(&a);
    request(&s.rig, "GET", "/metrics", NULL, &a);
    assert_non_null(strstr(a.body.data, "terrace_model_loads_total{model_name=\"b\"} 1\n"));
    assert_non_null(strstr(a.body.data, "terrace_model_bytes{model_name=\"b\"} 10\n"));
    response_release(&a);
    shop_close(&s);
}

/* Requests for a model on its way wait; others don't notice. */
static void test_waiting(void **state)
{
    struct shop s = {.wares = {{"a"}, {"b", .closed = true}}};
    shop_open(&s, NAMED("a"));
    wait_states(&s, "a loaded, b unloaded");
    int first = send_chat(&s, "b", "", ""), second = send_chat(&s, "b", "", ""),
        gone = send_chat(&s, "b", "", ""),
        late = send_chat(&s, "b", "X-Request-Timeout: 0.2\r\n", "");
    wait_states(&s, "a loaded, b loading");
    chat(&s, "a");
    close(gone);
    expect_failure(late, 504, "deadline");
    int64_t until = clock_ms() + 60000;
    for (bool told = false; !told;) { /* as soon as the load says how far it is */
        struct response a;
        assert_true(clock_ms() < until);
        request(&s.rig, "GET", "/health", NULL, &a);
        assert_int_equal(a.status, 200);
        told = strcmp(a.body.data, "{\"status\":\"ok\",\"loading\":\"b: 50 %\"}") == 0;
        response_release(&a);
    }
    door(&s, "b", false);
    expect_answer(first);
    expect_answer(second);
    assert_int_equal(ware_of(&s, "b")->loads, 1);
    shop_close(&s);
}

static void test_failures(void **state)
{
    struct shop s = {.wares = {{"a"},
                               {"damaged", .fails = ERR_FORMAT},
                               {"missing", .fails = ERR_NOTFOUND},
                               {"large", .least = 101, .most = 101}}};
    shop_open(&s, NAMED("a"));
    expect_failure(send_chat(&s, "damaged", "", ""), 503, "damaged is broken");
    expect_failure(send_chat(&s, "damaged", "", ""), 503, "damaged is broken");
    assert_int_equal(ware_of(&s, "damaged")->loads, 1); /* not again so soon */
    expect_failure(send_chat(&s, "missing", "", ""), 404, "missing is broken");
    expect_failure(send_chat(&s, "large", "", ""), 400, "large needs 1 MiB, more than there is");
    wait_states(&s, "a loaded, damaged failed, missing failed, large failed");
    post(&s, MODELS "/load", "{\"model\":\"damaged\"}", 503, "damaged is broken");
    struct response a;
    request(&s.rig, "GET", "/health", NULL, &a);
    assert_int_equal(a.status, 200); /* nobody named them at the start */
    response_release(&a);
    chat(&s, "a");
    shop_close(&s);
}

/* Without a default a request must name its model; a model that has been loaded once does not end
 * the server when it cannot be loaded again. */
static void test_no_default(void **state)
{
    struct shop s = {.wares = {{"a"}}};
    shop_open(&s, NULL, 0);
    post(&s, CHAT, "{" HI "}", 404, "there is no default model");
    chat(&s, "a");
    post(&s, CHAT, "{" HI "}", 404, "there is no default model");
    shop_close(&s);
    struct shop named = {.wares = {{"a"}}};
    shop_open(&named, NAMED("a"));
    wait_states(&named, "a loaded");
    post(&named, MODELS "/unload", "{\"model\":\"a\"}", 200, "true");
    ware_of(&named, "a")->fails = ERR_IO;
    expect_failure(send_chat(&named, "a", "", ""), 503, "a is broken");
    wait_states(&named, "a failed");
    shop_close(&named);
}

/* Room for two: the least recently used goes. */
static void test_eviction_order(void **state)
{
    struct shop s = {.wares = {{"a", 45, 45}, {"b", 45, 45}, {"c", 45, 45}}};
    shop_open(&s, NULL, 0);
    chat(&s, "a");
    nanosleep(&(struct timespec){0, 5000000}, NULL); /* so that the times differ */
    chat(&s, "b");
    nanosleep(&(struct timespec){0, 5000000}, NULL);
    chat(&s, "a");
    nanosleep(&(struct timespec){0, 5000000}, NULL);
    chat(&s, "c");
    wait_states(&s, "a loaded, b unloaded, c loaded");
    nanosleep(&(struct timespec){0, 5000000}, NULL);
    chat(&s, "b");
    wait_states(&s, "a unloaded, b loaded, c loaded");
    struct response a;
    request(&s.rig, "GET", "/metrics", NULL, &a);
    assert_non_null(strstr(a.body.data, "terrace_model_evictions_total{model_name=\"a\"} 1\n"));
    assert_non_null(strstr(a.body.data, "terrace_model_evictions_total{model_name=\"b\"} 1\n"));
    response_release(&a);
    shop_close(&s);
}

/* Those that were named at the start go last. */
static void test_named_go_last(void **state)
{
    struct shop s = {.wares = {{"a", 45, 45}, {"b", 45, 45}, {"c", 45, 45}, {"d", 60, 60}}};
    shop_open(&s, NAMED("a"));
    wait_states(&s, "a loaded, b unloaded, c unloaded, d unloaded");
    chat(&s, "b");
    chat(&s, "c");
    wait_states(&s, "a loaded, b unloaded, c loaded, d unloaded");
    chat(&s, "d"); /* c is not enough */
    wait_states(&s, "a unloaded, b unloaded, c unloaded, d loaded");
    chat(&s, "a");
    wait_states(&s, "a loaded, b unloaded, c unloaded, d unloaded");
    shop_close(&s);
}

/* The only room is in use: it is not taken from the running request; new ones wait. */
static void test_in_use(void **state)
{
    struct shop s = {.wares = {{"a", 60, 60, .gated = true, .gate.closed = true}, {"b", 60, 60}}};
    shop_open(&s, NULL, 0);
    int running = send_chat(&s, "a", "", "");
    wait_states(&s, "a loaded, b unloaded");
    wait_requests(&s, "a", 1);
    int other = send_chat(&s, "b", "", "");
    wait_states(&s, "a unloading, b loading");
    int next = send_chat(&s, "a", "", "");
    rig_gate_set(&ware_of(&s, "a")->gate, false);
    expect_answer(running);
    expect_answer(other);
    expect_answer(next);
    assert_int_equal(ware_of(&s, "a")->loads, 2);
    wait_states(&s, "a loaded, b unloaded");
    shop_close(&s);
}

/* One that was named at the start and is in use is not drained; the other gives up in the end, and
 * who was drained for it is in service again. */
static void test_no_room(void **state)
{
    struct shop s = {.wares = {{"a", 60, 60, .gated = true, .gate.closed = true}, {"b", 60, 60}},
                     .o = {.room_ms = 100}};
    shop_open(&s, NAMED("a"));
    int running = send_chat(&s, "a", "", "");
    wait_states(&s, "a loaded, b unloaded");
    wait_requests(&s, "a", 1);
    expect_failure(send_chat(&s, "b", "", ""), 503, "in use leave no room");
    int next = send_chat(&s, "a", "", "");
    rig_gate_set(&ware_of(&s, "a")->gate, false);
    expect_answer(running);
    expect_answer(next);
    assert_int_equal(ware_of(&s, "a")->loads, 1);
    shop_close(&s);
}

/* Who was to make room and need not after all, is in service again and was not evicted. */
static void test_undrained(void **state)
{
    struct shop s = {.wares = {{"a", 60, 60, .gated = true, .gate.closed = true}, {"b", 60, 60}},
                     .o = {.room_ms = 1500}};
    shop_open(&s, NULL, 0);
    int running = send_chat(&s, "a", "", "");
    wait_states(&s, "a loaded, b unloaded");
    wait_requests(&s, "a", 1);
    int other = send_chat(&s, "b", "", "");
    wait_states(&s, "a unloading, b loading");
    int next = send_chat(&s, "a", "", "");
    expect_failure(other, 503, "in use leave no room");
    wait_requests(&s, "a", 2);
    rig_gate_set(&ware_of(&s, "a")->gate, false);
    expect_answer(running);
    expect_answer(next);
    assert_int_equal(ware_of(&s, "a")->loads, 1);
    struct response a;
    request(&s.rig, "GET", "/metrics", NULL, &a);
    assert_non_null(strstr(a.body.data, "terrace_model_evictions_total{model_name=\"a\"} 0\n"));
    response_release(&a);
    shop_close(&s);
}

/* Equal parts for those that want to be loaded, and what is granted is never more than is left. */
static void test_shares(void **state)
{
    struct shop s = {.wares = {{"a", 10, 90}, {"b", 10, 90}, {"c", 10, 90}}};
    shop_open(&s, NAMED("a"));
    wait_states(&s, "a loaded, b unloaded, c unloaded");
    assert_int_equal(ware_of(&s, "a")->granted, 90);
    chat(&s, "b"); /* needs 10, and there are 10 left, of which some are kept for adapters */
    assert_int_equal(ware_of(&s, "b")->granted, 10);
    chat(&s, "c"); /* sends away b, which is not named; gets what b had */
    assert_int_equal(ware_of(&s, "c")->granted, 10);
    post(&s, MODELS "/unload", "{\"model\":\"a\"}", 200, "true");
    post(&s, MODELS "/unload", "{\"model\":\"c\"}", 200, "true");
    post(&s, MODELS "/load", "{\"model\":\"a\"}", 200, "true");
    assert_int_equal(ware_of(&s, "a")->granted, 50); /* b would like to come back */
    shop_close(&s);
}

static void test_keep_alive(void **state)
{
    struct shop s = {.wares = {{"a"}, {"b"}}, .o = {.keep_alive_ms = 86400000}};
    shop_open(&s, NAMED("a"));
    expect_answer(send_chat(&s, "b", "", ",\"keep_alive\":0"));
    wait_states(&s, "a loaded, b unloaded");
    assert_int_equal(ware_of(&s, "b")->unloads, 1);
    expect_answer(send_chat(&s, "a", "", ",\"keep_alive\":0")); /* was named: stays */
    expect_answer(send_chat(&s, "b", "", ",\"keep_alive\":\"1ms\""));
    wait_states(&s, "a loaded, b unloaded"); /* with the next tick */
    expect_answer(send_chat(&s, "b", "", ",\"keep_alive\":-1"));
    expect_failure(send_chat(&s, "b", "", ",\"keep_alive\":\"soon\""), 400, "keep_alive");
    wait_states(&s, "a loaded, b loaded");
    shop_close(&s);
}

static void test_by_hand(void **state)
{
    struct shop s = {.wares = {{"a", .gated = true, .gate.closed = true}, {"b", .closed = true}}};
    shop_open(&s, NAMED("a"));
    wait_states(&s, "a loaded, b unloaded");
    post(&s, "/models/load", "{\"model\":7}", 400, "'model'");
    post(&s, "/models/load", "{\"model\":\"x\"}", 404, "model_not_found");
    post(&s, "/models/unload", "{\"model\":\"x\"}", 404, "model_not_found");
    post(&s, "/models/load", "{\"model\":\"b\",\"keep_alive\":\"x\"}", 400, "keep_alive");
    post(&s, "/models/unload", "{\"model\":\"b\"}", 200, "{\"success\":true}"); /* is not loaded */
    int waits = send_chat(&s, "b", "", "");
    wait_states(&s, "a loaded, b loading");
    post(&s, "/models/unload", "{\"model\":\"b\"}", 200, "{\"success\":true}"); /* given up */
    expect_failure(waits, 503, "b cannot be loaded");
    wait_states(&s, "a loaded, b unloaded");
    int running = send_chat(&s, "a", "", "");
    wait_requests(&s, "a", 1);
    int unload = client_open(&s.rig);
    client_send(unload, "POST", "/models/unload", "", "{\"model\":\"a\"}", 13);
    wait_states(&s, "a unloading, b unloaded");
    rig_gate_set(&ware_of(&s, "a")->gate, false);
    expect_answer(running);
    struct response a;
    client_read(unload, &a);
    assert_int_equal(a.status, 200);
    response_release(&a);
    wait_states(&s, "a unloaded, b unloaded");
    post(&s, "/models/load", "{\"model\":\"a\"}", 200, "{\"success\":true}");
    wait_states(&s, "a loaded, b unloaded");
    shop_close(&s);
}

/* A persona outlives its model's memory: computed again when the model is back. */
static void test_personas(void **state)
{
    struct shop s = {.wares = {{"a"}, {"b"}}, .o = {.max_pinned_blocks = 8}};
    shop_open(&s, NAMED("a"));
    post(&s, "/v1/personas", "{\"name\":\"kind\",\"system\":\"Be kind\",\"model\":\"b\"}", 200,
         "\"ready\"");
    post(&s, MODELS "/unload", "{\"model\":\"b\"}", 200, "true");
    struct response a;
    request(&s.rig, "GET", "/v1/personas/kind", NULL, &a);
    assert_non_null(strstr(a.body.data, "\"waiting\""));
    response_release(&a);
    chat(&s, "b");
    int64_t until = clock_ms() + 60000;
    for (bool ready = false; !ready;) {
        assert_true(clock_ms() < until);
        request(&s.rig, "GET", "/v1/personas/kind", NULL, &a);
        ready = strstr(a.body.data, "\"ready\"");
        response_release(&a);
    }
    shop_close(&s);
}

static void test_end_while_loading(void **state)
{
    struct shop s = {.wares = {{"a"}, {"b", .closed = true}, {"c", .closed = true}},
                     .o = {.drain_ms = 60000}};
    shop_open(&s, NAMED("a"));
    wait_states(&s, "a loaded, b unloaded, c unloaded");
    int waits = send_chat(&s, "b", "", ""), too = send_chat(&s, "c", "", "");
    wait_states(&s, "a loaded, b loading, c loading");
    rig_stop(&s.rig);
    expect_failure(waits, 503, "");
    expect_failure(too, 503, "");
    shop_close(&s);
}

static void test_failed_start(void **state)
{
    struct shop s = {.wares = {{"a", .fails = ERR_IO}, {"b", .fails = ERR_FORMAT}}};
    shop_open(&s, NAMED("a", "b"));
    pthread_join(s.rig.thread, NULL); /* ends by itself */
    s.rig.stopped = true;
    assert_non_null(strstr(server_failure(s.rig.server)->msg, "is broken"));
    shop_close(&s);
    struct shop half = {.wares = {{"a", .fails = ERR_IO}, {"b"}}};
    shop_open(&half, NAMED("a", "b"));
    wait_states(&half, "a failed, b loaded");
    chat(&half, "b");
    assert_null(server_failure(half.rig.server));
    struct response a;
    request(&half.rig, "GET", "/health", NULL, &a);
    assert_int_equal(a.status, 503);
    assert_non_null(strstr(a.body.data, "a is broken"));
    response_release(&a);
    shop_close(&half);
}

/* Four clients, three models, room for two: every request is answered, whatever goes on. */
struct crowd {
    struct shop *shop;
    unsigned seed;
};

static void *ask_around(void *arg)
{
    struct crowd *c = arg;
    static const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < 60; i++) {
        c->seed = c->seed * 1103515245 + 12345;
        chat(c->shop, names[(c->seed >> 16) % 3]);
    }
    return NULL;
}

static void test_crowd(void **state)
{
    struct shop s = {.wares = {{"a", 45, 45}, {"b", 45, 45}, {"c", 45, 45}}};
    shop_open(&s, NULL, 0);
    struct crowd crowd[4];
    pthread_t threads[4];
    for (unsigned i = 0; i < 4; i++) {
        crowd[i] = (struct crowd){&s, i};
        assert_int_equal(pthread_create(&threads[i], NULL, ask_around, &crowd[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    shop_close(&s);
    for (int i = 0; i < 3; i++)
        assert_int_equal(s.wares[i].loads, s.wares[i].unloads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_on_demand),      cmocka_unit_test(test_waiting),
        cmocka_unit_test(test_failures),       cmocka_unit_test(test_no_default),
        cmocka_unit_test(test_eviction_order), cmocka_unit_test(test_named_go_last),
        cmocka_unit_test(test_in_use),         cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_undrained),      cmocka_unit_test(test_shares),
        cmocka_unit_test(test_keep_alive),     cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_personas),       cmocka_unit_test(test_end_while_loading),
        cmocka_unit_test(test_failed_start),   cmocka_unit_test(test_crowd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
