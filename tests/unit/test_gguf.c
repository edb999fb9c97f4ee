#include "unit.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/mem.h"
#include "gguf/gguf.h"

static const char *const kind_names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};

static void print_tensor(const struct gguf_tensor *t, struct buf *out)
{
    buf_addf(out, "tensor %.*s %s [", (int)t->name.n, t->name.p, ttype_info(t->type)->name);
    for (int d = 0; d < t->n_dims; d++)
        buf_addf(out, "%s%llu", d ? ", " : "", (unsigned long long)t->dims[d]);
    unsigned char sum[32];
    assert_int_equal(EVP_Digest(t->data, t->n_bytes, sum, NULL, EVP_sha256(), NULL), 1);
    buf_addf(out, "] %zu ", t->n_bytes);
    for (int i = 0; i < 8; i++)
        buf_addf(out, "%02x", sum[i]);
    buf_addc(out, '\n');
}

/* Everything in a real model file, against what the Python package `gguf` reads from it
 * (tests/vectors/gguf/make_smollm2.py). */
static void test_real_model(void **state)
{
    FILE *f = fopen(VECTORS "/gguf/smollm2.txt", "r");
    assert_non_null(f);
    size_t want_bytes = 0;
    assert_int_equal(fscanf(f, "file %zu\n", &want_bytes), 1);
    const char *path = getenv("TERRACE_TEST_MODEL");
    struct gguf *g = NULL;
    struct err e = {0};
    if (path && gguf_open(&g, path, &e))
        fail_msg("%s", e.msg);
    if (!g || gguf_file_bytes(g) != want_bytes) {
        print_message("skipped: set TERRACE_TEST_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf\n");
        gguf_close(g);
        fclose(f);
        skip();
    }
    char *line = NULL;
    size_t cap = 0;
    struct buf have = {0};
    for (size_t i = 0; i < gguf_n_keys(g) + gguf_n_tensors(g); i++) {
        buf_clear(&have);
        if (i < gguf_n_keys(g)) {
            struct str key = gguf_key(g, i);
            buf_addf(&have, "key %.*s %s ", (int)key.n, key.p, kind_names[gguf_key_kind(g, i)]);
            gguf_print_value(g, i, &have);
            buf_addc(&have, '\n');
        } else {
            print_tensor(gguf_tensor_at(g, i - gguf_n_keys(g)), &have);
        }
        assert_true(getline(&line, &cap, f) > 0);
        assert_string_equal(have.data, line);
    }
    assert_int_equal(getline(&line, &cap, f), -1);
    free(line);
    fclose(f);
    buf_release(&have);
    gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_real_model),
    };
    return cmocka_run_group_tests_name("gguf", tests, NULL, NULL);
}
