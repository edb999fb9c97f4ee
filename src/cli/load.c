#include "cli/load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/log.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "store/models.h"

const char *const load_kv_types[] = {"bf16", "f16", "q8_0", NULL};

/* Set aside for code, stacks, requests and the allocator when the KV pool is sized. */
static const uint64_t overhead_bytes = 192u << 20;

/* More contexts than this are not reserved for, however much memory there is. */
enum {
    LOAD_MAX_CONTEXTS = 32,
    LOAD_USUAL_CTX = 4096, /* rather than give a model less, others are unloaded */
    LOAD_MIN_CTX = 128,
    LOAD_TEMPLATE_MAX_BYTES = 1 << 20,
};

bool load_show_progress(void *arg, const char *what, uint64_t done, uint64_t total)
{
    struct load_progress *p = arg;
    if (!total) /* a stage without a measure has no bar */
        return true;
    if (strcmp(p->what, what)) {
        progress_end(&p->bar);
        snprintf(p->what, sizeof p->what, "%s", what);
        progress_start(&p->bar, p->what);
    }
    progress_update(&p->bar, done, total);
    return true;
}

void load_progress_end(struct load_progress *p)
{
    progress_end(&p->bar);
    p->what[0] = 0;
}

/* What the machine, or the cgroup this process is in, has. */
static uint64_t machine_bytes(void)
{
    uint64_t ram = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGE_SIZE);
    static const char *const files[] = {"/sys/fs/cgroup/memory.max",
                                        "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        unsigned long long v;
        FILE *f = fopen(files[i], "re");
        if (f && fscanf(f, "%llu", &v) == 1 && v < ram)
            ram = v;
        if (f)
            fclose(f);
    }
    return ram;
}

void load_memory_new(struct load_memory *m, const struct load_options *o)
{
    uint64_t limit = o->memory_limit ? o->memory_limit : machine_bytes() / 10 * 8;
    m->budget = budget_new(limit);
    int rc = budget_take(m->budget, BUDGET_PROCESS, "process",
                         limit < overhead_bytes ? limit : overhead_bytes, &m->process, NULL);
    BUG_ON(rc);
}

void load_memory_free(struct load_memory *m)
{
    budget_give(m->process);
    budget_free(m->budget);
    *m = (struct load_memory){0};
}

/* ---- how much memory a model gets ---- */

static unsigned long long mib(uint64_t bytes)
{
    return (unsigned long long)(bytes >> 20);
}

struct plan {
    struct budget *budget;
    uint64_t scratch;     /* what steps work in: the model's, and logits of the largest step */
    uint64_t fixed;       /* weights and scratch */
    uint64_t block_bytes; /* of KV */
    int ctx;              /* longest sequence that is wanted */
};

static uint64_t kv_bytes(const struct plan *p, int n_ctx)
{
    uint64_t blocks = ((uint64_t)n_ctx + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    return blocks * p->block_bytes;
}

static int cannot_fit(const struct loaded *l, const struct plan *p, const struct model_info *info,
                      struct err *e)
{
    return err_param(e, ERR_LIMIT, "memory-limit",
                     "%s needs %llu MiB (weights %llu, scratch %llu, other %llu, KV cache for %d "
                     "tokens %llu), the limit is %llu MiB: raise --memory-limit or lower --ctx",
                     l->name, mib(p->fixed + overhead_bytes + kv_bytes(p, p->ctx)),
                     mib(info->weight_bytes), mib(p->scratch), mib(overhead_bytes), p->ctx,
                     mib(kv_bytes(p, p->ctx)), mib(budget_limit(p->budget)));
}

/* How many bytes the model may take: rather so many that a usual context fits, if there can never
 * be so many then with a small one. */
static int ask_room(const struct plan *p, const struct load_options *o,
                    const struct load_hooks *hooks, uint64_t *granted, struct err *e)
{
    const int floors[] = {LOAD_USUAL_CTX, LOAD_MIN_CTX};
    uint64_t most = p->fixed + LOAD_MAX_CONTEXTS * kv_bytes(p, p->ctx);
    int rc = ERR_LIMIT;
    for (size_t i = 0; i < ARRAY_LEN(floors) && rc == ERR_LIMIT; i++) {
        int ctx = o->ctx || p->ctx < floors[i] ? p->ctx : floors[i];
        uint64_t least = p->fixed + kv_bytes(p, ctx), left = budget_left(p->budget);
        if (hooks->room)
            rc = hooks->room(hooks->arg, least, most, granted, e);
        else if (left >= least)
            rc = 0, *granted = left < most ? left : most;
    }
    return rc;
}

static int take_shares(struct loaded *l, const struct plan *p, const struct model_info *info,
                       struct err *e)
{
    int rc = budget_take(p->budget, BUDGET_WEIGHTS, l->name, info->weight_bytes, &l->weights, e);
    if (!rc)
        rc = budget_take(p->budget, BUDGET_SCRATCH, l->name, p->scratch, &l->scratch, e);
    if (!rc)
        rc = budget_take(p->budget, BUDGET_KV, l->name, (uint64_t)l->n_blocks * p->block_bytes,
                         &l->kv_share, e);
    return rc;
}

/* A row for each sequence that may run; the sampler orders one in about five times its size. */
static uint64_t logits_bytes(const struct model_info *info, const struct load_options *o)
{
    int64_t rows = o->max_running < o->batch_tokens ? o->max_running : o->batch_tokens;
    return ((uint64_t)rows + 5) * (uint64_t)info->n_vocab * sizeof(float);
}

/* Takes the model's shares of the memory and says so. */
static int plan_memory(struct loaded *l, const struct model_info *info,
                       const struct load_options *o, const struct load_hooks *hooks, struct err *e)
{
    struct plan p = {
        .budget = hooks->budget,
        .scratch = info->scratch_bytes + logits_bytes(info, o),
        .block_bytes = info->kv_block_bytes,
        .ctx = o->ctx ? (int)o->ctx : info->n_ctx_train,
    };
    uint64_t granted = 0;
    p.fixed = info->weight_bytes + p.scratch;
    if (!p.budget) {
        load_memory_new(&l->own, o);
        p.budget = l->own.budget;
    }
    int rc = ask_room(&p, o, hooks, &granted, e);
    if (rc == ERR_LIMIT)
        return cannot_fit(l, &p, info, e);
    if (rc)
        return rc;
    uint64_t blocks = (granted - p.fixed) / p.block_bytes;
    l->n_blocks = (int)(blocks < 1 << 24 ? blocks : 1 << 24);
    l->n_ctx = p.ctx;
    if (!o->ctx && l->n_ctx > l->n_blocks * KV_BLOCK_TOKENS)
        l->n_ctx = l->n_blocks * KV_BLOCK_TOKENS;
    if (l->n_ctx < 1 || l->n_ctx > l->n_blocks * KV_BLOCK_TOKENS)
        return cannot_fit(l, &p, info, e);
    rc = take_shares(l, &p, info, e);
    if (rc)
        return rc;
    log_info("load",
             "%s: %s %s, %llu MiB weights, %llu MiB scratch, %llu MiB KV cache (%d blocks of %d "
             "tokens), context %d, kernels %s, %d threads",
             l->name, info->arch, info->quant, mib(info->weight_bytes), mib(p.scratch),
             mib((uint64_t)l->n_blocks * p.block_bytes), l->n_blocks, KV_BLOCK_TOKENS, l->n_ctx,
             info->isa, pool_threads(l->pool));
    struct buf text = {0};
    budget_print(p.budget, &text);
    log_info("load", "memory of %s", buf_str(&text));
    buf_release(&text);
    return 0;
}

static int read_file(const char *path, size_t max, struct buf *out, struct err *e)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return err_param(e, ERR_IO, "chat-template", "%s: %s", path, strerror(errno));
    size_t n;
    while ((n = fread(buf_reserve(out, 4096), 1, 4096, f)) && out->len <= max)
        out->len += n;
    fclose(f);
    return out->len <= max ? 0 : err_set(e, ERR_LIMIT, "%s: larger than %zu bytes", path, max);
}

static int load_template(struct loaded *l, const char *file, struct err *e)
{
    struct buf text = {0};
    int rc = 0;
    if (file) {
        rc = read_file(file, LOAD_TEMPLATE_MAX_BYTES, &text, e);
    } else {
        struct str s = gguf_str(l->gguf, "tokenizer.chat_template", "");
        buf_add(&text, s.p, s.n);
    }
    if (rc == 0 && text.len)
        rc = template_new(&l->template, text.data, text.len, e);
    if (rc && !file) { /* a model whose template we can't read still completes text */
        log_warn("load", "%s: its chat template cannot be used: %s", l->name, e ? e->msg : "");
        rc = 0;
    }
    buf_release(&text);
    return rc;
}

struct pack_progress {
    const struct load_hooks *hooks;
    char what[160];
};

static bool on_pack(void *arg, size_t done, size_t total)
{
    struct pack_progress *p = arg;
    return p->hooks->progress(p->hooks->arg, p->what, done, total);
}

/* Two runs of one key give a prompt the same KV, bit by bit: file, program, kernels, how KV is
 * kept, and the context, which decides between rope factors. */
static const char *kv_key(struct loaded *l, const struct load_options *o)
{
    uint8_t print[32];
    struct buf key = {0};
    gguf_fingerprint(l->gguf, print);
    buf_addf(&key, "terrace %s, %s, KV %s, context %lld, GGUF ", cli_version,
             model_info(l->model)->isa, load_kv_types[o->kv_type], (long long)o->ctx);
    for (size_t i = 0; i < sizeof print; i++)
        buf_addf(&key, "%02x", print[i]);
    const char *out = arena_strdup(&l->arena, (struct str){key.data, key.len});
    buf_release(&key);
    return out;
}

static int bind_model(struct loaded *l, const struct load_options *o,
                      const struct load_hooks *hooks, struct err *e)
{
    struct pack_progress pack = {.hooks = hooks};
    struct buf dir = {0};
    snprintf(pack.what, sizeof pack.what, "packing %.120s", l->name);
    buf_addf(&dir, "%s/.packed", o->model_dir ? o->model_dir : cli_models_dir(&l->arena));
    struct model_opts mo = {
        .isa = o->isa,
        .kv_type = (enum kv_type)o->kv_type,
        .max_batch_tokens = (int)o->batch_tokens,
        .n_ctx = (int)o->ctx,
        .pack_dir = o->pack_cache ? dir.data : NULL,
        .progress = on_pack,
        .progress_arg = &pack,
    };
    struct model_info info;
    int rc = hooks->pool ? 0 : pool_new(&l->own_pool, (int)o->threads, e);
    mo.pool = l->pool = hooks->pool ? hooks->pool : l->own_pool;
    if (rc == 0)
        rc = model_measure(&info, l->gguf, &mo, e);
    if (rc == 0)
        rc = plan_memory(l, &info, o, hooks, e);
    if (rc == 0)
        rc = model_open(&l->model, l->gguf, &mo, e);
    if (rc == 0)
        rc = kv_mem_new(&l->kv, l->model, l->n_blocks, e);
    /* what was given to us is taken, so that no request waits for it, unless there is less */
    if (rc == 0 && o->memory_limit && o->memory_limit <= machine_bytes())
        kv_mem_make_all(l->kv);
    if (rc == 0)
        l->kv_key = kv_key(l, o);
    buf_release(&dir);
    return rc;
}

static int fetch(struct loaded *l, const struct load_options *o, const struct load_hooks *hooks,
                 struct err *e)
{
    struct buf path = {0};
    struct fetch_opts f = {
        .dir = o->model_dir ? o->model_dir : cli_models_dir(&l->arena),
        .stall_ms = o->stall_ms,
        .progress = hooks->progress,
        .progress_arg = hooks->arg,
    };
    int rc =
        hooks->local ? models_path(f.dir, l->name, &path, e) : models_fetch(l->name, &f, &path, e);
    if (rc == 0)
        l->path = arena_strdup(&l->arena, (struct str){path.data, path.len});
    buf_release(&path);
    return rc;
}

int load_model(struct loaded *l, const char *name, const struct load_options *o,
               const struct load_hooks *hooks, struct err *e)
{
    *l = (struct loaded){0};
    l->name = arena_strdup(&l->arena, str_of(name));
    int rc = fetch(l, o, hooks, e);
    if (rc == 0) {
        const char *what = arena_printf(&l->arena, "loading %s", name);
        if (!hooks->progress(hooks->arg, what, 0, 0))
            rc = err_set(e, ERR_CANCELED, "%s was canceled", what);
    }
    if (rc == 0)
        rc = gguf_open(&l->gguf, l->path, e);
    if (rc == 0)
        rc = tokenizer_new(&l->tokenizer, l->gguf, e);
    if (rc == 0)
        rc = load_template(l, o->chat_template, e);
    if (rc == 0)
        rc = bind_model(l, o, hooks, e);
    if (rc)
        load_release(l);
    return rc;
}

void load_release(struct loaded *l)
{
    kv_mem_free(l->kv);
    model_close(l->model);
    template_free(l->template);
    tokenizer_free(l->tokenizer);
    gguf_close(l->gguf);
    pool_free(l->own_pool);
    budget_give(l->weights);
    budget_give(l->scratch);
    budget_give(l->kv_share);
    load_memory_free(&l->own);
    arena_release(&l->arena);
    *l = (struct loaded){0};
}

static void forward(void *ctx, const struct batch_seq *seqs, int n_seqs, float *logits)
{
    const struct loaded *l = ctx;
    model_forward(l->model, l->kv, seqs, n_seqs, logits);
}

static void copy_block(void *ctx, int32_t to, int32_t from, int n_tokens)
{
    const struct loaded *l = ctx;
    kv_mem_copy(l->kv, to, from, n_tokens);
}

static void read_block(void *ctx, int32_t block, void *out)
{
    const struct loaded *l = ctx;
    kv_mem_read(l->kv, block, out);
}

static void write_block(void *ctx, int32_t block, const void *in)
{
    const struct loaded *l = ctx;
    kv_mem_write(l->kv, block, in);
}

/* Pins take no block that the longest sequence needs. */
static int pin_blocks(const struct loaded *l, const struct load_options *o)
{
    uint64_t wanted = o->persona_budget ? o->persona_budget / model_info(l->model)->kv_block_bytes
                                        : (uint64_t)l->n_blocks / 10;
    int spare = l->n_blocks - (l->n_ctx + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    if (wanted <= (uint64_t)spare)
        return (int)wanted;
    log_info("load", "personas get %d KV blocks, not %llu: the rest is for one full context", spare,
             (unsigned long long)wanted);
    return spare;
}

int load_engine(const struct loaded *l, const struct load_options *o, engine_sink_fn *sink,
                void *sink_arg, struct engine **out, struct err *e)
{
    struct engine_opts eo = {
        .model =
            {
                .ctx = (void *)l,
                .n_vocab = model_info(l->model)->n_vocab,
                .max_batch_tokens = (int)o->batch_tokens,
                .n_blocks = l->n_blocks,
                .n_ctx = l->n_ctx,
                .forward = forward,
                .copy_block = copy_block,
                .block_bytes = model_info(l->model)->kv_block_bytes,
                .read_block = read_block,
                .write_block = write_block,
            },
        .tokenizer = l->tokenizer,
        .pool = l->pool,
        .max_running = (int)o->max_running,
        .max_queue = (int)o->max_queue,
        .step_ms = (int)o->step_ms,
        .step_deadline_ms = o->step_deadline_ms,
        .prefix_cache = o->prefix_cache,
        .max_pinned_blocks = pin_blocks(l, o),
        .sink = sink,
        .sink_arg = sink_arg,
    };
    return engine_new(out, &eo, e);
}
