#include "model/lora.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/lora.h"

/* Floats of a product that a thread makes before it adds what adapters give: they are still in its
 * cache then. */
enum { CHUNK_FLOATS = 1 << 16, MAX_ROWS = 3 * ADAPTER_MAX_RANK };

int lora_lists_init(struct lora_lists *l, int n_tokens, int n_threads, struct err *e)
{
    size_t n = (size_t)n_tokens * MODEL_MAX_ADAPTERS;
    size_t small = SMALL_BATCH * MODEL_MAX_ADAPTERS;
    l->n_threads = n_threads;
    l->gate_floats =
        n_tokens * KERNEL_TILE > CHUNK_FLOATS ? (size_t)n_tokens * KERNEL_TILE : CHUNK_FLOATS;
    l->groups = try_calloc(n, sizeof *l->groups);
    l->tokens = try_calloc(n, sizeof *l->tokens);
    l->scales = try_calloc(n, sizeof *l->scales);
    l->h_bytes = n * MAX_ROWS * sizeof(uint16_t);
    l->own_bytes = small * MAX_ROWS * sizeof(uint16_t) + l->gate_floats * sizeof(float);
    l->h = mem_alloc_big(l->h_bytes);
    l->own = mem_alloc_big(l->own_bytes * (size_t)n_threads);
    l->bytes = n * (sizeof *l->groups + sizeof *l->tokens + sizeof *l->scales) + l->h_bytes +
               l->own_bytes * (size_t)n_threads;
    if (l->groups && l->tokens && l->scales && l->h && l->own)
        return 0;
    lora_lists_release(l);
    return err_set(e, ERR_NOMEM, "out of memory for adapters on %d tokens", n_tokens);
}

void lora_lists_release(struct lora_lists *l)
{
    free(l->groups);
    free(l->tokens);
    free(l->scales);
    mem_free_big(l->h, l->h_bytes);
    mem_free_big(l->own, l->own_bytes * (size_t)l->n_threads);
    *l = (struct lora_lists){0};
}

/* --- lists --------------------------------------------------------------------------------------
 */

/* Groups stand in the order of their digests, so that the sums of a token with several adapters do
 * not depend on its company. */
static struct lora_group *group_of(struct lora_lists *l, const struct adapter *a)
{
    int at = 0;
    for (; at < l->n_groups; at++) {
        if (l->groups[at].adapter == a)
            return &l->groups[at];
        if (memcmp(a->info.digest, l->groups[at].adapter->info.digest, sizeof a->info.digest) < 0)
            break;
    }
    for (int i = at; i < l->n_groups; i++)
        if (l->groups[i].adapter == a)
            return &l->groups[i];
    memmove(&l->groups[at + 1], &l->groups[at], (size_t)(l->n_groups - at) * sizeof *l->groups);
    l->groups[at] = (struct lora_group){.adapter = a};
    l->n_groups++;
    return &l->groups[at];
}

/* The first token of a sequence's part that the adapter changes, n_tokens if there is none. */
static int first_changed(const struct batch_seq *s, const struct adapter_use *use)
{
    int before = use->from - s->pos;
    return before < 0 ? 0 : before < s->n_tokens ? before : s->n_tokens;
}

void lora_list(struct lora_lists *l, const struct batch_seq *seqs, int n_seqs)
{
    l->n_groups = 0;
    for (int i = 0; i < n_seqs; i++) {
        BUG_ON(seqs[i].n_adapters < 0 || seqs[i].n_adapters > MODEL_MAX_ADAPTERS);
        for (int u = 0; u < seqs[i].n_adapters; u++) {
            int n = seqs[i].n_tokens - first_changed(&seqs[i], &seqs[i].adapters[u]);
            if (n)
                group_of(l, seqs[i].adapters[u].adapter)->n += n;
        }
    }
    int first = 0;
    size_t h = 0;
    for (int i = 0; i < l->n_groups; i++) {
        struct lora_group *g = &l->groups[i];
        g->first = first;
        g->h = h;
        first += g->n;
        h += (size_t)g->n * (size_t)g->adapter->max_rows;
        g->n = 0;
    }
    int token = 0;
    for (int i = 0; i < n_seqs; token += seqs[i++].n_tokens)
        for (int t = 0; t < seqs[i].n_tokens; t++)
            for (int u = 0; u < seqs[i].n_adapters; u++) {
                if (t < first_changed(&seqs[i], &seqs[i].adapters[u]))
                    continue;
                struct lora_group *g = group_of(l, seqs[i].adapters[u].adapter);
                int at = g->first + g->n++;
                l->tokens[at] = token + t;
                l->scales[at] = seqs[i].adapters[u].scale;
            }
}

/* --- products -----------------------------------------------------------------------------------
 */

/* h of a group: the thread's own memory or everybody's, as the inputs of products (forward.c). */
static uint16_t *h_of(const struct worker *k, const struct lora_group *g)
{
    const struct lora_lists *l = &k->m->scratch.lora;
    char *own = (char *)l->own + (size_t)k->ith * l->own_bytes + l->gate_floats * sizeof(float);
    return (k->st->n_tokens <= SMALL_BATCH ? (uint16_t *)own : l->h) + g->h;
}

void lora_shrink_rows(const struct worker *k, struct lora_site site, const float *x,
                      size_t x_stride, struct range rows)
{
    const struct lora_lists *l = &k->m->scratch.lora;
    if (site.layer < 0)
        return;
    for (int i = 0; i < l->n_groups; i++) {
        const struct lora_group *g = &l->groups[i];
        const struct adapter_layer *al = &g->adapter->layers[site.layer];
        int rank = al->in[site.input].rank, from = 0, to = g->n;
        const int32_t *tokens = l->tokens + g->first;
        while (from < to && tokens[from] < rows.begin)
            from++;
        while (to > from && tokens[to - 1] >= rows.end)
            to--;
        if (!rank || from == to)
            continue;
        struct lora_shrink job = {
            .a = al->in[site.input].a,
            .rank = rank,
            .n_cols = lora_n_cols(&k->m->hp, site.input),
            .x = x,
            .x_stride = x_stride,
            .tokens = tokens + from,
            .scales = l->scales + g->first + from,
            .n_tokens = to - from,
            .h = h_of(k, g) + (size_t)from * (size_t)rank,
            .h_stride = (size_t)rank,
        };
        k->m->kernels->lora_shrink(&job, 0, lora_panels(rank));
    }
}

/* Adds to columns [begin, end) of `out`, whose column 0 is row `row` of this output. */
static void expand(const struct worker *k, struct lora_site site, enum lora_output output, int row,
                   int n_rows, float *out, size_t out_stride)
{
    const struct lora_lists *l = &k->m->scratch.lora;
    for (int i = 0; i < l->n_groups; i++) {
        const struct lora_group *g = &l->groups[i];
        const struct adapter_layer *al = &g->adapter->layers[site.layer];
        if (!al->out[output].rank)
            continue;
        int rank = al->out[output].rank;
        struct lora_expand job = {
            .b = al->out[output].b + lora_b_elems(rank, row),
            .rank = rank,
            .n_rows = n_rows,
            .h = h_of(k, g) + al->out[output].h_begin,
            .h_stride = (size_t)al->in[site.input].rank,
            .tokens = l->tokens + g->first,
            .n_tokens = g->n,
            .out = out,
            .out_stride = out_stride,
        };
        k->m->kernels->lora_expand(&job, 0, n_rows);
    }
}

/* The outputs of an input follow each other in the memory of the products, from `column` on. */
static void expand_columns(const struct worker *k, struct lora_site site, int column, int n,
                           float *out, size_t out_stride)
{
    int first = 0;
    for (int o = 0; o < LORA_OUTPUTS; o++) {
        enum lora_output output = (enum lora_output)o;
        if (lora_input_of(output) != site.input)
            continue;
        int rows = lora_n_rows(&k->m->hp, output);
        int begin = column > first ? column : first;
        int end = column + n < first + rows ? column + n : first + rows;
        if (begin < end)
            expand(k, site, output, begin - first, end - begin, out + (begin - column), out_stride);
        first += rows;
    }
}

/* Gate and up are needed before they are joined: gate goes into the thread's own memory. */
static void gate_up(const struct worker *k, struct lora_site site, const struct matmul *job,
                    int tile, int n_tiles)
{
    const struct lora_lists *l = &k->m->scratch.lora;
    float *own = (float *)((char *)l->own + (size_t)k->ith * l->own_bytes);
    int row = tile * KERNEL_TILE, n_rows = job->w->n_rows - row;
    n_rows = n_rows < n_tiles * KERNEL_TILE ? n_rows : n_tiles * KERNEL_TILE;
    struct packed_matrix gate = packed_view(job->gate, row, n_rows);
    struct matmul gate_job = {.w = &gate, .x = job->x, .out = own, .out_stride = (size_t)n_rows};
    struct matmul up_job = *job;
    up_job.gate = NULL;
    k->m->kernels->matmul(&gate_job, 0, n_tiles);
    k->m->kernels->matmul(&up_job, tile, tile + n_tiles);
    expand(k, site, LORA_GATE, row, n_rows, own, (size_t)n_rows);
    expand(k, site, LORA_UP, row, n_rows, job->out + row, job->out_stride);
    for (int t = 0; t < job->x->n_tokens; t++) {
        float *up = job->out + (size_t)t * job->out_stride + row;
        k->m->kernels->silu_mul(own + (size_t)t * (size_t)n_rows, up, n_rows, up);
    }
}

void lora_product(const struct worker *k, struct lora_site site, const struct matmul *job, int from,
                  int to)
{
    if (!k->m->scratch.lora.n_groups || site.layer < 0) {
        k->m->kernels->matmul(job, from, to);
        return;
    }
    int step = CHUNK_FLOATS / KERNEL_TILE / job->x->n_tokens;
    step = step < 1 ? 1 : step;
    for (int tile = from; tile < to; tile += step) {
        int n = to - tile < step ? to - tile : step;
        if (job->gate) {
            gate_up(k, site, job, tile, n);
            continue;
        }
        int row = tile * KERNEL_TILE, left = job->w->n_rows - row;
        k->m->kernels->matmul(job, tile, tile + n);
        int column = row;
        if (site.input == LORA_IN_QKV)
            column += (int)(job->out - k->m->scratch.wide);
        expand_columns(k, site, column, left < n * KERNEL_TILE ? left : n * KERNEL_TILE,
                       job->out + row, job->out_stride);
    }
}
