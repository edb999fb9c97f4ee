/* server.h - the service: routes, handlers, and the way from a request to an engine and back.
 *
 * Life of a server, as a caller sees it:
 *
 *     server_new(&s, &opts, e)          the port is bound; nothing is answered yet
 *     server_run(s)                     serves on this thread until server_stop and the drain;
 *                                       opts.loader brings the models, the first one is the default
 *     server_free(s)
 *
 * or, with a model of the caller's own:
 *
 *     engine_new with sink = server_sink, sink_arg = s
 *     server_attach(s, &model)          any time after server_new
 *     server_run(s)
 *     engine_free(...)                  the sink may still be called up to here
 *     server_free(s)
 *     tokenizer_free, template_free, model_close ...
 *
 * Handlers run on the thread of server_run. Requests are parsed, rendered and tokenized there too
 * if they are small, on libuv's pool if they are large; the engine's thread only posts its events.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "chat/template.h"
#include "engine/engine.h"
#include "http/http.h"
#include "server/adapters.h"
#include "store/keys.h"
#include "tokenizer/tokenizer.h"

struct db;
struct server;
struct server_load;
struct server_model;
struct budget;
struct yaml_tree;

/* A model that could be loaded. */
struct server_candidate {
    char name[160];
    uint64_t file_bytes;
    int64_t modified_unix_s;
};

/* Where models come from. {0}: nowhere, there is only what server_attach brings. */
struct server_loader {
    void *arg;
    /* Whether clients may name models beside opts.models, and if so, which: *out has the model's
     * full name. On the server's thread: a look at the disk at most. ERR_NOTFOUND and the like say
     * what to do. NULL: they may not. */
    int (*find)(void *arg, const char *name, struct server_candidate *out, struct err *e);
    /* Calls each() for all that find would find. NULL as find. */
    void (*list)(void *arg, void (*each)(void *to, const struct server_candidate *c), void *to);
    /* Loads a model, with an engine whose sink is server_sink. On a thread of its own, of which
     * there may be several; those that have asked server_load_room take turns. Its memory is
     * counted under `name` in opts.budget. */
    int (*load)(void *arg, const char *name, struct server_load *l, struct server_model *out,
                struct err *e);
    /* It answers from now on. On the server's thread; NULL: nobody wants to know. */
    void (*ready)(void *arg, const struct server_model *m);
    /* Frees all of it but the engine, which is gone already. */
    void (*unload)(void *arg, struct server_model *m);
};

struct server_opts {
    struct http_server_opts http; /* from http_server_defaults(); handler and arg are set by us */
    const char *version;          /* for /version and the Server header */
    const char *state_dir; /* what outlives the process (personas), NULL: nothing does; copied */
    uint64_t spill_bytes;  /* disk for computed personas under state_dir, 0: they are not kept */
    struct quota tenant_quota;  /* of each tenant, beside those of its keys */
    struct quota address_quota; /* of each address that requests come from */
    const char *allow_origin;   /* web pages that may use the service: origin.h; NULL: none */
    bool share_prefixes;        /* tenants of keys share KV, so they may learn from its timing */
    bool open_to_all;           /* other machines reach it although there may be no keys */
    /* Reads the config file for server_reload: a tree, or NULL with the reason. On the server's
     * thread. NULL: there is no file. */
    struct yaml_tree *(*read_config)(void *arg, struct err *e);
    void *read_config_arg;
    uint64_t response_cache_bytes; /* of answers that are kept for equal requests, 0: none is */
    int64_t response_ttl_ms;       /* for so long, 0: an hour */
    int64_t drain_ms; /* server_stop lets running requests go on for so long, 0: not at all */
    struct server_loader loader;
    const char *const *models; /* that are loaded at the start; the first one is the default */
    size_t n_models;
    struct budget *budget; /* outlives the server, NULL: memory is not counted */
    int64_t keep_alive_ms; /* how long other models stay after their last use, -1: for good */
    int64_t room_ms;       /* how long a model waits for others to make room, 0: 60000 */
    int64_t load_stall_ms; /* /health reports a load without progress for so long, 0: 60000 */
    struct db *db;         /* keys, usage, adapters; outlives the server; NULL: nothing is kept */
    struct adapters_opts adapters;
};

/* Binds the port: a client that connects from now on waits until server_run. ERR_IO, ERR_INVALID as
 * http_server_open. */
int server_new(struct server **out, const struct server_opts *o, struct err *e);

/* After server_run has returned, or instead of it, and after engine_free of every attached engine.
 */
void server_free(struct server *s);

int server_port(const struct server *s); /* the bound port */

/* Serves until server_stop, then until the last request is answered or the drain is over. Ends by
 * itself when none of opts.models can be loaded: server_failure says why. */
void server_run(struct server *s);

const struct err *server_failure(const struct server *s); /* NULL: none */

/* Any thread, but not a signal handler (a thread in sigwait will do). Stops accepting; running
 * requests may finish within drain_ms, then they are cancelled. A second call cancels at once. */
void server_stop(struct server *s);

/* For engine_opts.sink, with the server as sink_arg. */
engine_sink_fn server_sink;

/* The keys of the config file that server_configure reads, ends with NULL. */
extern const char *const server_sections[];

/* Puts the sections of a configuration in force: before server_run, or on the server's thread. On
 * error, which names file, line and column, nothing changes. */
int server_configure(struct server *s, const struct yaml_tree *config, struct err *e);

/* Any thread: would it be taken? */
int server_check_config(const struct yaml_tree *config, struct err *e);

/* Reads the configuration again and puts it in force; the outcome is in the log. Any thread. */
void server_reload(struct server *s);

/* A model that is ready. The engine stays until server_run has returned, tokenizer, template and
 * info until server_free has. Strings are copied. */
struct server_model {
    const char *name; /* id in /v1/models; what clients put into "model" */
    struct engine *engine;
    const struct tokenizer *tokenizer;
    const struct template *chat_template; /* NULL: /v1/chat/completions says so */
    int n_ctx;                            /* longest sequence, as given to the engine */
    const struct model_info *info;        /* NULL: unknown */
    int64_t created_unix_s;               /* of the model file, 0: now */
    const struct model *weights;          /* what adapters change, NULL: it takes none */
    const char *kv_key; /* what the KV of a prompt depends on beside its tokens: file, KV type,
                           kernels; stays as the tokenizer does; NULL: personas are not kept */
    void *owner;        /* for loader.unload */
};

/* Makes a model answer. Any thread; takes effect on the server's thread in the order of the calls.
 * A name that is there already is ignored with a warning in the log. */
void server_attach(struct server *s, const struct server_model *m);

/* The routes and who may use them, as JSON: [{"method", "path", "role"}]. */
void server_routes(struct buf *out);

/* ---- for server_loader.load, on its thread ---- */

/* Tells /health and whoever waits how far it is: `what` reads like "packing smollm2", total 0: not
 * known. False: give up with ERR_CANCELED. */
bool server_load_progress(struct server_load *l, const char *what, uint64_t done, uint64_t total);

/* Waits until other models have made room for `least` bytes, and says how many of at most `most`
 * this one may take from the budget. ERR_LIMIT: so much there can never be; ERR_BUSY: models
 * in use left no room in time; ERR_CANCELED. */
int server_load_room(struct server_load *l, uint64_t least, uint64_t most, uint64_t *granted,
                     struct err *e);

/* ---- long operations beside the requests: loading and downloading ---- */

/* /health tells their progress, and turns unhealthy when one makes no progress for stall_ms or
 * fails. All functions: any thread. */
struct server_watch;

/* `what` reads like "loading smollm2" and is copied. stall_ms 0: 60000. NULL when too many run. */
struct server_watch *server_watch_begin(struct server *s, const char *what, int64_t stall_ms);

/* Bytes or any unit; total 0: unknown. Counts as progress only if done or total changes. w may be
 * NULL. */
void server_watch_progress(struct server_watch *w, uint64_t done, uint64_t total);

/* Ends the watch: failed NULL forgets it, otherwise /health and every request that waits for a
 * model get the reason until the process ends. w may be NULL. */
void server_watch_end(struct server_watch *w, const struct err *failed);
