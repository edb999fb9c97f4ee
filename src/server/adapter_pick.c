/* adapter_pick.c - which adapters a generation runs under, and the wait until they are there.
 *
 * In this order: what the request says (its model is an adapter's name, `adapter`, `lora`); the
 * adapter that its user was given, unless a tier that is not `personal` serves it; the tier's; the
 * scales that llama-server's clients have set for everybody; else none. */
#include <string.h>

#include "server/adapter_http.h"
#include "server/job.h"
#include "server/router.h"
#include "server/terms.h"

/* May run again, when another tier brings another model. */
enum job_step job_find_adapter(struct job *j)
{
    struct chat_request *r = &j->req;
    char *base, *adapter;
    j->named = j->named_adapter = NULL;
    if (!r->model || served_find(j->server, r->model) ||
        !adapters_find_model(j->server->adapters, r->model, &base, &adapter))
        return JOB_GO;
    j->named = r->model;
    j->named_adapter = arena_strdup(&r->arena, str_of(adapter));
    r->model = arena_strdup(&r->arena, str_of(base));
    return JOB_GO;
}

const char *job_forbidden_adapter(const struct job *j, const char *patterns)
{
    if (j->named_adapter && !adapter_allowed(j->server, patterns, j->named_adapter))
        return j->named;
    for (size_t i = 0; i < j->req.n_adapters; i++) {
        const struct adapter_choice *c = &j->req.adapters[i];
        const char *name = c->name ? c->name : lora_table_name(&j->server->lora, c->id);
        if (name && !adapter_allowed(j->server, patterns, name))
            return name;
    }
    return NULL;
}

/* Those that everybody gets, of the job's model. */
static int common_picks(const struct job *j, struct adapter_pick *picks)
{
    const struct lora_table *t = &j->server->lora;
    struct registry *all = adapters_registry(j->server->adapters);
    int n = 0;
    for (size_t i = 0; t->n_scaled && i < t->n && n < API_MAX_ADAPTERS; i++) {
        struct registry_entry entry = {0};
        if (t->rows[i].scale == 0 || registry_find(all, t->rows[i].name, &entry, NULL))
            continue;
        if (strcmp(entry.base, j->model->name) == 0)
            picks[n++] = (struct adapter_pick){t->rows[i].name, t->rows[i].scale};
        registry_entry_release(&entry);
    }
    return n;
}

/* What the request says. Returns how many, or a negative ERR_*. */
static int own_picks(struct job *j, struct adapter_pick *picks)
{
    const struct chat_request *r = &j->req;
    int n = 0;
    if (r->n_adapters + (j->named_adapter != NULL) > API_MAX_ADAPTERS)
        return err_param(&j->err, ERR_LIMIT, "adapter", "at most %d adapters, with that of 'model'",
                         API_MAX_ADAPTERS);
    if (j->named_adapter)
        picks[n++] = (struct adapter_pick){j->named_adapter, 1};
    for (size_t i = 0; i < r->n_adapters; i++) {
        const struct adapter_choice *c = &r->adapters[i];
        const char *name = c->name ? c->name : lora_table_name(&j->server->lora, c->id);
        if (!name)
            return err_param(&j->err, ERR_INVALID, "lora", "no adapter has the id %lld",
                             (long long)c->id);
        picks[n++] = (struct adapter_pick){name, c->scale};
    }
    return n;
}

/* What it gets without saying anything. `user` is set if it is the user's own. */
static int given_picks(struct job *j, struct adapter_pick *picks, const char **user)
{
    struct registry *all = adapters_registry(j->server->adapters);
    const struct tier *tier = router_tier(j);
    char own[REGISTRY_NAME_BYTES + 1];
    bool personal = j->req.user && (!tier || tier->personal);
    const char *who =
        personal ? tenant_user(&j->req.arena, j->req.user, key_tenant(j->x->key)) : "";
    if (personal && registry_user_adapter(all, who, j->model->name, own)) {
        *user = who;
        return 0;
    }
    if (!tier || !tier->adapter)
        return common_picks(j, picks);
    picks[0] = (struct adapter_pick){tier->adapter, 1};
    return 1;
}

enum job_step job_take_adapters(struct job *j)
{
    struct adapter_pick picks[API_MAX_ADAPTERS];
    const char *user = NULL;
    bool says = j->req.picks_adapters || j->named_adapter;
    int n = says ? own_picks(j, picks) : given_picks(j, picks, &user);
    int rc = n < 0
                 ? n
                 : adapters_take(j->server->adapters, &j->lease, j->model, picks, n, user, &j->err);
    if (rc)
        return job_refuse(j, openai_status(rc), rc == ERR_NOTFOUND ? "adapter_not_found" : NULL);
    return JOB_GO;
}

enum job_step job_get_adapters(struct job *j)
{
    int rc = adapters_get(&j->lease, &j->waiter, j->adapters, &j->err);
    if (rc == 0)
        return JOB_WAIT;
    if (rc < 0)
        return job_refuse(j, rc == ERR_FORMAT || rc == ERR_IO ? 500 : openai_status(rc), NULL);
    j->n_adapters = j->lease.n;
    return JOB_GO;
}
