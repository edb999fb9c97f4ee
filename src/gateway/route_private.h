/* route_private.h - what route.c, route_config.c and route_rule.c share. */
#pragma once

#include "gateway/config_value.h"
#include "gateway/route.h"

enum { RULE_MAX_CONDITIONS = 16 };

struct condition_kind;

/* One row of a rule's `when`. Which members count, the kind knows. */
struct condition {
    const struct condition_kind *kind;
    double min, max; /* ranges; minutes of the day */
    bool flag;
    struct names names; /* words, patterns, languages */
    struct text_regex *regex;
    int tier; /* cost: what the request would cost there */
};

struct rule {
    char *name;
    struct condition when[RULE_MAX_CONDITIONS];
    int n_when;
    bool explicit_model; /* `when` has a model: it also looks at requests that name one */
    int tier;
    char *model; /* NULL: as the tier says */
};

struct alias {
    char *name;
    int tier; /* -1: a model */
    char *model;
};

struct routing {
    struct tier tiers[ROUTE_MAX_TIERS];
    int n_tiers, default_tier;
    struct rule *rules;
    int n_rules;
    struct alias *aliases;
    int n_aliases;
};

/* Reads `when`: a mapping of condition names to values. */
int rule_read_when(const struct routing *r, struct rule *out, const json_t *when, const char *where,
                   struct err *e);
void rule_release(struct rule *rule);
bool rule_holds(const struct routing *r, const struct rule *rule, const struct route_facts *f);

/* Whether all that tiers name is there: other tiers, backends, and the models of these, as far as
 * the configuration says. */
int routing_check_links(const struct routing *r, const json_t *config, struct err *e);

/* As the readers of config_value.h: a tier's name, a pattern. */
int read_tier(const struct routing *r, const json_t *v, const char *where, int *out, struct err *e);
int read_pattern(const json_t *v, const char *where, struct text_regex **out, struct err *e);
