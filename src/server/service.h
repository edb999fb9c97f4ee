/* service.h - inside of the server: what its files share. Everything here belongs to the server's
 * thread unless it says otherwise.
 *
 *   http_req --user--> exchange --job--> job --choices--> choice <--user-- engine_event
 *
 * An exchange is one HTTP request and lives in its arena. A job is one generation; it outlives the
 * exchange when the client leaves, until the engine has sent the final event of every choice. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "api/openai.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/map.h"
#include "chat/tool_parse.h"
#include "gateway/auth.h"
#include "gateway/response_cache.h"
#include "http/loop.h"
#include "server/lora_table.h"
#include "server/served.h"
#include "server/server.h"
#include "server/watch.h"

struct adapter_call;
struct adapters;
struct bill;
struct enquiry;
struct exchange;
struct ledger;
struct limits;
struct job;
struct persona;
struct personas;
struct proxy;
struct backends;
struct job_route;
struct router;

/* What struct engine_request.user points to: the first member of whoever asked. */
struct engine_user {
    void (*take)(struct engine_user *user, const struct engine_event *ev);
};

/* ---- the server ---- */

struct server {
    struct server_opts opts;
    char *version;
    struct http_loop *loop;
    struct http_server *http; /* NULL once closed */
    int port;
    struct served_list served; /* the models */
    struct watch_list watches;
    struct http_metrics metrics;
    struct personas *personas;
    struct adapters *adapters;
    struct lora_table lora;
    struct auth *auth;
    struct limits *limits;
    struct ledger *ledger; /* NULL: nothing is kept */
    int64_t swept_ms;
    struct router *router;
    struct backends *backends;
    bool backends_closing, backends_closed;
    struct response_cache *cache; /* NULL: off */
    struct budget_share *cache_share;
    struct response_hash hash;
    unsigned ticks;
    uint64_t n_loads;        /* of models, ever */
    struct map noted;        /* unknown request fields that are in the log already */
    struct job *jobs;        /* all, newest first */
    struct http_timer *tick; /* runs while there are jobs, and during the end of the drain */
    bool draining;
    int64_t give_up_ms; /* http is closed: leave with jobs unfinished at this time, 0: not yet */

    pthread_mutex_t inbox_lock; /* guards the two below; engine threads append */
    struct engine_event *inbox, **inbox_tail;
};

/* Equal requests may mean something else from now on: models, adapters, personas, keys or rules
 * have changed. */
void server_changed(struct server *s);

/* ---- exchanges ---- */

typedef void route_fn(struct exchange *x);

struct exchange {
    struct server *server;
    struct http_req *http;
    struct job *job;             /* the generation it waits for, or NULL */
    struct persona *persona;     /* the persona whose computation it waits for, or NULL */
    struct served *model;        /* held to the end of the exchange, or NULL */
    struct waiter waiter;        /* for the model to be loaded, or unloaded */
    struct adapter_call *change; /* of adapters, that it waits for, or NULL */
    const char *method, *route;  /* of the route table, for metrics; "-" if there is none */
    route_fn *handle;            /* of the route table, NULL: there is no such route */
    enum role need;              /* of the route */
    struct bill *bill;           /* NULL: nothing is counted */
    struct enquiry *enquiry;     /* the question to the books that it waits for, or NULL */
    struct auth_key *key;        /* that opened the route, or NULL if none is needed */
    const char *path_rest;       /* what stands for the '*' of the route's path, decoded */
    int status;                  /* of the response, 0: none yet */
    bool arrived;                /* all of the request did, and the handler has it */
    bool says_when;              /* the response has a Retry-After */
    int64_t start_ns;
};

void route_head(struct http_req *r);    /* http_handler.on_head */
void route_request(struct http_req *r); /* http_handler.on_request */

/* gate.c: whether the request may reach its route. false: it was answered. */
bool gate_open(struct exchange *x);

/* The whole request is here: to its handler, if the limits let it. */
void gate_pass(struct exchange *x);

/* Whether its key may use a model, or an adapter; without a key everybody may. */
bool gate_allows_model(const struct exchange *x, const char *name);
bool gate_allows_adapter(const struct exchange *x, const char *name);

/* It is over: settles what it took, and tells the books. */
void gate_close(struct exchange *x, bool complete);

/* Answers. Each counts the status and hands over to http. */
void answer(struct exchange *x, int status, const char *type, const void *body, size_t n);
void answer_json(struct exchange *x, int status, const struct buf *body);
void answer_error(struct exchange *x, int status, const char *code, const struct err *e);
void answer_err(struct exchange *x, const struct err *e); /* the status follows from e->code */
/* 429, and when to try again. */
void answer_too_many(struct exchange *x, const char *code, int64_t retry_ms, const struct err *e);

/* The model a request names (NULL: the default), held to the end of the exchange. NULL: answered,
 * or it is being loaded and the handler is called again when it is here. */
struct served *served_or_wait(struct exchange *x, const char *name, const struct keep_alive *keep);

/* Logs each unknown field once for the life of the server. */
void note_unknown_fields(struct server *s, const struct chat_request *r);

/* ---- prompts: any thread ---- */

/* Renders and tokenizes; what the limits of the model say is checked by the caller. */
int prompt_from_messages(const struct served *m, const struct chat_request *r,
                         struct token_list *out, struct err *e);
int prompt_from_raw(const struct served *m, const struct chat_request *r,
                    const struct gen_prompt *p, struct token_list *out, struct err *e);

/* ---- handlers ---- */

route_fn handle_chat, handle_completion; /* generate.c */
route_fn handle_models, handle_model;    /* models.c */
route_fn handle_model_load, handle_model_unload;
route_fn handle_tokenize, handle_detokenize;                  /* tokenize.c */
route_fn handle_health, handle_ping, handle_version;          /* health.c */
route_fn handle_persona_put, handle_personas, handle_persona; /* persona_http.c */
route_fn handle_persona_delete, handle_personas_delete, handle_reset_prefix_cache;
route_fn handle_adapters, handle_adapter_add, handle_adapter; /* adapter_http.c */
route_fn handle_adapter_change, handle_adapter_delete, handle_adapter_versions;
route_fn handle_adapter_load, handle_adapter_unload, handle_adapter_pin, handle_adapter_unpin;
route_fn handle_adapter_rollback, handle_adapter_aliases;
route_fn handle_adapter_alias_put, handle_adapter_alias_delete;
route_fn handle_user_adapter, handle_user_adapter_put, handle_user_adapter_delete;
route_fn handle_vllm_load, handle_vllm_unload, handle_sglang_load; /* adapter_dialects.c */
route_fn handle_sglang_unload, handle_lora_adapters, handle_lora_adapters_post;
route_fn handle_metrics;             /* metrics.c */
route_fn handle_route;               /* router.c */
route_fn handle_reload;              /* config.c */
route_fn handle_usage, handle_audit; /* usage_http.c */
void enquiry_client_gone(struct enquiry *q);
route_fn handle_cache, handle_cache_delete; /* cache_http.c */
void write_cache_metrics(struct buf *b, const struct server *s);
