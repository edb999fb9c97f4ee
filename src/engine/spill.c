#define _GNU_SOURCE
#include "engine/spill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/buf.h"
#include "base/fault.h"
#include "base/mem.h"
#include "engine/seq.h"

struct spill_head {
    char magic[8];
    uint32_t version, block_tokens;
    uint64_t block_bytes;
    uint32_t n_key, n_tokens; /* bytes of the key, tokens of the prompt */
    uint64_t checksum;        /* of head, key and tokens with this field 0 */
};

_Static_assert(sizeof(struct spill_head) == 40, "the head as it lies in the file");

static const char magic[8] = "TERSPIL";

static size_t n_blocks(const struct spill *s)
{
    return ((size_t)s->prefix.n_tokens + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
}

/* Head, key and tokens as the file must begin. */
static void make_begin(const struct spill *s, struct buf *out)
{
    struct buf key = {0};
    struct seq_keys keys;
    seq_keys_init(&keys, &s->prefix);
    buf_add(&key, s->key.p, s->key.n);
    buf_add(&key, keys.salt.data, keys.salt.len);
    if (keys.active.len) {
        buf_add(&key, keys.active.data, keys.active.len);
        buf_add(&key, &keys.active_from, sizeof keys.active_from);
    }
    seq_keys_release(&keys);
    struct spill_head head = {
        .version = SPILL_VERSION,
        .block_tokens = KV_BLOCK_TOKENS,
        .block_bytes = engine_block_bytes(s->engine),
        .n_key = (uint32_t)key.len,
        .n_tokens = (uint32_t)s->prefix.n_tokens,
    };
    memcpy(head.magic, magic, sizeof magic);
    buf_add(out, &head, sizeof head);
    buf_add(out, key.data, key.len);
    buf_release(&key);
    buf_add(out, s->prefix.tokens, (size_t)s->prefix.n_tokens * sizeof *s->prefix.tokens);
    head.checksum = XXH3_64bits(out->data, out->len);
    memcpy(out->data, &head, sizeof head);
}

uint64_t spill_bytes(const struct spill *s)
{
    struct buf begin = {0};
    make_begin(s, &begin);
    uint64_t n = begin.len + n_blocks(s) * (sizeof(uint64_t) + engine_block_bytes(s->engine));
    buf_release(&begin);
    return n;
}

static bool is_gone(const struct spill *s, struct err *e)
{
    if (!s->gone || !s->gone(s->arg))
        return false;
    err_set(e, ERR_CANCELED, "nobody wants it any more");
    return true;
}

/* ---- writing ---- */

static int write_all(int fd, const void *data, size_t n)
{
    for (const char *p = data; n;) {
        ssize_t done = -1;
        if (fault(FAULT_WRITE))
            errno = ENOSPC;
        else
            done = write(fd, p, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -1;
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

static int write_blocks(const struct spill *s, uint64_t id, int fd, const char *path, struct err *e)
{
    size_t bytes = engine_block_bytes(s->engine);
    char *block = try_alloc(bytes);
    int rc = block ? 0 : err_set(e, ERR_NOMEM, "no memory for a block of %zu bytes", bytes);
    for (size_t i = 0; !rc && i < n_blocks(s); i++) {
        rc = is_gone(s, e) ? ERR_CANCELED : engine_export_block(s->engine, id, (int)i, block, e);
        uint64_t sum = rc ? 0 : XXH3_64bits_withSeed(block, bytes, i);
        if (!rc && (write_all(fd, &sum, sizeof sum) || write_all(fd, block, bytes)))
            rc = err_set(e, ERR_IO, "writing %s: %s", path, strerror(errno));
    }
    free(block);
    return rc;
}

static int write_file(const struct spill *s, uint64_t id, int fd, const char *path, struct err *e)
{
    struct buf begin = {0};
    make_begin(s, &begin);
    int rc = write_all(fd, begin.data, begin.len)
                 ? err_set(e, ERR_IO, "writing %s: %s", path, strerror(errno))
                 : write_blocks(s, id, fd, path, e);
    buf_release(&begin);
    if (!rc && fsync(fd))
        rc = err_set(e, ERR_IO, "writing %s: %s", path, strerror(errno));
    return rc;
}

int spill_write(const struct spill *s, uint64_t id, const char *path, struct err *e)
{
    BUG_ON(s->key.n > SPILL_KEY_BYTES || s->prefix.n_tokens < 1);
    if (!engine_block_bytes(s->engine))
        return err_set(e, ERR_UNSUPPORTED, "this model's KV blocks cannot be read");
    struct buf part = {0};
    buf_addf(&part, "%s.part", path);
    int fd = open(part.data, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int rc = fd < 0 ? err_set(e, ERR_IO, "making %s: %s", part.data, strerror(errno))
                    : write_file(s, id, fd, path, e);
    if (fd >= 0 && close(fd) && !rc)
        rc = err_set(e, ERR_IO, "writing %s: %s", path, strerror(errno));
    if (!rc && rename(part.data, path))
        rc = err_set(e, ERR_IO, "renaming %s: %s", part.data, strerror(errno));
    if (rc && fd >= 0)
        unlink(part.data);
    buf_release(&part);
    return rc;
}

/* ---- reading ---- */

/* False: the file ends, or cannot be read (errno). */
static bool read_all(int fd, void *out, size_t n)
{
    for (char *p = out; n;) {
        errno = 0;
        ssize_t got = fault(FAULT_READ) ? -1 : read(fd, p, n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        p += got;
        n -= (size_t)got;
    }
    return true;
}

/* Whether head, key and tokens hold together, whatever they say. */
static int check_sound(const struct buf *begin, struct err *e)
{
    struct spill_head head;
    memcpy(&head, begin->data, sizeof head);
    uint64_t sum = head.checksum;
    head.checksum = 0;
    memcpy(begin->data, &head, sizeof head);
    if (XXH3_64bits(begin->data, begin->len) != sum)
        return err_set(e, ERR_FORMAT, "it is damaged");
    head.checksum = sum;
    memcpy(begin->data, &head, sizeof head);
    return 0;
}

/* Reads head, key and tokens of whatever prompt it is. */
static int read_begin(int fd, struct buf *begin, struct err *e)
{
    struct spill_head head;
    if (!read_all(fd, &head, sizeof head) || memcmp(head.magic, magic, sizeof magic) != 0)
        return err_set(e, ERR_FORMAT, "it is not a kept prompt");
    if (head.version != SPILL_VERSION)
        return err_set(e, ERR_FORMAT, "it has version %u, this program writes %d", head.version,
                       SPILL_VERSION);
    struct stat st;
    uint64_t rest = head.n_key + (uint64_t)head.n_tokens * sizeof(int32_t);
    if (head.n_key > 2 * SPILL_KEY_BYTES || fstat(fd, &st) || rest > (uint64_t)st.st_size)
        return err_set(e, ERR_FORMAT, "it is damaged or cut");
    buf_add(begin, &head, sizeof head);
    bool whole = read_all(fd, buf_reserve(begin, rest), rest);
    begin->len += rest;
    begin->data[begin->len] = 0;
    return whole ? check_sound(begin, e) : err_set(e, ERR_FORMAT, "it is cut");
}

static int check_begin(const struct spill *s, int fd, struct err *e)
{
    struct buf have = {0}, want = {0};
    struct stat st;
    make_begin(s, &want);
    int rc = read_begin(fd, &have, e);
    if (!rc && (have.len != want.len || memcmp(have.data, want.data, have.len) != 0))
        rc = err_set(e, ERR_EXISTS, "it was made of another prompt, or by another model or kernel");
    else if (!rc && (fstat(fd, &st) || (uint64_t)st.st_size != spill_bytes(s)))
        rc = err_set(e, ERR_FORMAT, "it is cut");
    buf_release(&have);
    buf_release(&want);
    return rc;
}

static int read_block(const struct spill *s, int fd, size_t i, char *block, struct err *e)
{
    uint64_t sum;
    size_t bytes = engine_block_bytes(s->engine);
    if (!read_all(fd, &sum, sizeof sum) || !read_all(fd, block, bytes))
        return err_set(e, ERR_FORMAT, "block %zu cannot be read", i);
    if (XXH3_64bits_withSeed(block, bytes, i) != sum)
        return err_set(e, ERR_FORMAT, "block %zu is damaged", i);
    return 0;
}

static int read_blocks(const struct spill *s, int fd, uint64_t id, struct err *e)
{
    size_t bytes = engine_block_bytes(s->engine);
    char *block = try_alloc(bytes);
    int rc = block ? 0 : err_set(e, ERR_NOMEM, "no memory for a block of %zu bytes", bytes);
    for (size_t i = 0; !rc && i < n_blocks(s); i++) {
        rc = is_gone(s, e) ? ERR_CANCELED : read_block(s, fd, i, block, e);
        if (!rc)
            rc = engine_import_block(s->engine, id, block, e);
    }
    free(block);
    return rc;
}

int spill_read(const struct spill *s, const char *path, uint64_t *id, struct err *e)
{
    BUG_ON(s->key.n > SPILL_KEY_BYTES || s->prefix.n_tokens < 1);
    if (!engine_block_bytes(s->engine))
        return err_set(e, ERR_UNSUPPORTED, "this model's KV blocks cannot be written");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s: %s", path, strerror(errno));
    int rc = check_begin(s, fd, e);
    if (!rc)
        rc = engine_import_begin(s->engine, &s->prefix, id, e);
    if (!rc && (rc = read_blocks(s, fd, *id, e)))
        engine_unpin(s->engine, *id);
    close(fd);
    return rc;
}
