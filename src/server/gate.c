/* gate.c - what stands before every route: the page, the key, the limits. */
#include "base/clock.h"
#include "base/mem.h"
#include "gateway/origin.h"
#include "server/bill.h"
#include "store/ledger.h"

/* Where clients put a key, in the order of preference: OpenAI, Anthropic, Azure. */
static const char *const key_headers[] = {"authorization", "x-api-key", "api-key"};

/* ---- pages of other origins ---- */

static void allow_page(struct exchange *x, struct str origin)
{
    http_add_header(x->http, "Access-Control-Allow-Origin", arena_strdup(&x->http->arena, origin));
    http_add_header(x->http, "Vary", "Origin");
    http_add_header(x->http, "Access-Control-Expose-Headers",
                    "x-request-id, retry-after, x-ratelimit-limit-requests, "
                    "x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, "
                    "x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, "
                    "x-ratelimit-reset-tokens");
}

/* The browser asks before the page does; answered whatever the path, as it says nothing. */
static void answer_preflight(struct exchange *x)
{
    struct http_req *r = x->http;
    struct str headers = http_header(r, "access-control-request-headers");
    http_add_header(r, "Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE");
    http_add_header(r, "Access-Control-Allow-Headers",
                    headers.n && headers.n < 1024 ? arena_strdup(&r->arena, headers)
                                                  : "authorization, content-type");
    http_add_header(r, "Access-Control-Max-Age", "600");
    answer(x, 204, NULL, NULL, 0);
}

static bool page_may(struct exchange *x)
{
    const struct server_opts *o = &x->server->opts;
    struct http_req *r = x->http;
    struct str origin = http_header(r, "origin"), host = http_header(r, "host");
    struct err e = {0};
    bool open = x->need != ROLE_PUBLIC && !auth_closed(x->server->auth);
    if (open && !o->open_to_all && !origin_host_is_local(host)) {
        err_set(&e, ERR_DENIED,
                "the service has no API keys, so it answers on local names only, not as %.*s",
                (int)(host.n < 100 ? host.n : 100), host.p);
        answer_error(x, 403, "host_not_allowed", &e);
        return false;
    }
    if (!origin.p)
        return true;
    if (!origin_allowed(o->allow_origin, origin, true)) {
        err_set(&e, ERR_DENIED, "pages of %.*s may not use this service: see --allow-origin",
                (int)(origin.n < 100 ? origin.n : 100), origin.p);
        answer_error(x, 403, "origin_not_allowed", &e);
        return false;
    }
    allow_page(x, origin);
    if (!str_eqs(r->method, "OPTIONS") || !http_header(r, "access-control-request-method").p)
        return true;
    answer_preflight(x);
    return false;
}

/* ---- keys ---- */

/* The key as the client spells it, p NULL if there is none. */
static struct str given_key(struct http_req *r)
{
    struct str bearer = http_header(r, key_headers[0]);
    if (bearer.n > 7 && str_case_eq((struct str){bearer.p, 7}, "Bearer ")) {
        struct str key = {bearer.p + 7, bearer.n - 7};
        while (key.n && key.p[0] == ' ')
            key = (struct str){key.p + 1, key.n - 1};
        return key;
    }
    for (size_t i = 1; i < ARRAY_LEN(key_headers); i++) {
        struct str key = http_header(r, key_headers[i]);
        if (key.p)
            return key;
    }
    return (struct str){NULL, 0};
}

static bool key_opens(struct exchange *x)
{
    struct http_req *r = x->http;
    struct err e = {0};
    int retry_s = 0;
    int status = auth_check(x->server->auth, x->need, given_key(r), r->peer, clock_unix_s(),
                            &x->key, &retry_s, &e);
    for (size_t i = 0; i < ARRAY_LEN(key_headers); i++)
        http_forget_header(r, key_headers[i]);
    if (!status)
        return true;
    if (status == 401)
        http_add_header(r, "WWW-Authenticate", "Bearer");
    if (status == 429)
        answer_too_many(x, "too_many_attempts", (int64_t)retry_s * 1000, &e);
    else
        answer_error(x, status, status == 401 ? "invalid_api_key" : "role_not_allowed", &e);
    return false;
}

bool gate_open(struct exchange *x)
{
    return page_may(x) && key_opens(x);
}

bool gate_allows_model(const struct exchange *x, const char *name)
{
    return !x->key || key_allows(x->key->key.models, name);
}

bool gate_allows_adapter(const struct exchange *x, const char *name)
{
    return !x->key || key_allows(x->key->key.adapters, name);
}

/* ---- limits and books ---- */

static bool reads_only(const struct exchange *x)
{
    return strcmp(x->method, "GET") == 0;
}

void gate_pass(struct exchange *x)
{
    if (x->need == ROLE_USER && !reads_only(x))
        bill_open(x);
    else
        x->handle(x);
}

/* What an admin did, or what somebody who is none tried. */
static void note_for_audit(struct exchange *x)
{
    struct http_req *r = x->http;
    struct audit_row row = {
        .at = clock_unix_s(),
        .key = x->key ? x->key->key.id : 0,
        .name = x->key ? x->key->key.name : "",
        .address = r->peer,
        .action = arena_printf(&r->arena, "%s %.*s", x->method,
                               (int)(r->path.n < 256 ? r->path.n : 256), r->path.p),
        .status = x->status,
    };
    ledger_audit(x->server->ledger, &row);
}

void gate_close(struct exchange *x, bool complete)
{
    if (x->need == ROLE_ADMIN && x->server->ledger && x->status && !reads_only(x) &&
        (x->key || x->status < 400))
        note_for_audit(x);
    if (x->bill)
        bill_exchange_closed(x->bill, x->status, complete, x->job != NULL);
    auth_key_unref(x->key);
    x->key = NULL;
}
