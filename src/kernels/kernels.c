#include "kernels/kernels.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/mem.h"
#include "kernels/layout.h"

enum act_type packed_act_type(const struct packed_matrix *m)
{
    struct layout l = layout_of(m->type);
    if (l.low_bits)
        return layout_pow2(&l) ? ACT_Q8_POW2 : ACT_Q8;
    return m->type == TTYPE_BF16 ? ACT_BF16 : ACT_F32;
}

size_t act_bytes(enum act_type type, int n_cols, int n_tokens)
{
    size_t n = (size_t)n_tokens, cols = (size_t)n_cols;
    switch (type) {
    case ACT_Q8:
    case ACT_Q8_POW2:
        return n * (cols / 32) * ACT_Q8_BLOCK;
    case ACT_F32:
        return n * cols * 4;
    case ACT_BF16:
        return n * (cols + cols % 2) * 2;
    case ACT_TYPES:
        break;
    }
    BUG("activation type %d", (int)type);
}

size_t kv_head_bytes(const struct kv_layout *kv)
{
    return 2 * kv_half_bytes(kv) + (kv->type == KV_Q8_0 ? 2 * 2 * KV_BLOCK_TOKENS : 0);
}

size_t kv_block_bytes(const struct kv_layout *kv)
{
    return kv_head_bytes(kv) * (size_t)kv->n_heads;
}

size_t attention_scratch_bytes(const struct kv_layout *kv)
{
    (void)kv;
    return ATTENTION_SCRATCH;
}

static const char *const kv_names[] = {[KV_F16] = "f16", [KV_BF16] = "bf16", [KV_Q8_0] = "q8_0"};

const char *kv_type_name(enum kv_type type)
{
    return kv_names[type];
}

bool kv_type_parse(const char *name, enum kv_type *out)
{
    for (size_t i = 0; i < ARRAY_LEN(kv_names); i++)
        if (!strcmp(name, kv_names[i])) {
            *out = (enum kv_type)i;
            return true;
        }
    return false;
}

static bool can_scalar(void)
{
    return true;
}

#if defined(__x86_64__)
/* Not all compilers know the names of F16C and AVX-VNNI: CPUID leaf 1, ECX bit 29, and leaf 7,
 * subleaf 1, EAX bit 4. */
static bool can_avx2(void)
{
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && c >> 29 & 1;
}

static bool can_avxvnni(void)
{
    unsigned a, b, c, d;
    return can_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}

static bool can_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#endif

/* Best first. */
static const struct {
    const struct kernels *kernels;
    bool (*usable)(void);
    const char *needs;
} choices[] = {
#if defined(__x86_64__)
    {&kernels_avx512, can_avx512, "AVX-512 with VNNI and BF16"},
    {&kernels_avxvnni, can_avxvnni, "AVX2 and AVX-VNNI"},
    {&kernels_avx2, can_avx2, "AVX2, FMA and F16C"},
#endif
    {&kernels_scalar, can_scalar, "nothing"},
};

const struct kernels *kernels_select(const char *name, struct err *e)
{
    bool automatic = !name || !strcmp(name, "auto");
    for (size_t i = 0; i < ARRAY_LEN(choices); i++) {
        if (!automatic && strcmp(name, choices[i].kernels->name))
            continue;
        if (choices[i].usable())
            return choices[i].kernels;
        if (!automatic) {
            err_param(e, ERR_UNSUPPORTED, "isa",
                      "this processor cannot run the %s kernels: needs %s", name, choices[i].needs);
            return NULL;
        }
    }
    err_param(e, ERR_INVALID, "isa",
              "isa must be auto, avx512, avxvnni, avx2 or scalar, not \"%s\"", name);
    return NULL;
}
