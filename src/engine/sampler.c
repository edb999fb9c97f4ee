#include "engine/sampler.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"

void sampling_default(struct sampling *s)
{
    *s = (struct sampling){.temperature = 1,
                           .top_p = 1,
                           .typical_p = 1,
                           .repetition_penalty = 1,
                           .repeat_last_n = -1,
                           .n_logprobs = -1};
}

int sampling_check(const struct sampling *how, int n_vocab, struct err *e)
{
    const struct {
        const char *name;
        double value, min, max;
    } ranges[] = {
        {"temperature", how->temperature, 0, 100},
        {"top_k", how->top_k, 0, INT32_MAX},
        {"top_p", how->top_p, 1e-9, 1},
        {"min_p", how->min_p, 0, 1},
        {"typical_p", how->typical_p, 1e-9, 1},
        {"repetition_penalty", how->repetition_penalty, 1e-3, 100},
        {"repeat_last_n", how->repeat_last_n, -1, INT32_MAX},
        {"frequency_penalty", how->frequency_penalty, -100, 100},
        {"presence_penalty", how->presence_penalty, -100, 100},
        {"top_logprobs", how->n_logprobs, -1, 20},
    };
    for (size_t i = 0; i < ARRAY_LEN(ranges); i++)
        if (!(ranges[i].value >= ranges[i].min && ranges[i].value <= ranges[i].max))
            return err_param(e, ERR_INVALID, ranges[i].name, "%s must be %g to %g, not %g",
                             ranges[i].name, ranges[i].min, ranges[i].max, ranges[i].value);
    if (how->n_bias > n_vocab)
        return err_param(e, ERR_INVALID, "logit_bias", "there are only %d tokens", n_vocab);
    for (int i = 0; i < how->n_bias; i++) {
        if (how->bias[i].id < 0 || how->bias[i].id >= n_vocab)
            return err_param(e, ERR_INVALID, "logit_bias", "token id %d is not in 0 to %d",
                             how->bias[i].id, n_vocab - 1);
        if (!(how->bias[i].bias >= -1000 && how->bias[i].bias <= 1000))
            return err_param(e, ERR_INVALID, "logit_bias", "a bias must be -1000 to 1000, not %g",
                             (double)how->bias[i].bias);
    }
    return 0;
}

void sampler_init(struct sampler *s, int n_vocab)
{
    size_t n = (size_t)n_vocab;
    *s = (struct sampler){.n_vocab = n_vocab};
    s->cands = xcalloc(n, sizeof *s->cands);
    s->keys = xcalloc(n, sizeof *s->keys);
    s->raw = xcalloc(n, sizeof *s->raw);
    s->seen = xcalloc(n, sizeof *s->seen);
}

void sampler_release(struct sampler *s)
{
    free(s->cands);
    free(s->keys);
    free(s->raw);
    free(s->seen);
    *s = (struct sampler){0};
}

/* Changes to single logits. */

static uint32_t next_stamp(struct sampler *s)
{
    if (++s->stamp == 0) {
        memset(s->seen, 0, (size_t)s->n_vocab * sizeof *s->seen);
        s->stamp = 1;
    }
    return s->stamp;
}

static void penalize_repeats(struct sampler *s, float *logits, const struct sampler_task *t)
{
    const struct sampling *how = t->how;
    if (how->repetition_penalty == 1 || how->repeat_last_n == 0)
        return;
    int n = how->repeat_last_n < 0 || how->repeat_last_n > t->n_tokens ? t->n_tokens
                                                                       : how->repeat_last_n;
    uint32_t stamp = next_stamp(s);
    for (int i = t->n_tokens - n; i < t->n_tokens; i++) {
        int32_t id = t->tokens[i];
        if (s->seen[id] == stamp)
            continue;
        s->seen[id] = stamp;
        logits[id] = logits[id] < 0 ? logits[id] * how->repetition_penalty
                                    : logits[id] / how->repetition_penalty;
    }
}

static void penalize_output(struct sampler *s, float *logits, const struct sampler_task *t)
{
    const struct sampling *how = t->how;
    if (how->frequency_penalty == 0 && how->presence_penalty == 0)
        return;
    uint32_t stamp = next_stamp(s);
    for (int i = t->n_prompt; i < t->n_tokens; i++) {
        int32_t id = t->tokens[i];
        logits[id] -= how->frequency_penalty;
        if (s->seen[id] != stamp)
            logits[id] -= how->presence_penalty;
        s->seen[id] = stamp;
    }
}

static void adjust(struct sampler *s, float *logits, const struct sampler_task *t)
{
    for (int i = 0; i < t->how->n_bias; i++)
        logits[t->how->bias[i].id] += t->how->bias[i].bias;
    penalize_repeats(s, logits, t);
    penalize_output(s, logits, t);
    for (int i = 0; i < t->n_banned; i++)
        logits[t->banned[i]] = -INFINITY;
}

/* The largest logit (the first of equals); -1 when there is none or one is not a number. */
static int32_t argmax(const float *logits, int n)
{
    int32_t best = 0;
    bool sound = true;
    for (int i = 0; i < n; i++) {
        sound &= logits[i] < INFINITY; /* false for NaN too */
        if (logits[i] > logits[best])
            best = i;
    }
    return sound && logits[best] > -INFINITY ? best : -1;
}

/* Cuts. */

static bool before(const struct sampler_key *a, const struct sampler_key *b)
{
    return a->key < b->key || (a->key == b->key && a->id < b->id);
}

static void swap_keys(struct sampler_key *a, struct sampler_key *b)
{
    struct sampler_key t = *a;
    *a = *b;
    *b = t;
}

/* The last element of the shortest run, in order of (key, id), whose weight reaches `want`: a
 * quickselect by weight. keys is reordered so that the run is in front. */
static struct sampler_key select_run(struct sampler_key *keys, int n, double want)
{
    int lo = 0, hi = n - 1;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (before(&keys[mid], &keys[lo]))
            swap_keys(&keys[mid], &keys[lo]);
        if (before(&keys[hi], &keys[lo]))
            swap_keys(&keys[hi], &keys[lo]);
        if (before(&keys[mid], &keys[hi]))
            swap_keys(&keys[mid], &keys[hi]); /* the median of three is at hi */
        struct sampler_key pivot = keys[hi];
        double weight = 0;
        int at = lo;
        for (int i = lo; i < hi; i++)
            if (before(&keys[i], &pivot)) {
                weight += keys[i].weight;
                swap_keys(&keys[i], &keys[at++]);
            }
        swap_keys(&keys[at], &keys[hi]);
        if (weight >= want && at > lo) {
            hi = at - 1;
        } else if (weight + pivot.weight >= want || at == hi) {
            return keys[at];
        } else {
            want -= weight + pivot.weight;
            lo = at + 1;
        }
    }
    return keys[lo];
}

/* The k largest logits into cands, in order of id. One pass with a buffer that is cut back to k
 * whenever it is full; what is not above its k-th largest is skipped at once. */
static int take_top_k(struct sampler *s, const float *logits, int k)
{
    int room = k < s->n_vocab / 4 ? k * 2 + 256 : s->n_vocab;
    room = room < s->n_vocab ? room : s->n_vocab;
    int n = 0;
    float floor = -INFINITY;
    for (int32_t i = 0; i < s->n_vocab; i++) {
        if (!(logits[i] > floor))
            continue;
        if (n == room) {
            floor = -select_run(s->keys, n, k).key;
            n = k;
            if (!(logits[i] > floor))
                continue;
        }
        s->keys[n++] = (struct sampler_key){.key = -logits[i], .weight = 1, .id = i};
    }
    struct sampler_key last = {.key = INFINITY, .id = s->n_vocab};
    if (n > k)
        last = select_run(s->keys, n, k);
    int m = 0;
    for (int32_t i = 0; i < s->n_vocab; i++)
        if (logits[i] > -INFINITY &&
            (-logits[i] < last.key || (-logits[i] == last.key && i <= last.id)))
            s->cands[m++] = (struct sampler_cand){.id = i, .logit = logits[i]};
    return m;
}

static int take_all(struct sampler *s, const float *logits)
{
    int n = 0;
    for (int32_t i = 0; i < s->n_vocab; i++)
        if (logits[i] > -INFINITY)
            s->cands[n++] = (struct sampler_cand){.id = i, .logit = logits[i]};
    return n;
}

static void softmax(struct sampler_cand *c, int n, float max, float temperature)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        c[i].p = expf((c[i].logit - max) / temperature);
        sum += c[i].p;
    }
    for (int i = 0; i < n; i++)
        c[i].p /= sum;
}

/* Keeps the candidates that come first by s->keys (the caller's) and together have `mass`; with
 * `ties` also all whose key is that of the last one. */
static int keep_mass(struct sampler *s, int n, double mass, bool ties)
{
    struct sampler_key last = select_run(s->keys, n, mass);
    if (ties)
        last.id = s->n_vocab;
    next_stamp(s);
    for (int i = 0; i < n; i++) /* the selection moved the keys: mark what is in the run */
        s->seen[s->keys[i].id] = before(&last, &s->keys[i]) ? 0 : s->stamp;
    int m = 0;
    for (int i = 0; i < n; i++)
        if (s->seen[s->cands[i].id] == s->stamp)
            s->cands[m++] = s->cands[i];
    return m;
}

/* Locally typical sampling (Meister et al., 2022): nearest to the entropy first. */
static int cut_typical(struct sampler *s, int n, float max, double mass)
{
    double entropy = 0;
    softmax(s->cands, n, max, 1);
    for (int i = 0; i < n; i++)
        entropy -= s->cands[i].p > 0 ? s->cands[i].p * log(s->cands[i].p) : 0;
    for (int i = 0; i < n; i++) {
        const struct sampler_cand *c = &s->cands[i];
        s->keys[i] = (struct sampler_key){
            .key = (float)fabs(-log(c->p) - entropy), .weight = (float)c->p, .id = c->id};
    }
    return keep_mass(s, n, mass, true);
}

/* Nucleus sampling (Holtzman et al., 2020): likeliest first. */
static int cut_top_p(struct sampler *s, int n, float max, double mass)
{
    softmax(s->cands, n, max, 1);
    for (int i = 0; i < n; i++) {
        const struct sampler_cand *c = &s->cands[i];
        s->keys[i] = (struct sampler_key){.key = -c->logit, .weight = (float)c->p, .id = c->id};
    }
    return keep_mass(s, n, mass, false);
}

static int cut_min_p(struct sampler *s, int n, float max, float min_p)
{
    float floor = max + logf(min_p);
    int m = 0;
    for (int i = 0; i < n; i++)
        if (s->cands[i].logit >= floor)
            s->cands[m++] = s->cands[i];
    return m;
}

static float largest(const struct sampler_cand *c, int n)
{
    float max = c[0].logit;
    for (int i = 1; i < n; i++)
        max = c[i].logit > max ? c[i].logit : max;
    return max;
}

int sampler_cut(struct sampler *s, float *logits, const struct sampler_task *t)
{
    const struct sampling *how = t->how;
    adjust(s, logits, t);
    int32_t best = argmax(logits, s->n_vocab);
    if (best < 0)
        return -1;
    if (how->temperature == 0) {
        s->cands[0] = (struct sampler_cand){.id = best, .logit = logits[best], .p = 1};
        return 1;
    }
    float max = logits[best];
    int n = how->top_k > 0 && how->top_k < s->n_vocab ? take_top_k(s, logits, how->top_k)
                                                      : take_all(s, logits);
    if (how->typical_p < 1) {
        n = cut_typical(s, n, max, how->typical_p);
        max = largest(s->cands, n); /* the likeliest may be the least typical */
    }
    if (how->top_p < 1)
        n = cut_top_p(s, n, max, how->top_p);
    if (how->min_p > 0)
        n = cut_min_p(s, n, max, how->min_p);
    softmax(s->cands, n, max, how->temperature);
    return n;
}

static int32_t draw(const struct sampler *s, int n, struct rng *rng)
{
    double u = rng_double(rng);
    int32_t id = s->cands[0].id;
    for (int i = 0; i < n && u >= 0; i++) {
        if (s->cands[i].p > 0) /* rounding may leave u at the end: never a token without weight */
            id = s->cands[i].id;
        u -= s->cands[i].p;
    }
    return id;
}

/* Log-probabilities of `raw`: the chosen token, then the n likeliest. */
static void report(const float *raw, int n_vocab, int32_t chosen, struct token_logprob *out, int n)
{
    float max = raw[0];
    for (int i = 1; i < n_vocab; i++)
        max = raw[i] > max ? raw[i] : max;
    double sum = 0;
    for (int i = 0; i < n_vocab; i++)
        sum += expf(raw[i] - max);
    float norm = max + (float)log(sum);
    out[0] = (struct token_logprob){.id = chosen, .logprob = raw[chosen] - norm};
    struct token_logprob *top = out + 1;
    int have = 0;
    for (int32_t i = 0; i < n_vocab; i++) {
        float lp = raw[i] - norm;
        if (have == n && (n == 0 || lp <= top[n - 1].logprob))
            continue;
        int at = have < n ? have++ : n - 1;
        for (; at > 0 && top[at - 1].logprob < lp; at--)
            top[at] = top[at - 1];
        top[at] = (struct token_logprob){.id = i, .logprob = lp};
    }
    for (; have < n; have++)
        top[have] = (struct token_logprob){.id = -1, .logprob = -INFINITY};
}

int32_t sampler_pick(struct sampler *s, float *logits, const struct sampler_task *t,
                     struct token_logprob *logprobs)
{
    int n_logprobs = t->how->n_logprobs;
    if (n_logprobs >= 0)
        memcpy(s->raw, logits, (size_t)s->n_vocab * sizeof *s->raw);
    int n = sampler_cut(s, logits, t);
    if (n < 0)
        return -1;
    int32_t id = t->how->temperature == 0 ? s->cands[0].id : draw(s, n, t->rng);
    if (n_logprobs >= 0)
        report(s->raw, s->n_vocab, id, logprobs, n_logprobs);
    return id;
}
