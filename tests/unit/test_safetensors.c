/* The safetensors reader: a file of the reference package (tests/vectors/adapter/
 * make_safetensors.py), and files that lie. */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fault.h"
#include "base/mem.h"
#include "gguf/safetensors.h"

enum { LIMIT = 1 << 20 };

static const char path[] = VECTORS "/adapter/three_types.safetensors";

static void expect_tensor(const struct safetensors *s, int number, const char *name,
                          enum ttype type, int n_dims, const uint64_t *dims)
{
    const struct safetensor *t = safetensors_find(s, name);
    assert_non_null(t);
    assert_int_equal(t->type, type);
    assert_int_equal(t->n_dims, n_dims);
    uint64_t n = 1;
    for (int i = 0; i < n_dims; i++) {
        assert_int_equal(t->dims[i], dims[i]);
        n *= dims[i];
    }
    assert_int_equal(t->n_elems, n);
    float v[16];
    safetensor_floats(t, 0, n, v);
    for (uint64_t i = 0; i < n; i++)
        assert_float_equal(v[i], ((double)i - 5) * (number + 1) / 8, 0);
}

static void reads_what_the_package_writes(void **state)
{
    struct safetensors *s;
    struct err e = {0};
    assert_int_equal(safetensors_open(&s, path, LIMIT, &e), 0);
    assert_int_equal(safetensors_count(s), 5);
    expect_tensor(s, 0, "a.f32", TTYPE_F32, 2, (uint64_t[]){3, 5});
    expect_tensor(s, 1, "b.f16", TTYPE_F16, 3, (uint64_t[]){2, 2, 3});
    expect_tensor(s, 2, "c.bf16", TTYPE_BF16, 1, (uint64_t[]){7});
    expect_tensor(s, 3, "d.scalar", TTYPE_F32, 0, NULL);
    expect_tensor(s, 4, "e.empty", TTYPE_F16, 2, (uint64_t[]){0, 4});
    assert_null(safetensors_find(s, "a"));
    safetensors_close(s);
}

/* The same file at an odd address. */
static void reads_at_any_alignment(void **state)
{
    void *data;
    size_t n;
    struct safetensors *s;
    assert_int_equal(file_read(&data, &n, path, LIMIT, NULL), 0);
    char *odd = xmalloc(n + 1);
    memcpy(odd + 1, data, n);
    assert_int_equal(safetensors_open_mem(&s, odd + 1, n, NULL), 0);
    expect_tensor(s, 0, "a.f32", TTYPE_F32, 2, (uint64_t[]){3, 5});
    expect_tensor(s, 1, "b.f16", TTYPE_F16, 3, (uint64_t[]){2, 2, 3});
    expect_tensor(s, 2, "c.bf16", TTYPE_BF16, 1, (uint64_t[]){7});
    float two[2];
    safetensor_floats(safetensors_find(s, "c.bf16"), 5, 2, two);
    assert_float_equal(two[0], 0, 0);
    assert_float_equal(two[1], 3 / 8.0, 0);
    safetensors_close(s);
    free(odd);
    free(data);
}

/* A file of this header and n_data bytes of data, opened. */
static int open_header(const char *header, size_t n_data, struct err *e)
{
    struct buf b = {0};
    uint64_t n = strlen(header);
    buf_add(&b, &n, 8);
    buf_adds(&b, header);
    memset(buf_reserve(&b, n_data), 0, n_data);
    b.len += n_data;
    struct safetensors *s = NULL;
    /* in memory of exactly its size, so that a read beyond it is seen */
    char *exact = xmalloc(b.len);
    memcpy(exact, b.data, b.len);
    int rc = safetensors_open_mem(&s, exact, b.len, e);
    assert_true((rc == 0) == (s != NULL));
    safetensors_close(s);
    free(exact);
    buf_release(&b);
    return rc;
}

#define TENSOR(name, dtype, shape, offsets)                                                        \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

struct header_case {
    const char *header;
    size_t n_data;
    int rc;
    const char *says; /* part of the message */
};

static const struct header_case header_cases[] = {
    {"{}", 0, 0, ""},
    {"{\"__metadata__\":{\"format\":\"pt\"}}", 0, 0, ""},
    {"{" TENSOR("w", "F32", "[2,2]", "[0,16]") "}", 16, 0, ""},
    {"{" TENSOR("w", "F32", "[2,2]", "[0,16]") "}   ", 16, 0, ""}, /* padded as writers do */
    {"{" TENSOR("b", "F16", "[2]", "[4,8]") "," TENSOR("a", "BF16", "[2]", "[0,4]") "}", 8, 0, ""},
    {"", 0, ERR_FORMAT, "header"},
    {"[]", 0, ERR_FORMAT, "no JSON object"},
    {"{", 0, ERR_FORMAT, "header"},
    {"{\"w\":1}", 0, ERR_FORMAT, "tensor w"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, ERR_FORMAT, "tensor w"},
    {"{\"\":{}}", 0, ERR_FORMAT, "name"},
    {"{" TENSOR("w\\u0007", "F32", "[1]", "[0,4]") "}", 4, ERR_FORMAT, "name"},
    {"{" TENSOR("w", "F64", "[1]", "[0,8]") "}", 8, ERR_UNSUPPORTED, "tensor w: dtype F64"},
    {"{" TENSOR("w", "I8", "[1]", "[0,1]") "}", 1, ERR_UNSUPPORTED, "tensor w"},
    {"{" TENSOR("w", "F32", "[-1]", "[0,4]") "}", 4, ERR_FORMAT, "shape[0]"},
    {"{" TENSOR("w", "F32", "[1.0]", "[0,4]") "}", 4, ERR_FORMAT, "shape[0]"},
    {"{" TENSOR("w", "F32", "3", "[0,12]") "}", 12, ERR_FORMAT, "shape"},
    {"{" TENSOR("w", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, ERR_FORMAT, "shape"},
    {"{" TENSOR("w", "F32", "[4294967296,4294967296]", "[0,4]") "}", 4, ERR_FORMAT, "64 bits"},
    {"{" TENSOR("w", "F32", "[4611686018427387904]", "[0,0]") "}", 0, ERR_FORMAT, "fit a shape"},
    {"{" TENSOR("w", "F32", "[2]", "[0,4]") "}", 4, ERR_FORMAT, "fit a shape"},
    {"{" TENSOR("w", "F32", "[2]", "[0,8]") "}", 7, ERR_FORMAT, "cut short"},
    {"{" TENSOR("w", "F32", "[2]", "[8,0]") "}", 8, ERR_FORMAT, "data_offsets"},
    {"{" TENSOR("w", "F32", "[2]", "[-8,0]") "}", 8, ERR_FORMAT, "data_offsets"},
    {"{" TENSOR("w", "F32", "[2]", "[0]") "}", 8, ERR_FORMAT, "data_offsets"},
    {"{" TENSOR("w", "F32", "[1]", "[18446744073709551612,18446744073709551616]") "}", 4,
     ERR_FORMAT, "header"},
    {"{" TENSOR("w", "F32", "[2]", "[4,12]") "}", 12, ERR_FORMAT, "tensor w leaves a gap"},
    {"{" TENSOR("w", "F32", "[2]", "[0,8]") "}", 12, ERR_FORMAT, "belong to no tensor"},
    {"{" TENSOR("a", "F32", "[2]", "[0,8]") "," TENSOR("b", "F32", "[2]", "[4,12]") "}", 12,
     ERR_FORMAT, "tensor b overlaps"},
    {"{" TENSOR("a", "F32", "[1]", "[0,4]") "," TENSOR("a", "F32", "[1]", "[4,8]") "}", 8,
     ERR_FORMAT, "duplicate"},
};

static void refuses_headers_that_lie(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(header_cases); i++) {
        const struct header_case *c = &header_cases[i];
        struct err e = {0};
        int rc = open_header(c->header, c->n_data, &e);
        if (rc != c->rc || rc != e.code || !strstr(e.msg, c->says))
            fail_msg("%s: %d \"%s\"", c->header, rc, e.msg);
    }
}

static void refuses_deep_and_long_headers(void **state)
{
    struct err e = {0};
    struct buf b = {0};
    for (int i = 0; i < 100000; i++)
        buf_adds(&b, "[");
    assert_int_equal(open_header(buf_str(&b), 0, &e), ERR_FORMAT);
    buf_clear(&b);
    buf_adds(&b, "{");
    for (int i = 0; i < 70000; i++)
        buf_addf(&b, "%s" TENSOR("t%d", "F32", "[0]", "[0,0]"), i ? "," : "", i);
    buf_adds(&b, "}");
    assert_int_equal(open_header(buf_str(&b), 0, &e), ERR_LIMIT);
    buf_release(&b);
}

/* Every prefix of a good file is refused. */
static void refuses_cut_files(void **state)
{
    void *data;
    size_t n;
    struct safetensors *s;
    assert_int_equal(file_read(&data, &n, path, LIMIT, NULL), 0);
    for (size_t i = 0; i < n; i++) {
        char *cut = xmalloc(i + 1);
        memcpy(cut, data, i);
        assert_true(safetensors_open_mem(&s, cut, i, NULL) < 0);
        free(cut);
    }
    free(data);
}

static void names_what_is_wrong_with_a_file(void **state)
{
    struct safetensors *s;
    struct err e = {0};
    assert_int_equal(safetensors_open(&s, "/nonexistent/x", LIMIT, &e), ERR_NOTFOUND);
    assert_int_equal(safetensors_open(&s, VECTORS, LIMIT, &e), ERR_INVALID);
    assert_int_equal(safetensors_open(&s, "/dev/null", LIMIT, &e), ERR_INVALID);
    assert_int_equal(safetensors_open(&s, path, 100, &e), ERR_LIMIT);
    fault_set(FAULT_READ, 1);
    assert_int_equal(safetensors_open(&s, path, LIMIT, &e), ERR_IO);
    fault_set(FAULT_ALLOC, 1);
    assert_int_equal(safetensors_open(&s, path, LIMIT, &e), ERR_NOMEM);
    fault_set(FAULT_ALLOC, 0);
    assert_null(s);
    safetensors_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_the_package_writes),
        cmocka_unit_test(reads_at_any_alignment),
        cmocka_unit_test(refuses_headers_that_lie),
        cmocka_unit_test(refuses_deep_and_long_headers),
        cmocka_unit_test(refuses_cut_files),
        cmocka_unit_test(names_what_is_wrong_with_a_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
