/* The service end to end over raw sockets, with a model whose answers are known. */
#define _GNU_SOURCE /* memmem */
#include "server_rig.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"

#define CHAT "/v1/chat/completions"
#define HI   "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

static void expect_error(const struct response *r, int status, const char *param, const char *code)
{
    if (r->status != status)
        fail_msg("%d instead of %d: %s", r->status, status, buf_str(&r->body));
    json_t *v = jr_parse(buf_str(&r->body), r->body.len, NULL);
    const json_t *error = json_object_get(v, "error");
    assert_non_null(json_string_value(json_object_get(error, "message")));
    assert_non_null(json_string_value(json_object_get(error, "type")));
    const char *p = json_string_value(json_object_get(error, "param"));
    const char *c = json_string_value(json_object_get(error, "code"));
    assert_string_equal(p ? p : "", param);
    assert_string_equal(c ? c : "", code);
    json_decref(v);
}

static void check(struct rig *r, const char *path, const char *body, const char *want)
{
    struct response a;
    request(r, "POST", path, body, &a);
    mask(&a.body);
    assert_true(a.complete);
    assert_string_equal(buf_str(&a.body), want);
    response_release(&a);
}

static void refused(struct rig *r, const char *path, const char *body, int status,
                    const char *param, const char *code)
{
    struct response a;
    request(r, "POST", path, body, &a);
    expect_error(&a, status, param, code);
    response_release(&a);
}

/* ---- routes ---- */

static void test_routes(void **state)
{
    static const struct {
        const char *method, *path;
        int status;
        const char *head, *body; /* must hold these */
    } cases[] = {
        {"GET", "/health", 200, "", "{\"status\":\"ok\"}"},
        {"GET", "/v1/health", 200, "", "{\"status\":\"ok\"}"},
        {"HEAD", "/health", 200, "Content-Length: 15", ""},
        {"GET", "/ping", 200, "Content-Length: 0", ""},
        {"POST", "/ping", 200, "", ""},
        {"GET", "/version", 200, "application/json", "{\"version\":\"1.2.3\"}"},
        {"GET", "/v1/models", 200, "", "\"id\":\"alphabet\""},
        {"GET", "/v1/models/alphabet", 200, "", "\"max_model_len\":2048"},
        {"GET", "/v1/models/alpha%62et", 200, "", "\"object\":\"model\""},
        {"GET", "/v1/models/no/such", 404, "", "model_not_found"},
        {"GET", "/metrics", 200, "text/plain; version=0.0.4", "vllm:num_requests_running{"},
        {"GET", "/nowhere", 404, "", "\"code\":\"not_found\""},
        {"GET", "/v1/models/", 404, "", "not_found"},
        {"GET", CHAT, 405, "Allow: POST, OPTIONS\r\n", "method_not_allowed"},
        {"DELETE", "/health", 405, "Allow: GET, HEAD, OPTIONS\r\n", "method_not_allowed"},
        {"OPTIONS", "/ping", 204, "Allow: GET, HEAD, POST, OPTIONS\r\n", ""},
        {"OPTIONS", "*", 204, "Allow: OPTIONS\r\n", ""},
    };
    struct rig r;
    rig_open(&r, &(struct rig_opts){0});
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct response a;
        request(&r, cases[i].method, cases[i].path, NULL, &a);
        if (a.status != cases[i].status)
            fail_msg("%s %s: %d", cases[i].method, cases[i].path, a.status);
        if (!strstr(a.head.data, cases[i].head) || !strstr(buf_str(&a.body), cases[i].body))
            fail_msg("%s %s: %s%s", cases[i].method, cases[i].path, a.head.data, buf_str(&a.body));
        assert_non_null(strstr(a.head.data, "x-request-id: req_"));
        response_release(&a);
    }
    rig_close(&r);
}

static void test_request_id(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){0});
    int fd = client_open(&r);
    client_send(fd, "GET", "/health", "X-Request-Id: my-42\r\n", NULL, 0);
    client_read(fd, &a);
    assert_non_null(strstr(a.head.data, "x-request-id: my-42\r\n"));
    response_release(&a);
    rig_close(&r);
}

/* ---- answers ---- */

#define RESPONSE_HEAD(object)                                                                      \
    "{\"id\":\"chatcmpl-*\",\"object\":\"" object "\",\"created\":*,\"model\":\"alphabet\","       \
    "\"system_fingerprint\":\"fp_*\",\"choices\":["
#define TEXT_HEAD                                                                                  \
    "{\"id\":\"cmpl-*\",\"object\":\"text_completion\",\"created\":*,\"model\":\"alphabet\","      \
    "\"system_fingerprint\":\"fp_*\",\"choices\":["
#define USAGE(prompt, cached, completion, total)                                                   \
    "\"usage\":{\"prompt_tokens\":" #prompt ",\"completion_tokens\":" #completion                  \
    ",\"total_tokens\":" #total ",\"prompt_tokens_details\":{\"cached_tokens\":" #cached "}}"

static void test_chat(void **state)
{
    struct rig r;
    rig_open(&r, &(struct rig_opts){0});
    check(
        &r, CHAT, "{" HI "}",
        RESPONSE_HEAD(
            "chat.completion") "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
                               "\"abcdefghijklmnopqrstuvwxyz\",\"refusal\":null},\"logprobs\":null,"
                               "\"finish_reason\":\"stop\"}]," USAGE(21, 0, 27, 48) "}");
    check(
        &r, CHAT, "{" HI ",\"model\":\"alphabet\",\"max_tokens\":3}",
        RESPONSE_HEAD("chat.completion") "{\"index\":0,\"message\":{\"role\":\"assistant\","
                                         "\"content\":\"abc\",\"refusal\":null},"
                                         "\"logprobs\":null,\"finish_reason\":\"length\"}]," USAGE(
                                             21, 20, 3, 24) "}");
    check(&r, CHAT, "{" HI ",\"stop\":[\"zz\",\"def\"]}",
          RESPONSE_HEAD("chat.completion") "{\"index\":0,\"message\":{\"role\":\"assistant\","
                                           "\"content\":\"abc\",\"refusal\":null},"
                                           "\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_"
                                           "reason\":\"def\"}]," USAGE(21, 20, 6, 27) "}");
    rig_close(&r);
}

#define CHUNK(rest) "data: " RESPONSE_HEAD("chat.completion.chunk") rest "\n\n"

static void test_stream(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){0});
    request(&r, "POST", CHAT,
            "{" HI ",\"stream\":true,\"max_tokens\":2,\"stream_options\":{\"include_usage\":true}}",
            &a);
    mask(&a.body);
    assert_int_equal(a.status, 200);
    assert_true(a.complete);
    assert_non_null(strstr(a.head.data, "text/event-stream"));
    assert_string_equal(
        buf_str(&a.body),
        CHUNK("{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
              "\"finish_reason\":null}],\"usage\":null}")
            CHUNK("{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}],\"usage\":"
                  "null}") CHUNK("{\"index\":0,\"delta\":{\"content\":\"b\"},\"finish_reason\":"
                                 "null}],\"usage\":null}")
                CHUNK("{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}],\"usage\":null}")
                    CHUNK("]," USAGE(21, 0, 2, 23) "}") "data: [DONE]\n\n");
    response_release(&a);
    rig_close(&r);
}

/* Text of one choice of a stream, and what else must be true of it. */
static void choice_text(const char *body, int index, struct buf *text, const char **finish)
{
    *finish = NULL;
    for (const char *p = body; (p = strstr(p, "data: {")); p++) {
        const char *end = strstr(p, "\n\n");
        json_t *v = jr_parse(p + 6, (size_t)(end - p - 6), NULL);
        assert_non_null(v);
        const json_t *c = json_array_get(json_object_get(v, "choices"), 0);
        if (c && json_integer_value(json_object_get(c, "index")) == index) {
            assert_null(*finish); /* nothing comes after the finish chunk */
            const json_t *delta = json_object_get(c, "delta");
            const json_t *t =
                delta ? json_object_get(delta, "content") : json_object_get(c, "text");
            buf_adds(text, json_string_value(t) ? json_string_value(t) : "");
            const char *f = json_string_value(json_object_get(c, "finish_reason"));
            *finish = f ? (strcmp(f, "stop") == 0 ? "stop" : "length") : NULL;
        }
        json_decref(v);
    }
}

static void test_many_choices(void **state)
{
    struct rig r;
    struct response a;
    const char *finish;
    rig_open(&r, &(struct rig_opts){0});
    request(&r, "POST", CHAT, "{" HI ",\"stream\":true,\"n\":3,\"stop\":\"f\"}", &a);
    for (int i = 0; i < 3; i++) {
        struct buf text = {0};
        choice_text(a.body.data, i, &text, &finish);
        assert_string_equal(buf_str(&text), "abcde");
        assert_string_equal(finish, "stop");
        buf_release(&text);
    }
    assert_string_equal(a.body.data + a.body.len - 14, "data: [DONE]\n\n");
    response_release(&a);
    /* a prompt counts once in usage, whatever n is */
    check(&r, "/v1/completions",
          "{\"prompt\":[\"x\",\"y\"],\"n\":2,\"add_special_tokens\":false,\"echo\":true}",
          TEXT_HEAD
          "{\"index\":0,\"text\":\"xyz\",\"logprobs\":null,\"finish_reason\":\"stop\"},"
          "{\"index\":1,\"text\":\"xyz\",\"logprobs\":null,\"finish_reason\":\"stop\"},"
          "{\"index\":2,\"text\":\"yz\",\"logprobs\":null,\"finish_reason\":\"stop\"},"
          "{\"index\":3,\"text\":\"yz\",\"logprobs\":null,\"finish_reason\":\"stop\"}]," USAGE(
              2, 0, 10, 12) "}");
    rig_close(&r);
}

static void test_completion(void **state)
{
    struct rig r;
    struct response a;
    const char *finish;
    struct buf text = {0};
    rig_open(&r, &(struct rig_opts){0});
    check(&r, "/v1/completions", "{\"prompt\":[282],\"max_tokens\":2}",
          TEXT_HEAD
          "{\"index\":0,\"text\":\"wx\",\"logprobs\":null,\"finish_reason\":\"length\"}]," USAGE(
              1, 0, 2, 3) "}");
    request(&r, "POST", "/v1/completions",
            "{\"prompt\":\"w\",\"stream\":true,\"echo\":true,\"logprobs\":null}", &a);
    choice_text(a.body.data, 0, &text, &finish);
    assert_string_equal(buf_str(&text), "wxyz");
    assert_string_equal(finish, "stop");
    buf_release(&text);
    response_release(&a);
    rig_close(&r);
}

/* One row for each token of the answer; the token that ends it has none. */
static void test_logprobs(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){0});
    request(&r, "POST", "/v1/completions", "{\"prompt\":\"w\",\"logprobs\":2}", &a);
    json_t *v = jr_parse(a.body.data, a.body.len, NULL);
    const json_t *l = json_object_get(json_array_get(json_object_get(v, "choices"), 0), "logprobs");
    const json_t *tokens = json_object_get(l, "tokens");
    assert_int_equal(json_array_size(tokens), 3);
    assert_string_equal(json_string_value(json_array_get(tokens, 2)), "z");
    assert_int_equal(json_array_size(json_object_get(l, "token_logprobs")), 3);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(l, "text_offset"), 2)), 2);
    json_decref(v);
    response_release(&a);
    request(&r, "POST", CHAT, "{" HI ",\"logprobs\":true,\"top_logprobs\":3,\"max_tokens\":4}", &a);
    v = jr_parse(a.body.data, a.body.len, NULL);
    l = json_object_get(json_array_get(json_object_get(v, "choices"), 0), "logprobs");
    l = json_object_get(l, "content");
    assert_int_equal(json_array_size(l), 4);
    const json_t *row = json_array_get(l, 1);
    assert_string_equal(json_string_value(json_object_get(row, "token")), "b");
    assert_true(json_number_value(json_object_get(row, "logprob")) > -1e-3);
    assert_int_equal(json_array_size(json_object_get(row, "top_logprobs")), 3);
    json_decref(v);
    response_release(&a);
    rig_close(&r);
}

static void test_tokenize(void **state)
{
    struct rig r;
    rig_open(&r, &(struct rig_opts){0});
    check(&r, "/tokenize", "{\"prompt\":\"ab\",\"return_token_strs\":true}",
          "{\"count\":3,\"max_model_len\":2048,\"tokens\":[1,261,262],"
          "\"token_strs\":[\"<s>\",\"a\",\"b\"]}");
    check(&r, "/tokenize", "{\"content\":\"a<|im_end|>\"}", "{\"tokens\":[261,4]}");
    check(&r, "/tokenize", "{\"content\":\"a<\",\"parse_special\":false,\"with_pieces\":true}",
          "{\"tokens\":[{\"id\":261,\"piece\":\"a\"},{\"id\":65,\"piece\":\"<\"}]}");
    check(&r, "/detokenize", "{\"tokens\":[261,262,4]}",
          "{\"prompt\":\"ab<|im_end|>\",\"content\":\"ab<|im_end|>\"}");
    refused(&r, "/detokenize", "{\"tokens\":[287]}", 400, "tokens", "");
    refused(&r, "/detokenize", "{\"tokens\":7}", 400, "tokens", "");
    refused(&r, "/detokenize", "[", 400, "", "");
    refused(&r, "/tokenize", "{\"prompt\":\"a\",\"model\":\"x\"}", 404, "model", "model_not_found");
    struct response a;
    request(&r, "POST", "/tokenize", "{" HI "}", &a);
    assert_non_null(strstr(a.body.data, "{\"count\":21,"));
    /* what a user writes is text, never a control token */
    response_release(&a);
    request(&r, "POST", "/tokenize",
            "{\"messages\":[{\"role\":\"user\",\"content\":\"<|im_end|>\"}],"
            "\"add_generation_prompt\":false}",
            &a);
    assert_null(strstr(a.body.data, ",4,65"));
    assert_non_null(strstr(a.body.data, "\"count\":18,"));
    response_release(&a);
    rig_close(&r);
}

/* ---- refusals ---- */

static void test_refusals(void **state)
{
    struct rig r;
    rig_open(&r, &(struct rig_opts){.n_ctx = 64});
    refused(&r, CHAT, "{", 400, "", "");
    refused(&r, CHAT, "{" HI ",\"temperature\":3}", 400, "temperature", "");
    refused(&r, CHAT, "{" HI ",\"model\":\"gpt-9\"}", 404, "model", "model_not_found");
    refused(&r, CHAT, "{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}", 400, "messages",
            "");
    refused(&r, "/v1/completions", "{\"prompt\":\"\",\"add_special_tokens\":false}", 400, "prompt",
            "");
    refused(&r, "/v1/completions", "{\"prompt\":[999]}", 400, "prompt", "");
    refused(&r, CHAT, "{" HI ",\"logit_bias\":{\"999\":1}}", 400, "logit_bias", "");
    refused(
        &r, "/v1/completions",
        "{\"prompt\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}",
        400, "prompt", "context_length_exceeded");
    refused(&r, CHAT, "{" HI ",\"continue_final_message\":true,\"n\":17}", 400, "n", "");
    rig_close(&r);
}

static void test_continue_final(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){0});
    request(&r, "POST", CHAT,
            "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},"
            "{\"role\":\"assistant\",\"content\":\"uvw\"}],\"continue_final_message\":true}",
            &a);
    assert_non_null(strstr(buf_str(&a.body), "\"content\":\"xyz\""));
    response_release(&a);
    rig_close(&r);
}

/* Before the first token an error has its status; after it, it is an event and the stream ends. */
static void test_engine_errors(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){0});
    refused(&r, "/v1/completions", "{\"prompt\":\"!\"}", 500, "", "");
    refused(&r, "/v1/completions", "{\"prompt\":\"!\",\"stream\":true}", 500, "", "");
    request(&r, "POST", "/v1/completions", "{\"prompt\":\"#\",\"stream\":true}", &a);
    assert_int_equal(a.status, 200);
    assert_true(a.complete);
    assert_non_null(strstr(a.body.data, "\"text\":\"!\""));
    const char *error = strstr(a.body.data, "data: {\"error\":{\"message\":\"");
    assert_non_null(error);
    assert_string_equal(strstr(error, "\n\n"), "\n\ndata: [DONE]\n\n");
    response_release(&a);
    rig_close(&r);
}

static void test_queue_full(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){.manual = true, .max_queue = 1});
    int first = client_open(&r);
    client_send(first, "POST", CHAT, "", "{" HI "}", strlen("{" HI "}"));
    rig_wait_running(&r, 1);
    request(&r, "POST", CHAT, "{" HI "}", &a);
    expect_error(&a, 429, "", "queue_full");
    assert_non_null(strstr(a.head.data, "Retry-After: "));
    response_release(&a);
    request(&r, "GET", "/metrics", NULL, &a);
    assert_non_null(strstr(a.body.data, "vllm:admission_rejections_total{model_name=\"alphabet\","
                                        "engine=\"0\"} 1\n"));
    assert_non_null(strstr(a.body.data, "terrace_http_requests_total{method=\"POST\",route=\"" CHAT
                                        "\",status=\"429\"} 1\n"));
    response_release(&a);
    while (engine_step(r.engine))
        ;
    client_read(first, &a);
    assert_int_equal(a.status, 200);
    response_release(&a);
    rig_close(&r);
}

static void wait_until(int64_t ms)
{
    while (clock_ms() < ms)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
}

/* Past its deadline a request ends, while it waits or while it runs. */
static void test_timeout(void **state)
{
    static const char in_body[] = "{" HI ",\"timeout\":0.05}";
    static const char running[] = "{" HI ",\"ignore_eos\":true,\"stream\":true}";
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){.manual = true});
    int fd = client_open(&r);
    client_send(fd, "POST", CHAT, "", in_body, strlen(in_body));
    rig_wait_running(&r, 1);
    wait_until(clock_ms() + 52);
    engine_step(r.engine);
    client_read(fd, &a);
    expect_error(&a, 504, "", "");
    response_release(&a);
    fd = client_open(&r);
    client_send(fd, "POST", CHAT, "X-Request-Timeout: 1\r\n", running, strlen(running));
    rig_wait_running(&r, 1);
    while (engine_step(r.engine)) /* 2027 tokens would take longer: each waits a little */
        wait_until(clock_ms() + 2);
    client_read(fd, &a);
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body.data, "\"type\":\"timeout_error\""));
    response_release(&a);
    fd = client_open(&r);
    client_send(fd, "POST", CHAT, "X-Request-Timeout: soon\r\n", "{" HI "}", strlen("{" HI "}"));
    client_read(fd, &a);
    expect_error(&a, 400, "x-request-timeout", "");
    response_release(&a);
    request(&r, "GET", "/metrics", NULL, &a);
    assert_non_null(strstr(a.body.data, "finished_reason=\"timeout\"} 2\n"));
    response_release(&a);
    rig_close(&r);
}

/* ---- loading ---- */

static void test_loading(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){.unattached = true});
    struct server_watch *w = server_watch_begin(r.server, "loading alphabet", 0);
    server_watch_progress(w, 45, 100);
    request(&r, "GET", "/health", NULL, &a);
    assert_int_equal(a.status, 503);
    assert_string_equal(a.body.data,
                        "{\"status\":\"loading\",\"reason\":\"loading alphabet: 45 %\","
                        "\"progress\":0.45}");
    response_release(&a);
    request(&r, "POST", CHAT, "{" HI "}", &a);
    expect_error(&a, 503, "", "model_not_ready");
    assert_non_null(strstr(a.body.data, "45 %"));
    assert_non_null(strstr(a.head.data, "Retry-After: 1\r\n"));
    response_release(&a);
    struct server_watch *stalled = server_watch_begin(r.server, "downloading b", -1);
    request(&r, "GET", "/health", NULL, &a);
    assert_non_null(strstr(a.body.data, "\"unhealthy\""));
    assert_non_null(strstr(a.body.data, "downloading b, no progress"));
    response_release(&a);
    server_watch_end(stalled, NULL);
    server_watch_end(w, NULL);
    rig_attach(&r);
    request(&r, "POST", CHAT, "{" HI "}", &a);
    assert_int_equal(a.status, 200);
    response_release(&a);
    struct err e = {.code = ERR_IO, .msg = "no space left"};
    server_watch_end(server_watch_begin(r.server, "downloading c", 0), &e);
    request(&r, "GET", "/health", NULL, &a);
    assert_int_equal(a.status, 503);
    assert_non_null(strstr(a.body.data, "downloading c failed: no space left"));
    response_release(&a);
    rig_close(&r);
}

/* ---- clients that leave, clients that are slow ---- */

/* The engine must be rid of the request with the next step. */
static void test_client_gone(void **state)
{
    static const char *const bodies[] = {
        "{" HI ",\"ignore_eos\":true,\"max_tokens\":1000}",
        "{" HI ",\"ignore_eos\":true,\"max_tokens\":1000,\"stream\":true}",
        "{" HI ",\"ignore_eos\":true,\"max_tokens\":1000,\"stream\":true,\"n\":4}",
    };
    struct rig r;
    rig_open(&r, &(struct rig_opts){.manual = true});
    for (size_t i = 0; i < 2 * ARRAY_LEN(bodies); i++) {
        const char *body = bodies[i / 2];
        int n = i / 2 == 2 ? 4 : 1;
        int fd = client_open(&r);
        client_send(fd, "POST", CHAT, "", body, strlen(body));
        rig_wait_running(&r, n);
        if (i % 2) /* once while it waits, once while it runs */
            for (int k = 0; k < 3; k++)
                engine_step(r.engine);
        uint64_t done = rig_stats(&r).requests_done;
        close(fd);
        int64_t until = clock_ms() + 60000;
        uint64_t steps = rig_stats(&r).steps;
        while (rig_stats(&r).requests_done < done + (uint64_t)n) {
            /* a step here may still be before the news: it must not take more than one after it */
            engine_step(r.engine);
            assert_true(clock_ms() < until);
            nanosleep(&(struct timespec){0, 1000000}, NULL);
        }
        assert_true(rig_stats(&r).steps - steps < 900);
        rig_wait_running(&r, 0);
    }
    struct response a;
    request(&r, "GET", "/metrics", NULL, &a);
    assert_non_null(strstr(a.body.data, "finished_reason=\"abort\"} 12\n"));
    assert_non_null(strstr(a.body.data, "terrace_http_client_gone_total 6\n"));
    response_release(&a);
    rig_close(&r);
}

/* A client that does not read stops its own generation, and nothing is lost when it reads again. */
static void test_slow_reader(void **state)
{
    enum { TOKENS = 27000 };
    char body[160];
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){.n_ctx = 65536});
    int n = snprintf(body, sizeof body,
                     "{" HI ",\"ignore_eos\":true,\"max_tokens\":%d,\"stream\":true}", TOKENS);
    int fd = client_open(&r);
    client_send(fd, "POST", CHAT, "", body, (size_t)n);
    uint64_t last = 0;
    for (int same = 0; same < 100; same++) { /* until nothing has moved for a while */
        nanosleep(&(struct timespec){0, 2000000}, NULL);
        uint64_t now = rig_stats(&r).generated_tokens;
        same = now == last && now > 0 ? same : 0;
        last = now;
        if (now >= TOKENS)
            break;
    }
    assert_true(last < TOKENS);
    check(&r, "/v1/completions", "{\"prompt\":[282],\"max_tokens\":2}",
          TEXT_HEAD
          "{\"index\":0,\"text\":\"wx\",\"logprobs\":null,\"finish_reason\":\"length\"}]," USAGE(
              1, 0, 2, 3) "}");
    client_read(fd, &a);
    assert_true(a.complete);
    static const char key[] = "\"content\":\"";
    const char *end = a.body.data + a.body.len;
    size_t chunks = 0;
    for (const char *p = a.body.data; (p = memmem(p, (size_t)(end - p), key, sizeof key - 1)); p++)
        chunks++;
    /* one role chunk, and all but the ends of generation have text */
    assert_int_equal(chunks, 1 + TOKENS - TOKENS / 27);
    response_release(&a);
    rig_close(&r);
}

/* ---- large bodies, the end ---- */

static void test_large_body(void **state)
{
    enum { BYTES = 400000 };
    struct rig r;
    struct response a;
    struct buf b = {0};
    rig_open(&r, &(struct rig_opts){.n_ctx = 500000});
    buf_adds(&b, "{\"max_tokens\":3,\"prompt\":\"");
    memset(buf_reserve(&b, BYTES), 'a', BYTES);
    b.len += BYTES;
    buf_adds(&b, "\"}");
    request(&r, "POST", "/v1/completions", b.data, &a);
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body.data, "\"text\":\"bcd\""));
    assert_non_null(strstr(a.body.data, "\"prompt_tokens\":400001"));
    response_release(&a);
    for (int i = 0; i < 3; i++) { /* leaves while the pool works */
        int fd = client_open(&r);
        client_send(fd, "POST", "/v1/completions", "", b.data, b.len);
        close(fd);
    }
    b.data[b.len - 1] = 'x';
    request(&r, "POST", "/v1/completions", b.data, &a);
    expect_error(&a, 400, "", "");
    response_release(&a);
    buf_release(&b);
    rig_close(&r);
}

static void *stop_later(void *arg)
{
    rig_stop(arg);
    return NULL;
}

/* A running answer is finished, nobody new gets in. */
static void test_drain(void **state)
{
    struct rig r;
    struct response a;
    pthread_t stopper;
    rig_open(&r, &(struct rig_opts){.manual = true, .drain_ms = 60000});
    int fd = client_open(&r);
    client_send(fd, "POST", CHAT, "", "{" HI "}", strlen("{" HI "}"));
    rig_wait_running(&r, 1);
    assert_int_equal(pthread_create(&stopper, NULL, stop_later, &r), 0);
    for (int other; (other = client_open(&r)) >= 0;)
        close(other);
    while (engine_step(r.engine))
        ;
    client_read(fd, &a);
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body.data, "abcdefghijklmnopqrstuvwxyz"));
    response_release(&a);
    pthread_join(stopper, NULL);
    rig_close(&r);
}

/* With no time to drain, what runs is cut off and everything is freed. */
static void test_stop_at_once(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){.drain_ms = 0, .n_ctx = 65536});
    static const char body[] = "{" HI ",\"ignore_eos\":true,\"max_tokens\":60000}";
    int fd = client_open(&r);
    client_send(fd, "POST", CHAT, "", body, strlen(body));
    rig_wait_running(&r, 1);
    rig_stop(&r);
    client_read(fd, &a);
    assert_false(a.complete && a.status == 200);
    response_release(&a);
    rig_close(&r);
}

static void test_unknown_fields(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){0});
    request(&r, "POST", CHAT, "{" HI ",\"zork\":1,\"blorb\":2}", &a);
    assert_int_equal(a.status, 200);
    response_release(&a);
    request(&r, "GET", "/metrics", NULL, &a);
    assert_non_null(strstr(a.body.data, "terrace_request_unknown_fields_total 2\n"));
    assert_non_null(strstr(a.body.data, "vllm:time_to_first_token_seconds_count{model_name="
                                        "\"alphabet\",engine=\"0\"} 1\n"));
    assert_non_null(strstr(a.body.data, "finished_reason=\"stop\"} 1\n"));
    response_release(&a);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_routes),        cmocka_unit_test(test_request_id),
        cmocka_unit_test(test_chat),          cmocka_unit_test(test_stream),
        cmocka_unit_test(test_many_choices),  cmocka_unit_test(test_completion),
        cmocka_unit_test(test_logprobs),      cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_continue_final),
        cmocka_unit_test(test_engine_errors), cmocka_unit_test(test_queue_full),
        cmocka_unit_test(test_timeout),       cmocka_unit_test(test_loading),
        cmocka_unit_test(test_client_gone),   cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_large_body),    cmocka_unit_test(test_drain),
        cmocka_unit_test(test_stop_at_once),  cmocka_unit_test(test_unknown_fields),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
