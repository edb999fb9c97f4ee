#include <stdio.h>
#include <time.h>

#include "base/progress.h"
#include "cli/cli.h"
#include "store/models.h"

struct list_options {
    const char *model_dir;
};

static const struct opt opts[] = {
    {"model-dir", OPT_STR, offsetof(struct list_options, model_dir), NULL, "DIR",
     "Where models are kept. The default is ~/.terrace/models."},
    {NULL},
};

static void print(const struct model_list *l, const char *dir)
{
    if (!l->n) {
        printf("no models in %s; terrace pull %s fetches a small one\n", dir, models_default);
        return;
    }
    printf("%-24s %10s  %-16s %s\n", "NAME", "SIZE", "MODIFIED", "FILE");
    for (size_t i = 0; i < l->n; i++) {
        const struct model_file *f = &l->files[i];
        char size[16], when[32];
        struct tm tm;
        time_t t = (time_t)f->modified_unix_s;
        strftime(when, sizeof when, "%Y-%m-%d %H:%M", localtime_r(&t, &tm));
        printf("%-24s %10s  %-16s %s\n", f->name, progress_bytes(f->bytes, size, sizeof size), when,
               f->path);
    }
}

static int run(const struct command *c, int argc, char **argv)
{
    struct list_options o = {0};
    struct arena arena = {0};
    struct err e = {0};
    int n_words, status = cli_options(c, &o, &arena, argc, argv, 0, &n_words);
    if (status < 0) {
        const char *dir = o.model_dir ? o.model_dir : cli_models_dir(&arena);
        struct model_list list;
        status = EXIT_OK;
        if (models_list(dir, &list, &e))
            status = cli_fail(c, &e);
        else
            print(&list, dir);
        model_list_release(&list);
    }
    arena_release(&arena);
    return status;
}

const struct command cmd_list = {
    .name = "list",
    .usage = "terrace list [OPTIONS]",
    .summary = "show the models on this machine",
    .opts = opts,
    .run = run,
};
