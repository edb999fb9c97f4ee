/* inside.h - what an engine is made of. Private to engine.c (the steps), life.c (beginning, thread
 * and end) and calls.c (what other threads call). */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/map.h"
#include "engine/blocks.h"
#include "engine/engine.h"
#include "engine/sampler.h"
#include "engine/sched.h"
#include "engine/seq.h"

enum command_kind {
    COMMAND_CANCEL,
    COMMAND_PAUSE,
    COMMAND_RESUME,
    COMMAND_UNPIN,
    COMMAND_FORGET,
    COMMAND_TRANSFER
};

/* What somebody waits for: a block out of a pin, or a pin to begin, or its next block. */
struct transfer {
    struct engine_prefix begin; /* tokens NULL: none */
    int index;
    void *out;      /* or NULL: */
    const void *in; /* or NULL */
    int rc;
    struct err err;
    bool done; /* guarded by engine.lock */
};

struct command {
    enum command_kind kind;
    uint64_t id;
    char *salt;                /* COMMAND_FORGET: NULL is all */
    struct transfer *transfer; /* its sender's, who waits */
};

/* What other threads hand in, taken by the engine thread in one go. Guarded by engine.lock. */
struct inbox {
    struct seq *first, *last;
    int n_seqs;
    struct command *commands;
    int n_commands, cap_commands;
};

struct engine {
    struct engine_opts o;
    struct seq_limits limits;
    int32_t *eog; /* ids that end a generation */
    int n_eog;

    /* the engine thread's own */
    struct blocks blocks;
    struct sched sched;
    struct sampler sampler;
    struct seq *seqs; /* every sequence that was taken in and is not over */
    struct map by_id;
    struct batch_seq *batch; /* [max_running] */
    float *logits;
    int n_rows; /* of n_vocab floats in logits */
    struct token_logprob logprobs[21];
    int32_t *banned; /* scratch of sample */
    int cap_banned;
    struct engine_event *events, **events_end;
    struct turn_user turn; /* of opts.pool */
    bool in_pool;
    struct engine_stats count; /* the counters; snapshot is what others see */

    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake, transferred;
    struct inbox inbox;
    bool closing;
    uint64_t last_id;
    int pin_room; /* blocks that may still be promised to pins */
    struct engine_stats snapshot;
    atomic_int n_queued;          /* submitted and not in a step yet */
    atomic_llong step_started_ms; /* 0: between steps */
};

/* The engine thread's. */
extern const struct sched_ops engine_block_ops;
void engine_drain_inbox(struct engine *g);
void engine_end_all(struct engine *g);
void engine_publish_stats(struct engine *g);
void engine_check_accounts(const struct engine *g);

/* Under the lock: takes room for a pin; ERR_LIMIT. */
int engine_take_pin_room(struct engine *g, int n_blocks, struct err *e);
