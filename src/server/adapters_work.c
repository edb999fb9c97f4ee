#define _GNU_SOURCE /* gettid */
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/mem.h"
#include "server/adapters_private.h"

enum { NICE = 5 };

static void over(void *arg)
{
    struct adapter_task *t = arg;
    t->done(t);
}

/* /health tells about it. An adapter that cannot be loaded is its users' trouble, not the server's,
 * so no watch ends with a failure. */
static void run(struct adapter_task *t)
{
    char what[96];
    snprintf(what, sizeof what, "%s %.60s", t->what, t->name);
    struct server_watch *watch = server_watch_begin(t->server, what, t->stall_ms);
    t->run(t);
    server_watch_end(watch, NULL);
}

static struct adapter_task *take(struct adapter_worker *w, bool *stop)
{
    pthread_mutex_lock(&w->lock);
    while (!w->first && !w->stop)
        pthread_cond_wait(&w->more, &w->lock);
    struct adapter_task *t = w->first;
    if (t) {
        w->first = t->next;
        if (!w->first)
            w->tail = &w->first;
    }
    *stop = w->stop;
    pthread_mutex_unlock(&w->lock);
    return t;
}

static void *work(void *arg)
{
    struct adapter_worker *w = arg;
    bool stop;
    /* of this thread only: a step that has lost a processor holds every stream up, a load one
     * request. Where it cannot be lowered, so be it. */
    setpriority(PRIO_PROCESS, (id_t)gettid(), NICE);
    for (struct adapter_task *t; (t = take(w, &stop));) {
        struct http_loop *loop = t->server->loop;
        if (stop)
            t->canceled = true;
        else
            run(t);
        http_loop_post(loop, over, t);
    }
    return NULL;
}

void worker_start(struct adapter_worker *w)
{
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->more, NULL);
    w->tail = &w->first;
    if (pthread_create(&w->thread, NULL, work, w))
        BUG("no thread to load adapters on");
}

void worker_add(struct adapter_worker *w, struct adapter_task *t)
{
    t->next = NULL;
    pthread_mutex_lock(&w->lock);
    *w->tail = t;
    w->tail = &t->next;
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
}

void worker_stop(struct adapter_worker *w)
{
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->more);
    pthread_mutex_destroy(&w->lock);
}
