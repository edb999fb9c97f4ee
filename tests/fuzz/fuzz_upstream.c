/* Dialects of backends: a stream, an answer, an error, and a client's request on its way out. The
 * first byte picks which. What comes out is JSON, or whole events; however a stream is cut into
 * pieces, the same events come. */
#include <stdlib.h>
#include <string.h>

#include "api/upstream.h"
#include "base/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct openai_head head = {.id = "chatcmpl-1", .model = "m", .created = 1};

static void check_json(struct str text)
{
    json_t *v = jr_parse(text.p, text.n, NULL);
    BUG_ON(!json_is_object(v));
    json_decref(v);
}

static void check_events(const struct buf *out)
{
    const char *at = buf_str(out), *end;
    for (; (end = strstr(at, "\n\n")); at = end + 2) {
        BUG_ON(strncmp(at, "data: ", 6) != 0);
        struct str data = {at + 6, (size_t)(end - at - 6)};
        if (!str_eqs(data, OPENAI_DONE))
            check_json(data);
        else
            BUG_ON(end[2] != 0);
    }
    BUG_ON(*at != 0);
}

/* Takes the stream in pieces of n bytes. */
static bool take(const struct upstream_request *q, struct str text, size_t n, struct buf *out)
{
    struct openai_head h = head;
    struct err e = {0};
    h.endpoint = q->endpoint;
    struct upstream *u = upstream_new(q, &h);
    int rc = 0;
    for (size_t at = 0; at < text.n && !rc; at += n)
        rc = upstream_take(u, text.p + at, n < text.n - at ? n : text.n - at, out, &e);
    BUG_ON(rc && !e.msg[0]);
    check_events(out);
    upstream_free(u);
    return rc == 0;
}

static void try_stream(struct upstream_request q, struct str text, size_t n)
{
    json_t *body = json_pack("{s:b, s:{s:b}}", "stream", 1, "stream_options", "include_usage", 1);
    q.body = body;
    struct buf whole = {0}, pieces = {0};
    bool fine = take(&q, text, text.n ? text.n : 1, &whole), cut = take(&q, text, n, &pieces);
    BUG_ON(fine != cut);
    BUG_ON(whole.len != pieces.len || memcmp(buf_str(&whole), buf_str(&pieces), whole.len) != 0);
    buf_release(&whole);
    buf_release(&pieces);
    json_decref(body);
}

static void try_answer(const struct upstream_request *q, struct str text)
{
    struct openai_head h = head;
    struct buf out = {0}, error = {0};
    struct err e = {0};
    h.endpoint = q->endpoint;
    struct upstream *u = upstream_new(q, &h);
    if (upstream_answer(u, text, &out, &e) == 0)
        check_json((struct str){out.data, out.len});
    if (upstream_error(q->api, 400, text, &error))
        check_json((struct str){error.data, error.len});
    upstream_free(u);
    buf_release(&out);
    buf_release(&error);
}

static void try_ask(struct upstream_request q, struct str text)
{
    struct chat_request r = {0};
    struct err e = {0};
    if (openai_parse_any(&r, q.endpoint, text.p, text.n, &e) == 0) {
        struct buf out = {0};
        q.body = r.root;
        if (upstream_ask(&out, &q, &e) == 0)
            check_json((struct str){out.data, out.len});
        else
            BUG_ON(!e.msg[0] || out.len);
        buf_release(&out);
    }
    chat_request_release(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct str text = {(const char *)data + 1, size - 1};
    struct upstream_request q = {
        .api = data[0] & 1 ? UPSTREAM_OLLAMA : UPSTREAM_ANTHROPIC,
        .endpoint = data[0] & 2 ? OPENAI_COMPLETION : OPENAI_CHAT,
        .model = "up",
    };
    try_stream(q, text, 1 + (data[0] >> 3));
    try_answer(&q, text);
    try_ask(q, text);
    return 0;
}
