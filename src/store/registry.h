/* registry.h - which adapters there are: names, versions, aliases, and whose they are.
 *
 * An adapter is a name with versions. A version is one content, known by its digest, in a folder or
 * file that stays where it is: nothing is copied, and who loads a version compares the digest, so
 * changed or half-written files are never served under an old version. Who wants to roll back keeps
 * each version in a folder of its own. A name stands for its current version; putting another
 * version there, and rolling back, is one change.
 *
 * A reference, as requests write it, is one of
 *     NAME             its current version
 *     NAME@3           that version
 *     ALIAS            "support@prod": what the alias points to
 *     BASE:NAME ...    the same, said to be for that base model
 *
 * Everything is kept in memory too and read from there. Functions that read never wait for the
 * disk. Functions that change (marked *) return when the change is durable: not for event loops.
 * Any thread; changes come one after the other. On error nothing has changed. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct db;
struct registry;

enum {
    REGISTRY_NAME_BYTES = 128,
    REGISTRY_USER_BYTES = 256,
    REGISTRY_LABELS_BYTES = 4096,
    REGISTRY_MAX_VERSIONS = 64, /* of a name; the oldest that nothing points to make room */
    REGISTRY_MAX_NAMES = 100000,
    REGISTRY_DIGEST_BYTES = 32,
};

/* d outlives the registry. ERR_* of db.h. */
int registry_open(struct registry **out, struct db *d, struct err *e);
void registry_close(struct registry *r);

/* ---- reading ---- */

struct registry_version {
    int version; /* 1, 2 ...; never given out twice under a name */
    uint8_t digest[REGISTRY_DIGEST_BYTES];
    char *format;     /* "peft" or "gguf" */
    char *trained_on; /* what the adapter says about its base, may be "" */
    char *source;     /* absolute path */
    int rank;
    uint64_t bytes; /* resident */
    int64_t created_unix_s;
};

struct registry_entry {
    char *name;
    char *base; /* the model it is for, as it is served */
    char *owner;
    char *labels; /* a JSON object of strings */
    bool pinned;  /* its current version stays in memory */
    int current;
    int64_t created_unix_s, last_used_unix_s; /* 0: never */
    uint64_t uses;
    struct registry_version *versions; /* oldest first */
    size_t n_versions;
};

/* A copy for the caller. ERR_NOTFOUND. */
int registry_find(struct registry *r, const char *name, struct registry_entry *out, struct err *e);
void registry_entry_release(struct registry_entry *x);

/* The version of that number, or NULL; 0: the current one. */
const struct registry_version *registry_version_of(const struct registry_entry *x, int version);

size_t registry_count(struct registry *r); /* names */

struct registry_list {
    struct registry_entry *entries; /* by name */
    size_t n;
};
void registry_list(struct registry *r, struct registry_list *out);
void registry_list_release(struct registry_list *l);

struct registry_link {
    char *from; /* an alias, or a user */
    char *base; /* of a user's: for that model; of an alias: "" */
    char *name;
    int version; /* 0: whichever is current */
};

struct registry_links {
    struct registry_link *links; /* by `from` */
    size_t n;
};
/* All aliases, or those of `name` if it is not NULL. */
void registry_aliases(struct registry *r, const char *name, struct registry_links *out);
/* All users with an adapter of their own, or the rows of one. */
void registry_users(struct registry *r, const char *user, struct registry_links *out);
void registry_links_release(struct registry_links *l);

/* What a reference stands for now. */
struct registry_ref {
    char name[REGISTRY_NAME_BYTES + 1];
    int version;
    bool fixed; /* the reference said which version */
    bool pinned;
    uint8_t digest[REGISTRY_DIGEST_BYTES];
    uint64_t bytes;
    char *base, *source; /* freed by registry_ref_release */
};

/* ERR_NOTFOUND. */
int registry_resolve(struct registry *r, const char *ref, struct registry_ref *out, struct err *e);
void registry_ref_release(struct registry_ref *ref);

/* The adapter of a user on a model, as a reference for registry_resolve; false if there is none. */
bool registry_user_adapter(struct registry *r, const char *user, const char *base,
                           char out[REGISTRY_NAME_BYTES + 1]);

/* Whether a name or an alias, or the current version of one, leads to that version: what nothing
 * leads to need not stay in memory. */
bool registry_reaches(struct registry *r, const char *name, int version);

/* ---- changing ---- */

struct registry_spec {
    const char *name, *base, *source, *format, *trained_on;
    const char *owner, *labels; /* NULL: as they are, "" and "{}" for a new name */
    int pinned;                 /* -1: as it is, false for a new name */
    int rank;
    uint64_t bytes;
    const uint8_t *digest;
    bool replace; /* the name may be there already: this becomes its current version */
};

/* * A new name, or a new version of it, which becomes the current one. The content that is current
 * already keeps its number, whatever its path. ERR_EXISTS without `replace`, or for a name that is
 * an alias; ERR_INVALID for what is no name, and for another base. */
int registry_add(struct registry *r, const struct registry_spec *spec, int *version, struct err *e);

/* * With its versions, aliases and users. ERR_NOTFOUND. */
int registry_remove(struct registry *r, const char *name, struct err *e);

/* * NULL, and -1 for pinned: as it is. */
int registry_change(struct registry *r, const char *name, const char *owner, const char *labels,
                    int pinned, struct err *e);

/* * Makes another version current; 0: the one before. ERR_NOTFOUND. */
int registry_rollback(struct registry *r, const char *name, int version, int *now, struct err *e);

/* * Makes an alias, or moves it, to a version of name (0: follow the current one). Names that are
 * adapters' and NAME@3 are refused. */
int registry_alias(struct registry *r, const char *alias, const char *name, int version,
                   struct err *e);
int registry_unalias(struct registry *r, const char *alias, struct err *e); /* * */

/* * Gives a user an adapter of their own on its base model. */
int registry_give(struct registry *r, const char *user, const char *name, struct err *e);
/* * Takes it back, on one model or on all (NULL). ERR_NOTFOUND. */
int registry_take(struct registry *r, const char *user, const char *base, struct err *e);

/* Counts a use: in memory, until registry_save. */
void registry_used(struct registry *r, const char *name);
/* * Writes the counts. What was not saved is lost with the process. */
int registry_save(struct registry *r, struct err *e);

/* Letters, digits, '.', '_', '-', '/' and, in aliases, '@'; no leading '.', '/' or '-'. */
int registry_check_name(const char *name, bool alias, struct err *e);
