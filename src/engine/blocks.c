#include "engine/blocks.h"

#include <stdlib.h>

#include "base/mem.h"

struct pin {
    struct pin *next;
    uint64_t id;
    struct kv_table table;
    struct seq_keys keys;
    int n_promised;  /* blocks; table has fewer while they come from elsewhere */
    int32_t *tokens; /* n_tokens of them, NULL: the pin is complete */
    int n_tokens;
};

void blocks_init(struct blocks *b, const struct engine_model *model, bool prefix_cache)
{
    *b = (struct blocks){.model = model};
    kv_init(&b->kv, model->n_blocks, KV_BLOCK_TOKENS);
    prefix_init(&b->prefix, &b->kv, prefix_cache);
    b->found = xcalloc((size_t)model->n_blocks, sizeof *b->found);
}

void blocks_release(struct blocks *b)
{
    while (b->pins)
        blocks_unpin(b, b->pins->id);
    prefix_release(&b->prefix);
    kv_release(&b->kv);
    map_release(&b->marks);
    buf_release(&b->keys);
    free(b->found);
    *b = (struct blocks){0};
}

/* Admission. */

static struct str salt_of(const struct seq_keys *k)
{
    return (struct str){k->salt.data, k->salt.len};
}

/* Activated adapters.
 *
 * KV is found by tokens. Those from an activation on must not be taken for the same tokens without
 * it, while those before it are everybody's: so the former have a mark added, a multiple of n_vocab
 * that belongs to these adapters at these scales for the life of the engine. */

enum { MOST_MARKS = 4096 };

static int32_t key_at(const struct seq_keys *k, const int32_t *tokens, int i)
{
    return tokens[i] + (i >= k->active_from ? k->active_mark : 0);
}

/* Tokens from .. to-1 of a sequence or a pin as the prefix cache knows them. */
static const int32_t *keys_of(struct blocks *b, const struct seq_keys *k, const int32_t *tokens,
                              int from, int to)
{
    if (!k->active_mark || to <= k->active_from)
        return tokens + from;
    buf_clear(&b->keys);
    int32_t *out = (int32_t *)buf_reserve(&b->keys, (size_t)(to - from) * sizeof *out);
    for (int i = from; i < to; i++)
        out[i - from] = key_at(k, tokens, i);
    return out;
}

/* Gives k its mark. When there are no more, it shares with its like only, from the first token on:
 * where it is activated is then a part of its salt. */
static void mark(struct blocks *b, struct seq_keys *k)
{
    if (!k->active.len || k->active_mark)
        return;
    struct str active = {k->active.data, k->active.len};
    uintptr_t known = (uintptr_t)map_get(&b->marks, active);
    int most = INT32_MAX / b->model->n_vocab - 1;
    if (!known && b->marks.n < (size_t)(most < MOST_MARKS ? most : MOST_MARKS)) {
        known = b->marks.n + 1;
        map_put(&b->marks, active, (void *)known);
    }
    k->active_mark = (int32_t)known * b->model->n_vocab;
    if (known)
        return;
    buf_add(&k->salt, k->active.data, k->active.len);
    buf_add(&k->salt, &k->active_from, sizeof k->active_from);
    buf_clear(&k->active);
}

static int common(const struct seq *p, const struct seq *q, int n)
{
    int i = 0;
    while (i < n && key_at(&p->keys, p->tokens, i) == key_at(&q->keys, q->tokens, i))
        i++;
    return i;
}

/* How much a sequence of this step must be about to compute of q's prompt, beyond the `known`
 * tokens, so that q waits for it rather than compute the same again. A few tokens that all chats
 * begin with are not worth a step's wait. */
enum { WORTH_WAITING = 8 };

static bool is_being_computed(const struct blocks *b, struct sched_item *const *plan, int n_plan,
                              const struct seq *q, int known)
{
    for (int i = 0; i < n_plan; i++) {
        const struct seq *p = (const struct seq *)plan[i];
        if (p->item.n_computed + p->item.n_planned <= known)
            continue; /* behind q: it was begun before its salt was forgotten */
        if (p->item.n_tokens - p->item.n_computed == 1 ||
            !str_eq(salt_of(&p->keys), salt_of(&q->keys)))
            continue;
        int most = p->item.n_tokens < q->item.n_tokens ? p->item.n_tokens : q->item.n_tokens - 1;
        int same = common(p, q, most);
        if (same - known >= WORTH_WAITING)
            return true;
    }
    return false;
}

/* Takes references to what was found, or gives them back. The partial block is held only until its
 * content is copied. */
static void hold(struct blocks *b, const struct prefix_match *m)
{
    for (int i = 0; i < m->n_full; i++)
        prefix_ref(&b->prefix, b->found[i]);
    if (m->n_partial)
        prefix_ref(&b->prefix, m->partial);
}

static void let_go(struct blocks *b, const struct prefix_match *m)
{
    if (m->n_partial)
        prefix_unref(&b->prefix, m->partial);
    for (int i = m->n_full; i-- > 0;)
        prefix_unref(&b->prefix, b->found[i]);
}

/* What is known of q's tokens but the last. */
static struct prefix_match find(struct blocks *b, const struct seq *q)
{
    int n = q->item.n_tokens - 1;
    return prefix_find(&b->prefix, salt_of(&q->keys), keys_of(b, &q->keys, q->tokens, 0, n), n,
                       b->found);
}

enum sched_answer blocks_admit(struct blocks *b, struct seq *q, struct sched_item *const *plan,
                               int n_plan, int reserve)
{
    struct sched_item *item = &q->item;
    mark(b, &q->keys);
    /* at least one token is computed: its logits are the answer's beginning */
    struct prefix_match m = find(b, q);
    int known = m.n_full * b->kv.block_tokens + m.n_partial;
    if (b->prefix.enabled && is_being_computed(b, plan, n_plan, q, known))
        return SCHED_WAIT;
    int fresh = kv_blocks_for(&b->kv, item->n_tokens) - m.n_full;
    hold(b, &m);
    if (m.n_partial && prefix_available(&b->prefix) < fresh + reserve) {
        /* the block to copy from may be the one that is missing */
        prefix_unref(&b->prefix, m.partial);
        known -= m.n_partial;
        m.n_partial = 0;
    }
    if (prefix_available(&b->prefix) < fresh + reserve) {
        let_go(b, &m);
        return SCHED_FULL;
    }
    for (int i = 0; i < m.n_full; i++)
        kv_table_add(&q->table, b->found[i]);
    for (int i = 0; i < fresh; i++)
        kv_table_add(&q->table, prefix_take(&b->prefix));
    if (m.n_partial) {
        b->model->copy_block(b->model->ctx, q->table.blocks[m.n_full], m.partial, m.n_partial);
        prefix_unref(&b->prefix, m.partial);
    }
    item->n_computed = known;
    if (!q->started)
        q->cached_tokens = known;
    return SCHED_OK;
}

/* Whether q, which has computed `first` full blocks, goes on from what was found. One that was
 * forgotten meanwhile does not: the blocks of others hang under other parents than its own. */
static bool goes_on(const struct blocks *b, const struct seq *q, const struct prefix_match *m,
                    int first)
{
    if (m->n_full < first)
        return false;
    for (int i = 0; i < first; i++)
        if (b->found[i] != q->table.blocks[i])
            return false;
    return m->n_full * b->kv.block_tokens + m->n_partial > q->item.n_computed;
}

/* q's own block at the first place has at most a tail in it: full blocks of others take its place,
 * a longer tail is copied over it. */
static void take_over(struct blocks *b, struct seq *q, const struct prefix_match *m, int first)
{
    for (int i = first; i < m->n_full; i++)
        prefix_ref(&b->prefix, b->found[i]);
    for (int i = m->n_full; i-- > first;) {
        prefix_unref(&b->prefix, q->table.blocks[i]);
        q->table.blocks[i] = b->found[i];
    }
    if (m->n_partial)
        b->model->copy_block(b->model->ctx, q->table.blocks[m->n_full], m->partial, m->n_partial);
}

enum sched_answer blocks_catch_up(struct blocks *b, struct seq *q, struct sched_item *const *plan,
                                  int n_plan, int *n_tokens)
{
    int first = q->item.n_computed / b->kv.block_tokens, from = q->item.n_computed;
    *n_tokens = 0;
    if (!b->prefix.enabled)
        return SCHED_OK;
    struct prefix_match m = find(b, q);
    if (goes_on(b, q, &m, first)) {
        take_over(b, q, &m, first);
        q->item.n_computed = m.n_full * b->kv.block_tokens + m.n_partial;
        *n_tokens = q->item.n_computed - from;
    }
    return is_being_computed(b, plan, n_plan, q, q->item.n_computed) ? SCHED_WAIT : SCHED_OK;
}

bool blocks_grow(struct blocks *b, struct seq *q, int n_tokens)
{
    while (q->table.n < kv_blocks_for(&b->kv, n_tokens)) {
        int32_t block = prefix_take(&b->prefix);
        if (block < 0)
            return false;
        kv_table_add(&q->table, block);
    }
    return true;
}

void blocks_drop(struct blocks *b, struct seq *q)
{
    while (q->table.n)
        prefix_unref(&b->prefix, q->table.blocks[--q->table.n]);
    q->item.n_computed = 0;
}

void blocks_publish(struct blocks *b, struct seq *q, int from, int to)
{
    int size = b->kv.block_tokens;
    for (int i = from / size; i * size < to; i++) {
        int n = to - i * size < size ? to - i * size : size;
        int32_t parent = i ? q->table.blocks[i - 1] : -1;
        q->table.blocks[i] = prefix_put(&b->prefix, salt_of(&q->keys), parent, q->table.blocks[i],
                                        keys_of(b, &q->keys, q->tokens, i * size, i * size + n), n);
    }
}

/* Pins. */

void blocks_pin(struct blocks *b, const struct seq *q)
{
    struct pin *pin = xcalloc(1, sizeof *pin);
    int n = kv_blocks_for(&b->kv, q->n_prompt);
    *pin = (struct pin){.next = b->pins, .id = q->id, .n_promised = n};
    buf_add(&pin->keys.salt, q->keys.salt.data, q->keys.salt.len);
    for (int i = 0; i < n; i++) {
        kv_table_add(&pin->table, q->table.blocks[i]);
        prefix_ref(&b->prefix, q->table.blocks[i]);
    }
    b->n_pinned += n;
    b->pins = pin;
}

static struct pin *find_pin(const struct blocks *b, uint64_t id)
{
    struct pin *pin = b->pins;
    while (pin && pin->id != id)
        pin = pin->next;
    return pin;
}

void blocks_pin_begin(struct blocks *b, uint64_t id, const struct engine_prefix *p)
{
    struct pin *pin = xcalloc(1, sizeof *pin);
    *pin = (struct pin){.next = b->pins,
                        .id = id,
                        .n_promised = kv_blocks_for(&b->kv, p->n_tokens),
                        .n_tokens = p->n_tokens};
    seq_keys_init(&pin->keys, p);
    mark(b, &pin->keys);
    pin->tokens = xmalloc((size_t)p->n_tokens * sizeof *pin->tokens);
    memcpy(pin->tokens, p->tokens, (size_t)p->n_tokens * sizeof *pin->tokens);
    b->pins = pin;
}

int blocks_import(struct blocks *b, uint64_t id, const void *in, struct err *e)
{
    struct pin *pin = find_pin(b, id);
    if (!pin || !pin->tokens)
        return err_set(e, ERR_CANCELED, "the prompt was let go meanwhile");
    int32_t block = prefix_take(&b->prefix);
    if (block < 0)
        return err_set(e, ERR_LIMIT, "all %d KV blocks are in use", b->kv.n_blocks);
    b->model->write_block(b->model->ctx, block, in);
    int at = pin->table.n * b->kv.block_tokens, n = pin->n_tokens - at;
    n = n < b->kv.block_tokens ? n : b->kv.block_tokens;
    int32_t parent = pin->table.n ? pin->table.blocks[pin->table.n - 1] : -1;
    block = prefix_put(&b->prefix, salt_of(&pin->keys), parent, block,
                       keys_of(b, &pin->keys, pin->tokens, at, at + n), n);
    kv_table_add(&pin->table, block);
    b->n_pinned++;
    if (pin->table.n == pin->n_promised) {
        free(pin->tokens);
        pin->tokens = NULL;
    }
    return 0;
}

int blocks_export(const struct blocks *b, uint64_t id, int index, void *out, struct err *e)
{
    const struct pin *pin = find_pin(b, id);
    if (!pin || pin->tokens || index < 0 || index >= pin->table.n)
        return err_set(e, ERR_CANCELED, "the prompt was let go meanwhile");
    b->model->read_block(b->model->ctx, pin->table.blocks[index], out);
    return 0;
}

int blocks_unpin(struct blocks *b, uint64_t id)
{
    struct pin *pin = find_pin(b, id);
    if (!pin)
        return 0;
    struct pin **at = &b->pins;
    while (*at != pin)
        at = &(*at)->next;
    int n = pin->n_promised;
    *at = pin->next;
    b->n_pinned -= pin->table.n;
    while (pin->table.n)
        prefix_unref(&b->prefix, pin->table.blocks[--pin->table.n]);
    kv_table_release(&pin->table);
    seq_keys_release(&pin->keys);
    free(pin->tokens);
    free(pin);
    return n;
}

int blocks_forget(struct blocks *b, const struct str *salt)
{
    int n = 0;
    for (struct pin *pin = b->pins, *next; pin; pin = next) {
        next = pin->next;
        if (!salt || prefix_salt_under(salt_of(&pin->keys), *salt))
            n += blocks_unpin(b, pin->id);
    }
    prefix_forget(&b->prefix, salt);
    return n;
}

bool blocks_check(const struct blocks *b, const struct seq *seqs, struct err *e)
{
    int32_t *refs = xcalloc((size_t)b->kv.n_blocks, sizeof *refs);
    for (const struct seq *q = seqs; q; q = q->next)
        for (int i = 0; i < q->table.n; i++)
            refs[q->table.blocks[i]]++;
    for (const struct pin *pin = b->pins; pin; pin = pin->next)
        for (int i = 0; i < pin->table.n; i++)
            refs[pin->table.blocks[i]]++;
    bool good = kv_check(&b->kv, refs, e) && prefix_check(&b->prefix, e);
    free(refs);
    return good;
}
