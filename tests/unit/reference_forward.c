#include "reference_forward.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

struct ref {
    const struct gguf *g;
    char arch[16];
    int layers, embd, ff, heads, kv_heads, dim, rot, vocab, window, n;
    double eps;
    double *freq, attn_factor;
};

static int key_int(const struct ref *r, const char *name, int fallback)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", r->arch, name);
    return (int)gguf_u32(r->g, key, (uint32_t)fallback);
}

static double key_float(const struct ref *r, const char *name, double fallback)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", r->arch, name);
    return gguf_f32(r->g, key, (float)fallback);
}

/* A tensor's numbers, NULL if the file has none of that name. The caller frees them. */
static double *load(const struct ref *r, const char *name)
{
    const struct gguf_tensor *t = gguf_find(r->g, name);
    if (!t)
        return NULL;
    size_t n = t->dims[0] * t->dims[1];
    float *f = xcalloc(n, sizeof *f);
    double *d = xcalloc(n, sizeof *d);
    ttype_info(t->type)->decode(t->data, n, f);
    for (size_t i = 0; i < n; i++)
        d[i] = f[i];
    free(f);
    return d;
}

static double *load_layer(const struct ref *r, int layer, const char *name)
{
    char full[128];
    snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    return load(r, full);
}

/* y[t][rows] = W[rows][cols] x[t][cols] + b */
static double *linear(const struct ref *r, const double *w, const double *b, const double *x,
                      int rows, int cols)
{
    double *y = xcalloc((size_t)r->n * (size_t)rows, sizeof *y);
    for (int t = 0; t < r->n; t++)
        for (int o = 0; o < rows; o++) {
            double sum = b ? b[o] : 0;
            for (int c = 0; c < cols; c++)
                sum += w[(size_t)o * (size_t)cols + (size_t)c] *
                       x[(size_t)t * (size_t)cols + (size_t)c];
            y[(size_t)t * (size_t)rows + (size_t)o] = sum;
        }
    return y;
}

static void rms_norm(const double *x, const double *w, int n, double eps, double *y)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i] * x[i];
    double scale = 1 / sqrt(sum / n + eps);
    for (int i = 0; i < n; i++)
        y[i] = x[i] * scale * w[i];
}

static double *norm_rows(const struct ref *r, const double *x, const double *w)
{
    double *y = xcalloc((size_t)r->n * (size_t)r->embd, sizeof *y);
    for (int t = 0; t < r->n; t++)
        rms_norm(x + t * r->embd, w, r->embd, r->eps, y + t * r->embd);
    return y;
}

static void read_rope(struct ref *r, int n_ctx)
{
    int half = r->rot / 2, train = key_int(r, "context_length", 0);
    int orig = key_int(r, "rope.scaling.original_context_length", train);
    double base = key_float(r, "rope.freq_base", 10000);
    const char *name = "rope_freqs.weight";
    r->attn_factor = 1;
    if (gguf_find(r->g, "rope_factors_long.weight")) {
        name = (n_ctx ? n_ctx : train) > orig ? "rope_factors_long.weight"
                                              : "rope_factors_short.weight";
        double stretch = (double)train / orig;
        r->attn_factor = key_float(r, "rope.scaling.attn_factor",
                                   stretch > 1 ? sqrt(1 + log(stretch) / log(orig)) : 1);
    }
    double *factors = load(r, name);
    r->freq = xcalloc((size_t)half, sizeof *r->freq);
    for (int i = 0; i < half; i++)
        r->freq[i] = 1 / pow(base, 2.0 * i / r->rot) / (factors ? factors[i] : 1);
    free(factors);
}

static void turn(const struct ref *r, double *head, int pos)
{
    int half = r->rot / 2;
    bool neighbours = !strcmp(r->arch, "llama");
    for (int i = 0; i < half; i++) {
        int a = neighbours ? 2 * i : i, b = neighbours ? 2 * i + 1 : i + half;
        double c = cos(pos * r->freq[i]) * r->attn_factor;
        double s = sin(pos * r->freq[i]) * r->attn_factor;
        double x = head[a], y = head[b];
        head[a] = x * c - y * s;
        head[b] = x * s + y * c;
    }
}

/* q: norm (Qwen3) and rope on n_heads heads of each token, in place. */
static void prepare(const struct ref *r, double *q, int n_heads, int stride, const double *norm)
{
    for (int t = 0; t < r->n; t++)
        for (int h = 0; h < n_heads; h++) {
            double *head = q + t * stride + h * r->dim;
            if (norm)
                rms_norm(head, norm, r->dim, r->eps, head);
            turn(r, head, t);
        }
}

static void attend(const struct ref *r, const double *q, const double *k, const double *v,
                   int stride_q, int stride_kv, int t, int h, double *out)
{
    int kv_head = h / (r->heads / r->kv_heads);
    int first = r->window && t >= r->window ? t - r->window + 1 : 0;
    double *p = xcalloc((size_t)r->n, sizeof *p), top = -INFINITY, sum = 0;
    for (int j = first; j <= t; j++) {
        for (int d = 0; d < r->dim; d++)
            p[j] += q[t * stride_q + h * r->dim + d] * k[j * stride_kv + kv_head * r->dim + d];
        p[j] /= sqrt(r->dim);
        top = fmax(top, p[j]);
    }
    for (int j = first; j <= t; j++)
        sum += p[j] = exp(p[j] - top);
    for (int j = first; j <= t; j++)
        for (int d = 0; d < r->dim; d++)
            out[d] += p[j] / sum * v[j * stride_kv + kv_head * r->dim + d];
    free(p);
}

static double *attention_block(const struct ref *r, const double *x, int layer)
{
    int nq = r->heads * r->dim, nkv = r->kv_heads * r->dim;
    double *fused = load_layer(r, layer, "attn_qkv.weight");
    double *q, *k, *v, *all = NULL;
    int sq = nq, skv = nkv;
    if (fused) {
        sq = skv = nq + 2 * nkv;
        q = all = linear(r, fused, NULL, x, sq, r->embd);
        k = q + nq;
        v = k + nkv;
    } else {
        double *wq = load_layer(r, layer, "attn_q.weight"),
               *bq = load_layer(r, layer, "attn_q.bias");
        double *wk = load_layer(r, layer, "attn_k.weight"),
               *bk = load_layer(r, layer, "attn_k.bias");
        double *wv = load_layer(r, layer, "attn_v.weight"),
               *bv = load_layer(r, layer, "attn_v.bias");
        q = linear(r, wq, bq, x, nq, r->embd);
        k = linear(r, wk, bk, x, nkv, r->embd);
        v = linear(r, wv, bv, x, nkv, r->embd);
        double *done[] = {wq, bq, wk, bk, wv, bv};
        for (size_t i = 0; i < ARRAY_LEN(done); i++)
            free(done[i]);
    }
    double *qn = load_layer(r, layer, "attn_q_norm.weight");
    double *kn = load_layer(r, layer, "attn_k_norm.weight");
    prepare(r, q, r->heads, sq, qn);
    prepare(r, k, r->kv_heads, skv, kn);
    double *mixed = xcalloc((size_t)(r->n * nq), sizeof *mixed);
    for (int t = 0; t < r->n; t++)
        for (int h = 0; h < r->heads; h++)
            attend(r, q, k, v, sq, skv, t, h, mixed + t * nq + h * r->dim);
    double *wo = load_layer(r, layer, "attn_output.weight");
    double *out = linear(r, wo, NULL, mixed, r->embd, nq);
    double *done[] = {fused,           qn, kn, mixed, wo, fused ? all : q, fused ? NULL : k,
                      fused ? NULL : v};
    for (size_t i = 0; i < ARRAY_LEN(done); i++)
        free(done[i]);
    return out;
}

static double *ffn_block(const struct ref *r, const double *x, int layer)
{
    double *wg = load_layer(r, layer, "ffn_gate.weight"),
           *wu = load_layer(r, layer, "ffn_up.weight");
    double *wd = load_layer(r, layer, "ffn_down.weight");
    size_t half = (size_t)r->ff * (size_t)r->embd;
    double *gate = linear(r, wg ? wg : wu, NULL, x, r->ff, r->embd);
    double *up = linear(r, wg ? wu : wu + half, NULL, x, r->ff, r->embd);
    for (int i = 0; i < r->n * r->ff; i++)
        up[i] *= gate[i] / (1 + exp(-gate[i]));
    double *out = linear(r, wd, NULL, up, r->embd, r->ff);
    double *done[] = {wg, wu, wd, gate, up};
    for (size_t i = 0; i < ARRAY_LEN(done); i++)
        free(done[i]);
    return out;
}

static void add_block(const struct ref *r, double *x, int layer, const char *norm_name,
                      double *(*block)(const struct ref *, const double *, int))
{
    double *w = load_layer(r, layer, norm_name), *normed = norm_rows(r, x, w);
    double *y = block(r, normed, layer);
    for (int i = 0; i < r->n * r->embd; i++)
        x[i] += y[i];
    free(w);
    free(normed);
    free(y);
}

int reference_n_vocab(const struct gguf *g)
{
    return (int)gguf_find(g, "token_embd.weight")->dims[1];
}

static struct ref read_shape(const struct gguf *g, int n_tokens, int n_ctx)
{
    struct ref r = {.g = g, .n = n_tokens, .vocab = reference_n_vocab(g)};
    struct str arch = gguf_str(g, "general.architecture", "");
    snprintf(r.arch, sizeof r.arch, "%.*s", (int)arch.n, arch.p);
    r.layers = key_int(&r, "block_count", 0);
    r.embd = key_int(&r, "embedding_length", 0);
    r.ff = key_int(&r, "feed_forward_length", 0);
    r.heads = key_int(&r, "attention.head_count", 0);
    r.kv_heads = key_int(&r, "attention.head_count_kv", r.heads);
    r.dim = key_int(&r, "attention.key_length", r.embd / r.heads);
    r.rot = key_int(&r, "rope.dimension_count", r.dim);
    r.window = key_int(&r, "attention.sliding_window", 0);
    r.eps = key_float(&r, "attention.layer_norm_rms_epsilon", 0);
    read_rope(&r, n_ctx);
    return r;
}

int reference_forward(const struct gguf *g, const int *tokens, int n_tokens, int n_ctx,
                      double *logits)
{
    struct ref r = read_shape(g, n_tokens, n_ctx);
    double *embd = load(&r, "token_embd.weight");
    double *x = xcalloc((size_t)(r.n * r.embd), sizeof *x);
    for (int t = 0; t < r.n; t++)
        memcpy(x + t * r.embd, embd + tokens[t] * r.embd, sizeof *x * (size_t)r.embd);
    for (int i = 0; i < r.layers; i++) {
        add_block(&r, x, i, "attn_norm.weight", attention_block);
        add_block(&r, x, i, "ffn_norm.weight", ffn_block);
    }
    double *w = load(&r, "output_norm.weight"), *out = load(&r, "output.weight");
    double *normed = norm_rows(&r, x, w);
    double *y = linear(&r, out ? out : embd, NULL, normed, r.vocab, r.embd);
    memcpy(logits, y, sizeof *y * (size_t)r.n * (size_t)r.vocab);
    double *done[] = {embd, x, w, out, normed, y, r.freq};
    for (size_t i = 0; i < ARRAY_LEN(done); i++)
        free(done[i]);
    return r.vocab;
}
