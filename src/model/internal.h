/* internal.h - what a model is made of. Private to src/model. */
#pragma once

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "kernels/kernels.h"
#include "model/arch.h"
#include "model/deal.h"
#include "model/hparams.h"
#include "model/model.h"
#include "model/plan.h"
#include "model/rope.h"
#include "model/weights.h"

enum {
    N_ACT_TYPES = ACT_TYPES,
    MAX_BATCH_TOKENS = 1 << 16,
    SMALL_BATCH = 4, /* tokens: up to here each thread makes the inputs of products for itself */
};

struct thread_scratch {
    float *normed; /* [SMALL_BATCH][n_embd] */
    void *act[N_ACT_TYPES];
    char *attention;
};

/* One adapter's tokens in a step. */
struct lora_group {
    const struct adapter *adapter;
    int first, n; /* in lora_lists.tokens */
    size_t h;     /* where its part of h begins */
};

/* The tokens of a step by adapter (lora.h). h and own are for the largest ranks on every token:
 * memory that the system hands out as it is touched. */
struct lora_lists {
    struct lora_group *groups;
    int n_groups;
    int32_t *tokens; /* ascending within a group */
    float *scales;
    uint16_t *h;
    void *own; /* of each thread: gate_floats floats, then h of a small step */
    size_t h_bytes, own_bytes, gate_floats;
    size_t bytes; /* of all this */
    int n_threads;
};

/* Memory of one step for at most n_tokens tokens (T). Two buffers serve twice in a layer, because
 * their first content is used up when the second is made. */
struct scratch {
    int n_tokens;
    float *x;      /* [T][n_embd] the residual stream */
    float *narrow; /* [T][n_embd] normalised x, then [T][q] what attention gave */
    float *wide;   /* [T][q + 2 kv] q, k, v, then [T][n_ff] the feed-forward inside */
    float *angles; /* [T][n_rot] */
    void *act[N_ACT_TYPES];
    float *partials; /* [n_kv_heads][PLAN_MAX_PARTIALS][group][partial floats] */
    struct thread_scratch *threads;
    int32_t *rows;         /* [T] tokens whose logits are wanted */
    struct deal_run *runs; /* [n_threads] tiles of the product under way */
    void *memory;
    size_t bytes;
    struct plan plan;
    struct lora_lists lora;
};

struct model {
    struct model_info info;
    struct hparams hp;
    const struct arch *arch;
    struct weights weights;
    struct rope rope;
    struct kv_layout kv;
    const struct kernels *kernels;
    struct pool *pool;
    bool no_sharing;
    struct scratch scratch;
};

struct kv_mem {
    char *memory;
    size_t bytes;
    size_t block_bytes; /* of one layer */
    size_t layer_bytes;
    int n_layers, n_blocks;
    /* the thread that makes memory before its first use */
    pthread_t thread;
    bool has_thread;
    atomic_bool stop, all, busy; /* busy: a step is computed */
    sem_t wake;
    _Atomic int wanted; /* blocks before this one are to be made soon */
};

/* This block is in use, those after it will be soon. */
void kv_mem_reach(struct kv_mem *kv, int32_t block);

int lora_lists_init(struct lora_lists *l, int n_tokens, int n_threads, struct err *e);
void lora_lists_release(struct lora_lists *l);
int scratch_init(struct scratch *s, const struct model *m, int n_tokens, struct err *e);
size_t scratch_bytes(const struct scratch *s); /* of all of it */
void scratch_release(struct scratch *s);
