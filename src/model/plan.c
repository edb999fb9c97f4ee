#include "model/plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/kernels.h"

enum {
    COLUMNS = 64,         /* query rows (tokens x heads of a group) of a piece of prefill */
    UNITS_PER_THREAD = 4, /* a piece for one head costs at most this share of a thread's work */
    SMALL = 4,            /* tokens of a sequence; longer chunks reuse a block well by themselves */
    BLOCK_COST = 8,       /* reading a block, in query rows that use it */
};

int plan_init(struct plan *p, int max_tokens, struct err *e)
{
    size_t n = (size_t)max_tokens;
    *p = (struct plan){.max_tokens = max_tokens};
    /* A finished piece has a token of its own, a partial one a partial row. */
    p->max_pieces = max_tokens + PLAN_MAX_PARTIALS;
    p->tokens = try_calloc(2 * n, sizeof *p->tokens);
    p->pos = try_calloc(2 * n, sizeof *p->pos);
    p->pieces = try_calloc((size_t)p->max_pieces, sizeof *p->pieces);
    p->merges = try_calloc(n, sizeof *p->merges);
    p->parts = try_calloc(PLAN_MAX_PARTIALS, sizeof *p->parts);
    p->members = try_calloc(n, sizeof *p->members);
    p->starts = try_calloc(n, sizeof *p->starts);
    p->planned = try_calloc(n, sizeof *p->planned);
    p->bytes = n * (6 * sizeof *p->tokens + sizeof *p->merges + sizeof *p->planned) +
               (size_t)p->max_pieces * sizeof *p->pieces + PLAN_MAX_PARTIALS * sizeof *p->parts;
    if (p->tokens && p->pos && p->pieces && p->merges && p->parts && p->members && p->starts &&
        p->planned)
        return 0;
    plan_release(p);
    return err_set(e, ERR_NOMEM, "out of memory for a step of %d tokens", max_tokens);
}

void plan_release(struct plan *p)
{
    free(p->tokens);
    free(p->pos);
    free(p->pieces);
    free(p->merges);
    free(p->parts);
    free(p->members);
    free(p->starts);
    free(p->planned);
    *p = (struct plan){0};
}

struct planner {
    struct plan *plan;
    const struct plan_shape *shape;
    const struct batch_seq *seqs;
    int n_seqs;
    int64_t piece_cost; /* the most that a piece should cost, for one head */
};

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* The first block of the first segment that a query at pos sees. */
static int first_block(const struct plan_shape *s, int pos)
{
    int first = s->window && pos >= s->window ? (pos - s->window + 1) / KV_BLOCK_TOKENS : 0;
    return first / ATTENTION_SEGMENT * ATTENTION_SEGMENT;
}

static int end_block(const struct batch_seq *s)
{
    return (s->pos + s->n_tokens - 1) / KV_BLOCK_TOKENS + 1;
}

static int64_t cost(const struct plan_shape *s, int n_tokens, int n_blocks)
{
    return (int64_t)n_blocks * (BLOCK_COST + (int64_t)n_tokens * s->group);
}

static int64_t total_cost(const struct planner *pl)
{
    int64_t sum = 0;
    for (int i = 0; i < pl->n_seqs; i++) {
        const struct batch_seq *s = &pl->seqs[i];
        sum += cost(pl->shape, s->n_tokens, end_block(s) - first_block(pl->shape, s->pos));
    }
    return sum;
}

static void list_tokens(struct plan *p, int token, const struct batch_seq *s)
{
    for (int i = 0; i < s->n_tokens; i++) {
        p->tokens[p->n_listed] = token + i;
        p->pos[p->n_listed++] = s->pos + i;
    }
}

static void add_piece(struct plan *p, struct plan_piece piece)
{
    BUG_ON(p->n_pieces == p->max_pieces);
    p->pieces[p->n_pieces++] = piece;
}

/* Finished pieces: the queries cut, each against all the blocks it sees. */
static void add_whole(struct planner *pl, const struct batch_seq *seq, int first)
{
    int step = COLUMNS / pl->shape->group > 0 ? COLUMNS / pl->shape->group : 1;
    for (int i = 0; i < seq->n_tokens; i += step) {
        int n = min_int(step, seq->n_tokens - i);
        add_piece(pl->plan, (struct plan_piece){
                                .table = seq->blocks,
                                .block_begin = first_block(pl->shape, seq->pos + i),
                                .block_end = (seq->pos + i + n - 1) / KV_BLOCK_TOKENS + 1,
                                .first = first + i,
                                .n_tokens = n,
                                .partial = -1,
                            });
    }
}

/* How many segments blocks [begin, end) lie in. */
static int n_segments(int begin, int end)
{
    return (end + ATTENTION_SEGMENT - 1) / ATTENTION_SEGMENT - begin / ATTENTION_SEGMENT;
}

/* Whether blocks [begin, end) are too much for one piece. */
static bool worth_splitting(const struct planner *pl, int n_tokens, int begin, int end)
{
    return pl->shape->n_threads > 1 && n_segments(begin, end) > 1 &&
           cost(pl->shape, n_tokens, end - begin) > pl->piece_cost;
}

/* Partial pieces: the range cut into its segments. Returns how many. */
static int add_partial(struct planner *pl, struct plan_piece range)
{
    struct plan *p = pl->plan;
    int begin = range.block_begin, end = range.block_end;
    int n = n_segments(begin, end);
    for (; begin < end; begin += ATTENTION_SEGMENT) {
        range.block_begin = begin;
        range.block_end = min_int(begin + ATTENTION_SEGMENT, end);
        range.partial = p->n_partials;
        p->n_partials += range.n_tokens;
        add_piece(p, range);
    }
    return n;
}

/* Partial rows of n pieces, each with `stride` rows, from row `first` on. */
struct rows {
    int first, n, stride;
};

static void add_merges(struct plan *p, int token, int n_tokens, struct rows shared, struct rows own)
{
    for (int i = 0; i < n_tokens; i++) {
        p->merges[p->n_merges++] = (struct plan_merge){token + i, p->n_parts, shared.n + own.n};
        for (int k = 0; k < shared.n; k++)
            p->parts[p->n_parts++] = shared.first + k * shared.stride + i;
        for (int k = 0; k < own.n; k++)
            p->parts[p->n_parts++] = own.first + k * own.stride + i;
    }
}

/* How many leading blocks, in whole segments, two sequences share that lie before the new tokens of
 * both. */
static int shared_blocks(const struct batch_seq *a, const struct batch_seq *b)
{
    int most = min_int(a->pos, b->pos) / KV_BLOCK_TOKENS, n = 0;
    while (n < most && a->blocks[n] == b->blocks[n])
        n++;
    return n / ATTENTION_SEGMENT * ATTENTION_SEGMENT;
}

/* Sequences with a prefix in common: plan.members, the leader first. They share the blocks
 * [begin, shared), less those that a window hides from all of them. */
struct group {
    int n_members, n_tokens;
    int begin, shared;
};

static struct group alone(const struct planner *pl, int index)
{
    const struct batch_seq *s = &pl->seqs[index];
    int first = first_block(pl->shape, s->pos);
    return (struct group){1, s->n_tokens, first, first};
}

static struct group find_group(struct planner *pl, int leader)
{
    struct plan *p = pl->plan;
    struct group g = alone(pl, leader);
    int leader_first = g.begin;
    p->members[0] = leader;
    if (pl->shape->no_sharing || pl->seqs[leader].n_tokens > SMALL)
        return g;
    for (int i = leader + 1; i < pl->n_seqs; i++) {
        if (p->planned[i] || pl->seqs[i].n_tokens > SMALL)
            continue;
        int n = shared_blocks(&pl->seqs[leader], &pl->seqs[i]);
        int first = first_block(pl->shape, pl->seqs[i].pos);
        if (n <= leader_first || n <= first || n < g.shared / 2)
            continue;
        g.shared = g.n_members > 1 ? min_int(g.shared, n) : n;
        g.begin = min_int(g.begin, first);
        g.n_tokens += pl->seqs[i].n_tokens;
        p->members[g.n_members++] = i;
    }
    return g;
}

/* Where the blocks of a sequence after the shared ones begin. */
static int own_begin(const struct planner *pl, const struct batch_seq *s, int shared)
{
    int first = first_block(pl->shape, s->pos);
    return first > shared ? first : shared;
}

/* Whether the partial rows of a group fit beside those already planned. */
static bool fits(const struct planner *pl, const struct group *g)
{
    int n = g->n_tokens * n_segments(g->begin, g->shared);
    for (int i = 0; i < g->n_members; i++) {
        const struct batch_seq *s = &pl->seqs[pl->plan->members[i]];
        n += s->n_tokens * n_segments(own_begin(pl, s, g->shared), end_block(s));
    }
    return pl->plan->n_partials + n <= PLAN_MAX_PARTIALS;
}

/* The blocks of a member after the shared ones, and its merges. */
static void plan_member(struct planner *pl, int index, struct group g, struct rows shared)
{
    struct plan *p = pl->plan;
    const struct batch_seq *s = &pl->seqs[index];
    int token = p->starts[index];
    struct rows own = {p->n_partials, 0, s->n_tokens};
    own.n = add_partial(pl, (struct plan_piece){
                                .table = s->blocks,
                                .block_begin = own_begin(pl, s, g.shared),
                                .block_end = end_block(s),
                                .first = token,
                                .n_tokens = s->n_tokens,
                            });
    add_merges(p, token, s->n_tokens, shared, own);
}

static void plan_group(struct planner *pl, int leader)
{
    struct plan *p = pl->plan;
    const struct batch_seq *seq = &pl->seqs[leader];
    struct group g = find_group(pl, leader);
    if (!fits(pl, &g))
        g = alone(pl, leader);
    for (int i = 0; i < g.n_members; i++)
        p->planned[p->members[i]] = 1;
    bool split = seq->n_tokens <= SMALL && fits(pl, &g) &&
                 worth_splitting(pl, seq->n_tokens, own_begin(pl, seq, 0), end_block(seq));
    if (g.n_members == 1 && !split) {
        add_whole(pl, seq, p->starts[leader]);
        return;
    }
    struct rows shared = {p->n_partials, 0, g.n_tokens};
    if (g.n_members > 1) {
        int first = p->n_listed;
        for (int i = 0; i < g.n_members; i++)
            list_tokens(p, p->starts[p->members[i]], &pl->seqs[p->members[i]]);
        shared.n = add_partial(pl, (struct plan_piece){
                                       .table = seq->blocks,
                                       .block_begin = g.begin,
                                       .block_end = g.shared,
                                       .first = first,
                                       .n_tokens = g.n_tokens,
                                   });
    }
    for (int i = 0; i < g.n_members; i++) {
        plan_member(pl, p->members[i], g, shared);
        shared.first += pl->seqs[p->members[i]].n_tokens;
    }
}

void plan_make(struct plan *p, const struct plan_shape *shape, const struct batch_seq *seqs,
               int n_seqs)
{
    p->n_listed = p->n_pieces = p->n_merges = p->n_partials = p->n_parts = 0;
    for (int i = 0; i < n_seqs; i++) {
        p->planned[i] = 0;
        p->starts[i] = p->n_listed;
        list_tokens(p, p->starts[i], &seqs[i]);
    }
    struct planner pl = {p, shape, seqs, n_seqs, 0};
    pl.piece_cost = 1 + total_cost(&pl) * shape->n_kv_heads / (UNITS_PER_THREAD * shape->n_threads);
    for (int i = 0; i < n_seqs; i++)
        if (!p->planned[i])
            plan_group(&pl, i);
}
