#include "gateway/config_value.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "gateway/route.h"

enum { TEXT_MAX_BYTES = 4096 };

int config_wrong(struct err *e, const char *where, const char *wanted)
{
    return err_param(e, ERR_INVALID, where, "%s must be %s", where, wanted);
}

int read_text(const json_t *v, const char *where, char **out, struct err *e)
{
    if (!v)
        return 0;
    if (!json_is_string(v) || !json_string_length(v))
        return config_wrong(e, where, "a text that is not empty");
    if (json_string_length(v) > TEXT_MAX_BYTES)
        return config_wrong(e, where, "a text of at most 4096 bytes");
    free(*out);
    *out = xstrdup(json_string_value(v));
    return 0;
}

int read_names(const json_t *v, const char *where, struct names *out, struct err *e)
{
    if (!v)
        return 0;
    size_t n = json_is_string(v) ? 1 : json_array_size(v);
    if (!n || n > ROUTE_MAX_NAMES)
        return config_wrong(e, where, "a text, or a list of 1 to 64 of them");
    out->at = xcalloc(n, sizeof *out->at);
    int rc = json_is_string(v) ? read_text(v, where, &out->at[out->n++], e) : 0;
    for (size_t i = 0; json_is_array(v) && i < n && !rc; i++) {
        char at[128];
        snprintf(at, sizeof at, "%s[%zu]", where, i);
        rc = read_text(json_array_get(v, i), at, &out->at[out->n++], e);
    }
    return rc;
}

int read_number(const json_t *v, const char *where, double min, double max, double *out,
                struct err *e)
{
    if (!v)
        return 0;
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= min && x <= max)) {
        char wanted[96];
        snprintf(wanted, sizeof wanted, "a number from %.12g to %.12g", min, max);
        return config_wrong(e, where, wanted);
    }
    *out = x;
    return 0;
}

int read_flag(const json_t *v, const char *where, bool *out, struct err *e)
{
    if (v && !json_is_boolean(v))
        return config_wrong(e, where, "true or false");
    if (v)
        *out = json_is_true(v);
    return 0;
}

int read_ms(const json_t *v, const char *where, int64_t *out, struct err *e)
{
    if (!v)
        return 0;
    struct str s = {json_string_value(v), json_string_length(v)};
    if (!json_is_string(v) || !str_to_ms(s, out) || *out < 0 || *out > 86400000)
        return config_wrong(e, where, "a duration up to a day, such as 300ms or 20s");
    return 0;
}

void names_release(struct names *n)
{
    for (int i = 0; i < n->n; i++)
        free(n->at[i]);
    free(n->at);
    *n = (struct names){0};
}

/* The keys that there are, as a list for people. */
static char *list_of(const char *const *known)
{
    struct buf b = {0};
    for (size_t i = 0; known[i]; i++)
        buf_addf(&b, "%s%s", i ? ", " : "", known[i]);
    return buf_take(&b);
}

int check_keys(const json_t *map, const char *where, const char *const *known, struct err *e)
{
    const char *key;
    json_t *v;
    if (!json_is_object(map))
        return config_wrong(e, where, "a mapping");
    json_object_foreach((json_t *)map, key, v)
    {
        size_t i = 0;
        while (known[i] && strcmp(known[i], key) != 0)
            i++;
        if (known[i])
            continue;
        char at[128], *all = list_of(known);
        snprintf(at, sizeof at, "%s.%.64s", where, key);
        err_param(e, ERR_INVALID, at, "%s has the unknown key '%.64s'; there are %s", where, key,
                  all);
        free(all);
        return ERR_INVALID;
    }
    return 0;
}

const json_t *config_at(struct config_map *m, const char *key)
{
    snprintf(m->at, sizeof m->at, "%s.%s", m->where, key);
    return json_object_get(m->map, key);
}
