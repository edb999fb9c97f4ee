#define _GNU_SOURCE
#include "model/pack_cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/buf.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/mem.h"

enum { DATA_ALIGN = 4096, WRITE_BYTES = 64 << 20 };

struct head {
    char magic[8];
    uint32_t layout; /* KERNEL_LAYOUT */
    uint32_t n_entries;
    uint64_t data_begin, data_bytes;
    uint8_t fingerprint[32];
    uint64_t checksum; /* of head and entries with this field 0 */
};

struct entry {
    uint64_t offset, bytes;
    uint64_t checksum;
    uint32_t type, n_rows, n_cols, unused;
};

_Static_assert(sizeof(struct head) == 72, "the head as it lies in the file");
_Static_assert(sizeof(struct entry) == 40, "an entry as it lies in the file");

static const char magic[8] = "TERPACK";

/* Head and entries as one piece of memory. */
struct table {
    struct head *head;
    struct entry *entries;
    size_t bytes;
};

static char *model_name(const uint8_t fingerprint[32])
{
    struct buf b = {0};
    for (int i = 0; i < 16; i++)
        buf_addf(&b, "%02x", fingerprint[i]);
    return buf_take(&b);
}

static char *file_name(const char *dir, const uint8_t fingerprint[32], const char *suffix)
{
    struct buf b = {0};
    char *model = model_name(fingerprint);
    buf_addf(&b, "%s/%s-%d.tpk%s", dir, model, KERNEL_LAYOUT, suffix);
    free(model);
    return buf_take(&b);
}

static size_t table_bytes(const struct weights *w)
{
    return sizeof(struct head) + (size_t)w->n_packed * sizeof(struct entry);
}

/* --- checksums on all threads -------------------------------------------------------------------
 */

/* So much is summed up in a turn, which takes about 10 ms. */
enum { SUM_BYTES = 64 << 20 };

struct sum_job {
    const struct weights *w;
    const char *data;
    uint64_t *sums;
    atomic_int next;
    int end;
};

static void sum_matrices(void *arg, int ith, int nth)
{
    struct sum_job *j = arg;
    int i;
    while ((i = atomic_fetch_add(&j->next, 1)) < j->end) {
        const struct weight *p = &j->w->packed[i];
        j->sums[i] = XXH3_64bits(j->data + p->offset, packed_bytes(p->matrix));
    }
}

/* In turns with others who compute on the pool, and who do not wait for the disk. The caller frees
 * the sums. */
static uint64_t *checksums(const struct weights *w, const char *data, struct pool *pool)
{
    uint64_t *sums = xcalloc((size_t)w->n_packed, sizeof *sums);
    struct turn_user turn = {0};
    for (int i = 0, end; i < w->n_packed; i = end) {
        size_t begin = w->packed[i].offset, n = 0;
        for (end = i; end < w->n_packed && n < SUM_BYTES; end++)
            n = w->packed[end].offset + packed_bytes(w->packed[end].matrix) - begin;
        mem_page_in(data + begin, n);
        struct sum_job job = {w, data, sums, i, end};
        pool_enter(pool, &turn);
        pool_run(pool, sum_matrices, &job);
        pool_leave(pool);
    }
    return sums;
}

/* --- the table ----------------------------------------------------------------------------------
 */

/* What the file of these weights must say; sums NULL leaves the matrices' checksums 0. The caller
 * frees head. */
static struct table expected_table(const struct weights *w, const uint8_t fingerprint[32],
                                   const uint64_t *sums)
{
    struct table t = {.bytes = table_bytes(w)};
    t.head = xcalloc(1, t.bytes);
    t.entries = (struct entry *)(t.head + 1);
    *t.head = (struct head){
        .layout = KERNEL_LAYOUT,
        .n_entries = (uint32_t)w->n_packed,
        .data_begin = (t.bytes + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN,
        .data_bytes = w->packed_bytes,
    };
    memcpy(t.head->magic, magic, sizeof magic);
    memcpy(t.head->fingerprint, fingerprint, 32);
    for (int i = 0; i < w->n_packed; i++) {
        const struct packed_matrix *m = w->packed[i].matrix;
        t.entries[i] = (struct entry){
            .offset = w->packed[i].offset,
            .bytes = packed_bytes(m),
            .checksum = sums ? sums[i] : 0,
            .type = (uint32_t)m->type,
            .n_rows = (uint32_t)m->n_rows,
            .n_cols = (uint32_t)m->n_cols,
        };
    }
    t.head->checksum = XXH3_64bits(t.head, t.bytes);
    return t;
}

/* --- leftovers ----------------------------------------------------------------------------------
 */

/* Whoever writes a file holds a lock on it, so that what nobody holds was left by a process that
 * was killed. */
static void sweep(const char *dir)
{
    DIR *d = opendir(dir);
    for (struct dirent *f; d && (f = readdir(d));) {
        const char *suffix = strstr(f->d_name, ".tpk.");
        if (!suffix || strlen(suffix) != strlen(".tpk.XXXXXX"))
            continue;
        int fd = openat(dirfd(d), f->d_name, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
            unlinkat(dirfd(d), f->d_name, 0);
        if (fd >= 0)
            close(fd);
    }
    if (d)
        closedir(d);
}

/* --- reading ------------------------------------------------------------------------------------
 */

/* Whether the mapped file is what these weights would write, bit by bit. */
static bool is_intact(const struct weights *w, const char *file, const uint8_t fingerprint[32],
                      struct pool *pool)
{
    struct table want = expected_table(w, fingerprint, NULL);
    const struct entry *entries = (const struct entry *)(file + sizeof(struct head));
    for (int i = 0; i < w->n_packed; i++)
        want.entries[i].checksum = entries[i].checksum;
    want.head->checksum = 0;
    want.head->checksum = XXH3_64bits(want.head, want.bytes);
    bool ok = memcmp(want.head, file, want.bytes) == 0;
    if (ok) {
        uint64_t *sums = checksums(w, file + want.head->data_begin, pool);
        for (int i = 0; i < w->n_packed; i++)
            ok = ok && sums[i] == entries[i].checksum;
        free(sums);
    }
    free(want.head);
    return ok;
}

int pack_cache_open(struct weights *w, const char *dir, const uint8_t fingerprint[32],
                    struct pool *pool, struct err *e)
{
    sweep(dir);
    char *path = file_name(dir, fingerprint, "");
    size_t begin = (table_bytes(w) + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN;
    size_t size = begin + w->packed_bytes;
    int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;
    struct stat st;
    void *file = MAP_FAILED;
    if (fd < 0)
        rc = err_set(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s: %s", path, strerror(errno));
    else if (fstat(fd, &st) || (uint64_t)st.st_size != size)
        rc = err_set(e, ERR_FORMAT, "%s does not have the %zu bytes that these weights need", path,
                     size);
    else if ((file = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
        rc = err_set(e, ERR_IO, "mapping %s: %s", path, strerror(errno));
    if (!rc) {
        /* before anything is read: where files may lie in memory in huge pages, as in ext4 and xfs
         * of new kernels, products of a prompt are 5 to 9 % faster, and mapping takes no time */
        madvise(file, size, MADV_HUGEPAGE);
        madvise(file, size, MADV_WILLNEED);
        if (is_intact(w, file, fingerprint, pool)) {
            w->mapping = file;
            w->mapping_bytes = size;
            w->data = (const char *)file + begin;
        } else {
            munmap(file, size);
            rc = err_set(e, ERR_FORMAT, "%s is damaged", path);
        }
    }
    if (fd >= 0)
        close(fd);
    free(path);
    return rc;
}

/* --- writing ------------------------------------------------------------------------------------
 */

static int write_all(int fd, const void *data, size_t n)
{
    for (const char *p = data; n;) {
        ssize_t done = -1;
        if (fault(FAULT_WRITE))
            errno = ENOSPC;
        else
            done = write(fd, p, n < WRITE_BYTES ? n : WRITE_BYTES);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -1;
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

static int write_file(int fd, const struct weights *w, const struct table *t)
{
    static const char zeros[DATA_ALIGN];
    if (write_all(fd, t->head, t->bytes) ||
        write_all(fd, zeros, (size_t)t->head->data_begin - t->bytes) ||
        write_all(fd, w->memory, w->packed_bytes) || fchmod(fd, 0644))
        return -1;
    return fsync(fd);
}

/* So that the new name survives a loss of power. */
static void sync_dir(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

/* Whether the file is one of this model in an older layout, whole or left half written. */
static bool is_outdated(const char *name, const char *model)
{
    size_t n = strlen(model);
    if (strncmp(name, model, n) || name[n] != '-')
        return false;
    char *end;
    long layout = strtol(name + n + 1, &end, 10);
    return end > name + n + 1 && layout < KERNEL_LAYOUT && !strncmp(end, ".tpk", 4);
}

static void remove_outdated(const char *dir, const uint8_t fingerprint[32])
{
    char *model = model_name(fingerprint);
    DIR *d = opendir(dir);
    for (struct dirent *file; d && (file = readdir(d));)
        if (is_outdated(file->d_name, model)) {
            int rc = unlinkat(dirfd(d), file->d_name, 0);
            log_info("model", "%s/%s is of an older layout: %s", dir, file->d_name,
                     rc ? strerror(errno) : "removed");
        }
    if (d)
        closedir(d);
    free(model);
}

int pack_cache_write(const struct weights *w, const char *dir, const uint8_t fingerprint[32],
                     struct pool *pool, struct err *e)
{
    if (mkdir(dir, 0755) && errno != EEXIST)
        return err_set(e, ERR_IO, "making %s: %s", dir, strerror(errno));
    char *path = file_name(dir, fingerprint, ""), *temp = file_name(dir, fingerprint, ".XXXXXX");
    uint64_t *sums = checksums(w, w->memory, pool);
    struct table t = expected_table(w, fingerprint, sums);
    int fd = mkostemp(temp, O_CLOEXEC), rc = 0;
    bool failed = fd < 0 || flock(fd, LOCK_EX) || write_file(fd, w, &t);
    if (failed)
        rc = err_set(e, ERR_IO, "writing %s: %s", path, strerror(errno));
    if (fd >= 0 && close(fd) && !failed)
        rc = err_set(e, ERR_IO, "writing %s: %s", path, strerror(errno));
    if (!rc && rename(temp, path))
        rc = err_set(e, ERR_IO, "renaming %s: %s", temp, strerror(errno));
    if (!rc) {
        remove_outdated(dir, fingerprint);
        sync_dir(dir);
    } else if (fd >= 0) {
        unlink(temp);
    }
    free(sums);
    free(t.head);
    free(path);
    free(temp);
    return rc;
}
