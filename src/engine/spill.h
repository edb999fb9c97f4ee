/* spill.h - a pinned prompt as a file, so that a restart need not compute it again.
 *
 *   struct spill_head   magic, version, sizes; checksum of all up to the first block
 *   key                 what the KV depends on beside the tokens: the words of the caller (model,
 *                       KV type, kernels), salt, adapters, and where they are activated
 *   tokens              int32 each
 *   blocks              a checksum of 8 bytes, then engine_block_bytes bytes, for each
 *
 * Little-endian, as x86-64 has it; checksums are XXH3 with the number of the block as seed. A file
 * is written beside its final name, synced and renamed, so it is whole or not there, and every byte
 * is checked before it is used. Blocks go one at a time between two steps of the engine, so no
 * stream waits longer than for a copy of one block.
 *
 * Any thread but the engine's and those that deliver its events; calls take as long as the disk. */
#pragma once

#include "base/str.h"
#include "engine/engine.h"

enum { SPILL_VERSION = 1, SPILL_KEY_BYTES = 4096 };

struct spill {
    struct engine *engine;
    struct engine_prefix prefix;
    struct str key; /* says what the KV depends on beside prefix; at most SPILL_KEY_BYTES */
    /* Asked before every block: true gives up with ERR_CANCELED. May be NULL. */
    bool (*gone)(void *arg);
    void *arg;
};

/* How large the file is. */
uint64_t spill_bytes(const struct spill *s);

/* Writes the pinned prompt s->prefix, known to the engine by id. ERR_IO: the disk (also when it is
 * full), ERR_CANCELED: it is not pinned any more. Nothing is left behind on error. */
int spill_write(const struct spill *s, uint64_t id, const char *path, struct err *e);

/* Pins the prompt again, from the file; *id for engine_unpin. ERR_NOTFOUND: there is no file;
 * ERR_FORMAT: it is damaged, cut, or of another version; ERR_EXISTS: it is sound but holds another
 * prompt, or was made by another model, adapter or kernel; as engine_import_block. On error nothing
 * is pinned, but the blocks that were good may be found like any cached prefix. */
int spill_read(const struct spill *s, const char *path, uint64_t *id, struct err *e);
