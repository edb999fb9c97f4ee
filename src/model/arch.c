#include "model/arch.h"

#include "base/mem.h"

static const struct arch *const archs[] = {&arch_llama, &arch_phi3, &arch_qwen2, &arch_qwen3};

int arch_find(const struct arch **out, const struct gguf *g, struct err *e)
{
    struct str name;
    int rc = gguf_get_str(g, "general.architecture", &name, e);
    if (rc)
        return rc;
    for (size_t i = 0; i < ARRAY_LEN(archs); i++) {
        if (str_eqs(name, archs[i]->name)) {
            *out = archs[i];
            return 0;
        }
    }
    return err_set(e, ERR_UNSUPPORTED,
                   "general.architecture \"%.*s\" is not supported (llama, phi3, qwen2 and qwen3 "
                   "are)",
                   (int)(name.n < 32 ? name.n : 32), name.p);
}
