#define _GNU_SOURCE
#include "base/str.h"

#include <locale.h>
#include <math.h>
#include <stdlib.h>

bool str_eqs(struct str a, const char *s)
{
    return str_eq(a, str_of(s));
}

bool str_starts(struct str a, const char *s)
{
    size_t n = strlen(s);
    return a.n >= n && memcmp(a.p, s, n) == 0;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

bool str_case_eq(struct str a, const char *s)
{
    if (a.n != strlen(s))
        return false;
    for (size_t i = 0; i < a.n; i++)
        if (lower(a.p[i]) != lower(s[i]))
            return false;
    return true;
}

bool str_to_u64(struct str s, uint64_t *out)
{
    uint64_t v = 0;
    if (!s.n)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9')
            return false;
        if (__builtin_mul_overflow(v, 10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(s.p[i] - '0'), &v))
            return false;
    }
    *out = v;
    return true;
}

bool str_to_i64(struct str s, int64_t *out)
{
    bool minus = s.n && s.p[0] == '-';
    uint64_t v;
    if (minus)
        s = (struct str){s.p + 1, s.n - 1};
    if (!str_to_u64(s, &v) || v > (uint64_t)INT64_MAX + minus)
        return false;
    *out = minus ? (int64_t)(0 - v) : (int64_t)v;
    return true;
}

bool str_to_double(struct str s, double *out)
{
    char tmp[64], *end;
    if (!s.n || s.n >= sizeof tmp)
        return false;
    for (size_t i = 0; i < s.n; i++)
        if (!strchr("0123456789+-.eE", s.p[i]) || !s.p[i])
            return false;
    memcpy(tmp, s.p, s.n);
    tmp[s.n] = 0;
    static locale_t c_locale;
    locale_t loc = __atomic_load_n(&c_locale, __ATOMIC_ACQUIRE);
    if (!loc) {
        loc = newlocale(LC_ALL_MASK, "C", (locale_t)0);
        __atomic_store_n(&c_locale, loc, __ATOMIC_RELEASE);
    }
    double v = strtod_l(tmp, &end, loc);
    if (*end || !isfinite(v))
        return false;
    *out = v;
    return true;
}

struct unit {
    const char *name;
    double factor;
};

/* A number and a unit out of the table (which ends with NULL). */
static bool with_unit(struct str s, const struct unit *units, double *out)
{
    size_t n = s.n;
    while (n && !(s.p[n - 1] >= '0' && s.p[n - 1] <= '9') && s.p[n - 1] != '.')
        n--;
    struct str unit = {s.p + n, s.n - n};
    while (unit.n && unit.p[0] == ' ')
        unit = (struct str){unit.p + 1, unit.n - 1};
    double v;
    if (!str_to_double((struct str){s.p, n}, &v) || v < 0)
        return false;
    for (; units->name; units++) {
        if (str_case_eq(unit, units->name)) {
            *out = v * units->factor;
            return *out < 9e18;
        }
    }
    return false;
}

bool str_to_bytes(struct str s, uint64_t *out)
{
    static const struct unit units[] = {
        {"", 1},          {"B", 1},      {"K", 1024},     {"KiB", 1024}, {"M", 1048576},
        {"MiB", 1048576}, {"G", 0x1p30}, {"GiB", 0x1p30}, {"T", 0x1p40}, {"TiB", 0x1p40},
        {"KB", 1e3},      {"MB", 1e6},   {"GB", 1e9},     {"TB", 1e12},  {NULL, 0},
    };
    double v;
    if (!with_unit(s, units, &v))
        return false;
    *out = (uint64_t)v;
    return true;
}

bool str_to_ms(struct str s, int64_t *out)
{
    static const struct unit units[] = {
        {"", 1e3}, {"ms", 1}, {"s", 1e3}, {"m", 60e3}, {"h", 3600e3}, {"d", 86400e3}, {NULL, 0},
    };
    double v;
    if (!with_unit(s, units, &v))
        return false;
    *out = (int64_t)(v + 0.5);
    return true;
}

int utf8_decode(const char *s, size_t n, uint32_t *cp)
{
    const unsigned char *p = (const unsigned char *)s;
    if (!n)
        return 0;
    if (p[0] < 0x80) {
        *cp = p[0];
        return 1;
    }
    int len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || n < (size_t)len)
        return 0;
    uint32_t v = p[0] & (0x7fu >> len);
    for (int i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        v = v << 6 | (p[i] & 0x3f);
    }
    if ((len == 3 && v < 0x800) || (len == 4 && v < 0x10000) || v > 0x10ffff ||
        (v >= 0xd800 && v < 0xe000))
        return 0;
    *cp = v;
    return len;
}

int utf8_encode(uint32_t cp, char *out)
{
    unsigned char *o = (unsigned char *)out;
    if (cp < 0x80) {
        o[0] = (unsigned char)cp;
        return 1;
    }
    if (cp < 0x800) {
        o[0] = (unsigned char)(0xc0 | cp >> 6);
        o[1] = (unsigned char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        o[0] = (unsigned char)(0xe0 | cp >> 12);
        o[1] = (unsigned char)(0x80 | (cp >> 6 & 0x3f));
        o[2] = (unsigned char)(0x80 | (cp & 0x3f));
        return 3;
    }
    o[0] = (unsigned char)(0xf0 | cp >> 18);
    o[1] = (unsigned char)(0x80 | (cp >> 12 & 0x3f));
    o[2] = (unsigned char)(0x80 | (cp >> 6 & 0x3f));
    o[3] = (unsigned char)(0x80 | (cp & 0x3f));
    return 4;
}

bool utf8_valid(const char *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int len = utf8_decode(p + i, n - i, &cp);
        if (!len)
            return false;
        i += (size_t)len;
    }
    return true;
}

size_t utf8_cut(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char c = p[n - back];
        if (c < 0x80)
            return 0;
        if (c >= 0xc2) {
            size_t len = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
            return c <= 0xf4 && len > back ? back : 0;
        }
    }
    return 0;
}
