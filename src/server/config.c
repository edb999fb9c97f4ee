/* config.c - the sections of the configuration that change while the service runs. */
#include "base/log.h"
#include "base/yaml_tree.h"
#include "gateway/backends.h"
#include "server/router.h"

const char *const server_sections[] = {"tiers",     "default_tier", "aliases", "routes",
                                       "full_load", "backends",     "balance", NULL};

int server_configure(struct server *s, const struct yaml_tree *config, struct err *e)
{
    const json_t *root = yaml_tree_root(config);
    struct gateway_config backends;
    int rc = gateway_config_read(&backends, root, e);
    if (!rc)
        rc = router_configure(s->router, root, e);
    if (!rc)
        backends_apply(s->backends, &backends);
    server_changed(s);
    gateway_config_release(&backends);
    return rc ? yaml_tree_locate(config, rc, e) : 0;
}

int server_check_config(const struct yaml_tree *config, struct err *e)
{
    const json_t *root = yaml_tree_root(config);
    struct gateway_config backends;
    int rc = gateway_config_read(&backends, root, e);
    if (!rc)
        rc = router_check(root, e);
    gateway_config_release(&backends);
    return rc ? yaml_tree_locate(config, rc, e) : 0;
}

/* Reads everything again; on error all stays as it was. */
static int reload(struct server *s, struct err *e)
{
    const struct server_opts *o = &s->opts;
    if (!o->read_config)
        return err_set(e, ERR_UNSUPPORTED, "the service was started without a config file");
    struct yaml_tree *config = o->read_config(o->read_config_arg, e);
    int rc = config ? server_configure(s, config, e) : e->code;
    yaml_tree_free(config);
    if (rc)
        log_error("server", "the configuration was not reloaded: %s", e->msg);
    else
        log_info("server", "the configuration was reloaded");
    return rc;
}

static void reload_on_loop(void *arg)
{
    struct err e = {0};
    reload(arg, &e);
}

void server_reload(struct server *s)
{
    http_loop_post(s->loop, reload_on_loop, s);
}

/* POST /v1/reload */
void handle_reload(struct exchange *x)
{
    struct err e = {0};
    if (reload(x->server, &e))
        answer_err(x, &e);
    else
        answer(x, 200, "application/json", "{\"status\":\"ok\"}", 15);
}
