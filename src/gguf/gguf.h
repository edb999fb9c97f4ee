/* gguf.h - reads GGUF model files (versions 2 and 3, little-endian, one file or split).
 *
 * The file is memory-mapped and read-only. Every count, length, offset and type is checked against
 * the file before it is used, so a hostile or cut file ends in an ERR_FORMAT that names the key or
 * tensor. Pointers handed out point into the mapping and live until gguf_close. Immutable after
 * open: any number of threads may read. Replace a model file by renaming, never by writing into it:
 * a file cut short while it is mapped ends the process.
 *
 * Errors of open: ERR_NOTFOUND, ERR_IO, ERR_FORMAT (damaged), ERR_UNSUPPORTED (another version,
 * byte order or tensor type), ERR_LIMIT, ERR_INVALID (not part 1, renamed parts), ERR_NOMEM. Keys
 * and names of tensors are printable UTF-8 and unique; values of string keys are any bytes.
 *
 * Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
#pragma once

#include "base/err.h"
#include "base/str.h"
#include "tensor/type.h"

enum gguf_kind {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
};

struct gguf_tensor {
    struct str name;
    enum ttype type;
    int n_dims;
    uint64_t dims[4]; /* dims[0] is the row length; unused ones are 1 */
    size_t n_bytes;
    const void *data;
};

struct gguf;

/* Opens path and, if it is part 1 of a split model (...-00001-of-0000N.gguf), the other parts. */
int gguf_open(struct gguf **out, const char *path, struct err *e);

/* The same over bytes in memory, aligned to 8, that the caller keeps alive; split files are
 * refused. */
int gguf_open_mem(struct gguf **out, const void *data, size_t n, struct err *e);
void gguf_close(struct gguf *g);

/* The process holds none of the file's pages in memory any more; what is read after this comes from
 * the file again. Any thread. */
void gguf_let_go(const struct gguf *g);

const char *gguf_path(const struct gguf *g);  /* "" for memory */
size_t gguf_file_bytes(const struct gguf *g); /* all parts */
uint32_t gguf_version(const struct gguf *g);

/* SHA-256 over the header (all metadata and tensor infos), the size of every part and the first and
 * last 64 bytes of every tensor: tells fine-tunes of one model apart, which often differ in nothing
 * but weights. Costs milliseconds once those pages are in memory. 32 bytes. */
void gguf_fingerprint(const struct gguf *g, uint8_t out[32]);

/* Metadata, of part 1 where there are several. Getters with `e` answer ERR_NOTFOUND or ERR_FORMAT;
 * those without return the default when the key is absent or of another kind. */
size_t gguf_n_keys(const struct gguf *g);
struct str gguf_key(const struct gguf *g, size_t i);
enum gguf_kind gguf_key_kind(const struct gguf *g, size_t i);
bool gguf_has(const struct gguf *g, const char *key);

/* u32: any integer kind, in range. f32: any float kind, finite. */
int gguf_get_u32(const struct gguf *g, const char *key, uint32_t *out, struct err *e);
int gguf_get_f32(const struct gguf *g, const char *key, float *out, struct err *e);
int gguf_get_str(const struct gguf *g, const char *key, struct str *out, struct err *e);
uint32_t gguf_u32(const struct gguf *g, const char *key, uint32_t fallback);
float gguf_f32(const struct gguf *g, const char *key, float fallback);
bool gguf_bool(const struct gguf *g, const char *key, bool fallback);
struct str gguf_str(const struct gguf *g, const char *key, const char *fallback);

/* Arrays. Strings were checked at open and are indexed once, so gguf_arr_str is O(1). */
struct gguf_arr {
    enum gguf_kind kind; /* of the elements */
    size_t n;
    const void *data;       /* raw little-endian elements, unaligned; for strings NULL */
    const struct str *strs; /* for strings */
};
int gguf_get_arr(const struct gguf *g, const char *key, enum gguf_kind kind, struct gguf_arr *out,
                 struct err *e);
bool gguf_has_arr(const struct gguf *g, const char *key);

/* Appends the value of key i as text (long arrays cut with "..."): for `terrace show`. */
struct buf;
void gguf_print_value(const struct gguf *g, size_t i, struct buf *out);

/* Tensors of all parts. */
size_t gguf_n_tensors(const struct gguf *g);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t i);
const struct gguf_tensor *gguf_find(const struct gguf *g, const char *name); /* NULL if absent */

/* Finds a tensor and checks its shape: n_dims dimensions equal to dims (0 = any). */
int gguf_need(const struct gguf *g, const char *name, int n_dims, const uint64_t *dims,
              const struct gguf_tensor **out, struct err *e);
