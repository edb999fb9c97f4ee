#include "store/schema.h"

#include <stddef.h>

/* registry.c. Times are Unix seconds. A version is one content of an adapter; `current` is the one
 * that its name stands for, `newest` the last number given out. An alias without a version follows
 * the current one. */
static const char adapters[] =
    "create table adapters (name text primary key, base text not null, current integer not null,"
    " newest integer not null, owner text not null, labels text not null, pinned integer not null,"
    " created integer not null, last_used integer not null, uses integer not null) strict;"

    "create table adapter_versions (name text not null references adapters on delete cascade,"
    " version integer not null, digest blob not null, format text not null,"
    " trained_on text not null, rank integer not null, bytes integer not null,"
    " source text not null, created integer not null, primary key (name, version)) strict;"

    "create table adapter_aliases (alias text primary key,"
    " name text not null references adapters on delete cascade, version integer not null,"
    " created integer not null) strict;"

    "create table adapter_users (user text not null, base text not null,"
    " name text not null references adapters on delete cascade, created integer not null,"
    " primary key (user, base)) strict;";

/* keys.c, usage.c. Times are Unix seconds; 0 in `expires`, `revoked`, `old_until`: never. `at` of
 * usage is the second in which the requests began, of older rows the hour. */
static const char keys[] =
    "create table keys (id integer primary key autoincrement, name text not null,"
    " tenant text not null, role text not null, models text not null, tiers text not null,"
    " adapters text not null, rpm integer not null, tpm integer not null,"
    " concurrency integer not null, daily_tokens integer not null, created integer not null,"
    " expires integer not null, revoked integer not null, last_used integer not null,"
    " prefix text not null, digest blob not null unique, old_digest blob not null,"
    " old_until integer not null) strict;"
    "create unique index keys_name on keys (name) where revoked = 0;"

    "create table usage (at integer not null, key integer not null, tenant text not null,"
    " model text not null, tier text not null, status integer not null,"
    " requests integer not null, prompt_tokens integer not null,"
    " cached_tokens integer not null, completion_tokens integer not null, ms integer not null,"
    " primary key (at, key, tenant, model, tier, status)) strict, without rowid;"

    "create table audit (id integer primary key autoincrement, at integer not null,"
    " key integer not null, name text not null, address text not null, action text not null,"
    " status integer not null) strict;";

/* usage.c: of the tokens, those that limits counted. */
static const char charged[] =
    "alter table usage add column charged_tokens integer not null default 0;";

const char *const db_schema[] = {
    adapters,
    keys,
    charged,
    NULL,
};
