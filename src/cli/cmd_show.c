#include <stdio.h>

#include "base/buf.h"
#include "base/progress.h"
#include "cli/cli.h"
#include "gguf/gguf.h"
#include "store/models.h"

struct show_options {
    const char *model_dir;
    bool tensors;
};

static const struct opt opts[] = {
    {"model-dir", OPT_STR, offsetof(struct show_options, model_dir), NULL, "DIR",
     "Where models are kept. The default is ~/.terrace/models."},
    {"tensors", OPT_BOOL, offsetof(struct show_options, tensors), NULL, NULL,
     "Also list every tensor with its type and shape.", .letter = 't'},
    {NULL},
};

static void print_keys(const struct gguf *g)
{
    struct buf value = {0};
    for (size_t i = 0; i < gguf_n_keys(g); i++) {
        struct str key = gguf_key(g, i);
        buf_clear(&value);
        gguf_print_value(g, i, &value);
        printf("%-44.*s %s\n", (int)key.n, key.p, buf_str(&value));
    }
    buf_release(&value);
}

static void print_tensors(const struct gguf *g)
{
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        printf("%-44.*s %-7s", (int)t->name.n, t->name.p, ttype_info(t->type)->name);
        for (int d = 0; d < t->n_dims; d++)
            printf(" %llu", (unsigned long long)t->dims[d]);
        putchar('\n');
    }
}

static int show(const struct command *c, const char *path, bool tensors)
{
    struct err e = {0};
    struct gguf *g;
    if (gguf_open(&g, path, &e))
        return cli_fail(c, &e);
    char size[16];
    printf("%s\nGGUF version %u, %zu tensors, %s\n\n", path, gguf_version(g), gguf_n_tensors(g),
           progress_bytes(gguf_file_bytes(g), size, sizeof size));
    print_keys(g);
    if (tensors) {
        putchar('\n');
        print_tensors(g);
    }
    gguf_close(g);
    return EXIT_OK;
}

static int run(const struct command *c, int argc, char **argv)
{
    struct show_options o = {0};
    struct arena arena = {0};
    struct err e = {0};
    struct buf path = {0};
    int n_words, status = cli_options(c, &o, &arena, argc, argv, 1, &n_words);
    if (status < 0) {
        const char *dir = o.model_dir ? o.model_dir : cli_models_dir(&arena);
        if (models_path(dir, n_words ? argv[0] : models_default, &path, &e))
            status = cli_fail(c, &e);
        else
            status = show(c, path.data, o.tensors);
    }
    buf_release(&path);
    arena_release(&arena);
    return status;
}

const struct command cmd_show = {
    .name = "show",
    .usage = "terrace show [OPTIONS] [MODEL|FILE]",
    .summary = "print what a model file says about itself",
    .opts = opts,
    .run = run,
};
