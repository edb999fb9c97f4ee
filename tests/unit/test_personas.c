/* Personas over HTTP, with a model whose answers are known. */
#define _GNU_SOURCE /* mkdtemp */
#include "unit.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "adapter_rig.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "server_rig.h"
#include "store/db.h"
#include "store/registry.h"

#define CHAT     "/v1/chat/completions"
#define PERSONAS "/v1/personas"
#define HI       "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

/* "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\n": what all chats begin with.
 * SentencePiece spells a space in three bytes. */
enum { KIND_TOKENS = 1 + 7 + 9 + 1 + 1 + 1 + 5 };

/* Sends, expects the status, gives the parsed body. */
static json_t *call(const struct rig *r, const char *method, const char *path, const char *body,
                    int status)
{
    struct response a;
    request(r, method, path, body, &a);
    if (a.status != status)
        fail_msg("%s %s: %d instead of %d: %s", method, path, a.status, status, buf_str(&a.body));
    json_t *v = a.body.len ? jr_parse(a.body.data, a.body.len, NULL) : NULL;
    response_release(&a);
    return v;
}

static void refuse(const struct rig *r, const char *method, const char *path, const char *body,
                   int status, const char *param)
{
    json_t *v = call(r, method, path, body, status);
    const char *p = json_string_value(json_object_get(json_object_get(v, "error"), "param"));
    assert_string_equal(p ? p : "", param);
    json_decref(v);
}

static int64_t int_of(const json_t *v, const char *key)
{
    return json_integer_value(json_object_get(v, key));
}

/* A chat with the persona: its cached tokens. */
static int cached(const struct rig *r, const char *fields)
{
    char body[256];
    snprintf(body, sizeof body, "{" HI "%s}", fields);
    json_t *v = call(r, "POST", CHAT, body, 200);
    const json_t *usage = json_object_get(v, "usage");
    int n = (int)int_of(json_object_get(usage, "prompt_tokens_details"), "cached_tokens");
    json_decref(v);
    return n;
}

static void wait_status(const struct rig *r, const char *path, const char *status)
{
    int64_t until = clock_ms() + 60000;
    for (bool there = false; !there;) {
        json_t *v = call(r, "GET", path, NULL, 200);
        there = strcmp(json_string_value(json_object_get(v, "status")), status) == 0;
        json_decref(v);
        assert_true(clock_ms() < until);
        if (!there)
            nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

static void wait_ready(const struct rig *r, const char *path)
{
    wait_status(r, path, "ready");
}

static void wait_pinned(struct rig *r, int blocks)
{
    int64_t until = clock_ms() + 60000;
    while (rig_stats(r).blocks_pinned != blocks) {
        assert_true(clock_ms() < until);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

static void test_life(void **state)
{
    struct rig r;
    rig_open(&r, &(struct rig_opts){.max_pinned_blocks = 8});
    json_t *v = call(&r, "POST", PERSONAS, "{\"name\":\"kind.one\",\"system\":\"Be kind\"}", 200);
    assert_string_equal(json_string_value(json_object_get(v, "status")), "ready");
    assert_string_equal(json_string_value(json_object_get(v, "model")), "alphabet");
    assert_int_equal(int_of(v, "prompt_tokens"), KIND_TOKENS);
    assert_int_equal(int_of(v, "pinned_blocks"), 1);
    json_decref(v);
    assert_int_equal(cached(&r, ",\"persona\":\"kind.one\""), KIND_TOKENS);
    assert_int_equal(cached(&r, ",\"persona\":\"kind.one\",\"cache_salt\":\"mine\""), 0);
    assert_int_equal(rig_stats(&r).blocks_pinned, 1);
    v = call(&r, "POST", PERSONAS,
             "{\"name\":\"chatty\",\"pin\":false,\"messages\":[{\"role\":\"user\",\"content\":"
             "\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}",
             200);
    assert_int_equal(int_of(v, "pinned_blocks"), 0);
    json_decref(v);
    v = call(&r, "GET", PERSONAS, NULL, 200);
    const json_t *list = json_object_get(v, "data");
    assert_int_equal(json_array_size(list), 2);
    assert_null(json_object_get(json_array_get(list, 0), "messages"));
    json_decref(v);
    v = call(&r, "GET", PERSONAS "/chatty", NULL, 200);
    assert_int_equal(json_array_size(json_object_get(v, "messages")), 2);
    json_decref(v);
    json_decref(call(&r, "DELETE", PERSONAS "/kind.one", NULL, 200));
    wait_pinned(&r, 0);
    refuse(&r, "POST", CHAT, "{" HI ",\"persona\":\"kind.one\"}", 404, "persona");
    v = call(&r, "DELETE", PERSONAS "?model=other", NULL, 200);
    assert_int_equal(int_of(v, "count"), 0);
    json_decref(v);
    v = call(&r, "DELETE", PERSONAS, NULL, 200);
    assert_int_equal(int_of(v, "count"), 1);
    json_decref(v);
    rig_close(&r);
}

static void test_refusals(void **state)
{
    static const struct {
        const char *body;
        int status;
        const char *param;
    } cases[] = {
        {"[]", 400, ""},
        {"{\"system\":\"x\"}", 400, "name"},
        {"{\"name\":\"a b\",\"system\":\"x\"}", 400, "name"},
        {"{\"name\":\".a\",\"system\":\"x\"}", 400, "name"},
        {"{\"name\":\"a\"}", 400, "messages"},
        {"{\"name\":\"a\",\"system\":\"x\",\"messages\":[]}", 400, "messages"},
        {"{\"name\":\"a\",\"messages\":[]}", 400, "messages"},
        {"{\"name\":\"a\",\"messages\":[{\"role\":\"bard\"}]}", 400, "messages[0].role"},
        {"{\"name\":\"a\",\"messages\":[{\"role\":\"tool\",\"content\":\"\"}]}", 400, "messages"},
        {"{\"name\":\"a\",\"system\":\"\"}", 400, "system"},
        {"{\"name\":\"a\",\"system\":\"x\",\"pin\":1}", 400, "pin"},
        {"{\"name\":\"a\",\"system\":\"x\",\"model\":7}", 400, "model"},
        {"{\"name\":\"a\",\"system\":\"x\",\"model\":\"no\"}", 404, "model"},
        {"{\"name\":\"a\",\"system\":\"12345678901234567890123456789012345678901234567890\"}", 400,
         "messages"}, /* 67 tokens: three blocks */
    };
    struct rig r;
    rig_open(&r, &(struct rig_opts){.max_pinned_blocks = 2});
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        refuse(&r, "POST", PERSONAS, cases[i].body, cases[i].status, cases[i].param);
    refuse(&r, "GET", PERSONAS "/a", NULL, 404, "name");
    refuse(&r, "DELETE", PERSONAS "/a", NULL, 404, "name");
    refuse(&r, "POST", CHAT, "{" HI ",\"persona\":\"a\"}", 404, "persona");
    refuse(&r, "POST", CHAT, "{" HI ",\"persona\":\"a b\"}", 400, "persona");
    refuse(&r, "POST", CHAT, "{" HI ",\"persona\":3}", 400, "persona");
    rig_close(&r);
}

/* A full budget refuses another persona, and the same one may be replaced. */
static void test_replace(void **state)
{
    static const char two_blocks[] =
        "{\"name\":\"long\",\"system\":\"1234567890123456789012345678901234567890\"}";
    struct rig r;
    rig_open(&r, &(struct rig_opts){.max_pinned_blocks = 2});
    json_decref(call(&r, "POST", PERSONAS, two_blocks, 200));
    refuse(&r, "POST", PERSONAS, "{\"name\":\"kind\",\"system\":\"Be kind\"}", 400, "messages");
    json_decref(call(&r, "POST", PERSONAS, two_blocks, 200));
    json_decref(call(&r, "POST", PERSONAS, "{\"name\":\"long\",\"system\":\"short\"}", 200));
    wait_pinned(&r, 1);
    json_decref(call(&r, "POST", PERSONAS, "{\"name\":\"kind\",\"system\":\"Be kind\"}", 200));
    wait_pinned(&r, 2);
    rig_close(&r);
}

static void test_reset(void **state)
{
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){.max_pinned_blocks = 1});
    json_decref(call(&r, "POST", PERSONAS, "{\"name\":\"kind\",\"system\":\"Be kind\"}", 200));
    assert_int_equal(cached(&r, ""), 1); /* <|im_start|> */
    assert_true(cached(&r, "") > 1);
    request(&r, "POST", "/reset_prefix_cache", NULL, &a);
    assert_int_equal(a.status, 200);
    assert_int_equal(a.body.len, 0);
    response_release(&a);
    assert_true(cached(&r, "") <= 1); /* the persona may be there again */
    wait_ready(&r, PERSONAS "/kind");
    wait_pinned(&r, 1);
    assert_int_equal(cached(&r, ",\"persona\":\"kind\""), KIND_TOKENS);
    rig_close(&r);
}

/* ---- across restarts ---- */

static char *read_text(const char *path)
{
    struct buf b = {0};
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    for (size_t n; (n = fread(buf_reserve(&b, 4096), 1, 4096, f));)
        b.len += n;
    fclose(f);
    buf_add(&b, "", 0);
    return buf_take(&b);
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_restart(void **state)
{
    char dir[] = "/tmp/personas-XXXXXX", sub[64], path[80];
    assert_non_null(mkdtemp(dir));
    snprintf(sub, sizeof sub, "%s/state", dir);
    snprintf(path, sizeof path, "%s/personas.json", sub);
    struct rig_opts o = {.max_pinned_blocks = 4, .state_dir = sub};
    struct rig r;
    rig_open(&r, &o);
    json_decref(call(&r, "POST", PERSONAS, "{\"name\":\"kind\",\"system\":\"Be kind\"}", 200));
    json_decref(call(&r, "POST", PERSONAS, "{\"name\":\"rude\",\"system\":\"Be rude\"}", 200));
    json_decref(call(&r, "DELETE", PERSONAS "/rude", NULL, 200));
    rig_close(&r);

    o.unattached = true;
    rig_open(&r, &o);
    json_t *v = call(&r, "GET", PERSONAS, NULL, 200);
    const json_t *only = json_array_get(json_object_get(v, "data"), 0);
    assert_int_equal(json_array_size(json_object_get(v, "data")), 1);
    assert_string_equal(json_string_value(json_object_get(only, "status")), "waiting");
    json_decref(v);
    rig_attach(&r);
    wait_ready(&r, PERSONAS "/kind");
    assert_int_equal(cached(&r, ",\"persona\":\"kind\""), KIND_TOKENS);
    rig_close(&r);

    static const char *const strange[] = {"{\"version\":2,\"personas\":[]}", "{\"version\":1",
                                          "{\"version\":1,\"personas\":[{\"name\":\"?\"}]}"};
    o.unattached = false;
    for (size_t i = 0; i < ARRAY_LEN(strange); i++) { /* is left as it is */
        write_text(path, strange[i]);
        rig_open(&r, &o);
        json_decref(call(&r, "POST", PERSONAS, "{\"name\":\"a\",\"system\":\"b\"}", 200));
        rig_close(&r);
        char *text = read_text(path);
        assert_string_equal(text, strange[i]);
        free(text);
    }
    unlink(path);
    rmdir(sub);
    rmdir(dir);
}

/* ---- computed prompts in files ---- */

#define KIND_BODY "{\"name\":\"kind\",\"system\":\"Be kind\"}"

struct kept {
    char dir[32], state[48], json[64], kv[80], other[80];
    struct rig_opts o;
    struct rig r;
};

static void kept_prepare(struct kept *k, uint64_t spill_bytes)
{
    *k = (struct kept){.dir = "/tmp/kept-XXXXXX"};
    assert_non_null(mkdtemp(k->dir));
    snprintf(k->state, sizeof k->state, "%s/state", k->dir);
    snprintf(k->json, sizeof k->json, "%s/personas.json", k->state);
    snprintf(k->kv, sizeof k->kv, "%s/personas/kind.kv", k->state);
    snprintf(k->other, sizeof k->other, "%s/personas/x.kv.part", k->state);
    k->o = (struct rig_opts){
        .max_pinned_blocks = 4, .state_dir = k->state, .spill_bytes = spill_bytes};
}

static void kept_open(struct kept *k, uint64_t spill_bytes)
{
    kept_prepare(k, spill_bytes);
    rig_open(&k->r, &k->o);
}

static void kept_close(struct kept *k)
{
    char folder[64];
    snprintf(folder, sizeof folder, "%s/personas", k->state);
    rig_close(&k->r);
    unlink(k->kv);
    unlink(k->json);
    rmdir(folder);
    rmdir(k->state);
    assert_int_equal(rmdir(k->dir), 0);
}

static void again(struct kept *k)
{
    rig_close(&k->r);
    rig_open(&k->r, &k->o);
    wait_ready(&k->r, PERSONAS "/kind");
}

static void wait_kept(struct kept *k)
{
    int64_t until = clock_ms() + 60000, bytes = 0;
    while (!bytes) {
        json_t *v = call(&k->r, "GET", PERSONAS "/kind", NULL, 200);
        bytes = int_of(v, "kept_bytes");
        json_decref(v);
        assert_true(clock_ms() < until);
    }
    assert_int_equal(access(k->kv, F_OK), 0);
}

static void test_a_restart_computes_nothing(void **state)
{
    struct kept k;
    kept_open(&k, 1 << 20);
    json_decref(call(&k.r, "POST", PERSONAS, KIND_BODY, 200));
    wait_kept(&k);
    write_text(k.other, "was being written");
    again(&k);
    assert_int_equal(rig_stats(&k.r).computed_tokens, 0);
    assert_int_equal(rig_stats(&k.r).blocks_pinned, 1);
    assert_int_equal(cached(&k.r, ",\"persona\":\"kind\""), KIND_TOKENS);
    assert_int_not_equal(access(k.other, F_OK), 0);
    /* a reset is one: everything is computed again, and kept */
    uint64_t before = rig_stats(&k.r).computed_tokens;
    json_decref(call(&k.r, "POST", "/reset_prefix_cache", NULL, 200));
    wait_ready(&k.r, PERSONAS "/kind");
    assert_int_equal(rig_stats(&k.r).computed_tokens, before + KIND_TOKENS);
    wait_kept(&k);
    /* the end of a server right after the answer: the file is finished first */
    json_decref(call(&k.r, "POST", PERSONAS, KIND_BODY, 200));
    again(&k);
    assert_int_equal(rig_stats(&k.r).computed_tokens, 0);
    json_decref(call(&k.r, "DELETE", PERSONAS "/kind", NULL, 200));
    rig_stop(&k.r);
    assert_int_not_equal(access(k.kv, F_OK), 0);
    kept_close(&k);
}

static void test_a_damaged_file_is_computed_again(void **state)
{
    struct kept k;
    kept_open(&k, 1 << 20);
    json_decref(call(&k.r, "POST", PERSONAS, KIND_BODY, 200));
    wait_kept(&k);
    rig_stop(&k.r);
    static const char *const texts[] = {"", "TERSPIL", "something else that is a little longer"};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        write_text(k.kv, texts[i]);
        again(&k);
        assert_int_equal(rig_stats(&k.r).computed_tokens, KIND_TOKENS);
        wait_kept(&k);
    }
    again(&k);
    assert_int_equal(rig_stats(&k.r).computed_tokens, 0);
    kept_close(&k);
}

static void test_no_disk_for_it(void **state)
{
    struct kept k;
    kept_open(&k, 100); /* less than the file needs */
    json_decref(call(&k.r, "POST", PERSONAS, KIND_BODY, 200));
    assert_int_equal(cached(&k.r, ",\"persona\":\"kind\""), KIND_TOKENS);
    rig_stop(&k.r);
    assert_int_not_equal(access(k.kv, F_OK), 0);
    again(&k);
    assert_int_equal(rig_stats(&k.r).computed_tokens, KIND_TOKENS);
    kept_close(&k);
}

static void test_a_disk_that_takes_nothing(void **state)
{
    struct kept k;
    char part[96];
    kept_open(&k, 1 << 20);
    snprintf(part, sizeof part, "%s.part", k.kv);
    assert_int_equal(mkdir(part, 0700), 0); /* where the file would be written */
    json_decref(call(&k.r, "POST", PERSONAS, KIND_BODY, 200));
    assert_int_equal(cached(&k.r, ",\"persona\":\"kind\""), KIND_TOKENS);
    rig_stop(&k.r); /* the attempt is over */
    assert_int_not_equal(access(k.kv, F_OK), 0);
    rmdir(part);
    again(&k);
    assert_int_equal(rig_stats(&k.r).computed_tokens, KIND_TOKENS);
    wait_kept(&k);
    kept_close(&k);
}

/* ---- under adapters ---- */

/* A service with the adapters "sql" and "style", which change no answer, and one of another base.
 */
struct adapted {
    struct kept k;
    struct adapter_rig files;
    struct db *db;
};

static void add_alien(struct db *db)
{
    struct registry *all;
    struct registry_spec spec = {.name = "alien",
                                 .base = "other",
                                 .source = "/nowhere",
                                 .format = "peft",
                                 .trained_on = "",
                                 .digest = (uint8_t[REGISTRY_DIGEST_BYTES]){1}};
    int version;
    assert_int_equal(registry_open(&all, db, NULL), 0);
    assert_int_equal(registry_add(all, &spec, &version, NULL), 0);
    registry_close(all);
}

static void adapted_open(struct adapted *a)
{
    kept_prepare(&a->k, 1 << 20);
    adapter_rig_open(&a->files, 3);
    assert_int_equal(db_open(&a->db, NULL, false, NULL), 0);
    add_alien(a->db);
    a->k.o.weights = a->files.model;
    a->k.o.db = a->db;
    a->k.o.adapters = (struct adapters_opts){.root = a->files.root, .budget = 1 << 20};
    rig_open(&a->k.r, &a->k.o);
    json_decref(call(&a->k.r, "POST", "/v1/adapters", "{\"name\":\"sql\",\"path\":\"a0\"}", 201));
    json_decref(call(&a->k.r, "POST", "/v1/adapters", "{\"name\":\"style\",\"path\":\"a1\"}", 201));
}

static void adapted_close(struct adapted *a)
{
    kept_close(&a->k);
    db_close(a->db);
    adapter_rig_close(&a->files);
}

#define KIND_UNDER(adapter) "{\"name\":\"kind\",\"system\":\"Be kind\",\"adapter\":" adapter "}"
#define PERSONA             ",\"persona\":\"kind\""

static void test_adapter(void **state)
{
    struct adapted a;
    struct rig *r = &a.k.r;
    adapted_open(&a);
    refuse(r, "POST", PERSONAS, KIND_UNDER("\"nobody\""), 404, "adapter");
    refuse(r, "POST", PERSONAS, KIND_UNDER("\"alien\""), 400, "adapter");
    refuse(r, "POST", PERSONAS, KIND_UNDER("7"), 400, "adapter");
    refuse(r, "POST", PERSONAS, KIND_UNDER("[\"sql\",\"sql\"]"), 400, "adapter");
    json_decref(call(r, "POST", PERSONAS, KIND_UNDER("[\"sql:0.5\",\"style\"]"), 200));
    assert_int_equal(cached(r, PERSONA), KIND_TOKENS);
    json_decref(call(r, "POST", PERSONAS, KIND_UNDER("\"sql\""), 200)); /* others than before */
    json_t *v = call(r, "GET", PERSONAS "/kind", NULL, 200);
    assert_string_equal(json_string_value(json_object_get(v, "status")), "ready");
    assert_string_equal(json_string_value(json_object_get(v, "adapter")), "sql");
    json_decref(v);
    wait_pinned(r, 1);
    assert_int_equal(cached(r, PERSONA), KIND_TOKENS);
    assert_int_equal(cached(r, PERSONA ",\"adapter\":[]"), 0);
    assert_int_equal(cached(r, PERSONA ",\"adapter\":\"style\""), 0);
    assert_true(cached(r, PERSONA ",\"model\":\"style\"") > KIND_TOKENS);
    assert_true(cached(r, PERSONA ",\"model\":\"sql\"") > KIND_TOKENS);
    v = call(r, "DELETE", PERSONAS "?adapter=style", NULL, 200);
    assert_int_equal(int_of(v, "count"), 0);
    json_decref(v);
    v = call(r, "DELETE", PERSONAS "?adapter=sql", NULL, 200);
    assert_int_equal(int_of(v, "count"), 1);
    json_decref(v);
    wait_pinned(r, 0);
    adapted_close(&a);
}

static void test_adapter_changes(void **state)
{
    struct adapted a;
    struct rig *r = &a.k.r;
    adapted_open(&a);
    json_decref(call(r, "POST", PERSONAS, KIND_UNDER("\"sql\""), 200));
    uint64_t before = rig_stats(r).computed_tokens;
    json_decref(call(r, "POST", "/v1/adapters", "{\"name\":\"sql\",\"path\":\"a2\"}", 200));
    wait_ready(r, PERSONAS "/kind");
    assert_int_equal(rig_stats(r).computed_tokens, before + KIND_TOKENS);
    wait_pinned(r, 1);
    assert_int_equal(cached(r, PERSONA), KIND_TOKENS);
    json_decref(call(r, "POST", "/v1/adapters/sql/rollback", NULL, 200));
    wait_ready(r, PERSONAS "/kind");
    assert_int_equal(cached(r, PERSONA), KIND_TOKENS);
    json_decref(call(r, "DELETE", "/v1/adapters/sql", NULL, 200));
    wait_status(r, PERSONAS "/kind", "failed");
    json_t *v = call(r, "GET", PERSONAS "/kind", NULL, 200);
    assert_non_null(strstr(json_string_value(json_object_get(v, "error")), "`sql`"));
    json_decref(v);
    wait_pinned(r, 0);
    refuse(r, "POST", CHAT, "{" HI PERSONA "}", 404, "adapter");
    json_decref(call(r, "POST", "/v1/adapters", "{\"name\":\"sql\",\"path\":\"a0\"}", 201));
    wait_ready(r, PERSONAS "/kind");
    wait_pinned(r, 1);
    assert_true(cached(r, PERSONA) >= KIND_TOKENS);
    adapted_close(&a);
}

static void test_adapter_that_cannot_be_loaded(void **state)
{
    struct adapted a;
    struct rig *r = &a.k.r;
    char path[PATH_MAX];
    adapted_open(&a);
    snprintf(path, sizeof path, "%s/a1", a.files.root);
    json_decref(call(r, "POST", "/v1/adapters/style/unload", NULL, 200));
    adapter_rig_write(path, 7); /* not what was registered */
    json_decref(call(r, "POST", PERSONAS, KIND_UNDER("\"style\""), 500));
    wait_status(r, PERSONAS "/kind", "failed");
    json_decref(call(r, "POST", "/v1/adapters", "{\"name\":\"style\",\"path\":\"a1\"}", 200));
    wait_ready(r, PERSONAS "/kind");
    assert_int_equal(cached(r, PERSONA), KIND_TOKENS);
    adapted_close(&a);
}

static void test_adapter_across_restarts(void **state)
{
    struct adapted a;
    struct registry *all;
    adapted_open(&a);
    static const char alias[] = "/v1/adapters/aliases/a@b";
    json_decref(call(&a.k.r, "PUT", alias, "{\"adapter\":\"sql\"}", 200));
    json_decref(call(&a.k.r, "POST", PERSONAS, KIND_UNDER("{\"name\":\"a@b\"}"), 200));
    wait_kept(&a.k);
    again(&a.k);
    assert_int_equal(rig_stats(&a.k.r).computed_tokens, 0);
    assert_int_equal(cached(&a.k.r, PERSONA), KIND_TOKENS);
    rig_stop(&a.k.r);
    assert_int_equal(registry_open(&all, a.db, NULL), 0);
    assert_int_equal(registry_alias(all, "a@b", "style", 0, NULL), 0);
    registry_close(all);
    again(&a.k); /* the file is of another adapter */
    assert_int_equal(rig_stats(&a.k.r).computed_tokens, KIND_TOKENS);
    wait_kept(&a.k);
    json_decref(call(&a.k.r, "PUT", alias, "{\"adapter\":\"sql\"}", 200));
    wait_ready(&a.k.r, PERSONAS "/kind");
    wait_kept(&a.k);
    again(&a.k);
    assert_int_equal(rig_stats(&a.k.r).computed_tokens, 0);
    assert_int_equal(cached(&a.k.r, PERSONA), KIND_TOKENS);
    adapted_close(&a);
}

/* ---- while it is computed ---- */

static int post(struct rig *r, const char *body)
{
    int fd = client_open(r);
    client_send(fd, "POST", PERSONAS, "", body, strlen(body));
    return fd;
}

static void test_unfinished(void **state)
{
    static const char kind[] = "{\"name\":\"kind\",\"system\":\"Be kind\"}";
    struct rig r;
    struct response a;
    rig_open(&r, &(struct rig_opts){.manual = true, .max_pinned_blocks = 1});
    int fd = post(&r, kind);
    rig_wait_running(&r, 1);
    json_decref(call(&r, "DELETE", PERSONAS "/kind", NULL, 200)); /* deleted on the way */
    client_read(fd, &a);
    assert_int_equal(a.status, 409);
    response_release(&a);
    while (engine_step(r.engine))
        ;
    assert_int_equal(rig_stats(&r).blocks_pinned, 0);
    fd = post(&r, kind);
    rig_wait_running(&r, 1);
    close(fd); /* the client leaves: it is computed all the same */
    while (engine_step(r.engine))
        ;
    assert_int_equal(rig_stats(&r).blocks_pinned, 1);
    wait_ready(&r, PERSONAS "/kind");
    fd = post(&r, kind); /* left behind at the end */
    int64_t until = clock_ms() + 60000;
    while (rig_stats(&r).waiting == 0) { /* the pin of the old one is given back in a step */
        engine_step(r.engine);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
        assert_true(clock_ms() < until);
        if (rig_stats(&r).blocks_pinned == 1 && rig_stats(&r).requests_done > 2)
            break;
    }
    close(fd);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_replace),
        cmocka_unit_test(test_reset),
        cmocka_unit_test(test_restart),
        cmocka_unit_test(test_a_restart_computes_nothing),
        cmocka_unit_test(test_a_damaged_file_is_computed_again),
        cmocka_unit_test(test_no_disk_for_it),
        cmocka_unit_test(test_a_disk_that_takes_nothing),
        cmocka_unit_test(test_adapter),
        cmocka_unit_test(test_adapter_changes),
        cmocka_unit_test(test_adapter_that_cannot_be_loaded),
        cmocka_unit_test(test_adapter_across_restarts),
        cmocka_unit_test(test_unfinished),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
