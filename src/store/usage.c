#include "store/usage.h"

#include "base/mem.h"
#include "store/db.h"

enum { HOUR_S = 3600 };

static void bind_all(struct db_stmt *q, const struct usage_row *r)
{
    const int64_t counts[] = {r->requests,          r->prompt_tokens,  r->cached_tokens,
                              r->completion_tokens, r->charged_tokens, r->ms};
    db_bind_int(q, 1, r->at);
    db_bind_int(q, 2, r->key);
    db_bind_text(q, 3, r->tenant);
    db_bind_text(q, 4, r->model);
    db_bind_text(q, 5, r->tier);
    db_bind_int(q, 6, r->status);
    for (size_t i = 0; i < ARRAY_LEN(counts); i++)
        db_bind_int(q, 7 + (int)i, counts[i]);
}

#define COLUMNS                                                                                    \
    "at, key, tenant, model, tier, status, requests, prompt_tokens, cached_tokens,"                \
    " completion_tokens, charged_tokens, ms"

#define ADD_UP                                                                                     \
    " on conflict do update set requests = requests + excluded.requests,"                          \
    " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"                                     \
    " cached_tokens = cached_tokens + excluded.cached_tokens,"                                     \
    " completion_tokens = completion_tokens + excluded.completion_tokens,"                         \
    " charged_tokens = charged_tokens + excluded.charged_tokens, ms = ms + excluded.ms"

int usage_add(struct db *d, const struct usage_row *r, struct err *e)
{
    struct db_stmt *q =
        db_stmt(d, "insert into usage (" COLUMNS
                   ") values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)" ADD_UP);
    bind_all(q, r);
    int rc = db_run(q, e);
    if (rc || !r->key)
        return rc;
    /* to the minute: not every second of a busy key needs a write */
    q = db_stmt(d, "update keys set last_used = ?2 where id = ?1 and last_used + 60 <= ?2");
    db_bind_int(q, 1, r->key);
    db_bind_int(q, 2, r->at);
    return db_run(q, e);
}

int audit_add(struct db *d, const struct audit_row *r, struct err *e)
{
    struct db_stmt *q = db_stmt(d, "insert into audit (at, key, name, address, action, status)"
                                   " values (?1, ?2, ?3, ?4, ?5, ?6)");
    db_bind_int(q, 1, r->at);
    db_bind_int(q, 2, r->key);
    db_bind_text(q, 3, r->name);
    db_bind_text(q, 4, r->address);
    db_bind_text(q, 5, r->action);
    db_bind_int(q, 6, r->status);
    return db_run(q, e);
}

static int sum(struct db *d, const struct usage_query *u, usage_fn *fn, void *arg, struct err *e)
{
    struct db_stmt *q =
        db_stmt(d, "select iif(?3 & 1, at / ?4 * ?4, 0) as t, iif(?3 & 2, key, 0) as k,"
                   " iif(?3 & 4, u.tenant, '') as n, iif(?3 & 8, model, '') as m,"
                   " iif(?3 & 16, tier, '') as i, iif(?3 & 32, status, 0) as s, sum(requests),"
                   " sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens),"
                   " sum(charged_tokens), sum(ms),"
                   " iif(?3 & 2, coalesce(max(keys.name), ''), '')"
                   " from usage u left join keys on keys.id = u.key"
                   " where at >= ?1 and at < ?2 and (?5 is null or u.tenant = ?5)"
                   " group by t, k, n, m, i, s order by t, k, n, m, i, s limit ?6");
    int64_t n = 0;
    int rc;
    db_bind_int(q, 1, u->from);
    db_bind_int(q, 2, u->to);
    db_bind_int(q, 3, u->by);
    db_bind_int(q, 4, u->step_s > 0 ? u->step_s : 1);
    db_bind_text(q, 5, u->tenant);
    db_bind_int(q, 6, USAGE_MAX_ROWS + 1);
    while ((rc = db_step(q, e)) == 1) {
        if (++n > USAGE_MAX_ROWS)
            return err_set(e, ERR_LIMIT,
                           "the answer has more than %d rows: ask for less time or fewer groups",
                           USAGE_MAX_ROWS);
        struct usage_row r = {
            .at = db_int(q, 0),
            .key = db_int(q, 1),
            .tenant = db_text(q, 2),
            .model = db_text(q, 3),
            .tier = db_text(q, 4),
            .status = (int)db_int(q, 5),
            .requests = db_int(q, 6),
            .prompt_tokens = db_int(q, 7),
            .cached_tokens = db_int(q, 8),
            .completion_tokens = db_int(q, 9),
            .charged_tokens = db_int(q, 10),
            .ms = db_int(q, 11),
        };
        fn(arg, &r, db_text(q, 12));
    }
    return rc;
}

int usage_sum(struct db *d, const struct usage_query *u, usage_fn *fn, void *arg, struct err *e)
{
    int rc = db_begin(d, DB_READ, e);
    return rc ? rc : db_end(d, sum(d, u, fn, arg, e), e);
}

static int list(struct db *d, int64_t from, int64_t to, int64_t limit, audit_fn *fn, void *arg,
                struct err *e)
{
    struct db_stmt *q = db_stmt(d, "select at, key, name, address, action, status from audit"
                                   " where at >= ?1 and at < ?2 order by id desc limit ?3");
    int rc;
    db_bind_int(q, 1, from);
    db_bind_int(q, 2, to);
    db_bind_int(q, 3, limit);
    while ((rc = db_step(q, e)) == 1) {
        struct audit_row r = {
            .at = db_int(q, 0),
            .key = db_int(q, 1),
            .name = db_text(q, 2),
            .address = db_text(q, 3),
            .action = db_text(q, 4),
            .status = (int)db_int(q, 5),
        };
        fn(arg, &r);
    }
    return rc;
}

int audit_list(struct db *d, int64_t from, int64_t to, int64_t limit, audit_fn *fn, void *arg,
               struct err *e)
{
    int rc = db_begin(d, DB_READ, e);
    return rc ? rc : db_end(d, list(d, from, to, limit, fn, arg, e), e);
}

static int compact(struct db *d, int64_t before, struct err *e)
{
    struct db_stmt *q = db_stmt(
        d, "insert into usage (" COLUMNS ") select at / ?2 * ?2, key, tenant, model, tier, status,"
           " sum(requests), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens),"
           " sum(charged_tokens), sum(ms) from usage where at < ?1 and at % ?2 != 0 group "
           "by 1, 2, 3, 4, 5, 6" ADD_UP);
    db_bind_int(q, 1, before);
    db_bind_int(q, 2, HOUR_S);
    int rc = db_run(q, e);
    if (rc)
        return rc;
    q = db_stmt(d, "delete from usage where at < ?1 and at % ?2 != 0");
    db_bind_int(q, 1, before);
    db_bind_int(q, 2, HOUR_S);
    return db_run(q, e);
}

int usage_compact(struct db *d, int64_t before, struct err *e)
{
    int rc = db_begin(d, DB_WRITE, e);
    return rc ? rc : db_end(d, compact(d, before / HOUR_S * HOUR_S, e), e);
}
