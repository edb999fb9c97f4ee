#include "tokenizer/tokenizer.h"

#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "tokenizer/encoder.h"
#include "tokenizer/pretok.h"

#define KEY(name) "tokenizer.ggml." name

enum { MAX_TEXT_BYTES = 1 << 28 };

/* ---- loading ------------------------------------------------------------------------------- */

/* A token id of the file: fallback, if that is in the vocabulary, where the file is silent. */
static int read_id(const struct tokenizer *t, const struct gguf *g, const char *key,
                   int32_t fallback, int32_t *out, struct err *e)
{
    *out = fallback < t->vocab.n ? fallback : -1;
    if (!gguf_has(g, key))
        return 0;
    uint32_t id;
    int rc = gguf_get_u32(g, key, &id, e);
    if (rc)
        return rc;
    if (id != UINT32_MAX && id >= (uint32_t)t->vocab.n)
        return err_set(e, ERR_FORMAT, "%s is %u, but there are %d tokens", key, id, t->vocab.n);
    *out = id == UINT32_MAX ? -1 : (int32_t)id;
    return 0;
}

static void mark_control(struct tokenizer *t, int32_t id, unsigned marks)
{
    if (id < 0)
        return;
    t->vocab.type[id] = TOKEN_CONTROL;
    t->marks[id] |= (uint8_t)marks;
}

/* Names by which models end an answer, whatever id the file calls EOS. */
static void mark_eog_names(struct tokenizer *t)
{
    static const char *const names[] = {"<|end|>",         "<|eot_id|>",    "<|eom_id|>",
                                        "<|im_end|>",      "<|endoftext|>", "<end_of_turn>",
                                        "<|end_of_text|>", "</s>"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        int32_t id = vocab_find(&t->vocab, str_of(names[i]));
        if (id >= 0 && (t->vocab.type[id] == TOKEN_CONTROL || t->vocab.type[id] == TOKEN_USER))
            mark_control(t, id, MARK_EOG);
    }
}

static int read_ids(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    bool spm = t->vocab.kind == VOCAB_SPM; /* SentencePiece's own numbers are its defaults */
    int32_t eot, eom;
    int rc;
    if ((rc = read_id(t, g, KEY("bos_token_id"), spm ? 1 : -1, &t->bos, e)) ||
        (rc = read_id(t, g, KEY("eos_token_id"), spm ? 2 : -1, &t->eos, e)) ||
        (rc = read_id(t, g, KEY("unknown_token_id"), spm ? 0 : -1, &t->unk, e)) ||
        (rc = read_id(t, g, KEY("eot_token_id"), -1, &eot, e)) ||
        (rc = read_id(t, g, KEY("eom_token_id"), -1, &eom, e)))
        return rc;
    mark_control(t, t->bos, 0);
    mark_control(t, t->eos, MARK_EOG);
    mark_control(t, eot, MARK_EOG);
    mark_control(t, eom, MARK_EOG);
    mark_eog_names(t);
    return 0;
}

/* tokenizer.json has a flag rstrip for each added token, GGUF has not. The flag matters in Phi-3,
 * whose template writes a newline after each of its <|...|> that the model never sees. */
static void mark_strip_right(struct tokenizer *t, const struct gguf *g)
{
    if (t->vocab.kind != VOCAB_SPM || !str_eqs(gguf_str(g, "general.architecture", ""), "phi3"))
        return;
    for (int32_t id = 0; id < t->vocab.n; id++) {
        struct str s = t->vocab.spelled[id];
        uint8_t type = t->vocab.type[id];
        if (type != TOKEN_CONTROL && type != TOKEN_USER)
            continue;
        bool named = s.n > 4 && str_starts(s, "<|") && memcmp(s.p + s.n - 2, "|>", 2) == 0;
        if ((named && !str_eqs(s, "<|endoftext|>")) || str_eqs(s, "</s>"))
            t->marks[id] |= MARK_STRIP_RIGHT;
    }
}

static int read_add(const struct gguf *g, const char *key, bool fallback, int32_t id,
                    const char *id_key, bool *out, struct err *e)
{
    *out = gguf_bool(g, key, fallback) && (id >= 0 || gguf_has(g, key));
    if (*out && id < 0)
        return err_set(e, ERR_FORMAT, "%s is true, but there is no %s", key, id_key);
    return 0;
}

static int load_bpe(struct tokenizer *t, const struct gguf *g, bool *add_bos, struct err *e)
{
    struct str pre = gguf_str(g, KEY("pre"), "");
    const struct pretok_family *family = pretok_find(pre);
    if (!family) {
        family = pretok_find(STR("gpt-2"));
        log_warn("tokenizer", "%s \"%.*s\" is not known: words are cut as for \"gpt-2\"",
                 KEY("pre"), (int)(pre.n < 64 ? pre.n : 64), pre.p);
    }
    t->ignore_merges = family->ignore_merges;
    t->nfc = family->nfc;
    *add_bos = family->add_bos;
    int rc = pretok_new(&t->pretok, family, e);
    return rc ? rc : merge_table_new(&t->merges, &t->vocab, g, e);
}

static int load(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    struct str model;
    int rc = gguf_get_str(g, KEY("model"), &model, e);
    if (rc)
        return rc;
    bool spm = str_eqs(model, "llama");
    if (!spm && !str_eqs(model, "gpt2"))
        return err_set(e, ERR_UNSUPPORTED, "%s is \"%.*s\"; \"llama\" and \"gpt2\" are supported",
                       KEY("model"), (int)(model.n < 64 ? model.n : 64), model.p);
    rc = vocab_load(&t->vocab, g, spm ? VOCAB_SPM : VOCAB_BPE, e);
    if (rc)
        return rc;
    t->marks = try_calloc((size_t)t->vocab.n, sizeof *t->marks);
    if (!t->marks)
        return err_set(e, ERR_NOMEM, "out of memory for %d tokens", t->vocab.n);
    if ((rc = read_ids(t, g, e)))
        return rc;
    mark_strip_right(t, g);

    bool add_bos = true;
    if (spm) {
        t->add_space_prefix = gguf_bool(g, KEY("add_space_prefix"), true);
        t->remove_extra_spaces = gguf_bool(g, KEY("remove_extra_whitespaces"), false);
    } else if ((rc = load_bpe(t, g, &add_bos, e))) {
        return rc;
    }
    if ((rc = read_add(g, KEY("add_bos_token"), add_bos, t->bos, KEY("bos_token_id"), &t->add_bos,
                       e)) ||
        (rc =
             read_add(g, KEY("add_eos_token"), false, t->eos, KEY("eos_token_id"), &t->add_eos, e)))
        return rc;
    return special_load(&t->specials, &t->vocab, e);
}

int tokenizer_new(struct tokenizer **out, const struct gguf *g, struct err *e)
{
    struct tokenizer *t = xcalloc(1, sizeof *t);
    int rc = load(t, g, e);
    if (rc) {
        tokenizer_free(t);
        return rc;
    }
    *out = t;
    return 0;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    special_release(&t->specials);
    vocab_release(&t->vocab);
    pretok_free(t->pretok);
    merge_table_free(t->merges);
    free(t->marks);
    free(t);
}

/* ---- encoding ------------------------------------------------------------------------------ */

void token_list_add(struct token_list *l, int32_t id)
{
    if (l->n == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 64;
        l->ids = xrealloc(l->ids, l->cap * sizeof *l->ids);
    }
    l->ids[l->n++] = id;
}

void token_list_release(struct token_list *l)
{
    if (!l)
        return;
    free(l->ids);
    *l = (struct token_list){0};
}

/* White_Space of the Unicode character database. */
static bool is_space(uint32_t cp)
{
    return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f ||
           cp == 0x205f || cp == 0x3000;
}

static size_t skip_space(struct str text, size_t at)
{
    uint32_t cp;
    int len;
    while (at < text.n && (len = utf8_decode(text.p + at, text.n - at, &cp)) && is_space(cp))
        at += (size_t)len;
    return at;
}

static int encode_plain(struct encoder *c, struct str text, bool after_special, struct err *e)
{
    if (!text.n)
        return 0;
    return c->t->vocab.kind == VOCAB_SPM ? spm_encode(c, text, after_special, e)
                                         : bpe_encode(c, text, e);
}

/* Cuts the text at its special tokens. text is what the spans hold, one after the other. */
static int encode_text(struct encoder *c, struct str text, const struct tok_span *spans,
                       struct err *e)
{
    const struct special_set *specials = &c->t->specials;
    size_t span_end = 0; /* of *spans - 1 */
    bool trusted = false;
    bool after_special = true;
    size_t plain = 0; /* where the text begins that is not encoded yet */
    int rc;
    for (size_t at = 0; at < text.n;) {
        for (; at >= span_end; spans++) {
            span_end += spans->text.n;
            trusted = spans->trusted;
        }
        const struct special *hit =
            special_match(specials, text.p + at, text.n - at, trusted ? span_end - at : 0);
        if (!hit) {
            at++;
            continue;
        }
        rc = encode_plain(c, (struct str){text.p + plain, at - plain}, after_special, e);
        if (rc)
            return rc;
        token_list_add(c->out, hit->id);
        after_special = !hit->anywhere;
        at += hit->text.n;
        if (c->t->marks[hit->id] & MARK_STRIP_RIGHT)
            at = skip_space(text, at);
        plain = at;
    }
    return encode_plain(c, (struct str){text.p + plain, text.n - plain}, after_special, e);
}

static int join_spans(const struct tok_span *spans, size_t n_spans, struct buf *text, struct err *e)
{
    size_t total = 0;
    for (size_t i = 0; i < n_spans; i++) {
        if (!size_add(total, spans[i].text.n, &total) || total > MAX_TEXT_BYTES)
            return err_set(e, ERR_LIMIT, "the text is longer than %d bytes", MAX_TEXT_BYTES);
    }
    buf_reserve(text, total);
    for (size_t i = 0; i < n_spans; i++)
        buf_add(text, spans[i].text.p, spans[i].text.n);
    uint32_t cp;
    for (size_t at = 0; at < text->len;) {
        int len = utf8_decode(text->data + at, text->len - at, &cp);
        if (!len)
            return err_set(e, ERR_INVALID, "the text is not valid UTF-8 at byte %zu", at);
        at += (size_t)len;
    }
    return 0;
}

int tokenizer_encode(const struct tokenizer *t, const struct tok_span *spans, size_t n_spans,
                     unsigned flags, struct token_list *out, struct err *e)
{
    struct encoder c = {.t = t, .out = out};
    struct buf text = {0};
    size_t n_before = out->n;
    int rc = join_spans(spans, n_spans, &text, e);
    if (!rc) {
        if (flags & TOK_ADD_SPECIAL && t->add_bos)
            token_list_add(out, t->bos);
        rc = encode_text(&c, (struct str){text.data, text.len}, spans, e);
        if (!rc && flags & TOK_ADD_SPECIAL && t->add_eos)
            token_list_add(out, t->eos);
    }
    if (rc)
        out->n = n_before;
    buf_release(&text);
    buf_release(&c.scratch);
    merger_release(&c.merger);
    return rc;
}

/* ---- questions ----------------------------------------------------------------------------- */

static bool in_range(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->vocab.n;
}

struct str tokenizer_piece(const struct tokenizer *t, int32_t id, bool special)
{
    if (!in_range(t, id))
        return STR("");
    uint8_t type = t->vocab.type[id];
    if (type != TOKEN_CONTROL && type != TOKEN_UNKNOWN)
        return t->vocab.raw[id];
    return special ? t->vocab.spelled[id] : STR("");
}

struct str tokenizer_vocab(const struct tokenizer *t, int32_t id)
{
    return in_range(t, id) ? t->vocab.spelled[id] : STR("");
}

int tokenizer_n_vocab(const struct tokenizer *t)
{
    return t->vocab.n;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    return in_range(t, id) && t->vocab.type[id] == TOKEN_CONTROL;
}

bool tokenizer_is_eog(const struct tokenizer *t, int32_t id)
{
    return in_range(t, id) && t->marks[id] & MARK_EOG;
}

int32_t tokenizer_find(const struct tokenizer *t, struct str piece)
{
    return vocab_find(&t->vocab, piece);
}
