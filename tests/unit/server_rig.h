/* server_rig.h - a whole service for tests: HTTP server, engine and tokenizer are the real ones,
 * the model is a rule, so that every answer can be foreseen.
 *
 * Vocabulary: 0 <unk>, 1 <s>, 2 </s>, 3 <|im_start|>, 4 <|im_end|>, then the 256 bytes, then the
 * letters a to z. The model's rule, from the last token only: a letter is followed by the next
 * letter, z by </s>, '!' by not-a-number, '#' by '!', anything else by a. So a chat gets the
 * alphabet. */
#pragma once

#include "unit.h"

#include <pthread.h>

#include "base/buf.h"
#include "engine/engine.h"
#include "server/server.h"

enum { RIG_BYTE0 = 5, RIG_A = RIG_BYTE0 + 256, RIG_VOCAB = RIG_A + 26, RIG_BLOCK_BYTES = 64 };

/* Steps of the model wait while it is closed. */
struct rig_gate {
    pthread_mutex_t lock;
    pthread_cond_t opened;
    bool closed;
};

void rig_gate_set(struct rig_gate *g, bool closed);

struct rig_opts {
    bool manual;     /* the test runs the steps with engine_step */
    bool unattached; /* no model until rig_attach */
    int n_ctx;       /* 0: 2048 */
    int max_queue;
    int max_pinned_blocks;
    const char *state_dir;
    uint64_t spill_bytes;      /* 0: computed personas are not kept */
    const char *chat_template; /* NULL: one with roles between <|im_start|> and <|im_end|> */
    const char *script; /* the model says this and ends, one request at a time; NULL: the rule */
    const char *config; /* YAML of sections, NULL: none */
    int64_t drain_ms;
    bool not_running;            /* the test runs the server's loop */
    const struct model *weights; /* what adapters change; the answers stay as they are */
    struct db *db;
    struct adapters_opts adapters;

    /* models of a loader, instead of the one above (then `unattached` is wanted) */
    struct server_loader loader;
    const char *const *models;
    size_t n_models;
    struct budget *budget;
    struct rig_gate *gate; /* of rig_model_new, NULL: none; without a script */
    int64_t keep_alive_ms, room_ms;
    size_t response_cache; /* bytes, 0: none */
};

/* A model that recites: where it is follows from the positions it is given. */
struct rig_script {
    const char *text; /* NULL: none */
    int base;         /* position of the prompt's last token */
    int next;         /* position that follows what was computed */
};

struct rig {
    struct rig_script script;
    struct server *server;
    struct engine *engine; /* of the attached model */
    struct server_model model;
    int n_ctx;
    pthread_t thread;
    int port;
    bool stopped;
};

/* A model for a loader: an engine with the rule, a tokenizer and a template of its own. */
void rig_model_new(struct rig *r, const struct rig_opts *o, struct server_model *out);
void rig_model_free(struct server_model *m); /* all but the engine */

void rig_open(struct rig *r, const struct rig_opts *o);
void rig_attach(struct rig *r);
void rig_stop(struct rig *r); /* server_stop, and waits for server_run */
void rig_close(struct rig *r);

/* Polls until the engine says so; fails the test after a minute. */
void rig_wait_running(struct rig *r, int running_and_waiting);
struct engine_stats rig_stats(struct rig *r);

/* ---- a client ---- */

int client_open(const struct rig *r);
/* Adds Content-Length and Connection: close. headers is "" or "Name: value\r\n"... */
void client_send(int fd, const char *method, const char *path, const char *headers,
                 const char *body, size_t n);

struct response {
    int status;
    struct buf head, body; /* the body without chunk framing */
    bool complete;         /* by its length or by its last chunk */
};
void client_read(int fd, struct response *out); /* to the end of the connection; closes fd */
void response_release(struct response *r);

/* All of it. The body may be NULL. */
void request(const struct rig *r, const char *method, const char *path, const char *body,
             struct response *out);

/* Ids, times and fingerprints become fixed text, so that a body can be compared as a whole. */
void mask(struct buf *body);
