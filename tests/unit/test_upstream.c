/* Dialects of backends against cases whose both sides were checked with the types of the official
 * packages: tests/vectors/upstream/make.py. */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/upstream.h"
#include "base/json.h"
#include "base/mem.h"

static const struct openai_head head = {
    .id = "chatcmpl-12ab",
    .model = "m",
    .created = 1700000000,
};

static json_t *load(const char *kind)
{
    json_error_t je;
    json_t *all = json_load_file(VECTORS "/upstream/cases.json", 0, &je);
    if (!all)
        fail_msg("cases.json: %s", je.text);
    json_t *list = json_incref(json_object_get(all, kind));
    json_decref(all);
    assert_true(json_array_size(list) > 0);
    return list;
}

static const char *text_of(const json_t *row, const char *key)
{
    return json_string_value(json_object_get(row, key));
}

static struct str str_of_row(const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    return (struct str){json_string_value(v), json_string_length(v)};
}

static struct upstream_request request_of(const json_t *row, const json_t *body)
{
    const char *endpoint = text_of(row, "endpoint");
    struct upstream_request q = {
        .endpoint =
            endpoint && strcmp(endpoint, "completion") == 0 ? OPENAI_COMPLETION : OPENAI_CHAT,
        .body = body,
        .model = "up",
    };
    for (int i = 0; i < UPSTREAM_APIS; i++)
        if (strcmp(upstream_wires[i].name, text_of(row, "api")) == 0)
            q.api = (enum upstream_api)i;
    return q;
}

static struct upstream *open_answer(const json_t *row, const json_t *body)
{
    struct upstream_request q = request_of(row, body);
    struct openai_head h = head;
    h.endpoint = q.endpoint;
    return upstream_new(&q, &h);
}

static void expect_json(const char *name, const json_t *got, const json_t *wanted)
{
    if (json_equal(got, wanted))
        return;
    char *a = json_dumps(got, JSON_SORT_KEYS), *b = json_dumps(wanted, JSON_SORT_KEYS);
    fail_msg("%s:\n  got  %s\n  want %s", name, a ? a : "nothing", b ? b : "nothing");
}

static json_t *parse(struct str text)
{
    struct err e = {0};
    json_t *v = jr_parse(text.p, text.n, &e);
    if (!v)
        fail_msg("not JSON: %s: %.*s", e.msg, (int)text.n, text.p);
    return v;
}

/* ---- requests ---- */

static void expect_ask(const json_t *row)
{
    const json_t *body = json_object_get(row, "request");
    const char *name = text_of(row, "name"), *refused = text_of(row, "refused");
    struct upstream_request q = request_of(row, body);
    struct buf out = {0};
    struct err e = {0};
    int rc = upstream_ask(&out, &q, &e);
    if (refused) {
        if (rc != ERR_UNSUPPORTED && rc != ERR_INVALID)
            fail_msg("%s: taken: %s", name, buf_str(&out));
        if (strcmp(e.param, refused) != 0)
            fail_msg("%s: refused because of '%s': %s", name, e.param, e.msg);
        assert_int_equal(out.len, 0);
    } else {
        if (rc)
            fail_msg("%s: %s", name, e.msg);
        json_t *got = parse((struct str){out.data, out.len});
        expect_json(name, got, json_object_get(row, "expected"));
        json_decref(got);
    }
    buf_release(&out);
}

static void test_asks(void **state)
{
    json_t *rows = load("asks");
    for (size_t i = 0; i < json_array_size(rows); i++)
        expect_ask(json_array_get(rows, i));
    json_decref(rows);
}

/* A persona's messages are put in the place of the body's; they are in the form of our parser. */
static void test_other_messages(void **state)
{
    json_t *body = parse(STR("{\"messages\":[{\"role\":\"user\",\"content\":\"no\"}]}"));
    json_t *messages =
        parse(STR("[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"\","
                  "\"tool_calls\":[{\"id\":\"c\",\"type\":\"function\",\"function\":"
                  "{\"name\":\"f\",\"arguments\":{\"x\":1}}}]}]"));
    json_t *wanted =
        parse(STR("[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]},"
                  "{\"role\":\"assistant\",\"content\":[{\"type\":\"tool_use\",\"id\":\"c\","
                  "\"name\":\"f\",\"input\":{\"x\":1}}]}]"));
    struct upstream_request q = {UPSTREAM_ANTHROPIC, OPENAI_CHAT, body, messages, "up"};
    struct buf out = {0};
    struct err e = {0};
    assert_int_equal(upstream_ask(&out, &q, &e), 0);
    json_t *got = parse((struct str){out.data, out.len});
    expect_json("persona", json_object_get(got, "messages"), wanted);
    json_decref(got);
    json_decref(wanted);
    json_decref(messages);
    json_decref(body);
    buf_release(&out);
}

/* ---- answers ---- */

static void expect_answer(const json_t *row)
{
    const char *error = text_of(row, "error");
    struct upstream *u = open_answer(row, NULL);
    struct str body = str_of_row(row, "body");
    struct buf out = {0};
    struct err e = {0};
    int rc = upstream_answer(u, body, &out, &e);
    if (error) {
        if (!rc || !strstr(e.msg, error))
            fail_msg("%s: rc %d, %s", body.p, rc, e.msg);
        assert_int_equal(out.len, 0);
    } else {
        if (rc)
            fail_msg("%s: %s", body.p, e.msg);
        json_t *got = parse((struct str){out.data, out.len});
        expect_json(body.p, got, json_object_get(row, "expected"));
        json_decref(got);
    }
    buf_release(&out);
    upstream_free(u);
}

static void test_answers(void **state)
{
    json_t *rows = load("answers");
    for (size_t i = 0; i < json_array_size(rows); i++)
        expect_answer(json_array_get(rows, i));
    json_decref(rows);
}

static void test_errors(void **state)
{
    json_t *rows = load("errors");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        const char *message = text_of(row, "message");
        int status = (int)json_integer_value(json_object_get(row, "status"));
        struct buf out = {0};
        bool known =
            upstream_error(request_of(row, NULL).api, status, str_of_row(row, "body"), &out);
        assert_int_equal(known, message != NULL);
        if (message) {
            json_t *got = parse((struct str){out.data, out.len});
            const json_t *error = json_object_get(got, "error");
            assert_string_equal(text_of(error, "message"), message);
            assert_string_equal(text_of(error, "type"), text_of(row, "type"));
            json_decref(got);
        }
        buf_release(&out);
    }
    json_decref(rows);
}

/* ---- streams ---- */

/* The data of the events as a list; the one at the end, [DONE], is left out. */
static json_t *events_of(const struct buf *out)
{
    json_t *list = json_array();
    const char *at = buf_str(out), *end;
    for (; (end = strstr(at, "\n\n")); at = end + 2) {
        assert_memory_equal(at, "data: ", 6);
        struct str data = {at + 6, (size_t)(end - at - 6)};
        if (!str_eqs(data, OPENAI_DONE))
            json_array_append_new(list, parse(data));
        else
            assert_int_equal(end[2], 0);
    }
    assert_int_equal(*at, 0);
    return list;
}

static void expect_stream(const json_t *row, size_t piece)
{
    struct str text = str_of_row(row, "text");
    const char *error = text_of(row, "error");
    struct upstream *u = open_answer(row, json_object_get(row, "request"));
    struct buf out = {0};
    struct err e = {0};
    int rc = 0;
    for (size_t at = 0; at < text.n && !rc; at += piece)
        rc = upstream_take(u, text.p + at, piece < text.n - at ? piece : text.n - at, &out, &e);
    bool done = out.len && strstr(out.data, "data: [DONE]\n\n");
    if (error) {
        if (!rc || !strstr(e.msg, error) || done)
            fail_msg("%s: rc %d, %s", text.p, rc, e.msg);
    } else {
        if (rc || !done)
            fail_msg("%s: %s", text.p, rc ? e.msg : "no end");
        json_t *got = events_of(&out);
        expect_json(text.p, got, json_object_get(row, "expected"));
        json_decref(got);
    }
    buf_release(&out);
    upstream_free(u);
}

static void test_streams(void **state)
{
    json_t *rows = load("streams");
    for (size_t i = 0; i < json_array_size(rows); i++)
        for (size_t piece = 1; piece < 1 << 20; piece = piece < 8 ? piece + 1 : piece * 8)
            expect_stream(json_array_get(rows, i), piece);
    json_decref(rows);
}

/* A line, or a call's arguments, cannot grow without end. */
static void test_endless(void **state)
{
    json_t *body = parse(STR("{\"stream\":true}"));
    static const char start[] =
        "data: {\"type\":\"content_block_start\",\"content_block\":{\"type\":\"tool_use\","
        "\"name\":\"f\"}}\n";
    struct upstream_request q = {UPSTREAM_ANTHROPIC, OPENAI_CHAT, body, NULL, "up"};
    struct openai_head h = head;
    h.endpoint = OPENAI_CHAT;
    char *filler = xmalloc(1 << 20);
    memset(filler, 'x', 1 << 20);
    for (int lines = 0; lines < 2; lines++) {
        struct upstream *u = upstream_new(&q, &h);
        struct buf out = {0}, piece = {0};
        struct err e = {0};
        int rc = upstream_take(u, start, sizeof start - 1, &out, &e), n = 0;
        if (lines)
            buf_adds(&piece,
                     "data: {\"type\":\"content_block_delta\",\"delta\":{\"partial_json\":\"");
        buf_add(&piece, filler, 1 << 20);
        if (lines)
            buf_adds(&piece, "\"}}\n");
        for (; n < 100 && !rc; n++)
            rc = upstream_take(u, piece.data, piece.len, &out, &e);
        assert_int_equal(rc, ERR_FORMAT);
        assert_in_range(n, 2, 8);
        buf_release(&piece);
        buf_release(&out);
        upstream_free(u);
    }
    free(filler);
    json_decref(body);
}

/* A stream that nobody asked for, and an answer where a stream was due. */
static void test_wrong_form(void **state)
{
    json_t *streams = parse(STR("{\"stream\":true}"));
    struct openai_head h = head;
    h.endpoint = OPENAI_CHAT;
    for (int stream = 0; stream < 2; stream++) {
        struct upstream_request q = {UPSTREAM_OLLAMA, OPENAI_CHAT, stream ? streams : NULL, NULL,
                                     "up"};
        struct str line = STR("{\"message\":{\"content\":\"a\"},\"done\":true}\n");
        struct upstream *u = upstream_new(&q, &h);
        struct buf out = {0};
        struct err e = {0};
        int rc = stream ? upstream_answer(u, line, &out, &e)
                        : upstream_take(u, line.p, line.n, &out, &e);
        assert_int_equal(rc, ERR_FORMAT);
        assert_int_equal(out.len, 0);
        upstream_free(u);
    }
    json_decref(streams);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_asks),       cmocka_unit_test(test_other_messages),
        cmocka_unit_test(test_answers),    cmocka_unit_test(test_errors),
        cmocka_unit_test(test_streams),    cmocka_unit_test(test_endless),
        cmocka_unit_test(test_wrong_form),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
