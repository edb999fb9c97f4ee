#include "model/hparams.h"

#include <stddef.h>
#include <stdio.h>

#include "base/mem.h"
#include "kernels/kernels.h"

enum { KEY_MAX = 128 };

/* What the key is when the file does not have it. */
enum absent { REQUIRED, ZERO, FROM_HEADS, FROM_HEAD_DIM };

struct int_key {
    const char *name;
    size_t offset;
    int min, max;
    enum absent absent;
};

#define FIELD(f) offsetof(struct hparams, f)

/* In the order in which defaults depend on each other. The limits are far above any known model and
 * small enough that products of two of them fit in 63 bits. */
static const struct int_key int_keys[] = {
    {"block_count", FIELD(n_layers), 1, 1024, REQUIRED},
    {"context_length", FIELD(n_ctx_train), 1, 1 << 24, REQUIRED},
    {"embedding_length", FIELD(n_embd), 1, 1 << 16, REQUIRED},
    {"feed_forward_length", FIELD(n_ff), 1, 1 << 18, REQUIRED},
    {"attention.head_count", FIELD(n_heads), 1, 1024, REQUIRED},
    {"attention.head_count_kv", FIELD(n_kv_heads), 1, 1024, FROM_HEADS},
    {"attention.key_length", FIELD(head_dim), 1, KERNEL_MAX_HEAD_DIM, FROM_HEADS},
    {"rope.dimension_count", FIELD(n_rot), 2, KERNEL_MAX_HEAD_DIM, FROM_HEAD_DIM},
    {"attention.sliding_window", FIELD(window), 0, 1 << 24, ZERO},
    {"rope.scaling.original_context_length", FIELD(rope_ctx_orig), 0, 1 << 24, ZERO},
};

static const char *key_of(char out[KEY_MAX], const char *arch, const char *name)
{
    snprintf(out, KEY_MAX, "%s.%s", arch, name);
    return out;
}

static int absent_value(const struct hparams *hp, const struct int_key *k)
{
    switch (k->absent) {
    case FROM_HEADS:
        return k->offset == FIELD(head_dim) ? hp->n_embd / hp->n_heads : hp->n_heads;
    case FROM_HEAD_DIM:
        return hp->head_dim;
    default:
        return 0;
    }
}

static int read_ints(struct hparams *hp, const struct gguf *g, const char *arch, struct err *e)
{
    char key[KEY_MAX];
    for (size_t i = 0; i < ARRAY_LEN(int_keys); i++) {
        const struct int_key *k = &int_keys[i];
        int *field = (int *)((char *)hp + k->offset);
        key_of(key, arch, k->name);
        if (gguf_has_arr(g, key))
            return err_set(e, ERR_UNSUPPORTED, "%s: a value per layer is not supported", key);
        if (!gguf_has(g, key) && k->absent != REQUIRED) {
            *field = absent_value(hp, k);
            continue;
        }
        uint32_t v;
        int rc = gguf_get_u32(g, key, &v, e);
        if (rc)
            return rc;
        if (v > INT32_MAX || (int)v < k->min || (int)v > k->max)
            return err_set(e, ERR_FORMAT, "%s is %u, expected %d to %d", key, v, k->min, k->max);
        *field = (int)v;
    }
    return 0;
}

/* Features of these architectures that would change the numbers and that we do not compute. */
static int refuse_unsupported(const struct gguf *g, const char *arch, struct err *e)
{
    static const char *const must_be_zero[] = {"expert_count", "expert_used_count",
                                               "leading_dense_block_count"};
    char key[KEY_MAX];
    for (size_t i = 0; i < ARRAY_LEN(must_be_zero); i++) {
        uint32_t v = gguf_u32(g, key_of(key, arch, must_be_zero[i]), 0);
        if (v)
            return err_set(e, ERR_UNSUPPORTED, "%s is %u: mixtures of experts are not supported",
                           key, v);
    }
    if (!gguf_bool(g, key_of(key, arch, "attention.causal"), true))
        return err_set(e, ERR_UNSUPPORTED, "%s is false: only causal attention is supported", key);
    return 0;
}

static int check_heads(const struct hparams *hp, const struct gguf *g, const char *arch,
                       struct err *e)
{
    char key[KEY_MAX];
    key_of(key, arch, "attention.head_count_kv");
    if (hp->n_heads % hp->n_kv_heads)
        return err_set(e, ERR_FORMAT, "%s is %d, which does not divide the %d query heads", key,
                       hp->n_kv_heads, hp->n_heads);
    key_of(key, arch, "attention.key_length");
    if (!gguf_has(g, key) && hp->n_embd % hp->n_heads)
        return err_set(e, ERR_FORMAT, "%s is missing and %d heads do not divide the width %d", key,
                       hp->n_heads, hp->n_embd);
    if (hp->head_dim % 16 || hp->head_dim > KERNEL_MAX_HEAD_DIM || hp->head_dim < 16)
        return err_set(e, ERR_UNSUPPORTED,
                       "a head dimension of %d is not supported (a multiple of "
                       "16 up to %d is)",
                       hp->head_dim, KERNEL_MAX_HEAD_DIM);
    key_of(key, arch, "attention.value_length");
    if (gguf_u32(g, key, (uint32_t)hp->head_dim) != (uint32_t)hp->head_dim)
        return err_set(e, ERR_UNSUPPORTED, "%s differs from the key length %d: not supported", key,
                       hp->head_dim);
    key_of(key, arch, "rope.dimension_count");
    if (hp->n_rot > hp->head_dim || hp->n_rot % 2)
        return err_set(e, ERR_FORMAT, "%s is %d, expected an even number up to %d", key, hp->n_rot,
                       hp->head_dim);
    return 0;
}

static int read_rope(struct hparams *hp, const struct gguf *g, const char *arch, struct err *e)
{
    static const struct {
        const char *name;
        enum rope_scaling scaling;
    } types[] = {{"none", ROPE_PLAIN},
                 {"linear", ROPE_LINEAR},
                 {"yarn", ROPE_YARN},
                 {"longrope", ROPE_LONG},
                 {"su", ROPE_LONG}};
    char key[KEY_MAX];
    hp->rope_base = gguf_f32(g, key_of(key, arch, "rope.freq_base"), 10000.0f);
    if (!(hp->rope_base >= 1))
        return err_set(e, ERR_FORMAT, "%s is %g, expected at least 1", key, hp->rope_base);

    /* Before scaling types existed, a factor alone meant linear scaling. */
    hp->rope_factor = gguf_f32(g, key_of(key, arch, "rope.scale_linear"), 1.0f);
    hp->rope_factor = gguf_f32(g, key_of(key, arch, "rope.scaling.factor"), hp->rope_factor);
    if (!(hp->rope_factor >= 1e-3f && hp->rope_factor <= 1e6f))
        return err_set(e, ERR_FORMAT, "%s is %g, expected a positive factor", key, hp->rope_factor);
    hp->rope_attn_factor = gguf_f32(g, key_of(key, arch, "rope.scaling.attn_factor"), 0.0f);

    const char *fallback = hp->rope_factor != 1 ? "linear" : "none";
    struct str type = gguf_str(g, key_of(key, arch, "rope.scaling.type"), fallback);
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        if (str_eqs(type, types[i].name)) {
            hp->rope_scaling = types[i].scaling;
            if (hp->rope_scaling == ROPE_YARN && !hp->rope_ctx_orig)
                return err_set(e, ERR_FORMAT,
                               "%s.rope.scaling.original_context_length is missing: "
                               "yarn scaling needs it",
                               arch);
            return 0;
        }
    }
    return err_set(e, ERR_UNSUPPORTED,
                   "%s \"%.*s\" is not supported (none, linear, yarn and "
                   "longrope are)",
                   key, (int)(type.n < 32 ? type.n : 32), type.p);
}

int hparams_read(struct hparams *hp, const struct gguf *g, const char *arch, struct err *e)
{
    *hp = (struct hparams){0};
    char key[KEY_MAX];
    int rc = read_ints(hp, g, arch, e);
    if (!rc)
        rc = refuse_unsupported(g, arch, e);
    if (!rc)
        rc = check_heads(hp, g, arch, e);
    if (!rc)
        rc = read_rope(hp, g, arch, e);
    if (!rc)
        rc = gguf_get_f32(g, key_of(key, arch, "attention.layer_norm_rms_epsilon"), &hp->norm_eps,
                          e);
    if (rc)
        return rc;
    if (!(hp->norm_eps >= 0 && hp->norm_eps < 1))
        return err_set(e, ERR_FORMAT, "%s is %g, expected 0 to 1", key, hp->norm_eps);
    return 0;
}
