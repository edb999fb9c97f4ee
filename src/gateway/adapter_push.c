#include "gateway/adapter_push.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "gateway/backends.h"

enum {
    LOAD_MS = 120000,   /* of one load or unload */
    REFUSED_MS = 60000, /* then it may be tried again */
    REPLY_MAX_BYTES = 64 << 10,
    DIGEST_BYTES = 6, /* in a name */
};

enum copy_state { COPY_NONE, COPY_LOADING, COPY_LOADED, COPY_UNLOADING, COPY_REFUSED };

struct adapter_copy {
    struct adapter_copy *next;
    struct backend *backend;
    enum copy_state state;
    char *name, *path; /* path as the backend sees it */
    int version;
    char as[PUSH_NAME_BYTES];
    uint64_t epoch;  /* of the backend, when the load began */
    bool unwanted;   /* nothing in the registry leads to it */
    int uses;        /* requests that have it or wait for it */
    int64_t used_ms; /* a use began or ended */
    struct waiters waiting;
    struct http_call *call; /* LOADING, UNLOADING */
    char *url, *body;
    struct buf reply;
    int status;
    int64_t refused_until_ms;
    struct err why; /* REFUSED, or why the latest load failed */
};

void push_name(char out[PUSH_NAME_BYTES], const char *name, int version, const uint8_t *digest)
{
    int n = snprintf(out, PUSH_NAME_BYTES, "%.128s@%d-", name, version);
    for (int i = 0; i < DIGEST_BYTES; i++)
        n += snprintf(out + n, PUSH_NAME_BYTES - (size_t)n, "%02x", digest[i]);
}

bool push_is_name(const char *name)
{
    const char *at = strrchr(name, '@'), *digest = at ? strchr(at, '-') : NULL;
    return digest && digest > at + 1 && strspn(at + 1, "0123456789") == (size_t)(digest - at - 1) &&
           strlen(digest + 1) == 2 * DIGEST_BYTES &&
           strspn(digest + 1, "0123456789abcdef") == 2 * DIGEST_BYTES;
}

/* Counts what may have made the backend forget its adapters. */
static uint64_t epoch_of(const struct backend *b)
{
    return b->n_ejections + b->n_starts;
}

static struct adapter_copy *find(const struct backend *b, const char *as)
{
    struct adapter_copy *c = b->copies;
    while (c && strcmp(c->as, as) != 0)
        c = c->next;
    return c;
}

static bool is_refused(const struct adapter_copy *c)
{
    return c->state == COPY_REFUSED && c->epoch == epoch_of(c->backend) &&
           clock_ms() < c->refused_until_ms;
}

/* It may be asked for now. */
static bool is_there(const struct adapter_copy *c)
{
    return c->state == COPY_LOADED && c->epoch == epoch_of(c->backend);
}

const char *push_obstacle(const struct backend *b, const struct push_adapter *a)
{
    const struct backend_config *config = &b->config;
    bool reads_body = config->kind == BACKEND_OPENAI && config->api == UPSTREAM_OPENAI;
    if (config->kind != BACKEND_VLLM)
        return a->in_body && reads_body ? NULL : "takes no adapters of ours";
    const struct adapter_copy *c = find(b, a->as);
    return c && is_refused(c) ? c->why.msg : NULL;
}

bool push_has(const struct backend *b, const struct push_adapter *a)
{
    const struct adapter_copy *c = find(b, a->as);
    return c && (is_there(c) || c->state == COPY_LOADING);
}

/* ---- memory ---- */

static void end_call(struct adapter_copy *c)
{
    buf_release(&c->reply);
    free(c->url);
    free(c->body);
    c->url = c->body = NULL;
    c->call = NULL;
}

static void copy_free(struct adapter_copy *c)
{
    struct adapter_copy **at = &c->backend->copies;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    if (c->call)
        http_call_cancel(c->call);
    end_call(c);
    free(c->name);
    free(c->path);
    free(c);
}

void push_free(struct backend *b)
{
    while (b->copies)
        copy_free(b->copies);
}

int push_count(const struct backend *b)
{
    int n = 0;
    for (const struct adapter_copy *c = b->copies; c; c = c->next)
        n += is_there(c) || c->state == COPY_LOADING;
    return n;
}

/* ---- calls ---- */

static void on_head(struct http_call *call, const struct http_head *head)
{
    struct adapter_copy *c = http_call_arg(call);
    c->status = head->status;
}

static void on_data(struct http_call *call, const char *p, size_t n)
{
    struct adapter_copy *c = http_call_arg(call);
    if (c->reply.len + n <= REPLY_MAX_BYTES)
        buf_add(&c->reply, p, n);
}

/* {"lora_name": ...} to `path` of the backend's API. */
static void call(struct adapter_copy *c, const char *path, bool with_path,
                 void (*on_end)(struct http_call *call, const struct err *e))
{
    struct backend *b = c->backend;
    const struct backend_config *config = &b->config;
    struct buf text = {0}, url = {0}, auth = {0};
    struct jw w;
    jw_init(&w, &text);
    jw_obj(&w);
    jw_kstr(&w, "lora_name", c->as);
    if (with_path)
        jw_kstr(&w, "lora_path", c->path);
    jw_obj_end(&w);
    jw_done(&w);
    size_t n = text.len;
    c->body = buf_take(&text);
    buf_addf(&url, "%s%s", config->url, path);
    c->url = buf_take(&url);
    c->status = 0;
    if (config->key)
        buf_addf(&auth, "Authorization: Bearer %s", config->key);
    const char *headers[] = {"Content-Type: application/json", config->key ? auth.data : NULL,
                             NULL};
    c->call = http_call_start(b->all->client, &(struct http_call_opts){
                                                  .url = c->url,
                                                  .headers = headers,
                                                  .body = c->body,
                                                  .n_body = n,
                                                  .ca_file = config->ca_file,
                                                  .connect_ms = config->connect_ms,
                                                  .deadline_ms = clock_ms() + LOAD_MS,
                                                  .arg = c,
                                                  .on_head = on_head,
                                                  .on_data = on_data,
                                                  .on_end = on_end,
                                              });
    buf_release(&auth);
}

/* ---- loading ---- */

/* What it says of the reason, if that may be shown: not our paths. */
static void read_reason(const struct adapter_copy *c, char *out, size_t room)
{
    struct err e;
    json_t *tree = jr_parse(buf_str(&c->reply), c->reply.len, &e);
    const json_t *error = json_object_get(tree, "error");
    const char *said = json_string_value(json_object_get(error ? error : tree, "message"));
    if (said && !strstr(said, c->path))
        snprintf(out, room, "%.200s", said);
    else if (c->status == 404 && said)
        snprintf(out, room, "it finds no adapter at the path (adapter_root says where it looks)");
    else if (c->status == 404)
        snprintf(out, room,
                 "it loads none (vLLM: --enable-lora, and the environment variable "
                 "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True)");
    else
        snprintf(out, room, "it answers with status %d", c->status);
    json_decref(tree);
}

/* An error body, however it is worded, says that the name is there. */
static bool is_there_already(const struct adapter_copy *c)
{
    return c->status == 400 && strstr(buf_str(&c->reply), "already been loaded");
}

static void refuse(struct adapter_copy *c)
{
    char reason[256];
    read_reason(c, reason, sizeof reason);
    c->state = COPY_REFUSED;
    c->refused_until_ms = clock_ms() + REFUSED_MS;
    err_set(&c->why, ERR_UNSUPPORTED, "refuses the adapter %.128s: %s", c->name, reason);
    log_warn("gateway", "backend %s refuses the adapter %s: status %d, %.*s",
             c->backend->config.name, c->as, c->status,
             (int)(c->reply.len < 400 ? c->reply.len : 400), buf_str(&c->reply));
}

static void trim(struct backend *b);

static void loaded(struct http_call *call, const struct err *e)
{
    struct adapter_copy *c = http_call_arg(call);
    struct backend *b = c->backend;
    if (e) {
        c->state = COPY_NONE;
        err_set(&c->why, e->code, "did not load the adapter %.128s: %s", c->name, e->msg);
    } else if (c->status == 200 || is_there_already(c)) {
        c->state = COPY_LOADED;
        log_info("gateway", "backend %s: adapter %s is loaded", b->config.name, c->as);
    } else {
        refuse(c);
    }
    b->n_pushes++;
    b->n_push_failures += c->state != COPY_LOADED;
    end_call(c);
    backend_ref(
        b); /* who is woken may let go of both, but the reason must stay until the last one */
    c->uses++;
    waiters_wake(&c->waiting, c->state == COPY_LOADED ? NULL : &c->why);
    c->uses--;
    trim(b);
    backend_unref(b);
}

static void load(struct adapter_copy *c)
{
    c->state = COPY_LOADING;
    c->epoch = epoch_of(c->backend);
    call(c, "/v1/load_lora_adapter", true, loaded);
}

/* ---- unloading ---- */

static void unloaded(struct http_call *call, const struct err *e)
{
    struct adapter_copy *c = http_call_arg(call);
    struct backend *b = c->backend;
    if (e || c->status != 200)
        log_warn("gateway", "backend %s: adapter %s may still be loaded: %s", b->config.name, c->as,
                 e ? e->msg : "it does not unload it");
    else
        log_info("gateway", "backend %s: adapter %s is unloaded", b->config.name, c->as);
    end_call(c);
    c->state = COPY_NONE;
    if (c->uses)
        load(c); /* wanted again meanwhile */
    else
        copy_free(c);
}

static void unload(struct adapter_copy *c)
{
    c->state = COPY_UNLOADING;
    call(c, "/v1/unload_lora_adapter", false, unloaded);
}

static struct adapter_copy *idle_longest(const struct backend *b)
{
    struct adapter_copy *best = NULL;
    for (struct adapter_copy *c = b->copies; c; c = c->next)
        if (is_there(c) && !c->uses && (!best || c->used_ms < best->used_ms))
            best = c;
    return best;
}

/* Lets go of what nobody wants, and of the least recently used above the limit. */
static void trim(struct backend *b)
{
    for (struct adapter_copy *c = b->copies, *next; c; c = next) {
        next = c->next;
        if (c->uses || c->call)
            continue;
        if (c->unwanted && is_there(c))
            unload(c);
        else if (c->unwanted || (!is_there(c) && !is_refused(c)))
            copy_free(c);
    }
    for (struct adapter_copy *c; push_count(b) > b->config.max_adapters && (c = idle_longest(b));)
        unload(c);
}

/* ---- uses ---- */

/* Below the adapter_root of the backend as ours is below the root; NULL: it is not below it. */
static char *path_there(const struct backend *b, const struct push_adapter *a)
{
    struct buf path = {0};
    const char *root = b->config.adapter_root;
    size_t n = a->root ? strlen(a->root) : 0;
    if (!root)
        return xstrdup(a->path);
    if (!n || strncmp(a->path, a->root, n) != 0 || a->path[n] != '/')
        return NULL;
    buf_addf(&path, "%s%s", root, a->path + n);
    return buf_take(&path);
}

static struct adapter_copy *make(struct backend *b, const struct push_adapter *a, struct err *e)
{
    char *path = path_there(b, a);
    if (!path) {
        err_set(e, ERR_INVALID, "cannot find the adapter %.128s, which is not below --adapter-root",
                a->name);
        return NULL;
    }
    struct adapter_copy *c = xcalloc(1, sizeof *c);
    c->backend = b;
    c->name = xstrdup(a->name);
    c->version = a->version;
    c->path = path;
    snprintf(c->as, sizeof c->as, "%s", a->as);
    c->next = b->copies;
    b->copies = c;
    return c;
}

int push_take(struct backend *b, const struct push_adapter *a, struct push_use *u, const char **as,
              struct err *e)
{
    if (b->config.kind != BACKEND_VLLM)
        return 1;
    struct adapter_copy *c = u->copy ? u->copy : find(b, a->as);
    if (!c)
        c = make(b, a, e);
    if (!c)
        return ERR_INVALID;
    if (is_refused(c))
        return err_set(e, c->why.code, "%s", c->why.msg);
    c->uses += !u->copy;
    c->used_ms = clock_ms();
    c->unwanted = false;
    u->copy = c;
    if (is_there(c)) {
        *as = c->as;
        return 1;
    }
    if (!c->call)
        load(c);
    waiters_add(&c->waiting, &u->waiter);
    trim(b);
    return 0;
}

void push_release(struct push_use *u)
{
    struct adapter_copy *c = u->copy;
    waiter_cancel(&u->waiter);
    u->copy = NULL;
    if (!c)
        return;
    c->uses--;
    c->used_ms = clock_ms();
    trim(c->backend);
}

void push_lost(struct push_use *u)
{
    if (u->copy && u->copy->state == COPY_LOADED)
        u->copy->state = COPY_NONE;
}

void push_settle(struct backends *all, const char *name,
                 bool (*wanted)(void *arg, const char *name, int version), void *arg)
{
    for (size_t i = 0; i < all->n; i++) {
        for (struct adapter_copy *c = all->list[i]->copies; c; c = c->next)
            if (strcmp(c->name, name) == 0)
                c->unwanted = !wanted(arg, name, c->version);
        trim(all->list[i]);
    }
}

void push_write(const struct backend *b, struct jw *w)
{
    jw_arr(w);
    for (const struct adapter_copy *c = b->copies; c; c = c->next)
        if (is_there(c))
            jw_str(w, c->as);
    jw_arr_end(w);
}
