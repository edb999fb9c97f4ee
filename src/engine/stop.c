#include "engine/stop.h"

#include <stdint.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/mem.h"

struct stop_string {
    char *text;
    size_t n;
    uint32_t *fail; /* [n]: length of the longest border of text[0..i] */
    size_t matched; /* how much of text the stream ends with */
};

static uint32_t *borders(const char *text, size_t n)
{
    uint32_t *fail = xcalloc(n, sizeof *fail);
    for (size_t i = 1, k = 0; i < n; i++) {
        while (k && text[i] != text[k])
            k = fail[k - 1];
        k += text[i] == text[k];
        fail[i] = (uint32_t)k;
    }
    return fail;
}

void stop_init(struct stop *s, const char *const *strings, int n)
{
    *s = (struct stop){.n = n};
    if (n)
        s->strings = xcalloc((size_t)n, sizeof *s->strings);
    for (int i = 0; i < n; i++) {
        size_t len = strlen(strings[i]);
        BUG_ON(len == 0);
        s->strings[i] = (struct stop_string){
            .text = xstrndup(strings[i], len), .n = len, .fail = borders(strings[i], len)};
    }
}

void stop_release(struct stop *s)
{
    for (int i = 0; i < s->n; i++) {
        free(s->strings[i].text);
        free(s->strings[i].fail);
    }
    free(s->strings);
    buf_release(&s->held);
    *s = (struct stop){0};
}

/* Takes one byte into the automaton of t; true when t is complete. */
static bool step(struct stop_string *t, char c)
{
    while (t->matched && t->text[t->matched] != c)
        t->matched = t->fail[t->matched - 1];
    t->matched += t->text[t->matched] == c;
    return t->matched == t->n;
}

int stop_feed(struct stop *s, struct str text, struct buf *out)
{
    if (!s->n) {
        buf_add(out, text.p, text.n);
        return -1;
    }
    for (size_t i = 0; i < text.n; i++) {
        int hit = -1;
        size_t longest = 0;
        for (int k = 0; k < s->n; k++) {
            struct stop_string *t = &s->strings[k];
            if (step(t, text.p[i]) && (hit < 0 || t->n > s->strings[hit].n))
                hit = k;
            longest = t->matched > longest ? t->matched : longest;
        }
        buf_addc(&s->held, text.p[i]);
        size_t keep = hit < 0 ? longest : s->strings[hit].n;
        size_t give = s->held.len - keep;
        buf_add(out, s->held.data, give);
        buf_consume(&s->held, give);
        if (hit >= 0) {
            buf_clear(&s->held);
            return hit;
        }
    }
    return -1;
}

void stop_flush(struct stop *s, struct buf *out)
{
    buf_add(out, buf_str(&s->held), s->held.len);
    buf_clear(&s->held);
}

struct str stop_string(const struct stop *s, int i)
{
    return (struct str){s->strings[i].text, s->strings[i].n};
}
