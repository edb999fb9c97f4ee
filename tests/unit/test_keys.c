/* Keys and books in a database of their own: what is kept of a key, who finds it, and that sums are
 * those of the rows, before and after old ones become hours. */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "store/db.h"
#include "store/keys.h"
#include "store/ledger.h"

struct rig {
    char dir[64], path[80];
    struct db *db;
};

static int setup(void **state)
{
    struct rig *r = xcalloc(1, sizeof *r);
    struct err e = {0};
    snprintf(r->dir, sizeof r->dir, "/tmp/terrace-test-XXXXXX");
    assert_non_null(mkdtemp(r->dir));
    snprintf(r->path, sizeof r->path, "%s/t.db", r->dir);
    if (db_open(&r->db, r->path, true, &e))
        fail_msg("%s", e.msg);
    *state = r;
    return 0;
}

static int teardown(void **state)
{
    static const char *const ends[] = {"", "-wal", "-shm"};
    struct rig *r = *state;
    char path[96];
    db_close(r->db);
    for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
        snprintf(path, sizeof path, "%s%s", r->path, ends[i]);
        unlink(path);
    }
    rmdir(r->dir);
    free(r);
    return 0;
}

static int64_t create(struct rig *r, const char *name, char secret[KEY_TEXT_BYTES + 1])
{
    struct key_spec spec = {.name = name, .role = ROLE_USER, .quota = {1, 2, 3, 4}};
    struct err e = {0};
    int64_t id = 0;
    if (keys_create(r->db, &spec, secret, &id, &e))
        fail_msg("%s", e.msg);
    return id;
}

/* Is the text anywhere in the files of the database? */
static bool file_holds(const char *path, const char *text)
{
    struct buf b = {0};
    FILE *f = fopen(path, "rb");
    if (!f)
        return false;
    for (size_t n = 1; n;) {
        n = fread(buf_reserve(&b, 65536), 1, 65536, f);
        b.len += n;
    }
    fclose(f);
    bool found = false;
    for (size_t i = 0; !found && i + strlen(text) <= b.len; i++)
        found = memcmp(b.data + i, text, strlen(text)) == 0;
    buf_release(&b);
    return found;
}

static void test_create(void **state)
{
    struct rig *r = *state;
    char a[KEY_TEXT_BYTES + 1], b[KEY_TEXT_BYTES + 1], wal[96];
    int64_t id = create(r, "alice", a);
    assert_int_not_equal(create(r, "bob@acme+1", b), id);
    assert_string_not_equal(a, b);
    assert_int_equal(strlen(a), KEY_TEXT_BYTES);
    assert_int_equal(
        strspn(a + 3, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"), 43);
    struct key k = {0};
    struct err e = {0};
    assert_int_equal(keys_find(r->db, "alice", &k, &e), 0);
    assert_int_equal(k.id, id);
    assert_string_equal(k.tenant, "default");
    assert_int_equal(k.quota.tokens_per_day, 4);
    assert_memory_equal(k.prefix, a, KEY_PREFIX_BYTES);
    unsigned char digest[KEY_DIGEST_BYTES];
    key_digest(a, strlen(a), digest);
    assert_memory_equal(k.digest, digest, sizeof digest);
    key_release(&k);
    snprintf(wal, sizeof wal, "%s-wal", r->path);
    assert_true(file_holds(wal, "alice"));
    assert_false(file_holds(wal, a) || file_holds(r->path, a) || file_holds(wal, a + 12));
}

static void test_refused(void **state)
{
    struct rig *r = *state;
    static char long_name[KEY_NAME_BYTES + 2], long_list[KEY_PATTERNS_BYTES + 2];
    memset(long_name, 'x', sizeof long_name - 1);
    memset(long_list, 'x', sizeof long_list - 1);
    const struct {
        struct key_spec spec;
        const char *field;
    } cases[] = {
        {{.name = NULL, .role = ROLE_USER}, "name"},
        {{.name = "", .role = ROLE_USER}, "name"},
        {{.name = "a b", .role = ROLE_USER}, "name"},
        {{.name = "../x", .role = ROLE_USER}, "name"},
        {{.name = long_name, .role = ROLE_USER}, "name"},
        {{.name = "a", .tenant = "x/y", .role = ROLE_USER}, "tenant"},
        {{.name = "a", .models = long_list, .role = ROLE_USER}, "models"},
        {{.name = "a", .adapters = "a\nb", .role = ROLE_USER}, "adapters"},
        {{.name = "a", .tiers = "\xff", .role = ROLE_USER}, "tiers"},
        {{.name = "a", .role = ROLE_PUBLIC}, "role"},
        {{.name = "a", .role = ROLE_USER, .quota = {-1, 0, 0, 0}}, "rpm"},
        {{.name = "a", .role = ROLE_USER, .expires = -5}, "expires"},
    };
    char secret[KEY_TEXT_BYTES + 1];
    int64_t id;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err e = {0};
        assert_int_equal(keys_create(r->db, &cases[i].spec, secret, &id, &e), ERR_INVALID);
        assert_string_equal(e.param, cases[i].field);
    }
    struct key_list l;
    assert_int_equal(keys_list(r->db, &l, NULL), 0);
    assert_int_equal(l.n, 0);
    key_list_release(&l);
}

static void test_life(void **state)
{
    struct rig *r = *state;
    char first[KEY_TEXT_BYTES + 1], second[KEY_TEXT_BYTES + 1], third[KEY_TEXT_BYTES + 1];
    struct err e = {0};
    struct key k = {0};
    int64_t id = create(r, "alice", first), other;
    struct key_spec spec = {.name = "alice", .role = ROLE_USER};
    assert_int_equal(keys_create(r->db, &spec, third, &other, &e), ERR_EXISTS);
    assert_int_equal(keys_rotate(r->db, "alice", 100, second, &e), 0);
    assert_int_equal(keys_find(r->db, "alice", &k, &e), 0);
    unsigned char digest[KEY_DIGEST_BYTES];
    key_digest(first, strlen(first), digest);
    assert_memory_equal(k.old_digest, digest, sizeof digest);
    assert_true(k.old_until > clock_unix_s() + 90 && k.old_until <= clock_unix_s() + 100);
    key_digest(second, strlen(second), digest);
    assert_memory_equal(k.digest, digest, sizeof digest);
    key_release(&k);
    char prefix[KEY_PREFIX_BYTES + 1];
    snprintf(prefix, sizeof prefix, "%s", second);
    assert_int_equal(keys_revoke(r->db, prefix, &e), 0);
    assert_int_equal(keys_rotate(r->db, "alice", 0, third, &e), ERR_INVALID);
    assert_int_not_equal(create(r, "alice", third), id); /* the name is free again */
    assert_int_equal(keys_find(r->db, "alice", &k, &e), 0);
    assert_int_equal(k.revoked, 0);
    key_release(&k);
    assert_int_equal(keys_find(r->db, "1", &k, &e), 0);
    assert_true(k.revoked > 0);
    key_release(&k);
    assert_int_equal(keys_find(r->db, "nobody", &k, &e), ERR_NOTFOUND);
    assert_int_equal(keys_revoke(r->db, "nobody", &e), ERR_NOTFOUND);
}

/* ---- usage ---- */

struct totals {
    int64_t requests, prompt, completion, charged, rows;
    const char *tenant; /* expected of every row, NULL: any */
};

static void add_up(void *arg, const struct usage_row *r, const char *key_name)
{
    struct totals *t = arg;
    t->requests += r->requests;
    t->prompt += r->prompt_tokens;
    t->completion += r->completion_tokens;
    t->charged += r->charged_tokens;
    t->rows++;
    if (t->tenant && strcmp(r->tenant, t->tenant) != 0)
        t->requests = -1; /* no assertions where a transaction is open */
}

static struct totals totals(struct rig *r, struct usage_query q, const char *tenant)
{
    struct totals t = {.tenant = q.by & USAGE_BY_TENANT ? tenant : NULL};
    struct err e = {0};
    q.tenant = tenant;
    if (usage_sum(r->db, &q, add_up, &t, &e))
        fail_msg("%s", e.msg);
    return t;
}

static void no_change(struct db *d, void *arg)
{
}

static void test_usage(void **state)
{
    static const char *const tenants[] = {"acme", "umbrella", "default"};
    struct rig *r = *state;
    struct totals want[3] = {0};
    struct rng rng;
    rng_seed(&rng, 1);
    enum { HOURS = 40 }; /* the ledger itself makes hours of what is older than two days */
    int64_t start = clock_unix_s() - HOURS * 3600;
    struct ledger *l = ledger_new(r->db, no_change, NULL);
    for (int i = 0; i < 5000; i++) {
        int tenant = (int)rng_below(&rng, 3);
        struct usage_row row = {
            .at = start + (int64_t)rng_below(&rng, HOURS * 3600),
            .key = (int64_t)rng_below(&rng, 4),
            .tenant = tenants[tenant],
            .model = rng_below(&rng, 2) ? "m" : "n",
            .tier = "",
            .status = rng_below(&rng, 2) ? 200 : 499,
            .requests = 1,
            .prompt_tokens = (int64_t)rng_below(&rng, 100),
            .completion_tokens = (int64_t)rng_below(&rng, 100),
        };
        row.charged_tokens = row.prompt_tokens + row.completion_tokens;
        want[tenant].requests++;
        want[tenant].prompt += row.prompt_tokens;
        want[tenant].completion += row.completion_tokens;
        ledger_usage(l, &row);
    }
    ledger_free(l); /* writes all of it */
    struct usage_query q = {.to = INT64_MAX, .step_s = 86400};
    for (int round = 0; round < 2; round++) {
        for (unsigned by = 0; by < 64; by++) {
            int64_t all = 0;
            for (int i = 0; i < 3; i++) {
                q.by = by;
                struct totals t = totals(r, q, tenants[i]);
                assert_int_equal(t.requests, want[i].requests);
                assert_int_equal(t.prompt, want[i].prompt);
                assert_int_equal(t.completion, want[i].completion);
                assert_int_equal(t.charged, want[i].prompt + want[i].completion);
                all += t.requests;
            }
            assert_int_equal(totals(r, q, NULL).requests, all);
        }
        q.by = USAGE_BY_TIME;
        q.step_s = 1;
        int64_t seconds = totals(r, q, NULL).rows;
        q.step_s = 86400;
        assert_true(round ? seconds <= HOURS + 1 : seconds > 1000);
        assert_true(totals(r, q, NULL).rows <= 3);
        assert_int_equal(usage_compact(r->db, start + (HOURS + 2) * 3600, NULL), 0);
    }
}

/* A row is shown only once it is durable, and an errand runs after the rows given before it. */
static void errand(struct db *d, void *arg)
{
    struct usage_query q = {.to = INT64_MAX};
    usage_sum(d, &q, add_up, arg, NULL);
}

static void seen(void *arg, const struct audit_row *r)
{
    struct totals *t = arg;
    t->rows++;
    assert_string_equal(r->action, "POST /x");
}

static void test_ledger(void **state)
{
    struct rig *r = *state;
    struct ledger *l = ledger_new(r->db, no_change, NULL);
    struct totals t = {0}, audits = {0};
    struct usage_row row = {.at = 5, .tenant = "t", .model = "m", .tier = "", .requests = 1};
    struct audit_row a = {.at = 5, .name = "root", .address = "::1", .action = "POST /x"};
    for (int i = 0; i < 100; i++)
        ledger_usage(l, &row);
    ledger_audit(l, &a);
    ledger_audit(l, &a);
    ledger_run(l, errand, &t);
    ledger_free(l);
    assert_int_equal(t.requests, 100);
    assert_int_equal(audit_list(r->db, 0, INT64_MAX, 10, seen, &audits, NULL), 0);
    assert_int_equal(audits.rows, 2);
}

static void changed(struct db *d, void *arg)
{
    __atomic_add_fetch((int *)arg, 1, __ATOMIC_SEQ_CST);
}

/* What another connection changes is noticed, what the ledger writes itself is not. */
static void test_changes(void **state)
{
    struct rig *r = *state;
    struct db *other;
    int n = 0;
    char secret[KEY_TEXT_BYTES + 1];
    int64_t id;
    struct key_spec spec = {.name = "a", .role = ROLE_USER};
    struct ledger *l = ledger_new(r->db, changed, &n);
    while (__atomic_load_n(&n, __ATOMIC_SEQ_CST) == 0)
        usleep(1000);
    struct usage_row row = {.at = 5, .tenant = "t", .model = "m", .tier = "", .requests = 1};
    ledger_usage(l, &row);
    assert_int_equal(db_open(&other, r->path, false, NULL), 0);
    assert_int_equal(keys_create(other, &spec, secret, &id, NULL), 0);
    while (__atomic_load_n(&n, __ATOMIC_SEQ_CST) == 1)
        usleep(1000);
    db_close(other);
    ledger_free(l);
    assert_int_equal(n, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_create, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_life, setup, teardown),
        cmocka_unit_test_setup_teardown(test_usage, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ledger, setup, teardown),
        cmocka_unit_test_setup_teardown(test_changes, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
