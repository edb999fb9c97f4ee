/* response_private.h - what the files of the response cache share. */
#pragma once

#include "base/map.h"
#include "gateway/response_cache.h"
#include "gateway/response_record.h"

struct rendered;

enum response_state {
    RESPONSE_FILLING, /* the leader adds to it */
    RESPONSE_WHOLE,
    RESPONSE_FAILED, /* or given up */
};

/* Lives while it is found by its key, has readers, or a leader. */
struct response_entry {
    struct response_cache *cache;
    struct response_key key;
    enum response_state state;
    bool indexed; /* cache->entries has it */
    bool counted; /* WHOLE and indexed: in the list by age of use, its bytes are counted */
    bool loose;   /* too large to keep: what all readers have read is dropped from the record */
    bool no_keep; /* dropped while it was being made */
    bool repeatable;
    bool held; /* the leader was told to hold */
    int busy;  /* calls on the stack that still need it */
    int n_choices, n_over;
    int64_t made_ms, ttl_ms;
    uint64_t drops; /* the cache's, at the beginning */
    struct response_record record;
    struct response_reader *readers, *last; /* in the order of arrival */
    struct response_reader *leader;         /* NULL once its run is over */
    int n_readers, n_paused;
    struct response_entry *newer, *older; /* by last use */
    struct rendered *rendered;
    size_t bytes;   /* as counted */
    char *adapters; /* these three lie in `names` */
    char *tenant;
    char *model;
    char names[];
};

struct response_cache {
    struct response_cache_opts opts;
    struct map entries;  /* by key */
    struct map rendered; /* by the key of the request's bytes */
    struct response_entry *newest, *oldest;
    struct response_stats stats;
    uint64_t generation; /* of what was rendered */
    uint64_t drops;      /* calls of response_drop */
};

static inline struct str response_key_str(const struct response_key *k)
{
    return (struct str){(const char *)k->bytes, sizeof k->bytes};
}

int64_t response_now(const struct response_cache *c);
bool response_too_old(const struct response_cache *c, const struct response_entry *e);
void response_used(struct response_entry *e);            /* just now */
void response_count(struct response_entry *e, size_t n); /* its bytes are n; may evict, also e */
void response_unindex(struct response_entry *e);         /* may free it */

/* response_rendered.c */
void response_rendered_drop(struct response_entry *e); /* all of an entry */
