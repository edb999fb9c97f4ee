#include <stdio.h>

#include "cli/cli.h"

static const struct opt opts[] = {{NULL}};

static int run(const struct command *c, int argc, char **argv)
{
    char none;
    struct arena arena = {0};
    int n_words, status = cli_options(c, &none, &arena, argc, argv, 0, &n_words);
    if (status < 0) {
        printf("terrace %s\n", cli_version);
        status = EXIT_OK;
    }
    arena_release(&arena);
    return status;
}

const struct command cmd_version = {
    .name = "version",
    .usage = "terrace version",
    .summary = "print the version",
    .opts = opts,
    .run = run,
};
