/* sched.h - who runs in the next step, and with how many tokens.
 *
 * Decodes first: every running sequence that lacks one token gets it in every step. What the step's
 * time target (step_ms, or less: a prompt may make a step of decodes about twice as long; but a
 * fifth of the time is for prompts however many decodes there are) leaves goes to prefill chunks.
 * Nobody computes what another one of the step computes for both. The order:
 *     1. priority, lower first, one level better for every SCHED_AGE tokens served since it came,
 * up to the level of the best
 *     2. the tenant that was served least (virtual time = tokens computed, start-time fair
 * queueing, Goyal et al., 1996)
 *     3. arrival
 * A step of decodes only, and few of them, has room for guesses (n_draft): on a CPU the weights are
 * read from memory anyway, and the first few tokens of a step cost little more than one.
 *
 * A sequence is admitted with blocks for all the tokens it has. When a decode finds no block, the
 * worst running sequence (paused first, then by priority and arrival, the last one) is preempted:
 * it gives up its blocks and waits at its old place to be computed again. The best one is never
 * preempted, so there is always progress. A waiting sequence whose tenant holds much less than
 * another tenant may take a place of that tenant's newest sequence, so nobody waits behind a flood.
 *
 * Knows integers only. Blocks are asked for through struct sched_ops. One thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/map.h"
#include "base/str.h"
#include "engine/cost.h"

enum { SCHED_AGE = 4096, SCHED_PRIORITY_MAX = 16, SCHED_MIN_PREFILL = 4 };

enum sched_state { SCHED_NONE, SCHED_WAITING, SCHED_RUNNING };

struct sched_tenant;

/* One sequence as the scheduler sees it: the first member of the caller's struct. The caller sets
 * n_tokens and, after a step, adds n_planned to n_computed. {0} before sched_add. */
struct sched_item {
    struct sched_item *prev, *next;
    struct sched_tenant *tenant;
    enum sched_state state;
    bool paused;
    int priority;
    uint64_t arrival, born; /* order of arrival; tokens served by then */
    uint64_t skip_step;     /* step in which it must not be admitted */
    int n_tokens;           /* known: prompt and output */
    int n_computed;         /* of which are in KV blocks; < n_tokens between steps */
    int n_planned; /* to be computed in this step; a decode with guesses: 1 + their number */
    int n_draft;   /* most guesses after n_tokens that a decode may verify in the same step */
};

enum sched_answer { SCHED_OK, SCHED_WAIT, SCHED_FULL };

/* What the scheduler asks of the owner of blocks. */
struct sched_ops {
    /* Takes blocks for all n_tokens of a waiting item, leaving `reserve` blocks, and sets
     * n_computed to what is known already (< n_tokens). WAIT: not in this step, others may go first
     * (the plan so far is in s->plan). FULL: no room now; nothing was taken. */
    enum sched_answer (*admit)(void *ctx, struct sched_item *item, int reserve);
    /* A running item whose prompt is being computed: moves n_computed on over what others have
     * computed meanwhile. OK, or WAIT: another one of the plan computes what it needs next. */
    enum sched_answer (*catch_up)(void *ctx, struct sched_item *item);
    /* Makes room for the KV of n_tokens positions; false when there is no block. */
    bool (*grow)(void *ctx, struct sched_item *item, int n_tokens);
    /* Gives up all blocks; n_computed becomes 0. */
    void (*drop)(void *ctx, struct sched_item *item);
};

struct sched_list {
    struct sched_item *first, *last;
    int n;
};

struct sched {
    const struct sched_ops *ops;
    void *ctx;
    int max_running, max_batch_tokens;
    int spec_tokens; /* a step of decodes is filled up to so many tokens with guesses, 0: none */
    double step_ms;
    struct cost cost;
    struct sched_list waiting, running; /* by arrival; by priority and arrival */
    struct sched_item **plan;           /* [max_running], n_plan of them in this step */
    int n_plan, n_plan_tokens;
    int n_prefill_tokens;       /* of n_plan_tokens */
    double plan_attention;      /* cost_attention of all that is planned */
    double alone_ms;            /* time in steps since there was more than one sequence */
    struct sched_item *starved; /* first in order, but there was no place or no block */
    bool starved_of_blocks;
    struct sched_item *stuck; /* not admitted though nothing runs: it can never be */
    struct map tenants;
    double vtime;
    int best_priority; /* of all items, in this step */
    uint64_t step, served, n_arrivals, n_preemptions;
};

void sched_init(struct sched *s, const struct sched_ops *ops, void *ctx, int max_running,
                int max_batch_tokens, double step_ms);
void sched_release(struct sched *s); /* every item must have been removed */

/* A new sequence. item->n_tokens is set; priority is clamped to +-SCHED_PRIORITY_MAX. */
void sched_add(struct sched *s, struct sched_item *item, struct str tenant, int priority);

/* It is over, or cancelled. Its blocks are the caller's to give up. */
void sched_remove(struct sched *s, struct sched_item *item);

/* Plans one step: s->plan, decodes first, n_planned of each. May preempt. Returns s->n_plan; 0 when
 * nobody can run. When s->stuck is set the caller must end that sequence. */
int sched_plan(struct sched *s);

/* The planned step took ms: the measure for later plans. */
void sched_measured(struct sched *s, double ms);

/* How many were not admitted to the latest step because another one of it computes for them. */
int sched_n_deferred(const struct sched *s);

/* Whether lists, states and tenants agree. False and the reason in e. */
bool sched_check(const struct sched *s, struct err *e);
