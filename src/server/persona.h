/* persona.h - personas: named beginnings of chats, computed ahead and kept.
 *
 * A persona's prompt is what every chat that begins with its messages has in common. It goes
 * through the engine once, with one token of answer; from then on its KV is found by content like
 * any other prefix, and a pin keeps it from being evicted. A chat that names a persona whose prompt
 * is not ready works too: it is only slower.
 *
 * What is pinned is kept in a file as well (persona_kv.h), and read back after a restart: that,
 * too, is COMPUTING.
 *
 *     POST, start, attach -> WAITING -> COMPUTING -> READY
 *                               ^           |-> FAILED
 *                               +-- reset, reload, a full queue, another version of an adapter
 *
 * A persona may have adapters, and its chats with it. They are leased (adapters.h) while its prompt
 * is computed, read or written; what was computed is given up when their names stand for something
 * else. While one of them is not there the persona is FAILED, and tried again when it is.
 *
 * One persona is computed at a time, so that a start with many of them leaves the engine to
 * requests. The list lives on the server's thread; `lock` guards it for personas_apply. Pins are
 * counted here as the engine counts them (nobody else pins), so that a persona that cannot fit is
 * refused before it replaces another. */
#pragma once

#include "api/persona.h"
#include "server/adapters.h"
#include "server/service.h"

enum {
    PERSONA_MAX = 256,             /* personas */
    PERSONA_MAX_BYTES = 256 << 10, /* of a body */
    PERSONA_FILE_VERSION = 1,
    PERSONA_SALT_BYTES = KEY_NAME_BYTES + 3,
    PERSONA_ID_BYTES = PERSONA_NAME_BYTES + 1 + KEY_NAME_BYTES,
};

enum persona_state { PERSONA_WAITING, PERSONA_COMPUTING, PERSONA_READY, PERSONA_FAILED };

struct persona {
    struct personas *all;
    struct persona *next; /* in the order of registration */
    char name[PERSONA_NAME_BYTES + 1];
    char tenant[KEY_NAME_BYTES + 1]; /* whose it is, "": it was made without keys */
    char id[PERSONA_ID_BYTES + 1];   /* of both: persona_id */
    char *model;
    json_t *messages; /* never changed: readers share it under the lock */
    json_t *adapter;  /* as it was asked for, NULL: none */
    struct adapter_choice adapters[API_MAX_ADAPTERS];
    size_t n_adapters;
    struct arena arena; /* of their names */
    bool pin;
    int64_t created_unix_s;
    enum persona_state state;
    struct err err;           /* FAILED: why, */
    bool lacks_adapter;       /* and that its adapters were the reason */
    struct token_list prompt; /* n == 0: not made yet, or nothing in common */
    struct persona_run *run;  /* COMPUTING */
    /* COMPUTING, READY: what its adapters compute with */
    uint8_t digests[API_MAX_ADAPTERS][REGISTRY_DIGEST_BYTES];
    struct served *pinned_in; /* NULL: holds no pin */
    uint64_t pin_id;
    struct kv_task *kv_task; /* its file is being read or written */
    uint64_t kv_bytes;       /* of its file, 0: there is none that is right */
    bool kv_tried;           /* its file need not be looked for */
    struct exchange *x;      /* POST that waits for the computation, or NULL */
};

struct personas {
    struct server *server;
    char *path; /* of the state file, NULL: nothing is kept */
    pthread_mutex_t lock;
    struct persona *first;
    size_t n;
    bool computing;
    bool unsaved;          /* the file says something else: its disk was full, or the like */
    struct persona_kv *kv; /* NULL: computed prompts are not kept */
};

/* Reads DIR/personas.json if it is there; what is wrong with it goes to the log. state_dir NULL:
 * personas end with the process. spill_bytes: of computed prompts, in DIR/personas. */
struct personas *personas_new(struct server *s, const char *state_dir, uint64_t spill_bytes);
void personas_free(struct personas *all);

/* "teacher@acme", or "teacher" without a tenant: no two personas have the same, and it is fit for
 * the name of a file. Cut if the name is longer than that of a persona. */
void persona_id(const char *tenant, const char *name, char out[PERSONA_ID_BYTES + 1]);

struct persona *personas_find(const struct personas *all, const char *id);

/* Puts the messages of r->persona, one of that tenant ("" without keys), before r's own, its model
 * where r names none, and its adapters where r chooses none. Any thread. ERR_NOTFOUND. */
int personas_apply(struct personas *all, const char *tenant, struct chat_request *r, struct err *e);

/* Registers or replaces, and begins to compute; x gets its answer when that is over. On error
 * nothing has changed. ERR_LIMIT: too many, too long, or over the budget of pins; else as
 * adapters_take. */
int personas_put(struct personas *all, const char *tenant, const struct persona_spec *spec,
                 struct served *m, struct exchange *x, struct err *e);

/* Removes all of a tenant whose name, model and one of whose adapters match (NULL: any). Returns
 * how many. */
int personas_remove(struct personas *all, const char *tenant, const char *name, const char *model,
                    const char *adapter);

/* What was computed for m (NULL: for any model) is gone: computes it again. */
void personas_lost(struct personas *all, const struct served *m);

/* Names of adapters may stand for something else: what was computed under others is given
 * up, and computed again soon. */
void personas_adapters_changed(struct personas *all);

void personas_advance(struct personas *all); /* starts what waits; also once a second */
void personas_client_gone(struct persona *p);

/* The server is ending: what is read or written is over soon; with `now` it is given up. */
void personas_stop(struct personas *all, bool now);
bool personas_busy(const struct personas *all); /* engines are in use */

/* persona_kv.c: p's prompt is pinned in m under id, or (m NULL) must be computed. */
void personas_read_back(struct persona *p, struct served *m, uint64_t id);

int persona_blocks(const struct persona *p); /* that its pin holds or will hold */

/* persona_file.c: atomically, so that a crash leaves the old file or the new one. */
void personas_load(struct personas *all);
void personas_save(struct personas *all);
void personas_save_again(struct personas *all); /* what could not be saved; once a second */
/* Every folder of a file's path, for the owner only: prompts may be private. */
void personas_make_folders(const char *path);
void personas_restore(struct personas *all, const char *tenant, const struct persona_spec *spec,
                      int64_t created);

/* What keeps its KV apart from that of other tenants, as in terms.h; NULL: nothing. */
const char *persona_salt(const struct persona *p, char room[PERSONA_SALT_BYTES]);

/* persona_http.c */
void persona_answer(struct persona *p); /* to p->x */
