/* plan.h - cuts the attention of a step into pieces of work, once for all layers.
 *
 * A piece is some query tokens against a range of KV blocks; every piece is run for each KV head.
 * Long prompts are cut by queries. A few queries over a long context are cut into segments of
 * blocks (ATTENTION_SEGMENT), so that all threads find work. Segments that several sequences share
 * as a prefix are read once, for all of them. Tokens that more than one piece serves get partial
 * results, which a second phase merges.
 *
 *   tokens of the batch   0 1 2 3 4 | 5 | 6          three sequences, 5 and 6 share blocks a, b
 *   pieces                [0..4] x own blocks        finished at once
 *                         [5, 6] x segment a b       partial \  merged
 *                         [5] x own, [6] x own       partial /
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/model.h"

struct plan_piece {
    const int32_t *table;       /* block table of (one of) its sequences */
    int block_begin, block_end; /* in table */
    int first, n_tokens;        /* in plan.tokens and plan.pos */
    int partial;                /* first row in the partial memory of a head, -1: finished */
};

/* A token that several pieces served. Its partial rows of a head are `part[first_part ...]`. */
struct plan_merge {
    int token;
    int first_part, n_parts;
};

struct plan {
    int32_t *tokens, *pos; /* query tokens of the pieces */
    struct plan_piece *pieces;
    struct plan_merge *merges;
    int *parts; /* partial rows by merge */
    int n_listed, n_pieces, n_merges, n_partials, n_parts;
    int max_tokens, max_pieces;
    size_t bytes;     /* of all this */
    int *members;     /* while planning: sequences of a group */
    int *starts;      /* while planning: first token of each sequence */
    uint8_t *planned; /* while planning: by sequence */
};

/* Partial rows (one for each token of a piece) that a plan may use for each KV head. */
enum { PLAN_MAX_PARTIALS = 512 };

int plan_init(struct plan *p, int max_tokens, struct err *e);
void plan_release(struct plan *p);

struct plan_shape {
    int n_kv_heads, group; /* query heads for each KV head */
    int window;            /* 0: none */
    int n_threads;
    bool no_sharing; /* every sequence by itself, to measure what sharing brings */
};

/* Makes the plan of a step. The tables of seqs must stay valid while the plan is used. */
void plan_make(struct plan *p, const struct plan_shape *shape, const struct batch_seq *seqs,
               int n_seqs);
