/* pack_cache.h - the packed weights of a model in a file, so that only the first start packs them.
 *
 * <dir>/<fingerprint of the GGUF>-<KERNEL_LAYOUT>.tpk, written beside its final name, synced and
 * renamed, so it is whole or absent; what a killed process has left of it is removed by the next.
 * Little-endian, as every machine this program runs on:
 *
 *   struct head             magic, layout, fingerprint, counts; checksum of head and table
 *   struct entry [n]        of each matrix: type, shape, place, checksum
 *   packed data             from data_begin, a multiple of 4096; matrices as in struct weights
 *
 * Head, table and every matrix's checksum (XXH3) are checked at open, on all threads: that costs
 * about as much as the page faults which it spares the first step. */
#pragma once

#include "model/weights.h"

/* Maps the file and attaches the weights to it. ERR_NOTFOUND when there is none; ERR_FORMAT when it
 * is damaged or of another layout: pack and write it anew. */
int pack_cache_open(struct weights *w, const char *dir, const uint8_t fingerprint[32],
                    struct pool *pool, struct err *e);

/* Writes w->memory, then removes files of this model in older layouts. ERR_IO leaves no file. */
int pack_cache_write(const struct weights *w, const char *dir, const uint8_t fingerprint[32],
                     struct pool *pool, struct err *e);
