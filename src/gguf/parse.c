/* parse.c - the header of one GGUF file: nothing is believed before it is checked.
 *
 *   "GGUF" | u32 version | u64 n_tensors | u64 n_keys
 *   n_keys x    { string key | u32 kind | value }
 *   n_tensors x { string name | u32 n_dims | u64 dims[n_dims] | u32 type | u64 offset }
 *   padding to general.alignment, then the data; offsets count from here
 *
 * string = u64 length | bytes; array = u32 kind | u64 n | elements. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "gguf/private.h"

/* Reads forward; the first error sticks, and every later read gives zeros. */
struct cursor {
    const uint8_t *base, *at, *end;
    const char *doing; /* "metadata", for messages */
    struct err *e;
    int rc;
};

static int fail(struct cursor *c, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static int fail(struct cursor *c, int code, const char *fmt, ...)
{
    if (c->rc)
        return c->rc;
    char what[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return c->rc = err_set(c->e, code, "%s", what);
}

/* The next n bytes, or NULL when the file ends before. */
static const uint8_t *take(struct cursor *c, uint64_t n)
{
    if (c->rc)
        return NULL;
    if (n > (uint64_t)(c->end - c->at)) {
        fail(c, ERR_FORMAT,
             "the file ends inside its %s at byte %zu: it is cut or damaged, fetch it again",
             c->doing, (size_t)(c->at - c->base));
        return NULL;
    }
    const uint8_t *p = c->at;
    c->at += n;
    return p;
}

static uint32_t take_u32(struct cursor *c)
{
    uint32_t v = 0;
    const uint8_t *p = take(c, sizeof v);
    if (p)
        memcpy(&v, p, sizeof v);
    return v;
}

static uint64_t take_u64(struct cursor *c)
{
    uint64_t v = 0;
    const uint8_t *p = take(c, sizeof v);
    if (p)
        memcpy(&v, p, sizeof v);
    return v;
}

static struct str take_str(struct cursor *c)
{
    uint64_t n = take_u64(c);
    const uint8_t *p = take(c, n);
    return p ? (struct str){(const char *)p, (size_t)n} : (struct str){"", 0};
}

/* A key or tensor name: printable UTF-8, so that it can stand in messages and be a C string. */
static struct str take_name(struct cursor *c, size_t limit)
{
    size_t where = (size_t)(c->at - c->base);
    struct str s = take_str(c);
    if (c->rc)
        return s;
    bool good = s.n > 0 && s.n <= limit && utf8_valid(s.p, s.n);
    for (size_t i = 0; good && i < s.n; i++)
        good = (unsigned char)s.p[i] >= ' ' && s.p[i] != 0x7f;
    if (!good)
        fail(c, ERR_FORMAT,
             "the name at byte %zu (%s) is empty, over %zu bytes or no printable text", where,
             c->doing, limit);
    return s;
}

/* For "%.*s" in messages, which have no room for a 64 KiB key. */
#define NAME(s) (int)((s).n < 100 ? (s).n : 100), (s).p

static void take_strings(struct cursor *c, struct gguf_value *v)
{
    if (v->n > (uint64_t)(c->end - c->at) / 8) { /* each has a length of 8 bytes at least */
        fail(c, ERR_FORMAT, "key %.*s claims %zu strings, more than the file can hold",
             NAME(v->key), v->n);
        return;
    }
    v->strs = try_calloc(v->n, sizeof *v->strs);
    if (!v->strs) {
        fail(c, ERR_NOMEM, "no memory for the %zu strings of key %.*s", v->n, NAME(v->key));
        return;
    }
    for (size_t i = 0; i < v->n && !c->rc; i++)
        v->strs[i] = take_str(c);
}

static void take_numbers(struct cursor *c, struct gguf_value *v)
{
    size_t size = gguf_kind_bytes(v->elem_kind);
    if (v->n > (uint64_t)(c->end - c->at) / size) {
        fail(c, ERR_FORMAT, "key %.*s claims %zu elements, more than the file can hold",
             NAME(v->key), v->n);
        return;
    }
    v->data = take(c, v->n * size);
    for (size_t i = 0; v->elem_kind == GGUF_BOOL && v->data && i < v->n; i++)
        if (v->data[i] > 1)
            fail(c, ERR_FORMAT, "key %.*s: %u is no bool (0 or 1)", NAME(v->key), v->data[i]);
}

static void take_value(struct cursor *c, struct gguf_value *v)
{
    uint32_t kind = take_u32(c), elem_kind = kind;
    uint64_t n = 1;
    if (kind == GGUF_ARRAY) {
        elem_kind = take_u32(c);
        n = take_u64(c);
        if (!c->rc && elem_kind == GGUF_ARRAY)
            fail(c, ERR_UNSUPPORTED, "key %.*s is an array of arrays, which no known model uses",
                 NAME(v->key));
    }
    if (!c->rc && (kind > GGUF_F64 || elem_kind > GGUF_F64))
        fail(c, ERR_FORMAT, "key %.*s has value type %u, which GGUF does not define", NAME(v->key),
             kind > GGUF_F64 ? kind : elem_kind);
    if (c->rc)
        return;
    v->kind = (enum gguf_kind)kind;
    v->elem_kind = (enum gguf_kind)elem_kind;
    v->n = n;
    if (v->elem_kind == GGUF_STRING)
        take_strings(c, v);
    else
        take_numbers(c, v);
}

/* An unsigned key that this file needs itself: alignment and the split.* keys. */
static uint32_t own_uint(struct cursor *c, const struct gguf_value *v)
{
    uint32_t u = 0;
    size_t size = gguf_kind_bytes(v->kind);
    bool is_unsigned = v->kind == GGUF_U8 || v->kind == GGUF_U16 || v->kind == GGUF_U32;
    if (!is_unsigned)
        fail(c, ERR_FORMAT, "key %.*s is %s, it must be an unsigned number of up to 32 bits",
             NAME(v->key), gguf_kind_name(v->kind));
    else
        memcpy(&u, v->data, size);
    return u;
}

struct own_keys {
    uint32_t alignment, split_no, split_count;
};

static void note_own_key(struct cursor *c, const struct gguf_value *v, struct own_keys *own)
{
    if (str_eqs(v->key, "general.alignment")) {
        own->alignment = own_uint(c, v);
        uint32_t a = own->alignment;
        if (!c->rc && (a < 8 || a > GGUF_MAX_ALIGNMENT || (a & (a - 1))))
            fail(c, ERR_FORMAT, "general.alignment is %u, it must be a power of two from 8 to %d",
                 a, GGUF_MAX_ALIGNMENT);
    } else if (str_eqs(v->key, "split.no")) {
        own->split_no = own_uint(c, v);
    } else if (str_eqs(v->key, "split.count")) {
        own->split_count = own_uint(c, v);
    }
}

/* Reads n entries. Only part 0 keeps them; `seen` finds keys that come twice. */
static void take_metadata(struct cursor *c, struct gguf *g, bool keep, size_t n,
                          struct own_keys *own)
{
    struct map others = {0};
    struct map *seen = keep ? &g->value_by_key : &others;
    for (size_t i = 0; i < n && !c->rc; i++) {
        struct gguf_value discarded = {0};
        struct gguf_value *v = keep ? &g->values[g->n_values++] : &discarded;
        v->key = take_name(c, GGUF_MAX_KEY_BYTES);
        if (!c->rc)
            take_value(c, v);
        if (!c->rc)
            note_own_key(c, v, own);
        if (!c->rc && map_put(seen, v->key, keep ? (void *)v : (void *)g))
            fail(c, ERR_FORMAT, "key %.*s comes twice", NAME(v->key));
        free(discarded.strs);
    }
    map_release(&others);
}

/* Types that GGUF numbers but we do not read, for a message that names them. */
static const char *const foreign_types[] = {
    [9] = "Q8_1",   [15] = "Q8_K",  [16] = "IQ2_XXS", [17] = "IQ2_XS", [18] = "IQ3_XXS",
    [19] = "IQ1_S", [21] = "IQ3_S", [22] = "IQ2_S",   [24] = "I8",     [25] = "I16",
    [26] = "I32",   [27] = "I64",   [28] = "F64",     [29] = "IQ1_M",  [34] = "TQ1_0",
    [35] = "TQ2_0", [39] = "MXFP4", [40] = "NVFP4",
};

static const struct ttype_info *take_type(struct cursor *c, struct gguf_tensor *t)
{
    uint32_t type = take_u32(c);
    const struct ttype_info *info = ttype_info(type);
    if (c->rc)
        return NULL;
    if (!info) {
        const char *name = type < ARRAY_LEN(foreign_types) ? foreign_types[type] : NULL;
        fail(c, name ? ERR_UNSUPPORTED : ERR_FORMAT,
             "tensor %.*s has type %u (%s), which is not read here: use a file in F16, BF16, Q8_0, "
             "Q4_K_M or a similar type",
             NAME(t->name), type, name ? name : "unknown");
        return NULL;
    }
    t->type = (enum ttype)type;
    return info;
}

/* dims to elements to bytes, all checked. */
static void measure(struct cursor *c, struct gguf_tensor *t, const struct ttype_info *info)
{
    size_t n = 1;
    bool fits = true;
    for (int d = 0; d < 4; d++)
        fits = fits && t->dims[d] > 0 && size_mul(n, t->dims[d], &n);
    size_t n_blocks = n / info->block_elems;
    if (!fits || !size_mul(n_blocks, info->block_bytes, &t->n_bytes))
        fail(c, ERR_FORMAT,
             "tensor %.*s has a dimension of 0 or more elements than memory can address",
             NAME(t->name));
    else if (t->dims[0] % info->block_elems)
        fail(c, ERR_FORMAT,
             "tensor %.*s has rows of %" PRIu64 " numbers, but %s comes in blocks of %u",
             NAME(t->name), t->dims[0], info->name, info->block_elems);
}

/* Reads one tensor info; t->data becomes the offset in the data section until place() knows where
 * that begins. */
static void take_tensor(struct cursor *c, struct gguf_tensor *t, uint64_t *offset)
{
    t->name = take_name(c, GGUF_MAX_NAME_BYTES);
    uint32_t n_dims = take_u32(c);
    if (!c->rc && (n_dims < 1 || n_dims > 4))
        fail(c, ERR_FORMAT, "tensor %.*s has %u dimensions, 1 to 4 are possible", NAME(t->name),
             n_dims);
    if (c->rc)
        return;
    t->n_dims = (int)n_dims;
    for (int d = 0; d < 4; d++)
        t->dims[d] = d < t->n_dims ? take_u64(c) : 1;
    const struct ttype_info *info = take_type(c, t);
    *offset = take_u64(c);
    if (!c->rc)
        measure(c, t, info);
}

struct span {
    uint64_t offset, n_bytes;
    const struct gguf_tensor *tensor;
};

static int span_order(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Sets the data pointers, once sure that the tensors lie aligned, inside the file and apart. */
static void place(struct cursor *c, const struct gguf_part *part, struct gguf_tensor *tensors,
                  struct span *spans, size_t n, uint32_t alignment)
{
    uint64_t room = part->n_bytes > part->data_offset ? part->n_bytes - part->data_offset : 0;
    for (size_t i = 0; i < n && !c->rc; i++) {
        struct gguf_tensor *t = &tensors[i];
        uint64_t offset = spans[i].offset;
        if (offset % alignment)
            fail(c, ERR_FORMAT, "tensor %.*s starts at offset %" PRIu64 ", no multiple of %u",
                 NAME(t->name), offset, alignment);
        else if (offset > room || t->n_bytes > room - offset)
            fail(
                c, ERR_FORMAT,
                "tensor %.*s ends beyond the end of the file: it is cut or damaged, fetch it again",
                NAME(t->name));
        else
            t->data = part->base + part->data_offset + offset;
        spans[i].n_bytes = t->n_bytes;
        spans[i].tensor = t;
    }
    if (c->rc)
        return;
    qsort(spans, n, sizeof *spans, span_order);
    for (size_t i = 1; i < n; i++)
        if (spans[i].offset - spans[i - 1].offset < spans[i - 1].n_bytes)
            fail(c, ERR_FORMAT, "tensors %.*s and %.*s overlap in the file",
                 NAME(spans[i - 1].tensor->name), NAME(spans[i].tensor->name));
}

static void take_tensors(struct cursor *c, struct gguf *g, struct gguf_part *part,
                         uint32_t alignment)
{
    size_t n = part->n_tensors;
    struct gguf_tensor *tensors = g->tensors + part->first_tensor;
    struct span *spans = try_calloc(n, sizeof *spans);
    if (!spans) {
        fail(c, ERR_NOMEM, "no memory for %zu tensor infos", n);
        return;
    }
    for (size_t i = 0; i < n && !c->rc; i++) {
        take_tensor(c, &tensors[i], &spans[i].offset);
        g->n_tensors += !c->rc;
    }
    part->header_bytes = (size_t)(c->at - c->base);
    part->data_offset = ((uint64_t)part->header_bytes + alignment - 1) / alignment * alignment;
    if (!c->rc)
        place(c, part, tensors, spans, n, alignment);
    free(spans);
}

/* Magic, version and the two counts. */
static void take_start(struct cursor *c, const struct gguf *g, struct gguf_part *part,
                       uint64_t *n_keys)
{
    const uint8_t *magic = take(c, 4);
    if (!magic || memcmp(magic, "GGUF", 4)) {
        c->rc = 0;
        fail(c, ERR_FORMAT, "this is no GGUF file: it does not begin with \"GGUF\"");
        return;
    }
    part->version = take_u32(c);
    if (!c->rc && part->version && !(part->version & 0xffff))
        fail(c, ERR_UNSUPPORTED, "the file is big-endian GGUF: convert it to little-endian");
    if (!c->rc && part->version != 2 && part->version != 3)
        fail(c, ERR_UNSUPPORTED, "the file has GGUF version %u, 2 and 3 are read: convert it again",
             part->version);
    uint64_t n_tensors = take_u64(c);
    *n_keys = take_u64(c);
    if (!c->rc && (n_tensors > GGUF_MAX_TENSORS - g->n_tensors || *n_keys > GGUF_MAX_KEYS))
        fail(c, ERR_LIMIT,
             "the file claims %" PRIu64 " tensors and %" PRIu64 " keys, the limits are %d and %d",
             n_tensors, *n_keys, GGUF_MAX_TENSORS, GGUF_MAX_KEYS);
    /* a key takes 13 bytes at least, a tensor 33 */
    uint64_t left = (uint64_t)(c->end - c->at);
    if (!c->rc && (*n_keys > left / 13 || n_tensors > left / 33))
        fail(c, ERR_FORMAT,
             "the file claims %" PRIu64 " tensors and %" PRIu64 " keys, more than it can hold",
             n_tensors, *n_keys);
    part->first_tensor = g->n_tensors;
    part->n_tensors = (size_t)n_tensors;
}

/* Room for the announced tensors behind those of earlier parts and, in part 0, for the keys. */
static void make_room(struct cursor *c, struct gguf *g, const struct gguf_part *part,
                      bool keep_keys, uint64_t n_keys)
{
    struct gguf_tensor *grown = try_calloc(g->n_tensors + part->n_tensors, sizeof *grown);
    if (keep_keys)
        g->values = try_calloc(n_keys, sizeof *g->values);
    if (!grown || !g->values) {
        free(grown);
        fail(c, ERR_NOMEM, "no memory for the header of the model file");
        return;
    }
    if (g->n_tensors)
        memcpy(grown, g->tensors, g->n_tensors * sizeof *grown);
    free(g->tensors);
    g->tensors = grown;
}

int gguf_parse_part(struct gguf *g, size_t p, uint32_t *split_no, uint32_t *split_count,
                    struct err *e)
{
    struct gguf_part *part = &g->parts[p];
    struct cursor c = {.base = part->base,
                       .at = part->base,
                       .end = part->base + part->n_bytes,
                       .doing = "header",
                       .e = e};
    struct own_keys own = {.alignment = 32};
    uint64_t n_keys = 0;
    take_start(&c, g, part, &n_keys);
    if (!c.rc)
        make_room(&c, g, part, p == 0, n_keys);
    c.doing = "metadata";
    if (!c.rc)
        take_metadata(&c, g, p == 0, (size_t)n_keys, &own);
    c.doing = "list of tensors";
    if (!c.rc)
        take_tensors(&c, g, part, own.alignment);
    *split_no = own.split_no;
    *split_count = own.split_count;
    return c.rc;
}
