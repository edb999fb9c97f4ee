#include "store/db.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/map.h"
#include "base/mem.h"
#include "store/schema.h"

static const char IN_MEMORY[] = ":memory:"; /* SQLite's name for it */

struct db_stmt {
    struct db *db;
    sqlite3_stmt *stmt;
};

struct db {
    char *path;
    char *damaged; /* where the file was moved that was here, NULL: it was good */
    sqlite3 *conn;
    pthread_mutex_t lock; /* held by the transaction */
    bool open;            /* a transaction is under way */
    struct map stmts;     /* SQL text -> struct db_stmt */
};

/* ---- errors ---- */

static int code_of(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return ERR_BUSY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return ERR_FORMAT;
    case SQLITE_NOMEM:
        return ERR_NOMEM;
    case SQLITE_CONSTRAINT:
        return rc == SQLITE_CONSTRAINT_FOREIGNKEY ? ERR_INVALID : ERR_EXISTS;
    case SQLITE_TOOBIG:
        return ERR_LIMIT;
    default:
        return ERR_IO;
    }
}

static int fail(const struct db *d, int rc, struct err *e)
{
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return err_set(e, ERR_BUSY, "%s: another process has been writing for %d seconds", d->path,
                       DB_BUSY_MS / 1000);
    case SQLITE_FULL:
        return err_set(e, ERR_IO, "%s: the disk is full; nothing was changed: make room", d->path);
    case SQLITE_READONLY:
        return err_set(e, ERR_IO, "%s cannot be written: check its owner and permissions", d->path);
    default:
        return err_set(e, code_of(rc), "%s: %s", d->path,
                       d->conn ? sqlite3_errmsg(d->conn) : sqlite3_errstr(rc));
    }
}

/* ---- opening ---- */

/* Every folder of the path, for the owner only. */
static int make_folders(const char *path, struct err *e)
{
    char *folder = xstrdup(path);
    int rc = 0;
    for (char *slash = strchr(folder + 1, '/'); slash && !rc; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(folder, 0700) && errno != EEXIST)
            rc = err_set(e, ERR_IO, "%s cannot be made: %s", folder, strerror(errno));
        *slash = '/';
    }
    free(folder);
    return rc;
}

/* For the owner only: it holds digests of keys and names of users. SQLite's other files follow its
 * permissions. */
static int make_file(const char *path, struct err *e)
{
    int rc = make_folders(path, e);
    if (rc)
        return rc;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(e, ERR_IO, "%s cannot be opened: %s", path, strerror(errno));
    close(fd);
    return 0;
}

static int exec(struct db *d, const char *sql, struct err *e)
{
    int rc = sqlite3_exec(d->conn, sql, NULL, NULL, NULL);
    return rc ? fail(d, rc, e) : 0;
}

/* One number that a query answers with. */
static int query_int(struct db *d, const char *sql, int64_t *out, struct err *e)
{
    sqlite3_stmt *q;
    int rc = sqlite3_prepare_v2(d->conn, sql, -1, &q, NULL);
    if (!rc)
        rc = sqlite3_step(q);
    if (rc == SQLITE_ROW)
        *out = sqlite3_column_int64(q, 0);
    int failed = rc == SQLITE_ROW ? 0 : fail(d, rc, e);
    sqlite3_finalize(q);
    return failed;
}

/* SQLite doesn't wait for others when it changes the kind of journal, so we do. */
static int use_wal(struct db *d, struct err *e)
{
    int64_t until = clock_ms() + DB_BUSY_MS;
    int rc;
    while (((rc = sqlite3_exec(d->conn, "pragma journal_mode = wal", NULL, NULL, NULL)) & 0xff) ==
               SQLITE_BUSY &&
           clock_ms() < until)
        sqlite3_sleep(5);
    return rc ? fail(d, rc, e) : 0;
}

static int connect(struct db *d, struct err *e)
{
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    int rc = strcmp(d->path, IN_MEMORY) == 0 ? 0 : make_file(d->path, e);
    if (rc)
        return rc;
    rc = sqlite3_open_v2(d->path, &d->conn, flags, NULL);
    if (rc)
        return fail(d, rc, e);
    sqlite3_extended_result_codes(d->conn, 1);
    sqlite3_busy_timeout(d->conn, DB_BUSY_MS);
    rc = use_wal(d, e);
    if (rc)
        return rc;
    return exec(
        d, "pragma synchronous = full; pragma foreign_keys = on; pragma trusted_schema = off;", e);
}

static int check_pages(struct db *d, struct err *e)
{
    sqlite3_stmt *q;
    int rc = sqlite3_prepare_v2(d->conn, "pragma quick_check(1)", -1, &q, NULL);
    if (!rc)
        rc = sqlite3_step(q);
    const char *text = rc == SQLITE_ROW ? (const char *)sqlite3_column_text(q, 0) : NULL;
    int failed = 0;
    if (!text)
        failed = fail(d, rc, e);
    else if (strcmp(text, "ok") != 0) /* its last line says what */
        failed = err_set(e, ERR_FORMAT, "%s is damaged: %.200s", d->path,
                         strrchr(text, '\n') ? strrchr(text, '\n') + 1 : text);
    sqlite3_finalize(q);
    return failed;
}

static int migrate_one(struct db *d, int64_t n_steps, bool *done, struct err *e)
{
    int64_t version = 0;
    int rc = exec(d, "begin immediate", e);
    if (rc)
        return rc;
    /* read again under the lock: another process may be at it */
    rc = query_int(d, "pragma user_version", &version, e);
    *done = version >= n_steps;
    if (!rc && !*done) {
        char count[64];
        snprintf(count, sizeof count, "pragma user_version = %d", (int)version + 1);
        rc = exec(d, db_schema[version], e);
        if (!rc)
            rc = exec(d, count, e);
    }
    if (!rc)
        rc = exec(d, "commit", e);
    if (rc)
        sqlite3_exec(d->conn, "rollback", NULL, NULL, NULL);
    return rc;
}

static int migrate(struct db *d, struct err *e)
{
    int64_t version = 0, n_steps = 0;
    while (db_schema[n_steps])
        n_steps++;
    int rc = query_int(d, "pragma user_version", &version, e);
    if (!rc && (version < 0 || version > n_steps))
        return err_set(e, ERR_UNSUPPORTED,
                       "%s was made by a newer version of this program (its tables are at step "
                       "%lld, this version knows %lld): use that one, or another --state-dir",
                       d->path, (long long)version, (long long)n_steps);
    for (bool done = version == n_steps; !rc && !done;)
        rc = migrate_one(d, n_steps, &done, e);
    return rc;
}

static int bring_up(struct db *d, bool check, struct err *e)
{
    int rc = connect(d, e);
    if (!rc && check)
        rc = check_pages(d, e);
    return rc ? rc : migrate(d, e);
}

static void disconnect(struct db *d)
{
    struct map_slot *slot;
    for (size_t i = 0; (slot = map_next(&d->stmts, &i));) {
        struct db_stmt *q = slot->value;
        sqlite3_finalize(q->stmt);
        free(q);
    }
    map_release(&d->stmts);
    sqlite3_close(d->conn);
    d->conn = NULL;
}

/* The file and its log under one new name, so that they can be looked at together. */
static int move_aside(struct db *d, const struct err *why, struct err *e)
{
    static const char *const parts[] = {"", "-wal", "-shm"};
    struct buf from = {0}, to = {0};
    int64_t stamp = clock_unix_s();
    int rc = 0;
    for (;; stamp++) { /* a name that nothing has yet */
        buf_clear(&to);
        buf_addf(&to, "%s.damaged-%lld", d->path, (long long)stamp);
        if (access(to.data, F_OK))
            break;
    }
    size_t stem = to.len;
    for (size_t i = 0; i < ARRAY_LEN(parts) && !rc; i++) {
        buf_clear(&from);
        buf_addf(&from, "%s%s", d->path, parts[i]);
        to.len = stem;
        buf_adds(&to, parts[i]);
        if (rename(from.data, to.data) && errno != ENOENT)
            rc = err_set(e, ERR_IO, "%s is damaged and cannot be moved to %s: %s", from.data,
                         to.data, strerror(errno));
    }
    if (!rc)
        d->damaged = xstrndup(to.data, stem);
    if (!rc)
        log_error("store", "%s; it is kept as %.*s, and an empty one takes its place", why->msg,
                  (int)stem, to.data);
    buf_release(&from);
    buf_release(&to);
    return rc;
}

int db_open(struct db **out, const char *path, bool check, struct err *e)
{
    struct db *d = xcalloc(1, sizeof *d);
    struct err why = {0};
    d->path = xstrdup(path ? path : IN_MEMORY);
    pthread_mutex_init(&d->lock, NULL);
    int rc = bring_up(d, check, &why);
    if (rc == ERR_FORMAT && check) {
        disconnect(d);
        rc = move_aside(d, &why, &why);
        if (!rc)
            rc = bring_up(d, false, &why);
    }
    if (rc) {
        db_close(d);
        return err_set(e, rc, "%s", why.msg);
    }
    *out = d;
    return 0;
}

void db_close(struct db *d)
{
    if (!d)
        return;
    BUG_ON(d->open);
    disconnect(d);
    pthread_mutex_destroy(&d->lock);
    free(d->path);
    free(d->damaged);
    free(d);
}

const char *db_path(const struct db *d)
{
    return d->path;
}

const char *db_damaged(const struct db *d)
{
    return d->damaged;
}

/* ---- transactions ---- */

int db_begin(struct db *d, enum db_access access, struct err *e)
{
    pthread_mutex_lock(&d->lock);
    /* a writer asks for the file at once: an upgrade later could only fail */
    int rc = exec(d, access == DB_WRITE ? "begin immediate" : "begin", e);
    if (rc) {
        pthread_mutex_unlock(&d->lock);
        return rc;
    }
    d->open = true;
    return 0;
}

static void reset_all(struct db *d)
{
    struct map_slot *slot;
    for (size_t i = 0; (slot = map_next(&d->stmts, &i));) {
        struct db_stmt *q = slot->value;
        sqlite3_reset(q->stmt);
        if (q->stmt)
            sqlite3_clear_bindings(q->stmt);
    }
}

static void leave(struct db *d)
{
    d->open = false;
    pthread_mutex_unlock(&d->lock);
}

int db_commit(struct db *d, struct err *e)
{
    BUG_ON(!d->open);
    reset_all(d);
    int rc = exec(d, "commit", e);
    if (rc)
        sqlite3_exec(d->conn, "rollback", NULL, NULL, NULL);
    leave(d);
    return rc;
}

void db_rollback(struct db *d)
{
    BUG_ON(!d->open);
    reset_all(d);
    /* fails only where SQLite has rolled back already */
    sqlite3_exec(d->conn, "rollback", NULL, NULL, NULL);
    leave(d);
}

int db_end(struct db *d, int rc, struct err *e)
{
    if (!rc)
        return db_commit(d, e);
    db_rollback(d);
    return rc;
}

int64_t db_version(struct db *d)
{
    int64_t v = 0;
    pthread_mutex_lock(&d->lock);
    query_int(d, "pragma data_version", &v, NULL);
    pthread_mutex_unlock(&d->lock);
    return v;
}

/* ---- statements ---- */

struct db_stmt *db_stmt(struct db *d, const char *sql)
{
    BUG_ON(!d->open);
    struct db_stmt *q = map_get(&d->stmts, str_of(sql));
    if (!q) {
        q = xcalloc(1, sizeof *q);
        q->db = d;
        map_put(&d->stmts, str_of(sql), q);
    }
    if (!q->stmt && sqlite3_prepare_v3(d->conn, sql, -1, SQLITE_PREPARE_PERSISTENT, &q->stmt, NULL))
        log_error("store", "%s: %s: %s", d->path, sqlite3_errmsg(d->conn), sql);
    if (q->stmt) {
        sqlite3_reset(q->stmt);
        sqlite3_clear_bindings(q->stmt);
    }
    return q;
}

/* A parameter that the statement does not have is our mistake; memory for its bytes is small. */
static void bound(struct db_stmt *q, int rc)
{
    if (rc && q->stmt)
        BUG("%s: %s", sqlite3_sql(q->stmt), sqlite3_errmsg(q->db->conn));
}

void db_bind_int(struct db_stmt *q, int at, int64_t v)
{
    bound(q, sqlite3_bind_int64(q->stmt, at, v));
}

void db_bind_num(struct db_stmt *q, int at, double v)
{
    bound(q, sqlite3_bind_double(q->stmt, at, v));
}

void db_bind_text(struct db_stmt *q, int at, const char *s)
{
    bound(q, sqlite3_bind_text(q->stmt, at, s, -1, SQLITE_TRANSIENT));
}

void db_bind_blob(struct db_stmt *q, int at, const void *p, size_t n)
{
    bound(q, sqlite3_bind_blob64(q->stmt, at, p ? p : "", n, SQLITE_TRANSIENT));
}

int db_step(struct db_stmt *q, struct err *e)
{
    if (!q->stmt)
        return fail(q->db, SQLITE_IOERR, e);
    int rc = sqlite3_step(q->stmt);
    if (rc == SQLITE_ROW)
        return 1;
    if (rc == SQLITE_DONE)
        return 0;
    return fail(q->db, rc, e);
}

int db_run(struct db_stmt *q, struct err *e)
{
    int rc;
    while ((rc = db_step(q, e)) == 1)
        ;
    return rc;
}

int64_t db_int(struct db_stmt *q, int col)
{
    return sqlite3_column_int64(q->stmt, col);
}

double db_num(struct db_stmt *q, int col)
{
    return sqlite3_column_double(q->stmt, col);
}

const char *db_text(struct db_stmt *q, int col)
{
    const char *s = (const char *)sqlite3_column_text(q->stmt, col);
    return s ? s : "";
}

const void *db_blob(struct db_stmt *q, int col, size_t *n)
{
    const void *p = sqlite3_column_blob(q->stmt, col);
    *n = (size_t)sqlite3_column_bytes(q->stmt, col);
    return p ? p : "";
}

bool db_null(struct db_stmt *q, int col)
{
    return sqlite3_column_type(q->stmt, col) == SQLITE_NULL;
}

int64_t db_changes(struct db *d)
{
    return sqlite3_changes64(d->conn);
}

int64_t db_last_id(struct db *d)
{
    return sqlite3_last_insert_rowid(d->conn);
}
