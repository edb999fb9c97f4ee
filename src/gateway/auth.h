/* auth.h - who is asking, and may they?
 *
 * The keys of the database as a snapshot that answers without touching it. Nothing that tells a key
 * from another is compared in a time that depends on its bytes: the key is hashed, the digest finds
 * its slot by its first bytes (which nobody can choose without finding a preimage), and the rest
 * is compared in constant time.
 *
 * Until there is a key, everybody may do everything: then the service listens on this machine only
 * or was told that it is insecure. Once a key was ever made the service stays closed, even when
 * every key is revoked.
 *
 * Failed attempts are counted by address; past AUTH_MAX_FAILURES in a minute they are answered with
 * 429. A good key is taken from any address at any time, so nobody can lock others out.
 *
 * Everything belongs to one thread, the server's. Keys are never logged. */
#pragma once

#include <stdint.h>

#include "base/str.h"
#include "store/keys.h"

enum { AUTH_MAX_FAILURES = 30 };

struct auth;

/* One key of the snapshot, counted, so that a request keeps its terms when the snapshot changes. */
struct auth_key {
    int n_refs;
    struct key key;
};

struct auth_stats {
    uint64_t missing, wrong, expired, forbidden, throttled;
};

struct auth *auth_new(void);
void auth_free(struct auth *a);

/* Takes the place of the snapshot. */
void auth_set_keys(struct auth *a, const struct key_list *keys);

bool auth_closed(const struct auth *a); /* there are keys, so one is needed */
struct auth_stats auth_stats(const struct auth *a);

/* Whether `secret` (p NULL: none was given) opens what asks for `need`. 0: yes; else the HTTP
 * status 401, 403 or 429, with e, and *retry_s for 429. *out is a reference for auth_key_unref to
 * the key if it is a good one (0 and 403), NULL if none was needed. now_s: Unix time. */
int auth_check(struct auth *a, enum role need, struct str secret, const char *peer, int64_t now_s,
               struct auth_key **out, int *retry_s, struct err *e);

void auth_key_ref(struct auth_key *k);
void auth_key_unref(struct auth_key *k); /* NULL is fine */

/* NULL: there is no key. */
static inline const char *key_tenant(const struct auth_key *k)
{
    return k ? k->key.tenant : NULL;
}

/* The address as limits count it: IPv4 as it is, IPv6 by its /64. */
void auth_address(const char *peer, char out[48]);
