/* backend.h - one remote engine: what it is, how well it is, and what it has under way. No I/O:
 * backends.c asks and reports, times come from the caller. The server's thread.
 *
 *              failures in a row, or unreachable              cool-down over, probe answers
 *   HEALTHY ------------------------------------> EJECTED -----------------------> HALF_OPEN
 *      ^                                            ^                                |   |
 *      |                                            +----------- trial fails --------+   |
 *      +------------------------------- trial succeeds (slow start) ---------------------+
 *
 * An ejected backend gets nothing but probes, the next one after a cool-down that doubles with each
 * ejection in a row. When a probe succeeds, one request at a time is let through as a trial; after
 * a success the backend earns its weight over slow_start_ms. DRAINING: finishes what it has. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/upstream.h"
#include "base/buf.h"
#include "base/err.h"
#include "gateway/balance.h"

/* How it is probed. */
enum backend_kind {
    BACKEND_OPENAI,
    BACKEND_VLLM,
    BACKEND_OLLAMA,
    BACKEND_LLAMA_SERVER,
    BACKEND_ANTHROPIC,
};
extern const char *const backend_kinds[]; /* ends with NULL */

enum { BACKENDS_MAX = 256, BACKEND_MODELS_MAX = 256, BACKEND_ARGS_MAX = 256 };

/* A model that a backend serves: `name` for clients, `as` for the backend. */
struct backend_model {
    char *name, *as;
};

/* What the configuration says of one backend. */
struct backend_config {
    char *name, *url; /* url without a '/' at the end and without /v1 */
    enum backend_kind kind;
    enum upstream_api api; /* that requests are asked in */
    char *key;             /* NULL: none; from key, key_env or key_file */
    char *ca_file;
    struct backend_model *models; /* none: those that it names itself */
    size_t n_models;
    double weight;
    int max_requests; /* at once */
    int64_t connect_ms, first_byte_ms, idle_ms;
    int64_t probe_ms, probe_timeout_ms, scrape_ms; /* scrape_ms 0: never */
    int fail_after;                                /* failures in a row that eject */
    int64_t eject_ms, eject_max_ms, slow_start_ms;

    /* managed: a program that we start and stop; argv NULL: somebody else does */
    char **argv; /* ends with NULL */
    int64_t start_ms, stop_ms, idle_stop_ms;

    /* vllm: adapters that we load there */
    char *adapter_root; /* what our --adapter-root is called there, NULL: the same */
    int max_adapters;
};

/* What it says of all. */
struct balance_config {
    enum balance_kind policy;
    double load_factor;
    int retries;          /* other backends to try before the first byte */
    double retry_share;   /* retries may be this share of the requests */
    int64_t hedge_ms;     /* a second backend is asked after this time, 0: never */
    int64_t hedge_tokens; /* only for requests that ask for at most so many tokens */
};

struct gateway_config {
    struct backend_config *backends;
    size_t n;
    struct balance_config balance;
};

/* Reads `backends` and `balance` of a configuration; other keys are somebody else's. ERR_INVALID
 * names the place ("backends[1].url") and the fix. On error *out is empty. */
int gateway_config_read(struct gateway_config *out, const json_t *config, struct err *e);
void gateway_config_release(struct gateway_config *c);
bool backend_config_same(const struct backend_config *a, const struct backend_config *b);
void backend_config_release(struct backend_config *c);

/* ---- state ---- */

enum backend_state {
    BACKEND_STARTING, /* managed, and not healthy yet */
    BACKEND_STOPPED,  /* managed, stopped because nobody needs it; a request starts it */
    BACKEND_HEALTHY,
    BACKEND_EJECTED,
    BACKEND_HALF_OPEN,
    BACKEND_DRAINING,
};
extern const char *const backend_states[];

/* How a request ended, as far as the backend is to blame. */
enum backend_outcome {
    OUTCOME_OK,
    OUTCOME_FAILED,      /* 5xx, a time limit, half an answer, garbage */
    OUTCOME_UNREACHABLE, /* no connection: ejects at once */
    OUTCOME_NEUTRAL,     /* the client left, too many requests: says nothing */
    OUTCOMES,
};
extern const char *const backend_outcomes[];

struct adapter_copy;
struct backend_process;
struct backend_scrape;

struct backend {
    struct backend_config config;
    uint64_t id;
    int refs; /* of the list and of every request under way */
    enum backend_state state;
    int failures, ejections;          /* in a row */
    int failed_probes;                /* in a row */
    int64_t eject_until_ms, since_ms; /* of the ejection; of the state */
    char why[160];                    /* of the last failure */
    int requests, trials;             /* under way; trials among them */
    int64_t tokens;                   /* of them, by estimate */
    double credit;                    /* for the policy */
    struct backend_model *found;      /* models that it named itself */
    size_t n_found;
    int64_t used_ms; /* a request began or ended */
    uint64_t outcomes[OUTCOMES];
    uint64_t n_ejections, n_probes, n_failed_probes, prompt_tokens, completion_tokens;

    int64_t probe_at_ms; /* when the next probe is due */

    /* managed */
    uint64_t n_starts;
    int64_t start_took_ms; /* the latest one, until it was healthy; 0: it never was */
    char last_exit[72];    /* "ended with status 1", "": it never ended */

    struct adapter_copy *copies; /* adapter_push.c */
    uint64_t n_pushes, n_push_failures;

    /* backends.c and managed.c */
    struct backends *all;
    struct http_call *probe; /* under way */
    struct buf probe_body;
    bool probe_lists; /* it lists the models */
    int probe_status;
    int64_t listed_ms;
    struct backend_process *process;
    struct backend_scrape *scrape; /* scrape.c */
};

/* Takes over the configuration, leaving *c empty. refs is 1. */
struct backend *backend_new(struct backend_config *c, int64_t now_ms);
void backend_ref(struct backend *b);
void backend_unref(struct backend *b);

/* May a request go there now? */
bool backend_usable(const struct backend *b);

/* Does it serve the model? Returns the name that it knows it by, or NULL. */
const char *backend_serves(const struct backend *b, const char *model);

/* Its weight with what slow start takes off. */
double backend_weight(const struct backend *b, int64_t now_ms);

/* A request begins and ends there; both times with the same tokens. */
void backend_begin(struct backend *b, int64_t tokens, int64_t now_ms);
void backend_end(struct backend *b, int64_t tokens, enum backend_outcome o, const char *why,
                 int64_t now_ms);

/* The active probe has answered (OUTCOME_OK), or not. Successful probes do not make failed requests
 * forgotten: a server may be well and its engine hang. */
void backend_probed(struct backend *b, enum backend_outcome o, const char *why, int64_t now_ms);

void backend_set_state(struct backend *b, enum backend_state s, int64_t now_ms);

/* ---- retry budget ---- */

/* Retries as a share of requests, with a small reserve for quiet times, so that an outage does not
 * multiply the load on what is left (as in Finagle and Envoy). */
struct retry_budget {
    double share, tokens;
};
void retry_budget_init(struct retry_budget *b, double share);
void retry_budget_request(struct retry_budget *b);
bool retry_budget_take(struct retry_budget *b);
