/* Adapters against the peft package: the tiny models, adapters and logits of
 * tests/vectors/adapter/make_adapters.py. Then mixed batches, and adapters that must be refused. */
#define _GNU_SOURCE
#include "unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fault.h"
#include "base/mem.h"
#include "gguf/safetensors.h"
#include "kernels/kernels.h"
#include "model/adapter.h"
#include "model/model.h"

enum { N_TOKENS = 20, MAX_BATCH = 256, SEQ_BLOCKS = 2, N_SEQS = 16, LIMIT = 64 << 20 };

#define DIR VECTORS "/adapter/"

/* --- models -------------------------------------------------------------------------------------
 */

struct rig {
    struct pool *pool;
    struct gguf *gguf;
    struct model *model;
    struct kv_mem *kv;
    struct safetensors *expected;
    int n_vocab;
    int32_t tokens[N_TOKENS];
};

static struct rig rig_open(const char *arch, const char *isa, int n_threads)
{
    struct rig r = {0};
    struct err e = {0};
    struct buf path = {0};
    buf_addf(&path, DIR "tiny_%s.gguf", arch);
    struct model_opts o = {.isa = isa, .kv_type = KV_F16, .max_batch_tokens = MAX_BATCH};
    int rc = pool_new(&r.pool, n_threads, &e);
    o.pool = r.pool;
    if (!rc)
        rc = gguf_open(&r.gguf, path.data, &e);
    if (!rc)
        rc = model_open(&r.model, r.gguf, &o, &e);
    if (!rc)
        rc = kv_mem_new(&r.kv, r.model, N_SEQS * SEQ_BLOCKS, &e);
    if (!rc)
        rc = safetensors_open(&r.expected, DIR "expected.safetensors", LIMIT, &e);
    if (rc)
        fail_msg("%s", e.msg);
    buf_release(&path);
    r.n_vocab = model_info(r.model)->n_vocab;
    for (int i = 0; i < N_TOKENS; i++)
        r.tokens[i] = (i * 37 + 5) % r.n_vocab;
    return r;
}

static void rig_close(struct rig *r)
{
    safetensors_close(r->expected);
    kv_mem_free(r->kv);
    model_close(r->model);
    gguf_close(r->gguf);
    pool_free(r->pool);
}

static struct adapter *open_adapter(const struct rig *r, const char *name)
{
    struct err e = {0};
    struct adapter *a;
    struct buf path = {0};
    buf_addf(&path, DIR "%s", name);
    if (adapter_open(&a, r->model, path.data, &e))
        fail_msg("%s", e.msg);
    buf_release(&path);
    return a;
}

/* Logits of all tokens under some adapters, the prompt cut in steps of `step` tokens. */
static float *run_alone(const struct rig *r, const struct adapter_use *uses, int n_uses, int step)
{
    static const int32_t blocks[SEQ_BLOCKS] = {1, 0};
    float *logits = xcalloc((size_t)N_TOKENS * (size_t)r->n_vocab, sizeof *logits);
    for (int i = 0; i < N_TOKENS; i += step) {
        int n = N_TOKENS - i < step ? N_TOKENS - i : step;
        struct batch_seq s = {r->tokens + i, n, i, blocks, n, uses, n_uses};
        model_forward(r->model, r->kv, &s, 1, logits + (size_t)i * (size_t)r->n_vocab);
    }
    return logits;
}

static float *expected(const struct rig *r, const char *name)
{
    const struct safetensor *t = safetensors_find(r->expected, name);
    assert_non_null(t);
    assert_int_equal(t->n_elems, N_TOKENS * r->n_vocab);
    float *v = xcalloc(t->n_elems, sizeof *v);
    safetensor_floats(t, 0, t->n_elems, v);
    return v;
}

/* |a - b| / |b| over all logits */
static double distance(const struct rig *r, const float *a, const float *b)
{
    double d = 0, n = 0;
    for (int i = 0; i < N_TOKENS * r->n_vocab; i++) {
        d += (a[i] - (double)b[i]) * (a[i] - (double)b[i]);
        n += (double)b[i] * b[i];
    }
    return sqrt(d / n);
}

/* --- equal to peft ------------------------------------------------------------------------------
 */

struct peft_case {
    const char *arch, *adapter, *logits;
    int rank, n_targets;
};

static const struct peft_case peft_cases[] = {
    {"llama", "llama_qv", "llama_qv", 4, 4},
    {"llama", "llama_all", "llama_all", 8, 14},
    {"llama", "llama_all.gguf", "llama_all", 8, 14},
    {"llama", "llama_wide", "llama_wide", 128, 4},
    {"llama", "llama_patterns", "llama_patterns", 18, 8}, /* 17 in the file: ranks are even */
    {"phi3", "phi3_all", "phi3_all", 16, 14},
    {"phi3", "phi3_split", "phi3_all", 16, 14},
    {"phi3", "phi3_odd", "phi3_odd", 6, 8},
};

/* The base is exact (F16 weights, float activations); what differs is the adapter in bf16 and the
 * KV in f16. */
static const double tolerance = 0.01;

static void check_peft_case(const struct rig *r, const struct peft_case *c)
{
    static const int steps[] = {N_TOKENS, 7, 3, 1};
    struct adapter *a = open_adapter(r, c->adapter);
    const struct adapter_info *info = adapter_info(a);
    assert_int_equal(info->max_rank, c->rank);
    assert_int_equal(info->n_targets, c->n_targets);
    struct buf merged_name = {0}, base_name = {0};
    buf_addf(&merged_name, "%s.merged", c->logits);
    buf_addf(&base_name, "%s.base", c->arch);
    float *want = expected(r, c->logits), *merged = expected(r, merged_name.data);
    float *base = expected(r, base_name.data);
    assert_true(distance(r, base, want) > 0.1);
    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        struct adapter_use use = {a, 1};
        float *got = run_alone(r, &use, 1, steps[i]);
        double d = distance(r, got, want), dm = distance(r, got, merged);
        if (getenv("SHOW"))
            printf("# %s %s, steps of %d: %.5f, merged %.5f\n", model_info(r->model)->isa,
                   c->adapter, steps[i], d, dm);
        if (!(d < tolerance) || !(dm < tolerance))
            fail_msg("%s %s: relative error %g, %g", model_info(r->model)->isa, c->adapter, d, dm);
        free(got);
    }
    free(want);
    free(merged);
    free(base);
    buf_release(&merged_name);
    buf_release(&base_name);
    adapter_unref(a);
}

static void logits_equal_those_of_peft(void **state)
{
    static const char *const isas[] = {"scalar", "avx2", "avx512"};
    static const char *const archs[] = {"llama", "phi3"};
    for (size_t i = 0; i < ARRAY_LEN(isas) * ARRAY_LEN(archs); i++) {
        const char *isa = isas[i / 2], *arch = archs[i % 2];
        if (!kernels_select(isa, NULL))
            continue;
        struct rig r = rig_open(arch, isa, 2);
        for (size_t k = 0; k < ARRAY_LEN(peft_cases); k++)
            if (!strcmp(peft_cases[k].arch, arch))
                check_peft_case(&r, &peft_cases[k]);
        rig_close(&r);
    }
}

/* An activated adapter, as the engine would use it on this prompt; before that place the logits are
 * those of the base, bit for bit. */
static void activated_from_a_token_on(void **state)
{
    enum { FROM = 11 };
    static const int steps[] = {N_TOKENS, 7, 1};
    struct rig r = rig_open("llama", NULL, 2);
    struct adapter *a = open_adapter(&r, "llama_activated");
    const struct adapter_info *info = adapter_info(a);
    struct err e = {0};
    assert_int_equal(info->n_invocation, 2);
    assert_memory_equal(info->invocation, r.tokens + FROM, 2 * sizeof *r.tokens);
    safetensors_close(r.expected);
    if (safetensors_open(&r.expected, DIR "activated.safetensors", 1 << 20, &e))
        fail_msg("%s", e.msg);
    float *want = expected(&r, "llama_activated"), *base = run_alone(&r, NULL, 0, N_TOKENS);
    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        struct adapter_use use = {a, 1, FROM};
        float *got = run_alone(&r, &use, 1, steps[i]);
        assert_memory_equal(got, base, (size_t)FROM * (size_t)r.n_vocab * sizeof *got);
        double d = distance(&r, got, want);
        if (!(d < tolerance))
            fail_msg("relative error %g", d);
        free(got);
    }
    free(want);
    free(base);
    adapter_unref(a);
    rig_close(&r);
}

/* The unfused form of an adapter is the same adapter; the GGUF form of one with its scale in
 * another place is not bit for bit. */
static void digests_tell_adapters_apart(void **state)
{
    struct rig r = rig_open("llama", NULL, 1);
    struct adapter *a = open_adapter(&r, "llama_all"), *same = open_adapter(&r, "llama_all");
    struct adapter *other = open_adapter(&r, "llama_qv");
    assert_memory_equal(adapter_info(a)->digest, adapter_info(same)->digest, 32);
    assert_memory_not_equal(adapter_info(a)->digest, adapter_info(other)->digest, 32);
    assert_string_equal(adapter_info(a)->format, "peft");
    assert_true(adapter_info(a)->bytes > adapter_info(other)->bytes);
    assert_ptr_equal(adapter_ref(a), a);
    adapter_unref(a);
    adapter_unref(a);
    adapter_unref(same);
    adapter_unref(other);
    adapter_unref(NULL);
    rig_close(&r);
}

/* --- mixed batches ------------------------------------------------------------------------------
 */

enum { N_ADAPTERS = 5 };

/* What sequence i of a batch uses: nothing, one adapter, or two with weights. */
static int uses_of(int i, struct adapter *const adapters[N_ADAPTERS], struct adapter_use out[2])
{
    out[0] = (struct adapter_use){adapters[i % N_ADAPTERS], 1};
    out[1] = (struct adapter_use){adapters[(i + 2) % N_ADAPTERS], 0.25f};
    return i % 3;
}

/* All sequences together, token i of each in one step: prefill of some, decode of others. */
static void run_together(const struct rig *r, struct adapter *const adapters[N_ADAPTERS], int n,
                         float **logits)
{
    int32_t blocks[N_SEQS][SEQ_BLOCKS];
    struct adapter_use uses[N_SEQS][2];
    struct batch_seq seqs[N_SEQS];
    int pos[N_SEQS] = {0};
    float *out = xcalloc((size_t)N_SEQS * N_TOKENS * (size_t)r->n_vocab, sizeof *out);
    for (int i = 0; i < n; i++)
        for (int b = 0; b < SEQ_BLOCKS; b++)
            blocks[i][b] = SEQ_BLOCKS * i + b;
    for (bool more = true; more;) {
        int n_seqs = 0, who[N_SEQS];
        for (int i = 0; i < n; i++) {
            int step = 1 + i % 4 * 3, left = N_TOKENS - pos[i];
            step = step < left ? step : left;
            if (!step)
                continue;
            int n_uses = uses_of(i, adapters, uses[i]);
            who[n_seqs] = i;
            seqs[n_seqs++] = (struct batch_seq){
                r->tokens + pos[i], step, pos[i], blocks[i], step, uses[i], n_uses};
        }
        more = n_seqs > 0;
        model_forward(r->model, r->kv, seqs, n_seqs, out);
        const float *from = out;
        for (int s = 0; s < n_seqs; s++) {
            size_t k = (size_t)seqs[s].n_tokens * (size_t)r->n_vocab;
            memcpy(logits[who[s]] + (size_t)pos[who[s]] * (size_t)r->n_vocab, from,
                   k * sizeof *from);
            from += k;
            pos[who[s]] += seqs[s].n_tokens;
        }
    }
    free(out);
}

static void sequences_in_a_batch_equal_each_alone(void **state)
{
    static const int ranks[N_ADAPTERS] = {4, 1, 64, 17, 8};
    static const char *const archs[] = {"llama", "phi3"};
    for (size_t k = 0; k < ARRAY_LEN(archs); k++) {
        struct rig r = rig_open(archs[k], NULL, 3);
        struct adapter *adapters[N_ADAPTERS];
        for (int i = 0; i < N_ADAPTERS; i++)
            assert_int_equal(adapter_random(&adapters[i], r.model, ranks[i], 77 + i, NULL), 0);
        float *logits[N_SEQS];
        size_t bytes = (size_t)N_TOKENS * (size_t)r.n_vocab * sizeof(float);
        for (int i = 0; i < N_SEQS; i++)
            logits[i] = xcalloc(1, bytes);
        run_together(&r, adapters, N_SEQS, logits);
        for (int i = 0; i < N_SEQS; i++) {
            struct adapter_use uses[2];
            int n = uses_of(i, adapters, uses);
            float *alone = run_alone(&r, uses, n, 1 + i % 4 * 3);
            assert_memory_equal(alone, logits[i], bytes); /* bit for bit, base rows too */
            free(alone);
            free(logits[i]);
        }
        for (int i = 0; i < N_ADAPTERS; i++)
            adapter_unref(adapters[i]);
        rig_close(&r);
    }
}

/* Scale 0 is the base, up to the sign of zeros; two halves are one whole, up to rounding. */
static void scales_mean_what_they_say(void **state)
{
    struct rig r = rig_open("llama", NULL, 2);
    struct adapter *a = open_adapter(&r, "llama_all");
    struct adapter_use none = {a, 0}, whole = {a, 1}, halves[2] = {{a, 0.5f}, {a, 0.5f}};
    float *base = run_alone(&r, NULL, 0, N_TOKENS), *zero = run_alone(&r, &none, 1, N_TOKENS);
    float *one = run_alone(&r, &whole, 1, N_TOKENS), *two = run_alone(&r, halves, 2, N_TOKENS);
    assert_true(distance(&r, zero, base) < 1e-6);
    assert_true(distance(&r, two, one) < 1e-2);
    assert_true(distance(&r, one, base) > 0.1);
    free(base);
    free(zero);
    free(one);
    free(two);
    adapter_unref(a);
    rig_close(&r);
}

/* --- refusals -----------------------------------------------------------------------------------
 */

struct refusal {
    const char *from, *to; /* a change of adapter_config.json of llama_qv, byte for byte */
    int rc;
    const char *says;
};

static const struct refusal config_refusals[] = {
    {"\"use_dora\": false", "\"use_dora\": true", ERR_UNSUPPORTED, "DoRA"},
    {"\"bias\": \"none\"", "\"bias\": \"all\"", ERR_UNSUPPORTED, "bias"},
    {"\"lora_bias\": false", "\"lora_bias\": true", ERR_UNSUPPORTED, "lora_bias"},
    {"\"fan_in_fan_out\": false", "\"fan_in_fan_out\": true", ERR_UNSUPPORTED, "fan_in_fan_out"},
    {"\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", ERR_UNSUPPORTED,
     "modules_to_save"},
    {"\"layer_replication\": null", "\"layer_replication\": [[0, 1]]", ERR_UNSUPPORTED,
     "layer_replication"},
    {"\"alora_invocation_tokens\": null", "\"alora_invocation_tokens\": [96]", ERR_FORMAT,
     "ids 0 to 95"},
    {"\"alora_invocation_tokens\": null", "\"alora_invocation_tokens\": 5", ERR_LIMIT, "a list"},
    {"\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"", ERR_UNSUPPORTED, "pissa"},
    {"\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\"", ERR_UNSUPPORTED, "IA3"},
    {"\"r\": 4", "\"r\": 8", ERR_FORMAT, "rank 4, but the config says 8"},
    {"\"r\": 4", "\"r\": 0", ERR_FORMAT, "r must be"},
    {"\"r\": 4", "\"r\": 1000000000000", ERR_FORMAT, "r must be"},
    {"\"lora_alpha\": 8", "\"lora_alpha\": \"8\"", ERR_FORMAT, "lora_alpha"},
    {"\"lora_alpha\": 8", "\"lora_alpha\": 1e300", ERR_FORMAT, "lora_alpha"},
    {"\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": \"x\"}", ERR_FORMAT, "rank_pattern"},
    {"\"rank_pattern\": {}", "\"rank_pattern\": {\"(\": 3}", ERR_FORMAT, "pattern"},
    {"\"rank_pattern\": {}", "\"rank_pattern\": {\"((a|m|[a-z._0-9])*)*[A-Z]\": 3}", ERR_LIMIT,
     "too long"},
    {"\"alpha_pattern\": {}", "\"alpha_pattern\": [1]", ERR_FORMAT, "alpha_pattern"},
    {"\"q_proj\"", "\"k_proj\"", ERR_FORMAT, "target_modules"},
    {"{", "", ERR_FORMAT, "adapter_config.json"},
};

static void write_file(const char *dir, const char *name, const void *data, size_t n)
{
    struct buf path = {0};
    buf_addf(&path, "%s/%s", dir, name);
    FILE *f = fopen(path.data, "we");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
    buf_release(&path);
}

static void remove_adapter(const char *dir)
{
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors"};
    struct buf path = {0};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        buf_clear(&path);
        buf_addf(&path, "%s/%s", dir, names[i]);
        unlink(path.data);
    }
    buf_release(&path);
    rmdir(dir);
}

struct adapter_files {
    char dir[64];
    void *config, *tensors;
    size_t config_bytes, tensors_bytes;
};

static struct adapter_files adapter_files(const char *name)
{
    struct adapter_files f = {.dir = "/tmp/terrace-adapter-XXXXXX"};
    struct buf path = {0};
    assert_non_null(mkdtemp(f.dir));
    buf_addf(&path, DIR "%s/adapter_config.json", name);
    assert_int_equal(file_read(&f.config, &f.config_bytes, path.data, LIMIT, NULL), 0);
    buf_clear(&path);
    buf_addf(&path, DIR "%s/adapter_model.safetensors", name);
    assert_int_equal(file_read(&f.tensors, &f.tensors_bytes, path.data, LIMIT, NULL), 0);
    buf_release(&path);
    return f;
}

static void adapter_files_release(struct adapter_files *f)
{
    remove_adapter(f->dir);
    free(f->config);
    free(f->tensors);
}

/* data[0..n) with the first `from` replaced by `to` */
static struct buf replaced(const void *data, size_t n, const char *from, const char *to)
{
    struct buf b = {0};
    const char *at = memmem(data, n, from, strlen(from));
    if (!at)
        fail_msg("%s is not in the file", from);
    size_t before = (size_t)(at - (const char *)data);
    buf_add(&b, data, before);
    buf_adds(&b, to);
    buf_add(&b, at + strlen(from), n - before - strlen(from));
    return b;
}

static void expect_refusal(const struct rig *r, const char *path, int rc, const char *says)
{
    struct adapter *a;
    struct err e = {0};
    int got = adapter_open(&a, r->model, path, &e);
    if (got != rc || e.code != rc || a || !strstr(e.msg, says))
        fail_msg("expected %d \"%s\", got %d \"%s\"", rc, says, got, e.msg);
}

static void refuses_configs(void **state)
{
    struct rig r = rig_open("llama", NULL, 1);
    struct adapter_files f = adapter_files("llama_qv");
    write_file(f.dir, "adapter_model.safetensors", f.tensors, f.tensors_bytes);
    expect_refusal(&r, f.dir, ERR_NOTFOUND, "adapter_config.json");
    for (size_t i = 0; i < ARRAY_LEN(config_refusals); i++) {
        const struct refusal *c = &config_refusals[i];
        struct buf b = replaced(f.config, f.config_bytes, c->from, c->to);
        write_file(f.dir, "adapter_config.json", b.data, b.len);
        expect_refusal(&r, f.dir, c->rc, c->says);
        buf_release(&b);
    }
    adapter_files_release(&f);
    rig_close(&r);
}

/* Changes of the header of adapter_model.safetensors, same length. */
static const struct refusal tensor_refusals[] = {
    {"layers.0.self_attn.q_proj.lora_A", "layers.7.self_attn.q_proj.lora_A", ERR_FORMAT,
     "2 layers"},
    {"self_attn.q_proj.lora_A", "self_attn.x_proj.lora_A", ERR_UNSUPPORTED, "self_attn.x_proj"},
    {"self_attn.q_proj.lora_A", "self_attn.q_proj.lora_C", ERR_UNSUPPORTED, "neither"},
    {"model.layers.0.self_attn.q_proj.lora_A", "model.layers.x.self_attn.q_proj.lora_A",
     ERR_UNSUPPORTED, "no weight"},
    {"layers.0.self_attn.q_proj.lora_A", "layers.0.self_attn.v_proj.lora_B", ERR_FORMAT, ""},
    {"[4,64]", "[64,4]", ERR_FORMAT, "another base model"},
    {"[32,4]", "[4,32]", ERR_FORMAT, "another base model"},
    {"[4,64]", "[ 256]", ERR_FORMAT, "dimensions"},
};

static void refuses_tensors(void **state)
{
    struct rig r = rig_open("llama", NULL, 1), phi3 = rig_open("phi3", NULL, 1);
    struct adapter_files f = adapter_files("llama_qv");
    write_file(f.dir, "adapter_config.json", f.config, f.config_bytes);
    for (size_t i = 0; i < ARRAY_LEN(tensor_refusals); i++) {
        const struct refusal *c = &tensor_refusals[i];
        struct buf b = replaced(f.tensors, f.tensors_bytes, c->from, c->to);
        write_file(f.dir, "adapter_model.safetensors", b.data, b.len);
        expect_refusal(&r, f.dir, c->rc, c->says);
        buf_release(&b);
    }
    static const uint32_t bad[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) { /* the last number is one of lora_B */
        memcpy((char *)f.tensors + f.tensors_bytes - 4, &bad[i], 4);
        write_file(f.dir, "adapter_model.safetensors", f.tensors, f.tensors_bytes);
        expect_refusal(&r, f.dir, ERR_FORMAT, "not finite");
    }
    for (size_t n = 0; n < f.tensors_bytes; n += 97) {
        write_file(f.dir, "adapter_model.safetensors", f.tensors, n);
        expect_refusal(&r, f.dir, ERR_FORMAT, "");
    }
    expect_refusal(&r, DIR "tiny_llama.gguf", ERR_NOTFOUND, "general.type");
    expect_refusal(&phi3, DIR "llama_all.gguf", ERR_FORMAT, "general.architecture");
    expect_refusal(&r, DIR "expected.safetensors", ERR_FORMAT, "");
    expect_refusal(&r, DIR "nothing", ERR_NOTFOUND, "nothing");
    adapter_files_release(&f);
    rig_close(&r);
    rig_close(&phi3);
}

static void survives_lack_of_memory(void **state)
{
    struct rig r = rig_open("llama", NULL, 1);
    struct adapter *a;
    int n = 1;
    for (; n < 100; n++) {
        fault_set(FAULT_ALLOC, n);
        struct err e = {0};
        int rc = adapter_open(&a, r.model, DIR "llama_all", &e);
        fault_set(FAULT_ALLOC, 0);
        if (!rc)
            break;
        assert_int_equal(rc, ERR_NOMEM);
        assert_null(a);
    }
    assert_in_range(n, 3, 99);
    adapter_unref(a);
    assert_int_equal(adapter_random(&a, r.model, 0, 1, NULL), ERR_INVALID);
    assert_int_equal(adapter_random(&a, r.model, 513, 1, NULL), ERR_INVALID);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_those_of_peft),
        cmocka_unit_test(digests_tell_adapters_apart),
        cmocka_unit_test(activated_from_a_token_on),
        cmocka_unit_test(sequences_in_a_batch_equal_each_alone),
        cmocka_unit_test(scales_mean_what_they_say),
        cmocka_unit_test(refuses_configs),
        cmocka_unit_test(refuses_tensors),
        cmocka_unit_test(survives_lack_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
