#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "chat/tool_parse.h"

/* Texts in the forms that the models' own templates show them. Result: content, then each call as
 * |name(arguments). */
static const struct {
    enum tool_format format;
    const char *text, *expected;
} cases[] = {
    {TOOL_NONE, "<tool_call>{}</tool_call>", "<tool_call>{}</tool_call>"},
    {TOOL_HERMES, "Hello < there <tool_x>", "Hello < there <tool_x>"},
    {TOOL_HERMES,
     "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, \"</b>\"]}}\n</tool_call>",
     "|f({\"x\":[1,\"</b>\"]})"},
    {TOOL_HERMES,
     "I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n"
     "{\"name\": \"g\"}\n</tool_call>\n",
     "I look.\n|f({})|g({})"},
    {TOOL_HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}", "|f({\"a\":1})"},
    {TOOL_HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\"",
     "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\""},
    {TOOL_HERMES, "<tool_call>no json</tool_call> b", "<tool_call>no json</tool_call> b"},
    {TOOL_HERMES, "<tool_call>{\"name\": \"\"}</tool_call>",
     "<tool_call>{\"name\": \"\"}</tool_call>"},
    {TOOL_HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": 5}</tool_call>",
     "<tool_call>{\"name\": \"f\", \"arguments\": 5}</tool_call>"},
    {TOOL_HERMES,
     "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"q\\\": 1}\"}</tool_call> done",
     "done|f({\"q\": 1})"},
    {TOOL_HERMES, "a <tool_", "a <tool_"},
    {TOOL_LLAMA, "{\"name\": \"f\", \"parameters\": {\"x\": \"y\"}}", "|f({\"x\":\"y\"})"},
    {TOOL_LLAMA, "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\"}",
     "|f({})|g({})"},
    {TOOL_LLAMA, "{\"answer\": 42}", "{\"answer\": 42}"},
    {TOOL_LLAMA, "{\"name\": \"f\"} and more", "{\"name\": \"f\"} and more"},
    {TOOL_LLAMA, "The call is {\"name\": \"f\"}", "The call is {\"name\": \"f\"}"},
    {TOOL_LLAMA, "<|pyth", "<|pyth"},
    {TOOL_LLAMA, " \n", " \n"},
    {TOOL_MISTRAL, "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"x\": 1}}, {\"name\": \"g\"}]",
     "|f({\"x\":1})|g({})"},
    {TOOL_MISTRAL, "Sure. [TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}]", "Sure. |f({})"},
    {TOOL_MISTRAL, "[TOOL_CALLS]f[ARGS]{\"x\": 1}[TOOL_CALLS]g[ARGS]{}", "|f({\"x\":1})|g({})"},
    {TOOL_MISTRAL, "[TOOL_CALLS][]", "[TOOL_CALLS][]"},
    {TOOL_MISTRAL, "[TOOL_CALLS][{\"name\": \"f\"}, 3]", "[TOOL_CALLS][{\"name\": \"f\"}, 3]"},
    {TOOL_MISTRAL, "[TOOL] [1]", "[TOOL] [1]"},
};

static void check(size_t i, size_t piece)
{
    struct tool_parse p;
    struct buf out = {0};
    size_t n = strlen(cases[i].text);
    tool_parse_init(&p, cases[i].format);
    for (size_t at = 0; at < n; at += piece)
        tool_parse_add(&p, cases[i].text + at, n - at < piece ? n - at : piece, &out);
    tool_parse_end(&p, &out);
    for (size_t k = 0; k < p.n_calls; k++)
        buf_addf(&out, "|%s(%s)", p.calls[k].name, p.calls[k].arguments);
    if (strcmp(buf_str(&out), cases[i].expected) != 0)
        fail_msg("%s in pieces of %zu\n got  %s\n want %s", cases[i].text, piece, buf_str(&out),
                 cases[i].expected);
    tool_parse_release(&p);
    buf_release(&out);
}

static void test_calls(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        for (size_t piece = 1; piece <= strlen(cases[i].text); piece++)
            check(i, piece);
}

/* Content is not held back longer than a marker could be beginning. */
static void test_streams(void **state)
{
    struct tool_parse p;
    struct buf out = {0};
    tool_parse_init(&p, TOOL_HERMES);
    tool_parse_add(&p, "one <b", 6, &out);
    assert_string_equal(buf_str(&out), "one <b");
    tool_parse_add(&p, " <tool", 6, &out);
    assert_string_equal(buf_str(&out), "one <b ");
    tool_parse_add(&p, "s", 1, &out);
    assert_string_equal(buf_str(&out), "one <b <tools");
    tool_parse_release(&p);
    buf_release(&out);
}

static void test_too_long(void **state)
{
    struct tool_parse p;
    struct buf out = {0};
    char line[1024];
    memset(line, 'x', sizeof line);
    tool_parse_init(&p, TOOL_HERMES);
    tool_parse_add(&p, "<tool_call>", 11, &out);
    for (size_t i = 0; i < 2 * TOOL_PARSE_HELD_BYTES / sizeof line; i++)
        tool_parse_add(&p, line, sizeof line, &out);
    tool_parse_end(&p, &out);
    assert_int_equal(out.len, 11 + 2 * TOOL_PARSE_HELD_BYTES);
    assert_int_equal(p.n_calls, 0);
    tool_parse_release(&p);
    tool_parse_release(NULL);
    buf_release(&out);
}

static void test_format_of(void **state)
{
    assert_int_equal(tool_format_of(STR("{% if tools %}<tool_call>")), TOOL_HERMES);
    assert_int_equal(tool_format_of(STR("{{ '[TOOL_CALLS]' }}")), TOOL_MISTRAL);
    assert_int_equal(tool_format_of(STR("{{ \"<|python_tag|>\" }}")), TOOL_LLAMA);
    assert_int_equal(tool_format_of(STR("")), TOOL_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_format_of),
    };
    return cmocka_run_group_tests_name("tool_parse", tests, NULL, NULL);
}
