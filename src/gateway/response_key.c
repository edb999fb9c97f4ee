#include "gateway/response_key.h"

#include <openssl/evp.h>

#include "base/err.h"
#include "model/adapter.h"

void response_hash_begin(struct response_hash *h)
{
    h->n = 0;
    if (!h->ctx) {
        h->ctx = EVP_MD_CTX_new();
        BUG_ON(!h->ctx || EVP_DigestInit_ex(h->ctx, EVP_sha256(), NULL) != 1);
        return;
    }
    BUG_ON(EVP_DigestInit_ex(h->ctx, NULL, NULL) != 1); /* the same digest again */
}

void response_hash_release(struct response_hash *h)
{
    EVP_MD_CTX_free(h->ctx);
    *h = (struct response_hash){0};
}

static void flush(struct response_hash *h)
{
    BUG_ON(EVP_DigestUpdate(h->ctx, h->room, h->n) != 1);
    h->n = 0;
}

void response_hash_bytes(struct response_hash *h, const void *p, size_t n)
{
    if (n > sizeof h->room - h->n)
        flush(h);
    if (n > sizeof h->room) {
        BUG_ON(EVP_DigestUpdate(h->ctx, p, n) != 1);
    } else if (n) {
        memcpy(h->room + h->n, p, n);
        h->n += n;
    }
}

void response_hash_u64(struct response_hash *h, uint64_t v)
{
    response_hash_bytes(h, &v, sizeof v);
}

void response_hash_str(struct response_hash *h, struct str s)
{
    response_hash_u64(h, s.n);
    response_hash_bytes(h, s.p, s.n);
}

struct response_key response_hash_end(struct response_hash *h)
{
    struct response_key key;
    flush(h);
    BUG_ON(EVP_DigestFinal_ex(h->ctx, key.bytes, NULL) != 1);
    return key;
}

/* ---- requests ---- */

static void hash_float(struct response_hash *h, float v)
{
    v += 0.0F; /* -0 is 0 */
    response_hash_bytes(h, &v, sizeof v);
}

static void hash_draw(struct response_hash *h, const struct sampling *s)
{
    response_hash_u64(h, (uint64_t)s->top_k);
    hash_float(h, s->top_p);
    hash_float(h, s->min_p);
    hash_float(h, s->typical_p);
    response_hash_u64(h, s->has_seed);
    response_hash_u64(h, s->has_seed ? s->seed : 0);
}

static void hash_sampling(struct response_hash *h, const struct sampling *s)
{
    hash_float(h, s->temperature);
    hash_float(h, s->repetition_penalty);
    response_hash_u64(h, (uint64_t)s->repeat_last_n);
    hash_float(h, s->frequency_penalty);
    hash_float(h, s->presence_penalty);
    response_hash_u64(h, (uint64_t)(int64_t)s->n_logprobs);
    if (s->temperature > 0)
        hash_draw(h, s);
    response_hash_u64(h, (uint64_t)s->n_bias);
    for (int i = 0; i < s->n_bias; i++) {
        response_hash_u64(h, (uint64_t)s->bias[i].id);
        hash_float(h, s->bias[i].bias);
    }
}

static void hash_limits(struct response_hash *h, const struct engine_request *r)
{
    response_hash_u64(h, (uint64_t)r->max_tokens);
    response_hash_u64(h, (uint64_t)r->min_tokens);
    response_hash_u64(h, (uint64_t)(r->ignore_eos | r->include_stop << 1 | r->special << 2));
    response_hash_u64(h, (uint64_t)r->n_stop);
    for (int i = 0; i < r->n_stop; i++)
        response_hash_str(h, str_of(r->stop[i]));
    response_hash_u64(h, (uint64_t)r->n_stop_ids);
    response_hash_bytes(h, r->stop_ids, (size_t)r->n_stop_ids * sizeof *r->stop_ids);
}

void response_hash_request(struct response_hash *h, const struct engine_request *r)
{
    response_hash_u64(h, (uint64_t)r->n_prompt);
    response_hash_bytes(h, r->prompt, (size_t)r->n_prompt * sizeof *r->prompt);
    response_hash_u64(h, (uint64_t)r->n_adapters);
    for (int i = 0; i < r->n_adapters; i++) {
        response_hash_bytes(h, adapter_info(r->adapters[i].adapter)->digest, 32);
        hash_float(h, r->adapters[i].scale);
    }
    hash_sampling(h, &r->sampling);
    hash_limits(h, r);
}
