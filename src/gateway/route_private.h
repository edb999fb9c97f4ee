/* route_private.h - what route.c, route_config.c and route_rule.c share. */
#pragma once

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

/* Readers of one value each; `where` names it in messages. A missing value (NULL) leaves *out. */
int read_text(const json_t *v, const char *where, char **out, struct err *e);
int read_names(const json_t *v, const char *where, struct names *out, struct err *e);
int read_number(const json_t *v, const char *where, double min, double max, double *out,
                struct err *e);
int read_flag(const json_t *v, const char *where, bool *out, struct err *e);
int read_ms(const json_t *v, const char *where, int64_t *out, struct err *e);
int read_tier(const struct routing *r, const json_t *v, const char *where, int *out, struct err *e);
void names_release(struct names *n);

/* ERR_INVALID unless every key of the mapping is among `known` (ends with NULL). */
int check_keys(const json_t *map, const char *where, const char *const *known, struct err *e);
