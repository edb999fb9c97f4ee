#include "store/keys.h"

#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

const char *const role_names[] = {
    [ROLE_ADMIN] = "admin",
    [ROLE_METRICS] = "metrics",
    [ROLE_USER] = "user",
    [ROLE_PUBLIC] = NULL,
};

/* ---- values ---- */

void key_release(struct key *k)
{
    if (!k)
        return;
    free(k->name);
    free(k->tenant);
    free(k->models);
    free(k->tiers);
    free(k->adapters);
    *k = (struct key){0};
}

void key_list_release(struct key_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        key_release(&l->keys[i]);
    free(l->keys);
    *l = (struct key_list){0};
}

void key_copy(struct key *out, const struct key *k)
{
    *out = *k;
    out->name = xstrdup(k->name);
    out->tenant = xstrdup(k->tenant);
    out->models = xstrdup(k->models);
    out->tiers = xstrdup(k->tiers);
    out->adapters = xstrdup(k->adapters);
}

void key_digest(const void *text, size_t n, unsigned char out[KEY_DIGEST_BYTES])
{
    SHA256(text, n, out);
}

/* ---- patterns ---- */

/* One pattern against all of a name; a '*' that fails is tried again one character further on, and
 * only the latest needs that. */
static bool matches(struct str pattern, const char *name)
{
    size_t p = 0, star = SIZE_MAX;
    const char *again = NULL;
    while (*name) {
        if (p < pattern.n && pattern.p[p] == '*') {
            star = p++;
            again = name;
        } else if (p < pattern.n && (pattern.p[p] == '?' || pattern.p[p] == *name)) {
            p++;
            name++;
        } else if (again) {
            p = star + 1;
            name = ++again;
        } else {
            return false;
        }
    }
    while (p < pattern.n && pattern.p[p] == '*')
        p++;
    return p == pattern.n;
}

bool key_allows(const char *patterns, const char *name)
{
    if (!*patterns)
        return true;
    for (const char *p = patterns;; p++) {
        size_t n = strcspn(p, ",");
        if (n && matches((struct str){p, n}, name))
            return true;
        p += n;
        if (!*p)
            return false;
    }
}
