/* logits.c - writes the logits of a model for a text of token ids, for comparisons of accuracy.
 *
 *   bench-logits MODEL.gguf ISA KV_TYPE < ids > logits
 *
 * Reads 32-bit ids in the machine's order until the end, runs them as one sequence, and writes
 * n_vocab 32-bit floats for each. */
#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/mem.h"
#include "gguf/gguf.h"
#include "kernels/kernels.h"
#include "model/model.h"

enum { STEP = 256 };

static int die(const struct err *e)
{
    fprintf(stderr, "bench-logits: %s\n", e->msg);
    return 1;
}

static int run(struct model *m, struct kv_mem *kv, const int32_t *ids, int n, const int32_t *blocks)
{
    size_t n_vocab = (size_t)model_info(m)->n_vocab;
    float *logits = xcalloc(STEP * n_vocab, sizeof *logits);
    int rc = 0;
    for (int at = 0; at < n && !rc; at += STEP) {
        int now = n - at < STEP ? n - at : STEP;
        struct batch_seq s = {ids + at, now, at, blocks, .n_logits = now};
        model_forward(m, kv, &s, 1, logits);
        rc = fwrite(logits, sizeof *logits * n_vocab, (size_t)now, stdout) != (size_t)now;
    }
    free(logits);
    return rc;
}

int main(int argc, char **argv)
{
    struct err e = {0};
    struct buf in = {0};
    struct gguf *g;
    struct pool *pool;
    struct model *m;
    struct kv_mem *kv;
    struct model_opts o = {.max_batch_tokens = STEP};
    if (argc != 4 || !kv_type_parse(argv[3], &o.kv_type)) {
        fputs("usage: bench-logits MODEL.gguf ISA KV_TYPE < ids > logits\n", stderr);
        return 2;
    }
    o.isa = argv[2];
    for (size_t n; (n = fread(buf_reserve(&in, 4096), 1, 4096, stdin));)
        in.len += n;
    int n = (int)(in.len / sizeof(int32_t)), n_blocks = n / KV_BLOCK_TOKENS + 1;
    if (gguf_open(&g, argv[1], &e) || pool_new(&pool, 0, &e))
        return die(&e);
    o.pool = pool;
    if (model_open(&m, g, &o, &e) || kv_mem_new(&kv, m, n_blocks, &e))
        return die(&e);
    int32_t *blocks = xcalloc((size_t)n_blocks, sizeof *blocks);
    for (int i = 0; i < n_blocks; i++)
        blocks[i] = i;
    int rc = run(m, kv, (const int32_t *)in.data, n, blocks);
    free(blocks);
    kv_mem_free(kv);
    model_close(m);
    pool_free(pool);
    gguf_close(g);
    buf_release(&in);
    return rc;
}
