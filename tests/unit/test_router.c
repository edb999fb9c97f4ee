/* Tiers at work: a job's way from one to the next, places in a tier, and what the answers say. */
#define _GNU_SOURCE /* memmem */
#include "server_rig.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"

#define CHAT "/v1/chat/completions"

static const char config[] =
    "tiers:\n"
    "  - {name: gone, models: [nosuch], fallback: [strict, works]}\n"
    "  - {name: strict, models: [alphabet], check: {min_chars: 100}}\n"
    "  - {name: works, models: [alphabet], targets: {ttft: 60s}}\n"
    "  - {name: single, models: [alphabet], concurrency: 1}\n"
    "  - {name: hasty, models: [alphabet], timeout: 1ms, fallback: works}\n"
    "aliases: {nick: works}\n"
    "routes:\n"
    "  - {name: short, when: {messages: {max: 1}}, tier: works}\n"
    "default_tier: gone\n";

static void chat(struct rig *r, const char *model, struct response *out)
{
    char body[256];
    snprintf(body, sizeof body,
             "{\"model\":\"%s\",\"max_tokens\":5,"
             "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}",
             model);
    request(r, "POST", CHAT, body, out);
}

static void expect_route(const struct response *a, const char *says)
{
    assert_int_equal(a->status, 200);
    if (!memmem(a->head.data, a->head.len, says, strlen(says)))
        fail_msg("%s in: %s", says, buf_str(&a->head));
}

static void expect_metric(struct rig *r, const char *line)
{
    struct response a;
    request(r, "GET", "/metrics", NULL, &a);
    if (!strstr(buf_str(&a.body), line))
        fail_msg("no %s", line);
    response_release(&a);
}

/* Runs steps until so many requests are over. */
static void run_until_done(struct rig *r, uint64_t done)
{
    while (rig_stats(r).requests_done < done)
        if (!engine_step(r->engine))
            nanosleep(&(struct timespec){0, 1000000}, NULL);
}

static void test_ways(void **state)
{
    static const struct {
        const char *model, *says;
    } cases[] = {
        {"auto", "x-terrace-route: tier=works; model=alphabet; backend=local; "
                 "reason=\"rule short\"\r\n"},
        {"nick", "reason=\"alias nick\"\r\n"},
        {"works", "reason=\"the request names the tier\"\r\n"},
        {"alphabet", "tier=strict; model=alphabet; backend=local; "
                     "reason=\"the request names the model\"\r\n"},
        {"gone", "tier=works; model=alphabet; backend=local; reason=\"the request names the tier; "
                 "gone: The model `nosuch` does not exist; strict: the answer is too short\"\r\n"},
    };
    struct rig r;
    rig_open(&r, &(struct rig_opts){.config = config});
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct response a;
        chat(&r, cases[i].model, &a);
        expect_route(&a, cases[i].says);
        assert_non_null(strstr(buf_str(&a.body), "\"content\":\"abcde\""));
        response_release(&a);
    }
    expect_metric(&r, "terrace_tier_escalated_total{tier=\"gone\"} 1\n");
    expect_metric(&r, "terrace_tier_escalated_total{tier=\"strict\"} 1\n");
    expect_metric(&r, "terrace_tier_requests_total{tier=\"works\"} 3\n");
    expect_metric(&r, "terrace_tier_target_total{tier=\"works\",target=\"ttft\",met=\"true\"} 4\n");
    expect_metric(&r, "terrace_tier_running{tier=\"works\"} 0\n");
    rig_close(&r);
}

static void test_unknown_model_fails_with_its_own_error(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){.config = config});
    chat(&r, "nothing", &a);
    assert_int_equal(a.status, 404);
    assert_non_null(strstr(buf_str(&a.body), "The model `nothing` does not exist"));
    response_release(&a);
    rig_close(&r);
}

/* Ten at once in a tier of one: all are answered, one after the other. */
static void test_places(void **state)
{
    static const char body[] = "{\"model\":\"single\",\"max_tokens\":3,\"stream\":true,"
                               "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
    struct rig r;
    int fds[10];
    rig_open(&r, &(struct rig_opts){.config = config, .manual = true});
    for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
        fds[i] = client_open(&r);
        client_send(fds[i], "POST", CHAT, "", body, strlen(body));
    }
    rig_wait_running(&r, 1);
    expect_metric(&r, "terrace_tier_running{tier=\"single\"} 1\n");
    close(fds[3]); /* who leaves the queue takes no place */
    run_until_done(&r, 9);
    for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
        struct response a;
        if (i == 3)
            continue;
        client_read(fds[i], &a);
        expect_route(&a, "tier=single");
        assert_non_null(strstr(buf_str(&a.body), "[DONE]"));
        response_release(&a);
    }
    expect_metric(&r, "terrace_tier_running{tier=\"single\"} 0\n");
    rig_close(&r);
}

/* No step runs until the first tier's time is over: the second answers. */
static void test_time_out(void **state)
{
    static const char body[] = "{\"model\":\"hasty\",\"max_tokens\":3,\"n\":2,"
                               "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
    struct rig r;
    struct response a = {0};
    rig_open(&r, &(struct rig_opts){.config = config, .manual = true});
    int fd = client_open(&r);
    client_send(fd, "POST", CHAT, "", body, strlen(body));
    rig_wait_running(&r, 2);
    while (!strstr(buf_str(&a.body), "terrace_tier_escalated_total{tier=\"hasty\"} 1\n")) {
        response_release(&a);
        request(&r, "GET", "/metrics", NULL, &a);
    }
    response_release(&a);
    run_until_done(&r, 4); /* two were cancelled */
    client_read(fd, &a);
    expect_route(&a, "tier=works; model=alphabet; backend=local; reason=\"the request names the "
                     "tier; hasty: no token within 1 ms\"\r\n");
    response_release(&a);
    rig_close(&r);
}

static void test_explanation(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){.config = config});
    request(&r, "POST", "/v1/route",
            "{\"messages\":[{\"role\":\"user\",\"content\":\"hello there\"},"
            "{\"role\":\"user\",\"content\":\"and what is this?\"}],\"max_tokens\":7}",
            &a);
    assert_int_equal(a.status, 200);
    json_t *v = jr_parse(buf_str(&a.body), a.body.len, NULL);
    assert_string_equal(json_string_value(json_object_get(v, "reason")),
                        "no rule holds: the default tier");
    const json_t *steps = json_object_get(v, "steps"), *facts = json_object_get(v, "facts");
    assert_int_equal(json_array_size(steps), 3);
    assert_string_equal(json_string_value(json_object_get(json_array_get(steps, 0), "tier")),
                        "gone");
    assert_int_equal(json_integer_value(json_object_get(facts, "messages")), 2);
    assert_int_equal(json_integer_value(json_object_get(facts, "max_tokens")), 7);
    assert_int_equal(json_integer_value(json_object_get(facts, "prompt_tokens")), 8);
    assert_string_equal(json_string_value(json_object_get(facts, "language")), "en");
    json_decref(v);
    response_release(&a);
    request(&r, "POST", "/v1/route", "{\"messages\":5}", &a);
    assert_int_equal(a.status, 400);
    response_release(&a);
    request(&r, "POST", "/v1/reload", NULL, &a);
    assert_int_equal(a.status, 400); /* this one has no file */
    response_release(&a);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ways),
        cmocka_unit_test(test_unknown_model_fails_with_its_own_error),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_time_out),
        cmocka_unit_test(test_explanation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
