/* route_rule.c - the conditions that a routing rule may have: one row each. */
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "gateway/route_private.h"
#include "gateway/text_regex.h"

struct condition_kind {
    const char *name;
    int (*read)(const struct routing *r, struct condition *c, const json_t *v, const char *where,
                struct err *e);
    bool (*holds)(const struct routing *r, const struct condition *c, const struct route_facts *f);
};

/* ---- readers ---- */

static int read_range(const struct routing *r, struct condition *c, const json_t *v,
                      const char *where, struct err *e)
{
    static const char *const known[] = {"min", "max", NULL};
    struct config_map m = {v, where, ""};
    c->min = 0;
    c->max = 1e18;
    int rc = check_keys(v, where, known, e);
    if (!rc)
        rc = read_number(config_at(&m, "min"), m.at, 0, 1e18, &c->min, e);
    if (!rc)
        rc = read_number(config_at(&m, "max"), m.at, 0, 1e18, &c->max, e);
    if (!rc && c->min > c->max)
        rc = err_param(e, ERR_INVALID, where, "%s: min is above max", where);
    return rc;
}

static int read_cost(const struct routing *r, struct condition *c, const json_t *v,
                     const char *where, struct err *e)
{
    static const char *const known[] = {"tier", "min", "max", NULL};
    struct config_map m = {v, where, ""};
    c->max = 1e18;
    c->tier = -1;
    int rc = check_keys(v, where, known, e);
    if (!rc)
        rc = read_tier(r, config_at(&m, "tier"), m.at, &c->tier, e);
    if (!rc && c->tier < 0)
        return err_param(e, ERR_INVALID, where, "%s needs the tier whose cost is meant", where);
    if (!rc)
        rc = read_number(config_at(&m, "min"), m.at, 0, 1e18, &c->min, e);
    return rc ? rc : read_number(config_at(&m, "max"), m.at, 0, 1e18, &c->max, e);
}

static int read_list(const struct routing *r, struct condition *c, const json_t *v,
                     const char *where, struct err *e)
{
    return read_names(v, where, &c->names, e);
}

static int read_bool(const struct routing *r, struct condition *c, const json_t *v,
                     const char *where, struct err *e)
{
    return read_flag(v, where, &c->flag, e);
}

static int read_regex(const struct routing *r, struct condition *c, const json_t *v,
                      const char *where, struct err *e)
{
    return read_pattern(v, where, &c->regex, e);
}

/* "22:00-06:30": from the first minute to before the second; over midnight if it is the smaller. */
static int read_hours(const struct routing *r, struct condition *c, const json_t *v,
                      const char *where, struct err *e)
{
    unsigned h1, m1, h2, m2;
    char end;
    const char *text = json_string_value(v);
    if (!text || sscanf(text, "%2u:%2u-%2u:%2u%c", &h1, &m1, &h2, &m2, &end) != 4 || h1 > 23 ||
        h2 > 24 || m1 > 59 || m2 > 59)
        return err_param(e, ERR_INVALID, where, "%s must be like 08:00-17:30", where);
    c->min = h1 * 60 + m1;
    c->max = h2 * 60 + m2;
    return 0;
}

static const char *const day_names[] = {"sun", "mon", "tue", "wed", "thu", "fri", "sat"};

static int read_days(const struct routing *r, struct condition *c, const json_t *v,
                     const char *where, struct err *e)
{
    int rc = read_names(v, where, &c->names, e);
    for (int i = 0; !rc && i < c->names.n; i++) {
        size_t d = 0;
        while (d < 7 && strcmp(day_names[d], c->names.at[i]) != 0)
            d++;
        if (d == 7)
            return err_param(e, ERR_INVALID, where, "%s must be of sun mon tue wed thu fri sat",
                             where);
    }
    return rc;
}

/* ---- conditions ---- */

static bool within(const struct condition *c, double v)
{
    return v >= c->min && v <= c->max;
}

static bool any_glob(const struct names *patterns, const char *text)
{
    for (int i = 0; i < patterns->n; i++)
        if (route_glob(patterns->at[i], text ? text : ""))
            return true;
    return false;
}

static bool is_word_byte(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c & 0x80) || c == '_';
}

/* A whole word or phrase, ASCII case ignored. */
static bool has_word(struct str text, const char *word)
{
    size_t n = strlen(word);
    for (size_t i = 0; i + n <= text.n; i++) {
        if (!str_case_eq((struct str){text.p + i, n}, word))
            continue;
        bool starts = i == 0 || !is_word_byte(text.p[i - 1]) || !is_word_byte(word[0]);
        bool ends = i + n == text.n || !is_word_byte(text.p[i + n]) || !is_word_byte(word[n - 1]);
        if (starts && ends)
            return true;
    }
    return false;
}

#define HOLDS(name)                                                                                \
    static bool name(const struct routing *r, const struct condition *c,                           \
                     const struct route_facts *f)

HOLDS(prompt_tokens)
{
    return within(c, (double)f->prompt_tokens);
}
HOLDS(max_tokens)
{
    return within(c, (double)f->max_tokens);
}
HOLDS(messages)
{
    return within(c, (double)f->n_messages);
}
HOLDS(load)
{
    return within(c, f->load);
}
HOLDS(cost)
{
    const struct tier *t = &r->tiers[c->tier];
    return within(c, ((double)f->prompt_tokens * t->prompt_cost +
                      (double)f->max_tokens * t->completion_cost) /
                         1000);
}
HOLDS(keywords)
{
    for (int i = 0; i < c->names.n; i++)
        if (has_word(f->text, c->names.at[i]))
            return true;
    return false;
}
HOLDS(regex)
{
    return text_regex_matches(c->regex, f->text);
}
HOLDS(tools)
{
    return f->tools == c->flag;
}
HOLDS(schema)
{
    return f->schema == c->flag;
}
HOLDS(stream)
{
    return f->stream == c->flag;
}
HOLDS(language)
{
    return any_glob(&c->names, route_language(f->text));
}
HOLDS(model)
{
    return any_glob(&c->names, f->model && *f->model ? f->model : "auto");
}
HOLDS(user)
{
    return any_glob(&c->names, f->user);
}
HOLDS(tenant)
{
    return any_glob(&c->names, f->tenant);
}
HOLDS(key)
{
    return any_glob(&c->names, f->key);
}
HOLDS(role)
{
    return any_glob(&c->names, f->role);
}
HOLDS(hours)
{
    bool after = f->minute_of_day >= c->min, before = f->minute_of_day < c->max;
    return c->min <= c->max ? after && before : after || before;
}
HOLDS(days)
{
    for (int i = 0; i < c->names.n; i++)
        if (strcmp(c->names.at[i], day_names[f->weekday % 7]) == 0)
            return true;
    return false;
}

static const struct condition_kind kinds[] = {
    {"prompt_tokens", read_range, prompt_tokens},
    {"max_tokens", read_range, max_tokens},
    {"messages", read_range, messages},
    {"load", read_range, load},
    {"cost", read_cost, cost},
    {"keywords", read_list, keywords},
    {"regex", read_regex, regex},
    {"tools", read_bool, tools},
    {"schema", read_bool, schema},
    {"stream", read_bool, stream},
    {"language", read_list, language},
    {"model", read_list, model},
    {"user", read_list, user},
    {"tenant", read_list, tenant},
    {"key", read_list, key},
    {"role", read_list, role},
    {"hours", read_hours, hours},
    {"days", read_days, days},
};

/* ---- rules ---- */

int rule_read_when(const struct routing *r, struct rule *out, const json_t *when, const char *where,
                   struct err *e)
{
    const char *known[ARRAY_LEN(kinds) + 1] = {NULL};
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
        known[i] = kinds[i].name;
    struct config_map m = {when, where, ""};
    int rc = check_keys(when, where, known, e);
    for (size_t i = 0; !rc && i < ARRAY_LEN(kinds); i++) {
        const json_t *v = config_at(&m, kinds[i].name);
        if (!v)
            continue;
        if (out->n_when == RULE_MAX_CONDITIONS)
            return err_param(e, ERR_LIMIT, where, "%s has more than %d conditions", where,
                             RULE_MAX_CONDITIONS);
        struct condition *c = &out->when[out->n_when++];
        c->kind = &kinds[i];
        rc = kinds[i].read(r, c, v, m.at, e);
        out->explicit_model |= kinds[i].holds == model;
    }
    return rc;
}

void rule_release(struct rule *rule)
{
    for (int i = 0; i < rule->n_when; i++) {
        names_release(&rule->when[i].names);
        text_regex_free(rule->when[i].regex);
    }
    free(rule->name);
    free(rule->model);
}

bool rule_holds(const struct routing *r, const struct rule *rule, const struct route_facts *f)
{
    for (int i = 0; i < rule->n_when; i++)
        if (!rule->when[i].kind->holds(r, &rule->when[i], f))
            return false;
    return true;
}
