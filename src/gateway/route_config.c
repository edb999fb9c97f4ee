/* route_config.c - a configuration's tiers, aliases and routes as a struct routing. */
#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/mem.h"
#include "gateway/route_private.h"
#include "gateway/text_regex.h"

int read_pattern(const json_t *v, const char *where, struct text_regex **out, struct err *e)
{
    char *pattern = NULL;
    struct err why = {0};
    int rc = read_text(v, where, &pattern, e);
    if (!rc && pattern && (rc = text_regex_new(out, str_of(pattern), &why)))
        err_param(e, rc, where, "%s: %s", where, why.msg);
    free(pattern);
    return rc;
}

/* ---- tiers ---- */

static int read_check(struct output_check *c, const json_t *v, const char *where, struct err *e)
{
    static const char *const known[] = {"min_chars", "json", "regex", NULL};
    struct config_map m = {v, where, ""};
    double min_chars = 0;
    int rc = check_keys(v, where, known, e);
    if (!rc)
        rc = read_number(config_at(&m, "min_chars"), m.at, 0, 1e6, &min_chars, e);
    c->min_chars = (int64_t)min_chars;
    if (!rc)
        rc = read_flag(config_at(&m, "json"), m.at, &c->json, e);
    return rc ? rc : read_pattern(config_at(&m, "regex"), m.at, &c->regex, e);
}

static int read_targets(struct tier *t, const json_t *v, const char *where, struct err *e)
{
    static const char *const known[] = {"ttft", "token", NULL};
    struct config_map m = {v, where, ""};
    int rc = check_keys(v, where, known, e);
    if (!rc)
        rc = read_ms(config_at(&m, "ttft"), m.at, &t->ttft_ms, e);
    return rc ? rc : read_ms(config_at(&m, "token"), m.at, &t->token_ms, e);
}

static int read_costs(struct tier *t, const json_t *v, const char *where, struct err *e)
{
    static const char *const known[] = {"prompt", "completion", NULL};
    struct config_map m = {v, where, ""};
    int rc = check_keys(v, where, known, e);
    if (!rc)
        rc = read_number(config_at(&m, "prompt"), m.at, 0, 1e9, &t->prompt_cost, e);
    return rc ? rc : read_number(config_at(&m, "completion"), m.at, 0, 1e9, &t->completion_cost, e);
}

/* What is nested in a tier. */
static int read_nested(struct tier *t, struct config_map *m, struct err *e)
{
    const json_t *v = config_at(m, "targets");
    int rc = v ? read_targets(t, v, m->at, e) : 0;
    if (!rc && (v = config_at(m, "cost")))
        rc = read_costs(t, v, m->at, e);
    if (!rc && (v = config_at(m, "check")))
        rc = read_check(&t->check, v, m->at, e);
    return rc;
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
    struct config_map m = {v, where, ""};
    int rc = check_keys(v, where, known, e);
    for (size_t i = 0; !rc && i < ARRAY_LEN(fields); i++) {
        const json_t *x = config_at(&m, fields[i].key);
        rc = fields[i].names  ? read_names(x, m.at, fields[i].names, e)
             : fields[i].text ? read_text(x, m.at, fields[i].text, e)
             : fields[i].ms   ? read_ms(x, m.at, fields[i].ms, e)
                              : read_flag(x, m.at, fields[i].flag, e);
    }
    if (!rc)
        rc = read_number(config_at(&m, "concurrency"), m.at, 0, 1e6, &concurrency, e);
    t->concurrency = (int64_t)concurrency;
    if (!rc && (!t->name || !t->models.n))
        return err_param(e, ERR_INVALID, where, "%s needs a name and models", where);
    if (!rc && strcmp(t->name, "auto") == 0)
        return err_param(e, ERR_INVALID, where, "%s: 'auto' is no name of a tier", where);
    return rc ? rc : read_nested(t, &m, e);
}

static int read_tiers(struct routing *r, const json_t *list, struct err *e)
{
    size_t n = json_array_size(list);
    if (list && (!json_is_array(list) || n > ROUTE_MAX_TIERS))
        return config_wrong(e, "tiers", "a list of at most 32 tiers");
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
    return 0;
}

/* ---- aliases and rules ---- */

/* A tier's name, "model:NAME", or the name of a model. */
static int read_alias(const struct routing *r, struct alias *a, const char *name, const json_t *v,
                      struct err *e)
{
    const char *target = json_string_value(v);
    const struct tier *t = target ? routing_find(r, target) : NULL;
    char where[128];
    snprintf(where, sizeof where, "aliases.%.64s", name);
    if (target && !t && strncmp(target, "model:", 6) == 0)
        target += 6;
    if (!target || !*target || !*name || strcmp(name, "auto") == 0)
        return config_wrong(e, where, "the name of a tier or model");
    *a = (struct alias){.name = xstrdup(name), .tier = t ? t->index : -1};
    if (!t)
        a->model = xstrdup(target);
    return 0;
}

static int read_aliases(struct routing *r, const json_t *map, struct err *e)
{
    const char *name;
    json_t *v;
    if (!map)
        return 0;
    if (!json_is_object(map) || json_object_size(map) > 1024)
        return config_wrong(e, "aliases", "a mapping of names");
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
    struct config_map m = {v, where, ""};
    int rc = check_keys(v, where, known, e);
    rule->tier = -1;
    if (!rc)
        rc = read_text(config_at(&m, "name"), m.at, &rule->name, e);
    if (!rc)
        rc = read_text(config_at(&m, "model"), m.at, &rule->model, e);
    if (!rc)
        rc = read_tier(r, config_at(&m, "tier"), m.at, &rule->tier, e);
    if (!rc && rule->tier < 0)
        return err_param(e, ERR_INVALID, where, "%s needs a tier", where);
    if (!rc && !rule->name)
        rule->name = xstrdup(where);
    const json_t *when = config_at(&m, "when");
    return !rc && when ? rule_read_when(r, rule, when, m.at, e) : rc;
}

static int read_rules(struct routing *r, const json_t *list, struct err *e)
{
    size_t n = json_array_size(list);
    if (!list)
        return 0;
    if (!json_is_array(list) || n > ROUTE_MAX_RULES)
        return config_wrong(e, "routes", "a list of at most 256 rules");
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
        rc = routing_check_links(r, config, e);
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
