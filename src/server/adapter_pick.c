/* adapter_pick.c - which adapters a generation runs under, and the wait until they are there.
 *
 * In this order: what the request says (its model is an adapter's name, `adapter`, `lora`); those
 * of its persona, on the persona's model; the adapter that its user was given, unless a tier that
 * is not `personal` serves it; the tier's; the scales that llama-server's clients have set for
 * everybody; else none. */
#include <string.h>

#include "gateway/adapter_push.h"
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
    if (r->adapters_of && (!r->model || strcmp(r->model, r->adapters_of) != 0)) { /* no use here */
        r->n_adapters = 0;
        r->picks_adapters = false;
        r->adapters_of = NULL;
    }
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

/* Those that everybody gets, of a model. */
static int common_picks(const struct job *j, const char *base, struct adapter_pick *picks)
{
    const struct lora_table *t = &j->server->lora;
    struct registry *all = adapters_registry(j->server->adapters);
    int n = 0;
    for (size_t i = 0; t->n_scaled && i < t->n && n < API_MAX_ADAPTERS; i++) {
        struct registry_entry entry = {0};
        if (t->rows[i].scale == 0 || registry_find(all, t->rows[i].name, &entry, NULL))
            continue;
        if (strcmp(entry.base, base) == 0)
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

/* What it gets on a model without saying anything. `user` is set if it is the user's own. */
static int given_picks(struct job *j, const char *base, struct adapter_pick *picks,
                       const char **user)
{
    struct registry *all = adapters_registry(j->server->adapters);
    const struct tier *tier = router_tier(j);
    char own[REGISTRY_NAME_BYTES + 1];
    bool personal = j->req.user && (!tier || tier->personal);
    const char *who =
        personal ? tenant_user(&j->req.arena, j->req.user, key_tenant(j->x->key)) : "";
    if (personal && registry_user_adapter(all, who, base, own)) {
        *user = who;
        return 0;
    }
    if (!tier || !tier->adapter)
        return common_picks(j, base, picks);
    picks[0] = (struct adapter_pick){tier->adapter, 1};
    return 1;
}

static int check_push(const struct job *j, const struct adapter_pick *p,
                      const struct registry_ref *ref, struct err *e)
{
    struct registry_entry entry = {0};
    if (p->scale != 1)
        return err_param(e, ERR_INVALID, "adapter", "backends know no scale of the adapter %.128s",
                         p->name);
    if (strcmp(ref->base, j->req.model) != 0)
        return err_param(e, ERR_INVALID, "adapter",
                         "the adapter %.128s is for the model %.128s, and the request for %.128s",
                         p->name, ref->base, j->req.model);
    int rc = registry_find(adapters_registry(j->server->adapters), ref->name, &entry, e);
    const struct registry_version *v = rc ? NULL : registry_version_of(&entry, ref->version);
    if (v && strcmp(v->format, "peft") != 0)
        rc = err_param(e, ERR_UNSUPPORTED, "adapter",
                       "the adapter %.128s is a GGUF file, and backends load PEFT directories only",
                       p->name);
    registry_entry_release(&entry);
    return rc;
}

static int push(struct job *j, const struct adapter_pick *p, struct err *e)
{
    struct registry *all = adapters_registry(j->server->adapters);
    struct arena *arena = &j->req.arena;
    struct registry_ref ref;
    int rc = registry_resolve(all, p->name, &ref, e);
    if (rc)
        return rc;
    rc = check_push(j, p, &ref, e);
    if (!rc) {
        j->pushed = arena_alloc(arena, sizeof *j->pushed);
        *j->pushed = (struct push_adapter){
            .name = arena_strdup(arena, str_of(ref.name)),
            .version = ref.version,
            .path = arena_strdup(arena, str_of(ref.source)),
            .root = adapters_root(j->server->adapters),
            .in_body = j->req.n_adapters > 0 && !j->req.adapters_of,
        };
        push_name(j->pushed->as, ref.name, ref.version, ref.digest);
        registry_used(all, ref.name);
    }
    registry_ref_release(&ref);
    return rc;
}

/* An adapter that the body names and we do not know may be known to the gateway behind us. */
static bool is_theirs(const struct job *j, const struct adapter_pick *p)
{
    struct registry_ref ref;
    if (!j->req.n_adapters || j->req.adapters_of || j->named_adapter)
        return false;
    if (registry_resolve(adapters_registry(j->server->adapters), p->name, &ref, NULL))
        return true;
    registry_ref_release(&ref);
    return false;
}

enum job_step job_push_adapter(struct job *j)
{
    struct adapter_pick picks[API_MAX_ADAPTERS];
    struct registry *all = adapters_registry(j->server->adapters);
    const char *user = NULL;
    char own[REGISTRY_NAME_BYTES + 1];
    bool says = j->req.picks_adapters || j->named_adapter;
    int n = says ? own_picks(j, picks) : given_picks(j, j->req.model, picks, &user);
    if (n == 0 && user && registry_user_adapter(all, user, j->req.model, own))
        picks[n++] = (struct adapter_pick){own, 1};
    int rc = n < 0 ? n : 0;
    if (n > 1)
        rc = err_param(&j->err, ERR_INVALID, "adapter",
                       "backends run a request under one adapter, not %d", n);
    else if (n == 1 && !is_theirs(j, &picks[0]))
        rc = push(j, &picks[0], &j->err);
    if (rc)
        return job_refuse(j, openai_status(rc), rc == ERR_NOTFOUND ? "adapter_not_found" : NULL);
    return JOB_GO;
}

enum job_step job_take_adapters(struct job *j)
{
    struct adapter_pick picks[API_MAX_ADAPTERS];
    const char *user = NULL;
    bool says = j->req.picks_adapters || j->named_adapter;
    int n = says ? own_picks(j, picks) : given_picks(j, j->model->name, picks, &user);
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
