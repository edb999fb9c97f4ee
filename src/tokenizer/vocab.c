#define _GNU_SOURCE /* memmem */
#include "tokenizer/vocab.h"

#include <math.h>
#include <stdlib.h>
#include <xxhash.h>

#include "base/mem.h"

#define KEY_TOKENS "tokenizer.ggml.tokens"
#define KEY_SCORES "tokenizer.ggml.scores"
#define KEY_TYPES  "tokenizer.ggml.token_type"

enum { MAX_TOKENS = 1 << 24 };

/* GPT-2 spells a byte by the character of that number if it is a visible one of Latin-1, and the
 * others by U+0100, U+0101 ... in their order.
 * https://github.com/openai/gpt-2/blob/master/src/encoder.py, bytes_to_unicode */
static bool is_visible(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xff && byte != 0xad);
}

static uint32_t byte_to_char(unsigned byte)
{
    if (is_visible(byte))
        return byte;
    if (byte <= 0x20)
        return 0x100 + byte;
    return byte == 0xad ? 0x143 : 0x121 + (byte - 0x7f);
}

/* The byte that a character spells, -1 if it spells none. */
static int char_to_byte(uint32_t cp)
{
    if (cp < 0x100)
        return is_visible(cp) ? (int)cp : -1;
    if (cp <= 0x120)
        return (int)(cp - 0x100);
    if (cp <= 0x142)
        return (int)(cp - 0x121 + 0x7f);
    return cp == 0x143 ? 0xad : -1;
}

size_t vocab_spell_bytes(const char *p, size_t n, char *out)
{
    size_t len = 0;
    for (size_t i = 0; i < n; i++)
        len += (size_t)utf8_encode(byte_to_char((unsigned char)p[i]), out + len);
    return len;
}

static bool is_markup(uint8_t type)
{
    return type == TOKEN_CONTROL || type == TOKEN_UNKNOWN || type == TOKEN_USER;
}

/* Markup is spelled as it is. A token with any character that spells no byte is taken literally, as
 * the decoder of the `tokenizers` library does: added tokens with spaces are such. */
static size_t raw_of_bpe(struct str s, char *out)
{
    size_t len = 0;
    for (size_t i = 0; i < s.n;) {
        uint32_t cp;
        int step = utf8_decode(s.p + i, s.n - i, &cp);
        int byte = step ? char_to_byte(cp) : -1;
        if (byte < 0) {
            memcpy(out, s.p, s.n);
            return s.n;
        }
        out[len++] = (char)byte;
        i += (size_t)step;
    }
    return len;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "<0x0A>" is byte 10; -1 for any other spelling. */
static int spelled_byte(struct str s)
{
    if (s.n != 6 || memcmp(s.p, "<0x", 3) != 0 || s.p[5] != '>')
        return -1;
    int high = hex_digit(s.p[3]);
    int low = hex_digit(s.p[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static size_t raw_of_spm(struct str s, char *out)
{
    size_t len = 0;
    for (size_t i = 0; i < s.n;) {
        if (s.n - i >= 3 && memcmp(s.p + i, SPACE_MARK, 3) == 0) {
            out[len++] = ' ';
            i += 3;
        } else {
            out[len++] = s.p[i++];
        }
    }
    return len;
}

size_t vocab_inner_space(struct str s)
{
    size_t i = 0;
    while (s.n - i >= 3 && memcmp(s.p + i, SPACE_MARK, 3) == 0)
        i += 3;
    if (i == s.n)
        return s.n;
    const char *p = memmem(s.p + i, s.n - i, SPACE_MARK, 3);
    return p ? (size_t)(p - s.p) : s.n;
}

static size_t raw_of(const struct vocab *v, int32_t id, char *out)
{
    struct str s = v->spelled[id];
    if (v->kind == VOCAB_BPE && is_markup(v->type[id])) {
        memcpy(out, s.p, s.n);
        return s.n;
    }
    if (v->kind == VOCAB_BPE)
        return raw_of_bpe(s, out);
    if (v->type[id] == TOKEN_BYTE) {
        int byte = spelled_byte(s);
        if (byte >= 0) {
            *out = (char)byte;
            return 1;
        }
    }
    return raw_of_spm(s, out);
}

/* The slot that holds the spelling, or the empty one where it would go. */
static uint32_t *find_slot(const struct vocab *v, struct str s)
{
    size_t i = XXH3_64bits(s.p, s.n) & (v->n_slots - 1);
    while (v->slots[i] && !str_eq(v->spelled[v->slots[i] - 1], s))
        i = (i + 1) & (v->n_slots - 1);
    return &v->slots[i];
}

int32_t vocab_find(const struct vocab *v, struct str spelled)
{
    if (!spelled.n || spelled.n > v->longest)
        return -1;
    return (int32_t)*find_slot(v, spelled) - 1;
}

bool vocab_is_blank(const struct vocab *v, int32_t id)
{
    struct str s = v->raw[id];
    if (v->type[id] != TOKEN_USER || !s.n)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        if (!strchr(" \t\n\r", s.p[i]) || !s.p[i])
            return false;
    }
    return true;
}

bool vocab_is_text(const struct vocab *v, int32_t id)
{
    uint8_t type = v->type[id];
    if (v->kind == VOCAB_SPM && type == TOKEN_BYTE)
        return false;
    return (!is_markup(type) && type != TOKEN_UNUSED) || vocab_is_blank(v, id);
}

static int read_types(struct vocab *v, const struct gguf *g, struct err *e)
{
    if (!gguf_has(g, KEY_TYPES)) {
        for (int32_t i = 0; i < v->n; i++) {
            bool byte = v->kind == VOCAB_SPM && spelled_byte(v->spelled[i]) >= 0;
            v->type[i] = byte ? TOKEN_BYTE : TOKEN_NORMAL;
        }
        return 0;
    }
    struct gguf_arr a;
    int rc = gguf_get_arr(g, KEY_TYPES, GGUF_I32, &a, e);
    if (rc)
        return rc;
    if (a.n != (size_t)v->n)
        return err_set(e, ERR_FORMAT, "%s has %zu entries for %d tokens", KEY_TYPES, a.n, v->n);
    for (int32_t i = 0; i < v->n; i++) {
        int32_t type;
        memcpy(&type, (const char *)a.data + (size_t)i * sizeof type, sizeof type);
        v->type[i] = type >= TOKEN_NORMAL && type <= TOKEN_BYTE ? (uint8_t)type : TOKEN_UNDEFINED;
    }
    return 0;
}

static int read_scores(struct vocab *v, const struct gguf *g, struct err *e)
{
    if (v->kind != VOCAB_SPM)
        return 0;
    struct gguf_arr a;
    int rc = gguf_get_arr(g, KEY_SCORES, GGUF_F32, &a, e);
    if (rc)
        return rc;
    if (a.n != (size_t)v->n)
        return err_set(e, ERR_FORMAT, "%s has %zu entries for %d tokens", KEY_SCORES, a.n, v->n);
    v->score = try_calloc((size_t)v->n, sizeof *v->score);
    if (!v->score)
        return err_set(e, ERR_NOMEM, "out of memory for %d tokens", v->n);
    memcpy(v->score, a.data, (size_t)v->n * sizeof *v->score);
    for (int32_t i = 0; i < v->n; i++) {
        if (isnan(v->score[i]))
            return err_set(e, ERR_FORMAT, "%s[%d] is not a number", KEY_SCORES, i);
    }
    return 0;
}

/* Copies the spellings and sets aside as much again for what they stand for: never longer. */
static int copy_spellings(struct vocab *v, const struct gguf_arr *tokens, struct err *e)
{
    size_t total = 0;
    for (size_t i = 0; i < tokens->n; i++) {
        if (!size_add(total, tokens->strs[i].n, &total))
            return err_set(e, ERR_FORMAT, "%s is too long", KEY_TOKENS);
    }
    size_t twice;
    v->n_slots = 16;
    while (v->n_slots < tokens->n * 2)
        v->n_slots *= 2;
    v->pool = size_mul(total, 2, &twice) ? try_alloc(twice) : NULL;
    v->spelled = try_calloc(tokens->n, sizeof *v->spelled);
    v->raw = try_calloc(tokens->n, sizeof *v->raw);
    v->type = try_calloc(tokens->n, sizeof *v->type);
    v->slots = try_calloc(v->n_slots, sizeof *v->slots);
    if (!v->pool || !v->spelled || !v->raw || !v->type || !v->slots)
        return err_set(e, ERR_NOMEM, "out of memory for %zu tokens", tokens->n);

    char *p = v->pool;
    for (size_t i = 0; i < tokens->n; i++) {
        struct str s = tokens->strs[i];
        if (s.n)
            memcpy(p, s.p, s.n);
        v->spelled[i] = (struct str){p, s.n};
        p += s.n;
        if (s.n > v->longest)
            v->longest = s.n;
        uint32_t *slot = s.n ? find_slot(v, v->spelled[i]) : NULL;
        if (slot && !*slot)
            *slot = (uint32_t)i + 1;
    }
    return 0;
}

static void index_bytes(struct vocab *v)
{
    for (unsigned b = 0; b < 256; b++) {
        v->byte_ids[b] = -1;
        if (v->kind == VOCAB_BPE) {
            char c[4];
            int n = utf8_encode(byte_to_char(b), c);
            int32_t id = vocab_find(v, (struct str){c, (size_t)n});
            if (id >= 0 && vocab_is_text(v, id))
                v->byte_ids[b] = id;
        }
    }
    for (int32_t i = 0; v->kind == VOCAB_SPM && i < v->n; i++) {
        int byte = v->type[i] == TOKEN_BYTE ? spelled_byte(v->spelled[i]) : -1;
        if (byte >= 0 && v->byte_ids[byte] < 0)
            v->byte_ids[byte] = i;
    }
}

int vocab_load(struct vocab *v, const struct gguf *g, enum vocab_kind kind, struct err *e)
{
    *v = (struct vocab){.kind = kind};
    struct gguf_arr tokens;
    int rc = gguf_get_arr(g, KEY_TOKENS, GGUF_STRING, &tokens, e);
    if (rc)
        return rc;
    if (!tokens.n || tokens.n > MAX_TOKENS)
        return err_set(e, ERR_FORMAT, "%s has %zu entries; 1 to %d can be used", KEY_TOKENS,
                       tokens.n, MAX_TOKENS);
    v->n = (int32_t)tokens.n;
    if ((rc = copy_spellings(v, &tokens, e)) || (rc = read_types(v, g, e)) ||
        (rc = read_scores(v, g, e))) {
        vocab_release(v);
        return rc;
    }
    const struct str last = v->spelled[v->n - 1];
    char *p = (char *)last.p + last.n;
    for (int32_t i = 0; i < v->n; i++) {
        v->raw[i] = (struct str){p, raw_of(v, i, p)};
        p += v->raw[i].n;
    }
    index_bytes(v);
    v->spaces_lead = true;
    for (int32_t i = 0; i < v->n; i++) {
        if (vocab_is_text(v, i) && vocab_inner_space(v->spelled[i]) < v->spelled[i].n)
            v->spaces_lead = false;
    }
    return 0;
}

void vocab_release(struct vocab *v)
{
    free(v->spelled);
    free(v->raw);
    free(v->type);
    free(v->score);
    free(v->pool);
    free(v->slots);
    *v = (struct vocab){0};
}
