/* Byte-level BPE as in GPT-2: the pair that comes first in the list of merges merges first.
 * https://github.com/openai/gpt-2/blob/master/src/encoder.py */
#include <stdlib.h>
#include <xxhash.h>

#include "base/log.h"
#include "base/mem.h"
#include "tokenizer/encoder.h"
#include "tokenizer/nfc.h"
#include "tokenizer/pretok.h"

#define KEY_MERGES "tokenizer.ggml.merges"

struct merge_rule {
    int32_t left, right; /* left < 0: empty slot */
    uint32_t rank;
    int32_t id; /* of the result */
};

struct merge_table {
    struct merge_rule *slots;
    size_t n_slots; /* a power of two */
};

static struct merge_rule *find_slot(const struct merge_table *m, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t i = XXH3_64bits(&key, sizeof key) & (m->n_slots - 1);
    while (m->slots[i].left >= 0 && (m->slots[i].left != left || m->slots[i].right != right))
        i = (i + 1) & (m->n_slots - 1);
    return &m->slots[i];
}

static int32_t find_text(const struct vocab *v, struct str spelled)
{
    int32_t id = vocab_find(v, spelled);
    return id >= 0 && vocab_is_text(v, id) ? id : -1;
}

/* "left right" as ids; false if one of them or the result is not in the vocabulary as text. */
static bool read_rule(const struct vocab *v, struct str s, struct buf *joined,
                      struct merge_rule *rule)
{
    const char *space = s.n > 1 ? memchr(s.p + 1, ' ', s.n - 1) : NULL;
    if (!space)
        return false;
    struct str left = {s.p, (size_t)(space - s.p)};
    struct str right = {space + 1, s.n - left.n - 1};
    buf_clear(joined);
    buf_add(joined, left.p, left.n);
    buf_add(joined, right.p, right.n);
    rule->left = find_text(v, left);
    rule->right = find_text(v, right);
    rule->id = find_text(v, (struct str){joined->data, joined->len});
    return rule->left >= 0 && rule->right >= 0 && rule->id >= 0;
}

int merge_table_new(struct merge_table **out, const struct vocab *v, const struct gguf *g,
                    struct err *e)
{
    struct gguf_arr a;
    int rc = gguf_get_arr(g, KEY_MERGES, GGUF_STRING, &a, e);
    if (rc)
        return rc;
    if (a.n > INT32_MAX)
        return err_set(e, ERR_FORMAT, "%s has %zu entries, too many", KEY_MERGES, a.n);
    struct merge_table *m = xcalloc(1, sizeof *m);
    m->n_slots = 16;
    while (m->n_slots < a.n * 2)
        m->n_slots *= 2;
    m->slots = try_calloc(m->n_slots, sizeof *m->slots);
    if (!m->slots) {
        merge_table_free(m);
        return err_set(e, ERR_NOMEM, "out of memory for %zu merges", a.n);
    }
    for (size_t i = 0; i < m->n_slots; i++)
        m->slots[i].left = -1;

    struct buf joined = {0};
    size_t n_unusable = 0;
    for (size_t i = 0; i < a.n; i++) {
        struct merge_rule rule = {.rank = (uint32_t)i};
        if (!read_rule(v, a.strs[i], &joined, &rule)) {
            n_unusable++;
            continue;
        }
        struct merge_rule *slot = find_slot(m, rule.left, rule.right);
        if (slot->left < 0)
            *slot = rule;
    }
    buf_release(&joined);
    if (n_unusable)
        log_warn("tokenizer", "%zu of %zu entries of %s name no token and are left out", n_unusable,
                 a.n, KEY_MERGES);
    *out = m;
    return 0;
}

void merge_table_free(struct merge_table *m)
{
    if (!m)
        return;
    free(m->slots);
    free(m);
}

static bool find_pair(const void *ctx, const struct symbol *a, const struct symbol *b,
                      uint32_t *order, int32_t *id)
{
    const struct merge_rule *rule = find_slot(ctx, a->id, b->id);
    if (rule->left < 0)
        return false;
    *order = rule->rank;
    *id = rule->id;
    return true;
}

/* The token of a whole word, -1 if there is none. */
static int32_t word_token(struct encoder *c, struct str word)
{
    const struct vocab *v = &c->t->vocab;
    if (word.n > v->longest)
        return -1;
    buf_clear(&c->scratch);
    char *spelled = buf_reserve(&c->scratch, 2 * word.n);
    return find_text(v, (struct str){spelled, vocab_spell_bytes(word.p, word.n, spelled)});
}

static int encode_word(void *arg, struct str word, struct err *e)
{
    struct encoder *c = arg;
    const struct tokenizer *t = c->t;
    int32_t whole = t->ignore_merges ? word_token(c, word) : -1;
    if (whole >= 0) {
        token_list_add(c->out, whole);
        return 0;
    }
    int rc = merger_begin(&c->merger, word.n, e);
    if (rc)
        return rc;
    for (size_t i = 0; i < word.n; i++) {
        int32_t id = t->vocab.byte_ids[(unsigned char)word.p[i]];
        if (id >= 0) /* as the `tokenizers` library: a byte that has no token is left out */
            merger_add(&c->merger, (uint32_t)i, 1, id);
    }
    if (!c->merger.n)
        return 0;
    merger_run(&c->merger, find_pair, t->merges);
    for (int32_t i = 0; i >= 0; i = c->merger.symbols[i].next)
        token_list_add(c->out, c->merger.symbols[i].id);
    return 0;
}

int bpe_encode(struct encoder *c, struct str text, struct err *e)
{
    const struct tokenizer *t = c->t;
    if (!t->nfc || nfc_is_plain(text))
        return pretok_split(t->pretok, text, encode_word, c, e);
    struct buf normal = {0};
    int rc = nfc_append(text, &normal, e);
    if (!rc)
        rc = pretok_split(t->pretok, (struct str){normal.data, normal.len}, encode_word, c, e);
    buf_release(&normal);
    return rc;
}
