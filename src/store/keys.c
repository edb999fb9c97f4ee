#include "store/keys.h"

#include <ctype.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/str.h"
#include "store/db.h"

const char *const role_names[] = {
    [ROLE_ADMIN] = "admin",
    [ROLE_METRICS] = "metrics",
    [ROLE_USER] = "user",
    [ROLE_PUBLIC] = NULL,
};

/* ---- values ---- */

void key_release(struct key *k)
{
    if (!k)
        return;
    free(k->name);
    free(k->tenant);
    free(k->models);
    free(k->tiers);
    free(k->adapters);
    *k = (struct key){0};
}

void key_list_release(struct key_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        key_release(&l->keys[i]);
    free(l->keys);
    *l = (struct key_list){0};
}

void key_copy(struct key *out, const struct key *k)
{
    *out = *k;
    out->name = xstrdup(k->name);
    out->tenant = xstrdup(k->tenant);
    out->models = xstrdup(k->models);
    out->tiers = xstrdup(k->tiers);
    out->adapters = xstrdup(k->adapters);
}

void key_digest(const void *text, size_t n, unsigned char out[KEY_DIGEST_BYTES])
{
    SHA256(text, n, out);
}

/* ---- patterns ---- */

/* One pattern against all of a name; a '*' that fails is tried again one character further on, and
 * only the latest needs that. */
static bool matches(struct str pattern, const char *name)
{
    size_t p = 0, star = SIZE_MAX;
    const char *again = NULL;
    while (*name) {
        if (p < pattern.n && pattern.p[p] == '*') {
            star = p++;
            again = name;
        } else if (p < pattern.n && (pattern.p[p] == '?' || pattern.p[p] == *name)) {
            p++;
            name++;
        } else if (again) {
            p = star + 1;
            name = ++again;
        } else {
            return false;
        }
    }
    while (p < pattern.n && pattern.p[p] == '*')
        p++;
    return p == pattern.n;
}

bool key_allows(const char *patterns, const char *name)
{
    if (!*patterns)
        return true;
    for (const char *p = patterns;; p++) {
        size_t n = strcspn(p, ",");
        if (n && matches((struct str){p, n}, name))
            return true;
        p += n;
        if (!*p)
            return false;
    }
}

/* ---- texts ---- */

/* "tk-" and 32 bytes in base64url without padding: RFC 4648, section 5. */
static void make_secret(char out[KEY_TEXT_BYTES + 1])
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    unsigned char bytes[33] = {0}; /* one more, so that groups of three are whole */
    rng_secret(bytes, 32);
    memcpy(out, "tk-", 3);
    char text[44];
    for (size_t i = 0; i < 11; i++) {
        unsigned group = (unsigned)bytes[3 * i] << 16 | (unsigned)bytes[3 * i + 1] << 8 |
                         (unsigned)bytes[3 * i + 2];
        for (int k = 0; k < 4; k++)
            text[4 * i + (size_t)k] = digits[group >> (18 - 6 * k) & 63];
    }
    memcpy(out + 3, text, 43);
    out[KEY_TEXT_BYTES] = 0;
    explicit_bzero(bytes, sizeof bytes);
    explicit_bzero(text, sizeof text);
}

bool key_name_ok(const char *name)
{
    size_t n = strlen(name);
    bool fine = n > 0 && n <= KEY_NAME_BYTES;
    for (size_t i = 0; i < n; i++)
        fine = fine && (isalnum((unsigned char)name[i]) || strchr("._-@+", name[i]));
    return fine;
}

static int check_name(const char *field, const char *name, struct err *e)
{
    if (key_name_ok(name))
        return 0;
    return err_param(e, ERR_INVALID, field,
                     "the %s of a key takes 1 to %d letters, digits and . _ - @ +, got '%.80s'",
                     field, KEY_NAME_BYTES, name);
}

static int check_patterns(const char *field, const char *text, struct err *e)
{
    size_t n = strlen(text);
    bool fine = n <= KEY_PATTERNS_BYTES && utf8_valid(text, n);
    for (size_t i = 0; i < n; i++)
        fine = fine && (unsigned char)text[i] >= ' ' && text[i] != 127;
    if (fine)
        return 0;
    return err_param(e, ERR_INVALID, field, "'%s' takes patterns of at most %d bytes", field,
                     KEY_PATTERNS_BYTES);
}

static int check_spec(const struct key_spec *k, struct err *e)
{
    const struct {
        const char *field;
        int64_t v;
    } numbers[] = {{"rpm", k->quota.requests_per_minute},
                   {"tpm", k->quota.tokens_per_minute},
                   {"concurrency", k->quota.concurrency},
                   {"daily-tokens", k->quota.tokens_per_day},
                   {"expires", k->expires}};
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++)
        if (numbers[i].v < 0)
            return err_param(e, ERR_INVALID, numbers[i].field, "'%s' must not be negative",
                             numbers[i].field);
    if (k->role != ROLE_ADMIN && k->role != ROLE_METRICS && k->role != ROLE_USER)
        return err_param(e, ERR_INVALID, "role", "a key is of an admin, of metrics or of a user");
    int rc = check_name("name", k->name, e);
    if (!rc)
        rc = check_name("tenant", k->tenant, e);
    if (!rc)
        rc = check_patterns("models", k->models, e);
    if (!rc)
        rc = check_patterns("tiers", k->tiers, e);
    return rc ? rc : check_patterns("adapters", k->adapters, e);
}

/* ---- rows ---- */

#define COLUMNS                                                                                    \
    "id, name, tenant, role, models, tiers, adapters, rpm, tpm, concurrency, daily_tokens,"        \
    " created, expires, revoked, last_used, prefix, digest, old_digest, old_until"

static void read_digest(struct db_stmt *q, int col, unsigned char out[KEY_DIGEST_BYTES])
{
    size_t n;
    const void *p = db_blob(q, col, &n);
    memset(out, 0, KEY_DIGEST_BYTES);
    if (n == KEY_DIGEST_BYTES)
        memcpy(out, p, n);
}

static enum role role_of(const char *name)
{
    for (enum role r = ROLE_ADMIN; role_names[r]; r++)
        if (strcmp(role_names[r], name) == 0)
            return r;
    return ROLE_METRICS; /* of a newer version: the least */
}

static void read_row(struct db_stmt *q, struct key *k)
{
    *k = (struct key){
        .id = db_int(q, 0),
        .name = xstrdup(db_text(q, 1)),
        .tenant = xstrdup(db_text(q, 2)),
        .role = role_of(db_text(q, 3)),
        .models = xstrdup(db_text(q, 4)),
        .tiers = xstrdup(db_text(q, 5)),
        .adapters = xstrdup(db_text(q, 6)),
        .quota = {db_int(q, 7), db_int(q, 8), db_int(q, 9), db_int(q, 10)},
        .created = db_int(q, 11),
        .expires = db_int(q, 12),
        .revoked = db_int(q, 13),
        .last_used = db_int(q, 14),
        .old_until = db_int(q, 18),
    };
    snprintf(k->prefix, sizeof k->prefix, "%s", db_text(q, 15));
    read_digest(q, 16, k->digest);
    read_digest(q, 17, k->old_digest);
}

static int insert(struct db *d, const struct key_spec *k, const char *secret, struct err *e)
{
    struct db_stmt *q = db_stmt(
        d, "insert into keys (name, tenant, role, models, tiers, adapters, rpm, tpm, concurrency,"
           " daily_tokens, created, expires, revoked, last_used, prefix, digest, old_digest,"
           " old_until) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 0, 0, ?13, ?14,"
           " x'', 0)");
    unsigned char digest[KEY_DIGEST_BYTES];
    char prefix[KEY_PREFIX_BYTES + 1];
    const char *const texts[] = {k->name,   k->tenant, role_names[k->role],
                                 k->models, k->tiers,  k->adapters};
    const int64_t numbers[] = {k->quota.requests_per_minute,
                               k->quota.tokens_per_minute,
                               k->quota.concurrency,
                               k->quota.tokens_per_day,
                               clock_unix_s(),
                               k->expires};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        db_bind_text(q, 1 + (int)i, texts[i]);
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++)
        db_bind_int(q, 7 + (int)i, numbers[i]);
    snprintf(prefix, sizeof prefix, "%s", secret);
    key_digest(secret, KEY_TEXT_BYTES, digest);
    db_bind_text(q, 13, prefix);
    db_bind_blob(q, 14, digest, sizeof digest);
    int rc = db_run(q, e);
    if (rc == ERR_EXISTS)
        return err_param(e, rc, "name", "there is a key named %s: revoke it first, or rotate it",
                         k->name);
    return rc;
}

/* Within a transaction. */
static int find(struct db *d, const char *ref, struct key *out, struct err *e)
{
    int64_t id;
    struct db_stmt *q = db_stmt(d, "select " COLUMNS " from keys where id = ?1 or name = ?2 or"
                                   " prefix = ?2 order by revoked > 0, id = ?1, id desc limit 1");
    if (str_to_i64(str_of(ref), &id))
        db_bind_int(q, 1, id);
    db_bind_text(q, 2, ref);
    int rc = db_step(q, e);
    if (rc == 1)
        read_row(q, out);
    if (rc == 0)
        return err_set(e, ERR_NOTFOUND, "there is no key %.80s: terrace key list shows all", ref);
    return rc < 0 ? rc : 0;
}

/* ---- what others call ---- */

int keys_create(struct db *d, const struct key_spec *spec, char secret[KEY_TEXT_BYTES + 1],
                int64_t *id, struct err *e)
{
    struct key_spec k = *spec;
    k.name = k.name ? k.name : "";
    k.tenant = k.tenant ? k.tenant : "default";
    k.models = k.models ? k.models : "";
    k.tiers = k.tiers ? k.tiers : "";
    k.adapters = k.adapters ? k.adapters : "";
    int rc = check_spec(&k, e);
    if (!rc)
        rc = db_begin(d, DB_WRITE, e);
    if (rc)
        return rc;
    make_secret(secret);
    rc = insert(d, &k, secret, e);
    *id = db_last_id(d);
    rc = db_end(d, rc, e);
    if (rc)
        explicit_bzero(secret, KEY_TEXT_BYTES);
    return rc;
}

int keys_list(struct db *d, struct key_list *out, struct err *e)
{
    *out = (struct key_list){0};
    int rc = db_begin(d, DB_READ, e);
    if (rc)
        return rc;
    struct db_stmt *q = db_stmt(d, "select " COLUMNS " from keys order by id limit ?1");
    size_t room = 0;
    db_bind_int(q, 1, KEY_MAX);
    while ((rc = db_step(q, e)) == 1) {
        if (out->n == room) {
            room = 2 * room + 16;
            out->keys = xrealloc(out->keys, room * sizeof *out->keys);
        }
        read_row(q, &out->keys[out->n++]);
    }
    rc = db_end(d, rc, e);
    if (rc)
        key_list_release(out);
    return rc;
}

int keys_find(struct db *d, const char *ref, struct key *out, struct err *e)
{
    int rc = db_begin(d, DB_READ, e);
    return rc ? rc : db_end(d, find(d, ref, out, e), e);
}

static int revoke(struct db *d, const char *ref, struct err *e)
{
    struct key k = {0};
    int rc = find(d, ref, &k, e);
    if (!rc && !k.revoked) {
        struct db_stmt *q = db_stmt(d, "update keys set revoked = ?2 where id = ?1");
        db_bind_int(q, 1, k.id);
        db_bind_int(q, 2, clock_unix_s());
        rc = db_run(q, e);
    }
    key_release(&k);
    return rc;
}

int keys_revoke(struct db *d, const char *ref, struct err *e)
{
    int rc = db_begin(d, DB_WRITE, e);
    return rc ? rc : db_end(d, revoke(d, ref, e), e);
}

static int rotate(struct db *d, const char *ref, int64_t grace_s, const char *secret, struct err *e)
{
    struct key k = {0};
    unsigned char digest[KEY_DIGEST_BYTES];
    char prefix[KEY_PREFIX_BYTES + 1];
    int rc = find(d, ref, &k, e);
    if (!rc && k.revoked)
        rc = err_set(e, ERR_INVALID, "the key %s was revoked: create a new one", k.name);
    if (!rc) {
        struct db_stmt *q = db_stmt(d, "update keys set old_digest = digest, old_until = ?2,"
                                       " digest = ?3, prefix = ?4 where id = ?1");
        snprintf(prefix, sizeof prefix, "%s", secret);
        key_digest(secret, KEY_TEXT_BYTES, digest);
        db_bind_int(q, 1, k.id);
        db_bind_int(q, 2, clock_unix_s() + grace_s);
        db_bind_blob(q, 3, digest, sizeof digest);
        db_bind_text(q, 4, prefix);
        rc = db_run(q, e);
    }
    key_release(&k);
    return rc;
}

int keys_rotate(struct db *d, const char *ref, int64_t grace_s, char secret[KEY_TEXT_BYTES + 1],
                struct err *e)
{
    int rc = db_begin(d, DB_WRITE, e);
    if (rc)
        return rc;
    make_secret(secret);
    rc = db_end(d, rotate(d, ref, grace_s, secret, e), e);
    if (rc)
        explicit_bzero(secret, KEY_TEXT_BYTES);
    return rc;
}
