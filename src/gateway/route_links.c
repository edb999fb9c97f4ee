/* route_links.c - whatever a configuration's tiers name must be in the configuration. */
#include <stdio.h>

#include "base/buf.h"
#include "gateway/route_private.h"

static void list_add(struct buf *list, const char *name)
{
    buf_addf(list, "%s%s", list->len ? ", " : "", name);
}

/* Takes the list of what there is. */
static int no_such(struct err *e, const char *where, const char *what, const char *name,
                   struct buf *list)
{
    err_param(e, ERR_INVALID, where, "%s: there is no %s '%.64s'; there are %s", where, what, name,
              list->len ? buf_str(list) : "none");
    buf_release(list);
    return ERR_INVALID;
}

static int check_tier(const struct routing *r, const char *name, const char *where, struct err *e)
{
    struct buf all = {0};
    if (routing_find(r, name))
        return 0;
    for (int i = 0; i < r->n_tiers; i++)
        list_add(&all, r->tiers[i].name);
    return no_such(e, where, "tier", name, &all);
}

int read_tier(const struct routing *r, const json_t *v, const char *where, int *out, struct err *e)
{
    if (!v)
        return 0;
    if (!json_is_string(v))
        return config_wrong(e, where, "the name of a tier");
    int rc = check_tier(r, json_string_value(v), where, e);
    if (!rc)
        *out = routing_find(r, json_string_value(v))->index;
    return rc;
}

/* ---- backends, as gateway_config_read will find them ---- */

static const json_t *find_backend(const json_t *backends, const char *name)
{
    size_t i;
    json_t *b;
    json_array_foreach((json_t *)backends, i, b)
    {
        const char *its = json_string_value(json_object_get(b, "name"));
        if (its && strcmp(its, name) == 0)
            return b;
    }
    return NULL;
}

static int check_backend(const json_t *backends, const char *name, const char *where, struct err *e)
{
    struct buf all = {0};
    size_t i;
    json_t *b;
    if (strcmp(name, ROUTE_LOCAL) == 0 || find_backend(backends, name))
        return 0;
    list_add(&all, ROUTE_LOCAL);
    json_array_foreach((json_t *)backends, i, b)
    {
        const char *its = json_string_value(json_object_get(b, "name"));
        if (its)
            list_add(&all, its);
    }
    return no_such(e, where, "backend", name, &all);
}

/* The models that the tier's backends have, into *all. False: who knows, as one of them is this
 * process or names its models itself. */
static bool list_models(const struct tier *t, const json_t *backends, struct buf *all,
                        const char *wanted, bool *has)
{
    size_t i;
    json_t *m;
    for (int k = 0; k < t->backends.n; k++) {
        const json_t *b = find_backend(backends, t->backends.at[k]);
        const json_t *models = json_object_get(b, "models");
        if (!models)
            return false;
        json_array_foreach((json_t *)models, i, m)
        {
            const char *name =
                json_string_value(json_is_object(m) ? json_object_get(m, "name") : m);
            if (!name)
                continue;
            list_add(all, name);
            *has = *has || strcmp(name, wanted) == 0;
        }
    }
    return t->backends.n > 0;
}

static int check_model(const struct tier *t, const json_t *backends, const char *name,
                       const char *where, struct err *e)
{
    struct buf all = {0};
    bool has = false;
    int rc = 0;
    if (list_models(t, backends, &all, name, &has) && !has)
        rc = err_param(e, ERR_INVALID, where,
                       "%s: no backend of the tier has the model '%.64s'; they have %s", where,
                       name, buf_str(&all));
    buf_release(&all);
    return rc;
}

static int check_row(const struct routing *r, const struct tier *t, const json_t *backends,
                     struct err *e)
{
    char where[64];
    int rc = 0;
    for (int k = 0; k < t->fallback.n && !rc; k++) {
        snprintf(where, sizeof where, "tiers[%d].fallback[%d]", t->index, k);
        rc = check_tier(r, t->fallback.at[k], where, e);
    }
    if (!rc && t->shed_to) {
        snprintf(where, sizeof where, "tiers[%d].shed_to", t->index);
        rc = check_tier(r, t->shed_to, where, e);
    }
    for (int k = 0; k < t->backends.n && !rc; k++) {
        snprintf(where, sizeof where, "tiers[%d].backends[%d]", t->index, k);
        rc = check_backend(backends, t->backends.at[k], where, e);
    }
    for (int k = 0; k < t->models.n && !rc; k++) {
        snprintf(where, sizeof where, "tiers[%d].models[%d]", t->index, k);
        rc = check_model(t, backends, t->models.at[k], where, e);
    }
    return rc;
}

int routing_check_links(const struct routing *r, const json_t *config, struct err *e)
{
    const json_t *backends = json_object_get(config, "backends");
    int rc = 0;
    for (int i = 0; i < r->n_tiers && !rc; i++)
        rc = check_row(r, &r->tiers[i], backends, e);
    return rc;
}
