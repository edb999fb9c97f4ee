#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/opt.h"

struct settings {
    const char *model, *config;
    int64_t port, wait_ms;
    double share;
    uint64_t limit;
    bool cache, quiet;
    int level;
    struct opt_list models;
};

static const char *const levels[] = {"low", "high", NULL};
#define AT(field) offsetof(struct settings, field)
static const struct opt table[] = {
    {"model", OPT_STR, AT(model), NULL, "NAME", "The model.", .letter = 'm'},
    {"config", OPT_STR, AT(config), NULL, "FILE", "The file.", .cli_only = true},
    {"port", OPT_INT, AT(port), "11403", "N", "The port.", .min = 0, .max = 65535},
    {"share", OPT_NUM, AT(share), "0.5", "X", "A share.", .min = 0, .max = 1},
    {"memory-limit", OPT_BYTES, AT(limit), "8GiB", "SIZE", "Memory."},
    {"wait", OPT_MS, AT(wait_ms), "30s", "TIME", "Patience."},
    {"cache", OPT_BOOL, AT(cache), "true", NULL, "Caching."},
    {"quiet", OPT_BOOL, AT(quiet), NULL, NULL, "Silence.", .letter = 'q'},
    {"level", OPT_ENUM, AT(level), "low", "LEVEL", "How much.", .choices = levels},
    {"models", OPT_LIST, AT(models), "one,two", "NAMES", "Several."},
    {NULL},
};

struct fixture {
    struct settings v;
    struct arena arena;
    struct opt_set set;
    struct err e;
    int n_words;
    char words[8][64];
    char *argv[8];
};

static void init(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    f->set = (struct opt_set){table, &f->v, &f->arena};
}

static int load(struct fixture *f, const char *const *args)
{
    int argc = 1;
    f->argv[0] = f->words[0];
    for (; args[argc - 1]; argc++) {
        snprintf(f->words[argc], sizeof f->words[argc], "%s", args[argc - 1]);
        f->argv[argc] = f->words[argc];
    }
    arena_release(&f->arena);
    f->v = (struct settings){0};
    return opt_load(&f->set, argc, f->argv, 2, &f->n_words, &f->e);
}

#define LOAD(f, ...) load(f, (const char *const[]){__VA_ARGS__, NULL})

static void test_defaults_and_args(void **state)
{
    struct fixture f;
    init(&f);
    assert_int_equal(load(&f, (const char *const[]){NULL}), 0);
    assert_int_equal(f.v.port, 11403);
    assert_true(f.v.limit == (uint64_t)8 << 30 && f.v.wait_ms == 30000 && f.v.cache && !f.v.quiet);
    assert_int_equal(LOAD(&f, "-m", "x", "--port=1", "word", "--no-cache", "-q", "--level"),
                     ERR_INVALID);
    assert_int_equal(LOAD(&f, "-m", "x", "--port=1", "word", "--no-cache", "-q"), 0);
    assert_string_equal(f.v.model, "x");
    assert_true(f.v.port == 1 && !f.v.cache && f.v.quiet);
    assert_int_equal(f.n_words, 1);
    assert_string_equal(f.argv[0], "word");
    assert_int_equal(LOAD(&f, "--", "--port"), 0);
    assert_string_equal(f.argv[0], "--port");
    arena_release(&f.arena);
}

static void test_refusals(void **state)
{
    static const struct {
        const char *args[3], *says;
    } bad[] = {
        {{"--port=70000"}, "--port: 70000 is out of range"},
        {{"--port", "many"}, "--port: \"many\" is not a whole number"},
        {{"--prot=1"}, "there is no option --prot"},
        {{"--share=1.5"}, "0 to 1"},
        {{"--memory-limit=lots"}, "8GiB"},
        {{"--wait=soon"}, "250ms"},
        {{"--level=middle"}, "one of low, high"},
        {{"--cache=maybe"}, "true or false"},
        {{"--no-port"}, "there is no option --no-port"},
        {{"-x"}, "there is no option -x"},
        {{"a", "b", "c"}, "one word too many"},
    };
    struct fixture f;
    init(&f);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        const char *args[4] = {bad[i].args[0], bad[i].args[1], bad[i].args[2], NULL};
        assert_int_equal(load(&f, args), ERR_INVALID);
        assert_non_null(strstr(f.e.msg, bad[i].says));
    }
    arena_release(&f.arena);
}

/* Writes text to a file and loads it as config. */
static int load_file(struct fixture *f, const char *text)
{
    char path[] = "/tmp/terrace-opt-XXXXXX", arg[64];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    snprintf(arg, sizeof arg, "--config=%s", path);
    int rc = LOAD(f, arg);
    unlink(path);
    return rc;
}

static void test_file(void **state)
{
    struct fixture f;
    init(&f);
    assert_int_equal(
        load_file(&f, "# a comment\nport: 8080\nmodel: 'a b'\ncache: no\nlevel: high\n"), 0);
    assert_true(f.v.port == 8080 && !f.v.cache && f.v.level == 1);
    assert_string_equal(f.v.model, "a b");
    assert_int_equal(load_file(&f, ""), 0);
    static const char *const bad[][2] = {
        {"port: 8080\nprot: 1\n", ":2:1: there is no option \"prot\""},
        {"port: x\n", ":1:7: port: \"x\""},
        {"port: 1\nport: 2\n", ":2:1: \"port\" is set twice"},
        {"- port\n", ":1:1: must be a mapping"},
        {"port: [1]\n", "single value"},
        {"port: \"1\n", ":"},
        {"config: x\n", "there is no option"},
        {"{port: 1", ":"},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_not_equal(load_file(&f, bad[i][0]), 0);
        assert_non_null(strstr(f.e.msg, bad[i][1]));
    }
    assert_int_equal(LOAD(&f, "--config=/nonexistent.yaml"), ERR_NOTFOUND);
    arena_release(&f.arena);
}

static void test_precedence(void **state)
{
    struct fixture f;
    init(&f);
    setenv("TERRACE_MEMORY_LIMIT", "1GiB", 1);
    setenv("TERRACE_PORT", "99", 1);
    assert_int_equal(load_file(&f, "port: 1\nwait: 5s\n"), 0);
    assert_true(f.v.port == 99 && f.v.limit == 1 << 30 && f.v.wait_ms == 5000);
    assert_int_equal(LOAD(&f, "--port=7"), 0);
    assert_int_equal(f.v.port, 7);
    setenv("TERRACE_PORT", "x", 1);
    assert_int_equal(LOAD(&f, "--port=7"), ERR_INVALID);
    assert_non_null(strstr(f.e.msg, "TERRACE_PORT"));
    unsetenv("TERRACE_MEMORY_LIMIT");
    unsetenv("TERRACE_PORT");
    arena_release(&f.arena);
}

static void expect_list(const struct fixture *f, const char *joined)
{
    char text[128] = "";
    for (size_t i = 0; i < f->v.models.n; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", i ? "|" : "",
                 f->v.models.items[i]);
    assert_string_equal(text, joined);
}

/* Commas and repetition add; a later place replaces. */
static void test_lists(void **state)
{
    struct fixture f;
    init(&f);
    assert_int_equal(load(&f, (const char *const[]){NULL}), 0);
    expect_list(&f, "one|two");
    assert_int_equal(LOAD(&f, "--models=a,b", "--models", "c"), 0);
    expect_list(&f, "a|b|c");
    assert_int_equal(LOAD(&f, "--models=,a,,b,"), 0);
    expect_list(&f, "a|b");
    assert_int_equal(LOAD(&f, "--models="), 0);
    expect_list(&f, "");
    assert_int_equal(load_file(&f, "models: [x, y]\n"), 0);
    expect_list(&f, "x|y");
    assert_int_equal(load_file(&f, "models:\n  - x\n  - y,z\n"), 0);
    expect_list(&f, "x|y|z");
    assert_int_equal(load_file(&f, "models: x\n"), 0);
    expect_list(&f, "x");
    assert_int_equal(load_file(&f, "models: []\n"), 0);
    expect_list(&f, "");
    assert_int_equal(load_file(&f, "models: [[x]]\n"), ERR_INVALID);
    assert_int_equal(load_file(&f, "port: [1]\n"), ERR_INVALID);
    setenv("TERRACE_MODELS", "e,f", 1);
    assert_int_equal(load_file(&f, "models: [x]\n"), 0);
    expect_list(&f, "e|f");
    assert_int_equal(LOAD(&f, "--models=g"), 0);
    expect_list(&f, "g");
    unsetenv("TERRACE_MODELS");
    arena_release(&f.arena);
}

/* What opt_print writes is a file that gives the same values. */
static void test_print_round_trip(void **state)
{
    struct fixture f;
    init(&f);
    assert_int_equal(
        LOAD(&f, "--model=it's", "--port=5", "--level=high", "--share=0.25", "--models=p,q"), 0);
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    opt_print(&f.set, out);
    opt_help(table, out);
    fclose(out);
    *strstr(text, "  -m") = 0;
    assert_int_equal(load_file(&f, text), 0);
    assert_string_equal(f.v.model, "it's");
    assert_true(f.v.port == 5 && f.v.level == 1 && f.v.share == 0.25);
    expect_list(&f, "p|q");
    free(text);
    arena_release(&f.arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_and_args),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_precedence),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_print_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
