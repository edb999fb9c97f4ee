/* main.c - terrace: finds the subcommand and runs it. */
#include <curl/curl.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/log.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "gateway/guard.h"
#include "store/db.h"
#include "store/models.h"

const char cli_version[] = TERRACE_VERSION;

static const struct command *const commands[] = {
    &cmd_serve, &cmd_run,   &cmd_pull,    &cmd_list, &cmd_ps,      &cmd_show,
    &cmd_rm,    &cmd_bench, &cmd_adapter, &cmd_key,  &cmd_version,
};

static void usage(FILE *out)
{
    fputs("Terrace serves language models to many people at once, on the machines they have.\n\n"
          "usage: terrace COMMAND [OPTIONS] [ARGUMENTS]\n\n",
          out);
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        fprintf(out, "  %-9s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\nterrace COMMAND --help tells more. Every option can also be set in the environment\n"
          "(TERRACE_PORT for --port); those of serve also in a YAML file (--config).\n\n"
          "A first answer:\n"
          "  terrace run smollm2:135m \"Why is the sky blue?\"\n",
          out);
}

static void command_help(const struct command *c, FILE *out)
{
    fprintf(out, "%s\n\nusage: %s\n", c->summary, c->usage);
    if (c->details)
        fprintf(out, "\n%s", c->details);
    fputs("\noptions:\n", out);
    opt_help(c->opts, out);
    fputs("  -h, --help                 This page.\n", out);
}

int cli_fail(const struct command *c, const struct err *e)
{
    fprintf(stderr, "terrace %s: %s\n", c->name, e->code ? e->msg : "failed");
    return EXIT_FAILED;
}

int cli_options(const struct command *c, void *values, struct arena *arena, int argc, char **argv,
                int max_words, int *n_words)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--"); i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            command_help(c, stdout);
            return EXIT_OK;
        }
    }
    struct err e = {0};
    struct opt_set set = {c->opts, values, arena, c->sections};
    if (opt_load(&set, argc, argv, max_words, n_words, &e)) {
        cli_fail(c, &e);
        return EXIT_USAGE;
    }
    return -1;
}

const char *cli_models_dir(struct arena *arena)
{
    struct buf dir = {0};
    models_dir(&dir);
    const char *s = arena_strdup(arena, (struct str){dir.data, dir.len});
    buf_release(&dir);
    return s;
}

const char *cli_state_dir(struct arena *arena, const char *given)
{
    const char *home = getenv("HOME");
    return given ? given : arena_printf(arena, "%s/.terrace/state", home && *home ? home : ".");
}

int cli_open_database(struct db **out, const char *state_dir, bool check, struct err *e)
{
    struct buf path = {0};
    buf_addf(&path, "%s/terrace.db", state_dir);
    int rc = db_open(out, path.data, check, e);
    buf_release(&path);
    return rc;
}

static bool is_word(const char *arg, const char *a, const char *b)
{
    return strcmp(arg, a) == 0 || strcmp(arg, b) == 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], GUARD_VERB) == 0) /* not for people */
        return guard_main(argc - 1, argv + 1);
    signal(SIGPIPE, SIG_IGN);
    setlocale(LC_CTYPE, "");
    curl_global_init(CURL_GLOBAL_DEFAULT);
    if (argc < 2) {
        usage(stderr);
        return EXIT_USAGE;
    }
    if (is_word(argv[1], "--help", "-h") || is_word(argv[1], "help", "help")) {
        usage(stdout);
        return EXIT_OK;
    }
    if (is_word(argv[1], "--version", "-V"))
        return cmd_version.run(&cmd_version, 1, argv + 1);
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        if (strcmp(argv[1], commands[i]->name) == 0)
            return commands[i]->run(commands[i], argc - 1, argv + 1);
    fprintf(stderr, "terrace: there is no command \"%s\"; terrace --help lists them\n", argv[1]);
    return EXIT_USAGE;
}
