/* safetensors.h - reads safetensors files: named tensors of plain numbers, as adapters are kept in.
 *
 * A file is 8 bytes (little-endian length of the header), a JSON object from names to
 * {"dtype", "shape", "data_offsets"}, then the data. Everything is checked before it is used: the
 * header's size and depth, names (unique, printable), shapes against byte counts, and that the
 * tensors cover the data without gap or overlap, as the format demands. A hostile or cut file ends
 * in an ERR_FORMAT that names the tensor.
 *
 * The file is read into memory, not mapped: adapters are small and get replaced while a server
 * runs, and a mapped file that someone cuts short ends the process. Immutable after open: any
 * number of threads may read.
 *
 * Source of the format: https://github.com/huggingface/safetensors (README, "Format") */
#pragma once

#include "base/err.h"
#include "base/str.h"
#include "tensor/type.h"

enum { SAFETENSORS_MAX_DIMS = 8 };

struct safetensor {
    struct str name;
    enum ttype type;                     /* F32, F16 or BF16 */
    int n_dims;                          /* 0 for a single number */
    uint64_t dims[SAFETENSORS_MAX_DIMS]; /* outermost first, as in the file: [rows, columns] */
    uint64_t n_elems;
    size_t n_bytes;
    const void *data; /* of any alignment: see safetensor_floats; valid until close */
};

struct safetensors;

/* Errors: ERR_NOTFOUND, ERR_IO, ERR_FORMAT, ERR_UNSUPPORTED (a type of number other than those
 * above), ERR_LIMIT (more than max_bytes, too large a header), ERR_NOMEM. */
int safetensors_open(struct safetensors **out, const char *path, size_t max_bytes, struct err *e);

/* The same over bytes in memory that the caller keeps alive. */
int safetensors_open_mem(struct safetensors **out, const void *data, size_t n, struct err *e);
void safetensors_close(struct safetensors *s);

/* In the order of the data. */
size_t safetensors_count(const struct safetensors *s);
const struct safetensor *safetensors_at(const struct safetensors *s, size_t i);
const struct safetensor *safetensors_find(const struct safetensors *s, const char *name);

/* Elements [first, first + n) as floats. */
void safetensor_floats(const struct safetensor *t, size_t first, size_t n, float *out);

/* A whole regular file in memory on an 8-byte boundary, free() it. For files that may be replaced
 * while they are read; errors as safetensors_open. */
int file_read(void **out, size_t *n, const char *path, size_t max_bytes, struct err *e);
