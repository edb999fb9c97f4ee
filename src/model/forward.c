/* forward.c - one step: all layers for all tokens of the batch, as one job of the pool.
 *
 * Threads meet at a barrier after each phase; within a phase they write disjoint memory:
 *
 *   input      x -> norm -> act            by group of tokens
 *   products   act -> wide (q, k, v)       by weight tile
 *   attention  wide, cache -> narrow       by piece of the plan and KV head (attend.c)
 *   input      narrow -> act
 *   products   x += o
 *   input      x -> norm -> act
 *   products   wide = silu(gate) * up
 *   input      wide -> act
 *   products   x += down
 *
 * With few tokens each thread makes the inputs for itself, which is cheaper than to meet: that
 * leaves five barriers a layer. */
#include "model/forward.h"

#include <string.h>

#include "model/lora.h"

/* --- inputs of products -------------------------------------------------------------------------
 */

/* What becomes the input of products. */
struct source {
    const float *x;      /* [n_tokens][n_cols] */
    const float *norm;   /* weight of the RMS norm to apply, or NULL */
    const int32_t *rows; /* rows of x to take, or NULL: 0, 1, 2 ... */
    int n_tokens, n_cols;
    struct lora_site site;
};

/* Where the input of these products lies: the thread's own memory or everybody's. */
static struct act act_of(const struct worker *k, enum act_type type, int n_cols, int n_tokens)
{
    const struct scratch *s = &k->m->scratch;
    void *data = n_tokens <= SMALL_BATCH ? s->threads[k->ith].act[type] : s->act[type];
    return (struct act){type, n_cols, n_tokens, data};
}

/* Rows [r.begin, r.end) of the source as they go into act: normalised into `out`, or as they are.
 */
static const float *rows_of(const struct worker *k, const struct source *s, struct range r,
                            float *out)
{
    if (!s->norm)
        return s->x;
    size_t n = (size_t)s->n_cols;
    for (int i = r.begin; i < r.end; i++)
        k->m->kernels->rmsnorm(s->x + (size_t)(s->rows ? s->rows[i] : i) * n, s->norm,
                               k->m->hp.norm_eps, s->n_cols, out + (size_t)i * n);
    return out;
}

static void fill(const struct worker *k, const struct source *s, unsigned types, const float *x,
                 int ith, int nth)
{
    for (int i = 0; i < N_ACT_TYPES; i++) {
        if (!(types & 1u << i))
            continue;
        struct act a = act_of(k, (enum act_type)i, s->n_cols, s->n_tokens);
        k->m->kernels->act_fill(&a, x, (size_t)s->n_cols, ith, nth);
    }
}

/* Makes the source ready for n products. */
static void input(const struct worker *k, const struct source *s, const struct packed_matrix *w,
                  int n)
{
    unsigned types = 0;
    for (int i = 0; i < n; i++)
        if (w[i].n_rows)
            types |= 1u << packed_act_type(&w[i]);
    if (s->n_tokens <= SMALL_BATCH) {
        float *own = k->m->scratch.threads[k->ith].normed;
        struct range all = {0, s->n_tokens};
        const float *x = rows_of(k, s, all, own);
        fill(k, s, types, x, 0, 1);
        lora_shrink_rows(k, s->site, x, (size_t)s->n_cols, all);
        return;
    }
    int n_groups = act_groups(s->n_tokens);
    struct range groups = share(k, n_groups);
    if (!s->norm) /* what is there already can be shared more evenly than groups */
        fill(k, s, types, s->x, k->ith, k->nth);
    for (int g = groups.begin; g < groups.end; g++) {
        struct range rows = {act_group_begin(s->n_tokens, g), act_group_begin(s->n_tokens, g + 1)};
        const float *x = rows_of(k, s, rows, k->m->scratch.narrow);
        if (s->norm)
            fill(k, s, types, x, g, n_groups);
        lora_shrink_rows(k, s->site, x, (size_t)s->n_cols, rows);
    }
    pool_barrier(k->m->pool, k->ith);
}

/* --- products -----------------------------------------------------------------------------------
 */

/* What a tile costs: its bytes from memory plus its multiplications, 16 in the time of a byte. */
static int64_t tile_cost(const struct matmul *j)
{
    int64_t macs = (int64_t)KERNEL_TILE * j->w->n_cols * j->x->n_tokens;
    int64_t one = (int64_t)j->w->tile_bytes + macs / 16;
    return j->gate ? one + (int64_t)j->gate->tile_bytes + macs / 16 : one;
}

static int clamp(int i, int most)
{
    return i < 0 ? 0 : i > most ? most : i;
}

/* The products of some jobs as one row of tiles. */
struct tile_row {
    const struct matmul *jobs;
    int n, n_threads;
};

/* Where thread i's tiles begin, so that all have the same cost. */
static int cut_tiles(const void *arg, int i)
{
    const struct tile_row *r = arg;
    int64_t total = 0;
    for (int j = 0; j < r->n; j++)
        total += tile_cost(&r->jobs[j]) * packed_tiles(r->jobs[j].w);
    int64_t place = total * i / r->n_threads;
    int first = 0;
    for (int j = 0; j < r->n; j++) {
        int64_t tile = tile_cost(&r->jobs[j]), n_tiles = packed_tiles(r->jobs[j].w);
        if (place <= tile * n_tiles)
            return first + (int)((place + tile - 1) / tile);
        place -= tile * n_tiles;
        first += (int)n_tiles;
    }
    return first;
}

static void products(const struct worker *k, const struct matmul *jobs, int n,
                     struct lora_site site)
{
    struct tile_row row = {jobs, n, k->nth};
    int phase = site.layer < 0 ? k->m->hp.n_layers * LORA_INPUTS
                               : site.layer * LORA_INPUTS + (int)site.input;
    struct deal deal = {.runs = k->m->scratch.runs,
                        .n_threads = k->nth,
                        .phase = (uint16_t)(1 + phase),
                        .cut = cut_tiles,
                        .arg = &row};
    struct helping h;
    while (deal_take(&deal, k->ith, &h)) {
        int first = 0;
        for (int i = 0; i < n; first += packed_tiles(jobs[i++].w)) {
            int n_tiles = packed_tiles(jobs[i].w);
            int from = clamp(h.begin - first, n_tiles), to = clamp(h.end - first, n_tiles);
            struct matmul job = jobs[i];
            job.next_end = clamp(h.next_end - first, n_tiles);
            if (from < to)
                lora_product(k, site, &job, from, to);
        }
    }
    pool_barrier(k->m->pool, k->ith);
}

/* wide = q, k, v of narrow */
static void product_qkv(const struct worker *k, const struct layer *l, struct lora_site site)
{
    const struct hparams *hp = &k->m->hp;
    struct matmul jobs[3];
    struct act acts[3];
    int n = 0;
    float *out = k->m->scratch.wide;
    for (; n < 3 && l->qkv[n].n_rows; n++) {
        const struct packed_matrix *w = &l->qkv[n];
        acts[n] = act_of(k, packed_act_type(w), w->n_cols, k->st->n_tokens);
        jobs[n] = (struct matmul){.w = w,
                                  .x = &acts[n],
                                  .out = out,
                                  .out_stride = (size_t)hparams_q(hp) + 2 * (size_t)hparams_kv(hp),
                                  .bias = l->qkv_bias[n]};
        out += w->n_rows;
    }
    products(k, jobs, n, site);
}

/* out (+)= w act (+ bias), or out = silu(gate act) * (w act) */
static void product(const struct worker *k, struct matmul job, int n_tokens, struct lora_site site)
{
    struct act a = act_of(k, packed_act_type(job.w), job.w->n_cols, n_tokens);
    job.x = &a;
    job.out_stride = (size_t)job.w->n_rows;
    products(k, &job, 1, site);
}

/* --- the pass -----------------------------------------------------------------------------------
 */

/* Rows of the embedding, and the angles of each position. */
static void embed(const struct worker *k)
{
    const struct model *m = k->m;
    const struct gguf_tensor *t = m->weights.token_embd;
    const struct ttype_info *type = ttype_info(t->type);
    size_t n = (size_t)m->hp.n_embd, row_bytes = ttype_row_bytes(t->type, n);
    struct range r = share(k, k->st->n_tokens);
    int token = 0;
    for (int i = 0; i < k->st->n_seqs; i++) {
        const struct batch_seq *s = &k->st->seqs[i];
        for (int j = 0; j < s->n_tokens; j++, token++) {
            if (token < r.begin || token >= r.end)
                continue;
            type->decode((const char *)t->data + (size_t)s->tokens[j] * row_bytes, n,
                         m->scratch.x + (size_t)token * n);
            rope_angles(&m->rope, s->pos + j,
                        m->scratch.angles + (size_t)token * (size_t)m->hp.n_rot);
        }
    }
    pool_barrier(m->pool, k->ith);
}

/* Once the last keys and values are made, only the rows whose logits are wanted matter. With
 * adapters all go on, as their lists know tokens by their rows. */
static bool drops_rows(const struct step *st)
{
    return st->n_rows < st->n_tokens && !st->m->scratch.lora.n_groups;
}

/* Moves the wanted rows to the front, each thread some columns of all, so that no row is
 * overwritten before it has moved. */
static void drop_rows(const struct worker *k)
{
    const struct scratch *s = &k->m->scratch;
    size_t n_embd = (size_t)k->m->hp.n_embd, n_q = (size_t)hparams_q(&k->m->hp);
    struct range x = share(k, (int)n_embd), q = share(k, (int)n_q);
    for (int i = 0; i < k->st->n_rows; i++) {
        size_t row = (size_t)s->rows[i], to = (size_t)i;
        memmove(s->x + to * n_embd + x.begin, s->x + row * n_embd + x.begin,
                (size_t)(x.end - x.begin) * sizeof *s->x);
        memmove(s->narrow + to * n_q + q.begin, s->narrow + row * n_q + q.begin,
                (size_t)(q.end - q.begin) * sizeof *s->narrow);
    }
    pool_barrier(k->m->pool, k->ith);
}

static void run_layer(const struct worker *k, int index)
{
    const struct model *m = k->m;
    const struct layer *l = &m->weights.layers[index];
    const struct scratch *s = &m->scratch;
    int n = k->st->n_tokens, n_embd = m->hp.n_embd;

    struct lora_site qkv = {index, LORA_IN_QKV}, o = {index, LORA_IN_O};
    struct lora_site ffn = {index, LORA_IN_FFN}, down = {index, LORA_IN_DOWN};

    input(k, &(struct source){s->x, l->attn_norm, NULL, n, n_embd, qkv}, l->qkv, 3);
    product_qkv(k, l, qkv);
    attend(k, index);
    if (k->ith == 0) /* between two barriers, so that all threads see the same after the layer */
        k->st->yields = pool_wanted(m->pool);
    if (index == m->hp.n_layers - 1 && drops_rows(k->st)) {
        n = k->st->n_rows;
        if (!n)
            return;
        drop_rows(k);
    }
    input(k, &(struct source){s->narrow, NULL, NULL, n, hparams_q(&m->hp), o}, &l->o, 1);
    product(k, (struct matmul){.w = &l->o, .out = s->x, .bias = l->o_bias, .add = true}, n, o);

    input(k, &(struct source){s->x, l->ffn_norm, NULL, n, n_embd, ffn}, &l->up, 1);
    product(k, (struct matmul){.w = &l->up, .gate = &l->gate, .out = s->wide}, n, ffn);
    input(k, &(struct source){s->wide, NULL, NULL, n, m->hp.n_ff, down}, &l->down, 1);
    product(k, (struct matmul){.w = &l->down, .out = s->x, .add = true}, n, down);
}

/* From st->layer on to the end, or to where others want the pool: then st->layer says how far. */
static void run_step(void *arg, int ith, int nth)
{
    struct step *st = arg;
    const struct model *m = st->m;
    const struct worker k = {st, m, ith, nth};
    int n_layers = m->hp.n_layers, i = st->layer;
    if (!i)
        embed(&k);
    while (i < n_layers) {
        run_layer(&k, i++);
        if (i < n_layers && st->yields)
            break;
    }
    if (ith == 0)
        st->layer = i;
    if (i < n_layers || !st->n_rows)
        return;
    const struct packed_matrix *w = &m->weights.output;
    struct lora_site nowhere = {-1, LORA_INPUTS};
    const int32_t *rows = drops_rows(st) ? NULL : m->scratch.rows;
    input(&k,
          &(struct source){m->scratch.x, m->weights.output_norm, rows, st->n_rows, m->hp.n_embd,
                           nowhere},
          w, 1);
    product(&k, (struct matmul){.w = w, .out = st->logits}, st->n_rows, nowhere);
}

/* Counts tokens, lists the rows whose logits are wanted, and checks what the caller promised. */
static void list_rows(struct step *st)
{
    const struct model *m = st->m;
    int32_t highest = 0;
    for (int i = 0; i < st->n_seqs; i++) {
        const struct batch_seq *s = &st->seqs[i];
        BUG_ON(s->n_tokens < 1 || s->n_tokens > m->scratch.n_tokens - st->n_tokens);
        BUG_ON(s->pos < 0 || s->n_logits < 0 || s->n_logits > s->n_tokens);
        for (int k = 0; k < s->n_tokens; k++)
            BUG_ON(s->tokens[k] < 0 || s->tokens[k] >= m->hp.n_vocab);
        for (int k = 0; k <= (s->pos + s->n_tokens - 1) / KV_BLOCK_TOKENS; k++) {
            BUG_ON(s->blocks[k] < 0 || s->blocks[k] >= st->kv->n_blocks);
            highest = s->blocks[k] > highest ? s->blocks[k] : highest;
        }
        st->n_tokens += s->n_tokens;
        for (int k = st->n_tokens - s->n_logits; k < st->n_tokens; k++)
            m->scratch.rows[st->n_rows++] = k;
    }
    kv_mem_reach(st->kv, highest);
}

void model_forward(struct model *m, struct kv_mem *kv, const struct batch_seq *seqs, int n_seqs,
                   float *logits)
{
    if (!n_seqs)
        return;
    struct step st = {.m = m, .kv = kv, .seqs = seqs, .n_seqs = n_seqs, .logits = logits};
    list_rows(&st);
    atomic_store_explicit(&kv->busy, true, memory_order_relaxed);
    struct plan_shape shape = {m->hp.n_kv_heads, m->hp.n_heads / m->hp.n_kv_heads, m->hp.window,
                               pool_threads(m->pool), m->no_sharing};
    plan_make(&m->scratch.plan, &shape, seqs, n_seqs);
    st.place_inside = attend_can_place(&m->scratch.plan, seqs, n_seqs);
    lora_list(&m->scratch.lora, seqs, n_seqs);
    memset(m->scratch.runs, 0, (size_t)pool_threads(m->pool) * sizeof *m->scratch.runs);
    pool_run(m->pool, run_step, &st);
    while (st.layer < m->hp.n_layers) {
        pool_yield(m->pool);
        pool_run(m->pool, run_step, &st);
    }
    atomic_store_explicit(&kv->busy, false, memory_order_relaxed);
}
