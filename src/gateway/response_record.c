#include "gateway/response_record.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/mem.h"

struct head {
    uint32_t bytes; /* of all of the event */
    int32_t choice;
    uint32_t n_text, n_stop_text; /* n_stop_text counts the NUL, 0: none */
    int32_t n_ids, n_logprobs;    /* n_logprobs -1: none */
    int32_t finish, stop_id;
};

static_assert(sizeof(struct head) == 32, "records are walked by offset");
static_assert(sizeof(struct token_logprob) == 8, "two words, no hole");

static size_t padded(size_t n)
{
    return (n + 7) & ~(size_t)7;
}

void response_record_add(struct response_record *r, int choice, const struct engine_event *ev)
{
    BUG_ON(ev->finish > FINISH_LENGTH);
    struct head h = {
        .choice = choice,
        .n_text = (uint32_t)ev->n_text,
        .n_stop_text = ev->stop_text ? (uint32_t)strlen(ev->stop_text) + 1 : 0,
        .n_ids = ev->n_ids,
        .n_logprobs = ev->logprobs ? ev->n_logprobs : -1,
        .finish = (int32_t)ev->finish,
        .stop_id = ev->stop_id,
    };
    size_t ids = (size_t)ev->n_ids * sizeof *ev->ids;
    size_t logprobs = (size_t)ev->n_ids * (size_t)(1 + h.n_logprobs) * sizeof *ev->logprobs;
    size_t usage = ev->finish ? sizeof ev->usage : 0;
    size_t n = padded(sizeof h + usage + logprobs + ids + ev->n_text + 1 + h.n_stop_text);
    BUG_ON(n > UINT32_MAX); /* an event is a few tokens */
    h.bytes = (uint32_t)n;
    char *p = buf_reserve(&r->bytes, n);
    memset(p + n - 8, 0, 9); /* the padding, and the NUL that a buf ends with */
    memcpy(p, &h, sizeof h);
    p += sizeof h;
    p = (char *)memcpy(p, &ev->usage, usage) + usage;
    if (logprobs)
        p = (char *)memcpy(p, ev->logprobs, logprobs) + logprobs;
    if (ids)
        p = (char *)memcpy(p, ev->ids, ids) + ids;
    memcpy(p, ev->text, ev->n_text); /* whose NUL may be somebody else's byte */
    p[ev->n_text] = 0;
    if (h.n_stop_text)
        memcpy(p + ev->n_text + 1, ev->stop_text, h.n_stop_text);
    r->bytes.len += n;
}

size_t response_record_read(const struct response_record *r, size_t at, int *choice,
                            struct engine_event *ev)
{
    struct head h;
    if (at >= r->bytes.len)
        return 0;
    char *p = r->bytes.data + at;
    memcpy(&h, p, sizeof h);
    p += sizeof h;
    *choice = h.choice;
    *ev = (struct engine_event){.n_text = h.n_text,
                                .n_ids = h.n_ids,
                                .finish = (enum finish_reason)h.finish,
                                .stop_id = h.stop_id};
    if (h.finish) {
        memcpy(&ev->usage, p, sizeof ev->usage);
        p += sizeof ev->usage;
    }
    if (h.n_logprobs >= 0) {
        ev->logprobs = (const struct token_logprob *)(void *)p;
        ev->n_logprobs = h.n_logprobs;
        p += (size_t)h.n_ids * (size_t)(1 + h.n_logprobs) * sizeof *ev->logprobs;
    }
    ev->ids = (const int32_t *)(void *)p;
    p += (size_t)h.n_ids * sizeof *ev->ids;
    ev->text = p;
    ev->stop_text = h.n_stop_text ? p + h.n_text + 1 : NULL;
    return at + h.bytes;
}

void response_record_drop(struct response_record *r, size_t n)
{
    buf_consume(&r->bytes, n);
    if (!r->bytes.len)
        buf_release(&r->bytes);
}

size_t response_record_bytes(const struct response_record *r)
{
    return r->bytes.cap;
}

void response_record_trim(struct response_record *r)
{
    if (r->bytes.cap > r->bytes.len + 1) {
        r->bytes.data = xrealloc(r->bytes.data, r->bytes.len + 1);
        r->bytes.cap = r->bytes.len + 1;
    }
}

void response_record_release(struct response_record *r)
{
    buf_release(&r->bytes);
}
