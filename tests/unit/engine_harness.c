#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine_harness.h"

#include <string.h>

void answer_release(struct answer *a)
{
    buf_release(&a->text);
    buf_release(&a->stop_text);
}

void answer_clear(struct answer *a)
{
    answer_release(a);
    *a = (struct answer){0};
}

void answer_sink(void *arg, struct engine_event *list)
{
    for (const struct engine_event *ev = list; ev; ev = ev->next) {
        struct answer *a = ev->user;
        assert_int_equal(a->n_finals, 0);
        assert_int_equal(strlen(ev->text), ev->n_text);
        assert_true(utf8_valid(ev->text, ev->n_text));
        assert_true(a->n_ids + ev->n_ids <= ANSWER_TOKENS);
        assert_true(ev->finish || ev->n_ids || ev->n_text);
        memcpy(a->ids + a->n_ids, ev->ids, (size_t)ev->n_ids * sizeof *ev->ids);
        a->n_ids += ev->n_ids;
        buf_add(&a->text, ev->text, ev->n_text);
        a->n_events++;
        if (ev->n_logprobs >= 0 && ev->n_ids) {
            assert_non_null(ev->logprobs);
            a->n_logprobs += ev->n_ids;
            for (int i = 0; i < ev->n_ids; i++)
                assert_int_equal(ev->logprobs[i * (1 + ev->n_logprobs)].id, ev->ids[i]);
            memcpy(a->last_logprobs, ev->logprobs + (ev->n_ids - 1) * (1 + ev->n_logprobs),
                   (size_t)(1 + ev->n_logprobs) * sizeof *ev->logprobs);
        } else {
            assert_null(ev->logprobs);
        }
        if (!ev->finish)
            continue;
        a->finish = ev->finish;
        a->stop_id = ev->stop_id;
        a->usage = ev->usage;
        a->err = ev->err;
        if (ev->stop_text)
            buf_adds(&a->stop_text, ev->stop_text);
        assert_int_equal(ev->usage.completion_tokens, a->n_ids);
        /* the last word: a thread that sees it may read the rest */
        __atomic_store_n(&a->n_finals, 1, __ATOMIC_RELEASE);
    }
    engine_events_free(list);
}

struct engine_request greedy_request(const int32_t *prompt, int n_prompt, int max_tokens,
                                     struct answer *a)
{
    struct engine_request r = {
        .prompt = prompt, .n_prompt = n_prompt, .max_tokens = max_tokens, .user = a};
    sampling_default(&r.sampling);
    r.sampling.temperature = 0;
    return r;
}

static int32_t likeliest(const float *logits, bool no_eog)
{
    int32_t best = no_eog ? 1 : 0;
    for (int32_t i = best; i < FAKE_VOCAB; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* The first stop string to be complete in text from byte `from` on; the longest of equals. */
static const char *find_stop(const struct engine_request *r, const struct answer *a, size_t from,
                             size_t *at)
{
    const struct buf *text = &a->text;
    for (size_t end = from; end <= text->len; end++) {
        const char *found = NULL;
        for (int i = 0; i < r->n_stop; i++) {
            size_t n = strlen(r->stop[i]);
            if (a->n_unwatched + n <= end && memcmp(text->data + end - n, r->stop[i], n) == 0 &&
                (!found || n > strlen(found))) {
                found = r->stop[i];
                *at = end - n;
            }
        }
        if (found)
            return found;
    }
    return NULL;
}

static bool take_text(const struct engine_request *r, struct answer *out, size_t from)
{
    size_t at;
    if (out->n_ids <= r->min_tokens)
        out->n_unwatched = out->text.len;
    const char *stop = r->n_stop && out->text.len ? find_stop(r, out, from, &at) : NULL;
    if (!stop)
        return false;
    out->text.len = at + (r->include_stop ? strlen(stop) : 0);
    out->text.data[out->text.len] = 0;
    buf_adds(&out->stop_text, stop);
    out->finish = FINISH_STOP;
    return true;
}

void answer_expected(const struct fake_model *m, const struct engine_request *r, int n_ctx,
                     struct answer *out)
{
    int32_t tokens[4096];
    float logits[FAKE_VOCAB];
    struct tok_stream stream = {0};
    int n = r->n_prompt;
    int max = r->max_tokens < n_ctx - n ? r->max_tokens : n_ctx - n;
    *out = (struct answer){.stop_id = -1};
    memcpy(tokens, r->prompt, (size_t)n * sizeof *tokens);
    while (!out->finish) {
        fake_logits(m, tokens, n, logits);
        int32_t id = likeliest(logits, out->n_ids < r->min_tokens && !r->ignore_eos);
        tokens[n++] = out->ids[out->n_ids++] = id;
        if (id == FAKE_EOG && !r->ignore_eos && out->n_ids > r->min_tokens) {
            out->finish = FINISH_STOP;
        } else {
            size_t from = out->text.len + 1;
            tok_stream_add(&stream, fake_tokenizer(), id, r->special, &out->text);
            if (take_text(r, out, from))
                return;
        }
        if (!out->finish && out->n_ids == max)
            out->finish = FINISH_LENGTH;
    }
    size_t from = out->text.len + 1;
    tok_stream_end(&stream, &out->text);
    take_text(r, out, from);
}

bool answer_equal(const struct answer *got, const struct answer *want)
{
    return got->n_finals == 1 && got->finish == want->finish && got->n_ids == want->n_ids &&
           memcmp(got->ids, want->ids, (size_t)want->n_ids * sizeof *want->ids) == 0 &&
           strcmp(buf_str(&got->text), buf_str(&want->text)) == 0 &&
           strcmp(buf_str(&got->stop_text), buf_str(&want->stop_text)) == 0 &&
           got->stop_id == want->stop_id;
}

void assert_answer(const struct answer *got, const struct answer *want)
{
    assert_int_equal(got->n_finals, 1);
    assert_int_equal(got->finish, want->finish);
    assert_int_equal(got->n_ids, want->n_ids);
    assert_memory_equal(got->ids, want->ids, (size_t)want->n_ids * sizeof *want->ids);
    assert_string_equal(buf_str(&got->text), buf_str(&want->text));
    assert_string_equal(buf_str(&got->stop_text), buf_str(&want->stop_text));
    assert_int_equal(got->stop_id, want->stop_id);
}

int run_until_idle(struct engine *g)
{
    int n = 0;
    while (engine_step(g))
        n++;
    return n;
}
