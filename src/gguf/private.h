/* private.h - what the files of the reader share. Not for others: use gguf.h. */
#pragma once

#include "base/map.h"
#include "gguf/gguf.h"

/* Far above any model in use; they bound what a small hostile file can make us allocate. */
enum {
    GGUF_MAX_KEYS = 65536,
    GGUF_MAX_KEY_BYTES = 65535, /* as the specification has it */
    GGUF_MAX_TENSORS = 1 << 18,
    GGUF_MAX_NAME_BYTES = 255, /* the specification says 64; some converters write more */
    GGUF_MAX_ALIGNMENT = 1 << 20,
    GGUF_MAX_PARTS = 1024,
};

/* One metadata entry. A scalar is an array of one element. */
struct gguf_value {
    struct str key;
    enum gguf_kind kind;      /* GGUF_ARRAY or that of the scalar */
    enum gguf_kind elem_kind; /* of data; equals kind for a scalar */
    size_t n;
    const uint8_t *data; /* raw elements, unaligned; NULL for strings */
    struct str *strs;    /* for strings: n of them, owned */
};

/* One file of the model. */
struct gguf_part {
    const uint8_t *base;
    size_t n_bytes;
    bool mapped; /* base is ours to unmap */
    uint32_t version;
    size_t header_bytes; /* up to the end of the tensor infos */
    size_t first_tensor, n_tensors;
    uint64_t data_offset; /* header_bytes rounded up to the alignment */
};

struct gguf {
    char *path; /* "" for memory */
    struct gguf_part *parts;
    size_t n_parts;
    struct gguf_value *values; /* of part 0 */
    size_t n_values;
    struct gguf_tensor *tensors; /* of all parts */
    size_t n_tensors;
    struct map value_by_key, tensor_by_name;
};

/* Bytes of one element, 0 for GGUF_STRING and GGUF_ARRAY. */
size_t gguf_kind_bytes(enum gguf_kind kind);
const char *gguf_kind_name(enum gguf_kind kind);

/* Reads the header of parts[p], whose base and n_bytes are set. Part 0 fills the metadata, every
 * part adds its tensors; split_no and split_count are the split.* keys (0 and 0 when absent). */
int gguf_parse_part(struct gguf *g, size_t p, uint32_t *split_no, uint32_t *split_count,
                    struct err *e);
