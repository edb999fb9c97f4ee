/* Tool calls from what a model says to what a client reads, streamed and not. */
#include "server_rig.h"

#include <string.h>

#include "base/json.h"
#include "base/mem.h"

#define CHAT "/v1/chat/completions"
#define TOOLS                                                                                      \
    "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"tools\":[{\"type\":\"function\","     \
    "\"function\":{\"name\":\"sum\",\"parameters\":{\"type\":\"object\"}}}]"
#define TEMPLATE(marker)                                                                           \
    "{% if tools %}" marker "{{ tools|tojson }}{% endif %}{% for m in messages %}{{ m.content }}"  \
    "{% endfor %}"

static const char hermes[] = TEMPLATE("<tool_call>"), mistral[] = TEMPLATE("[TOOL_CALLS]"),
                  llama[] = TEMPLATE("<|python_tag|>"), other[] = TEMPLATE("");

#define CALL "{\"name\":\"sum\",\"arguments\":{\"a\":1}}"

/* Calls are written name(arguments); */
static const struct {
    const char *chat_template, *script, *more, *content, *calls, *finish;
} cases[] = {
    {hermes, "<tool_call>\n" CALL "\n</tool_call>", "", "", "sum({\"a\":1});", "tool_calls"},
    {hermes, "I add.\n<tool_call>" CALL "</tool_call>\n<tool_call>" CALL "</tool_call>", "",
     "I add.\n", "sum({\"a\":1});sum({\"a\":1});", "tool_calls"},
    {hermes, "<tool_call>" CALL "</tool_call><tool_call>" CALL "</tool_call>",
     ",\"parallel_tool_calls\":false", "", "sum({\"a\":1});", "tool_calls"},
    {hermes, "2 <tool_call>{no}</tool_call>", "", "2 <tool_call>{no}</tool_call>", "", "stop"},
    {hermes, "no <tool", "", "no <tool", "", "stop"},
    {hermes, "<tool_call>" CALL "</tool_call>", ",\"tool_choice\":\"none\"",
     "<tool_call>" CALL "</tool_call>", "", "stop"},
    {hermes, "<tool_call>" CALL "</tool_call> and more", ",\"max_tokens\":60", "an",
     "sum({\"a\":1});", "length"},
    {llama, "{\"name\":\"sum\",\"parameters\":{\"a\":1}}", "", "", "sum({\"a\":1});", "tool_calls"},
    {llama, "<|python_tag|>{\"name\":\"sum\",\"parameters\":{}}", "", "", "sum({});", "tool_calls"},
    {llama, "{\"a\":1}", "", "{\"a\":1}", "", "stop"},
    {mistral, "[TOOL_CALLS][" CALL "]", "", "", "sum({\"a\":1});", "tool_calls"},
    {mistral, "[TOOL_CALLS]sum[ARGS]{\"a\":1}", "", "", "sum({\"a\":1});", "tool_calls"},
    {other, "<tool_call>" CALL "</tool_call>", "", "<tool_call>" CALL "</tool_call>", "", "stop"},
};

static void add_calls(const json_t *list, bool chunk, const char *chat_template, struct buf *out)
{
    static int64_t seen; /* calls of this answer */
    size_t i;
    const json_t *call;
    if (!out->len)
        seen = 0;
    json_array_foreach(list, i, call)
    {
        const json_t *function = json_object_get(call, "function");
        const char *id = json_string_value(json_object_get(call, "id"));
        assert_string_equal(json_string_value(json_object_get(call, "type")), "function");
        if (chunk)
            assert_int_equal(json_integer_value(json_object_get(call, "index")), seen++);
        else
            assert_null(json_object_get(call, "index"));
        if (chat_template == mistral)
            assert_int_equal(strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789"), 9);
        assert_int_equal(strlen(id), chat_template == mistral ? 9 : strlen("call_") + 24);
        buf_addf(out, "%s(%s);", json_string_value(json_object_get(function, "name")),
                 json_string_value(json_object_get(function, "arguments")));
    }
}

/* What a client reads of one answer. */
struct answer {
    struct buf content, calls, finish;
};

static void read_piece(const json_t *choice, const char *member, size_t i, struct answer *a)
{
    const json_t *m = json_object_get(choice, member);
    const json_t *content = json_object_get(m, "content");
    bool chunk = strcmp(member, "delta") == 0;
    if (!chunk && !cases[i].content[0] && cases[i].calls[0])
        assert_true(json_is_null(content));
    buf_adds(&a->content, json_string_value(content) ? json_string_value(content) : "");
    add_calls(json_object_get(m, "tool_calls"), chunk, cases[i].chat_template, &a->calls);
    const char *finish = json_string_value(json_object_get(choice, "finish_reason"));
    buf_adds(&a->finish, finish ? finish : "");
}

static void read_answer(const struct response *r, bool stream, size_t i, struct answer *a)
{
    const char *p = buf_str(&r->body);
    if (!stream) {
        json_t *v = jr_parse(p, r->body.len, NULL);
        read_piece(json_array_get(json_object_get(v, "choices"), 0), "message", i, a);
        json_decref(v);
        return;
    }
    for (; (p = strstr(p, "data: {")); p++) {
        json_t *v = jr_parse(p + 6, (size_t)(strstr(p, "\n\n") - p - 6), NULL);
        read_piece(json_array_get(json_object_get(v, "choices"), 0), "delta", i, a);
        json_decref(v);
    }
}

static void test_formats(void **state)
{
    for (size_t i = 0; i < 2 * ARRAY_LEN(cases); i++) {
        char body[512];
        struct rig r;
        struct response got;
        struct answer a = {0};
        bool stream = i % 2;
        rig_open(&r, &(struct rig_opts){.chat_template = cases[i / 2].chat_template,
                                        .script = cases[i / 2].script});
        snprintf(body, sizeof body, "{" TOOLS "%s%s}", cases[i / 2].more,
                 stream ? ",\"stream\":true" : "");
        request(&r, "POST", CHAT, body, &got);
        assert_int_equal(got.status, 200);
        read_answer(&got, stream, i / 2, &a);
        assert_string_equal(buf_str(&a.content), cases[i / 2].content);
        assert_string_equal(buf_str(&a.calls), cases[i / 2].calls);
        assert_string_equal(buf_str(&a.finish), cases[i / 2].finish);
        response_release(&got);
        buf_release(&a.content);
        buf_release(&a.calls);
        buf_release(&a.finish);
        rig_close(&r);
    }
}

/* A template that never looks at tools would lose them without a word. */
static void test_no_place_for_tools(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){0});
    request(&r, "POST", CHAT, "{" TOOLS "}", &a);
    assert_int_equal(a.status, 400);
    assert_non_null(strstr(a.body.data, "\"param\":\"tools\""));
    response_release(&a);
    request(&r, "POST", CHAT, "{" TOOLS ",\"tool_choice\":\"none\"}", &a);
    assert_int_equal(a.status, 200);
    response_release(&a);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_no_place_for_tools),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
