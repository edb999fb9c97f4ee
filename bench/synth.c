#include "synth.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/mem.h"
#include "synth_private.h"

/* -- Shapes: the published configurations
 * ---------------------------------------------------------- */

enum {
    TIED = 1,  /* no output.weight: the embedding serves */
    FUSED = 2, /* attn_qkv in one tensor, gate and up in ffn_up */
    QKV_BIAS = 4,
    QK_NORM = 8,
    ROPE_FREQS = 16, /* llama3's frequency factors */
    LONGROPE = 32,   /* phi3's factors for long and short context */
};

struct shape {
    const char *name, *arch;
    uint32_t n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim, n_vocab;
    uint32_t context, original_context, window; /* the last two: 0 where there is no such key */
    float rope_base, epsilon;
    unsigned flags;
    enum synth_vocab_kind vocab;
};

static const struct shape shapes[] = {
    {"phi3-mini", "phi3", 32, 3072, 8192, 32, 32, 96, 32064, 4096, 4096, 2047, 1e4f, 1e-5f, FUSED,
     VOCAB_PHI3},
    {"llama3.1-8b", "llama", 32, 4096, 14336, 32, 8, 128, 128256, 131072, 0, 0, 5e5f, 1e-5f,
     ROPE_FREQS, VOCAB_LLAMA3},
    {"mistral-7b", "llama", 32, 4096, 14336, 32, 8, 128, 32768, 32768, 0, 0, 1e6f, 1e-5f, 0,
     VOCAB_MISTRAL},
    {"smollm2-135m", "llama", 30, 576, 1536, 9, 3, 64, 49152, 8192, 0, 0, 1e5f, 1e-5f, TIED,
     VOCAB_SMOLLM},
    {"qwen2.5-0.5b", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, 32768, 0, 0, 1e6f, 1e-6f,
     TIED | QKV_BIAS, VOCAB_QWEN},
    {"qwen3-0.6b", "qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 40960, 0, 0, 1e6f, 1e-6f,
     TIED | QK_NORM, VOCAB_QWEN},
    {"tiny-llama", "llama", 3, 256, 512, 4, 2, 64, 512, 2048, 0, 0, 5e5f, 1e-5f, ROPE_FREQS,
     VOCAB_LLAMA3},
    {"tiny-phi3", "phi3", 3, 256, 512, 4, 4, 64, 512, 2048, 256, 192, 1e4f, 1e-5f, FUSED | LONGROPE,
     VOCAB_PHI3},
    {"tiny-qwen2", "qwen2", 3, 256, 512, 4, 2, 64, 512, 2048, 0, 0, 1e6f, 1e-6f, TIED | QKV_BIAS,
     VOCAB_QWEN},
    {"tiny-qwen3", "qwen3", 3, 256, 512, 4, 2, 128, 512, 2048, 0, 0, 1e6f, 1e-6f, TIED | QK_NORM,
     VOCAB_QWEN},
};

/* -- Types: which tensor gets which, as llama.cpp's quantiser decides
 * ------------------------------ */

enum when { NEVER, MORE_BITS, FIRST_TWO, FIRST_EIGHTH, FIRST_SIXTEENTH, WIDE_GROUPS };

/* `usual`, but `better` in the layers (or models) that `when` picks. */
struct choice {
    enum ttype usual, better;
    enum when when;
};

struct mix {
    const char *name;
    uint32_t file_type; /* general.file_type */
    enum ttype base, output, qkv, attn_output;
    struct choice attn_v, ffn_down;
};

#define ALL(t)                                                                                     \
    TTYPE_##t, TTYPE_##t, TTYPE_##t, TTYPE_##t, {TTYPE_##t},                                       \
    {                                                                                              \
        TTYPE_##t                                                                                  \
    }
#define SIMPLE(t)                                                                                  \
    TTYPE_##t, TTYPE_Q6_K, TTYPE_##t, TTYPE_##t, {TTYPE_##t},                                      \
    {                                                                                              \
        TTYPE_##t                                                                                  \
    }
#define CHOICE(u, b, w)                                                                            \
    {                                                                                              \
        TTYPE_##u, TTYPE_##b, w                                                                    \
    }
static const struct mix mixes[] = {
    {"f32", 0, ALL(F32)},
    {"f16", 1, ALL(F16)},
    {"bf16", 32, ALL(BF16)},
    {"q8_0", 7, ALL(Q8_0)},
    {"q4_0", 2, SIMPLE(Q4_0)},
    {"q4_1", 3, SIMPLE(Q4_1)},
    {"q5_0", 8, SIMPLE(Q5_0)},
    {"q5_1", 9, SIMPLE(Q5_1)},
    {"q6_k", 18, SIMPLE(Q6_K)},
    {"q2_k",
     10,
     TTYPE_Q2_K,
     TTYPE_Q6_K,
     TTYPE_Q2_K,
     TTYPE_Q3_K,
     CHOICE(Q3_K, Q4_K, WIDE_GROUPS),
     {TTYPE_Q3_K}},
    {"q3_k_m", 12, TTYPE_Q3_K, TTYPE_Q6_K, TTYPE_Q4_K, TTYPE_Q4_K, CHOICE(Q4_K, Q5_K, FIRST_TWO),
     CHOICE(Q4_K, Q5_K, FIRST_SIXTEENTH)},
    {"q4_k_m", 15, TTYPE_Q4_K, TTYPE_Q6_K, TTYPE_Q5_K, TTYPE_Q4_K, CHOICE(Q4_K, Q6_K, MORE_BITS),
     CHOICE(Q4_K, Q6_K, MORE_BITS)},
    {"q5_k_m", 17, TTYPE_Q5_K, TTYPE_Q6_K, TTYPE_Q6_K, TTYPE_Q5_K, CHOICE(Q5_K, Q6_K, MORE_BITS),
     CHOICE(Q5_K, Q6_K, MORE_BITS)},
    {"iq4_nl", 25, TTYPE_IQ4_NL, TTYPE_Q6_K, TTYPE_IQ4_NL, TTYPE_IQ4_NL,
     CHOICE(IQ4_NL, Q5_K, WIDE_GROUPS), CHOICE(IQ4_NL, Q5_K, FIRST_EIGHTH)},
    {"iq4_xs", 30, TTYPE_IQ4_XS, TTYPE_Q6_K, TTYPE_IQ4_XS, TTYPE_IQ4_XS,
     CHOICE(IQ4_XS, Q5_K, WIDE_GROUPS), CHOICE(IQ4_XS, Q5_K, FIRST_EIGHTH)},
};

const char *synth_arch(size_t i)
{
    return i < ARRAY_LEN(shapes) ? shapes[i].name : NULL;
}

const char *synth_quant(size_t i)
{
    return i < ARRAY_LEN(mixes) ? mixes[i].name : NULL;
}

static enum ttype choose(const struct choice *c, const struct shape *s, uint32_t layer)
{
    uint32_t n = s->n_layers;
    bool better = false;
    switch (c->when) {
    case NEVER:
        break;
    case MORE_BITS: /* the first and last eighth and every third between */
        better = layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
        break;
    case FIRST_TWO:
        better = layer < 2;
        break;
    case FIRST_EIGHTH:
        better = layer < n / 8;
        break;
    case FIRST_SIXTEENTH:
        better = layer < n / 16;
        break;
    case WIDE_GROUPS: /* four query heads or more share one of keys and values */
        better = s->n_heads / s->n_kv_heads >= 4;
        break;
    }
    return better ? c->better : c->usual;
}

/* What stands in for a type of 256-number blocks in rows that these do not divide. */
static enum ttype fitting(enum ttype type, uint64_t row)
{
    if (row % ttype_info(type)->block_elems == 0)
        return type;
    switch (type) {
    case TTYPE_Q4_K:
        return TTYPE_Q5_0;
    case TTYPE_Q5_K:
        return TTYPE_Q5_1;
    case TTYPE_Q6_K:
        return TTYPE_Q8_0;
    default:
        return TTYPE_IQ4_NL;
    }
}

/* -- Tensors
 * --------------------------------------------------------------------------------------- */

struct tensor {
    char name[64];
    enum ttype type;
    int n_dims;
    uint64_t dims[2];
    float mean, deviation; /* mean is 0 but for F32 vectors */
    const float *values;   /* instead of random ones, for vectors */
};

struct plan {
    const struct shape *shape;
    const struct mix *mix;
    struct gguf_writer *writer;
    struct tensor *tensors;
    size_t n, cap;
    float factors[3][128]; /* rope_freqs; rope_factors_long, rope_factors_short */
};

static struct tensor *next_tensor(struct plan *p)
{
    if (p->n == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 64;
        p->tensors = xrealloc(p->tensors, p->cap * sizeof *p->tensors);
    }
    p->tensors[p->n] = (struct tensor){0};
    return &p->tensors[p->n++];
}

/* Name of a tensor of a layer ("blk.3.attn_q.weight") or, with layer -1, of the model. */
static void set_name(struct tensor *t, int layer, const char *what)
{
    if (layer < 0)
        snprintf(t->name, sizeof t->name, "%s", what);
    else
        snprintf(t->name, sizeof t->name, "blk.%d.%s", layer, what);
}

/* Rows of n_in numbers with deviation gain / sqrt(n_in): unit input gives output of size gain. */
static void matrix(struct plan *p, int layer, const char *what, enum ttype type, uint64_t n_in,
                   uint64_t n_out, float gain)
{
    struct tensor *t = next_tensor(p);
    set_name(t, layer, what);
    t->type = fitting(type, n_in);
    t->n_dims = 2;
    t->dims[0] = n_in;
    t->dims[1] = n_out;
    t->deviation = gain / sqrtf((float)n_in);
}

static void vector(struct plan *p, int layer, const char *what, uint64_t n, float mean)
{
    struct tensor *t = next_tensor(p);
    set_name(t, layer, what);
    t->type = TTYPE_F32;
    t->n_dims = 1;
    t->dims[0] = n;
    t->mean = mean;
    t->deviation = 0.1f;
}

static void constants(struct plan *p, const char *what, const float *values, uint64_t n)
{
    vector(p, -1, what, n, 0);
    p->tensors[p->n - 1].values = values;
}

static void plan_attention(struct plan *p, int layer)
{
    const struct shape *s = p->shape;
    const struct mix *m = p->mix;
    uint64_t n_q = (uint64_t)s->n_heads * s->head_dim, n_kv = (uint64_t)s->n_kv_heads * s->head_dim;
    /* scores of deviation 2.5 pick few tokens of the context; smaller ones would average it away */
    const float sharp = 1.6f;
    vector(p, layer, "attn_norm.weight", s->n_embd, 1);
    if (s->flags & FUSED) {
        matrix(p, layer, "attn_qkv.weight", m->qkv, s->n_embd, n_q + 2 * n_kv, sharp);
    } else {
        matrix(p, layer, "attn_q.weight", m->base, s->n_embd, n_q, sharp);
        matrix(p, layer, "attn_k.weight", m->base, s->n_embd, n_kv, sharp);
        matrix(p, layer, "attn_v.weight", choose(&m->attn_v, s, (uint32_t)layer), s->n_embd, n_kv,
               1);
    }
    if (s->flags & QKV_BIAS) {
        vector(p, layer, "attn_q.bias", n_q, 0);
        vector(p, layer, "attn_k.bias", n_kv, 0);
        vector(p, layer, "attn_v.bias", n_kv, 0);
    }
    if (s->flags & QK_NORM) {
        vector(p, layer, "attn_q_norm.weight", s->head_dim, sharp);
        vector(p, layer, "attn_k_norm.weight", s->head_dim, sharp);
    }
    matrix(p, layer, "attn_output.weight", m->attn_output, n_q, s->n_embd, 1.5f);
}

static void plan_layer(struct plan *p, int layer)
{
    const struct shape *s = p->shape;
    const struct mix *m = p->mix;
    plan_attention(p, layer);
    vector(p, layer, "ffn_norm.weight", s->n_embd, 1);
    if (!(s->flags & FUSED))
        matrix(p, layer, "ffn_gate.weight", m->base, s->n_embd, s->n_ff, 1);
    matrix(p, layer, "ffn_up.weight", m->base, s->n_embd, s->flags & FUSED ? 2 * s->n_ff : s->n_ff,
           1);
    matrix(p, layer, "ffn_down.weight", choose(&m->ffn_down, s, (uint32_t)layer), s->n_ff,
           s->n_embd, 2);
}

/* Llama 3.1's published rule: low frequencies 8 times slower, high ones as they are, a ramp
 * between. */
static void llama3_factors(const struct shape *s, float *out)
{
    const double factor = 8, low = 1, high = 4, original = 8192, pi = 3.14159265358979;
    for (uint32_t i = 0; i < s->head_dim / 2; i++) {
        double length = 2 * pi * pow((double)s->rope_base, 2.0 * i / s->head_dim);
        double smooth = (original / length - low) / (high - low);
        smooth = fmin(fmax(smooth, 0), 1);
        out[i] = (float)(1 / ((1 - smooth) / factor + smooth));
    }
}

static void plan_rope(struct plan *p)
{
    const struct shape *s = p->shape;
    uint32_t n = s->head_dim / 2;
    if (s->flags & ROPE_FREQS) {
        llama3_factors(s, p->factors[0]);
        constants(p, "rope_freqs.weight", p->factors[0], n);
    }
    if (s->flags & LONGROPE) {
        for (uint32_t i = 0; i < n; i++) { /* growing, as the published ones do */
            p->factors[1][i] = 1.05f + 7.0f * (float)i / (float)n;
            p->factors[2][i] = 1.0f + 0.5f * (float)i / (float)n;
        }
        constants(p, "rope_factors_long.weight", p->factors[1], n);
        constants(p, "rope_factors_short.weight", p->factors[2], n);
    }
}

static void plan_tensors(struct plan *p)
{
    const struct shape *s = p->shape;
    bool tied = s->flags & TIED;
    /* the stream begins at size 1; a tied embedding is also the output, whose logits it sizes */
    matrix(p, -1, "token_embd.weight", tied ? p->mix->output : p->mix->base, s->n_embd, s->n_vocab,
           tied ? 3 : sqrtf((float)s->n_embd));
    plan_rope(p);
    for (uint32_t i = 0; i < s->n_layers; i++)
        plan_layer(p, (int)i);
    vector(p, -1, "output_norm.weight", s->n_embd, 1);
    if (!tied)
        matrix(p, -1, "output.weight", p->mix->output, s->n_embd, s->n_vocab, 3);
    for (size_t i = 0; i < p->n; i++)
        gguf_writer_tensor(p->writer, p->tensors[i].name, p->tensors[i].type, p->tensors[i].n_dims,
                           p->tensors[i].dims);
}

static int write_vector(struct plan *p, const struct tensor *t, uint64_t seed, struct err *e)
{
    struct rng r;
    rng_seed(&r, seed);
    float x[512];
    for (uint64_t at = 0; at < t->dims[0]; at += ARRAY_LEN(x)) {
        uint64_t n = t->dims[0] - at < ARRAY_LEN(x) ? t->dims[0] - at : ARRAY_LEN(x);
        for (uint64_t i = 0; i < n; i++)
            x[i] = t->values ? t->values[at + i] : t->mean + t->deviation * rng_normal(&r);
        int rc = gguf_writer_data(p->writer, x, n * sizeof *x, e);
        if (rc)
            return rc;
    }
    return 0;
}

static int write_matrix(struct plan *p, const struct tensor *t, uint64_t seed, struct err *e)
{
    enum { CHUNK = 1 << 18 };
    static_assert(CHUNK % 256 == 0, "whole blocks");
    struct synth_source *source = synth_source_new(t->type, t->deviation, seed);
    void *chunk = xmalloc(ttype_row_bytes(t->type, CHUNK));
    int rc = 0;
    for (uint64_t left = t->dims[0] * t->dims[1]; left && !rc;) {
        size_t n = left < CHUNK ? (size_t)left : CHUNK;
        synth_source_fill(source, chunk, n);
        rc = gguf_writer_data(p->writer, chunk, ttype_row_bytes(t->type, n), e);
        left -= n;
    }
    free(chunk);
    synth_source_free(source);
    return rc;
}

/* -- Metadata
 * -------------------------------------------------------------------------------------- */

static void arch_u32(struct plan *p, const char *what, uint32_t v)
{
    char key[64];
    snprintf(key, sizeof key, "%s.%s", p->shape->arch, what);
    gguf_writer_u32(p->writer, key, v);
}

static void arch_f32(struct plan *p, const char *what, float v)
{
    char key[64];
    snprintf(key, sizeof key, "%s.%s", p->shape->arch, what);
    gguf_writer_f32(p->writer, key, v);
}

static void add_metadata(struct plan *p)
{
    const struct shape *s = p->shape;
    struct gguf_writer *w = p->writer;
    gguf_writer_str(w, "general.architecture", str_of(s->arch));
    gguf_writer_str(w, "general.type", STR("model"));
    char name[64];
    snprintf(name, sizeof name, "synthetic %s", s->name);
    gguf_writer_str(w, "general.name", str_of(name));
    gguf_writer_u32(w, "general.file_type", p->mix->file_type);
    gguf_writer_u32(w, "general.quantization_version", 2);
    arch_u32(p, "block_count", s->n_layers);
    arch_u32(p, "context_length", s->context);
    arch_u32(p, "embedding_length", s->n_embd);
    arch_u32(p, "feed_forward_length", s->n_ff);
    arch_u32(p, "attention.head_count", s->n_heads);
    arch_u32(p, "attention.head_count_kv", s->n_kv_heads);
    arch_f32(p, "attention.layer_norm_rms_epsilon", s->epsilon);
    arch_f32(p, "rope.freq_base", s->rope_base);
    arch_u32(p, "vocab_size", s->n_vocab);
    if (s->head_dim * s->n_heads != s->n_embd) {
        arch_u32(p, "attention.key_length", s->head_dim);
        arch_u32(p, "attention.value_length", s->head_dim);
    }
    if (strncmp(s->arch, "qwen", 4) != 0)
        arch_u32(p, "rope.dimension_count", s->head_dim);
    if (s->original_context)
        arch_u32(p, "rope.scaling.original_context_length", s->original_context);
    if (s->window)
        arch_u32(p, "attention.sliding_window", s->window);
    if (s->flags & LONGROPE) {
        double scale = (double)s->context / s->original_context;
        arch_f32(p, "rope.scaling.attn_factor",
                 (float)sqrt(1 + log(scale) / log((double)s->original_context)));
    }
}

static int write_file(struct plan *p, uint64_t seed, struct err *e)
{
    add_metadata(p);
    synth_add_vocab(p->writer, p->shape->vocab, p->shape->n_vocab, seed);
    plan_tensors(p);
    int rc = 0;
    for (size_t i = 0; i < p->n && !rc; i++) {
        const struct tensor *t = &p->tensors[i];
        uint64_t own = XXH3_64bits_withSeed(t->name, strlen(t->name), seed);
        rc = t->n_dims == 1 ? write_vector(p, t, own, e) : write_matrix(p, t, own, e);
    }
    return rc ? rc : gguf_writer_finish(p->writer, e);
}

int synth_write(const char *arch, const char *quant, const char *path,
                const struct synth_options *options, struct err *e)
{
    struct plan p = {0};
    struct shape shape = {0};
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        if (strcmp(shapes[i].name, arch) == 0)
            shape = shapes[i];
    for (size_t i = 0; i < ARRAY_LEN(mixes); i++)
        if (strcmp(mixes[i].name, quant) == 0)
            p.mix = &mixes[i];
    if (!shape.name)
        return err_param(e, ERR_INVALID, "arch", "there is no model shape %s", arch);
    if (!p.mix)
        return err_param(e, ERR_INVALID, "quant", "there is no mix of tensor types %s", quant);
    if (options && options->n_layers)
        shape.n_layers = options->n_layers;
    p.shape = &shape;
    int rc = gguf_writer_open(&p.writer, path, e);
    if (!rc)
        rc = write_file(&p, options ? options->seed : 0, e);
    gguf_writer_close(p.writer);
    free(p.tensors);
    return rc;
}
