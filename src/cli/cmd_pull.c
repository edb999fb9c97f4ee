#include <stdio.h>

#include "base/progress.h"
#include "cli/cli.h"
#include "cli/load.h"
#include "store/models.h"

struct pull_options {
    const char *model_dir, *hf_endpoint, *ollama_endpoint;
    int64_t stall_ms;
};

static const struct opt opts[] = {
    {"model-dir", OPT_STR, offsetof(struct pull_options, model_dir), NULL, "DIR",
     "Where models are kept. The default is ~/.terrace/models."},
    {"hf-endpoint", OPT_STR, offsetof(struct pull_options, hf_endpoint), NULL, "URL",
     "A mirror of https://huggingface.co; HF_ENDPOINT is heeded too."},
    {"ollama-endpoint", OPT_STR, offsetof(struct pull_options, ollama_endpoint), NULL, "URL",
     "A mirror of https://registry.ollama.ai."},
    {"download-stall", OPT_MS, offsetof(struct pull_options, stall_ms), "60s", "TIME",
     "A transfer without a byte for so long is given up and the next source tried.", 1, 86400e3},
    {NULL},
};

static int run(const struct command *c, int argc, char **argv)
{
    struct pull_options o = {0};
    struct arena arena = {0};
    struct err e = {0};
    struct buf path = {0};
    int n_words, status = cli_options(c, &o, &arena, argc, argv, 1, &n_words);
    if (status < 0) {
        const char *name = n_words ? argv[0] : models_default;
        struct load_progress bar = {0};
        struct fetch_opts fetch = {
            .dir = o.model_dir ? o.model_dir : cli_models_dir(&arena),
            .stall_ms = o.stall_ms,
            .hf_endpoint = o.hf_endpoint,
            .ollama_endpoint = o.ollama_endpoint,
            .progress = load_show_progress,
            .progress_arg = &bar,
        };
        status = models_fetch(name, &fetch, &path, &e) ? cli_fail(c, &e) : EXIT_OK;
        load_progress_end(&bar);
        if (status == EXIT_OK)
            printf("%s\n", path.data);
    }
    buf_release(&path);
    arena_release(&arena);
    return status;
}

const struct command cmd_pull = {
    .name = "pull",
    .usage = "terrace pull [OPTIONS] [MODEL]",
    .summary = "fetch a model and print where it is",
    .details =
        "MODEL is a name of the catalog (smollm2:135m, phi3:mini, llama3.1:8b, mistral:7b), any\n"
        "NAME:TAG of the Ollama registry, or hf.co/USER/REPO/FILE.gguf. An interrupted download\n"
        "goes on where it stopped.\n",
    .opts = opts,
    .run = run,
};
