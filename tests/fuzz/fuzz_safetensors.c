/* The safetensors reader over arbitrary bytes: whatever opens can be read to its last number. */
#include <stdlib.h>

#include "gguf/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct safetensors *s;
    struct err e = {0};
    int rc = safetensors_open_mem(&s, data, n, &e);
    if ((rc == 0) != (s != NULL) || rc != e.code)
        abort();
    if (rc)
        return 0;
    size_t bytes = 0;
    for (size_t i = 0; i < safetensors_count(s); i++) {
        const struct safetensor *t = safetensors_at(s, i);
        float *v = malloc((t->n_elems + 1) * sizeof *v);
        safetensor_floats(t, 0, t->n_elems, v);
        free(v);
        bytes += t->n_bytes;
    }
    if (bytes > n)
        abort();
    safetensors_close(s);
    return 0;
}
