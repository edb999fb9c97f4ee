#include "server/persona_kv.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "engine/spill.h"
#include "model/adapter.h"

enum kv_what { KV_READ, KV_WRITE, KV_REMOVE };

struct kv_task {
    struct kv_task *next, *next_open;
    struct persona_kv *k;
    enum kv_what what;
    struct persona *p;        /* NULL: nobody wants it any more */
    struct persona_with with; /* held, with references; model NULL: KV_REMOVE */
    struct spill spill;
    struct token_list prompt;
    char salt[PERSONA_SALT_BYTES];
    char *path;
    uint64_t id; /* of the pin */
    atomic_bool gone;
    int rc;
    struct err err;
};

struct persona_kv {
    struct personas *all;
    char *dir;
    uint64_t budget_bytes;
    struct kv_task *open; /* asked for and not told yet; the server's thread */
    bool stopped;
    bool full_told; /* that the budget is used up is in the log */

    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    struct kv_task *first, **last;
    bool ending;
};

/* ---- the thread ---- */

static bool is_gone(void *arg)
{
    return atomic_load(&((struct kv_task *)arg)->gone);
}

static void work(struct kv_task *t)
{
    if (t->what == KV_READ)
        t->rc = spill_read(&t->spill, t->path, &t->id, &t->err);
    else if (t->what == KV_WRITE)
        t->rc = spill_write(&t->spill, t->id, t->path, &t->err);
    else
        unlink(t->path);
    /* damaged, or made by another model: it would be no better at the next start */
    if (t->what == KV_READ && (t->rc == ERR_FORMAT || t->rc == ERR_EXISTS))
        unlink(t->path);
}

static void told(void *arg);

static void *run(void *arg)
{
    struct persona_kv *k = arg;
    pthread_mutex_lock(&k->lock);
    for (;;) {
        while (!k->first && !k->ending)
            pthread_cond_wait(&k->wake, &k->lock);
        struct kv_task *t = k->first;
        if (!t)
            break;
        k->first = t->next;
        if (!k->first)
            k->last = &k->first;
        pthread_mutex_unlock(&k->lock);
        work(t);
        http_loop_post(k->all->server->loop, told, t);
        pthread_mutex_lock(&k->lock);
    }
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

/* ---- tasks ---- */

static struct kv_task *task_new(struct persona_kv *k, enum kv_what what, const char *name)
{
    struct buf path = {0};
    buf_addf(&path, "%s/%s.kv", k->dir, name);
    struct kv_task *t = xcalloc(1, sizeof *t);
    t->k = k;
    t->what = what;
    t->path = buf_take(&path);
    return t;
}

static void task_free(struct kv_task *t)
{
    for (int i = 0; i < t->with.n; i++)
        adapter_unref(t->with.adapters[i].adapter);
    token_list_release(&t->prompt);
    free(t->path);
    free(t);
}

static void queue(struct kv_task *t)
{
    struct persona_kv *k = t->k;
    t->next_open = k->open;
    k->open = t;
    pthread_mutex_lock(&k->lock);
    *k->last = t;
    k->last = &t->next;
    pthread_cond_signal(&k->wake);
    pthread_mutex_unlock(&k->lock);
}

/* A task for p's prompt, or NULL. */
static struct kv_task *prompt_task(struct persona_kv *k, enum kv_what what, struct persona *p,
                                   const struct persona_with *with)
{
    const struct served *m = with->model;
    if (!k || k->stopped || !m->model.kv_key || !engine_block_bytes(m->model.engine) ||
        m->state != SERVED_READY)
        return NULL;
    struct kv_task *t = task_new(k, what, p->id);
    for (size_t i = 0; i < p->prompt.n; i++)
        token_list_add(&t->prompt, p->prompt.ids[i]);
    t->with = *with;
    for (int i = 0; i < with->n; i++)
        adapter_ref(with->adapters[i].adapter);
    t->spill = (struct spill){
        .engine = m->model.engine,
        .prefix = {.tokens = t->prompt.ids,
                   .n_tokens = (int)t->prompt.n,
                   .cache_salt = persona_salt(p, t->salt),
                   .adapters = t->with.adapters,
                   .n_adapters = t->with.n},
        .key = str_of(m->model.kv_key),
        .gone = is_gone,
        .arg = t,
    };
    t->p = p;
    return t;
}

static void begin(struct kv_task *t)
{
    served_hold(t->with.model);
    t->p->kv_task = t;
    queue(t);
}

bool persona_kv_read(struct persona_kv *k, struct persona *p, const struct persona_with *with)
{
    struct kv_task *t = prompt_task(k, KV_READ, p, with);
    if (!t)
        return false;
    begin(t);
    return true;
}

void persona_kv_write(struct persona_kv *k, struct persona *p, const struct persona_with *with)
{
    struct kv_task *t = prompt_task(k, KV_WRITE, p, with);
    if (!t)
        return;
    uint64_t used = 0, need = spill_bytes(&t->spill);
    for (const struct persona *q = k->all->first; q; q = q->next)
        used += q == p ? 0 : q->kv_bytes;
    if (used > k->budget_bytes || need > k->budget_bytes - used) {
        if (!k->full_told)
            log_warn("server",
                     "persona %s is not kept for the next start: it needs %llu MiB of files, of "
                     "%llu MiB %llu are in use: raise --persona-spill or delete some",
                     p->id, (unsigned long long)need >> 20,
                     (unsigned long long)k->budget_bytes >> 20, (unsigned long long)used >> 20);
        k->full_told = true;
        task_free(t);
        return;
    }
    t->id = p->pin_id;
    p->kv_bytes = need;
    begin(t);
}

void persona_kv_remove(struct persona_kv *k, const char *name)
{
    if (k)
        queue(task_new(k, KV_REMOVE, name));
}

void persona_kv_give_up(struct persona *p)
{
    struct kv_task *t = p->kv_task;
    p->kv_bytes = 0;
    if (!t)
        return;
    atomic_store(&t->gone, true);
    t->p = NULL;
    p->kv_task = NULL;
}

/* ---- what became of them ---- */

static void tell_read(struct kv_task *t)
{
    struct persona *p = t->p;
    if (!t->rc)
        log_info("server", "persona %s: %zu tokens from %s", p->id, t->prompt.n, t->path);
    else if (t->rc != ERR_NOTFOUND)
        log_warn("server", "persona %s is computed again, %s cannot be used: %s", p->id, t->path,
                 t->err.msg);
    p->kv_bytes = t->rc ? 0 : spill_bytes(&t->spill);
    personas_read_back(p, t->rc ? NULL : t->with.model, t->id);
}

static void tell_write(struct kv_task *t)
{
    struct persona *p = t->p;
    if (!t->rc)
        return;
    p->kv_bytes = 0;
    log_error("server", "persona %s is not kept for the next start: %s", p->id, t->err.msg);
}

static void told(void *arg)
{
    struct kv_task *t = arg, **at = &t->k->open;
    while (*at != t)
        at = &(*at)->next_open;
    *at = t->next_open;
    if (t->p)
        t->p->kv_task = NULL;
    if (t->p && t->what == KV_READ)
        tell_read(t);
    else if (t->p)
        tell_write(t);
    else if (t->what == KV_READ && !t->rc)
        engine_unpin(t->with.model->model.engine, t->id);
    struct personas *all = t->k->all;
    struct served *m = t->with.model;
    task_free(t); /* its adapters go before their model */
    served_put(m);
    personas_advance(all);
}

/* ---- life ---- */

struct persona_kv *persona_kv_new(struct personas *all, const char *dir, uint64_t budget_bytes)
{
    struct buf path = {0};
    buf_addf(&path, "%s/personas", dir);
    personas_make_folders(path.data);
    if (mkdir(path.data, 0700) && errno != EEXIST) {
        log_error("server", "%s: %s: computed personas are not kept", path.data, strerror(errno));
        buf_release(&path);
        return NULL;
    }
    struct persona_kv *k = xcalloc(1, sizeof *k);
    *k = (struct persona_kv){.all = all, .dir = buf_take(&path), .budget_bytes = budget_bytes};
    k->last = &k->first;
    pthread_mutex_init(&k->lock, NULL);
    pthread_cond_init(&k->wake, NULL);
    if (pthread_create(&k->thread, NULL, run, k))
        BUG("no thread for the files of personas");
    return k;
}

void persona_kv_free(struct persona_kv *k)
{
    if (!k)
        return;
    BUG_ON(k->open);
    pthread_mutex_lock(&k->lock);
    k->ending = true;
    pthread_cond_signal(&k->wake);
    pthread_mutex_unlock(&k->lock);
    pthread_join(k->thread, NULL);
    pthread_mutex_destroy(&k->lock);
    pthread_cond_destroy(&k->wake);
    free(k->dir);
    free(k);
}

/* "teacher.kv" is of a persona, "teacher.kv.part" was being written when the process died. */
static bool belongs(const struct persona_kv *k, const char *file)
{
    char name[PERSONA_ID_BYTES + 1];
    size_t n = strlen(file);
    if (n < 4 || n - 3 > PERSONA_ID_BYTES || strcmp(file + n - 3, ".kv") != 0)
        return false;
    snprintf(name, sizeof name, "%.*s", (int)(n - 3), file);
    return personas_find(k->all, name) != NULL;
}

void persona_kv_sweep(struct persona_kv *k)
{
    DIR *d = k ? opendir(k->dir) : NULL;
    if (!d)
        return;
    for (const struct dirent *f; (f = readdir(d));) {
        if (f->d_name[0] == '.' || !strstr(f->d_name, ".kv") || belongs(k, f->d_name))
            continue;
        if (unlinkat(dirfd(d), f->d_name, 0) == 0)
            log_info("server", "removed %s/%s, which belongs to no persona", k->dir, f->d_name);
    }
    closedir(d);
}

void persona_kv_stop(struct persona_kv *k, bool all)
{
    if (!k)
        return;
    k->stopped = true;
    for (struct kv_task *t = k->open; t; t = t->next_open)
        if (all || t->what == KV_READ)
            atomic_store(&t->gone, true);
}

bool persona_kv_busy(const struct persona_kv *k)
{
    return k && k->open;
}
