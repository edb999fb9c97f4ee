#include "gguf/gguf_writer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/fault.h"
#include "base/mem.h"
#include "gguf/private.h"

struct gguf_writer {
    char *path, *part_path;
    FILE *f;
    struct buf keys, infos; /* encoded entries, written with the first data */
    size_t n_keys, n_tensors;
    struct map seen; /* keys as "k...", tensors as "t...", to catch doubles */
    uint32_t alignment;
    size_t *sizes; /* bytes of each tensor */
    size_t sizes_cap;
    uint64_t next_offset; /* of the tensor to be declared next */
    bool begun;
    size_t current, written; /* tensor being filled, bytes of it so far */
};

static int io_error(const struct gguf_writer *w, struct err *e)
{
    return err_set(e, ERR_IO, "%s: %s", w->part_path, strerror(errno));
}

static int put(struct gguf_writer *w, const void *p, size_t n, struct err *e)
{
    if (fault(FAULT_WRITE)) {
        errno = ENOSPC;
        return io_error(w, e);
    }
    return fwrite(p, 1, n, w->f) == n ? 0 : io_error(w, e);
}

static int put_padding(struct gguf_writer *w, uint64_t from, struct err *e)
{
    static const char zeros[256];
    uint64_t n = (w->alignment - from % w->alignment) % w->alignment;
    int rc = 0;
    for (; n && !rc; n -= n < sizeof zeros ? n : sizeof zeros)
        rc = put(w, zeros, n < sizeof zeros ? n : sizeof zeros, e);
    return rc;
}

int gguf_writer_open(struct gguf_writer **out, const char *path, struct err *e)
{
    *out = NULL;
    struct gguf_writer *w = xcalloc(1, sizeof *w);
    struct buf name = {0};
    buf_addf(&name, "%s.part", path);
    w->path = xstrdup(path);
    w->part_path = buf_take(&name);
    w->alignment = 32;
    w->f = fopen(w->part_path, "wbe");
    if (!w->f) {
        int rc = io_error(w, e);
        gguf_writer_close(w);
        return rc;
    }
    setvbuf(w->f, NULL, _IOFBF, 1 << 18);
    *out = w;
    return 0;
}

void gguf_writer_close(struct gguf_writer *w)
{
    if (!w)
        return;
    if (w->f) {
        fclose(w->f);
        unlink(w->part_path);
    }
    buf_release(&w->keys);
    buf_release(&w->infos);
    map_release(&w->seen);
    free(w->sizes);
    free(w->path);
    free(w->part_path);
    free(w);
}

static void must_be_new(struct gguf_writer *w, char what, struct str name)
{
    BUG_ON(w->begun);
    struct buf b = {0};
    buf_addc(&b, what);
    buf_add(&b, name.p, name.n);
    if (map_put(&w->seen, (struct str){b.data, b.len}, w))
        BUG("%.*s is added twice", (int)name.n, name.p);
    buf_release(&b);
}

static void add_u32(struct buf *b, uint32_t v)
{
    buf_add(b, &v, sizeof v);
}

static void add_u64(struct buf *b, uint64_t v)
{
    buf_add(b, &v, sizeof v);
}

static void add_str(struct buf *b, struct str s)
{
    add_u64(b, s.n);
    buf_add(b, s.p, s.n);
}

static void add_key(struct gguf_writer *w, struct str key, enum gguf_kind kind)
{
    must_be_new(w, 'k', key);
    add_str(&w->keys, key);
    add_u32(&w->keys, (uint32_t)kind);
    w->n_keys++;
}

static void add_number(struct gguf_writer *w, const char *key, enum gguf_kind kind, const void *v)
{
    add_key(w, str_of(key), kind);
    buf_add(&w->keys, v, gguf_kind_bytes(kind));
}

static void add_array(struct gguf_writer *w, struct str key, enum gguf_kind kind, size_t n)
{
    add_key(w, key, GGUF_ARRAY);
    add_u32(&w->keys, (uint32_t)kind);
    add_u64(&w->keys, n);
}

void gguf_writer_alignment(struct gguf_writer *w, uint32_t alignment)
{
    BUG_ON(alignment < 8 || alignment > GGUF_MAX_ALIGNMENT || (alignment & (alignment - 1)));
    BUG_ON(w->n_tensors);
    w->alignment = alignment;
    gguf_writer_u32(w, "general.alignment", alignment);
}

void gguf_writer_u16(struct gguf_writer *w, const char *key, uint16_t v)
{
    add_number(w, key, GGUF_U16, &v);
}

void gguf_writer_u32(struct gguf_writer *w, const char *key, uint32_t v)
{
    add_number(w, key, GGUF_U32, &v);
}

void gguf_writer_i32(struct gguf_writer *w, const char *key, int32_t v)
{
    add_number(w, key, GGUF_I32, &v);
}

void gguf_writer_u64(struct gguf_writer *w, const char *key, uint64_t v)
{
    add_number(w, key, GGUF_U64, &v);
}

void gguf_writer_f32(struct gguf_writer *w, const char *key, float v)
{
    add_number(w, key, GGUF_F32, &v);
}

void gguf_writer_bool(struct gguf_writer *w, const char *key, bool v)
{
    uint8_t byte = v;
    add_number(w, key, GGUF_BOOL, &byte);
}

void gguf_writer_str(struct gguf_writer *w, const char *key, struct str v)
{
    add_key(w, str_of(key), GGUF_STRING);
    add_str(&w->keys, v);
}

void gguf_writer_strs(struct gguf_writer *w, const char *key, const struct str *v, size_t n)
{
    add_array(w, str_of(key), GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        add_str(&w->keys, v[i]);
}

void gguf_writer_arr(struct gguf_writer *w, const char *key, enum gguf_kind kind, const void *v,
                     size_t n)
{
    BUG_ON(!gguf_kind_bytes(kind));
    add_array(w, str_of(key), kind, n);
    buf_add(&w->keys, v, n * gguf_kind_bytes(kind));
}

void gguf_writer_copy(struct gguf_writer *w, const struct gguf *g, size_t i)
{
    BUG_ON(i >= g->n_values);
    const struct gguf_value *v = &g->values[i];
    if (v->kind == GGUF_ARRAY)
        add_array(w, v->key, v->elem_kind, v->n);
    else
        add_key(w, v->key, v->kind);
    if (v->elem_kind != GGUF_STRING)
        buf_add(&w->keys, v->data, v->n * gguf_kind_bytes(v->elem_kind));
    for (size_t k = 0; v->elem_kind == GGUF_STRING && k < v->n; k++)
        add_str(&w->keys, v->strs[k]);
}

void gguf_writer_tensor(struct gguf_writer *w, const char *name, enum ttype type, int n_dims,
                        const uint64_t *dims)
{
    BUG_ON(n_dims < 1 || n_dims > 4);
    must_be_new(w, 't', str_of(name));
    add_str(&w->infos, str_of(name));
    add_u32(&w->infos, (uint32_t)n_dims);
    size_t n_bytes = ttype_row_bytes(type, dims[0]);
    for (int d = 0; d < n_dims; d++) {
        add_u64(&w->infos, dims[d]);
        BUG_ON(d > 0 && !size_mul(n_bytes, dims[d], &n_bytes));
    }
    add_u32(&w->infos, (uint32_t)type);
    add_u64(&w->infos, w->next_offset);
    w->next_offset += (n_bytes + w->alignment - 1) / w->alignment * w->alignment;
    if (w->n_tensors == w->sizes_cap) {
        w->sizes_cap = w->sizes_cap ? w->sizes_cap * 2 : 64;
        w->sizes = xrealloc(w->sizes, w->sizes_cap * sizeof *w->sizes);
    }
    w->sizes[w->n_tensors++] = n_bytes;
}

/* The header: everything declared so far. */
static int begin(struct gguf_writer *w, struct err *e)
{
    struct buf start = {0};
    buf_adds(&start, "GGUF");
    add_u32(&start, 3);
    add_u64(&start, w->n_tensors);
    add_u64(&start, w->n_keys);
    w->begun = true;
    int rc = put(w, start.data, start.len, e);
    if (!rc && w->keys.len)
        rc = put(w, w->keys.data, w->keys.len, e);
    if (!rc && w->infos.len)
        rc = put(w, w->infos.data, w->infos.len, e);
    if (!rc)
        rc = put_padding(w, start.len + w->keys.len + w->infos.len, e);
    buf_release(&start);
    return rc;
}

int gguf_writer_data(struct gguf_writer *w, const void *p, size_t n, struct err *e)
{
    int rc = w->begun ? 0 : begin(w, e);
    const char *from = p;
    while (n && !rc) {
        BUG_ON(w->current >= w->n_tensors);
        size_t size = w->sizes[w->current], left = size - w->written;
        size_t step = n < left ? n : left;
        rc = put(w, from, step, e);
        from += step;
        n -= step;
        w->written += step;
        if (!rc && w->written == size) {
            rc = put_padding(w, size, e);
            w->current++;
            w->written = 0;
        }
    }
    return rc;
}

int gguf_writer_finish(struct gguf_writer *w, struct err *e)
{
    int rc = w->begun ? 0 : begin(w, e);
    if (rc)
        return rc;
    BUG_ON(w->current != w->n_tensors || w->written);
    int closed = fclose(w->f);
    w->f = NULL;
    if (closed || rename(w->part_path, w->path)) {
        rc = io_error(w, e);
        unlink(w->part_path);
    }
    return rc;
}
