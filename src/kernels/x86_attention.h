/* x86_attention.h - the frame of attention that the AVX2 and AVX-512 files share: which rows, which
 * blocks, what state. Included once by each of them after
 *   ROWS    query rows taken at a time
 *   LANES   numbers in a vector
 *   struct work { q, q_unit, s, acc, max, sum, total, first, last, ... } as used below
 * The file then defines what works on vectors: scores, soften, values, shrink_row. */

/* A step is what one instruction multiplies: pairs of bf16, pairs of 16-bit integers, or single f32
 * numbers. Integers are 32767ths of the row's largest number. */
enum math { PAIRS, WORDS, SINGLES };

struct tile {
    const struct attention *a;
    struct work *w;
    enum math math;
    int row, rows;
};

/* Scores of block b: w->s[row][position]. */
static void scores(const struct tile *t, int b);
/* Scores of row r become weights, the row's state follows. */
static void soften(const struct tile *t, int r, int b);
/* Adds the weighted values of block b, of which rows see positions up to `last`. */
static void values(const struct tile *t, int b, int last);
static void shrink_row(float *acc, int dim, float factor);

/* The positions [at, at + lanes) that lie in [first, last], a bit for each; lanes at most 32. */
static inline uint32_t seen(int at, int lanes, int first, int last)
{
    int lo = first - at, hi = last - at + 1;
    uint32_t all = UINT32_MAX >> (32 - lanes);
    uint32_t below_hi = hi >= lanes ? all : hi <= 0 ? 0 : (1u << hi) - 1;
    uint32_t below_lo = lo >= lanes ? all : lo <= 0 ? 0 : (1u << lo) - 1;
    return below_hi & ~below_lo;
}

/* One query row of `dim` numbers as steps: to[step * ROWS]. Returns what an integer stands for, if
 * steps are integers. */
static float load_query(enum math math, const float *q, int dim, float scale, uint32_t *to)
{
    float x[KERNEL_MAX_HEAD_DIM], top = 0;
    uint16_t pairs[KERNEL_MAX_HEAD_DIM];
    for (int d = 0; d < dim; d++)
        x[d] = q[d] * scale;
    if (math == PAIRS) {
        to_bf16(x, dim, pairs);
        for (int i = 0; i < dim / 2; i++)
            memcpy(&to[i * ROWS], pairs + 2 * i, 4);
        return 0;
    }
    if (math == SINGLES) {
        for (int d = 0; d < dim; d++)
            memcpy(&to[d * ROWS], &x[d], 4);
        return 0;
    }
    for (int d = 0; d < dim; d++)
        top = fabsf(x[d]) > top ? fabsf(x[d]) : top;
    float inverse = top > 0 ? 32767 / top : 0;
    for (int i = 0; i < dim / 2; i++) {
        uint32_t lo = (uint16_t)(int16_t)lrintf(x[2 * i] * inverse);
        to[i * ROWS] = lo | (uint32_t)(uint16_t)(int16_t)lrintf(x[2 * i + 1] * inverse) << 16;
    }
    return top / 32767;
}

static void load_queries(const struct tile *t)
{
    const struct attention *a = t->a;
    struct work *w = t->w;
    int dim = a->kv->head_dim;
    for (int r = 0; r < t->rows; r++) {
        int i = (t->row + r) / a->group, g = (t->row + r) % a->group;
        int token = a->tokens ? a->tokens[i] : i;
        const float *q =
            a->q + (size_t)token * a->q_stride + (size_t)((a->kv_head * a->group + g) * dim);
        w->q_unit[r] = load_query(t->math, q, dim, a->scale, &w->q[0][r]);
        w->last[r] = a->pos[i];
        w->first[r] = a->window && a->pos[i] >= a->window ? a->pos[i] - a->window + 1 : 0;
        w->total[r][0] = -INFINITY;
        w->total[r][1] = 0;
    }
}

/* Blocks [begin, end) of one segment, from a fresh state; rows see positions up to `last`. */
static void run_segment(const struct tile *t, int begin, int end, int last)
{
    struct work *w = t->w;
    for (int r = 0; r < t->rows; r++) {
        w->max[r] = -INFINITY;
        memset(w->sum[r], 0, sizeof w->sum[r]);
        memset(w->acc[r], 0, (size_t)t->a->kv->head_dim * sizeof(float));
    }
    for (int b = begin; b < end; b++) {
        scores(t, b);
        for (int r = 0; r < t->rows; r++)
            soften(t, r, b);
        values(t, b, last);
    }
    for (int r = 0; r < t->rows; r++) {
        float sum = 0;
        for (int i = 0; i < LANES; i++)
            sum += w->sum[r][i];
        avx2_attention_fold(w->total[r], w->max[r], sum, w->acc[r], t->a->kv->head_dim);
    }
}

static void finish_row(const struct tile *t, int r)
{
    const struct attention *a = t->a;
    float *total = t->w->total[r];
    int dim = a->kv->head_dim, row = t->row + r;
    if (!total[1])
        memset(total + 2, 0, (size_t)dim * sizeof *total);
    if (a->partial) {
        size_t n = attention_partial_floats(a->kv);
        memcpy(a->partial + (size_t)row * n, total, n * sizeof *total);
        return;
    }
    int i = row / a->group, token = a->tokens ? a->tokens[i] : i;
    int head = a->kv_head * a->group + row % a->group;
    shrink_row(total + 2, dim, total[1] > 0 ? 1 / total[1] : 0);
    memcpy(a->out + (size_t)token * a->out_stride + (size_t)(head * dim), total + 2,
           (size_t)dim * sizeof *total);
}

static void run_tile(const struct tile *t)
{
    const struct attention *a = t->a;
    struct work *w = t->w;
    load_queries(t);
    int first = w->first[0], last = w->last[0];
    for (int r = 1; r < t->rows; r++) {
        first = w->first[r] < first ? w->first[r] : first;
        last = w->last[r] > last ? w->last[r] : last;
    }
    int begin = first / KV_BLOCK_TOKENS, end = last / KV_BLOCK_TOKENS + 1;
    begin = begin > a->block_begin ? begin : a->block_begin;
    end = end < a->block_end ? end : a->block_end;
    while (begin < end) {
        int next = (begin / ATTENTION_SEGMENT + 1) * ATTENTION_SEGMENT;
        run_segment(t, begin, next < end ? next : end, last);
        begin = next;
    }
    for (int r = 0; r < t->rows; r++)
        finish_row(t, r);
}

static void run_attention(const struct attention *a, struct work *w, enum math math)
{
    BUG_ON(a->kv->head_dim % 16 || a->kv->head_dim > KERNEL_MAX_HEAD_DIM);
    int rows = a->n_tokens * a->group;
    struct tile t = {a, w, math, 0, 0};
    for (t.row = 0; t.row < rows; t.row += ROWS) {
        t.rows = rows - t.row < ROWS ? rows - t.row : ROWS;
        run_tile(&t);
    }
}
