/* route_config.c - a configuration's tiers, aliases and routes as a struct routing. */
#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/mem.h"
#include "gateway/route_private.h"
#include "gateway/text_regex.h"

/* ---- values ---- */

static int wrong(struct err *e, const char *where, const char *wanted)
{
    return err_param(e, ERR_INVALID, where, "%s must be %s", where, wanted);
}

int read_text(const json_t *v, const char *where, char **out, struct err *e)
{
    if (!v)
        return 0;
    if (!json_is_string(v) || !json_string_length(v))
        return wrong(e, where, "a text that is not empty");
    if (json_string_length(v) > TEXT_REGEX_MAX_BYTES)
        return wrong(e, where, "shorter");
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
        return wrong(e, where, "a text, or a list of 1 to 64 of them");
    out->at = xcalloc(n, sizeof *out->at);
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_is_string(v) ? v : json_array_get(v, i);
        int rc = item ? read_text(item, where, &out->at[out->n], e) : wrong(e, where, "a list");
        if (rc)
            return rc;
        out->n++;
    }
    return 0;
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
        return wrong(e, where, wanted);
    }
    *out = x;
    return 0;
}

int read_flag(const json_t *v, const char *where, bool *out, struct err *e)
{
    if (v && !json_is_boolean(v))
        return wrong(e, where, "true or false");
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
        return wrong(e, where, "a duration up to a day, such as 300ms or 20s");
    return 0;
}

int read_tier(const struct routing *r, const json_t *v, const char *where, int *out, struct err *e)
{
    if (!v)
        return 0;
    const struct tier *t = json_is_string(v) ? routing_find(r, json_string_value(v)) : NULL;
    if (!t)
        return wrong(e, where, "the name of a tier");
    *out = t->index;
    return 0;
}

void names_release(struct names *n)
{
    for (int i = 0; i < n->n; i++)
        free(n->at[i]);
    free(n->at);
    *n = (struct names){0};
}

int check_keys(const json_t *map, const char *where, const char *const *known, struct err *e)
{
    const char *key;
    json_t *v;
    if (!json_is_object(map))
        return wrong(e, where, "a mapping");
    json_object_foreach((json_t *)map, key, v)
    {
        size_t i = 0;
        while (known[i] && strcmp(known[i], key) != 0)
            i++;
        if (known[i])
            continue;
        struct buf b = {0};
        for (i = 0; known[i]; i++)
            buf_addf(&b, "%s%s", i ? ", " : "", known[i]);
        err_param(e, ERR_INVALID, where, "%s has the unknown key '%.64s'; there are %s", where, key,
                  buf_str(&b));
        buf_release(&b);
        return ERR_INVALID;
    }
    return 0;
}

/* ---- tiers ---- */

static int read_check(struct output_check *c, const json_t *v, const char *where, struct err *e)
{
    static const char *const known[] = {"min_chars", "json", "regex", NULL};
    char at[96];
    double min_chars = 0;
    char *pattern = NULL;
    if (!v)
        return 0;
    int rc = check_keys(v, where, known, e);
    snprintf(at, sizeof at, "%s.min_chars", where);
    if (!rc)
        rc = read_number(json_object_get(v, "min_chars"), at, 0, 1e6, &min_chars, e);
    c->min_chars = (int64_t)min_chars;
    snprintf(at, sizeof at, "%s.json", where);
    if (!rc)
        rc = read_flag(json_object_get(v, "json"), at, &c->json, e);
    snprintf(at, sizeof at, "%s.regex", where);
    if (!rc)
        rc = read_text(json_object_get(v, "regex"), at, &pattern, e);
    if (!rc && pattern && (rc = text_regex_new(&c->regex, str_of(pattern), e)))
        rc = err_prefix(e, rc, "%s", at);
    free(pattern);
    return rc;
}

/* What is nested in a tier: targets, cost. */
static int read_nested(struct tier *t, const json_t *v, const char *where, struct err *e)
{
    static const char *const target_keys[] = {"ttft", "token", NULL};
    static const char *const cost_keys[] = {"prompt", "completion", NULL};
    const json_t *targets = json_object_get(v, "targets"), *cost = json_object_get(v, "cost");
    char at[96];
    int rc = 0;
    snprintf(at, sizeof at, "%s.targets", where);
    if (targets && !(rc = check_keys(targets, at, target_keys, e))) {
        rc = read_ms(json_object_get(targets, "ttft"), at, &t->ttft_ms, e);
        if (!rc)
            rc = read_ms(json_object_get(targets, "token"), at, &t->token_ms, e);
    }
    snprintf(at, sizeof at, "%s.cost", where);
    if (!rc && cost && !(rc = check_keys(cost, at, cost_keys, e))) {
        rc = read_number(json_object_get(cost, "prompt"), at, 0, 1e9, &t->prompt_cost, e);
        if (!rc)
            rc = read_number(json_object_get(cost, "completion"), at, 0, 1e9, &t->completion_cost,
                             e);
    }
    snprintf(at, sizeof at, "%s.check", where);
    return rc ? rc : read_check(&t->check, json_object_get(v, "check"), at, e);
}

static int read_tier_row(struct tier *t, const json_t *v, const char *where, struct err *e)
{
    static const char *const known[] = {"name",    "models",  "backends",    "adapter",  "personal",
                                        "targets", "timeout", "concurrency", "fallback", "shed_to",
                                        "cost",    "check",   NULL};
    const struct {
        const char *key;
        struct names *names;
        char **text;
        int64_t *ms;
        bool *flag;
    } fields[] = {
        {"name", .text = &t->name},          {"models", .names = &t->models},
        {"backends", .names = &t->backends}, {"adapter", .text = &t->adapter},
        {"personal", .flag = &t->personal},  {"timeout", .ms = &t->timeout_ms},
        {"fallback", .names = &t->fallback}, {"shed_to", .text = &t->shed_to},
    };
    double concurrency = 0;
    char at[96];
    int rc = check_keys(v, where, known, e);
    for (size_t i = 0; !rc && i < ARRAY_LEN(fields); i++) {
        const json_t *x = json_object_get(v, fields[i].key);
        snprintf(at, sizeof at, "%s.%s", where, fields[i].key);
        rc = fields[i].names  ? read_names(x, at, fields[i].names, e)
             : fields[i].text ? read_text(x, at, fields[i].text, e)
             : fields[i].ms   ? read_ms(x, at, fields[i].ms, e)
                              : read_flag(x, at, fields[i].flag, e);
    }
    snprintf(at, sizeof at, "%s.concurrency", where);
    if (!rc)
        rc = read_number(json_object_get(v, "concurrency"), at, 0, 1e6, &concurrency, e);
    t->concurrency = (int64_t)concurrency;
    if (!rc && (!t->name || !t->models.n))
        return err_param(e, ERR_INVALID, where, "%s needs a name and models", where);
    if (!rc && strcmp(t->name, "auto") == 0)
        return err_param(e, ERR_INVALID, where, "%s: 'auto' is no name of a tier", where);
    return rc ? rc : read_nested(t, v, where, e);
}

/* Every tier that a tier names must be there. */
static int check_links(const struct routing *r, struct err *e)
{
    for (int i = 0; i < r->n_tiers; i++) {
        const struct tier *t = &r->tiers[i];
        for (int k = 0; k < t->fallback.n; k++)
            if (!routing_find(r, t->fallback.at[k]))
                return err_param(e, ERR_INVALID, "fallback",
                                 "tiers[%d].fallback: there is no tier '%.64s'", i,
                                 t->fallback.at[k]);
        if (t->shed_to && !routing_find(r, t->shed_to))
            return err_param(e, ERR_INVALID, "shed_to",
                             "tiers[%d].shed_to: there is no tier '%.64s'", i, t->shed_to);
    }
    return 0;
}

static int read_tiers(struct routing *r, const json_t *list, struct err *e)
{
    size_t n = json_array_size(list);
    if (list && (!json_is_array(list) || n > ROUTE_MAX_TIERS))
        return wrong(e, "tiers", "a list of at most 32 tiers");
    for (size_t i = 0; i < n; i++) {
        struct tier *t = &r->tiers[i];
        char where[64];
        snprintf(where, sizeof where, "tiers[%zu]", i);
        t->index = (int)i;
        r->n_tiers = (int)i + 1; /* so that a half-read one is freed */
        int rc = read_tier_row(t, json_array_get(list, i), where, e);
        if (rc)
            return rc;
        if (routing_find(r, t->name) != t)
            return err_param(e, ERR_EXISTS, where, "%s: there are two tiers named '%.64s'", where,
                             t->name);
    }
    return check_links(r, e);
}

/* ---- aliases and rules ---- */

/* A tier's name, "model:NAME", or the name of a model. */
static int read_alias(const struct routing *r, struct alias *a, const char *name, const json_t *v,
                      struct err *e)
{
    const char *target = json_string_value(v);
    if (!target || !*target || !*name || strcmp(name, "auto") == 0)
        return err_param(e, ERR_INVALID, "aliases",
                         "aliases.%.64s must be the name of a tier or model", name);
    const struct tier *t = routing_find(r, target);
    *a = (struct alias){.name = xstrdup(name), .tier = t ? t->index : -1};
    if (!t)
        a->model = xstrdup(strncmp(target, "model:", 6) == 0 ? target + 6 : target);
    return 0;
}

static int read_aliases(struct routing *r, const json_t *map, struct err *e)
{
    const char *name;
    json_t *v;
    if (!map)
        return 0;
    if (!json_is_object(map) || json_object_size(map) > 1024)
        return wrong(e, "aliases", "a mapping of names");
    r->aliases = xcalloc(json_object_size(map) + 1, sizeof *r->aliases);
    json_object_foreach((json_t *)map, name, v)
    {
        int rc = read_alias(r, &r->aliases[r->n_aliases], name, v, e);
        if (rc)
            return rc;
        r->n_aliases++;
    }
    return 0;
}

static int read_rule(const struct routing *r, struct rule *rule, const json_t *v, const char *where,
                     struct err *e)
{
    static const char *const known[] = {"name", "when", "tier", "model", NULL};
    char at[96];
    int rc = check_keys(v, where, known, e);
    rule->tier = -1;
    snprintf(at, sizeof at, "%s.name", where);
    if (!rc)
        rc = read_text(json_object_get(v, "name"), at, &rule->name, e);
    snprintf(at, sizeof at, "%s.model", where);
    if (!rc)
        rc = read_text(json_object_get(v, "model"), at, &rule->model, e);
    snprintf(at, sizeof at, "%s.tier", where);
    if (!rc)
        rc = read_tier(r, json_object_get(v, "tier"), at, &rule->tier, e);
    if (!rc && rule->tier < 0)
        return err_param(e, ERR_INVALID, where, "%s needs a tier", where);
    if (!rc && !rule->name)
        rule->name = xstrdup(where);
    snprintf(at, sizeof at, "%s.when", where);
    return rc ? rc : rule_read_when(r, rule, json_object_get(v, "when"), at, e);
}

static int read_rules(struct routing *r, const json_t *list, struct err *e)
{
    size_t n = json_array_size(list);
    if (!list)
        return 0;
    if (!json_is_array(list) || n > ROUTE_MAX_RULES)
        return wrong(e, "routes", "a list of at most 256 rules");
    r->rules = xcalloc(n + 1, sizeof *r->rules);
    for (size_t i = 0; i < n; i++) {
        char where[64];
        snprintf(where, sizeof where, "routes[%zu]", i);
        r->n_rules = (int)i + 1;
        int rc = read_rule(r, &r->rules[i], json_array_get(list, i), where, e);
        if (rc)
            return rc;
    }
    return 0;
}

int routing_new(struct routing **out, const json_t *config, struct err *e)
{
    struct routing *r = xcalloc(1, sizeof *r);
    int rc = read_tiers(r, json_object_get(config, "tiers"), e);
    if (!rc)
        rc = read_tier(r, json_object_get(config, "default_tier"), "default_tier", &r->default_tier,
                       e);
    if (!rc)
        rc = read_aliases(r, json_object_get(config, "aliases"), e);
    if (!rc)
        rc = read_rules(r, json_object_get(config, "routes"), e);
    if (!rc && r->n_rules && !r->n_tiers)
        rc = err_param(e, ERR_INVALID, "routes", "routes need tiers to lead to");
    if (rc) {
        routing_free(r);
        return rc;
    }
    *out = r;
    return 0;
}

static void tier_release(struct tier *t)
{
    free(t->name);
    free(t->adapter);
    free(t->shed_to);
    names_release(&t->models);
    names_release(&t->backends);
    names_release(&t->fallback);
    text_regex_free(t->check.regex);
}

void routing_free(struct routing *r)
{
    if (!r)
        return;
    for (int i = 0; i < r->n_tiers; i++)
        tier_release(&r->tiers[i]);
    for (int i = 0; i < r->n_rules; i++)
        rule_release(&r->rules[i]);
    for (int i = 0; i < r->n_aliases; i++) {
        free(r->aliases[i].name);
        free(r->aliases[i].model);
    }
    free(r->rules);
    free(r->aliases);
    free(r);
}
