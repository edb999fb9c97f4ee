/* route.h - which tier, model and adapter a request runs on, and why.
 *
 * A tier is a class of service: models in order of preference, the engines that may run them, an
 * adapter, latency targets, a share of the concurrency, and where to go when it cannot serve. A
 * request names a model, a tier, an alias, or "auto" (or nothing), for which rules decide: the
 * first rule whose conditions all hold wins, and without one the default tier.
 *
 * All of this is pure: routing_new reads a configuration, route_decide looks at facts and says what
 * to try in order. A struct routing is immutable once read; any thread may decide with it.
 *
 *     tiers:
 *       - name: small
 *         models: [phi3:mini]
 *         backends: [local]           # default: local, then any backend that has the model
 *         targets: {ttft: 300ms, token: 80ms}
 *         concurrency: 8              # running at once, 0: any number
 *         fallback: [mid]             # on failure, time-out, overload, or a failed check
 *         timeout: 20s                # of an attempt, before its first token
 *         shed_to: small              # under overload, for keys that allow it
 *         cost: {prompt: 0.1, completion: 0.2}   # for 1,000 tokens, in any unit
 *         check: {min_chars: 1, json: true, regex: "..."}   # of whole answers
 *       - name: mid
 *         models: [llama3.1:8b]
 *         adapter: support@prod
 *       - name: own
 *         models: [llama3.1:8b]
 *         adapter: support@prod       # for who has none of their own
 *         personal: true
 *     default_tier: small
 *     aliases: {gpt-4o-mini: small, support: mid, base: "model:llama3.1:8b"}
 *     routes:
 *       - name: code
 *         when: {keywords: [function, compile], prompt_tokens: {max: 4000}}
 *         tier: mid
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

#define ROUTE_LOCAL "local" /* among backends: this process */

enum {
    ROUTE_MAX_TIERS = 32,
    ROUTE_MAX_RULES = 256,
    ROUTE_MAX_NAMES = 64, /* in any list of names */
};

struct names {
    char **at;
    int n;
};

struct output_check {
    int64_t min_chars; /* characters of the answer at least */
    bool json;         /* the answer is a JSON value */
    struct text_regex *regex;
};

struct tier {
    int index; /* in the configuration, from 0 */
    char *name;
    struct names models, backends;
    char *adapter;                         /* NULL: none */
    bool personal;                         /* the user's own adapter comes before `adapter` */
    int64_t ttft_ms, token_ms, timeout_ms; /* 0: none */
    int64_t concurrency;                   /* 0: any */
    struct names fallback;                 /* tiers */
    char *shed_to;                         /* tier, NULL: none */
    double prompt_cost, completion_cost;   /* of 1,000 tokens */
    struct output_check check;
};

struct routing;

/* Reads `tiers`, `default_tier`, `aliases` and `routes` of a configuration; of `backends` only the
 * names and models, as tiers must name some that are there. Other keys are somebody else's. Without
 * tiers every request goes to the model that it names. ERR_INVALID names the place
 * ("routes[2].when.hours") and the fix. */
int routing_new(struct routing **out, const json_t *config, struct err *e);
void routing_free(struct routing *r);

int routing_n_tiers(const struct routing *r);
const struct tier *routing_tier(const struct routing *r, int index);
const struct tier *routing_find(const struct routing *r, const char *name); /* NULL: none */

/* What rules look at. Strings may be NULL. */
struct route_facts {
    const char *model;     /* as the client named it; NULL, "" and "auto": the rules decide */
    struct str text;       /* of the last message, or the prompt */
    int64_t prompt_tokens; /* estimated, as no model is chosen yet: route_estimate_tokens */
    int64_t max_tokens;
    int64_t n_messages;
    bool tools, schema, stream;
    const char *user, *tenant, *key, *role;
    int weekday;       /* 0: Sunday */
    int minute_of_day; /* local time */
    double load;       /* running and waiting requests for each that can run at once; 1 is full */
    const struct names *allowed; /* tiers of the key, with '*' and '?'; NULL: all */
    bool may_shed;
};

/* How a tier is now. False: do not go there, and why ("all its backends are down"). */
struct route_view {
    void *arg;
    bool (*serves)(void *arg, const struct tier *t, bool *overloaded, const char **why);
};

struct route_step {
    const struct tier *tier; /* NULL: the request named a model of no tier */
    const char *model;       /* NULL: the default model */
};

struct route_decision {
    struct route_step steps[ROUTE_MAX_TIERS]; /* to try, in order; at least one */
    int n_steps;
    char reason[256];
};

/* 0, or ERR_DENIED if the key may not use what was asked for. `view` may be NULL. */
int route_decide(const struct routing *r, const struct route_facts *f,
                 const struct route_view *view, struct route_decision *out, struct err *e);

/* Tokens of a text without a tokenizer: about 4 bytes of Latin script each, fewer of others. */
int64_t route_estimate_tokens(struct str text);

/* The language of a text as ISO 639-1, by script and by the commonest words; "" if unsure. */
const char *route_language(struct str text);

/* Does an answer pass? false: `why` says what was wrong. */
bool route_check(const struct output_check *c, struct str answer, const char **why);

/* Shell-like '*' and '?'. */
bool route_glob(const char *pattern, const char *text);
