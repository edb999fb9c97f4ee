/* kv_type.h - the number formats and the block size of the KV cache. */
#pragma once

/* Positions in one KV block. Position p of a sequence lives in blocks[p / KV_BLOCK_TOKENS], slot
 * p % KV_BLOCK_TOKENS. */
enum { KV_BLOCK_TOKENS = 32 };

/* KV_Q8_0: 8 bits with a scale for each position and head. */
enum kv_type { KV_BF16, KV_F16, KV_Q8_0 };
