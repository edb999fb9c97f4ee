#include "gateway/route.h"

#include <stdio.h>

#include "base/json.h"
#include "base/mem.h"
#include "gateway/route_private.h"
#include "gateway/text_regex.h"

int routing_n_tiers(const struct routing *r)
{
    return r->n_tiers;
}

const struct tier *routing_tier(const struct routing *r, int index)
{
    return &r->tiers[index];
}

const struct tier *routing_find(const struct routing *r, const char *name)
{
    for (int i = 0; i < r->n_tiers; i++)
        if (r->tiers[i].name && strcmp(r->tiers[i].name, name) == 0)
            return &r->tiers[i];
    return NULL;
}

bool route_glob(const char *pattern, const char *text)
{
    const char *star = NULL, *from = NULL; /* the last star, and where it stands for nothing yet */
    while (*text) {
        if (*pattern == '*') {
            star = pattern++;
            from = text;
        } else if (*pattern == '?' || *pattern == *text) {
            pattern++;
            text++;
        } else if (star) {
            pattern = star + 1;
            text = ++from;
        } else {
            return false;
        }
    }
    while (*pattern == '*')
        pattern++;
    return !*pattern;
}

/* ---- what the request asks for ---- */

/* Where a request goes before anybody asks whether that is possible. */
struct target {
    int tier;          /* -1: none */
    const char *model; /* NULL: the tier's first, or the default model */
    bool chosen;       /* by the client, not by us: it may be refused, but not moved silently */
};

static int tier_of_model(const struct routing *r, const char *model)
{
    for (int i = 0; i < r->n_tiers; i++)
        for (int k = 0; k < r->tiers[i].models.n; k++)
            if (strcmp(r->tiers[i].models.at[k], model) == 0)
                return i;
    return -1;
}

static const struct rule *first_rule(const struct routing *r, const struct route_facts *f,
                                     bool is_auto)
{
    for (int i = 0; i < r->n_rules; i++)
        if ((is_auto || r->rules[i].explicit_model) && rule_holds(r, &r->rules[i], f))
            return &r->rules[i];
    return NULL;
}

static struct target by_name(const struct routing *r, const char *name, struct route_decision *out)
{
    const struct tier *t = routing_find(r, name);
    if (t) {
        snprintf(out->reason, sizeof out->reason, "the request names the tier");
        return (struct target){t->index, NULL, true};
    }
    for (int i = 0; i < r->n_aliases; i++) {
        const struct alias *a = &r->aliases[i];
        if (strcmp(a->name, name) != 0)
            continue;
        snprintf(out->reason, sizeof out->reason, "alias %.64s", name);
        return (struct target){a->model ? tier_of_model(r, a->model) : a->tier, a->model, true};
    }
    snprintf(out->reason, sizeof out->reason, "the request names the model");
    return (struct target){tier_of_model(r, name), name, true};
}

static struct target find_target(const struct routing *r, const struct route_facts *f,
                                 struct route_decision *out)
{
    const char *name = f->model ? f->model : "";
    bool is_auto = !*name || strcmp(name, "auto") == 0;
    if (!r->n_tiers) {
        snprintf(out->reason, sizeof out->reason,
                 is_auto ? "the default model" : "the request names the model");
        return (struct target){-1, is_auto ? NULL : name, true};
    }
    const struct rule *rule = first_rule(r, f, is_auto);
    if (rule) {
        snprintf(out->reason, sizeof out->reason, "rule %.100s", rule->name);
        return (struct target){rule->tier, rule->model, false};
    }
    if (!is_auto)
        return by_name(r, name, out);
    snprintf(out->reason, sizeof out->reason, "no rule holds: the default tier");
    return (struct target){r->default_tier, NULL, false};
}

/* ---- what is possible ---- */

static bool allows(const struct route_facts *f, const struct tier *t)
{
    if (!f->allowed)
        return true;
    for (int i = 0; i < f->allowed->n; i++)
        if (route_glob(f->allowed->at[i], t->name))
            return true;
    return false;
}

static bool is_there(const struct route_decision *d, const struct tier *t)
{
    for (int i = 0; i < d->n_steps; i++)
        if (d->steps[i].tier == t)
            return true;
    return false;
}

static void add_reason(struct route_decision *d, const char *tier, const char *why)
{
    size_t n = strlen(d->reason);
    snprintf(d->reason + n, sizeof d->reason - n, "; %.40s %.80s", tier, why);
}

static void add_step(struct route_decision *d, const struct tier *t, const char *model)
{
    if (d->n_steps < ROUTE_MAX_TIERS && !is_there(d, t))
        d->steps[d->n_steps++] = (struct route_step){t, model ? model : t->models.at[0]};
}

/* The tier, then its fallbacks and theirs, each once: all that the key may use. */
static void add_chain(const struct routing *r, const struct route_facts *f, int first,
                      const char *model, struct route_decision *d)
{
    int queue[ROUTE_MAX_TIERS], n = 1;
    bool seen[ROUTE_MAX_TIERS] = {false};
    queue[0] = first;
    seen[first] = true;
    for (int i = 0; i < n; i++) {
        const struct tier *t = &r->tiers[queue[i]];
        if (allows(f, t))
            add_step(d, t, i == 0 ? model : NULL);
        for (int k = 0; k < t->fallback.n; k++) {
            int next = routing_find(r, t->fallback.at[k])->index;
            if (!seen[next])
                queue[n++] = next;
            seen[next] = true;
        }
    }
}

/* Moves tiers that cannot serve now to the end, keeping order, and puts the one that overload is
 * shed to in front. If none can, the first is tried all the same: its error is the answer. */
static void prefer_serving(const struct routing *r, const struct route_facts *f,
                           const struct route_view *view, struct route_decision *d)
{
    struct route_step good[ROUTE_MAX_TIERS], bad[ROUTE_MAX_TIERS];
    int n_good = 0, n_bad = 0, n = d->n_steps;
    for (int i = 0; i < n; i++) {
        const struct tier *t = d->steps[i].tier;
        bool overloaded = false;
        const char *why = "";
        if (view->serves(view->arg, t, &overloaded, &why)) {
            good[n_good++] = d->steps[i];
            continue;
        }
        add_reason(d, t->name, why);
        bad[n_bad++] = d->steps[i];
        const struct tier *shed = t->shed_to ? routing_find(r, t->shed_to) : NULL;
        if (i == 0 && overloaded && f->may_shed && shed && !is_there(d, shed) && allows(f, shed) &&
            view->serves(view->arg, shed, &overloaded, &why)) {
            add_reason(d, shed->name, "takes what is shed");
            good[n_good++] = (struct route_step){shed, shed->models.at[0]};
        }
    }
    d->n_steps = 0;
    for (int i = 0; i < n_good; i++)
        add_step(d, good[i].tier, good[i].model);
    for (int i = 0; i < n_bad; i++)
        add_step(d, bad[i].tier, bad[i].model);
}

int route_decide(const struct routing *r, const struct route_facts *f,
                 const struct route_view *view, struct route_decision *out, struct err *e)
{
    *out = (struct route_decision){0};
    struct target to = find_target(r, f, out);
    if (to.tier < 0) {
        out->steps[out->n_steps++] = (struct route_step){NULL, to.model};
        return 0;
    }
    const struct tier *first = &r->tiers[to.tier];
    if (to.chosen && !allows(f, first))
        return err_param(e, ERR_DENIED, "model", "this key may not use the tier %.64s",
                         first->name);
    add_chain(r, f, to.tier, to.model, out);
    for (int i = 0; !out->n_steps && i < r->n_tiers; i++)
        if (allows(f, &r->tiers[i])) {
            add_reason(out, first->name, "is not for this key");
            add_chain(r, f, i, NULL, out);
        }
    if (!out->n_steps)
        return err_param(e, ERR_DENIED, "model", "this key may not use any tier");
    if (view)
        prefer_serving(r, f, view, out);
    return 0;
}

/* ---- the answer ---- */

static int64_t count_chars(struct str s)
{
    int64_t n = 0;
    for (size_t i = 0; i < s.n; i++)
        n += (s.p[i] & 0xc0) != 0x80;
    return n;
}

bool route_check(const struct output_check *c, struct str answer, const char **why)
{
    if (count_chars(answer) < c->min_chars) {
        *why = "the answer is too short";
        return false;
    }
    if (c->regex && !text_regex_matches(c->regex, answer)) {
        *why = "the answer does not match";
        return false;
    }
    json_t *v = c->json ? jr_parse(answer.p, answer.n, NULL) : NULL;
    bool fine = !c->json || v;
    json_decref(v);
    if (!fine)
        *why = "the answer is not JSON";
    return fine;
}
