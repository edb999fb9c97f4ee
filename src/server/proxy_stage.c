/* proxy_stage.c - whether a job goes to a backend. */
#include "server/proxy.h"
#include "server/router.h"

static bool lists_local(const struct names *only)
{
    bool local = !only || only->n == 0;
    for (int i = 0; i < (only ? only->n : 0); i++)
        local = local || strcmp(only->at[i], ROUTE_LOCAL) == 0;
    return local;
}

/* What was named at the start or is here anyway; what only lies on the disk comes after backends.
 */
static bool is_local(const struct job *j)
{
    const struct served *m = j->req.model ? served_find(j->server, j->req.model) : NULL;
    bool here = m && (m->named || m->state == SERVED_LOADING || served_is_loaded(m));
    return !j->req.model || here || (m && !backends_know(j->server->backends, m->name));
}

enum job_step proxy_stage(struct job *j)
{
    struct server *s = j->server;
    const char *model = j->req.model;
    const struct names *only = router_backends(j);
    bool local = lists_local(only) && is_local(j);
    if (local || !model || (!backends_know(s->backends, model) && lists_local(only)))
        return JOB_GO;
    if (job_push_adapter(j))
        return JOB_FAILED;
    if (j->req.persona && str_starts(str_of(j->req.refused.param), "messages")) {
        j->err = j->req.refused; /* a persona's messages go out in our form, which has no images */
        return job_refuse(j, 400, NULL);
    }
    j->proxied = true;
    j->x->http->on_drain = job_drain;
    return JOB_GO;
}

struct backend_query proxy_query(const struct job *j)
{
    const struct names *only = router_backends(j);
    return (struct backend_query){
        .model = j->req.model,
        .only = only ? (const char *const *)only->at : NULL,
        .n_only = only ? (size_t)only->n : 0,
        .adapter = j->pushed,
    };
}
