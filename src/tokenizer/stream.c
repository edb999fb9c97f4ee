#include "tokenizer/encoder.h"

#define REPLACEMENT "\xef\xbf\xbd"

/* Looks at the character that begins at p[0..n), n > 0. Returns its length; or, negative, the
 * length of what can never become one (the longest part that could have: Unicode 15, section 3.9,
 * "substitution of maximal subparts"); or 0 when more bytes must tell. */
static int next_char(const unsigned char *p, size_t n)
{
    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4)
        return -1;
    int len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    unsigned least = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
    unsigned most = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
    for (int i = 1; i < len; i++) {
        if ((size_t)i == n)
            return 0;
        if (p[i] < least || p[i] > most)
            return -i;
        least = 0x80;
        most = 0xbf;
    }
    return len;
}

/* Emits the whole characters of p[0..n) and returns how many bytes at its end are still open. */
static size_t emit(const char *p, size_t n, struct buf *out)
{
    size_t done = 0; /* written */
    size_t at = 0;   /* looked at */
    while (at < n) {
        int len = next_char((const unsigned char *)p + at, n - at);
        if (!len)
            break;
        if (len < 0) {
            buf_add(out, p + done, at - done);
            buf_adds(out, REPLACEMENT);
            at += (size_t)-len;
            done = at;
        } else {
            at += (size_t)len;
        }
    }
    buf_add(out, p + done, at - done);
    return n - at;
}

static void add_bytes(struct tok_stream *s, struct str piece, struct buf *out)
{
    while (s->n_held && piece.n) {
        char joined[sizeof s->held + 1];
        size_t n = s->n_held;
        memcpy(joined, s->held, n);
        joined[n++] = *piece.p++;
        piece.n--;
        s->n_held = (uint8_t)emit(joined, n, out);
        memmove(s->held, joined + n - s->n_held, s->n_held);
    }
    size_t open = emit(piece.p, piece.n, out);
    if (open) {
        memcpy(s->held, piece.p + piece.n - open, open);
        s->n_held = (uint8_t)open;
    }
}

void tok_stream_add(struct tok_stream *s, const struct tokenizer *t, int32_t id, bool special,
                    struct buf *out)
{
    struct str piece = tokenizer_piece(t, id, special);
    if (!piece.n)
        return;
    /* SentencePiece: the space that encoding put in front goes, and where it squeezes spaces those
     * at the beginning of further pieces go too. */
    if (!s->in_text && piece.p[0] == ' ' && (t->add_space_prefix || t->remove_extra_spaces)) {
        piece.p++;
        piece.n--;
        s->in_text = !t->remove_extra_spaces;
    }
    s->in_text = s->in_text || piece.n;
    add_bytes(s, piece, out);
}

void tok_stream_end(struct tok_stream *s, struct buf *out)
{
    if (s->n_held)
        buf_adds(out, REPLACEMENT);
    *s = (struct tok_stream){0};
}

void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool special,
                      struct buf *out)
{
    struct tok_stream s = {0};
    for (size_t i = 0; i < n; i++)
        tok_stream_add(&s, t, ids[i], special, out);
    tok_stream_end(&s, out);
}
