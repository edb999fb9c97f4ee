/* registry_change.c - what changes the registry: rows first, memory when they are committed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "store/db.h"
#include "store/registry_private.h"

void registry_user_key(struct buf *key, const char *user, const char *base)
{
    buf_clear(key);
    buf_adds(key, user);
    buf_addc(key, 0);
    buf_adds(key, base);
}

/* ---- memory ---- */

static void entry_free(struct registry_entry *x)
{
    if (x)
        registry_entry_release(x);
    free(x);
}

static void link_free(struct registry_link *l)
{
    if (!l)
        return;
    free(l->from);
    free(l->base);
    free(l->name);
    free(l);
}

static struct registry_link *link_new(const char *from, const char *base, const char *name,
                                      int version)
{
    struct registry_link *l = xcalloc(1, sizeof *l);
    *l = (struct registry_link){xstrdup(from), xstrdup(base), xstrdup(name), version};
    return l;
}

/* x takes the place of what has its name; counts that are not saved yet go on. */
static void put_entry(struct registry *r, struct registry_entry *x)
{
    pthread_mutex_lock(&r->lock);
    struct registry_entry *old = map_put(&r->entries, str_of(x->name), x);
    if (old) {
        x->uses = old->uses;
        x->last_used_unix_s = old->last_used_unix_s;
    }
    pthread_mutex_unlock(&r->lock);
    entry_free(old);
}

static void put_link(struct registry *r, struct map *m, struct str key, struct registry_link *l)
{
    pthread_mutex_lock(&r->lock);
    link_free(l ? map_put(m, key, l) : map_del(m, key));
    pthread_mutex_unlock(&r->lock);
}

/* Takes out all links to name. */
static void drop_links(struct map *m, const char *name)
{
    struct map kept = {0};
    struct map_slot *slot;
    for (size_t i = 0; (slot = map_next(m, &i));) {
        struct registry_link *l = slot->value;
        if (strcmp(l->name, name) == 0)
            link_free(l);
        else
            map_put(&kept, (struct str){slot->key, slot->n}, l);
    }
    map_release(m);
    *m = kept;
}

/* ---- life ---- */

int registry_open(struct registry **out, struct db *d, struct err *e)
{
    struct registry *r = xcalloc(1, sizeof *r);
    r->db = d;
    pthread_mutex_init(&r->writer, NULL);
    pthread_mutex_init(&r->lock, NULL);
    int rc = db_begin(d, DB_READ, e);
    if (!rc) {
        rc = registry_read_entries(r, &r->entries, e);
        if (!rc)
            rc = registry_read_aliases(r, &r->aliases, e);
        if (!rc)
            rc = registry_read_users(r, &r->users, e);
        db_rollback(d);
    }
    if (rc) {
        registry_close(r);
        return rc;
    }
    *out = r;
    return 0;
}

void registry_close(struct registry *r)
{
    struct map_slot *slot;
    if (!r)
        return;
    for (size_t i = 0; (slot = map_next(&r->entries, &i));)
        entry_free(slot->value);
    for (size_t i = 0; (slot = map_next(&r->aliases, &i));)
        link_free(slot->value);
    for (size_t i = 0; (slot = map_next(&r->users, &i));)
        link_free(slot->value);
    map_release(&r->entries);
    map_release(&r->aliases);
    map_release(&r->users);
    map_release(&r->unsaved);
    pthread_mutex_destroy(&r->writer);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* ---- a change of one entry ---- */

/* A transaction of the only writer. */
static int begin(struct registry *r, struct err *e)
{
    pthread_mutex_lock(&r->writer);
    int rc = db_begin(r->db, DB_WRITE, e);
    if (rc)
        pthread_mutex_unlock(&r->writer);
    return rc;
}

/* rc 0: commits, and memory has what became of `name` (NULL: of nothing that is an entry). */
static int finish(struct registry *r, int rc, const char *name, struct err *e)
{
    struct registry_entry *x = NULL;
    if (!rc && name)
        rc = registry_read_entry(r, name, &x, e);
    rc = db_end(r->db, rc, e);
    if (!rc && x)
        put_entry(r, x);
    else
        entry_free(x);
    return rc;
}

static int leave(struct registry *r, int rc)
{
    pthread_mutex_unlock(&r->writer);
    return rc;
}

static int no_such(struct err *e, const char *what, const char *name)
{
    return err_param(e, ERR_NOTFOUND, what, "The %s `%.200s` does not exist.", what, name);
}

/* Only the writer changes the maps, so it reads them without the lock. */
static const struct registry_entry *entry_of(const struct registry *r, const char *name)
{
    return map_get(&r->entries, str_of(name));
}

static int check_labels(const char *labels, struct err *e)
{
    if (!labels)
        return 0;
    size_t n = strlen(labels);
    json_t *root = n <= REGISTRY_LABELS_BYTES ? jr_parse(labels, n, e) : NULL;
    bool ok = json_is_object(root);
    const char *key;
    json_t *v;
    json_object_foreach(root, key, v) ok = ok && json_is_string(v);
    json_decref(root);
    return ok ? 0
              : err_param(e, ERR_INVALID, "labels",
                          "'labels' must be an object of strings, at most %d bytes",
                          REGISTRY_LABELS_BYTES);
}

static int check_owner(const char *owner, struct err *e)
{
    if (!owner || (strlen(owner) <= REGISTRY_USER_BYTES && utf8_valid(owner, strlen(owner))))
        return 0;
    return err_param(e, ERR_INVALID, "owner", "'owner' is longer than %d bytes",
                     REGISTRY_USER_BYTES);
}

/* ---- adding ---- */

static int check_spec(const struct registry *r, const struct registry_spec *s, struct err *e)
{
    int rc = registry_check_name(s->name, false, e);
    if (!rc)
        rc = check_labels(s->labels, e);
    if (!rc)
        rc = check_owner(s->owner, e);
    if (rc)
        return rc;
    const struct registry_entry *x = entry_of(r, s->name);
    if (map_get(&r->aliases, str_of(s->name)))
        return err_param(e, ERR_EXISTS, "name", "'%s' is an alias: remove it, or take another name",
                         s->name);
    if (x && !s->replace)
        return err_param(e, ERR_EXISTS, "name", "there is an adapter named '%s' already", s->name);
    if (x && strcmp(x->base, s->base) != 0)
        return err_param(e, ERR_INVALID, "base_model",
                         "the adapter '%s' is for %s: one for %s needs another name", s->name,
                         x->base, s->base);
    if (!x && r->entries.n >= REGISTRY_MAX_NAMES)
        return err_set(e, ERR_LIMIT, "there are %zu adapters, the most there may be", r->entries.n);
    return 0;
}

static int insert_version(struct registry *r, const struct registry_spec *s, int version,
                          struct err *e)
{
    struct db_stmt *q =
        db_stmt(r->db, "insert into adapter_versions (name, version, digest, format,"
                       " trained_on, rank, bytes, source, created)"
                       " values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)");
    db_bind_text(q, 1, s->name);
    db_bind_int(q, 2, version);
    db_bind_blob(q, 3, s->digest, REGISTRY_DIGEST_BYTES);
    db_bind_text(q, 4, s->format);
    db_bind_text(q, 5, s->trained_on);
    db_bind_int(q, 6, s->rank);
    db_bind_int(q, 7, (int64_t)s->bytes);
    db_bind_text(q, 8, s->source);
    db_bind_int(q, 9, clock_unix_s());
    return db_run(q, e);
}

static int insert_entry(struct registry *r, const struct registry_spec *s, struct err *e)
{
    struct db_stmt *q = db_stmt(r->db, "insert into adapters (name, base, current, newest, owner,"
                                       " labels, pinned, created, last_used, uses)"
                                       " values (?1, ?2, 0, 0, '', '{}', 0, ?3, 0, 0)");
    db_bind_text(q, 1, s->name);
    db_bind_text(q, 2, s->base);
    db_bind_int(q, 3, clock_unix_s());
    return db_run(q, e);
}

/* The oldest versions that nothing points to, where there are too many. */
static int drop_old(struct registry *r, const struct registry_entry *x, struct err *e)
{
    size_t n = x->n_versions + 1;
    int rc = 0;
    for (size_t i = 0; i < x->n_versions && n > REGISTRY_MAX_VERSIONS && !rc; i++) {
        struct db_stmt *q = db_stmt(r->db, "delete from adapter_versions where name = ?1 and"
                                           " version = ?2 and not exists (select 1 from"
                                           " adapter_aliases where name = ?1 and version = ?2)");
        db_bind_text(q, 1, x->name);
        db_bind_int(q, 2, x->versions[i].version);
        rc = db_run(q, e);
        n -= (size_t)db_changes(r->db);
    }
    return rc;
}

static int set_current(struct registry *r, const char *name, int version, struct err *e)
{
    struct db_stmt *q = db_stmt(r->db, "update adapters set current = ?2,"
                                       " newest = max(newest, ?2) where name = ?1");
    db_bind_text(q, 1, name);
    db_bind_int(q, 2, version);
    return db_run(q, e);
}

static int next_version(struct registry *r, const char *name, int *version, struct err *e)
{
    struct db_stmt *q = db_stmt(r->db, "select newest + 1 from adapters where name = ?1");
    db_bind_text(q, 1, name);
    int rc = db_step(q, e);
    *version = rc == 1 ? (int)db_int(q, 0) : 0;
    return rc == 1 ? 0 : rc;
}

static int set_source(struct registry *r, const char *name, int version, const char *source,
                      struct err *e)
{
    struct db_stmt *q = db_stmt(r->db, "update adapter_versions set source = ?3"
                                       " where name = ?1 and version = ?2");
    db_bind_text(q, 1, name);
    db_bind_int(q, 2, version);
    db_bind_text(q, 3, source);
    return db_run(q, e);
}

static int patch(struct registry *r, const char *name, const char *owner, const char *labels,
                 int pinned, struct err *e)
{
    struct db_stmt *q = db_stmt(r->db, "update adapters set owner = ifnull(?2, owner),"
                                       " labels = ifnull(?3, labels), pinned = ifnull(?4, pinned)"
                                       " where name = ?1");
    db_bind_text(q, 1, name);
    db_bind_text(q, 2, owner);
    db_bind_text(q, 3, labels);
    if (pinned >= 0)
        db_bind_int(q, 4, pinned != 0);
    return db_run(q, e);
}

static int add_content(struct registry *r, const struct registry_spec *s,
                       const struct registry_entry *x, int *version, struct err *e)
{
    const struct registry_version *now = x ? registry_version_of(x, 0) : NULL;
    if (now && memcmp(now->digest, s->digest, sizeof now->digest) == 0) {
        *version = now->version;
        return set_source(r, s->name, *version, s->source, e);
    }
    int rc = x ? drop_old(r, x, e) : insert_entry(r, s, e);
    if (!rc)
        rc = next_version(r, s->name, version, e);
    if (!rc)
        rc = insert_version(r, s, *version, e);
    return rc ? rc : set_current(r, s->name, *version, e);
}

int registry_add(struct registry *r, const struct registry_spec *s, int *version, struct err *e)
{
    int rc = begin(r, e);
    if (rc)
        return rc;
    rc = check_spec(r, s, e);
    if (!rc)
        rc = add_content(r, s, entry_of(r, s->name), version, e);
    if (!rc)
        rc = patch(r, s->name, s->owner, s->labels, s->pinned, e);
    return leave(r, finish(r, rc, s->name, e));
}

/* ---- other changes ---- */

int registry_remove(struct registry *r, const char *name, struct err *e)
{
    int rc = begin(r, e);
    if (rc)
        return rc;
    if (!entry_of(r, name)) {
        rc = no_such(e, "adapter", name);
    } else {
        struct db_stmt *q = db_stmt(r->db, "delete from adapters where name = ?1");
        db_bind_text(q, 1, name);
        rc = db_run(q, e);
    }
    rc = finish(r, rc, NULL, e);
    if (!rc) {
        pthread_mutex_lock(&r->lock);
        drop_links(&r->aliases, name);
        drop_links(&r->users, name);
        struct registry_entry *old = map_del(&r->entries, str_of(name));
        pthread_mutex_unlock(&r->lock);
        entry_free(old);
    }
    return leave(r, rc);
}

int registry_change(struct registry *r, const char *name, const char *owner, const char *labels,
                    int pinned, struct err *e)
{
    int rc = begin(r, e);
    if (rc)
        return rc;
    rc = entry_of(r, name) ? 0 : no_such(e, "adapter", name);
    if (!rc)
        rc = check_labels(labels, e);
    if (!rc)
        rc = check_owner(owner, e);
    if (!rc)
        rc = patch(r, name, owner, labels, pinned, e);
    return leave(r, finish(r, rc, name, e));
}

/* The version of that number, or (0) the last one below the current. */
static const struct registry_version *target(const struct registry_entry *x, int version)
{
    if (version)
        return registry_version_of(x, version);
    const struct registry_version *before = NULL;
    for (size_t i = 0; i < x->n_versions && x->versions[i].version < x->current; i++)
        before = &x->versions[i];
    return before;
}

int registry_rollback(struct registry *r, const char *name, int version, int *now, struct err *e)
{
    int rc = begin(r, e);
    if (rc)
        return rc;
    const struct registry_entry *x = entry_of(r, name);
    const struct registry_version *v = x ? target(x, version) : NULL;
    if (!x)
        rc = no_such(e, "adapter", name);
    else if (!v && version)
        rc = err_param(e, ERR_NOTFOUND, "version", "the adapter '%s' has no version %d", name,
                       version);
    else if (!v)
        rc = err_param(e, ERR_NOTFOUND, "version",
                       "the adapter '%s' has no version before %d, its current one", name,
                       x->current);
    else
        rc = set_current(r, name, *now = v->version, e);
    return leave(r, finish(r, rc, name, e));
}

/* NAME@3 is a version of NAME, whether it exists or not. */
static bool is_numbered(const char *alias)
{
    const char *at = strrchr(alias, '@');
    uint64_t number;
    return at && str_to_u64(str_of(at + 1), &number);
}

static int check_alias(const struct registry *r, const char *alias, const char *name, int version,
                       struct err *e)
{
    const struct registry_entry *x = entry_of(r, name);
    int rc = registry_check_name(alias, true, e);
    if (rc)
        return rc;
    if (is_numbered(alias))
        return err_param(e, ERR_INVALID, "alias", "'%s' reads as a version: use letters after '@'",
                         alias);
    if (entry_of(r, alias))
        return err_param(e, ERR_EXISTS, "alias", "'%s' is the name of an adapter", alias);
    if (!x)
        return no_such(e, "adapter", name);
    if (version && !registry_version_of(x, version))
        return err_param(e, ERR_NOTFOUND, "version", "the adapter '%s' has no version %d", name,
                         version);
    return 0;
}

int registry_alias(struct registry *r, const char *alias, const char *name, int version,
                   struct err *e)
{
    int rc = begin(r, e);
    if (rc)
        return rc;
    rc = check_alias(r, alias, name, version, e);
    if (!rc) {
        struct db_stmt *q = db_stmt(r->db, "insert into adapter_aliases (alias, name, version,"
                                           " created) values (?1, ?2, ?3, ?4) on conflict (alias)"
                                           " do update set name = ?2, version = ?3, created = ?4");
        db_bind_text(q, 1, alias);
        db_bind_text(q, 2, name);
        db_bind_int(q, 3, version);
        db_bind_int(q, 4, clock_unix_s());
        rc = db_run(q, e);
    }
    rc = finish(r, rc, NULL, e);
    if (!rc)
        put_link(r, &r->aliases, str_of(alias), link_new(alias, "", name, version));
    return leave(r, rc);
}

int registry_unalias(struct registry *r, const char *alias, struct err *e)
{
    int rc = begin(r, e);
    if (rc)
        return rc;
    if (!map_get(&r->aliases, str_of(alias))) {
        rc = no_such(e, "alias", alias);
    } else {
        struct db_stmt *q = db_stmt(r->db, "delete from adapter_aliases where alias = ?1");
        db_bind_text(q, 1, alias);
        rc = db_run(q, e);
    }
    rc = finish(r, rc, NULL, e);
    if (!rc)
        put_link(r, &r->aliases, str_of(alias), NULL);
    return leave(r, rc);
}

/* ---- users ---- */

static int insert_user(struct registry *r, const char *user, const struct registry_entry *x,
                       struct err *e)
{
    struct db_stmt *q = db_stmt(r->db, "insert into adapter_users (user, base, name, created)"
                                       " values (?1, ?2, ?3, ?4) on conflict (user, base)"
                                       " do update set name = ?3, created = ?4");
    db_bind_text(q, 1, user);
    db_bind_text(q, 2, x->base);
    db_bind_text(q, 3, x->name);
    db_bind_int(q, 4, clock_unix_s());
    return db_run(q, e);
}

int registry_give(struct registry *r, const char *user, const char *name, struct err *e)
{
    struct buf key = {0};
    size_t n = strlen(user);
    if (n == 0 || n > REGISTRY_USER_BYTES || !utf8_valid(user, n))
        return err_param(e, ERR_INVALID, "user", "'user' must have 1 to %d bytes",
                         REGISTRY_USER_BYTES);
    int rc = begin(r, e);
    if (rc)
        return rc;
    const struct registry_entry *x = entry_of(r, name);
    rc = x ? insert_user(r, user, x, e) : no_such(e, "adapter", name);
    rc = finish(r, rc, NULL, e);
    if (!rc) {
        registry_user_key(&key, user, x->base);
        put_link(r, &r->users, (struct str){key.data, key.len}, link_new(user, x->base, name, 0));
    }
    buf_release(&key);
    return leave(r, rc);
}

static int delete_user(struct registry *r, const char *user, const char *base, struct err *e)
{
    struct db_stmt *q = db_stmt(r->db, "delete from adapter_users where user = ?1 and"
                                       " (?2 is null or base = ?2)");
    db_bind_text(q, 1, user);
    db_bind_text(q, 2, base);
    int rc = db_run(q, e);
    if (!rc && db_changes(r->db) == 0)
        rc = err_param(e, ERR_NOTFOUND, "user", "The user `%.200s` has no adapter.", user);
    return rc;
}

int registry_take(struct registry *r, const char *user, const char *base, struct err *e)
{
    struct registry_links links;
    struct buf key = {0};
    int rc = begin(r, e);
    if (rc)
        return rc;
    rc = finish(r, delete_user(r, user, base, e), NULL, e);
    registry_users(r, user, &links);
    for (size_t i = 0; i < links.n && !rc; i++) {
        if (base && strcmp(links.links[i].base, base) != 0)
            continue;
        registry_user_key(&key, user, links.links[i].base);
        put_link(r, &r->users, (struct str){key.data, key.len}, NULL);
    }
    registry_links_release(&links);
    buf_release(&key);
    return leave(r, rc);
}

/* ---- counts ---- */

static int save_one(struct registry *r, struct str name, struct err *e)
{
    uint64_t uses = 0;
    int64_t last = 0;
    pthread_mutex_lock(&r->lock);
    const struct registry_entry *x = map_get(&r->entries, name);
    if (x) {
        uses = x->uses;
        last = x->last_used_unix_s;
    }
    pthread_mutex_unlock(&r->lock);
    if (!x)
        return 0;
    struct db_stmt *q =
        db_stmt(r->db, "update adapters set uses = ?2, last_used = ?3 where name = ?1");
    char text[REGISTRY_NAME_BYTES + 1];
    snprintf(text, sizeof text, "%.*s", (int)name.n, name.p);
    db_bind_text(q, 1, text);
    db_bind_int(q, 2, (int64_t)uses);
    db_bind_int(q, 3, last);
    return db_run(q, e);
}

int registry_save(struct registry *r, struct err *e)
{
    struct map_slot *slot;
    pthread_mutex_lock(&r->lock);
    struct map names = r->unsaved;
    r->unsaved = (struct map){0};
    pthread_mutex_unlock(&r->lock);
    int rc = names.n ? begin(r, e) : 0;
    if (names.n && !rc) {
        for (size_t i = 0; (slot = map_next(&names, &i)) && !rc;)
            rc = save_one(r, (struct str){slot->key, slot->n}, e);
        rc = leave(r, finish(r, rc, NULL, e));
    }
    pthread_mutex_lock(&r->lock);
    for (size_t i = 0; rc && (slot = map_next(&names, &i));) /* next time */
        map_put(&r->unsaved, (struct str){slot->key, slot->n}, r);
    pthread_mutex_unlock(&r->lock);
    map_release(&names);
    return rc;
}
