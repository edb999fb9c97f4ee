/* Low-rank products of every instruction set against double precision, over odd shapes, in buffers
 * that end at a page that may not be touched. */
#include "unit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "base/rng.h"
#include "kernels/kernels.h"
#include "kernels/lora.h"

enum { PAGE = 4096, MAX_TOKENS = 13 };

static const char *const isas[] = {"scalar", "avx2", "avxvnni", "avx512"};

/* n bytes that end at a forbidden page; freed with the process. */
static void *guarded(size_t n)
{
    size_t pages = (n + PAGE - 1) / PAGE + 1;
    char *p =
        mmap(NULL, (pages + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    assert_int_equal(mprotect(p + pages * PAGE, PAGE, PROT_NONE), 0);
    return p + pages * PAGE - n;
}

static float *random_floats(struct rng *r, size_t n)
{
    float *x = guarded(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = bf16_to_f32(f32_to_bf16(rng_normal(r)));
    return x;
}

struct shape {
    int rank, n_cols, n_rows, n_tokens;
};

static const struct shape shapes[] = {
    {2, 32, 16, 1},    {4, 64, 32, 2},     {6, 33, 17, 3},    {8, 576, 48, 1},   {16, 96, 192, 8},
    {18, 47, 100, 13}, {64, 257, 33, 7},   {128, 64, 64, 5},  {10, 8, 1, 6},     {4, 1, 15, 4},
    {14, 24, 47, 9},   {30, 320, 320, 11}, {512, 40, 31, 12}, {22, 512, 1030, 6}};

/* Tokens in no order, one of them twice. */
static void list_tokens(int32_t *tokens, float *scales, int n)
{
    for (int i = 0; i < n; i++) {
        tokens[i] = (i * 5 + 2) % n;
        scales[i] = i % 3 ? 1.0f : 0.5f - (float)i;
    }
    if (n > 2)
        tokens[n - 1] = tokens[0];
}

/* What A says, in double precision, and the sum of absolute products. */
static double dot(const float *a, const float *x, int n, double *absolute)
{
    double sum = 0;
    *absolute = 0;
    for (int c = 0; c < n; c++) {
        sum += (double)a[c] * x[c];
        *absolute += fabs((double)a[c] * x[c]);
    }
    return sum;
}

/* h is rounded to 8 bits once, x too where the instruction set multiplies bf16. */
static void check_shrink(const struct kernels *k, const struct shape *s, struct rng *rng)
{
    size_t cols = (size_t)s->n_cols, stride = cols + 3, h_stride = (size_t)s->rank + 6;
    float *a = random_floats(rng, (size_t)s->rank * cols);
    float *x = random_floats(rng, MAX_TOKENS * stride - 3);
    for (size_t i = 0; i < MAX_TOKENS * stride - 3; i++)
        x[i] *= 1.0f + 0.001f * (float)rng_double(rng); /* no bf16 numbers any more */
    uint16_t *packed = guarded(lora_a_elems(s->rank, s->n_cols) * 2);
    for (int r = 0; r < s->rank; r++)
        lora_pack_a(packed, s->rank, s->n_cols, r, a + (size_t)r * cols);
    int32_t tokens[MAX_TOKENS];
    float scales[MAX_TOKENS];
    list_tokens(tokens, scales, s->n_tokens);
    uint16_t *h = guarded(((size_t)(s->n_tokens - 1) * h_stride + (size_t)s->rank) * 2);
    struct lora_shrink job = {packed, s->rank, s->n_cols,   x, stride,
                              tokens, scales,  s->n_tokens, h, h_stride};
    int half = lora_panels(s->rank) / 2;
    k->lora_shrink(&job, half, lora_panels(s->rank));
    k->lora_shrink(&job, 0, half);
    for (int i = 0; i < s->n_tokens; i++)
        for (int r = 0; r < s->rank; r++) {
            double sum, size;
            sum = dot(a + (size_t)r * cols, x + (size_t)tokens[i] * stride, s->n_cols, &size);
            sum *= scales[i];
            size *= fabs((double)scales[i]);
            double bound =
                fabs(sum) / 250 + size * (k == kernels_select("avx512", NULL) ? 1.0 / 500 : 1e-5);
            float got = bf16_to_f32(h[(size_t)i * h_stride + (size_t)r]);
            if (!(fabs(got - sum) <= bound))
                fail_msg("%s rank %d, %d columns: h[%d][%d] is %g, not %g", k->name, s->rank,
                         s->n_cols, i, r, got, sum);
        }
}

static void check_expand(const struct kernels *k, const struct shape *s, struct rng *rng)
{
    size_t rank = (size_t)s->rank, rows = (size_t)s->n_rows, h_stride = rank + 2;
    float *b = random_floats(rng, rows * rank), *h = random_floats(rng, MAX_TOKENS * h_stride);
    uint16_t *packed = guarded(lora_b_elems(s->rank, s->n_rows) * 2);
    uint16_t *h16 = guarded(((size_t)(s->n_tokens - 1) * h_stride + rank) * 2);
    for (size_t i = 0; i < (size_t)(s->n_tokens - 1) * h_stride + rank; i++)
        h16[i] = f32_to_bf16(h[i]);
    for (int r = 0; r < s->n_rows; r++)
        lora_pack_b(packed, s->rank, r, b + (size_t)r * rank, s->rank);
    size_t n_out = (MAX_TOKENS - 1) * (rows + 5) + rows;
    float *out = random_floats(rng, n_out);
    double *want = xcalloc(n_out, sizeof *want);
    double *bound = xcalloc(n_out, sizeof *bound);
    for (size_t i = 0; i < n_out; i++)
        want[i] = out[i];
    int32_t tokens[MAX_TOKENS];
    float scales[MAX_TOKENS];
    list_tokens(tokens, scales, s->n_tokens);
    for (int i = 0; i < s->n_tokens; i++)
        for (int r = 0; r < s->n_rows; r++) {
            double size;
            size_t at = (size_t)tokens[i] * (rows + 5) + (size_t)r;
            want[at] += dot(b + (size_t)r * rank, h + (size_t)i * h_stride, s->rank, &size);
            bound[at] += 1e-6 * (size + fabs(want[at]) + 1);
        }
    struct lora_expand job = {packed, s->rank,     s->n_rows, h16,     h_stride,
                              tokens, s->n_tokens, out,       rows + 5};
    int half = s->n_rows / 2 / LORA_TILE * LORA_TILE;
    k->lora_expand(&job, half, s->n_rows);
    k->lora_expand(&job, 0, half);
    for (size_t i = 0; i < n_out; i++)
        if (!(fabs(out[i] - want[i]) <= bound[i]))
            fail_msg("%s rank %d, %d rows: out[%zu] is %g, not %g", k->name, s->rank, s->n_rows, i,
                     out[i], want[i]);
    free(want);
    free(bound);
}

static void products_are_right(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(isas); i++) {
        const struct kernels *k = kernels_select(isas[i], NULL);
        struct rng rng;
        rng_seed(&rng, 11);
        for (size_t j = 0; k && j < ARRAY_LEN(shapes); j++) {
            check_shrink(k, &shapes[j], &rng);
            check_expand(k, &shapes[j], &rng);
        }
    }
}

/* A token's numbers do not depend on the tokens beside it. */
static void tokens_do_not_disturb_each_other(void **state)
{
    enum { RANK = 20, COLS = 100, N = 11 };
    struct rng rng;
    rng_seed(&rng, 3);
    for (size_t j = 0; j < ARRAY_LEN(isas); j++) {
        const struct kernels *k = kernels_select(isas[j], NULL);
        if (!k)
            continue;
        float *x = random_floats(&rng, N * COLS), *a = random_floats(&rng, RANK * COLS);
        uint16_t *packed = guarded(lora_a_elems(RANK, COLS) * 2), together[N][RANK], alone[RANK];
        for (int r = 0; r < RANK; r++)
            lora_pack_a(packed, RANK, COLS, r, a + (size_t)r * COLS);
        int32_t tokens[N];
        float scales[N];
        for (int i = 0; i < N; i++) {
            tokens[i] = i;
            scales[i] = 1.5f;
        }
        struct lora_shrink job = {packed, RANK,   COLS, x,           COLS,
                                  tokens, scales, N,    together[0], RANK};
        k->lora_shrink(&job, 0, lora_panels(RANK));
        for (int i = 0; i < N; i++) {
            struct lora_shrink one = {packed,     RANK,       COLS, x,     COLS,
                                      tokens + i, scales + i, 1,    alone, RANK};
            k->lora_shrink(&one, 0, lora_panels(RANK));
            assert_memory_equal(alone, together[i], sizeof alone);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_right),
        cmocka_unit_test(tokens_do_not_disturb_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
