/* The database: transactions, migrations, other processes, damage, full disks, and kill -9. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rng.h"
#include "store/db.h"

#define PATH "state/deep/terrace.db"

static char folder[64];

static int enter_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/terrace-db-XXXXXX");
    return !mkdtemp(folder) || chdir(folder);
}

static int leave_folder(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    (void)state;
    return chdir("/") || system(command);
}

static struct db *open_db(bool check)
{
    struct db *d = NULL;
    struct err e = {0};
    if (db_open(&d, PATH, check, &e))
        fail_msg("%s", e.msg);
    return d;
}

static int run(struct db *d, const char *sql, struct err *e)
{
    int rc = db_begin(d, DB_WRITE, e);
    return rc ? rc : db_end(d, db_run(db_stmt(d, sql), e), e);
}

static void must(struct db *d, const char *sql)
{
    struct err e = {0};
    if (run(d, sql, &e))
        fail_msg("%s: %s", sql, e.msg);
}

static int64_t number(struct db *d, const char *sql)
{
    struct err e = {0};
    assert_int_equal(db_begin(d, DB_READ, &e), 0);
    struct db_stmt *q = db_stmt(d, sql);
    if (db_step(q, &e) != 1)
        fail_msg("%s: %s", sql, e.msg);
    int64_t v = db_int(q, 0);
    db_rollback(d);
    return v;
}

static void test_values(void **state)
{
    struct db *d = open_db(true);
    struct err e = {0};
    struct stat st;
    size_t n;
    assert_string_equal(db_path(d), PATH);
    assert_null(db_damaged(d));
    assert_int_equal(stat(PATH, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    must(d, "create table t (id integer primary key, i integer, x real, s text, b blob) strict");
    assert_int_equal(db_begin(d, DB_WRITE, &e), 0);
    struct db_stmt *q = db_stmt(d, "insert into t (i, x, s, b) values (?1, ?2, ?3, ?4)");
    db_bind_int(q, 1, INT64_MIN);
    db_bind_num(q, 2, 0.1);
    db_bind_text(q, 3, "h\xc3\xa9 'llo");
    db_bind_blob(q, 4, "a\0b", 3);
    assert_int_equal(db_run(q, &e), 0);
    assert_int_equal(db_last_id(d), 1);
    q = db_stmt(d, "insert into t (i, x, s, b) values (?1, ?2, ?3, ?4)");
    db_bind_text(q, 3, NULL); /* nothing of the first row is left in it */
    db_bind_blob(q, 4, NULL, 0);
    assert_int_equal(db_run(q, &e), 0);
    assert_int_equal(db_changes(d), 1);
    assert_int_equal(db_commit(d, &e), 0);

    assert_int_equal(db_begin(d, DB_READ, &e), 0);
    q = db_stmt(d, "select i, x, s, b from t order by id");
    assert_int_equal(db_step(q, &e), 1);
    assert_int_equal(db_int(q, 0), INT64_MIN);
    assert_true(db_num(q, 1) == 0.1);
    assert_string_equal(db_text(q, 2), "h\xc3\xa9 'llo");
    assert_memory_equal(db_blob(q, 3, &n), "a\0b", 3);
    assert_int_equal(n, 3);
    assert_false(db_null(q, 3));
    assert_int_equal(db_step(q, &e), 1);
    assert_true(db_null(q, 0) && db_null(q, 2));
    assert_false(db_null(q, 3));
    assert_int_equal(db_int(q, 0), 0);
    assert_string_equal(db_text(q, 2), "");
    db_blob(q, 3, &n);
    assert_int_equal(n, 0);
    assert_int_equal(db_step(q, &e), 0);
    db_rollback(d);
    db_close(d);
    db_close(NULL);
}

static void test_errors(void **state)
{
    struct db *d = open_db(true);
    struct err e = {0};
    must(d, "create table a (k text primary key) strict");
    must(d, "create table b (k text not null references a on delete cascade) strict");
    must(d, "insert into a values ('x')");
    assert_int_equal(run(d, "insert into a values ('x')", &e), ERR_EXISTS);
    assert_int_equal(run(d, "insert into b values ('y')", &e), ERR_INVALID);
    assert_int_equal(run(d, "insert into nowhere values ('y')", &e), ERR_IO);
    must(d, "insert into b values ('x')");
    must(d, "delete from a");
    assert_int_equal(number(d, "select count(*) from b"), 0);
    /* what was done before a failure is undone with it */
    assert_int_equal(db_begin(d, DB_WRITE, &e), 0);
    assert_int_equal(db_run(db_stmt(d, "insert into a values ('z')"), &e), 0);
    assert_int_equal(db_end(d, ERR_LIMIT, &e), ERR_LIMIT);
    assert_int_equal(number(d, "select count(*) from a"), 0);
    db_close(d);
}

static void test_reopened(void **state)
{
    struct db *d = open_db(true);
    int64_t steps = number(d, "select user_version from pragma_user_version");
    assert_true(steps > 0);
    must(d, "create table t (i integer) strict");
    must(d, "insert into t values (7)");
    db_close(d);
    d = open_db(true);
    assert_int_equal(number(d, "select i from t"), 7);
    assert_int_equal(number(d, "select user_version from pragma_user_version"), steps);
    must(d, "pragma user_version = 10000");
    db_close(d);
    struct err e = {0};
    assert_int_equal(db_open(&d, PATH, true, &e), ERR_UNSUPPORTED);
    assert_non_null(strstr(e.msg, "newer version"));
}

static void test_another_connection(void **state)
{
    struct db *a = open_db(true), *b = open_db(false);
    must(a, "create table t (i integer) strict");
    int64_t before = db_version(b);
    assert_int_equal(db_version(b), before);
    must(a, "insert into t values (1)");
    assert_int_not_equal(db_version(b), before);
    before = db_version(b);
    must(b, "insert into t values (2)"); /* its own change is no news */
    assert_int_equal(db_version(b), before);
    assert_int_equal(number(a, "select count(*) from t"), 2);
    db_close(a);
    db_close(b);
}

/* ---- threads and processes ---- */

enum { THREADS = 4, PER_THREAD = 50 };

static void *increment(void *arg)
{
    struct db *d = arg;
    struct err e = {0};
    for (int i = 0; i < PER_THREAD; i++) {
        if (db_begin(d, DB_WRITE, &e))
            return &folder;
        struct db_stmt *q = db_stmt(d, "select i from t");
        if (db_step(q, &e) != 1)
            abort();
        int64_t v = db_int(q, 0);
        q = db_stmt(d, "update t set i = ?1");
        db_bind_int(q, 1, v + 1);
        if (db_end(d, db_run(q, &e), &e))
            return &folder;
    }
    return NULL;
}

static void test_threads(void **state)
{
    struct db *shared = open_db(true), *own = open_db(false);
    pthread_t threads[THREADS];
    must(shared, "create table t (i integer) strict");
    must(shared, "insert into t values (0)");
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, increment, i ? shared : own), 0);
    for (int i = 0; i < THREADS; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    assert_int_equal(number(own, "select i from t"), THREADS * PER_THREAD);
    db_close(shared);
    db_close(own);
}

static void test_opened_by_many_at_once(void **state)
{
    enum { PROCESSES = 8 };
    pid_t pids[PROCESSES];
    int gate[2];
    assert_int_equal(pipe(gate), 0);
    for (int i = 0; i < PROCESSES; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            char c;
            struct db *d;
            struct err e = {0};
            close(gate[1]);
            int rc = (int)read(gate[0], &c, 1); /* until the parent closes it */
            rc = db_open(&d, PATH, true, &e);
            if (rc)
                fprintf(stderr, "%s\n", e.msg);
            else
                db_close(d);
            _exit(rc ? 1 : 0);
        }
    }
    close(gate[0]);
    close(gate[1]);
    for (int i = 0; i < PROCESSES; i++) {
        int status;
        waitpid(pids[i], &status, 0);
        assert_int_equal(status, 0);
    }
}

/* ---- damage ---- */

static int count_damaged(void)
{
    FILE *f = popen("ls state/deep | grep -c 'damaged-[0-9]*$'", "r");
    int n = -1;
    assert_int_equal(fscanf(f, "%d", &n), 1);
    pclose(f);
    return n;
}

static void fill(struct db *d)
{
    must(d, "create table t (i integer, s text) strict");
    must(d, "with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000) "
            "insert into t select i, hex(randomblob(40)) from n");
}

static void overwrite(off_t from, size_t n)
{
    int fd = open(PATH, O_WRONLY);
    char junk[4096];
    memset(junk, 0x5a, sizeof junk);
    for (size_t done = 0; done < n; done += sizeof junk)
        assert_int_equal(pwrite(fd, junk, sizeof junk, from + (off_t)done), sizeof junk);
    close(fd);
}

static void test_damaged(void **state)
{
    for (int round = 0; round < 3; round++) {
        struct db *d = open_db(true);
        struct err e = {0};
        fill(d);
        db_close(d);
        if (round == 0)
            overwrite(0, 4096); /* no database any more */
        else if (round == 1)
            overwrite(8192, 32768); /* its middle */
        else
            assert_int_equal(truncate(PATH, 40000), 0);
        if (round != 1) /* reading a part of it may not meet the damage */
            assert_int_not_equal(db_open(&d, PATH, false, &e) ? 0 : (db_close(d), 1), 2);
        d = open_db(true);
        assert_int_equal(count_damaged(), round + 1);
        assert_int_equal(access(db_damaged(d), F_OK), 0);
        assert_int_equal(number(d, "select count(*) from sqlite_master where name = 't'"), 0);
        assert_int_equal(number(d, "select count(*) from adapters"), 0);
        db_close(d);
    }
    struct db *d;
    struct err e = {0};
    overwrite(0, 4096);
    assert_int_equal(db_open(&d, PATH, false, &e), ERR_FORMAT);
    assert_non_null(strstr(e.msg, PATH));
}

/* A file that may not grow: what a full disk looks like, in a process of its own. */
static void test_no_room(void **state)
{
    struct db *d = open_db(true);
    must(d, "create table t (i integer, s text) strict");
    must(d, "insert into t values (1, 'kept')");
    db_close(d);
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit limit = {300000, 300000};
        struct err e = {0};
        signal(SIGXFSZ, SIG_IGN);
        if (db_open(&d, PATH, true, &e) || setrlimit(RLIMIT_FSIZE, &limit))
            _exit(2);
        int rc = run(d, "insert into t values (2, hex(zeroblob(1000000)))", &e);
        if (rc != ERR_IO || !strstr(e.msg, PATH))
            _exit(3);
        /* it goes on working with what fits */
        rc = run(d, "insert into t values (3, 'small')", &e);
        db_close(d);
        _exit(rc ? 4 : 0);
    }
    int status;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    d = open_db(true);
    assert_int_equal(number(d, "select count(*) from t"), 2);
    assert_int_equal(number(d, "select max(i) from t"), 3);
    db_close(d);
}

static void test_where_nothing_can_be(void **state)
{
    struct db *d;
    struct err e = {0};
    assert_int_equal(db_open(&d, "/proc/nowhere/terrace.db", true, &e), ERR_IO);
    assert_non_null(strstr(e.msg, "/proc/nowhere"));
}

/* ---- kill -9 ---- */

enum { KILLS = 200, CHUNK = 3 };

/* Adds CHUNK rows a transaction, and tells the number of each chunk that is acknowledged. */
static void write_until_killed(int ack)
{
    struct db *d;
    struct err e = {0};
    if (db_open(&d, PATH, true, &e))
        _exit(1);
    if (run(d, "create table if not exists t (chunk integer, part integer) strict", &e))
        _exit(1);
    for (int32_t chunk = (int32_t)number(d, "select ifnull(max(chunk), 0) + 1 from t");; chunk++) {
        int rc = db_begin(d, DB_WRITE, &e);
        for (int part = 0; part < CHUNK && !rc; part++) {
            struct db_stmt *q = db_stmt(d, "insert into t values (?1, ?2)");
            db_bind_int(q, 1, chunk);
            db_bind_int(q, 2, part);
            rc = db_run(q, &e);
        }
        if (rc || db_commit(d, &e) || write(ack, &chunk, sizeof chunk) != sizeof chunk)
            _exit(1);
    }
}

/* Returns the last chunk that was acknowledged before the kill, 0: none. */
static int32_t kill_a_writer(struct rng *r)
{
    int fd[2];
    int32_t last = 0, got;
    assert_int_equal(pipe(fd), 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(fd[0]);
        write_until_killed(fd[1]);
    }
    close(fd[1]);
    for (uint64_t n = rng_below(r, 8); n && read(fd[0], &got, sizeof got) == sizeof got; n--)
        last = got;
    int64_t until = clock_ns() + (int64_t)rng_below(r, 4000000);
    while (clock_ns() < until)
        ;
    assert_int_equal(kill(pid, SIGKILL), 0);
    int status;
    waitpid(pid, &status, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    while (read(fd[0], &got, sizeof got) == sizeof got)
        last = got;
    close(fd[0]);
    return last;
}

static void test_killed(void **state)
{
    struct rng r;
    rng_seed(&r, 9);
    int32_t last = 0, rows = 0;
    for (int i = 0; i < KILLS; i++) {
        if (i % 20 == 0) { /* from the beginning: the tables are made under fire too */
            unlink(PATH), unlink(PATH "-wal"), unlink(PATH "-shm");
            last = 0;
        }
        int32_t acked = kill_a_writer(&r);
        last = acked ? acked : last;
        struct db *d = open_db(true);
        if (number(d, "select count(*) from sqlite_master where name = 't'")) {
            int64_t n = number(d, "select count(*) from t");
            int64_t max = number(d, "select ifnull(max(chunk), 0) from t");
            assert_in_range(max, last, last + 1);
            assert_int_equal(n, CHUNK * max);
            last = (int32_t)max;
            rows += (int32_t)n;
        } else {
            assert_int_equal(last, 0);
        }
        db_close(d);
    }
    assert_int_equal(count_damaged(), 0);
    print_message("%d kills, %d rows looked at\n", KILLS, rows);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, enter_folder, leave_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_values),
        TEST(test_errors),
        TEST(test_reopened),
        TEST(test_another_connection),
        TEST(test_threads),
        TEST(test_opened_by_many_at_once),
        TEST(test_damaged),
        TEST(test_no_room),
        TEST(test_where_nothing_can_be),
        TEST(test_killed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
