/* engine.h - generates text for many requests at once on one model.
 *
 * An engine owns one thread. engine_submit hands a request in from any thread; the engine answers
 * with events, delivered once per step as one list to the sink. Every submitted request gets
 * exactly one final event: also on cancel, error and shutdown.
 *
 * The engine knows token ids and text, never JSON or sockets, and reaches the model only through
 * struct engine_model, so tests run it on a fake. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/pool.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"

struct engine;

/* What the engine needs of a model. */
struct engine_model {
    void *ctx;
    int n_vocab;
    int max_batch_tokens;
    int n_blocks; /* KV blocks in the pool */
    int n_ctx;    /* longest sequence, prompt and output together */
    void (*forward)(void *ctx, const struct batch_seq *seqs, int n_seqs, float *logits);
    void (*copy_block)(void *ctx, int32_t to, int32_t from, int n_tokens);
    /* The bytes of a block, so that pinned prompts can be kept elsewhere; read_block NULL: they
     * cannot. */
    size_t block_bytes;
    void (*read_block)(void *ctx, int32_t block, void *out);
    void (*write_block)(void *ctx, int32_t block, const void *in);
};

struct logit_bias {
    int32_t id;
    float bias;
};

/* How the next token is chosen, in this order: bias, penalties, (greedy if temperature is 0) top_k,
 * typical_p, top_p, min_p, temperature, draw. */
struct sampling {
    float temperature;        /* 0: greedy */
    int top_k;                /* 0: off */
    float top_p;              /* 1: off */
    float min_p;              /* 0: off */
    float typical_p;          /* 1: off */
    float repetition_penalty; /* 1: off; over the last repeat_last_n tokens of prompt and output */
    int repeat_last_n;        /* 0: off, -1: all (the default) */
    float frequency_penalty;  /* 0: off; over the output, as OpenAI defines it */
    float presence_penalty;   /* 0: off */
    bool has_seed;
    uint64_t seed; /* the same seed, prompt and parameters give the same tokens */
    const struct logit_bias *bias;
    int n_bias;
    int n_logprobs; /* -1: none; 0..20: of the chosen token and so many alternatives */
};

void sampling_default(struct sampling *s); /* temperature 1, everything else off */

struct engine_request {
    const int32_t *prompt; /* copied */
    int n_prompt;
    struct sampling sampling;
    int max_tokens;          /* > 0; cut to what n_ctx leaves */
    int min_tokens;          /* so many tokens come before an end of generation or stop may */
    bool ignore_eos;         /* end-of-generation tokens are tokens like others */
    const char *const *stop; /* strings, copied */
    int n_stop;
    bool include_stop;       /* the stop string (or ending token) stays in the text */
    const int32_t *stop_ids; /* copied */
    int n_stop_ids;
    bool speculate; /* while the machine has time to spare, guess tokens that repeat earlier text
                       and verify several in one step: the same answer, sooner */
    bool special;   /* control tokens appear in the text */
    const char *tenant; /* who waits for whom: fairness is per tenant; "" or NULL: the common one */
    const char *cache_salt; /* prefixes are shared under the same salt only, "" or NULL: none */
    /* What changes the model for this request; copied. The engine holds a reference to each adapter
     * until the request is over, so the caller may replace or drop it at any time: a request ends
     * with the adapter that it began with. Prefixes are shared under the same adapters (by content
     * digest) and scales only. Activated adapters (adapter.h) are the exception: what comes before
     * the tokens that activate one is shared with everybody who has the same other adapters. All
     * activated ones of a request must begin at the same token; one whose tokens the prompt does
     * not have is left out. */
    const struct adapter_use *adapters;
    int n_adapters;      /* 0 .. MODEL_MAX_ADAPTERS */
    bool pin;            /* the prompt's KV stays after the final event, until engine_unpin */
    int priority;        /* lower runs earlier, 0 is normal */
    int64_t deadline_ms; /* clock_ms() after which it ends with FINISH_TIMEOUT, 0: none */
    void *user;          /* comes back in every event */
};

enum finish_reason {
    FINISH_NONE,   /* not final */
    FINISH_STOP,   /* end-of-generation token, stop id or stop string */
    FINISH_LENGTH, /* max_tokens or context */
    FINISH_CANCEL, /* engine_cancel, or the engine was closed */
    FINISH_TIMEOUT,
    FINISH_ERROR, /* err says why */
};

struct token_logprob {
    int32_t id;
    float logprob; /* natural log, of the model's distribution before temperature and cuts */
};

struct engine_usage {
    int prompt_tokens, cached_tokens, completion_tokens;
    int64_t queue_ms, prefill_ms, decode_ms; /* submit to first step; to first token; to the end */
};

/* One event of one request. Text is whole UTF-8 characters and never holds a part of a stop string
 * that is about to match. An event may carry tokens without text (held back) and the final one may
 * carry text. */
struct engine_event {
    struct engine_event *next;
    void *user;
    char *text; /* NUL-terminated, may be "" */
    size_t n_text;
    const int32_t *ids; /* tokens sampled in this event, n_ids of them */
    int n_ids;
    const struct token_logprob
        *logprobs; /* n_ids x (1 + n_logprobs): the chosen one first; NULL if none */
    int n_logprobs;
    enum finish_reason finish;
    char *stop_text;           /* the stop string that matched, or NULL */
    int32_t stop_id;           /* the id of stop_ids that matched, or -1 */
    struct engine_usage usage; /* in the final event */
    struct err err;            /* with FINISH_ERROR */
};

/* Called on the engine's thread, once per step that produced events, in order. The receiver owns
 * the list and frees it with engine_events_free. It must not block and may call
 * engine_submit/cancel. */
typedef void engine_sink_fn(void *arg, struct engine_event *list);
void engine_events_free(struct engine_event *list);

struct engine_opts {
    struct engine_model model;
    const struct tokenizer *tokenizer; /* outlives the engine; for text and end-of-generation ids */
    struct pool *pool; /* that others compute on too: a step is a turn, in which the model may
                          yield. Outlives the engine; NULL: nobody else does */
    int max_running;   /* most sequences in a step, 0: 64 */
    int max_queue;     /* most requests waiting, 0: 1024 */
    int step_ms;       /* most a step should take while streams run, 0: 150 */
    int64_t step_deadline_ms; /* a step longer than this makes engine_health unhealthy, 0: 60000 */
    bool prefix_cache;
    int max_pinned_blocks; /* that pinned prompts may hold; the rest is for requests */
    int spec_tokens;       /* most tokens of a step that has guesses in it, 0: 6, 1: never guess */
    bool check;            /* verify all block accounts after every step; else only when idle */
    bool manual; /* no thread: the caller runs the steps with engine_step (tests, tools) */
    int64_t (*now_ns)(void *arg); /* times steps, NULL: clock_ns. A simulation has its own time */
    void *now_arg;
    engine_sink_fn *sink;
    void *sink_arg;
};

int engine_new(struct engine **out, const struct engine_opts *o, struct err *e);

/* With opts.manual only: one step. False when there was nothing to do. */
bool engine_step(struct engine *g);

/* Ends every request with FINISH_CANCEL, stops the thread. */
void engine_free(struct engine *g);

/* Any thread. Copies what r points to. ERR_INVALID (naming the field) for what can never run: empty
 * prompt, prompt longer than the context, ids out of range, parameters out of range. ERR_BUSY when
 * the queue is full. On 0, *id names the request for engine_cancel and exactly one final event will
 * follow. */
int engine_submit(struct engine *g, const struct engine_request *r, uint64_t *id, struct err *e);

/* Any thread. The final event (FINISH_CANCEL unless it is over already) follows within one step. */
void engine_cancel(struct engine *g, uint64_t id);

/* A slow reader: the sequence takes no part in steps until resumed. Any thread. */
void engine_pause(struct engine *g, uint64_t id, bool paused);

/* A request with `pin` computes a prompt ahead (a persona): from then on prompts that begin with it
 * find it, however long ago that was. ERR_LIMIT from engine_submit when max_pinned_blocks has no
 * room. It stays until engine_unpin or engine_forget. A request that is cancelled or fails pins
 * nothing. */
void engine_unpin(struct engine *g, uint64_t id);

/* Pinned prompts, block by block out of the engine and back into one (spill.h makes files of them).
 * Any thread but the engine's; each call waits until the engine has done it between two steps.
 *
 * A prompt comes back as a pin of its own: engine_import_begin takes its room (ERR_LIMIT as
 * engine_submit), then its blocks come in their order; each can be found from then on. Until the
 * last one has come, and after, engine_unpin lets it go. ERR_CANCELED: the pin is gone or the
 * engine is closing. ERR_LIMIT: no block is free. ERR_UNSUPPORTED: the model gives no blocks out.
 */
struct engine_prefix {
    const int32_t *tokens; /* copied */
    int n_tokens;
    const char *cache_salt;             /* "" or NULL: none */
    const struct adapter_use *adapters; /* needed during the call only */
    int n_adapters;
};
size_t engine_block_bytes(const struct engine *g);
int engine_export_block(struct engine *g, uint64_t id, int index, void *out, struct err *e);
int engine_import_begin(struct engine *g, const struct engine_prefix *p, uint64_t *id,
                        struct err *e);
int engine_import_block(struct engine *g, uint64_t id, const void *in, struct err *e);

/* Forgets what is cached under one salt, with any adapters, pins included, or (all) everything.
 * Running requests go on. Any thread. */
void engine_forget(struct engine *g, const char *cache_salt);
void engine_forget_all(struct engine *g);

/* How many steps there were by the number of tokens in them: at most engine_step_sizes[i], the last
 * count is of all larger ones. */
enum { ENGINE_STEP_SIZES = 12 };
extern const int engine_step_sizes[ENGINE_STEP_SIZES];

struct engine_stats {
    int running, waiting; /* waiting: queued, preempted, or just handed in */
    int deferred;         /* of those that wait: for what another sequence is computing for both */
    int blocks_total, blocks_free, blocks_cached, blocks_held;
    int blocks_pin_limit; /* max_pinned_blocks as it is in force */
    int blocks_pinned;    /* references of pins: two pins may hold the same block */
    /* since the start; prompt_tokens of started requests, cached_tokens of them came from the cache
     */
    uint64_t steps, prompt_tokens, generated_tokens, cached_tokens, preemptions, requests_done;
    uint64_t computed_tokens; /* through the model, recomputation after preemption included */
    uint64_t step_sizes[ENGINE_STEP_SIZES + 1];
    uint64_t evictions; /* cached blocks given up for new ones */
    uint64_t drafts, draft_tokens,
        accepted_tokens; /* speculation: guesses, their tokens, how many held */
    double steps_ms;     /* time in steps */
    double turns_ms;     /* time waited before and within them for others of opts.pool */
    double last_step_ms;
    int last_step_tokens;
};
void engine_get_stats(struct engine *g, struct engine_stats *out);

/* True, or false and the reason in e: a step has been running longer than its deadline. Any thread.
 */
bool engine_health(struct engine *g, struct err *e);
