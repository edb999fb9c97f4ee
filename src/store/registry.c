#define _GNU_SOURCE /* memrchr */
#include "store/registry.h"

#include <ctype.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/map.h"
#include "base/mem.h"
#include "store/db.h"
#include "store/registry_private.h"

/* ---- copies ---- */

static void version_release(struct registry_version *v)
{
    free(v->format);
    free(v->trained_on);
    free(v->source);
}

void registry_entry_release(struct registry_entry *x)
{
    for (size_t i = 0; i < x->n_versions; i++)
        version_release(&x->versions[i]);
    free(x->versions);
    free(x->name);
    free(x->base);
    free(x->owner);
    free(x->labels);
    *x = (struct registry_entry){0};
}

static void entry_copy(struct registry_entry *to, const struct registry_entry *from)
{
    *to = *from;
    to->name = xstrdup(from->name);
    to->base = xstrdup(from->base);
    to->owner = xstrdup(from->owner);
    to->labels = xstrdup(from->labels);
    to->versions = xcalloc(from->n_versions ? from->n_versions : 1, sizeof *to->versions);
    for (size_t i = 0; i < from->n_versions; i++) {
        struct registry_version *v = &to->versions[i];
        *v = from->versions[i];
        v->format = xstrdup(v->format);
        v->trained_on = xstrdup(v->trained_on);
        v->source = xstrdup(v->source);
    }
}

const struct registry_version *registry_version_of(const struct registry_entry *x, int version)
{
    for (size_t i = 0; i < x->n_versions; i++)
        if (x->versions[i].version == (version ? version : x->current))
            return &x->versions[i];
    return NULL;
}

/* ---- looking up: under r->lock ---- */

static int no_such(struct err *e, const char *name)
{
    return err_param(e, ERR_NOTFOUND, "adapter", "The adapter `%.*s` does not exist.", 200, name);
}

int registry_find(struct registry *r, const char *name, struct registry_entry *out, struct err *e)
{
    pthread_mutex_lock(&r->lock);
    const struct registry_entry *x = map_get(&r->entries, str_of(name));
    if (x)
        entry_copy(out, x);
    pthread_mutex_unlock(&r->lock);
    return x ? 0 : no_such(e, name);
}

size_t registry_count(struct registry *r)
{
    pthread_mutex_lock(&r->lock);
    size_t n = r->entries.n;
    pthread_mutex_unlock(&r->lock);
    return n;
}

static int by_name(const void *a, const void *b)
{
    const struct registry_entry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

void registry_list(struct registry *r, struct registry_list *out)
{
    struct map_slot *slot;
    *out = (struct registry_list){0};
    pthread_mutex_lock(&r->lock);
    out->entries = xcalloc(r->entries.n ? r->entries.n : 1, sizeof *out->entries);
    for (size_t i = 0; (slot = map_next(&r->entries, &i));)
        entry_copy(&out->entries[out->n++], slot->value);
    pthread_mutex_unlock(&r->lock);
    qsort(out->entries, out->n, sizeof *out->entries, by_name);
}

void registry_list_release(struct registry_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        registry_entry_release(&l->entries[i]);
    free(l->entries);
    *l = (struct registry_list){0};
}

static int by_origin(const void *a, const void *b)
{
    const struct registry_link *x = a, *y = b;
    int order = strcmp(x->from, y->from);
    return order ? order : strcmp(x->base, y->base);
}

/* Those of m whose name (or whose origin) is the one wanted; NULL: all. */
static void copy_links(struct registry *r, const struct map *m, const char *name, const char *from,
                       struct registry_links *out)
{
    struct map_slot *slot;
    *out = (struct registry_links){0};
    pthread_mutex_lock(&r->lock);
    out->links = xcalloc(m->n ? m->n : 1, sizeof *out->links);
    for (size_t i = 0; (slot = map_next(m, &i));) {
        const struct registry_link *l = slot->value;
        if ((name && strcmp(l->name, name) != 0) || (from && strcmp(l->from, from) != 0))
            continue;
        out->links[out->n++] = (struct registry_link){xstrdup(l->from), xstrdup(l->base),
                                                      xstrdup(l->name), l->version};
    }
    pthread_mutex_unlock(&r->lock);
    qsort(out->links, out->n, sizeof *out->links, by_origin);
}

void registry_aliases(struct registry *r, const char *name, struct registry_links *out)
{
    copy_links(r, &r->aliases, name, NULL, out);
}

void registry_users(struct registry *r, const char *user, struct registry_links *out)
{
    copy_links(r, &r->users, NULL, user, out);
}

static void link_free(struct registry_link *l)
{
    free(l->from);
    free(l->base);
    free(l->name);
}

void registry_links_release(struct registry_links *l)
{
    for (size_t i = 0; i < l->n; i++)
        link_free(&l->links[i]);
    free(l->links);
    *l = (struct registry_links){0};
}

/* ---- references ---- */

/* "name@3": the entry and 3. */
static const struct registry_entry *numbered(struct registry *r, struct str ref, int *version)
{
    const char *at = memrchr(ref.p, '@', ref.n);
    int64_t number;
    if (!at)
        return NULL;
    struct str digits = {at + 1, (size_t)(ref.p + ref.n - at - 1)};
    if (!str_to_i64(digits, &number) || number < 1 || number > INT32_MAX)
        return NULL;
    *version = (int)number;
    return map_get(&r->entries, (struct str){ref.p, (size_t)(at - ref.p)});
}

/* Entry and version (0: current), or NULL. */
static const struct registry_entry *look_up(struct registry *r, struct str ref, int *version)
{
    *version = 0;
    const struct registry_entry *x = map_get(&r->entries, ref);
    if (x)
        return x;
    const struct registry_link *alias = map_get(&r->aliases, ref);
    if (!alias)
        return numbered(r, ref, version);
    *version = alias->version;
    return map_get(&r->entries, str_of(alias->name));
}

/* Names have no colon, so what is before the last one is a base model. */
static const struct registry_entry *look_up_with_base(struct registry *r, const char *ref,
                                                      int *version)
{
    const char *colon = strrchr(ref, ':');
    if (!colon)
        return look_up(r, str_of(ref), version);
    const struct registry_entry *x = look_up(r, str_of(colon + 1), version);
    struct str base = {ref, (size_t)(colon - ref)};
    return x && str_eqs(base, x->base) ? x : NULL;
}

int registry_resolve(struct registry *r, const char *ref, struct registry_ref *out, struct err *e)
{
    int version;
    pthread_mutex_lock(&r->lock);
    const struct registry_entry *x = look_up_with_base(r, ref, &version);
    const struct registry_version *v = x ? registry_version_of(x, version) : NULL;
    if (v) {
        *out = (struct registry_ref){.version = v->version,
                                     .fixed = version != 0,
                                     .pinned = x->pinned && v->version == x->current,
                                     .bytes = v->bytes,
                                     .base = xstrdup(x->base),
                                     .source = xstrdup(v->source)};
        snprintf(out->name, sizeof out->name, "%s", x->name);
        memcpy(out->digest, v->digest, sizeof out->digest);
    }
    pthread_mutex_unlock(&r->lock);
    return v ? 0 : no_such(e, ref);
}

void registry_ref_release(struct registry_ref *ref)
{
    free(ref->base);
    free(ref->source);
    *ref = (struct registry_ref){0};
}

bool registry_user_adapter(struct registry *r, const char *user, const char *base,
                           char out[REGISTRY_NAME_BYTES + 1])
{
    struct buf key = {0};
    pthread_mutex_lock(&r->lock);
    const struct registry_link *l = NULL;
    if (r->users.n) { /* most servers have none, and every request asks */
        registry_user_key(&key, user, base);
        l = map_get(&r->users, (struct str){key.data, key.len});
    }
    if (l)
        snprintf(out, REGISTRY_NAME_BYTES + 1, "%s", l->name);
    pthread_mutex_unlock(&r->lock);
    buf_release(&key);
    return l != NULL;
}

bool registry_reaches(struct registry *r, const char *name, int version)
{
    struct map_slot *slot;
    pthread_mutex_lock(&r->lock);
    const struct registry_entry *x = map_get(&r->entries, str_of(name));
    bool found = x && x->current == version;
    for (size_t i = 0; x && !found && (slot = map_next(&r->aliases, &i));) {
        const struct registry_link *l = slot->value;
        found = l->version == version && strcmp(l->name, name) == 0;
    }
    pthread_mutex_unlock(&r->lock);
    return found;
}

void registry_used(struct registry *r, const char *name)
{
    pthread_mutex_lock(&r->lock);
    struct registry_entry *x = map_get(&r->entries, str_of(name));
    if (x) {
        x->uses++;
        x->last_used_unix_s = clock_unix_s();
        map_put(&r->unsaved, str_of(name), r);
    }
    pthread_mutex_unlock(&r->lock);
}

int registry_check_name(const char *name, bool alias, struct err *e)
{
    size_t n = strlen(name);
    bool ok = n > 0 && n <= REGISTRY_NAME_BYTES && !strchr("./-@", name[0]);
    for (size_t i = 0; ok && i < n; i++)
        ok =
            isalnum((unsigned char)name[i]) || strchr("._-/", name[i]) || (alias && name[i] == '@');
    if (ok)
        return 0;
    return err_param(e, ERR_INVALID, alias ? "alias" : "name",
                     "'%.64s' cannot be the name of an %s: 1 to %d letters, digits and . _ - /%s, "
                     "beginning with a letter or digit",
                     name, alias ? "alias" : "adapter", REGISTRY_NAME_BYTES, alias ? " @" : "");
}
