/* lora.h - adapters in the forward pass. Private to src/model.
 *
 * The tokens of a step are listed by adapter, once for all layers. What a token's adapter makes of
 * the input of a product (h = A x) is made together with the input itself, by the same thread;
 * B h is added to the rows of the product right after a thread has written them. So adapters add no
 * barrier, and a step without them does nothing here. */
#pragma once

#include "model/adapter_private.h"
#include "model/forward.h"

/* Which products: those of one input of a layer. */
struct lora_site {
    int layer; /* -1: none that adapters change */
    enum lora_input input;
};

/* Lists the tokens of the batch in m->scratch.lora. */
void lora_list(struct lora_lists *l, const struct batch_seq *seqs, int n_seqs);

/* h of the listed tokens in [rows.begin, rows.end), from rows of x. */
void lora_shrink_rows(const struct worker *k, struct lora_site site, const float *x,
                      size_t x_stride, struct range rows);

/* Tiles [from, to) of a product with what adapters add to them. */
void lora_product(const struct worker *k, struct lora_site site, const struct matmul *job, int from,
                  int to);
