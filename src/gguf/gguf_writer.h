/* gguf_writer.h - writes GGUF files (version 3) of any size in constant memory.
 *
 * Order of calls: open; add metadata and declare all tensors, in any order; then the data of the
 * tensors, in the order of declaration and in pieces of any size; finish. The file takes its name
 * only in finish: until then it is "<path>.part", and close removes that.
 *
 * What is added is our own code's choice, so a key or tensor added twice, a row that does not
 * divide into blocks and data of the wrong total length are BUGs. One thread at a time. */
#pragma once

#include "gguf/gguf.h"

struct gguf_writer;

int gguf_writer_open(struct gguf_writer **out, const char *path, struct err *e);

/* Multiple for tensor offsets, a power of two from 8; 32 unless called. Before the first tensor. */
void gguf_writer_alignment(struct gguf_writer *w, uint32_t alignment);

void gguf_writer_u16(struct gguf_writer *w, const char *key, uint16_t v);
void gguf_writer_u32(struct gguf_writer *w, const char *key, uint32_t v);
void gguf_writer_i32(struct gguf_writer *w, const char *key, int32_t v);
void gguf_writer_u64(struct gguf_writer *w, const char *key, uint64_t v);
void gguf_writer_f32(struct gguf_writer *w, const char *key, float v);
void gguf_writer_bool(struct gguf_writer *w, const char *key, bool v);
void gguf_writer_str(struct gguf_writer *w, const char *key, struct str v);
void gguf_writer_strs(struct gguf_writer *w, const char *key, const struct str *v, size_t n);

/* n little-endian elements of a kind of number. */
void gguf_writer_arr(struct gguf_writer *w, const char *key, enum gguf_kind kind, const void *v,
                     size_t n);

/* Copies entry i of g, whatever its kind. */
void gguf_writer_copy(struct gguf_writer *w, const struct gguf *g, size_t i);

/* Declares a tensor; dims[0] is the row length. */
void gguf_writer_tensor(struct gguf_writer *w, const char *name, enum ttype type, int n_dims,
                        const uint64_t *dims);

/* The next n bytes of tensor data. The first call ends the declarations. */
int gguf_writer_data(struct gguf_writer *w, const void *p, size_t n, struct err *e);

/* Writes what is still buffered and gives the file its name. Always followed by close. The bytes
 * are with the kernel then, not yet surely on the disk: fsync where that matters. */
int gguf_writer_finish(struct gguf_writer *w, struct err *e);

/* Frees w; without a successful finish the partial file is removed. */
void gguf_writer_close(struct gguf_writer *w);
