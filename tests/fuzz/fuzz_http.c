/* Requests on one connection. However the bytes are cut, the parser must tell the same story. The
 * first byte seeds the cuts. */
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/rng.h"
#include "http/http_parse.h"

static void tell_str(struct buf *story, struct str s)
{
    buf_addf(story, "%zu:", s.n);
    buf_add(story, s.p, s.n);
    buf_addc(story, '\n');
}

static void tell_head(struct buf *story, const struct http_parse *p)
{
    tell_str(story, p->method);
    tell_str(story, p->path);
    tell_str(story, p->query);
    for (size_t i = 0; i < p->n_headers; i++) {
        tell_str(story, p->headers[i].name);
        tell_str(story, p->headers[i].value);
    }
    buf_addf(story, "length %lld, 1.0 %d, keep %d, expect %d\n", (long long)p->content_length,
             p->http10, p->keep_alive, p->expect_continue);
}

/* Each call sees a copy that ends at the allocation's edge, so that a look past the end is found.
 */
static size_t step(struct http_parse *p, const uint8_t *data, size_t n, enum http_parse_event *ev,
                   struct buf *body)
{
    char *copy = malloc(n ? n : 1);
    memcpy(copy, data, n);
    size_t used = http_parse(p, copy, n, ev);
    BUG_ON(used > n);
    if (*ev == HTTP_PARSE_DATA)
        buf_add(body, p->data.p, p->data.n);
    free(copy);
    return used;
}

static void run(const uint8_t *data, size_t n, struct rng *cuts, struct buf *story)
{
    struct arena arena = {0};
    struct http_parse p;
    struct buf body = {0};
    enum http_parse_event ev = HTTP_PARSE_MORE;
    http_parse_init(&p, 200, 8, &arena); /* small, to be met */
    for (size_t at = 0, end = cuts ? 0 : n; ev != HTTP_PARSE_ERROR;) {
        if (ev == HTTP_PARSE_MORE && at == end && cuts)
            end += n == end ? 0 : 1 + rng_below(cuts, n - end < 9 ? n - end : 9);
        bool last = at == end && end == n && ev == HTTP_PARSE_MORE;
        at += step(&p, data + at, end - at, &ev, &body);
        BUG_ON(ev == HTTP_PARSE_MORE && at != end);
        if (ev == HTTP_PARSE_HEAD) {
            tell_head(story, &p);
            if (!http_parse_limit_body(&p, 40))
                break;
        } else if (ev == HTTP_PARSE_END) {
            tell_str(story, (struct str){buf_str(&body), body.len});
            buf_addf(story, "end at %zu\n", at);
            buf_clear(&body);
            http_parse_reset(&p);
            arena_release(&arena);
            ev = HTTP_PARSE_MORE;
        }
        if (last)
            break;
    }
    tell_str(story, (struct str){buf_str(&body), body.len});
    if (ev == HTTP_PARSE_ERROR)
        buf_addf(story, "%d %s\n", p.status, p.reason);
    buf_release(&body);
    http_parse_release(&p);
    arena_release(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (!n)
        return 0;
    struct rng cuts;
    struct buf whole = {0}, pieces = {0};
    rng_seed(&cuts, data[0]);
    run(data + 1, n - 1, NULL, &whole);
    run(data + 1, n - 1, &cuts, &pieces);
    BUG_ON(strcmp(buf_str(&whole), buf_str(&pieces)) != 0 || whole.len != pieces.len);
    buf_release(&whole);
    buf_release(&pieces);
    return 0;
}
