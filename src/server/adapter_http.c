/* adapter_http.c - /v1/adapters, and /v1/users/USER/adapter: the registry for its operators. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/adapter_http.h"
#include "server/terms.h"

enum { LIST_LIMIT = 10000 };

static struct registry *registry_of(const struct exchange *x)
{
    return adapters_registry(x->server->adapters);
}

/* ---- answers ---- */

static int not_found(const char *name, struct err *e)
{
    return err_param(e, ERR_NOTFOUND, "adapter", "The adapter `%.128s` does not exist", name);
}

static void answer_card(struct exchange *x, int status, const char *ref)
{
    struct registry_ref r = {0};
    struct registry_entry entry = {0};
    struct registry_links aliases = {0};
    struct err e = {0};
    int rc = adapter_visible(x, ref) ? registry_resolve(registry_of(x), ref, &r, &e)
                                     : not_found(ref, &e);
    if (!rc)
        rc = registry_find(registry_of(x), r.name, &entry, &e);
    if (!rc && !registry_version_of(&entry, r.version))
        rc = err_set(&e, ERR_NOTFOUND, "the adapter %.128s has just changed: ask again", ref);
    if (rc) {
        adapter_answer_error(x, rc, &e);
    } else {
        struct buf body = {0};
        struct jw w;
        registry_aliases(registry_of(x), r.name, &aliases);
        struct adapter_card c =
            adapter_card_of(x->server, &x->http->arena, &entry, &aliases, r.version);
        jw_init(&w, &body);
        adapter_write_card(&w, &c);
        jw_done(&w);
        answer_json(x, status, &body);
        buf_release(&body);
    }
    registry_links_release(&aliases);
    registry_entry_release(&entry);
    registry_ref_release(&r);
}

static void answer_deleted(struct exchange *x, const char *object, const char *key,
                           const char *name)
{
    struct buf body = {0};
    struct jw w;
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kstr(&w, "object", object);
    jw_kstr(&w, key, name);
    jw_kbool(&w, "deleted", true);
    jw_obj_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}

/* An alias or a user, and the adapter behind. */
static void write_link(struct jw *w, const char *object, const char *key,
                       const struct registry_link *l)
{
    jw_obj(w);
    jw_kstr(w, "object", object);
    jw_kstr(w, key, strcmp(key, "user") == 0 ? tenant_user_name(l->from) : l->from);
    jw_kstr(w, "adapter", l->name);
    if (l->base && *l->base)
        jw_kstr(w, "base_model", l->base);
    if (l->version)
        jw_kint(w, "version", l->version);
    jw_obj_end(w);
}

static void answer_links(struct exchange *x, const char *object, const char *key,
                         const struct registry_links *all)
{
    struct buf body = {0};
    struct jw w;
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kstr(&w, "object", "list");
    jw_key(&w, "data");
    jw_arr(&w);
    for (size_t i = 0; i < all->n; i++)
        if (adapter_visible(x, all->links[i].from) || adapter_visible(x, all->links[i].name))
            write_link(&w, object, key, &all->links[i]);
    jw_arr_end(&w);
    jw_obj_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}

/* What stands for the '*' of the route, which is a name; answers 400 otherwise. */
static const char *name_or_answer(struct exchange *x)
{
    struct err e = {0};
    if (x->path_rest && *x->path_rest)
        return x->path_rest;
    err_param(&e, ERR_INVALID, "name", "the name in the path is malformed");
    answer_err(x, &e);
    return NULL;
}

/* ---- the ends of changes ---- */

static void over_card(struct adapter_call *c, int rc, const struct err *e)
{
    if (rc)
        adapter_answer_error(c->x, rc, e);
    else
        answer_card(c->x, c->fresh ? 201 : 200, c->name);
}

static void over_deleted(struct adapter_call *c, int rc, const struct err *e)
{
    if (rc)
        adapter_answer_error(c->x, rc, e);
    else
        answer_deleted(c->x, "adapter", "name", c->name);
}

static void over_alias(struct adapter_call *c, int rc, const struct err *e)
{
    struct registry_links all = {0};
    size_t i = 0;
    if (rc) {
        adapter_answer_error(c->x, rc, e);
        return;
    }
    registry_aliases(registry_of(c->x), NULL, &all);
    while (i < all.n && strcmp(all.links[i].from, c->what))
        i++;
    if (i == all.n) { /* taken back already */
        answer_deleted(c->x, "adapter.alias", "alias", c->what);
    } else {
        struct buf body = {0};
        struct jw w;
        jw_init(&w, &body);
        write_link(&w, "adapter.alias", "alias", &all.links[i]);
        jw_done(&w);
        answer_json(c->x, 200, &body);
        buf_release(&body);
    }
    registry_links_release(&all);
}

static void over_user(struct adapter_call *c, int rc, const struct err *e)
{
    struct registry_links rows = {0};
    if (rc) {
        adapter_answer_error(c->x, rc, e);
        return;
    }
    registry_users(registry_of(c->x), c->what, &rows);
    answer_links(c->x, "adapter.user", "user", &rows);
    registry_links_release(&rows);
}

static void over_taken(struct adapter_call *c, int rc, const struct err *e)
{
    if (rc)
        adapter_answer_error(c->x, rc, e);
    else
        answer_deleted(c->x, "adapter.user", "user", tenant_user_name(c->what));
}

/* ---- adapters ---- */

/* "KEY=VALUE" or "KEY" against a JSON object of strings. */
static bool has_label(const char *labels, const char *wanted)
{
    const char *equals = strchr(wanted, '=');
    size_t n_key = equals ? (size_t)(equals - wanted) : strlen(wanted);
    json_t *tree = jr_parse(labels, strlen(labels), NULL);
    const json_t *v = json_object_getn(tree, wanted, n_key);
    bool yes = v && (!equals || strcmp(json_string_value(v), equals + 1) == 0);
    json_decref(tree);
    return yes;
}

struct filter {
    const char *base, *owner, *label, *state, *after; /* NULL: any */
    size_t limit;
};

static bool passes(const struct filter *f, const struct exchange *by,
                   const struct registry_entry *x)
{
    struct adapter_status now;
    if ((f->base && strcmp(f->base, x->base)) || (f->owner && strcmp(f->owner, x->owner)) ||
        (f->after && strcmp(f->after, x->name) >= 0) ||
        (f->label && !has_label(x->labels, f->label)) || !adapter_visible(by, x->name))
        return false;
    if (!f->state)
        return true;
    adapters_status(by->server->adapters, x->name, 0, &now);
    return strcmp(f->state, adapter_state_name(now.state)) == 0;
}

static int read_filter(struct exchange *x, struct filter *f, struct err *e)
{
    struct str limit = http_query(x->http, "limit");
    int64_t n = LIST_LIMIT;
    *f = (struct filter){
        .base = http_query(x->http, "base").p,
        .owner = http_query(x->http, "owner").p,
        .label = http_query(x->http, "label").p,
        .state = http_query(x->http, "state").p,
        .after = http_query(x->http, "after").p,
    };
    if (limit.p && (!str_to_i64(limit, &n) || n < 1 || n > LIST_LIMIT))
        return err_param(e, ERR_INVALID, "limit", "'limit' must be a number from 1 to %d",
                         LIST_LIMIT);
    f->limit = (size_t)n;
    if (!f->state)
        return 0;
    for (int i = 0; i < ADAPTER_STATES; i++)
        if (strcmp(f->state, adapter_state_name(i)) == 0)
            return 0;
    return err_param(e, ERR_INVALID, "state",
                     "'state' must be one of registered, loading, resident, draining, failed");
}

static void write_list(struct exchange *x, const struct filter *f, struct jw *w)
{
    struct registry_list all;
    struct registry_links aliases;
    registry_list(registry_of(x), &all);
    registry_aliases(registry_of(x), NULL, &aliases);
    size_t i = 0, n = 0;
    jw_obj(w);
    jw_kstr(w, "object", "list");
    jw_key(w, "data");
    jw_arr(w);
    for (; i < all.n && n < f->limit; i++) {
        if (!passes(f, x, &all.entries[i]))
            continue;
        struct arena a = {0};
        struct adapter_card c = adapter_card_of(x->server, &a, &all.entries[i], &aliases, 0);
        adapter_write_card(w, &c);
        arena_release(&a);
        n++;
    }
    jw_arr_end(w);
    while (i < all.n && !passes(f, x, &all.entries[i]))
        i++;
    jw_kbool(w, "has_more", i < all.n);
    jw_obj_end(w);
    registry_links_release(&aliases);
    registry_list_release(&all);
}

void handle_adapters(struct exchange *x)
{
    struct filter f;
    struct err e = {0};
    if (read_filter(x, &f, &e)) {
        answer_err(x, &e);
        return;
    }
    struct buf body = {0};
    struct jw w;
    jw_init(&w, &body);
    write_list(x, &f, &w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
}

static bool is_known(struct exchange *x, const char *name)
{
    struct registry_entry entry = {0};
    bool yes = registry_find(registry_of(x), name, &entry, NULL) == 0;
    registry_entry_release(&entry);
    return yes;
}

/* Labels as the registry keeps them, in the request's arena. */
static const char *labels_text(struct exchange *x, const json_t *labels)
{
    char *text = labels ? json_dumps(labels, JSON_COMPACT) : NULL;
    const char *kept = text ? arena_strdup(&x->http->arena, str_of(text)) : NULL;
    free(text);
    return kept;
}

void handle_adapter_add(struct exchange *x)
{
    struct adapter_spec s;
    struct err e = {0};
    struct str body = x->http->body;
    int rc = adapter_parse_spec(&s, false, body.p, body.n, &e);
    if (!rc && strcmp(s.name, "aliases") == 0)
        rc = err_param(&e, ERR_INVALID, "name", "'aliases' cannot be the name of an adapter");
    if (rc) {
        answer_err(x, &e);
    } else {
        struct adapter_call *c = adapter_call_new(x, s.name, over_card);
        struct adapters_op op = {
            .verb = ADAPTERS_ADD,
            .name = s.name,
            .path = s.path,
            .base = s.base_model,
            .owner = s.owner,
            .labels = labels_text(x, s.labels),
            .pin = s.has_pin ? s.pin : -1,
            .replace = true,
        };
        c->fresh = !is_known(x, s.name);
        adapter_call_do(c, &op);
    }
    adapter_spec_release(&s);
}

void handle_adapter(struct exchange *x)
{
    const char *name = name_or_answer(x);
    if (name)
        answer_card(x, 200, name);
}

void handle_adapter_change(struct exchange *x)
{
    struct adapter_spec s = {0};
    struct err e = {0};
    const char *name = name_or_answer(x);
    if (!name)
        return;
    if (adapter_parse_spec(&s, true, x->http->body.p, x->http->body.n, &e)) {
        answer_err(x, &e);
    } else {
        struct adapters_op op = {
            .verb = ADAPTERS_CHANGE,
            .name = name,
            .owner = s.owner,
            .labels = labels_text(x, s.labels),
            .pin = s.has_pin ? s.pin : -1,
        };
        adapter_call_do(adapter_call_new(x, name, over_card), &op);
    }
    adapter_spec_release(&s);
}

/* A change that the path alone describes. */
static void change(struct exchange *x, enum adapters_verb verb, int pin,
                   void (*over)(struct adapter_call *c, int rc, const struct err *e))
{
    const char *name = name_or_answer(x);
    if (name)
        adapter_call_do(adapter_call_new(x, name, over),
                        &(struct adapters_op){.verb = verb, .name = name, .pin = pin});
}

void handle_adapter_delete(struct exchange *x)
{
    change(x, ADAPTERS_REMOVE, -1, over_deleted);
}

void handle_adapter_load(struct exchange *x)
{
    change(x, ADAPTERS_LOAD, -1, over_card);
}

void handle_adapter_unload(struct exchange *x)
{
    change(x, ADAPTERS_UNLOAD, -1, over_card);
}

void handle_adapter_pin(struct exchange *x)
{
    change(x, ADAPTERS_CHANGE, 1, over_card);
}

void handle_adapter_unpin(struct exchange *x)
{
    change(x, ADAPTERS_CHANGE, 0, over_card);
}

void handle_adapter_rollback(struct exchange *x)
{
    struct adapter_target t;
    struct err e = {0};
    const char *name = name_or_answer(x);
    if (!name)
        return;
    if (adapter_parse_target(&t, false, x->http->body.p, x->http->body.n, &e))
        answer_err(x, &e);
    else
        adapter_call_do(
            adapter_call_new(x, name, over_card),
            &(struct adapters_op){
                .verb = ADAPTERS_ROLLBACK, .name = name, .version = (int)t.version, .pin = -1});
    adapter_target_release(&t);
}

void handle_adapter_versions(struct exchange *x)
{
    struct registry_entry entry = {0};
    struct registry_links aliases = {0};
    struct err e = {0};
    const char *name = name_or_answer(x);
    if (!name)
        return;
    int rc = adapter_visible(x, name) ? registry_find(registry_of(x), name, &entry, &e)
                                      : not_found(name, &e);
    if (rc) {
        adapter_answer_error(x, rc, &e);
        return;
    }
    struct buf body = {0};
    struct jw w;
    registry_aliases(registry_of(x), name, &aliases);
    jw_init(&w, &body);
    jw_obj(&w);
    jw_kstr(&w, "object", "list");
    jw_kint(&w, "current", entry.current);
    jw_key(&w, "data");
    jw_arr(&w);
    for (size_t i = 0; i < entry.n_versions; i++) {
        struct adapter_card c = adapter_card_of(x->server, &x->http->arena, &entry, &aliases,
                                                entry.versions[i].version);
        adapter_write_card(&w, &c);
    }
    jw_arr_end(&w);
    jw_obj_end(&w);
    jw_done(&w);
    answer_json(x, 200, &body);
    buf_release(&body);
    registry_links_release(&aliases);
    registry_entry_release(&entry);
}

/* ---- aliases and users ---- */

void handle_adapter_aliases(struct exchange *x)
{
    struct registry_links all;
    registry_aliases(registry_of(x), http_query(x->http, "adapter").p, &all);
    answer_links(x, "adapter.alias", "alias", &all);
    registry_links_release(&all);
}

/* What stands for the '*': an alias, or a user of the key's tenant. */
static const char *pointer_or_answer(struct exchange *x, bool of_user)
{
    const char *what = name_or_answer(x);
    return what && of_user ? tenant_user(&x->http->arena, what, key_tenant(x->key)) : what;
}

/* PUT of what points to an adapter. */
static void point(struct exchange *x, enum adapters_verb verb,
                  void (*over)(struct adapter_call *c, int rc, const struct err *e))
{
    struct adapter_target t;
    struct err e = {0};
    const char *what = pointer_or_answer(x, verb == ADAPTERS_GIVE);
    if (!what)
        return;
    if (adapter_parse_target(&t, true, x->http->body.p, x->http->body.n, &e)) {
        answer_err(x, &e);
    } else {
        struct adapter_call *c = adapter_call_new(x, t.adapter, over);
        struct adapters_op op = {.verb = verb,
                                 .name = t.adapter,
                                 .alias = what,
                                 .user = what,
                                 .version = (int)t.version,
                                 .pin = -1};
        c->what = xstrdup(what);
        adapter_call_do(c, &op);
    }
    adapter_target_release(&t);
}

/* DELETE of it. */
static void unpoint(struct exchange *x, enum adapters_verb verb,
                    void (*over)(struct adapter_call *c, int rc, const struct err *e))
{
    const char *what = pointer_or_answer(x, verb == ADAPTERS_TAKE_BACK);
    if (!what)
        return;
    struct adapter_call *c = adapter_call_new(x, "", over);
    struct adapters_op op = {.verb = verb,
                             .alias = what,
                             .user = what,
                             .base = http_query(x->http, "base").p,
                             .pin = -1};
    c->what = xstrdup(what);
    adapter_call_do(c, &op);
}

void handle_adapter_alias_put(struct exchange *x)
{
    point(x, ADAPTERS_ALIAS, over_alias);
}

void handle_adapter_alias_delete(struct exchange *x)
{
    unpoint(x, ADAPTERS_UNALIAS, over_alias);
}

void handle_user_adapter(struct exchange *x)
{
    struct registry_links rows;
    const char *user = pointer_or_answer(x, true);
    if (!user)
        return;
    registry_users(registry_of(x), user, &rows);
    struct err e = {0};
    if (rows.n) {
        answer_links(x, "adapter.user", "user", &rows);
    } else {
        err_param(&e, ERR_NOTFOUND, "user", "%.128s has no adapter of their own",
                  tenant_user_name(user));
        answer_error(x, 404, "adapter_not_found", &e);
    }
    registry_links_release(&rows);
}

void handle_user_adapter_put(struct exchange *x)
{
    point(x, ADAPTERS_GIVE, over_user);
}

void handle_user_adapter_delete(struct exchange *x)
{
    unpoint(x, ADAPTERS_TAKE_BACK, over_taken);
}
