#include <stdlib.h>

#include "base/mem.h"
#include "model/internal.h"

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* The widest input that products of each activation type take. */
static void widest_inputs(const struct model *m, int widest[N_ACT_TYPES])
{
    for (int i = 0; i < N_ACT_TYPES; i++)
        widest[i] = 0;
    for (int i = 0; i < m->weights.n_packed; i++) {
        const struct packed_matrix *p = m->weights.packed[i].matrix;
        int *w = &widest[packed_act_type(p)];
        *w = p->n_cols > *w ? p->n_cols : *w;
    }
}

/* Takes n bytes from the block; with base NULL only counts. */
static void *take(char *base, size_t *used, size_t n)
{
    void *p = base ? base + *used : NULL;
    *used += (n + KERNEL_ALIGN - 1) / KERNEL_ALIGN * KERNEL_ALIGN;
    return p;
}

static void take_acts(void *act[N_ACT_TYPES], char *base, size_t *used,
                      const int widest[N_ACT_TYPES], int n_tokens)
{
    for (int i = 0; i < N_ACT_TYPES; i++)
        if (widest[i])
            act[i] = take(base, used, act_bytes((enum act_type)i, widest[i], n_tokens));
}

/* Every size is bounded by the limits of hparams and MAX_BATCH_TOKENS, far below 2^63. */
static size_t carve(struct scratch *s, const struct model *m, char *base)
{
    const struct hparams *hp = &m->hp;
    size_t t = (size_t)s->n_tokens, used = 0;
    size_t q = (size_t)hparams_q(hp), kv = (size_t)hparams_kv(hp);
    int widest[N_ACT_TYPES];
    widest_inputs(m, widest);

    s->x = take(base, &used, t * (size_t)hp->n_embd * sizeof(float));
    s->narrow = take(base, &used, t * max_size((size_t)hp->n_embd, q) * sizeof(float));
    s->wide = take(base, &used, t * max_size(q + 2 * kv, (size_t)hp->n_ff) * sizeof(float));
    s->angles = take(base, &used, t * (size_t)hp->n_rot * sizeof(float));
    take_acts(s->act, base, &used, widest, s->n_tokens);
    s->partials = take(base, &used,
                       PLAN_MAX_PARTIALS * (size_t)hp->n_heads * attention_partial_floats(&m->kv) *
                           sizeof(float));
    for (int i = 0; i < pool_threads(m->pool); i++) {
        struct thread_scratch *own = &s->threads[i];
        own->normed = take(base, &used, SMALL_BATCH * (size_t)hp->n_embd * sizeof(float));
        take_acts(own->act, base, &used, widest, SMALL_BATCH);
        own->attention = take(base, &used, attention_scratch_bytes(&m->kv));
    }
    s->rows = take(base, &used, t * sizeof *s->rows);
    s->runs = take(base, &used, (size_t)pool_threads(m->pool) * sizeof *s->runs);
    return used;
}

int scratch_init(struct scratch *s, const struct model *m, int n_tokens, struct err *e)
{
    *s = (struct scratch){.n_tokens = n_tokens};
    s->threads = xcalloc((size_t)pool_threads(m->pool), sizeof *s->threads);
    s->bytes = carve(s, m, NULL);
    s->memory = mem_alloc_big(s->bytes);
    if (!s->memory) {
        size_t bytes = s->bytes;
        scratch_release(s);
        return err_set(e, ERR_NOMEM, "out of memory: steps of %d tokens need %zu MiB", n_tokens,
                       bytes >> 20);
    }
    carve(s, m, s->memory);
    int rc = plan_init(&s->plan, n_tokens, e);
    if (!rc)
        rc = lora_lists_init(&s->lora, n_tokens, pool_threads(m->pool), e);
    if (rc)
        scratch_release(s);
    return rc;
}

size_t scratch_bytes(const struct scratch *s)
{
    return s->bytes + s->plan.bytes + s->lora.bytes;
}

void scratch_release(struct scratch *s)
{
    plan_release(&s->plan);
    lora_lists_release(&s->lora);
    free(s->threads);
    mem_free_big(s->memory, s->bytes);
    *s = (struct scratch){0};
}
