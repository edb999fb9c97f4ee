/* Any bytes as what a model wrote: the first picks the format, the second the size of the pieces.
 * The pieces do not matter, and without calls no byte is lost. */
#include <stdlib.h>
#include <string.h>

#include "chat/tool_parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void parse(struct tool_parse *p, enum tool_format format, const char *text, size_t n,
                  size_t piece, struct buf *out)
{
    tool_parse_init(p, format);
    for (size_t at = 0; at < n; at += piece)
        tool_parse_add(p, text + at, n - at < piece ? n - at : piece, out);
    tool_parse_end(p, out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 3)
        return 0;
    const char *text = (const char *)data + 2;
    enum tool_format format = data[0] % 4;
    struct tool_parse whole, pieces;
    struct buf a = {0}, b = {0};
    parse(&whole, format, text, n - 2, n, &a);
    parse(&pieces, format, text, n - 2, 1 + data[1] % 16, &b);
    if (whole.n_calls != pieces.n_calls || a.len != b.len ||
        memcmp(buf_str(&a), buf_str(&b), a.len) != 0)
        abort();
    for (size_t i = 0; i < whole.n_calls; i++)
        if (strcmp(whole.calls[i].name, pieces.calls[i].name) != 0 ||
            strcmp(whole.calls[i].arguments, pieces.calls[i].arguments) != 0)
            abort();
    if (!whole.n_calls && (a.len != n - 2 || memcmp(buf_str(&a), text, a.len) != 0))
        abort();
    tool_parse_release(&whole);
    tool_parse_release(&pieces);
    buf_release(&a);
    buf_release(&b);
    return 0;
}
