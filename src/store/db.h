/* db.h - the database: rows that outlive the process, in one file for everything.
 *
 * SQLite behind a small interface, so that another SQL server can take its place: statements are
 * plain SQL with parameters ?1, ?2 ..., transactions are explicit, and nobody else sees sqlite3.h.
 * Each module of src/store owns its tables; all are made by the migrations in schema.c.
 *
 * Durability: write-ahead log, synced at every commit (synchronous FULL). A change is acknowledged
 * when db_commit has returned 0; from then on it outlives kill -9 and loss of power. Anything less
 * is as if it had never begun.
 *
 * Threads: a struct db is one connection, and a transaction holds it from db_begin to db_commit or
 * db_rollback, so any thread may use it and writers wait for each other. A commit waits for the
 * disk: event loops and engines never call this; they read what the modules above keep in memory
 * and leave writing to other threads. Other processes (the command line) may have the same file
 * open; a writer waits up to DB_BUSY_MS for them.
 *
 *     int rc = db_begin(d, DB_WRITE, e);
 *     if (rc)
 *         return rc;
 *     struct db_stmt *q = db_stmt(d, "update keys set name = ?2 where id = ?1");
 *     db_bind_int(q, 1, id);
 *     db_bind_text(q, 2, name);
 *     rc = db_run(q, e);
 *     return db_end(d, rc, e);
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct db;
struct db_stmt;

enum { DB_BUSY_MS = 10000 };

enum db_access { DB_READ, DB_WRITE };

/* Opens the file at path, or makes it (0600, and its folders 0700), and brings its tables up to
 * date. NULL is a database in memory, gone with its db_close. `check` reads the whole file for
 * damage first, as a server does at its start: a file that is damaged is moved to PATH.damaged-N
 * with a message in the log, and an empty one takes its place. Without `check` damage is
 * ERR_FORMAT. ERR_IO: the system refused, or the disk is full; ERR_UNSUPPORTED: a newer version of
 * the program made it; ERR_BUSY: another process holds it. */
int db_open(struct db **out, const char *path, bool check, struct err *e);
void db_close(struct db *d);

const char *db_path(const struct db *d);

/* Where db_open has moved a damaged file whose place this one takes, or NULL. */
const char *db_damaged(const struct db *d);

/* A transaction of this thread; waits for those of others. ERR_BUSY, ERR_IO. */
int db_begin(struct db *d, enum db_access access, struct err *e);

/* Ends the transaction. On error everything since db_begin is undone. */
int db_commit(struct db *d, struct err *e);
void db_rollback(struct db *d);

/* Commits if rc is 0, else rolls back and returns rc. */
int db_end(struct db *d, int rc, struct err *e);

/* A statement of the transaction, prepared once for each text; the text is a literal. Parameters
 * that are not bound are NULL. It is good until the transaction ends or the same text is asked for
 * again. */
struct db_stmt *db_stmt(struct db *d, const char *sql);

/* Parameters count from 1. Bytes are copied. */
void db_bind_int(struct db_stmt *q, int at, int64_t v);
void db_bind_num(struct db_stmt *q, int at, double v);
void db_bind_text(struct db_stmt *q, int at, const char *s); /* NULL binds NULL */
void db_bind_blob(struct db_stmt *q, int at, const void *p, size_t n);

/* The next row: 1, or 0 at the end. ERR_EXISTS: a row with this key is there; ERR_INVALID: it
 * refers to a row that is not; ERR_IO, ERR_FORMAT (damaged). */
int db_step(struct db_stmt *q, struct err *e);

/* Runs a statement whose rows nobody wants. */
int db_run(struct db_stmt *q, struct err *e);

/* Columns of the row, from 0; NULL reads as 0, "" and an empty blob. Text and bytes are good until
 * the next step. */
int64_t db_int(struct db_stmt *q, int col);
double db_num(struct db_stmt *q, int col);
const char *db_text(struct db_stmt *q, int col);
const void *db_blob(struct db_stmt *q, int col, size_t *n);
bool db_null(struct db_stmt *q, int col);

/* Rows that the latest statement of the transaction changed; the id of the row it inserted. */
int64_t db_changes(struct db *d);
int64_t db_last_id(struct db *d);

/* A number that differs from the one before when another connection has changed the file
 * meanwhile: how a server notices what the command line did. Not inside a transaction of this
 * thread. */
int64_t db_version(struct db *d);
