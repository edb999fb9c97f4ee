/* The reference: the formulas of layout.h in plain C. */
#include "kernels/scalar.h"

#include <math.h>
#include <string.h>

#include "base/err.h"
#include "kernels/layout.h"

/* --- activations --------------------------------------------------------------------------------
 */

/* Token i of w, 32 columns from x. Returns the sum of the codes. */
static int quantise_32(enum act_type type, const float *x, uint8_t *block, int i, int w)
{
    float max = 0;
    for (int c = 0; c < 32; c++)
        max = fmaxf(max, fabsf(x[c]));
    float scale = act_scale_of(type, max), inverse = scale > 0 ? 1 / scale : 0;
    int half[2] = {0, 0};
    int8_t *q = act_codes(block, w);
    for (int c = 0; c < 32; c++) {
        float r = fminf(fmaxf(nearbyintf(x[c] * inverse), -127), 127);
        int v = (int)r;
        q[(c / 4 * w + i) * 4 + c % 4] = (int8_t)v;
        half[c / 16] += v;
    }
    act_put_sums(type, block, i, w, scale, half);
    return half[0] + half[1];
}

/* Token i of w, up to 256 columns. */
static void quantise(enum act_type type, const float *x, int n, uint8_t *block, int i, int w)
{
    float scale[8];
    int sum[8];
    for (int s = 0; s < n / 32; s++) {
        uint8_t *at = block + s * ACT_Q8_BLOCK * w;
        sum[s] = quantise_32(type, x + 32 * s, at, i, w);
        scale[s] = act_scale(at)[i];
    }
    if (type == ACT_Q8_POW2 && n == 256)
        act_put_minsum(block, i, w, scale, sum);
}

static void fill_group(const struct act *a, const float *x, size_t x_stride, int first, int w,
                       int unit)
{
    int begin = unit * 256, end = begin + 256 < a->n_cols ? begin + 256 : a->n_cols;
    uint8_t *base = (uint8_t *)a->data + act_bytes(a->type, a->n_cols, first);
    for (int i = 0; i < w; i++) {
        const float *row = x + (size_t)(first + i) * x_stride;
        if (a->type == ACT_Q8 || a->type == ACT_Q8_POW2) {
            quantise(a->type, row + begin, end - begin,
                     base + (size_t)(begin / 32 * ACT_Q8_BLOCK * w), i, w);
        } else if (a->type == ACT_F32) {
            for (int c = begin; c < end; c++)
                ((float *)base)[(size_t)c * (size_t)w + (size_t)i] = row[c];
        } else {
            for (int c = begin; c < end + end % 2; c++)
                ((uint16_t *)base)[(size_t)(c / 2 * w + i) * 2 + (size_t)(c % 2)] =
                    c < end ? f32_to_bf16(row[c]) : 0;
        }
    }
}

void scalar_act_fill(const struct act *a, const float *x, size_t x_stride, int ith, int nth)
{
    int groups = act_groups(a->n_tokens), units = (a->n_cols + 255) / 256;
    int begin = (int)((int64_t)groups * units * ith / nth);
    int end = (int)((int64_t)groups * units * (ith + 1) / nth);
    for (int i = begin; i < end; i++) {
        int first = act_group_begin(a->n_tokens, i / units);
        int w = act_group_begin(a->n_tokens, i / units + 1) - first;
        fill_group(a, x, x_stride, first, w, i % units);
    }
}

/* --- products -----------------------------------------------------------------------------------
 */

typedef float tile_sums[KERNEL_GROUP][KERNEL_TILE];

static float half_at(const uint8_t *p, int i)
{
    uint16_t h;
    memcpy(&h, p + 2 * i, 2);
    return f16_to_f32(h);
}

/* Scale and min (to be added) of a row's group. */
static void scale_min(const struct layout *l, const uint8_t *block, int row, int g, float *scale,
                      float *min)
{
    const uint8_t *sc = block + (l->min ? 128 : 64);
    *scale = half_at(block, row);
    *min = l->min ? half_at(block + 64, row) : 0;
    if (l->super && l->min) {
        *scale *= (float)sc[32 * g + row];
        *min *= -(float)sc[layout_mn_at(256 / l->group, g, row)];
    } else if (l->super) {
        *scale *= (float)(int8_t)sc[32 * g + row];
    }
}

/* What the minimum of block s of 256 columns is multiplied with. x: the first of the blocks. */
static float word_sum(uint8_t *x, int s, int i, int w)
{
    int16_t words[2];
    float unit;
    memcpy(words, &act_minsum(x + s / 2 * ACT_Q8_BLOCK * w, w)[i], sizeof words);
    memcpy(&unit, &act_minsum(x + ACT_MINSUM_UNIT * ACT_Q8_BLOCK * w, w)[i], sizeof unit);
    return (float)words[s % 2] * unit;
}

/* 32 columns (part s of a weight block) of one token. */
static void dot_32(const struct layout *l, const uint8_t *block, int s, uint8_t u[KERNEL_TILE][32],
                   uint8_t *x, int i, int w, float sums[KERNEL_TILE])
{
    const int8_t *q = act_codes(x, w);
    int per = 32 / l->group;
    for (int row = 0; row < KERNEL_TILE; row++)
        for (int h = 0; h < per; h++) {
            float scale, min;
            scale_min(l, block, row, s * per + h, &scale, &min);
            int dot = 0, sum = 0;
            for (int c = h * l->group; c < (h + 1) * l->group; c++) {
                int v = q[(c / 4 * w + i) * 4 + c % 4];
                dot += (u[row][c] - l->zero) * v;
                sum += v;
            }
            sums[row] += (float)dot * scale * act_scale(x)[i];
            if (layout_word_mins(l))
                sums[row] += min * word_sum(x - s * ACT_Q8_BLOCK * w, s, i, w);
            else if (l->min)
                sums[row] += min * act_scale(x)[i] * (float)sum;
        }
}

static void tile_q8(const struct packed_matrix *m, const uint8_t *tile, uint8_t *x, int w,
                    tile_sums sums)
{
    struct layout l = layout_of(m->type);
    for (int b = 0; b < m->n_cols / l.block; b++, tile += layout_block_bytes(&l))
        for (int s = 0; s < l.block / 32; s++, x += ACT_Q8_BLOCK * w) {
            uint8_t u[KERNEL_TILE][32];
            layout_unpack(&l, tile + layout_header_bytes(&l) + (size_t)s * layout_code_bytes(&l),
                          u);
            for (int i = 0; i < w; i++)
                dot_32(&l, tile, s, u, x, i, w, sums[i]);
        }
}

static void tile_float(const struct packed_matrix *m, const void *tile, const void *x, int w,
                       tile_sums sums)
{
    for (int c = 0; c < m->n_cols; c++)
        for (int i = 0; i < w; i++) {
            size_t at = (size_t)c * KERNEL_TILE, pair = (size_t)(c / 2);
            float v =
                m->type == TTYPE_BF16
                    ? bf16_to_f32(((
                          const uint16_t *)x)[(pair * (size_t)w + (size_t)i) * 2 + (size_t)(c % 2)])
                    : ((const float *)x)[(size_t)c * (size_t)w + (size_t)i];
            for (int r = 0; r < KERNEL_TILE; r++) {
                if (m->type == TTYPE_F32)
                    sums[i][r] += v * ((const float *)tile)[at + (size_t)r];
                else if (m->type == TTYPE_F16)
                    sums[i][r] += v * f16_to_f32(((const uint16_t *)tile)[at + (size_t)r]);
                else
                    sums[i][r] +=
                        v * bf16_to_f32(
                                ((const uint16_t *)
                                     tile)[(pair * KERNEL_TILE + (size_t)r) * 2 + (size_t)(c % 2)]);
            }
        }
}

static void tile_product(const struct packed_matrix *m, const struct act *a, int tile, int first,
                         int w, tile_sums sums)
{
    const uint8_t *data = (const uint8_t *)m->data + (size_t)tile * m->tile_bytes;
    uint8_t *x = (uint8_t *)a->data + act_bytes(a->type, a->n_cols, first);
    memset(sums, 0, sizeof(tile_sums));
    if (layout_of(m->type).low_bits)
        tile_q8(m, data, x, w, sums);
    else
        tile_float(m, data, x, w, sums);
}

static void store_tile(const struct matmul *j, int tile, int first, int w, tile_sums sums)
{
    int row = tile * KERNEL_TILE;
    int n = j->w->n_rows - row < KERNEL_TILE ? j->w->n_rows - row : KERNEL_TILE;
    for (int i = 0; i < w; i++) {
        float *out = j->out + (size_t)(first + i) * j->out_stride + row;
        for (int r = 0; r < n; r++) {
            float v = sums[i][r] + (j->bias ? j->bias[row + r] : 0);
            out[r] = j->add ? out[r] + v : v;
        }
    }
}

void scalar_matmul(const struct matmul *j, int tile_begin, int tile_end)
{
    BUG_ON(j->w->n_cols != j->x->n_cols || packed_act_type(j->w) != j->x->type);
    int groups = act_groups(j->x->n_tokens);
    for (int t = tile_begin; t < tile_end; t++)
        for (int g = 0; g < groups; g++) {
            int first = act_group_begin(j->x->n_tokens, g);
            int w = act_group_begin(j->x->n_tokens, g + 1) - first;
            tile_sums sums, gate;
            tile_product(j->w, j->x, t, first, w, sums);
            if (j->gate) {
                tile_product(j->gate, j->x, t, first, w, gate);
                for (int i = 0; i < w; i++)
                    for (int r = 0; r < KERNEL_TILE; r++)
                        sums[i][r] *= gate[i][r] / (1 + expf(-gate[i][r]));
            }
            store_tile(j, t, first, w, sums);
        }
}

/* --- small operations ---------------------------------------------------------------------------
 */

void scalar_rmsnorm(const float *x, const float *weight, float eps, int n, float *out)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    float scale = 1 / sqrtf((float)(sum / n) + eps);
    for (int i = 0; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

void scalar_rope(float *x, int n_heads, int head_dim, int n_rot, const float *cos_sin,
                 enum rope_style style)
{
    for (int h = 0; h < n_heads; h++, x += head_dim)
        for (int i = 0; i < n_rot / 2; i++) {
            int a = style == ROPE_NORM ? 2 * i : i, b = style == ROPE_NORM ? a + 1 : i + n_rot / 2;
            float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], xa = x[a], xb = x[b];
            x[a] = xa * c - xb * s;
            x[b] = xa * s + xb * c;
        }
}

void scalar_add(float *x, const float *y, int n)
{
    for (int i = 0; i < n; i++)
        x[i] += y[i];
}

void scalar_axpy(float *x, float a, const float *y, int n)
{
    for (int i = 0; i < n; i++)
        x[i] += a * y[i];
}

void scalar_silu_mul(const float *gate, const float *up, int n, float *out)
{
    for (int i = 0; i < n; i++)
        out[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

void scalar_softmax(float *x, int n)
{
    float max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        max = fmaxf(max, x[i]);
    for (int i = 0; i < n; i++)
        sum += x[i] = expf(x[i] - max);
    for (int i = 0; i < n; i++)
        x[i] /= sum;
}

int64_t scalar_dot_rounds(int64_t rounds)
{
    int32_t sums[16] = {0};
    int8_t a[16] = {1, 2, 3}, b[16] = {4, 5, 6};
    for (int64_t i = 0; i < rounds; i++) {
        for (int j = 0; j < 16; j++)
            sums[j] += a[j] * b[j];
        __asm__ volatile("" : "+m"(a), "+m"(b));
    }
    __asm__ volatile("" ::"m"(sums));
    return rounds * 16;
}

const struct kernels kernels_scalar = {
    .name = "scalar",
    .act_fill = scalar_act_fill,
    .matmul = scalar_matmul,
    .kv_write = scalar_kv_write,
    .attention = scalar_attention,
    .attention_merge = scalar_attention_merge,
    .rmsnorm = scalar_rmsnorm,
    .rope = scalar_rope,
    .lora_shrink = scalar_lora_shrink,
    .lora_expand = scalar_lora_expand,
    .add = scalar_add,
    .axpy = scalar_axpy,
    .silu_mul = scalar_silu_mul,
    .softmax = scalar_softmax,
    .dot_rounds = scalar_dot_rounds,
};
