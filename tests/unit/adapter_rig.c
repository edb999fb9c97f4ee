#define _GNU_SOURCE /* mkdtemp */
#include "adapter_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/pool.h"
#include "gguf/gguf.h"

static void copy(const char *from, const char *to, const float *last)
{
    char data[16384];
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    assert_true(in && out);
    size_t n = fread(data, 1, sizeof data, in);
    if (last)
        memcpy(data + n - sizeof *last, last, sizeof *last);
    assert_int_equal(fwrite(data, 1, n, out), n);
    fclose(in);
    fclose(out);
}

void adapter_rig_write(const char *path, float content)
{
    char to[PATH_MAX + 64];
    mkdir(path, 0700);
    snprintf(to, sizeof to, "%s/adapter_config.json", path);
    copy(VECTORS "/adapter/llama_qv/adapter_config.json", to, NULL);
    snprintf(to, sizeof to, "%s/adapter_model.safetensors", path);
    copy(VECTORS "/adapter/llama_qv/adapter_model.safetensors", to, &content);
}

void adapter_rig_open(struct adapter_rig *r, int n_adapters)
{
    struct err e = {0};
    *r = (struct adapter_rig){.folder = "/tmp/terrace-adapters-XXXXXX"};
    assert_non_null(mkdtemp(r->folder));
    snprintf(r->root, sizeof r->root, "%s/root", r->folder);
    mkdir(r->root, 0700);
    for (int i = 0; i < n_adapters; i++) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/a%d", r->root, i);
        adapter_rig_write(path, (float)i);
    }
    if (pool_new(&r->pool, 1, &e) || gguf_open(&r->gguf, VECTORS "/adapter/tiny_llama.gguf", &e))
        fail_msg("%s", e.msg);
    struct model_opts o = {.pool = r->pool, .kv_type = KV_F16, .max_batch_tokens = 16};
    if (model_open(&r->model, r->gguf, &o, &e))
        fail_msg("%s", e.msg);
}

void adapter_rig_close(struct adapter_rig *r)
{
    char command[128];
    model_close(r->model);
    gguf_close(r->gguf);
    pool_free(r->pool);
    snprintf(command, sizeof command, "rm -rf %s", r->folder);
    assert_int_equal(system(command), 0);
}
