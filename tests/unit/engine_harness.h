/* engine_harness.h - collects the events of an engine on a fake model, and says what each request
 * must give: computed from its own tokens, without any part of the engine. */
#pragma once

#include "fake_model.h"

enum { ANSWER_TOKENS = 512 };

struct answer {
    int32_t ids[ANSWER_TOKENS];
    int n_ids;
    struct buf text;
    struct buf stop_text;
    size_t n_unwatched; /* expected answers: text of the first min_tokens, where no stop counts */
    enum finish_reason finish;
    int stop_id;
    int n_finals, n_events;
    struct engine_usage usage;
    struct err err;
    struct token_logprob last_logprobs[21];
    int n_logprobs; /* rows seen */
};

void answer_release(struct answer *a);
void answer_clear(struct answer *a);

/* The sink: event.user is a struct answer. Checks what must hold for every event. */
void answer_sink(void *arg, struct engine_event *list);

/* A greedy request for the prompt that answers go on from. */
struct engine_request greedy_request(const int32_t *prompt, int n_prompt, int max_tokens,
                                     struct answer *a);

/* What a greedy request must give. */
void answer_expected(const struct fake_model *m, const struct engine_request *r, int n_ctx,
                     struct answer *out);

/* Whether tokens, text, finish and stop agree. */
bool answer_equal(const struct answer *got, const struct answer *want);

/* Fails the test unless they do. */
void assert_answer(const struct answer *got, const struct answer *want);

/* Steps a manual engine until it has nothing to do. Returns the steps. */
int run_until_idle(struct engine *g);
