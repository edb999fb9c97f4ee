#define PCRE2_CODE_UNIT_WIDTH 8
#include "gateway/text_regex.h"

#include <pcre2.h>
#include <stdlib.h>

#include "base/mem.h"

enum {
    MATCH_STEPS = 100000, /* about a millisecond */
    MATCH_HEAP_KIB = 1024,
    MAX_TEXT_BYTES = 64 << 10, /* what comes later in a text is not looked at */
};

struct text_regex {
    pcre2_code *code;
    pcre2_match_context *limits;
};

int text_regex_new(struct text_regex **out, struct str pattern, struct err *e)
{
    int code;
    PCRE2_SIZE at;
    if (pattern.n > TEXT_REGEX_MAX_BYTES)
        return err_set(e, ERR_LIMIT, "a pattern may have %d bytes", TEXT_REGEX_MAX_BYTES);
    pcre2_code *compiled =
        pcre2_compile((PCRE2_SPTR)pattern.p, pattern.n,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    if (!compiled) {
        unsigned char why[160] = "";
        pcre2_get_error_message(code, why, sizeof why);
        return err_set(e, ERR_INVALID, "the pattern is wrong at character %zu: %s", at + 1,
                       (char *)why);
    }
    struct text_regex *r = xcalloc(1, sizeof *r);
    r->code = compiled;
    r->limits = pcre2_match_context_create(NULL);
    BUG_ON(!r->limits); /* out of memory */
    pcre2_set_match_limit(r->limits, MATCH_STEPS);
    pcre2_set_heap_limit(r->limits, MATCH_HEAP_KIB);
    *out = r;
    return 0;
}

void text_regex_free(struct text_regex *r)
{
    if (!r)
        return;
    pcre2_match_context_free(r->limits);
    pcre2_code_free(r->code);
    free(r);
}

bool text_regex_matches(const struct text_regex *r, struct str text)
{
    if (text.n > MAX_TEXT_BYTES)
        text.n = MAX_TEXT_BYTES - utf8_cut(text.p, MAX_TEXT_BYTES);
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    BUG_ON(!match);
    int n = pcre2_match(r->code, (PCRE2_SPTR)text.p, text.n, 0, 0, match, r->limits);
    pcre2_match_data_free(match);
    return n >= 0;
}
