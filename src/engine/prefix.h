/* prefix.h - finds KV blocks by the tokens they hold, so that a prefix is computed once.
 *
 * A tree over the blocks of a kv: a node is a block, its parent the block before it in the sequence
 * that computed it. Roots are salts: tokens under different salts (tenant, model, adapter) never
 * meet. A full node is found by the hash of its tokens chained with the hash of its parent; salt,
 * parent and tokens are compared too, so a collision cannot give wrong content. A partial node (the
 * unfinished tail of a sequence) has no children and is found by comparing tokens.
 *
 *     salt "a" -- [0..31] -- [32..63] -- [64..95]
 *                    |           `------ [64..80 tail, still growing]
 *                    `------ [32..63 other]
 *
 * Blocks of running sequences are in the tree as soon as they are computed. Who holds a node holds
 * its ancestors. Blocks that nobody holds stay cached until prefix_take needs one: it evicts the
 * leaf that was let go longest ago, so tails go before heads. To pin a prefix, hold it.
 *
 * Algorithms: chained block hashes as in vLLM (Kwon et al., SOSP 2023), a tree with leaf eviction
 * as in SGLang's RadixAttention (Zheng et al., 2024). One thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"
#include "engine/kv.h"

struct prefix_node;
struct prefix_root;

struct prefix {
    struct kv *kv;
    bool enabled;              /* off: nothing is found or kept, blocks are only counted */
    struct prefix_node *nodes; /* [n_blocks] */
    int32_t *node_tokens;      /* [n_blocks * block_tokens] */
    int32_t *buckets;          /* heads of the hash chains, a power of two of them */
    uint32_t bucket_mask;
    struct prefix_root *roots;
    int n_roots;
    int32_t *heap; /* leaves nobody holds, the one to evict first at the top */
    int n_heap;
    uint64_t tick;
    uint64_t n_evicted;
};

/* kv outlives p. */
void prefix_init(struct prefix *p, struct kv *kv, bool enabled);
void prefix_release(struct prefix *p);

/* What is known of a prompt. Nothing is held yet: take references before anything else is taken. */
struct prefix_match {
    int n_full;      /* whole blocks, their ids in `blocks` */
    int32_t partial; /* a block whose first n_partial tokens go on from there, or -1 */
    int n_partial;   /* less than block_tokens */
};

/* Finds the longest known prefix of tokens[0..n). Writes at most n / block_tokens ids to blocks. */
struct prefix_match prefix_find(const struct prefix *p, struct str salt, const int32_t *tokens,
                                int n, int32_t *blocks);

/* Says that `block` (held by the caller) holds the KV of the first n tokens (1 .. block_tokens)
 * that follow `parent` (the sequence's block before it, -1 at the start). Call again as the block
 * fills. When another block with the same full content is known already, the caller's reference
 * moves to that one. Returns the block the caller has now. */
int32_t prefix_put(struct prefix *p, struct str salt, int32_t parent, int32_t block,
                   const int32_t *tokens, int n);

/* kv_take, kv_ref and kv_unref that know of cached blocks. prefix_take evicts when it must; -1 when
 * every block is held. Unref a sequence's blocks from the last to the first. */
int32_t prefix_take(struct prefix *p);
void prefix_ref(struct prefix *p, int32_t block);
void prefix_unref(struct prefix *p, int32_t block);

/* How many blocks prefix_take can give. */
int prefix_available(const struct prefix *p);

/* Whether a salt is `salt` or one with more behind it, after a NUL (what adapters add). */
bool prefix_salt_under(struct str have, struct str salt);

/* Forgets everything under a salt (prefix_salt_under), or (NULL) everything. Sequences that hold
 * such blocks go on; the blocks are freed when let go. */
void prefix_forget(struct prefix *p, const struct str *salt);

/* Whether the tree is sound. O(blocks * block_tokens). False and the reason in e. */
bool prefix_check(const struct prefix *p, struct err *e);
