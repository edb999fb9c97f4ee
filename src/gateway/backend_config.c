/* backend_config.c - a configuration's `backends` and `balance` as structs. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "gateway/backend.h"
#include "gateway/config_value.h"
#include "gateway/route.h"

enum { KEY_MAX_BYTES = 4096 };

const char *const backend_kinds[] = {"openai", "vllm", "ollama", "llama-server", "anthropic", NULL};

static int read_choice(const json_t *v, const char *where, const char *const *names, int *out,
                       struct err *e)
{
    struct buf all = {0};
    if (!v)
        return 0;
    buf_adds(&all, "one of");
    for (int i = 0; names[i]; i++) {
        if (json_is_string(v) && strcmp(json_string_value(v), names[i]) == 0) {
            *out = i;
            buf_release(&all);
            return 0;
        }
        buf_addf(&all, "%s %s", i ? "," : "", names[i]);
    }
    config_wrong(e, where, buf_str(&all));
    buf_release(&all);
    return ERR_INVALID;
}

/* ---- keys: never in a message ---- */

static int read_key_file(const char *path, const char *where, char **out, struct err *e)
{
    char key[KEY_MAX_BYTES + 1];
    FILE *f = fopen(path, "re");
    if (!f)
        return err_param(e, ERR_IO, where, "%s: %s: %s", where, path, strerror(errno));
    size_t n = fread(key, 1, sizeof key, f);
    fclose(f);
    while (n && (key[n - 1] == '\n' || key[n - 1] == '\r' || key[n - 1] == ' '))
        n--;
    if (n == 0 || n > KEY_MAX_BYTES)
        return err_param(e, ERR_INVALID, where, "%s: %s is empty or too large for a key", where,
                         path);
    *out = xstrndup(key, n);
    return 0;
}

static int check_key(const char *key, const char *where, struct err *e)
{
    for (const char *p = key; p && *p; p++)
        if (*p <= ' ' || *p > '~')
            return config_wrong(e, where, "a key without spaces and control characters");
    return 0;
}

static int read_key(struct backend_config *c, struct config_map *p, struct err *e)
{
    char *env = NULL, *file = NULL;
    int rc = read_text(config_at(p, "key_env"), p->at, &env, e);
    if (!rc && env) {
        const char *key = getenv(env);
        if (!key || !*key)
            rc = err_param(e, ERR_INVALID, p->at, "%s: the variable %s is not set", p->at, env);
        else
            rc = check_key(c->key = xstrdup(key), p->at, e);
    }
    if (!rc)
        rc = read_text(config_at(p, "key_file"), p->at, &file, e);
    if (!rc && file && c->key)
        rc = err_param(e, ERR_INVALID, p->at, "%s: key_env is given too", p->at);
    if (!rc && file)
        rc = read_key_file(file, p->at, &c->key, e);
    if (!rc && file)
        rc = check_key(c->key, p->at, e);
    free(env);
    free(file);
    return rc;
}

/* ---- fields ---- */

/* Without a word of it, the one that servers of this kind are known for. */
static int read_api(struct backend_config *c, struct config_map *p, struct err *e)
{
    const char *names[UPSTREAM_APIS + 1] = {NULL};
    int api = c->kind == BACKEND_ANTHROPIC ? UPSTREAM_ANTHROPIC : UPSTREAM_OPENAI;
    for (int i = 0; i < UPSTREAM_APIS; i++)
        names[i] = upstream_wires[i].name;
    int rc = read_choice(config_at(p, "api"), p->at, names, &api, e);
    c->api = (enum upstream_api)api;
    return rc;
}

/* Paths begin with /v1 here, so a base that ends with it is as good as one that does not. */
static int read_url(struct backend_config *c, struct config_map *p, struct err *e)
{
    int rc = read_text(config_at(p, "url"), p->at, &c->url, e);
    if (rc)
        return rc;
    bool web =
        c->url && (strncmp(c->url, "http://", 7) == 0 || strncmp(c->url, "https://", 8) == 0);
    if (!web || strpbrk(c->url, " \t?#@"))
        return config_wrong(e, p->at, "like http://10.0.0.5:8000 (keys go to key_env or key_file)");
    size_t n = strlen(c->url);
    while (c->url[n - 1] == '/')
        c->url[--n] = 0;
    if (n > 3 && strcmp(c->url + n - 3, "/v1") == 0)
        c->url[n - 3] = 0;
    return 0;
}

static int read_model(struct backend_model *m, const json_t *v, const char *where, struct err *e)
{
    static const char *const known[] = {"name", "as", NULL};
    if (json_is_string(v)) {
        int rc = read_text(v, where, &m->name, e);
        m->as = rc ? NULL : xstrdup(m->name);
        return rc;
    }
    int rc = check_keys(v, where, known, e);
    if (!rc)
        rc = read_text(json_object_get(v, "name"), where, &m->name, e);
    if (!rc)
        rc = read_text(json_object_get(v, "as"), where, &m->as, e);
    if (!rc && !m->name)
        rc = config_wrong(e, where, "a name, or {name: for clients, as: for the backend}");
    if (!rc && !m->as)
        m->as = xstrdup(m->name);
    return rc;
}

static int read_models(struct backend_config *c, struct config_map *p, struct err *e)
{
    const json_t *list = config_at(p, "models");
    char where[128];
    if (!list)
        return 0;
    size_t n = json_array_size(list);
    if (!n || n > BACKEND_MODELS_MAX)
        return config_wrong(e, p->at,
                            "a list of 1 to 256 models; leave it out to take what it names");
    c->models = xcalloc(n, sizeof *c->models);
    int rc = 0;
    for (size_t i = 0; i < n && !rc; i++) {
        snprintf(where, sizeof where, "%s[%zu]", p->at, i);
        rc = read_model(&c->models[i], json_array_get(list, i), where, e);
        c->n_models = i + 1;
    }
    return rc;
}

static int read_command(struct backend_config *c, struct config_map *p, struct err *e)
{
    const json_t *list = config_at(p, "command");
    if (!list)
        return 0;
    size_t n = json_array_size(list);
    if (!n || n > BACKEND_ARGS_MAX)
        return config_wrong(e, p->at, "a list of words: [vllm, serve, MODEL]");
    c->argv = xcalloc(n + 1, sizeof *c->argv);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        if (json_is_string(v))
            c->argv[i] = xstrdup(json_string_value(v));
        else if (json_is_integer(v)) {
            char text[24];
            snprintf(text, sizeof text, "%lld", (long long)json_integer_value(v));
            c->argv[i] = xstrdup(text);
        } else {
            return config_wrong(e, p->at, "a list of texts");
        }
    }
    return 0;
}

static int read_numbers(struct backend_config *c, struct config_map *p, struct err *e)
{
    double requests = c->max_requests, fail_after = c->fail_after, adapters = c->max_adapters;
    int rc = read_number(config_at(p, "weight"), p->at, 0.001, 1000, &c->weight, e);
    if (!rc)
        rc = read_number(config_at(p, "max_requests"), p->at, 1, 1e6, &requests, e);
    if (!rc)
        rc = read_number(config_at(p, "fail_after"), p->at, 1, 1000, &fail_after, e);
    if (!rc)
        rc = read_number(config_at(p, "max_adapters"), p->at, 1, 1e6, &adapters, e);
    c->max_requests = (int)requests;
    c->max_adapters = (int)adapters;
    c->fail_after = (int)fail_after;
    const struct {
        const char *key;
        int64_t *ms;
    } times[] = {
        {"connect_timeout", &c->connect_ms},     {"first_byte_timeout", &c->first_byte_ms},
        {"idle_timeout", &c->idle_ms},           {"probe", &c->probe_ms},
        {"probe_timeout", &c->probe_timeout_ms}, {"eject", &c->eject_ms},
        {"eject_max", &c->eject_max_ms},         {"slow_start", &c->slow_start_ms},
        {"start_timeout", &c->start_ms},         {"stop_timeout", &c->stop_ms},
        {"idle_stop", &c->idle_stop_ms},         {"scrape", &c->scrape_ms},
    };
    for (size_t i = 0; i < ARRAY_LEN(times) && !rc; i++)
        rc = read_ms(config_at(p, times[i].key), p->at, times[i].ms, e);
    if (!rc && (c->probe_ms < 10 || c->eject_ms < 10))
        rc = err_param(e, ERR_INVALID, p->where, "%s: probe and eject must be at least 10ms",
                       p->where);
    return rc;
}

static int read_backend(struct backend_config *c, const json_t *v, const char *where, struct err *e)
{
    static const char *const known[] = {"name",
                                        "kind",
                                        "api",
                                        "url",
                                        "models",
                                        "key_env",
                                        "key_file",
                                        "ca_file",
                                        "weight",
                                        "max_requests",
                                        "connect_timeout",
                                        "first_byte_timeout",
                                        "idle_timeout",
                                        "probe",
                                        "probe_timeout",
                                        "scrape",
                                        "fail_after",
                                        "eject",
                                        "eject_max",
                                        "slow_start",
                                        "command",
                                        "start_timeout",
                                        "stop_timeout",
                                        "idle_stop",
                                        "adapter_root",
                                        "max_adapters",
                                        NULL};
    *c = (struct backend_config){
        .weight = 1,
        .max_requests = 256,
        .connect_ms = 5000,
        .first_byte_ms = 300000,
        .idle_ms = 60000,
        .probe_ms = 5000,
        .probe_timeout_ms = 2000,
        .scrape_ms = 15000,
        .fail_after = 3,
        .eject_ms = 1000,
        .eject_max_ms = 30000,
        .slow_start_ms = 10000,
        .start_ms = 600000,
        .stop_ms = 10000,
        .max_adapters = 16,
    };
    struct config_map p = {v, where, ""};
    int kind = BACKEND_OPENAI;
    int rc = check_keys(v, where, known, e);
    if (!rc)
        rc = read_text(config_at(&p, "name"), p.at, &c->name, e);
    if (!rc && (!c->name || strlen(c->name) > 64 || strpbrk(c->name, "\"\\\r\n\t/ ")))
        rc = config_wrong(e, p.at, "a name of up to 64 letters without spaces, quotes and slashes");
    if (!rc && strcmp(c->name, ROUTE_LOCAL) == 0)
        rc = err_param(e, ERR_INVALID, p.at, "%s: '%s' is this process", p.at, c->name);
    if (!rc)
        rc = read_choice(config_at(&p, "kind"), p.at, backend_kinds, &kind, e);
    c->kind = (enum backend_kind)kind;
    if (!rc)
        rc = read_api(c, &p, e);
    if (!rc)
        rc = read_url(c, &p, e);
    if (!rc)
        rc = read_text(config_at(&p, "ca_file"), p.at, &c->ca_file, e);
    if (!rc)
        rc = read_text(config_at(&p, "adapter_root"), p.at, &c->adapter_root, e);
    if (!rc && c->adapter_root && c->adapter_root[0] != '/')
        rc = config_wrong(e, p.at, "an absolute path");
    if (!rc)
        rc = read_key(c, &p, e);
    if (!rc)
        rc = read_models(c, &p, e);
    if (!rc)
        rc = read_command(c, &p, e);
    return rc ? rc : read_numbers(c, &p, e);
}

static int read_balance(struct balance_config *c, const json_t *v, struct err *e)
{
    static const char *const known[] = {"policy",      "load_factor",  "retries", "retry_share",
                                        "hedge_after", "hedge_tokens", NULL};
    *c = (struct balance_config){
        .policy = BALANCE_LEAST_TOKENS,
        .load_factor = 1.25,
        .retries = 2,
        .retry_share = 0.2,
        .hedge_tokens = 64,
    };
    if (!v)
        return 0;
    struct config_map p = {v, "balance", ""};
    int policy = (int)c->policy;
    double retries = c->retries, hedge_tokens = (double)c->hedge_tokens;
    int rc = check_keys(v, "balance", known, e);
    if (!rc)
        rc = read_choice(config_at(&p, "policy"), p.at, balance_names, &policy, e);
    if (!rc)
        rc = read_number(config_at(&p, "load_factor"), p.at, 1.01, 100, &c->load_factor, e);
    if (!rc)
        rc = read_number(config_at(&p, "retries"), p.at, 0, 10, &retries, e);
    if (!rc)
        rc = read_number(config_at(&p, "retry_share"), p.at, 0, 10, &c->retry_share, e);
    if (!rc)
        rc = read_ms(config_at(&p, "hedge_after"), p.at, &c->hedge_ms, e);
    if (!rc)
        rc = read_number(config_at(&p, "hedge_tokens"), p.at, 1, 1e6, &hedge_tokens, e);
    c->policy = (enum balance_kind)policy;
    c->retries = (int)retries;
    c->hedge_tokens = (int64_t)hedge_tokens;
    return rc;
}

void gateway_config_release(struct gateway_config *c)
{
    for (size_t i = 0; i < c->n; i++)
        backend_config_release(&c->backends[i]);
    free(c->backends);
    *c = (struct gateway_config){0};
}

int gateway_config_read(struct gateway_config *out, const json_t *config, struct err *e)
{
    const json_t *list = json_object_get(config, "backends");
    char where[64];
    *out = (struct gateway_config){0};
    int rc = read_balance(&out->balance, json_object_get(config, "balance"), e);
    if (rc || !list)
        return rc;
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n > BACKENDS_MAX)
        return config_wrong(e, "backends", "a list of at most 256 backends");
    out->backends = xcalloc(n + 1, sizeof *out->backends);
    for (size_t i = 0; i < n && !rc; i++) {
        snprintf(where, sizeof where, "backends[%zu]", i);
        rc = read_backend(&out->backends[i], json_array_get(list, i), where, e);
        out->n = i + 1;
        for (size_t k = 0; k < i && !rc; k++)
            if (strcmp(out->backends[k].name, out->backends[i].name) == 0)
                rc = err_param(e, ERR_INVALID, where, "%s: another backend is named %s too", where,
                               out->backends[i].name);
    }
    if (rc)
        gateway_config_release(out);
    return rc;
}

/* ---- comparing ---- */

static bool same_text(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

bool backend_config_same(const struct backend_config *a, const struct backend_config *b)
{
    if (!same_text(a->name, b->name) || !same_text(a->url, b->url) || a->kind != b->kind ||
        a->api != b->api || !same_text(a->key, b->key) || !same_text(a->ca_file, b->ca_file) ||
        !same_text(a->adapter_root, b->adapter_root) || a->max_adapters != b->max_adapters ||
        a->n_models != b->n_models || !a->argv != !b->argv)
        return false;
    for (size_t i = 0; i < a->n_models; i++)
        if (!same_text(a->models[i].name, b->models[i].name) ||
            !same_text(a->models[i].as, b->models[i].as))
            return false;
    for (size_t i = 0; a->argv && (a->argv[i] || b->argv[i]); i++)
        if (!same_text(a->argv[i], b->argv[i]))
            return false;
    return a->weight == b->weight && a->max_requests == b->max_requests &&
           a->connect_ms == b->connect_ms && a->first_byte_ms == b->first_byte_ms &&
           a->idle_ms == b->idle_ms && a->probe_ms == b->probe_ms &&
           a->probe_timeout_ms == b->probe_timeout_ms && a->scrape_ms == b->scrape_ms &&
           a->fail_after == b->fail_after && a->eject_ms == b->eject_ms &&
           a->eject_max_ms == b->eject_max_ms && a->slow_start_ms == b->slow_start_ms &&
           a->start_ms == b->start_ms && a->stop_ms == b->stop_ms &&
           a->idle_stop_ms == b->idle_stop_ms;
}
