/* The interfaces to adapters, on a whole service whose model is a rule: adapters are loaded for a
 * tiny model of random weights and change nothing, so what counts is what is told of them. */
#include "unit.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapter_rig.h"
#include "base/json.h"
#include "base/mem.h"
#include "model/adapter.h"
#include "server_rig.h"
#include "store/db.h"

enum { N_FILES = 4 };

struct fixture {
    struct adapter_rig files; /* a0 ... */
    struct db *db;
    struct rig rig;
};

/* ---- set-up ---- */

static int set_up(void **state)
{
    struct fixture *f = xcalloc(1, sizeof *f);
    struct err e = {0};
    adapter_rig_open(&f->files, N_FILES);
    if (db_open(&f->db, NULL, false, &e))
        fail_msg("%s", e.msg);
    rig_open(&f->rig, &(struct rig_opts){.weights = f->files.model,
                                         .db = f->db,
                                         .adapters = {.root = f->files.root, .budget = 1 << 20}});
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    rig_close(&f->rig);
    db_close(f->db);
    adapter_rig_close(&f->files);
    free(f);
    return 0;
}

/* ---- asking ---- */

/* The answer's body as a tree, or as a JSON string where it is text; {} where it is empty. */
static json_t *ask(struct fixture *f, const char *method, const char *path, const char *body,
                   int status)
{
    struct response r;
    request(&f->rig, method, path, body, &r);
    if (r.status != status)
        fail_msg("%s %s %s: %d, not %d: %s", method, path, body ? body : "", r.status, status,
                 buf_str(&r.body));
    json_t *tree = jr_parse(buf_str(&r.body), r.body.len, NULL);
    if (!tree)
        tree = r.body.len ? json_stringn(r.body.data, r.body.len) : json_object();
    response_release(&r);
    return tree;
}

static void ask_only(struct fixture *f, const char *method, const char *path, const char *body,
                     int status)
{
    json_decref(ask(f, method, path, body, status));
}

static const char *text_at(const json_t *tree, const char *key)
{
    const char *s = json_string_value(json_object_get(tree, key));
    return s ? s : "";
}

static void add(struct fixture *f, const char *name, int file, int status)
{
    char body[256];
    snprintf(body, sizeof body, "{\"name\":\"%s\",\"path\":\"a%d\"}", name, file);
    ask_only(f, "POST", "/v1/adapters", body, status);
}

/* A chat under an adapter: its status, and the "model" that the answer names. */
static void chat(struct fixture *f, const char *more, int status, const char *model)
{
    struct buf body = {0};
    buf_addf(&body, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":3,%s}",
             more);
    json_t *tree = ask(f, "POST", "/v1/chat/completions", body.data, status);
    if (status == 200)
        assert_string_equal(text_at(tree, "model"), model);
    else
        assert_string_equal(text_at(json_object_get(tree, "error"), "param"), model);
    json_decref(tree);
    buf_release(&body);
}

/* ---- tests ---- */

static void test_registry(void **state)
{
    struct fixture *f = *state;
    ask_only(f, "POST", "/v1/adapters",
             "{\"name\":\"sql\",\"path\":\"a0\",\"labels\":{\"team\":\"data\"},\"owner\":\"ann\","
             "\"pin\":true}",
             201);
    add(f, "sql", 1, 200);
    add(f, "org/style", 2, 201);
    json_t *card = ask(f, "GET", "/v1/adapters/sql", NULL, 200);
    assert_int_equal(json_integer_value(json_object_get(card, "version")), 2);
    assert_string_equal(text_at(card, "owner"), "ann");
    assert_true(json_is_true(json_object_get(card, "pin")));
    json_decref(card);
    ask_only(f, "GET", "/v1/adapters/org/style", NULL, 200);
    ask_only(f, "GET", "/v1/adapters/org/style/versions", NULL, 200);
    ask_only(f, "PATCH", "/v1/adapters/sql", "{\"labels\":{},\"owner\":\"\"}", 200);
    static const char *const verbs[] = {"unpin", "pin", "unpin", "unload", "load", "rollback"};
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        char path[64];
        snprintf(path, sizeof path, "/v1/adapters/sql/%s", verbs[i]);
        json_t *tree = ask(f, "POST", path, NULL, 200);
        assert_string_equal(text_at(tree, "name"), "sql");
        json_decref(tree);
        snprintf(path, sizeof path, "/v1/adapters/nobody/%s", verbs[i]);
        ask_only(f, "POST", path, NULL, 404);
    }
    card = ask(f, "GET", "/v1/adapters/sql", NULL, 200);
    assert_int_equal(json_integer_value(json_object_get(card, "version")), 1);
    json_decref(card);
    json_t *list = ask(f, "GET", "/v1/adapters?limit=1", NULL, 200);
    assert_int_equal(json_array_size(json_object_get(list, "data")), 1);
    assert_true(json_is_true(json_object_get(list, "has_more")));
    json_decref(list);
    ask_only(f, "DELETE", "/v1/adapters/sql", NULL, 200);
    ask_only(f, "DELETE", "/v1/adapters/sql", NULL, 404);
    ask_only(f, "GET", "/v1/adapters/sql", NULL, 404);
}

static void test_refused(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *method, *path, *body;
        int status;
    } rows[] = {
        {"POST", "/v1/adapters", "{", 400},
        {"POST", "/v1/adapters", "{\"name\":\"x\"}", 400},
        {"POST", "/v1/adapters", "{\"name\":\"aliases\",\"path\":\"a0\"}", 400},
        {"POST", "/v1/adapters", "{\"name\":\"x y\",\"path\":\"a0\"}", 400},
        {"POST", "/v1/adapters", "{\"name\":\"x\",\"path\":\"nowhere\"}", 404},
        {"POST", "/v1/adapters", "{\"name\":\"x\",\"path\":\"/etc\"}", 403},
        {"POST", "/v1/adapters", "{\"name\":\"x\",\"path\":\"../root-not\"}", 404},
        {"PATCH", "/v1/adapters/x", "{\"path\":\"a0\"}", 400},
        {"PATCH", "/v1/adapters/x", "{}", 404},
        {"POST", "/v1/adapters/x/rollback", "{\"version\":0}", 400},
        {"POST", "/v1/adapters/x/dance", NULL, 405},
        {"GET", "/v1/adapters/%00", NULL, 400},
        {"GET", "/v1/adapters?state=odd", NULL, 400},
        {"GET", "/v1/adapters?limit=0", NULL, 400},
        {"PUT", "/v1/adapters/aliases/a@b", "{}", 400},
        {"PUT", "/v1/adapters/aliases/a@b", "{\"adapter\":\"x\"}", 404},
        {"DELETE", "/v1/adapters/aliases/a@b", NULL, 404},
        {"GET", "/v1/users/u/adapter", NULL, 404},
        {"PUT", "/v1/users/u/adapter", "{\"adapter\":\"x\"}", 404},
        {"DELETE", "/v1/users/u/adapter", NULL, 404},
        {"POST", "/v1/load_lora_adapter", "{}", 400},
        {"POST", "/v1/load_lora_adapter", "{\"lora_name\":\"x\",\"lora_path\":\"nowhere\"}", 404},
        {"POST", "/v1/load_lora_adapter", "{\"lora_name\":\"x\",\"lora_path\":\"/etc\"}", 403},
        {"POST", "/v1/unload_lora_adapter", "{\"lora_name\":\"x\"}", 404},
        {"POST", "/load_lora_adapter", "{\"lora_name\":\"x\"}", 400},
        {"POST", "/unload_lora_adapter", "{\"lora_name\":\"x\"}", 400},
        {"POST", "/lora-adapters", "{}", 400},
        {"POST", "/lora-adapters", "[{\"id\":0,\"scale\":1}]", 400},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        ask_only(f, rows[i].method, rows[i].path, rows[i].body, rows[i].status);
    json_t *list = ask(f, "GET", "/v1/adapters", NULL, 200);
    assert_int_equal(json_array_size(json_object_get(list, "data")), 0);
    json_decref(list);
}

static void test_dialects(void **state)
{
    struct fixture *f = *state;
    static const char load[] = "{\"lora_name\":\"sql\",\"lora_path\":\"a0\"}";
    json_t *tree = ask(f, "POST", "/v1/load_lora_adapter", load, 200);
    assert_string_equal(json_string_value(tree), "Success: LoRA adapter 'sql' added successfully.");
    json_decref(tree);
    tree = ask(f, "POST", "/v1/load_lora_adapter", load, 400);
    assert_string_equal(text_at(json_object_get(tree, "error"), "type"), "InvalidUserInput");
    json_decref(tree);
    ask_only(f, "POST", "/v1/load_lora_adapter",
             "{\"lora_name\":\"sql\",\"lora_path\":\"a1\",\"load_inplace\":true}", 200);
    tree = ask(f, "POST", "/load_lora_adapter", "{\"lora_name\":\"b\",\"lora_path\":\"a2\"}", 200);
    assert_true(json_is_true(json_object_get(tree, "success")));
    assert_int_equal(json_object_size(json_object_get(tree, "loaded_adapters")), 2);
    json_decref(tree);
    tree = ask(f, "GET", "/lora-adapters", NULL, 200);
    assert_int_equal(json_array_size(tree), 2);
    json_decref(tree);
    ask_only(f, "POST", "/lora-adapters", "[{\"id\":0,\"scale\":0.5},{\"id\":1,\"scale\":1}]", 200);
    chat(f, "\"n\":1", 200, "alphabet");
    ask_only(f, "PUT", "/v1/adapters/aliases/s@prod", "{\"adapter\":\"sql\"}", 200);
    ask_only(f, "POST", "/v1/unload_lora_adapter", "{\"lora_name\":\"sql\"}", 400);
    ask_only(f, "DELETE", "/v1/adapters/aliases/s@prod", NULL, 200);
    tree = ask(f, "POST", "/v1/unload_lora_adapter", "{\"lora_name\":\"sql\"}", 200);
    assert_string_equal(json_string_value(tree),
                        "Success: LoRA adapter 'sql' removed successfully.");
    json_decref(tree);
    ask_only(f, "POST", "/unload_lora_adapter", "{\"lora_name\":\"b\"}", 200);
    chat(f, "\"n\":1", 200, "alphabet");
}

static void test_choice(void **state)
{
    struct fixture *f = *state;
    add(f, "sql", 0, 201);
    add(f, "style", 1, 201);
    ask_only(f, "PUT", "/v1/adapters/aliases/s@prod", "{\"adapter\":\"style\"}", 200);
    ask_only(f, "PUT", "/v1/users/ann/adapter", "{\"adapter\":\"sql\"}", 200);
    chat(f, "\"model\":\"sql\"", 200, "sql");
    chat(f, "\"model\":\"s@prod\"", 200, "s@prod");
    chat(f, "\"model\":\"alphabet:sql\",\"adapter\":\"style:0.5\"", 200, "alphabet:sql");
    chat(f, "\"adapter\":[\"sql\",\"s@prod\"]", 200, "alphabet");
    chat(f, "\"adapter\":[]", 200, "alphabet");
    chat(f, "\"user\":\"ann\"", 200, "alphabet");
    chat(f, "\"adapter\":\"nobody\"", 404, "adapter");
    chat(f, "\"lora\":[{\"id\":77,\"scale\":1}]", 400, "lora");
    chat(f, "\"model\":\"sql\",\"adapter\":[\"a\",\"b\",\"c\",\"d\"]", 400, "adapter");
    json_t *card = ask(f, "GET", "/v1/adapters/sql", NULL, 200);
    assert_int_equal(json_integer_value(json_object_get(card, "requests")), 4);
    assert_int_equal(json_integer_value(json_object_get(card, "running")), 0);
    json_decref(card);
    json_t *models = ask(f, "GET", "/v1/models", NULL, 200);
    assert_int_equal(json_array_size(json_object_get(models, "data")), 3);
    json_decref(models);
    models = ask(f, "GET", "/v1/models/style", NULL, 200);
    assert_string_equal(text_at(models, "parent"), "alphabet");
    json_decref(models);
    json_t *tokens = ask(f, "POST", "/tokenize", "{\"model\":\"sql\",\"prompt\":\"ab\"}", 200);
    assert_true(json_integer_value(json_object_get(tokens, "count")) > 0);
    json_decref(tokens);
}

/* Clients that do not wait for the answer: what they asked for is done all the same. */
static void test_client_leaves(void **state)
{
    struct fixture *f = *state;
    static const char body[] = "{\"name\":\"sql\",\"path\":\"a0\"}";
    static const char load[] = "{\"lora_name\":\"b\",\"lora_path\":\"a1\",\"load_inplace\":true}";
    for (int i = 0; i < 20; i++) {
        int fd = client_open(&f->rig);
        client_send(fd, "POST", "/v1/adapters", "", body, sizeof body - 1);
        close(fd);
        fd = client_open(&f->rig);
        client_send(fd, "POST", "/v1/load_lora_adapter", "", load, sizeof load - 1);
        close(fd);
    }
    add(f, "last", 2, 201); /* changes are made in the order of the calls */
    struct response r;
    request(&f->rig, "GET", "/metrics", NULL, &r);
    assert_non_null(strstr(r.body.data, "terrace_adapters{state=\"resident\"}"));
    assert_non_null(strstr(r.body.data, "vllm:lora_requests_info{max_lora="));
    response_release(&r);
    int fd = client_open(&f->rig); /* and one that is still under way when the server ends */
    client_send(fd, "POST", "/v1/adapters", "", body, sizeof body - 1);
    rig_stop(&f->rig);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_registry, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_dialects, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_choice, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_client_leaves, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
