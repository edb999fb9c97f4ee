/* A kept prompt of arbitrary bytes, for an engine on a fake model. The checksum of the beginning is
 * put right where there is one, so that what is behind it is reached; blocks keep theirs. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/buf.h"
#include "engine/spill.h"
#include "fake_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* struct spill_head: where it has the lengths and the checksum, and its size. */
enum { PROMPT = 40, N_KEY = 24, N_TOKENS = 28, CHECKSUM = 32, HEAD = 40 };

static void sink(void *arg, struct engine_event *list)
{
    engine_events_free(list);
}

static struct engine *the_engine(void)
{
    static struct fake_model model;
    static struct engine *g;
    if (g)
        return g;
    fake_model_init(&model, 8, 16);
    struct engine_opts o = {.model = fake_engine_model(&model, 100),
                            .tokenizer = fake_tokenizer(),
                            .prefix_cache = true,
                            .max_pinned_blocks = 4,
                            .check = true,
                            .manual = true,
                            .sink = sink};
    if (engine_new(&g, &o, NULL))
        abort();
    return g;
}

static void put_right(char *file, size_t n)
{
    uint32_t n_key, n_tokens;
    uint64_t sum = 0;
    if (n < HEAD)
        return;
    memcpy(&n_key, file + N_KEY, sizeof n_key);
    memcpy(&n_tokens, file + N_TOKENS, sizeof n_tokens);
    uint64_t begin = HEAD + n_key + (uint64_t)n_tokens * sizeof(int32_t);
    if (begin > n)
        return;
    memset(file + CHECKSUM, 0, sizeof sum);
    sum = XXH3_64bits(file, begin);
    memcpy(file + CHECKSUM, &sum, sizeof sum);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    int32_t prompt[PROMPT];
    char path[40];
    struct err e = {0};
    uint64_t id;
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = 2 + i % 50;
    struct spill s = {.engine = the_engine(), .prefix = {prompt, PROMPT}, .key = STR("k")};
    struct buf file = {0};
    buf_add(&file, data, n);
    put_right(file.data, file.len);
    int fd = memfd_create("spill", 0);
    if (fd < 0 || write(fd, buf_str(&file), n) != (ssize_t)n)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int rc = spill_read(&s, path, &id, &e);
    if (rc != e.code)
        abort();
    if (!rc)
        engine_unpin(s.engine, id);
    engine_forget_all(s.engine);
    engine_step(s.engine);
    struct engine_stats stats;
    engine_get_stats(s.engine, &stats);
    if (stats.blocks_free != 8 || stats.blocks_pinned)
        abort();
    close(fd);
    buf_release(&file);
    return 0;
}
