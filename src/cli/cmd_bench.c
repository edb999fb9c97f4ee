/* cmd_bench.c - terrace bench: how fast a model runs in this process, and what share of the
 * machine's roof that is. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "cli/load.h"
#include "kernels/roof.h"
#include "model/adapter.h"
#include "store/models.h"

enum { BENCH_MAX_LIST = 16, BENCH_WARM_STEPS = 2 };

struct bench_options {
    struct load_options load;
    const char *model, *batch, *context;
    int64_t prompt, gen, rounds, adapters, rank, shared;
    bool json;
};

#define AT(field) offsetof(struct bench_options, field)
static const struct opt opts[] = {
    {"model", OPT_STR, AT(model), models_default, "NAME|FILE", "The model to measure.",
     .letter = 'm'},
    {"prompt", OPT_INT, AT(prompt), "512", "N", "Tokens of the prompt whose prefill is timed.",
     .min = 1, .max = 1 << 20},
    {"gen", OPT_INT, AT(gen), "32", "N", "Steps of decoding that are timed for each batch size.",
     .min = 1, .max = 100000},
    {"batch", OPT_STR, AT(batch), "1,8", "LIST", "Batch sizes to decode with."},
    {"context", OPT_STR, AT(context), "16", "LIST", "Tokens that each sequence holds before."},
    {"rounds", OPT_INT, AT(rounds), "3", "N", "Prefills that are timed; the median counts.",
     .min = 1, .max = 100},
    {"adapters", OPT_INT, AT(adapters), "0", "N",
     "Decode with this many random adapters too, one for each sequence in turn, in steps that "
     "alternate with those of the base model.",
     .min = 0, .max = 4096},
    {"rank", OPT_INT, AT(rank), "16", "R", "Rank of the random adapters, on every weight.",
     .min = 1, .max = ADAPTER_MAX_RANK},
    {"shared", OPT_INT, AT(shared), "0", "N",
     "Decode with a prefix of N tokens that all sequences share too: read once for all, by each, "
     "and "
     "as copies of each one's own, in steps that alternate; the fastest count.",
     .min = 0, .max = 1 << 20},
    {"json", OPT_BOOL, AT(json), NULL, NULL, "Print JSON instead of a table.", .cli_only = true},
    LOAD_OPTS(AT(load)),
    {NULL},
};

/* Multiply-adds and bytes of weights that one token needs, without attention. */
struct work {
    double body_mac, head_mac; /* the head only where logits are wanted */
    double bytes;              /* of every matrix read in a step, body and head */
};

struct decode_result {
    int batch, context;
    double tok_s, gb_s, gmac_s, roof_share;
    double adapter_tok_s; /* the same batch with adapters, 0 without */
};

struct shared_result {
    int batch;
    /* the fastest steps: blocks are read once, by each sequence, each has its own copies */
    double once_ms, each_ms, own_ms;
};

struct bench {
    const struct bench_options *o;
    struct loaded l;
    struct work work;
    double roof_dram_gb_s, roof_dot_gmac_s;
    float *logits; /* of the largest batch */
    int32_t *tokens;
    double prefill_tok_s, prefill_share;
    uint64_t logits_hash;
    struct adapter **adapters; /* o->adapters of them */
    struct decode_result decode[BENCH_MAX_LIST * BENCH_MAX_LIST];
    int n_decode;
    struct shared_result shared[BENCH_MAX_LIST];
    int n_shared;
};

static int parse_list(const char *name, const char *text, int max, int *out, int *n, struct err *e)
{
    *n = 0;
    for (const char *p = text; *p; p += *p == ',') {
        size_t len = strcspn(p, ",");
        int64_t v;
        if (*n == BENCH_MAX_LIST || !str_to_i64((struct str){p, len}, &v) || v < 1 || v > max)
            return err_param(
                e, ERR_INVALID, name,
                "--%s: \"%s\" must be up to %d numbers from 1 to %d with commas between", name,
                text, BENCH_MAX_LIST, max);
        out[(*n)++] = (int)v;
        p += len;
    }
    return *n ? 0 : err_param(e, ERR_INVALID, name, "--%s: the list is empty", name);
}

/* From the shapes in the file: every matrix of the blocks, and the output matrix (which is the
 * embedding where the two are tied). */
static struct work count_work(const struct gguf *g)
{
    struct work w = {0};
    const struct gguf_tensor *head = gguf_find(g, "output.weight");
    if (!head)
        head = gguf_find(g, "token_embd.weight");
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        if (t->n_dims < 2 || (t != head && !str_starts(t->name, "blk.")))
            continue;
        double mac = (double)t->dims[0] * (double)t->dims[1];
        *(t == head ? &w.head_mac : &w.body_mac) += mac;
        w.bytes += (double)t->n_bytes;
    }
    return w;
}

/* Blocks 0, 1, 2 ... each sequence its own. */
static void own_blocks(int32_t *blocks, int n_seqs, int per_seq)
{
    for (int i = 0; i < n_seqs * per_seq; i++)
        blocks[i] = i;
}

/* Prefills `n` tokens into the blocks of one sequence, in steps of the largest batch. */
static void prefill(struct bench *b, const int32_t *blocks, int n, bool logits)
{
    int step = (int)b->o->load.batch_tokens;
    for (int at = 0; at < n; at += step) {
        int now = n - at < step ? n - at : step;
        struct batch_seq s = {b->tokens + at, now, at, blocks, .n_logits = logits && at + now == n};
        model_forward(b->l.model, b->l.kv, &s, 1, b->logits);
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static void bench_prefill(struct bench *b)
{
    int n = (int)b->o->prompt, rounds = (int)b->o->rounds;
    int per_seq = (n + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    int32_t *blocks = xcalloc((size_t)per_seq, sizeof *blocks);
    double *seconds = xcalloc((size_t)rounds, sizeof *seconds);
    own_blocks(blocks, 1, per_seq);
    prefill(b, blocks, n < 64 ? n : 64, true); /* warms up */
    for (int i = 0; i < rounds; i++) {
        int64_t start = clock_ns();
        prefill(b, blocks, n, true);
        seconds[i] = (double)(clock_ns() - start) * 1e-9;
    }
    double s = median(seconds, rounds);
    b->prefill_tok_s = n / s;
    b->prefill_share = (b->work.body_mac * n + b->work.head_mac) / s * 1e-9 / b->roof_dot_gmac_s;
    b->logits_hash =
        XXH3_64bits(b->logits, (size_t)model_info(b->l.model)->n_vocab * sizeof(float));
    free(seconds);
    free(blocks);
}

/* What a step would take at the roof: the slower of reading and multiplying. */
static double roof_seconds(const struct bench *b, double bytes, double mac)
{
    double read = bytes * 1e-9 / b->roof_dram_gb_s, multiply = mac * 1e-9 / b->roof_dot_gmac_s;
    return read > multiply ? read : multiply;
}

/* One step; the seconds it took. */
static double timed_step(struct bench *b, struct batch_seq *seqs, int batch)
{
    int64_t start = clock_ns();
    model_forward(b->l.model, b->l.kv, seqs, batch, b->logits);
    return (double)(clock_ns() - start) * 1e-9;
}

/* The same step with sequence i under adapter i of those there are. */
static double timed_adapter_step(struct bench *b, struct batch_seq *seqs, struct adapter_use *uses,
                                 int batch)
{
    for (int i = 0; i < batch; i++) {
        uses[i] = (struct adapter_use){b->adapters[i % b->o->adapters], 1};
        seqs[i].adapters = &uses[i];
        seqs[i].n_adapters = 1;
    }
    return timed_step(b, seqs, batch);
}

static void bench_decode(struct bench *b, int batch, int context)
{
    int gen = (int)b->o->gen, steps = gen + BENCH_WARM_STEPS;
    int per_seq = (context + steps + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    int32_t *blocks = xcalloc((size_t)(batch * per_seq), sizeof *blocks);
    struct batch_seq *seqs = xcalloc((size_t)batch, sizeof *seqs);
    struct adapter_use *uses = xcalloc((size_t)batch, sizeof *uses);
    double *seconds = xcalloc((size_t)steps, sizeof *seconds);
    double *adapter_seconds = xcalloc((size_t)steps, sizeof *adapter_seconds);
    own_blocks(blocks, batch, per_seq);
    prefill(b, blocks, context, false);
    int full = (context + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
    for (int s = 1; s < batch; s++)
        for (int i = 0; i < full; i++)
            kv_mem_copy(b->l.kv, blocks[s * per_seq + i], blocks[i], KV_BLOCK_TOKENS);
    for (int step = 0; step < steps; step++) {
        for (int s = 0; s < batch; s++)
            seqs[s] = (struct batch_seq){b->tokens + step + s, 1, context + step,
                                         blocks + (ptrdiff_t)s * per_seq, 1};
        seconds[step] = timed_step(b, seqs, batch);
        if (b->o->adapters)
            adapter_seconds[step] = timed_adapter_step(b, seqs, uses, batch);
    }
    double t = median(seconds + BENCH_WARM_STEPS, gen);
    double adapter_t = median(adapter_seconds + BENCH_WARM_STEPS, gen);
    const struct model_info *info = model_info(b->l.model);
    double kv_bytes =
        (double)info->kv_block_bytes / KV_BLOCK_TOKENS * (context + steps / 2.0) * batch;
    double bytes = b->work.bytes + kv_bytes, mac = (b->work.body_mac + b->work.head_mac) * batch;
    b->decode[b->n_decode++] = (struct decode_result){
        .batch = batch,
        .context = context,
        .tok_s = batch / t,
        .gb_s = bytes / t * 1e-9,
        .gmac_s = mac / t * 1e-9,
        .roof_share = roof_seconds(b, bytes, mac) / t,
        .adapter_tok_s = b->o->adapters ? batch / adapter_t : 0,
    };
    free(uses);
    free(adapter_seconds);
    free(seconds);
    free(seqs);
    free(blocks);
}

static double least(const double *v, int n)
{
    double x = v[0];
    for (int i = 1; i < n; i++)
        x = v[i] < x ? v[i] : x;
    return x;
}

/* The ways in which sequences can have a beginning in common. */
enum sharing { SHARED_ONCE, SHARED_EACH, SHARED_OWN, SHARED_WAYS };

struct shared_job {
    int batch, prefix, own, steps; /* blocks of the prefix and after it; steps to time */
    int32_t *blocks;               /* tables: all begin with the same blocks */
    int32_t *copies;               /* tables: all blocks are the sequence's own */
    struct batch_seq *seqs;
    double *seconds[SHARED_WAYS];
};

/* Blocks 0 .. are the first sequence's; the others' come behind it, then their own ends. */
static void lay_out(struct bench *b, struct shared_job *j)
{
    int per_seq = j->prefix + j->own, n = j->prefix;
    for (int s = 0; s < j->batch; s++)
        for (int i = 0; i < j->prefix; i++) {
            j->blocks[s * per_seq + i] = i;
            j->copies[s * per_seq + i] = s ? n++ : i;
        }
    for (int s = 0; s < j->batch; s++)
        for (int i = j->prefix; i < per_seq; i++)
            j->blocks[s * per_seq + i] = j->copies[s * per_seq + i] = n++;
    prefill(b, j->blocks, j->prefix * KV_BLOCK_TOKENS, false);
    for (int s = 1; s < j->batch; s++)
        for (int i = 0; i < j->prefix; i++)
            kv_mem_copy(b->l.kv, j->copies[s * per_seq + i], i, KV_BLOCK_TOKENS);
}

static double shared_step(struct bench *b, const struct shared_job *j, int step, enum sharing way)
{
    const int32_t *tables = way == SHARED_OWN ? j->copies : j->blocks;
    for (int s = 0; s < j->batch; s++)
        j->seqs[s] = (struct batch_seq){b->tokens + step + s, 1, j->prefix * KV_BLOCK_TOKENS + step,
                                        tables + (ptrdiff_t)s * (j->prefix + j->own), 1};
    model_share_prefixes(b->l.model, way == SHARED_ONCE);
    double seconds = timed_step(b, j->seqs, j->batch);
    model_share_prefixes(b->l.model, true);
    return seconds;
}

static void bench_shared(struct bench *b, int batch)
{
    struct shared_job j = {.batch = batch,
                           .prefix = (int)b->o->shared / KV_BLOCK_TOKENS,
                           .steps = (int)b->o->gen + BENCH_WARM_STEPS};
    j.own = (j.steps - 1) / KV_BLOCK_TOKENS + 1;
    size_t n_blocks = (size_t)batch * (size_t)(j.prefix + j.own);
    j.blocks = xcalloc(n_blocks, sizeof *j.blocks);
    j.copies = xcalloc(n_blocks, sizeof *j.copies);
    j.seqs = xcalloc((size_t)batch, sizeof *j.seqs);
    for (int way = 0; way < SHARED_WAYS; way++)
        j.seconds[way] = xcalloc((size_t)j.steps, sizeof **j.seconds);
    lay_out(b, &j);
    for (int step = 0; step < j.steps; step++)
        for (int way = 0; way < SHARED_WAYS; way++)
            j.seconds[way][step] = shared_step(b, &j, step, (enum sharing)way);
    double ms[SHARED_WAYS];
    for (int way = 0; way < SHARED_WAYS; way++) {
        ms[way] = 1e3 * least(j.seconds[way] + BENCH_WARM_STEPS, (int)b->o->gen);
        free(j.seconds[way]);
    }
    b->shared[b->n_shared++] =
        (struct shared_result){batch, ms[SHARED_ONCE], ms[SHARED_EACH], ms[SHARED_OWN]};
    free(j.seqs);
    free(j.blocks);
    free(j.copies);
}

static uint64_t resident_bytes(void)
{
    unsigned long long size = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%llu %llu", &size, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return resident * (uint64_t)sysconf(_SC_PAGE_SIZE);
}

static void print_json(const struct bench *b)
{
    struct buf out = {0};
    struct jw w;
    char hash[17];
    jw_init(&w, &out);
    jw_obj(&w);
    jw_kstr(&w, "model", b->l.name);
    jw_kint(&w, "threads", pool_threads(b->l.pool));
    jw_kstr(&w, "isa", model_info(b->l.model)->isa);
    jw_key(&w, "roof");
    jw_obj(&w);
    jw_knum(&w, "dram_gb_s", b->roof_dram_gb_s);
    jw_knum(&w, "dot_gmac_s", b->roof_dot_gmac_s);
    jw_obj_end(&w);
    jw_key(&w, "prefill");
    jw_obj(&w);
    jw_kint(&w, "tokens", b->o->prompt);
    jw_knum(&w, "tok_s", b->prefill_tok_s);
    jw_knum(&w, "roof_share", b->prefill_share);
    jw_obj_end(&w);
    jw_key(&w, "decode");
    jw_arr(&w);
    for (int i = 0; i < b->n_decode; i++) {
        const struct decode_result *d = &b->decode[i];
        jw_obj(&w);
        jw_kint(&w, "batch", d->batch);
        jw_kint(&w, "context", d->context);
        jw_knum(&w, "tok_s", d->tok_s);
        jw_knum(&w, "gb_s", d->gb_s);
        jw_knum(&w, "gmac_s", d->gmac_s);
        jw_knum(&w, "roof_share", d->roof_share);
        if (b->o->adapters) {
            jw_kint(&w, "adapters", b->o->adapters);
            jw_kint(&w, "rank", b->o->rank);
            jw_knum(&w, "adapter_tok_s", d->adapter_tok_s);
        }
        jw_obj_end(&w);
    }
    jw_arr_end(&w);
    jw_key(&w, "shared");
    jw_arr(&w);
    for (int i = 0; i < b->n_shared; i++) {
        jw_obj(&w);
        jw_kint(&w, "batch", b->shared[i].batch);
        jw_kint(&w, "tokens", b->o->shared / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS);
        jw_knum(&w, "once_ms", b->shared[i].once_ms);
        jw_knum(&w, "each_ms", b->shared[i].each_ms);
        jw_knum(&w, "own_ms", b->shared[i].own_ms);
        jw_obj_end(&w);
    }
    jw_arr_end(&w);
    jw_kuint(&w, "rss_bytes", resident_bytes());
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)b->logits_hash);
    jw_kstr(&w, "logits_hash", hash);
    jw_obj_end(&w);
    jw_done(&w);
    puts(out.data);
    buf_release(&out);
}

static void print_table(const struct bench *b)
{
    const struct model_info *info = model_info(b->l.model);
    printf("%s: %s %s, %d threads, kernels %s\n", b->l.name, info->arch, info->quant,
           pool_threads(b->l.pool), info->isa);
    printf("roof: reads %.1f GB/s, products %.0f GMAC/s\n\n", b->roof_dram_gb_s,
           b->roof_dot_gmac_s);
    printf("%-8s %6s %8s %10s %8s %9s %8s\n", "", "batch", "context", "tok/s", "GB/s", "GMAC/s",
           "of roof");
    printf("%-8s %6s %8lld %10.1f %8s %9.0f %7.0f%%\n", "prefill", "1", (long long)b->o->prompt,
           b->prefill_tok_s, "", b->prefill_share * b->roof_dot_gmac_s, b->prefill_share * 100);
    for (int i = 0; i < b->n_decode; i++) {
        const struct decode_result *d = &b->decode[i];
        printf("%-8s %6d %8d %10.1f %8.1f %9.0f %7.0f%%\n", "decode", d->batch, d->context,
               d->tok_s, d->gb_s, d->gmac_s, d->roof_share * 100);
        if (b->o->adapters)
            printf("%-8s %6s %8s %10.1f   %.1f %% of the base with %lld adapters of rank %lld\n",
                   "", "", "", d->adapter_tok_s, d->adapter_tok_s / d->tok_s * 100,
                   (long long)b->o->adapters, (long long)b->o->rank);
    }
    for (int i = 0; i < b->n_shared; i++)
        printf("shared   %6d %8lld %10.1f ms a step; each reads it: %.1f ms, %.2f times; copies of "
               "its own: %.1f ms, %.2f times\n",
               b->shared[i].batch, (long long)b->o->shared, b->shared[i].once_ms,
               b->shared[i].each_ms, b->shared[i].each_ms / b->shared[i].once_ms,
               b->shared[i].own_ms, b->shared[i].own_ms / b->shared[i].once_ms);
    printf("\nresident %llu MiB, logits %016llx\n", (unsigned long long)(resident_bytes() >> 20),
           (unsigned long long)b->logits_hash);
}

/* Measures everything the lists ask for. */
static int measure(struct bench *b, const int *batches, int n_batches, const int *contexts,
                   int n_contexts, struct err *e)
{
    const struct model_info *info = model_info(b->l.model);
    int most = 1, longest = (int)b->o->prompt;
    for (int i = 0; i < n_batches; i++)
        most = batches[i] > most ? batches[i] : most;
    for (int i = 0; i < n_contexts; i++)
        longest = contexts[i] > longest ? contexts[i] : longest;
    longest = b->o->shared > longest ? (int)b->o->shared : longest;
    int64_t steps = b->o->gen + BENCH_WARM_STEPS;
    int64_t need = (longest + steps + KV_BLOCK_TOKENS) / KV_BLOCK_TOKENS * most;
    if (most > b->o->load.batch_tokens || need > b->l.n_blocks)
        return err_param(
            e, ERR_LIMIT, "batch",
            "batch %d with %d tokens each needs %lld KV blocks and %d tokens in a step; "
            "there are %d blocks (--memory-limit) and %lld tokens (--batch-tokens)",
            most, longest, (long long)need, most, b->l.n_blocks,
            (long long)b->o->load.batch_tokens);
    b->logits = xcalloc((size_t)most * (size_t)info->n_vocab, sizeof *b->logits);
    size_t n_tokens = (size_t)longest + (size_t)steps + (size_t)most;
    b->tokens = xcalloc(n_tokens, sizeof *b->tokens);
    for (size_t i = 0; i < n_tokens; i++)
        b->tokens[i] = (int32_t)(3 + i * 7919 % (size_t)(info->n_vocab - 3));
    b->adapters = xcalloc((size_t)b->o->adapters + 1, sizeof(struct adapter *));
    for (int64_t i = 0; i < b->o->adapters; i++) {
        int rc = adapter_random(&b->adapters[i], b->l.model, (int)b->o->rank, (uint64_t)i, e);
        if (rc)
            return rc;
    }
    b->work = count_work(b->l.gguf);
    b->roof_dram_gb_s = roof_dram(b->l.pool);
    b->roof_dot_gmac_s = roof_dot(b->l.pool, kernels_select(b->o->load.isa, NULL));
    bench_prefill(b);
    for (int c = 0; c < n_contexts; c++)
        for (int i = 0; i < n_batches; i++)
            bench_decode(b, batches[i], contexts[c]);
    for (int i = 0; i < n_batches && b->o->shared >= KV_BLOCK_TOKENS; i++)
        bench_shared(b, batches[i]);
    return 0;
}

static int bench(const struct command *c, const struct bench_options *o)
{
    struct err e = {0};
    struct bench b = {.o = o};
    struct load_progress bar = {0};
    struct load_hooks hooks = {load_show_progress, &bar};
    int batches[BENCH_MAX_LIST], contexts[BENCH_MAX_LIST], n_batches, n_contexts;
    int rc = parse_list("batch", o->batch, 4096, batches, &n_batches, &e);
    if (rc == 0)
        rc = parse_list("context", o->context, 1 << 20, contexts, &n_contexts, &e);
    if (rc == 0)
        rc = load_model(&b.l, o->model, &o->load, &hooks, &e);
    load_progress_end(&bar);
    if (rc)
        return cli_fail(c, &e);
    rc = measure(&b, batches, n_batches, contexts, n_contexts, &e);
    if (rc == 0)
        (o->json ? print_json : print_table)(&b);
    for (int64_t i = 0; b.adapters && i < o->adapters; i++)
        adapter_unref(b.adapters[i]);
    free(b.adapters);
    free(b.logits);
    free(b.tokens);
    load_release(&b.l);
    return rc ? cli_fail(c, &e) : EXIT_OK;
}

static int run(const struct command *c, int argc, char **argv)
{
    struct bench_options o = {0};
    struct arena arena = {0};
    int n_words, status = cli_options(c, &o, &arena, argc, argv, 0, &n_words);
    if (status < 0) {
        log_init(LOG_WARN, false);
        status = bench(c, &o);
    }
    arena_release(&arena);
    return status;
}

const struct command cmd_bench = {
    .name = "bench",
    .usage = "terrace bench [OPTIONS]",
    .summary = "measure a model's speed and its share of the machine's roof",
    .details =
        "The roof is measured in the same run: what memory delivers, and what the integer dot\n"
        "products reach with nothing else to do. Let the machine be idle.\n\n"
        "  terrace bench --model phi3.gguf --batch 1,8,32 --context 16,4096\n",
    .opts = opts,
    .run = run,
};
