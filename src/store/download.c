#define _GNU_SOURCE
#include "store/download.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

enum { DOWNLOAD_TRIES = 4, DOWNLOAD_CONNECT_MS = 15000, DOWNLOAD_REDIRECTS = 10 };

struct transfer {
    const struct download *d;
    const char *partial;
    CURL *curl;
    int fd;
    uint64_t base;   /* bytes in the partial file before this try */
    uint64_t done;   /* bytes in the partial file now */
    int64_t last_ms; /* of the last byte */
    int disk_errno;
    bool canceled, stalled, sized;
    struct err room; /* set when the disk cannot hold what is announced */
};

/* Is there room for what is still to come, before hours are spent? */
static void check_room(const char *path, uint64_t need, struct err *e)
{
    struct statvfs v;
    uint64_t room = statvfs(path, &v) == 0 ? (uint64_t)v.f_bavail * v.f_frsize : UINT64_MAX;
    if (room < need)
        err_set(e, ERR_IO, "%s: the disk has %llu MiB free, %llu MiB are needed", path,
                (unsigned long long)(room >> 20), (unsigned long long)(need >> 20));
}

static size_t on_data(char *p, size_t size, size_t n, void *arg)
{
    struct transfer *t = arg;
    long status = 0;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    if (t->base && status == 200) { /* the server ignored the range: begin again */
        if (ftruncate(t->fd, 0) || lseek(t->fd, 0, SEEK_SET) < 0) {
            t->disk_errno = errno;
            return 0;
        }
        t->base = t->done = 0;
    }
    size_t left = size * n;
    for (const char *from = p; left;) {
        ssize_t w = write(t->fd, from, left);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0) {
            t->disk_errno = w ? errno : ENOSPC;
            return 0;
        }
        from += w;
        left -= (size_t)w;
        t->done += (size_t)w;
    }
    t->last_ms = clock_ms();
    return size * n;
}

static int on_progress(void *arg, curl_off_t total, curl_off_t now, curl_off_t up, curl_off_t upnow)
{
    struct transfer *t = arg;
    if (clock_ms() - t->last_ms > t->d->stall_ms)
        t->stalled = true;
    if (total > 0 && !t->sized) {
        t->sized = true;
        check_room(t->partial, (uint64_t)total, &t->room);
    }
    if (t->d->progress && total > 0)
        t->canceled = !t->d->progress(t->d->progress_arg, t->done, t->base + (uint64_t)total);
    return t->stalled || t->canceled || t->room.code;
}

/* What every request of ours sets. */
static void setup(CURL *c, const char *url, int64_t stall_ms)
{
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)DOWNLOAD_REDIRECTS);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "terrace");
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS,
                     stall_ms < DOWNLOAD_CONNECT_MS ? (long)stall_ms : (long)DOWNLOAD_CONNECT_MS);
}

static int explain(struct transfer *t, CURLcode rc, struct err *e)
{
    const char *url = t->d->url;
    long status = 0;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    if (t->canceled)
        return err_set(e, ERR_CANCELED, "the download was canceled; it can be resumed");
    if (t->stalled || rc == CURLE_OPERATION_TIMEDOUT)
        return err_set(e, ERR_TIMEOUT, "%s: no data for %lld s", url,
                       (long long)(t->d->stall_ms / 1000));
    if (t->room.code) {
        if (e)
            *e = t->room;
        return t->room.code;
    }
    if (t->disk_errno)
        return err_set(e, ERR_IO, "%s: cannot be written: %s", t->partial, strerror(t->disk_errno));
    if (status == 404)
        return err_set(e, ERR_NOTFOUND, "%s: not found (404)", url);
    if (status >= 400)
        return err_set(e, ERR_IO, "%s: the server answered %ld", url, status);
    return err_set(e, ERR_IO, "%s: %s", url, curl_easy_strerror(rc));
}

/* One try: from the end of the partial file to the end of the resource. *again tells whether
 * another try may help. */
static int try_once(const struct download *d, const char *partial, bool *again, struct err *e)
{
    struct transfer t = {.d = d, .partial = partial, .last_ms = clock_ms()};
    *again = false;
    t.fd = open(partial, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (t.fd < 0)
        return err_set(e, ERR_IO, "%s: %s", partial, strerror(errno));
    off_t end = lseek(t.fd, 0, SEEK_END);
    t.base = t.done = end > 0 ? (uint64_t)end : 0;
    t.curl = curl_easy_init();
    BUG_ON(!t.curl);
    setup(t.curl, d->url, d->stall_ms);
    curl_easy_setopt(t.curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(t.curl, CURLOPT_WRITEDATA, &t);
    curl_easy_setopt(t.curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(t.curl, CURLOPT_XFERINFODATA, &t);
    curl_easy_setopt(t.curl, CURLOPT_NOPROGRESS, 0L);
    if (t.base)
        curl_easy_setopt(t.curl, CURLOPT_RESUME_FROM_LARGE, (curl_off_t)t.base);
    if (d->bearer) {
        curl_easy_setopt(t.curl, CURLOPT_HTTPAUTH, CURLAUTH_BEARER);
        curl_easy_setopt(t.curl, CURLOPT_XOAUTH2_BEARER, d->bearer);
    }
    CURLcode rc = curl_easy_perform(t.curl);
    long status = 0;
    curl_easy_getinfo(t.curl, CURLINFO_RESPONSE_CODE, &status);
    int out = 0;
    if (status == 416 && t.base) { /* all of it is here already: the digest will tell */
        out = 0;
    } else if (rc != CURLE_OK) {
        out = explain(&t, rc, e);
        *again = !t.canceled && !t.disk_errno && !t.room.code && (status < 400 || status >= 500) &&
                 t.done > t.base;
    } else if (fsync(t.fd)) {
        out = err_set(e, ERR_IO, "%s: %s", partial, strerror(errno));
    }
    curl_easy_cleanup(t.curl);
    close(t.fd);
    return out;
}

int download_sha256(const char *path, char hex[65], struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    enum { CHUNK = 1 << 20 };
    unsigned char *chunk = xmalloc(CHUNK), digest[32];
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    BUG_ON(!md || !EVP_DigestInit_ex(md, EVP_sha256(), NULL));
    ssize_t n;
    while ((n = read(fd, chunk, CHUNK)) > 0)
        EVP_DigestUpdate(md, chunk, (size_t)n);
    int saved = errno;
    EVP_DigestFinal_ex(md, digest, NULL);
    EVP_MD_CTX_free(md);
    free(chunk);
    close(fd);
    if (n < 0)
        return err_set(e, ERR_IO, "%s: %s", path, strerror(saved));
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return 0;
}

static int check_digest(const struct download *d, const char *partial, struct err *e)
{
    char hex[65];
    if (!d->sha256)
        return 0;
    int rc = download_sha256(partial, hex, e);
    if (rc)
        return rc;
    if (strcasecmp(hex, d->sha256) == 0)
        return 0;
    unlink(partial);
    return err_set(e, ERR_FORMAT, "%s: the file's SHA-256 is %.12s..., expected %.12s...", d->url,
                   hex, d->sha256);
}

int download_file(const struct download *d, struct err *e)
{
    char *partial = NULL;
    if (asprintf(&partial, "%s.partial", d->path) < 0)
        BUG("out of memory");
    struct stat st;
    bool resumed = stat(partial, &st) == 0 && st.st_size > 0, again = true;
    int rc = 0;
    for (int i = 0; i < DOWNLOAD_TRIES && again; i++)
        rc = try_once(d, partial, &again, e);
    if (rc == 0) {
        rc = check_digest(d, partial, e);
        if (rc == ERR_FORMAT && resumed) { /* what was there before was of another file */
            rc = try_once(d, partial, &again, e);
            if (rc == 0)
                rc = check_digest(d, partial, e);
        }
    }
    if (rc == 0 && rename(partial, d->path))
        rc = err_set(e, ERR_IO, "%s: %s", d->path, strerror(errno));
    free(partial);
    return rc;
}

struct text_sink {
    struct buf *out;
    size_t max;
};

static size_t on_text(char *p, size_t size, size_t n, void *arg)
{
    struct text_sink *s = arg;
    if (size * n > s->max - s->out->len)
        return 0;
    buf_add(s->out, p, size * n);
    return size * n;
}

int download_text(const char *url, const char *accept, int64_t stall_ms, size_t max_bytes,
                  struct buf *out, struct err *e)
{
    struct text_sink sink = {out, max_bytes};
    CURL *c = curl_easy_init();
    BUG_ON(!c);
    setup(c, url, stall_ms);
    struct curl_slist *headers = NULL;
    if (accept) {
        char *line = NULL;
        if (asprintf(&line, "Accept: %s", accept) < 0)
            BUG("out of memory");
        headers = curl_slist_append(NULL, line);
        free(line);
        curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    }
    curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)stall_ms);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_text);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &sink);
    CURLcode rc = curl_easy_perform(c);
    long status = 0;
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_cleanup(c);
    curl_slist_free_all(headers);
    if (rc == CURLE_OK)
        return 0;
    if (status == 404)
        return err_set(e, ERR_NOTFOUND, "%s: not found (404)", url);
    if (status >= 400)
        return err_set(e, ERR_IO, "%s: the server answered %ld", url, status);
    if (rc == CURLE_WRITE_ERROR)
        return err_set(e, ERR_LIMIT, "%s: the answer is larger than %zu bytes", url, max_bytes);
    return err_set(e, rc == CURLE_OPERATION_TIMEDOUT ? ERR_TIMEOUT : ERR_IO, "%s: %s", url,
                   curl_easy_strerror(rc));
}
