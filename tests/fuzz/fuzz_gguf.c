/* The GGUF reader over arbitrary bytes: whatever opens can be read to its last byte. */
#include <stdlib.h>

#include "base/buf.h"
#include "gguf/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct gguf *g;
    struct err e = {0};
    int rc = gguf_open_mem(&g, data, n, &e);
    if ((rc == 0) != (g != NULL) || rc != e.code)
        abort();
    if (rc)
        return 0;
    struct buf text = {0};
    for (size_t i = 0; i < gguf_n_keys(g); i++) {
        uint32_t u;
        gguf_print_value(g, i, &text);
        buf_add(&text, gguf_key(g, i).p, gguf_key(g, i).n);
        gguf_get_u32(g, buf_str(&text), &u, NULL);
    }
    for (size_t i = 0; i < gguf_n_tensors(g); i++)
        buf_add(&text, gguf_tensor_at(g, i)->data, gguf_tensor_at(g, i)->n_bytes);
    buf_release(&text);
    gguf_close(g);
    return 0;
}
