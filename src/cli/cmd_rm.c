#include <stdio.h>

#include "cli/cli.h"
#include "store/models.h"

struct rm_options {
    const char *model_dir;
};

static const struct opt opts[] = {
    {"model-dir", OPT_STR, offsetof(struct rm_options, model_dir), NULL, "DIR",
     "Where models are kept. The default is ~/.terrace/models."},
    {NULL},
};

static int run(const struct command *c, int argc, char **argv)
{
    struct rm_options o = {0};
    struct arena arena = {0};
    struct err e = {0};
    int n_words, status = cli_options(c, &o, &arena, argc, argv, 1, &n_words);
    if (status < 0) {
        const char *dir = o.model_dir ? o.model_dir : cli_models_dir(&arena);
        if (!n_words)
            err_set(&e, ERR_INVALID, "which model? terrace list shows what is here");
        status = !n_words || models_remove(dir, argv[0], &e) ? cli_fail(c, &e) : EXIT_OK;
    }
    arena_release(&arena);
    return status;
}

const struct command cmd_rm = {
    .name = "rm",
    .usage = "terrace rm [OPTIONS] MODEL",
    .summary = "remove a model from this machine",
    .opts = opts,
    .run = run,
};
