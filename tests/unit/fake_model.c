#include "fake_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* The model. */

void fake_model_init(struct fake_model *m, int n_blocks, int max_batch_tokens)
{
    *m = (struct fake_model){.n_blocks = n_blocks, .max_batch_tokens = max_batch_tokens};
    m->slots = xcalloc((size_t)n_blocks * KV_BLOCK_TOKENS, sizeof *m->slots);
}

void fake_model_release(struct fake_model *m)
{
    free(m->slots);
}

static uint64_t mix(uint64_t h, uint64_t x)
{
    h ^= x + 0x9e3779b97f4a7c15 + (h << 6) + (h >> 2);
    h *= 0xbf58476d1ce4e5b9;
    return h ^ h >> 29;
}

/* h is the hash of all n tokens, `recent` of the last two. */
static void logits_of(const struct fake_model *m, uint64_t h, uint64_t recent, int n, float *logits)
{
    for (int i = 0; i < FAKE_VOCAB; i++) {
        float far = (float)(mix(h, (uint64_t)i) >> 40) * 0x1p-20f - 8;
        float near = (float)(mix(recent, (uint64_t)i) >> 40) * 0x1p-20f - 8;
        logits[i] = m->repetitive ? near + far * 0.003f : far;
    }
    logits[FAKE_EOG] = m->eog_every && h % (uint64_t)m->eog_every == 0 ? 20.f : -20.f;
    if (m->nan_after && n >= m->nan_after)
        logits[7] = NAN;
}

void fake_logits(const struct fake_model *m, const int32_t *tokens, int n, float *logits)
{
    uint64_t h = 1;
    for (int i = 0; i < n; i++)
        h = mix(h, (uint64_t)tokens[i] + 1);
    uint64_t recent = mix(n > 1 ? (uint64_t)tokens[n - 2] + 1 : 0, (uint64_t)tokens[n - 1] + 1);
    logits_of(m, h, recent, n, logits);
}

static int32_t *slot(struct fake_model *m, const struct batch_seq *q, int pos)
{
    int32_t block = q->blocks[pos / KV_BLOCK_TOKENS];
    BUG_ON(block < 0 || block >= m->n_blocks);
    return &m->slots[block * KV_BLOCK_TOKENS + pos % KV_BLOCK_TOKENS];
}

static void forward(void *ctx, const struct batch_seq *seqs, int n_seqs, float *logits)
{
    struct fake_model *m = ctx;
    int n_tokens = 0;
    for (int i = 0; i < n_seqs; i++) {
        BUG_ON(seqs[i].n_tokens < 1);
        for (int k = 0; k < seqs[i].n_tokens; k++)
            *slot(m, &seqs[i], seqs[i].pos + k) = seqs[i].tokens[k] + 1;
        n_tokens += seqs[i].n_tokens;
    }
    BUG_ON(n_tokens > m->max_batch_tokens);
    m->n_computed += n_tokens;
    m->most_tokens = n_tokens > m->most_tokens ? n_tokens : m->most_tokens;
    /* read only after everything is written: a block that two sequences write shows */
    for (int i = 0; i < n_seqs; i++) {
        const struct batch_seq *q = &seqs[i];
        int n = q->pos + q->n_tokens;
        uint64_t h = 1;
        for (int p = 0; p < n && q->n_logits; p++) {
            h = mix(h, (uint64_t)*slot(m, q, p));
            if (p + 1 > n - q->n_logits) {
                uint64_t before = p ? (uint64_t)*slot(m, q, p - 1) : 0;
                logits_of(m, h, mix(before, (uint64_t)*slot(m, q, p)), p + 1, logits);
                logits += FAKE_VOCAB;
            }
        }
    }
    if (m->on_step)
        m->on_step(m->arg);
}

static void copy_block(void *ctx, int32_t to, int32_t from, int n_tokens)
{
    struct fake_model *m = ctx;
    n_tokens -= m->forgetful;
    memmove(&m->slots[to * KV_BLOCK_TOKENS], &m->slots[from * KV_BLOCK_TOKENS],
            (size_t)n_tokens * sizeof *m->slots);
}

static void read_block(void *ctx, int32_t block, void *out)
{
    const struct fake_model *m = ctx;
    memcpy(out, &m->slots[block * KV_BLOCK_TOKENS], KV_BLOCK_TOKENS * sizeof *m->slots);
}

static void write_block(void *ctx, int32_t block, const void *in)
{
    struct fake_model *m = ctx;
    memcpy(&m->slots[block * KV_BLOCK_TOKENS], in, KV_BLOCK_TOKENS * sizeof *m->slots);
}

struct engine_model fake_engine_model(struct fake_model *m, int n_ctx)
{
    return (struct engine_model){.ctx = m,
                                 .n_vocab = FAKE_VOCAB,
                                 .max_batch_tokens = m->max_batch_tokens,
                                 .n_blocks = m->n_blocks,
                                 .n_ctx = n_ctx,
                                 .forward = forward,
                                 .copy_block = copy_block,
                                 .block_bytes = KV_BLOCK_TOKENS * sizeof *m->slots,
                                 .read_block = read_block,
                                 .write_block = write_block};
}

/* The tokenizer: the part of tokenizer.h that the engine uses. */

struct tokenizer {
    int unused;
};

static const char *const pieces[FAKE_VOCAB] = {
    "</s>", "<ctl>", "\xf0", "\x9f", "\x98", "\x80", "a",   "b",   "c",   "ab",   "bc",
    "ca",   "ba",    "cb",   "ac",   "abc",  "bca",  "cab", "aa",  "bb",  "cc",   " ",
    " a",   " b",    " c",   ".",    "\n",   "é",    "aé",  "日",  "本",  "日本", "ab.",
    "c.",   "a b",   "b c",  "c a",  "aab",  "abb",  "bbc", "bcc", "cca", "caa",  "acb",
    "bac",  "cba",   "a.",   "b.",   "\xc3", "\xa9", "a\n", "b\n", "c\n", "  ",   "..",
    "aaa",  "bbb",   "ccc",  "ab a", "bc b", "ca c",
};

const struct tokenizer *fake_tokenizer(void)
{
    static const struct tokenizer t;
    return &t;
}

int tokenizer_n_vocab(const struct tokenizer *t)
{
    return FAKE_VOCAB;
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    return tokenizer_is_eog(t, id);
}

bool tokenizer_is_eog(const struct tokenizer *t, int32_t id)
{
    return id == FAKE_EOG;
}

void tok_stream_add(struct tok_stream *s, const struct tokenizer *t, int32_t id, bool special,
                    struct buf *out)
{
    if (id < FAKE_BYTES && !special)
        return;
    struct buf b = {0};
    buf_add(&b, s->held, s->n_held);
    buf_adds(&b, pieces[id]);
    size_t at = 0;
    s->n_held = 0;
    while (at < b.len) {
        uint32_t cp;
        int n = utf8_decode(b.data + at, b.len - at, &cp);
        if (n == 0 && utf8_cut(b.data + at, b.len - at) == b.len - at) {
            s->n_held = (uint8_t)(b.len - at);
            memcpy(s->held, b.data + at, s->n_held);
            break;
        }
        if (n)
            buf_add(out, b.data + at, (size_t)n);
        else
            buf_adds(out, "\xef\xbf\xbd");
        at += n ? (size_t)n : 1;
    }
    buf_release(&b);
}

void tok_stream_end(struct tok_stream *s, struct buf *out)
{
    if (s->n_held)
        buf_adds(out, "\xef\xbf\xbd");
    s->n_held = 0;
}
