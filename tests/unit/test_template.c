#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "chat/template.h"

/* Expected values come from jinja2: tests/vectors/template/make.py says how. */

enum { NOW = 1718454645 }; /* as in make.py */

static json_t *load(const char *path)
{
    json_error_t je;
    json_t *j = json_load_file(path, 0, &je);
    if (!j)
        fail_msg("%s: %s", path, je.text);
    return j;
}

static json_t *load_vectors(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, VECTORS "/template/%s", name);
    return load(path);
}

static const char *text_of(const json_t *j, const char *key)
{
    return json_string_value(json_object_get(j, key));
}

static void check_spans(const struct template_output *out)
{
    size_t begin = 0;
    for (size_t i = 0; i < out->n_spans; i++) {
        assert_true(out->spans[i].end > begin);
        if (i)
            assert_true(out->spans[i].trusted != out->spans[i - 1].trusted);
        begin = out->spans[i].end;
    }
    assert_int_equal(begin, out->text.len);
}

/* NULL if the result is the expected one, else a description of it. */
static const char *mismatch(int rc, const struct template_output *out, const struct err *e,
                            const json_t *row)
{
    static char what[4096];
    const char *error = text_of(row, "error");
    const json_t *expected = json_object_get(row, "text");
    snprintf(what, sizeof what, "rc %d (%s)\n  got  %s\n  want %s", rc, e->msg,
             rc ? "" : buf_str(&out->text), error ? error : json_string_value(expected));
    if (error && strcmp(error, "raise") == 0)
        return rc == ERR_INVALID && strstr(e->msg, text_of(row, "message")) == e->msg ? NULL : what;
    if (error)
        return rc < 0 && rc != ERR_INVALID ? NULL : what;
    bool same = rc == 0 && out->text.len == json_string_length(expected) &&
                memcmp(buf_str(&out->text), json_string_value(expected), out->text.len) == 0;
    return same ? NULL : what;
}

static int render(const char *source, size_t n, const struct template_vars *v,
                  struct template_output *out, struct err *e)
{
    struct template *t = NULL;
    int rc = template_new(&t, source, n, e);
    if (!rc)
        rc = template_render(t, v, out, e);
    template_free(t);
    return rc;
}

static void test_cases(void **state)
{
    json_t *cases = load_vectors("cases.json"), *vars = load_vectors("variables.json"), *row;
    struct template_vars v = {.messages = json_object_get(vars, "messages"),
                              .kwargs = vars,
                              .bos_token = "<s>",
                              .eos_token = "</s>",
                              .add_generation_prompt = true,
                              .now_unix_s = NOW};
    size_t i, failed = 0;
    json_array_foreach(cases, i, row)
    {
        struct template_output out = {0};
        struct err e = {0};
        const json_t *source = json_object_get(row, "source");
        int rc = render(json_string_value(source), json_string_length(source), &v, &out, &e);
        const char *wrong = mismatch(rc, &out, &e, row);
        if (wrong)
            print_error("case %s\n  %s\n", json_string_value(source), wrong);
        failed += wrong != NULL;
        check_spans(&out);
        template_output_release(&out);
    }
    assert_true(i > 800);
    json_decref(cases);
    json_decref(vars);
    assert_int_equal(failed, 0);
}

static char *read_template(const char *name, size_t *n)
{
    char path[512];
    snprintf(path, sizeof path, name[0] == '/' ? "%s%s" : "%s/template/%s",
             name[0] == '/' ? "" : VECTORS, name);
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("cannot open %s", path);
    char *text = xcalloc(1, 1 << 20);
    *n = fread(text, 1, 1 << 20, f);
    fclose(f);
    return text;
}

static const json_t *find_conversation(const json_t *all, const char *name)
{
    size_t i;
    json_t *c;
    json_array_foreach(all, i, c) if (strcmp(text_of(c, "name"), name) == 0) return c;
    fail_msg("no conversation %s", name);
    return NULL;
}

static struct template_vars conversation_vars(const json_t *c, bool generate)
{
    return (struct template_vars){.messages = json_object_get(c, "messages"),
                                  .tools = json_object_get(c, "tools"),
                                  .documents = json_object_get(c, "documents"),
                                  .kwargs = json_object_get(c, "kwargs"),
                                  .bos_token = "<s>",
                                  .eos_token = "</s>",
                                  .add_generation_prompt = generate,
                                  .now_unix_s = NOW};
}

/* Every row of a vector file: a real template, a conversation, what comes out. */
static void check_renders(const json_t *rows)
{
    json_t *conversations = load_vectors("conversations.json"), *row;
    size_t i, failed = 0;
    json_array_foreach(rows, i, row)
    {
        struct template_output out = {0};
        struct err e = {0};
        size_t n;
        char *source = read_template(text_of(row, "template"), &n);
        const json_t *c = find_conversation(conversations, text_of(row, "conversation"));
        struct template_vars v =
            conversation_vars(c, json_is_true(json_object_get(row, "generate")));
        int rc = render(source, n, &v, &out, &e);
        const char *wrong = mismatch(rc, &out, &e, row);
        if (wrong)
            print_error("%s, %s\n  %s\n", text_of(row, "template"), text_of(row, "conversation"),
                        wrong);
        failed += wrong != NULL;
        check_spans(&out);
        template_output_release(&out);
        free(source);
    }
    json_decref(conversations);
    assert_int_equal(failed, 0);
}

static void test_renders(void **state)
{
    json_t *rows = load_vectors("renders.json");
    assert_true(json_array_size(rows) > 500);
    check_renders(rows);
    json_decref(rows);
}

/* Renders of templates that are not kept here: `make.py --extra` wrote the file. */
static void test_extra_renders(void **state)
{
    const char *path = getenv("TEMPLATE_EXTRA");
    if (!path)
        skip();
    json_t *rows = load(path);
    check_renders(rows);
    json_decref(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_renders),
        cmocka_unit_test(test_extra_renders),
    };
    return cmocka_run_group_tests_name("template", tests, NULL, NULL);
}
