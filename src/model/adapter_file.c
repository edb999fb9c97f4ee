/* adapter_file.c - names of weights, matrices of files, and GGUF adapters. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/adapter_private.h"

#define BIT(output) (1u << (output))

static const struct {
    const char *peft, *gguf;
    unsigned outputs;
} modules[] = {
    {"self_attn.q_proj", "attn_q", BIT(LORA_Q)},
    {"self_attn.k_proj", "attn_k", BIT(LORA_K)},
    {"self_attn.v_proj", "attn_v", BIT(LORA_V)},
    {"self_attn.qkv_proj", "attn_qkv", BIT(LORA_Q) | BIT(LORA_K) | BIT(LORA_V)},
    {"self_attn.o_proj", "attn_output", BIT(LORA_O)},
    {"mlp.gate_proj", "ffn_gate", BIT(LORA_GATE)},
    {"mlp.up_proj", "ffn_up", BIT(LORA_UP)},
    {"mlp.gate_up_proj", "ffn_up", BIT(LORA_GATE) | BIT(LORA_UP)}, /* where the weight is fused */
    {"mlp.down_proj", "ffn_down", BIT(LORA_DOWN)},
};

unsigned adapter_peft_outputs(struct str module)
{
    for (size_t i = 0; i < ARRAY_LEN(modules); i++)
        if (str_eqs(module, modules[i].peft))
            return modules[i].outputs;
    return 0;
}

unsigned adapter_gguf_outputs(const struct model *m, struct str module)
{
    bool fused = m->weights.layers[0].gate_up.n_rows != 0;
    for (size_t i = 0; i < ARRAY_LEN(modules); i++)
        if (str_eqs(module, modules[i].gguf) && (modules[i].outputs != BIT(LORA_UP) || !fused) &&
            (modules[i].outputs != (BIT(LORA_GATE) | BIT(LORA_UP)) || fused))
            return modules[i].outputs;
    return 0;
}

enum lora_input lora_input_of(enum lora_output out)
{
    static const enum lora_input inputs[LORA_OUTPUTS] = {
        [LORA_Q] = LORA_IN_QKV,    [LORA_K] = LORA_IN_QKV,    [LORA_V] = LORA_IN_QKV,
        [LORA_O] = LORA_IN_O,      [LORA_GATE] = LORA_IN_FFN, [LORA_UP] = LORA_IN_FFN,
        [LORA_DOWN] = LORA_IN_DOWN};
    return inputs[out];
}

int lora_n_cols(const struct hparams *hp, enum lora_input in)
{
    return in == LORA_IN_O ? hparams_q(hp) : in == LORA_IN_DOWN ? hp->n_ff : hp->n_embd;
}

int lora_n_rows(const struct hparams *hp, enum lora_output out)
{
    switch (out) {
    case LORA_Q:
        return hparams_q(hp);
    case LORA_K:
    case LORA_V:
        return hparams_kv(hp);
    case LORA_GATE:
    case LORA_UP:
        return hp->n_ff;
    default:
        return hp->n_embd;
    }
}

/* --- shapes -------------------------------------------------------------------------------------
 */

static int shape_of(const struct adapter_matrix *m, uint64_t *rows, uint64_t *cols, struct err *e)
{
    int n = m->safetensor ? m->safetensor->n_dims : m->gguf->n_dims;
    if (n != 2)
        return err_set(e, ERR_FORMAT, "expected a matrix, found %d dimensions", n);
    *rows = m->safetensor ? m->safetensor->dims[0] : m->gguf->dims[1];
    *cols = m->safetensor ? m->safetensor->dims[1] : m->gguf->dims[0];
    return 0;
}

/* One dimension of A or B against the model's. */
static int check_dim(uint64_t found, int wanted, const char *what, struct err *e)
{
    if (found == (uint64_t)wanted)
        return 0;
    return err_set(e, ERR_FORMAT,
                   "%s is %llu where this model has %d: the adapter was made for another base "
                   "model",
                   what, (unsigned long long)found, wanted);
}

static int check_shape(const struct adapter_parts *p, struct adapter_part *part, bool is_b,
                       const struct adapter_matrix *matrix, struct err *e)
{
    const struct hparams *hp = &p->model->hp;
    uint64_t rows = 0, cols = 0;
    int n_rows = 0, n_cols = 0;
    for (int i = 0; i < LORA_OUTPUTS; i++)
        if (part->outputs & BIT(i)) {
            n_rows += lora_n_rows(hp, (enum lora_output)i);
            n_cols = lora_n_cols(hp, lora_input_of((enum lora_output)i));
        }
    int rc = shape_of(matrix, &rows, &cols, e);
    if (!rc)
        rc = is_b ? check_dim(rows, n_rows, "its output width", e)
                  : check_dim(cols, n_cols, "its input width", e);
    if (rc)
        return rc;
    uint64_t rank = is_b ? cols : rows;
    if (rank < 1 || rank > ADAPTER_MAX_RANK)
        return err_set(e, rank ? ERR_LIMIT : ERR_FORMAT, "rank %llu is not supported (1 to %d are)",
                       (unsigned long long)rank, ADAPTER_MAX_RANK);
    if (part->rank && rank != (uint64_t)part->rank)
        return err_set(e, ERR_FORMAT, "rank %llu, but the matrix it belongs to has rank %d",
                       (unsigned long long)rank, part->rank);
    part->rank = (int)rank;
    return 0;
}

int adapter_add(struct adapter_parts *p, int layer, unsigned outputs, bool is_b,
                struct adapter_matrix matrix, struct str name, struct err *e)
{
    struct adapter_part *part = &p->parts[layer * LORA_OUTPUTS + __builtin_ctz(outputs)];
    if (part->outputs && part->outputs != outputs)
        return err_set(e, ERR_FORMAT, "%s changes the same weights as %.*s", part->name,
                       (int)name.n, name.p);
    if (!part->outputs)
        part->name = arena_strdup(&p->names, name);
    struct adapter_matrix *slot = is_b ? &part->b : &part->a;
    if (slot->safetensor || slot->gguf)
        return err_set(e, ERR_FORMAT, "%.*s changes the same weights as %s", (int)name.n, name.p,
                       part->name);
    part->layer = layer;
    part->outputs = outputs;
    part->scale = 1;
    *slot = matrix;
    int rc = check_shape(p, part, is_b, &matrix, e);
    return rc ? err_prefix(e, rc, "tensor %.*s", (int)name.n, name.p) : 0;
}

/* --- GGUF ---------------------------------------------------------------------------------------
 */

/* "blk.7.attn_q.weight.lora_a" */
static int add_gguf_tensor(struct adapter_parts *p, const struct gguf_tensor *t, float alpha,
                           struct err *e)
{
    static const char head[] = "blk.", tails[2][16] = {".weight.lora_a", ".weight.lora_b"};
    struct str rest = t->name;
    size_t tail = sizeof ".weight.lora_a" - 1;
    uint64_t layer;
    int is_b = -1;
    for (int i = 0; i < 2; i++)
        if (rest.n > tail && !memcmp(rest.p + rest.n - tail, tails[i], tail))
            is_b = i;
    const char *dot = str_starts(rest, head) ? memchr(rest.p + 4, '.', rest.n - 4) : NULL;
    if (is_b < 0 || !dot ||
        !str_to_u64((struct str){rest.p + 4, (size_t)(dot - rest.p - 4)}, &layer))
        return err_set(e, ERR_UNSUPPORTED,
                       "tensor %.*s: only blk.N.<weight>.weight.lora_a and lora_b are supported",
                       (int)rest.n, rest.p);
    if (layer >= (uint64_t)p->model->hp.n_layers)
        return err_set(e, ERR_FORMAT, "tensor %.*s: this model has %d layers", (int)rest.n, rest.p,
                       p->model->hp.n_layers);
    const char *end = rest.p + rest.n - tail;
    struct str module = {dot + 1, end > dot + 1 ? (size_t)(end - dot - 1) : 0};
    unsigned outputs = adapter_gguf_outputs(p->model, module);
    if (!outputs)
        return err_set(e, ERR_UNSUPPORTED,
                       "tensor %.*s: \"%.*s\" is no weight that an adapter can change here",
                       (int)rest.n, rest.p, (int)module.n, module.p);
    int rc =
        adapter_add(p, (int)layer, outputs, is_b, (struct adapter_matrix){.gguf = t}, t->name, e);
    if (rc)
        return rc;
    struct adapter_part *part = &p->parts[(int)layer * LORA_OUTPUTS + __builtin_ctz(outputs)];
    part->scale = alpha != 0 ? alpha / (float)part->rank : 1; /* as llama.cpp has it */
    return 0;
}

static int expect_str(const struct gguf *g, const char *key, const char *value, struct err *e)
{
    struct str s;
    int rc = gguf_get_str(g, key, &s, e);
    if (rc || str_eqs(s, value))
        return rc;
    return err_set(e, ERR_FORMAT, "%s is \"%.*s\", expected \"%s\"", key,
                   (int)(s.n < 64 ? s.n : 64), s.p, value);
}

/* The tokens that activate the adapter, if there are any. */
static int read_invocation(struct adapter_info *info, const struct gguf *g, int n_vocab,
                           struct err *e)
{
    static const char key[] = "adapter.alora.invocation_tokens";
    struct gguf_arr ids;
    if (!gguf_has_arr(g, key))
        return 0;
    int rc = gguf_get_arr(g, key, GGUF_U32, &ids, e);
    if (rc)
        return rc;
    if (ids.n > ADAPTER_MAX_INVOCATION)
        return err_set(e, ERR_LIMIT, "%s has more than %d ids", key, ADAPTER_MAX_INVOCATION);
    for (size_t i = 0; i < ids.n; i++) {
        uint32_t id;
        memcpy(&id, (const char *)ids.data + i * sizeof id, sizeof id);
        if (id >= (uint32_t)n_vocab)
            return err_set(e, ERR_FORMAT, "%s: this model has ids 0 to %d", key, n_vocab - 1);
        info->invocation[i] = (int32_t)id;
    }
    info->n_invocation = (int)ids.n;
    return 0;
}

int adapter_read_gguf(struct adapter_parts *p, const struct gguf *g, struct adapter_info *info,
                      struct err *e)
{
    float alpha = 0;
    int rc = expect_str(g, "general.type", "adapter", e);
    if (!rc)
        rc = expect_str(g, "adapter.type", "lora", e);
    if (!rc)
        rc = expect_str(g, "general.architecture", p->model->arch->name, e);
    if (!rc)
        rc = gguf_get_f32(g, "adapter.lora.alpha", &alpha, e);
    if (!rc)
        rc = read_invocation(info, g, p->model->hp.n_vocab, e);
    for (size_t i = 0; i < gguf_n_tensors(g) && !rc; i++)
        rc = add_gguf_tensor(p, gguf_tensor_at(g, i), alpha, e);
    struct str base = gguf_str(g, "general.base_model.0.name", "");
    snprintf(info->base_model, sizeof info->base_model, "%.*s", (int)(base.n < 255 ? base.n : 255),
             base.p);
    info->format = "gguf";
    return rc;
}
