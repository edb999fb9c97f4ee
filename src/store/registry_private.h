/* registry_private.h - the registry in memory: what is committed, and the counts of uses since the
 * latest save. Private to registry*.c. */
#pragma once

#include <pthread.h>

#include "base/buf.h"
#include "base/map.h"
#include "store/registry.h"

struct registry {
    struct db *db;
    pthread_mutex_t writer; /* one change after the other; taken before `lock` */
    pthread_mutex_t lock;   /* guards what follows; never held while the disk works */
    struct map entries;     /* name -> struct registry_entry */
    struct map aliases;     /* alias -> struct registry_link */
    struct map users;       /* registry_user_key -> struct registry_link */
    struct map unsaved;     /* names whose counts are new -> the registry */
};

/* user NUL base: neither holds a NUL */
void registry_user_key(struct buf *key, const char *user, const char *base);

/* registry_rows.c, inside a transaction: rows of the database into memory of the caller's. */

/* NULL in *out if there is none. */
int registry_read_entry(struct registry *r, const char *name, struct registry_entry **out,
                        struct err *e);
int registry_read_entries(struct registry *r, struct map *out, struct err *e);
int registry_read_aliases(struct registry *r, struct map *out, struct err *e);
int registry_read_users(struct registry *r, struct map *out, struct err *e);
