/* download.h - one file over HTTP(S) to disk: resumed, watched, checked. Blocking; for a thread
 * that may wait. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

struct download {
    const char *url;
    const char *path;   /* final name; data gathers in "<path>.partial", kept for a resume */
    const char *sha256; /* 64 hex digits, or NULL: not checked */
    const char *bearer; /* token for the first host only, or NULL */
    int64_t stall_ms;
    bool (*progress)(void *arg, uint64_t done, uint64_t total); /* false cancels; may be NULL */
    void *progress_arg;
};

/* ERR_NOTFOUND for 404, ERR_TIMEOUT for a stall, ERR_FORMAT for a wrong digest (the partial file is
 * removed), ERR_IO for the rest, disk full included; each message names URL and fix. */
int download_file(const struct download *d, struct err *e);

/* GETs a small document (at most max_bytes) into out. `accept` may be NULL. */
int download_text(const char *url, const char *accept, int64_t stall_ms, size_t max_bytes,
                  struct buf *out, struct err *e);

/* SHA-256 of a file as 64 hex digits and a NUL. */
int download_sha256(const char *path, char hex[65], struct err *e);
