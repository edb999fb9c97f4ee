#include "tokenizer/nfc.h"

#include <stdlib.h>
#include <utf8proc.h>

#include "base/mem.h"

/* No character below U+0300 changes, or composes with the one before it: the text can be cut in
 * front of any. */
enum { FIRST_COMBINING = 0x300, FIRST_COMBINING_BYTE = 0xcc, MAX_DECOMPOSED = 4 };

bool nfc_is_plain(struct str text)
{
    for (size_t i = 0; i < text.n; i++) {
        if ((unsigned char)text.p[i] >= FIRST_COMBINING_BYTE)
            return false;
    }
    return true;
}

/* How far text goes, from a character below FIRST_COMBINING, before those that may change. */
static size_t plain_prefix(struct str text)
{
    size_t last = 0; /* where the last character began */
    for (size_t i = 0; i < text.n; i++) {
        unsigned char c = (unsigned char)text.p[i];
        if (c >= FIRST_COMBINING_BYTE)
            return last;
        if ((c & 0xc0) != 0x80)
            last = i;
    }
    return text.n;
}

/* The length of the stretch at the start of text that is normalised as one: the first character and
 * all those from FIRST_COMBINING on that follow it. */
static size_t stretch(struct str text)
{
    uint32_t cp;
    size_t n = (size_t)utf8_decode(text.p, text.n, &cp);
    while (n < text.n && (unsigned char)text.p[n] >= FIRST_COMBINING_BYTE)
        n += (size_t)utf8_decode(text.p + n, text.n - n, &cp);
    return n;
}

static unsigned class_of(int32_t cp)
{
    return (unsigned)utf8proc_get_property(cp)->combining_class & 0xff;
}

/* Sorts a run of combining marks by class, equal ones as they were. Counting keeps it linear. */
static void order_marks(int32_t *cps, size_t n, int32_t *spare)
{
    size_t at[256 + 1] = {0};
    bool sorted = true;
    for (size_t i = 0; i < n; i++) {
        at[class_of(cps[i]) + 1]++;
        sorted = sorted && (!i || class_of(cps[i - 1]) <= class_of(cps[i]));
    }
    if (sorted)
        return;
    for (size_t c = 1; c <= 256; c++)
        at[c] += at[c - 1];
    for (size_t i = 0; i < n; i++)
        spare[at[class_of(cps[i])]++] = cps[i];
    memcpy(cps, spare, n * sizeof *cps);
}

static size_t decompose(struct str text, int32_t *cps)
{
    size_t n = 0;
    for (size_t i = 0; i < text.n;) {
        uint32_t cp;
        i += (size_t)utf8_decode(text.p + i, text.n - i, &cp);
        utf8proc_ssize_t got =
            utf8proc_decompose_char((int32_t)cp, cps + n, MAX_DECOMPOSED, UTF8PROC_DECOMPOSE, NULL);
        BUG_ON(got < 1 || got > MAX_DECOMPOSED);
        n += (size_t)got;
    }
    return n;
}

static int append_stretch(struct str text, struct buf *out, struct err *e)
{
    size_t room;
    int32_t *cps =
        size_mul(text.n, 2 * MAX_DECOMPOSED * sizeof *cps, &room) ? try_alloc(room) : NULL;
    if (!cps)
        return err_set(e, ERR_NOMEM, "out of memory for normalising %zu bytes of text", text.n);
    size_t n = decompose(text, cps);
    for (size_t i = 0; i < n;) {
        size_t end = i;
        while (end < n && class_of(cps[end]))
            end++;
        if (end - i > 1)
            order_marks(cps + i, end - i, cps + text.n * MAX_DECOMPOSED);
        i = end + 1;
    }
    utf8proc_ssize_t kept =
        utf8proc_normalize_utf32(cps, (utf8proc_ssize_t)n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    BUG_ON(kept < 0);
    for (utf8proc_ssize_t i = 0; i < kept; i++)
        out->len += (size_t)utf8_encode((uint32_t)cps[i], buf_reserve(out, 4));
    buf_add(out, "", 0); /* the NUL at the end */
    free(cps);
    return 0;
}

int nfc_append(struct str text, struct buf *out, struct err *e)
{
    while (text.n) {
        size_t n = plain_prefix(text);
        buf_add(out, text.p, n);
        text = (struct str){text.p + n, text.n - n};
        if (!text.n)
            break;
        n = stretch(text);
        int rc = append_stretch((struct str){text.p, n}, out, e);
        if (rc)
            return rc;
        text = (struct str){text.p + n, text.n - n};
    }
    return 0;
}
