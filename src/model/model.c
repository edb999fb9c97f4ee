#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "model/internal.h"
#include "model/pack_cache.h"

enum { DEFAULT_BATCH_TOKENS = 512, MAX_TTYPES = 64 };

/* general.file_type, as llama.cpp numbers it. */
static const char *const file_types[] = {
    [0] = "F32",     [1] = "F16",     [2] = "Q4_0",    [3] = "Q4_1",    [7] = "Q8_0",
    [8] = "Q5_0",    [9] = "Q5_1",    [10] = "Q2_K",   [11] = "Q3_K_S", [12] = "Q3_K_M",
    [13] = "Q3_K_L", [14] = "Q4_K_S", [15] = "Q4_K_M", [16] = "Q5_K_S", [17] = "Q5_K_M",
    [18] = "Q6_K",   [21] = "Q2_K_S", [25] = "IQ4_NL", [30] = "IQ4_XS", [32] = "BF16",
};

static const char *commonest_type(const struct gguf *g)
{
    int count[MAX_TTYPES] = {0};
    int best = 0;
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        if (t->n_dims == 2 && (unsigned)t->type < MAX_TTYPES && ++count[t->type] > count[best])
            best = t->type;
    }
    const struct ttype_info *info = ttype_info((uint32_t)best);
    return info ? info->name : "";
}

static void copy_str(char *out, size_t size, struct str s)
{
    snprintf(out, size, "%.*s", (int)(s.n < size ? s.n : size), s.p);
}

static void fill_info(struct model *m, const struct gguf *g)
{
    struct model_info *info = &m->info;
    const struct hparams *hp = &m->hp;
    *info = (struct model_info){
        .n_layers = hp->n_layers,
        .n_embd = hp->n_embd,
        .n_ff = hp->n_ff,
        .n_heads = hp->n_heads,
        .n_kv_heads = hp->n_kv_heads,
        .head_dim = hp->head_dim,
        .n_vocab = hp->n_vocab,
        .n_ctx_train = hp->n_ctx_train,
        .weight_bytes = m->weights.packed_bytes,
        .kv_block_bytes = kv_block_bytes(&m->kv) * (size_t)hp->n_layers,
        .scratch_bytes = scratch_bytes(&m->scratch),
        .isa = m->kernels->name,
    };
    copy_str(info->arch, sizeof info->arch, str_of(m->arch->name));
    copy_str(info->name, sizeof info->name, gguf_str(g, "general.name", ""));
    uint32_t type = gguf_u32(g, "general.file_type", UINT32_MAX);
    bool known = type < ARRAY_LEN(file_types) && file_types[type];
    copy_str(info->quant, sizeof info->quant, str_of(known ? file_types[type] : commonest_type(g)));
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        info->n_params += t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
    }
}

static int pack(struct model *m, const struct gguf *g, const struct model_opts *o, struct err *e)
{
    return weights_pack(&m->weights, g, m->pool, o->progress, o->progress_arg, e);
}

/* Uses the file just written in place of the memory that was packed into, which other processes
 * could not share. The memory goes first: the process never holds the weights twice. */
static int share_weights(struct model *m, const struct gguf *g, const struct model_opts *o,
                         const uint8_t fingerprint[32], struct err *e)
{
    struct err why = {0};
    weights_unpack(&m->weights);
    if (!pack_cache_open(&m->weights, o->pack_dir, fingerprint, m->pool, &why))
        return 0;
    log_warn("model", "%s: packing the weights again", why.msg);
    return pack(m, g, o, e);
}

/* From the packed file if there is a good one; else packs, and leaves a file for the next start. A
 * file that cannot be written costs only that start's time. */
static int load_weights(struct model *m, const struct gguf *g, const struct model_opts *o,
                        struct err *e)
{
    struct weights *w = &m->weights;
    struct err why = {0};
    uint8_t fingerprint[32];
    int rc = ERR_NOTFOUND;
    if (o->pack_dir) {
        gguf_fingerprint(g, fingerprint);
        rc = pack_cache_open(w, o->pack_dir, fingerprint, m->pool, &why);
        if (rc && rc != ERR_NOTFOUND)
            log_warn("model", "%s: packing the weights again", why.msg);
    }
    if (rc) {
        rc = pack(m, g, o, e);
        if (rc)
            return rc;
        if (o->pack_dir && pack_cache_write(w, o->pack_dir, fingerprint, m->pool, &why))
            log_warn("model", "%s: the next start will pack the weights again", why.msg);
        else if (o->pack_dir)
            rc = share_weights(m, g, o, fingerprint, e);
        if (rc)
            return rc;
    }
    gguf_let_go(g);
    weights_attach(w, &m->hp);
    return 0;
}

/* All but the weights' data. */
static int open_shape(struct model *m, const struct gguf *g, const struct model_opts *o,
                      struct err *e)
{
    int n_tokens = o->max_batch_tokens ? o->max_batch_tokens : DEFAULT_BATCH_TOKENS;
    if (n_tokens < 1 || n_tokens > MAX_BATCH_TOKENS)
        return err_set(e, ERR_INVALID, "a step may have 1 to %d tokens, not %d", MAX_BATCH_TOKENS,
                       n_tokens);
    m->pool = o->pool;
    m->kernels = kernels_select(o->isa, e);
    if (!m->kernels)
        return ERR_UNSUPPORTED;
    int rc = arch_find(&m->arch, g, e);
    if (!rc)
        rc = hparams_read(&m->hp, g, m->arch->name, e);
    if (!rc)
        rc = rope_init(&m->rope, &m->hp, g, o->n_ctx ? o->n_ctx : m->hp.n_ctx_train, e);
    if (!rc)
        rc = weights_bind(&m->weights, &m->hp, m->arch, g, e);
    if (rc)
        return rc;
    if (!m->arch->window)
        m->hp.window = 0;
    m->kv = (struct kv_layout){o->kv_type, m->hp.n_kv_heads, m->hp.head_dim};
    return scratch_init(&m->scratch, m, n_tokens, e);
}

int model_open(struct model **out, const struct gguf *g, const struct model_opts *o, struct err *e)
{
    struct model *m = xcalloc(1, sizeof *m);
    int rc = open_shape(m, g, o, e);
    if (!rc)
        rc = load_weights(m, g, o, e);
    if (rc) {
        model_close(m);
        return rc;
    }
    fill_info(m, g);
    *out = m;
    return 0;
}

int model_measure(struct model_info *out, const struct gguf *g, const struct model_opts *o,
                  struct err *e)
{
    struct model *m = xcalloc(1, sizeof *m);
    int rc = open_shape(m, g, o, e);
    if (!rc) {
        fill_info(m, g);
        *out = m->info;
    }
    model_close(m);
    return rc;
}

void model_close(struct model *m)
{
    if (!m)
        return;
    scratch_release(&m->scratch);
    weights_release(&m->weights);
    rope_release(&m->rope);
    free(m);
}

const struct model_info *model_info(const struct model *m)
{
    return &m->info;
}

void model_share_prefixes(struct model *m, bool on)
{
    m->no_sharing = !on;
}
