/* Packing: source blocks are taken apart into codes and scales, which then go to their places in
 * the tile. See layout.h. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/layout.h"
#include "tensor/block.h"

/* A source block of any integer type, taken apart. */
struct parts {
    uint8_t u[256];
    uint16_t d, m; /* f16 */
    uint8_t sc[16], mn[16];
};

static void nibbles(const uint8_t qs[16], uint8_t u[32])
{
    for (int j = 0; j < 16; j++) {
        u[j] = qs[j] & 15;
        u[j + 16] = qs[j] >> 4;
    }
}

static void fifth_bits(const uint8_t qh[4], uint8_t u[32])
{
    for (int i = 0; i < 32; i++)
        u[i] |= (uint8_t)((qh[i / 8] >> i % 8 & 1) << 4);
}

static void take_q4_0(const void *src, struct parts *p)
{
    const struct block_q4_0 *b = src;
    p->d = b->d;
    nibbles(b->qs, p->u);
}

static void take_q4_1(const void *src, struct parts *p)
{
    const struct block_q4_1 *b = src;
    p->d = b->d;
    p->m = b->m;
    nibbles(b->qs, p->u);
}

static void take_q5_0(const void *src, struct parts *p)
{
    const struct block_q5_0 *b = src;
    p->d = b->d;
    nibbles(b->qs, p->u);
    fifth_bits(b->qh, p->u);
}

static void take_q5_1(const void *src, struct parts *p)
{
    const struct block_q5_1 *b = src;
    p->d = b->d;
    p->m = b->m;
    nibbles(b->qs, p->u);
    fifth_bits(b->qh, p->u);
}

static void take_q8_0(const void *src, struct parts *p)
{
    const struct block_q8_0 *b = src;
    p->d = b->d;
    for (int i = 0; i < 32; i++)
        p->u[i] = (uint8_t)(b->qs[i] + 128);
}

static void take_q2_k(const void *src, struct parts *p)
{
    const struct block_q2_k *b = src;
    p->d = b->d;
    p->m = b->dmin;
    for (int g = 0; g < 16; g++) {
        p->sc[g] = b->scales[g] & 15;
        p->mn[g] = b->scales[g] >> 4;
    }
    for (int i = 0; i < 256; i++)
        p->u[i] = b->qs[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
}

static void take_q3_k(const void *src, struct parts *p)
{
    const struct block_q3_k *b = src;
    p->d = b->d;
    for (int g = 0; g < 16; g++)
        p->sc[g] = (uint8_t)q3_k_scale(b->scales, g);
    for (int i = 0; i < 256; i++)
        p->u[i] = (uint8_t)((b->qs[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) |
                            (b->hmask[i % 32] >> i / 32 & 1) << 2);
}

static void scales_mins(const uint8_t scales[12], struct parts *p)
{
    for (int g = 0; g < 8; g++)
        q4_k_scale_min(scales, g, &p->sc[g], &p->mn[g]);
}

static void take_q4_k(const void *src, struct parts *p)
{
    const struct block_q4_k *b = src;
    p->d = b->d;
    p->m = b->dmin;
    scales_mins(b->scales, p);
    for (int i = 0; i < 256; i++)
        p->u[i] = b->qs[i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15;
}

static void take_q5_k(const void *src, struct parts *p)
{
    const struct block_q5_k *b = src;
    p->d = b->d;
    p->m = b->dmin;
    scales_mins(b->scales, p);
    for (int i = 0; i < 256; i++)
        p->u[i] = (uint8_t)((b->qs[i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15) |
                            (b->qh[i % 32] >> i / 32 & 1) << 4);
}

static void take_q6_k(const void *src, struct parts *p)
{
    const struct block_q6_k *b = src;
    p->d = b->d;
    memcpy(p->sc, b->scales, 16);
    for (int i = 0; i < 256; i++) {
        int low = b->ql[i / 128 * 64 + i % 64] >> i % 128 / 64 * 4 & 15;
        int high = b->qh[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
        p->u[i] = (uint8_t)(low | high << 4);
    }
}

static void take_iq4_nl(const void *src, struct parts *p)
{
    const struct block_iq4_nl *b = src;
    p->d = b->d;
    nibbles(b->qs, p->u);
}

static void take_iq4_xs(const void *src, struct parts *p)
{
    const struct block_iq4_xs *b = src;
    p->d = b->d;
    for (int g = 0; g < 8; g++) {
        p->sc[g] = (uint8_t)iq4_xs_scale(b, g);
        nibbles(b->qs + 16 * g, p->u + 32 * g);
    }
}

static const struct {
    enum ttype type;
    void (*take)(const void *src, struct parts *p);
} takers[] = {
    {TTYPE_Q4_0, take_q4_0}, {TTYPE_Q4_1, take_q4_1},     {TTYPE_Q5_0, take_q5_0},
    {TTYPE_Q5_1, take_q5_1}, {TTYPE_Q8_0, take_q8_0},     {TTYPE_Q2_K, take_q2_k},
    {TTYPE_Q3_K, take_q3_k}, {TTYPE_Q4_K, take_q4_k},     {TTYPE_Q5_K, take_q5_k},
    {TTYPE_Q6_K, take_q6_k}, {TTYPE_IQ4_NL, take_iq4_nl}, {TTYPE_IQ4_XS, take_iq4_xs},
};

/* Byte and shift of the code of (row, column in 32) in a plane of `bits`. */
static size_t plane_byte(int bits, int row, int col, int *shift)
{
    int c4 = col / 4, in_byte = 8 / bits;
    *shift = c4 % in_byte * bits;
    return (size_t)(c4 / in_byte) * 128 + (size_t)row * 4 + (size_t)col % 4;
}

static void put_codes(const struct layout *l, uint8_t *codes, int row, const uint8_t u[32])
{
    uint8_t *high = codes + 128 * l->low_bits;
    for (int c = 0; c < 32; c++) {
        int shift;
        size_t at = plane_byte(l->low_bits, row, c, &shift);
        codes[at] |= (uint8_t)((u[c] & ((1 << l->low_bits) - 1)) << shift);
        if (l->high_bits) {
            at = plane_byte(l->high_bits, row, c, &shift);
            high[at] |= (uint8_t)(u[c] >> l->low_bits << shift);
        }
    }
}

void layout_unpack(const struct layout *l, const uint8_t *codes, uint8_t u[KERNEL_TILE][32])
{
    const uint8_t *high = codes + 128 * l->low_bits;
    for (int row = 0; row < KERNEL_TILE; row++)
        for (int c = 0; c < 32; c++) {
            int shift;
            size_t at = plane_byte(l->low_bits, row, c, &shift);
            int v = codes[at] >> shift & ((1 << l->low_bits) - 1);
            if (l->high_bits) {
                at = plane_byte(l->high_bits, row, c, &shift);
                v |= (high[at] >> shift & ((1 << l->high_bits) - 1)) << l->low_bits;
            }
            u[row][c] = (uint8_t)(l->table ? iq4_values[v] + 128 : v);
        }
}

/* Puts a taken-apart block of one row into the packed block `dst`. */
static void put_parts(const struct layout *l, uint8_t *dst, int row, const struct parts *p)
{
    memcpy(dst + 2 * row, &p->d, 2);
    uint8_t *next = dst + 64;
    if (l->min) {
        memcpy(next + 2 * row, &p->m, 2);
        next += 64;
    }
    int groups = l->super ? 256 / l->group : 0;
    for (int g = 0; g < groups; g++) {
        next[32 * g + row] = p->sc[g];
        if (l->min)
            next[layout_mn_at(groups, g, row)] = p->mn[g];
    }
    uint8_t *codes = dst + layout_header_bytes(l);
    for (int s = 0; s < l->block / 32; s++)
        put_codes(l, codes + (size_t)s * layout_code_bytes(l), row, p->u + 32 * s);
}

/* A row of floats: column c of row r at [c][r], pairs of columns together for bf16. */
static void put_floats(enum ttype type, uint8_t *tile, int row, const void *src, int n_cols)
{
    for (int c = 0; c < n_cols; c++) {
        if (type == TTYPE_F32)
            memcpy(tile + ((size_t)c * KERNEL_TILE + (size_t)row) * 4, (const float *)src + c, 4);
        else if (type == TTYPE_F16)
            memcpy(tile + ((size_t)c * KERNEL_TILE + (size_t)row) * 2, (const char *)src + 2 * c,
                   2);
        else
            memcpy(tile + ((size_t)(c / 2) * KERNEL_TILE + (size_t)row) * 4 + 2 * (c % 2),
                   (const char *)src + 2 * c, 2);
    }
}

int packed_init(struct packed_matrix *m, enum ttype type, int64_t n_rows, int64_t n_cols,
                struct err *e)
{
    struct layout l = layout_of(type);
    const struct ttype_info *info = ttype_info(type);
    if (!l.block || !info)
        return err_set(e, ERR_UNSUPPORTED, "weights of data type %u are not supported",
                       (unsigned)type);
    if (n_rows < 1 || n_cols < 1 || n_rows > 1 << 26 || n_cols > 1 << 24)
        return err_set(e, ERR_FORMAT, "a matrix of %lld x %lld is out of range", (long long)n_rows,
                       (long long)n_cols);
    if (n_cols % info->block_elems)
        return err_set(e, ERR_FORMAT, "rows of %lld numbers do not fit the blocks of %s (%d)",
                       (long long)n_cols, info->name, info->block_elems);
    size_t tile;
    if (l.low_bits)
        tile = (size_t)(n_cols / l.block) * layout_block_bytes(&l);
    else
        tile = (size_t)(n_cols + (type == TTYPE_BF16 ? n_cols % 2 : 0)) * KERNEL_TILE *
               (type == TTYPE_F32 ? 4 : 2);
    *m = (struct packed_matrix){type, (int)n_rows, (int)n_cols, tile, NULL};
    return 0;
}

void packed_fill(const struct packed_matrix *m, void *data, const void *rows, int tile_begin,
                 int tile_end)
{
    struct layout l = layout_of(m->type);
    const struct ttype_info *info = ttype_info(m->type);
    size_t row_bytes = ttype_row_bytes(m->type, (size_t)m->n_cols);
    size_t block_bytes = l.low_bits ? layout_block_bytes(&l) : 0;
    void (*take)(const void *, struct parts *) = NULL;
    for (size_t i = 0; i < ARRAY_LEN(takers); i++)
        if (takers[i].type == m->type)
            take = takers[i].take;
    for (int t = tile_begin; t < tile_end; t++) {
        uint8_t *tile = (uint8_t *)data + (size_t)t * m->tile_bytes;
        memset(tile, 0, m->tile_bytes);
        for (int r = 0; r < KERNEL_TILE && t * KERNEL_TILE + r < m->n_rows; r++) {
            const uint8_t *src = (const uint8_t *)rows + (size_t)(t * KERNEL_TILE + r) * row_bytes;
            if (!take) {
                put_floats(m->type, tile, r, src, m->n_cols);
                continue;
            }
            for (int b = 0; b < m->n_cols / l.block; b++) {
                struct parts p;
                take(src + (size_t)b * info->block_bytes, &p);
                put_parts(&l, tile + (size_t)b * block_bytes, r, &p);
            }
        }
    }
}

struct packed_matrix packed_view(const struct packed_matrix *m, int row_begin, int n_rows)
{
    BUG_ON(row_begin % KERNEL_TILE || row_begin < 0 || n_rows < 1 ||
           n_rows > m->n_rows - row_begin);
    struct packed_matrix v = *m;
    v.n_rows = n_rows;
    v.data = (const char *)m->data + (size_t)(row_begin / KERNEL_TILE) * m->tile_bytes;
    return v;
}

static float half_at(const void *p, int i)
{
    uint16_t h;
    memcpy(&h, (const char *)p + 2 * i, 2);
    return f16_to_f32(h);
}

static void float_row(const struct packed_matrix *m, const uint8_t *tile, int r, float *out)
{
    for (int c = 0; c < m->n_cols; c++) {
        uint16_t h;
        if (m->type == TTYPE_F32) {
            memcpy(&out[c], tile + ((size_t)c * KERNEL_TILE + (size_t)r) * 4, 4);
        } else if (m->type == TTYPE_F16) {
            memcpy(&h, tile + ((size_t)c * KERNEL_TILE + (size_t)r) * 2, 2);
            out[c] = f16_to_f32(h);
        } else {
            memcpy(&h, tile + ((size_t)(c / 2) * KERNEL_TILE + (size_t)r) * 4 + 2 * (c % 2), 2);
            out[c] = bf16_to_f32(h);
        }
    }
}

/* One code of the codes of 32 columns. */
static int code_at(const struct layout *l, const uint8_t *codes, int row, int col)
{
    int shift;
    size_t at = plane_byte(l->low_bits, row, col, &shift);
    int v = codes[at] >> shift & ((1 << l->low_bits) - 1);
    if (l->high_bits) {
        at = plane_byte(l->high_bits, row, col, &shift);
        v |= (codes[128 * l->low_bits + at] >> shift & ((1 << l->high_bits) - 1)) << l->low_bits;
    }
    return l->table ? iq4_values[v] + 128 : v;
}

void packed_row(const struct packed_matrix *m, int row, float *out)
{
    struct layout l = layout_of(m->type);
    const uint8_t *tile = (const uint8_t *)m->data + (size_t)(row / KERNEL_TILE) * m->tile_bytes;
    int r = row % KERNEL_TILE;
    if (!l.low_bits) {
        float_row(m, tile, r, out);
        return;
    }
    int groups = l.block / l.group;
    for (int b = 0; b < m->n_cols / l.block; b++, tile += layout_block_bytes(&l)) {
        const uint8_t *sc = tile + (l.min ? 128 : 64), *codes = tile + layout_header_bytes(&l);
        for (int c = 0; c < l.block; c++, out++) {
            int g = c / l.group;
            int u = code_at(&l, codes + (size_t)(c / 32) * layout_code_bytes(&l), r, c % 32);
            float d = half_at(tile, r), min = l.min ? half_at(tile + 64, r) : 0;
            if (l.super) {
                d *= l.min ? (float)sc[32 * g + r] : (float)(int8_t)sc[32 * g + r];
                if (l.min)
                    min *= -(float)sc[layout_mn_at(groups, g, r)];
            }
            *out = d * (float)(u - l.zero) + min;
        }
    }
}
