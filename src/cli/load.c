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
enum { LOAD_MAX_CONTEXTS = 32, LOAD_MIN_CTX = 128, LOAD_TEMPLATE_MAX_BYTES = 1 << 20 };

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

static uint64_t mib(uint64_t bytes)
{
    return bytes >> 20;
}

/* Shares the memory that weights leave among KV blocks, and says so. */
static int plan_memory(struct loaded *l, const struct load_options *o, struct err *e)
{
    const struct model_info *info = model_info(l->model);
    l->memory_limit = o->memory_limit ? o->memory_limit : machine_bytes() / 10 * 8;
    uint64_t fixed = info->weight_bytes + info->scratch_bytes + overhead_bytes;
    uint64_t left = l->memory_limit > fixed ? l->memory_limit - fixed : 0;
    int want_ctx = o->ctx ? (int)o->ctx : info->n_ctx_train;
    uint64_t per_ctx = ((uint64_t)want_ctx + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    uint64_t blocks = left / info->kv_block_bytes;
    if (blocks > per_ctx * LOAD_MAX_CONTEXTS)
        blocks = per_ctx * LOAD_MAX_CONTEXTS;
    l->n_blocks = (int)(blocks < 1 << 24 ? blocks : 1 << 24);
    l->n_ctx = want_ctx;
    if (!o->ctx && l->n_ctx > l->n_blocks * KV_BLOCK_TOKENS)
        l->n_ctx = l->n_blocks * KV_BLOCK_TOKENS;
    if (l->n_ctx < LOAD_MIN_CTX || l->n_ctx > l->n_blocks * KV_BLOCK_TOKENS)
        return err_param(
            e, ERR_LIMIT, "memory-limit",
            "%s needs %llu MiB (weights %llu, scratch %llu, other %llu, KV cache for %d "
            "tokens %llu), the limit is %llu MiB: raise --memory-limit or lower --ctx",
            l->name, (unsigned long long)mib(fixed + per_ctx * info->kv_block_bytes),
            (unsigned long long)mib(info->weight_bytes),
            (unsigned long long)mib(info->scratch_bytes), (unsigned long long)mib(overhead_bytes),
            want_ctx, (unsigned long long)mib(per_ctx * info->kv_block_bytes),
            (unsigned long long)mib(l->memory_limit));
    log_info("load",
             "%s: %s %s, %llu MiB weights, %llu MiB scratch, %llu MiB KV cache (%d blocks of %d "
             "tokens), context %d, limit %llu MiB, kernels %s, %d threads",
             l->name, info->arch, info->quant, (unsigned long long)mib(info->weight_bytes),
             (unsigned long long)mib(info->scratch_bytes),
             (unsigned long long)mib((uint64_t)l->n_blocks * info->kv_block_bytes), l->n_blocks,
             KV_BLOCK_TOKENS, l->n_ctx, (unsigned long long)mib(l->memory_limit), info->isa,
             pool_threads(l->pool));
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
        .pool = l->pool,
        .isa = o->isa,
        .kv_type = (enum kv_type)o->kv_type,
        .max_batch_tokens = (int)o->batch_tokens,
        .n_ctx = (int)o->ctx,
        .pack_dir = o->pack_cache ? dir.data : NULL,
        .progress = on_pack,
        .progress_arg = &pack,
    };
    int rc = pool_new(&l->pool, (int)o->threads, e);
    mo.pool = l->pool;
    if (rc == 0)
        rc = model_open(&l->model, l->gguf, &mo, e);
    if (rc == 0)
        rc = plan_memory(l, o, e);
    if (rc == 0)
        rc = kv_mem_new(&l->kv, l->model, l->n_blocks, e);
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
    int rc = models_fetch(l->name, &f, &path, e);
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
    pool_free(l->pool);
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
