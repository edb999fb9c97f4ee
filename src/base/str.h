/* str.h - slices of text that somebody else owns, and UTF-8. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct str {
    const char *p; /* not NUL-terminated */
    size_t n;
};

#define STR(lit) ((struct str){lit, sizeof(lit) - 1})

static inline struct str str_of(const char *s)
{
    return (struct str){s, strlen(s)};
}

static inline bool str_eq(struct str a, struct str b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

bool str_eqs(struct str a, const char *s);
bool str_starts(struct str a, const char *s);
bool str_case_eq(struct str a, const char *s); /* ASCII letters only */

/* Parses a whole decimal number; false on anything else, overflow included. */
bool str_to_i64(struct str s, int64_t *out);
bool str_to_u64(struct str s, uint64_t *out);
bool str_to_double(struct str s, double *out); /* finite only, '.' whatever the locale */

/* "8GiB", "512M", "1.5 GB", "4096": a size in bytes. KiB MiB GiB TiB and K M G T are powers of
 * 1024, KB MB GB TB powers of 1000. */
bool str_to_bytes(struct str s, uint64_t *out);

/* "250ms", "10s", "5m", "2h", "1.5h", "30" (seconds): a duration in milliseconds. */
bool str_to_ms(struct str s, int64_t *out);

/* Decodes one code point at p[0..n). Returns its length in bytes, 0 for malformed or cut input
 * (overlong forms, surrogates and values over U+10FFFF are malformed). */
int utf8_decode(const char *p, size_t n, uint32_t *cp);

/* Writes cp to out (4 bytes of room), returns the length; cp must be a scalar value. */
int utf8_encode(uint32_t cp, char *out);

bool utf8_valid(const char *p, size_t n);

/* How many bytes at the end of p[0..n) begin a character that is not complete yet (0..3). */
size_t utf8_cut(const char *p, size_t n);
