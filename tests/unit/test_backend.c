/* Backends without a network: configuration, breaker, slow start, retry budget, event streams. */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/yaml_tree.h"
#include "gateway/adapter_push.h"
#include "gateway/backend.h"
#include "gateway/event_pass.h"
#include "gateway/scrape.h"

/* ---- configuration ---- */

static int read_config(struct gateway_config *c, const char *yaml, struct err *e)
{
    *e = (struct err){0};
    struct yaml_tree *tree = yaml_tree_parse(yaml, strlen(yaml), "test.yaml", e);
    assert_non_null(tree);
    int rc = gateway_config_read(c, yaml_tree_root(tree), e);
    yaml_tree_free(tree);
    return rc;
}

static void test_config(void **state)
{
    struct gateway_config c, same;
    struct err e;
    static const char yaml[] = "backends:\n"
                               "  - name: gpu-1\n"
                               "    kind: vllm\n"
                               "    url: http://10.0.0.5:8000/v1/\n"
                               "    models: [llama3.1:8b, {name: small, as: org/Small}]\n"
                               "    key_env: TEST_BACKEND_KEY\n"
                               "    weight: 2.5\n"
                               "    eject: 250ms\n"
                               "  - {name: mine, url: 'http://127.0.0.1:9', command: [run, 7]}\n"
                               "balance: {policy: prefix-affinity, retries: 1}\n";
    setenv("TEST_BACKEND_KEY", "sk-secret", 1);
    assert_int_equal(read_config(&c, yaml, &e), 0);
    assert_int_equal(c.n, 2);
    assert_string_equal(c.backends[0].url, "http://10.0.0.5:8000");
    assert_int_equal(c.backends[0].kind, BACKEND_VLLM);
    assert_string_equal(c.backends[0].key, "sk-secret");
    assert_string_equal(c.backends[0].models[1].as, "org/Small");
    assert_int_equal(c.backends[0].eject_ms, 250);
    assert_string_equal(c.backends[1].argv[1], "7");
    assert_int_equal(c.balance.policy, BALANCE_PREFIX_AFFINITY);
    assert_int_equal(c.balance.retries, 1);
    assert_int_equal(read_config(&same, yaml, &e), 0);
    assert_true(backend_config_same(&c.backends[0], &same.backends[0]));
    assert_false(backend_config_same(&c.backends[0], &same.backends[1]));
    same.backends[0].weight = 3;
    assert_false(backend_config_same(&c.backends[0], &same.backends[0]));
    gateway_config_release(&c);
    gateway_config_release(&same);
    assert_int_equal(read_config(&c, "port: 1\n", &e), 0);
    assert_int_equal(c.n, 0);
    gateway_config_release(&c);
}

static void test_config_api(void **state)
{
    static const struct {
        const char *keys;
        enum upstream_api api;
    } cases[] = {
        {"", UPSTREAM_OPENAI},
        {", kind: ollama", UPSTREAM_OPENAI},
        {", kind: ollama, api: ollama", UPSTREAM_OLLAMA},
        {", kind: anthropic", UPSTREAM_ANTHROPIC},
        {", kind: anthropic, api: openai", UPSTREAM_OPENAI},
        {", kind: vllm, api: anthropic", UPSTREAM_ANTHROPIC},
    };
    struct gateway_config c[ARRAY_LEN(cases)];
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char yaml[128];
        struct err e;
        snprintf(yaml, sizeof yaml, "backends: [{name: a, url: 'http://a'%s}]\n", cases[i].keys);
        assert_int_equal(read_config(&c[i], yaml, &e), 0);
        assert_int_equal(c[i].backends[0].api, cases[i].api);
    }
    assert_false(backend_config_same(&c[1].backends[0], &c[2].backends[0]));
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        gateway_config_release(&c[i]);
}

static void test_config_refuses(void **state)
{
    static const struct {
        const char *yaml, *where;
    } bad[] = {
        {"backends: 7\n", "backends"},
        {"backends: [{url: 'http://a'}]\n", "backends[0].name"},
        {"backends: [{name: 'a b', url: 'http://a'}]\n", "backends[0].name"},
        {"backends: [{name: local, url: 'http://a'}]\n", "backends[0].name"},
        {"backends: [{name: a}]\n", "backends[0].url"},
        {"backends: [{name: a, url: 'ftp://a'}]\n", "backends[0].url"},
        {"backends: [{name: a, url: 'http://key@a'}]\n", "backends[0].url"},
        {"backends: [{name: a, url: 'http://a', kind: tgi}]\n", "backends[0].kind"},
        {"backends: [{name: a, url: 'http://a', api: grpc}]\n", "backends[0].api"},
        {"backends: [{name: a, url: 'http://a', api: 7}]\n", "backends[0].api"},
        {"backends: [{name: a, url: 'http://a', wieght: 1}]\n", "backends[0].wieght"},
        {"backends: [{name: a, url: 'http://a', weight: 0}]\n", "backends[0].weight"},
        {"backends: [{name: a, url: 'http://a', key_env: TEST_NOT_SET}]\n", "backends[0].key_env"},
        {"backends: [{name: a, url: 'http://a', models: []}]\n", "backends[0].models"},
        {"backends: [{name: a, url: 'http://a', models: [{as: x}]}]\n", "backends[0].models[0]"},
        {"backends: [{name: a, url: 'http://a', command: ls}]\n", "backends[0].command"},
        {"backends: [{name: a, url: 'http://a'}, {name: a, url: 'http://b'}]\n", "backends[1]"},
        {"backends: [{name: a, url: 'http://a', adapter_root: here}]\n",
         "backends[0].adapter_root"},
        {"backends: [{name: a, url: 'http://a', max_adapters: 0}]\n", "backends[0].max_adapters"},
        {"balance: {policy: best}\n", "balance.policy"},
        {"balance: {load_factor: 1}\n", "balance.load_factor"},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct gateway_config c;
        struct err e;
        if (read_config(&c, bad[i].yaml, &e) != ERR_INVALID)
            fail_msg("taken: %s", bad[i].yaml);
        assert_string_equal(e.param, bad[i].where);
        assert_int_equal(c.n, 0);
    }
}

/* ---- adapters ---- */

static void test_pushed_names(void **state)
{
    static const uint8_t digest[32] = {0x01, 0xab, 0, 0, 0, 0xff, 0x77};
    static const char *const others[] = {
        "",
        "support",
        "support@1",
        "support@1-01ab000000f",
        "support@1-01ab000000ff0",
        "support@x-01ab000000ff",
        "support@-01ab000000ff",
        "support@1-01AB000000FF",
    };
    char name[PUSH_NAME_BYTES];
    push_name(name, "team/support", 12, digest);
    assert_string_equal(name, "team/support@12-01ab000000ff");
    assert_true(push_is_name(name));
    for (size_t i = 0; i < ARRAY_LEN(others); i++)
        if (push_is_name(others[i]))
            fail_msg("taken: %s", others[i]);
}

/* ---- metrics of engines ---- */

static bool parse(struct scrape *out, const char *text)
{
    return scrape_parse(out, str_of(text));
}

/* Lines as vLLM 0.32 and llama-server b6000 write them. */
static void test_scrape(void **state)
{
    struct scrape s;
    assert_true(parse(&s, "# HELP vllm:num_requests_running Number of requests ...\n"
                          "# TYPE vllm:num_requests_running gauge\n"
                          "vllm:num_requests_running{engine=\"0\",model_name=\"a}\\\"b\"} 2.0\n"
                          "vllm:num_requests_running{engine=\"1\",model_name=\"a\"} 1.0\r\n"
                          "vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\n"
                          "vllm:kv_cache_usage_perc{engine=\"1\"} 7.5e-1 1700000000000\n"
                          "vllm:gpu_cache_usage_perc{engine=\"0\"} 0.9\n"
                          "vllm:generation_tokens_total{engine=\"0\"} 1.25e+06\n"
                          "python_info{version=\"3\"} 1.0\n"
                          "process_start_time_seconds NaN\n\n"
                          "vllm:request_success_created{le=\"+Inf\"} +Inf"));
    assert_true(s.has[SCRAPE_RUNNING] && s.v[SCRAPE_RUNNING] == 3);
    assert_true(s.v[SCRAPE_KV_USAGE] == 0.75); /* the fullest, by the newer name */
    assert_true(s.v[SCRAPE_GENERATION_TOKENS] == 1.25e6);
    assert_false(s.has[SCRAPE_WAITING] || s.has[SCRAPE_PREFIX_HITS]);
    assert_true(parse(&s, "llamacpp:requests_processing 4\nllamacpp:requests_deferred\t5\n"
                          "llamacpp:tokens_predicted_total 6"));
    assert_true(s.v[SCRAPE_RUNNING] == 4 && s.v[SCRAPE_WAITING] == 5);
    assert_true(s.v[SCRAPE_GENERATION_TOKENS] == 6);
    assert_true(parse(&s, ""));
    assert_false(s.has[SCRAPE_RUNNING]);
    static const char *const bad[] = {
        "<html>",
        "{\"error\": 1}",
        "vllm:num_requests_running",
        "vllm:num_requests_running 1x",
        "vllm:num_requests_running -1",
        "vllm:num_requests_running NaN",
        "a{b=\"c\" 1",
        "a{b=\"c} 1",
        "ok 1\nnot ok\n",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        if (parse(&s, bad[i]))
            fail_msg("taken: %s", bad[i]);
}

/* ---- breaker ---- */

static struct backend *make(int64_t now)
{
    struct gateway_config c;
    struct err e;
    static const char yaml[] =
        "backends: [{name: a, url: 'http://a', models: [m], fail_after: 3, "
        "eject: 100ms, eject_max: 350ms, slow_start: 1s, max_requests: 4}]\n";
    assert_int_equal(read_config(&c, yaml, &e), 0);
    struct backend *b = backend_new(&c.backends[0], now);
    gateway_config_release(&c);
    return b;
}

static void run(struct backend *b, enum backend_outcome o, int64_t now)
{
    backend_begin(b, 10, now);
    backend_end(b, 10, o, "because", now);
}

static void test_breaker(void **state)
{
    int64_t now = 1000;
    struct backend *b = make(now);
    assert_int_equal(b->state, BACKEND_HEALTHY);
    assert_true(backend_weight(b, now) == 1); /* nobody else is warm at the start either */
    run(b, OUTCOME_FAILED, now);
    run(b, OUTCOME_FAILED, now);
    run(b, OUTCOME_OK, now); /* not in a row */
    run(b, OUTCOME_FAILED, now);
    run(b, OUTCOME_FAILED, now);
    run(b, OUTCOME_NEUTRAL, now); /* says nothing */
    assert_true(backend_usable(b));
    run(b, OUTCOME_FAILED, now);
    assert_int_equal(b->state, BACKEND_EJECTED);
    assert_false(backend_usable(b));
    assert_int_equal(b->probe_at_ms, now + 100);
    /* failed probes double the pause, up to the maximum */
    static const int pauses[] = {200, 350, 350};
    for (int i = 0; i < 3; i++) {
        now = b->probe_at_ms;
        backend_probed(b, OUTCOME_UNREACHABLE, "gone", now);
        assert_int_equal(b->probe_at_ms, now + pauses[i]);
        assert_false(backend_usable(b));
    }
    /* one trial at a time; a failed one ejects again */
    now = b->probe_at_ms;
    backend_probed(b, OUTCOME_OK, NULL, now);
    assert_int_equal(b->state, BACKEND_HALF_OPEN);
    assert_true(backend_usable(b));
    backend_begin(b, 10, now);
    assert_false(backend_usable(b));
    backend_end(b, 10, OUTCOME_FAILED, "again", now);
    assert_int_equal(b->state, BACKEND_EJECTED);
    now = b->probe_at_ms;
    backend_probed(b, OUTCOME_OK, NULL, now);
    run(b, OUTCOME_OK, now);
    assert_int_equal(b->state, BACKEND_HEALTHY);
    assert_int_equal(b->ejections, 0);
    /* slow start */
    assert_true(backend_weight(b, now) == 0.1);
    assert_true(backend_weight(b, now + 500) == 0.5);
    assert_true(backend_weight(b, now + 1000) == 1);
    run(b, OUTCOME_UNREACHABLE, now);
    assert_int_equal(b->state, BACKEND_EJECTED);
    assert_int_equal(b->requests, 0);
    assert_int_equal(b->tokens, 0);
    backend_unref(b);
}

static void test_limits_and_models(void **state)
{
    struct backend *b = make(0);
    assert_string_equal(backend_serves(b, "m"), "m");
    assert_null(backend_serves(b, "other"));
    for (int i = 0; i < 4; i++) {
        assert_true(backend_usable(b));
        backend_begin(b, 5, 0);
    }
    assert_false(backend_usable(b));
    backend_set_state(b, BACKEND_DRAINING, 0);
    backend_unref(b); /* its requests hold it */
    for (int i = 0; i < 4; i++)
        backend_end(b, 5, OUTCOME_OK, NULL, 0);
}

static void test_retry_budget(void **state)
{
    struct retry_budget r;
    retry_budget_init(&r, 0.2);
    int n = 0;
    while (retry_budget_take(&r))
        n++;
    assert_int_equal(n, 10);
    for (int i = 0; i < 1000; i++) {
        retry_budget_request(&r);
        n += retry_budget_take(&r);
    }
    assert_in_range(n, 205, 211); /* the reserve and a fifth */
}

/* ---- event streams ---- */

static void test_events_pass_whole(void **state)
{
    static const char stream[] = ": ping\n\n"
                                 "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n"
                                 "event: x\r\ndata: {\"b\":1}\r\n\r\n"
                                 "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,"
                                 "\"completion_tokens\":3}}\n\n"
                                 "data: [DONE]\n\n";
    struct rng rng;
    rng_seed(&rng, 4);
    for (int round = 0; round < 2000; round++) {
        struct event_pass p = {0};
        struct buf got = {0};
        struct str out;
        size_t most = 1 + rng_below(&rng, 40);
        for (size_t at = 0; at < sizeof stream - 1;) {
            size_t n = 1 + rng_below(&rng, most);
            n = n < sizeof stream - 1 - at ? n : sizeof stream - 1 - at;
            assert_true(event_pass_add(&p, stream + at, n, &out));
            if (out.n) {
                buf_add(&got, out.p, out.n);
                assert_int_equal(got.data[got.len - 1], '\n');
                size_t back = got.data[got.len - 2] == '\r' ? 3 : 2;
                assert_int_equal(got.data[got.len - back], '\n');
            }
            at += n;
        }
        assert_string_equal(buf_str(&got), stream);
        assert_true(p.done);
        assert_int_equal(p.n_data, 3);
        assert_int_equal(p.prompt_tokens, 7);
        assert_int_equal(p.completion_tokens, 3);
        event_pass_release(&p);
        buf_release(&got);
    }
}

static void test_events_refuse(void **state)
{
    static const char *const bad[] = {
        "<html>\n\n",
        "data: garbage\n\n",
        "data: {\"a\":1}\n\ndata: {\"cut\n\n",
        "data: [DONE]\n\ndata: {\"more\":1}\n\n",
        "\x01\x02\n",
        "HTTP/1.1 200 OK\r\n",
    };
    struct str out;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct event_pass p = {0};
        if (event_pass_add(&p, bad[i], strlen(bad[i]), &out))
            fail_msg("taken: %s", bad[i]);
        event_pass_release(&p);
    }
    struct event_pass p = {0}; /* an event without end */
    char *piece = xcalloc(1, 1 << 20);
    memset(piece, 'x', 1 << 20);
    bool fine = event_pass_add(&p, "data: {", 7, &out);
    for (int i = 0; i < 5 && fine; i++)
        fine = event_pass_add(&p, piece, 1 << 20, &out);
    assert_false(fine);
    free(piece);
    event_pass_release(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_api),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_config_refuses),
        cmocka_unit_test(test_pushed_names),
        cmocka_unit_test(test_scrape),
        cmocka_unit_test(test_breaker),
        cmocka_unit_test(test_limits_and_models),
        cmocka_unit_test(test_retry_budget),
        cmocka_unit_test(test_events_pass_whole),
        cmocka_unit_test(test_events_refuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
