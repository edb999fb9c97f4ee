#include "model/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"

enum { NAME_MAX_BYTES = 128 };

static uint64_t dim_value(enum dim d, const struct hparams *hp)
{
    switch (d) {
    case DIM_NONE:
        return 0;
    case DIM_EMBD:
        return (uint64_t)hp->n_embd;
    case DIM_FF:
        return (uint64_t)hp->n_ff;
    case DIM_2FF:
        return 2 * (uint64_t)hp->n_ff;
    case DIM_Q:
        return (uint64_t)hparams_q(hp);
    case DIM_KV:
        return (uint64_t)hparams_kv(hp);
    case DIM_QKV:
        return (uint64_t)hparams_q(hp) + 2 * (uint64_t)hparams_kv(hp);
    case DIM_HEAD:
        return (uint64_t)hp->head_dim;
    }
    return 0;
}

/* A norm or bias as floats. */
static int bind_vector(struct weights *w, const struct gguf *g, const char *name, uint64_t n,
                       const float **out, struct err *e)
{
    const struct gguf_tensor *t;
    int rc = gguf_need(g, name, 1, &n, &t, e);
    if (rc)
        return rc;
    const struct ttype_info *type = ttype_info(t->type);
    if (type->block_elems != 1)
        return err_set(e, ERR_UNSUPPORTED, "%s is %s: a vector must be F32, F16 or BF16", name,
                       type->name);
    float *v = arena_alloc(&w->floats, n * sizeof *v);
    type->decode(t->data, n, v);
    *out = v;
    return 0;
}

static int bind_matrix(struct weights *w, const struct gguf *g, const char *name, uint64_t rows,
                       uint64_t cols, struct packed_matrix *out, struct err *e)
{
    const uint64_t dims[] = {cols, rows};
    const struct gguf_tensor *t;
    int rc = gguf_need(g, name, 2, dims, &t, e);
    if (!rc)
        rc = packed_init(out, t->type, (int64_t)t->dims[1], (int64_t)cols, e);
    if (rc)
        return err_prefix(e, rc, "%s", name);
    w->packed[w->n_packed++] = (struct weight){t, out, w->packed_bytes};
    w->packed_bytes += (packed_bytes(out) + KERNEL_ALIGN - 1) / KERNEL_ALIGN * KERNEL_ALIGN;
    return 0;
}

static int bind_layer(struct weights *w, const struct hparams *hp, const struct arch *arch,
                      const struct gguf *g, int index, struct err *e)
{
    char name[NAME_MAX_BYTES];
    for (const struct tensor_spec *s = arch->tensors; s->name; s++) {
        snprintf(name, sizeof name, "blk.%d.%s", index, s->name);
        if (s->optional && !gguf_find(g, name))
            continue;
        char *field = (char *)&w->layers[index] + s->offset;
        uint64_t cols = dim_value(s->cols, hp), rows = dim_value(s->rows, hp);
        int rc = s->rows ? bind_matrix(w, g, name, rows, cols, (struct packed_matrix *)field, e)
                         : bind_vector(w, g, name, cols, (const float **)field, e);
        if (rc)
            return rc;
    }
    const struct layer *l = &w->layers[index];
    if (l->gate.n_rows && packed_act_type(&l->gate) != packed_act_type(&l->up))
        return err_set(e, ERR_UNSUPPORTED,
                       "blk.%d: ffn_gate and ffn_up of types %s and %s do not "
                       "go together",
                       index, ttype_info(l->gate.type)->name, ttype_info(l->up.type)->name);
    if (l->gate_up.n_rows && hp->n_ff % KERNEL_TILE)
        return err_set(e, ERR_UNSUPPORTED,
                       "blk.%d.ffn_up.weight: a feed-forward length of %d is "
                       "not supported here (a multiple of %d is)",
                       index, hp->n_ff, KERNEL_TILE);
    return 0;
}

static bool in_layer(struct str name, const struct arch *arch, int n_layers)
{
    struct str rest = {name.p + 4, name.n - 4};
    const char *dot = memchr(rest.p, '.', rest.n);
    uint64_t index;
    if (!dot || !str_to_u64((struct str){rest.p, (size_t)(dot - rest.p)}, &index) ||
        index >= (uint64_t)n_layers)
        return false;
    rest = (struct str){dot + 1, (size_t)(rest.p + rest.n - dot - 1)};
    for (const struct tensor_spec *s = arch->tensors; s->name; s++)
        if (str_eqs(rest, s->name))
            return true;
    /* Tables that old converters wrote; the angles are computed. */
    return str_eqs(rest, "attn_rot_embd") || str_eqs(rest, "attn.rope.freqs");
}

static int refuse_unknown(const struct arch *arch, const struct gguf *g, int n_layers,
                          struct err *e)
{
    static const char *const known[] = {
        "token_embd.weight", "output_norm.weight",       "output.weight",
        "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"};
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        struct str name = gguf_tensor_at(g, i)->name;
        bool found = str_starts(name, "blk.") && in_layer(name, arch, n_layers);
        for (size_t k = 0; k < ARRAY_LEN(known) && !found; k++)
            found = str_eqs(name, known[k]);
        if (!found)
            return err_set(e, ERR_UNSUPPORTED,
                           "tensor \"%.*s\" is not part of a %s model of %d "
                           "layers",
                           (int)(name.n < 64 ? name.n : 64), name.p, arch->name, n_layers);
    }
    return 0;
}

static int bind_ends(struct weights *w, struct hparams *hp, const struct gguf *g, struct err *e)
{
    const uint64_t dims[] = {(uint64_t)hp->n_embd, 0};
    int rc = gguf_need(g, "token_embd.weight", 2, dims, &w->token_embd, e);
    if (rc)
        return rc;
    if (w->token_embd->dims[1] < 1 || w->token_embd->dims[1] > 1 << 24)
        return err_set(e, ERR_FORMAT, "token_embd.weight has %llu rows, expected 1 to 16777216",
                       (unsigned long long)w->token_embd->dims[1]);
    hp->n_vocab = (int)w->token_embd->dims[1];
    rc = bind_vector(w, g, "output_norm.weight", (uint64_t)hp->n_embd, &w->output_norm, e);
    if (rc)
        return rc;
    const char *name = gguf_find(g, "output.weight") ? "output.weight" : "token_embd.weight";
    return bind_matrix(w, g, name, (uint64_t)hp->n_vocab, (uint64_t)hp->n_embd, &w->output, e);
}

int weights_bind(struct weights *w, struct hparams *hp, const struct arch *arch,
                 const struct gguf *g, struct err *e)
{
    *w = (struct weights){.n_layers = hp->n_layers};
    int per_layer = 0;
    while (arch->tensors[per_layer].name)
        per_layer++;
    w->layers = xcalloc((size_t)hp->n_layers, sizeof *w->layers);
    w->packed = xcalloc((size_t)hp->n_layers * (size_t)per_layer + 1, sizeof *w->packed);
    int rc = refuse_unknown(arch, g, hp->n_layers, e);
    for (int i = 0; i < hp->n_layers && !rc; i++)
        rc = bind_layer(w, hp, arch, g, i, e);
    if (!rc)
        rc = bind_ends(w, hp, g, e);
    if (rc)
        weights_release(w);
    return rc;
}

struct pack_job {
    const struct weight *weight;
    char *memory;
    int tile_begin, tile_end;
};

/* So much of the file is packed in a turn, which takes about 10 ms. */
enum { PACK_BYTES = 4 << 20 };

static void pack_tiles(void *arg, int ith, int nth)
{
    const struct pack_job *j = arg;
    int n = j->tile_end - j->tile_begin;
    int begin = j->tile_begin + (int)((int64_t)n * ith / nth);
    int end = j->tile_begin + (int)((int64_t)n * (ith + 1) / nth);
    packed_fill(j->weight->matrix, j->memory + j->weight->offset, j->weight->tensor->data, begin,
                end);
}

/* In turns with others who compute on the pool, and who do not wait for the disk. */
static void pack_matrix(const struct weight *p, char *memory, struct pool *pool,
                        struct turn_user *turn)
{
    const struct gguf_tensor *t = p->tensor;
    size_t row_bytes = ttype_row_bytes(t->type, t->dims[0]);
    size_t tile_bytes = row_bytes * KERNEL_TILE;
    int n_tiles = packed_tiles(p->matrix), step = 1 + (int)(PACK_BYTES / tile_bytes);
    for (int tile = 0; tile < n_tiles; tile += step) {
        struct pack_job job = {p, memory, tile, tile + step < n_tiles ? tile + step : n_tiles};
        size_t begin = (size_t)job.tile_begin * tile_bytes, end = (size_t)job.tile_end * tile_bytes;
        mem_page_in((const char *)t->data + begin, (end < t->n_bytes ? end : t->n_bytes) - begin);
        pool_enter(pool, turn);
        pool_run(pool, pack_tiles, &job);
        pool_leave(pool);
    }
}

int weights_pack(struct weights *w, const struct gguf *g, struct pool *pool,
                 weights_progress_fn *progress, void *progress_arg, struct err *e)
{
    char *memory = mem_alloc_big(w->packed_bytes);
    if (!memory)
        return err_set(e, ERR_NOMEM, "out of memory: the packed weights need %zu MiB",
                       w->packed_bytes >> 20);
    w->data = w->memory = memory;
    struct turn_user turn = {0};
    for (int i = 0; i < w->n_packed; i++) {
        const struct weight *p = &w->packed[i];
        pack_matrix(p, memory, pool, &turn);
        gguf_let_go(g); /* or the process would hold the weights twice at the end */
        if (progress &&
            !progress(progress_arg, p->offset + packed_bytes(p->matrix), w->packed_bytes)) {
            weights_unpack(w);
            return err_set(e, ERR_CANCELED, "packing the weights was canceled");
        }
    }
    return 0;
}

void weights_unpack(struct weights *w)
{
    mem_free_big(w->memory, w->packed_bytes);
    w->data = w->memory = NULL;
}

void weights_attach(struct weights *w, const struct hparams *hp)
{
    for (int i = 0; i < w->n_packed; i++)
        w->packed[i].matrix->data = (const char *)w->data + w->packed[i].offset;
    for (int i = 0; i < w->n_layers; i++) {
        struct layer *l = &w->layers[i];
        if (l->gate_up.n_rows) {
            l->gate = packed_view(&l->gate_up, 0, hp->n_ff);
            l->up = packed_view(&l->gate_up, hp->n_ff, hp->n_ff);
        }
    }
}

void weights_release(struct weights *w)
{
    weights_unpack(w);
    if (w->mapping)
        munmap(w->mapping, w->mapping_bytes);
    free(w->layers);
    free(w->packed);
    arena_release(&w->floats);
    *w = (struct weights){0};
}
