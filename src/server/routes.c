/* routes.c - from a request to its handler, and the answers that every handler shares. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "server/adapter_http.h"
#include "server/job.h"
#include "server/persona.h"
#include "server/proxy.h"

/* Every row says who may use it: without a role it does not compile. */
#define ROUTE(method_, path_, role_, handle_)                                                      \
    {                                                                                              \
        .method = method_, .path = path_, .role = ROLE_##role_, .handle = handle_                  \
    }

struct route {
    const char *method;
    const char *path; /* one '*' stands for one or more characters; the first that fits counts */
    enum role role;
    route_fn *handle;
};

static const struct route routes[] = {
    ROUTE("POST", "/v1/chat/completions", USER, handle_chat),
    ROUTE("POST", "/v1/completions", USER, handle_completion),
    ROUTE("GET", "/v1/models", USER, handle_models),
    ROUTE("GET", "/models", USER, handle_models),
    ROUTE("POST", "/v1/models/load", ADMIN, handle_model_load),
    ROUTE("POST", "/models/load", ADMIN, handle_model_load),
    ROUTE("POST", "/v1/models/unload", ADMIN, handle_model_unload),
    ROUTE("POST", "/models/unload", ADMIN, handle_model_unload),
    ROUTE("GET", "/v1/models/*", USER, handle_model),
    ROUTE("GET", "/v1/adapters", USER, handle_adapters),
    ROUTE("POST", "/v1/adapters", ADMIN, handle_adapter_add),
    ROUTE("GET", "/v1/adapters/aliases", USER, handle_adapter_aliases),
    ROUTE("PUT", "/v1/adapters/aliases/*", ADMIN, handle_adapter_alias_put),
    ROUTE("DELETE", "/v1/adapters/aliases/*", ADMIN, handle_adapter_alias_delete),
    ROUTE("GET", "/v1/adapters/*/versions", USER, handle_adapter_versions),
    ROUTE("POST", "/v1/adapters/*/load", ADMIN, handle_adapter_load),
    ROUTE("POST", "/v1/adapters/*/unload", ADMIN, handle_adapter_unload),
    ROUTE("POST", "/v1/adapters/*/pin", ADMIN, handle_adapter_pin),
    ROUTE("POST", "/v1/adapters/*/unpin", ADMIN, handle_adapter_unpin),
    ROUTE("POST", "/v1/adapters/*/rollback", ADMIN, handle_adapter_rollback),
    ROUTE("GET", "/v1/adapters/*", USER, handle_adapter),
    ROUTE("PATCH", "/v1/adapters/*", ADMIN, handle_adapter_change),
    ROUTE("DELETE", "/v1/adapters/*", ADMIN, handle_adapter_delete),
    ROUTE("GET", "/v1/users/*/adapter", ADMIN, handle_user_adapter),
    ROUTE("PUT", "/v1/users/*/adapter", ADMIN, handle_user_adapter_put),
    ROUTE("DELETE", "/v1/users/*/adapter", ADMIN, handle_user_adapter_delete),
    ROUTE("POST", "/v1/load_lora_adapter", ADMIN, handle_vllm_load),
    ROUTE("POST", "/v1/unload_lora_adapter", ADMIN, handle_vllm_unload),
    ROUTE("POST", "/load_lora_adapter", ADMIN, handle_sglang_load),
    ROUTE("POST", "/unload_lora_adapter", ADMIN, handle_sglang_unload),
    ROUTE("GET", "/lora-adapters", USER, handle_lora_adapters),
    ROUTE("POST", "/lora-adapters", ADMIN, handle_lora_adapters_post),
    ROUTE("POST", "/v1/personas", ADMIN, handle_persona_put),
    ROUTE("GET", "/v1/personas", USER, handle_personas),
    ROUTE("DELETE", "/v1/personas", ADMIN, handle_personas_delete),
    ROUTE("GET", "/v1/personas/*", USER, handle_persona),
    ROUTE("DELETE", "/v1/personas/*", ADMIN, handle_persona_delete),
    ROUTE("GET", "/v1/cache", ADMIN, handle_cache),
    ROUTE("DELETE", "/v1/cache", ADMIN, handle_cache_delete),
    ROUTE("POST", "/reset_prefix_cache", ADMIN, handle_reset_prefix_cache),
    ROUTE("POST", "/v1/route", USER, handle_route),
    ROUTE("POST", "/v1/reload", ADMIN, handle_reload),
    ROUTE("GET", "/v1/backends", ADMIN, handle_backends),
    ROUTE("GET", "/v1/usage", USER, handle_usage),
    ROUTE("GET", "/v1/audit", ADMIN, handle_audit),
    ROUTE("POST", "/tokenize", USER, handle_tokenize),
    ROUTE("POST", "/detokenize", USER, handle_detokenize),
    ROUTE("GET", "/health", PUBLIC, handle_health),
    ROUTE("GET", "/v1/health", PUBLIC, handle_health),
    ROUTE("GET", "/ping", PUBLIC, handle_ping),
    ROUTE("POST", "/ping", PUBLIC, handle_ping),
    ROUTE("GET", "/version", USER, handle_version),
    ROUTE("GET", "/metrics", METRICS, handle_metrics),
};

static bool path_matches(const struct route *route, struct str path, struct str *rest)
{
    const char *star = strchr(route->path, '*');
    if (!star)
        return str_eqs(path, route->path);
    size_t before = (size_t)(star - route->path), after = strlen(star + 1);
    if (path.n <= before + after || memcmp(path.p, route->path, before) != 0 ||
        memcmp(path.p + path.n - after, star + 1, after) != 0)
        return false;
    *rest = (struct str){path.p + before, path.n - before - after};
    return true;
}

static bool method_matches(const struct route *route, struct str method)
{
    return str_eqs(method, route->method) ||
           (str_eqs(method, "HEAD") && strcmp(route->method, "GET") == 0);
}

/* ---- answers ---- */

void answer(struct exchange *x, int status, const char *type, const void *body, size_t n)
{
    x->status = status;
    http_reply(x->http, status, type, body, n);
}

void answer_json(struct exchange *x, int status, const struct buf *body)
{
    answer(x, status, "application/json", buf_str(body), body->len);
}

void answer_error(struct exchange *x, int status, const char *code, const struct err *e)
{
    struct buf body = {0};
    openai_write_error(&body, status, code, e);
    if (status == 503 || (status == 429 && !x->says_when))
        http_add_header(x->http, "Retry-After", "1");
    answer_json(x, status, &body);
    buf_release(&body);
}

void answer_too_many(struct exchange *x, const char *code, int64_t retry_ms, const struct err *e)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)(retry_ms + 999) / 1000);
    http_add_header(x->http, "Retry-After", text);
    snprintf(text, sizeof text, "%lld", (long long)retry_ms);
    http_add_header(x->http, "Retry-After-Ms", text);
    x->says_when = true;
    answer_error(x, 429, code, e);
}

void answer_err(struct exchange *x, const struct err *e)
{
    answer_error(x, openai_status(e->code), NULL, e);
}

static void model_is_here(struct waiter *w, const struct err *failed)
{
    struct exchange *x = (struct exchange *)((char *)w - offsetof(struct exchange, waiter));
    if (failed)
        answer_err(x, failed);
    else
        x->handle(x);
}

struct served *served_or_wait(struct exchange *x, const char *name, const struct keep_alive *keep)
{
    const char *code = NULL;
    struct err e = {0};
    char *base, *adapter;
    if (x->model) /* the handler runs for the second time */
        return x->model;
    if (name && !served_find(x->server, name) &&
        adapters_find_model(x->server->adapters, name, &base, &adapter))
        name = base; /* it has the same vocabulary */
    const struct served *known = served_find(x->server, name);
    if (known && !gate_allows_model(x, known->name)) {
        err_param(&e, ERR_DENIED, "model", "this API key may not use the model `%.128s`",
                  known->name);
        answer_error(x, 403, "not_allowed", &e);
        return NULL;
    }
    x->waiter.wake = model_is_here;
    int status = served_acquire(x->server, name, keep, &x->waiter, &x->model, &code, &e);
    if (status && status != SERVED_WAIT)
        answer_error(x, status, code, &e);
    return status ? NULL : x->model;
}

/* ---- dispatch ---- */

/* The client's id if it is a harmless token, else one of ours. */
static const char *request_id(struct http_req *r)
{
    struct str given = http_header(r, "x-request-id");
    bool fine = given.p && given.n > 0 && given.n <= 128;
    for (size_t i = 0; fine && i < given.n; i++)
        fine = given.p[i] > ' ' && given.p[i] < 127;
    if (fine)
        return arena_strdup(&r->arena, given);
    uint64_t id[2];
    rng_secret(id, sizeof id);
    return arena_printf(&r->arena, "req_%016llx%016llx", (unsigned long long)id[0],
                        (unsigned long long)id[1]);
}

static void exchange_closed(struct http_req *r, bool complete)
{
    struct exchange *x = r->user;
    struct http_metrics *m = &x->server->metrics;
    if (!complete && x->arrived)
        m->client_gone++;
    if (x->status)
        metrics_count_request(m, x->method, x->route, x->status);
    log_debug("server", "%.*s %s %d %.1f ms%s", (int)r->method.n, r->method.p, x->route, x->status,
              (double)(clock_ns() - x->start_ns) / 1e6, complete ? "" : ", client gone");
    gate_close(x, complete);
    if (x->job)
        job_closed(x->job);
    if (x->persona)
        personas_client_gone(x->persona);
    if (x->enquiry)
        enquiry_client_gone(x->enquiry);
    if (x->change)
        adapter_call_gone(x->change);
    waiter_cancel(&x->waiter);
    served_put(x->model);
}

/* No route has this method and path: which methods does the path know? */
static void refuse(struct exchange *x)
{
    struct http_req *r = x->http;
    struct str rest;
    char allow[64] = "";
    size_t n = 0;
    for (size_t i = 0; i < ARRAY_LEN(routes); i++)
        if (path_matches(&routes[i], r->path, &rest))
            n += (size_t)snprintf(allow + n, sizeof allow - n, "%s, %s", routes[i].method,
                                  strcmp(routes[i].method, "GET") == 0 ? "HEAD, " : "");
    struct err e = {0};
    if (n || str_eqs(r->path, "*")) {
        snprintf(allow + n, sizeof allow - n, "OPTIONS");
        http_add_header(r, "Allow", allow);
        if (str_eqs(r->method, "OPTIONS")) {
            answer(x, 204, NULL, NULL, 0);
            return;
        }
        err_set(&e, ERR_INVALID, "%.*s is not allowed here, try %s", (int)r->method.n, r->method.p,
                allow);
        answer_error(x, 405, "method_not_allowed", &e);
        return;
    }
    err_set(&e, ERR_NOTFOUND, "there is nothing at %.*s", (int)(r->path.n < 200 ? r->path.n : 200),
            r->path.p);
    answer_error(x, 404, "not_found", &e);
}

/* The request as an exchange, with its route; answered already if it may not go on. */
static struct exchange *begin(struct http_req *r)
{
    if (r->user)
        return r->user;
    struct exchange *x = arena_alloc(&r->arena, sizeof *x);
    *x = (struct exchange){
        .server = r->arg, .http = r, .method = "-", .route = "-", .start_ns = clock_ns()};
    r->user = x;
    r->on_closed = exchange_closed;
    http_add_header(r, "x-request-id", request_id(r));
    x->need = ROLE_PUBLIC; /* where there is nothing, there is nothing to protect */
    for (size_t i = 0; i < ARRAY_LEN(routes) && !x->handle; i++) {
        struct str rest = {0};
        if (!method_matches(&routes[i], r->method) || !path_matches(&routes[i], r->path, &rest))
            continue;
        x->method = routes[i].method;
        x->route = routes[i].path;
        x->handle = routes[i].handle;
        x->need = routes[i].role;
        if (rest.p)
            x->path_rest = http_unescape(&r->arena, rest, false).p;
    }
    if (gate_open(x) && !x->handle)
        refuse(x);
    return x;
}

/* Who may not send a body is told before the body is read. */
void route_head(struct http_req *r)
{
    if (r->content_length != 0)
        begin(r);
}

void route_request(struct http_req *r)
{
    struct exchange *x = begin(r);
    if (x->status)
        return;
    x->arrived = true;
    gate_pass(x);
}

void server_routes(struct buf *out)
{
    struct jw w;
    jw_init(&w, out);
    jw_arr(&w);
    for (size_t i = 0; i < ARRAY_LEN(routes); i++) {
        jw_obj(&w);
        jw_kstr(&w, "method", routes[i].method);
        jw_kstr(&w, "path", routes[i].path);
        jw_kstr(&w, "role", routes[i].role == ROLE_PUBLIC ? "public" : role_names[routes[i].role]);
        jw_obj_end(&w);
    }
    jw_arr_end(&w);
    jw_done(&w);
}
