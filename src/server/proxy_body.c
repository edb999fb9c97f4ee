#include "server/proxy_body.h"

#include <stdlib.h>

#include "base/json.h"
#include "base/json_scan.h"
#include "base/mem.h"

enum { PREFIX_BYTES = 1024 }; /* of a prompt without messages */

bool proxy_body_read(struct proxy_body *b)
{
    static const char *const keys[] = {"model", "persona", "messages", "prompt"};
    struct str v[4];
    if (!json_scan(b->bytes, keys, v, 4))
        return false;
    b->model_at = v[0];
    b->persona_at = v[1];
    b->messages_at = v[2];
    b->prompt_at = v[3];
    return true;
}

struct str proxy_body_prefix(const struct proxy_body *b)
{
    struct str first = b->prompt_at;
    if (b->messages_at.p && !json_scan_first(b->messages_at, &first))
        return (struct str){NULL, 0};
    if (b->persona_at.p && b->messages)
        first = b->persona_at;
    if (!b->messages_at.p && first.n > PREFIX_BYTES)
        first.n = PREFIX_BYTES;
    return first;
}

struct upstream_request proxy_body_for(const struct proxy_body *b, enum upstream_api api,
                                       const char *model)
{
    return (struct upstream_request){
        .api = api,
        .endpoint = b->endpoint,
        .body = b->tree,
        .messages = b->messages,
        .model = model,
    };
}

static void add_quoted(struct buf *b, const char *text)
{
    struct jw w;
    jw_init(&w, b);
    jw_str(&w, text);
    jw_done(&w);
}

struct edit {
    struct str at; /* in the body */
    const char *text;
};

/* The client's bytes with some values replaced; edits may come in any order. */
static void apply_edits(struct buf *out, struct str body, struct edit *edits, size_t n)
{
    const char *from = body.p, *end = body.p + body.n;
    for (size_t done = 0; done < n; done++) {
        struct edit *next = NULL;
        for (size_t i = 0; i < n; i++)
            if (edits[i].at.p && edits[i].at.p >= from && (!next || edits[i].at.p < next->at.p))
                next = &edits[i];
        if (!next)
            break;
        buf_add(out, from, (size_t)(next->at.p - from));
        buf_adds(out, next->text);
        from = next->at.p + next->at.n;
    }
    buf_add(out, from, (size_t)(end - from));
}

/* The model under the name that the backend knows, and a persona's messages in their place. */
static void edit_bytes(const struct proxy_body *b, const char *model, struct buf *out)
{
    struct str given;
    bool same = json_scan_string(b->model_at, &given) && str_eqs(given, model);
    if (same && !b->messages)
        return;
    struct buf text = {0};
    char *messages = b->messages ? json_dumps(b->messages, JSON_COMPACT) : NULL;
    struct str open = {memchr(b->bytes.p, '{', b->bytes.n), 1};
    bool absent = !b->model_at.p;
    if (absent)
        buf_adds(&text, "{\"model\":");
    add_quoted(&text, model);
    if (absent)
        buf_addc(&text, ',');
    struct edit edits[] = {
        {absent ? open : b->model_at, buf_str(&text)},
        {messages ? b->messages_at : (struct str){NULL, 0}, messages},
        {messages ? b->persona_at : (struct str){NULL, 0}, "null"},
    };
    apply_edits(out, b->bytes, edits, ARRAY_LEN(edits));
    buf_release(&text);
    free(messages);
}

int proxy_body_write(const struct proxy_body *b, const struct upstream_request *q, struct buf *out,
                     struct err *e)
{
    if (q->api != UPSTREAM_OPENAI)
        return upstream_ask(out, q, e);
    edit_bytes(b, q->model, out);
    return 0;
}
