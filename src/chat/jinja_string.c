#define _GNU_SOURCE /* memmem, towupper_l */
#include "chat/jinja.h"

#include <string.h>
#include <wctype.h>

#include "base/mem.h"

/* ---- building ---- */

static bool room(struct builder *b, size_t n)
{
    struct run *r = b->run;
    if (!jinja_charge(r, n / 256))
        return false;
    if (b->cap - b->n >= n)
        return true;
    size_t cap = b->cap ? 2 * b->cap : 64;
    if (cap < b->n + n)
        cap = b->n + n;
    char *p = jinja_alloc(r, cap), *marks = jinja_alloc(r, cap);
    if (r->code)
        return false;
    if (b->n) {
        memcpy(p, b->p, b->n);
        memcpy(marks, b->marks, b->n);
    }
    b->p = p;
    b->marks = marks;
    b->cap = cap;
    return true;
}

void jinja_add(struct builder *b, struct string s)
{
    if (!s.n || !room(b, s.n))
        return;
    memcpy(b->p + b->n, s.p, s.n);
    if (s.marks)
        memcpy(b->marks + b->n, s.marks, s.n);
    else
        memset(b->marks + b->n, s.trusted, s.n);
    b->n += s.n;
}

void jinja_add_bytes(struct builder *b, const char *p, size_t n, bool trusted)
{
    jinja_add(b, (struct string){p, n, NULL, trusted});
}

void jinja_adds(struct builder *b, const char *s, bool trusted)
{
    jinja_add_bytes(b, s, strlen(s), trusted);
}

void jinja_add_code_point(struct builder *b, uint32_t cp, bool trusted)
{
    char utf8[4];
    jinja_add_bytes(b, utf8, (size_t)utf8_encode(cp, utf8), trusted);
}

struct string jinja_built(struct builder *b)
{
    if (!b->n)
        return jinja_trusted("");
    struct string s = {b->p, b->n, b->marks, false};
    if (!memchr(b->marks, !b->marks[0], b->n)) {
        s.trusted = b->marks[0];
        s.marks = NULL;
    }
    return s;
}

/* ---- looking ---- */

struct string jinja_trusted(const char *s)
{
    return (struct string){s, strlen(s), NULL, true};
}

bool jinja_is_trusted(struct string s)
{
    return s.marks ? !memchr(s.marks, 0, s.n) : s.trusted;
}

static bool trusted_at(struct string s, size_t i)
{
    return s.marks ? s.marks[i] : s.trusted;
}

struct string jinja_cut(struct string s, size_t from, size_t to)
{
    return (struct string){s.p + from, to - from, s.marks ? s.marks + from : NULL, s.trusted};
}

size_t jinja_code_point(const char *p, size_t n, uint32_t *cp)
{
    if ((unsigned char)*p < 0x80) {
        *cp = (unsigned char)*p;
        return 1;
    }
    int len = utf8_decode(p, n, cp);
    if (len > 0)
        return (size_t)len;
    *cp = 0xfffd;
    return 1;
}

size_t jinja_count(struct run *r, struct string s)
{
    size_t n = 0;
    jinja_charge(r, s.n / 256);
    for (size_t i = 0; i < s.n; i++)
        n += ((unsigned char)s.p[i] & 0xc0) != 0x80;
    return n;
}

size_t jinja_find(struct run *r, struct string s, struct str needle, size_t from)
{
    if (from > s.n || !jinja_charge(r, (s.n - from) / 256))
        return JINJA_NOT_FOUND;
    if (!needle.n)
        return from;
    const char *at = s.n > from ? memmem(s.p + from, s.n - from, needle.p, needle.n) : NULL;
    return at ? (size_t)(at - s.p) : JINJA_NOT_FOUND;
}

size_t jinja_find_last(struct run *r, struct string s, struct str needle)
{
    if (needle.n > s.n)
        return JINJA_NOT_FOUND;
    for (size_t i = s.n - needle.n + 1; i-- > 0;) {
        if (i % 256 == 0 && !jinja_charge(r, 1))
            break;
        if (!needle.n || memcmp(s.p + i, needle.p, needle.n) == 0)
            return i;
    }
    return JINJA_NOT_FOUND;
}

bool jinja_is_space(uint32_t cp)
{
    if (cp < 0x80)
        return cp == ' ' || (cp >= 9 && cp <= 13) || (cp >= 0x1c && cp <= 0x1f);
    return cp == 0x85 || cp == 0xa0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200a) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f || cp == 0x3000;
}

/* Where the code point that ends at `end` begins. */
static size_t before(const char *p, size_t end)
{
    do
        end--;
    while (end > 0 && ((unsigned char)p[end] & 0xc0) == 0x80);
    return end;
}

size_t jinja_space_suffix(const char *p, size_t n)
{
    while (n > 0) {
        uint32_t cp;
        size_t start = before(p, n);
        jinja_code_point(p + start, n - start, &cp);
        if (!jinja_is_space(cp))
            break;
        n = start;
    }
    return n;
}

static bool strips(uint32_t cp, const struct string *chars)
{
    if (!chars)
        return jinja_is_space(cp);
    uint32_t c;
    for (size_t i = 0; i < chars->n;) {
        i += jinja_code_point(chars->p + i, chars->n - i, &c);
        if (c == cp)
            return true;
    }
    return false;
}

struct string jinja_strip(struct run *r, struct string s, const struct string *chars, int sides)
{
    size_t from = 0, to = s.n, work = chars ? 1 + chars->n / 8 : 1;
    uint32_t cp;
    while ((sides & STRIP_LEFT) && from < to) {
        size_t n = jinja_code_point(s.p + from, to - from, &cp);
        if (!strips(cp, chars) || !jinja_charge(r, work))
            break;
        from += n;
    }
    while ((sides & STRIP_RIGHT) && from < to) {
        size_t start = before(s.p, to);
        jinja_code_point(s.p + start, to - start, &cp);
        if (!strips(cp, chars) || !jinja_charge(r, work))
            break;
        to = start;
    }
    return jinja_cut(s, from, to);
}

/* str.replace(): count < 0 replaces all. An empty `old` matches before each character and at the
 * end. */
struct string jinja_replace(struct run *r, struct string s, struct string old, struct string new,
                            int64_t count)
{
    struct builder b = {.run = r};
    size_t from = 0;
    for (; count != 0 && !r->code; count -= count > 0) {
        size_t at = jinja_find(r, s, (struct str){old.p, old.n}, from);
        if (at == JINJA_NOT_FOUND || !jinja_charge(r, 1))
            break;
        jinja_add(&b, jinja_cut(s, from, at));
        jinja_add(&b, new);
        from = at + old.n;
        if (!old.n) {
            if (from == s.n)
                break;
            uint32_t cp;
            size_t n = jinja_code_point(s.p + from, s.n - from, &cp);
            jinja_add(&b, jinja_cut(s, from, from + n));
            from += n;
        }
    }
    if (from == 0 && b.n == 0)
        return s;
    jinja_add(&b, jinja_cut(s, from, s.n));
    return jinja_built(&b);
}

/* ---- upper and lower case ---- */

static uint32_t to_upper(const struct run *r, uint32_t cp)
{
    if (cp < 0x80 || !r->locale)
        return cp >= 'a' && cp <= 'z' ? cp - 32 : cp;
    return (uint32_t)towupper_l((wint_t)cp, r->locale);
}

static uint32_t to_lower(const struct run *r, uint32_t cp)
{
    if (cp < 0x80 || !r->locale)
        return cp >= 'A' && cp <= 'Z' ? cp + 32 : cp;
    return (uint32_t)towlower_l((wint_t)cp, r->locale);
}

static bool is_cased(const struct run *r, uint32_t cp)
{
    return to_upper(r, cp) != cp || to_lower(r, cp) != cp || cp == 0xdf;
}

static void add_upper(struct builder *b, uint32_t cp, bool trusted, bool title)
{
    if (cp == 0xdf) /* the one common letter whose upper case is two letters */
        jinja_adds(b, title ? "Ss" : "SS", trusted);
    else
        jinja_add_code_point(b, to_upper(b->run, cp), trusted);
}

struct string jinja_case(struct run *r, struct string s, enum letter_case to)
{
    struct builder b = {.run = r};
    bool first = true; /* the next letter begins a word (TITLE) or the text (CAPITAL) */
    uint32_t cp;
    jinja_charge(r, s.n / 16);
    for (size_t i = 0, n; i < s.n && !r->code; i += n) {
        n = jinja_code_point(s.p + i, s.n - i, &cp);
        bool trusted = trusted_at(s, i), upper = to == CASE_UPPER;
        if (to == CASE_TITLE || to == CASE_CAPITAL)
            upper = first;
        else if (to == CASE_SWAP)
            upper = to_upper(r, cp) != cp;
        if (upper)
            add_upper(&b, cp, trusted, to != CASE_UPPER);
        else
            jinja_add_code_point(&b, to_lower(r, cp), trusted);
        first = to == CASE_TITLE && !is_cased(r, cp);
    }
    return jinja_built(&b);
}

bool jinja_is_cased(struct run *r, struct string s, bool upper)
{
    bool any = false;
    uint32_t cp;
    jinja_charge(r, s.n / 16);
    for (size_t i = 0; i < s.n;) {
        i += jinja_code_point(s.p + i, s.n - i, &cp);
        if (!is_cased(r, cp))
            continue;
        any = true;
        if (upper ? to_upper(r, cp) != cp || cp == 0xdf : to_lower(r, cp) != cp)
            return false;
    }
    return any;
}

/* ---- slices ---- */

/* One bound: default where absent, negative from the end, clamped to [low, high]. */
static bool bound(struct run *r, const struct value *v, int64_t n, int64_t absent, int64_t low,
                  int64_t high, int64_t *out)
{
    *out = absent;
    if (!v || v->kind == V_NONE)
        return true;
    if (!jinja_integer(*v, out)) {
        jinja_fail(r, ERR_FORMAT, "slice indices must be integers or none, not %s",
                   jinja_kind_name(v->kind));
        return false;
    }
    if (*out < 0)
        *out += n;
    *out = *out < low ? low : *out > high ? high : *out;
    return true;
}

bool jinja_slice_bounds(struct run *r, size_t n, const struct value *start,
                        const struct value *stop, const struct value *step, int64_t *first,
                        int64_t *stride, size_t *count)
{
    int64_t len = (int64_t)n, last;
    *stride = 1;
    if (step && step->kind != V_NONE && !jinja_integer(*step, stride)) {
        jinja_fail(r, ERR_FORMAT, "slice steps must be integers");
        return false;
    }
    if (*stride == 0) {
        jinja_fail(r, ERR_FORMAT, "slice step cannot be zero");
        return false;
    }
    bool back = *stride < 0;
    int64_t low = back ? -1 : 0, high = back ? len - 1 : len;
    if (!bound(r, start, len, back ? high : low, low, high, first) ||
        !bound(r, stop, len, back ? low : high, low, high, &last))
        return false;
    int64_t distance = back ? *first - last : last - *first;
    if (distance <= 0) {
        *count = 0;
        return true;
    }
    uint64_t stride_abs = back ? 0 - (uint64_t)*stride : (uint64_t)*stride;
    *count = (size_t)(((uint64_t)distance - 1) / stride_abs) + 1;
    return true;
}

/* The byte offset of code point i, from the offset `at` of code point `from` (from <= i). */
static size_t offset_of(struct string s, int64_t i, int64_t from, size_t at)
{
    uint32_t cp;
    for (; from < i && at < s.n; from++)
        at += jinja_code_point(s.p + at, s.n - at, &cp);
    return at;
}

struct string jinja_slice(struct run *r, struct string s, int64_t first, int64_t stride,
                          size_t count)
{
    if (!count || !jinja_charge(r, s.n / 64))
        return jinja_trusted("");
    if (stride == 1) {
        size_t from = offset_of(s, first, 0, 0);
        return jinja_cut(s, from, offset_of(s, first + (int64_t)count, first, from));
    }
    size_t n = jinja_count(r, s);
    size_t *offsets = jinja_alloc(r, (n + 1) * sizeof *offsets);
    if (r->code)
        return jinja_trusted("");
    for (size_t i = 0; i < n; i++)
        offsets[i + 1] = offset_of(s, 1, 0, offsets[i]);
    struct builder b = {.run = r};
    for (size_t k = 0; k < count; k++) {
        int64_t i = first + (int64_t)k * stride;
        jinja_add(&b, jinja_cut(s, offsets[i], offsets[i + 1]));
    }
    return jinja_built(&b);
}
