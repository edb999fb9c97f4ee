/* registry_rows.c - from the database into memory. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "store/db.h"
#include "store/registry_private.h"

static void read_version(struct db_stmt *q, struct registry_version *v)
{
    size_t n;
    const void *digest = db_blob(q, 2, &n);
    v->version = (int)db_int(q, 1);
    memcpy(v->digest, digest, n < sizeof v->digest ? n : sizeof v->digest);
    v->format = xstrdup(db_text(q, 3));
    v->trained_on = xstrdup(db_text(q, 4));
    v->rank = (int)db_int(q, 5);
    v->bytes = (uint64_t)db_int(q, 6);
    v->source = xstrdup(db_text(q, 7));
    v->created_unix_s = db_int(q, 8);
}

static struct registry_version *add_version(struct registry_entry *x)
{
    x->versions = xrealloc(x->versions, (x->n_versions + 1) * sizeof *x->versions);
    struct registry_version *v = &x->versions[x->n_versions++];
    *v = (struct registry_version){0};
    return v;
}

static struct registry_entry *read_row(struct db_stmt *q)
{
    struct registry_entry *x = xcalloc(1, sizeof *x);
    x->name = xstrdup(db_text(q, 0));
    x->base = xstrdup(db_text(q, 1));
    x->current = (int)db_int(q, 2);
    x->owner = xstrdup(db_text(q, 3));
    x->labels = xstrdup(db_text(q, 4));
    x->pinned = db_int(q, 5) != 0;
    x->created_unix_s = db_int(q, 6);
    x->last_used_unix_s = db_int(q, 7);
    x->uses = (uint64_t)db_int(q, 8);
    return x;
}

int registry_read_entry(struct registry *r, const char *name, struct registry_entry **out,
                        struct err *e)
{
    struct db_stmt *q = db_stmt(r->db, "select name, base, current, owner, labels, pinned, created,"
                                       " last_used, uses from adapters where name = ?1");
    *out = NULL;
    db_bind_text(q, 1, name);
    int rc = db_step(q, e);
    if (rc <= 0)
        return rc;
    struct registry_entry *x = read_row(q);
    q = db_stmt(r->db, "select name, version, digest, format, trained_on, rank, bytes, source,"
                       " created from adapter_versions where name = ?1 order by version");
    db_bind_text(q, 1, name);
    while ((rc = db_step(q, e)) == 1)
        read_version(q, add_version(x));
    if (rc) {
        registry_entry_release(x);
        free(x);
        return rc;
    }
    *out = x;
    return 0;
}

int registry_read_entries(struct registry *r, struct map *out, struct err *e)
{
    struct db_stmt *q = db_stmt(r->db, "select name, base, current, owner, labels, pinned, created,"
                                       " last_used, uses from adapters");
    int rc;
    while ((rc = db_step(q, e)) == 1)
        map_put(out, str_of(db_text(q, 0)), read_row(q));
    if (rc)
        return rc;
    q = db_stmt(r->db, "select name, version, digest, format, trained_on, rank, bytes, source,"
                       " created from adapter_versions order by name, version");
    while ((rc = db_step(q, e)) == 1) {
        struct registry_entry *x = map_get(out, str_of(db_text(q, 0)));
        if (x)
            read_version(q, add_version(x));
    }
    return rc;
}

static struct registry_link *read_link(struct db_stmt *q)
{
    struct registry_link *l = xcalloc(1, sizeof *l);
    l->from = xstrdup(db_text(q, 0));
    l->base = xstrdup(db_text(q, 1));
    l->name = xstrdup(db_text(q, 2));
    l->version = (int)db_int(q, 3);
    return l;
}

int registry_read_aliases(struct registry *r, struct map *out, struct err *e)
{
    struct db_stmt *q = db_stmt(r->db, "select alias, '', name, version from adapter_aliases");
    int rc;
    while ((rc = db_step(q, e)) == 1)
        map_put(out, str_of(db_text(q, 0)), read_link(q));
    return rc;
}

int registry_read_users(struct registry *r, struct map *out, struct err *e)
{
    struct db_stmt *q = db_stmt(r->db, "select user, base, name, 0 from adapter_users");
    struct buf key = {0};
    int rc;
    while ((rc = db_step(q, e)) == 1) {
        registry_user_key(&key, db_text(q, 0), db_text(q, 1));
        map_put(out, (struct str){key.data, key.len}, read_link(q));
    }
    buf_release(&key);
    return rc;
}
