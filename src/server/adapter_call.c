/* adapter_call.c - changes of adapters on behalf of a client, and what it is told of them. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/adapter_http.h"

struct adapter_call *adapter_call_new(struct exchange *x, const char *name,
                                      void (*over)(struct adapter_call *c, int rc,
                                                   const struct err *e))
{
    struct adapter_call *c = xcalloc(1, sizeof *c);
    *c = (struct adapter_call){.x = x, .name = xstrdup(name), .over = over};
    x->change = c;
    return c;
}

static void call_free(struct adapter_call *c)
{
    free(c->name);
    free(c->what);
    free(c);
}

static void done(void *arg, int rc, const struct err *e, int version)
{
    struct adapter_call *c = arg;
    struct adapters *all = c->all;
    if (!rc && c->then_load) {
        c->then_load = false;
        c->loading = true;
        adapters_do(all, &(struct adapters_op){.verb = ADAPTERS_LOAD, .name = c->name, .pin = -1},
                    done, c);
        return;
    }
    if (rc && c->loading && c->fresh)
        adapters_do(all, &(struct adapters_op){.verb = ADAPTERS_REMOVE, .name = c->name, .pin = -1},
                    NULL, NULL);
    if (c->x) {
        c->x->change = NULL;
        c->over(c, rc, e);
    }
    call_free(c);
}

void adapter_call_do(struct adapter_call *c, const struct adapters_op *op)
{
    c->all = c->x->server->adapters;
    adapters_do(c->all, op, done, c);
}

void adapter_call_gone(struct adapter_call *c)
{
    c->x = NULL;
}

/* ---- cards ---- */

static const char *hex_of(struct arena *a, const uint8_t *digest)
{
    static const char digits[] = "0123456789abcdef";
    char *text = arena_alloc(a, 2 * REGISTRY_DIGEST_BYTES + 1);
    for (int i = 0; i < REGISTRY_DIGEST_BYTES; i++) {
        text[2 * i] = digits[digest[i] >> 4];
        text[2 * i + 1] = digits[digest[i] & 15];
    }
    return text;
}

static void add_aliases(struct adapter_card *c, struct arena *a, const struct registry_links *all,
                        const struct registry_entry *entry, bool current)
{
    const char **names = arena_alloc(a, (all->n + 1) * sizeof *names);
    for (size_t i = 0; i < all->n; i++) {
        const struct registry_link *l = &all->links[i];
        if (strcmp(l->name, entry->name) == 0 &&
            (l->version == c->version || (!l->version && current)))
            names[c->n_aliases++] = l->from;
    }
    c->aliases = names;
}

struct adapter_card adapter_card_of(struct server *s, struct arena *a,
                                    const struct registry_entry *entry,
                                    const struct registry_links *aliases, int version)
{
    const struct registry_version *v = registry_version_of(entry, version);
    struct adapter_status *now = arena_alloc(a, sizeof *now);
    BUG_ON(!v); /* the caller has resolved it in the same entry */
    adapters_status(s->adapters, entry->name, v->version, now);
    struct adapter_card c = {
        .id = lora_table_number(&s->lora, entry->name),
        .name = entry->name,
        .base_model = entry->base,
        .path = v->source,
        .owner = entry->owner,
        .format = v->format,
        .trained_on = v->trained_on,
        .state = adapter_state_name(now->state),
        .error = now->state == ADAPTER_FAILED ? now->why : NULL,
        .digest = hex_of(a, v->digest),
        .labels = entry->labels,
        .version = v->version,
        .rank = v->rank,
        .bytes = v->bytes,
        .resident_bytes = now->bytes,
        .created = v->created_unix_s,
        .last_used = entry->last_used_unix_s,
        .requests = entry->uses,
        .running = now->running,
        .waiting = now->waiting,
        .pinned = entry->pinned,
    };
    add_aliases(&c, a, aliases, entry, v->version == entry->current);
    return c;
}

/* ---- keys ---- */

bool adapter_allowed(struct server *s, const char *patterns, const char *reference)
{
    struct registry_ref r = {0};
    bool yes = !strchr(reference, ':') && key_allows(patterns, reference);
    if (!yes && registry_resolve(adapters_registry(s->adapters), reference, &r, NULL) == 0)
        yes = key_allows(patterns, r.name);
    registry_ref_release(&r);
    return yes;
}

bool adapter_visible(const struct exchange *x, const char *reference)
{
    return !x->key || adapter_allowed(x->server, x->key->key.adapters, reference);
}

/* ---- errors ---- */

int adapter_error_status(int rc)
{
    return rc == ERR_FORMAT ? 400 : openai_status(rc);
}

void adapter_answer_error(struct exchange *x, int rc, const struct err *e)
{
    answer_error(x, adapter_error_status(rc), rc == ERR_NOTFOUND ? "adapter_not_found" : NULL, e);
}
