#include "server/bill.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "store/ledger.h"

enum {
    STATUS_CLIENT_LEFT = 499,
    STATUS_LIMITED = 429,
    SWEEP_EVERY_MS = 60000,
    DAY_S = 86400,
};

static struct limit_time now(void)
{
    return (struct limit_time){clock_ms(), clock_unix_s()};
}

/* ---- headers ---- */

static void add_room(struct http_req *r, const char *what, const struct limit_room *room)
{
    struct buf value = {0};
    if (!room->limit)
        return;
    buf_addf(&value, "%" PRId64, room->limit);
    http_add_header(r, arena_printf(&r->arena, "x-ratelimit-limit-%s", what), value.data);
    buf_clear(&value);
    buf_addf(&value, "%" PRId64, room->remaining);
    http_add_header(r, arena_printf(&r->arena, "x-ratelimit-remaining-%s", what), value.data);
    buf_clear(&value);
    limits_write_duration(&value, room->reset_ms);
    http_add_header(r, arena_printf(&r->arena, "x-ratelimit-reset-%s", what), value.data);
    buf_release(&value);
}

void bill_tell_room(struct bill *b)
{
    if (!b->x)
        return;
    add_room(b->x->http, b->ask.tokens ? "tokens" : "requests",
             b->ask.tokens ? &b->ask.tokens_room : &b->ask.requests);
}

/* ---- the beginning ---- */

static void add_subjects(struct bill *b)
{
    const struct server_opts *o = &b->server->opts;
    char name[48];
    if (b->key) {
        snprintf(name, sizeof name, "%" PRId64, b->key->key.id);
        limits_add_subject(&b->hold, "key", name, &b->key->key.quota);
        limits_add_subject(&b->hold, "tenant", b->key->key.tenant, &o->tenant_quota);
    }
    auth_address(b->x->http->peer, name);
    limits_add_subject(&b->hold, "address", name, &o->address_quota);
}

/* The limits have answered whether the request may come in. */
static void let_in(struct limit_ask *ask)
{
    struct bill *b = (struct bill *)((char *)ask - offsetof(struct bill, ask));
    struct exchange *x = b->x;
    bill_tell_room(b);
    if (!ask->refused) {
        x->handle(x);
        return;
    }
    struct err e = {0};
    const char *code = limits_explain(ask, &e);
    b->server->metrics.limited++;
    add_room(x->http, "tokens", &ask->tokens_room);
    answer_too_many(x, code, ask->retry_ms, &e);
}

void bill_open(struct exchange *x)
{
    struct bill *b = xcalloc(1, sizeof *b);
    b->server = x->server;
    b->counts = (struct bill_counts){.model = "", .tier = ""};
    b->x = x;
    b->key = x->key;
    auth_key_ref(b->key);
    b->at_unix_s = clock_unix_s();
    b->start_ns = x->start_ns;
    x->bill = b;
    add_subjects(b);
    b->ask = (struct limit_ask){.hold = &b->hold, .at = now(), .done = let_in};
    limits_take(x->server->limits, &b->ask);
}

/* ---- the end ---- */

void bill_exchange_closed(struct bill *b, int status, bool complete, bool has_job)
{
    b->x = NULL;
    b->status = complete && status ? status : STATUS_CLIENT_LEFT;
    limits_cancel(b->server->limits, &b->ask);
    if (!has_job)
        bill_close(b, &b->counts);
}

void bill_note(struct bill *b, const struct bill_counts *c)
{
    if (b)
        b->counts = *c;
}

void bill_close(struct bill *b, const struct bill_counts *c)
{
    if (!b)
        return;
    struct server *s = b->server;
    int64_t charged = b->admitted ? c->prompt_tokens + c->completion_tokens : 0;
    limits_cancel(s->limits, &b->ask);
    if (b->ask.refused) /* it never ran */
        limits_drop(s->limits, &b->hold, now());
    else
        limits_settle(s->limits, &b->hold, charged, now());
    struct usage_row row = {
        .at = b->at_unix_s,
        .key = b->key ? b->key->key.id : 0,
        .tenant = b->key ? b->key->key.tenant : "",
        .model = c->model,
        .tier = c->tier,
        .status = b->status,
        .requests = 1,
        .prompt_tokens = c->prompt_tokens,
        .cached_tokens = c->cached_tokens,
        .completion_tokens = c->completion_tokens,
        .charged_tokens = charged,
        .ms = (clock_ns() - b->start_ns) / 1000000,
    };
    if (s->ledger)
        ledger_usage(s->ledger, &row);
    auth_key_unref(b->key);
    free(b);
}

void bills_tick(struct server *s)
{
    if (clock_ms() - s->swept_ms < SWEEP_EVERY_MS)
        return;
    s->swept_ms = clock_ms();
    limits_sweep(s->limits, now());
}

/* ---- after a restart ---- */

struct restoring {
    struct server *server;
    struct limit_time at;
    bool of_the_minute; /* rows are seconds of the last minute; else they are sums of the day */
};

static void restore_row(void *arg, const struct usage_row *r, const char *key_name)
{
    struct restoring *t = arg;
    char name[LIMIT_NAME_BYTES];
    int64_t age_ms = t->of_the_minute ? (t->at.unix_s - r->at) * 1000 : LIMIT_WINDOW_MS;
    int64_t requests = r->status == STATUS_LIMITED ? 0 : r->requests;
    if (!r->key)
        return;
    snprintf(name, sizeof name, "key:%" PRId64, r->key);
    limits_restore(t->server->limits, name, age_ms, !t->of_the_minute, requests, r->charged_tokens,
                   t->at);
    snprintf(name, sizeof name, "tenant:%s", r->tenant);
    limits_restore(t->server->limits, name, age_ms, !t->of_the_minute, requests, r->charged_tokens,
                   t->at);
}

int bills_restore(struct server *s, struct err *e)
{
    struct restoring t = {s, now(), true};
    struct usage_query q = {
        .from = t.at.unix_s - LIMIT_WINDOW_MS / 1000,
        .to = INT64_MAX,
        .by = USAGE_BY_TIME | USAGE_BY_KEY | USAGE_BY_TENANT | USAGE_BY_STATUS,
        .step_s = 1,
    };
    int rc = usage_sum(s->opts.db, &q, restore_row, &t, e);
    if (rc)
        return rc;
    t.of_the_minute = false;
    q.from = t.at.unix_s / DAY_S * DAY_S;
    q.by = USAGE_BY_KEY | USAGE_BY_TENANT;
    return usage_sum(s->opts.db, &q, restore_row, &t, e);
}
