#include "gateway/auth.h"

#include <arpa/inet.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <xxhash.h>

#include "base/buf.h"
#include "base/mem.h"

enum {
    FAILURE_SLOTS = 4096, /* addresses that share one share its count: only failures suffer */
    FAILURE_WINDOW_S = 60,
};

/* A way to a key: by its digest, or by the one of before its rotation. */
struct entry {
    unsigned char digest[KEY_DIGEST_BYTES];
    int64_t until; /* 0: as long as the key */
    struct auth_key *key;
};

struct failures {
    uint64_t address; /* hash */
    int64_t since_s;
    int n;
};

struct auth {
    struct entry *entries; /* by digest; not part of core dumps */
    size_t n_entries, mapped;
    struct auth_key **keys;
    size_t n_keys;
    struct auth_stats stats;
    struct failures failures[FAILURE_SLOTS];
};

struct auth *auth_new(void)
{
    return xcalloc(1, sizeof(struct auth));
}

void auth_key_ref(struct auth_key *k)
{
    if (k)
        k->n_refs++;
}

void auth_key_unref(struct auth_key *k)
{
    if (!k || --k->n_refs > 0)
        return;
    key_release(&k->key);
    free(k);
}

static void drop_snapshot(struct auth *a)
{
    for (size_t i = 0; i < a->n_keys; i++)
        auth_key_unref(a->keys[i]);
    free(a->keys);
    if (a->entries) {
        explicit_bzero(a->entries, a->mapped);
        munmap(a->entries, a->mapped);
    }
    a->keys = NULL;
    a->entries = NULL;
    a->n_keys = a->n_entries = 0;
}

void auth_free(struct auth *a)
{
    if (!a)
        return;
    drop_snapshot(a);
    free(a);
}

static int by_digest(const void *a, const void *b)
{
    return memcmp(a, b, KEY_DIGEST_BYTES);
}

static void add_entry(struct auth *a, const unsigned char *digest, int64_t until,
                      struct auth_key *k)
{
    struct entry *n = &a->entries[a->n_entries++];
    memcpy(n->digest, digest, KEY_DIGEST_BYTES);
    n->until = until;
    n->key = k;
}

void auth_set_keys(struct auth *a, const struct key_list *keys)
{
    drop_snapshot(a);
    if (!keys->n)
        return;
    a->mapped = 2 * keys->n * sizeof *a->entries;
    a->entries = mmap(NULL, a->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (a->entries == MAP_FAILED)
        BUG("no memory for %zu keys", keys->n);
    madvise(a->entries, a->mapped, MADV_DONTDUMP);
    a->keys = xcalloc(keys->n, sizeof(struct auth_key *));
    for (size_t i = 0; i < keys->n; i++) {
        const struct key *k = &keys->keys[i];
        struct auth_key *mine = a->keys[a->n_keys++] = xcalloc(1, sizeof *mine);
        mine->n_refs = 1;
        key_copy(&mine->key, k);
        explicit_bzero(mine->key.digest, sizeof mine->key.digest);
        explicit_bzero(mine->key.old_digest, sizeof mine->key.old_digest);
        add_entry(a, k->digest, 0, mine);
        if (k->old_until)
            add_entry(a, k->old_digest, k->old_until, mine);
    }
    qsort(a->entries, a->n_entries, sizeof *a->entries, by_digest);
}

bool auth_closed(const struct auth *a)
{
    return a->n_keys > 0;
}

struct auth_stats auth_stats(const struct auth *a)
{
    return a->stats;
}

/* ---- failures by address ---- */

void auth_address(const char *peer, char out[48])
{
    struct in6_addr v6;
    if (strncmp(peer, "::ffff:", 7) == 0)
        peer += 7; /* an IPv4 address on a socket for both */
    if (inet_pton(AF_INET6, peer, &v6) == 1) {
        memset(v6.s6_addr + 8, 0, 8);
        inet_ntop(AF_INET6, &v6, out, 48);
        return;
    }
    snprintf(out, 48, "%.47s", peer);
}

/* Counts one failure; the seconds to wait if there were too many, else 0. */
static int count_failure(struct auth *a, const char *peer, int64_t now_s)
{
    char address[48];
    auth_address(peer, address);
    uint64_t hash = XXH3_64bits(address, strlen(address));
    struct failures *f = &a->failures[hash % FAILURE_SLOTS];
    if (f->address != hash || now_s - f->since_s >= FAILURE_WINDOW_S || now_s < f->since_s)
        *f = (struct failures){.address = hash, .since_s = now_s};
    if (f->n++ < AUTH_MAX_FAILURES)
        return 0;
    return (int)(f->since_s + FAILURE_WINDOW_S - now_s);
}

/* ---- the check ---- */

/* The first entry whose first eight bytes are not below those of the digest. */
static size_t first_at_least(const struct auth *a, const unsigned char *digest)
{
    size_t lo = 0, hi = a->n_entries;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (memcmp(a->entries[mid].digest, digest, 8) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static const struct entry *find(const struct auth *a, struct str secret)
{
    unsigned char digest[KEY_DIGEST_BYTES];
    const struct entry *found = NULL;
    key_digest(secret.p, secret.n, digest);
    for (size_t i = first_at_least(a, digest);
         i < a->n_entries && memcmp(a->entries[i].digest, digest, 8) == 0; i++)
        if (CRYPTO_memcmp(a->entries[i].digest, digest, sizeof digest) == 0)
            found = &a->entries[i];
    explicit_bzero(digest, sizeof digest);
    return found;
}

static int refuse(struct auth *a, const char *peer, int64_t now_s, uint64_t *counter, int *retry_s,
                  struct err *e)
{
    ++*counter;
    *retry_s = count_failure(a, peer, now_s);
    if (!*retry_s)
        return 401;
    a->stats.throttled++;
    err_set(e, ERR_DENIED, "too many attempts without a valid API key: try again in %d seconds",
            *retry_s);
    return 429;
}

static bool role_opens(enum role has, enum role need)
{
    return has == ROLE_ADMIN || has == need;
}

int auth_check(struct auth *a, enum role need, struct str secret, const char *peer, int64_t now_s,
               struct auth_key **out, int *retry_s, struct err *e)
{
    *out = NULL;
    *retry_s = 0;
    if (need == ROLE_PUBLIC || !auth_closed(a))
        return 0;
    if (!secret.p) {
        err_set(e, ERR_DENIED,
                "this service needs an API key: send the header 'Authorization: Bearer KEY'");
        return refuse(a, peer, now_s, &a->stats.missing, retry_s, e);
    }
    const struct entry *found = find(a, secret);
    struct auth_key *k = found ? found->key : NULL;
    if (!k || (found->until && now_s >= found->until) || k->key.revoked) {
        err_set(e, ERR_DENIED, "the API key is not valid");
        return refuse(a, peer, now_s, &a->stats.wrong, retry_s, e);
    }
    if (k->key.expires && now_s >= k->key.expires) {
        err_set(e, ERR_DENIED, "the API key has expired: ask for a new one");
        return refuse(a, peer, now_s, &a->stats.expired, retry_s, e);
    }
    auth_key_ref(k);
    *out = k;
    if (role_opens(k->key.role, need))
        return 0;
    a->stats.forbidden++;
    err_set(e, ERR_DENIED, "an API key with the role %s may not do this: it takes the role %s",
            role_names[k->key.role], role_names[need]);
    return 403;
}
