/* response_key.h - names what an answer depends on, by SHA-256 over all of it.
 *
 * A collision would give one client the answer to another's question, and clients choose most of
 * what is hashed: hence a cryptographic digest. Every field goes in with its length or with a fixed
 * size, so that no two lists of fields read the same. One thread at a time. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/str.h"
#include "engine/engine.h"

struct evp_md_ctx_st;

struct response_key {
    uint8_t bytes[32];
};

struct response_hash {
    struct evp_md_ctx_st *ctx; /* {0} is none */
    size_t n;                  /* bytes in `room` */
    uint8_t room[256];         /* small fields are gathered: a digest call costs more than they */
};

void response_hash_begin(struct response_hash *h); /* also again, after an end */
void response_hash_str(struct response_hash *h, struct str s);
void response_hash_bytes(struct response_hash *h, const void *p, size_t n); /* no length before */
void response_hash_u64(struct response_hash *h, uint64_t v);
struct response_key response_hash_end(struct response_hash *h);
void response_hash_release(struct response_hash *h);

/* All of r that decides which tokens and text come: prompt, adapters by digest and scale, sampling,
 * limits, stops. Not how fast or for whom: tenant, priority, deadline, speculation, pins. What
 * greedy sampling never looks at is left out, so that requests that must give the same answer have
 * the same key. */
void response_hash_request(struct response_hash *h, const struct engine_request *r);
