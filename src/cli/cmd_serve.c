/* cmd_serve.c - terrace serve: the port opens at once, models load beside it. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/keep_alive.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/yaml_tree.h"
#include "cli/cli.h"
#include "cli/load.h"
#include "server/server.h"
#include "store/db.h"
#include "store/models.h"

struct serve_options {
    struct load_options load;
    struct opt_list models;
    const char *config, *host, *tls_cert, *tls_key, *keep_alive;
    int64_t room_ms;
    int64_t port, drain_ms, max_connections;
    uint64_t max_body, persona_spill, response_cache;
    int64_t cache_ttl_ms;
    const char *state_dir, *adapter_root;
    uint64_t adapter_budget;
    struct opt_list lora_modules;
    struct quota tenant, address; /* tokens_per_day of an address is not used */
    int log_level, log_format;
    const char *allow_origin;
    bool check_config, insecure, routes, share_prefixes, on_demand;
};

static const char *const log_levels[] = {"error", "warn", "info", "debug", NULL};
static const char *const log_formats[] = {"text", "json", NULL};

#define AT(field) offsetof(struct serve_options, field)
static const struct opt opts[] = {
    {"model", OPT_LIST, AT(models), models_default, "NAME|FILE",
     "The models to load at the start, again or with commas for several: names (fetched if they "
     "are not here) or .gguf files. The first one is the default of requests; none loads nothing.",
     .letter = 'm'},
    {"on-demand", OPT_BOOL, AT(on_demand), "true", NULL,
     "Requests may name any model of --model-dir: it is loaded when it is asked for."},
    {"keep-alive", OPT_STR, AT(keep_alive), "5m", "TIME",
     "How long a model that was loaded on demand stays after its last request: 0 not at all, -1 "
     "until its memory is needed. A request's own keep_alive goes first."},
    {"room-wait", OPT_MS, AT(room_ms), "60s", "TIME",
     "How long a model waits for those in use to make room before its requests are refused.",
     .min = 1, .max = 86400e3},
    {"config", OPT_STR, AT(config), NULL, "FILE",
     "A YAML file of options; its keys are the long names on this page. (TERRACE_CONFIG)",
     .letter = 'c', .cli_only = true},
    {"check-config", OPT_BOOL, AT(check_config), NULL, NULL,
     "Check flags, environment and file, print the values in force and end.", .cli_only = true},
    {"routes", OPT_BOOL, AT(routes), NULL, NULL,
     "Print the routes and who may use them as JSON, and end.", .cli_only = true},
    {"host", OPT_STR, AT(host), "127.0.0.1", "ADDRESS", "The address to listen on."},
    {"port", OPT_INT, AT(port), "11403", "N", "The port to listen on; 0 takes a free one.",
     .min = 0, .max = 65535, .letter = 'p'},
    {"insecure", OPT_BOOL, AT(insecure), NULL, NULL,
     "Listen on an address that other machines reach, although anybody may then use the service."},
    {"allow-origin", OPT_STR, AT(allow_origin), NULL, "ORIGINS",
     "Web pages that may use the service, as in https://chat.example, separated by commas; * for\n"
     "all. Pages of this machine may."},
    {"tls-cert", OPT_STR, AT(tls_cert), NULL, "FILE", "Certificate chain in PEM: serve HTTPS."},
    {"tls-key", OPT_STR, AT(tls_key), NULL, "FILE", "Private key of the certificate, in PEM."},
    LOAD_OPTS(AT(load)),
    {"persona-budget", OPT_BYTES, AT(load.persona_budget), "0", "SIZE",
     "KV cache that pinned personas may hold; 0 takes a tenth of it."},
    {"persona-spill", OPT_BYTES, AT(persona_spill), "4GiB", "SIZE",
     "Disk under the state directory for computed personas, which a restart reads back; 0 keeps\n"
     "none."},
    {"adapter-root", OPT_STR, AT(adapter_root), NULL, "DIR",
     "Adapters may be registered from below this folder. The default is adapters beside the folder "
     "of models."},
    {"adapter-budget", OPT_BYTES, AT(adapter_budget), "0", "SIZE",
     "Memory for adapters, kept free for them; 0 takes a tenth of the limit at most, of what "
     "models leave."},
    {"lora-modules", OPT_LIST, AT(lora_modules), NULL, "NAME=PATH",
     "Adapters to register at the start, or JSON as vLLM takes it; from any folder."},
    {"state-dir", OPT_STR, AT(state_dir), NULL, "DIR",
     "Where keys, usage, adapters and personas are kept. The default is ~/.terrace/state."},
    {"share-prefixes", OPT_BOOL, AT(share_prefixes), NULL, NULL,
     "Tenants of different keys share what is cached of their prompts. Then one can find out by\n"
     "timing whether another has sent a text."},
    {"tenant-rpm", OPT_INT, AT(tenant.requests_per_minute), "0", "N",
     "Requests a minute of each tenant, all its keys together; 0 is no limit.", .min = 0,
     .max = 1e12},
    {"tenant-tpm", OPT_INT, AT(tenant.tokens_per_minute), "0", "N",
     "Tokens a minute of each tenant, prompts and answers.", .min = 0, .max = 1e12},
    {"tenant-concurrency", OPT_INT, AT(tenant.concurrency), "0", "N",
     "Requests at once of each tenant.", .min = 0, .max = 1e12},
    {"tenant-daily-tokens", OPT_INT, AT(tenant.tokens_per_day), "0", "N",
     "Tokens a day (UTC) of each tenant.", .min = 0, .max = 1e12},
    {"address-rpm", OPT_INT, AT(address.requests_per_minute), "0", "N",
     "Requests a minute from one IPv4 address or IPv6 /64.", .min = 0, .max = 1e12},
    {"address-tpm", OPT_INT, AT(address.tokens_per_minute), "0", "N",
     "Tokens a minute from one address.", .min = 0, .max = 1e12},
    {"address-concurrency", OPT_INT, AT(address.concurrency), "0", "N",
     "Requests at once from one address.", .min = 0, .max = 1e12},
    {"response-cache", OPT_BYTES, AT(response_cache), "64MiB", "SIZE",
     "Memory for answers that are given again to equal requests; 0 keeps none."},
    {"cache-ttl", OPT_MS, AT(cache_ttl_ms), "1h", "TIME",
     "How long an answer is kept, unless its request says.", .min = 1, .max = 366 * 86400e3},
    {"max-body", OPT_BYTES, AT(max_body), "64MiB", "SIZE", "Largest request body.", .min = 1024,
     .max = 0x1p32},
    {"max-connections", OPT_INT, AT(max_connections), "10000", "N", "Most open connections.",
     .min = 1, .max = 1000000},
    {"drain", OPT_MS, AT(drain_ms), "30s", "TIME",
     "At the end, how long running requests may go on.", .min = 0, .max = 86400e3},
    {"log-level", OPT_ENUM, AT(log_level), "info", "LEVEL", "What is logged.",
     .choices = log_levels},
    {"log-format", OPT_ENUM, AT(log_format), "text", "FORMAT", "How it is logged.",
     .choices = log_formats},
    {NULL},
};

struct service {
    const struct serve_options *o;
    const char *state_dir;
    struct db *db;
    struct server *server;
    struct load_memory memory;
    struct pool *pool; /* all models' */
    const char *dir;   /* of models */
    struct arena arena;
};

/* ---- where models come from: struct server_loader ---- */

/* Names only: which files of this machine are served is not for clients to say. */
static int find(void *arg, const char *name, struct server_candidate *out, struct err *e)
{
    const struct service *s = arg;
    char base[64], tag[64];
    struct buf path = {0};
    struct stat st;
    int rc = models_parse(name, base, tag, e);
    if (rc)
        return rc;
    snprintf(out->name, sizeof out->name, "%s:%s", base, tag);
    rc = models_path(s->dir, out->name, &path, e);
    if (!rc && stat(path.data, &st))
        rc = err_set(e, ERR_NOTFOUND, "%s: %s", path.data, strerror(errno));
    if (!rc) {
        out->file_bytes = (uint64_t)st.st_size;
        out->modified_unix_s = st.st_mtime;
    }
    buf_release(&path);
    return rc;
}

static void list(void *arg, void (*each)(void *to, const struct server_candidate *c), void *to)
{
    const struct service *s = arg;
    struct model_list all = {0};
    if (models_list(s->dir, &all, NULL) == 0)
        for (size_t i = 0; i < all.n; i++) {
            struct server_candidate c = {.file_bytes = all.files[i].bytes,
                                         .modified_unix_s = all.files[i].modified_unix_s};
            snprintf(c.name, sizeof c.name, "%s", all.files[i].name);
            each(to, &c);
        }
    model_list_release(&all);
}

/* One load: the bar for people, the rest for the server. */
struct loading {
    struct server_load *load;
    struct load_progress bar;
};

static bool on_progress(void *arg, const char *what, uint64_t done, uint64_t total)
{
    struct loading *l = arg;
    load_show_progress(&l->bar, what, done, total);
    return server_load_progress(l->load, what, done, total);
}

static int on_room(void *arg, uint64_t least, uint64_t most, uint64_t *granted, struct err *e)
{
    struct loading *l = arg;
    return server_load_room(l->load, least, most, granted, e);
}

static int64_t modified(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? st.st_mtime : 0;
}

static bool is_named(const struct service *s, const char *name)
{
    for (size_t i = 0; i < s->o->models.n; i++)
        if (strcmp(s->o->models.items[i], name) == 0)
            return true;
    return false;
}

static int load(void *arg, const char *name, struct server_load *sl, struct server_model *out,
                struct err *e)
{
    struct service *s = arg;
    struct loading l = {.load = sl};
    struct load_hooks hooks = {
        .progress = on_progress,
        .arg = &l,
        .local = !is_named(s, name),
        .budget = s->memory.budget,
        .pool = s->pool,
        .room = on_room,
    };
    struct loaded *m = xcalloc(1, sizeof *m);
    struct engine *engine = NULL;
    int rc = load_model(m, name, &s->o->load, &hooks, e);
    if (!rc && (rc = load_engine(m, &s->o->load, server_sink, s->server, &engine, e)))
        load_release(m);
    load_progress_end(&l.bar);
    if (rc) {
        free(m);
        return rc;
    }
    *out = (struct server_model){
        .name = m->name,
        .engine = engine,
        .tokenizer = m->tokenizer,
        .chat_template = m->template,
        .n_ctx = m->n_ctx,
        .info = model_info(m->model),
        .weights = m->model,
        .kv_key = m->kv_key,
        .created_unix_s = modified(m->path),
        .owner = m,
    };
    return 0;
}

static void ready(void *arg, const struct server_model *m)
{
    const struct service *s = arg;
    log_info("serve", "ready: %s on http%s://%s:%d", m->name, s->o->tls_cert ? "s" : "", s->o->host,
             server_port(s->server));
}

static void unload(void *arg, struct server_model *m)
{
    load_release(m->owner);
    free(m->owner);
}

/* ---- the service ---- */

/* SIGINT and SIGTERM end the service, SIGHUP reads the configuration again; SIGUSR1, from the main
 * thread, ends the waiting. */
static void *signal_thread(void *arg)
{
    struct service *s = arg;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR1);
    for (int sig; sigwait(&set, &sig) == 0 && sig != SIGUSR1;) {
        if (sig == SIGHUP) {
            server_reload(s->server);
            continue;
        }
        log_info("serve", "%s: finishing the running requests (again: end at once)",
                 sig == SIGINT ? "interrupted" : "asked to end");
        server_stop(s->server);
    }
    return NULL;
}

static bool is_loopback(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 ||
           strcmp(host, "localhost") == 0;
}

static struct yaml_tree *read_config(void *arg, struct err *e)
{
    const struct serve_options *o = arg;
    return yaml_tree_read(o->config, e);
}

/* Tiers, routes and what else of the file can change while the service runs. */
static int configure(struct service *s, struct err *e)
{
    if (!s->o->config)
        return 0;
    struct yaml_tree *config = read_config((void *)s->o, e);
    int rc = config ? server_configure(s->server, config, e) : e->code;
    yaml_tree_free(config);
    return rc;
}

static int has_keys(struct db *d, bool *out, struct err *e)
{
    struct key_list keys;
    int rc = keys_list(d, &keys, e);
    *out = !rc && keys.n > 0;
    if (!rc)
        key_list_release(&keys);
    return rc;
}

/* Nobody can tell whether there were keys in a database that is damaged, and the empty one in its
 * place must not open the service to everybody: a key that nobody has keeps it closed. */
static int stay_closed(struct db *d, struct err *e)
{
    struct key_spec spec = {.name = "lost-with-the-damaged-database", .role = ROLE_USER};
    char secret[KEY_TEXT_BYTES + 1];
    int64_t id;
    int rc = keys_create(d, &spec, secret, &id, e);
    explicit_bzero(secret, sizeof secret);
    if (!rc)
        rc = keys_revoke(d, spec.name, e);
    if (!rc)
        log_warn("serve",
                 "the service asks for keys now, as the damaged database may have had some: make "
                 "new ones with terrace key create; if there never were any, end the service, "
                 "remove %s and start it again",
                 db_path(d));
    return rc;
}

/* Who may use the service is in the database, so there is no service without it. */
static int open_database(struct service *s, struct err *e)
{
    const struct serve_options *o = s->o;
    bool closed = false;
    int rc = cli_open_database(&s->db, s->state_dir, true, e);
    if (!rc)
        rc = has_keys(s->db, &closed, e);
    if (!rc && db_damaged(s->db) && !closed) {
        rc = stay_closed(s->db, e);
        closed = true;
    }
    if (!rc && !closed && !is_loopback(o->host) && !o->insecure)
        rc = err_param(e, ERR_DENIED, "host",
                       "listening on %s lets every machine that reaches it use the service: make a "
                       "key with terrace key create, or say --insecure, or listen on 127.0.0.1",
                       o->host);
    return rc;
}

/* "phi3" is phi3:latest, so that a model has one name only; "none" is no model. */
static void full_names(struct service *s, struct opt_list *models)
{
    char base[64], tag[64];
    if (models->n == 1 && strcmp(models->items[0], "none") == 0)
        models->n = 0;
    for (size_t i = 0; i < models->n; i++) {
        const char *name = models->items[i];
        size_t n = strlen(name);
        bool file = strchr(name, '/') || (n > 5 && strcmp(name + n - 5, ".gguf") == 0);
        if (!file && models_parse(name, base, tag, NULL) == 0)
            models->items[i] = arena_printf(&s->arena, "%s:%s", base, tag);
    }
}

static int read_models(struct service *s, struct server_opts *so, struct err *e)
{
    const struct serve_options *o = s->o;
    struct keep_alive keep;
    if (!keep_alive_text(str_of(o->keep_alive), &keep))
        return err_param(e, ERR_INVALID, "keep-alive",
                         "--keep-alive: \"%s\" is not a duration such as 5m, 0 or -1",
                         o->keep_alive);
    s->dir = o->load.model_dir ? o->load.model_dir : cli_models_dir(&s->arena);
    load_memory_new(&s->memory, &o->load);
    so->models = o->models.items;
    so->n_models = o->models.n;
    so->budget = s->memory.budget;
    so->keep_alive_ms = keep.ms;
    so->room_ms = o->room_ms;
    so->load_stall_ms = o->load.load_deadline_ms;
    so->loader = (struct server_loader){.arg = s, .load = load, .ready = ready, .unload = unload};
    if (o->on_demand) {
        so->loader.find = find;
        so->loader.list = list;
    }
    return pool_new(&s->pool, (int)o->load.threads, e);
}

/* The folder that was asked for, or the usual one if it is there. */
static const char *adapter_root(const struct service *s, struct buf *dir)
{
    if (s->o->adapter_root)
        return s->o->adapter_root;
    buf_adds(dir, s->dir);
    while (dir->len > 1 && dir->data[dir->len - 1] == '/')
        dir->len--;
    while (dir->len > 1 && dir->data[dir->len - 1] != '/')
        dir->len--;
    buf_adds(dir, "adapters");
    return access(dir->data, F_OK) == 0 ? dir->data : NULL;
}

/* A list is cut at its commas, those of JSON objects too: puts these together again. */
static void join_objects(struct opt_list *l, struct arena *a)
{
    size_t n = 0;
    for (size_t i = 0; i < l->n; i++) {
        const char *open = n ? l->items[n - 1] : "";
        if (*open == '{' && open[strlen(open) - 1] != '}')
            l->items[n - 1] = arena_printf(a, "%s,%s", open, l->items[i]);
        else
            l->items[n++] = l->items[i];
    }
    l->n = n;
}

/* Strings are good as long as `dir` is. */
static struct adapters_opts adapters_opts_of(const struct service *s, struct buf *dir)
{
    const struct serve_options *o = s->o;
    uint64_t tenth = budget_limit(s->memory.budget) / 10;
    return (struct adapters_opts){.root = adapter_root(s, dir),
                                  .budget = o->adapter_budget ? o->adapter_budget : tenth,
                                  .reserve = o->adapter_budget > 0,
                                  .load_stall_ms = o->load.load_deadline_ms,
                                  .modules = o->lora_modules.items,
                                  .n_modules = o->lora_modules.n};
}

static int open_server(struct service *s, struct err *e)
{
    const struct serve_options *o = s->o;
    int rc = open_database(s, e);
    if (rc)
        return rc;
    struct server_opts so = {
        .http = http_server_defaults(),
        .version = cli_version,
        .drain_ms = o->drain_ms,
        .allow_origin = o->allow_origin,
        .open_to_all = o->insecure,
        .read_config = o->config ? read_config : NULL,
        .read_config_arg = (void *)o,
        .share_prefixes = o->share_prefixes,
        .response_cache_bytes = o->response_cache,
        .response_ttl_ms = o->cache_ttl_ms,
    };
    so.http.host = o->host;
    so.http.port = (int)o->port;
    so.http.cert_file = o->tls_cert;
    so.http.key_file = o->tls_key;
    so.http.max_body_bytes = o->max_body;
    so.http.max_connections = (int)o->max_connections;
    so.state_dir = s->state_dir;
    so.spill_bytes = o->persona_spill;
    so.db = s->db;
    so.tenant_quota = o->tenant;
    so.address_quota = o->address;
    rc = read_models(s, &so, e);
    if (rc)
        return rc;
    struct buf adapter_dir = {0};
    so.adapters = adapters_opts_of(s, &adapter_dir);
    rc = server_new(&s->server, &so, e);
    buf_release(&adapter_dir);
    return rc ? rc : configure(s, e);
}

static void close_service(struct service *s)
{
    server_free(s->server);
    pool_free(s->pool);
    load_memory_free(&s->memory);
    db_close(s->db);
    arena_release(&s->arena);
}

static int serve(const struct command *c, struct serve_options *o, const char *state_dir)
{
    struct service s = {.o = o, .state_dir = state_dir};
    full_names(&s, &o->models);
    struct err e = {0};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* threads inherit it */
    if (open_server(&s, &e)) {
        close_service(&s);
        return cli_fail(c, &e);
    }
    pthread_t signals;
    if (pthread_create(&signals, NULL, signal_thread, &s))
        BUG("no thread to wait for signals");
    if (!o->models.n)
        log_info("serve", "ready: no model yet on http%s://%s:%d", o->tls_cert ? "s" : "", o->host,
                 server_port(s.server));
    server_run(s.server);
    pthread_kill(signals, SIGUSR1);
    pthread_join(signals, NULL);
    const struct err *failure = server_failure(s.server);
    if (failure)
        e = *failure;
    close_service(&s);
    return e.code ? cli_fail(c, &e) : EXIT_OK;
}

/* Options were checked when they were read; here are the sections. */
static int check_config(const struct command *c, struct serve_options *o, struct arena *arena)
{
    struct err e = {0};
    struct yaml_tree *config = o->config ? read_config(o, &e) : NULL;
    if (config)
        server_check_config(config, &e);
    yaml_tree_free(config);
    if (e.code) {
        cli_fail(c, &e);
        return EXIT_USAGE;
    }
    opt_print(&(struct opt_set){opts, o, arena}, stdout);
    return EXIT_OK;
}

static int run(const struct command *c, int argc, char **argv)
{
    struct serve_options o = {0};
    struct arena arena = {0};
    int n_words, status = cli_options(c, &o, &arena, argc, argv, 0, &n_words);
    if (status < 0 && o.check_config)
        status = check_config(c, &o, &arena);
    if (status < 0 && o.routes) {
        struct buf b = {0};
        server_routes(&b);
        puts(buf_str(&b));
        buf_release(&b);
        status = EXIT_OK;
    }
    if (status < 0) {
        log_init((enum log_level)o.log_level, o.log_format == 1);
        join_objects(&o.lora_modules, &arena);
        status = serve(c, &o, cli_state_dir(&arena, o.state_dir));
    }
    arena_release(&arena);
    return status;
}

const struct command cmd_serve = {
    .name = "serve",
    .usage = "terrace serve [OPTIONS]",
    .summary = "serve a model over HTTP",
    .details =
        "The port answers at once; requests wait for their model, and get 503 while it is being\n"
        "downloaded; /health tells how far it is. SIGINT or SIGTERM lets running requests "
        "finish.\n\n"
        "  terrace serve --model smollm2:135m\n"
        "  curl http://127.0.0.1:11403/v1/chat/completions -d '{\n"
        "    \"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'\n",
    .opts = opts,
    .sections = server_sections,
    .run = run,
};
