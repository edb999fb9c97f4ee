/* Pinned prompts out to files and back in, on a model whose KV is known. */
#define _GNU_SOURCE /* mkdtemp */
#include "unit.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/mem.h"
#include "base/rng.h"
#include "engine/spill.h"
#include "engine_harness.h"

enum { N_CTX = 400, N_BLOCKS = 24, PERSONA = 75, OWN = 9 }; /* two blocks and a tail */

struct fixture {
    struct fake_model model;
    struct engine *g;
    struct answer answers[3];
    char dir[64], path[96];
    int32_t prompt[PERSONA + OWN];
    struct spill spill;
};

static void open_engine(struct fixture *f, bool manual, int max_pinned)
{
    struct err e = {0};
    fake_model_init(&f->model, N_BLOCKS, 64);
    struct engine_opts o = {
        .model = fake_engine_model(&f->model, N_CTX),
        .tokenizer = fake_tokenizer(),
        .sink = answer_sink,
        .check = true,
        .manual = manual,
        .prefix_cache = true,
        .max_pinned_blocks = max_pinned,
    };
    if (engine_new(&f->g, &o, &e))
        fail_msg("%s", e.msg);
    f->spill.engine = f->g;
}

static void close_engine(struct fixture *f)
{
    engine_free(f->g);
    fake_model_release(&f->model);
    for (size_t i = 0; i < ARRAY_LEN(f->answers); i++)
        answer_clear(&f->answers[i]);
}

static void open_fixture(struct fixture *f, bool manual)
{
    struct rng rng;
    *f = (struct fixture){.dir = "/tmp/terrace-spill-XXXXXX"};
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof f->path, "%s/p.kv", f->dir);
    rng_seed(&rng, 3);
    for (int i = 0; i < PERSONA + OWN; i++)
        f->prompt[i] = 2 + (int32_t)rng_below(&rng, FAKE_VOCAB - 2);
    f->spill = (struct spill){.prefix = {f->prompt, PERSONA, NULL}, .key = STR("fake 1")};
    open_engine(f, manual, 8);
}

static void close_fixture(struct fixture *f)
{
    close_engine(f);
    unlink(f->path);
    assert_int_equal(rmdir(f->dir), 0); /* nothing else was left there */
}

static uint64_t submit(struct fixture *f, int n_prompt, int max_tokens, bool pin, int slot)
{
    struct err e = {0};
    uint64_t id = 0;
    struct engine_request r = greedy_request(f->prompt, n_prompt, max_tokens, &f->answers[slot]);
    r.pin = pin;
    if (engine_submit(f->g, &r, &id, &e))
        fail_msg("%s", e.msg);
    return id;
}

static uint64_t pin_persona(struct fixture *f)
{
    uint64_t id = submit(f, PERSONA, 1, true, 0);
    run_until_idle(f->g);
    return id;
}

static int pinned(struct fixture *f)
{
    struct engine_stats stats;
    engine_step(f->g);
    engine_get_stats(f->g, &stats);
    return stats.blocks_pinned;
}

static void write_persona(struct fixture *f)
{
    struct err e = {0};
    if (spill_write(&f->spill, pin_persona(f), f->path, &e))
        fail_msg("%s", e.msg);
}

static void test_round_trip(void **state)
{
    struct fixture f;
    struct err e = {0};
    uint64_t id;
    struct stat st;
    open_fixture(&f, true);
    write_persona(&f);
    assert_int_equal(stat(f.path, &st), 0);
    assert_int_equal(st.st_size, spill_bytes(&f.spill));
    assert_int_equal(st.st_mode & 0777, 0600);
    close_engine(&f);

    open_engine(&f, true, 8);
    if (spill_read(&f.spill, f.path, &id, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(pinned(&f), 3);
    assert_int_equal(f.model.n_computed, 0);
    submit(&f, PERSONA + OWN, 20, false, 1);
    run_until_idle(f.g);
    assert_int_equal(f.answers[1].usage.cached_tokens, PERSONA);
    assert_int_equal(f.model.n_computed, OWN + 19);
    struct engine_request r = greedy_request(f.prompt, PERSONA + OWN, 20, NULL);
    struct answer want;
    answer_expected(&f.model, &r, N_CTX, &want);
    assert_answer(&f.answers[1], &want);
    answer_release(&want);

    char *first = xmalloc((size_t)st.st_size), *second = xmalloc((size_t)st.st_size);
    FILE *file = fopen(f.path, "re");
    assert_int_equal(fread(first, 1, (size_t)st.st_size, file), st.st_size);
    fclose(file);
    assert_int_equal(spill_write(&f.spill, id, f.path, &e), 0); /* what came in goes out again */
    file = fopen(f.path, "re");
    assert_int_equal(fread(second, 1, (size_t)st.st_size, file), st.st_size);
    fclose(file);
    size_t tail = (KV_BLOCK_TOKENS - PERSONA % KV_BLOCK_TOKENS) * sizeof(int32_t);
    assert_memory_equal(first, second, (size_t)st.st_size - tail - 3 * sizeof(int32_t));
    free(first);
    free(second);
    engine_unpin(f.g, id);
    assert_int_equal(pinned(&f), 0);
    close_fixture(&f);
}

static void put_file(const struct fixture *f, const char *data, size_t n)
{
    FILE *file = fopen(f->path, "we");
    assert_int_equal(fwrite(data, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

/* Nothing is pinned, and a prompt that begins with good blocks gets the right answer. */
static void refuse(struct fixture *f, const char *what, size_t at)
{
    struct err e = {0};
    uint64_t id;
    int rc = spill_read(&f->spill, f->path, &id, &e);
    if (rc != ERR_FORMAT && rc != ERR_EXISTS)
        fail_msg("%s at %zu: %d", what, at, rc);
    assert_int_equal(pinned(f), 0);
}

static void test_no_byte_may_change(void **state)
{
    struct fixture f;
    char data[1024];
    open_fixture(&f, true);
    write_persona(&f);
    close_engine(&f);
    open_engine(&f, true, 8);
    FILE *file = fopen(f.path, "re");
    size_t n = fread(data, 1, sizeof data, file);
    fclose(file);
    assert_int_equal(n, spill_bytes(&f.spill));
    for (size_t i = 0; i < n; i++) {
        data[i] ^= (char)(1 << i % 8);
        put_file(&f, data, n);
        refuse(&f, "a flipped bit", i);
        data[i] ^= (char)(1 << i % 8);
        put_file(&f, data, i);
        refuse(&f, "an end", i);
    }
    data[n] = 0;
    put_file(&f, data, n + 1);
    refuse(&f, "a byte more", n);
    submit(&f, PERSONA + OWN, 20, false, 1);
    run_until_idle(f.g);
    struct engine_request r = greedy_request(f.prompt, PERSONA + OWN, 20, NULL);
    struct answer want;
    answer_expected(&f.model, &r, N_CTX, &want);
    assert_answer(&f.answers[1], &want);
    answer_release(&want);
    close_fixture(&f);
}

static void test_another_prompt_or_model(void **state)
{
    struct fixture f;
    struct err e = {0};
    uint64_t id;
    open_fixture(&f, true);
    write_persona(&f);
    f.spill.key = STR("fake 2");
    assert_int_equal(spill_read(&f.spill, f.path, &id, &e), ERR_EXISTS);
    f.spill.key = STR("fake 1");
    f.spill.prefix.n_tokens--;
    assert_int_equal(spill_read(&f.spill, f.path, &id, &e), ERR_EXISTS);
    f.spill.prefix.n_tokens++;
    f.prompt[5] ^= 1;
    assert_int_equal(spill_read(&f.spill, f.path, &id, &e), ERR_EXISTS);
    unlink(f.path);
    assert_int_equal(spill_read(&f.spill, f.path, &id, &e), ERR_NOTFOUND);
    close_fixture(&f);
}

static void test_a_full_disk(void **state)
{
    struct fixture f;
    struct err e = {0};
    int rc = ERR_IO, n = 0;
    open_fixture(&f, true);
    uint64_t id = pin_persona(&f);
    while (rc) {
        fault_set(FAULT_WRITE, ++n);
        rc = spill_write(&f.spill, id, f.path, &e);
        fault_set(FAULT_WRITE, 0);
        assert_true(rc == 0 || rc == ERR_IO);
        assert_int_equal(access(f.path, F_OK) == 0, rc == 0);
    }
    assert_int_equal(n, 1 + 2 * 3 + 1); /* the beginning, two for each block, none left */
    assert_int_equal(spill_write(&f.spill, id + 77, f.path, &e), ERR_CANCELED);
    close_fixture(&f);
}

static void test_no_room(void **state)
{
    struct fixture f;
    struct err e = {0};
    uint64_t id;
    open_fixture(&f, true);
    write_persona(&f);
    close_engine(&f);
    open_engine(&f, true, 2); /* of three */
    assert_int_equal(spill_read(&f.spill, f.path, &id, &e), ERR_LIMIT);
    close_engine(&f);
    open_engine(&f, true, 8);
    struct rng rng;
    int32_t other[N_CTX];
    rng_seed(&rng, 9);
    for (int i = 0; i < N_CTX; i++)
        other[i] = 2 + (int32_t)rng_below(&rng, FAKE_VOCAB - 2);
    struct answer busy[2] = {{{0}}};
    for (int i = 0; i < 2; i++) { /* 12 blocks each, of 24 */
        other[0] = 2 + i;
        struct engine_request r = greedy_request(other, 350, 30, &busy[i]);
        r.ignore_eos = true;
        assert_int_equal(engine_submit(f.g, &r, &id, &e), 0);
    }
    for (int i = 0; i < 15; i++)
        engine_step(f.g);
    assert_int_equal(spill_read(&f.spill, f.path, &id, &e), ERR_LIMIT);
    run_until_idle(f.g);
    assert_int_equal(pinned(&f), 0);
    assert_int_equal(spill_read(&f.spill, f.path, &id, &e), 0);
    assert_int_equal(pinned(&f), 3);
    for (int i = 0; i < 2; i++)
        answer_release(&busy[i]);
    close_fixture(&f);
}

/* ---- with threads ---- */

struct forgetting {
    struct engine *g;
    int asked, at; /* forgets everything when asked for the at-th time */
};

static bool forget_now(void *arg)
{
    struct forgetting *f = arg;
    if (++f->asked == f->at)
        engine_forget_all(f->g);
    return false;
}

static void wait_final(const struct answer *a)
{
    while (!__atomic_load_n(&a->n_finals, __ATOMIC_ACQUIRE))
        usleep(100);
}

/* Forgetting is seen at the next block, in and out; requests go on meanwhile. */
static void test_forgotten_on_the_way(void **state)
{
    struct fixture f;
    struct err e = {0};
    open_fixture(&f, false);
    uint64_t id = submit(&f, PERSONA, 1, true, 0), in;
    wait_final(&f.answers[0]);
    assert_int_equal(spill_write(&f.spill, id, f.path, &e), 0);
    submit(&f, PERSONA + OWN, 200, false, 1);
    for (int at = 1; at <= 3; at++) {
        struct forgetting forgetting = {f.g, 0, at};
        f.spill.gone = forget_now;
        f.spill.arg = &forgetting;
        assert_int_equal(spill_read(&f.spill, f.path, &in, &e), ERR_CANCELED);
    }
    f.spill.gone = NULL;
    assert_int_equal(spill_write(&f.spill, id, f.path, &e), ERR_CANCELED);
    assert_int_equal(spill_read(&f.spill, f.path, &in, &e), 0);
    engine_unpin(f.g, in);
    wait_final(&f.answers[1]);
    close_fixture(&f);
}

struct reader {
    struct fixture *f;
    atomic_int n_rounds;
    int rc;
};

static void *read_and_unpin(void *arg)
{
    struct reader *r = arg;
    struct err e = {0};
    uint64_t id;
    while (!(r->rc = spill_read(&r->f->spill, r->f->path, &id, &e))) {
        engine_unpin(r->f->g, id);
        r->n_rounds++;
    }
    return NULL;
}

/* The owner of an engine joins whoever may call it before it frees it; what it tells them meanwhile
 * is `gone`. */
static bool is_over(void *arg)
{
    return atomic_load((atomic_bool *)arg);
}

static void test_given_up(void **state)
{
    struct fixture f;
    struct err e = {0};
    atomic_bool over = false;
    struct reader reader = {&f, 0, 0};
    pthread_t thread;
    open_fixture(&f, false);
    uint64_t id = submit(&f, PERSONA, 1, true, 0);
    wait_final(&f.answers[0]);
    assert_int_equal(spill_write(&f.spill, id, f.path, &e), 0);
    f.spill.gone = is_over;
    f.spill.arg = &over;
    pthread_create(&thread, NULL, read_and_unpin, &reader);
    while (atomic_load(&reader.n_rounds) < 20)
        usleep(100);
    atomic_store(&over, true);
    pthread_join(thread, NULL);
    assert_int_equal(reader.rc, ERR_CANCELED);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_no_byte_may_change),
        cmocka_unit_test(test_another_prompt_or_model),
        cmocka_unit_test(test_a_full_disk),
        cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_forgotten_on_the_way),
        cmocka_unit_test(test_given_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
