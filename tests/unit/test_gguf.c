#include "unit.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fault.h"
#include "base/mem.h"
#include "base/rng.h"
#include "gguf/gguf.h"
#include "gguf/gguf_writer.h"

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

/* -- Files made by hand, byte by byte ------------------------------------------------------------
 */

static void add_u32(struct buf *b, uint32_t v)
{
    buf_add(b, &v, sizeof v);
}

static void add_u64(struct buf *b, uint64_t v)
{
    buf_add(b, &v, sizeof v);
}

static void add_str(struct buf *b, const char *s)
{
    add_u64(b, strlen(s));
    buf_adds(b, s);
}

static void add_start(struct buf *b, uint32_t version, uint64_t n_tensors, uint64_t n_keys)
{
    buf_adds(b, "GGUF");
    add_u32(b, version);
    add_u64(b, n_tensors);
    add_u64(b, n_keys);
}

static void add_key(struct buf *b, const char *key, uint32_t kind)
{
    add_str(b, key);
    add_u32(b, kind);
}

static void add_key_u32(struct buf *b, const char *key, uint32_t v)
{
    add_key(b, key, GGUF_U32);
    add_u32(b, v);
}

/* An F32 matrix of 2 x 4. */
static void add_tensor(struct buf *b, const char *name, uint32_t type, uint64_t offset)
{
    add_str(b, name);
    add_u32(b, 2);
    add_u64(b, 4);
    add_u64(b, 2);
    add_u32(b, type);
    add_u64(b, offset);
}

static void add_data(struct buf *b, size_t n)
{
    while (b->len % 32)
        buf_addc(b, 0);
    for (size_t i = 0; i < n; i++)
        buf_addc(b, (char)i);
}

/* The smallest file with one of everything; the hostile ones differ from it in one thing. */
static void make_good(struct buf *b)
{
    add_start(b, 3, 2, 5);
    add_key(b, "general.architecture", GGUF_STRING);
    add_str(b, "llama");
    add_key_u32(b, "general.alignment", 32);
    add_key(b, "list", GGUF_ARRAY);
    add_u32(b, GGUF_STRING);
    add_u64(b, 2);
    add_str(b, "a");
    add_str(b, "");
    add_key(b, "flags", GGUF_ARRAY);
    add_u32(b, GGUF_BOOL);
    add_u64(b, 3);
    buf_add(b, "\1\0\1", 3);
    add_key(b, "small", GGUF_I8);
    buf_addc(b, -7);
    add_tensor(b, "one", TTYPE_F32, 0);
    add_tensor(b, "two", TTYPE_F32, 32);
    add_data(b, 64);
}

/* gguf_open_mem over a copy that ends where its allocation ends, so that ASan sees a read beyond.
 */
static int open_bytes(const struct buf *b, struct gguf **g, void **copy, struct err *e)
{
    *copy = xmalloc(b->len ? b->len : 1);
    if (b->len)
        memcpy(*copy, b->data, b->len);
    return gguf_open_mem(g, *copy, b->len, e);
}

static void test_good(void **state)
{
    struct buf b = {0};
    make_good(&b);
    struct gguf *g;
    struct err e = {0};
    void *copy;
    assert_int_equal(open_bytes(&b, &g, &copy, &e), 0);
    assert_string_equal(gguf_path(g), "");
    assert_int_equal(gguf_version(g), 3);
    assert_int_equal(gguf_n_keys(g), 5);
    assert_int_equal(gguf_file_bytes(g), b.len);
    assert_true(str_eqs(gguf_str(g, "general.architecture", ""), "llama"));
    assert_int_equal(gguf_u32(g, "general.alignment", 1), 32);
    struct gguf_arr list;
    assert_int_equal(gguf_get_arr(g, "list", GGUF_STRING, &list, &e), 0);
    assert_int_equal(list.n, 2);
    assert_true(str_eqs(list.strs[0], "a") && list.strs[1].n == 0);
    assert_int_equal(gguf_get_arr(g, "flags", GGUF_BOOL, &list, &e), 0);
    assert_memory_equal(list.data, "\1\0\1", 3);

    uint32_t u;
    assert_int_equal(gguf_get_u32(g, "small", &u, &e), ERR_FORMAT);
    assert_string_equal(e.msg, "key small is -7, it must not be negative");
    assert_int_equal(gguf_get_u32(g, "list", &u, &e), ERR_FORMAT);
    assert_string_equal(e.msg, "key list is an array of string, it must be a whole number");
    assert_int_equal(gguf_get_u32(g, "none", &u, &e), ERR_NOTFOUND);
    assert_int_equal(gguf_u32(g, "none", 9), 9);

    const struct gguf_tensor *t = gguf_find(g, "two");
    assert_non_null(t);
    assert_int_equal(t->n_bytes, 32);
    assert_int_equal(*(const unsigned char *)t->data, 32);
    assert_null(gguf_find(g, "three"));
    uint64_t dims[] = {4, 0}, wrong[] = {0, 3};
    assert_int_equal(gguf_need(g, "two", 2, dims, &t, &e), 0);
    assert_int_equal(gguf_need(g, "two", 2, wrong, &t, &e), ERR_FORMAT);
    assert_string_equal(e.msg,
                        "tensor two has shape [4, 2], the model's metadata call for [any, 3]");
    assert_int_equal(gguf_need(g, "three", 2, dims, &t, &e), ERR_NOTFOUND);
    gguf_close(g);
    free(copy);
    buf_release(&b);
}

/* One weight makes another fingerprint, in the first tensor as in the last. */
static void test_fingerprint(void **state)
{
    struct buf b = {0};
    make_good(&b);
    uint8_t sums[3][32];
    for (size_t i = 0; i < ARRAY_LEN(sums); i++) {
        struct gguf *g;
        void *copy;
        char *changed = b.data + b.len - (i == 1 ? 64 : 1);
        *changed ^= i > 0;
        assert_int_equal(open_bytes(&b, &g, &copy, NULL), 0);
        gguf_fingerprint(g, sums[i]);
        gguf_close(g);
        free(copy);
        *changed ^= i > 0;
    }
    assert_memory_not_equal(sums[0], sums[1], 32);
    assert_memory_not_equal(sums[0], sums[2], 32);
    assert_memory_not_equal(sums[1], sums[2], 32);
    buf_release(&b);
}

/* What each hostile file is: a name, how it is made, the error and a part of its message. */
static void hostile_magic(struct buf *b)
{
    buf_adds(b, "GGML");
}
static void hostile_version(struct buf *b)
{
    add_start(b, 1, 0, 0);
}
static void hostile_big_endian(struct buf *b)
{
    add_start(b, 0x03000000, 0, 0);
}
static void hostile_tensor_count(struct buf *b)
{
    add_start(b, 3, UINT64_MAX, 0);
}
static void hostile_key_count(struct buf *b)
{
    add_start(b, 3, 0, 60000);
    add_data(b, 100);
}
static void hostile_key_length(struct buf *b)
{
    add_start(b, 3, 0, 1);
    add_u64(b, UINT64_MAX - 7);
    add_data(b, 64);
}
static void hostile_key_text(struct buf *b)
{
    add_start(b, 3, 0, 1);
    add_key_u32(b, "a\x1b[2J", 1);
}
static void hostile_key_utf8(struct buf *b)
{
    add_start(b, 3, 0, 1);
    add_key_u32(b, "\xc0\xaf", 1);
}
static void hostile_key_twice(struct buf *b)
{
    add_start(b, 3, 0, 2);
    add_key_u32(b, "k", 1);
    add_key_u32(b, "k", 1);
}
static void hostile_kind(struct buf *b)
{
    add_start(b, 3, 0, 1);
    add_key(b, "k", 13);
    add_u32(b, 0);
}
static void hostile_bool(struct buf *b)
{
    add_start(b, 3, 0, 1);
    add_key(b, "k", GGUF_BOOL);
    buf_addc(b, 2);
}
static void add_array(struct buf *b, uint32_t kind, uint64_t n)
{
    add_start(b, 3, 0, 1);
    add_key(b, "k", GGUF_ARRAY);
    add_u32(b, kind);
    add_u64(b, n);
    add_data(b, 64);
}
static void hostile_nested(struct buf *b)
{
    add_array(b, GGUF_ARRAY, 1);
}
static void hostile_array_count(struct buf *b)
{
    add_array(b, GGUF_F64, UINT64_MAX / 8 + 2); /* times 8 is 8 again */
}
static void hostile_string_count(struct buf *b)
{
    add_array(b, GGUF_STRING, (uint64_t)1 << 60);
}
static void hostile_string_length(struct buf *b)
{
    add_start(b, 3, 0, 1);
    add_key(b, "k", GGUF_ARRAY);
    add_u32(b, GGUF_STRING);
    add_u64(b, 2);
    add_str(b, "fine");
    add_u64(b, UINT64_MAX);
    add_data(b, 64);
}
static void add_aligned(struct buf *b, uint32_t alignment, uint64_t offset)
{
    add_start(b, 3, 1, 1);
    add_key_u32(b, "general.alignment", alignment);
    add_tensor(b, "t", TTYPE_F32, offset);
    add_data(b, 64);
}
static void hostile_alignment_zero(struct buf *b)
{
    add_aligned(b, 0, 0);
}
static void hostile_alignment_odd(struct buf *b)
{
    add_aligned(b, 48, 0);
}
static void hostile_alignment_kind(struct buf *b)
{
    add_start(b, 3, 0, 1);
    add_key(b, "general.alignment", GGUF_STRING);
    add_str(b, "32");
}
static void hostile_unaligned(struct buf *b)
{
    add_aligned(b, 32, 8);
}
static void hostile_outside(struct buf *b)
{
    add_aligned(b, 32, 64);
}
static void hostile_far_outside(struct buf *b)
{
    add_aligned(b, 32, UINT64_MAX - 31);
}
static void add_two(struct buf *b, const char *second, uint64_t offset)
{
    add_start(b, 3, 2, 0);
    add_tensor(b, "t", TTYPE_F32, 32);
    add_tensor(b, second, TTYPE_F32, offset);
    add_data(b, 64);
}
static void hostile_overlap(struct buf *b)
{
    add_two(b, "u", 32);
}
static void hostile_tensor_twice(struct buf *b)
{
    add_two(b, "t", 0);
}
static void add_shape(struct buf *b, uint32_t type, uint32_t n_dims, uint64_t x, uint64_t y)
{
    add_start(b, 3, 1, 0);
    add_str(b, "t");
    add_u32(b, n_dims);
    add_u64(b, x);
    for (uint32_t i = 1; i < n_dims; i++)
        add_u64(b, y);
    add_u32(b, type);
    add_u64(b, 0);
    add_data(b, 64);
}
static void hostile_dims_zero(struct buf *b)
{
    add_shape(b, TTYPE_F32, 2, 4, 0);
}
static void hostile_dims_overflow(struct buf *b)
{
    add_shape(b, TTYPE_F32, 3, (uint64_t)1 << 32, (uint64_t)1 << 32);
}
static void hostile_bytes_overflow(struct buf *b)
{
    add_shape(b, TTYPE_F32, 1, (uint64_t)1 << 62, 0);
}
static void hostile_too_many_dims(struct buf *b)
{
    add_shape(b, TTYPE_F32, 5, 1, 1);
}
static void hostile_no_dims(struct buf *b)
{
    add_start(b, 3, 1, 0);
    add_str(b, "t");
    add_u32(b, 0);
    add_data(b, 64);
}
static void hostile_half_block(struct buf *b)
{
    add_shape(b, TTYPE_Q4_K, 2, 128, 2);
}
static void hostile_type(struct buf *b)
{
    add_shape(b, 1000, 1, 4, 0);
}
static void hostile_foreign_type(struct buf *b)
{
    add_shape(b, 16, 1, 256, 0);
}
static void hostile_split(struct buf *b)
{
    add_start(b, 3, 0, 1);
    add_key_u32(b, "split.count", 2);
}

#define HOSTILE(name, code, part)                                                                  \
    {                                                                                              \
#name, hostile_##name, code, part                                                          \
    }
static const struct {
    const char *name;
    void (*make)(struct buf *);
    int code;
    const char *part;
} hostile[] = {
    HOSTILE(magic, ERR_FORMAT, "no GGUF file"),
    HOSTILE(version, ERR_UNSUPPORTED, "version 1"),
    HOSTILE(big_endian, ERR_UNSUPPORTED, "big-endian"),
    HOSTILE(tensor_count, ERR_LIMIT, "18446744073709551615 tensors"),
    HOSTILE(key_count, ERR_FORMAT, "60000 keys"),
    HOSTILE(key_length, ERR_FORMAT, "metadata"),
    HOSTILE(key_text, ERR_FORMAT, "name at byte 24"),
    HOSTILE(key_utf8, ERR_FORMAT, "name at byte 24"),
    HOSTILE(key_twice, ERR_FORMAT, "key k comes twice"),
    HOSTILE(kind, ERR_FORMAT, "key k has value type 13"),
    HOSTILE(bool, ERR_FORMAT, "key k: 2 is no bool"),
    HOSTILE(nested, ERR_UNSUPPORTED, "key k is an array of arrays"),
    HOSTILE(array_count, ERR_FORMAT, "elements, more than the file can hold"),
    HOSTILE(string_count, ERR_FORMAT, "strings, more than the file can hold"),
    HOSTILE(string_length, ERR_FORMAT, "ends inside its metadata"),
    HOSTILE(alignment_zero, ERR_FORMAT, "general.alignment is 0"),
    HOSTILE(alignment_odd, ERR_FORMAT, "general.alignment is 48"),
    HOSTILE(alignment_kind, ERR_FORMAT, "key general.alignment is string"),
    HOSTILE(unaligned, ERR_FORMAT, "tensor t starts at offset 8"),
    HOSTILE(outside, ERR_FORMAT, "tensor t ends beyond"),
    HOSTILE(far_outside, ERR_FORMAT, "tensor t ends beyond"),
    HOSTILE(overlap, ERR_FORMAT, "overlap"),
    HOSTILE(tensor_twice, ERR_FORMAT, "tensor t comes twice"),
    HOSTILE(dims_zero, ERR_FORMAT, "dimension of 0"),
    HOSTILE(dims_overflow, ERR_FORMAT, "than memory can address"),
    HOSTILE(bytes_overflow, ERR_FORMAT, "than memory can address"),
    HOSTILE(too_many_dims, ERR_FORMAT, "5 dimensions"),
    HOSTILE(no_dims, ERR_FORMAT, "0 dimensions"),
    HOSTILE(half_block, ERR_FORMAT, "rows of 128 numbers, but Q4_K comes in blocks of 256"),
    HOSTILE(type, ERR_FORMAT, "type 1000 (unknown)"),
    HOSTILE(foreign_type, ERR_UNSUPPORTED, "type 16 (IQ2_XXS)"),
    HOSTILE(split, ERR_UNSUPPORTED, "split model cannot be read from memory"),
};

static void test_hostile(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(hostile); i++) {
        struct buf b = {0};
        hostile[i].make(&b);
        struct gguf *g;
        struct err e = {0};
        void *copy;
        int rc = open_bytes(&b, &g, &copy, &e);
        if (rc != hostile[i].code || e.code != rc || !strstr(e.msg, hostile[i].part) || g)
            fail_msg("%s: %d %s", hostile[i].name, rc, e.msg);
        free(copy);
        buf_release(&b);
    }
}

/* Reads all there is to read. */
static void walk(const struct gguf *g)
{
    struct buf text = {0};
    for (size_t i = 0; i < gguf_n_keys(g); i++)
        gguf_print_value(g, i, &text);
    uint8_t sum[32];
    gguf_fingerprint(g, sum);
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        buf_add(&text, t->data, t->n_bytes);
    }
    buf_release(&text);
}

/* Cut at every length a file must be refused; with any byte changed it may open, but only whole. */
static void test_cut_and_changed(void **state)
{
    struct buf b = {0};
    make_good(&b);
    struct gguf *g;
    void *copy;
    size_t whole = b.len;
    for (b.len = 0; b.len < whole; b.len++) {
        struct err e = {0};
        assert_int_equal(open_bytes(&b, &g, &copy, &e), ERR_FORMAT);
        assert_true(e.msg[0]);
        free(copy);
    }
    static const unsigned char values[] = {0, 1, 0x7f, 0x80, 0xff, '.'};
    for (size_t at = 0; at < whole; at++) {
        for (size_t k = 0; k < ARRAY_LEN(values); k++) {
            char was = b.data[at];
            b.data[at] = (char)values[k];
            if (!open_bytes(&b, &g, &copy, NULL)) {
                walk(g);
                gguf_close(g);
            }
            free(copy);
            b.data[at] = was;
        }
    }
    buf_release(&b);
}

static void test_no_memory(void **state)
{
    struct buf b = {0};
    make_good(&b);
    int failed = 0;
    for (int n = 1;; n++) {
        struct gguf *g;
        struct err e = {0};
        void *copy;
        fault_set(FAULT_ALLOC, n);
        int rc = open_bytes(&b, &g, &copy, &e);
        fault_set(FAULT_ALLOC, 0);
        gguf_close(g);
        free(copy);
        if (!rc)
            break;
        assert_int_equal(rc, ERR_NOMEM);
        failed++;
    }
    assert_true(failed >= 5);
    buf_release(&b);
}

/* -- What the writer writes ----------------------------------------------------------------------
 */

struct place {
    char folder[64], path[128];
};

static void make_place(struct place *p, const char *name)
{
    snprintf(p->folder, sizeof p->folder, "%s/gguf-XXXXXX",
             getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    assert_non_null(mkdtemp(p->folder));
    snprintf(p->path, sizeof p->path, "%s/%s", p->folder, name);
}

static void add_one_of_each(struct gguf_writer *w)
{
    static const struct str words[] = {{"one", 3}, {"", 0}, {"t\0o", 3}};
    static const int32_t numbers[] = {-1, 0, 1, 2, 3, 4, 5, 6, 7, 8};
    gguf_writer_u16(w, "u16", 65535);
    gguf_writer_u32(w, "u32", 4000000000u);
    gguf_writer_i32(w, "i32", -5);
    gguf_writer_u64(w, "u64", UINT64_MAX);
    gguf_writer_f32(w, "f32", 0.5f);
    gguf_writer_bool(w, "bool", true);
    gguf_writer_str(w, "str", STR("caf\xc3\xa9 \"x\"\n"));
    gguf_writer_strs(w, "strs", words, ARRAY_LEN(words));
    gguf_writer_arr(w, "arr", GGUF_I32, numbers, ARRAY_LEN(numbers));
}

static const char *const one_of_each[] = {"65535",
                                          "4000000000",
                                          "-5",
                                          "18446744073709551615",
                                          "0.5",
                                          "true",
                                          "\"caf\xc3\xa9 \\\"x\\\"\\n\"",
                                          "[\"one\", \"\", \"t\\u0000o\"]",
                                          "[-1, 0, 1, 2, 3, 4, 5, 6, ... 10 in all]"};

static void check_one_of_each(const struct gguf *g, size_t first)
{
    for (size_t i = 0; i < ARRAY_LEN(one_of_each); i++) {
        struct buf text = {0};
        gguf_print_value(g, first + i, &text);
        assert_string_equal(text.data, one_of_each[i]);
        buf_release(&text);
    }
}

static void put_pieces(struct gguf_writer *w, struct rng *r, const char *p, size_t n)
{
    for (size_t at = 0; at < n;) {
        size_t piece = rng_below(r, 700);
        piece = piece < n - at ? piece : n - at;
        assert_int_equal(gguf_writer_data(w, p + at, piece, NULL), 0);
        at += piece;
    }
}

/* Random shapes and types, data in pieces of random size; what is read back is what was written. */
static void test_writer(void **state)
{
    enum { N_TENSORS = 60 };
    static const enum ttype types[] = {TTYPE_F32, TTYPE_F16, TTYPE_Q5_1, TTYPE_Q4_0};
    static const uint32_t alignments[] = {8, 32, 64, 4096};
    for (size_t round = 0; round < ARRAY_LEN(alignments); round++) {
        struct rng r;
        rng_seed(&r, round);
        struct place p;
        make_place(&p, "a.gguf");
        struct gguf_writer *w;
        assert_int_equal(gguf_writer_open(&w, p.path, NULL), 0);
        gguf_writer_alignment(w, alignments[round]);
        add_one_of_each(w);
        size_t sizes[N_TENSORS], total = 0;
        char name[32];
        for (int i = 0; i < N_TENSORS; i++) {
            uint64_t dims[4] = {32 * (1 + rng_below(&r, 5)), 1 + rng_below(&r, 7), 3, 1};
            enum ttype type = types[rng_below(&r, 4)];
            int n_dims = 1 + (int)rng_below(&r, 4);
            sizes[i] = ttype_row_bytes(type, dims[0]);
            for (int d = 1; d < n_dims; d++)
                sizes[i] *= dims[d];
            total += sizes[i];
            snprintf(name, sizeof name, "blk.%d.weight", i);
            gguf_writer_tensor(w, name, type, n_dims, dims);
        }
        char *data = xmalloc(total);
        for (size_t i = 0; i < total; i++)
            data[i] = (char)rng_u64(&r);
        put_pieces(w, &r, data, total);
        assert_int_equal(access(p.path, F_OK), -1);
        assert_int_equal(gguf_writer_finish(w, NULL), 0);
        gguf_writer_close(w);

        struct gguf *g;
        assert_int_equal(gguf_open(&g, p.path, NULL), 0);
        check_one_of_each(g, 1);
        assert_int_equal(gguf_n_tensors(g), N_TENSORS);
        const char *want = data;
        for (int i = 0; i < N_TENSORS; i++) {
            snprintf(name, sizeof name, "blk.%d.weight", i);
            const struct gguf_tensor *t = gguf_find(g, name);
            assert_int_equal(t->n_bytes, sizes[i]);
            assert_int_equal((uintptr_t)t->data % alignments[round], 0);
            assert_memory_equal(t->data, want, sizes[i]);
            want += sizes[i];
        }
        gguf_close(g);
        free(data);
        unlink(p.path);
        rmdir(p.folder);
    }
}

static struct gguf *write_and_open(const struct gguf *from, const char *path, uint8_t sum[32])
{
    struct gguf_writer *w;
    struct gguf *g;
    assert_int_equal(gguf_writer_open(&w, path, NULL), 0);
    for (size_t i = 0; from && i < gguf_n_keys(from); i++)
        gguf_writer_copy(w, from, i);
    if (!from)
        add_one_of_each(w);
    assert_int_equal(gguf_writer_finish(w, NULL), 0);
    gguf_writer_close(w);
    assert_int_equal(gguf_open(&g, path, NULL), 0);
    gguf_fingerprint(g, sum);
    return g;
}

/* Keys copied from file to file stay what they are; the fingerprint is of the content. */
static void test_copy(void **state)
{
    struct place p, q;
    uint8_t sum_p[32], sum_q[32];
    make_place(&p, "a.gguf");
    make_place(&q, "b.gguf");
    struct gguf *g = write_and_open(NULL, p.path, sum_p), *h = write_and_open(g, q.path, sum_q);
    check_one_of_each(h, 0);
    assert_memory_equal(sum_p, sum_q, 32);
    gguf_close(g);
    gguf_close(h);

    struct gguf_writer *w; /* dropped before it is finished: the old file stays */
    assert_int_equal(gguf_writer_open(&w, p.path, NULL), 0);
    gguf_writer_u32(w, "one", 1);
    gguf_writer_close(w);
    assert_int_equal(gguf_open(&g, p.path, NULL), 0);
    check_one_of_each(g, 0);
    gguf_close(g);
    unlink(p.path);
    unlink(q.path);
    assert_int_equal(rmdir(p.folder), 0);
    assert_int_equal(rmdir(q.folder), 0);
}

/* A write that fails at any point is reported, and nothing is left behind. */
static void test_disk_full(void **state)
{
    struct place p;
    make_place(&p, "full.gguf");
    int failed = 0;
    for (int n = 1;; n++) {
        struct gguf_writer *w;
        struct err e = {0};
        uint64_t dims[] = {8};
        float data[8] = {0};
        assert_int_equal(gguf_writer_open(&w, p.path, &e), 0);
        add_one_of_each(w);
        gguf_writer_tensor(w, "t", TTYPE_F32, 1, dims);
        gguf_writer_tensor(w, "u", TTYPE_F32, 1, dims);
        fault_set(FAULT_WRITE, n);
        int rc = gguf_writer_data(w, data, sizeof data, &e);
        if (!rc)
            rc = gguf_writer_data(w, data, sizeof data, &e);
        if (!rc)
            rc = gguf_writer_finish(w, &e);
        fault_set(FAULT_WRITE, 0);
        gguf_writer_close(w);
        if (!rc)
            break;
        assert_int_equal(rc, ERR_IO);
        failed++;
        assert_int_equal(rmdir(p.folder), 0); /* empty */
        assert_int_equal(mkdir(p.folder, 0700), 0);
    }
    assert_true(failed >= 5);
    unlink(p.path);
    rmdir(p.folder);
}

struct part {
    uint16_t no, count;
    int32_t total; /* split.tensors.count */
    const char *tensor;
    const char *file;
};

static void write_part(const char *folder, const struct part *part)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, part->file);
    struct gguf_writer *w;
    struct err e = {0};
    uint64_t dims[] = {8};
    float data[8];
    for (int i = 0; i < 8; i++)
        data[i] = (float)(part->no * 8 + i);
    assert_int_equal(gguf_writer_open(&w, path, &e), 0);
    gguf_writer_u16(w, "split.no", part->no);
    gguf_writer_u16(w, "split.count", part->count);
    gguf_writer_i32(w, "split.tensors.count", part->total);
    gguf_writer_tensor(w, part->tensor, TTYPE_F32, 1, dims);
    assert_int_equal(gguf_writer_data(w, data, sizeof data, &e), 0);
    assert_int_equal(gguf_writer_finish(w, &e), 0);
    gguf_writer_close(w);
}

/* Writes the parts, opens the first and removes them. */
static int open_split(const struct part *parts, size_t n, struct gguf **g, struct err *e)
{
    struct place p;
    make_place(&p, parts[0].file);
    for (size_t i = 0; i < n; i++)
        write_part(p.folder, &parts[i]);
    *e = (struct err){0};
    int rc = gguf_open(g, p.path, e);
    for (size_t i = 0; i < n; i++) {
        snprintf(p.path, sizeof p.path, "%s/%s", p.folder, parts[i].file);
        unlink(p.path);
    }
    rmdir(p.folder);
    return rc;
}

static void test_split(void **state)
{
#define PART(n) "m-0000" #n "-of-00003.gguf"
    struct gguf *g;
    struct err e;
    const struct part good[] = {
        {0, 3, 3, "a", PART(1)}, {1, 3, 3, "b", PART(2)}, {2, 3, 3, "c", PART(3)}};
    assert_int_equal(open_split(good, 3, &g, &e), 0);
    assert_int_equal(gguf_n_tensors(g), 3);
    assert_int_equal(gguf_n_keys(g), 3);
    for (int i = 0; i < 3; i++) {
        const struct gguf_tensor *t = gguf_find(g, good[i].tensor);
        assert_non_null(t);
        for (int k = 0; k < 8; k++)
            assert_true(((const float *)t->data)[k] == (float)(i * 8 + k));
    }
    gguf_close(g);

    static const struct {
        struct part parts[3];
        size_t n;
        int code;
        const char *message;
    } bad[] = {
        {{{1, 3, 3, "b", PART(2)}}, 1, ERR_INVALID, "part 2 of a split model: open part 1"},
        {{{0, 3, 3, "a", "renamed.gguf"}}, 1, ERR_INVALID, "original names"},
        {{{0, 3, 3, "a", PART(1)}, {1, 3, 3, "b", PART(2)}}, 2, ERR_NOTFOUND, PART(3)},
        {{{0, 3, 3, "a", PART(1)}, {2, 3, 3, "b", PART(2)}}, 2, ERR_FORMAT, "part 3 of 3"},
        {{{0, 3, 3, "a", PART(1)}, {1, 4, 3, "b", PART(2)}}, 2, ERR_FORMAT, "part 2 of 4"},
        {{{0, 3, 3, "a", PART(1)}, {1, 3, 3, "b", PART(2)}, {2, 3, 3, "a", PART(3)}},
         3,
         ERR_FORMAT,
         "tensor a comes twice"},
        {{{0, 3, 4, "a", PART(1)}, {1, 3, 4, "b", PART(2)}, {2, 3, 4, "c", PART(3)}},
         3,
         ERR_FORMAT,
         "split.tensors.count is 4"},
        {{{0, 60000, 3, "a", "m-00001-of-60000.gguf"}}, 1, ERR_LIMIT, "60000 parts"},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        int rc = open_split(bad[i].parts, bad[i].n, &g, &e);
        if (rc != bad[i].code || !strstr(e.msg, bad[i].message))
            fail_msg("%zu: %d %s", i, rc, e.msg);
    }
}

static void test_no_file(void **state)
{
    struct gguf *g;
    struct err e = {0};
    assert_int_equal(gguf_open(&g, "/nonexistent/x.gguf", &e), ERR_NOTFOUND);
    assert_int_equal(gguf_open(&g, "/", &e), ERR_INVALID);
    assert_int_equal(gguf_open(&g, "/dev/null", &e), ERR_INVALID);
    assert_null(g);
    struct gguf_writer *w;
    assert_int_equal(gguf_writer_open(&w, "/nonexistent/x.gguf", &e), ERR_IO);
    assert_null(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_real_model),      cmocka_unit_test(test_good),
        cmocka_unit_test(test_fingerprint),     cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_cut_and_changed), cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_writer),          cmocka_unit_test(test_copy),
        cmocka_unit_test(test_disk_full),       cmocka_unit_test(test_split),
        cmocka_unit_test(test_no_file),
    };
    return cmocka_run_group_tests_name("gguf", tests, NULL, NULL);
}
