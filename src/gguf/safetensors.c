#include "gguf/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/json.h"
#include "base/map.h"
#include "base/mem.h"

enum {
    LENGTH_BYTES = 8,
    MAX_HEADER_BYTES = 16 << 20, /* adapters have some hundred bytes for each tensor */
    MAX_TENSORS = 1 << 16,
    MAX_NAME_BYTES = 512,
};

struct safetensors {
    void *owned; /* the file's bytes when they are ours */
    json_t *header;
    struct safetensor *tensors;
    size_t n_tensors;
    struct map by_name;
};

/* --- files ---------------------------------------------------------------------------------------
 */

static int read_all(int fd, char *p, size_t n, const char *path, struct err *e)
{
    size_t have = 0;
    while (have < n) {
        ssize_t got = fault(FAULT_READ) ? -1 : read(fd, p + have, n - have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
        if (got == 0)
            return err_set(e, ERR_IO, "%s became shorter while it was read: load it again", path);
        have += (size_t)got;
    }
    return 0;
}

static int read_open_file(int fd, void **out, size_t *n, const char *path, size_t max_bytes,
                          struct err *e)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return err_set(e, ERR_INVALID, "%s is no regular file", path);
    if ((uint64_t)st.st_size > max_bytes)
        return err_set(e, ERR_LIMIT, "%s has %lld bytes, the limit here is %zu", path,
                       (long long)st.st_size, max_bytes);
    char *p = try_alloc((size_t)st.st_size);
    if (!p)
        return err_set(e, ERR_NOMEM, "out of memory: %s has %lld bytes", path,
                       (long long)st.st_size);
    int rc = read_all(fd, p, (size_t)st.st_size, path, e);
    if (rc) {
        free(p);
        return rc;
    }
    *out = p;
    *n = (size_t)st.st_size;
    return 0;
}

int file_read(void **out, size_t *n, const char *path, size_t max_bytes, struct err *e)
{
    *out = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hold us up */
    if (fd < 0)
        return err_set(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s: %s", path, strerror(errno));
    int rc = read_open_file(fd, out, n, path, max_bytes, e);
    close(fd);
    return rc;
}

/* --- the header ---------------------------------------------------------------------------------
 */

static bool printable(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.p[i] < 0x20 || s.p[i] == 0x7f)
            return false;
    return s.n > 0 && s.n <= MAX_NAME_BYTES; /* the JSON parser has checked the UTF-8 */
}

static int read_type(struct safetensor *t, const json_t *v, struct err *e)
{
    static const struct {
        const char *name;
        enum ttype type;
    } types[] = {{"F32", TTYPE_F32}, {"F16", TTYPE_F16}, {"BF16", TTYPE_BF16}};
    const char *name = json_string_value(v);
    if (!name)
        return err_set(e, ERR_FORMAT, "dtype must be a string");
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        if (!strcmp(name, types[i].name)) {
            t->type = types[i].type;
            return 0;
        }
    return err_set(e, ERR_UNSUPPORTED, "dtype %.16s is not supported (F32, F16 and BF16 are)",
                   name);
}

static bool to_u64(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

static int read_shape(struct safetensor *t, const json_t *v, struct err *e)
{
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n > SAFETENSORS_MAX_DIMS)
        return err_set(e, ERR_FORMAT, "shape must be an array of at most %d numbers",
                       SAFETENSORS_MAX_DIMS);
    t->n_dims = (int)n;
    t->n_elems = 1;
    for (size_t i = 0; i < n; i++) {
        if (!to_u64(json_array_get(v, i), &t->dims[i]))
            return err_set(e, ERR_FORMAT, "shape[%zu] is no number of elements", i);
        if (__builtin_mul_overflow(t->n_elems, t->dims[i], &t->n_elems))
            return err_set(e, ERR_FORMAT, "the shape has more elements than 64 bits can count");
    }
    return 0;
}

/* Offsets within the data, which is n_data bytes long. */
static int read_place(struct safetensor *t, const json_t *v, const char *data, size_t n_data,
                      struct err *e)
{
    uint64_t begin, end, n_bytes;
    if (json_array_size(v) != 2 || !to_u64(json_array_get(v, 0), &begin) ||
        !to_u64(json_array_get(v, 1), &end) || begin > end)
        return err_set(e, ERR_FORMAT, "data_offsets must be two numbers in ascending order");
    if (end > n_data)
        return err_set(e, ERR_FORMAT,
                       "the data end at byte %llu, but the file has only %zu bytes of data: it may "
                       "be cut short",
                       (unsigned long long)end, n_data);
    if (__builtin_mul_overflow(t->n_elems, ttype_info(t->type)->block_bytes, &n_bytes) ||
        n_bytes != end - begin)
        return err_set(e, ERR_FORMAT, "%llu bytes of data do not fit a shape of %llu %s numbers",
                       (unsigned long long)(end - begin), (unsigned long long)t->n_elems,
                       ttype_info(t->type)->name);
    t->data = data + begin;
    t->n_bytes = (size_t)n_bytes;
    return 0;
}

static int read_tensor(struct safetensor *t, const json_t *v, const char *data, size_t n_data,
                       struct err *e)
{
    if (!json_is_object(v) || json_object_size(v) != 3)
        return err_set(e, ERR_FORMAT, "expected an object of dtype, shape and data_offsets");
    int rc = read_type(t, json_object_get(v, "dtype"), e);
    if (!rc)
        rc = read_shape(t, json_object_get(v, "shape"), e);
    if (!rc)
        rc = read_place(t, json_object_get(v, "data_offsets"), data, n_data, e);
    return rc;
}

static int by_place(const void *a, const void *b)
{
    const struct safetensor *x = a, *y = b;
    if (x->data != y->data)
        return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

/* Sorts the tensors and checks that each begins where the one before it ends. */
static int check_cover(struct safetensors *s, const char *data, size_t n_data, struct err *e)
{
    if (s->n_tensors)
        qsort(s->tensors, s->n_tensors, sizeof *s->tensors, by_place);
    const char *at = data;
    for (size_t i = 0; i < s->n_tensors; i++) {
        const struct safetensor *t = &s->tensors[i];
        if ((const char *)t->data != at)
            return err_set(e, ERR_FORMAT, "tensor %.*s %s the data before it", (int)t->name.n,
                           t->name.p,
                           (const char *)t->data < at ? "overlaps with" : "leaves a gap after");
        at += t->n_bytes;
    }
    if (at != data + n_data)
        return err_set(e, ERR_FORMAT, "%zu bytes at the end of the file belong to no tensor",
                       n_data - (size_t)(at - data));
    return 0;
}

static int read_tensors(struct safetensors *s, const char *data, size_t n_data, struct err *e)
{
    if (!json_is_object(s->header))
        return err_set(e, ERR_FORMAT, "the header is no JSON object");
    size_t most = json_object_size(s->header);
    if (most > MAX_TENSORS)
        return err_set(e, ERR_LIMIT, "the header names %zu tensors, the limit is %d", most,
                       MAX_TENSORS);
    s->tensors = xcalloc(most + 1, sizeof *s->tensors);
    const char *key;
    json_t *v;
    json_object_foreach(s->header, key, v)
    {
        if (!strcmp(key, "__metadata__"))
            continue;
        struct safetensor *t = &s->tensors[s->n_tensors];
        t->name = str_of(key);
        if (!printable(t->name))
            return err_set(e, ERR_FORMAT,
                           "tensor %zu has a name that is empty, too long or not "
                           "printable",
                           s->n_tensors);
        int rc = read_tensor(t, v, data, n_data, e);
        if (rc)
            return err_prefix(e, rc, "tensor %s", key);
        s->n_tensors++;
    }
    int rc = check_cover(s, data, n_data, e);
    for (size_t i = 0; i < s->n_tensors && !rc; i++)
        map_put(&s->by_name, s->tensors[i].name, &s->tensors[i]);
    return rc;
}

static int parse(struct safetensors *s, const char *p, size_t n, struct err *e)
{
    uint64_t header = 0;
    if (n < LENGTH_BYTES)
        return err_set(e, ERR_FORMAT, "%zu bytes are no safetensors file", n);
    for (int i = 0; i < LENGTH_BYTES; i++)
        header |= (uint64_t)(uint8_t)p[i] << 8 * i;
    if (header > n - LENGTH_BYTES)
        return err_set(e, ERR_FORMAT,
                       "a header of %llu bytes does not fit the file: it is cut short or no "
                       "safetensors file",
                       (unsigned long long)header);
    if (header > MAX_HEADER_BYTES)
        return err_set(e, ERR_LIMIT, "the header has %llu bytes, the limit is %d",
                       (unsigned long long)header, MAX_HEADER_BYTES);
    struct err why = {0};
    s->header = jr_parse(p + LENGTH_BYTES, (size_t)header, &why);
    if (!s->header)
        return err_set(e, ERR_FORMAT, "the header: %s", why.msg);
    return read_tensors(s, p + LENGTH_BYTES + header, n - LENGTH_BYTES - (size_t)header, e);
}

int safetensors_open_mem(struct safetensors **out, const void *data, size_t n, struct err *e)
{
    *out = NULL;
    struct safetensors *s = xcalloc(1, sizeof *s);
    int rc = parse(s, data, n, e);
    if (rc) {
        safetensors_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

int safetensors_open(struct safetensors **out, const char *path, size_t max_bytes, struct err *e)
{
    void *data;
    size_t n;
    *out = NULL;
    int rc = file_read(&data, &n, path, max_bytes, e);
    if (rc)
        return rc;
    rc = safetensors_open_mem(out, data, n, e);
    if (rc) {
        free(data);
        return err_prefix(e, rc, "%s", path);
    }
    (*out)->owned = data;
    return 0;
}

void safetensors_close(struct safetensors *s)
{
    if (!s)
        return;
    map_release(&s->by_name);
    free(s->tensors);
    json_decref(s->header);
    free(s->owned);
    free(s);
}

size_t safetensors_count(const struct safetensors *s)
{
    return s->n_tensors;
}

const struct safetensor *safetensors_at(const struct safetensors *s, size_t i)
{
    BUG_ON(i >= s->n_tensors);
    return &s->tensors[i];
}

const struct safetensor *safetensors_find(const struct safetensors *s, const char *name)
{
    return map_get(&s->by_name, str_of(name));
}

void safetensor_floats(const struct safetensor *t, size_t first, size_t n, float *out)
{
    const struct ttype_info *type = ttype_info(t->type);
    BUG_ON(first > t->n_elems || n > t->n_elems - first);
    const char *p = (const char *)t->data + first * type->block_bytes;
    uint32_t aligned[128];
    if ((uintptr_t)p % type->block_bytes == 0) {
        type->decode(p, n, out);
        return;
    }
    size_t step = sizeof aligned / type->block_bytes;
    for (size_t i = 0; i < n; i += step) {
        size_t k = n - i < step ? n - i : step;
        memcpy(aligned, p + i * type->block_bytes, k * type->block_bytes);
        type->decode(aligned, k, out + i);
    }
}
