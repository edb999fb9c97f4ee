/* SentencePiece's BPE: the pair whose result has the highest score merges first.
 * https://github.com/google/sentencepiece/blob/master/src/bpe_model.cc */
#include "tokenizer/encoder.h"

/* The text as the vocabulary spells it, in c->scratch. */
static void escape(struct encoder *c, struct str text, bool after_special)
{
    const struct tokenizer *t = c->t;
    struct buf *b = &c->scratch;
    buf_clear(b);
    if (t->remove_extra_spaces) {
        while (text.n && text.p[0] == ' ') {
            text.p++;
            text.n--;
        }
    }
    if (text.n && t->add_space_prefix && after_special)
        buf_adds(b, SPACE_MARK);
    for (size_t i = 0; i < text.n;) {
        const char *space = memchr(text.p + i, ' ', text.n - i);
        size_t end = space ? (size_t)(space - text.p) : text.n;
        buf_add(b, text.p + i, end - i);
        if (space)
            buf_adds(b, SPACE_MARK);
        i = end + 1;
        while (t->remove_extra_spaces && i < text.n && text.p[i] == ' ')
            i++;
    }
    const size_t mark = sizeof SPACE_MARK - 1;
    size_t len = b->len;
    while (t->remove_extra_spaces && len >= mark &&
           memcmp(b->data + len - mark, SPACE_MARK, mark) == 0)
        len -= mark;
    if (len < b->len) {
        b->data[len] = 0;
        b->len = len;
    }
}

/* Scores as numbers that sort the other way round. */
static uint32_t order_of_score(float score)
{
    uint32_t bits;
    score += 0.0f; /* -0 is 0 */
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? bits : ~bits & 0x7fffffff;
}

static bool find_pair(const void *ctx, const struct symbol *a, const struct symbol *b,
                      uint32_t *order, int32_t *id)
{
    const struct encoder *c = ctx;
    const struct vocab *v = &c->t->vocab;
    *id = vocab_find(v, (struct str){c->scratch.data + a->at, (size_t)a->len + b->len});
    if (*id < 0 || !vocab_is_text(v, *id))
        return false;
    *order = order_of_score(v->score[*id]);
    return true;
}

/* A character that is no token: its bytes, or "unknown" once for a run of them. */
static bool add_unknown(struct encoder *c, const struct symbol *s, bool after_unknown)
{
    const struct tokenizer *t = c->t;
    const unsigned char *p = (const unsigned char *)c->scratch.data + s->at;
    bool spelled = true;
    for (uint32_t i = 0; i < s->len; i++)
        spelled = spelled && t->vocab.byte_ids[p[i]] >= 0;
    if (!spelled) {
        if (!after_unknown && t->unk >= 0)
            token_list_add(c->out, t->unk);
        return true;
    }
    for (uint32_t i = 0; i < s->len; i++)
        token_list_add(c->out, t->vocab.byte_ids[p[i]]);
    return false;
}

/* Merges within c->scratch[at, end). *unknown: the last token was "unknown". */
static int encode_word(struct encoder *c, size_t at, size_t end, bool *unknown, struct err *e)
{
    const struct vocab *v = &c->t->vocab;
    int rc = merger_begin(&c->merger, end - at, e);
    if (rc)
        return rc;
    while (at < end) {
        uint32_t cp;
        const char *p = c->scratch.data + at;
        int len = utf8_decode(p, end - at, &cp);
        int32_t id = vocab_find(v, (struct str){p, (size_t)len});
        merger_add(&c->merger, (uint32_t)at, (uint32_t)len,
                   id >= 0 && vocab_is_text(v, id) ? id : -1);
        at += (size_t)len;
    }
    merger_run(&c->merger, find_pair, c);

    for (int32_t i = 0; i >= 0; i = c->merger.symbols[i].next) {
        const struct symbol *s = &c->merger.symbols[i];
        if (s->id >= 0) {
            token_list_add(c->out, s->id);
            *unknown = false;
        } else {
            *unknown = add_unknown(c, s, *unknown);
        }
    }
    return 0;
}

/* Nothing merges across the place between a character and a space after it if no token holds that:
 * then words can go one by one, which keeps the heap in the cache. */
int spm_encode(struct encoder *c, struct str text, bool after_special, struct err *e)
{
    escape(c, text, after_special);
    bool unknown = false;
    int rc = 0;
    for (size_t at = 0; !rc && at < c->scratch.len;) {
        struct str rest = {c->scratch.data + at, c->scratch.len - at};
        size_t n = c->t->vocab.spaces_lead ? vocab_inner_space(rest) : rest.n;
        rc = encode_word(c, at, at + n, &unknown, e);
        at += n;
    }
    return rc;
}
