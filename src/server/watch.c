#include "server/service.h"

enum { STALL_MS = 60000 };

void watch_init(struct watch_list *l)
{
    *l = (struct watch_list){0};
    pthread_mutex_init(&l->lock, NULL);
}

void watch_release(struct watch_list *l)
{
    pthread_mutex_destroy(&l->lock);
}

static struct server_watch *begin(struct watch_list *l, const char *what, int64_t stall_ms,
                                  bool minor)
{
    struct server_watch *w = NULL;
    pthread_mutex_lock(&l->lock);
    for (int i = 0; i < WATCHES && !w; i++)
        if (!l->items[i].used)
            w = &l->items[i];
    if (w) {
        *w = (struct server_watch){.list = l, .used = true, .minor = minor};
        w->stall_ms = stall_ms ? stall_ms : STALL_MS;
        w->changed_ms = clock_ms();
        snprintf(w->what, sizeof w->what, "%s", what);
    }
    pthread_mutex_unlock(&l->lock);
    return w;
}

struct server_watch *server_watch_begin(struct server *s, const char *what, int64_t stall_ms)
{
    return begin(&s->watches, what, stall_ms, false);
}

struct server_watch *watch_begin_minor(struct watch_list *l, const char *what, int64_t stall_ms)
{
    return begin(l, what, stall_ms, true);
}

void server_watch_progress(struct server_watch *w, uint64_t done, uint64_t total)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->list->lock);
    if (w->done != done || w->total != total)
        w->changed_ms = clock_ms();
    w->done = done;
    w->total = total;
    pthread_mutex_unlock(&w->list->lock);
}

void server_watch_end(struct server_watch *w, const struct err *failed)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->list->lock);
    if (failed) {
        w->failed = true;
        snprintf(w->why, sizeof w->why, "%s", failed->msg);
    } else {
        w->used = false;
    }
    pthread_mutex_unlock(&w->list->lock);
}

static void describe(const struct server_watch *w, int64_t idle_ms, struct buf *text)
{
    if (text->len)
        buf_adds(text, "; ");
    buf_adds(text, w->what);
    if (w->failed) {
        buf_addf(text, " failed: %s", w->why);
        return;
    }
    if (w->total)
        buf_addf(text, ": %d %%", (int)(100.0 * (double)w->done / (double)w->total));
    if (idle_ms > w->stall_ms)
        buf_addf(text, ", no progress for %lld s", (long long)(idle_ms / 1000));
}

struct watch_report watch_report(struct watch_list *l, struct buf *text)
{
    struct watch_report out = {.progress = -1};
    int64_t now = clock_ms();
    pthread_mutex_lock(&l->lock);
    for (int i = 0; i < WATCHES; i++) {
        const struct server_watch *w = &l->items[i];
        if (!w->used)
            continue;
        int64_t idle_ms = now - w->changed_ms;
        describe(w, idle_ms, text);
        if (!w->minor && (w->failed || idle_ms > w->stall_ms))
            out.unhealthy = true;
        if (!w->failed && !out.running && w->total)
            out.progress = (double)w->done / (double)w->total;
        out.running = out.running || !w->failed;
    }
    pthread_mutex_unlock(&l->lock);
    return out;
}
