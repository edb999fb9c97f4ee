#include "gateway/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/log.h"
#include "base/mem.h"
#include "gateway/adapter_push.h"
#include "gateway/managed.h"
#include "gateway/scrape.h"

enum {
    RETRY_RESERVE = 10, /* retries that are there without requests before */
    RETRY_MOST = 100,
    STARTING_PROBE_MS = 250, /* while somebody may be waiting */
};

const char *const backend_states[] = {"starting", "stopped",   "healthy",
                                      "ejected",  "half-open", "draining"};
const char *const backend_outcomes[] = {"ok", "failed", "unreachable", "neutral"};

struct backend *backend_new(struct backend_config *c, int64_t now_ms)
{
    struct backend *b = xcalloc(1, sizeof *b);
    b->config = *c;
    *c = (struct backend_config){0};
    b->id = XXH3_64bits(b->config.name, strlen(b->config.name));
    b->refs = 1;
    b->state = b->config.argv ? BACKEND_STARTING : BACKEND_HEALTHY;
    b->used_ms = now_ms;
    b->since_ms = now_ms - b->config.slow_start_ms; /* a start of everything is not slow */
    b->probe_at_ms = now_ms;
    return b;
}

static void free_models(struct backend_model *m, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        free(m[i].name);
        free(m[i].as);
    }
    free(m);
}

void backend_config_release(struct backend_config *c)
{
    free(c->name);
    free(c->url);
    free(c->key);
    free(c->ca_file);
    free(c->adapter_root);
    free_models(c->models, c->n_models);
    for (char **a = c->argv; a && *a; a++)
        free(*a);
    free(c->argv);
    *c = (struct backend_config){0};
}

void backend_ref(struct backend *b)
{
    b->refs++;
}

void backend_unref(struct backend *b)
{
    if (!b || --b->refs)
        return;
    backend_config_release(&b->config);
    free_models(b->found, b->n_found);
    buf_release(&b->probe_body);
    push_free(b);
    scrape_free(b);
    managed_free(b);
    free(b);
}

/* ---- what it is good for ---- */

bool backend_usable(const struct backend *b)
{
    if (b->requests >= b->config.max_requests)
        return false;
    return b->state == BACKEND_HEALTHY || (b->state == BACKEND_HALF_OPEN && b->trials == 0);
}

const char *backend_serves(const struct backend *b, const char *model)
{
    const struct backend_model *m = b->config.n_models ? b->config.models : b->found;
    size_t n = b->config.n_models ? b->config.n_models : b->n_found;
    for (size_t i = 0; i < n; i++)
        if (strcmp(m[i].name, model) == 0)
            return m[i].as;
    return NULL;
}

double backend_weight(const struct backend *b, int64_t now_ms)
{
    int64_t age = now_ms - b->since_ms, slow = b->config.slow_start_ms;
    if (b->state != BACKEND_HEALTHY || age >= slow)
        return b->config.weight;
    double share = (double)age / (double)slow;
    return b->config.weight * (share < 0.1 ? 0.1 : share);
}

/* ---- the breaker ---- */

void backend_set_state(struct backend *b, enum backend_state s, int64_t now_ms)
{
    if (b->state == s)
        return;
    log_line(s == BACKEND_EJECTED ? LOG_WARN : LOG_INFO, "gateway", "backend %s: %s%s%s",
             b->config.name, backend_states[s], s == BACKEND_EJECTED ? ": " : "",
             s == BACKEND_EJECTED ? b->why : "");
    b->state = s;
    b->since_ms = now_ms;
}

static void eject(struct backend *b, int64_t now_ms)
{
    int64_t wait = b->config.eject_ms;
    for (int i = 0; i < b->ejections && wait < b->config.eject_max_ms; i++)
        wait *= 2;
    if (wait > b->config.eject_max_ms)
        wait = b->config.eject_max_ms;
    b->ejections++;
    b->n_ejections++;
    b->eject_until_ms = b->probe_at_ms = now_ms + wait;
    backend_set_state(b, BACKEND_EJECTED, now_ms);
}

static void failed(struct backend *b, bool at_once, const char *why, int64_t now_ms)
{
    snprintf(b->why, sizeof b->why, "%s", why ? why : "");
    b->failures++;
    bool trial = b->state == BACKEND_HALF_OPEN;
    if ((b->state == BACKEND_HEALTHY && (at_once || b->failures >= b->config.fail_after)) || trial)
        eject(b, now_ms);
}

static void succeeded(struct backend *b, int64_t now_ms)
{
    b->failures = 0;
    if (b->state != BACKEND_HALF_OPEN)
        return;
    b->ejections = 0;
    backend_set_state(b, BACKEND_HEALTHY, now_ms);
}

void backend_begin(struct backend *b, int64_t tokens, int64_t now_ms)
{
    backend_ref(b);
    b->requests++;
    b->tokens += tokens;
    b->used_ms = now_ms;
    if (b->state == BACKEND_HALF_OPEN)
        b->trials++;
}

void backend_end(struct backend *b, int64_t tokens, enum backend_outcome o, const char *why,
                 int64_t now_ms)
{
    b->requests--;
    b->tokens -= tokens;
    b->used_ms = now_ms;
    b->outcomes[o]++;
    b->trials = 0;
    if (o == OUTCOME_OK)
        succeeded(b, now_ms);
    else if (o != OUTCOME_NEUTRAL)
        failed(b, o == OUTCOME_UNREACHABLE, why, now_ms);
    backend_unref(b);
}

static void probe_failed(struct backend *b, enum backend_outcome o, const char *why, int64_t now_ms)
{
    b->n_failed_probes++;
    b->failed_probes++;
    if (b->state == BACKEND_EJECTED) {
        eject(b, now_ms);
    } else if (b->state == BACKEND_HEALTHY || b->state == BACKEND_HALF_OPEN) {
        bool enough = o == OUTCOME_UNREACHABLE || b->failed_probes >= b->config.fail_after;
        snprintf(b->why, sizeof b->why, "probe: %s", why ? why : "");
        if (enough)
            eject(b, now_ms);
    } else if (b->state == BACKEND_STARTING && b->config.probe_ms > STARTING_PROBE_MS) {
        b->probe_at_ms = now_ms + STARTING_PROBE_MS;
    }
}

void backend_probed(struct backend *b, enum backend_outcome o, const char *why, int64_t now_ms)
{
    b->n_probes++;
    b->probe_at_ms = now_ms + b->config.probe_ms;
    if (o != OUTCOME_OK) {
        probe_failed(b, o, why, now_ms);
        return;
    }
    b->failed_probes = 0;
    if (b->state == BACKEND_STARTING) {
        b->failures = b->ejections = 0;
        backend_set_state(b, BACKEND_HEALTHY, now_ms);
    } else if (b->state == BACKEND_EJECTED && now_ms >= b->eject_until_ms) {
        b->failures = 0;
        backend_set_state(b, BACKEND_HALF_OPEN, now_ms);
    }
}

/* ---- retry budget ---- */

void retry_budget_init(struct retry_budget *b, double share)
{
    *b = (struct retry_budget){share, RETRY_RESERVE};
}

void retry_budget_request(struct retry_budget *b)
{
    if (b->tokens < RETRY_MOST)
        b->tokens += b->share;
}

bool retry_budget_take(struct retry_budget *b)
{
    if (b->tokens < 1)
        return false;
    b->tokens -= 1;
    return true;
}
