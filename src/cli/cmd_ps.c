/* cmd_ps.c - terrace ps: which models a running server has in memory. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/progress.h"
#include "cli/cli.h"
#include "cli/client.h"

struct ps_options {
    struct client client;
    bool all;
};

static const struct opt opts[] = {
    CLIENT_OPTS(offsetof(struct ps_options, client)),
    {"all", OPT_BOOL, offsetof(struct ps_options, all), NULL, NULL,
     "Also those that would be loaded when a request names them.", .letter = 'a', .cli_only = true},
    {NULL},
};

/* "forever", or how long from now. */
static const char *until(const json_t *status, char *out, size_t size)
{
    const json_t *at = json_object_get(status, "expires_at");
    int64_t left = json_integer_value(at) - clock_unix_s();
    if (!at)
        return "";
    if (json_is_null(at))
        return "forever";
    if (left < 0)
        left = 0;
    if (left < 120)
        snprintf(out, size, "%lld s", (long long)left);
    else if (left < 2 * 3600)
        snprintf(out, size, "%lld min", (long long)left / 60);
    else
        snprintf(out, size, "%lld h", (long long)left / 3600);
    return out;
}

static void add_row(struct client_table *t, const json_t *m, const json_t *status)
{
    char size[16], left[32];
    const json_t *bytes = json_object_get(status, "bytes");
    const json_t *requests = json_object_get(status, "requests");
    long long context = json_integer_value(json_object_get(m, "max_model_len"));
    client_cell(t, json_string_value(json_object_get(m, "id")));
    client_cell(t, json_string_value(json_object_get(status, "value")));
    client_cell(t, bytes ? progress_bytes((uint64_t)json_integer_value(bytes), size, sizeof size)
                         : NULL);
    if (context)
        client_cellf(t, "%lld", context);
    else
        client_cell(t, NULL);
    if (requests)
        client_cellf(t, "%lld", (long long)json_integer_value(requests));
    else
        client_cell(t, NULL);
    client_cell(t, until(status, left, sizeof left));
}

static void show(const json_t *answer, bool all)
{
    static const char *const headings[] = {"NAME",      "STATE", ">MEMORY", ">CONTEXT",
                                           ">REQUESTS", "STAYS", NULL};
    struct client_table t = {headings};
    size_t i;
    json_t *m;
    json_array_foreach(json_object_get(answer, "data"), i, m)
    {
        const json_t *status = json_object_get(m, "status");
        const char *value = json_string_value(json_object_get(status, "value"));
        if (value && (all || strcmp(value, "unloaded") != 0))
            add_row(&t, m, status);
    }
    if (t.n_cells)
        client_table_print(&t, stdout);
    else
        puts("no model is loaded; terrace ps --all shows what could be");
}

static int run(const struct command *c, int argc, char **argv)
{
    struct ps_options o = {0};
    struct arena arena = {0};
    struct err e = {0};
    json_t *answer = NULL;
    int n_words, status = cli_options(c, &o, &arena, argc, argv, 0, &n_words);
    if (status < 0) {
        status = EXIT_OK;
        if (client_call(&o.client, "GET", "/v1/models", NULL, &answer, &e))
            status = cli_fail(c, &e);
        else if (o.client.json)
            client_print_json(answer);
        else
            show(answer, o.all);
    }
    json_decref(answer);
    arena_release(&arena);
    return status;
}

const struct command cmd_ps = {
    .name = "ps",
    .usage = "terrace ps [OPTIONS]",
    .summary = "show the models that a running server has in memory",
    .opts = opts,
    .run = run,
};
