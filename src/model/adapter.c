#include "model/adapter.h"

#include <math.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/rng.h"
#include "kernels/lora.h"
#include "model/adapter_private.h"

#define BF16_MAX 3.38e38f

enum { MAX_CONFIG_BYTES = 1 << 20, DIGEST_VERSION = 1 };
static const size_t max_file_bytes = (size_t)4 << 30;

/* --- layout -------------------------------------------------------------------------------------
 */

/* Takes n numbers from the block; with base NULL only counts. */
static const uint16_t *take(uint16_t *base, size_t *used, size_t n)
{
    const uint16_t *p = base ? base + *used : NULL;
    *used += (n + 31) / 32 * 32;
    return p;
}

static int even(int rank)
{
    return rank + rank % 2;
}

/* The part that makes each output. Parts whose weights overlap are refused. */
static int claim_outputs(const struct adapter_parts *p, const struct adapter_part **by_output,
                         struct err *e)
{
    for (int i = 0; i < p->model->hp.n_layers * LORA_OUTPUTS; i++) {
        const struct adapter_part *part = &p->parts[i];
        if (!part->outputs)
            continue;
        bool has_a = part->a.safetensor || part->a.gguf, has_b = part->b.safetensor || part->b.gguf;
        if (!has_a || !has_b)
            return err_set(e, ERR_FORMAT, "tensor %s has no counterpart: the adapter is incomplete",
                           part->name);
        for (int out = 0; out < LORA_OUTPUTS; out++) {
            const struct adapter_part **slot = &by_output[part->layer * LORA_OUTPUTS + out];
            if (!(part->outputs & 1u << out))
                continue;
            if (*slot)
                return err_set(e, ERR_FORMAT, "%s changes the same weights as %s", part->name,
                               (*slot)->name);
            *slot = part;
        }
    }
    return 0;
}

/* Places one layer in the block of numbers, in the order in which a step reads them. */
static void lay_out(struct adapter_layer *l, const struct hparams *hp,
                    const struct adapter_part *const *by_output, uint16_t *base, size_t *used)
{
    for (int out = 0; out < LORA_OUTPUTS; out++) {
        const struct adapter_part *part = by_output[out];
        enum lora_input in = lora_input_of((enum lora_output)out);
        if (!part)
            continue;
        bool shared = out > 0 && by_output[out - 1] == part; /* a fused weight: one A */
        l->out[out].rank = even(part->rank);
        l->out[out].h_begin = shared ? l->out[out - 1].h_begin : l->in[in].rank;
        l->in[in].rank += shared ? 0 : l->out[out].rank;
    }
    for (int in = 0; in < LORA_INPUTS; in++) {
        if (l->in[in].rank)
            l->in[in].a = take(base, used,
                               lora_a_elems(l->in[in].rank, lora_n_cols(hp, (enum lora_input)in)));
        for (int out = 0; out < LORA_OUTPUTS; out++)
            if (lora_input_of((enum lora_output)out) == (enum lora_input)in && l->out[out].rank)
                l->out[out].b =
                    take(base, used,
                         lora_b_elems(l->out[out].rank, lora_n_rows(hp, (enum lora_output)out)));
    }
}

static size_t lay_out_all(struct adapter *a, const struct hparams *hp,
                          const struct adapter_part *const *by_output, uint16_t *base)
{
    size_t used = 0;
    memset(a->layers, 0, (size_t)a->n_layers * sizeof *a->layers);
    for (int i = 0; i < a->n_layers; i++) {
        struct adapter_layer *l = &a->layers[i];
        lay_out(l, hp, by_output + i * LORA_OUTPUTS, base, &used);
        for (int in = 0; in < LORA_INPUTS; in++)
            a->max_rows = l->in[in].rank > a->max_rows ? l->in[in].rank : a->max_rows;
    }
    return used;
}

/* --- numbers ------------------------------------------------------------------------------------
 */

static void read_row(const struct adapter_matrix *m, size_t row, size_t n, float *out)
{
    if (m->safetensor) {
        safetensor_floats(m->safetensor, row * n, n, out);
        return;
    }
    const struct gguf_tensor *t = m->gguf;
    ttype_info(t->type)->decode((const char *)t->data + row * ttype_row_bytes(t->type, n), n, out);
}

/* Scales and checks: everything must be a finite bf16 afterwards. */
static int finish_row(float *v, int n, float scale, const char *name, struct err *e)
{
    for (int i = 0; i < n; i++) {
        v[i] *= scale;
        if (!(fabsf(v[i]) <= BF16_MAX))
            return err_set(e, ERR_FORMAT, "tensor %s holds numbers that are not finite", name);
    }
    return 0;
}

/* Row of B that becomes `row`. A llama GGUF turns neighbours where the trainer's model turns halves
 * of a head: rows 2i and 2i + 1 come from i and i + head_dim / 2. */
static int source_row(const struct adapter_part *part, const struct hparams *hp,
                      enum lora_output out, int row)
{
    int first = 0;
    for (int i = 0; i < (int)out; i++)
        if (part->outputs & 1u << i)
            first += lora_n_rows(hp, (enum lora_output)i);
    if (part->permute && (out == LORA_Q || out == LORA_K)) {
        int d = hp->head_dim, r = row % d;
        row = row - r + r % 2 * (d / 2) + r / 2;
    }
    return first + row;
}

static int fill_b(const struct adapter_part *part, const struct hparams *hp, enum lora_output out,
                  int rank, uint16_t *b, struct err *e)
{
    float v[ADAPTER_MAX_RANK];
    for (int row = 0; row < lora_n_rows(hp, out); row++) {
        read_row(&part->b, (size_t)source_row(part, hp, out, row), (size_t)part->rank, v);
        int rc = finish_row(v, part->rank, part->scale, part->name, e);
        if (rc)
            return rc;
        lora_pack_b(b, rank, row, v, part->rank);
    }
    return 0;
}

static int fill_a(const struct adapter_part *part, int n_cols, int rank, int first, uint16_t *a,
                  float *row, struct err *e)
{
    for (int r = 0; r < part->rank; r++) {
        read_row(&part->a, (size_t)r, (size_t)n_cols, row);
        int rc = finish_row(row, n_cols, 1, part->name, e);
        if (rc)
            return rc;
        lora_pack_a(a, rank, n_cols, first + r, row);
    }
    return 0;
}

static int fill_layer(const struct adapter_layer *l, const struct hparams *hp,
                      const struct adapter_part *const *by_output, float *row, struct err *e)
{
    int rc = 0;
    for (int out = 0; out < LORA_OUTPUTS && !rc; out++) {
        const struct adapter_part *part = by_output[out];
        enum lora_input in = lora_input_of((enum lora_output)out);
        if (!part)
            continue;
        rc =
            fill_b(part, hp, (enum lora_output)out, l->out[out].rank, (uint16_t *)l->out[out].b, e);
        if (!rc && (out == 0 || by_output[out - 1] != part))
            rc = fill_a(part, lora_n_cols(hp, in), l->in[in].rank, l->out[out].h_begin,
                        (uint16_t *)l->in[in].a, row, e);
    }
    return rc;
}

static void fill_info(struct adapter *a, const struct adapter_parts *p)
{
    struct adapter_info *info = &a->info;
    const struct hparams *hp = &p->model->hp;
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    BUG_ON(!md || !EVP_DigestInit_ex(md, EVP_sha256(), NULL));
    int header[] = {DIGEST_VERSION, a->n_layers};
    EVP_DigestUpdate(md, header, sizeof header);
    for (int i = 0; i < a->n_layers; i++) {
        const struct adapter_layer *l = &a->layers[i];
        for (int out = 0; out < LORA_OUTPUTS; out++) {
            int place[] = {l->out[out].rank, l->out[out].h_begin};
            EVP_DigestUpdate(md, place, sizeof place);
            info->n_targets += l->out[out].rank > 0;
            info->n_params +=
                (uint64_t)l->out[out].rank * (uint64_t)lora_n_rows(hp, (enum lora_output)out);
            info->max_rank = l->out[out].rank > info->max_rank ? l->out[out].rank : info->max_rank;
        }
        for (int in = 0; in < LORA_INPUTS; in++)
            info->n_params +=
                (uint64_t)l->in[in].rank * (uint64_t)lora_n_cols(hp, (enum lora_input)in);
    }
    EVP_DigestUpdate(md, a->memory, a->memory_bytes);
    EVP_DigestUpdate(md, info->invocation, (size_t)info->n_invocation * sizeof *info->invocation);
    BUG_ON(!EVP_DigestFinal_ex(md, info->digest, NULL));
    EVP_MD_CTX_free(md);
    info->bytes = sizeof *a + (size_t)a->n_layers * sizeof *a->layers + a->memory_bytes;
}

/* --- building -----------------------------------------------------------------------------------
 */

static int fill(struct adapter *a, const struct hparams *hp,
                const struct adapter_part *const *by_output, struct err *e)
{
    int widest = hp->n_ff > hp->n_embd ? hp->n_ff : hp->n_embd;
    widest = hparams_q(hp) > widest ? hparams_q(hp) : widest;
    float *row = xcalloc((size_t)widest, sizeof *row);
    int rc = 0;
    for (int i = 0; i < a->n_layers && !rc; i++)
        rc = fill_layer(&a->layers[i], hp, by_output + i * LORA_OUTPUTS, row, e);
    free(row);
    return rc;
}

static int build(struct adapter *a, const struct adapter_parts *p,
                 const struct adapter_part **by_output, struct err *e)
{
    const struct hparams *hp = &p->model->hp;
    int rc = claim_outputs(p, by_output, e);
    if (rc)
        return rc;
    a->memory_bytes = lay_out_all(a, hp, by_output, NULL) * sizeof(uint16_t);
    if (!a->memory_bytes)
        return err_set(e, ERR_FORMAT, "the adapter holds no tensors");
    a->memory = mem_alloc_big(a->memory_bytes);
    if (!a->memory)
        return err_set(e, ERR_NOMEM, "out of memory: the adapter needs %zu MiB",
                       a->memory_bytes >> 20);
    lay_out_all(a, hp, by_output, a->memory);
    rc = fill(a, hp, by_output, e);
    if (!rc)
        fill_info(a, p);
    return rc;
}

static struct adapter *new_adapter(int n_layers)
{
    struct adapter *a = xcalloc(1, sizeof *a);
    a->layers = xcalloc((size_t)n_layers, sizeof *a->layers);
    a->n_layers = n_layers;
    atomic_init(&a->references, 1);
    return a;
}

/* What an adapter is read from; no longer needed once it is built. */
struct sources {
    const struct safetensors *safetensors; /* with a config, or gguf */
    const void *config;
    size_t config_bytes;
    const struct gguf *gguf;
};

static int build_from(struct adapter **out, const struct model *m, const struct sources *s,
                      struct err *e)
{
    struct adapter *a = new_adapter(m->hp.n_layers);
    size_t n = (size_t)a->n_layers * LORA_OUTPUTS;
    struct adapter_parts p = {.model = m, .parts = xcalloc(n, sizeof *p.parts)};
    const struct adapter_part **by_output = xcalloc(n, sizeof(const struct adapter_part *));
    int rc = s->gguf
                 ? adapter_read_gguf(&p, s->gguf, &a->info, e)
                 : adapter_read_peft(&p, s->safetensors, s->config, s->config_bytes, &a->info, e);
    if (!rc)
        rc = build(a, &p, by_output, e);
    free(by_output);
    free(p.parts);
    arena_release(&p.names);
    if (rc) {
        adapter_unref(a);
        return rc;
    }
    *out = a;
    return 0;
}

int adapter_open_peft(struct adapter **out, const struct model *m, const void *config,
                      size_t config_bytes, const void *tensors, size_t tensors_bytes, struct err *e)
{
    *out = NULL;
    struct safetensors *s;
    int rc = safetensors_open_mem(&s, tensors, tensors_bytes, e);
    if (rc)
        return err_prefix(e, rc, "adapter_model.safetensors");
    rc = build_from(
        out, m, &(struct sources){.safetensors = s, .config = config, .config_bytes = config_bytes},
        e);
    safetensors_close(s);
    return rc;
}

/* The two files of a PEFT directory. */
struct peft_files {
    void *config, *tensors;
    size_t n_config, n_tensors;
};

static void peft_files_release(struct peft_files *f)
{
    free(f->config);
    free(f->tensors);
}

/* On error *f is empty. */
static int read_directory(struct peft_files *f, const char *path, struct err *e)
{
    struct buf config_path = {0}, tensors_path = {0};
    buf_addf(&config_path, "%s/adapter_config.json", path);
    buf_addf(&tensors_path, "%s/adapter_model.safetensors", path);
    *f = (struct peft_files){0};
    int rc = file_read(&f->config, &f->n_config, config_path.data, MAX_CONFIG_BYTES, e);
    if (!rc)
        rc = file_read(&f->tensors, &f->n_tensors, tensors_path.data, max_file_bytes, e);
    if (rc) {
        peft_files_release(f);
        *f = (struct peft_files){0};
    }
    buf_release(&config_path);
    buf_release(&tensors_path);
    return rc;
}

static int open_directory(struct adapter **out, const struct model *m, const char *path,
                          struct err *e)
{
    struct peft_files f;
    int rc = read_directory(&f, path, e);
    if (rc)
        return rc;
    rc = adapter_open_peft(out, m, f.config, f.n_config, f.tensors, f.n_tensors, e);
    peft_files_release(&f);
    return rc ? err_prefix(e, rc, "%s", path) : 0;
}

static int open_gguf(struct adapter **out, const struct model *m, const char *path, struct err *e)
{
    void *data;
    size_t n;
    struct gguf *g = NULL;
    int rc = file_read(&data, &n, path, max_file_bytes, e);
    if (rc)
        return rc;
    rc = gguf_open_mem(&g, data, n, e);
    if (!rc)
        rc = build_from(out, m, &(struct sources){.gguf = g}, e);
    if (rc)
        err_prefix(e, rc, "%s", path);
    gguf_close(g);
    free(data);
    return rc;
}

static bool is_directory(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int adapter_open(struct adapter **out, const struct model *m, const char *path, struct err *e)
{
    *out = NULL;
    return is_directory(path) ? open_directory(out, m, path, e) : open_gguf(out, m, path, e);
}

/* Of both files, each with its length before it. */
static void hash_files(const struct peft_files *f, uint8_t digest[32])
{
    const uint64_t sizes[] = {f->n_config, f->n_tensors};
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    BUG_ON(!md || !EVP_DigestInit_ex(md, EVP_sha256(), NULL));
    EVP_DigestUpdate(md, sizes, sizeof sizes);
    EVP_DigestUpdate(md, f->config, f->n_config);
    EVP_DigestUpdate(md, f->tensors, f->n_tensors);
    BUG_ON(!EVP_DigestFinal_ex(md, digest, NULL));
    EVP_MD_CTX_free(md);
}

int adapter_inspect(const char *path, struct adapter_info *out, struct err *e)
{
    struct peft_files f;
    struct safetensors *s = NULL;
    *out = (struct adapter_info){0};
    if (!is_directory(path))
        return err_set(e, ERR_UNSUPPORTED,
                       "%s is no PEFT directory: its base model is served by backends, and they "
                       "read nothing else",
                       path);
    int rc = read_directory(&f, path, e);
    if (rc)
        return rc;
    rc = adapter_read_peft_config(f.config, f.n_config, out, e);
    if (!rc)
        rc = safetensors_open_mem(&s, f.tensors, f.n_tensors, e);
    out->bytes = f.n_config + f.n_tensors;
    hash_files(&f, out->digest);
    safetensors_close(s);
    peft_files_release(&f);
    return rc ? err_prefix(e, rc, "%s", path) : 0;
}

/* --- random numbers -----------------------------------------------------------------------------
 */

/* Both matrices of an output: B A x has a tenth of the size of x or so. */
static void fill_random(const struct adapter_layer *l, const struct hparams *hp, struct rng *rng,
                        float *row)
{
    float v[ADAPTER_MAX_RANK];
    for (int out = 0; out < LORA_OUTPUTS; out++) {
        enum lora_input in = lora_input_of((enum lora_output)out);
        int n_cols = lora_n_cols(hp, in), rank = l->out[out].rank;
        for (int r = 0; r < rank; r++) {
            for (int c = 0; c < n_cols; c++)
                row[c] = rng_normal(rng) / sqrtf((float)n_cols);
            lora_pack_a((uint16_t *)l->in[in].a, l->in[in].rank, n_cols, l->out[out].h_begin + r,
                        row);
        }
        for (int i = 0; i < lora_n_rows(hp, (enum lora_output)out); i++) {
            for (int r = 0; r < rank; r++)
                v[r] = 0.1f * rng_normal(rng) / sqrtf((float)rank);
            lora_pack_b((uint16_t *)l->out[out].b, rank, i, v, rank);
        }
    }
}

int adapter_random(struct adapter **out, const struct model *m, int rank, uint64_t seed,
                   struct err *e)
{
    *out = NULL;
    const struct hparams *hp = &m->hp;
    if (rank < 1 || rank > ADAPTER_MAX_RANK)
        return err_set(e, ERR_INVALID, "a rank must be 1 to %d, not %d", ADAPTER_MAX_RANK, rank);
    struct adapter *a = new_adapter(hp->n_layers);
    struct adapter_part parts[LORA_OUTPUTS];
    size_t n = (size_t)a->n_layers * LORA_OUTPUTS;
    const struct adapter_part **by_output = xcalloc(n, sizeof *by_output);
    for (size_t i = 0; i < n; i++) {
        parts[i % LORA_OUTPUTS] = (struct adapter_part){.rank = rank};
        by_output[i] = &parts[i % LORA_OUTPUTS];
    }
    a->memory_bytes = lay_out_all(a, hp, by_output, NULL) * sizeof(uint16_t);
    a->memory = mem_alloc_big(a->memory_bytes);
    if (a->memory) {
        lay_out_all(a, hp, by_output, a->memory);
        int widest = hp->n_ff > hp->n_embd ? hp->n_ff : hp->n_embd;
        widest = hparams_q(hp) > widest ? hparams_q(hp) : widest;
        float *row = xcalloc((size_t)widest, sizeof *row);
        struct rng rng;
        rng_seed(&rng, seed);
        for (int i = 0; i < a->n_layers; i++)
            fill_random(&a->layers[i], hp, &rng, row);
        free(row);
        fill_info(a, &(struct adapter_parts){.model = m});
        a->info.format = "random";
    }
    free(by_output);
    if (!a->memory) {
        size_t bytes = a->memory_bytes;
        adapter_unref(a);
        return err_set(e, ERR_NOMEM, "out of memory: the adapter needs %zu MiB", bytes >> 20);
    }
    *out = a;
    return 0;
}

/* --- life ---------------------------------------------------------------------------------------
 */

struct adapter *adapter_ref(struct adapter *a)
{
    atomic_fetch_add_explicit(&a->references, 1, memory_order_relaxed);
    return a;
}

void adapter_unref(struct adapter *a)
{
    if (!a || atomic_fetch_sub_explicit(&a->references, 1, memory_order_acq_rel) > 1)
        return;
    mem_free_big(a->memory, a->memory_bytes);
    free(a->layers);
    free(a);
}

const struct adapter_info *adapter_info(const struct adapter *a)
{
    return &a->info;
}
