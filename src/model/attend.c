/* attend.c - attention of one layer: new keys and values go into the cache, queries meet the
 * blocks.
 *
 * Where a piece of the plan holds all new tokens of its sequence (every decode, short chunks), a
 * unit of work is self-contained: it turns and stores its own head, then attends. Otherwise all
 * heads are placed first, and threads meet before they attend. */
#include <math.h>

#include "model/forward.h"

static size_t wide_stride(const struct hparams *hp)
{
    return (size_t)hparams_q(hp) + 2 * (size_t)hparams_kv(hp);
}

static char *layer_blocks(const struct step *st, int layer)
{
    return st->kv->memory + (size_t)layer * st->kv->layer_bytes;
}

static void norm_heads(const struct model *m, float *x, const float *weight, int n)
{
    size_t d = (size_t)m->hp.head_dim;
    for (int i = 0; weight && i < n; i++)
        m->kernels->rmsnorm(x + (size_t)i * d, weight, m->hp.norm_eps, (int)d, x + (size_t)i * d);
}

/* KV heads [heads.begin, heads.end) of a token: norm and rope on its q and k, then k and v into the
 * cache. `blocks` is its sequence's table. */
static void place_heads(const struct step *st, int layer, int token, int pos, const int32_t *blocks,
                        struct range heads)
{
    const struct model *m = st->m;
    const struct hparams *hp = &m->hp;
    const struct layer *l = &m->weights.layers[layer];
    size_t d = (size_t)hp->head_dim;
    int group = hp->n_heads / hp->n_kv_heads, n = heads.end - heads.begin;
    float *q = m->scratch.wide + (size_t)token * wide_stride(hp);
    float *keys = q + hparams_q(hp), *values = keys + hparams_kv(hp);
    float *own_q = q + (size_t)(heads.begin * group) * d;
    float *own_k = keys + (size_t)heads.begin * d;
    norm_heads(m, own_q, l->q_norm, n * group);
    norm_heads(m, own_k, l->k_norm, n);
    const float *angles = m->scratch.angles + (size_t)token * (size_t)hp->n_rot;
    m->kernels->rope(own_q, n * group, hp->head_dim, hp->n_rot, angles, m->arch->rope);
    m->kernels->rope(own_k, n, hp->head_dim, hp->n_rot, angles, m->arch->rope);
    char *block =
        layer_blocks(st, layer) + (size_t)blocks[pos / KV_BLOCK_TOKENS] * st->kv->block_bytes;
    m->kernels->kv_write(&m->kv, block, pos % KV_BLOCK_TOKENS, keys, values, heads.begin,
                         heads.end);
}

/* All of the batch; units are (token, KV head), token by token. */
static void place(const struct worker *k, int layer)
{
    const struct step *st = k->st;
    int n_heads = k->m->hp.n_kv_heads, token = 0;
    struct range r = share(k, st->n_tokens * n_heads);
    for (int i = 0; i < st->n_seqs; i++) {
        const struct batch_seq *s = &st->seqs[i];
        for (int t = 0; t < s->n_tokens; t++, token++) {
            struct range heads = {r.begin - token * n_heads, r.end - token * n_heads};
            heads.begin = heads.begin < 0 ? 0 : heads.begin;
            heads.end = heads.end > n_heads ? n_heads : heads.end;
            if (heads.begin < heads.end)
                place_heads(st, layer, token, s->pos + t, s->blocks, heads);
        }
    }
}

static float *partial_row(const struct model *m, int head, int row)
{
    size_t group = (size_t)(m->hp.n_heads / m->hp.n_kv_heads);
    return m->scratch.partials + ((size_t)head * PLAN_MAX_PARTIALS + (size_t)row) * group *
                                     attention_partial_floats(&m->kv);
}

/* Units are (piece, KV head). The last pieces of a prompt see the most keys and go first; the heads
 * of a block follow each other as they do in memory. */
static struct attention unit_attention(const struct step *st, int layer, int unit)
{
    const struct model *m = st->m;
    const struct hparams *hp = &m->hp;
    const struct plan *plan = &m->scratch.plan;
    const struct plan_piece *p = &plan->pieces[plan->n_pieces - 1 - unit / hp->n_kv_heads];
    int head = unit % hp->n_kv_heads;
    return (struct attention){
        .kv = &m->kv,
        .blocks = layer_blocks(st, layer),
        .block_stride = st->kv->block_bytes,
        .table = p->table,
        .block_begin = p->block_begin,
        .block_end = p->block_end,
        .kv_head = head,
        .group = hp->n_heads / hp->n_kv_heads,
        .q = m->scratch.wide,
        .q_stride = wide_stride(hp),
        .tokens = plan->tokens + p->first,
        .pos = plan->pos + p->first,
        .n_tokens = p->n_tokens,
        .window = hp->window,
        .scale = 1 / sqrtf((float)hp->head_dim),
        .out = p->partial < 0 ? m->scratch.narrow : NULL,
        .out_stride = (size_t)hparams_q(hp),
        .partial = p->partial < 0 ? NULL : partial_row(m, head, p->partial),
    };
}

/* Keys and values of the new tokens of a piece that holds all of its sequence's. */
static void place_piece(const struct step *st, int layer, const struct attention *a)
{
    for (int i = 0; i < a->n_tokens; i++)
        place_heads(st, layer, a->tokens[i], a->pos[i], a->table,
                    (struct range){a->kv_head, a->kv_head + 1});
}

/* Units are handed out one by one, because their costs differ. The counter runs on from layer to
 * layer. False: there are no more. */
static bool draw_unit(const struct worker *k, int layer, struct attention *out)
{
    int n_units = k->m->scratch.plan.n_pieces * k->m->hp.n_kv_heads;
    /* Each thread ends a layer by drawing one number too many. */
    int64_t base = (int64_t)layer * (n_units + k->nth);
    int64_t i = atomic_fetch_add_explicit(&k->st->next_unit, 1, memory_order_relaxed) - base;
    if (i < n_units)
        *out = unit_attention(k->st, layer, (int)i);
    return i < n_units;
}

/* A thread draws a unit before it computes the one before, whose end fetches its beginning. */
static void attend_units(const struct worker *k, int layer)
{
    struct attention now, next = {0};
    for (bool more = draw_unit(k, layer, &now); more; now = next) {
        more = draw_unit(k, layer, &next);
        now.next = more ? &next : NULL;
        if (k->st->place_inside)
            place_piece(k->st, layer, &now);
        k->m->kernels->attention(&now, k->m->scratch.threads[k->ith].attention);
    }
}

static void merge(const struct worker *k)
{
    const struct model *m = k->m;
    const struct plan *plan = &m->scratch.plan;
    int group = m->hp.n_heads / m->hp.n_kv_heads, d = m->hp.head_dim;
    struct range r = share(k, plan->n_merges * m->hp.n_kv_heads);
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

void attend(const struct worker *k, int layer)
{
    if (!k->st->place_inside) {
        place(k, layer);
        pool_barrier(k->m->pool, k->ith);
    }
    attend_units(k, layer);
    pool_barrier(k->m->pool, k->ith);
    if (k->m->scratch.plan.n_merges) {
        merge(k);
        pool_barrier(k->m->pool, k->ith);
    }
}

bool attend_can_place(const struct plan *plan, const struct batch_seq *seqs, int n_seqs)
{
    if (plan->n_pieces != n_seqs || plan->n_merges)
        return false;
    for (int i = 0; i < n_seqs; i++)
        if (plan->pieces[i].n_tokens != seqs[i].n_tokens)
            return false;
    return true;
}
