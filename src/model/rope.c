#define _GNU_SOURCE
#include "model/rope.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"

/* Factors that divide the frequencies one by one. */
static int divide_by_tensor(struct rope *r, const struct gguf *g, const char *name, struct err *e)
{
    const uint64_t dims[] = {(uint64_t)r->n_rot / 2};
    const struct gguf_tensor *t;
    int rc = gguf_need(g, name, 1, dims, &t, e);
    if (rc)
        return rc;
    if (t->type != TTYPE_F32)
        return err_set(e, ERR_UNSUPPORTED, "%s must be F32", name);
    const unsigned char *p = t->data;
    for (int i = 0; i < r->n_rot / 2; i++) {
        float factor;
        memcpy(&factor, p + 4 * (size_t)i, sizeof factor);
        if (!(factor > 0 && isfinite(factor)))
            return err_set(e, ERR_FORMAT, "%s: factor %d is %g, expected a positive number", name,
                           i, factor);
        r->freq[i] /= factor;
    }
    return 0;
}

/* YaRN (Peng et al., arXiv 2309.00071): frequencies that turn often within the original context
 * stay, slow ones are interpolated, with a linear ramp between 32 turns and 1 turn. */
static void apply_yarn(struct rope *r, const struct hparams *hp)
{
    const double fast_turns = 32, slow_turns = 1;
    double to_dim = r->n_rot / (2 * log(hp->rope_base));
    double low = floor(to_dim * log(hp->rope_ctx_orig / (fast_turns * 2 * M_PI)));
    double high = ceil(to_dim * log(hp->rope_ctx_orig / (slow_turns * 2 * M_PI)));
    low = fmax(low, 0);
    high = fmin(high, r->n_rot - 1);
    for (int i = 0; i < r->n_rot / 2; i++) {
        double ramp = fmin(fmax((i - low) / fmax(high - low, 0.001), 0), 1);
        r->freq[i] = r->freq[i] * (1 - ramp) + r->freq[i] / hp->rope_factor * ramp;
    }
    r->scale = (float)(1 + 0.1 * log(hp->rope_factor));
}

/* LongRoPE (Ding et al., arXiv 2402.13753) as Phi-3 uses it. */
static int apply_long(struct rope *r, const struct hparams *hp, const struct gguf *g, int n_ctx,
                      struct err *e)
{
    int orig = hp->rope_ctx_orig ? hp->rope_ctx_orig : hp->n_ctx_train;
    double stretch = (double)hp->n_ctx_train / orig;
    if (hp->rope_attn_factor > 0)
        r->scale = hp->rope_attn_factor;
    else if (stretch > 1 && orig > 1)
        r->scale = (float)sqrt(1 + log(stretch) / log(orig));
    return divide_by_tensor(
        r, g, n_ctx > orig ? "rope_factors_long.weight" : "rope_factors_short.weight", e);
}

int rope_init(struct rope *r, const struct hparams *hp, const struct gguf *g, int n_ctx,
              struct err *e)
{
    *r = (struct rope){.n_rot = hp->n_rot, .scale = 1};
    r->freq = xcalloc((size_t)hp->n_rot / 2, sizeof *r->freq);
    for (int i = 0; i < hp->n_rot / 2; i++)
        r->freq[i] = pow(hp->rope_base, -2.0 * i / hp->n_rot);
    int rc = 0;
    /* Phi-3 files carry the factors whether or not they name the scaling. */
    if (hp->rope_scaling == ROPE_LONG || gguf_find(g, "rope_factors_long.weight"))
        rc = apply_long(r, hp, g, n_ctx, e);
    else if (gguf_find(g, "rope_freqs.weight"))
        rc = divide_by_tensor(r, g, "rope_freqs.weight", e);
    if (hp->rope_scaling == ROPE_YARN)
        apply_yarn(r, hp);
    else if (hp->rope_scaling == ROPE_LINEAR)
        for (int i = 0; i < hp->n_rot / 2; i++)
            r->freq[i] /= hp->rope_factor;
    if (rc)
        rope_release(r);
    return rc;
}

void rope_release(struct rope *r)
{
    free(r->freq);
    *r = (struct rope){0};
}

void rope_angles(const struct rope *r, int pos, float *cos_sin)
{
    for (int i = 0; i < r->n_rot / 2; i++) {
        double s, c;
        sincos(pos * r->freq[i], &s, &c);
        cos_sin[2 * i] = (float)c * r->scale;
        cos_sin[2 * i + 1] = (float)s * r->scale;
    }
}
