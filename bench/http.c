/* bench-http PORT [EVENTS_PER_STEP [CERT KEY]]: a server to put load on, with nothing behind it.
 *
 *   wrk -c64 http://127.0.0.1:PORT/health     one small reply
 *   wrk -c200 http://127.0.0.1:PORT/stream    100 events each, made by another thread
 *   many connections to /idle                 streams that say nothing: memory of each
 *
 * For a gateway in front of it, it is an engine without any work: /v1/models, and
 * POST /v1/chat/completions, answered at once, or with "stream":true by 100 events and [DONE].
 *
 * The other thread stands for an engine: it makes one event for each open stream per step, and
 * posts a step to the loop at once. It runs as fast as the loop takes the steps. */
#define _GNU_SOURCE /* memmem */
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "http/http.h"
#include "http/loop.h"

enum { EVENTS = 100, MAX_STREAMS = 20000 };

static const char answer[] =
    "{\"id\":\"chatcmpl-0\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hello.\"},"
    "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,"
    "\"total_tokens\":11}}";
static const char models[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"created\":1,"
    "\"owned_by\":\"bench\"}]}";

struct stream {
    struct http_req *req; /* NULL once the client has gone; the loop's thread only */
    bool done_mark;       /* [DONE] after the last event */
    int n_sent;           /* the loop's thread only */
    int n_made;           /* the producer's only */
};

struct bench {
    struct http_loop *loop;
    pthread_mutex_t lock;
    struct stream *fresh[MAX_STREAMS]; /* under lock: new, for the producer */
    int n_fresh;
    sem_t work; /* a stream is fresh, or the last step is done */
    atomic_bool step_done;
    struct stream *step[MAX_STREAMS]; /* the producer's, or the loop's while a step is posted */
    int n_step;
    int events_per_step;
};

static void on_closed(struct http_req *r, bool complete)
{
    struct stream *s = r->user;
    if (s)
        s->req = NULL;
}

static void on_request(struct http_req *r)
{
    struct bench *b = r->arg;
    if (str_eqs(r->path, "/idle")) {
        http_begin_events(r);
        return;
    }
    bool chat = str_eqs(r->path, "/v1/chat/completions");
    bool streams = chat && memmem(r->body.p, r->body.n, "\"stream\":true", 13);
    if ((chat && !streams) || str_eqs(r->path, "/v1/models")) {
        const char *text = chat ? answer : models;
        http_reply(r, 200, "application/json", text, strlen(text));
        return;
    }
    if (!streams && !str_eqs(r->path, "/stream")) {
        http_reply(r, 200, "application/json", "{\"status\":\"ok\"}", 15);
        return;
    }
    struct stream *s = xcalloc(1, sizeof *s);
    s->req = r;
    s->done_mark = streams;
    r->user = s;
    r->on_closed = on_closed;
    http_begin_events(r);
    pthread_mutex_lock(&b->lock);
    BUG_ON(b->n_fresh == MAX_STREAMS);
    b->fresh[b->n_fresh++] = s;
    pthread_mutex_unlock(&b->lock);
    sem_post(&b->work);
}

static void run_step(void *arg)
{
    static const char token[] = "{\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},"
                                "\"finish_reason\":null}],\"id\":\"chatcmpl-0\"}";
    struct bench *b = arg;
    for (int i = 0; i < b->n_step; i++) {
        struct stream *s = b->step[i];
        for (int k = 0; k < b->events_per_step && s->n_sent < EVENTS; k++, s->n_sent++)
            if (s->req)
                http_write_event(s->req, NULL, token, sizeof token - 1);
        if (s->n_sent < EVENTS)
            continue;
        if (s->req) {
            s->req->user = NULL;
            if (s->done_mark)
                http_write_event(s->req, NULL, "[DONE]", 6);
            http_end(s->req);
        }
    }
    atomic_store(&b->step_done, true);
    sem_post(&b->work);
}

static void *produce(void *arg)
{
    struct bench *b = arg;
    for (;;) {
        while (sem_wait(&b->work) != 0)
            ;
        if (!atomic_load(&b->step_done))
            continue;
        int n = 0;
        for (int i = 0; i < b->n_step; i++) /* those that have not ended with the last step */
            if (b->step[i]->n_made < EVENTS)
                b->step[n++] = b->step[i];
            else
                free(b->step[i]);
        pthread_mutex_lock(&b->lock);
        while (b->n_fresh && n < MAX_STREAMS)
            b->step[n++] = b->fresh[--b->n_fresh];
        pthread_mutex_unlock(&b->lock);
        for (int i = 0; i < n; i++)
            b->step[i]->n_made += b->events_per_step;
        b->n_step = n;
        if (n) {
            atomic_store(&b->step_done, false);
            http_loop_post(b->loop, run_step, b);
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct bench *b = xcalloc(1, sizeof *b);
    struct http_server *server;
    struct err e = {0};
    pthread_t producer;
    int port;
    struct http_server_opts o = http_server_defaults();
    o.port = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 0;
    b->events_per_step = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 1;
    if (argc > 4) {
        o.cert_file = argv[3];
        o.key_file = argv[4];
    }
    if (b->events_per_step < 1 || argc == 4) {
        fprintf(stderr, "usage: bench-http PORT [EVENTS_PER_STEP [CERT KEY]]\n");
        return 2;
    }
    o.handler.on_request = on_request;
    o.arg = b;
    atomic_store(&b->step_done, true);
    pthread_mutex_init(&b->lock, NULL);
    sem_init(&b->work, 0, 0);
    if (http_loop_new(&b->loop, &e) < 0 || http_server_open(&server, b->loop, &o, &port, &e) < 0) {
        fprintf(stderr, "bench-http: %s\n", e.msg);
        return 1;
    }
    pthread_create(&producer, NULL, produce, b);
    fprintf(stderr, "listening on port %d\n", port);
    http_loop_run(b->loop);
    return 0;
}
