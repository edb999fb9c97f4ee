/* A PEFT adapter of arbitrary bytes for a tiny model. Input: two bytes, the length of
 * adapter_config.json; that; adapter_model.safetensors. */
#include <stdlib.h>
#include <string.h>

#include "model/adapter.h"
#include "model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static struct model *tiny_model(void)
{
    static struct model *m;
    static struct pool *pool;
    static struct gguf *g;
    if (!m &&
        (pool_new(&pool, 1, NULL) || gguf_open(&g, VECTORS "/adapter/tiny_llama.gguf", NULL) ||
         model_open(&m, g, &(struct model_opts){.pool = pool, .max_batch_tokens = 4}, NULL)))
        abort();
    return m;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 2)
        return 0;
    size_t n_config = data[0] | (size_t)data[1] << 8;
    data += 2;
    n -= 2;
    n_config = n_config < n ? n_config : n;
    struct adapter *a;
    struct err e = {0};
    int rc = adapter_open_peft(&a, tiny_model(), data, n_config, data + n_config, n - n_config, &e);
    if ((rc == 0) != (a != NULL) || rc != e.code)
        abort();
    adapter_unref(a);
    return 0;
}
