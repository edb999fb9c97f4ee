#include "gateway/backends.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "gateway/managed.h"
#include "gateway/scrape.h"

enum {
    LIST_EVERY_MS = 60000, /* a backend's models are asked for again */
    PROBE_MAX_BYTES = 4 << 20,
    PROBE_SPREAD_MS = 100, /* so that not all are probed at once */
};

/* ---- time ---- */

static void look(void *arg);

static void arm(struct backends *all, int64_t due)
{
    if (!due || (all->due_ms && all->due_ms <= due))
        return;
    all->due_ms = due;
    int64_t wait = due - clock_ms();
    http_timer_start(all->timer, wait > 0 ? wait : 1, 0); /* a timer of now starves the loop */
}

/* ---- probes ---- */

static void start_probe(struct backend *b);

static void free_found(struct backend *b)
{
    for (size_t i = 0; i < b->n_found; i++) {
        free(b->found[i].name);
        free(b->found[i].as);
    }
    free(b->found);
    b->found = NULL;
    b->n_found = 0;
}

/* {"data": [{"id": "..."}]}. false: it is something else. */
static bool take_list(struct backend *b)
{
    struct err e;
    json_t *tree = jr_parse(buf_str(&b->probe_body), b->probe_body.len, &e);
    json_t *data = json_object_get(tree, "data");
    size_t n = json_array_size(data);
    bool good = json_is_array(data);
    if (good) {
        free_found(b);
        b->found = xcalloc(n + 1, sizeof *b->found);
        for (size_t i = 0; i < n && b->n_found < BACKEND_MODELS_MAX; i++) {
            const char *id = json_string_value(json_object_get(json_array_get(data, i), "id"));
            if (!id || !*id || strlen(id) > 256 || push_is_name(id))
                continue;
            b->found[b->n_found++] = (struct backend_model){xstrdup(id), xstrdup(id)};
        }
    }
    json_decref(tree);
    return good;
}

static void probe_head(struct http_call *call, const struct http_head *head)
{
    struct backend *b = http_call_arg(call);
    b->probe_status = head->status;
}

static void probe_data(struct http_call *call, const char *p, size_t n)
{
    struct backend *b = http_call_arg(call);
    if (b->probe_body.len + n <= PROBE_MAX_BYTES)
        buf_add(&b->probe_body, p, n);
}

static void probe_end(struct http_call *call, const struct err *e)
{
    struct backend *b = http_call_arg(call);
    struct backends *all = b->all;
    int64_t now = clock_ms();
    char why[128] = "";
    enum backend_outcome o = OUTCOME_OK;
    b->probe = NULL;
    if (e) {
        o = e->code == ERR_IO ? OUTCOME_UNREACHABLE : OUTCOME_FAILED;
        snprintf(why, sizeof why, "%s", e->msg);
    } else if (b->probe_status != 200) {
        o = OUTCOME_FAILED;
        snprintf(why, sizeof why, "status %d", b->probe_status);
    } else if (b->probe_lists && !take_list(b)) {
        o = OUTCOME_FAILED;
        snprintf(why, sizeof why, "the list of models is not JSON");
    } else if (b->probe_lists) {
        b->listed_ms = now;
    }
    buf_release(&b->probe_body);
    backend_probed(b, o, why, now);
    bool lists = !b->config.n_models && !b->listed_ms;
    if (o == OUTCOME_OK && lists && !all->closing)
        b->probe_at_ms = now; /* well, but what does it serve? */
    backend_unref(b);
    backends_poke(all);
}

static void start_probe(struct backend *b)
{
    static const struct {
        const char *path;
        bool lists; /* the models, too */
        enum upstream_api api;
    } probes[] = {
        [BACKEND_OPENAI] = {"/v1/models", true, UPSTREAM_OPENAI},
        [BACKEND_VLLM] = {"/health", false, UPSTREAM_OPENAI},
        [BACKEND_OLLAMA] = {"/api/version", false, UPSTREAM_OLLAMA},
        [BACKEND_LLAMA_SERVER] = {"/health", false, UPSTREAM_OPENAI},
        [BACKEND_ANTHROPIC] = {"/v1/models?limit=1000", true, UPSTREAM_ANTHROPIC},
    };
    const struct backend_config *c = &b->config;
    const struct upstream_wire *wire = &upstream_wires[probes[c->kind].api];
    bool due = !b->listed_ms || clock_ms() - b->listed_ms > LIST_EVERY_MS;
    bool always = probes[c->kind].lists;
    b->probe_lists = always || (!c->n_models && b->failed_probes == 0 && due && b->n_probes > 0);
    char *url = NULL, *auth = NULL;
    struct buf text = {0};
    buf_addf(&text, "%s%s", c->url,
             b->probe_lists && !always ? "/v1/models" : probes[c->kind].path);
    url = buf_take(&text);
    if (c->key) {
        buf_addf(&text, "%s%s", wire->key, c->key);
        auth = buf_take(&text);
    }
    const char *headers[3] = {0};
    int n = 0;
    if (wire->header)
        headers[n++] = wire->header;
    if (auth)
        headers[n++] = auth;
    buf_clear(&b->probe_body);
    b->probe_status = 0;
    backend_ref(b);
    b->probe = http_call_start(b->all->client, &(struct http_call_opts){
                                                   .url = url,
                                                   .headers = headers,
                                                   .ca_file = c->ca_file,
                                                   .deadline_ms = clock_ms() + c->probe_timeout_ms,
                                                   .arg = b,
                                                   .on_head = probe_head,
                                                   .on_data = probe_data,
                                                   .on_end = probe_end,
                                               });
    free(url);
    free(auth);
}

void backends_cancel_probe(struct backend *b)
{
    if (!b->probe)
        return;
    http_call_cancel(b->probe);
    b->probe = NULL;
    backend_unref(b);
}

static bool wants_probes(const struct backend *b)
{
    if (b->state == BACKEND_DRAINING || b->state == BACKEND_STOPPED)
        return false;
    return !b->config.argv || managed_runs(b);
}

static int64_t sooner(int64_t a, int64_t b)
{
    return a && (!b || a < b) ? a : b;
}

/* Those that a reload removed go when their last request has. */
static void let_go(struct backends *all)
{
    size_t kept = 0;
    for (size_t i = 0; i < all->n_leaving; i++) {
        struct backend *b = all->leaving[i];
        if (b->requests == 0 && managed_stop(b))
            backend_unref(b);
        else
            all->leaving[kept++] = b;
    }
    all->n_leaving = kept;
}

static void look(void *arg)
{
    struct backends *all = arg;
    int64_t now = clock_ms(), next = 0;
    all->due_ms = 0;
    let_go(all);
    for (size_t i = 0; i < all->n_leaving; i++)
        next = sooner(managed_look(all->leaving[i], now), next);
    for (size_t i = 0; i < all->n; i++) {
        struct backend *b = all->list[i];
        next = sooner(managed_look(b, now), next);
        if (!all->closing)
            next = sooner(scrape_look(b, now), next);
        if (!wants_probes(b) || b->probe || all->closing)
            continue;
        if (b->probe_at_ms <= now)
            start_probe(b);
        else
            next = sooner(b->probe_at_ms, next);
    }
    arm(all, next);
}

static void maybe_closed(struct backends *all)
{
    if (!all->closing || !all->closed)
        return;
    for (size_t i = 0; i < all->n; i++)
        if (!managed_stop(all->list[i]))
            return;
    let_go(all);
    if (all->n_leaving)
        return;
    void (*closed)(void *arg) = all->closed;
    all->closed = NULL;
    closed(all->closed_arg);
}

void backends_poke(struct backends *all)
{
    arm(all, clock_ms() + 1);
    let_go(all);
    waiters_wake(&all->ready, NULL);
    maybe_closed(all);
}

/* ---- picking ---- */

bool backends_know(const struct backends *all, const char *model)
{
    for (size_t i = 0; i < all->n; i++)
        if (backend_serves(all->list[i], model))
            return true;
    return false;
}

static bool wanted(const struct backend *b, const struct backend_query *q)
{
    bool named = q->n_only == 0;
    for (size_t i = 0; i < q->n_only && !named; i++)
        named = strcmp(b->config.name, q->only[i]) == 0;
    for (size_t i = 0; i < q->n_tried && named; i++)
        named = q->tried[i] != b;
    return named;
}

static void explain(const struct backend *b, struct buf *why)
{
    const char *state = b->state == BACKEND_HEALTHY ? "full" : backend_states[b->state];
    buf_addf(why, "%s%s is %s", why->len ? ", " : "", b->config.name, state);
    if (b->state == BACKEND_EJECTED)
        buf_addf(why, " (%s)", b->why);
}

/* Keeps of n candidates those that have the adapter, unless each of them has more than its share of
 * the requests: then another copy is worth its load. */
static size_t prefer_holders(const struct backends *all, const struct push_adapter *a,
                             struct balance_candidate *c, struct backend **of, size_t n)
{
    int requests = 1; /* this one */
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        requests += c[i].requests;
    double most = all->config.load_factor * requests / (double)n;
    for (size_t i = 0; i < n; i++) {
        if (!push_has(of[i], a) || c[i].requests >= most)
            continue;
        struct balance_candidate holder = c[i];
        struct backend *b = of[i];
        c[i] = c[kept];
        of[i] = of[kept];
        c[kept] = holder;
        of[kept++] = b;
    }
    return kept ? kept : n;
}

enum backend_answer backends_pick(struct backends *all, const struct backend_query *q,
                                  struct backend **out, const char **as, struct buf *why)
{
    struct balance_candidate c[BACKENDS_MAX];
    struct backend *of[BACKENDS_MAX];
    size_t n = 0;
    bool later = false;
    int64_t now = clock_ms();
    for (size_t i = 0; i < all->n; i++) {
        struct backend *b = all->list[i];
        if (!backend_serves(b, q->model) || !wanted(b, q))
            continue;
        const char *obstacle = q->adapter ? push_obstacle(b, q->adapter) : NULL;
        if (obstacle) {
            buf_addf(why, "%s%s %s", why->len ? ", " : "", b->config.name, obstacle);
            continue;
        }
        if (!backend_usable(b)) {
            explain(b, why);
            if (b->state == BACKEND_STOPPED)
                managed_wake(b);
            later = later || b->state == BACKEND_HEALTHY || b->state == BACKEND_STARTING ||
                    b->state == BACKEND_HALF_OPEN; /* its trial will tell */
            continue;
        }
        of[n] = b;
        c[n++] = (struct balance_candidate){b->id, backend_weight(b, now), b->requests, b->tokens,
                                            &b->credit};
    }
    if (!n)
        return later ? BACKENDS_WAIT : BACKENDS_NONE;
    if (q->adapter)
        n = prefer_holders(all, q->adapter, c, of, n);
    *out = of[balance_pick(&all->balance, c, n, &q->balance)];
    *as = backend_serves(*out, q->model);
    return BACKENDS_HERE;
}

void backends_hash(const struct backends *all, const struct backend_query *q,
                   struct response_hash *h)
{
    for (size_t i = 0; i < all->n; i++) {
        const struct backend *b = all->list[i];
        const char *as = backend_serves(b, q->model);
        if (!as || !wanted(b, q))
            continue;
        response_hash_str(h, str_of(b->config.name));
        response_hash_str(h, str_of(b->config.url));
        response_hash_u64(h, b->config.api);
        response_hash_str(h, str_of(as));
    }
    response_hash_str(h, STR("")); /* no backend has an empty name */
}

void backends_end(struct backends *all, struct backend *b, int64_t tokens, enum backend_outcome o,
                  const char *why)
{
    enum backend_state before = b->state;
    bool was_full = b->requests >= b->config.max_requests;
    backend_ref(b);
    backend_end(b, tokens, o, why, clock_ms());
    bool poke = b->state != before || was_full || before == BACKEND_HALF_OPEN || all->n_leaving;
    backend_unref(b);
    if (poke)
        backends_poke(all);
}

/* ---- configuration ---- */

static struct backend *take_same(struct backends *all, const struct backend_config *c)
{
    for (size_t i = 0; i < all->n; i++) {
        struct backend *b = all->list[i];
        if (!b || !backend_config_same(&b->config, c))
            continue;
        all->list[i] = NULL;
        return b;
    }
    return NULL;
}

/* Until b says itself what it serves, it is what the one of its name has served: those who ask
 * while its program starts wait for it. */
static void presume_models(const struct backends *all, struct backend *b)
{
    for (size_t i = 0; i < all->n && !b->config.n_models; i++) {
        const struct backend *before = all->list[i];
        if (!before || strcmp(before->config.name, b->config.name) != 0)
            continue;
        b->found = xcalloc(before->n_found + 1, sizeof *b->found);
        for (; b->n_found < before->n_found; b->n_found++) {
            const struct backend_model *m = &before->found[b->n_found];
            b->found[b->n_found] = (struct backend_model){xstrdup(m->name), xstrdup(m->as)};
        }
        return;
    }
}

static void retire(struct backends *all, struct backend *b, int64_t now)
{
    backends_cancel_probe(b);
    scrape_cancel(b);
    backend_set_state(b, BACKEND_DRAINING, now);
    if (all->n_leaving == all->cap_leaving) {
        all->cap_leaving = all->cap_leaving ? 2 * all->cap_leaving : 8;
        all->leaving = xrealloc(all->leaving, all->cap_leaving * sizeof(struct backend *));
    }
    all->leaving[all->n_leaving++] = b;
}

void backends_apply(struct backends *all, struct gateway_config *c)
{
    struct backend *list[BACKENDS_MAX];
    int64_t now = clock_ms();
    uint64_t seed;
    rng_secret(&seed, sizeof seed);
    for (size_t i = 0; i < c->n; i++) {
        list[i] = take_same(all, &c->backends[i]);
        if (list[i])
            continue;
        list[i] = backend_new(&c->backends[i], now);
        list[i]->all = all;
        presume_models(all, list[i]);
        list[i]->probe_at_ms = now + (int64_t)(i * PROBE_SPREAD_MS / (c->n + 1));
    }
    for (size_t i = 0; i < all->n; i++)
        if (all->list[i])
            retire(all, all->list[i], now);
    memcpy(all->list, list, c->n * sizeof *list);
    all->n = c->n;
    all->config = c->balance;
    all->retries.share = c->balance.retry_share;
    balance_init(&all->balance, c->balance.policy, c->balance.load_factor, seed);
    gateway_config_release(c);
    backends_poke(all);
}

/* ---- life ---- */

int backends_open(struct backends **out, struct http_loop *l, struct err *e)
{
    struct backends *all = xcalloc(1, sizeof *all);
    int rc = http_client_open(&all->client, l, &(struct http_client_opts){.max_idle = 512}, e);
    if (rc) {
        free(all);
        return rc;
    }
    all->loop = l;
    all->timer = http_timer_new(l, look, all);
    retry_budget_init(&all->retries, 0.2);
    balance_init(&all->balance, BALANCE_LEAST_TOKENS, 1.25, 1);
    *out = all;
    return 0;
}

void backends_close(struct backends *all, void (*closed)(void *arg), void *arg)
{
    all->closing = true;
    all->closed = closed;
    all->closed_arg = arg;
    for (size_t i = 0; i < all->n; i++) {
        backends_cancel_probe(all->list[i]);
        scrape_cancel(all->list[i]);
    }
    backends_poke(all);
}

void backends_free(struct backends *all)
{
    if (!all)
        return;
    for (size_t i = 0; i < all->n; i++) {
        if (all->list[i]->probe)
            backend_unref(all->list[i]);
        backend_unref(all->list[i]);
    }
    for (size_t i = 0; i < all->n_leaving; i++)
        backend_unref(all->leaving[i]);
    free(all->leaving);
    http_client_close(all->client);
    http_timer_free(all->timer);
    free(all);
}
