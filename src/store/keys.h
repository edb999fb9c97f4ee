/* keys.h - API keys: who may use the service, for what, and how much.
 *
 * A key is "tk-" and 43 characters that hold 256 random bits. The database keeps its SHA-256 digest
 * and its first characters, never the key itself. A plain digest is enough: slow hashes slow down
 * guessing, and nobody guesses 256 bits.
 *
 * Whoever has the file of the database can list and change keys: the command line works on it
 * directly, and a server that runs notices by db_version.
 *
 * Functions run in a transaction of their own; any thread, but not an event loop. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct db;

/* What a route asks for and a key has. What was left out is the strictest. */
enum role {
    ROLE_ADMIN,   /* everything */
    ROLE_METRICS, /* /metrics only */
    ROLE_USER,    /* generate, and see its tenant's own */
    ROLE_PUBLIC,  /* of routes only: anybody */
};
extern const char *const role_names[]; /* by enum role, ends with NULL */

enum {
    KEY_DIGEST_BYTES = 32,
    KEY_TEXT_BYTES = 3 + 43,   /* of a key, without the NUL */
    KEY_PREFIX_BYTES = 3 + 8,  /* of what is shown of it */
    KEY_NAME_BYTES = 64,       /* of name and tenant: letters, digits and . _ - @ + */
    KEY_PATTERNS_BYTES = 1024, /* of each list of patterns */
    KEY_MAX = 100000,
};

/* Per minute, at once, per day (UTC). 0: no limit. */
struct quota {
    int64_t requests_per_minute, tokens_per_minute, concurrency, tokens_per_day;
};

/* Strings are owned. Lists of patterns: separated by commas, '*' and '?' as in file names, "" for
 * everything. Times are Unix seconds, 0: never. */
struct key {
    int64_t id;
    char *name;
    char *tenant; /* whose cache, personas and usage it shares */
    enum role role;
    char *models, *tiers, *adapters;
    struct quota quota;
    int64_t created, expires, revoked, last_used;
    char prefix[KEY_PREFIX_BYTES + 1];
    unsigned char digest[KEY_DIGEST_BYTES];
    unsigned char old_digest[KEY_DIGEST_BYTES]; /* of before the rotation, good until: */
    int64_t old_until;
};

/* What a new key is to be. NULL strings are "", the tenant is "default". */
struct key_spec {
    const char *name, *tenant;
    enum role role;
    const char *models, *tiers, *adapters;
    struct quota quota;
    int64_t expires;
};

struct key_list {
    struct key *keys; /* by id */
    size_t n;
};

void key_release(struct key *k);
void key_list_release(struct key_list *l);
void key_copy(struct key *out, const struct key *k);

/* The digest that stands for a key in the database. */
void key_digest(const void *text, size_t n, unsigned char out[KEY_DIGEST_BYTES]);

/* 1 to KEY_NAME_BYTES letters, digits and . _ - @ +: a name of a key or tenant. */
bool key_name_ok(const char *name);

/* Whether `name` matches one of the patterns; "" matches everything. */
bool key_allows(const char *patterns, const char *name);

/* Makes a key and writes its text to secret: the only time that anybody sees it. ERR_INVALID names
 * the field; ERR_EXISTS: a key that is in use has this name. */
int keys_create(struct db *d, const struct key_spec *spec, char secret[KEY_TEXT_BYTES + 1],
                int64_t *id, struct err *e);

/* All of them, revoked ones too. */
int keys_list(struct db *d, struct key_list *out, struct err *e);

/* The key that `ref` names: its id, its name (one in use before revoked ones) or its prefix.
 * ERR_NOTFOUND. */
int keys_find(struct db *d, const char *ref, struct key *out, struct err *e);

/* From now on it opens nothing. The row stays, for the books. ERR_NOTFOUND. */
int keys_revoke(struct db *d, const char *ref, struct err *e);

/* A new text for the same key; the old one still opens for grace_s seconds. ERR_NOTFOUND;
 * ERR_INVALID: it was revoked. */
int keys_rotate(struct db *d, const char *ref, int64_t grace_s, char secret[KEY_TEXT_BYTES + 1],
                struct err *e);
