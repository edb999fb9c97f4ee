/* gguf.c - opening and closing: files, parts of split models, the index of tensors. */
#include "gguf/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "gguf/private.h"

static int map_file(struct gguf_part *part, const char *path, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s: %s", path, strerror(errno));
    struct stat st;
    int rc = 0;
    if (fstat(fd, &st) < 0)
        rc = err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        rc = err_set(e, ERR_INVALID, "%s is no regular file: name the .gguf file itself", path);
    else if (st.st_size == 0)
        rc = err_set(e, ERR_FORMAT, "%s is empty", path);
    void *p = MAP_FAILED;
    if (!rc) {
        p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
            rc = err_set(e, ERR_IO, "%s: cannot map %lld bytes: %s", path, (long long)st.st_size,
                         strerror(errno));
    }
    close(fd);
    if (rc)
        return rc;
    *part = (struct gguf_part){.base = p, .n_bytes = (size_t)st.st_size, .mapped = true};
    return 0;
}

/* The name of part `no` (from 0) of `count`, given that of part 0; NULL if that does not end in
 * "-00001-of-<count>.gguf". The caller frees it. */
static char *part_path(const char *first, uint32_t no, uint32_t count)
{
    char ending[64], wanted[64];
    snprintf(ending, sizeof ending, "-00001-of-%05u.gguf", count);
    snprintf(wanted, sizeof wanted, "-%05u-of-%05u.gguf", no + 1, count);
    size_t n = strlen(first), k = strlen(ending);
    if (n < k || strcmp(first + n - k, ending))
        return NULL;
    struct buf b = {0};
    buf_add(&b, first, n - k);
    buf_adds(&b, wanted);
    return buf_take(&b);
}

static int open_part(struct gguf *g, uint32_t no, uint32_t count, struct err *e)
{
    char *path = part_path(g->path, no, count);
    if (!path)
        return err_set(e, ERR_INVALID,
                       "the file is part 1 of %u but is not named ...-00001-of-%05u.gguf, so the "
                       "others cannot be found: give the parts their original names",
                       count, count);
    uint32_t part_no = 0, part_count = 0;
    int rc = map_file(&g->parts[no], path, e);
    if (!rc) {
        g->n_parts = no + 1;
        rc = gguf_parse_part(g, no, &part_no, &part_count, e);
        if (!rc && (part_no != no || part_count != count))
            rc =
                err_set(e, ERR_FORMAT, "it says that it is part %u of %u", part_no + 1, part_count);
        if (rc)
            err_prefix(e, rc, "%s", path);
    }
    free(path);
    return rc;
}

static int open_other_parts(struct gguf *g, uint32_t no, uint32_t count, struct err *e)
{
    if (no != 0)
        return err_set(e, ERR_INVALID,
                       "this is part %u of a split model: open part 1 (...-00001-of-%05u.gguf)",
                       no + 1, count);
    if (!*g->path)
        return err_set(e, ERR_UNSUPPORTED, "a split model cannot be read from memory");
    if (count > GGUF_MAX_PARTS)
        return err_set(e, ERR_LIMIT, "the model claims %u parts, the limit is %d", count,
                       GGUF_MAX_PARTS);
    g->parts = xrealloc(g->parts, count * sizeof *g->parts);
    for (uint32_t i = 1; i < count; i++) {
        int rc = open_part(g, i, count, e);
        if (rc)
            return rc;
    }
    uint32_t claimed = gguf_u32(g, "split.tensors.count", (uint32_t)g->n_tensors);
    if (claimed != g->n_tensors)
        return err_set(e, ERR_FORMAT, "split.tensors.count is %u, but the parts hold %zu tensors",
                       claimed, g->n_tensors);
    return 0;
}

static int index_tensors(struct gguf *g, struct err *e)
{
    for (size_t i = 0; i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        if (map_put(&g->tensor_by_name, t->name, t))
            return err_set(e, ERR_FORMAT, "tensor %.*s comes twice", (int)t->name.n, t->name.p);
    }
    return 0;
}

/* Parses g->parts[0], follows a split, fills the index. */
static int load(struct gguf *g, struct err *e)
{
    uint32_t no = 0, count = 0;
    int rc = gguf_parse_part(g, 0, &no, &count, e);
    if (!rc && (no > 0 || count > 1))
        rc = open_other_parts(g, no, count, e);
    return rc ? rc : index_tensors(g, e);
}

static struct gguf *new_gguf(const char *path)
{
    struct gguf *g = xcalloc(1, sizeof *g);
    g->path = xstrdup(path);
    g->parts = xcalloc(1, sizeof *g->parts);
    return g;
}

int gguf_open(struct gguf **out, const char *path, struct err *e)
{
    *out = NULL;
    struct gguf *g = new_gguf(path);
    int rc = map_file(&g->parts[0], path, e);
    if (!rc) {
        g->n_parts = 1;
        rc = load(g, e);
        if (rc)
            err_prefix(e, rc, "%s", path);
    }
    if (rc) {
        gguf_close(g);
        return rc;
    }
    *out = g;
    return 0;
}

int gguf_open_mem(struct gguf **out, const void *data, size_t n, struct err *e)
{
    *out = NULL;
    if ((uintptr_t)data % 8)
        return err_set(e, ERR_INVALID, "a model in memory must be aligned to 8 bytes");
    struct gguf *g = new_gguf("");
    g->parts[0] = (struct gguf_part){.base = data, .n_bytes = n};
    g->n_parts = 1;
    int rc = load(g, e);
    if (rc) {
        gguf_close(g);
        return rc;
    }
    *out = g;
    return 0;
}

void gguf_let_go(const struct gguf *g)
{
    for (size_t i = 0; i < g->n_parts; i++)
        if (g->parts[i].mapped)
            madvise((void *)g->parts[i].base, g->parts[i].n_bytes, MADV_DONTNEED);
}

void gguf_close(struct gguf *g)
{
    if (!g)
        return;
    for (size_t i = 0; i < g->n_parts; i++)
        if (g->parts[i].mapped)
            munmap((void *)g->parts[i].base, g->parts[i].n_bytes);
    for (size_t i = 0; i < g->n_values; i++)
        free(g->values[i].strs);
    map_release(&g->value_by_key);
    map_release(&g->tensor_by_name);
    free(g->values);
    free(g->tensors);
    free(g->parts);
    free(g->path);
    free(g);
}

const char *gguf_path(const struct gguf *g)
{
    return g->path;
}

size_t gguf_file_bytes(const struct gguf *g)
{
    size_t n = 0;
    for (size_t i = 0; i < g->n_parts; i++)
        n += g->parts[i].n_bytes;
    return n;
}

uint32_t gguf_version(const struct gguf *g)
{
    return g->parts[0].version;
}

static void digest(EVP_MD_CTX *ctx, const void *p, size_t n)
{
    BUG_ON(EVP_DigestUpdate(ctx, p, n) != 1);
}

void gguf_fingerprint(const struct gguf *g, uint8_t out[32])
{
    enum { SAMPLE = 64 };
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    BUG_ON(!ctx || EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) != 1);
    for (size_t i = 0; i < g->n_parts; i++) {
        const struct gguf_part *p = &g->parts[i];
        uint64_t n_bytes = p->n_bytes;
        digest(ctx, &n_bytes, sizeof n_bytes);
        digest(ctx, p->base, p->header_bytes);
    }
    for (size_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        size_t n = t->n_bytes < SAMPLE ? t->n_bytes : SAMPLE;
        digest(ctx, t->data, n);
        digest(ctx, (const uint8_t *)t->data + t->n_bytes - n, n);
    }
    BUG_ON(EVP_DigestFinal_ex(ctx, out, NULL) != 1);
    EVP_MD_CTX_free(ctx);
}

size_t gguf_n_tensors(const struct gguf *g)
{
    return g->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t i)
{
    BUG_ON(i >= g->n_tensors);
    return &g->tensors[i];
}

const struct gguf_tensor *gguf_find(const struct gguf *g, const char *name)
{
    return map_get(&g->tensor_by_name, str_of(name));
}

/* "[4096, 32064]", 0 as "any" */
static void print_shape(struct buf *b, const uint64_t *dims, int n)
{
    for (int i = 0; i < n; i++) {
        buf_adds(b, i ? ", " : "[");
        if (dims[i])
            buf_addf(b, "%llu", (unsigned long long)dims[i]);
        else
            buf_adds(b, "any");
    }
    buf_addc(b, ']');
}

int gguf_need(const struct gguf *g, const char *name, int n_dims, const uint64_t *dims,
              const struct gguf_tensor **out, struct err *e)
{
    const struct gguf_tensor *t = gguf_find(g, name);
    if (!t)
        return err_set(e, ERR_NOTFOUND,
                       "tensor %s is missing: the file does not hold the whole model", name);
    bool same = t->n_dims == n_dims;
    for (int i = 0; same && i < n_dims; i++)
        same = dims[i] == 0 || dims[i] == t->dims[i];
    if (!same) {
        struct buf want = {0}, have = {0};
        print_shape(&want, dims, n_dims);
        print_shape(&have, t->dims, t->n_dims);
        int rc = err_set(e, ERR_FORMAT, "tensor %s has shape %s, the model's metadata call for %s",
                         name, have.data, want.data);
        buf_release(&want);
        buf_release(&have);
        return rc;
    }
    *out = t;
    return 0;
}
