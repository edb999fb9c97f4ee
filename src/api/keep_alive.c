#include "api/keep_alive.h"

enum { MAX_MS_BITS = 52 }; /* anything longer is for good */

static bool from_ms(double ms, struct keep_alive *out)
{
    bool forever = ms < 0 || ms >= (double)((int64_t)1 << MAX_MS_BITS);
    *out = (struct keep_alive){true, forever ? KEEP_FOREVER : (int64_t)ms};
    return true;
}

bool keep_alive_text(struct str text, struct keep_alive *out)
{
    double sum = 0;
    struct str rest = text;
    if (str_eqs(text, "forever"))
        return from_ms(-1, out);
    bool negative = rest.n && rest.p[0] == '-';
    if (negative)
        rest = (struct str){rest.p + 1, rest.n - 1};
    if (!rest.n || rest.p[0] == '-')
        return false;
    while (rest.n) { /* number and unit, again and again */
        size_t n = 0;
        int64_t ms;
        while (n < rest.n && ((rest.p[n] >= '0' && rest.p[n] <= '9') || rest.p[n] == '.'))
            n++;
        size_t number = n;
        while (n < rest.n && rest.p[n] >= 'a' && rest.p[n] <= 'z')
            n++;
        bool bare = number == n; /* only a whole text may be: seconds */
        if (!number || (bare && n < text.n - negative) || !str_to_ms((struct str){rest.p, n}, &ms))
            return false;
        sum += (double)ms;
        rest = (struct str){rest.p + n, rest.n - n};
    }
    return from_ms(negative && sum > 0 ? -1 : sum, out);
}

bool keep_alive_parse(const json_t *v, struct keep_alive *out)
{
    if (json_is_string(v))
        return keep_alive_text((struct str){json_string_value(v), json_string_length(v)}, out);
    return json_is_number(v) && from_ms(json_number_value(v) * 1e3, out);
}
