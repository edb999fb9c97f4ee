/* usage_http.c - /v1/usage and /v1/audit: what the books say, read on the ledger's thread. */
#define _GNU_SOURCE /* strptime, timegm */
#include <stdlib.h>
#include <time.h>

#include "base/mem.h"
#include "server/books.h"
#include "store/ledger.h"

enum { DAY_S = 86400, HOUR_S = 3600, DEFAULT_DAYS = 30, AUDIT_ROWS = 100, AUDIT_MAX_ROWS = 1000 };

/* One question; lives until it is answered, also when its client has gone. */
struct enquiry {
    struct server *server;
    struct exchange *x; /* NULL: the client has gone */
    struct usage_query usage;
    char *tenant;       /* of usage, NULL: all */
    int64_t audit_rows; /* > 0: about admins, else about usage */
    int rc;
    struct err err;
    struct buf body;
    struct jw w;
};

static const struct {
    const char *name;
    unsigned bit;
    int64_t step_s;
} groups[] = {
    {"day", USAGE_BY_TIME, DAY_S},  {"hour", USAGE_BY_TIME, HOUR_S}, {"key", USAGE_BY_KEY, 0},
    {"tenant", USAGE_BY_TENANT, 0}, {"model", USAGE_BY_MODEL, 0},    {"tier", USAGE_BY_TIER, 0},
    {"status", USAGE_BY_STATUS, 0},
};

/* ---- the question ---- */

/* "2026-11-22" is 0 o'clock UTC of that day; a number is Unix seconds. */
static int read_time(struct exchange *x, const char *name, int64_t none, int64_t *out,
                     struct err *e)
{
    struct str text = http_query(x->http, name);
    struct tm day = {0};
    *out = none;
    if (!text.p || str_to_i64(text, out))
        return 0;
    const char *end = strptime(text.p, "%Y-%m-%d", &day);
    if (!end || *end)
        return err_param(e, ERR_INVALID, name,
                         "'%s' must be a day as 2026-11-22 or a time in Unix seconds, got %.40s",
                         name, text.p);
    *out = (int64_t)timegm(&day);
    return 0;
}

static int read_groups(struct exchange *x, struct usage_query *q, struct err *e)
{
    struct str text = http_query(x->http, "group_by");
    q->by = 0;
    for (const char *p = text.p ? text.p : ""; *p; p += *p == ',') {
        struct str one = {p, strcspn(p, ",")};
        size_t i = 0;
        while (i < ARRAY_LEN(groups) && !str_eqs(one, groups[i].name))
            i++;
        if (i == ARRAY_LEN(groups))
            return err_param(e, ERR_INVALID, "group_by",
                             "'group_by' takes day, hour, key, tenant, model, tier and status, "
                             "separated by commas, got %.40s",
                             p);
        q->by |= groups[i].bit;
        if (groups[i].step_s)
            q->step_s = groups[i].step_s;
        p += one.n;
    }
    return 0;
}

static int read_usage(struct exchange *x, struct enquiry *q, struct err *e)
{
    struct str tenant = http_query(x->http, "tenant");
    const struct key *k = x->key ? &x->key->key : NULL;
    if (k && k->role != ROLE_ADMIN) {
        if (tenant.p && !str_eqs(tenant, k->tenant))
            return err_param(e, ERR_DENIED, "tenant", "this API key sees its own tenant only");
        q->tenant = xstrdup(k->tenant);
    } else if (tenant.p) {
        q->tenant = xstrdup(tenant.p);
    }
    q->usage.tenant = q->tenant;
    return read_groups(x, &q->usage, e);
}

static int read_audit(struct exchange *x, struct enquiry *q, struct err *e)
{
    struct str limit = http_query(x->http, "limit");
    q->audit_rows = AUDIT_ROWS;
    if (limit.p &&
        (!str_to_i64(limit, &q->audit_rows) || q->audit_rows < 1 || q->audit_rows > AUDIT_MAX_ROWS))
        return err_param(e, ERR_INVALID, "limit", "'limit' must be a number from 1 to %d",
                         AUDIT_MAX_ROWS);
    return 0;
}

/* ---- the answer, on the ledger's thread ---- */

static void write_sum(void *arg, const struct usage_row *r, const char *key_name)
{
    struct enquiry *q = arg;
    unsigned by = q->usage.by;
    struct jw *w = &q->w;
    jw_obj(w);
    if (by & USAGE_BY_TIME)
        jw_kint(w, "start", r->at);
    if (by & USAGE_BY_KEY) {
        jw_kint(w, "key", r->key);
        jw_kstr(w, "key_name", key_name);
    }
    if (by & USAGE_BY_TENANT)
        jw_kstr(w, "tenant", r->tenant);
    if (by & USAGE_BY_MODEL)
        jw_kstr(w, "model", r->model);
    if (by & USAGE_BY_TIER)
        jw_kstr(w, "tier", r->tier);
    if (by & USAGE_BY_STATUS)
        jw_kint(w, "status", r->status);
    jw_kint(w, "requests", r->requests);
    jw_kint(w, "prompt_tokens", r->prompt_tokens);
    jw_kint(w, "cached_tokens", r->cached_tokens);
    jw_kint(w, "completion_tokens", r->completion_tokens);
    jw_kint(w, "charged_tokens", r->charged_tokens);
    jw_kint(w, "duration_ms", r->ms);
    jw_obj_end(w);
}

static void write_action(void *arg, const struct audit_row *r)
{
    struct jw *w = &((struct enquiry *)arg)->w;
    jw_obj(w);
    jw_kint(w, "time", r->at);
    jw_kint(w, "key", r->key);
    jw_kstr(w, "key_name", r->name);
    jw_kstr(w, "address", r->address);
    jw_kstr(w, "action", r->action);
    jw_kint(w, "status", r->status);
    jw_obj_end(w);
}

static void answer_enquiry(void *arg)
{
    struct enquiry *q = arg;
    struct exchange *x = q->x;
    if (x) {
        x->enquiry = NULL;
        if (q->rc)
            answer_err(x, &q->err);
        else
            answer_json(x, 200, &q->body);
    }
    buf_release(&q->body);
    free(q->tenant);
    free(q);
}

static void look_up(struct db *d, void *arg)
{
    struct enquiry *q = arg;
    const struct usage_query *u = &q->usage;
    jw_init(&q->w, &q->body);
    jw_obj(&q->w);
    jw_kstr(&q->w, "object", "list");
    jw_kint(&q->w, "from", u->from);
    jw_kint(&q->w, "to", u->to);
    jw_key(&q->w, "data");
    jw_arr(&q->w);
    if (q->audit_rows)
        q->rc = audit_list(d, u->from, u->to, q->audit_rows, write_action, q, &q->err);
    else
        q->rc = usage_sum(d, u, write_sum, q, &q->err);
    jw_arr_end(&q->w);
    jw_obj_end(&q->w);
    jw_done(&q->w);
    http_loop_post(q->server->loop, answer_enquiry, q);
}

/* ---- handlers ---- */

static void enquire(struct exchange *x,
                    int (*read)(struct exchange *, struct enquiry *, struct err *))
{
    struct enquiry *q = xcalloc(1, sizeof *q);
    int64_t now = clock_unix_s();
    *q = (struct enquiry){.server = x->server, .x = x};
    int rc = read_time(x, "from", now - DEFAULT_DAYS * DAY_S, &q->usage.from, &q->err);
    if (!rc)
        rc = read_time(x, "to", now + 1, &q->usage.to, &q->err);
    if (!rc)
        rc = read(x, q, &q->err);
    if (!rc && !x->server->ledger)
        rc = err_set(&q->err, ERR_UNSUPPORTED, "this server keeps no books");
    if (rc) {
        q->rc = rc;
        answer_enquiry(q);
        return;
    }
    x->enquiry = q;
    ledger_run(x->server->ledger, look_up, q);
}

void handle_usage(struct exchange *x)
{
    enquire(x, read_usage);
}

void handle_audit(struct exchange *x)
{
    enquire(x, read_audit);
}

void enquiry_client_gone(struct enquiry *q)
{
    q->x = NULL;
}
