/* metadata.c - typed access to the key-value pairs. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/mem.h"
#include "gguf/private.h"

static const struct kind_info {
    const char *name;
    uint8_t bytes;
} kinds[] = {
    [GGUF_U8] = {"u8", 1},       [GGUF_I8] = {"i8", 1},     [GGUF_U16] = {"u16", 2},
    [GGUF_I16] = {"i16", 2},     [GGUF_U32] = {"u32", 4},   [GGUF_I32] = {"i32", 4},
    [GGUF_F32] = {"f32", 4},     [GGUF_BOOL] = {"bool", 1}, [GGUF_STRING] = {"string", 0},
    [GGUF_ARRAY] = {"array", 0}, [GGUF_U64] = {"u64", 8},   [GGUF_I64] = {"i64", 8},
    [GGUF_F64] = {"f64", 8},
};

size_t gguf_kind_bytes(enum gguf_kind kind)
{
    return kinds[kind].bytes;
}

const char *gguf_kind_name(enum gguf_kind kind)
{
    return kinds[kind].name;
}

/* One element of any kind of number, widened. */
struct number {
    enum { NUMBER_NONE, NUMBER_SIGNED, NUMBER_UNSIGNED, NUMBER_FLOAT, NUMBER_BOOL } form;
    int64_t i;
    uint64_t u;
    double f;
};

#define LOAD(type, p)                                                                              \
    ({                                                                                             \
        type v_;                                                                                   \
        memcpy(&v_, (p), sizeof v_);                                                               \
        v_;                                                                                        \
    })

static struct number load_number(enum gguf_kind kind, const uint8_t *p)
{
    switch (kind) {
    case GGUF_U8:
        return (struct number){NUMBER_UNSIGNED, .u = *p};
    case GGUF_U16:
        return (struct number){NUMBER_UNSIGNED, .u = LOAD(uint16_t, p)};
    case GGUF_U32:
        return (struct number){NUMBER_UNSIGNED, .u = LOAD(uint32_t, p)};
    case GGUF_U64:
        return (struct number){NUMBER_UNSIGNED, .u = LOAD(uint64_t, p)};
    case GGUF_I8:
        return (struct number){NUMBER_SIGNED, .i = LOAD(int8_t, p)};
    case GGUF_I16:
        return (struct number){NUMBER_SIGNED, .i = LOAD(int16_t, p)};
    case GGUF_I32:
        return (struct number){NUMBER_SIGNED, .i = LOAD(int32_t, p)};
    case GGUF_I64:
        return (struct number){NUMBER_SIGNED, .i = LOAD(int64_t, p)};
    case GGUF_F32:
        return (struct number){NUMBER_FLOAT, .f = LOAD(float, p)};
    case GGUF_F64:
        return (struct number){NUMBER_FLOAT, .f = LOAD(double, p)};
    case GGUF_BOOL:
        return (struct number){NUMBER_BOOL, .u = *p};
    case GGUF_STRING:
    case GGUF_ARRAY:
        break;
    }
    return (struct number){NUMBER_NONE};
}

static const struct gguf_value *value_of(const struct gguf *g, const char *key)
{
    return map_get(&g->value_by_key, str_of(key));
}

static const struct gguf_value *value_at(const struct gguf *g, size_t i)
{
    BUG_ON(i >= g->n_values);
    return &g->values[i];
}

size_t gguf_n_keys(const struct gguf *g)
{
    return g->n_values;
}

struct str gguf_key(const struct gguf *g, size_t i)
{
    return value_at(g, i)->key;
}

enum gguf_kind gguf_key_kind(const struct gguf *g, size_t i)
{
    return value_at(g, i)->kind;
}

bool gguf_has(const struct gguf *g, const char *key)
{
    return value_of(g, key) != NULL;
}

static int missing(const char *key, struct err *e)
{
    return err_set(e, ERR_NOTFOUND, "key %s is missing from the model's metadata", key);
}

static int wrong_kind(const char *key, const struct gguf_value *v, const char *want, struct err *e)
{
    return err_set(e, ERR_FORMAT, "key %s is %s%s, it must be %s", key,
                   v->kind == GGUF_ARRAY ? "an array of " : "", kinds[v->elem_kind].name, want);
}

/* The number behind a scalar key; NUMBER_NONE for strings and arrays. */
static struct number scalar(const struct gguf_value *v)
{
    return v->data ? load_number(v->kind, v->data) : (struct number){NUMBER_NONE};
}

int gguf_get_u32(const struct gguf *g, const char *key, uint32_t *out, struct err *e)
{
    const struct gguf_value *v = value_of(g, key);
    if (!v)
        return missing(key, e);
    struct number x = scalar(v);
    if (x.form == NUMBER_SIGNED && x.i >= 0)
        x = (struct number){NUMBER_UNSIGNED, .u = (uint64_t)x.i};
    if (x.form == NUMBER_SIGNED)
        return err_set(e, ERR_FORMAT, "key %s is %" PRId64 ", it must not be negative", key, x.i);
    if (x.form != NUMBER_UNSIGNED)
        return wrong_kind(key, v, "a whole number", e);
    if (x.u > UINT32_MAX)
        return err_set(e, ERR_FORMAT, "key %s is %" PRIu64 ", it must fit into 32 bits", key, x.u);
    *out = (uint32_t)x.u;
    return 0;
}

int gguf_get_f32(const struct gguf *g, const char *key, float *out, struct err *e)
{
    const struct gguf_value *v = value_of(g, key);
    if (!v)
        return missing(key, e);
    struct number x = scalar(v);
    if (x.form != NUMBER_FLOAT)
        return wrong_kind(key, v, "a floating-point number", e);
    if (!isfinite(x.f) || fabs(x.f) > (double)__FLT_MAX__)
        return err_set(e, ERR_FORMAT, "key %s is %g, it must be finite", key, x.f);
    *out = (float)x.f;
    return 0;
}

int gguf_get_str(const struct gguf *g, const char *key, struct str *out, struct err *e)
{
    const struct gguf_value *v = value_of(g, key);
    if (!v)
        return missing(key, e);
    if (v->kind != GGUF_STRING)
        return wrong_kind(key, v, "a string", e);
    *out = v->strs[0];
    return 0;
}

uint32_t gguf_u32(const struct gguf *g, const char *key, uint32_t fallback)
{
    uint32_t v;
    return gguf_get_u32(g, key, &v, NULL) ? fallback : v;
}

float gguf_f32(const struct gguf *g, const char *key, float fallback)
{
    float v;
    return gguf_get_f32(g, key, &v, NULL) ? fallback : v;
}

bool gguf_bool(const struct gguf *g, const char *key, bool fallback)
{
    const struct gguf_value *v = value_of(g, key);
    return v && v->kind == GGUF_BOOL ? v->data[0] != 0 : fallback;
}

struct str gguf_str(const struct gguf *g, const char *key, const char *fallback)
{
    struct str v;
    return gguf_get_str(g, key, &v, NULL) ? str_of(fallback) : v;
}

int gguf_get_arr(const struct gguf *g, const char *key, enum gguf_kind kind, struct gguf_arr *out,
                 struct err *e)
{
    const struct gguf_value *v = value_of(g, key);
    if (!v)
        return missing(key, e);
    if (v->kind != GGUF_ARRAY || v->elem_kind != kind)
        return err_set(e, ERR_FORMAT, "key %s is %s%s, it must be an array of %s", key,
                       v->kind == GGUF_ARRAY ? "an array of " : "", kinds[v->elem_kind].name,
                       kinds[kind].name);
    *out = (struct gguf_arr){.kind = kind, .n = v->n, .data = v->data, .strs = v->strs};
    return 0;
}

bool gguf_has_arr(const struct gguf *g, const char *key)
{
    const struct gguf_value *v = value_of(g, key);
    return v && v->kind == GGUF_ARRAY;
}

static void print_element(const struct gguf_value *v, size_t i, struct buf *out)
{
    struct jw w;
    if (v->elem_kind == GGUF_STRING) {
        jw_init(&w, out);
        jw_strn(&w, v->strs[i].p, v->strs[i].n);
        return;
    }
    struct number x = load_number(v->elem_kind, v->data + i * kinds[v->elem_kind].bytes);
    if (x.form == NUMBER_SIGNED)
        buf_addf(out, "%" PRId64, x.i);
    else if (x.form == NUMBER_UNSIGNED)
        buf_addf(out, "%" PRIu64, x.u);
    else if (x.form == NUMBER_BOOL)
        buf_adds(out, x.u ? "true" : "false");
    else
        buf_addf(out, "%.9g", x.f);
}

void gguf_print_value(const struct gguf *g, size_t i, struct buf *out)
{
    enum { SHOWN = 8 };
    const struct gguf_value *v = value_at(g, i);
    if (v->kind != GGUF_ARRAY) {
        print_element(v, 0, out);
        return;
    }
    buf_addc(out, '[');
    for (size_t k = 0; k < v->n && k < SHOWN; k++) {
        if (k)
            buf_adds(out, ", ");
        print_element(v, k, out);
    }
    if (v->n > SHOWN)
        buf_addf(out, ", ... %zu in all", v->n);
    buf_addc(out, ']');
}
