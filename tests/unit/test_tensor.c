#include "unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "tensor/block.h"
#include "tensor/type.h"

static const enum ttype all_types[] = {TTYPE_F32,  TTYPE_F16,    TTYPE_BF16,  TTYPE_Q4_0,
                                       TTYPE_Q4_1, TTYPE_Q5_0,   TTYPE_Q5_1,  TTYPE_Q8_0,
                                       TTYPE_Q2_K, TTYPE_Q3_K,   TTYPE_Q4_K,  TTYPE_Q5_K,
                                       TTYPE_Q6_K, TTYPE_IQ4_NL, TTYPE_IQ4_XS};

static void must_read(FILE *f, void *p, size_t n)
{
    assert_int_equal(fread(p, 1, n, f), n);
}

static uint32_t read_u32(FILE *f)
{
    uint32_t v;
    must_read(f, &v, sizeof v);
    return v;
}

/* Blocks, numbers and encoded numbers of the reference (tests/vectors/quant/make.py), bit for bit.
 */
static void test_reference(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(all_types); i++) {
        const struct ttype_info *t = ttype_info(all_types[i]);
        char path[512];
        snprintf(path, sizeof path, VECTORS "/quant/%s.bin", t->name);
        FILE *f = fopen(path, "rb");
        assert_non_null(f);
        uint32_t n = read_u32(f), n_bytes = read_u32(f);
        assert_int_equal(ttype_row_bytes(all_types[i], n), n_bytes);
        uint8_t *blocks = xmalloc(n_bytes), *coded = xmalloc(n_bytes);
        float *want = xmalloc(n * sizeof *want), *have = xmalloc(n * sizeof *have);
        must_read(f, blocks, n_bytes);
        must_read(f, want, n * sizeof *want);
        t->decode(blocks, n, have);
        assert_memory_equal(have, want, n * sizeof *want);

        if (read_u32(f) == n) {
            must_read(f, want, n * sizeof *want);
            must_read(f, blocks, n_bytes);
            t->encode(want, n, coded);
            assert_memory_equal(coded, blocks, n_bytes);
        }
        fclose(f);
        free(blocks);
        free(coded);
        free(want);
        free(have);
    }
}

/* Error of encode and decode on a normal distribution, as a share of its deviation. The bounds are
 * those of nearest-level rounding with a scale from the extreme of each group. */
static void test_round_trip(void **state)
{
    static const struct {
        enum ttype type;
        double bound;
    } rows[] = {
        {TTYPE_F32, 0},       {TTYPE_F16, 3e-4},  {TTYPE_BF16, 2.5e-3}, {TTYPE_Q8_0, 0.008},
        {TTYPE_Q6_K, 0.025},  {TTYPE_Q5_K, 0.05}, {TTYPE_Q5_1, 0.05},   {TTYPE_Q5_0, 0.06},
        {TTYPE_Q4_K, 0.1},    {TTYPE_Q4_1, 0.1},  {TTYPE_Q4_0, 0.11},   {TTYPE_IQ4_NL, 0.11},
        {TTYPE_IQ4_XS, 0.12}, {TTYPE_Q3_K, 0.22}, {TTYPE_Q2_K, 0.42},
    };
    enum { N = 256 * 64 };
    static float in[N], out[N];
    static uint8_t coded[N * 4];
    struct rng r;
    rng_seed(&r, 5);
    for (int i = 0; i < N; i++)
        in[i] = rng_normal(&r) * 0.02f;
    for (size_t k = 0; k < ARRAY_LEN(rows); k++) {
        const struct ttype_info *t = ttype_info(rows[k].type);
        t->encode(in, N, coded);
        t->decode(coded, N, out);
        double sum = 0;
        for (int i = 0; i < N; i++)
            sum += ((double)out[i] - in[i]) * ((double)out[i] - in[i]);
        double error = sqrt(sum / N) / 0.02;
        if (!(error <= rows[k].bound))
            fail_msg("%s: error %g, bound %g", t->name, error, rows[k].bound);
    }
}

/* What is hard to scale: zeros, constants, the largest and smallest numbers, one spike among zeros
 * (IQ4 types have no level for zero, so these get its share of the spike). */
static void test_odd_input(void **state)
{
    static const float fill[] = {0, 1, -1, 1e-45f, 1e-38f, -3e-8f, 60000, -60000};
    float in[256], out[256];
    uint8_t coded[1024];
    for (size_t i = 0; i < ARRAY_LEN(all_types); i++) {
        const struct ttype_info *t = ttype_info(all_types[i]);
        for (size_t k = 0; k < ARRAY_LEN(fill) + 1; k++) {
            for (int j = 0; j < 256; j++)
                in[j] = k < ARRAY_LEN(fill) ? fill[k] : j == 77 ? 1e4f : 0;
            float slack = k < ARRAY_LEN(fill) ? 1e-6f : 80;
            t->encode(in, 256, coded);
            t->decode(coded, 256, out);
            for (int j = 0; j < 256; j++)
                if (!(fabsf(out[j] - in[j]) <= 0.07f * fabsf(in[j]) + slack))
                    fail_msg("%s: %g became %g", t->name, (double)in[j], (double)out[j]);
        }
    }
}

/* Every half there is goes to a float and back; floats between two halves go to the nearer. */
static void test_half(void **state)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float f = f16_to_f32((uint16_t)h);
        if ((h & 0x7fff) > 0x7c00)
            assert_true(isnan(f) && isnan(f16_to_f32(f32_to_f16(f))));
        else
            assert_int_equal(f32_to_f16(f), h);
        if ((h & 0x7fff) < 0x7bff) {
            float next = f16_to_f32((uint16_t)(h + 1)), middle = (f + next) / 2;
            assert_int_equal(f32_to_f16(middle), h & 1 ? h + 1 : h);
            assert_int_equal(f32_to_f16(nextafterf(middle, f)), h);
            assert_int_equal(f32_to_f16(nextafterf(middle, next)), h + 1);
        }
    }
    assert_int_equal(f32_to_f16(65519.0f), 0x7bff);
    assert_int_equal(f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(f32_to_f16(-1e30f), 0xfc00);
}

static void test_table(void **state)
{
    for (uint32_t type = 0; type < 100; type++) {
        bool known = false;
        for (size_t i = 0; i < ARRAY_LEN(all_types); i++)
            known |= all_types[i] == type;
        assert_int_equal(ttype_info(type) != NULL, known);
    }
    assert_null(ttype_info(UINT32_MAX));
    assert_int_equal(ttype_row_bytes(TTYPE_Q6_K, 4096), 16 * sizeof(struct block_q6_k));
    assert_int_equal(ttype_row_bytes(TTYPE_BF16, 3), 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference), cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_odd_input), cmocka_unit_test(test_half),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests_name("tensor", tests, NULL, NULL);
}
