#include "unit.h"

#include <string.h>

#include "api/adapter.h"
#include "api/openai.h"

static int parse(struct chat_request *r, const char *more, struct err *e)
{
    struct buf body = {0};
    *r = (struct chat_request){0};
    *e = (struct err){0};
    buf_addf(&body, "{\"prompt\":\"x\",%s}", more);
    int rc = openai_parse(r, OPENAI_COMPLETION, body.data, body.len, e);
    buf_release(&body);
    return rc;
}

/* What a field asks for, spelled "NAME:SCALE" or "#ID:SCALE", with commas between. */
static void test_choices(void **state)
{
    static const struct {
        const char *field, *want;
    } rows[] = {
        {"\"adapter\":\"a\"", "a:1"},
        {"\"adapter\":\"a:0.5\"", "a:0.5"},
        {"\"adapter\":\"a:-2\"", "a:-2"},
        {"\"adapter\":\"a:b\"", "a:b:1"},
        {"\"adapter\":\"a:b:0.25\"", "a:b:0.25"},
        {"\"adapter\":\"support@prod\"", "support@prod:1"},
        {"\"adapter\":\":3\"", ":3:1"},
        {"\"adapter\":\"a:\"", "a::1"},
        {"\"adapter\":\"a:nan\"", "a:nan:1"},
        {"\"adapter\":\"a:0\"", ""},
        {"\"adapter\":{\"name\":\"a:7\",\"scale\":2}", "a:7:2"},
        {"\"adapter\":{\"name\":\"a\",\"scale\":null}", "a:1"},
        {"\"adapter\":[]", ""},
        {"\"adapter\":[\"a\",\"b:0.5\",{\"name\":\"c\"}]", "a:1,b:0.5,c:1"},
        {"\"adapter\":[\"a\",\"a:0\"]", "a:1"},
        {"\"lora\":[]", ""},
        {"\"lora\":[{\"id\":0,\"scale\":0.5},{\"id\":7,\"scale\":1}]", "#0:0.5,#7:1"},
        {"\"lora\":[{\"id\":0,\"scale\":0},{\"id\":1,\"scale\":0},{\"id\":2,\"scale\":0},"
         "{\"id\":3,\"scale\":0},{\"id\":4,\"scale\":1}]",
         "#4:1"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct chat_request r;
        struct err e;
        struct buf got = {0};
        assert_int_equal(parse(&r, rows[i].field, &e), 0);
        assert_true(r.picks_adapters);
        for (size_t k = 0; k < r.n_adapters; k++) {
            const struct adapter_choice *c = &r.adapters[k];
            buf_adds(&got, k ? "," : "");
            if (c->name)
                buf_addf(&got, "%s:%g", c->name, c->scale);
            else
                buf_addf(&got, "#%lld:%g", (long long)c->id, c->scale);
        }
        assert_string_equal(buf_str(&got), rows[i].want);
        buf_release(&got);
        chat_request_release(&r);
    }
}

static void test_no_choice(void **state)
{
    struct chat_request r;
    struct err e;
    assert_int_equal(parse(&r, "\"adapter\":null,\"lora\":null", &e), 0);
    assert_false(r.picks_adapters);
    assert_int_equal(r.n_adapters, 0);
    chat_request_release(&r);
}

static void test_bad_choices(void **state)
{
    static const struct {
        const char *field, *param;
    } rows[] = {
        {"\"adapter\":\"\"", "adapter"},
        {"\"adapter\":3", "adapter"},
        {"\"adapter\":true", "adapter"},
        {"\"adapter\":\"a:101\"", "adapter"},
        {"\"adapter\":[null]", "adapter"},
        {"\"adapter\":[\"a\",[\"b\"]]", "adapter"},
        {"\"adapter\":{}", "adapter.name"},
        {"\"adapter\":{\"name\":\"\"}", "adapter.name"},
        {"\"adapter\":{\"name\":\"a\",\"scale\":\"1\"}", "adapter.scale"},
        {"\"adapter\":{\"name\":\"a\",\"scale\":-100.5}", "adapter.scale"},
        {"\"adapter\":[\"a\",\"b\",\"a:2\"]", "adapter"},
        {"\"adapter\":[\"a\",\"b\",\"c\",\"d\",\"e\"]", "adapter"},
        {"\"adapter\":\"a\",\"lora\":[]", "lora"},
        {"\"lora\":{}", "lora"},
        {"\"lora\":[1]", "lora.id"},
        {"\"lora\":[{\"scale\":1}]", "lora.id"},
        {"\"lora\":[{\"id\":-1,\"scale\":1}]", "lora.id"},
        {"\"lora\":[{\"id\":\"0\",\"scale\":1}]", "lora.id"},
        {"\"lora\":[{\"id\":0}]", "lora.scale"},
        {"\"lora\":[{\"id\":0,\"scale\":1e9}]", "lora.scale"},
        {"\"lora\":[{\"id\":0,\"scale\":1},{\"id\":0,\"scale\":2}]", "lora"},
        {"\"lora\":[{\"id\":0,\"scale\":1},{\"id\":1,\"scale\":1},{\"id\":2,\"scale\":1},"
         "{\"id\":3,\"scale\":1},{\"id\":4,\"scale\":1}]",
         "lora"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct chat_request r;
        struct err e;
        assert_int_not_equal(parse(&r, rows[i].field, &e), 0);
        assert_string_equal(e.param, rows[i].param);
        assert_true(e.msg[0]);
        chat_request_release(&r);
    }
}

static void test_load(void **state)
{
    struct adapter_load l;
    struct err e = {0};
    const char *body = "{\"lora_name\":\"sql\",\"lora_path\":\"/a/b\",\"load_inplace\":true,"
                       "\"is_3d_lora_weight\":false}";
    assert_int_equal(adapter_parse_load(&l, body, strlen(body), &e), 0);
    assert_string_equal(l.name, "sql");
    assert_string_equal(l.path, "/a/b");
    assert_true(l.in_place && !l.pin && !l.base_model);
    adapter_load_release(&l);
    body = "{\"lora_name\":null,\"pinned\":true}";
    assert_int_equal(adapter_parse_load(&l, body, strlen(body), &e), 0);
    assert_true(!*l.name && !*l.path && l.pin);
    adapter_load_release(&l);
    static const struct {
        const char *body, *param;
    } rows[] = {
        {"", ""},
        {"[]", ""},
        {"{\"lora_name\":1}", "lora_name"},
        {"{\"lora_name\":\"a\",\"lora_path\":[\"b\"]}", "lora_path"},
        {"{\"load_inplace\":1}", "load_inplace"},
        {"{\"pinned\":\"yes\"}", "pinned"},
        {"{\"base_model_name\":\"\"}", "base_model_name"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        e = (struct err){0};
        assert_int_not_equal(adapter_parse_load(&l, rows[i].body, strlen(rows[i].body), &e), 0);
        assert_string_equal(e.param, rows[i].param);
        adapter_load_release(&l);
    }
}

static void test_spec(void **state)
{
    struct adapter_spec s;
    struct err e = {0};
    const char *body = "{\"name\":\"sql\",\"path\":\"sql/v2\",\"base_model\":\"m\",\"owner\":\"\","
                       "\"labels\":{\"team\":\"data\"},\"pin\":true}";
    assert_int_equal(adapter_parse_spec(&s, false, body, strlen(body), &e), 0);
    assert_string_equal(s.name, "sql");
    assert_string_equal(s.path, "sql/v2");
    assert_string_equal(s.base_model, "m");
    assert_string_equal(s.owner, "");
    assert_true(s.has_pin && s.pin);
    assert_string_equal(json_string_value(json_object_get(s.labels, "team")), "data");
    adapter_spec_release(&s);
    assert_int_equal(adapter_parse_spec(&s, true, "{}", 2, &e), 0);
    assert_true(!s.name && !s.path && !s.owner && !s.labels && !s.has_pin);
    adapter_spec_release(&s);
    static const struct {
        bool change;
        const char *body, *param;
    } rows[] = {
        {false, "{}", "name"},
        {false, "{\"name\":\"a\"}", "path"},
        {false, "{\"name\":\"\",\"path\":\"b\"}", "name"},
        {false, "{\"name\":\"a\",\"path\":\"b\",\"lables\":{}}", "lables"},
        {false, "{\"name\":\"a\",\"path\":\"b\",\"labels\":[]}", "labels"},
        {false, "{\"name\":\"a\",\"path\":\"b\",\"labels\":{\"k\":1}}", "labels"},
        {false, "{\"name\":\"a\",\"path\":\"b\",\"labels\":{\"\":\"v\"}}", "labels"},
        {false, "{\"name\":\"a\",\"path\":\"b\",\"owner\":7}", "owner"},
        {false, "{\"name\":\"a\",\"path\":\"b\",\"pin\":\"no\"}", "pin"},
        {false, "{\"name\":\"a\",\"path\":\"b\",\"base_model\":\"\"}", "base_model"},
        {true, "{\"path\":\"b\"}", "path"},
        {true, "{\"name\":\"b\"}", "name"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *b = rows[i].body;
        e = (struct err){0};
        assert_int_not_equal(adapter_parse_spec(&s, rows[i].change, b, strlen(b), &e), 0);
        assert_string_equal(e.param, rows[i].param);
        adapter_spec_release(&s);
    }
}

static void test_target(void **state)
{
    struct adapter_target t;
    struct err e = {0};
    assert_int_equal(adapter_parse_target(&t, false, "", 0, &e), 0);
    assert_true(!t.adapter && !t.version);
    const char *body = "{\"adapter\":\"sql\",\"version\":3}";
    assert_int_equal(adapter_parse_target(&t, true, body, strlen(body), &e), 0);
    assert_string_equal(t.adapter, "sql");
    assert_int_equal(t.version, 3);
    adapter_target_release(&t);
    static const struct {
        bool named;
        const char *body, *param;
    } rows[] = {
        {true, "", ""},
        {true, "{}", "adapter"},
        {true, "{\"adapter\":\"\"}", "adapter"},
        {true, "{\"adapter\":\"a\",\"version\":0}", "version"},
        {false, "{\"version\":\"1\"}", "version"},
        {false, "{\"adapter\":\"a\"}", "adapter"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *b = rows[i].body;
        e = (struct err){0};
        assert_int_not_equal(adapter_parse_target(&t, rows[i].named, b, strlen(b), &e), 0);
        assert_string_equal(e.param, rows[i].param);
        adapter_target_release(&t);
    }
}

static void test_scales(void **state)
{
    struct adapter_scales s;
    struct err e = {0};
    const char *body = "[{\"id\":0,\"scale\":0.5},{\"id\":1,\"scale\":0}]";
    assert_int_equal(adapter_parse_scales(&s, body, strlen(body), &e), 0);
    assert_int_equal(s.n, 2);
    assert_true(s.all[0].id == 0 && s.all[0].scale == 0.5 && s.all[1].id == 1 && !s.all[1].scale);
    adapter_scales_release(&s);
    assert_int_equal(adapter_parse_scales(&s, "[]", 2, &e), 0);
    assert_int_equal(s.n, 0);
    adapter_scales_release(&s);
    static const char *const bad[] = {"", "{}", "[0]", "[{\"id\":0}]", "[{\"scale\":1}]"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        e = (struct err){0};
        int rc = adapter_parse_scales(&s, bad[i], strlen(bad[i]), &e);
        assert_true(rc && rc == e.code);
        adapter_scales_release(&s);
    }
}

/* vLLM's and SGLang's bodies, letter by letter. */
static void test_write(void **state)
{
    struct buf b = {0};
    adapter_write_vllm_error(&b, 400, "InvalidUserInput", "no \"x\"");
    assert_string_equal(b.data, "{\"error\":{\"message\":\"no \\\"x\\\"\",\"type\":"
                                "\"InvalidUserInput\",\"param\":null,\"code\":400}}");
    buf_clear(&b);
    adapter_write_sglang(&b, NULL, (const char *const[]){"a", "/p"}, 1);
    assert_string_equal(b.data, "{\"success\":true,\"error_message\":\"\",\"loaded_adapters\":"
                                "{\"a\":\"/p\"}}");
    buf_clear(&b);
    struct adapter_card c = {.name = "sql", .base_model = "m", .path = "/p", .created = 5};
    struct jw w;
    jw_init(&w, &b);
    adapter_write_model(&w, &c, 64);
    jw_done(&w);
    assert_string_equal(b.data, "{\"id\":\"sql\",\"object\":\"model\",\"created\":5,\"owned_by\":"
                                "\"terrace\",\"root\":\"/p\",\"parent\":\"m\","
                                "\"max_model_len\":64}");
    buf_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices),     cmocka_unit_test(test_no_choice),
        cmocka_unit_test(test_bad_choices), cmocka_unit_test(test_load),
        cmocka_unit_test(test_spec),        cmocka_unit_test(test_target),
        cmocka_unit_test(test_scales),      cmocka_unit_test(test_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
