/* forward.c - one step: all layers for all tokens of the batch, as one job of the pool.
 *
 * A layer is eight phases with a barrier after each; within a phase threads write disjoint memory:
 *
 *   norm       x -> narrow                                  by token
 *   fill       narrow -> act                                by token and column
 *   products   act -> wide (q, k, v)                        by weight tile
 *   place      rope on q and k; k and v into their blocks   by token and KV head
 *   attend     q, blocks -> narrow (merged when split)      by piece of the plan and KV head
 *   fill, products   narrow -> act; x += o                  by column; by weight tile
 *   norm, fill, products   x -> narrow -> act; wide = silu(gate) * up
 *   fill, products   wide -> act; x += down
 */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "model/internal.h"

struct step {
    struct model *m;
    struct kv_mem *kv;
    const struct batch_seq *seqs;
    int n_seqs;
    int n_tokens, n_rows;
    float *logits;
    _Atomic int64_t next_unit; /* of attention; counts on through all layers */
};

struct range {
    int begin, end;
};

/* Thread ith's part of n things. */
static struct range share(int n, int ith, int nth)
{
    return (struct range){(int)((int64_t)n * ith / nth), (int)((int64_t)n * (ith + 1) / nth)};
}

/* --- phases -------------------------------------------------------------------------------------
 */

/* Rows of the embedding, and the angles of each position. */
static void embed(const struct step *st, struct range r)
{
    const struct model *m = st->m;
    const struct gguf_tensor *t = m->weights.token_embd;
    const struct ttype_info *type = ttype_info(t->type);
    size_t n = (size_t)m->hp.n_embd, row_bytes = ttype_row_bytes(t->type, n);
    int token = 0;
    for (int i = 0; i < st->n_seqs; i++) {
        const struct batch_seq *s = &st->seqs[i];
        for (int k = 0; k < s->n_tokens; k++, token++) {
            if (token < r.begin || token >= r.end)
                continue;
            type->decode((const char *)t->data + (size_t)s->tokens[k] * row_bytes, n,
                         m->scratch.x + (size_t)token * n);
            rope_angles(&m->rope, s->pos + k,
                        m->scratch.angles + (size_t)token * (size_t)m->hp.n_rot);
        }
    }
}

/* rows NULL: every token, in place of the list. */
static void norm(const struct model *m, const float *weight, const int32_t *rows, struct range r)
{
    size_t n = (size_t)m->hp.n_embd;
    for (int i = r.begin; i < r.end; i++) {
        size_t from = (size_t)(rows ? rows[i] : i);
        m->kernels->rmsnorm(m->scratch.x + from * n, weight, m->hp.norm_eps, m->hp.n_embd,
                            m->scratch.narrow + (size_t)i * n);
    }
}

static struct act act_of(const struct model *m, const struct packed_matrix *w, int n_tokens)
{
    enum act_type type = packed_act_type(w);
    return (struct act){type, w->n_cols, n_tokens, m->scratch.act[type]};
}

/* Makes x ready for the products of n matrices, once for each kind of input that they take. */
static void fill(const struct model *m, const struct packed_matrix *w, int n, int n_tokens,
                 const float *x, int ith, int nth)
{
    unsigned done = 0;
    for (int i = 0; i < n; i++) {
        if (!w[i].n_rows)
            continue;
        struct act a = act_of(m, &w[i], n_tokens);
        if (done & 1u << a.type)
            continue;
        done |= 1u << a.type;
        m->kernels->act_fill(&a, x, (size_t)a.n_cols, ith, nth);
    }
}

/* What a tile costs: its bytes from memory plus its multiplications, 16 in the time of a byte. */
static int64_t tile_cost(const struct matmul *j)
{
    int64_t macs = (int64_t)KERNEL_TILE * j->w->n_cols * j->x->n_tokens;
    int64_t one = (int64_t)j->w->tile_bytes + macs / 16;
    return j->gate ? one + (int64_t)j->gate->tile_bytes + macs / 16 : one;
}

/* The tile that starts at or after a place in a row of tiles. */
static int tile_at(int64_t place, int64_t tile, int n_tiles)
{
    int64_t t = (place + tile - 1) / tile;
    return t < 0 ? 0 : t > n_tiles ? n_tiles : (int)t;
}

/* The products of all jobs as one row of tiles, cut evenly by cost. */
static void products(const struct model *m, const struct matmul *jobs, int n, int ith, int nth)
{
    int64_t total = 0;
    for (int i = 0; i < n; i++)
        total += tile_cost(&jobs[i]) * packed_tiles(jobs[i].w);
    int64_t begin = total * ith / nth, end = total * (ith + 1) / nth;
    for (int i = 0; i < n; i++) {
        int64_t tile = tile_cost(&jobs[i]);
        int n_tiles = packed_tiles(jobs[i].w);
        int from = tile_at(begin, tile, n_tiles), to = tile_at(end, tile, n_tiles);
        if (from < to)
            m->kernels->matmul(&jobs[i], from, to);
        begin -= tile * n_tiles;
        end -= tile * n_tiles;
    }
}

static void product_qkv(const struct step *st, const struct layer *l, int ith, int nth)
{
    const struct model *m = st->m;
    struct matmul jobs[3];
    struct act acts[3];
    int n = 0;
    size_t stride = (size_t)hparams_q(&m->hp) + 2 * (size_t)hparams_kv(&m->hp);
    float *out = m->scratch.wide;
    for (int i = 0; i < 3 && l->qkv[i].n_rows; i++) {
        acts[n] = act_of(m, &l->qkv[i], st->n_tokens);
        jobs[n] = (struct matmul){.w = &l->qkv[i],
                                  .x = &acts[n],
                                  .out = out,
                                  .out_stride = stride,
                                  .bias = l->qkv_bias[i]};
        out += l->qkv[i].n_rows;
        n++;
    }
    products(m, jobs, n, ith, nth);
}

static void product_gate_up(const struct step *st, const struct layer *l, int ith, int nth)
{
    const struct model *m = st->m;
    struct act a = act_of(m, &l->up, st->n_tokens);
    struct matmul job = {.w = &l->up,
                         .gate = &l->gate,
                         .x = &a,
                         .out = m->scratch.wide,
                         .out_stride = (size_t)m->hp.n_ff};
    products(m, &job, 1, ith, nth);
}

/* x += w act (+ bias) */
static void product_add(const struct step *st, const struct packed_matrix *w, const float *bias,
                        int ith, int nth)
{
    const struct model *m = st->m;
    struct act a = act_of(m, w, st->n_tokens);
    struct matmul job = {.w = w,
                         .x = &a,
                         .out = m->scratch.x,
                         .out_stride = (size_t)m->hp.n_embd,
                         .bias = bias,
                         .add = true};
    products(m, &job, 1, ith, nth);
}

/* The KV heads [begin, end) of a token: norm and rope on its q and k, then k and v into the block.
 */
static void place_heads(const struct step *st, const struct layer *l, int layer, int token,
                        const struct batch_seq *s, int pos, struct range heads)
{
    const struct model *m = st->m;
    const struct kernels *k = m->kernels;
    const struct hparams *hp = &m->hp;
    size_t d = (size_t)hp->head_dim, n_q = (size_t)hparams_q(hp), n_kv = (size_t)hparams_kv(hp);
    int group = hp->n_heads / hp->n_kv_heads, n = heads.end - heads.begin;
    float *q = m->scratch.wide + (size_t)token * (n_q + 2 * n_kv);
    float *keys = q + n_q, *values = keys + n_kv;
    float *q_heads = q + (size_t)(heads.begin * group) * d,
          *k_heads = keys + (size_t)heads.begin * d;
    for (int i = 0; l->q_norm && i < n * group; i++)
        k->rmsnorm(q_heads + (size_t)i * d, l->q_norm, hp->norm_eps, hp->head_dim,
                   q_heads + (size_t)i * d);
    for (int i = 0; l->k_norm && i < n; i++)
        k->rmsnorm(k_heads + (size_t)i * d, l->k_norm, hp->norm_eps, hp->head_dim,
                   k_heads + (size_t)i * d);
    const float *angles = m->scratch.angles + (size_t)token * (size_t)hp->n_rot;
    k->rope(q_heads, n * group, hp->head_dim, hp->n_rot, angles, m->arch->rope);
    k->rope(k_heads, n, hp->head_dim, hp->n_rot, angles, m->arch->rope);
    char *block = st->kv->memory + (size_t)layer * st->kv->layer_bytes +
                  (size_t)s->blocks[pos / KV_BLOCK_TOKENS] * st->kv->block_bytes;
    k->kv_write(&m->kv, block, pos % KV_BLOCK_TOKENS, keys, values, heads.begin, heads.end);
}

/* Units are (token, KV head), token by token. */
static void place(const struct step *st, const struct layer *l, int layer, int ith, int nth)
{
    int n_heads = st->m->hp.n_kv_heads;
    struct range r = share(st->n_tokens * n_heads, ith, nth);
    int token = 0;
    for (int i = 0; i < st->n_seqs; i++) {
        const struct batch_seq *s = &st->seqs[i];
        for (int k = 0; k < s->n_tokens; k++, token++) {
            struct range heads = {r.begin - token * n_heads, r.end - token * n_heads};
            heads.begin = heads.begin < 0 ? 0 : heads.begin;
            heads.end = heads.end > n_heads ? n_heads : heads.end;
            if (heads.begin < heads.end)
                place_heads(st, l, layer, token, s, s->pos + k, heads);
        }
    }
}

static float *partial_row(const struct model *m, int head, int row)
{
    size_t group = (size_t)(m->hp.n_heads / m->hp.n_kv_heads);
    return m->scratch.partials + ((size_t)head * PLAN_MAX_PARTIALS + (size_t)row) * group *
                                     attention_partial_floats(&m->kv);
}

static void attend_unit(const struct step *st, int layer, int unit, void *scratch)
{
    const struct model *m = st->m;
    const struct hparams *hp = &m->hp;
    const struct plan *plan = &m->scratch.plan;
    const struct plan_piece *p = &plan->pieces[unit / hp->n_kv_heads];
    int head = unit % hp->n_kv_heads;
    struct attention a = {
        .kv = &m->kv,
        .blocks = st->kv->memory + (size_t)layer * st->kv->layer_bytes,
        .block_stride = st->kv->block_bytes,
        .table = p->table,
        .block_begin = p->block_begin,
        .block_end = p->block_end,
        .kv_head = head,
        .group = hp->n_heads / hp->n_kv_heads,
        .q = m->scratch.wide,
        .q_stride = (size_t)hparams_q(hp) + 2 * (size_t)hparams_kv(hp),
        .tokens = plan->tokens + p->first,
        .pos = plan->pos + p->first,
        .n_tokens = p->n_tokens,
        .window = hp->window,
        .scale = 1 / sqrtf((float)hp->head_dim),
        .out = p->partial < 0 ? m->scratch.narrow : NULL,
        .out_stride = (size_t)hparams_q(hp),
        .partial = p->partial < 0 ? NULL : partial_row(m, head, p->partial),
    };
    m->kernels->attention(&a, scratch);
}

/* Units are (piece, KV head), handed out one by one, because their costs differ; the last pieces of
 * a prompt see the most keys and go first. The counter runs on from layer to layer. */
static void attend(struct step *st, int layer, int ith, int nth)
{
    const struct model *m = st->m;
    int n_units = m->scratch.plan.n_pieces * m->hp.n_kv_heads;
    void *scratch = m->scratch.attention + (size_t)ith * m->scratch.attention_bytes;
    /* Each thread ends a layer by drawing one number too many. */
    int64_t base = (int64_t)layer * (n_units + nth);
    for (;;) {
        int64_t i = atomic_fetch_add_explicit(&st->next_unit, 1, memory_order_relaxed) - base;
        if (i >= n_units)
            return;
        attend_unit(st, layer, n_units - 1 - (int)i, scratch);
    }
}

static void merge(const struct step *st, int ith, int nth)
{
    const struct model *m = st->m;
    const struct plan *plan = &m->scratch.plan;
    int group = m->hp.n_heads / m->hp.n_kv_heads, d = m->hp.head_dim;
    struct range r = share(plan->n_merges * m->hp.n_kv_heads, ith, nth);
    const float *parts[PLAN_MAX_PARTIALS];
    for (int u = r.begin; u < r.end; u++) {
        const struct plan_merge *mg = &plan->merges[u / m->hp.n_kv_heads];
        int head = u % m->hp.n_kv_heads;
        for (int i = 0; i < mg->n_parts; i++)
            parts[i] = partial_row(m, head, plan->parts[mg->first_part + i]);
        float *out = m->scratch.narrow + (size_t)mg->token * (size_t)hparams_q(&m->hp) +
                     (size_t)(head * group * d);
        m->kernels->attention_merge(parts, mg->n_parts, group, d, out, (size_t)d);
    }
}

/* --- layers -------------------------------------------------------------------------------------
 */

static void attention_half(struct step *st, int layer, int ith, int nth)
{
    const struct model *m = st->m;
    const struct layer *l = &m->weights.layers[layer];
    norm(m, l->attn_norm, NULL, share(st->n_tokens, ith, nth));
    pool_barrier(m->pool, ith);
    fill(m, l->qkv, 3, st->n_tokens, m->scratch.narrow, ith, nth);
    pool_barrier(m->pool, ith);
    product_qkv(st, l, ith, nth);
    pool_barrier(m->pool, ith);
    place(st, l, layer, ith, nth);
    pool_barrier(m->pool, ith);
    attend(st, layer, ith, nth);
    pool_barrier(m->pool, ith);
    if (m->scratch.plan.n_merges) {
        merge(st, ith, nth);
        pool_barrier(m->pool, ith);
    }
    fill(m, &l->o, 1, st->n_tokens, m->scratch.narrow, ith, nth);
    pool_barrier(m->pool, ith);
    product_add(st, &l->o, l->o_bias, ith, nth);
    pool_barrier(m->pool, ith);
}

static void ffn_half(struct step *st, int layer, int ith, int nth)
{
    const struct model *m = st->m;
    const struct layer *l = &m->weights.layers[layer];
    norm(m, l->ffn_norm, NULL, share(st->n_tokens, ith, nth));
    pool_barrier(m->pool, ith);
    const struct packed_matrix both[] = {l->gate, l->up};
    fill(m, both, 2, st->n_tokens, m->scratch.narrow, ith, nth);
    pool_barrier(m->pool, ith);
    product_gate_up(st, l, ith, nth);
    pool_barrier(m->pool, ith);
    fill(m, &l->down, 1, st->n_tokens, m->scratch.wide, ith, nth);
    pool_barrier(m->pool, ith);
    product_add(st, &l->down, NULL, ith, nth);
    pool_barrier(m->pool, ith);
}

/* The wanted rows of the last layer become logits. */
static void output(const struct step *st, int ith, int nth)
{
    const struct model *m = st->m;
    if (!st->n_rows)
        return;
    norm(m, m->weights.output_norm, m->scratch.rows, share(st->n_rows, ith, nth));
    pool_barrier(m->pool, ith);
    fill(m, &m->weights.output, 1, st->n_rows, m->scratch.narrow, ith, nth);
    pool_barrier(m->pool, ith);
    struct act a = act_of(m, &m->weights.output, st->n_rows);
    struct matmul job = {
        .w = &m->weights.output, .x = &a, .out = st->logits, .out_stride = (size_t)m->hp.n_vocab};
    products(m, &job, 1, ith, nth);
}

static void run_step(void *arg, int ith, int nth)
{
    struct step *st = arg;
    embed(st, share(st->n_tokens, ith, nth));
    for (int i = 0; i < st->m->hp.n_layers; i++) {
        attention_half(st, i, ith, nth);
        ffn_half(st, i, ith, nth);
    }
    output(st, ith, nth);
}

/* Counts tokens, lists the rows whose logits are wanted, and checks what the caller promised. */
static void list_rows(struct step *st)
{
    const struct model *m = st->m;
    for (int i = 0; i < st->n_seqs; i++) {
        const struct batch_seq *s = &st->seqs[i];
        BUG_ON(s->n_tokens < 1 || s->n_tokens > m->scratch.n_tokens - st->n_tokens);
        BUG_ON(s->pos < 0 || s->n_logits < 0 || s->n_logits > s->n_tokens);
        for (int k = 0; k < s->n_tokens; k++)
            BUG_ON(s->tokens[k] < 0 || s->tokens[k] >= m->hp.n_vocab);
        for (int k = 0; k <= (s->pos + s->n_tokens - 1) / KV_BLOCK_TOKENS; k++)
            BUG_ON(s->blocks[k] < 0 || s->blocks[k] >= st->kv->n_blocks);
        st->n_tokens += s->n_tokens;
        for (int k = st->n_tokens - s->n_logits; k < st->n_tokens; k++)
            m->scratch.rows[st->n_rows++] = k;
    }
}

void model_forward(struct model *m, struct kv_mem *kv, const struct batch_seq *seqs, int n_seqs,
                   float *logits)
{
    if (!n_seqs)
        return;
    struct step st = {.m = m, .kv = kv, .seqs = seqs, .n_seqs = n_seqs, .logits = logits};
    list_rows(&st);
    struct plan_shape shape = {m->hp.n_kv_heads, m->hp.n_heads / m->hp.n_kv_heads, m->hp.window,
                               pool_threads(m->pool)};
    plan_make(&m->scratch.plan, &shape, seqs, n_seqs);
    pool_run(m->pool, run_step, &st);
}
