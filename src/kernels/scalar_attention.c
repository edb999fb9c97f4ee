/* KV blocks and attention in plain C. */
#include <math.h>
#include <string.h>

#include "base/err.h"
#include "kernels/layout.h"
#include "kernels/scalar.h"

/* Places of number d of position p, in numbers. */
static size_t key_at(const struct kv_layout *kv, int p, int d)
{
    return kv->type == KV_F16 ? (size_t)(d * KV_BLOCK_TOKENS + p)
                              : (size_t)((d / 2 * KV_BLOCK_TOKENS + p) * 2 + d % 2);
}

static size_t value_at(const struct kv_layout *kv, int p, int d)
{
    return kv->type == KV_F16 ? (size_t)(p * kv->head_dim + d)
                              : (size_t)((p / 2 * kv->head_dim + d) * 2 + p % 2);
}

/* Quantises n numbers to 8 bits with a scale that is exact in half precision. */
static uint16_t quantise_head(const float *x, int n, int8_t *q)
{
    float max = 0;
    for (int i = 0; i < n; i++)
        max = fmaxf(max, fabsf(x[i]));
    uint16_t scale = f32_to_f16(fminf(max / 127, 65504));
    float d = f16_to_f32(scale);
    for (int i = 0; i < n; i++) {
        float v = d > 0 ? nearbyintf(x[i] / d) : 0;
        q[i] = (int8_t)fminf(fmaxf(v, -127), 127);
    }
    return scale;
}

static void write_q8(const struct kv_layout *kv, uint8_t *head, int slot, const float *k,
                     const float *v)
{
    int8_t q[KERNEL_MAX_HEAD_DIM];
    int8_t *keys = (int8_t *)head, *values = keys + kv_half_bytes(kv);
    uint16_t *scales = (uint16_t *)(head + 2 * kv_half_bytes(kv));
    scales[slot] = quantise_head(k, kv->head_dim, q);
    for (int d = 0; d < kv->head_dim; d++)
        keys[key_at(kv, slot, d)] = q[d];
    scales[KV_BLOCK_TOKENS + slot] = quantise_head(v, kv->head_dim, q);
    for (int d = 0; d < kv->head_dim; d++)
        values[value_at(kv, slot, d)] = q[d];
}

static void write_half(const struct kv_layout *kv, uint8_t *head, int slot, const float *k,
                       const float *v)
{
    uint16_t *keys = (uint16_t *)head, *values = (uint16_t *)(head + kv_half_bytes(kv));
    uint16_t (*convert)(float) = kv->type == KV_F16 ? f32_to_f16 : f32_to_bf16;
    for (int d = 0; d < kv->head_dim; d++) {
        keys[key_at(kv, slot, d)] = convert(k[d]);
        values[value_at(kv, slot, d)] = convert(v[d]);
    }
}

void scalar_kv_write(const struct kv_layout *kv, void *block, int slot, const float *k,
                     const float *v, int head_begin, int head_end)
{
    for (int h = head_begin; h < head_end; h++) {
        uint8_t *head = (uint8_t *)block + (size_t)h * kv_head_bytes(kv);
        const float *kh = k + (size_t)h * kv->head_dim, *vh = v + (size_t)h * kv->head_dim;
        if (kv->type == KV_Q8_0)
            write_q8(kv, head, slot, kh, vh);
        else
            write_half(kv, head, slot, kh, vh);
    }
}

/* Decodes position p of a head's block. */
static void read_kv(const struct kv_layout *kv, const uint8_t *head, int p, float *k, float *v)
{
    const uint8_t *values = head + kv_half_bytes(kv);
    const uint16_t *scales = (const uint16_t *)(head + 2 * kv_half_bytes(kv));
    for (int d = 0; d < kv->head_dim; d++) {
        size_t ka = key_at(kv, p, d), va = value_at(kv, p, d);
        if (kv->type == KV_Q8_0) {
            k[d] = (float)((const int8_t *)head)[ka] * f16_to_f32(scales[p]);
            v[d] = (float)((const int8_t *)values)[va] * f16_to_f32(scales[KV_BLOCK_TOKENS + p]);
        } else {
            uint16_t kh = ((const uint16_t *)head)[ka], vh = ((const uint16_t *)values)[va];
            k[d] = kv->type == KV_F16 ? f16_to_f32(kh) : bf16_to_f32(kh);
            v[d] = kv->type == KV_F16 ? f16_to_f32(vh) : bf16_to_f32(vh);
        }
    }
}

/* A softmax that meets its scores one after the other. */
struct online {
    float max, sum, acc[KERNEL_MAX_HEAD_DIM];
};

static void meet(struct online *o, float score, const float *v, int dim)
{
    if (score > o->max) {
        float shrink = expf(o->max - score);
        o->sum *= shrink;
        for (int d = 0; d < dim; d++)
            o->acc[d] *= shrink;
        o->max = score;
    }
    float p = expf(score - o->max);
    o->sum += p;
    for (int d = 0; d < dim; d++)
        o->acc[d] += p * v[d];
}

/* Adds the partial of the next segment to the partial of those before. */
static void fold(struct online *o, float max, float sum, const float *acc, int dim)
{
    if (!(sum > 0))
        return;
    float top = fmaxf(o->max, max), old = o->sum > 0 ? expf(o->max - top) : 0;
    float new = expf(max - top);
    for (int d = 0; d < dim; d++)
        o->acc[d] = o->acc[d] * old + acc[d] * new;
    o->sum = o->sum * old + sum * new;
    o->max = top;
}

static void finish(const struct attention *a, int i, int g, const struct online *o)
{
    int dim = a->kv->head_dim;
    if (a->partial) {
        float *p = a->partial + (size_t)(i * a->group + g) * attention_partial_floats(a->kv);
        p[0] = o->max;
        p[1] = o->sum;
        memcpy(p + 2, o->acc, (size_t)dim * sizeof *p);
        return;
    }
    int token = a->tokens ? a->tokens[i] : i;
    float *out = a->out + (size_t)token * a->out_stride + (size_t)(a->kv_head * a->group + g) * dim;
    for (int d = 0; d < dim; d++)
        out[d] = o->sum > 0 ? o->acc[d] / o->sum : 0;
}

/* Positions [begin, end) for one query. */
static void meet_range(const struct attention *a, const float *q, int begin, int end,
                       struct online *o)
{
    int dim = a->kv->head_dim;
    float k[KERNEL_MAX_HEAD_DIM], v[KERNEL_MAX_HEAD_DIM];
    for (int p = begin; p < end; p++) {
        float score = 0;
        read_kv(a->kv, kv_head(a, p / KV_BLOCK_TOKENS), p % KV_BLOCK_TOKENS, k, v);
        for (int d = 0; d < dim; d++)
            score += q[d] * k[d];
        meet(o, score * a->scale, v, dim);
    }
}

static void attend_row(const struct attention *a, int i, int g)
{
    int dim = a->kv->head_dim, token = a->tokens ? a->tokens[i] : i;
    const float *q =
        a->q + (size_t)token * a->q_stride + (size_t)(a->kv_head * a->group + g) * (size_t)dim;
    int first = a->window && a->pos[i] >= a->window ? a->pos[i] - a->window + 1 : 0;
    int begin = a->block_begin * KV_BLOCK_TOKENS, end = a->block_end * KV_BLOCK_TOKENS;
    begin = begin > first ? begin : first;
    end = end < a->pos[i] + 1 ? end : a->pos[i] + 1;
    struct online total = {.max = -INFINITY};
    for (int segment = ATTENTION_SEGMENT * KV_BLOCK_TOKENS; begin < end;) {
        int next = (begin / segment + 1) * segment;
        struct online part = {.max = -INFINITY};
        meet_range(a, q, begin, next < end ? next : end, &part);
        fold(&total, part.max, part.sum, part.acc, dim);
        begin = next;
    }
    finish(a, i, g, &total);
}

void scalar_attention(const struct attention *a, void *scratch)
{
    for (int i = 0; i < a->n_tokens; i++)
        for (int g = 0; g < a->group; g++)
            attend_row(a, i, g);
}

void scalar_attention_merge(const float *const *parts, int n_parts, int n_rows, int head_dim,
                            float *out, size_t out_stride)
{
    for (int r = 0; r < n_rows; r++) {
        size_t at = (size_t)r * (2 + (size_t)head_dim);
        struct online o = {.max = -INFINITY};
        for (int i = 0; i < n_parts; i++)
            fold(&o, parts[i][at], parts[i][at + 1], parts[i] + at + 2, head_dim);
        for (int d = 0; d < head_dim; d++)
            out[(size_t)r * out_stride + (size_t)d] = o.sum > 0 ? o.acc[d] / o.sum : 0;
    }
}
