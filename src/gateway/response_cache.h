/* response_cache.h - answers that were given before, and those that are being given right now.
 *
 * An entry is the answer to one key (response_key.h): the engine's events of all its choices, or
 * what a backend sent (server/remote_answer.c).
 * Whoever wants the answer is a reader. The first one leads: it has the engine make the answer and
 * adds each event; all readers, the leader among them, get the events from the record, each at its
 * own pace. Readers that come while the answer is being made follow it (single flight), later ones
 * get the whole record. What the events become, and in whose dialect, is the readers' business.
 *
 *   open -> LEAD       -> add, add, ... -> whole: kept, found by its key until it is evicted,
 *        -> COALESCED                             too old or dropped
 *        -> HIT                         -> failed or given up: never kept
 *
 * - A slow reader (response_pause) catches up from the record. While all are slow, the leader is
 *   told to hold; when the last one leaves, to stop.
 * - A leader that leaves goes on making the answer for its followers. If its run fails, it alone
 *   hears so: a follower runs the request again, and whoever has seen a part of the answer sees the
 *   rest of it, provided that the request is repeatable. The second failure is everybody's.
 * - Kept are at most budget_bytes, the least recently used go first. An answer larger than an
 *   eighth of that is handed on and not kept; then the leader holds too while a slow reader is an
 *   eighth behind.
 *
 * Everything belongs to one thread. Callbacks may call any function here for their own reader. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/str.h"
#include "engine/engine.h"
#include "gateway/response_key.h"

struct response_cache;
struct response_entry;

struct response_cache_opts {
    size_t budget_bytes;
    int64_t ttl_ms;            /* of answers whose request says nothing else */
    int64_t (*now_ms)(void *); /* NULL: clock_ms() */
    void *now_arg;
};

struct response_cache *response_cache_new(const struct response_cache_opts *o);
void response_cache_free(struct response_cache *c); /* after all readers were closed */

/* ---- readers ---- */

struct response_seen {
    uint32_t ids, text; /* so many tokens and bytes */
    bool over;          /* and the final event */
};

/* Belongs to the caller, who sets the callbacks and nothing else, {0} otherwise; stays where it is
 * until response_close, and as a leader until response_unlead. */
struct response_reader {
    /* An event of the answer; `ev` is valid during the call. After one that is final but neither
     * FINISH_STOP nor FINISH_LENGTH nothing follows. */
    void (*take)(struct response_reader *r, int choice, const struct engine_event *ev);
    /* The leader failed and the reader was taken off: open again, with the same terms. */
    void (*rerun)(struct response_reader *r);
    void (*hold)(struct response_reader *r, bool hold); /* leader: pause the run, or go on */
    void (*stop)(struct response_reader *r); /* leader: nobody wants the answer any more */

    struct response_entry *entry; /* that it reads, NULL: none */
    struct response_entry *made;  /* that it leads, NULL: none */
    struct response_reader *next, *prev;
    size_t at; /* in the record: the next event */
    bool paused, reran;
    int n_choices;
    struct response_seen *seen;   /* by choice, over all runs */
    struct response_seen *passed; /* by choice, in this entry's record */
};

/* What a request says about itself and its answer. Pointers are copied from. */
struct response_terms {
    struct response_key key; /* holds tenant and model too; these are for response_drop */
    const char *tenant, *model;
    const char *adapters; /* names, each followed by a newline; "" or NULL: none */
    int n_choices;
    bool repeatable;    /* a second run gives the same answer: greedy, or with a seed */
    bool fresh;         /* not from the cache, nor together with others */
    bool no_store;      /* never lead: an answer that others have may do, its own is not kept */
    int64_t ttl_ms;     /* 0: the cache's */
    int64_t max_age_ms; /* no older answer will do, 0: any age */
};

enum response_found { RESPONSE_NONE, RESPONSE_LEAD, RESPONSE_COALESCED, RESPONSE_HIT };

/* Finds or begins the answer. HIT and COALESCED: response_pump hands out what is there, the rest
 * comes by itself. LEAD: the caller makes the answer, see below. NONE: it does so for itself alone
 * (no_store). */
enum response_found response_open(struct response_cache *c, struct response_reader *r,
                                  const struct response_terms *t);
void response_bypass(struct response_cache *c); /* counts a request that never asked */

void response_pump(struct response_reader *r);
void response_pause(struct response_reader *r, bool paused); /* going on pumps */
void response_close(struct response_reader *r);              /* the client has it all, or left */
void response_reader_release(struct response_reader *r);     /* closes, frees; at the very end */

/* ---- the leader ---- */

/* One event of the run, in the engine's order. A failure ends the entry. */
void response_add(struct response_reader *leader, int choice, const struct engine_event *ev);

/* What is being made goes on for its readers, and is neither kept nor joined. */
void response_spoil(struct response_reader *leader);

/* The run is over, or never began. Exactly once after LEAD. */
void response_unlead(struct response_reader *leader);

/* ---- rendered answers ---- */

/* The bytes that a request was answered with, found by the bytes of the request. They belong to
 * the entry they were made from and live no longer. `made_at` are places in them that must be new
 * in each answer. */
struct response_rendered {
    bool events; /* a stream of events, else JSON */
    char *body;
    size_t n_body;
    uint32_t *id_at, *time_at; /* RESPONSE_ID_DIGITS hexadecimal, RESPONSE_TIME_DIGITS decimal */
    size_t n_ids, n_times;
    char *route;   /* value of x-terrace-route, "" if none */
    char *backend; /* value of x-terrace-backend, the same */
    int prompt_tokens, cached_tokens, completion_tokens;
};

enum { RESPONSE_ID_DIGITS = 24, RESPONSE_TIME_DIGITS = 10 };

/* NULL: none. A hit like others. The caller may write into body where the places are; valid until
 * the next call of any function here. */
struct response_rendered *response_rendered_find(struct response_cache *c,
                                                 const struct response_key *request);
const char *response_rendered_model(const struct response_rendered *v); /* of what was found */

/* Keeps what was rendered for a reader of a HIT; takes *v over in any case. */
void response_rendered_add(struct response_cache *c, const struct response_reader *r,
                           const struct response_key *request, struct response_rendered *v);
void response_rendered_release(struct response_rendered *v);

/* The same bytes may mean another request from now on: models, adapters, personas or rules have
 * changed. Forgets what was rendered, keeps the answers. */
void response_rendered_forget(struct response_cache *c);
uint64_t response_generation(const struct response_cache *c); /* how often that was */

/* ---- control ---- */

/* Drops what matches all that is not NULL, and how much that was. What is being made goes on for
 * its readers and is not kept. */
size_t response_drop(struct response_cache *c, const char *tenant, const char *model,
                     const char *adapter);

void response_sweep(struct response_cache *c); /* drops what is too old; about once a minute */

struct response_stats {
    size_t entries, bytes, budget_bytes, rendered;
    size_t in_flight; /* answers being made */
    uint64_t hits, misses, coalesced, bypassed;
    uint64_t reruns; /* followers that ran a request again */
    uint64_t evictions, expired, dropped;
    uint64_t too_large; /* answers that were not kept for it */
};
struct response_stats response_stats(const struct response_cache *c);
