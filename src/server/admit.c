/* admit.c - the stages of a job that look at its key: what it may use, and whether the limits have
 * room for its tokens; and the bill at its end. */
#include "base/mem.h"
#include "server/bill.h"
#include "server/job.h"
#include "server/router.h"

enum { ASSUMED_ANSWER_TOKENS = 4096 }; /* where a request does not say how long it may be */

/* ---- what the key may use ---- */

static enum job_step forbidden(struct job *j, const char *field, const char *name)
{
    err_param(&j->err, ERR_DENIED, field, "this API key may not use the %s `%.128s`", field, name);
    return job_refuse(j, 403, "not_allowed");
}

/* Before the model is loaded, if its name is that of one; job_admit knows for sure. Only a backend
 * knows its models, so their names are as the client gave them. */
enum job_step job_permit(struct job *j)
{
    const struct key *k = j->bill && j->bill->key ? &j->bill->key->key : NULL;
    if (!k)
        return JOB_GO;
    if (j->proxied)
        return key_allows(k->models, j->req.model) ? JOB_GO : forbidden(j, "model", j->req.model);
    const struct served *m = j->model ? j->model : served_find(j->server, j->req.model);
    if (m && !key_allows(k->models, m->name))
        return forbidden(j, "model", m->name);
    const char *adapter = job_forbidden_adapter(j, k->adapters);
    return adapter ? forbidden(j, "adapter", adapter) : JOB_GO;
}

const char *job_tenant(const struct job *j)
{
    const char *tenant = j->bill ? key_tenant(j->bill->key) : NULL;
    return tenant ? tenant : "";
}

/* ---- tokens ---- */

/* Counted if the prompts were made here, else estimated. */
static int64_t prompt_tokens(const struct job *j)
{
    int64_t sum = 0;
    for (int i = 0; i < j->n_prompts; i++)
        sum += (int64_t)j->prompts[i].n;
    return j->prompts ? sum : router_prompt_tokens(j);
}

/* The longest answer that the context leaves. */
static int64_t longest_answer(const struct job *j)
{
    int64_t longest = j->prompts ? 1 : INT32_MAX;
    for (int i = 0; i < j->n_prompts; i++) {
        int64_t left = j->model->model.n_ctx - (int64_t)j->prompts[i].n;
        longest = left > longest ? left : longest;
    }
    return longest;
}

/* The most that the request may come to. Who does not say how long the answer may be is not
 * refused for it: then it is what a minute's limit leaves. */
static int64_t tokens_to_reserve(const struct job *j)
{
    const struct limit_hold *h = &j->bill->hold;
    int64_t prompt = prompt_tokens(j), longest = longest_answer(j);
    int64_t n = (int64_t)(j->req.n_prompts ? j->req.n_prompts : 1) * j->req.gen.n;
    if (j->req.gen.max_tokens)
        return prompt + n * (j->req.gen.max_tokens < longest ? j->req.gen.max_tokens : longest);
    int64_t answer = longest < ASSUMED_ANSWER_TOKENS ? longest : ASSUMED_ANSWER_TOKENS;
    for (int i = 0; i < h->n_subjects; i++) {
        int64_t tpm = h->subjects[i].quota.tokens_per_minute;
        if (tpm && n * answer > tpm - prompt)
            answer = tpm > prompt ? (tpm - prompt) / n : 0;
    }
    return prompt + n * (answer > 0 ? answer : 1);
}

static void tokens_answered(struct limit_ask *ask)
{
    struct bill *b = (struct bill *)((char *)ask - offsetof(struct bill, ask));
    b->answered = true;
    waiters_wake(&b->waiting, NULL);
}

static enum job_step refuse(struct job *j)
{
    struct bill *b = j->bill;
    j->code = limits_explain(&b->ask, &j->err);
    j->server->metrics.limited++;
    j->retry_ms = b->ask.retry_ms;
    return job_refuse(j, 429, j->code);
}

enum job_step job_admit(struct job *j)
{
    struct bill *b = j->bill;
    if (job_permit(j))
        return JOB_FAILED;
    if (b)
        b->admitted = true;
    if (!b || !b->hold.n_subjects || b->hold.tokens) /* another tier tries what was admitted */
        return JOB_GO;
    if (!b->answered) {
        b->ask = (struct limit_ask){.hold = &b->hold,
                                    .at = {clock_ms(), clock_unix_s()},
                                    .tokens = tokens_to_reserve(j),
                                    .done = tokens_answered};
        limits_take(j->server->limits, &b->ask);
    }
    if (!b->answered) {
        waiters_add(&b->waiting, &j->waiter);
        return JOB_WAIT;
    }
    b->answered = false;
    bill_tell_room(b);
    return b->ask.refused ? refuse(j) : JOB_GO;
}

struct openai_usage job_spent(const struct job *j)
{
    struct openai_usage u = j->backend[0] ? j->remote : job_usage(j);
    if (j->backend[0] && u.completion_tokens && !u.prompt_tokens)
        u.prompt_tokens = (int)router_prompt_tokens(j);
    return u;
}

void job_bill(struct job *j)
{
    struct openai_usage u = job_spent(j);
    const struct tier *tier = router_tier(j);
    struct bill_counts c = {
        .model = j->model                        ? j->model->name
                 : j->backend[0] && j->req.model ? j->req.model
                                                 : "",
        .tier = tier ? tier->name : "",
        .prompt_tokens = u.prompt_tokens,
        .cached_tokens = u.cached_tokens,
        .completion_tokens = u.completion_tokens,
    };
    bill_close(j->bill, &c);
    j->bill = NULL;
}
